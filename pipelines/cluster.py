"""How does a job reach a Ray cluster, and how much room does each stage take there?

Everything that depends on how many CPUs and GPUs Ray has is decided here, so that stages which run beside
each other can't ask for more than there is and wait for ever.
"""

import contextlib
import functools
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import ray
import ray.data
from ray.util import get_node_ip_address

from pipelines.storage import PROJECT_FOLDER, is_shipped_copy

if TYPE_CHECKING:
    # Brings torch, for which each of Ray's processes would wait: they import this module.
    import ray.train

Accelerator = Literal["auto", "gpu", "cpu"]
"""What a stage runs on. `auto` takes GPUs if the cluster has any at the start; `gpu` waits for an autoscaler
to bring them."""

_ADDRESS = "RAY_ADDRESS"
"""The environment variable that Ray also sets for a job's driver."""
_PORT = "RAY_GCS_SERVER_PORT"
"""The environment variable of the port, one half of the address, that an embedded Ray takes."""
_SPARE_CPUS = 2
_FEWEST_CPUS = 4
_IDLE_SECONDS = 60


def has_cluster() -> bool:
    """True in a Ray job and where RAY_ADDRESS names a cluster."""
    return os.environ.get(_ADDRESS, "") not in ("", "local")


def connect() -> None:
    """Joins the cluster of the Ray job or of RAY_ADDRESS; without either, starts Ray in this process, once.

    The embedded Ray has more logical CPUs than the machine, because training workers hold theirs while their
    feed needs some: with as many of both a job would wait for ever. ConnectionError where RAY_ADDRESS leads
    to no cluster.
    """
    debugs = is_debugging()
    if not debugs:
        _quieten()
    start = functools.partial(
        ray.init, logging_level=logging.INFO if debugs else logging.ERROR, log_to_driver=debugs
    )
    address = os.environ.get(_ADDRESS, "")
    if not has_cluster():
        if ray.is_initialized():
            return
        # Ray's processes inherit it; the workers then import the code that runs here.
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT_FOLDER), *([inherited] if inherited else [])])
        num_cpus = max(_FEWEST_CPUS, _num_cores() + _SPARE_CPUS)
        with _known_address():
            start(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                # Ray ends a process that had nothing to do for a second, and the next one, for the next
                # file that is written, imports for seconds on the cores of those that work.
                _system_config={"idle_worker_killing_time_threshold_ms": _IDLE_SECONDS * 1000},
            )
    elif address.startswith("http"):
        raise ConnectionError(
            f"RAY_ADDRESS {address} is a job server's: type `ray job submit --working-dir . -- python ...`, "
            "or unset RAY_ADDRESS to run without the cluster"
        )
    else:
        # A Ray job's workers find its copy of the code; others look for it where it is here.
        here = {"env_vars": {"PYTHONPATH": str(PROJECT_FOLDER)}}
        start(address=address, runtime_env=None if is_shipped_copy() else here)
    let_ray_data_rest()
    context = ray.data.DataContext.get_current()
    context.raise_original_map_exception = True
    context.enable_progress_bars = debugs


@contextlib.contextmanager
def _known_address() -> Iterator[None]:
    """Ray's processes that start meanwhile inherit the address of their own cluster.

    Without it Ray Train's watchman asks the cluster that `ray start` began last on this machine, one that is
    gone or another's, whether the training still lives, and each training ends some seconds later.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    host = get_node_ip_address()  # type: ignore[no-untyped-call]
    before = {name: os.environ.pop(name, None) for name in (_ADDRESS, _PORT)}
    os.environ.update({_ADDRESS: f"{host}:{port}", _PORT: port})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _quieten() -> None:
    """Leaves Ray's warnings; drops its plans and the tracebacks that it logs before raising them."""
    for name, level in (
        ("ray.data", logging.WARNING),
        ("ray.data._internal.progress", logging.ERROR),
        ("ray.data.exceptions", logging.CRITICAL),
        ("ray.data._internal.execution.streaming_executor_state", logging.CRITICAL),
    ):
        logging.getLogger(name).setLevel(level)


