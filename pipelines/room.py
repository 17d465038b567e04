"""What share of a cluster does each stage get?

All that depends on the number of CPUs and GPUs is decided here, so that stages that run beside each other
never ask for more than there is and wait for ever.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import ray.data
    import ray.train

Accelerator = Literal["auto", "gpu", "cpu"]
"""What a stage runs on. `auto` takes GPUs if the cluster has any when the stage starts. `gpu` waits until an
autoscaler brings them."""


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resources() -> dict[str, float]:
    """What the cluster has now, such as {"CPU": 4.0, "GPU": 1.0}."""
    import ray

    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]


def num_nodes(have: Mapping[str, float]) -> int:
    """The machines of a cluster with these resources: each has one that is named after it."""
    return sum(name.startswith("node:") and name != "node:__internal_head__" for name in have)


def num_gpus() -> int:
    """The GPUs that the cluster has now."""
    return int(resources().get("GPU", 0))


READ_CPUS = 0.75
TEACHER_CPUS = 1.0
WRITE_CPUS = 0.25
"""The CPUs of one reader, one teacher and one writer. Together they make two, so that a machine with two CPUs
has room for one of each."""
_FEW_WRITERS = 8
"""The number of writers where the number of teachers isn't known; each writer serves many teachers."""
_SHARDS_OF_A_GPU = 2
_AHEAD_SHARDS = 16
"""How many shards may wait between the stages, for each process; with four a teacher waited now and then.

Ray's own limit is a share of its object memory, which is thousands of small shards. With it, readers took the
teachers' cores first (46 pairs/s, and 120 once they were done), the driver grew from 605 to 883 MB, and a
kill lost all shards that waited."""
_AHEAD_LEAST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class LabellingRoom:
    """The most processes that each stage of labelling may have; None means as many as fit."""

    readers: int | None
    teachers: int | None
    writers: int
    gpus: float
    """GPUs of each teacher; a fraction where several share one."""
    least_teachers: int = 1
    """Teachers that start at once and stay, even while there are few frames."""
    shards_at_once: int = 1
    """How many shards a teacher has under way: on a GPU it decodes one while it labels the other."""

    def processes(self, have: Mapping[str, float]) -> dict[str, int]:
        """Processes by stage, in a cluster with these resources; a stage without a limit gets all that fit. A
        teacher counts as often as it has shards under way."""
        cpus = have.get("CPU", 0.0)
        teachers = self.teachers
        if teachers is None:
            teachers = int(have.get("GPU", 0.0) if self.gpus else cpus)
        left = cpus - teachers * TEACHER_CPUS - self.writers * WRITE_CPUS
        readers = self.readers or max(1, int(left / READ_CPUS))
        labelling = teachers * self.shards_at_once
        counts = {"reading": readers, "labelling": labelling, "writing": self.writers}
        return {stage: count for stage, count in counts.items() if count}

    def ahead(self, shard_bytes: int) -> "ray.data.ExecutionResources":
        """How many shards of this size may wait between the stages. Ray's own limit holds where an autoscaler
        decides how many readers there are."""
        import ray.data

        if self.readers is None or self.teachers is None:
            return ray.data.ExecutionResources.for_limits()
        shards = _AHEAD_SHARDS * (self.readers + self.teachers + self.writers)
        limit = max(_AHEAD_LEAST_BYTES, shards * shard_bytes)
        return ray.data.ExecutionResources.for_limits(object_store_memory=limit)


