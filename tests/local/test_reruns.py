"""What labelling leaves in a folder, run after run; without Ray, in the process of the test."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import duckdb
import numpy as np
import pytest
from bare_graph import BareGraph
from clips import TINY, contents, render, render_images, save_teacher, written

from flowcore.formats import write_image
from flowcore.occlusion import OcclusionCheck
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.shapes import Flow, Mask
from flowcore.video import ClipOptions
from pipelines.checkpoints import model_digest, save_model
from pipelines.collection import Collection, find_videos, stamp_of
from pipelines.copies import possible_copies
from pipelines.labelling import LabellingOptions, LabellingSummary, write_labels, write_pairs
from pipelines.labelling_progress import LabellingProgress, read_progress
from pipelines.ledger import LEDGER_FILE, MANIFEST_FILE, VIDEO_FILE, read_ledger
from pipelines.messages import STAGES
from pipelines.models import fetch_model
from pipelines.pair_set import PairSet
from pipelines.teachers import Teachers

CLIPS = ClipOptions(chunk_pairs=3)
OPTIONS = LabellingOptions(shard_pairs=5, row_group_pairs=2)


def paired(
    videos: Path | str, location: Path | str, options: LabellingOptions = OPTIONS, **more: Any
) -> LabellingSummary:
    more = {"clips": CLIPS, "graph": BareGraph()} | more
    return write_pairs(Collection.find(str(videos)), str(location), options=options, **more)


def pair_ids(location: Path) -> list[str]:
    return sorted(PairSet.open(str(location)).index()["pair_id"].to_pylist())


def pairs_by_video(location: Path) -> dict[str, int]:
    found = duckdb.sql(f"select video, count(*) from '{location}/*/*.parquet' group by all").fetchall()
    return {Path(video).name: count for video, count in found}


def outcomes(location: Path) -> dict[str, str]:
    return {Path(record.video).name: record.outcome for record in read_ledger(str(location))}


def test_a_bad_video_of_any_kind_costs_no_good_one(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    render(folder / "good.mp4", 1, num_frames=5)
    render(folder / "whole.mkv", 2, num_frames=40)
    content = (folder / "whole.mkv").read_bytes()
    (folder / "truncated.mkv").write_bytes(content[: len(content) // 2])
    (folder / "whole.mkv").unlink()
    (folder / "unknown.mp4").write_bytes((folder / "good.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    write_video(folder / "one.mp4", np.zeros((1, 48, 64, 3), np.uint8))
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    paired(folder, tmp_path / "set", replace(OPTIONS, max_bad_share=0.8))
    assert outcomes(tmp_path / "set") == {
        "audio.mp4": "nothing",
        "one.mp4": "nothing",
        "truncated.mkv": "cut short",
        "unknown.mp4": "nothing",
    }
    pairs = pairs_by_video(tmp_path / "set")
    assert pairs["good.mp4"] == 4
    assert 0 < pairs["truncated.mkv"] < 39
    assert len(pairs) == 2


def test_what_was_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    dark = render_scene(0, SceneOptions(height=48, width=64, num_frames=8)).frames // 4
    still = np.repeat(dark[:1], 3, axis=0)
    write_video(tmp_path / "videos" / "good.mp4", np.concatenate([dark, 255 - dark, dark]))
    write_video(tmp_path / "videos" / "still.mp4", still)
    summary = paired(tmp_path / "videos", tmp_path / "set")
    (record,) = read_ledger(summary.location)
    assert (Path(record.video).name, record.outcome, record.static_pairs) == ("still.mp4", "nothing", 2)
    assert summary.num_pairs == 21
    assert summary.left_out == {"cuts": 2, "static_pairs": 2, "faded_pairs": 0}
    assert summary.metrics("labels")["labels/left_out/cuts"] == 2


def test_changed_renamed_and_added_videos_leave_each_pair_once(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    for number, name in enumerate(("changed", "renamed", "kept")):
        render(videos / f"{name}.mp4", number, num_frames=5 + number)
    paired(videos, location)
    before = written(location)
    render(videos / "changed.mp4", 7, num_frames=9)
    (videos / "renamed.mp4").rename(videos / "anew.mp4")
    render(videos / "added.mp4", 8, num_frames=3)
    os.utime(videos / "kept.mp4", (0, 0))
    assert paired(videos, location).new_pairs == 8 + 2
    paired(videos, tmp_path / "fresh")
    assert pair_ids(location) == pair_ids(tmp_path / "fresh")
    assert contents(location).keys() == contents(tmp_path / "fresh").keys()
    # Of those that were there before, two weren't written again and one is gone.
    assert len(before.items() & written(location).items()) == len(before) - 1
    assert paired(videos, location).new_pairs == 0


def test_a_name_and_a_content_that_part_both_keep_their_pairs(tmp_path: Path) -> None:
    """One video takes the content that another had, which has a new one."""
    videos, location = tmp_path / "videos", tmp_path / "set"
    render(videos / "a.mp4", 0, num_frames=5)
    paired(videos, location)
    shutil.copy(videos / "a.mp4", videos / "b.mp4")
    render(videos / "a.mp4", 1, num_frames=4)
    paired(videos, location)
    assert sorted((Path(each.video).name, each.pairs) for each in PairSet.open(str(location)).videos()) == [
        ("a.mp4", 3),
        ("b.mp4", 4),
    ]
    assert outcomes(location) == {}


def test_what_an_earlier_run_finished_is_told_apart(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    for number in range(2):
        render(videos / f"{number}.mp4", number, num_frames=3)
    paired(videos, location)
    render(videos / "late.mp4", 9, num_frames=3)
    seen: list[LabellingProgress] = []
    paired(videos, location, on_progress=seen.append)
    assert {progress.videos_before for progress in seen} == {2}
    assert (seen[-1].videos_done, seen[-1].new_pairs, seen[-1].pairs) == (3, 2, 6)


def test_a_shard_that_cannot_be_written_costs_its_video_and_the_ledger_names_the_stage(
    tmp_path: Path,
) -> None:
    videos = tmp_path / "videos"
    for number in range(2):
        render(videos / f"{number}.mp4", number, num_frames=3)
    paired(videos, tmp_path / "set")
    made = PairSet.open(str(tmp_path / "set")).videos()
    first = next(each for each in made if each.video.endswith("0.mp4"))
    (shard,) = (tmp_path / "set" / first.folder).glob("*.parquet")
    # A folder stands where the file should.
    (tmp_path / "other" / shard.relative_to(tmp_path / "set") / "in the way").mkdir(parents=True)
    assert paired(videos, tmp_path / "other").new_pairs == 2
    (failed,) = PairSet.open(str(tmp_path / "other")).ledger()
    assert (Path(failed.video).name, failed.outcome) == ("0.mp4", "failed")
    assert failed.reason.startswith("writing failed: ")


def test_what_a_writer_leaves_that_dies_while_others_go_on_is_gone_in_the_end(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    render(videos / "a.mp4", 0, num_frames=3)
    left = location / ".853bc64be26c472f86e5f651717ee69c.partial"
    paired(videos, location, on_progress=lambda _: left.write_bytes(b"half"))
    assert not left.exists()


def test_of_many_videos_of_one_size_only_a_copy_is_left_out(tmp_path: Path) -> None:
    """Uncompressed images have one size whatever they show."""
    for number in range(18):
        scene = render_scene(min(number, 16), SceneOptions(height=48, width=64, num_frames=2))
        folder = tmp_path / "collection" / f"{number:02d}"
        folder.mkdir(parents=True)
        for frame, image in enumerate(scene.frames):
            write_image(folder / f"{frame}.bmp", image)
    paired(tmp_path / "collection", tmp_path / "set")
    assert len(pair_ids(tmp_path / "set")) == 17
    assert outcomes(tmp_path / "set") == {"17": "duplicate"}


def test_a_file_that_vanishes_among_many_of_its_size_costs_itself_alone(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.y4m").write_bytes(bytes([number]) * 1000)
    sources = find_videos(str(tmp_path))
    stamps = {source.name: stamp_of(source) for source in sources}
    (tmp_path / "07.y4m").unlink()
    groups = possible_copies(sources, stamps)
    assert sorted(source.name for group in groups for source in group) == [each.name for each in sources]


def test_scenes_of_one_folder_are_kept_apart_and_a_changed_one_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "kitti" / "training" / "image_2"
    folder.mkdir(parents=True)

    def show(scene: int, seed: int) -> None:
        render_images(tmp_path / f"{scene} {seed}", seed, 4)
        for number in range(4):
            image = tmp_path / f"{scene} {seed}" / f"{number}.png"
            shutil.copy(image, folder / f"{scene:06d}_{number:02d}.png")

    for scene in range(3):
        show(scene, scene)
    collection = f"kitti2015:{tmp_path / 'kitti'}"
    assert paired(collection, tmp_path / "set").new_pairs == 9
    expected = {f"{scene:06d}_00": 3 for scene in range(3)}
    assert pairs_by_video(tmp_path / "set") == expected
    show(1, 9)
    assert paired(collection, tmp_path / "set").new_pairs == 3
    assert pairs_by_video(tmp_path / "set") == expected


def test_what_an_unfinished_run_left_of_a_changed_video_goes(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    render(videos / "a.mp4", 0, num_frames=5)
    paired(videos, location)
    (shard,) = location.rglob("*.parquet")
    (shard.parent / VIDEO_FILE).unlink()
    (shard.parent / ".00001.parquet.ab.partial").write_bytes(b"half")
    render(videos / "a.mp4", 1, num_frames=4)
    paired(videos, location)
    assert not shard.parent.exists()
    assert pairs_by_video(location) == {"a.mp4": 3}


def test_another_collection_adds_to_a_set(tmp_path: Path) -> None:
    render(tmp_path / "one" / "a.mp4", 0, num_frames=5)
    render(tmp_path / "two" / "b.mp4", 1, num_frames=4)
    paired(tmp_path / "one", tmp_path / "set")
    summary = paired(tmp_path / "two", tmp_path / "set")
    assert (summary.num_videos, summary.num_pairs, summary.new_pairs) == (2, 7, 3)
    assert len(pair_ids(tmp_path / "set")) == 7


def test_what_another_run_finishes_meanwhile_is_neither_lost_nor_made_again(tmp_path: Path) -> None:
    """In object storage, which can't keep a second run out of a folder."""
    for number, name in enumerate(("first", "second", "elsewhere")):
        render(tmp_path / "all" / f"{name}.mp4", number, num_frames=5)
    (tmp_path / "ours").mkdir()
    for name in ("first", "second"):
        shutil.copy2(tmp_path / "all" / f"{name}.mp4", tmp_path / "ours")
    paired(tmp_path / "all", tmp_path / "other")
    others = {Path(each.video).stem: each.folder for each in PairSet.open(str(tmp_path / "other")).videos()}

    def finish_others() -> None:
        for name in ("second", "elsewhere"):
            shutil.copytree(tmp_path / "other" / others[name], tmp_path / "set" / others[name])

    summary = paired(tmp_path / "ours", tmp_path / "set", graph=BareGraph(meanwhile=finish_others))
    assert summary.new_pairs == 4
    assert pair_ids(tmp_path / "set") == pair_ids(tmp_path / "other")


