"""How does a gallery show a labelled pair? Its frames, the pictures of its label, and how good that is."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flowcore.drawing import (
    MAX_WARP_ERROR,
    Picture,
    confidence_image,
    error_colors,
    fitted,
    flow_colors,
    motion_scale,
    occlusion_image,
    warp_error,
)
from flowcore.frame_codec import FrameCodec
from flowcore.pairs import FramePair
from pipelines.grades import QUALITIES, GradedSet
from pipelines.label_rows import decode_occlusion

_PICTURES = FrameCodec(kind="jpeg", quality=85)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture of a card."""

    source: str
    """The picture as a data URI."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class Grades:
    """A label's quality columns."""

    set_name: str
    values: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A pair: its frames, its label, and below it the other set's, if that has the pair."""

    video: str
    place: str
    frame1: str
    frame2: str
    grades: Sequence[Grades]
    is_missing: bool
    """From the other set."""
    label: Sequence[Figure]
    other_label: Sequence[Figure]
    """First the difference; empty without another label."""


def data_uri(picture: Picture) -> str:
    """A picture as a page holds it, 256 to 512 px wide."""
    return "data:image/jpeg;base64," + base64.b64encode(_PICTURES.encode(fitted(picture))).decode()


def _figure(picture: Picture, caption: str) -> Figure:
    return Figure(source=data_uri(picture), caption=caption)


def label_card(
    labels: GradedSet, position: int, other: GradedSet | None, counterparts: ndarray | None
) -> Card:
    """The pair at a position of a set's index. counterparts: for each position that of the same pair in
    `other`, negative where it hasn't that pair."""
    rows = {"A": labels.row(position)}
    decoded = {"A": labels.pairs.decode(rows["A"])}
    if other is not None and counterparts is not None and counterparts[position] >= 0:
        rows["B"] = other.row(int(counterparts[position]))
        decoded["B"] = other.pairs.decode(rows["B"])
    flows = {name: _flow(pair) for name, pair in decoded.items()}
    scale = motion_scale(list(flows.values()))
    prefixes = {name: "" if other is None else f"{name}: " for name in rows}
    figures = {name: _label_figures(rows[name], decoded[name], scale, prefixes[name]) for name in rows}
    other_label = []
    if "B" in rows:
        distance = np.hypot(*(flows["A"] - flows["B"]))
        difference = _figure(error_colors(distance), f"difference, EPE {distance.mean():.2f} px")
        other_label = [difference, *figures["B"]]
    row = rows["A"]
    time = "" if np.isnan(row["timestamp"]) else f" at {row['timestamp']:.2f} s"
    return Card(
        video=labels.short_name(row["video"]),
        place=f"frame {row['frame']}{time}, stride {row['stride']}, {row['height']} x {row['width']} px",
        frame1=data_uri(decoded["A"].image1),
        frame2=data_uri(decoded["A"].image2),
        grades=[
            Grades(set_name="" if other is None else name, values=_grades(each))
            for name, each in rows.items()
        ],
        is_missing=other is not None and "B" not in rows,
        label=figures["A"],
        other_label=other_label,
    )


def _grades(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(column, quality.text(row[column])) for column, quality in QUALITIES.items() if column in row]


def _flow(pair: FramePair) -> Float[ndarray, "2 height width"]:
    assert pair.flow_fw is not None
    return pair.flow_fw


def _label_figures(row: Mapping[str, Any], pair: FramePair, scale: float, prefix: str) -> list[Figure]:
    flow = _flow(pair)
    assert pair.confidence_fw is not None
    occluded = decode_occlusion(row)
    error = warp_error(pair.image1, pair.image2, flow)
    inside = error[np.isfinite(error)]
    mean = f", mean {inside.mean():.1f}" if inside.size else ""
    trusted = f"{100 * pair.confidence_fw.mean():.1f} %"
    return [
        _figure(flow_colors(flow, scale), f"{prefix}flow, rim {scale:.1f} px"),
        _figure(occlusion_image(occluded), f"{prefix}occlusion, {100 * occluded.mean():.1f} %"),
        _figure(confidence_image(pair.confidence_fw), f"{prefix}confidence, {trusted}"),
        _figure(error_colors(error, MAX_WARP_ERROR), f"{prefix}warp error{mean} of 255"),
    ]
