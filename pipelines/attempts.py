"""Which videos end the processes that work on them, as when their frames need more memory than there is?

A video may have thousands of shards, each of which ends its process. So the first shard that did it three
times condemns its video for the rest of the run, and the others are left out without a try.

Ray tells how often it began a task, but it also begins those again that only waited in a process that died.
So from its second attempt on a shard leaves a trace as long as it is worked on, and traces of attempts that
are over are deaths. Both are notes in Ray's head: not in the set, where a reader or a second run could find
them. Whether a video is condemned is asked for each shard, which takes 0.3 ms. Where nothing
dies, nothing else is asked.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines import notes
from pipelines.cluster import times_begun
from pipelines.messages import Shard
from pipelines.storage import refuses_files

MOST_DEATHS = 3
"""Processes that may die over a shard before its video is left out. The first one's death, which leaves no
trace, may be a neighbour's doing."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The work of a stage on a shard, in a process that may die over it."""

    run: str
    stage: str
    folder: str
    """The video's."""
    number: int
    """The shard's."""

    def is_hopeless(self) -> bool:
        """True where this shard or another one of its video ended its processes; False outside Ray."""
        if notes.exists(self._verdict):
            return True
        if not times_begun() or 1 + notes.count(self._traces) < MOST_DEATHS:
            return False
        notes.write(self._verdict)
        return True

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Leaves a trace where the process dies within the block; not at the first attempt."""
        if not (begun := times_begun()):
            yield
            return
        trace = f"{self._traces}{begun}"
        notes.write(trace)
        try:
            yield
        finally:
            notes.remove(trace)

    @property
    def _verdict(self) -> str:
        return f"{self.run}/{self.stage}/{self.folder}"

    @property
    def _traces(self) -> str:
        return f"{self._verdict}/{self.number}/"


def attempted(
    run: str, stage: str, shard: Shard, work: Callable[[Shard], Shard], *, ends_all: type[Exception]
) -> Shard:
    """What a stage makes of a shard. What it raises costs the video of that shard and no other, as do
    processes that die over the video, such as over frames too large for the memory.

    Raised is what every other video would meet as well: an error of `ends_all`, and a disk that takes
    nothing.
    """
    attempt = Attempt(run=run, stage=stage, folder=shard.folder, number=shard.number)
    if attempt.is_hopeless():
        return shard.lighter(failure=f"{stage} ended its process {MOST_DEATHS} times: is memory short?")
    try:
        with attempt.traced():
            return work(shard)
    except Exception as error:
        if refuses_files(error) or isinstance(error, ends_all):
            raise
        traceback.print_exc()
        return shard.lighter(failure=f"{stage} failed: {type(error).__name__}: {error}")


def forget(run: str) -> None:
    """Removes what a run left in Ray's head."""
    notes.remove_all(f"{run}/")
