"""How does Ray run the stages of labelling? As a graph of Ray Data, of as many processes as find room."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import pyarrow as pa
import ray
import ray.data

from pipelines.attempts import forget
from pipelines.cluster import stream_rows
from pipelines.collection import Stamp, VideoSource
from pipelines.labelling_plan import Plan, group_tables
from pipelines.labelling_stages import Reader, Writer
from pipelines.messages import Message, messages
from pipelines.room import (
    READ_CPUS,
    TEACHER_CPUS,
    WRITE_CPUS,
    Accelerator,
    LabellingRoom,
    labelling_room,
    resources,
)
from pipelines.teachers import arithmetic
from pipelines.teaching import Teacher, Teaching

_MOST_TASKS = 1000
"""Reading tasks of a run, as Ray's driver pays for each. In larger collections a task reads several
videos."""
_ASKING_GPUS = 0.01
"""Of a card, for the task that asks it how it computes."""


class RayGraph:
    """The stages as Ray runs them, in as many processes as the cluster has room for."""

    reader: ClassVar[type] = Reader
    teacher: ClassVar[type] = Teacher
    writer: ClassVar[type] = Writer
    """The classes of the stages."""

    def __init__(self, num_teachers: int | None, accelerator: Accelerator) -> None:
        self._num_teachers = num_teachers
        self._accelerator = accelerator
        self._room: LabellingRoom | None = None

    @property
    def arithmetic(self) -> dict[str, str]:
        """How teachers compute, in the cluster as it is now."""
        if not self.room_for(has_teachers=True).gpus:
            return arithmetic("cpu")
        # Only a process that Ray gives a GPU can ask it.
        asked = ray.remote(num_cpus=0, num_gpus=_ASKING_GPUS)(arithmetic).remote("cuda")
        return ray.get(asked)

    @property
    def processes(self) -> dict[str, int]:
        """How many each stage had at most; none before there was anything to do."""
        return {} if self._room is None else self._room.processes(resources())

    def messages(
        self,
        sources: Sequence[VideoSource],
        stamps: Mapping[str, Stamp],
        plan: Plan,
        teaching: Teaching | None,
    ) -> Iterator[Message]:
        """Writes what is missing of these videos; what comes out of the last stage, in no order."""
        data = self.stages(sources, stamps, plan, teaching)
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from messages(cast(pa.Table, batch))
        forget(plan.run)

    def stages(
        self,
        sources: Sequence[VideoSource],
        stamps: Mapping[str, Stamp],
        plan: Plan,
        teaching: Teaching | None,
    ) -> ray.data.Dataset:
        """What will write what is missing of these videos, and give messages, when its rows are asked for."""
        self._room = room = self.room_for(has_teachers=teaching is not None)
        tables = group_tables(sources, stamps, plan.last, _MOST_TASKS)
        data: ray.data.Dataset = ray.data.from_arrow(tables)
        # Why each row is a block: see `pipelines.labelling_stages`.
        stream_rows(data, room.ahead(plan.shard_bytes))
        settings: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        readers = min(len(tables), room.readers or len(tables))
        data = data.map_batches(self.reader(plan), compute=_tasks(readers), num_cpus=READ_CPUS, **settings)
        if teaching is not None:
            data = data.map_batches(
                self.teacher,
                compute=ray.data.ActorPoolStrategy(
                    min_size=room.least_teachers,
                    max_size=room.teachers,
                    max_concurrent_calls_per_actor=room.shards_at_once,
                    enable_true_multi_threading=room.shards_at_once > 1,
                ),
                num_cpus=TEACHER_CPUS,
                num_gpus=room.gpus,
                fn_constructor_args=[plan, teaching, "cuda" if room.gpus else "cpu", room.shards_at_once],
                # A block, which is a row; Ray Data wants a number where there is a GPU.
                **{**settings, "batch_size": 1},
            )
        writer = self.writer(plan)
        return data.map_batches(writer, compute=_tasks(room.writers), num_cpus=WRITE_CPUS, **settings)

    def room_for(self, *, has_teachers: bool) -> LabellingRoom:
        """What the stages get of the cluster as it is now."""
        return labelling_room(
            resources(),
            has_teachers=has_teachers,
            num_teachers=self._num_teachers,
            accelerator=self._accelerator,
        )


def _tasks(most: int) -> ray.data.TaskPoolStrategy:
    """At most so many at once. Without a limit Ray starts a process for each small task that waits, and each
    imports for seconds: on two cores that stopped everything else for as long."""
    return ray.data.TaskPoolStrategy(size=most)