def labelling_room(
    have: Mapping[str, float], *, has_teachers: bool, num_teachers: int | None, accelerator: Accelerator
) -> LabellingRoom:
    """The room for labelling in a cluster that has these resources now.

    num_teachers: the most teachers; None for the default. RuntimeError where one process of each stage
    doesn't fit, because the run would wait for ever.
    """
    cpus, gpus = have.get("CPU", 0.0), int(have.get("GPU", 0))
    needed = READ_CPUS + WRITE_CPUS + (TEACHER_CPUS if has_teachers else 0.0)
    if 0 < cpus < needed:
        raise RuntimeError(
            f"reading, labelling and writing need {needed:g} CPUs and Ray has {cpus:g}; start it with more "
            "(logical) CPUs or add a node"
        )
    if not has_teachers:
        readers = max(1, int(cpus) - 2) if cpus else None
        return LabellingRoom(readers=readers, teachers=0, writers=max(1, int(cpus) // 8), gpus=0)
    if accelerator == "gpu":
        # An autoscaler may bring more GPUs than there are now.
        writers = num_teachers or max(_FEW_WRITERS, gpus)
        return LabellingRoom(
            readers=None, teachers=num_teachers, writers=writers, gpus=1, shards_at_once=_SHARDS_OF_A_GPU
        )
    if accelerator == "auto" and gpus > 0:
        teachers = num_teachers or gpus
        if teachers > gpus:
            # They share cards, but each has a core of its own.
            teachers = max(gpus, min(teachers, int(cpus - READ_CPUS - WRITE_CPUS)))
        return LabellingRoom(
            readers=None,
            teachers=teachers,
            writers=teachers,
            gpus=_gpus_each(teachers, gpus),
            least_teachers=min(teachers, gpus),
            shards_at_once=_SHARDS_OF_A_GPU,
        )
    if cpus == 0:
        # There is no node yet: an autoscaler may bring some.
        return LabellingRoom(readers=None, teachers=num_teachers, writers=_FEW_WRITERS, gpus=0)
    # A teacher takes at least ten times as long as reading and writing. Teachers start later than readers,
    # which must leave them their CPUs.
    teachers = num_teachers or max(1, min(int(cpus) - 2, int(0.8 * cpus)))
    writers = max(1, teachers // 8)
    left = cpus - teachers * TEACHER_CPUS - writers * WRITE_CPUS
    return LabellingRoom(
        readers=max(1, int(left / READ_CPUS)),
        teachers=teachers,
        writers=writers,
        gpus=0,
        least_teachers=max(1, min(teachers, int(cpus - READ_CPUS - WRITE_CPUS))),
    )


def _gpus_each(teachers: int, gpus: int) -> float:
    """The GPUs of each teacher, so that Ray finds room for all of them: a whole number of them on a card, and
    in the ten-thousandths that Ray counts in."""
    on_a_card = -(-teachers // gpus)
    return 10_000 // on_a_card / 10_000


_ELASTIC_CPUS = 2
"""CPUs of a worker without a GPU where the number of workers follows the cluster. They include those of its
reading tasks, which ask for none: the workers would take every CPU, and the tasks would wait for ever."""


@dataclass(frozen=True, kw_only=True)
class TrainingRoom:
    """What the workers of a training take: between `min_workers` and `workers` of them, always `workers` for
    None."""

    workers: int
    min_workers: int | None
    uses_gpus: bool
    resize_seconds: float
    """Seconds between two looks whether the cluster has room for more workers."""

    @property
    def scaling(self) -> "ray.train.ScalingConfig":
        """The room as Ray Train's configuration."""
        import ray.train

        if self.min_workers is None:
            return ray.train.ScalingConfig(num_workers=self.workers, use_gpu=self.uses_gpus)
        # Ray's types are those of an older Ray Train.
        return cast(Any, ray.train.ScalingConfig)(  # type: ignore[no-any-return]
            num_workers=(self.min_workers, self.workers),
            use_gpu=self.uses_gpus,
            resources_per_worker=None if self.uses_gpus else {"CPU": _ELASTIC_CPUS},
            elastic_resize_monitor_interval_s=self.resize_seconds,
        )

    @property
    def reader_cpus(self) -> int:
        """CPUs that each task that feeds a worker asks for."""
        return 1 if self.min_workers is None or self.uses_gpus else 0

    def validates_itself(self, *, gpus: int, nodes: int) -> bool:
        """Whether a worker validates between two steps, in a cluster with so many GPUs and nodes: where no
        task could do it elsewhere. A task on the workers' own cores would only start one process more."""
        return gpus <= self.workers if self.uses_gpus else nodes == 1

    def validation(self) -> dict[str, Any]:
        """What the validation task asks of Ray, where there is one. On CPUs it asks for none, because workers
        and reading tasks may hold them all."""
        return {
            "num_cpus": int(self.uses_gpus),
            "num_gpus": int(self.uses_gpus),
            "max_retries": 3,
            "retry_exceptions": True,
        }


def training_room(
    have: Mapping[str, float],
    *,
    workers: int,
    min_workers: int | None,
    accelerator: Accelerator,
    resize_seconds: float,
) -> TrainingRoom:
    """The room for a training in a cluster that has these resources now.

    RuntimeError where the workers, or the tasks that feed them, would wait for ever.
    """
    cpus, gpus = have.get("CPU", 0), have.get("GPU", 0)
    room = functools.partial(
        TrainingRoom, workers=workers, min_workers=min_workers, resize_seconds=resize_seconds
    )
    least = min_workers or workers
    if accelerator == "gpu" or (accelerator == "auto" and gpus):
        if accelerator == "auto" and gpus < least:
            raise RuntimeError(
                f"{least} workers need {least} GPUs; this cluster has {gpus:g}. Choose "
                "fewer workers, add nodes, or set accelerator to gpu to wait for an autoscaler"
            )
        return room(uses_gpus=True)
    needed = least + 1 if min_workers is None else least * _ELASTIC_CPUS
    # With no CPU at all, an autoscaler has yet to start the first node.
    if 0 < cpus < needed:
        raise RuntimeError(
            f"{least} workers and the tasks that feed them need {needed:g} CPUs; this "
            f"cluster has {cpus:g}. Start Ray with more (logical) CPUs, or choose fewer workers"
        )
    return room(uses_gpus=False)


def predicting_room() -> dict[str, Any]:
    """What the task that predicts one video asks of Ray."""
    return {"num_cpus": 1, "num_gpus": min(1, num_gpus())}


_EVALUATORS_OF_A_GPU = 3
"""Of which some decode frames and truth while another computes; a choice, not measured."""


def evaluating_processes(most: int) -> tuple[int, float]:
    """(how many processes evaluate a data set, the GPUs of each); at most `most` processes."""
    have = resources()
    if gpus := int(have.get("GPU", 0)):
        return min(most, gpus * _EVALUATORS_OF_A_GPU), 1 / _EVALUATORS_OF_A_GPU
    # An embedded Ray has more logical CPUs than there are cores.
    return min(most, max(1, int(have.get("CPU", 1)) // 2)), 0.0
