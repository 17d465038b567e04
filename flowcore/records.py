"""How is JSON read that somebody else may have written?

As values of a size and a shape that are known, then as a dataclass whose fields have the types that it
declares. What it says beyond types, such as a range, the dataclass checks itself.
"""

import dataclasses
import json
import math
import reprlib
from collections.abc import Hashable, Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

RECORD_BYTES = 2**20
"""Of a record about one thing, at most."""
LIST_BYTES = 2**29
"""Of a list of records, at most: more than a million of them."""
_MOST_DEPTH = 32
"""Of the values of a field that may hold any."""
_BRACKET_BYTES = 16
"""Bytes of JSON for each object or list in it, at least. An empty one takes two, and sixty in memory."""


def as_json(instance: Any) -> dict[str, Any]:
    """A dataclass's values as JSON gives them back, with lists for tuples: to compare with stored ones."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(instance)))
    return values


def parse(content: bytes) -> Any:
    """The values in JSON; ValueError, which says what is wrong, also for what JSON itself doesn't forbid:
    the same name twice, numbers that aren't finite, and a depth or a number of lists that only asks for
    memory."""
    if content.count(b"{") + content.count(b"[") > 64 + len(content) / _BRACKET_BYTES:
        raise ValueError("it is little but brackets")
    try:
        return json.loads(content, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has a name twice")
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_shown(text)} is no number")
    return number


def record(kind: type[Record], values: object) -> Record:
    """The dataclass with these values by field, lists as tuples; ValueError where a field is missing, unknown
    or of another type, and what the dataclass itself raises."""
    if not isinstance(values, Mapping):
        raise ValueError(f"it is {_shown(values)} and not an object")
    types, required = _fields(cast(Hashable, kind))
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"it has an unknown entry {_shown(name)}")
        if type(value) is not types[name] and not _fits(value, types[name]):
            raise ValueError(f"its {name} is {_shown(value)}")
    if missing := required - values.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    return kind(**{name: tuple(value) if type(value) is list else value for name, value in values.items()})


@lru_cache(maxsize=64)
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """(the types of a dataclass's fields, the names of those without a default)."""
    hints = get_type_hints(kind)
    every = dataclasses.fields(kind)
    return {each.name: hints[each.name] for each in every}, frozenset(
        each.name
        for each in every
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    )


def _fits(value: object, wanted: Any, depth: int = 0) -> bool:
    """Whether a value of JSON is one of a type of a dataclass's field."""
    if depth > _MOST_DEPTH:
        return False
    kind, inner = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        if isinstance(value, dict):
            value = list(value.values())
        return not isinstance(value, list) or all(_fits(part, Any, depth + 1) for part in value)
    if kind in (Union, UnionType):
        return any(_fits(value, each, depth) for each in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is tuple:
        return isinstance(value, list | tuple) and all(_fits(part, inner[0], depth + 1) for part in value)
    if kind is not None and issubclass(kind, Mapping):
        return isinstance(value, dict) and all(_fits(part, inner[1], depth + 1) for part in value.values())
    if wanted in (None, NoneType):
        return value is None
    # A whole number may stand for another one, but True is none.
    return type(value) is wanted or (wanted is float and type(value) is int)


def _shown(value: object) -> str:
    """As an error tells it; a stranger's may be long."""
    return reprlib.repr(value)
