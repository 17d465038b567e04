"""What strangers may send: label sets that run code, flow files and videos that read other files or listen on
the network. Each is given to a job, as a user would give it."""

import importlib.metadata
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from object_storage import Bucket
from ray.data.extensions import ArrowPythonObjectArray
from typed import error_of

from jobs.command import run, run_recipe
from flowcore.formats import write_flow, write_image
from flowcore.scenes import SceneOptions, render_scene, write_video
from jobs import distill, evaluate, export_labels, gallery, import_labels, predict, pseudolabel
from pipelines.pair_set import PairSet

REPOSITORY = Path(__file__).resolve().parents[2]
SCENE = SceneOptions(height=64, width=96, num_frames=7, camera_speed=3.0, layer_speed=2.0)
SECRET = b"a key that is none of the set's business" * 2000


NO_VIDEOS = {
    "list.mp4": "ffconcat version 1.0\nfile secret.ts\n",
    "playlist.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.2,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}
"""By name, texts that FFmpeg reads as videos: twice the frames of another file, and what comes from the
network."""
LIMIT = ("--clips.max-pixels", "50000")
"""Of frames, in the run that labels; decoders add their padding to it."""
LARGER_THAN_ITS_COMMENTS_SAY = b"P4\n#\r800 800\n#\n64 40\n" + bytes(800 * 100)
"""An image of 800x800 px, for OpenCV; of 40x64 px for who ends a comment at one of its line ends alone."""
NAMES = ("concat:secret.ts|secret.ts.mp4", "file:secret.ts.mp4", "-i.mp4", "secret%02d.mp4")
"""Of videos that are nothing else: FFmpeg and its formats would take them for more."""
REFUSED = {
    "large.mp4": "too large: frames are 640x960 px",
    "strip.mp4": "too narrow: frames are 32x288 px",
    "grows.h264": "too large: frames are 640x960 px",
    "bomb": "too large: image number 0 has more than 50000 pixels",
}
"""By name, what would take gigabytes if limits were larger, and a word of why it is refused."""


@pytest.fixture(autouse=True)
def own_runs(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, tmp_path)}")


class Payload:
    """Makes a file of whoever unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def write_large(folder: Path) -> None:
    """Writes what is refused for its size."""
    frames = render_scene(2, SCENE).frames
    large = np.stack([np.kron(frame, np.ones((10, 10, 1), np.uint8)) for frame in frames])
    write_video(folder / "large.mp4", large)
    write_video(folder / "strip.mp4", np.tile(frames[:, :32], (1, 1, 3, 1)))
    for content in (frames, large):
        write_video(folder / "part.h264", content)
        with (folder / "grows.h264").open("ab") as file:
            file.write((folder / "part.h264").read_bytes())
    (folder / "part.h264").unlink()
    (folder / "bomb").mkdir()
    # A row of 14,000 pixels, grey of one bit, and its filter; 16,000 times.
    header = struct.pack(">IIBBBBB", 14_000, 16_000, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1751 * 16_000))), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    assert len(png) < 84_000
    for name in ("0.png", "1.png"):
        (folder / "bomb" / name).write_bytes(png)


@pytest.fixture(scope="module")
def labels_of_some(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, ray_session: None) -> Path:
    """A label set of a list: videos, what is none, what is too large, and a name that isn't UTF-8."""
    folder = tmp_path_factory.mktemp("labelled")
    write_video(folder / "honest.mp4", render_scene(0, SCENE).frames)
    write_video(folder / "secret.ts", render_scene(1, SCENE).frames)
    for name, content in NO_VIDEOS.items():
        (folder / name).write_text(content)
    write_large(folder)
    for seed, name in enumerate(NAMES, start=3):
        write_video(folder / name, render_scene(seed, SCENE).frames)
    (folder / "pattern").mkdir()
    for number, frame in enumerate(render_scene(9, SCENE).frames):
        write_image(folder / "pattern" / f"a%0{number}d.png", frame)
    named = ["honest.mp4", *NO_VIDEOS, *REFUSED, *NAMES, "pattern"]
    (folder / "videos.txt").write_bytes("\n".join(named).encode() + b"\ncaf\xe9.mp4")
    shutil.copy(folder / "honest.mp4", os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4"))
    videos, labels = str(folder / "videos.txt"), folder / "labels"
    arguments = ["--videos", videos, "--teacher", "opencv:dis_ultrafast", "--labels", str(labels)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, folder)}")
        recipes = pseudolabel.recipes()
        run_recipe(pseudolabel.main, recipes, ["smoke", *arguments, *LIMIT, "--labelling.max-bad-share", "1"])
    return labels


