"""What do the columns of a pair set mean? The contract between frame pairs, pseudo-labels and Parquet.

A pair set is a folder, local or on object storage, of Parquet files of frame pairs,
`<video digest>/<shard>.parquet`. Where a teacher made pseudo-labels of them it is a label set. Any Parquet
reader understands a row without this module:

- `flow_fw`, `flow_bw`: planar [2, ceil(height / s), ceil(width / s)] of int32, where s is `flow_stride`. Each
  value is stored as its difference from the one above it, the first row as it is, in units of 1/64 px. Summed
  down the columns, divided by 64, upsampled s times (bilinear, half-pixel centres, the border repeated) and
  cropped to height x width, this is the teacher's flow within 1/128 px.
- `occ_fw`, `occ_bw`: [height, width] of bool, True = occluded.
- `uncertainty_fw`, `uncertainty_bw`, of teachers that predict it: a byte c for each vector of the flow, whose
  error is expected to be 2^(c / 8) / 64 px, within 4.5 %.

Flow is stored as differences down the columns because Parquet's own delta encoding takes them along the rows
alone. With both, the same flow takes about half the bytes at full resolution.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float
from numpy import ndarray

from flowcore.image_size import MOST_PIXELS
from flowcore.video import SAMPLER_VERSION

FORMAT = 9
"""Version of the layout, of the rows' meaning and of what computes them. It rises, too, where the same
teacher would give other numbers. A set of another version is refused."""
FLOW_UNITS = 64
"""Units of a stored flow per pixel."""

PAIR_ID = re.compile("[0-9a-f]{32}")
_COARSEST = 256
"""The largest stride of a stored flow."""

MOST_FLOW = 2**24
"""Pixels of a stored flow, at most: a frame's side is a thousandth of it."""

# Their elements are never null, so Parquet needn't say so of each.
INTEGERS = pa.list_(pa.field("element", pa.int32(), nullable=False))
FLOATS = pa.list_(pa.field("element", pa.float32(), nullable=False))
BOOLS = pa.list_(pa.field("element", pa.bool_(), nullable=False))
BYTES = pa.list_(pa.field("element", pa.uint8(), nullable=False))


def _lists(type_: pa.DataType, *names: str) -> list[pa.Field]:
    return [pa.field(name, type_, nullable=False) for name in names]