def _num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_debugging() -> bool:
    """True where DISTILLFLOW_DEBUG asks for tracebacks and the workers' output."""
    return os.environ.get("DISTILLFLOW_DEBUG", "0") not in ("", "0")


_PAUSE_SECONDS = 0.01
"""A step of Ray Data's loop takes all blocks that are ready, so that this limits no throughput of ours."""


class _Pause:
    """Makes Ray Data's scheduling loop pause between its steps; Ray calls it an execution callback.

    The loop runs in a thread of the process that reads a dataset. Once blocks are ready and nobody has taken
    them, which is how a feed should be, it goes round without waiting, as fast as Python can: beside a
    training step on one core it took a quarter of the time.
    """

    def before_execution_starts(self, executor: object) -> None:
        pass

    def on_execution_step(self, executor: object) -> None:
        time.sleep(_PAUSE_SECONDS)

    def after_execution_succeeds(self, executor: object) -> None:
        pass

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        pass


def let_ray_data_rest() -> None:
    """Datasets that this process reads from now on pause between the steps of their scheduling loop."""
    callbacks: list[type] = ray.data.DataContext.get_current().custom_execution_callback_classes
    if _Pause not in callbacks:
        callbacks.append(_Pause)


def resources() -> dict[str, float]:
    """What the cluster has now, such as {"CPU": 4.0, "GPU": 1.0}."""
    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]


def num_gpus() -> int:
    """The GPUs that the cluster has now."""
    return int(resources().get("GPU", 0))


READ_CPUS = 0.75
TEACHER_CPUS = 1.0
WRITE_CPUS = 0.25
"""What a process of each labelling stage asks of Ray: together two CPUs, so that a small machine has one of
each."""
_FEW_WRITERS = 8
"""Where the number of teachers isn't known; each writer serves many."""
_AHEAD_SHARDS = 16
"""For each process, how many shards may wait between the stages; with four a teacher waited now and then.
Ray's own limit is a share of its memory for objects, thousands of small shards: readers then take the
teachers' cores first (46 pairs/s, and 120 once they were done), what waits is the driver's to keep (from 605
to 883 MB), and a kill loses it."""
_AHEAD_LEAST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class LabellingRoom:
    """The most processes of each stage of labelling; None stands for as many as fit."""

    readers: int | None
    teachers: int | None
    writers: int
    gpus: int
    """Of each teacher."""
    least_teachers: int = 1
    """Begin at once and stay, even while frames are scarce."""

    def processes(self, have: Mapping[str, float]) -> dict[str, int]:
        """By stage; of those without a limit as many as a cluster with these resources has room for."""
        cpus = have.get("CPU", 0.0)
        teachers = self.teachers
        if teachers is None:
            teachers = int(have.get("GPU", 0.0) if self.gpus else cpus)
        left = cpus - teachers * TEACHER_CPUS - self.writers * WRITE_CPUS
        readers = self.readers or max(1, int(left / READ_CPUS))
        counts = {"reading": readers, "labelling": teachers, "writing": self.writers}
        return {stage: count for stage, count in counts.items() if count}

    def ahead(self, shard_bytes: int) -> ray.data.ExecutionResources:
        """How many shards of this size may wait between the stages; Ray's own limit where there are as many
        readers as an autoscaler brings."""
        if self.readers is None or self.teachers is None:
            return ray.data.ExecutionResources.for_limits()
        shards = _AHEAD_SHARDS * (self.readers + self.teachers + self.writers)
        limit = max(_AHEAD_LEAST_BYTES, shards * shard_bytes)
        return ray.data.ExecutionResources.for_limits(object_store_memory=limit)


def labelling_room(
    have: Mapping[str, float], *, has_teachers: bool, num_teachers: int | None, accelerator: Accelerator
) -> LabellingRoom:
    """The room in a cluster that has these resources now; RuntimeError where one process of each stage
    doesn't fit and the run would wait for ever. num_teachers: the most of them, None for the default."""
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
        # An autoscaler may bring more than there are now.
        writers = num_teachers or max(_FEW_WRITERS, gpus)
        return LabellingRoom(readers=None, teachers=num_teachers, writers=writers, gpus=1)
    if accelerator == "auto" and gpus > 0:
        teachers = num_teachers or gpus
        return LabellingRoom(
            readers=None, teachers=teachers, writers=teachers, gpus=1, least_teachers=min(teachers, gpus)
        )
    if cpus == 0:
        # So it may where there is nothing at all.
        return LabellingRoom(readers=None, teachers=num_teachers, writers=_FEW_WRITERS, gpus=0)
    # A teacher takes at least ten times as long as reading and writing do. Readers may not take the CPUs that
    # teachers, who come later, are to have.
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