@pytest.fixture
def hostile_labels(request: pytest.FixtureRequest, labels_of_some: Path, tmp_path: Path) -> Path:
    """A set with a column, whose name is the parameter, that runs code in a process that has loaded Ray and
    reads it; `ran` beside it is there once it did."""
    labels, marker = tmp_path / "labels", tmp_path / "ran"
    shutil.copytree(labels_of_some, labels)
    for path in labels.rglob("*.parquet"):
        table = pq.read_table(path)
        column = ArrowPythonObjectArray.from_objects([Payload(marker)] * len(table))
        if request.param in table.column_names:
            table = table.drop_columns(request.param)
        pq.write_table(table.append_column(request.param, column), path)
        with pytest.raises(FileExistsError):
            pq.read_table(path).column(request.param).to_pylist()
    marker.rmdir()
    return labels


@pytest.mark.parametrize("hostile_labels", ["extra", "image1", "teacher"], indirect=True)
@pytest.mark.parametrize("where", [(), ("--where", "flow_p50 >= 0")])
def test_an_export_runs_nothing_that_a_label_set_holds(
    hostile_labels: Path, where: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    column = request.node.callspec.params["hostile_labels"]
    arguments = ["--labels", str(hostile_labels), "--output", str(tmp_path / "files"), *where]
    error = error_of(lambda: run(export_labels.main, export_labels.ExportLabels, arguments))
    assert f"column '{column}'" in error
    assert "00000.parquet" in error
    assert "restore it, or delete it" in error
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("hostile_labels", ["extra"], indirect=True)
def test_an_export_as_a_command_runs_nothing_either(hostile_labels: Path, tmp_path: Path) -> None:
    arguments = ["--labels", str(hostile_labels), "--output", str(tmp_path / "files")]
    ended = python(str(REPOSITORY / "jobs" / "export_labels.py"), *arguments, path=[REPOSITORY])
    assert ended.returncode == 1
    assert "error: " in ended.stderr
    assert "column 'extra'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("hostile_labels", ["extra", "image2"], indirect=True)
def test_the_gallery_and_a_student_run_nothing_that_a_label_set_holds(
    hostile_labels: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    column = request.node.callspec.params["hostile_labels"]
    labels, page, runs = (str(tmp_path / name) for name in ("labels", "page.html", "runs"))
    jobs: dict[str, Callable[[], None]] = {
        "gallery": lambda: run(gallery.main, gallery.Gallery, ["--labels", labels, "--output", page]),
        "distill": lambda: run_recipe(
            lambda stage, recipe: print(distill.distill(stage, recipe)),
            distill.recipes(),
            ["smoke", "--labels", labels, "--run-root", runs, "--init", "fresh"],
        ),
    }
    for name, job in jobs.items():
        assert f"column '{column}'" in error_of(job), name
        assert not (tmp_path / "ran").exists(), name


@pytest.mark.parametrize("hostile_labels", ["extra", "image2"], indirect=True)
def test_labelling_runs_nothing_that_a_set_holds_and_labels_the_videos_of_which_it_holds_nothing(
    hostile_labels: Path, labels_of_some: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    column = request.node.callspec.params["hostile_labels"]
    folders = {Path(each.video).name: each.folder for each in PairSet.open(str(hostile_labels)).videos()}
    shutil.rmtree(hostile_labels / folders["honest.mp4"])
    # Without its record a video is unfinished, and its shards are looked at.
    for record in hostile_labels.glob("*/_video.json"):
        record.unlink()
    label_again(labels_of_some, hostile_labels)
    assert not (tmp_path / "ran").exists()
    pairs = PairSet.open(str(hostile_labels))
    assert [Path(each.video).name for each in pairs.videos()] == ["honest.mp4"]
    for name in folders.keys() - {"honest.mp4"}:
        assert f"column '{column}'" in reasons_of(pairs)[name]


def label_again(labels_of_some: Path, labels: Path) -> None:
    """The job that made the fixture's set, in a copy of it."""
    videos = str(labels_of_some.parent / "videos.txt")
    arguments = ["smoke", "--videos", videos, "--teacher", "opencv:dis_ultrafast", "--labels", str(labels)]
    more = [*LIMIT, "--labelling.max-bad-share", "1"]
    run_recipe(pseudolabel.main, pseudolabel.recipes(), [*arguments, *more])


def rewritten(video: Path, **changes: object) -> None:
    record = video / "_video.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


def test_labelling_stays_in_a_set_that_a_stranger_has_begun(labels_of_some: Path, tmp_path: Path) -> None:
    folders = {Path(each.video).name: each.folder for each in PairSet.open(str(labels_of_some)).videos()}
    video, outside = folders["honest.mp4"], tmp_path / "outside"

    def replace_by_link(labels: Path, name: str) -> None:
        target = labels / name
        target.rename(outside) if target.exists() else outside.write_text("mine")
        target.symlink_to(outside)

    def replace_teacher(labels: Path) -> None:
        (labels / video / "_video.json").unlink()
        (labels / "_teacher" / "model.safetensors").write_bytes(b"another")

    attacks: dict[str, tuple[Callable[[Path], None], str]] = {
        "lock": (lambda labels: replace_by_link(labels, ".lock"), ".lock in .* is a link or a device"),
        "folder": (lambda labels: replace_by_link(labels, video), "is a link or a device"),
        "teacher": (replace_teacher, "_teacher/model.safetensors in .* isn't opencv:dis_ultrafast"),
    }
    for name, (attack, told) in attacks.items():
        labels = tmp_path / name / "labels"
        shutil.copytree(labels_of_some, labels)
        (labels / ".lock").unlink(missing_ok=True)
        attack(labels)
        before = sorted(outside.rglob("*")) if outside.is_dir() else outside.exists() and outside.read_bytes()
        error = error_of(lambda labels=labels: label_again(labels_of_some, labels))
        assert re.search(told, error), (name, error)
        after = sorted(outside.rglob("*")) if outside.is_dir() else outside.exists() and outside.read_bytes()
        assert after == before, name
        shutil.rmtree(outside) if outside.is_dir() else outside.unlink(missing_ok=True)


def test_a_record_that_a_stranger_wrote_costs_its_video_and_leads_nowhere(
    labels_of_some: Path, tmp_path: Path
) -> None:
    folders = {Path(each.video).name: each.folder for each in PairSet.open(str(labels_of_some)).videos()}
    attacks: dict[str, tuple[dict[str, object], str]] = {
        "honest.mp4": ({"folder": "../../X"}, "its folder '../../X' must be hexadecimal digits"),
        "pattern": ({"folder": "ab"}, "the record of the folder 'ab'"),
        NAMES[0]: ({"pairs": -1}, "its pairs must be a count"),
    }
    labels = tmp_path / "labels"
    shutil.copytree(labels_of_some, labels)
    for name, (changes, _) in attacks.items():
        rewritten(labels / folders[name], **changes)
    label_again(labels_of_some, labels)
    pairs = PairSet.open(str(labels))
    assert {Path(each.video).name for each in pairs.videos()} == folders.keys() - attacks.keys()
    for name, (_, told) in attacks.items():
        assert told in reasons_of(pairs)[name]
    assert not list(tmp_path.rglob("X"))


def write_pair(files: Path, number: int, suffix: str = ".flo5") -> Path:
    """A pair in FlyingChairs2's layout, whose flow forward, at the path returned, is to be written."""
    files.mkdir(exist_ok=True)
    for frame in range(2):
        image = np.random.default_rng(frame).integers(0, 256, (40, 64, 3), np.uint8)
        write_image(files / f"{number:07d}-img_{frame}.png", image)
    write_flow(files / f"{number:07d}-flow_10{suffix}", np.zeros((2, 40, 64), np.float32))
    return files / f"{number:07d}-flow_01{suffix}"


def write_linked(files: Path, secrets: Path) -> None:
    """HDF5 files whose flow lies elsewhere."""
    shape = (40, 64, 2)
    (secrets / "secret").write_bytes(SECRET)
    with h5py.File(secrets / "secret.h5", "w") as secret:
        secret["flow"] = np.ones(shape, np.float32)
    with h5py.File(write_pair(files, 0), "w") as file:
        external = [(str(secrets / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("flow", shape, np.float32, external=external)
        assert np.asarray(file["flow"]).tobytes() == SECRET[: 40 * 64 * 2 * 4]
    with h5py.File(write_pair(files, 1), "w") as file:
        layout = h5py.VirtualLayout(shape, np.float32)
        layout[...] = h5py.VirtualSource(str(secrets / "secret.h5"), "flow", shape)
        file.create_virtual_dataset("flow", layout)
        assert np.asarray(file["flow"]).all()
    with h5py.File(write_pair(files, 2), "w") as file:
        file["flow"] = h5py.ExternalLink(str(secrets / "secret.h5"), "flow")
        assert np.asarray(file["flow"]).all()
    with h5py.File(write_pair(files, 3), "w") as file:
        file["there"] = np.ones(shape, np.float32)
        file["flow"] = h5py.SoftLink("/there")


def write_other_flow(files: Path) -> None:
    """Files that hold something else than the flow that they announce."""
    with h5py.File(write_pair(files, 4), "w") as file:
        file["flow"] = np.ones((40, 64, 2), np.int64)
    with h5py.File(write_pair(files, 5), "w") as file:
        file.create_dataset("flow", (40, 64, 2), np.float32, chunks=(1, 1, 1), fillvalue=7)
    for number, content in enumerate(
        (
            struct.pack("<fii", 202021.25, 2**31 - 1, 2**31 - 1),
            struct.pack("<fii", 202021.25, -64, -40),
            struct.pack("<fii", 202021.25, 64, 40) + bytes(100),
            struct.pack("<fii", 202021.25, 64, 41) + bytes(64 * 41 * 8),
        ),
        start=6,
    ):
        write_pair(files, number, ".flo").write_bytes(content)
    write_pair(files, 10, ".flo").touch()
    os.truncate(files / "0000010-flow_01.flo", 10**11)


def write_other_images(files: Path) -> None:
    """Images of another size or kind than the flow beside them needs."""
    large = cv2.imencode(".png", np.zeros((20_000, 20_000), np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])[1]
    for number, name in ((11, "img_0"), (12, "img_1"), (13, "occ_01")):
        write_flow(write_pair(files, number), np.zeros((2, 40, 64), np.float32))
        (files / f"{number:07d}-{name}.png").write_bytes(large.tobytes())
    write_flow(write_pair(files, 14), np.zeros((2, 40, 64), np.float32))
    (files / "0000014-img_0.png").write_bytes(
        cv2.imencode(".tiff", np.zeros((40, 64), np.uint8))[1].tobytes()
    )
    write_flow(write_pair(files, 15), np.zeros((2, 40, 64), np.float32))
    (files / "0000015-img_1.png").write_bytes(LARGER_THAN_ITS_COMMENTS_SAY)


@pytest.fixture(scope="module")
def refused_import(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, ray_session: None
) -> tuple[str, Path]:
    """(the error of an import of hostile files, the label set that it was to write)."""
    folder = tmp_path_factory.mktemp("import")
    write_linked(folder / "files", folder)
    write_other_flow(folder / "files")
    write_other_images(folder / "files")
    arguments = ["--files", str(folder / "files"), "--labels", str(folder / "labels")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, folder)}")
        error = error_of(lambda: run(import_labels.main, import_labels.ImportLabels, arguments))
    return error, folder / "labels"


def test_an_import_of_hostile_files_alone_writes_nothing(refused_import: tuple[str, Path]) -> None:
    error, labels = refused_import
    assert "16 of 16 pairs" in error
    assert not labels.exists()


@pytest.mark.parametrize(
    "told",
    [
        "0000000-flow_01.flo5 is stored in other files",
        "0000001-flow_01.flo5 is stored in other files",
        "0000002-flow_01.flo5 is a link",
        "0000003-flow_01.flo5 is a link",
    ],
)
def test_flow_files_put_no_other_file_into_a_label_set(told: str, refused_import: tuple[str, Path]) -> None:
    assert told in refused_import[0]


@pytest.mark.parametrize(
    "told",
    [
        "0000004-flow_01.flo5 is of int64",
        "0000005-flow_01.flo5 is 40x64 px (height x width), and the file doesn't hold so many",
        "0000006-flow_01.flo is 2147483647x2147483647 px",
        "0000007-flow_01.flo says it is -40 px high and -64 px wide",
        "0000008-flow_01.flo is truncated",
        "0000009-flow_01.flo is 41x64 px",
        "0000010-flow_01.flo has 100000000000 bytes",
    ],
)
def test_a_flow_file_that_holds_another_flow_than_it_says_is_refused(
    told: str, refused_import: tuple[str, Path]
) -> None:
    assert told in refused_import[0]


@pytest.mark.parametrize(
    "told",
    [
        "0000011-img_0.png is 20000x20000 px (height x width); more than",
        "0000012-img_1.png is 20000x20000 px (height x width) and its frames are 40x64 px",
        "0000013-occ_01.png is 20000x20000 px (height x width) and its frames are 40x64 px",
        "0000014-img_0.png is not an image: it begins with",
        "0000015-img_1.png is 800x800 px (height x width) and its frames are 40x64 px",
    ],
)
def test_an_image_that_does_not_fit_its_flow_is_refused(told: str, refused_import: tuple[str, Path]) -> None:
    assert told in refused_import[0]


def test_truth_of_strangers_is_refused_by_its_header(tmp_path: Path, ray_session: None) -> None:
    stereo, frame = tmp_path / "stereo", np.zeros((40, 64, 3), np.uint8)
    stereo.mkdir()
    header = "{{'descr': '{0}', 'fortran_order': False, 'shape': ({1}, {1}), }}"
    arrays = {
        "huge": np_file(header.format("<f4", 10**6), bytes(100)),
        "short": np_file(header.format("<f4", 50), bytes(100)),
        "object": np_file(header.format("|O", 40), pickle.dumps(Payload(tmp_path / "ran"))),
    }
    for name, content in arrays.items():
        with zipfile.ZipFile(stereo / f"{name}_disp.npz", "w") as archive:
            archive.writestr("arr_0.npy", content)
    with zipfile.ZipFile(stereo / "zeros_disp.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", np_file(header.format("<f4", 3000), bytes(4 * 3000 * 3000)))
    (stereo / "text_disp.npz").write_text("no zip")
    names = [*arrays, "zeros", "text"]
    for name in names:
        for side in ("left", "right"):
            write_image(stereo / f"{name}_{side}.png", frame)
    for name, content in {
        "endless": b"Pf\n" + b"9" * 5000 + b" 40\n-1\n",
        "negative": b"Pf\n-64 40\n-1\n" + bytes(40 * 64 * 4),
        "large": b"Pf\n999999999 999999999\n-1\n",
    }.items():
        names.append(name)
        (stereo / name).mkdir()
        (stereo / name / "disp0.pfm").write_bytes(content)
        for image in ("im0", "im1"):
            write_image(stereo / name / f"{image}.png", frame)
    names.append("comments")
    write_image(stereo / "comments_left.png", frame)
    (stereo / "comments_right.png").write_bytes(LARGER_THAN_ITS_COMMENTS_SAY)
    np.savez(stereo / "comments_disp.npz", np.ones((40, 64), np.float32))
    arguments = ["--model", "zero", "--truth", f"middlebury-stereo:{stereo}"]
    error = error_of(lambda: run(evaluate.main, evaluate.Evaluate, arguments))
    assert f"{len(names)} of {len(names)} pairs" in error
    for told in (
        "huge_disp.npz is 1000000x1000000 px",
        "short_disp.npz is 50x50 px",
        "object_disp.npz holds object (40, 40)",
        "zeros_disp.npz is 3000x3000 px",
        "text_disp.npz is truncated or is not an .npz file",
        "endless/disp0.pfm is not an image",
        "negative/disp0.pfm is not an image",
        "large/disp0.pfm is 999999999x999999999 px",
        "comments_right.png is 800x800 px (height x width) and its frames are 40x64 px",
    ):
        assert told in error
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "size", "told"),
    [
        (b"1\n", 6 * 10**9, "has more than 1048576 bytes"),
        (b"1\n\xff\n", 4, r"has a line b'\xff'"),
        (b"1\n" + b"2" * 10**5, 10**5 + 2, "has a line b'2222222222"),
    ],
)
def test_a_split_of_chairs_that_is_none_is_named_before_it_is_read(
    content: bytes, size: int, told: str, tmp_path: Path
) -> None:
    chairs = tmp_path / "chairs"
    chairs.mkdir()
    for frame in (1, 2):
        write_image(chairs / f"00001_img{frame}.ppm", np.zeros((40, 64, 3), np.uint8))
    write_flow(chairs / "00001_flow.flo", np.zeros((2, 40, 64), np.float32))
    # A name that is no number, and one too long for any.
    for name in ("1x", "9" * 100):
        (chairs / f"{name}_flow.flo").touch()
    split = chairs / "FlyingChairs_train_val.txt"
    split.write_bytes(content)
    os.truncate(split, size)
    judge = ["--model", "zero", "--truth", f"chairs:{chairs}"]
    learn = ["smoke", "--videos", f"chairs:{chairs}", "--teacher", "opencv:dis_ultrafast"]
    jobs: list[Callable[[], None]] = [
        lambda: run(evaluate.main, evaluate.Evaluate, judge),
        lambda: run_recipe(
            pseudolabel.main, pseudolabel.recipes(), [*learn, "--labels", str(tmp_path / "labels")]
        ),
    ]
    for job in jobs:
        error = error_of(job)
        assert "FlyingChairs_train_val.txt" in error
        assert told in error


def np_file(header: str, content: bytes) -> bytes:
    """An array in NumPy's format with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + content


def test_a_kilobyte_of_flow_does_not_ask_for_gigabytes(tmp_path: Path, ray_session: None) -> None:
    flow = write_pair(tmp_path / "files", 0)
    with h5py.File(flow, "w") as file:
        file.create_dataset("flow", (100_000, 100_000, 2), np.float32, chunks=(1000, 1000, 2))
    assert flow.stat().st_size < 2000
    arguments = ["--model", "zero", "--truth", f"chairs2:{tmp_path / 'files'}"]
    error = error_of(lambda: run(evaluate.main, evaluate.Evaluate, arguments))
    assert "0000000-flow_01.flo5 is 100000x100000 px" in error


def test_a_list_of_files_and_a_playlist_are_no_videos_whatever_their_names(labels_of_some: Path) -> None:
    reasons = reasons_of(PairSet.open(str(labels_of_some)))
    assert reasons.pop("caf%E9.mp4") == "its name isn't UTF-8; rename it"
    assert reasons.keys() == NO_VIDEOS.keys() | REFUSED.keys()
    for name in NO_VIDEOS:
        assert "can't be opened as a video: Invalid " in reasons[name]


def test_what_is_too_large_is_refused_and_named_and_the_videos_beside_it_are_labelled(
    labels_of_some: Path,
) -> None:
    pairs = PairSet.open(str(labels_of_some))
    reasons = reasons_of(pairs)
    for name, reason in REFUSED.items():
        assert reason in reasons[name]
    videos = {Path(video.video).name: video.pairs for video in pairs.videos()}
    whole = {"honest.mp4", *NAMES, "pattern"}
    assert whole <= videos.keys() <= {*whole, "grows.h264"}
    assert {videos[name] for name in whole} == {SCENE.num_frames - 1}
    # The pairs before it grew are there.
    assert 1 <= videos["grows.h264"] <= SCENE.num_frames - 1


def test_a_name_is_no_more_than_a_name(labels_of_some: Path) -> None:
    """The first frame of each is its own and none of the file that its name names."""
    pairs = PairSet.open(str(labels_of_some))
    firsts = {}
    for place in pairs.index().to_pylist():
        row = pairs.read(place)
        firsts.setdefault(Path(row["video"]).name, pairs.decode(row).image1)
    for seed, name in enumerate(NAMES, start=3):
        error = np.abs(firsts[name].astype(int) - render_scene(seed, SCENE).frames[0])
        assert error.mean() < 10, name


def reasons_of(pairs: PairSet) -> dict[str, str]:
    return {Path(entry.video).name: entry.reason for entry in pairs.ledger()}


def test_a_prediction_names_what_it_refuses_and_does_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_large(videos)
    (videos / "large.mp4").rename(videos / "concat:strip.mp4|strip.mp4")
    arguments = ["--model", "opencv:dis_ultrafast", "--videos", str(videos)]
    with pytest.raises(SystemExit) as end:
        run(predict.main, predict.Predict, [*arguments, "--output", str(tmp_path / "flow")])
    assert end.value.code == 1
    told = capsys.readouterr().err
    # One more changes its size.
    assert "error: the flow of 3 of 4 videos is incomplete" in told
    assert "too narrow: frames are 32x288 px" in told
    assert "too large: image number 0 has more than 36000000 pixels" in told
    flows = {path.name: len(list(path.glob("*.flo"))) for path in (tmp_path / "flow").iterdir()}
    assert flows["concat:strip.mp4|strip"] == SCENE.num_frames - 1


@pytest.mark.parametrize("name", ["list.mp4", "session.mp4"])
def test_what_lies_on_object_storage_opens_nothing_either(
    name: str,
    tmp_path: Path,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # FFmpeg would take it for a file's name in the working folder.
    write_video(tmp_path / "secret.ts", render_scene(1, SCENE).frames)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / name).write_text(NO_VIDEOS[name])
    bucket.fill(tmp_path / "sent")
    arguments = ["--model", "opencv:dis_ultrafast", "--videos", bucket.uri(name), "--output", "flow"]
    with pytest.raises(SystemExit) as end:
        run(predict.main, predict.Predict, arguments)
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "error: the flow of 1 of 1 videos is incomplete" in told
    assert "can't be opened as a video: Invalid argument; the formats that are read are" in told
    assert list((tmp_path / "flow").rglob("*.flo")) == []


def test_a_job_runs_whichever_package_brings_opencv(tmp_path: Path) -> None:
    """In an environment of links to this one's packages, in which OpenCV came as opencv-python-headless and
    an install was interrupted."""
    packages = tmp_path / "packages"
    packages.mkdir()
    installed = importlib.metadata.distribution("opencv-python")
    metadata = Path(str(installed.locate_file(""))) / f"opencv_python-{installed.version}.dist-info"
    for entry in metadata.parent.iterdir():
        if entry != metadata:
            (packages / entry.name).symlink_to(entry)
    headless = packages / metadata.name.replace("opencv_python", "opencv_python_headless")
    shutil.copytree(metadata, headless)
    text = (headless / "METADATA").read_text()
    (headless / "METADATA").write_text(text.replace("Name: opencv-python", "Name: opencv-python-headless"))

    for name, content in (("empty", b""), ("broken", b"Name: \xff\n")):
        (packages / f"{name}-1.0.dist-info").mkdir()
        (packages / f"{name}-1.0.dist-info" / "METADATA").write_bytes(content)
    # -S leaves out this environment's own packages.
    question = "import importlib.metadata as found; found.version('opencv-python')"
    assert "PackageNotFoundError" in python("-S", "-c", question, path=[packages]).stderr
    write_video(tmp_path / "a.mp4", render_scene(0, SCENE).frames)
    arguments = ["--model", "opencv:dis_ultrafast", "--videos", str(tmp_path / "a.mp4"), "--output"]
    script = str(REPOSITORY / "jobs" / "predict.py")
    ended = python("-S", script, *arguments, str(tmp_path / "flow"), path=[REPOSITORY, packages])
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "flow").glob("*.flo"))) == SCENE.num_frames - 1


def python(*arguments: str, path: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """A Python process that ended; `path`: where it finds code beside its own environment's."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        check=False,
    )
