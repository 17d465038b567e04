"""What does the reference say of each option, column and metric? What the code says, read when the site is built.

A Sphinx extension of four directives: `job-options`, `recipe-table`, `label-columns` and `metric-table`. Each
writes Markdown from dataclasses, their defaults and the docstrings under their fields. An option or a column
without a sentence of its own is a warning, and with it the build fails.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import tyro
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One flag of a job."""

    flag: str
    group: str
    """The flag of the dataclass that it belongs to, such as --training; empty for the stage's own."""
    type: Any
    help: str


def options(stage: type, group: str = "") -> Iterator[Option]:
    """The flags that tyro makes of a stage's dataclass, in their order."""
    hints = typing.get_type_hints(stage, include_extras=True)
    docs = field_docs(stage)
    for field in dataclasses.fields(stage):
        kind, name = _without_annotations(hints[field.name])
        name = field.name if name is None else name
        path = ".".join(part for part in (group, name) if part)
        if configurations := [each for each in _members(kind) if dataclasses.is_dataclass(each)]:
            for configuration in configurations:
                yield from options(configuration, path)
        elif name:
            yield Option(flag=_flag(path), group=group, type=kind, help=docs.get(field.name, ""))


def stage_of(job: str) -> type:
    """The dataclass of a job's options, named after the job."""
    module = importlib.import_module(f"jobs.{job}")
    stage: type = getattr(module, job.title().replace("_", ""))
    return stage


def recipes_of(job: str) -> dict[str, Any]:
    """The job's options by recipe, without those of other backbones; none for a job without recipes."""
    recipes = getattr(importlib.import_module(f"jobs.{job}"), "recipes", None)
    if not callable(recipes):
        return {}
    return {name: stage for name, (_, stage) in recipes().items() if ":" not in name}


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, inherited ones too, on one line."""
    docs: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for before, after in zip(definition.body, definition.body[1:], strict=False):
            match before, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    docs[name] = " ".join(text.split())
    return docs


def _without_annotations(kind: Any) -> tuple[Any, str | None]:
    """A field's type, and the name that tyro gives it instead of its own."""
    if get_origin(kind) is not typing.Annotated:
        return kind, None
    plain, *annotations = get_args(kind)
    names = [each.name for each in annotations if isinstance(each, type(tyro.conf.arg(name="")))]
    return plain, next((name for name in names if name is not None), None)


