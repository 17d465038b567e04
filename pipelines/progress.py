"""How far is work that takes long? A bar on the driver's terminal, lines in a log.

Ray forwards what workers print only together with all their noise; here they report numbers to a small actor,
and a thread of the driver draws them.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

from pipelines.disclosure import tell
from pipelines.labelling_progress import LabellingProgress

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 10.0


class _Lines(tqdm):  # type: ignore[misc]
    """A bar where nothing can be drawn over: a line as it begins, one now and then, and one as it ends."""

    def __init__(self, *, seconds: float, **options: Any) -> None:
        self._seconds = seconds
        self._told = -seconds
        self._told_of: float | None = None
        super().__init__(**options)

    def __str__(self) -> str:
        facts = self.format_dict
        done, total, elapsed = facts["n"], facts["total"], facts["elapsed"]
        words = [f"{self.desc}: {done:.12g}"]
        if total:
            words.append(f"of {total:.12g} {self.unit}s, {done / total:.0%}")
        else:
            words.append(f"{self.unit}s")
        words.append(f"in {self.format_interval(elapsed)}")
        new = done - facts["initial"]
        if total and new > 0 and done < total:
            words.append(f"({self.format_interval(elapsed * (total - done) / new)} left)")
        return " ".join(words) + (f", {self.postfix}" if self.postfix else "")

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None and time.monotonic() - self._told >= self._seconds:
            self._tell()
        return False

    def close(self) -> None:
        if not self.disable:
            if self.n != self._told_of:
                self._tell()
            self.leave = False
        super().close()

    def _tell(self) -> None:
        self._told, self._told_of = time.monotonic(), self.n
        tell(str(self), to=self.fp)


def bar(
    description: str,
    unit: str,
    total: int | None = None,
    *,
    log: TextIO | None = None,
    seconds: float = _SECONDS_BETWEEN_LINES,
) -> Any:
    """A bar of tqdm on stderr; where that is no terminal, or in `log`, a line every so many seconds."""
    options: dict[str, Any] = {"desc": description, "unit": unit, "total": total}
    if log is None and sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, **options)
    return _Lines(seconds=seconds, file=log or sys.stderr, **options)


class _Board:
    """The last report; lives in an actor."""

    def __init__(self) -> None:
        self.done = 0
        self.numbers: dict[str, float] = {}

    def write(self, done: int, numbers: dict[str, float]) -> None:
        self.done, self.numbers = done, numbers

    def read(self) -> tuple[int, dict[str, float]]:
        return self.done, self.numbers


class Reporter:
    """What a worker reports to; it can be sent to any process of the cluster."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def report(self, done: int, **numbers: float) -> None:
        """How many units are done, and numbers to show beside them; doesn't wait."""
        self._board.write.remote(done, numbers)


@contextlib.contextmanager
def shown(description: str, total: int, unit: str) -> Iterator[Reporter]:
    """A bar of `total` units on stderr while the block runs."""
    import ray
    from ray.exceptions import RayError

    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    finished = threading.Event()
    with bar(description, unit, total) as drawn:

        def draw() -> None:
            try:
                done, numbers = ray.get(board.read.remote())
            except RayError:
                # The board's node is gone: a bar that stands still mustn't end the work.
                return
            # A worker that was started again reports less than the one before it.
            drawn.n = done
            drawn.set_postfix({name: f"{value:.3g}" for name, value in numbers.items()})

        def watch() -> None:
            while not finished.wait(_SECONDS_BETWEEN_LOOKS):
                draw()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield Reporter(board)
        finally:
            finished.set()
            watcher.join()
            draw()
            ray.kill(board)


@contextlib.contextmanager
def video_bar(description: str) -> Iterator[Callable[[LabellingProgress], None]]:
    """A bar of the videos of a collection, for `on_progress` of `pipelines.labelling`."""
    with bar(description, "video") as drawn:

        def draw(progress: LabellingProgress) -> None:
            # What an earlier run did says nothing of the speed.
            drawn.initial = progress.videos_before
            drawn.total, drawn.n = progress.num_videos, round(progress.videos_done, 2)
            shares = {stage: f"{share:.0%}" for stage, share in progress.stage_shares.items() if share}
            numbers = {"pairs": str(progress.new_pairs)}
            if progress.pairs_per_second is not None:
                numbers["pairs_per_s"] = f"{progress.pairs_per_second:.1f}"
            drawn.set_postfix(**numbers, **shares)

        yield draw
