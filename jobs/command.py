"""How does a job run? It reads its command line, does its work, and says what went wrong.

An error that the user can mend is a message on stderr without a traceback, even where a worker on another
node raised it; DISTILLFLOW_DEBUG=1 shows the traceback and the workers' output. Exit status 2 for a command
line that is wrong, 1 for another error. What is printed goes through `disclosure.tell`, tracebacks too: an
error repeats names that strangers chose, and locations.

What takes seconds to import (Ray, MLflow) is imported by the work, after the command line was read.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, TypeVar

from flowcore.extras import extra_of, install_line
from jobs import end_interrupted
from jobs.parsing import HelpAsked, Recipes, UsageError, parse, parse_recipe
from pipelines.cluster import is_debugging
from pipelines.disclosure import tell
from pipelines.invocation import program, typed_again

Options = TypeVar("Options")

_REPORTING = ("flowcore", "pipelines", "jobs", "mlflow")
"""Packages whose exceptions say what to mend."""


def run(
    main: Callable[[Options], None], options: type[Options], arguments: Sequence[str] | None = None
) -> None:
    """Calls `main` with the options that the command line gives; --help shows the docstring of its module."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parsed(lambda: parse(options, given, program=program(), description=_docstring(main)))
    _call(lambda: main(parsed), goes_on=getattr(parsed, "goes_on", False))


def run_recipe(
    main: Callable[[Options, str], None],
    recipes: Recipes[Options],
    arguments: Sequence[str] | None = None,
    *,
    usual: str | None = None,
) -> None:
    """As `run`, for a job whose first word is a recipe: `main` gets the recipe's options with the flags
    applied, and its name. usual: the recipe where none is given."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, parsed = _parsed(
        lambda: parse_recipe(recipes, given, program=program(), description=_docstring(main), usual=usual)
    )
    _call(lambda: main(parsed, name), goes_on=getattr(parsed, "goes_on", False))


def run_training(
    stage: Callable[[Options, str], str],
    recipes: Recipes[Options],
    result: str,
    arguments: Sequence[str] | None = None,
) -> None:
    """As `run_recipe`, for a stage that trains on Ray and returns its model's URI. result: the word for
    it."""

    def main(options: Options, recipe: str) -> None:
        uri = stage(options, recipe)
        from pipelines.run_store import ui_command

        tell(f"{result}: {uri}\nlook at it: {ui_command()}")

    main.__module__ = stage.__module__
    run_recipe(main, recipes, arguments)


Parsed = TypeVar("Parsed")


def _parsed(read: Callable[[], Parsed]) -> Parsed:
    try:
        return read()
    except HelpAsked as help_text:
        tell(str(help_text))
        raise SystemExit(0) from None
    except UsageError as error:
        _fail(error, status=2)


def _call(work: Callable[[], None], *, goes_on: bool) -> None:
    """goes_on: whether the same command does what an interrupted one left."""
    try:
        work()
    except KeyboardInterrupt as stop:
        if goes_on:
            stop.add_note(f"to go on: {typed_again()}")
        end_interrupted(stop)
    except Exception as error:
        cause = _root_cause(error)
        if is_debugging() or not _is_expected(cause):
            tell(traceback.format_exc(), to=sys.stderr)
        _fail(cause, status=1)


def _fail(error: BaseException, *, status: int) -> NoReturn:
    tell(f"error: {_message(error)}", to=sys.stderr)
    raise SystemExit(status) from None


def _root_cause(error: BaseException) -> BaseException:
    """The exception that was raised first, without what Ray wraps around one from a worker."""
    for inner in _wrapped(error):
        return _root_cause(inner)
    return error


def _wrapped(error: BaseException) -> Iterable[BaseException]:
    if "ray" not in sys.modules:
        return []
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, WorkerGroupError

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
    # Ray's own errors (a node that died) are known by their names, so that nothing here imports Ray.
    is_from_ray = any(each.__name__ == "RayError" for each in type(error).__mro__)
    is_of_an_extra = isinstance(error, ModuleNotFoundError) and extra_of(error.name or "") is not None
    is_environment = isinstance(error, ValueError | OSError | RuntimeError) or is_of_an_extra
    return package in _REPORTING or is_environment or is_from_ray


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and (extra := extra_of(error.name or "")) is not None:
        return f"{error}, which this needs: {install_line(extra)}"
    # Ray Data appends advice about retries to what a worker raised.
    return str(error).partition("\nFailed to apply ")[0] or type(error).__name__


def _docstring(main: Callable[..., None]) -> str:
    return (sys.modules[main.__module__].__doc__ or "").strip()