def test_a_collection_without_a_readable_video_fails_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"1 of 1 videos gave no pair, so the set would be empty .*a\.mp4"):
        paired(tmp_path / "videos", tmp_path / "set")
    assert outcomes(tmp_path / "set") == {"a.mp4": "nothing"}
    assert not (tmp_path / "set" / MANIFEST_FILE).exists()


def test_a_run_that_fails_leaves_why(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(RuntimeError):
        paired(tmp_path / "videos", tmp_path / "set")
    progress = read_progress(str(tmp_path / "set"))
    assert progress is not None
    assert progress.state == "failed"
    assert "gave no pair" in progress.failure


def test_too_many_bad_inputs_fail_the_run_but_lose_nothing(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "good.mp4", 0, num_frames=5)
    for name in "ab":
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(name.encode())
    with pytest.raises(
        RuntimeError, match=r"2 of 3 videos gave no pair, more than the allowed share of 0\.5"
    ):
        paired(tmp_path / "videos", tmp_path / "set")
    summary = paired(tmp_path / "videos", tmp_path / "set", replace(OPTIONS, max_bad_share=0.7))
    assert (summary.num_pairs, summary.new_pairs) == (4, 0)


def test_no_video_at_all_is_an_error_that_makes_no_folder(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(FileNotFoundError, match="no video"):
        paired(tmp_path / "videos", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_second_run_into_a_folder_waits_its_turn(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "a.mp4", 0, num_frames=3)
    location = tmp_path / "set"
    location.mkdir()
    with (location / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another run"):
            paired(tmp_path / "videos", location)
    assert paired(tmp_path / "videos", location).num_pairs == 2


def test_a_diverged_teacher_labels_nothing(tmp_path: Path) -> None:
    network = TINY.build()
    network.load_state_dict({name: value * float("nan") for name, value in network.state_dict().items()})
    save_model(tmp_path / "teacher", network, {})
    render(tmp_path / "videos" / "a.mp4", 0, num_frames=3)
    with pytest.raises(RuntimeError, match="diverged"):
        labelled(tmp_path / "videos", [tmp_path / "teacher"], tmp_path / "set")
    assert contents(tmp_path / "set") == {}


def labelled(videos: Path, teachers: list[Path], location: Path) -> LabellingSummary:
    collection = Collection.find(str(videos))
    fetched = Teachers.fetched([str(teacher) for teacher in teachers])
    check = OcclusionCheck()
    return write_labels(collection, fetched, str(location), CLIPS, check, OPTIONS, graph=BareGraph())


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two, of which the first one doesn't say which run made it."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    save_model(first, save_teacher(first, 0, 0.7), {})
    save_teacher(second, 0, 0.65)
    return [first, second]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("video")
    render(folder / "only.mp4", 1, num_frames=4)
    return folder


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, teachers: list[Path], video: Path) -> PairSet:
    """Labels of both teachers."""
    location = tmp_path_factory.mktemp("labels") / "set"
    labelled(video, teachers, location)
    return PairSet.open(str(location))


def first_row(labels: PairSet) -> dict[str, Any]:
    return labels.read_group(labels.files[0], 0)[0]


def test_a_set_names_the_run_of_each_teacher_that_says_it(of_two: PairSet) -> None:
    provenance = of_two.description.provenance
    assert "teacher_run_id" not in provenance
    assert provenance["teacher2_run_id"] == "0123"


def test_a_label_of_two_teachers_names_both_and_has_their_spread(
    of_two: PairSet, teachers: list[Path]
) -> None:
    row = first_row(of_two)
    assert row["teacher"] == "+".join(model_digest(each) for each in teachers)
    assert "spread" in of_two.quality_columns
    assert row["spread_fw"].shape == (12 * 16,)


def test_a_student_of_two_teachers_begins_as_the_first_one(of_two: PairSet, teachers: list[Path]) -> None:
    assert of_two.teacher is not None
    assert model_digest(fetch_model(of_two.teacher)) == model_digest(teachers[0])


def test_the_same_two_teachers_label_nothing_again(
    of_two: PairSet, teachers: list[Path], video: Path
) -> None:
    assert labelled(video, teachers, Path(of_two.location)).new_pairs == 0


def test_one_teacher_of_two_never_mixes_into_their_set(
    of_two: PairSet, teachers: list[Path], video: Path
) -> None:
    with pytest.raises(ValueError, match="teacher"):
        labelled(video, teachers[:1], Path(of_two.location))


def test_odd_videos_end_in_the_set_or_in_the_ledger(tmp_path: Path, shared_data: Path) -> None:
    clips = ClipOptions(chunk_pairs=3, size=(64, 64), max_pairs_per_video=6)
    options = replace(OPTIONS, max_bad_share=1.0)
    summary = paired(shared_data / "odd", tmp_path / "set", options, clips=clips)
    pairs = PairSet.open(str(tmp_path / "set"))
    with_pairs = {each.video for each in pairs.videos()}
    without = {each.video for each in summary.ledger if each.outcome != "cut short"}
    assert with_pairs | without == {video.uri for video in find_videos(str(shared_data / "odd"))}
    assert not with_pairs & without
    ids = pair_ids(tmp_path / "set")
    assert len(ids) == len(set(ids)) == summary.num_pairs > 100


def test_progress_counts_the_written_share_of_a_long_video(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "a.mp4", 1, num_frames=41)
    seen: list[LabellingProgress] = []
    options = replace(OPTIONS, shard_pairs=8)
    clips = ClipOptions(chunk_pairs=4)
    paired(tmp_path / "videos", tmp_path / "set", options, clips=clips, on_progress=seen.append)
    *begun, last = seen
    assert last.videos_done == 1
    size = (tmp_path / "videos" / "a.mp4").stat().st_size
    assert last.bytes_done == size
    for progress, share in zip(begun[:4], [0.2, 0.4, 0.6, 0.8], strict=True):
        assert progress.videos_done == pytest.approx(share, abs=0.05)
        assert progress.bytes_done == pytest.approx(share * size, abs=0.05 * size)


@pytest.fixture(scope="module")
def good_and_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the set of two videos, of which one is none."""
    folder = tmp_path_factory.mktemp("good_and_bad")
    render(folder / "videos" / "good.mp4", 0, num_frames=5)
    (folder / "videos" / "bad.mp4").write_bytes(b"bad")
    paired(folder / "videos", folder / "set")
    return folder


def test_the_ledger_says_which_video_gave_nothing_and_why(good_and_bad: Path) -> None:
    (bad,) = json.loads((good_and_bad / "set" / LEDGER_FILE).read_text())
    assert bad.items() >= {"video": str(good_and_bad / "videos" / "bad.mp4"), "outcome": "nothing"}.items()
    assert bad["reason"]


def test_the_manifest_says_which_video_gave_how_much(good_and_bad: Path) -> None:
    manifest = json.loads((good_and_bad / "set" / MANIFEST_FILE).read_text())
    assert (manifest["num_videos"], manifest["num_pairs"]) == (1, 4)
    (good,) = manifest["videos"]
    place = str(good_and_bad / "videos" / "good.mp4")
    assert good.items() >= {"video": place, "pairs": 4, "shards": 1}.items()


@pytest.mark.parametrize(
    ("busy", "begins"),
    [
        ((9.0, 10.0, 0.1), "decode-bound"),
        ((1.0, 36.0, 0.1), "teacher-bound"),
        ((1.0, 10.0, 9.9), "write-bound"),
        ((1.0, 3.0, 0.2), "no stage was busy"),
    ],
)
def test_the_verdict_names_the_stage_that_the_others_waited_for(
    busy: tuple[float, float, float], begins: str
) -> None:
    summary = LabellingSummary(
        location="labels",
        digest="0",
        num_videos=1,
        num_pairs=100,
        num_shards=2,
        bytes=1,
        new_pairs=100,
        seconds=10.0,
        stage_seconds=dict(zip(STAGES, busy, strict=True)),
        processes=dict(zip(STAGES, (1, 4, 1), strict=True)),
        ledger=(),
        left_out={},
    )
    assert summary.verdict.startswith(begins)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lead_out(path: Path) -> None:
    shutil.move(path, path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, Path, str]:
    """(videos, their set, which isn't finished, and the folder in it of one of two shards)."""
    videos, labels = tmp_path / "videos", tmp_path / "labels"
    for number, num_frames in enumerate((7, 12, 5)):
        render(videos / f"{number}.mp4", number, num_frames=num_frames)
    paired(videos, labels)
    (folder,) = (each.folder for each in PairSet.open(str(labels)).videos() if each.shards == 2)
    (labels / MANIFEST_FILE).unlink()
    for record in labels.glob(f"*/{VIDEO_FILE}"):
        record.unlink()
    return videos, labels, folder


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("damage", [cut_short, lead_out, empty])
def test_a_damaged_shard_costs_its_video_until_it_is_gone(
    damage: Callable[[Path], object], shard: int, begun: tuple[Path, Path, str]
) -> None:
    videos, labels, folder = begun
    before, damaged = contents(labels), labels / folder / f"{shard:05d}.parquet"
    damage(damaged)
    for _ in range(2):
        assert paired(videos, labels).num_pairs == 6 + 4
        assert outcomes(labels) == {"1.mp4": "failed"}
    (record,) = read_ledger(str(labels))
    assert damaged.name in record.reason
    damaged.unlink()
    assert paired(videos, labels).num_pairs == 6 + 11 + 4
    assert contents(labels) == before


def test_a_damaged_record_costs_its_video_also_one_that_is_no_longer_there(tmp_path: Path) -> None:
    videos, labels = tmp_path / "videos", tmp_path / "labels"
    for number in range(3):
        render(videos / f"{number}.mp4", number, num_frames=5)
    paired(videos, labels)
    folders = {Path(each.video).name: labels / each.folder for each in PairSet.open(str(labels)).videos()}
    (videos / "2.mp4").unlink()
    sound = {name: (folder / VIDEO_FILE).read_bytes() for name, folder in folders.items()}
    for name in ("1.mp4", "2.mp4"):
        cut_short(folders[name] / VIDEO_FILE)
    for _ in range(2):
        assert paired(videos, labels).num_pairs == 4
        assert outcomes(labels) == {"1.mp4": "failed", "2.mp4": "failed"}
    assert all(VIDEO_FILE in record.reason for record in read_ledger(str(labels)))
    (folders["1.mp4"] / VIDEO_FILE).unlink()
    (folders["2.mp4"] / VIDEO_FILE).write_bytes(sound["2.mp4"])
    assert paired(videos, labels).num_pairs == 12


def test_a_record_that_is_damaged_while_the_others_are_labelled_costs_its_video(tmp_path: Path) -> None:
    videos, labels = tmp_path / "videos", tmp_path / "labels"
    for number in range(2):
        render(videos / f"{number}.mp4", number, num_frames=5)
    paired(videos, labels)
    record = next(labels.glob(f"*/{VIDEO_FILE}"))
    render(videos / "2.mp4", 2, num_frames=5)
    sound = record.read_bytes()
    record.unlink()
    damaged = BareGraph(meanwhile=lambda: record.write_bytes(b"{"))
    assert paired(videos, labels, graph=damaged).num_pairs == 8
    assert set(outcomes(labels).values()) == {"failed"}
    record.write_bytes(sound)
    assert paired(videos, labels).num_pairs == 12


@dataclass(frozen=True, kw_only=True)
class Beside(OcclusionCheck):
    """Another run writes its shards into the set while this one labels."""

    theirs: str
    ours: str

    def __call__(self, flow_fw: Flow, flow_bw: Flow) -> Mask:
        for shard in Path(self.theirs).glob("*/*.parquet"):
            place = Path(self.ours) / shard.relative_to(self.theirs)
            place.parent.mkdir(exist_ok=True)
            shutil.copy(shard, place)
        return super().__call__(flow_fw, flow_bw)


def test_a_shard_of_another_set_that_appears_while_its_pairs_are_labelled_ends_the_run(
    tmp_path: Path,
) -> None:
    videos, theirs, ours = (tmp_path / name for name in ("videos", "theirs", "ours"))
    render(videos / "0.mp4", 0, num_frames=5)
    save_teacher(tmp_path / "teacher")
    paired(videos, theirs)
    check = Beside(theirs=str(theirs), ours=str(ours))
    teachers = Teachers.fetched([str(tmp_path / "teacher")])
    with pytest.raises(RuntimeError, match="holds labels of the set"):
        write_labels(
            Collection.find(str(videos)), teachers, str(ours), CLIPS, check, OPTIONS, graph=BareGraph()
        )
    assert not (ours / MANIFEST_FILE).exists()
