"""What does a command line ask for? A recipe and its options with the flags applied, help, or an error that
says how to type it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jobs.manual import manual, recipe_list
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
    recipes: Recipes[Options], arguments: Sequence[str], *, program: str, description: str
) -> tuple[str, Options]:
    """(the recipe's name, its options) of a command line whose first word is a recipe; see `parse`."""
    known = ", ".join(name for name in recipes if ":" not in name)
    if arguments and arguments[0] in _HELP:
        texts = {name: text for name, (text, _) in recipes.items()}
        raise HelpAsked(recipe_list(program, description, texts))
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
    readers: dict[str, tuple[Option, Callable[[list[str]], object]]] = {}
    for option in known:
        readers[option.name] = option, _reader(option)
        if option.is_flag:
            parent, dot, last = option.name.removeprefix("--").rpartition(".")
            readers[f"--{parent}{dot}no-{last}"] = option, _no
    first, groups = _grouped(arguments)
    positional = [option for option in known if option.is_positional]
    for option, word in zip(positional, first, strict=False):
        yield option, word
    if len(first) > len(positional):
        raise UsageError(f"{first[len(positional)]!r} follows no option")
    for typed, words in groups:
        name = "--" + typed.removeprefix("--").replace("_", "-")
        if name not in readers:
            hint = remedy(name, list(readers))
            raise UsageError(f"there is no option {typed}" + (f"; {hint}" if hint else ""))
        option, reader = readers[name]
        yield option, reader(words)


def _reader(option: Option) -> Callable[[list[str]], object]:
    def flag(words: list[str]) -> object:
        if words:
            raise UsageError(f"{option.name} takes no value, and {' '.join(words)!r} follows it")
        return True

    return flag if option.is_flag else lambda words: read(option, words)


def _no(words: list[str]) -> object:
    if words:
        raise UsageError(f"{words[0]!r} follows no option")
    return False


def _grouped(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(the words before the first option, each option with the words that follow it)."""
    first: list[str] = []
    groups: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, mark, value = argument.partition("=")
            groups.append((name, [value] if mark else []))
        else:
            (groups[-1][1] if groups else first).append(argument)
    return first, groups


def _excused(options: Any, values: dict[str, object]) -> dict[str, object]:
    """With the values of what a given flag makes unnecessary: `excused` of the options' class."""
    excused: Mapping[str, Mapping[str, object]] = getattr(options, "excused", {})
    for flag, others in excused.items():
        if values.get(flag):
            values = {**others, **values}
    return values
