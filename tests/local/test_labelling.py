"""Labelling a small collection with a real Ray, a real network and real videos, good ones and bad."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bare_graph import BareGraph
from clips import contents, render, render_images, save_teacher, written
from ray.data.block import BlockStats

from flowcore.frame_codec import FrameCodec
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import Merge
from flowcore.shapes import Flow, Mask, to_images
from flowcore.video import ClipOptions
from pipelines.checkpoints import model_digest
from pipelines.collection import Collection, Stamp, VideoSource, find_videos, stamp_of
from pipelines.label_rows import decode_occlusion, decode_row
from pipelines.labelling import LabellingOptions, LabellingSummary, write_labels, write_pairs
from pipelines.labelling_plan import Plan, group_tables
from pipelines.labelling_progress import LabellingProgress
from pipelines.labelling_status import labelling_status
from pipelines.ledger import MANIFEST_FILE, VIDEO_FILE
from pipelines.messages import Message
from pipelines.models import fetch_model
from pipelines.pair_set import PairSet
from pipelines.set_description import DESCRIPTION_FILE
from pipelines.shards import RayGraph
from pipelines.teachers import Teachers
from pipelines.teaching import Teaching

pytestmark = pytest.mark.usefixtures("ray_session")

CLIPS = ClipOptions(chunk_pairs=3)
CHECK = OcclusionCheck()
OPTIONS = LabellingOptions(shard_pairs=5, row_group_pairs=2)
HALF_A_UNIT = 1 / 128


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, FlowNetwork]:
    folder = tmp_path_factory.mktemp("teacher")
    return str(folder), save_teacher(folder)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos, an image sequence of odd size, one video's copy, and three bad ones."""
    folder = tmp_path_factory.mktemp("collection")
    render(folder / "first.mp4", 1)
    render(folder / "second.mp4", 2, num_frames=7)
    render_images(folder / "sequence", 3, 6, height=43, width=59)
    shutil.copy(folder / "second.mp4", folder / "zcopy.mp4")
    (folder / "broken.mp4").write_bytes(b"no video" * 99)
    render(folder / "tiny.mp4", 4, height=16, width=16)
    content = (folder / "first.mp4").read_bytes()
    (folder / "headless.mp4").write_bytes(content[: len(content) // 2])
    return folder


class OnGpu(BareGraph):
    """Refused before it would compute anything."""

    arithmetic: Mapping[str, str] = {"device": "cuda", "precision": "tf32"}


class Planned(BareGraph):
    """Notes in which order Ray would begin the videos."""

    def messages(
        self,
        sources: Sequence[VideoSource],
        stamps: Mapping[str, Stamp],
        plan: Plan,
        teaching: Teaching | None,
    ) -> Iterator[Message]:
        tables = group_tables(sources, stamps, plan.last, len(sources))
        groups = [group for table in tables for group in table["videos"].to_pylist()]
        self.order = [Path(video["uri"]).name for group in groups for video in group]
        yield from super().messages(sources, stamps, plan, teaching)


@dataclass(frozen=True, kw_only=True)
class NeedsMemory(OcclusionCheck):
    """Fails for frames of a width, as the system does where they need more memory than there is."""

    width: int

    def __call__(self, flow_fw: Flow, flow_bw: Flow) -> Mask:
        if flow_fw.shape[-1] == self.width:
            torch.empty(1 << 60)
        return super().__call__(flow_fw, flow_bw)


def label(collection: Path, teacher: str, location: Path | str, **more: Any) -> LabellingSummary:
    options = {"clips": CLIPS, "check": CHECK, "options": OPTIONS} | more
    videos, teachers = Collection.find(str(collection)), Teachers.fetched([teacher])
    return write_labels(videos, teachers, str(location), **options)


@pytest.fixture(scope="module")
def labels(
    tmp_path_factory: pytest.TempPathFactory,
    collection: Path,
    teacher: tuple[str, FlowNetwork],
    ray_session: None,
) -> PairSet:
    location = tmp_path_factory.mktemp("labels") / "set"
    label(collection, teacher[0], location, run_id="abcd")
    return PairSet.open(str(location))


def test_every_pair_of_every_readable_video_is_there_once(labels: PairSet) -> None:
    ids = labels.index()["pair_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 11 + 6 + 5
    names = duckdb.sql(f"select video, frame from '{labels.location}/*/*.parquet' order by all").fetchall()
    assert [(Path(video).name, frame) for video, frame in names] == [
        *(("first.mp4", frame) for frame in range(11)),
        *(("second.mp4", frame) for frame in range(6)),
        *(("sequence", frame) for frame in range(5)),
    ]


def test_whatever_gave_nothing_is_in_the_ledger(labels: PairSet) -> None:
    assert {Path(record.video).name: record.outcome for record in labels.ledger()} == {
        "broken.mp4": "nothing",
        "headless.mp4": "nothing",
        "tiny.mp4": "nothing",
        "zcopy.mp4": "duplicate",
    }
    assert any("too small: frames are 16x16 px" in record.reason for record in labels.ledger())


def test_labels_are_the_teachers_output_on_the_stored_frames(
    labels: PairSet, teacher: tuple[str, FlowNetwork]
) -> None:
    sizes = set()
    for place in labels.index().to_pylist():
        row = labels.read(place)
        pair = decode_row(row)
        sizes.add(pair.image1.shape)
        frames = to_images(pair.image1[None]), to_images(pair.image2[None])
        forward, backward = teacher[1].estimate(*frames)
        ways = ((pair.flow_fw, "occ_fw", forward, backward), (pair.flow_bw, "occ_bw", backward, forward))
        for flow, column, there, back in ways:
            assert flow is not None
            # Its own rounding differs with the number of pairs that it sees at once.
            assert np.abs(flow - there[0].numpy()).max() <= HALF_A_UNIT + 1e-4
            assert (decode_occlusion(row, column) == CHECK(there, back)[0, 0].numpy()).all()
    assert sizes == {(48, 64, 3), (43, 59, 3)}


def test_a_set_says_which_teacher_and_which_runs_made_it(
    labels: PairSet, teacher: tuple[str, FlowNetwork]
) -> None:
    assert labels.kind == "labels"
    provenance = labels.description.provenance
    assert provenance["teacher"] == teacher[0]
    assert (provenance["run_id"], provenance["teacher_run_id"]) == ("abcd", "0123")


def test_a_set_keeps_its_teacher(labels: PairSet, teacher: tuple[str, FlowNetwork]) -> None:
    assert labels.teacher is not None
    assert model_digest(fetch_model(labels.teacher)) == model_digest(Path(teacher[0]))


def test_each_label_names_its_teacher_and_its_set(labels: PairSet, teacher: tuple[str, FlowNetwork]) -> None:
    digest = model_digest(Path(teacher[0]))
    table = pq.read_table(Path(labels.location) / labels.files[0])
    assert set(table.column("teacher").to_pylist()) == {digest}
    assert set(table.column("label_set").to_pylist()) == {labels.label_set}


def test_row_groups_and_shards_have_the_sizes_that_were_asked_for(labels: PairSet) -> None:
    files = [pq.read_metadata(path) for path in Path(labels.location).rglob("*.parquet")]
    groups = [[file.row_group(group).num_rows for group in range(file.num_row_groups)] for file in files]
    # Of 11, 6 and 5 pairs in chunks of three: whole chunks until there are five.
    assert sorted(groups) == sorted([[2, 2, 2], [2, 2, 1], [2, 2, 2], [2, 2, 1]])


def test_labels_dont_depend_on_the_order_or_on_who_reads_what(
    tmp_path: Path, labels: PairSet, collection: Path, teacher: tuple[str, FlowNetwork]
) -> None:
    label(collection, teacher[0], tmp_path, graph=BareGraph())
    assert contents(tmp_path) == contents(labels.location)


@dataclass(frozen=True, kw_only=True)
class Mended:
    """A copy of the set that lost a shard and a half, labelled again."""

    location: Path
    summary: LabellingSummary
    cut: Path
    """The shard that was cut short."""
    before: dict[Path, int]
    """When each file was written that the second run found."""


@pytest.fixture(scope="module")
def mended(
    tmp_path_factory: pytest.TempPathFactory,
    labels: PairSet,
    collection: Path,
    teacher: tuple[str, FlowNetwork],
) -> Mended:
    location = tmp_path_factory.mktemp("mended") / "set"
    shutil.copytree(labels.location, location)
    folders = {Path(each.video).stem: location / each.folder for each in labels.videos()}
    (folders["first"] / "00001.parquet").unlink()
    # As a decoder that dies midway leaves it.
    cut = folders["second"] / "00000.parquet"
    pq.write_table(pq.read_table(cut).slice(0, 2), cut)
    for name in ("first", "second"):
        (folders[name] / VIDEO_FILE).unlink()
    before = written(location)
    summary = label(collection, teacher[0], location, options=replace(OPTIONS, num_teachers=1))
    return Mended(location=location, summary=summary, cut=cut, before=before)


def test_a_video_that_cant_be_labelled_costs_itself_and_the_next_run_tries_it_last(
    tmp_path: Path, collection: Path, teacher: tuple[str, FlowNetwork]
) -> None:
    options = {"check": NeedsMemory(width=59), "options": replace(OPTIONS, max_bad_share=1.0)}
    label(collection, teacher[0], tmp_path, graph=BareGraph(), **options)
    pairs = PairSet.open(str(tmp_path))
    assert pairs.num_pairs() == 11 + 6
    failed = {Path(each.video).name: each.reason for each in pairs.ledger() if each.outcome == "failed"}
    assert failed.keys() == {"sequence"}
    assert "labelling failed: RuntimeError" in failed["sequence"]
    assert "allocate" in failed["sequence"]

    again = Planned()
    label(collection, teacher[0], tmp_path, graph=again, **options)
    assert again.order[-1] == "sequence"
    assert len(again.order) > 1


def test_a_lost_shard_and_one_cut_short_come_back_the_same(labels: PairSet, mended: Mended) -> None:
    assert contents(mended.location) == contents(labels.location)


def test_only_what_was_lost_is_written_again(mended: Mended) -> None:
    assert mended.summary.new_pairs == 5 + 6
    assert {path for path, _ in mended.before.items() - written(mended.location).items()} == {mended.cut}


def test_each_stage_is_busy_for_a_share_of_the_run(mended: Mended) -> None:
    assert all(0 < share <= 1 for share in mended.summary.busy.values())


@pytest.fixture(scope="module")
def rerun(
    labels: PairSet, collection: Path, teacher: tuple[str, FlowNetwork]
) -> tuple[LabellingSummary, dict[Path, int]]:
    """(what labelling it all again says, when each file was written before)."""
    before = written(labels.location)
    return label(collection, teacher[0], labels.location), before


def test_a_rerun_touches_nothing(labels: PairSet, rerun: tuple[LabellingSummary, dict[Path, int]]) -> None:
    summary, before = rerun
    assert (summary.new_pairs, summary.num_pairs) == (0, 22)
    assert written(labels.location) == before


def test_a_rerun_still_counts_what_gave_nothing_and_has_no_verdict_on_its_speed(
    rerun: tuple[LabellingSummary, dict[Path, int]],
) -> None:
    summary, _ = rerun
    assert summary.metrics("labels")["labels/ledger/duplicate"] == 1
    assert summary.verdict == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": replace(OPTIONS, shard_pairs=6)}, "shard_pairs is 5 there and 6 here"),
        ({"clips": replace(CLIPS, stride=2)}, r"clips\.stride is 1 there and 2 here"),
        ({"check": OcclusionCheck(alpha2=1.0)}, r"check\.alpha2 is 0\.5 there and 1\.0 here"),
        ({"options": replace(OPTIONS, three_frames=True)}, "three_frames is None there and True here"),
        ({"graph": OnGpu()}, r"arithmetic\.device is cpu there and cuda here"),
    ],
)
def test_other_options_never_mix_into_a_set(
    labels: PairSet,
    collection: Path,
    teacher: tuple[str, FlowNetwork],
    change: dict[str, Any],
    message: str,
) -> None:
    before = contents(labels.location)
    with pytest.raises(ValueError, match=message):
        label(collection, teacher[0], labels.location, **change)
    assert contents(labels.location) == before


def test_labels_of_the_first_teacher_that_agrees_have_no_spread_and_never_mix_with_a_mean(
    tmp_path: Path, collection: Path
) -> None:
    location = str(tmp_path / "labels")

    def label_by_both(merge: Merge) -> PairSet:
        options = replace(OPTIONS, merge=merge)
        teachers = Teachers.fetched(["opencv:dis_fast", "opencv:farneback"])
        videos = Collection.find(str(collection))
        write_labels(videos, teachers, location, CLIPS, OcclusionCheck(), options, graph=BareGraph())
        return PairSet.open(location)

    labels = label_by_both("first")
    row = labels.read(labels.index().to_pylist()[0])
    assert not [name for name in row if name.startswith("spread")]
    assert labels.description.made_of["merge"] == "first"
    with pytest.raises(ValueError, match="merge is first there and None here"):
        label_by_both("mean")


def test_a_merge_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="merge 'median' must be one of mean, first"):
        LabellingOptions(merge="median")  # type: ignore[arg-type]


