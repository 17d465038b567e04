"""Flow files of videos and images, each against the network's answer for its pair alone."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from object_storage import Bucket

from flowcore.chunks import ChunkReader
from flowcore.drawing import flow_colors, motion_scale
from flowcore.formats import read_flow, read_image, read_mask, write_image
from flowcore.inference import InferenceOptions, estimate_scaled
from flowcore.networks import FlowNetwork, PWCNetConfig, tiny
from flowcore.occlusion import OcclusionCheck, agreement
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.shapes import to_images
from flowcore.uncertainty import scale_codes
from flowcore.video import ClipOptions
from jobs.predict import Predict, main
from pipelines.camera import recorded
from pipelines.checkpoints import load_model, save_model
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess
from pipelines.film import film
from pipelines.flow_files import FlowFormat, PredictionOptions
from pipelines.flow_folder import RECORD_FILE
from pipelines.inference import VideoFlow
from pipelines.prediction import (
    PredictedVideo,
    PredictionPlan,
    PredictionSummary,
    begun_ahead,
    predict_video,
)
from pipelines.storage import Folder

PLAIN = PredictionOptions()
EVERY_PAIR = ClipOptions(cut_threshold=None, static_threshold=0.0, fade_contrast=0.0, min_size=(1, 1))

Frames = UInt8[ndarray, "frames height width 3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,))
    save_model(folder, config.build(), {})
    return str(folder)


@pytest.fixture(scope="module")
def network(model: str) -> FlowNetwork:
    return load_model(Path(model))[0]


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Six frames of a size that suits no network and no film."""
    return render_scene(0, SceneOptions(height=37, width=53, num_frames=6)).frames


def write_images(folder: Path, frames: Frames, names: list[str]) -> Path:
    folder.mkdir(parents=True)
    for name, frame in zip(names, frames, strict=True):
        write_image(folder / name, frame)
    return folder


def flow_of_pair(network: FlowNetwork, image1: ndarray, image2: ndarray) -> Float[ndarray, "2 height width"]:
    flow_fw, _ = network.estimate(to_images(image1[None]), to_images(image2[None]))
    return flow_fw[0].numpy()


def predict(
    model: str, videos: str, output: str, options: PredictionOptions, *, on_cluster: bool = False
) -> list[PredictedVideo]:
    return PredictionPlan.of(model, videos, output, options).predict(on_cluster=on_cluster)


def written(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD_FILE)
    return sorted(str(path.relative_to(folder)) for path in files)


def only(predictions: list[PredictedVideo]) -> PredictedVideo:
    (prediction,) = predictions
    return prediction


def test_each_pair_of_images_has_the_flow_of_the_pair_alone(
    model: str, network: FlowNetwork, frames: Frames, tmp_path: Path
) -> None:
    # In the order of the numbers: 9 before 10.
    names = [f"walk{number}.png" for number in (8, 9, 10, 11, 100, 101)]
    images = write_images(tmp_path / "images", frames, names)
    prediction = only(predict(model, str(images), str(tmp_path / "flow"), PLAIN))
    assert (prediction.num_pairs, prediction.problem) == (5, None)
    assert written(tmp_path / "flow") == sorted(f"{Path(name).stem}.flo" for name in names[:-1])
    for name, image1, image2 in zip(names, frames, frames[1:], strict=False):
        flow, valid = read_flow(tmp_path / "flow" / f"{Path(name).stem}.flo")
        assert flow.shape == (2, 37, 53)
        assert valid.all()
        np.testing.assert_allclose(flow, flow_of_pair(network, image1, image2), atol=2e-3)


def test_each_pair_of_a_video_has_a_flow_even_if_it_is_static_or_crosses_a_cut(
    model: str, network: FlowNetwork, tmp_path: Path
) -> None:
    options = SceneOptions(height=48, width=66, num_frames=4)
    first, second = render_scene(0, options).frames, render_scene(1, options).frames
    write_video(tmp_path / "a.mp4", np.concatenate([first, second, second[[-1, -1, -1]]]))
    predict(model, str(tmp_path / "a.mp4"), str(tmp_path / "flow"), PLAIN)
    assert written(tmp_path / "flow") == [f"{index:06d}.flo" for index in range(10)]
    decoded: dict[int, ndarray] = {}
    for chunk in ChunkReader(tmp_path / "a.mp4", EVERY_PAIR):
        decoded.update(zip(chunk.frame_indices, chunk.frames, strict=True))
    for index in range(10):
        flow, _ = read_flow(tmp_path / "flow" / f"{index:06d}.flo")
        expected = flow_of_pair(network, decoded[index], decoded[index + 1])
        np.testing.assert_allclose(flow, expected, atol=2e-3)


def test_each_frame_of_a_chunk_is_encoded_once(network: FlowNetwork, frames: Frames, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames[:, :36, :52])
    encoded = []
    hook = network.encoder[0].register_forward_hook(lambda *call: encoded.append(len(call[2])))
    try:
        with DecoderProcess() as decoder:
            flow = VideoFlow(network, InferenceOptions(), both=False)
            list(flow.pairs(decoder, VideoSource(str(tmp_path / "a.mp4"))))
    finally:
        hook.remove()
    assert sum(encoded) == 6


