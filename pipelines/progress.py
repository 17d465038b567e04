"""How far is work that takes long? Words tell it, the same beside a bar on a terminal and in lines of a log.

Ray forwards what workers print only together with all their noise; here they leave a report in Ray's head,
and a thread of the driver shows what it says.
"""

import contextlib
import json
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self, TextIO

from pipelines import notes
from pipelines.disclosure import tell
from pipelines.labelling_progress import LabellingProgress

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 10.0


class _Surface(Protocol):
    """Where progress is seen."""

    def renew(self) -> None: ...
    def close(self) -> None: ...


class Progress:
    """How far one piece of work is, shown until it is closed."""

    def __init__(
        self,
        work: str,
        unit: str,
        total: float | None = None,
        *,
        to: TextIO | None = None,
        seconds: float = _SECONDS_BETWEEN_LINES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """unit: of `total`, in the singular; a total that nobody knows is None. to: stderr by default. Where
        it is no terminal it gets a line every so many seconds. clock: gives the time in seconds."""
        self.work, self.total, self.done = work, total, 0.0
        self._unit = unit
        self._before = 0.0
        self._facts: tuple[str, ...] = ()
        self._clock, self._began = clock, clock()
        stream = to or sys.stderr
        self._surface: _Surface = _Bar(self, stream) if stream.isatty() else _Lines(self, stream, seconds)

    def show(self, done: float, *facts: str, total: float | None = None, before: float = 0.0) -> None:
        """How much is done, and what else to show, each a few words such as "12.3 pairs/s".

        before: how much of it earlier runs did, which says nothing of the speed.
        """
        self.done, self._facts, self._before = done, facts, before
        self.total = self.total if total is None else total
        self._surface.renew()

    def advance(self, number: float) -> None:
        """So much more is done."""
        self.show(self.done + number, *self._facts, before=self._before)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    @property
    def words(self) -> str:
        """What it shows, without the name of the work."""
        seconds, new = self.seconds, self.done - self._before
        # What is begun counts in the share alone.
        finished = math.floor(self.done)
        words = [f"{finished} {self._unit}s"]
        if self.total:
            words = [f"{finished} of {self.total:.12g} {self._unit}s", f"{self.done / self.total:.0%}"]
        if self._unit == "pair" and new > 0 and seconds > 0:
            words.append(f"{new / seconds:.3g} pairs/s")
        words += [*self._facts, f"{_clock_face(seconds)} so far"]
        if self.total and new > 0 and self.done < self.total:
            words.append(f"{_clock_face(seconds * (self.total - self.done) / new)} left")
        return ", ".join(words)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._surface.close()


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class _Lines:
    """Where nothing can be drawn over: a line as it begins, one now and then, and one as it ends."""

    def __init__(self, progress: Progress, stream: TextIO, seconds: float) -> None:
        self._progress, self._stream, self._seconds = progress, stream, seconds
        self._tell()

    def renew(self) -> None:
        if self._progress.seconds - self._told_at >= self._seconds:
            self._tell()

    def close(self) -> None:
        if self._progress.done != self._told:
            self._tell()

    def _tell(self) -> None:
        self._told_at, self._told = self._progress.seconds, self._progress.done
        tell(f"{self._progress.work}: {self._progress.words}", to=self._stream)


class _Bar:
    """A terminal. What is printed meanwhile goes above the bar."""

    def __init__(self, progress: Progress, stream: TextIO) -> None:
        # A tenth of a second that a log is spared.
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
        from rich.progress import Progress as Drawn
        from rich.text import Text

        class Words(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(progress.words)

        console = Console(file=stream)
        bar = BarColumn(bar_width=20)
        self._progress = progress
        self._drawn = Drawn(TextColumn("{task.description}"), bar, Words(), console=console, expand=True)
        self._task = self._drawn.add_task(progress.work, total=progress.total)
        self._drawn.start()

    def renew(self) -> None:
        self._drawn.update(self._task, completed=self._progress.done, total=self._progress.total)

    def close(self) -> None:
        self.renew()
        self._drawn.stop()


@dataclass(frozen=True)
class Reporter:
    """What a worker reports to; it can be sent to any process of the cluster. The last report is a note in
    Ray's head."""

    key: str

    def report(self, done: int, *facts: str, before: int = 0) -> None:
        """As `Progress.show`."""
        notes.write(self.key, json.dumps([done, before, facts]).encode())

    def last(self) -> tuple[int, int, list[str]] | None:
        """What was reported last: done, before and the facts."""
        report = notes.read(self.key)
        return json.loads(report) if report else None

    def forget(self) -> None:
        """Removes the report from Ray's head."""
        notes.remove(self.key)


@contextlib.contextmanager
def of_worker(work: str, unit: str, total: int) -> Iterator[Reporter]:
    """The progress of what a worker does while the block runs."""
    from ray.exceptions import RayError

    reporter = Reporter(f"progress/{uuid.uuid4().hex}")
    finished = threading.Event()
    with Progress(work, unit, total) as progress:

        def show() -> None:
            # Where Ray's head is gone, the work has an error of its own to tell.
            with contextlib.suppress(RayError):
                # A worker that was started again reports less than the one before it.
                if (report := reporter.last()) is not None:
                    done, before, facts = report
                    progress.show(done, *facts, before=before)

        def watch() -> None:
            while not finished.wait(_SECONDS_BETWEEN_LOOKS):
                show()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield reporter
        finally:
            finished.set()
            watcher.join()
            show()
            with contextlib.suppress(RayError):
                reporter.forget()


@contextlib.contextmanager
def of_labelling(work: str) -> Iterator[Callable[[LabellingProgress], None]]:
    """The progress of a collection, for `on_progress` of `pipelines.labelling`."""
    with Progress(work, "video") as progress:

        def show(known: LabellingProgress) -> None:
            facts = [f"{known.new_pairs} pairs"]
            if known.pairs_per_second is not None:
                facts.append(f"{known.pairs_per_second:.1f} pairs/s")
            if shares := [f"{stage} {share:.0%}" for stage, share in known.stage_shares.items() if share]:
                facts.append(f"work: {' '.join(shares)}")
            done = round(known.videos_done, 2)
            progress.show(done, *facts, total=known.num_videos, before=known.videos_before)

        yield show