def test_another_teacher_never_mixes_into_a_set(tmp_path: Path, labels: PairSet, collection: Path) -> None:
    save_teacher(tmp_path / "other", 1)
    with pytest.raises(ValueError, match=r"teacher\.digest is \w+ there and \w+ here"):
        label(collection, str(tmp_path / "other"), labels.location)


def test_frames_alone_never_mix_into_labels(labels: PairSet, collection: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher\.digest is \w+ there and None here"):
        write_pairs(Collection.find(str(collection)), labels.location, CLIPS, OPTIONS)


@pytest.fixture(scope="module")
def unlabelled(
    tmp_path_factory: pytest.TempPathFactory, collection: Path, ray_session: None
) -> tuple[PairSet, list[LabellingProgress]]:
    """(the frames of the collection alone, what the run told meanwhile)."""
    location, seen = tmp_path_factory.mktemp("frames") / "set", list[LabellingProgress]()
    videos = Collection.find(str(collection))
    write_pairs(videos, str(location), CLIPS, OPTIONS, on_progress=seen.append)
    return PairSet.open(str(location)), seen


def test_frames_alone_have_the_same_pairs(
    labels: PairSet, unlabelled: tuple[PairSet, list[LabellingProgress]]
) -> None:
    pairs, _ = unlabelled
    assert pairs.kind == "frames"
    assert pairs.files == labels.files
    for file in pairs.files:
        frames = pq.read_table(Path(pairs.location) / file)
        both = pq.read_table(Path(labels.location) / file, columns=frames.column_names)
        # As pandas has it, an image's unknown time equals itself.
        assert frames.drop_columns("label_set").to_pandas().equals(both.drop_columns("label_set").to_pandas())


def test_a_run_that_ends_has_told_that_everything_is_done(
    unlabelled: tuple[PairSet, list[LabellingProgress]],
) -> None:
    _, seen = unlabelled
    assert (seen[-1].videos_done, seen[-1].num_videos, seen[-1].new_pairs) == (7, 7, 22)
    assert {progress.videos_before for progress in seen} == {0}


def test_a_run_tells_where_its_time_goes(unlabelled: tuple[PairSet, list[LabellingProgress]]) -> None:
    shares = unlabelled[1][-1].stage_shares
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["reading"] > 0 == shares["labelling"]


@pytest.mark.parametrize("is_whole", [True, False])
def test_two_makings_that_begin_at_once_stop_and_give_no_set(tmp_path: Path, is_whole: bool) -> None:
    """On object storage, which nobody locks; an unfinished video's files alone tell."""
    render(tmp_path / "videos" / "a.mp4", 0)
    arguments = (Collection.find(str(tmp_path / "videos")), str(tmp_path / "set"), CLIPS)
    write_pairs(*arguments, OPTIONS, graph=BareGraph())
    # As if the other run had described the folder before this one's first file was seen.
    write_pairs(arguments[0], str(tmp_path / "other"), replace(CLIPS, stride=2), OPTIONS, graph=BareGraph())
    (tmp_path / "set" / MANIFEST_FILE).unlink()
    shutil.copy(tmp_path / "other" / DESCRIPTION_FILE, tmp_path / "set")
    if not is_whole:
        for record in (tmp_path / "set").rglob(VIDEO_FILE):
            record.unlink()
    with pytest.raises(RuntimeError, match=r"holds labels of the set .* a folder of its own"):
        write_pairs(*arguments[:2], replace(CLIPS, stride=2), OPTIONS)
    assert not (tmp_path / "set" / MANIFEST_FILE).exists()


def test_the_driver_keeps_no_statistics_of_what_is_written(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "a.mp4", 1, num_frames=61)
    kept: list[int] = []

    def count(progress: LabellingProgress) -> None:
        if progress.new_pairs in (30, 60):
            # A list of it grows in Ray's driver with every block of every stage.
            kept.append(sum(type(each) is BlockStats for each in gc.get_objects()))

    options = replace(OPTIONS, shard_pairs=1)
    clips = ClipOptions(chunk_pairs=1)
    videos = Collection.find(str(tmp_path / "videos"))
    write_pairs(videos, str(tmp_path / "set"), clips, options, on_progress=count)
    assert max(kept) < 20


def test_the_command_tells_the_status_without_ray_and_leaves_no_trace(labels: PairSet) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(labels.location).rglob("*")}
    script = """
import runpy, sys
sys.argv = ["jobs/pseudolabel.py", "smoke", *sys.argv[1:]]
runpy.run_path("jobs/pseudolabel.py", run_name="__main__")
ray = sys.modules.get("ray")
assert ray is None or not ray.is_initialized()
"""
    repository = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", script, "--labels", labels.location, "--status"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    rows = [line.split(maxsplit=1) for line in ended.stdout.splitlines()]
    for row in (
        ["labels", f"{labels.location}, finished"],
        ["finished", "3"],
        ["left", "0"],
        ["skipped", "4"],
        ["1", "has the content of another video"],
    ):
        assert row in rows
    assert {path: path.stat().st_mtime_ns for path in Path(labels.location).rglob("*")} == before


