"""How far is work that takes long? A bar on the driver's terminal.

Ray forwards what workers print only together with all their noise; here they report numbers to a small actor,
and a thread of the driver draws them.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from pipelines.labelling_progress import LabellingProgress

_SECONDS_BETWEEN_LOOKS = 1.0


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
    with tqdm(desc=description, total=total, unit=unit, dynamic_ncols=True) as bar:

        def draw() -> None:
            try:
                done, numbers = ray.get(board.read.remote())
            except RayError:
                # The board's node is gone: a bar that stands still mustn't end the work.
                return
            # A worker that was started again reports less than the one before it.
            bar.n = done
            bar.set_postfix({name: f"{value:.3g}" for name, value in numbers.items()})

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


class StageClock:
    """The seconds that each stage of a chain took; prints a line as one begins and as it ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Times the block."""
        print(f"\n== {name}: {what}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"== {name}: done in {self.seconds[name]:.1f} s", flush=True)

    @property
    def summary(self) -> dict[str, float]:
        """By stage, and in total."""
        return self.seconds | {"total": round(sum(self.seconds.values()), 1)}


@contextlib.contextmanager
def video_bar(description: str) -> Iterator[Callable[[LabellingProgress], None]]:
    """A bar of the videos of a collection, for `on_progress` of `pipelines.labelling`."""
    with tqdm(desc=description, unit="video", dynamic_ncols=True) as bar:

        def draw(progress: LabellingProgress) -> None:
            # What an earlier run did says nothing of the speed.
            bar.initial = progress.videos_before
            bar.total, bar.n = progress.num_videos, round(progress.videos_done, 2)
            shares = {stage: f"{share:.0%}" for stage, share in progress.stage_shares.items() if share}
            numbers = {"pairs": str(progress.new_pairs)}
            if progress.pairs_per_second is not None:
                numbers["pairs_per_s"] = f"{progress.pairs_per_second:.1f}"
            bar.set_postfix(**numbers, **shares)

        yield draw
