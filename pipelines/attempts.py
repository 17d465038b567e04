"""Which videos end the processes that work on them, as when their frames need more memory than there is?

A video may have thousands of shards, each of which ends its process. So the first shard that did it three
times condemns its video for the rest of the run, and the others are left out without a try.

Ray tells how often it began a task, but it also begins those again that only waited in a process that died.
So from its second attempt on a shard leaves a trace as long as it is worked on, and traces of attempts that
are over are deaths. Both lie in the key-value store of Ray's head: not in the set, where a reader or a second
run could find them. Whether a video is condemned is asked for each shard, which takes 0.3 ms. Where nothing
dies, nothing else is asked.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from pipelines.cluster import times_begun

MOST_DEATHS = 3
"""Processes that may die over a shard before its video is left out. The first one's death, which leaves no
trace, may be a neighbour's doing."""
_NAMESPACE = "distillflow"


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
        store = _store()
        if store is None:
            return False
        if store._internal_kv_exists(self._verdict, namespace=_NAMESPACE):
            return True
        if not times_begun():
            return False
        deaths = 1 + len(store._internal_kv_list(self._traces, namespace=_NAMESPACE))
        if deaths < MOST_DEATHS:
            return False
        store._internal_kv_put(self._verdict, b"", namespace=_NAMESPACE)
        return True

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Leaves a trace where the process dies within the block; not at the first attempt."""
        store, begun = _store(), times_begun()
        if store is None or not begun:
            yield
            return
        trace = f"{self._traces}{begun}"
        store._internal_kv_put(trace, b"", namespace=_NAMESPACE)
        try:
            yield
        finally:
            store._internal_kv_del(trace, namespace=_NAMESPACE)

    @property
    def _verdict(self) -> str:
        return f"{self.run}/{self.stage}/{self.folder}"

    @property
    def _traces(self) -> str:
        return f"{self._verdict}/{self.number}/"


def forget(run: str) -> None:
    """Removes what a run left in Ray's head."""
    if (store := _store()) is not None:
        store._internal_kv_del(f"{run}/", del_by_prefix=True, namespace=_NAMESPACE)


def _store() -> ModuleType | None:
    """The functions of Ray's key-value store; None where there is no Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    from ray.experimental import internal_kv

    return internal_kv
