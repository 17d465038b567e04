"""What does the reference say of options, columns and metrics? What the code says when the site is built.

A Sphinx extension. Each of its directives writes Markdown from dataclasses, their defaults and the docstrings
under their fields.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from flowcore.metrics import FlowErrors, OcclusionCounts, Sparsification, sparsification
from flowcore.pseudolabels import PseudoLabels
from flowcore.slices import SLICES, SliceErrors
from jobs.commands import options_of_job
from jobs.options import REQUIRED, Option, docstrings
from jobs.recipes import RECIPES
from pipelines.evaluation import UNCERTAINTIES
from pipelines.installation import PROJECT_FOLDER
from pipelines.labels import (
    CONTINUED_SCHEMA,
    LABEL_SCHEMA,
    MEANINGS,
    PAIR_SCHEMA,
    SPREAD_SCHEMA,
    TRUTH_SCHEMA,
    UNCERTAINTY_SCHEMA,
)

_NOT_IN_RECIPE = ""


def purpose(job: str) -> str:
    """What a job does, and how it is typed."""
    lines = (inspect.getdoc(importlib.import_module(f"jobs.{job}")) or "").splitlines()
    # An indented line is a command.
    return "\n".join(line if line.startswith("    ") else _escaped(line) for line in lines)


def options_page(job: str) -> str:
    """A job's own options, then those of each part; --network has those of every backbone."""
    by_recipe = options_of_job(job)
    own = {name: options for name, options in by_recipe.items() if name in ("", *RECIPES)}
    defaults = {name: {option.path: option for option in options} for name, options in own.items()}
    groups: dict[tuple[str, type], dict[str, Option]] = {}
    for options in by_recipe.values():
        for option in options:
            part = option.path.rpartition(".")[0]
            groups.setdefault((part, option.owner if part else object), {}).setdefault(option.path, option)
    pages = []
    for (part, owner), members in sorted(groups.items(), key=lambda group: group[0][0] != ""):
        if part:
            several = sum(each == part for each, _ in groups) > 1
            flag = f"`--{part.replace('_', '-')}`"
            pages.append(f"## {flag} ({owner.__name__.removesuffix('Config')})" if several else f"## {flag}")
            pages.append(_escaped(next(iter(members.values())).group))
        else:
            pages.append("## Options")
        required_first = sorted(members.values(), key=lambda option: option.default is not REQUIRED)
        rows = [_option_row(option, defaults) for option in required_first]
        pages.append(_table(["option", "takes", "default", "what it does"], rows))
    return "\n\n".join(pages)


def _option_row(option: Option, defaults: Mapping[str, Mapping[str, Option]]) -> list[str]:
    values = {
        _default(options[option.path])
        for options in defaults.values()
        if option.path in options and options[option.path].owner is option.owner
    }
    return [
        f"`{option.path.upper() if option.is_positional else option.shown_name}`",
        f"`{option.value_text}`" if option.value_text else "",
        values.pop() if len(values) == 1 else "by recipe",
        option.help,
    ]


def _default(option: Option) -> str:
    if option.default is REQUIRED:
        return "required"
    # Where the site is built says nothing to its readers.
    return f"`{option.default_text.replace(f'{PROJECT_FOLDER}/', '')}`"


def recipe_page(job: str) -> str:
    """The options of a job that differ from recipe to recipe."""
    own = {name: options for name, options in options_of_job(job).items() if name in RECIPES}
    defaults = {name: {option.name: _default(option) for option in options} for name, options in own.items()}
    rows = []
    for flag in dict.fromkeys(flag for options in defaults.values() for flag in options):
        values = [options.get(flag, _NOT_IN_RECIPE) for options in defaults.values()]
        if len(set(values)) > 1:
            rows.append([f"`{flag}`", *values])
    return _table(["option", *defaults], rows)


def recipe_list() -> str:
    """What each recipe is for."""
    return _table(
        ["recipe", "what it is for"],
        [[f"`{name}`", recipe.description] for name, recipe in RECIPES.items()],
    )


