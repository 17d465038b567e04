"""How far is a labelling run? What it tells while it works, in `_progress.json` in the set's folder.

A killed run leaves its last report. That it no longer runs is told by the report's age, since a running one
writes every few seconds whether or not a shard was finished.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from threading import Event, Thread
from typing import Literal

from flowcore.records import LIST_BYTES, record
from pipelines.disclosure import storable
from pipelines.set_files import read_record, told_of
from pipelines.storage import Folder, json_bytes

PROGRESS_FILE = "_progress.json"
"""How far the latest run in the folder is."""
_SECONDS_BETWEEN_REPORTS = 5.0
_MOST = 1e19
"""Of any of its numbers, bytes among them."""
_LAST_TIME = 2.0**37
"""Seconds since 1970 that a calendar still has a date for, in the year 6325."""
_LATE_AFTER = 60.0
"""Seconds without a report after which a run counts as killed."""


@dataclass(frozen=True, kw_only=True)
class LabellingProgress:
    """How far a labelling run is."""

    state: Literal["running", "finished", "failed"] = "running"
    failure: str = ""
    """Why it failed."""
    reported: float = 0.0
    """When this was written, in seconds since 1970."""
    num_videos: int = 0
    """In the collection."""
    videos_before: int = 0
    """Of them, those that earlier runs finished."""
    videos_done: float = 0.0
    """Of them, those that are finished or skipped; one that is begun counts as its written share."""
    finished: int = 0
    """Videos that gave pairs and need no more work."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Videos that gave no pair, by reason."""
    pairs: int = 0
    """In the set, as far as this run has looked."""
    new_pairs: int = 0
    """Made by this run."""
    pairs_per_second: float | None = None
    """Pairs that were made a second, by this run or, until it makes some, by the one before."""
    bytes_done: float = 0.0
    """Of the collection's files, those of the videos that are done; of one that is begun its share."""
    bytes: float = 0.0
    """Of all of the collection's files."""
    bytes_per_second: float | None = None
    """Of the collection's files, by the run that `pairs_per_second` tells of."""
    last_shard: float | None = None
    """When the newest shard was written, in seconds since 1970."""
    stage_shares: Mapping[str, float] = field(default_factory=dict)
    """Shares of this run's work so far, by stage; they add up to 1 once there is some."""

    def __post_init__(self) -> None:
        numbers = [each for each in vars(self).values() if isinstance(each, int | float)]
        if not all(0 <= each <= _MOST for each in [*numbers, *self.skipped.values()]):
            raise ValueError("it has a number that is no count and no share")
        if max(self.reported, self.last_shard or 0.0) > _LAST_TIME:
            raise ValueError("it has a time that no calendar has")

    def is_running(self, now: float) -> bool:
        """Whether the run is still at work at a time in seconds since 1970."""
        # A report from the future is of a clock that was set back since.
        return self.state == "running" and abs(now - self.reported) < _LATE_AFTER


OnProgress = Callable[[LabellingProgress], None]


def read_progress(location: str) -> LabellingProgress | None:
    """The last report of the latest run in a folder; None where there was no run, ValueError where it is
    damaged."""
    try:
        values = read_record(location, PROGRESS_FILE, LIST_BYTES)
    except FileNotFoundError:
        return None
    with told_of(location, PROGRESS_FILE):
        return record(LabellingProgress, values)


def _write(location: str, progress: LabellingProgress) -> None:
    Folder(location).write(PROGRESS_FILE, json_bytes(asdict(replace(progress, reported=time.time()))))


@contextmanager
def reported(location: str, progress: Callable[[], LabellingProgress]) -> Iterator[None]:
    """Writes how far the block is, every few seconds and when it ends; also that it failed."""
    ended = Event()

    def report() -> None:
        is_over = False
        while not is_over:
            # A report that can't be written mustn't end the work.
            with suppress(OSError):
                _write(location, progress())
            is_over = ended.wait(_SECONDS_BETWEEN_REPORTS)

    reporter = Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    except BaseException as error:
        _end(ended, reporter)
        failure = storable(f"{type(error).__name__}: {error}")
        with suppress(OSError):
            _write(location, replace(progress(), state="failed", failure=failure))
        raise
    _end(ended, reporter)
    _write(location, replace(progress(), state="finished"))


def _end(ended: Event, reporter: Thread) -> None:
    ended.set()
    reporter.join()
