"""Which options does a job have?

A job's configuration is a dataclass whose fields may be dataclasses themselves; each leaf is an option, such
as `--training.steps`. Nothing is declared twice: the type of a field says how its words are read, the
docstring under it is its help, and its default is the recipe's.
"""

import ast
import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipelines.disclosure import require_storable

REQUIRED: Any = object()
"""Stands in a recipe for what the user must give."""


@dataclass(frozen=True)
class Positional:
    """Marks, in Annotated, the field that takes the word without an option's name."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One leaf of a job's configuration."""

    path: str
    """The fields that lead to it, such as `training.global_batch`."""
    kind: Any
    """Its type."""
    default: object
    """REQUIRED where the user must give it."""
    owner: type
    """The dataclass that has it as a field."""
    group: str
    """The help of the options that it stands among; empty for those of the job itself."""
    is_positional: bool = False

    @property
    def name(self) -> str:
        """As it is typed: `--training.global-batch`."""
        return _typed(self.path)

    @property
    def is_flag(self) -> bool:
        """True where the name alone says yes."""
        return self.kind is bool

    @property
    def negation(self) -> str:
        """What says no to a flag: `--network.no-refines`."""
        return self.shown_name.replace("[no-]", "no-")

    @property
    def shown_name(self) -> str:
        """As help shows it: of a flag `--network.[no-]refines`."""
        parent, dot, last = self.name.removeprefix("--").rpartition(".")
        return f"--{parent}{dot}[no-]{last}" if self.is_flag else self.name

    @property
    def help(self) -> str:
        """What it does, its unit, and when to change it; empty without a docstring under its field."""
        return docstrings(self.owner).get(self.path.rpartition(".")[2], "")

    @property
    def value_text(self) -> str:
        """What follows the name, such as `INT` or `{auto,gpu,cpu}`."""
        return "" if self.is_flag else _kind_text(self.kind)

    @property
    def default_text(self) -> str:
        """The recipe's value as one would type it."""
        if isinstance(self.default, tuple):
            return " ".join(map(str, self.default)) or "empty"
        if self.is_flag:
            return "yes" if self.default else "no"
        return "none" if self.default is None else str(self.default)


def options_of(configuration: object) -> list[Option]:
    """The options of a dataclass, in the order of its fields; of an instance, with its values as defaults."""
    return list(_leaves(configuration, "", ""))


def configured(configuration: Any, values: Mapping[str, object]) -> Any:
    """The dataclass with these values by path in place of the defaults.

    ValueError, with the options that it is about as they are typed, for what the dataclasses refuse.
    """
    return _built(configuration, values, "")


def read(option: Option, words: Sequence[str]) -> object:
    """The value of an option in a command line's words.

    ValueError for words of another kind, and as `disclosure.require_storable`: whatever an option says is
    stored with what is made from it, and this is the one door that all of them come through.
    """
    for word in words:
        require_storable(word, option.name)
    is_list = get_origin(option.kind) is tuple and get_args(option.kind)[-1] is Ellipsis
    try:
        if not words and not is_list:
            raise ValueError("a value is missing")
        return _read(option.kind, list(words))
    except ValueError as error:
        raise ValueError(f"{' '.join([option.name, *words])}: {error}") from None


def _values(configuration: Any) -> dict[str, tuple[Any, object]]:
    """(type, value) of each field."""
    kind = configuration if isinstance(configuration, type) else type(configuration)
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        value = REQUIRED
        if kind is not configuration:
            value = getattr(configuration, field.name)
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        found[field.name] = (hints[field.name], value)
    return found


def _leaves(configuration: Any, prefix: str, group: str) -> Iterator[Option]:
    owner = configuration if isinstance(configuration, type) else type(configuration)
    for name, (kind, value) in _values(configuration).items():
        nested = _nested(kind, value)
        if nested is not None:
            text = docstrings(owner).get(name) or first_sentence(inspect.getdoc(_type_of(nested)) or "")
            yield from _leaves(nested, f"{prefix}{name}.", text)
            continue
        is_positional = any(isinstance(each, Positional) for each in getattr(kind, "__metadata__", ()))
        yield Option(
            path=prefix + name,
            kind=get_args(kind)[0] if is_positional else kind,
            default=value,
            owner=owner,
            group=group,
            is_positional=is_positional,
        )


