"""What do the stages of labelling tell each other? Each message is a row of a table, which Ray carries."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, cast

import pyarrow as pa

from pipelines.decoding_answers import EncodedChunk
from pipelines.labels import CONTINUED_SCHEMA, LABEL_SCHEMA, SPREAD_SCHEMA, UNCERTAINTY_SCHEMA, beside
from pipelines.ledger import VideoRecord

STAGES = ("reading", "labelling", "writing")
"""The stages that a shard goes through, in this order."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some pairs of a video, on their way into a file or there already."""

    video: str
    folder: str
    """The video's folder in the set."""
    number: int
    """Counted from 0 within the video."""
    pairs: int
    share: float
    """Of the video, up to the shard's end, in [0, 1]; 0 where it isn't known."""
    bytes: int = 0
    """Of its file; 0 where there is none yet."""
    is_new: bool = False
    """True once this run has written it."""
    chunks: tuple[EncodedChunk, ...] = ()
    """Its frames; none for a shard that was there before, or that is written."""
    labels: pa.Table = field(default_factory=LABEL_SCHEMA.empty_table)
    """What the teachers say of its pairs; no rows where they weren't asked, or once it is written."""
    reading: float = 0.0
    """Seconds of work, as the next two."""
    labelling: float = 0.0
    writing: float = 0.0
    failure: str = ""
    """Why it wasn't labelled or written; empty if nothing went wrong."""

    def lighter(self, **changes: Any) -> Self:
        """The shard without what is big, on its way past the stages that are left."""
        return replace(self, chunks=(), labels=LABEL_SCHEMA.empty_table(), **changes)

    def to_arrow(self) -> pa.Table:
        """A table of one row."""
        there = self.labels.column_names
        columns = [
            *(pa.array([getattr(self, each.name)], each.type) for each in _SHARD_NUMBERS),
            pa.array([[vars(chunk) for chunk in self.chunks]], _CHUNKS),
            *(
                _nested(self.labels.select(part.names) if part.names[0] in there else part.empty_table())
                for part in _LABELS.values()
            ),
        ]
        shard = pa.StructArray.from_arrays(columns, fields=_SHARD)
        return pa.table([["shard"], shard, pa.nulls(1, _ENDED)], schema=_MESSAGE)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """The message in a table that `to_arrow` made."""
        columns = dict(
            zip([each.name for each in _SHARD], table["shard"].combine_chunks().flatten(), strict=True)
        )
        values = {each.name: columns[each.name][0].as_py() for each in _SHARD_NUMBERS}
        parts = [_table(columns[name]) for name in _LABELS if len(columns[name].flatten())]
        return cls(
            **values,
            chunks=tuple(EncodedChunk(**chunk) for chunk in columns["chunks"][0].as_py()),
            labels=beside(*parts) if parts else LABEL_SCHEMA.empty_table(),
        )


@dataclass(frozen=True, kw_only=True)
class VideoEnded:
    """A video was read to its end, or can't be; the shards that came before aren't counted in its record."""

    record: VideoRecord

    def to_arrow(self) -> pa.Table:
        """A table of one row."""
        ended = pa.array([asdict(self.record)], _ENDED)
        return pa.table([["ended"], pa.nulls(1, pa.struct(_SHARD)), ended], schema=_MESSAGE)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """The message in a table that `to_arrow` made."""
        return cls(record=VideoRecord(**table["ended"][0].as_py()))


Message = Shard | VideoEnded
_KINDS = {"shard": Shard, "ended": VideoEnded}


def messages(table: pa.Table) -> Iterator[Message]:
    """The messages in a table, one a row."""
    for row, kind in enumerate(table["kind"].to_pylist()):
        yield cast(Any, _KINDS[kind]).from_arrow(table.slice(row, 1))


def _nested(table: pa.Table) -> pa.ListArray:
    """A column of one row, whose value is the list of a table's rows."""
    columns = [column.combine_chunks() for column in table.columns]
    rows = pa.StructArray.from_arrays(columns, fields=list(table.schema))
    return pa.ListArray.from_arrays(pa.array([0, len(table)], pa.int32()), rows)


def _table(nested: pa.ListArray) -> pa.Table:
    """What `_nested` was made of."""
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(nested.flatten())])


_ARROW_TYPES = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_CHUNKS = pa.list_(
    pa.struct(
        [
            ("index", pa.int32()),
            ("frames", pa.list_(pa.binary())),
            ("frame_indices", pa.list_(pa.int32())),
            ("timestamps", pa.list_(pa.float64())),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ]
    )
)
_SHARD_NUMBERS = [
    pa.field(each.name, _ARROW_TYPES.get(cast(Any, each.type), pa.string()))
    for each in fields(Shard)
    if each.name not in ("chunks", "labels")
]
_LABELS = {
    "labels": LABEL_SCHEMA,
    "spreads": SPREAD_SCHEMA,
    "uncertainties": UNCERTAINTY_SCHEMA,
    "continued": CONTINUED_SCHEMA,
}
"""The parts that a shard's labels may have. Arrow's types have no part that may be missing."""
_SHARD = [
    *_SHARD_NUMBERS,
    pa.field("chunks", _CHUNKS),
    *(pa.field(name, pa.list_(pa.struct(list(part)))) for name, part in _LABELS.items()),
]
_ENDED = pa.struct(
    [(each.name, _ARROW_TYPES.get(cast(Any, each.type), pa.string())) for each in fields(VideoRecord)]
)
_MESSAGE = pa.schema([("kind", pa.string()), ("shard", pa.struct(_SHARD)), ("ended", _ENDED)])
