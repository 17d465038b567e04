"""Labelling while the storage misbehaves: each pair is there once in the end, byte for byte; without Ray."""

import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bare_graph import BareGraph
from clips import contents, render
from object_storage import Bucket

from flowcore.video import ClipOptions
from pipelines.collection import Collection
from pipelines.labelling import LabellingOptions, LabellingSummary, write_pairs
from pipelines.labelling_progress import LabellingProgress
from pipelines.storage import Folder

OPTIONS = LabellingOptions(shard_pairs=5, row_group_pairs=2, max_bad_share=1.0)
NUM_PAIRS = 11 + 6 + 8
MOST_RUNS = 5


def paired(videos: Path, location: Path | str, **more: Any) -> LabellingSummary:
    graph = BareGraph(**more)
    return write_pairs(
        Collection.find(str(videos)), str(location), ClipOptions(chunk_pairs=3), OPTIONS, graph=graph
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((12, 7, 9)):
        render(folder / f"{number}.mp4", number, num_frames=frames)
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of a good day. It also leaves a decoder process for the days when none could be started."""
    location = tmp_path_factory.mktemp("undisturbed")
    paired(videos, location)
    return location


@pytest.mark.parametrize(
    "day",
    [
        {"refusal": "500 Internal Server Error", "refused_share": 0.3},
        {"refusal": "503 Slow Down", "refused_share": 0.3},
        {"cut_share": 0.3},
        {"pause": 0.02},
        {"lists_stale": True},
    ],
    ids=["500", "503", "half a body", "slow", "a stale listing"],
)
def test_reruns_on_a_bad_day_of_object_storage_end_in_the_set_of_a_good_one(
    day: dict[str, Any], videos: Path, undisturbed: Path, bucket: Bucket
) -> None:
    labels = bucket.uri("labels")
    # What a listing tells that is stale from here on.
    Folder(labels).folders()
    for name, value in day.items():
        setattr(bucket.server, name, value)
    for _ in range(MOST_RUNS):
        with suppress(OSError, RuntimeError):
            if paired(videos, labels).num_pairs == NUM_PAIRS:
                break
    bucket.server.reset()
    assert bucket.contents("labels", ".parquet") == contents(undisturbed)
    assert paired(videos, labels).new_pairs == 0


@pytest.fixture
def full_disk() -> Iterator[Any]:
    """Makes the disk full for the process: no file may grow beyond some bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_ends_the_run_with_a_remedy_and_a_rerun_does_what_is_missing(
    tmp_path: Path, videos: Path, undisturbed: Path, full_disk: Any
) -> None:
    labels = tmp_path / "labels"
    with pytest.raises(OSError, match="free space there or choose another place"):
        paired(videos, labels, meanwhile=full_disk)
    assert not list(labels.rglob("*.partial"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    paired(videos, labels)
    assert contents(labels) == contents(undisturbed)


def test_a_folder_that_turns_read_only_ends_the_run_and_says_so(
    tmp_path: Path, videos: Path, undisturbed: Path
) -> None:
    labels, user = tmp_path / "labels", os.geteuid()

    def turn_read_only() -> None:
        labels.chmod(0o555)
        # No folder is read-only to root.
        if user == 0:
            os.seteuid(65534)

    try:
        with pytest.raises(OSError, match="Permission denied") as refused:
            paired(videos, labels, meanwhile=turn_read_only)
    finally:
        os.seteuid(user)
    assert refused.value.errno == errno.EACCES
    labels.chmod(0o755)
    paired(videos, labels)
    assert contents(labels) == contents(undisturbed)


def test_a_clock_that_jumps_back_changes_nothing(
    tmp_path: Path, videos: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = iter(range(10**6))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(hours))
    for _ in range(2):
        assert paired(videos, tmp_path).num_pairs == NUM_PAIRS
    assert contents(tmp_path) == contents(undisturbed)


def test_a_report_from_before_the_clock_jumped_back_is_of_no_running_run() -> None:
    report = LabellingProgress(reported=10_000.0)
    assert report.is_running(10_059.0)
    assert not report.is_running(10_061.0)
    assert not report.is_running(6_400.0)