def _nested(kind: Any, value: object) -> Any:
    """The configuration that a field holds, None for a leaf."""
    if dataclasses.is_dataclass(value):
        return value
    return kind if value is REQUIRED and dataclasses.is_dataclass(kind) else None


def _type_of(configuration: Any) -> type:
    return configuration if isinstance(configuration, type) else type(configuration)


def _built(configuration: Any, values: Mapping[str, object], prefix: str) -> Any:
    arguments = {}
    for name, (kind, value) in _values(configuration).items():
        path = prefix + name
        nested = _nested(kind, value)
        if path in values:
            arguments[name] = values[path]
        else:
            arguments[name] = value if nested is None else _built(nested, values, f"{path}.")
    try:
        return _type_of(configuration)(**arguments)
    except ValueError as error:
        raise ValueError(_as_typed(str(error), arguments, prefix)) from None


def _typed(path: str) -> str:
    """How the option at these fields is typed: `--training.global-batch` for `training.global_batch`."""
    return f"--{path.replace('_', '-')}"


def _as_typed(complaint: str, values: Mapping[str, object], prefix: str) -> str:
    """A dataclass's complaint with its fields as flags. It names a field by its value: `steps 0 must be ...`.

    A complaint that names none gets the name of the part before it.
    """
    named = complaint
    for name, value in values.items():
        shown = "|".join(re.escape(text) for text in (str(value), repr(value)))
        named = re.sub(rf"(?<![\w.-]){name}(?= (?:{shown})(?!\w))", _typed(prefix + name), named)
    return f"{_typed(prefix[:-1])}: {complaint}" if prefix and named == complaint else named


def _read(kind: Any, words: list[str]) -> object:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (some,) = (each for each in inner if each is not type(None))
        return None if words in (["none"], ["None"]) else _read(some, words)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return tuple(_read(inner[0], [word]) for word in words)
        if len(words) != len(inner):
            raise ValueError(f"{len(inner)} values are needed, not {len(words)}")
        return tuple(_read(each, [word]) for each, word in zip(inner, words, strict=True))
    if len(words) != 1:
        raise ValueError(f"one value is needed, not {len(words)}")
    (word,) = words
    if origin is Literal:
        by_text = {str(each): each for each in inner}
        if word not in by_text:
            raise ValueError(f"must be one of {', '.join(by_text)}")
        return by_text[word]
    if kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise ValueError(f"{word!r} must be {noun}") from None
    assert kind is str, f"options of type {kind} can't be read"
    return word


def _kind_text(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        # Any text but `none` is itself, which an option's help needn't say.
        texts = ["none" if each is type(None) else _kind_text(each) for each in inner]
        return "TEXT" if texts == ["TEXT", "none"] else "|".join(texts)
    if origin is tuple and inner[-1] is Ellipsis:
        return f"{_kind_text(inner[0])} ..."
    if origin is tuple:
        return " ".join(map(_kind_text, inner))
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    return {int: "INT", float: "NUMBER", str: "TEXT"}[kind]


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    line = " ".join(text.partition("\n\n")[0].split())
    return f"{line.partition('. ')[0].rstrip('.')}." if line else ""


def docstrings(kind: type) -> dict[str, str]:
    """What stands under each field of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            found |= _docstrings_in(each.__module__).get(each.__name__, {})
    return found


@lru_cache
def _docstrings_in(module: str) -> dict[str, dict[str, str]]:
    """By class and field."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found: dict[str, dict[str, str]] = {}
    for node in classes:
        found[node.name] = {}
        for field, text in pairwise(node.body):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    found[node.name][name] = " ".join(inspect.cleandoc(words).split())
    return found
