"""How does a job use Ray? In the cluster that it joins or starts, with the settings made here.

Ray is imported where it is used: the options of every job come from modules that import this one, and
`--help` should not wait for Ray.
"""

import contextlib
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipelines.disclosure import tell
from pipelines.installation import PROJECT_FOLDER, is_installed, is_shipped_copy
from pipelines.room import num_cores

if TYPE_CHECKING:
    import ray.data

_ADDRESS = "RAY_ADDRESS"
"""The environment variable that names a cluster; Ray sets it for a job's driver."""
_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_PORT = "RAY_GCS_SERVER_PORT"
"""The environment variable that fixes the port of an embedded Ray, which is half of its address."""
_SPARE_CPUS = 2
_FEWEST_CPUS = 4
_IDLE_SECONDS = 60
_SECONDS_TO_ANSWER = 2.0
_MOST_STARTS = 4
_TOO_SLOW = "timed out during startup"


def has_cluster() -> bool:
    """True in a Ray job and where RAY_ADDRESS names a cluster."""
    return os.environ.get(_ADDRESS, "") not in ("", "local")


def connect() -> None:
    """Joins the cluster of the Ray job or of RAY_ADDRESS; without either, starts an embedded Ray. A process
    that is connected stays so.

    The embedded Ray has two more logical CPUs than the machine has cores. Training workers hold their CPUs
    while the tasks that feed them need some, and on a small machine the job would otherwise wait for ever.
    ConnectionError, within seconds, where RAY_ADDRESS leads to no cluster.
    """
    if has_cluster():
        require_listener(os.environ[_ADDRESS])
    import ray
    import ray.data

    debugs = is_debugging()
    if not debugs:
        _quieten()
    if not ray.is_initialized():
        _start(debugs=debugs)
    _resting().enable_progress_bars = debugs


def _start(*, debugs: bool) -> None:
    """Joins the cluster that there is, or starts an embedded Ray."""
    import ray

    def start(**options: Any) -> None:
        with contextlib.nullcontext() if debugs else _hushed():
            ray.init(logging_level=logging.INFO if debugs else logging.ERROR, log_to_driver=debugs, **options)

    if not debugs and _LOG_LEVEL not in os.environ:
        # Of this process alone, whose errors Ray writes to stderr, in red between the lines of a bar: each
        # pool of Ray Data's actors is one. Ray's own processes are started with os.environ, which putenv
        # leaves as it is, and write their logs as ever.
        os.putenv(_LOG_LEVEL, "fatal")
    if has_cluster():
        # Workers find the copy of the code that a Ray job has, and code that is installed. Others look where
        # the code is on this machine.
        finds_code = is_shipped_copy() or is_installed()
        here = {"env_vars": {"PYTHONPATH": str(PROJECT_FOLDER)}}
        _tell(f"joining Ray at {os.environ[_ADDRESS]}")
        start(address=os.environ[_ADDRESS], runtime_env=None if finds_code else here)
        return
    if not is_installed():
        # Ray's processes inherit it, so that the workers import the code that runs here.
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT_FOLDER), *([inherited] if inherited else [])])
    # No cloud takes this machine away. The actor that listens for one costs five seconds of a core.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Nobody who types a command here asked to report to Ray's authors, which takes a process more.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _tell("starting Ray on this machine")
    embedded = functools.partial(
        start,
        address="local",
        num_cpus=max(_FEWEST_CPUS, num_cores() + _SPARE_CPUS),
        include_dashboard=False,
        # By default Ray ends a process after one idle second. Its successor then imports for seconds, on
        # cores that others are working on.
        _system_config={"idle_worker_killing_time_threshold_ms": _IDLE_SECONDS * 1000},
    )
    for left in reversed(range(_MOST_STARTS)):
        try:
            with _known_address(), _own_token():
                embedded()
            return
        except Exception as error:
            # Ray has no type for it, and no option for how long it waits: half a minute.
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise TimeoutError(
                    f"Ray's processes didn't start in {_MOST_STARTS} times half a minute: this machine is "
                    "too busy; wait until it has less to do, or join a Ray that runs (RAY_ADDRESS)"
                ) from error
            _tell("Ray is slow to start on this machine; starting it again")


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """What is written to stderr in the block isn't seen. Ray's own code tells there of settings that it takes
    and of networks that it tries; why Ray doesn't start is in its exception."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def times_begun() -> int:
    """How often Ray had begun the task that runs here before, which it does when a process dies; 0 outside
    Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return 0
    # Ray 2.60 tells it nowhere else.
    return cast(int, ray._private.worker.global_worker.core_worker.get_current_task_attempt_number())


def _tell(what: str) -> None:
    """Says what the next seconds are spent on."""
    tell(f"{what} ...", to=sys.stderr)


