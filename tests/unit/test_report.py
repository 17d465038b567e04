"""What labelling prints at its end, and what is printed of its progress."""

from datetime import datetime
from typing import Any

import pytest

from pipelines.labelling import LabellingSummary
from pipelines.labelling_status import LabellingStatus, LastRun
from pipelines.ledger import VideoRecord


def summary(bad_videos: int) -> LabellingSummary:
    return LabellingSummary(
        location="/labels",
        digest="aa",
        num_videos=1,
        num_pairs=8,
        num_shards=1,
        bytes=100,
        new_pairs=0,
        seconds=1.0,
        stage_seconds={},
        processes={},
        ledger=tuple(
            VideoRecord(video=f"/videos/{number}.mp4", outcome="nothing", reason="no video")
            for number in range(bad_videos)
        ),
        left_out={"cuts": 0, "static_pairs": 0, "faded_pairs": 0},
    )


def lines_of(bad_videos: int) -> list[str]:
    # Imported here, as it brings what draws pictures.
    from jobs.report import summary_text

    return [line for line in summary_text(summary(bad_videos)).splitlines() if line.startswith("  ")]


def test_some_bad_videos_are_each_named_with_their_reason() -> None:
    assert lines_of(2) == ["  /videos/0.mp4: nothing, no video", "  /videos/1.mp4: nothing, no video"]


def test_of_many_bad_videos_some_are_named_and_the_others_counted() -> None:
    lines = lines_of(1000)
    assert len(lines) < 30
    assert lines[-1] == f"  and {1000 - len(lines) + 1} others, see _ledger.json in the labels"


def status(**more: Any) -> LabellingStatus:
    nothing: dict[str, Any] = {"finished": 0, "skipped": {}, "pairs": 0, "pairs_per_second": None}
    times = {"seconds_left": None, "last_written": None, "last_report": None}
    run = {"last_run": None, "failure": ""}
    return LabellingStatus(**{"state": "unfinished", "videos": 3, **nothing, **times, **run, **more})


@pytest.mark.parametrize(
    ("last_run", "told"),
    [
        ("running", "goes on; its last report: 2026-01-02 03:04:00, 0:00:05 ago"),
        ("killed", "was killed, or can't write its reports; the last one: 2026-01-02 03:04:00, 0:00:05 ago"),
        ("failed", r"failed 2026-01-02 03:04:00, 0:00:05 ago: OSError: the disk is\x1b full"),
        ("finished", "ended 2026-01-02 03:04:00, 0:00:05 ago"),
    ],
)
def test_the_status_says_whether_the_last_run_goes_on_and_else_why_not(last_run: LastRun, told: str) -> None:
    from jobs.report import status_text

    at, now = datetime(2026, 1, 2, 3, 4), datetime(2026, 1, 2, 3, 4, 5)
    failure = "OSError: the disk is\x1b full" if last_run == "failed" else ""
    shown = status_text("/x", status(last_run=last_run, last_report=at.timestamp(), failure=failure), now)
    assert f"last run         {told}" in shown.splitlines()


def test_before_the_first_run_the_status_tells_of_none() -> None:
    from jobs.report import status_text

    assert "last run" not in status_text("/x", status(state="not begun"), datetime(2026, 1, 2))