_RESIZE_SECONDS = 60.0
"""Between two looks whether the cluster has room for more workers: each that comes costs the steps since the
last checkpoint."""
_ELASTIC_CPUS = 2
"""Of a worker with its reading tasks, which ask for none, where there are no GPUs and the number of workers
follows the cluster: they would take every CPU, and tasks that asked for one wait for ever."""


@dataclass(frozen=True, kw_only=True)
class TrainingRoom:
    """What the workers of a training take, from `min_workers` (None: always `workers`) to `workers`."""

    workers: int
    min_workers: int | None
    uses_gpus: bool

    @property
    def scaling(self) -> "ray.train.ScalingConfig":
        """What Ray Train is told."""
        import ray.train

        if self.min_workers is None:
            return ray.train.ScalingConfig(num_workers=self.workers, use_gpu=self.uses_gpus)
        # Typed as an older Ray Train's.
        return cast(Any, ray.train.ScalingConfig)(  # type: ignore[no-any-return]
            num_workers=(self.min_workers, self.workers),
            use_gpu=self.uses_gpus,
            resources_per_worker=None if self.uses_gpus else {"CPU": _ELASTIC_CPUS},
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        )

    @property
    def reader_cpus(self) -> int:
        """What each task that feeds a worker asks of Ray."""
        return 1 if self.min_workers is None or self.uses_gpus else 0

    def validation(self, gpus: int) -> dict[str, Any]:
        """What the task that validates asks of Ray, in a cluster with so many GPUs. On CPUs it asks for none:
        workers and reading tasks may have them all."""
        has_spare = self.uses_gpus and gpus > self.workers
        return {
            "num_cpus": int(self.uses_gpus),
            "num_gpus": int(has_spare),
            "max_retries": 3,
            "retry_exceptions": True,
        }


def training_room(
    have: Mapping[str, float], *, workers: int, min_workers: int | None, accelerator: Accelerator
) -> TrainingRoom:
    """The room in a cluster that has these resources now; RuntimeError where the workers, or the tasks that
    feed them, would wait for ever."""
    cpus, gpus = have.get("CPU", 0), have.get("GPU", 0)
    least = min_workers or workers
    if accelerator == "gpu" or (accelerator == "auto" and gpus):
        if accelerator == "auto" and gpus < least:
            raise RuntimeError(
                f"{least} workers need {least} GPUs; this cluster has {gpus:g}. Choose "
                "fewer workers, add nodes, or set accelerator to gpu to wait for an autoscaler"
            )
        return TrainingRoom(workers=workers, min_workers=min_workers, uses_gpus=True)
    needed = least + 1 if min_workers is None else least * _ELASTIC_CPUS
    # Where there are none at all an autoscaler has yet to begin.
    if 0 < cpus < needed:
        raise RuntimeError(
            f"{least} workers and the tasks that feed them need {needed:g} CPUs; this "
            f"cluster has {cpus:g}. Start Ray with more (logical) CPUs, or choose fewer workers"
        )
    return TrainingRoom(workers=workers, min_workers=min_workers, uses_gpus=False)


def predicting_room() -> dict[str, Any]:
    """What the task that predicts one video asks of Ray."""
    return {"num_cpus": 1, "num_gpus": min(1, num_gpus())}


def evaluating_processes(most: int) -> tuple[int, int]:
    """(how many processes evaluate a data set, the GPUs of each): at most `most`."""
    have = resources()
    gpus = int(have.get("GPU", 0))
    # An embedded Ray has more logical CPUs than there are cores.
    room = gpus or max(1, int(have.get("CPU", 1)) // 2)
    return min(most, room), int(gpus > 0)