PAIR_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("video", pa.string()),
        ("frame", pa.int32()),
        ("stride", pa.int32()),
        ("timestamp", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("image1", pa.binary()),
        ("image2", pa.binary()),
        ("label_set", pa.string()),
    ]
)
"""A frame pair. `frame` is the first frame's number in the video, `timestamp` its time in seconds or nan,
images are encoded as the set's codec says, `label_set` is the digest of what the set is made of."""
LABEL_SCHEMA = pa.schema(
    [
        *_lists(INTEGERS, "flow_fw", "flow_bw"),
        ("flow_stride", pa.int32()),
        *_lists(BOOLS, "occ_fw", "occ_bw"),
        ("occluded", pa.float32()),
        ("forward_backward", pa.float32()),
        ("photometric", pa.float32()),
        ("flow_p50", pa.float32()),
        ("flow_p99", pa.float32()),
        ("flow_max", pa.float32()),
        ("teacher", pa.string()),
    ]
)
"""What a teacher adds to a pair: the fields of `flowcore.pseudolabels.PseudoLabels` by their names, and
`teacher`, its digest."""
SPREAD_SCHEMA = pa.schema([*_lists(INTEGERS, "spread_fw", "spread_bw"), ("spread", pa.float32())])
"""What several teachers add whose mean the flow is: how far they disagree, stored as the flow is."""
UNCERTAINTY_SCHEMA = pa.schema(
    [*_lists(BYTES, "uncertainty_fw", "uncertainty_bw"), ("uncertainty", pa.float32())]
)
"""What teachers add that predict how far their flow is off: a byte for each vector."""
CONTINUED_SCHEMA = pa.schema(
    [
        *_lists(BOOLS, "continued_fw", "continued_bw"),
        ("continued", pa.float32()),
        ("misfit", pa.float32()),
    ]
)
"""What labels from three frames add: where the flow, on its grid, continues the motion from a third frame."""
TRUTH_SCHEMA = pa.schema(
    [
        *_lists(FLOATS, "true_flow_fw"),
        *_lists(BOOLS, "valid_fw"),
    ]
)
"""What a data set with truth adds to a pair in place of labels: `true_flow_fw`, [2, height, width] in pixels
as the data set has it, and `valid_fw`, [height, width], True where it is known."""
MEANINGS = {
    "pair_id": "32 hexadecimal digits that name the pair, whatever labels it.",
    "video": "Path or URI of the video.",
    "frame": "Number of the pair's first frame in the video, counted from 0.",
    "stride": "Frames from the first to the second of the pair.",
    "timestamp": "Time of the first frame in seconds; nan if the video doesn't say.",
    "height": "Height of the frames in pixels.",
    "width": "Width of the frames in pixels.",
    "image1": "The first frame, as a JPEG or PNG file.",
    "image2": "The second frame, as a JPEG or PNG file; null where it is `image1` of the next row of its row "
    "group.",
    "label_set": "Digest of what the set is made of; the same in every row.",
    "flow_fw": "Flow from the first frame to the second: 2 x ceil(height / s) x ceil(width / s) values, u "
    "first, where s is `flow_stride`. Each is its difference from the value above it, in 1/64 px.",
    "flow_bw": "Flow from the second frame to the first, stored as `flow_fw` is.",
    "flow_stride": "Pixels from one vector of the stored flow to the next.",
    "occ_fw": "height x width values; True where a pixel of the first frame isn't visible in the second.",
    "occ_bw": "height x width values; True where a pixel of the second frame isn't visible in the first.",
    "teacher": "Digest of the teacher; several are joined by `+`.",
    "spread_fw": "Root mean square distance of several teachers' flows to their mean, stored as `flow_fw` is "
    "but with one channel.",
    "spread_bw": "The same of the flows from the second frame to the first.",
    "uncertainty_fw": "How far each vector of `flow_fw` is expected to be off, by the teacher whose flow "
    "it is; of a mean of several, in their mean: code c stands for 2^(c / 8) / 64 px.",
    "uncertainty_bw": "The same of `flow_bw`.",
    "continued_fw": "A value for each vector of `flow_fw`, True where it continues the motion from the frame "
    "before the pair, as the second frame hides what moves.",
    "continued_bw": "The same of `flow_bw` and the frame after the pair.",
    "true_flow_fw": "True flow from the first frame to the second: 2 x height x width values in px, u "
    "first; 0 where it isn't known.",
    "valid_fw": "height x width values; True where the true flow is known.",
}
"""What each column is, in a sentence for the reference. The numbers that grade a label have theirs under the
fields of `flowcore.pseudolabels.PseudoLabels`."""
_FLOWS = ("flow_fw", "flow_bw")
_SPREADS = ("spread_fw", "spread_bw")
_CODES = ("uncertainty_fw", "uncertainty_bw")
_TRUTHS = ("true_flow_fw",)
_MASKS = ("occ_fw", "occ_bw", "valid_fw")
_GRID_MASKS = ("continued_fw", "continued_bw")
_IMAGES = ("image1", "image2")
_REPEATED = ("video", "label_set", "teacher")


def pair_id(video_digest: str, frames: tuple[int, int], stride: int, height: int, width: int) -> str:
    """32 hexadecimal digits that name a pair, whatever labels it."""
    identity = (video_digest, *frames, stride, height, width, SAMPLER_VERSION)
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()


