"""How does a job begin and end? It parses its command line, joins or starts Ray, and says what went wrong.

A recipe is the first argument and names a full set of options; flags after it change single ones. An error
that the user can mend is a message on stderr without a traceback, even where a worker on another node raised
it; DISTILLFLOW_DEBUG=1 shows the traceback and the workers' output.
"""

import contextlib
import dataclasses
import difflib
import functools
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import ray
import ray.data
import tyro
from ray.exceptions import RayError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.util import get_node_ip_address

from pipelines import tracking
from pipelines.checkpoints import fetch_model
from pipelines.execution import let_ray_data_rest
from pipelines.labels import PairSet
from pipelines.locations import PROJECT_FOLDER, is_shipped_copy
from pipelines.tracking import Run, register
from pipelines.truth import truth_set

if TYPE_CHECKING:
    # Brings Ray Train's torch, for which commands that train nothing would wait.
    from pipelines.training import TrainingResult

Options = TypeVar("Options")
Recipes = Mapping[str, tuple[str, Options]]
"""What --help says of each recipe, and its options; one that the user must give is tyro.MISSING there."""

_REPORTING = ("flowcore", "pipelines", "jobs", "mlflow")
"""Packages whose exceptions say what to mend."""
_ADDRESS = "RAY_ADDRESS"
"""The environment variable that Ray also sets for a job's driver."""
_PORT = "RAY_GCS_SERVER_PORT"
"""The environment variable of the port, one half of the address, that an embedded Ray takes."""
_SPARE_CPUS = 2
_FEWEST_CPUS = 4
_IDLE_SECONDS = 60


def run(
    main: Callable[[Options], None], options: type[Options], arguments: Sequence[str] | None = None
) -> None:
    """Parses the command line into `options`, calls `main` with them and ends the process if that fails.

    --help shows the docstring of main's module and those of the options. Exit status 2 for a command line
    that is wrong, 1 for another error.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parse(options, given, program=_program(), description=_docstring(main))
    _call(lambda: main(parsed))


def run_recipe(
    main: Callable[[str, Options], None], recipes: Recipes[Options], arguments: Sequence[str] | None = None
) -> None:
    """As `run`, for a job whose first argument is a recipe; `main` gets its name and its options with the
    flags applied."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = _recipe_name(recipes, given, _docstring(main))
    description, defaults = recipes[name]
    parsed = _parse(
        type(defaults),
        given[1:],
        program=f"{_program()} {name}",
        description=f"The recipe {name}. {description}",
        defaults=defaults,
    )
    _call(lambda: main(name, parsed))


def has_cluster() -> bool:
    """True in a Ray job and where RAY_ADDRESS names a cluster."""
    return os.environ.get(_ADDRESS, "") not in ("", "local")


