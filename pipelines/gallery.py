"""What does a label set look like, before a student learns from it? One HTML file shows it.

This module prepares what the page says; gallery.html.jinja, beside it, is the page. It needs no other file:
pictures are data URIs, histograms inline SVG, frames blink by CSS, and its policy forbids the browser to
fetch or run anything.

The name of a video may hold anything, so all text is escaped: the template is rendered with autoescape, and
nothing here is marked as safe.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import pairwise

import jinja2
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from flowcore.drawing import MAX_ERROR, MAX_WARP_ERROR, flow_legend
from pipelines.gallery_cards import Card, data_uri, label_card
from pipelines.grades import QUALITIES, GalleryOptions, GradedSet, choose, finite_mean
from pipelines.ledger import video_record
from pipelines.progress import Progress
from pipelines.storage import concurrently

_TEMPLATE = "gallery.html.jinja"
_MOST_ROWS = 500
"""Rows of a table; a page of a million videos would be no overview."""
_BARS = 30


@dataclass(frozen=True, kw_only=True)
class _Table:
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left_out: int = 0
    """Further rows, which would have been too many."""


@dataclass(frozen=True, kw_only=True)
class _Histogram:
    """Bars for one set, a line for a second."""

    column: str
    meaning: str
    peak: str
    """What the tallest bar stands for."""
    end: str
    """Where the axis ends."""
    bars: Sequence[tuple[float, str]]
    """Height from 0 to 1, and the numbers behind it."""
    lines: Sequence[Sequence[float]]
    """Heights of the second set's bars; empty for one set."""
    captions: Sequence[str]


def gallery_page(labels: GradedSet, other: GradedSet | None, options: GalleryOptions) -> bytes:
    """The HTML file about a label set. With `other`, pairs that both sets have are shown with both labels and
    their difference. ValueError for an unknown quality column."""
    choice = choose(labels, options)
    column = options.order_by
    kinds = [
        ("worst", f"Worst: largest {column}", choice.worst),
        ("best", f"Best: smallest {column}", choice.best),
        ("random", f"Random, seed {options.seed}", choice.random),
    ]
    counterparts = None if other is None else other.positions_of(labels.index["pair_id"])
    with Progress("gallery", "pair", sum(len(positions) for *_, positions in kinds)) as progress:

        def card(position: int) -> Card:
            drawn = label_card(labels, position, other, counterparts)
            progress.advance(1)
            return drawn

        cards = [(anchor, title, list(map(card, positions))) for anchor, title, positions in kinds]
    page = _template().render(
        title=f"Labels {labels.pairs.label_set}" + ("" if other is None else f" and {other.pairs.label_set}"),
        summary=_summary(labels, other),
        made_of=[(each.pairs.label_set, _options(each)) for each in (labels, other) if each is not None],
        comparison=None if other is None else _comparison(labels, other),
        histograms=_histograms(labels, other),
        wheel=data_uri(flow_legend(256, 256)),
        max_error=f"{MAX_ERROR:g}",
        max_warp_error=f"{MAX_WARP_ERROR:g}",
        kinds=cards,
        column=column,
        videos=_videos(labels, column),
    )
    # A file system's name needn't be text; what isn't is shown as an escape.
    return page.encode(errors="backslashreplace")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(resources.files(__package__).joinpath(_TEMPLATE).read_text())


def _summary(labels: GradedSet, other: GradedSet | None) -> _Table:
    facts = {"A": _facts(labels)} if other is None else {"A": _facts(labels), "B": _facts(other)}
    names = list(dict.fromkeys(name for each in facts.values() for name in each))
    return _Table(
        heads=["", ""] if other is None else ["", *facts],
        rows=[[name, *(each.get(name, "-") for each in facts.values())] for name in names],
    )


def _facts(graded: GradedSet) -> dict[str, str]:
    pairs = graded.pairs
    sizes = Counter(zip(*(graded.index[side].to_pylist() for side in ("height", "width")), strict=True))
    shown = ", ".join(f"{height} x {width} px ({count})" for (height, width), count in sizes.most_common(3))
    ledger = Counter(entry.outcome for entry in pairs.ledger())
    return {
        "location": pairs.location,
        "label_set": pairs.label_set,
        "pairs": str(len(graded.index)),
        "videos": str(len(pairs.videos())),
        "inputs that gave less": ", ".join(f"{count} {name}" for name, count in ledger.items()) or "none",
        "frames": shown + (f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""),
        **{f"provenance: {name}": value for name, value in pairs.description.provenance.items()},
        **{f"labelling run: {name}": value for name, value in graded.origin.items()},
    }


def _options(graded: GradedSet) -> str:
    return json.dumps(graded.pairs.description.made_of, indent=2)


def _histograms(labels: GradedSet, other: GradedSet | None) -> list[_Histogram]:
    sets = {"A": labels} if other is None else {"A": labels, "B": other}
    return [
        _histogram(
            column,
            {
                name: graded.quality(column)
                for name, graded in sets.items()
                if column in graded.pairs.quality_columns
            },
        )
        for column in labels.pairs.quality_columns
    ]


