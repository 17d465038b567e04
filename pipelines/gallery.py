"""What does a label set look like, before a student learns from it? One HTML file answers.

The numbers of all pairs come from the set's small columns; beyond them only the pairs that are shown are
read. The page needs nothing but itself: pictures are data URIs, histograms inline SVG, frames blink by CSS,
and its policy forbids the browser to fetch or run anything.

The choice that isn't obvious is that text can't become markup by an oversight: `tag` escapes whatever isn't
the result of another `tag`. The name of a video may hold anything.
"""

import base64
import hashlib
import heapq
import html
import json
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from flowcore.drawing import (
    MAX_ERROR,
    MAX_WARP_ERROR,
    Picture,
    confidence_image,
    error_colors,
    fitted,
    flow_colors,
    flow_legend,
    motion_scale,
    occlusion_image,
    warp_error,
)
from flowcore.formats import FrameCodec
from flowcore.pairs import FramePair
from pipelines.ledger import video_record
from pipelines.pair_set import PairSet
from pipelines.storage import concurrently

_QUALITIES = {
    "occluded": ("share of pixels that are occluded", "%"),
    "forward_backward": ("by how much the two flows disagree, over the visible pixels", "px"),
    "photometric": ("census distance (0 to 48) after warping, over the visible pixels", ""),
    "flow_p50": ("length of the flow, median of the pixels", "px"),
    "flow_p99": ("length of the flow, 99th percentile of the pixels", "px"),
    "flow_max": ("length of the flow, fastest pixel", "px"),
    "spread": ("by how much the teachers disagree", "px"),
}
"""What each quality column tells, and the unit that it is shown in."""
_MOST_ROWS = 500
"""Rows of a table; a page of a million videos would be no overview."""
_BARS = 30
_PICTURES = FrameCodec(kind="jpeg", quality=85)