def test_pictures_and_film_come_beside_the_flow(model: str, frames: Frames, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", frames, [f"{index}.ppm" for index in range(6)])
    options = PredictionOptions(pictures=True, video=True)
    predict(model, str(images), str(tmp_path / "flow"), options)
    expected = [f"{index}{kind}" for index in range(5) for kind in (".flo", "_picture.png")]
    assert written(tmp_path / "flow") == sorted([*expected, "flow.mp4"])
    drawn = [read_image(tmp_path / "flow" / f"{index}_picture.png") for index in range(5)]
    with av.open(str(tmp_path / "flow" / "flow.mp4")) as film:
        shown = [picture.to_ndarray(format="rgb24") for picture in film.decode(video=0)]
    assert len(shown) == 5
    for picture, of_film in zip(drawn, shown, strict=True):
        height, width = picture.shape[:2]
        # H.264 needs even sides.
        assert of_film.shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(of_film[:height, :width].astype(int) - picture).mean() < 15


def test_the_pictures_of_a_video_share_one_scale(model: str, frames: Frames, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", frames, [f"{index}.png" for index in range(6)])
    predict(model, str(images), str(tmp_path / "flow"), PredictionOptions(pictures=True))
    flows = [read_flow(tmp_path / "flow" / f"{index}.flo")[0] for index in range(5)]
    scale = max(motion_scale([flow]) for flow in flows)
    for index, flow in enumerate(flows):
        picture = read_image(tmp_path / "flow" / f"{index}_picture.png")
        # Beside the frame, below a caption, each pixel five times as large.
        shown = picture[24 : 24 + 5 * 37 : 5, 277 : 277 + 5 * 53 : 5]
        np.testing.assert_array_equal(shown, flow_colors(flow, scale))


def test_raft_predicts_with_as_many_iterations_as_it_is_told(frames: Frames, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = tiny()["raft"].build()
    save_model(tmp_path / "model", network, {})
    images = write_images(tmp_path / "images", frames[:2], ["0.png", "1.png"])
    options = PredictionOptions(inference=InferenceOptions(iterations=5))
    predict(str(tmp_path / "model"), str(images), str(tmp_path / "flow"), options)
    network.set_iterations(5)
    expected = flow_of_pair(network, frames[0], frames[1])
    np.testing.assert_allclose(read_flow(tmp_path / "flow" / "0.flo")[0], expected, atol=1e-3)


def test_iterations_of_a_network_that_has_none_are_refused_before_anything_is_written(
    model: str, frames: Frames, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", frames[:2], ["0.png", "1.png"])
    options = PredictionOptions(inference=InferenceOptions(iterations=9))
    with pytest.raises(ValueError, match="PWCNet has no iterations"):
        predict(model, str(images), str(tmp_path / "flow"), options)
    assert not (tmp_path / "flow").exists()


def test_the_film_is_as_fast_as_the_video(model: str, frames: Frames, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames[:, :36, :52], fps=10)
    predict(model, str(tmp_path / "a.mp4"), str(tmp_path / "flow"), PredictionOptions(video=True))
    with av.open(str(tmp_path / "flow" / "flow.mp4")) as film:
        assert film.streams.video[0].average_rate == 10


@pytest.fixture
def videos(frames: Frames, tmp_path: Path) -> Path:
    """Videos whose names differ in the extension alone, one in a folder, and an image sequence."""
    folder = tmp_path / "videos"
    for name in ("a.mp4", "a.mov", "sub/b c.mp4"):
        write_video(folder / name, frames[:3, :36, :52])
    write_images(folder / "sub" / "walk", frames[:2], ["1.png", "2.png"])
    return folder


FILES = [
    "a.mov/000000.flo",
    "a.mov/000001.flo",
    "a.mp4/000000.flo",
    "a.mp4/000001.flo",
    "sub/b c/000000.flo",
    "sub/b c/000001.flo",
    "sub/walk/1.flo",
]


def test_each_video_of_a_collection_has_a_folder_here_and_on_ray_s_nodes(
    model: str, videos: Path, tmp_path: Path, ray_session: None
) -> None:
    here = predict(model, str(videos), str(tmp_path / "here"), PLAIN)
    there = predict(model, str(videos), str(tmp_path / "there"), PLAIN, on_cluster=True)
    assert [each.num_pairs for each in here] == [each.num_pairs for each in there] == [2, 2, 2, 1]
    assert [each.source for each in here] == [each.source for each in there]
    assert written(tmp_path / "here") == written(tmp_path / "there") == FILES
    for name in FILES:
        flow, expected = (read_flow(tmp_path / place / name)[0] for place in ("there", "here"))
        np.testing.assert_allclose(flow, expected, atol=2e-3)


def test_no_more_videos_are_begun_on_ray_s_nodes_than_there_is_room_for(
    tmp_path: Path, ray_session: None
) -> None:
    gate, begun = tmp_path / "open", []

    @ray.remote
    def predicted(source: VideoSource) -> Iterator[PredictedVideo]:
        yield PredictedVideo(source=source, folder="")
        while not gate.exists():
            time.sleep(0.01)
        yield PredictedVideo(source=source, folder="", num_pairs=1)

    def begin(task: Any) -> Any:
        begun.append(task.source.uri)
        return predicted.remote(task.source)

    names = list("abcdef")
    tasks: Any = [SimpleNamespace(source=VideoSource(name), location="") for name in names]
    videos = begun_ahead(begin, tasks, lambda: 2)
    first = next(videos)
    assert next(first).num_pairs == 0
    assert begun == ["a", "b"]
    gate.touch()
    assert [state.num_pairs for state in first] == [1]
    assert [[state.source.uri for state in states] for states in videos] == [[name] * 2 for name in "bcdef"]
    assert begun == names


@pytest.mark.parametrize("place", ["sub", "sub/b%20c.mp4"])
def test_object_storage_gets_the_files_that_a_disk_gets(
    model: str, videos: Path, tmp_path: Path, bucket: Bucket, place: str
) -> None:
    options = PredictionOptions(video=True)
    predict(model, str(videos / unquote(place)), str(tmp_path / "flow"), options)
    bucket.fill(tmp_path)
    predict(model, bucket.uri(f"videos/{place}"), bucket.uri("out"), options)
    found = bucket.contents("out", "")
    assert sorted(name for name in found if RECORD_FILE not in name) == written(tmp_path / "flow")
    for name in (name for name in found if name.endswith(".flo")):
        assert found[name] == (tmp_path / "flow" / name).read_bytes()


def test_a_broken_video_costs_only_its_own_flow(model: str, frames: Frames, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_video(videos / "a.mp4", frames[:3, :36, :52])
    (videos / "b.mp4").write_bytes(b"not a video")
    (videos / "c.mp4").write_bytes(b"")
    write_video(videos / "d.mp4", frames[:1, :36, :52])
    write_video(videos / "e.mp4", frames[:2, :36, :52])
    predictions = predict(model, str(videos), str(tmp_path / "flow"), PLAIN)
    assert [prediction.num_pairs for prediction in predictions] == [2, 0, 0, 0, 1]
    assert [prediction.problem is None for prediction in predictions] == [True, False, False, False, True]
    assert "two consecutive frames" in str(predictions[3].problem)
    assert written(tmp_path / "flow") == ["a/000000.flo", "a/000001.flo", "e/000000.flo"]


def test_images_of_several_sizes_are_a_problem_and_the_rest_is_predicted(
    model: str, frames: Frames, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", frames, [f"{index}.png" for index in range(6)])
    write_image(images / "6.png", frames[0, :20, :20])
    write_image(images / "7.png", frames[1, :20, :20])
    prediction = only(predict(model, str(images), str(tmp_path / "flow"), PLAIN))
    assert prediction.num_pairs == 6
    assert "size changes" in str(prediction.problem)
    assert "5.flo" not in written(tmp_path / "flow")
    assert read_flow(tmp_path / "flow" / "6.flo")[0].shape == (2, 20, 20)


def test_a_damaged_image_ends_the_sequence_and_the_problem_names_the_one_before(
    model: str, frames: Frames, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", frames, [f"{index}.png" for index in range(6)])
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:40])
    prediction = only(predict(model, str(images), str(tmp_path / "flow"), PLAIN))
    assert prediction.num_pairs == 2
    assert "can't be decoded (read as far as 2.png)" in str(prediction.problem)


def refusal(model: str, place: Path | str, output: Path | str, error: type[Exception] = ValueError) -> str:
    """Why nothing is predicted."""
    with pytest.raises(error) as caught:
        predict(model, str(place), str(output), PredictionOptions(pictures=True))
    return str(caught.value)


def test_a_place_without_a_video_is_refused(model: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, told in (("empty", "no video in"), ("nothing", "nothing is at")):
        assert told in refusal(model, tmp_path / name, tmp_path / "flow", FileNotFoundError)
    assert not (tmp_path / "flow").exists()


def test_a_lone_image_is_refused(model: str, frames: Frames, tmp_path: Path) -> None:
    lone = write_images(tmp_path / "lone", frames[:1], ["only.png"])
    told = refusal(model, lone, tmp_path / "flow", FileNotFoundError)
    assert "folders of two or more images" in told
    assert "is one image and flow needs two" in refusal(model, lone / "only.png", tmp_path / "flow")
    assert not (tmp_path / "flow").exists()


def test_an_output_that_is_read_or_has_a_secret_is_refused(
    model: str, frames: Frames, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", frames[:2], ["0.png", "1.png"])
    (tmp_path / "link").symlink_to(images)
    assert f"link lies in --videos {images}" in refusal(model, images, tmp_path / "link")
    assert "holds what may be a secret" in refusal(model, images, "s3://key:secret@bucket/flow")


def test_an_output_among_the_videos_is_refused(model: str, videos: Path, tmp_path: Path) -> None:
    for output in (videos, videos / "flow", videos / "sub" / "flow"):
        assert f"--output {output} lies in --videos {videos}" in refusal(model, videos, output)
    # Above them it is none of them, and beside them what they are called doesn't matter.
    predict(model, str(videos), str(tmp_path / "videos-flow"), PLAIN)
    assert written(tmp_path / "videos-flow") == FILES


def test_a_folder_whose_video_is_read_is_never_written_to(model: str, frames: Frames, tmp_path: Path) -> None:
    film, films = tmp_path / "films" / "flow.mp4", tmp_path / "films.mp4"
    for video in (film, films):
        write_video(video, frames[:3, :36, :52])
    (tmp_path / "list.txt").write_text(f"{film}\n{films}\n")
    before = film.read_bytes()
    # As its own folder, and as that of the other video.
    for videos, output in ((film, film.parent), (tmp_path / "list.txt", tmp_path)):
        with pytest.raises(ValueError, match="films holds a video that is read"):
            predict(model, str(videos), str(output), PredictionOptions(video=True))
    assert film.read_bytes() == before


@pytest.mark.parametrize(
    ("mine", "options"),
    [
        ("000000.png", PredictionOptions(format="kitti")),
        ("000000_occlusion.png", PredictionOptions(occlusion=True)),
        ("000000_confidence.png", PredictionOptions(occlusion=True)),
        ("flow.mp4", PredictionOptions(video=True)),
        ("notes.txt", PLAIN),
    ],
)
def test_a_folder_with_files_of_others_is_refused_and_they_stay(
    model: str, frames: Frames, tmp_path: Path, mine: str, options: PredictionOptions
) -> None:
    write_video(tmp_path / "a.mp4", frames[:3, :36, :52])
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / mine).write_bytes(b"mine")
    with pytest.raises(ValueError, match=rf"flow holds {mine} but no _prediction\.json"):
        predict(model, str(tmp_path / "a.mp4"), str(tmp_path / "flow"), options)
    assert written(tmp_path / "flow") == [mine]
    assert (tmp_path / "flow" / mine).read_bytes() == b"mine"


def test_flow_that_would_have_two_meanings_is_refused(model: str, frames: Frames, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", frames[:2], ["0.png", "1.png"])
    shutil.copy(images / "0.png", images / "0.jpg")
    assert "several images named 0" in refusal(model, images, tmp_path / "flow")
    write_video(images / "preview.mp4", frames[:3, :36, :52])
    assert "holds 3 images and 1 videos" in refusal(model, images, tmp_path / "flow")
    assert not (tmp_path / "flow").exists()


def test_images_and_videos_in_one_place_are_refused_on_object_storage_too(
    model: str, frames: Frames, tmp_path: Path, bucket: Bucket
) -> None:
    images = write_images(tmp_path / "in" / "images", frames, [f"{index}.png" for index in range(6)])
    write_video(images / "preview.mp4", frames[:3, :36, :52])
    bucket.fill(tmp_path / "in")
    with pytest.raises(ValueError, match="holds 6 images and 1 videos"):
        predict(model, bucket.uri("images"), bucket.uri("out"), PLAIN)
    with pytest.raises(ValueError, match="is one image and flow needs two"):
        predict(model, bucket.uri("images/0.png"), bucket.uri("out"), PLAIN)
    assert not Folder(bucket.uri("out")).exists()


def test_a_video_that_is_cut_off_is_predicted_up_to_there(model: str, frames: Frames, tmp_path: Path) -> None:
    video = tmp_path / "a.mkv"
    write_video(video, np.concatenate([frames[:, :36, :52]] * 4))
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 6 // 10])
    prediction = only(predict(model, str(video), str(tmp_path / "flow"), PLAIN))
    assert prediction.num_pairs == len(written(tmp_path / "flow")) > 0
    assert "cut off" in str(prediction.problem)


def test_the_scenes_of_a_data_set_have_a_folder_each(model: str, frames: Frames, tmp_path: Path) -> None:
    names = [f"{scene:06d}_{frame:02d}.png" for scene in (0, 1) for frame in (7, 8, 13)]
    write_images(tmp_path / "kitti" / "training" / "image_2", frames, names)
    predict(model, f"kitti2015:{tmp_path / 'kitti'}", str(tmp_path / "flow"), PLAIN)
    assert written(tmp_path / "flow") == [
        f"training/image_2/{scene:06d}_07/{scene:06d}_07.flo" for scene in (0, 1)
    ]


@pytest.fixture
def images(frames: Frames, tmp_path: Path) -> str:
    return str(write_images(tmp_path / "images", frames, [f"{index}.png" for index in range(6)]))


@pytest.mark.parametrize(
    ("format", "suffix", "off"), [("flo5", ".flo5", 0), ("kitti", ".png", 1 / 128), ("npy", ".npy", 0)]
)
def test_every_kind_of_file_holds_the_same_flow(
    model: str, images: str, tmp_path: Path, format: FlowFormat, suffix: str, off: float
) -> None:
    predict(model, images, str(tmp_path / "flo"), PLAIN)
    predict(model, images, str(tmp_path / "other"), PredictionOptions(format=format))
    assert written(tmp_path / "other") == [f"{index}{suffix}" for index in range(5)]
    for index in range(5):
        expected, _ = read_flow(tmp_path / "flo" / f"{index}.flo")
        flow, valid = read_flow(tmp_path / "other" / f"{index}{suffix}")
        assert valid.all()
        assert np.abs(flow - expected).max() <= off


def test_a_video_s_table_has_a_row_a_pair_with_its_flow_and_its_times(
    model: str, frames: Frames, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", frames[:, :36, :52], fps=5)
    both = PredictionOptions(occlusion=True)
    predict(model, str(tmp_path / "a.mp4"), str(tmp_path / "files"), both)
    predict(model, str(tmp_path / "a.mp4"), str(tmp_path / "flow"), replace(both, format="parquet"))
    assert written(tmp_path / "flow") == ["flow.parquet"]
    file = pq.ParquetFile(tmp_path / "flow" / "flow.parquet")
    assert file.num_row_groups == 5
    assert file.schema_arrow.metadata[b"distillflow.flow_table"] == b"1"
    rows = file.read().to_pylist()
    assert [(row["frame"], row["name"]) for row in rows] == [(index, f"{index:06d}") for index in range(5)]
    assert [row["timestamp"] for row in rows] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert [row["seconds"] for row in rows] == pytest.approx([0.2] * 5)
    for row in rows:
        shape = row["height"], row["width"]
        assert shape == (36, 52)
        for column, kind in (("flow_fw", ""), ("flow_bw", "_back")):
            expected, _ = read_flow(tmp_path / "files" / f"{row['name']}{kind}.flo")
            np.testing.assert_array_equal(np.float32(row[column]).reshape(2, *shape), expected)
        occluded = read_mask(tmp_path / "files" / f"{row['name']}_occlusion.png")
        np.testing.assert_array_equal(np.reshape(row["occ_fw"], shape), occluded)
        assert 0 <= min(row["confidence_fw"]) <= max(row["confidence_fw"]) <= 1


def test_a_table_of_flow_alone_has_no_other_columns_of_pixels(
    model: str, images: str, tmp_path: Path
) -> None:
    predict(model, images, str(tmp_path / "flow"), PredictionOptions(format="parquet"))
    table = pq.read_table(tmp_path / "flow" / "flow.parquet")
    assert table.column_names == ["frame", "name", "timestamp", "seconds", "height", "width", "flow_fw"]
    assert table["name"].to_pylist() == ["0", "1", "2", "3", "4"]
    assert np.isnan(table["seconds"].to_numpy()).all()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"format": "parquet", "video": True}, "format parquet has no file of each pair"),
        ({"warped": True}, "add --pictures or --video"),
    ],
)
def test_pictures_of_what_is_not_there_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PredictionOptions(**wrong)


def test_a_picture_can_show_the_next_frame_brought_back(model: str, frames: Frames, tmp_path: Path) -> None:
    images = str(write_images(tmp_path / "images", frames[:2], ["0.png", "1.png"]))
    widths = []
    for warped in (False, True):
        options = PredictionOptions(pictures=True, warped=warped)
        predict(model, images, str(tmp_path / str(warped)), options)
        widths.append(read_image(tmp_path / str(warped) / "0_picture.png").shape[1])
    # One more cell: five times as wide as a frame of 53 px, and a gap.
    assert widths[1] - widths[0] == 5 * 53 + 6


def test_a_shorter_run_leaves_no_picture_of_another_scale(model: str, images: str, tmp_path: Path) -> None:
    predict(model, images, str(tmp_path / "flow"), PredictionOptions(pictures=True))
    predict(model, images, str(tmp_path / "flow"), PredictionOptions(pictures=True, limit=2))
    pictures = [name for name in written(tmp_path / "flow") if name.endswith("_picture.png")]
    assert pictures == ["0_picture.png", "1_picture.png"]


def test_a_camera_is_recorded_beside_the_output_and_once(
    frames: Frames, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # OpenCV opens a file as it opens a camera.
    write_video(tmp_path / "7.avi", frames[:, :36, :52])
    film = recorded(str(tmp_path / "7.avi"), str(tmp_path / "flow"), 3)
    assert capsys.readouterr().out == ""
    assert film == str(tmp_path / "flow-camera7.mp4")
    with av.open(film) as container:
        shown = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    assert len(shown) == 4
    # Both are coded, and RGB has not become BGR.
    assert np.abs(shown[0].astype(float) - frames[0, :36, :52]).mean() < 12
    before = Path(film).stat()
    assert recorded(str(tmp_path / "7.avi"), str(tmp_path / "flow"), 1) == film
    assert Path(film).stat() == before
    assert f"{film} was recorded before; remove it" in capsys.readouterr().out
    # Another camera has another film, and one that gives too little says so.
    write_video(tmp_path / "8.avi", frames[:, :36, :52])
    other = recorded(str(tmp_path / "8.avi"), str(tmp_path / "flow"), 4, stride=2)
    assert other == str(tmp_path / "flow-camera8.mp4")
    assert f"{other} has 6 frames and not 9" in capsys.readouterr().out


def test_without_a_camera_the_error_says_so_and_nothing_is_written(model: str, tmp_path: Path) -> None:
    options = Predict(model=model, videos="99", output=str(tmp_path / "flow"), limit=3)
    with pytest.raises(ValueError, match="OpenCV finds no camera 99 on this machine"):
        main(options)
    with pytest.raises(ValueError, match="is a camera, which has no end; add --limit"):
        main(replace(options, limit=None))
    assert list(tmp_path.iterdir()) == []


def test_before_a_camera_is_asked_the_folder_for_its_flow_is_looked_at(
    model: str, images: str, tmp_path: Path
) -> None:
    predict(model, images, str(tmp_path / "flow"), PLAIN)
    # There is no such camera, which isn't found out.
    options = Predict(model=model, videos="99", output=str(tmp_path / "flow"), limit=3)
    with pytest.raises(ValueError, match=f"holds the flow of the video {images}; remove it"):
        main(options)


def test_what_is_occluded_is_what_the_given_check_finds(model: str, frames: Frames, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", frames[:2], ["0.png", "1.png"])
    shares = []
    for name, check in (
        ("lenient", OcclusionCheck(alpha2=1e9)),
        ("strict", OcclusionCheck(alpha1=0.0, alpha2=1e-9)),
    ):
        options = PredictionOptions(occlusion=True, check=check)
        predict(model, str(images), str(tmp_path / name), options)
        shares.append(read_mask(tmp_path / name / "0_occlusion.png").mean())
    # To a check that lets everything pass only what leaves the frame is occluded.
    assert shares[0] < shares[1]


def test_the_shown_speed_leaves_out_what_an_earlier_run_did(
    model: str, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        predict(model, images, str(tmp_path / "flow"), PLAIN)
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("predict: 1 of 1 videos, 100%, 5 pairs, 0 pairs/s, ")


def test_a_summary_counts_new_pairs_alone_towards_the_speed() -> None:
    done = [
        PredictedVideo(source=VideoSource(name), folder="f", num_pairs=pairs, is_new=is_new)
        for name, pairs, is_new in (("a", 3, True), ("b", 5, False))
    ]
    metrics = PredictionSummary(videos=tuple(done), seconds=2.0).metrics()
    assert (metrics["predict/pairs"], metrics["predict/new_pairs"]) == (8, 3)
    assert metrics["predict/pairs_per_second"] == 1.5


def test_with_occlusion_comes_the_flow_back_what_is_hidden_and_how_well_both_agree(
    model: str, network: FlowNetwork, frames: Frames, images: str, tmp_path: Path
) -> None:
    predict(model, images, str(tmp_path / "flow"), PredictionOptions(occlusion=True))
    names = (".flo", "_back.flo", "_confidence.png", "_occlusion.png")
    assert written(tmp_path / "flow") == sorted(f"{index}{name}" for index in range(5) for name in names)
    there, back = network.estimate(*(to_images(frame[None]) for frame in frames[:2]))
    np.testing.assert_allclose(read_flow(tmp_path / "flow" / "0.flo")[0], there[0], atol=2e-3)
    np.testing.assert_allclose(read_flow(tmp_path / "flow" / "0_back.flo")[0], back[0], atol=2e-3)
    occluded = read_mask(tmp_path / "flow" / "0_occlusion.png")
    assert (occluded == OcclusionCheck()(there, back)[0, 0].numpy()).mean() > 0.99
    confidence = read_image(tmp_path / "flow" / "0_confidence.png")[..., 0] / 255
    np.testing.assert_allclose(confidence, agreement(there, back)[0, 0], atol=0.02)


def test_how_far_a_network_expects_to_be_off_is_a_code_for_each_pixel(frames: Frames, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "model", replace(tiny()["pwcnet"], uncertainty=True).build(), {})
    images = write_images(tmp_path / "images", frames[:2], ["a.png", "b.png"])
    options = PredictionOptions(uncertainty=True)
    predict(str(tmp_path / "model"), str(images), str(tmp_path / "flow"), options)
    assert written(tmp_path / "flow") == ["a.flo", "a_uncertainty.png"]
    codes = cv2.imread(str(tmp_path / "flow" / "a_uncertainty.png"), cv2.IMREAD_UNCHANGED)
    network = load_model(tmp_path / "model")[0]
    plain, cpu = InferenceOptions(), torch.device("cpu")
    ((_, _, scale),) = estimate_scaled(network, list(frames[:2]), cpu, plain, both=False)
    np.testing.assert_array_equal(codes, scale_codes(scale[0, 0]))


def test_a_table_has_how_far_a_network_expects_to_be_off_in_pixels(frames: Frames, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "model", replace(tiny()["pwcnet"], uncertainty=True).build(), {})
    images = write_images(tmp_path / "images", frames[:2], ["a.png", "b.png"])
    options = PredictionOptions(uncertainty=True, format="parquet")
    predict(str(tmp_path / "model"), str(images), str(tmp_path / "flow"), options)
    (row,) = pq.read_table(tmp_path / "flow" / "flow.parquet").to_pylist()
    network = load_model(tmp_path / "model")[0]
    plain, cpu = InferenceOptions(), torch.device("cpu")
    ((_, _, scale),) = estimate_scaled(network, list(frames[:2]), cpu, plain, both=False)
    np.testing.assert_allclose(row["uncertainty_fw"], scale[0, 0].flatten(), rtol=1e-5)


def test_an_uncertainty_that_a_network_does_not_predict_is_refused_before_anything_is_written(
    model: str, frames: Frames, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", frames[:2], ["a.png", "b.png"])
    with pytest.raises(ValueError, match=r"--uncertainty .* --network\.uncertainty; take --occlusion"):
        predict(model, str(images), str(tmp_path / "flow"), PredictionOptions(uncertainty=True))
    assert not (tmp_path / "flow").exists()


def test_a_stride_and_a_limit_choose_the_pairs(
    model: str, network: FlowNetwork, frames: Frames, images: str, tmp_path: Path
) -> None:
    predict(model, images, str(tmp_path / "flow"), PredictionOptions(stride=2, limit=2))
    assert written(tmp_path / "flow") == ["0.flo", "2.flo"]
    flow, _ = read_flow(tmp_path / "flow" / "2.flo")
    np.testing.assert_allclose(flow, flow_of_pair(network, frames[2], frames[4]), atol=2e-3)


def states(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in written(folder)}


def test_the_same_command_again_does_what_is_left(
    model: str, videos: Path, frames: Frames, tmp_path: Path
) -> None:
    flow = tmp_path / "flow"
    predict(model, str(videos), str(flow), PLAIN)
    before = states(flow)
    # As a kill leaves it: begun, and not done.
    record = flow / "a.mp4" / RECORD_FILE
    record.write_text(record.read_text().replace('"is_done": true', '"is_done": false'))
    (flow / "a.mp4" / "000001.flo").unlink()
    write_video(videos / "new.mp4", frames[:2, :36, :52])
    again = predict(model, str(videos), str(flow), PLAIN)
    assert {Path(each.source.name).name: each.is_new for each in again} == {
        "a.mov": False,
        "a.mp4": True,
        "new.mp4": True,
        "b c.mp4": False,
        "walk": False,
    }
    assert [each.num_pairs for each in again] == [2, 2, 1, 2, 1]
    after = states(flow)
    assert {name for name in before if before[name] != after[name]} == {
        "a.mp4/000000.flo",
        "a.mp4/000001.flo",
    }


def test_what_is_drawn_is_told_picture_by_picture(model: str, images: str, tmp_path: Path) -> None:
    options = PredictionOptions(pictures=True)
    plan = PredictionPlan.of(model, images, str(tmp_path), options)
    (task,) = plan.tasks
    states = [(state.num_pairs, state.num_drawn) for state in predict_video(plan.network, task, options)]
    estimated = [(pairs, 0) for pairs in range(1, 6)]
    assert states == [*estimated, *((5, drawn) for drawn in range(1, 6)), (5, 5)]


def stopped(model: str, video: str, output: str, options: PredictionOptions, pairs: int) -> None:
    """As a kill leaves the folder of a video, behind so many pairs."""
    plan = PredictionPlan.of(model, video, output, options)
    (task,) = plan.tasks
    for state in predict_video(plan.network, task, options):
        if state.num_pairs == pairs:
            break


@pytest.mark.parametrize("format", ["flo", "flo5", "npy", "kitti", "parquet"])
def test_a_video_that_was_stopped_goes_on_where_it_was_and_ends_as_if_it_had_not_been(
    model: str, tmp_path: Path, format: FlowFormat
) -> None:
    long = render_scene(1, SceneOptions(height=36, width=52, num_frames=20)).frames
    write_video(tmp_path / "a.mp4", long)
    options = PredictionOptions(format=format, occlusion=True, pictures=format != "parquet")
    video, flow, whole = str(tmp_path / "a.mp4"), tmp_path / "flow", tmp_path / "whole"
    predict(model, video, str(whole), options)
    stopped(model, video, str(flow), options, 11)
    before = states(flow)
    assert only(predict(model, video, str(flow), options)).num_pairs == 19
    after = states(flow)
    kept = {name for name in before if before[name] == after[name]}
    # A PNG could be anybody's, and a table is made as a whole.
    assert {f"{index:06d}.{format}" for index in range(8)} <= kept or format in ("kitti", "parquet")
    assert written(flow) == written(whole)
    if format != "parquet":
        assert all((flow / name).read_bytes() == (whole / name).read_bytes() for name in written(whole))


def test_masks_of_another_check_are_never_taken_for_finished(
    model: str, frames: Frames, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", frames[:, :36, :52])
    video, flow, whole = str(tmp_path / "a.mp4"), tmp_path / "flow", tmp_path / "whole"
    strict = PredictionOptions(occlusion=True, check=OcclusionCheck(alpha2=0.01))
    usual = PredictionOptions(occlusion=True)
    predict(model, video, str(whole), usual)
    predict(model, video, str(flow), strict)
    predict(model, video, str(flow), PLAIN)
    stopped(model, video, str(flow), usual, 1)
    predict(model, video, str(flow), usual)
    masks = [name for name in written(whole) if name.endswith("_occlusion.png")]
    assert all((flow / name).read_bytes() == (whole / name).read_bytes() for name in masks)


def test_a_video_that_has_changed_is_predicted_again(model: str, frames: Frames, tmp_path: Path) -> None:
    video, flow = tmp_path / "a.mp4", tmp_path / "flow"
    write_video(video, frames[:4, :36, :52])
    predict(model, str(video), str(flow), PLAIN)
    write_video(video, frames[1:5, :36, :52])
    assert only(predict(model, str(video), str(flow), PLAIN)).is_new


@pytest.mark.parametrize("format", ["flo", "kitti", "parquet"])
def test_of_a_video_that_has_become_shorter_no_old_file_is_left(
    model: str, frames: Frames, tmp_path: Path, format: FlowFormat
) -> None:
    options = PredictionOptions(format=format, occlusion=True, pictures=format != "parquet")
    video, flow, new = tmp_path / "a.mp4", tmp_path / "flow", tmp_path / "new"
    write_video(video, frames[:, :36, :52])
    predict(model, str(video), str(flow), options)
    (flow / "notes.txt").write_text("mine")
    write_video(video, frames[:3, :36, :52])
    for folder in (flow, new):
        predict(model, str(video), str(folder), options)
    assert written(flow) == [*written(new), "notes.txt"]


def test_a_folder_with_the_flow_of_something_else_is_refused_before_anything_is_written(
    model: str, images: str, frames: Frames, tmp_path: Path
) -> None:
    flow = tmp_path / "flow"
    predict(model, images, str(flow), PLAIN)
    before = states(flow)

    def refusal(model: str, videos: str, options: PredictionOptions) -> str:
        with pytest.raises(ValueError, match="give another folder") as caught:
            predict(model, videos, str(flow), options)
        assert states(flow) == before
        return str(caught.value)

    others = write_images(tmp_path / "others", frames, [f"{index}.png" for index in range(6)])
    assert f"the flow of the video {images};" in refusal(model, str(others), PLAIN)
    assert "the model with the digest" in refusal("opencv:dis_fast", images, PLAIN)
    assert "--stride 1" in refusal(model, images, PredictionOptions(stride=2))
    smaller = PredictionOptions(inference=InferenceOptions(scale=(0.5,)))
    assert "holds the flow of --inference.scale 1.0; remove it" in refusal(model, images, smaller)
    (flow / RECORD_FILE).write_text("{}")
    assert "has a damaged _prediction.json" in refusal(model, images, PLAIN)
    (flow / RECORD_FILE).unlink()
    assert "holds 0.flo but no _prediction.json" in refusal(model, images, PLAIN)


@pytest.mark.parametrize("recorded", [{"scale": "1.0"}, {"unheard_of": 1}], ids=["type", "name"])
def test_options_that_this_software_would_not_record_are_others(
    model: str, images: str, tmp_path: Path, recorded: dict[str, Any]
) -> None:
    flow = tmp_path / "flow"
    predict(model, images, str(flow), PLAIN)
    found = json.loads((flow / RECORD_FILE).read_text())
    found["options"]["inference"] |= recorded
    (flow / RECORD_FILE).write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"holds the flow of --inference\..*give another folder"):
        predict(model, images, str(flow), PLAIN)


def test_a_folder_has_occlusion_of_one_check_alone(model: str, images: str, tmp_path: Path) -> None:
    flow = str(tmp_path / "flow")
    other = OcclusionCheck(kind="range-map")
    # Without --occlusion no check is made, and any is taken for the first masks.
    predict(model, images, flow, replace(PLAIN, check=other))
    predict(model, images, flow, PredictionOptions(occlusion=True, limit=4))
    before = states(Path(flow))
    with pytest.raises(ValueError, match=r"flow of --check.kind forward-backward; .* give another folder"):
        predict(model, images, flow, PredictionOptions(occlusion=True, check=other, limit=2))
    assert states(Path(flow)) == before


def test_what_the_method_cannot_estimate_costs_its_own_video_alone(frames: Frames, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    write_images(videos / "a", frames[:2, :8, :8], ["1.png", "2.png"])
    write_images(videos / "b", frames[:2], ["1.png", "2.png"])
    small, good = predict("opencv:dis_ultrafast", str(videos), str(tmp_path / "flow"), PLAIN)
    assert "can't estimate flow for frames of (8, 8) px" in str(small.problem)
    assert (good.num_pairs, good.problem) == (1, None)


def test_names_that_no_disk_takes_cost_their_own_video_alone(
    model: str, frames: Frames, tmp_path: Path
) -> None:
    stem = "x" * 240
    write_images(tmp_path / "videos" / "a", frames[:2], [f"{stem}1.png", f"{stem}2.png"])
    write_images(tmp_path / "videos" / "b", frames[:2], ["1.png", "2.png"])
    options = PredictionOptions(occlusion=True)
    long, good = predict(model, str(tmp_path / "videos"), str(tmp_path / "flow"), options)
    assert "name too long" in str(long.problem)
    assert (good.num_pairs, good.problem) == (1, None)


def test_times_that_no_film_keeps_give_one_of_the_usual_rate(tmp_path: Path) -> None:
    with film(Folder(str(tmp_path))) as shown:
        for seconds in (1e-9, 1e9, math.nan):
            shown.add(np.zeros((16, 16, 3), np.uint8), seconds)
    with av.open(str(tmp_path / "flow.mp4")) as written_film:
        assert written_film.streams.video[0].average_rate == 25


@pytest.mark.parametrize("linked", ["a", "sub", "sub/walk"])
def test_a_link_below_the_output_is_refused_before_anything_is_written(
    model: str, videos: Path, tmp_path: Path, linked: str
) -> None:
    (tmp_path / "outside").mkdir()
    link = tmp_path / "flow" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="is a link or a device"):
        predict(model, str(videos), str(tmp_path / "flow"), PLAIN)
    assert written(tmp_path / "flow") == written(tmp_path / "outside") == []


@pytest.mark.parametrize("pairs", [-1, 10**400])
def test_a_record_that_counts_what_nobody_has_is_damaged(
    model: str, images: str, tmp_path: Path, pairs: int
) -> None:
    flow = tmp_path / "flow"
    predict(model, images, str(flow), PLAIN)
    (flow / RECORD_FILE).write_text(
        (flow / RECORD_FILE).read_text().replace('"pairs": 5', f'"pairs": {pairs}')
    )
    with pytest.raises(ValueError, match=r"has a damaged _prediction\.json"):
        predict(model, images, str(flow), PLAIN)
