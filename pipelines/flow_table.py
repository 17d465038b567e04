"""How does a video's flow lie in one Parquet file? A row a pair, with when its frames were shown.

The columns are plain lists, which any reader of Parquet takes. Each row is a row group, so that a pair can be
read without the others. The file appears whole or not at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from flowcore.occlusion import agreement
from pipelines.flow_files import FLOW_TABLE, PredictionOptions
from pipelines.inference import EstimatedPair
from pipelines.storage import Folder

FORMAT = 1
"""To be raised when a column changes its meaning or goes."""

_FLOATS = pa.list_(pa.field("element", pa.float32(), nullable=False))
_BOOLS = pa.list_(pa.field("element", pa.bool_(), nullable=False))

_PAIR = (
    pa.field("frame", pa.int32(), nullable=False, metadata={"is": "number of the first frame, from 0"}),
    pa.field("name", pa.string(), nullable=False, metadata={"is": "what a file of the pair would be called"}),
    pa.field(
        "timestamp", pa.float64(), nullable=False, metadata={"is": "seconds of the first frame, or nan"}
    ),
    pa.field("seconds", pa.float64(), nullable=False, metadata={"is": "between the frames, or nan"}),
    pa.field("height", pa.int32(), nullable=False, metadata={"is": "px"}),
    pa.field("width", pa.int32(), nullable=False, metadata={"is": "px"}),
)


def _pixels(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, False, {"is": meaning})


def flow_schema(*, both: bool, scaled: bool) -> pa.Schema:
    """The columns of a video's flow. both: with the flow back, and what follows from it. scaled: with how far
    the network expects to be off."""
    shape = "px, [2, height, width]: all u, right, then all v, down, row by row"
    fields = [*_PAIR, _pixels("flow_fw", _FLOATS, shape)]
    if both:
        fields += [
            _pixels("flow_bw", _FLOATS, f"{shape}; from the second frame to the first"),
            _pixels("occ_fw", _BOOLS, "[height, width], true = the second frame doesn't show the pixel"),
            _pixels("confidence_fw", _FLOATS, "[height, width], 1 = the flows there and back agree"),
        ]
    if scaled:
        meaning = "[height, width], px by which the network expects flow_fw to be off"
        fields.append(_pixels("uncertainty_fw", _FLOATS, meaning))
    return pa.schema(fields, {"distillflow.flow_table": str(FORMAT)})


class FlowTable:
    """A table of a video's flow that is being written, pair by pair."""

    def __init__(self, path: Path, options: PredictionOptions) -> None:
        self._path, self._options = path, options
        self._schema = flow_schema(both=options.occlusion, scaled=options.uncertainty)
        self._file: pq.ParquetWriter | None = None

    def add(self, name: str, pair: EstimatedPair) -> None:
        """The next pair, which would be called so in a file of its own."""
        if self._file is None:
            floats = [each.name for each in self._schema if each.type == _FLOATS]
            self._file = pq.ParquetWriter(
                self._path,
                self._schema,
                compression="zstd",
                use_dictionary=False,
                use_byte_stream_split=[f"{each}.list.element" for each in floats],
                write_statistics=[each.name for each in _PAIR],
            )
        height, width = pair.flow_fw.shape[1:]
        row: dict[str, Any] = {
            "frame": pair.index,
            "name": name,
            "timestamp": pair.timestamp,
            "seconds": pair.seconds,
            "height": height,
            "width": width,
            "flow_fw": pair.flow_fw,
        }
        if pair.flow_bw is not None:
            there, back = (torch.from_numpy(flow)[None] for flow in (pair.flow_fw, pair.flow_bw))
            row |= {
                "flow_bw": pair.flow_bw,
                "occ_fw": self._options.check(there, back).numpy(),
                "confidence_fw": agreement(there, back).numpy(),
            }
        if pair.scale_fw is not None:
            row["uncertainty_fw"] = pair.scale_fw
        self._file.write_table(
            pa.table([_column(row[each.name], each.type) for each in self._schema], self._schema)
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextmanager
def flow_table(folder: Folder, options: PredictionOptions) -> Iterator[FlowTable]:
    """The folder's table; without a pair, none."""
    with folder.writing(FLOW_TABLE) as path:
        table = FlowTable(path, options)
        try:
            yield table
        finally:
            table.close()


def _column(value: Any, kind: pa.DataType) -> pa.Array:
    """A column of one row."""
    if not pa.types.is_list(kind):
        return pa.array([value], kind)
    values = pa.array(np.ravel(value), kind.value_type)
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values, kind)
