"""How far a labelling run says it is, and what its messages say; without Ray."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from bare_graph import BareGraph
from clips import render
from hypothesis import given
from hypothesis import strategies as st

from flowcore.pseudolabels import PseudoLabels
from flowcore.video import ClipOptions
from pipelines.collection import Collection, Stamp
from pipelines.decoding_answers import EncodedChunk
from pipelines.label_rows import label_columns
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.labelling_progress import PROGRESS_FILE, LabellingProgress, read_progress, reported
from pipelines.labelling_status import LabellingStatus, labelling_status
from pipelines.ledger import MANIFEST_FILE, VideoRecord
from pipelines.messages import Shard, VideoEnded, messages
from pipelines.progress import of_labelling
from pipelines.tally import Tally

CLIPS = ClipOptions(chunk_pairs=3)
OPTIONS = LabellingOptions(shard_pairs=5, row_group_pairs=2)


def rendered(tmp_path: Path, *num_frames: int) -> tuple[str, str]:
    """(a collection of videos with so many frames, a place for their set)."""
    for seed, count in enumerate(num_frames):
        render(tmp_path / "videos" / f"{seed}.mp4", seed, count)
    return str(tmp_path / "videos"), str(tmp_path / "set")


def killed(videos: str, location: str, most_shards: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_pairs(
            Collection.find(videos), location, CLIPS, OPTIONS, graph=BareGraph(most_shards=most_shards)
        )


def test_before_labelling_has_begun_everything_is_left(tmp_path: Path) -> None:
    videos, location = rendered(tmp_path, 3, 3)
    status = labelling_status(location, videos)
    assert (status.state, status.videos, status.left, status.pairs) == ("not begun", 2, 2, 0)
    assert status.pairs_per_second is status.seconds_left is status.last_written is None
    assert status.last_run is status.last_report is None
    assert not Path(location).exists()


def test_before_labelling_has_begun_nobody_knows_of_which_videos(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=r"nothing was labelled there yet; .*, add --videos"):
        labelling_status(str(tmp_path / "set"))


def test_the_status_of_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / 'sett'}: check --labels"):
        labelling_status(str(tmp_path / "sett"))


@pytest.fixture
def cut_off(tmp_path: Path) -> tuple[str, str]:
    """(videos, their set): from the end, it has the second video's only shard and its end, and the first
    one's first shard of two."""
    videos, location = rendered(tmp_path, 12, 7)
    killed(videos, location, 3)
    return videos, location


def test_a_run_that_was_cut_off_leaves_how_far_it_was(cut_off: tuple[str, str]) -> None:
    status = labelling_status(cut_off[1])
    assert (status.state, status.videos, status.finished, status.left) == ("unfinished", 2, 1, 1)
    assert (status.pairs, status.last_run) == (12, "failed")
    assert status.last_written is not None


def test_a_run_that_was_cut_off_leaves_why_it_ended(cut_off: tuple[str, str]) -> None:
    assert labelling_status(cut_off[1]).failure.startswith("KeyboardInterrupt")


def test_a_run_that_was_killed_without_a_word_counts_as_killed(cut_off: tuple[str, str]) -> None:
    place = Path(cut_off[1]) / PROGRESS_FILE
    last = json.loads(place.read_text())
    place.write_text(json.dumps({**last, "state": "running", "failure": "", "reported": time.time() - 600}))
    assert labelling_status(cut_off[1]).last_run == "killed"


def test_a_run_that_was_cut_off_leaves_how_long_the_rest_takes(cut_off: tuple[str, str]) -> None:
    status = labelling_status(cut_off[1])
    assert status.pairs_per_second is not None
    assert status.seconds_left is not None
    assert status.seconds_left > 0


def test_the_next_run_begins_with_what_is_known(cut_off: tuple[str, str]) -> None:
    videos, location = cut_off
    seen: list[LabellingStatus] = []
    write_pairs(
        Collection.find(videos),
        location,
        CLIPS,
        OPTIONS,
        graph=BareGraph(),
        on_progress=lambda _: seen.append(labelling_status(location)),
    )
    assert (seen[0].finished, seen[0].last_run, seen[0].failure) == (1, "running", "")
    done = labelling_status(location)
    assert (done.state, done.last_run) == ("finished", "finished")