def _members(kind: Any) -> Sequence[Any]:
    return get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _flag(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def type_text(kind: Any) -> str:
    """What to write after a flag."""
    members = _members(kind)
    if len(members) > 1:
        return " or ".join(type_text(member) for member in members)
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if inner[-1] is Ellipsis:
            return f"{type_text(inner[0])}, one or several"
        return " ".join(type_text(each) for each in inner)
    if kind is bool:
        return "on or off"
    if kind is types.NoneType:
        return "`None`"
    return {str: "text", int: "integer", float: "number"}.get(kind, getattr(kind, "__name__", str(kind)))


def value_text(value: Any) -> str:
    """A default as it is typed."""
    if value is True or value is False:
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"`{' '.join(_number(each) for each in value)}`" if value else "empty"
    return f"`{_number(value)}`"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_missing(value: Any) -> bool:
    return value is dataclasses.MISSING or value is tyro.MISSING


def _value_at(stage: Any, flag: str) -> Any:
    """The value of a flag in a stage; MISSING where this stage has another kind of object there."""
    value = stage
    for name in flag.removeprefix("--").replace("-", "_").split("."):
        if not hasattr(value, name):
            return dataclasses.MISSING
        value = getattr(value, name)
    return value


def _default_text(option: Option, stage: type, recipes: Mapping[str, Any]) -> str:
    if recipes:
        values = [_value_at(each, option.flag) for each in recipes.values()]
    else:
        values = [_value_of_class(stage, option.flag)]
    known = [value for value in values if not _is_missing(value)]
    if not known:
        return "required"
    return value_text(known[0]) if all(value == known[0] for value in known) else "by recipe"


def _value_of_class(stage: type, flag: str) -> Any:
    """The default of a flag of a dataclass that has no instance, as some of its fields are required."""
    kind: Any = stage
    first, _, rest = flag.removeprefix("--").replace("-", "_").partition(".")
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name == first:
            return _value_at(default, rest) if rest else default
        # The options of a field without a prefix.
        if dataclasses.is_dataclass(default) and hasattr(default, first):
            return getattr(default, first)
    return dataclasses.MISSING


def options_page(job: str) -> str:
    """A job's options: the stage's own, then those of each part."""
    stage, recipes = stage_of(job), recipes_of(job)
    by_group: dict[str, list[Option]] = {}
    for option in options(stage):
        by_group.setdefault(option.group, []).append(option)
    parts = []
    for group, found in by_group.items():
        rows = []
        for option in {each.flag: each for each in found}.values():
            if not option.help:
                _LOGGER.warning("%s of jobs/%s.py has no sentence of its own", option.flag, job)
            rows.append(
                [
                    f"`{option.flag}`",
                    type_text(option.type),
                    _default_text(option, stage, recipes),
                    option.help,
                ]
            )
        if group:
            parts.append(f"## `{_flag(group)}`")
        parts.append(_table(["option", "takes", "default", "what it does"], rows))
    return "\n\n".join(parts)


def recipes_page(job: str) -> str:
    """The options of a job that differ from recipe to recipe."""
    stage, recipes = stage_of(job), recipes_of(job)
    rows = []
    for flag in dict.fromkeys(option.flag for option in options(stage)):
        values = [_value_at(each, flag) for each in recipes.values()]
        if any(value != values[0] for value in values) and not all(map(_is_missing, values)):
            rows.append(
                [f"`{flag}`", *("" if _is_missing(value) else value_text(value) for value in values)]
            )
    return _table(["option", *recipes], rows)


def recipe_list() -> str:
    """What each recipe is for."""
    module = importlib.import_module("jobs.recipes")
    return _table(
        ["recipe", "what it is for"],
        [[f"`{name}`", recipe.description] for name, recipe in module.RECIPES.items()],
    )


def columns_page() -> str:
    """The columns of every kind of pair set."""
    module = importlib.import_module("pipelines.labels")
    parts = []
    for heading, schema in (
        ("Every pair", module.PAIR_SCHEMA),
        ("Labels", module.LABEL_SCHEMA),
        ("Labels of several teachers", module.SPREAD_SCHEMA),
        ("Truth", module.TRUTH_SCHEMA),
    ):
        rows = []
        for column in schema:
            meaning = (column.metadata or {}).get(b"meaning", b"").decode()
            if not meaning:
                _LOGGER.warning("column %s of %s has no sentence of its own", column.name, heading)
            rows.append([f"`{column.name}`", f"`{column.type}`", meaning])
        parts += [f"## {heading}", _table(["column", "type", "what it is"], rows)]
    return "\n\n".join(parts)


def metrics_page() -> str:
    """What is reported of a model's errors."""
    module = importlib.import_module("flowcore.metrics")
    rows = []
    for path, kind, name in (
        ("epe/all, epe/noc, epe/occ", module.FlowErrors, "epe"),
        ("fl/all", module.FlowErrors, "fl"),
        ("occlusion/precision", module.OcclusionCounts, "precision"),
        ("occlusion/recall", module.OcclusionCounts, "recall"),
        ("occlusion/f1", module.OcclusionCounts, "f1"),
    ):
        rows.append([f"`{path}`", " ".join((inspect.getdoc(getattr(kind, name)) or "").split())])
    regions = " ".join((inspect.getdoc(module.FlowErrors) or "").split())
    return _table(["metric", "what it is"], rows) + f"\n\n{regions}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    # What isn't code in the text of a docstring must not become HTML or another cell.
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part.replace("<", "\\<") if at % 2 == 0 else part for at, part in enumerate(parts))


class _Generated(SphinxDirective):
    """A directive whose content is Markdown that `markdown` returns."""

    optional_arguments = 1

    def markdown(self) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(self.markdown(), allow_section_headings=True)


class JobOptions(_Generated):
    """`{job-options} distill`"""

    required_arguments = 1
    optional_arguments = 0

    def markdown(self) -> str:
        return options_page(self.arguments[0])


class RecipeTable(_Generated):
    """`{recipe-table}` lists the recipes, `{recipe-table} distill` what they differ in."""

    def markdown(self) -> str:
        return recipes_page(self.arguments[0]) if self.arguments else recipe_list()


class LabelColumns(_Generated):
    """`{label-columns}`"""

    def markdown(self) -> str:
        return columns_page()


class MetricTable(_Generated):
    """`{metric-table}`"""

    def markdown(self) -> str:
        return metrics_page()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("job-options", JobOptions)
    app.add_directive("recipe-table", RecipeTable)
    app.add_directive("label-columns", LabelColumns)
    app.add_directive("metric-table", MetricTable)
    return {"parallel_read_safe": True}