def connect() -> None:
    """Joins the cluster of the Ray job or of RAY_ADDRESS; without either, starts Ray in this process, once.

    The embedded Ray has more logical CPUs than the machine, because training workers hold theirs while their
    feed needs some: with as many of both a job would wait for ever. ConnectionError where RAY_ADDRESS leads
    to no cluster.
    """
    is_debugging = _is_debugging()
    if not is_debugging:
        _quieten()
    start = functools.partial(
        ray.init, logging_level=logging.INFO if is_debugging else logging.ERROR, log_to_driver=is_debugging
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
    context.enable_progress_bars = is_debugging


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


@contextlib.contextmanager
def training_run(
    stage: str, recipe: str, options: Any, recipes: Recipes[Any], inputs: Mapping[str, str]
) -> Iterator[Run]:
    """A training's run, as `tracking.start`; tells where it can be watched, and how it goes on if it is
    killed."""
    with tracking.start(
        stage,
        recipe=recipe,
        parameters=options,
        defaults=recipes[recipe][1],
        inputs=inputs,
        resume_run_id=options.resume,
    ) as run:
        print(
            f"run {run.run_id}: {run.url_hint}\n"
            f"if it is killed: jobs/{stage}.py with the same options and --resume {run.run_id}"
        )
        yield run


def finish(run: Run, result: "TrainingResult", name: str) -> str:
    """Stores the trained model in its run and registers it as a version of `name`; returns that version's
    URI.

    Models are compared by `pipelines.validation.score_of`.
    """
    run.artifact(result.model, "model")
    run.summary({f"final/{key}": value for key, value in {"step": result.step, **result.validation}.items()})
    if result.step < result.ended_at:
        print(
            f"ended at step {result.ended_at}, validation got no better (patience); the model is step "
            f"{result.step}'s"
        )
    version = register(
        run,
        name,
        validation_loss=result.score,
        validation_digest=result.judge.digest,
        judge=lambda uri: result.judge.score(fetch_model(uri)),
    )
    if not version.is_champion:
        print(
            f"models:/{name}@champion stays an earlier one, whose error on the held-back pairs is no higher"
        )
    return version.uri


def validation_set(run: Run, judge: tuple[str, Path] | None, run_root: str) -> PairSet | None:
    """The pairs of `truth_location` that a training is validated on, recorded in its run; None for None."""
    if judge is None:
        return None
    pairs = truth_set(*judge, run_root, to_learn_from=False)
    run.dataset("validation", ":".join(map(str, judge)), pairs.label_set, "validation")
    return pairs


def kept_pairs(pairs: PairSet) -> dict[str, float]:
    """How many pairs of a set its filter keeps, and of how many: told, and returned as metrics. Without a
    filter, nothing. Raises as `PairSet.index`."""
    if pairs.where is None:
        return {}
    kept, found = pairs.index().num_rows, pairs.num_pairs()
    print(f"where {pairs.where.text!r} keeps {kept} of {found} pairs")
    return {"labels/pairs": found, "labels/pairs_kept": kept}


def _parse(
    options: type[Options],
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    defaults: Options | None = None,
) -> Options:
    try:
        return tyro.cli(
            options,
            prog=program,
            description=description,
            args=arguments,
            default=tyro.MISSING_NONPROP if defaults is None else defaults,
            # An option of several types has the recipe's; a subcommand inside a recipe would be a maze.
            config=(tyro.conf.AvoidSubcommands,),
        )
    except ValueError as error:
        # tyro reports those of nested options itself.
        _fail(error, status=2)
    except SystemExit as end:
        # Of a misspelt required option tyro says that it is missing, without naming what was meant.
        if end.code:
            _hint(options, arguments)
        raise


def _hint(options: type, arguments: Sequence[str]) -> None:
    """Names the nearest of the job's own options for each one given that isn't among them."""
    known = [f"--{each.name.replace('_', '-')}" for each in dataclasses.fields(options)]
    for given in (
        argument.partition("=")[0]
        for argument in arguments
        if argument.startswith("--") and "." not in argument
    ):
        if given not in known and (nearest := difflib.get_close_matches(given, known, n=1, cutoff=0.75)):
            print(f"error: there is no option {given}; perhaps you meant {nearest[0]}", file=sys.stderr)


def _recipe_name(recipes: Recipes[Options], arguments: Sequence[str], description: str) -> str:
    """The first argument, if it is a recipe; otherwise the process ends with the list of recipes."""
    if not arguments or arguments[0].startswith("-"):
        tyro.extras.overridable_config_cli(recipes, prog=_program(), description=description, args=arguments)
        raise SystemExit(2)
    name = arguments[0]
    if name not in recipes:
        nearest = difflib.get_close_matches(name, recipes, n=1)
        hint = f" (perhaps you meant {nearest[0]})" if nearest else ""
        _fail(ValueError(f"recipe {name!r} must be one of {', '.join(recipes)}{hint}; see --help"), status=2)
    return name


def _call(work: Callable[[], None]) -> None:
    try:
        work()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        cause = _root_cause(error)
        if not _is_expected(cause):
            raise
        if _is_debugging():
            traceback.print_exc()
        _fail(cause, status=1)


def _fail(error: BaseException, *, status: int) -> NoReturn:
    print(f"error: {_message(error)}", file=sys.stderr)
    raise SystemExit(status) from None


def _root_cause(error: BaseException) -> BaseException:
    """The exception that was raised first, without what Ray wraps around one from a worker."""
    for inner in _wrapped(error):
        return _root_cause(inner)
    return error


def _wrapped(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, RayTaskError):
        return [error.cause]
    if isinstance(error, ControllerError):
        return [error.controller_failure]
    if isinstance(error, WorkerGroupError):
        # Ray Train keeps the worker's exception, beside its traceback, in a private attribute.
        return [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
    return []


def _is_expected(error: BaseException) -> bool:
    """True for what bad input, the machine or a service brings about; False for a bug, which needs its
    traceback."""
    package = type(error).__module__.partition(".")[0]
    return package in _REPORTING or isinstance(error, ValueError | OSError | RuntimeError | RayError)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    # Ray Data appends advice about retries to what a worker raised.
    return str(error).partition("\nFailed to apply ")[0] or type(error).__name__


def _is_debugging() -> bool:
    return os.environ.get("DISTILLFLOW_DEBUG", "0") not in ("", "0")


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


def _program() -> str:
    return f"python {sys.argv[0]}"


def _docstring(main: Callable[..., None]) -> str:
    text = sys.modules[main.__module__].__doc__ or ""
    # tyro shows two empty lines before an indented one.
    return text.replace("\n\n    ", "\n    ")
