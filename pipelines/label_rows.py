"""How do labels become columns of `pipelines.labels`, and a row of them a pair again?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from flowcore.frame_codec import FrameCodec
from flowcore.geometry import upsample_flow
from flowcore.pairs import FramePair
from flowcore.pseudolabels import PseudoLabels, label_grid
from flowcore.uncertainty import scale_codes, scales_of_codes, trust
from pipelines.labels import BOOLS, BYTES, FLOW_UNITS, INTEGERS, MOST_FLOW, flat_lists, label_schema

DEFAULT_MAX_SPREAD = 1.0
"""Pixels by which several teachers may disagree on a label that is trusted."""


def label_columns(labels: PseudoLabels, teacher: str) -> pa.Table:
    """The columns of `label_schema`; ValueError for a flow that isn't finite. teacher: its digest, or
    theirs."""
    schema = label_schema(
        has_spread=labels.spread is not None,
        is_of_three_frames=labels.continued is not None,
        has_uncertainty=labels.uncertainty is not None,
    )
    columns: dict[str, Any] = {
        "flow_stride": pa.array([labels.flow_stride] * len(labels), pa.int32()),
        "teacher": pa.array([teacher] * len(labels), pa.string()),
    }
    for name, type_ in zip(schema.names, schema.types, strict=True):
        if name not in columns:
            columns[name] = _stored(getattr(labels, name), type_)
    return pa.table(columns, schema=schema)


def _stored(values: Tensor, type_: pa.DataType) -> pa.Array:
    if type_ == INTEGERS:
        return quantized(values)
    if type_ == BYTES:
        return flat_lists(scale_codes(values), BYTES)
    if type_ == BOOLS:
        return masks(values)
    return pa.array(values.cpu().numpy())


def quantized(flow: Float[Tensor, "pairs _ rows columns"]) -> pa.ListArray:
    """The column that stores `flow`, in pixels, to within 1/128 px; ValueError if it isn't finite or beyond
    `MOST_FLOW`."""
    if not torch.isfinite(flow).all():
        raise ValueError("flow must be finite to be a label: the network that gave it has diverged")
    if flow.abs().max() > MOST_FLOW:
        raise ValueError(
            f"flow of {flow.abs().max():g} px can't be a label, which has at most {MOST_FLOW} px"
        )
    units = (flow * FLOW_UNITS).round().to(torch.int32).cpu().numpy()
    return flat_lists(np.diff(units, axis=2, prepend=np.int32(0)), INTEGERS)


def masks(mask: Bool[Tensor, "pairs 1 height width"]) -> pa.ListArray:
    """The column that stores `mask`."""
    return flat_lists(mask.cpu().numpy(), BOOLS)


def decode_row(
    row: Mapping[str, Any],
    max_spread: float = DEFAULT_MAX_SPREAD,
    uncertainty_tolerance: float | None = None,
) -> FramePair:
    """The pair in a row of `PairSet.read_group`; what the row has no column for is None.

    Where several teachers' spread is `max_spread` px or more the label has confidence 0. With a tolerance, in
    pixels, a label that is expected to be off by b pixels has exp(-b / tolerance) of its confidence.
    """
    codec, size = FrameCodec(), (row["height"], row["width"])
    return FramePair(
        image1=codec.decode(row["image1"], size),
        image2=codec.decode(row["image2"], size),
        flow_fw=_truth(row) if "true_flow_fw" in row else _flow(row, "flow_fw"),
        flow_bw=_flow(row, "flow_bw"),
        confidence_fw=_confidence(row, "fw", max_spread, uncertainty_tolerance),
        confidence_bw=_confidence(row, "bw", max_spread, uncertainty_tolerance),
    )


def decode_occlusion(row: Mapping[str, Any], column: str = "occ_fw") -> Bool[ndarray, "height width"]:
    """True where the label's pixel is occluded. A pixel can be untrusted without being occluded. Pass
    `occ_bw` for the backward direction."""
    return np.asarray(row[column], bool).reshape(row["height"], row["width"])


def decode_uncertainty(
    row: Mapping[str, Any], column: str = "uncertainty_fw"
) -> Float[ndarray, "height width"]:
    """Pixels by which the label's flow is expected to be off. Pass `uncertainty_bw` for the backward one."""
    height, width = row["height"], row["width"]
    codes = np.asarray(row[column], np.uint8).reshape(label_grid(height, width, row["flow_stride"]))
    return _every_pixel(scales_of_codes(codes), row)


def stored_pixels(
    differences: Sequence[int], rows: int, columns: int
) -> Float[ndarray, "channels rows columns"]:
    """What `quantized` stored of a pair, in pixels and on the stored grid."""
    # torch sums down columns three times as fast as NumPy.
    grid = torch.tensor(np.asarray(differences, np.int32)).view(-1, rows, columns)
    return (grid.cumsum(dim=1, dtype=torch.int32) / FLOW_UNITS).numpy()


def _every_pixel(grid: ndarray, row: Mapping[str, Any]) -> ndarray:
    """For each pixel the value of its cell of the flow's grid."""
    stride = row["flow_stride"]
    return grid.repeat(stride, axis=0).repeat(stride, axis=1)[: row["height"], : row["width"]]


def _flow(row: Mapping[str, Any], column: str) -> Float[ndarray, "2 height width"] | None:
    if column not in row:
        return None
    return decode_flow(row[column], row["flow_stride"], row["height"], row["width"])


def _truth(row: Mapping[str, Any]) -> Float[ndarray, "2 height width"]:
    return np.array(row["true_flow_fw"], np.float32).reshape(2, row["height"], row["width"])


def _confidence(
    row: Mapping[str, Any], direction: str, max_spread: float, uncertainty_tolerance: float | None
) -> Float[ndarray, "height width"] | None:
    """1 where a label is visible in the other frame, or continued from a third one, and its teachers agree,
    or a truth is known; else 0. With a tolerance, times the trust in what the teachers expect of it."""
    height, width = row["height"], row["width"]
    if f"occ_{direction}" in row:
        trusted = ~np.asarray(row[f"occ_{direction}"], bool)
    elif f"valid_{direction}" in row:
        trusted = np.asarray(row[f"valid_{direction}"], bool)
    else:
        return None
    trusted = trusted.reshape(height, width)
    grid = label_grid(height, width, row.get("flow_stride", 1))
    if f"continued_{direction}" in row:
        continued = np.asarray(row[f"continued_{direction}"], bool).reshape(grid)
        trusted = trusted | _every_pixel(continued, row)
    if f"spread_{direction}" in row:
        (spread,) = stored_pixels(row[f"spread_{direction}"], *grid)
        trusted = trusted & _every_pixel(spread < max_spread, row)
    confidence = trusted.astype(np.float32)
    if uncertainty_tolerance is not None and f"uncertainty_{direction}" in row:
        expected = decode_uncertainty(row, f"uncertainty_{direction}")
        confidence *= trust(expected, uncertainty_tolerance)
    return confidence


def decode_flow(
    differences: Sequence[int], stride: int, height: int, width: int
) -> Float[ndarray, "2 height width"]:
    """The teacher's flow in pixels from a `flow_fw` or `flow_bw` of a row."""
    grid = torch.from_numpy(stored_pixels(differences, *label_grid(height, width, stride)))
    return upsample_flow(grid[None], stride, height, width)[0].numpy()