def test_the_expected_finish_is_at_the_speed_in_bytes_of_video(tmp_path: Path) -> None:
    videos, location = rendered(tmp_path, 5, 5, 5)
    killed(videos, location, 2)
    progress, status = read_progress(location), labelling_status(location)
    sizes = [path.stat().st_size for path in sorted(Path(videos).iterdir())]
    assert progress is not None
    assert progress.bytes_per_second is not None
    assert progress.bytes_done == sizes[2]
    assert status.seconds_left == pytest.approx(sum(sizes[:2]) / progress.bytes_per_second)


def test_a_video_that_comes_later_is_left(tmp_path: Path) -> None:
    videos, location = rendered(tmp_path, 3, 3)
    write_pairs(Collection.find(videos), location, CLIPS, OPTIONS, graph=BareGraph())
    assert labelling_status(location).state == "finished"
    render(Path(videos) / "late.mp4", 9, 3)
    # Where nobody says where the videos are, it knows what the last run found.
    assert labelling_status(location).state == "finished"
    status = labelling_status(location, videos)
    assert (status.state, status.finished, status.left, status.pairs) == ("unfinished", 2, 1, 4)
    assert status.seconds_left is not None


def test_a_video_that_comes_while_a_run_is_unfinished_is_left(tmp_path: Path) -> None:
    videos, location = rendered(tmp_path, 3, 3)
    killed(videos, location, 2)
    render(Path(videos) / "late.mp4", 9, 3)
    status = labelling_status(location, videos)
    assert (status.videos, status.finished, status.left) == (3, 1, 2)


def test_a_video_that_was_mended_or_changed_is_left_and_not_skipped(tmp_path: Path) -> None:
    videos, location = rendered(tmp_path, 4, 4)
    render(Path(videos) / "mended.mp4", 5, height=16, width=16)
    write_pairs(Collection.find(videos), location, CLIPS, OPTIONS, graph=BareGraph())
    status = labelling_status(location)
    assert (status.finished, status.left, sum(status.skipped.values())) == (2, 0, 1)
    render(Path(videos) / "mended.mp4", 5)
    render(Path(videos) / "0.mp4", 6)
    status = labelling_status(location, videos)
    assert (status.state, status.finished, status.left, status.skipped) == ("unfinished", 1, 2, {})


def test_a_rerun_that_finds_nothing_to_do_keeps_the_speed_of_the_one_before(tmp_path: Path) -> None:
    videos, location = rendered(tmp_path, 4)
    write_pairs(Collection.find(videos), location, CLIPS, OPTIONS, graph=BareGraph())
    before = labelling_status(location)
    write_pairs(Collection.find(videos), location, CLIPS, OPTIONS, graph=BareGraph())
    after = labelling_status(location)
    assert before.pairs_per_second == after.pairs_per_second is not None
    assert before.last_written == after.last_written


def test_a_set_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    videos, location = rendered(tmp_path, 4)
    write_pairs(Collection.find(videos), location, CLIPS, OPTIONS, graph=BareGraph())
    (Path(location) / MANIFEST_FILE).unlink()
    assert labelling_status(location).state == "unfinished"


def test_a_run_that_tells_nothing_for_a_while_counts_as_killed() -> None:
    now = time.time()
    assert LabellingProgress(reported=now - 5).is_running(now)
    assert not LabellingProgress(reported=now - 600).is_running(now)
    assert not LabellingProgress(reported=now, state="finished").is_running(now)
    assert not LabellingProgress(reported=now, state="failed").is_running(now)


def test_the_last_report_is_the_blocks_end(tmp_path: Path) -> None:
    progress = LabellingProgress(pairs=1, skipped={"no video stream": 2})
    with reported(str(tmp_path), lambda: progress):
        progress = LabellingProgress(pairs=7)
    last = read_progress(str(tmp_path))
    assert last is not None
    assert (last.state, last.pairs) == ("finished", 7)


def test_the_last_report_of_a_block_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), reported(str(tmp_path), LabellingProgress):
        raise OSError("the disk is full")
    last = read_progress(str(tmp_path))
    assert last is not None
    assert (last.state, last.failure) == ("failed", "OSError: the disk is full")