def _histogram(column: str, values: Mapping[str, Float[ndarray, "pairs"]]) -> _Histogram:
    """From 0 to the 99th percentile of all sets together."""
    quality = QUALITIES[column]
    known = {name: each[np.isfinite(each)] for name, each in values.items()}
    everything = np.concatenate(list(known.values()))
    end = (float(np.percentile(everything, 99)) if everything.size else 0.0) or 1.0
    edges = np.linspace(0, end, _BARS + 1)
    shares = {
        name: np.histogram(each.clip(0, end), edges)[0] / max(1, each.size) for name, each in known.items()
    }
    peak = max(float(each.max()) for each in shares.values()) or 1.0
    heights = {name: (each / peak).tolist() for name, each in shares.items()}
    first, *others = values
    ranges = [f"{quality.text(start)} to {quality.text(stop)}" for start, stop in pairwise(edges)]
    hints = [
        f"{span}: {100 * share:.1f} % of the pairs" for span, share in zip(ranges, shares[first], strict=True)
    ]
    return _Histogram(
        column=column,
        meaning=quality.meaning,
        peak=f"{100 * peak:.0f} %",
        end=quality.text(end),
        bars=list(zip(heights[first], hints, strict=True)),
        lines=[heights[name] for name in others],
        captions=[
            ("" if len(values) == 1 else f"{name}: ") + _spread_of(column, each)
            for name, each in values.items()
        ],
    )


def _spread_of(column: str, values: Float[ndarray, "pairs"]) -> str:
    quality = QUALITIES[column]
    known = values[np.isfinite(values)]
    unknown = f", {values.size - known.size} without a value" if known.size < values.size else ""
    if not known.size:
        return f"no pair has a value{unknown}"
    median, most = np.percentile(known, (50, 99))
    parts = {"mean": known.mean(), "median": median, "99 % below": most, "largest": known.max()}
    return ", ".join(f"{name} {quality.text(float(value))}" for name, value in parts.items()) + unknown


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    counts: str
    means: _Table | None
    """Of the pairs that both sets have; None without such pairs."""
    only_in: Sequence[_Table]


def _comparison(labels: GradedSet, other: GradedSet) -> _Comparison:
    """How many pairs both sets have, their mean quality in each, and the videos of the other pairs."""
    in_other = other.positions_of(labels.index["pair_id"])
    in_labels = labels.positions_of(other.index["pair_id"])
    shared = in_other >= 0
    means = None
    if shared.any():
        rows = [
            [
                column,
                QUALITIES[column].text(finite_mean(labels.quality(column)[shared])),
                QUALITIES[column].text(finite_mean(other.quality(column)[in_other[shared]])),
            ]
            for column in labels.pairs.quality_columns
            if column in other.pairs.quality_columns
        ]
        means = _Table(heads=["mean over the pairs in both", "A", "B"], rows=rows)
    counts = (
        f"{shared.sum()} pairs are in both, {(~shared).sum()} only in A, {(in_labels < 0).sum()} only in B."
    )
    return _Comparison(
        counts=counts if shared.any() else f"{counts} {_why_none_is_shared(labels, other)}",
        means=means,
        only_in=[
            _only_in(name, graded, is_absent)
            for name, graded, is_absent in (("A", labels, ~shared), ("B", other, in_labels < 0))
            if is_absent.any()
        ],
    )


def _why_none_is_shared(labels: GradedSet, other: GradedSet) -> str:
    """What two sets without a common pair differ in."""
    if not set(labels.folders()) & set(other.folders()):
        return "They have no video in common."
    sizes = [
        sorted(set(zip(*(graded.index[side].to_pylist() for side in ("height", "width")), strict=True)))
        for graded in (labels, other)
    ]
    if not set(sizes[0]) & set(sizes[1]):
        a, b = (", ".join(f"{height} x {width}" for height, width in each[:3]) for each in sizes)
        return (
            f"The frames of A have {a} px and those of B {b} px: a pair is the same only at the same size. "
            "Label both sets with the same --clips.size."
        )
    return "They have other frames of their videos, such as by another --clips.stride."


def _only_in(name: str, graded: GradedSet, is_absent: Bool[ndarray, "pairs"]) -> _Table:
    videos = {entry.folder: entry.video for entry in graded.pairs.videos()}
    counts = Counter(np.asarray(graded.folders())[is_absent].tolist()).most_common()
    rows = [[graded.short_name(videos[folder]), str(count)] for folder, count in counts[:_MOST_ROWS]]
    return _Table(
        heads=[f"video of pairs only in {name}", "pairs"], rows=rows, left_out=len(counts) - len(rows)
    )


def _videos(graded: GradedSet, column: str) -> _Table:
    """What became of each input, from the manifest, the ledger and the videos' own records: first those that
    gave less than they might, then by falling mean quality."""
    entries, ledger = graded.pairs.videos(), graded.pairs.ledger()
    means = graded.means_by_folder(column)
    with_pairs = {entry.video: entry for entry in entries}
    short = {entry.video: entry for entry in ledger if entry.video in with_pairs}
    nothing = [entry for entry in ledger if entry.video not in with_pairs]
    ranked = sorted(entries, key=lambda entry: (entry.video not in short, -means.get(entry.folder, -np.inf)))
    nothing_shown = nothing[:_MOST_ROWS]
    shown = ranked[: _MOST_ROWS - len(nothing_shown)]
    folders = [entry.folder for entry in shown]
    records = concurrently(partial(video_record, graded.pairs.location), folders)
    rows = [
        [graded.short_name(each.video), "0", str(each.frames_read), *"----", each.outcome, each.reason]
        for each in nothing_shown
    ]
    for entry, record in zip(shown, records, strict=True):
        fields = ("frames_read", "cuts", "static_pairs", "faded_pairs")
        read = [str(getattr(record, name, "-")) for name in fields]
        mean = QUALITIES[column].text(means.get(entry.folder, np.nan))
        less = short.get(entry.video)
        told = ["", ""] if less is None else [less.outcome, less.reason]
        rows.append([graded.short_name(entry.video), str(entry.pairs), *read, mean, *told])
    return _Table(
        heads=[
            "video",
            "pairs",
            "frames read",
            "cuts",
            "static pairs",
            "faded pairs",
            f"mean {column}",
            "outcome",
            "reason",
        ],
        rows=rows,
        left_out=len(nothing) + len(entries) - len(rows),
    )