@dataclass(frozen=True, kw_only=True)
class GalleryOptions:
    """Which pairs are shown."""

    count: int = 12
    """Pairs of each kind: worst, best and random."""
    order_by: str = "forward_backward"
    """Quality column whose largest values are the worst: occluded, forward_backward, photometric, flow_p50,
    flow_p99, flow_max, or of several teachers spread."""
    seed: int = 0
    """Decides which pairs are the random ones; the same in every set that holds them."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count {self.count} must be at least 1 pair of each kind")


@dataclass(frozen=True, kw_only=True, eq=False)
class GradedSet:
    """A finished label set and the quality of each of its pairs.

    index: as `PairSet.index`, with the quality columns. origin: what is known of the run that made the set.
    """

    pairs: PairSet
    index: pa.Table
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, pairs: PairSet, origin: Mapping[str, str] | None = None) -> Self:
        """Reads the small columns of all files; ValueError for frame pairs without labels or no pairs."""
        if not pairs.has_labels:
            raise ValueError(
                f"{pairs.location} holds frame pairs without pseudo-labels; make a set of these videos with "
                "jobs/pseudolabel.py and give the folder that it was given as --labels"
            )
        index = pairs.index(pairs.quality_columns)
        if len(index) == 0:
            raise ValueError(f"{pairs.location} holds no pair; label other videos with jobs/pseudolabel.py")
        return cls(pairs=pairs, index=index, origin=origin or {})

    def quality(self, column: str) -> Float[ndarray, "pairs"]:
        """A quality column by position in the index; nan where no pixel could be judged. ValueError for an
        unknown one."""
        if column not in self.pairs.quality_columns:
            raise ValueError(
                f"order_by {column!r} is no quality column of {self.pairs.location}; it has "
                f"{', '.join(self.pairs.quality_columns)}"
            )
        return cast(ndarray, self.index[column].to_numpy().astype(np.float64))

    def means(self) -> dict[str, float]:
        """Of each quality column, over the pairs that have a value; nan if none has."""
        return {column: _mean(self.quality(column)) for column in self.pairs.quality_columns}

    def row(self, position: int) -> dict[str, Any]:
        """All columns of the pair at a position of the index."""
        return self.pairs.read(self.index.slice(position, 1).to_pylist()[0])

    def positions_of(self, pair_ids: pa.ChunkedArray) -> Int[ndarray, "pairs"]:
        """Where in the index these pairs are; -1 where they aren't."""
        found = pc.index_in(pair_ids, value_set=self.index["pair_id"].combine_chunks())
        return cast(ndarray, found.fill_null(-1).to_numpy())

    def folders(self) -> list[str]:
        """The folder of each pair's video."""
        by_file = [posixpath.dirname(file) for file in self.pairs.files]
        return [by_file[file] for file in self.index["file"].to_numpy()]

    def short_name(self, video: str) -> str:
        """The video's name within the collection that was labelled."""
        collection = self.pairs.description.provenance.get("videos", "")
        return video.removeprefix(collection).lstrip("/") or video


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Positions of the shown pairs in the index, each list in the order of showing."""

    worst: Sequence[int]
    best: Sequence[int]
    random: Sequence[int]


def choose(graded: GradedSet, options: GalleryOptions) -> Choice:
    """The pairs of the largest and the smallest values of a quality column, and some that a hash of seed and
    pair picks. Pairs without a value can only be picked at random."""
    values = graded.quality(options.order_by)
    known = np.flatnonzero(np.isfinite(values))
    ranked = known[np.argsort(values[known], kind="stable")]
    ids = graded.index["pair_id"].to_pylist()

    def drawn(position: int) -> bytes:
        return hashlib.blake2b(f"{options.seed} {ids[position]}".encode(), digest_size=8).digest()

    return Choice(
        worst=ranked[::-1][: options.count].tolist(),
        best=ranked[: options.count].tolist(),
        random=heapq.nsmallest(options.count, range(len(ids)), key=drawn),
    )


def gallery_page(labels: GradedSet, other: GradedSet | None, options: GalleryOptions) -> bytes:
    """The HTML file about a label set; with `other`, the pairs that both hold have its labels below, and the
    difference. ValueError for an unknown quality column."""
    choice = choose(labels, options)
    counterparts = None if other is None else other.positions_of(labels.index["pair_id"])

    def cards(positions: Sequence[int]) -> list[Markup]:
        shown = [
            _card(labels, position, other, None if counterparts is None else int(counterparts[position]))
            for position in positions
        ]
        return shown or [tag("p", f"No pair has a value of {options.order_by}.", class_="note")]

    column = options.order_by
    kinds = [
        ("worst", f"Worst: largest {column}", choice.worst),
        ("best", f"Best: smallest {column}", choice.best),
        ("random", f"Random, seed {options.seed}", choice.random),
    ]
    sections = [
        ("summary", "Summary", _summary(labels, other)),
        *([] if other is None else [("comparison", "A and B compared", _comparison(labels, other))]),
        ("histograms", "Quality of all pairs", _histograms(labels, other)),
        ("legend", "How to read the pictures", _legend(is_compared=other is not None)),
        *((anchor, title, cards(positions)) for anchor, title, positions in kinds),
        ("videos", "Videos" if other is None else "Videos of A", _videos(labels, column)),
    ]
    title = f"Labels {labels.pairs.label_set}" + ("" if other is None else f" and {other.pairs.label_set}")
    body = tag(
        "body",
        tag("h1", title),
        tag("nav", *(tag("a", heading, href=f"#{anchor}") for anchor, heading, _ in sections)),
        *(tag("section", tag("h2", heading), *content, id=anchor) for anchor, heading, content in sections),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width"),
        tag("title", title),
        tag("style", Markup(_STYLE)),
    )
    page = "<!DOCTYPE html>\n" + tag("html", head, body, lang="en")
    # A file system's name needn't be text; what isn't is shown as an escape.
    return page.encode(errors="backslashreplace")


class Markup(str):
    """HTML as it stands in a page; any other str is text."""


_VOID = ("img", "meta")


def tag(element: str, *children: str, **attributes: object) -> Markup:
    """An element; children that aren't Markup, and attributes, are escaped. `class_` is the attribute class,
    `http_equiv` http-equiv."""
    quoted = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
    )
    if element in _VOID:
        return Markup(f"<{element}{quoted}>")
    inner = "".join(child if isinstance(child, Markup) else html.escape(child) for child in children)
    return Markup(f"<{element}{quoted}>{inner}</{element}>")


def _image(picture: Picture, alternative: str) -> Markup:
    data = base64.b64encode(_PICTURES.encode(fitted(picture))).decode()
    return tag("img", src=f"data:image/jpeg;base64,{data}", alt=alternative)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left_out: int = 0) -> Markup:
    """Of rows that were too many, `left_out` aren't there."""
    head = tag("thead", tag("tr", *(tag("th", column) for column in columns)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    note = [tag("p", f"and {left_out} more", class_="note")] if left_out > 0 else []
    return tag("div", tag("table", head, body), *note, class_="table")


def _summary(labels: GradedSet, other: GradedSet | None) -> list[Markup]:
    facts = {"A": _facts(labels)} if other is None else {"A": _facts(labels), "B": _facts(other)}
    names = list(dict.fromkeys(name for each in facts.values() for name in each))
    headings = ["", ""] if other is None else ["", *facts]
    table = _table(headings, [[name, *(each.get(name, "-") for each in facts.values())] for name in names])
    made_of = [
        tag("details", tag("summary", f"What {each.pairs.label_set} is made of"), tag("pre", _options(each)))
        for each in (labels, other)
        if each is not None
    ]
    return [table, *made_of]


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


def _legend(*, is_compared: bool) -> list[Markup]:
    lines = {
        "frame 1": "Point at it, or tap it, and it blinks between frame 1 and frame 2.",
        "flow": "Forward, coloured as in the wheel: hue is direction, white is rest, and the wheel's rim is "
        "the speed in the caption, which 99 % of the pixels stay below. Speeds beyond are darker.",
        "occlusion": "White is occluded: not visible in frame 2, as the forward-backward check says.",
        "confidence": "White is trusted: visible and, where several teachers labelled, agreed on.",
        "warp error": "|frame 1 - frame 2 fetched along the flow|, mean of the colours in grey levels (0 to "
        f"255): black is 0, pale yellow {MAX_WARP_ERROR:g} and above, grey where the flow leaves the frame. "
        "Large at occluded pixels, too, however right their flow is.",
        "numbers": "Those above the pictures are the set's columns, means over both directions; those in the "
        "captions are of the forward direction, which is drawn.",
    }
    if is_compared:
        lines["difference"] = (
            f"Distance between the flows of A and B: black is 0, pale yellow {MAX_ERROR:g} px and above. EPE "
            "is its mean over all pixels. Both flows of a pair have one scale."
        )
    terms = [part for name, line in lines.items() for part in (tag("dt", name), tag("dd", line))]
    wheel = tag("figure", _image(flow_legend(256, 256), "wheel"), tag("figcaption", "direction of motion"))
    return [tag("div", wheel, tag("dl", *terms), class_="legend")]


def _card(labels: GradedSet, position: int, other: GradedSet | None, counterpart: int | None) -> Markup:
    """A pair: its frames, its label, and below it the other set's, if that has the pair."""
    rows = {"A": labels.row(position)}
    decoded = {"A": labels.pairs.decode(rows["A"])}
    if other is not None and counterpart is not None and counterpart >= 0:
        rows["B"] = other.row(counterpart)
        decoded["B"] = other.pairs.decode(rows["B"])
    flows = {name: _flow(pair) for name, pair in decoded.items()}
    scale = motion_scale(list(flows.values()))
    names = {name: "" if other is None else f"{name}: " for name in rows}
    cells = {name: _label_figures(rows[name], decoded[name], scale, names[name]) for name in rows}
    frames = tag(
        "span",
        _image(decoded["A"].image1, "frame 1"),
        _image(decoded["A"].image2, "frame 2"),
        class_="blink",
        tabindex=0,
    )
    lines = [[tag("figure", frames, tag("figcaption", "frame 1, pointed at: frame 2")), *cells["A"]]]
    if "B" in rows:
        distance = np.hypot(*(flows["A"] - flows["B"]))
        caption = f"difference, EPE {distance.mean():.2f} px"
        lines.append([_figure(error_colors(distance), caption), *cells["B"]])
    row = rows["A"]
    time = "" if np.isnan(row["timestamp"]) else f" at {row['timestamp']:.2f} s"
    place = f"frame {row['frame']}{time}, stride {row['stride']}, {row['height']} x {row['width']} px"
    missing = [] if other is None or "B" in rows else [tag("p", "B doesn't have this pair.", class_="note")]
    grades = [
        tag("p", *([] if other is None else [tag("b", name)]), *_grades(rows[name]), class_="grades")
        for name in rows
    ]
    heading = tag("h3", labels.short_name(row["video"]), " ", tag("small", place))
    pictures = [tag("div", *line, class_="pictures") for line in lines]
    return tag("article", heading, *grades, *missing, *pictures)


def _grades(row: Mapping[str, Any]) -> list[Markup]:
    return [
        tag("span", f"{column} ", tag("b", _amount(column, row[column])))
        for column in _QUALITIES
        if column in row
    ]


def _flow(pair: FramePair) -> Float[ndarray, "2 height width"]:
    assert pair.flow_fw is not None
    return pair.flow_fw


def _label_figures(row: Mapping[str, Any], pair: FramePair, scale: float, name: str) -> list[Markup]:
    flow = _flow(pair)
    assert pair.confidence_fw is not None
    occluded = np.asarray(row["occ_fw"], bool).reshape(row["height"], row["width"])
    error = warp_error(pair.image1, pair.image2, flow)
    inside = error[np.isfinite(error)]
    mean = f", mean {inside.mean():.1f}" if inside.size else ""
    return [
        _figure(flow_colors(flow, scale), f"{name}flow, rim {scale:.1f} px"),
        _figure(occlusion_image(occluded), f"{name}occlusion, {100 * occluded.mean():.1f} %"),
        _figure(
            confidence_image(pair.confidence_fw), f"{name}confidence, {100 * pair.confidence_fw.mean():.1f} %"
        ),
        _figure(error_colors(error, MAX_WARP_ERROR), f"{name}warp error{mean} of 255"),
    ]


def _figure(picture: Picture, caption: str) -> Markup:
    return tag("figure", _image(picture, caption), tag("figcaption", caption))


def _histograms(labels: GradedSet, other: GradedSet | None) -> list[Markup]:
    figures = []
    for column in labels.pairs.quality_columns:
        sets = {"A": labels} if other is None else {"A": labels, "B": other}
        values = {name: s.quality(column) for name, s in sets.items() if column in s.pairs.quality_columns}
        figures.append(_histogram(column, values))
    note = "Height: share of the set's pairs. The last bar also holds the values beyond the axis."
    key = "" if other is None else " Bars are A, the line is B."
    return [tag("p", note + key, class_="note"), tag("div", *figures, class_="histograms")]


def _histogram(column: str, values: Mapping[str, Float[ndarray, "pairs"]]) -> Markup:
    """Bars of the first set, the line of a second, from 0 to the 99th percentile of both."""
    width, height, base, left = 340, 130, 108, 4
    known = {name: each[np.isfinite(each)] for name, each in values.items()}
    everything = np.concatenate(list(known.values()))
    end = (float(np.percentile(everything, 99)) if everything.size else 0.0) or 1.0
    edges = np.linspace(0, end, _BARS + 1)
    shares = {
        name: np.histogram(each.clip(0, end), edges)[0] / max(1, each.size) for name, each in known.items()
    }
    peak = max(float(each.max()) for each in shares.values()) or 1.0
    step = (width - 2 * left) / _BARS
    tops = {name: base - each / peak * (base - 18) for name, each in shares.items()}
    first = next(iter(values))
    marks = []
    for bar, (share, top) in enumerate(zip(shares[first], tops[first], strict=True)):
        start, stop = (_amount(column, edges[edge]) for edge in (bar, bar + 1))
        hint = f"{start} to {stop}: {100 * share:.1f} % of the pairs"
        place = {"x": f"{left + bar * step:.1f}", "y": f"{top:.1f}", "width": f"{step - 1:.1f}"}
        marks.append(tag("rect", tag("title", hint), **place, height=f"{base - top:.1f}"))
    for name in list(values)[1:]:
        corners = [
            f"{left + (bar + side) * step:.1f},{top:.1f}"
            for bar, top in enumerate(tops[name])
            for side in (0, 1)
        ]
        marks.append(tag("polyline", points=" ".join(corners)))
    axis = [
        tag("text", f"{100 * peak:.0f} %", x=left, y=12),
        tag("line", x1=left, x2=width - left, y1=base, y2=base),
        tag("text", "0", x=left, y=base + 16),
        tag("text", _amount(column, end), x=width - left, y=base + 16, class_="end"),
    ]
    drawing = tag("svg", *marks, *axis, viewBox=f"0 0 {width} {height}", role="img", aria_label=column)
    captions = [
        tag("p", ("" if len(known) == 1 else f"{name}: ") + _spread_of(column, values[name]))
        for name in known
    ]
    return tag("figure", tag("h3", column), tag("p", _QUALITIES[column][0]), drawing, *captions)


def _spread_of(column: str, values: Float[ndarray, "pairs"]) -> str:
    known = values[np.isfinite(values)]
    unknown = f", {values.size - known.size} without a value" if known.size < values.size else ""
    if not known.size:
        return f"no pair has a value{unknown}"
    median, most = np.percentile(known, (50, 99))
    parts = {"mean": known.mean(), "median": median, "99 % below": most, "largest": known.max()}
    return ", ".join(f"{name} {_amount(column, float(value))}" for name, value in parts.items()) + unknown


def _amount(column: str, value: float) -> str:
    """A value of a quality column with its unit."""
    unit = _QUALITIES[column][1]
    if not np.isfinite(value):
        return "-"
    return f"{100 * value:.1f} %" if unit == "%" else f"{round(value, 3):.3g} {unit}".rstrip()


def _comparison(labels: GradedSet, other: GradedSet) -> list[Markup]:
    """How many pairs both have, their mean quality in each, and the videos of those that one alone has."""
    in_other = other.positions_of(labels.index["pair_id"])
    in_labels = labels.positions_of(other.index["pair_id"])
    shared = in_other >= 0
    both = [column for column in labels.pairs.quality_columns if column in other.pairs.quality_columns]
    counts = (
        f"{shared.sum()} pairs are in both, {(~shared).sum()} only in A, {(in_labels < 0).sum()} only in B."
    )
    parts = [tag("p", counts)]
    if shared.any():
        means = [
            [
                column,
                _amount(column, _mean(labels.quality(column)[shared])),
                _amount(column, _mean(other.quality(column)[in_other[shared]])),
            ]
            for column in both
        ]
        parts.append(_table(["mean over the pairs in both", "A", "B"], means))
    for name, graded, is_absent in (("A", labels, ~shared), ("B", other, in_labels < 0)):
        if is_absent.any():
            parts.append(_only_in(name, graded, is_absent))
    return parts


def _only_in(name: str, graded: GradedSet, is_absent: Bool[ndarray, "pairs"]) -> Markup:
    videos = {entry.folder: entry.video for entry in graded.pairs.videos()}
    counts = Counter(np.asarray(graded.folders())[is_absent].tolist()).most_common()
    rows = [[graded.short_name(videos[folder]), str(count)] for folder, count in counts[:_MOST_ROWS]]
    return _table([f"video of pairs only in {name}", "pairs"], rows, len(counts) - len(rows))


def _videos(graded: GradedSet, column: str) -> list[Markup]:
    """What became of each input, as the manifest, the ledger and the videos' own records tell: first those
    that gave less than they might, then by falling mean quality."""
    entries, ledger = graded.pairs.videos(), graded.pairs.ledger()
    means = _means_by_folder(graded, column)
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
        read = [getattr(record, name, "-") for name in fields]
        mean = _amount(column, means.get(entry.folder, np.nan))
        less = short.get(entry.video)
        told = ["", ""] if less is None else [less.outcome, less.reason]
        rows.append([graded.short_name(entry.video), str(entry.pairs), *map(str, read), mean, *told])
    heads = ["video", "pairs", "frames read", "cuts", "static pairs", "faded pairs", f"mean {column}"]
    note = (
        "First what gave less than it might, then by falling mean. Cuts are the ends of shots within the "
        "video, which no pair crosses; static pairs show no change, and faded ones a fade or a blank frame: "
        "both are left out; - is not recorded."
    )
    left_out = len(nothing) + len(entries) - len(rows)
    return [tag("p", note, class_="note"), _table([*heads, "outcome", "reason"], rows, left_out)]


def _means_by_folder(graded: GradedSet, column: str) -> dict[str, float]:
    """Of the videos with a pair that has a value."""
    values = graded.quality(column)
    known = np.isfinite(values)
    folders, which = np.unique(np.asarray(graded.folders())[known], return_inverse=True)
    means = np.bincount(which, values[known]) / np.bincount(which)
    return dict(zip(folders.tolist(), means.tolist(), strict=True))


def _mean(values: Float[ndarray, "pairs"]) -> float:
    """Of the finite ones; nan if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0 auto; padding: 16px 24px 48px; max-width: 1900px; background: #fff; color: #1b1f24;
  font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 10px; padding-bottom: 4px; border-bottom: 1px solid #c9d1d9; }
h3 { font-size: 15px; margin: 0 0 2px; overflow-wrap: anywhere; }
small, .note, figcaption, figure p { color: #4a5560; font-size: 13px; font-weight: normal; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; }
a { color: #0b57a4; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.table { overflow-x: auto; margin: 8px 0; }
th, td { text-align: left; vertical-align: top; padding: 4px 14px 4px 0; border-bottom: 1px solid #e3e7eb;
  overflow-wrap: anywhere; }
th { font-size: 13px; color: #4a5560; white-space: nowrap; }
#summary td:first-child, #videos td:not(:first-child, :last-child) { white-space: nowrap; }
pre { overflow-x: auto; padding: 10px; background: #f4f6f8; font-size: 13px; }
figure { margin: 0; min-width: 0; }
figure p { margin: 0; }
img { display: block; width: 100%; box-sizing: border-box; border: 1px solid #c9d1d9; }
.legend img { border: none; }
article { margin: 0 0 22px; padding: 10px 12px; border: 1px solid #d5dbe1; border-radius: 6px;
  break-inside: avoid; }
.grades { margin: 0 0 6px; font-size: 13px; display: flex; flex-wrap: wrap; gap: 0 16px; }
.pictures { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; margin-top: 6px; }
.blink { position: relative; display: block; cursor: pointer; }
.blink img + img { position: absolute; inset: 0; visibility: hidden; }
.blink:hover img + img, .blink:focus img + img { visibility: visible; animation: blink 1s steps(1) infinite; }
@keyframes blink { 0% { opacity: 1; } 50% { opacity: 0; } }
@media (prefers-reduced-motion: reduce) { .blink img + img { animation: none !important; } }
.histograms h3 + p { min-height: 2.9em; }
.histograms { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 22px; }
svg { width: 100%; max-width: 480px; font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #4a5560; }
svg rect { fill: #5b8db8; }
svg polyline { fill: none; stroke: #b3470f; stroke-width: 1.6; }
svg line { stroke: #4a5560; }
svg .end { text-anchor: end; }
.legend { display: flex; gap: 28px; align-items: start; }
.legend figure { flex: none; width: 150px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 16px; margin: 0; max-width: 100ch; }
dt { font-weight: 600; }
dd { margin: 0; }
@media (max-width: 800px) { .pictures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .legend { flex-wrap: wrap; } }
"""