def test_a_finished_sets_status_accounts_for_every_video(labels: PairSet, collection: Path) -> None:
    status = labelling_status(labels.location, str(collection))
    assert (status.state, status.videos, status.finished, status.left) == ("finished", 7, 3, 0)
    assert (status.pairs, status.seconds_left, status.last_run) == (22, 0, "finished")
    assert sum(status.skipped.values()) == len(labels.ledger()) == 4
    assert status.skipped["has the content of another video"] == 1
    reasons = {record.reason for record in labels.ledger() if record.outcome == "nothing"}
    assert reasons <= status.skipped.keys()


def test_ray_data_takes_the_stages_of_a_cluster_of_gpus(collection: Path, teacher: tuple[str, Any]) -> None:
    """It asks for more of a stage that has GPUs; nothing is run."""
    videos = find_videos(str(collection))
    plan = Plan(
        run="",
        location="",
        label_set="",
        clips=CLIPS,
        codec=FrameCodec(),
        shard_pairs=64,
        row_group_pairs=8,
        is_labelled=True,
    )
    teaching = Teaching(teachers=Teachers.fetched([teacher[0]]).models, check=CHECK)
    stamps = {video.uri: stamp_of(video) for video in videos}
    assert RayGraph(None, "gpu").stages(videos, stamps, plan, teaching) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_pairs": 0}, "shard_pairs 0"),
        ({"row_group_pairs": 0}, "row_group_pairs 0"),
        ({"num_teachers": 0}, "num_teachers 0"),
        ({"max_bad_share": 1.5}, "max_bad_share 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabellingOptions(**change)
