"""The stages of labelling without Ray: one after the other, in the process of the test."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa

from pipelines.collection import Stamp, VideoSource
from pipelines.labelling_plan import Plan, group_tables
from pipelines.labelling_stages import Reader, Writer
from pipelines.messages import STAGES, Message, messages
from pipelines.teachers import arithmetic
from pipelines.teaching import Teacher, Teaching


class BareGraph:
    """Runs the stages from the end of the collection, so that videos come in another order than Ray's.

    meanwhile: called before the first video is looked at. most_shards: after so many it ends as by a kill.
    """

    arithmetic: Mapping[str, str] = arithmetic("cpu")
    processes: Mapping[str, int] = dict.fromkeys(STAGES, 1)

    def __init__(
        self, *, meanwhile: Callable[[], object] = lambda: None, most_shards: int | None = None
    ) -> None:
        self._meanwhile = meanwhile
        self._left = most_shards

    def messages(
        self,
        sources: Sequence[VideoSource],
        stamps: Mapping[str, Stamp],
        plan: Plan,
        teaching: Teaching | None,
    ) -> Iterator[Message]:
        self._meanwhile()
        read, write = Reader(plan), Writer(plan)
        label = _unlabelled if teaching is None else Teacher(plan, teaching, "cpu")
        for videos in reversed(group_tables(sources, stamps, plan.last, len(sources))):
            for shard in read(videos):
                for labelled in label(shard):
                    for written in write(labelled):
                        if self._left == 0:
                            raise KeyboardInterrupt
                        self._left = None if self._left is None else self._left - 1
                        yield from messages(written)


def _unlabelled(table: pa.Table) -> Iterator[pa.Table]:
    yield table
