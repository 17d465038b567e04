"""What labelling prints at its end."""

from pipelines.labelling import LabellingSummary
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