def columns_page() -> str:
    """The columns of every kind of pair set, and what they mean."""
    meanings = docstrings(PseudoLabels) | MEANINGS
    pages = []
    for heading, schema in (
        ("Every pair", PAIR_SCHEMA),
        ("Labels", LABEL_SCHEMA),
        ("Labels that are a mean of several teachers", SPREAD_SCHEMA),
        ("Labels of teachers that predict their error", UNCERTAINTY_SCHEMA),
        ("Labels from three frames", CONTINUED_SCHEMA),
        ("Truth", TRUTH_SCHEMA),
    ):
        rows = [[f"`{each.name}`", f"`{_type(each.type)}`", meanings[each.name]] for each in schema]
        pages += [f"## {heading}", _table(["column", "type", "what it is"], rows)]
    return "\n\n".join(pages)


def _type(kind: pa.DataType) -> str:
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def metrics_page() -> str:
    """What is reported of a model's errors."""
    metrics = {
        "`epe/all`, `epe/noc`, `epe/occ`": FlowErrors.epe,
        "`fl/all`": FlowErrors.fl,
        "`occlusion/precision`": OcclusionCounts.precision,
        "`occlusion/recall`": OcclusionCounts.recall,
        "`occlusion/f1`": OcclusionCounts.f1,
    }
    table = _table(["metric", "what it is"], [[path, _doc(metric)] for path, metric in metrics.items()])
    return f"{table}\n\n{_doc(FlowErrors)}\n\n{_doc(OcclusionCounts)}"


def slices_page() -> str:
    """The parts of the pixels that errors are reported for, and what is reported of each."""
    measures = {
        "`epe`": SliceErrors.epe,
        "`fl`": SliceErrors.fl,
        "`1px`": SliceErrors.off_1px,
        "`3px`": SliceErrors.off_3px,
        "`wauc`": SliceErrors.wauc,
        "`epe_per_image`": SliceErrors.epe_per_image,
        "`fl_per_image`": SliceErrors.fl_per_image,
        "`3px_per_image`": SliceErrors.off_3px_per_image,
    }
    parts = _table(["slice", "what it holds"], [[f"`{name}`", text] for name, text in SLICES.items()])
    means = _table(["measure", "what it is"], [[name, _doc(measure)] for name, measure in measures.items()])
    return f"{parts}\n\n{means}"


def uncertainties_page() -> str:
    """What may tell an error without its truth, and what says how well it does."""
    rows = [[f"`{name}`", text] for name, text in UNCERTAINTIES.items()]
    return (
        f"{_table(['uncertainty', 'what it is'], rows)}\n\n{_doc(Sparsification.ause)} {_doc(sparsification)}"
    )


def _doc(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").split())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """Text of a docstring, which must not become HTML or another cell outside its `code`."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part.replace("<", "\\<") if at % 2 == 0 else part for at, part in enumerate(parts))


class _Generated(SphinxDirective):
    """A directive whose content is Markdown that `markdown` returns."""

    optional_arguments = 1

    def markdown(self) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        # Sphinx puts what comes before a heading after all sections: text has no heading or begins with one.
        return self.parse_text_to_nodes(self.markdown(), allow_section_headings=True)


class JobPurpose(_Generated):
    """`{job-purpose} distill`"""

    required_arguments = 1
    optional_arguments = 0

    def markdown(self) -> str:
        return purpose(self.arguments[0])


class JobOptions(_Generated):
    """`{job-options} distill`"""

    required_arguments = 1
    optional_arguments = 0

    def markdown(self) -> str:
        return options_page(self.arguments[0])


class RecipeTable(_Generated):
    """`{recipe-table}` lists the recipes, `{recipe-table} distill` what they differ in."""

    def markdown(self) -> str:
        return recipe_page(self.arguments[0]) if self.arguments else recipe_list()


class LabelColumns(_Generated):
    """`{label-columns}`"""

    def markdown(self) -> str:
        return columns_page()


class MetricTable(_Generated):
    """`{metric-table}`"""

    def markdown(self) -> str:
        return metrics_page()


class SliceTable(_Generated):
    """`{slice-table}`"""

    def markdown(self) -> str:
        return slices_page()


class UncertaintyTable(_Generated):
    """`{uncertainty-table}`"""

    def markdown(self) -> str:
        return uncertainties_page()


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("job-purpose", JobPurpose)
    app.add_directive("job-options", JobOptions)
    app.add_directive("recipe-table", RecipeTable)
    app.add_directive("label-columns", LabelColumns)
    app.add_directive("metric-table", MetricTable)
    app.add_directive("slice-table", SliceTable)
    app.add_directive("uncertainty-table", UncertaintyTable)
    return {"parallel_read_safe": True}