def test_the_shown_speed_does_not_count_what_an_earlier_run_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for done in (90, 91):
        with of_labelling("labels") as show:
            show(LabellingProgress(videos_done=done, videos_before=90, num_videos=100, new_pairs=8))
    lines = [line for line in capsys.readouterr().err.splitlines() if "of 100" in line]
    assert "90 of 100 videos, 90%," in lines[0]
    # Nobody knows how long the others take before one was done.
    assert "left" not in lines[0]
    assert "left" in lines[1]


def some_labels(
    pairs: int, *, has_spread: bool, is_of_three_frames: bool, has_uncertainty: bool
) -> PseudoLabels:
    flow = torch.randn(pairs, 2, 4, 5)
    occluded = torch.rand(pairs, 1, 8, 10) < 0.5
    quality = torch.rand(pairs)
    spread = flow[:, :1].abs() if has_spread else None
    uncertainty = flow[:, :1].exp() if has_uncertainty else None
    return PseudoLabels(
        flow_stride=2,
        flow_fw=flow,
        flow_bw=-flow,
        occ_fw=occluded,
        occ_bw=~occluded,
        occluded=quality,
        forward_backward=quality * float("nan"),
        photometric=quality,
        flow_p50=quality,
        flow_p99=quality,
        flow_max=quality,
        spread_fw=spread,
        spread_bw=spread,
        spread=quality if has_spread else None,
        uncertainty_fw=uncertainty,
        uncertainty_bw=uncertainty,
        uncertainty=quality if has_uncertainty else None,
        continued_fw=flow[:, :1] > 0 if is_of_three_frames else None,
        continued_bw=flow[:, :1] < 0 if is_of_three_frames else None,
        continued=quality if is_of_three_frames else None,
        misfit=quality * float("nan") if is_of_three_frames else None,
    )


@given(
    has_spread=st.booleans(),
    is_of_three_frames=st.booleans(),
    has_uncertainty=st.booleans(),
    has_labels=st.booleans(),
    chunks=st.integers(0, 3),
    video=st.text(max_size=9),
)
def test_a_message_comes_out_of_its_table_as_it_went_in(
    has_spread: bool,
    is_of_three_frames: bool,
    has_uncertainty: bool,
    has_labels: bool,
    chunks: int,
    video: str,
) -> None:
    shard = Shard(
        video=video,
        folder="f",
        number=3,
        pairs=4,
        share=0.25,
        bytes=1 << 40,
        is_new=True,
        chunks=tuple(
            EncodedChunk(index, [b"a", b"", b"c"], [0, 1, 5], [0.0, 0.5, 1.0], 8, 10)
            for index in range(chunks)
        ),
        reading=1.5,
    )
    if has_labels:
        labels = some_labels(
            4,
            has_spread=has_spread,
            is_of_three_frames=is_of_three_frames,
            has_uncertainty=has_uncertainty,
        )
        shard = Shard(**{**vars(shard), "labels": label_columns(labels, "aa")})
    ended = VideoEnded(record=VideoRecord(video=video, outcome="cut short", reason="it breaks", cuts=2))
    first, middle, last = messages(pa.concat_tables([each.to_arrow() for each in (ended, shard, ended)]))
    assert first == last == ended
    assert isinstance(middle, Shard)
    assert [vars(chunk) for chunk in middle.chunks] == [vars(chunk) for chunk in shard.chunks]
    assert middle.labels.schema.equals(shard.labels.schema)
    # As a text, in which nan equals nan.
    assert repr(middle.labels.to_pylist()) == repr(shard.labels.to_pylist())
    for name, value in vars(shard).items():
        if name not in ("chunks", "labels"):
            assert getattr(middle, name) == value


class Counted(dict[str, Stamp]):
    """Counts how often all of it is gone through."""

    rounds = 0

    def values(self) -> Any:
        self.rounds += 1
        return super().values()


def test_how_far_a_run_is_is_told_without_a_look_at_every_video(tmp_path: Path) -> None:
    stamps = Counted({str(number): Stamp(size=number, text="") for number in range(10)})
    tally = Tally(str(tmp_path), "run", "set", stamps, None)
    before = stamps.rounds
    assert [tally.progress.bytes for _ in range(3)] == [45.0] * 3
    assert stamps.rounds == before
