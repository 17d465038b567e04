"""How far is the labelling of a collection, whether a run goes on or not?"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.collection import Stamp, find_videos, stamps_of
from pipelines.labelling_progress import LabellingProgress, read_progress
from pipelines.ledger import MANIFEST_FILE, VideoRecord, read_ledger, read_manifest, short_reason
from pipelines.set_description import description_at
from pipelines.storage import Folder

_LONGEST = 3e9
"""Maximum seconds to report, a century: the speed may be anything."""


LastRun = Literal["running", "finished", "failed", "killed"]
"""`killed` is one that hasn't reported anything within the last minute, though it hasn't ended."""


@dataclass(frozen=True, kw_only=True)
class LabellingStatus:
    """How far the labelling of a collection into a folder is, as its runs have reported."""

    state: Literal["not begun", "unfinished", "finished"]
    videos: int
    """In the collection, as it is now or as the last run found it."""
    finished: int
    """Of them, those that gave pairs and need no more work."""
    skipped: Mapping[str, int]
    """Of them, those that gave no pair, by reason."""
    pairs: int
    """In the folder."""
    pairs_per_second: float | None
    """Of the last run that made pairs; None before there was one."""
    seconds_left: float | None
    """At that run's speed; None where that isn't known."""
    last_written: float | None
    """When the newest shard was written, in seconds since 1970; None without a shard."""
    last_run: LastRun | None
    """What became of the last run; None before there was one."""
    last_report: float | None
    """When a run has last reported how far it is, in seconds since 1970; None before the first."""
    failure: str
    """Why the last run failed; empty if it didn't."""

    @property
    def left(self) -> int:
        """Videos that a run of the same command has yet to look at, or is looking at."""
        return self.videos - self.finished - sum(self.skipped.values())


def labelling_status(location: str, videos: str | None = None) -> LabellingStatus:
    """How far a folder is, without Ray and without a trace: what the last run has reported, against the
    collection as it is now.

    videos: the collection; None for what the last run found in it, of which FileNotFoundError if there is no
    folder, and ValueError if there was no run. The place that the set names is never looked at: whoever made
    the set may have named any host, and a request there would be signed with the user's key.
    FileNotFoundError where the collection has no video. Until a run has ended well, a video that has changed
    since it was labelled counts as before.
    """
    folder = Folder(location)
    if videos is None and not folder.exists():
        raise FileNotFoundError(
            f"there is no folder {location}: check --labels; a run makes it once Ray has started"
        )
    description = description_at(folder)
    told = read_progress(location)
    if videos is None and told is None:
        raise ValueError(
            f"no run has reported how far {location} is: its labels came as files, or nothing was labelled "
            "there yet; to count what is left, add --videos"
        )
    progress = told or LabellingProgress()
    stamps = None if videos is None else stamps_of(find_videos(videos))
    num_videos, num_bytes = progress.num_videos, progress.bytes
    finished, skipped, pairs = progress.finished, dict(progress.skipped), progress.pairs
    bytes_done = progress.bytes_done
    has_ended = progress.state == "finished" and folder.size(MANIFEST_FILE) is not None
    labelled = read_manifest(location) if has_ended else []
    if has_ended:
        pairs = sum(record.pairs for record in labelled)
    if stamps is not None:
        num_videos, num_bytes = len(stamps), float(sum(stamp.size for stamp in stamps.values()))
    if stamps is not None and has_ended:
        current = _current([*labelled, *read_ledger(location)], stamps)
        finished = sum(record.pairs > 0 for record in current)
        skipped = dict(Counter(short_reason(record) for record in current if record.pairs == 0))
        bytes_done = sum(stamps[record.video].size for record in current)
    left = max(0, num_videos - finished - sum(skipped.values()))
    seconds_left = None if left else 0.0
    if left and progress.bytes_per_second:
        seconds_left = min(max(0.0, num_bytes - bytes_done) / progress.bytes_per_second, _LONGEST)
    state: Literal["not begun", "unfinished", "finished"] = "unfinished"
    if description is None:
        state = "not begun"
    elif has_ended and not left:
        state = "finished"
    return LabellingStatus(
        state=state,
        videos=num_videos,
        finished=finished,
        skipped=skipped,
        pairs=pairs,
        pairs_per_second=progress.pairs_per_second,
        seconds_left=seconds_left,
        last_written=progress.last_shard,
        last_run=None if told is None else _last_run(told, time.time()),
        last_report=progress.reported or None,
        failure=progress.failure,
    )


def _last_run(progress: LabellingProgress, now: float) -> LastRun:
    if progress.state != "running":
        return progress.state
    return "running" if progress.is_running(now) else "killed"


def _current(records: Sequence[VideoRecord], stamps: Mapping[str, Stamp]) -> list[VideoRecord]:
    """One record a video, of those that tell of the content that the collection has now. What the storage
    didn't give has yet to be looked at."""
    known = (record for record in records if record.outcome != "unreadable now")
    by_video = {record.video: record for record in known if record.video in stamps}
    return [record for video, record in by_video.items() if record.stamp == stamps[video].text]
