"""How does a job begin and end? It parses its command line, joins or starts Ray, and says what went wrong.

A recipe is the first argument and names a full set of options; flags after it change single ones. An error
that the user can mend is a message on stderr without a traceback, even where a worker on another node raised
it; DISTILLFLOW_DEBUG=1 shows the traceback and the workers' output.
"""

import contextlib
import dataclasses
import difflib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import tyro
from ray.exceptions import RayError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from pipelines import tracking
from pipelines.checkpoints import fetch_model
from pipelines.cluster import is_debugging
from pipelines.pair_set import PairSet
from pipelines.registry import register
from pipelines.tracking import Run
from pipelines.truth import truth_set

if TYPE_CHECKING:
    # Brings Ray Train's torch, for which commands that train nothing would wait.
    from pipelines.training import Trained

Options = TypeVar("Options")
Recipes = Mapping[str, tuple[str, Options]]
"""What --help says of each recipe, and its options; one that the user must give is tyro.MISSING there."""

_REPORTING = ("flowcore", "pipelines", "jobs", "mlflow")
"""Packages whose exceptions say what to mend."""


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


def finish(run: Run, result: "Trained", name: str) -> str:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """A run as `pipelines.training.train` takes it."""

    stage: str
    uri: str
    run_id: str
    root: str
    provenance: Mapping[str, str]


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
        if is_debugging():
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


def _program() -> str:
    return f"python {sys.argv[0]}"


def _docstring(main: Callable[..., None]) -> str:
    text = sys.modules[main.__module__].__doc__ or ""
    # tyro shows two empty lines before an indented one.
    return text.replace("\n\n    ", "\n    ")