def pair_columns(pairs: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The columns of PAIR_SCHEMA for these pairs, each with a value for every column."""
    rows = list(pairs)
    assert all(row.keys() == set(PAIR_SCHEMA.names) for row in rows)
    return pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)


def label_schema(*, has_spread: bool, is_of_three_frames: bool, has_uncertainty: bool) -> pa.Schema:
    """The columns that one teacher adds to a pair, or that several add, with a third frame or without, and
    with what they predict of their error or without."""
    parts = (
        (SPREAD_SCHEMA, has_spread),
        (UNCERTAINTY_SCHEMA, has_uncertainty),
        (CONTINUED_SCHEMA, is_of_three_frames),
    )
    return pa.schema([*LABEL_SCHEMA, *(field for part, is_there in parts if is_there for field in part)])


def truth_columns(flow: Float[ndarray, "2 height width"], valid: Bool[ndarray, "height width"]) -> pa.Table:
    """The columns of TRUTH_SCHEMA for a pair whose flow, in pixels, is known where `valid` says so."""
    known = np.where(valid, flow, 0).astype(np.float32)
    columns = {
        "true_flow_fw": flat_lists(known[None], FLOATS),
        "valid_fw": flat_lists(valid[None], BOOLS),
    }
    return pa.table(columns, schema=TRUTH_SCHEMA)


def beside(*tables: pa.Table) -> pa.Table:
    """One table of the columns of all, which have the same rows."""
    columns = [column for table in tables for column in table.columns]
    return pa.table(columns, schema=pa.schema([field for table in tables for field in table.schema]))


def flat_lists(values: ndarray, type_: pa.DataType) -> pa.ListArray:
    """One flat list an entry of the first axis."""
    size = values[0].size
    offsets = np.arange(len(values) + 1, dtype=np.int32) * size
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)), type=type_)


_ENCODINGS = dict.fromkeys((*_MASKS, *_GRID_MASKS), "PLAIN") | dict.fromkeys(_TRUTHS, "BYTE_STREAM_SPLIT")
"""Of the columns whose lists aren't delta coded."""


def _stored_once(table: pa.Table, row_group_pairs: int) -> pa.Table:
    """Without the second frames that are the next row's first one, in the same row group.

    Consecutive pairs share their frames, and frames are most of a set's bytes. A row group can be read alone.
    """
    first, second = table["image1"].combine_chunks(), table["image2"].combine_chunks()
    is_next = np.zeros(len(table), bool)
    is_next[:-1] = pc.equal(second[:-1], first[1:]).to_numpy(zero_copy_only=False)
    is_next[row_group_pairs - 1 :: row_group_pairs] = False
    kept = pc.if_else(pa.array(is_next), pa.scalar(None, second.type), second)
    return table.set_column(table.column_names.index("image2"), table.schema.field("image2"), kept)


def with_second_frames(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a row group, each with its second frame; ValueError where one is nowhere, and where a row
    holds something else than its size tells."""
    for row, following in pairwise([*rows, {"image1": None}]):
        if row["image2"] is None:
            row["image2"] = following["image1"]
        if row["image1"] is None or row["image2"] is None:
            raise ValueError(f"pair {row['pair_id']} lacks a frame, and none follows it: the file is damaged")
    for row in rows:
        if problem := _problem(row):
            raise ValueError(f"pair {str(row['pair_id'])[:64]} {problem}: the file is damaged")
    return rows


def _problem(row: Mapping[str, Any]) -> str:
    """What keeps a row from being decoded; empty if nothing does.

    A row may come from a stranger, and decoding makes arrays of the size that it says.
    """
    if lacking := [name for name, value in row.items() if value is None]:
        return f"has no {', '.join(lacking)}"
    if not PAIR_ID.fullmatch(row["pair_id"]):
        return "has another name than 32 hexadecimal digits"
    height, width = row["height"], row["width"]
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        return f"is of {height}x{width} px (height x width)"
    if row["stride"] < 1:
        return f"has the stride {row['stride']}"
    stride = row.get("flow_stride", 1)
    if not 1 <= stride <= _COARSEST:
        return f"has a flow of stride {stride}"
    grid, pixels = math.ceil(height / stride) * math.ceil(width / stride), height * width
    values = dict.fromkeys(_FLOWS, 2 * grid) | dict.fromkeys(_SPREADS, grid)
    values |= dict.fromkeys(_TRUTHS, 2 * pixels) | dict.fromkeys(_MASKS, pixels)
    values |= dict.fromkeys((*_GRID_MASKS, *_CODES), grid)
    for name, wanted in values.items():
        if name in row and len(row[name]) != wanted:
            return f"has {len(row[name])} values in {name}, and its size takes {wanted}"
    if not all(np.isfinite(row[name]).all() for name in _TRUTHS if name in row):
        return "has a true flow that isn't finite"
    return ""


def encode_shard(table: pa.Table, row_group_pairs: int) -> bytes:
    """The Parquet file of a table of PAIR_SCHEMA and what labels or truth add to it.

    Flow is delta coded, flow and masks are zstd compressed; images are compressed already, and a frame that
    two neighbours share is stored once.
    """
    if "image2" in table.column_names:
        table = _stored_once(table, row_group_pairs)
    names = table.column_names
    lists = (*_FLOWS, *_SPREADS, *_CODES, *_TRUTHS, *_MASKS, *_GRID_MASKS)
    leaves = {name: f"{name}.list.element" for name in lists if name in names}
    plain = {name: "PLAIN" for name in names if name not in leaves and name not in _REPEATED}
    encodings = {leaf: _ENCODINGS.get(name, "DELTA_BINARY_PACKED") for name, leaf in leaves.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_pairs,
        compression={leaves.get(name, name): "none" if name in _IMAGES else "zstd" for name in names},
        use_dictionary=[name for name in _REPEATED if name in names],
        column_encoding=plain | encodings,
        write_statistics=[name for name in names if name not in (*leaves, *_IMAGES)],
    )
    return cast(bytes, sink.getvalue().to_pybytes())