def require_listener(address: str) -> None:
    """Raises ConnectionError at once where RAY_ADDRESS leads nowhere or to something else, where Ray would
    retry for minutes, or to a job server. Ray itself resolves `auto`."""
    if address.startswith("http"):
        raise ConnectionError(
            f"RAY_ADDRESS {address} is a job server's: type `ray job submit --working-dir . -- python ...`, "
            "or unset RAY_ADDRESS to run without the cluster"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        if address == "auto" or "://" in address:
            return
        raise ConnectionError(
            f"RAY_ADDRESS {address} has no port: set it to HOST:PORT, which `ray start --head` prints, or "
            "unset it to run without a cluster"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER) as there:
            if not _uses_tls() and not _speaks_http2(there):
                raise ConnectionError("something else listens there")
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray answers at RAY_ADDRESS {address} ({error}); start it (`ray start --head`), correct "
            "RAY_ADDRESS, or unset it to run without a cluster"
        ) from error


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _speaks_http2(there: socket.socket) -> bool:
    """True where the other end begins as gRPC does, with the settings of HTTP/2; that is all that tells Ray
    from a server of something else without importing Ray and waiting for it."""
    no_settings = bytes(3) + b"\x04" + bytes(5)
    there.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + no_settings)
    with there.makefile("rb") as answer:
        return answer.read(4)[3:] == b"\x04"


@contextlib.contextmanager
def _known_address() -> Iterator[None]:
    """Ray's processes that start in the block inherit the address of their own cluster.

    Ray Train has a watchman that asks the cluster whether the training still lives. Without an address it
    asks the cluster that `ray start` began last on this machine, which may be gone or another user's, and
    each training then ends some seconds later.
    """
    from ray.util import get_node_ip_address

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    with _hushed():
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


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Nobody else reads the token that Ray writes in the block, where there is none yet: whoever has it runs
    code in this cluster and in each that is started with it. Ray leaves its file readable by all."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        token.parent.mkdir(mode=0o700)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if token.stat().st_mode & 0o077:
                token.chmod(0o600)


def _quieten() -> None:
    """Keeps Ray's warnings; drops its execution plans, and the tracebacks of errors that it also raises."""
    for name, level in (
        ("ray.data", logging.WARNING),
        ("ray.data._internal.progress", logging.ERROR),
        ("ray.data.exceptions", logging.CRITICAL),
        ("ray.data._internal.execution.streaming_executor_state", logging.CRITICAL),
    ):
        logging.getLogger(name).setLevel(level)


def is_debugging() -> bool:
    """True where DISTILLFLOW_DEBUG asks for tracebacks and the workers' output."""
    return os.environ.get("DISTILLFLOW_DEBUG", "0") not in ("", "0")


_PAUSE_SECONDS = 0.01
"""Each step of Ray Data's loop takes all blocks that are ready, so that this pause costs no throughput."""


class _Callback:
    """What Ray Data calls while it executes a dataset."""

    def before_execution_starts(self, executor: object) -> None:
        pass

    def on_execution_step(self, executor: Any) -> None:
        pass

    def after_execution_succeeds(self, executor: object) -> None:
        pass

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        pass


class _Pause(_Callback):
    """Makes Ray Data's scheduling loop pause between its steps.

    The loop runs in a thread of the process that reads a dataset. While blocks are ready and not yet taken,
    which is the normal state of a feed, it spins as fast as Python can. On one core it took a quarter of the
    time of the training step beside it.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(_PAUSE_SECONDS)


class _ForgetBlocks(_Callback):
    """Empties the lists of every block's statistics, which nobody reads here: they cost the driver 3 kB a
    shard, gigabytes for a thousand hours of video."""

    def on_execution_step(self, executor: Any) -> None:
        from ray.data._internal.execution.operators.map_operator import MapOperator

        for operator in executor._topology or ():
            if isinstance(operator, MapOperator):
                for statistics in operator.get_stats().values():
                    cast(list[object], statistics).clear()


def _resting() -> "ray.data.DataContext":
    """Ray Data's settings for every dataset that this process reads from now on; its loop pauses between
    steps."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.raise_original_map_exception = True
    callbacks = cast(list[type], context.custom_execution_callback_classes)
    if _Pause not in callbacks:
        callbacks.append(_Pause)
    return context


def feed_in_order() -> None:
    """Sets Ray Data up to feed a training: whatever this process reads from now on comes in order."""
    context = _resting()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False


def stream_rows(data: "ray.data.Dataset", ahead: "ray.data.ExecutionResources") -> None:
    """Sets a dataset up for labelling: each row is a block, and so many of them may wait between stages."""
    context = data.context
    context.target_max_block_size = 1
    context.execution_options.resource_limits = ahead
    context.custom_execution_callback_classes.append(cast(Any, _ForgetBlocks))
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # An hour of a still scene gives no row; whether a decoder hangs is the decoder's to say.
    context.execution_no_progress_timeout_s = -1
