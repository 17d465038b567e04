"""What does a command line ask for? A recipe and its options with the flags applied, help, or an error that
says how to type it."""

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jobs.manual import manual, own_recipes, recipe_list
from jobs.options import REQUIRED, Option, configured, options_of, read
from jobs.spelling import nearest, remedy

Options = TypeVar("Options")
Recipes = Mapping[str, tuple[str, Options]]
"""What --help says of each recipe, and its options; REQUIRED stands for one that the user must give."""

_HELP = ("--help", "-h", "--help-all")


class HelpAsked(Exception):  # noqa: N818 - nothing went wrong
    """The command line asks for help, which is the message."""


class UsageError(ValueError):
    """The command line can't be understood; the message says how to type it."""


def parse(options: Any, arguments: Sequence[str], *, program: str, description: str) -> Any:
    """The job's options: those of a dataclass type, or of an instance whose values are the defaults.

    Raises HelpAsked and UsageError.
    """
    known = options_of(options)
    # What the first word stands for, of jobs that have no recipe.
    if (first := getattr(options, "first_word", "")) and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{first}", *arguments]
    if any(argument in _HELP for argument in arguments):
        common: Sequence[str] = getattr(options, "common", ())
        is_whole = "--help-all" in arguments
        raise HelpAsked(manual(program, description, known, common, is_whole=is_whole))
    try:
        values = {option.path: value for option, value in _given(known, arguments)}
        values = _excused(options, values)
        missing = [
            option.path.upper() if option.is_positional else option.name
            for option in known
            if option.default is REQUIRED and option.path not in values
        ]
        if missing:
            raise UsageError(f"{', '.join(missing)} must be given; {program} --help lists the options")
        return configured(options, values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def parse_recipe(
    recipes: Recipes[Options],
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    usual: str | None = None,
) -> tuple[str, Options]:
    """(the recipe's name, its options) of a command line whose first word is a recipe; see `parse`.

    usual: the recipe of a command line that names none; without it, one must be named.
    """
    texts = {name: text for name, (text, _) in recipes.items()}
    known = ", ".join(own_recipes(texts))
    if arguments and arguments[0] in _HELP:
        of_usual: Sequence[Option] = [] if usual is None else options_of(recipes[usual][1])
        raise HelpAsked(recipe_list(program, description, texts, usual, of_usual))
    if usual is not None and (not arguments or arguments[0].startswith("-")):
        arguments = [usual, *arguments]
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"the recipe comes first: {program} RECIPE [options]; a recipe is one of {known}")
    name = arguments[0]
    if name not in recipes:
        hint = "".join(f" (perhaps you meant {each})" for each in nearest(name, list(recipes))[:1])
        raise UsageError(f"recipe {name!r} must be one of {known}{hint}; see {program} --help")
    text, defaults = recipes[name]
    options = parse(
        defaults, arguments[1:], program=f"{program} {name}", description=f"The recipe {name}: {text}"
    )
    return name, options


def _given(known: Sequence[Option], arguments: Sequence[str]) -> Iterator[tuple[Option, object]]:
    """Each option that the command line names, and its value."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    for option in known:
        if option.is_positional:
            parser.add_argument(option.path, nargs="?")
        elif option.is_flag:
            parser.add_argument(option.name, dest=option.path, action="store_true")
            parser.add_argument(option.negation, dest=option.path, action="store_false")
        else:
            # `read` knows how many words each type takes, and says so.
            parser.add_argument(option.name, dest=option.path, nargs="*")
    try:
        given, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None
    if unknown:
        typed = unknown[0].partition("=")[0]
        if not typed.startswith("--"):
            missing = [each.name for each in known if each.default is REQUIRED and each.path not in given]
            hint = f"; type {missing[0]} {shlex.quote(unknown[0])}" if missing else ""
            raise UsageError(f"{typed!r} follows no option that takes a value{hint}")
        hint = remedy(typed.replace("_", "-"), [option.name for option in known])
        raise UsageError(f"there is no option {typed}" + (f"; {hint}" if hint else ""))
    for option in known:
        if option.path in given:
            words = getattr(given, option.path)
            if option.is_positional:
                words = [words]
            yield option, words if option.is_flag else read(option, words)


def _excused(options: Any, values: dict[str, object]) -> dict[str, object]:
    """With the values of what a given flag makes unnecessary: `excused` of the options' class."""
    excused: Mapping[str, Mapping[str, object]] = getattr(options, "excused", {})
    for flag, others in excused.items():
        if values.get(flag):
            values = {**others, **values}
    return values
