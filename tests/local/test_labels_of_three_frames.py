"""Labels from three frames: what is in a set of them, and what a student reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bare_graph import BareGraph
from clips import contents, render, save_teacher

from flowcore.occlusion import OcclusionCheck
from flowcore.video import ClipOptions
from pipelines.collection import Collection
from pipelines.grades import GradedSet
from pipelines.label_rows import decode_occlusion, decode_row
from pipelines.labelling import Graph, LabellingOptions, write_labels
from pipelines.pair_set import PairSet
from pipelines.teachers import Teachers

OPTIONS = LabellingOptions(shard_pairs=5, row_group_pairs=2, three_frames=True)
CHUNK_PAIRS = 4
CHECK = OcclusionCheck(kind="range-map")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of several chunks, and one of two frames."""
    folder = tmp_path_factory.mktemp("collection")
    render(folder / "long.mp4", 1, num_frames=10)
    render(folder / "short.mp4", 2, num_frames=2)
    return folder


def labelled(collection: Path, location: Path, graph: Graph | None, teachers: Teachers) -> PairSet:
    clips = ClipOptions(chunk_pairs=CHUNK_PAIRS)
    write_labels(
        Collection.find(str(collection)), teachers, str(location), clips, CHECK, OPTIONS, graph=graph
    )
    return PairSet.open(str(location))


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, collection: Path) -> PairSet:
    """Made by DIS, whose flow is worth continuing."""
    location = tmp_path_factory.mktemp("labels") / "set"
    return labelled(collection, location, BareGraph(), Teachers.fetched(["opencv:dis_medium"]))


def long_rows(labels: PairSet) -> list[dict[str, object]]:
    """The rows of the long video, in its order."""
    rows = [labels.read(place) for place in labels.index().to_pylist()]
    return sorted((row for row in rows if "long" in row["video"]), key=lambda row: int(row["frame"]))


def test_a_chunks_first_pair_has_no_frame_before_and_its_last_none_after(labels: PairSet) -> None:
    rows = long_rows(labels)
    first = [number % CHUNK_PAIRS == 0 for number in range(len(rows))]
    last = [*first[1:], True]
    assert [not any(row["continued_fw"]) for row in rows] == first
    assert [not any(row["continued_bw"]) for row in rows] == last


def test_a_label_of_two_frames_says_that_it_is_one(labels: PairSet) -> None:
    graded = GradedSet.read(labels)
    misfits = graded.quality("misfit")
    # The video of two frames, and the pair that is a chunk alone.
    assert np.isnan(misfits).sum() == 2
    assert (graded.quality("continued")[np.isnan(misfits)] == 0).all()
    assert (graded.quality("continued")[~np.isnan(misfits)] > 0).all()


def test_a_student_learns_continued_motion_of_hidden_pixels(labels: PairSet) -> None:
    taught = 0
    for row in long_rows(labels):
        pair = decode_row(row)
        assert pair.confidence_fw is not None
        taught += int((decode_occlusion(row) & (pair.confidence_fw > 0)).sum())
    assert taught > 0


@pytest.mark.usefixtures("ray_session")
def test_labels_of_three_frames_are_the_same_on_any_cluster(tmp_path: Path, collection: Path) -> None:
    save_teacher(tmp_path / "teacher")
    teachers = Teachers.fetched([str(tmp_path / "teacher")])
    for name, graph in (("bare", BareGraph()), ("ray", None)):
        labelled(collection, tmp_path / name, graph, teachers)
    assert contents(tmp_path / "bare") == contents(tmp_path / "ray")


def test_labels_of_two_frames_have_no_column_for_a_third(tmp_path: Path, collection: Path) -> None:
    torch.manual_seed(0)
    clips, options = ClipOptions(chunk_pairs=CHUNK_PAIRS), LabellingOptions(shard_pairs=5)
    teachers = Teachers.fetched(["opencv:dis_ultrafast"])
    videos = Collection.find(str(collection))
    write_labels(videos, teachers, str(tmp_path), clips, CHECK, options, graph=BareGraph())
    assert "continued" not in PairSet.open(str(tmp_path)).quality_columns
