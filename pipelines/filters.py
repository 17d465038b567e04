"""Which pairs of a set does a run learn from? Those that a line of text keeps, such as

    occluded < 0.6 and photometric < 4

A column is compared with a number or with a text in single quotes; `and`, `or`, `not` and parentheses combine
comparisons. The grammar is Python's, parsed by `ast` and never evaluated; the meaning is SQL's, so that the
same text after `where` keeps the same pairs in DuckDB. What SQL would read otherwise is refused; one thing
that it doesn't know is taken: 0.1 < occluded < 0.6.

The choice that isn't obvious is nan, which stands where there was nothing to measure: it is above every
number, as in SQL, so that an upper bound leaves such a pair out. Negations are carried down to the
comparisons, so that each of them knows whether nan passes. Columns are compared after they are read, without
Parquet's statistics, which don't count nan.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from numpy import ndarray

_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_NEGATED = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_PASSED_BY_NAN = (">", ">=", "!=")
_LONGEST = 4000
_DEEPEST = 50
_NESTING = re.compile(r"'[^']*'|\b(?:not|and|or)\b|[-+~(){}\[\]]")
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_REMEDY = (
    "write comparisons of a column, such as occluded < 0.6 and not (video == 'a.mp4' or photometric > 4)"
)


@dataclass(frozen=True)
class _Comparison:
    column: str
    operator: str
    value: float | str

    def leaves(self) -> "list[_Comparison]":
        return [self]

    def expression(self, schema: pa.Schema) -> pc.Expression:
        column, kind = pc.field(self.column), schema.field(self.column).type
        # In the column's own precision, as SQL has it: a stored 0.6 is a float32 and equals 0.6.
        value = pa.scalar(self.value, pa.float64() if pa.types.is_integer(kind) else kind)
        compared = _COMPARE[self.operator](column, value)
        nan_passes = pa.types.is_floating(kind) and self.operator in _PASSED_BY_NAN
        return compared | column.is_nan() if nan_passes else compared


@dataclass(frozen=True)
class _Junction:
    """All of the parts hold, or any."""

    needs_all: bool
    parts: "tuple[_Comparison | _Junction, ...]"

    def leaves(self) -> list[_Comparison]:
        return [leaf for part in self.parts for leaf in part.leaves()]

    def expression(self, schema: pa.Schema) -> pc.Expression:
        join = operator.and_ if self.needs_all else operator.or_
        return reduce(join, (part.expression(schema) for part in self.parts))


@dataclass(frozen=True)
class PairFilter:
    """The pairs that `text` keeps; ValueError, with the place in it, for a text that is no filter."""

    text: str

    # Parsed once: CPython 3.11's ast.parse fails now and then where several threads call it, as those that
    # read the files of a set would.
    _condition: _Comparison | _Junction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_condition", _parsed(self.text))

    @property
    def columns(self) -> list[str]:
        """The columns that it compares, sorted."""
        return sorted({leaf.column for leaf in self._condition.leaves()})

    def rows(self, table: pa.Table) -> Int[ndarray, "kept"]:
        """The numbers of the rows that it keeps, ascending; ValueError for a null in one of its columns."""
        for column in self.columns:
            if table[column].null_count:
                raise ValueError(
                    f"where {self.text!r}: {column} is null in {table[column].null_count} pairs, of which no "
                    "comparison tells; write their labels anew, or leave the column out of the filter"
                )
        numbered = table.select(self.columns).append_column("", pa.array(np.arange(table.num_rows)))
        kept = numbered.filter(self._condition.expression(table.schema))
        return cast(ndarray, kept[""].to_numpy())

    def require_columns(self, schema: pa.Schema) -> None:
        """ValueError where a column isn't there or not of the type of what it is compared with."""
        comparable = [field.name for field in schema if _is_text(field.type) or _is_number(field.type)]
        for leaf in self._condition.leaves():
            if leaf.column not in comparable:
                raise ValueError(
                    f"where {self.text!r}: there is no column {leaf.column!r} to compare; these pairs have "
                    f"{', '.join(comparable)}"
                )
            if _is_text(schema.field(leaf.column).type) != isinstance(leaf.value, str):
                remedy = "a number" if isinstance(leaf.value, str) else "a text in single quotes"
                raise ValueError(
                    f"where {self.text!r}: {leaf.column} can't be compared with {leaf.value!r}; give {remedy}"
                )


def _parsed(text: str) -> _Comparison | _Junction:
    # A text of several lines is one condition in SQL.
    text = text.replace("\n", " ").strip()
    _require_small(text)
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        # Python gives the text's end the offset 0.
        raise _refusal(text, error.offset - 1 if error.offset else len(text), error.msg) from None
    return _condition(text, tree.body, is_negated=False)


def _require_small(text: str) -> None:
    """ValueError for a text that Python's parser would take seconds or its whole stack for."""
    if len(text) > _LONGEST:
        raise ValueError(f"where: {len(text)} characters, and at most {_LONGEST} are read; {_REMEDY}")
    parentheses = signs = 0
    for found in _NESTING.finditer(text):
        if found[0] in ("and", "or"):
            signs = 0
        elif found[0] in ("not", *"-+~"):
            signs += 1
        elif found[0][0] in "([{":
            parentheses += 1
        elif found[0][0] in ")]}":
            parentheses -= 1
        if parentheses + signs > _DEEPEST:
            raise _refusal(text, found.start(), f"more than {_DEEPEST} conditions within each other")


def _condition(text: str, node: ast.expr, *, is_negated: bool) -> _Comparison | _Junction:
    """The condition without negations, which are carried down to the comparisons."""
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _condition(text, operand, is_negated=not is_negated)
        case ast.BoolOp(op=op, values=values):
            parts = tuple(_condition(text, value, is_negated=is_negated) for value in values)
            return _Junction(isinstance(op, ast.And) != is_negated, parts)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = pairwise([left, *comparators])
            links = tuple(
                _comparison(text, node, *pair, op, is_negated=is_negated)
                for pair, op in zip(sides, ops, strict=True)
            )
            return links[0] if len(links) == 1 else _Junction(not is_negated, links)
    raise _refusal(text, _place(text, node), "not a comparison")


def _comparison(
    text: str, whole: ast.expr, left: ast.expr, right: ast.expr, op: ast.cmpop, *, is_negated: bool
) -> _Comparison:
    name = _OPERATORS.get(type(op))
    if name is None:
        raise _refusal(text, _place(text, whole), f"not one of {' '.join(_COMPARE)}")
    if not isinstance(left, ast.Name):
        left, right, name = right, left, _MIRRORED[name]
    if not isinstance(left, ast.Name):
        raise _refusal(text, _place(text, whole), "no column in this comparison")
    return _Comparison(left.id, _NEGATED[name] if is_negated else name, _value(text, right))


def _value(text: str, node: ast.expr) -> float | str:
    sign = -1.0 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1.0
    literal = node.operand if isinstance(node, ast.UnaryOp) and sign < 0 else node
    written = ast.get_source_segment(text, literal) or ""
    if _NUMBER.fullmatch(written) and math.isfinite(float(written)):
        return sign * float(written)
    # Python would also take double quotes, which SQL puts around a column, and escapes.
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and written == f"'{node.value}'":
        return node.value
    raise _refusal(text, _place(text, node), "neither a finite number nor a text in single quotes")


def _place(text: str, node: ast.expr) -> int:
    # ast counts bytes.
    return len(text.encode()[: node.col_offset].decode())


def _refusal(text: str, place: int, reason: str) -> ValueError:
    return ValueError(f"where: {reason}; {_REMEDY}\n  {text}\n  {' ' * place}^")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
