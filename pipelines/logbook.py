"""What became of the steps that a worker took? The logbook adds up what is logged together.

Steps are looked at together, since each look waits for the GPU.
"""

import time
from collections.abc import Callable

from pipelines.step import Taken
from pipelines.validation import TrainingStopped


class Logbook:
    """Sums over the steps since the last entry, without what comes between them, such as validation."""

    def __init__(self, *, skipped: int, max_skipped: int, on_skipped: Callable[[Taken], None]) -> None:
        """skipped: the steps that the training has skipped so far. on_skipped: called with each that
        follows."""
        self.skipped = skipped
        """The steps that the training has skipped."""
        self._max_skipped = max_skipped
        self._on_skipped = on_skipped
        self._new: list[Taken] = []
        self._began = 0.0
        self._open()

    def _open(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._pairs = 0
        self._waited = 0.0
        self._seconds = 0.0

    def begin(self) -> None:
        """A step begins with waiting for its batches."""
        self._began = time.monotonic()

    def has_waited(self) -> None:
        """The batches are here, and nothing else had to be done until they were."""
        self._waited += time.monotonic() - self._began

    def add(self, taken: Taken, pairs: int) -> None:
        """The step has been taken."""
        self._new.append(taken)
        self._pairs += pairs
        self._seconds += time.monotonic() - self._began

    def look(self) -> None:
        """Looks at the steps since the last look; TrainingStopped for one too many that was skipped."""
        began = time.monotonic()
        new, self._new = self._new, []
        for taken in new:
            for key, value in taken.facts.items():
                self._sums[key] = self._sums.get(key, 0.0) + value
            self._steps += taken.skipped is None
        self._seconds += time.monotonic() - began
        for taken in new:
            if taken.skipped is not None:
                self._skip(taken)

    def _skip(self, taken: Taken) -> None:
        self.skipped += 1
        self._on_skipped(taken)
        if self.skipped > self._max_skipped:
            raise TrainingStopped(
                f"{taken.skipped}; {self._max_skipped} steps had been skipped before it, the limit "
                "(--training.max-skipped). Lower --training.learning-rate or --training.clip-norm, or look "
                "at these pairs: the run's artifacts list them under `skipped`"
            )

    def entry(self) -> dict[str, float]:
        """The facts' means over the steps that were looked at and not skipped, with the speed. The next entry
        begins here."""
        seconds = max(self._seconds, 1e-9)
        means = {
            **{key: value / self._steps for key, value in self._sums.items()},
            "pairs_per_second": self._pairs / seconds,
            "waiting_for_data": self._waited / seconds,
        }
        self._open()
        return means
