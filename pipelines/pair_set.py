"""How is a set of frame pairs read?"""

import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Self, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from numpy import ndarray

from flowcore.pairs import FramePair
from pipelines.filters import PairFilter
from pipelines.invocation import typed
from pipelines.label_rows import DEFAULT_MAX_SPREAD, decode_row
from pipelines.labels import PAIR_ID, PAIR_SCHEMA, with_second_frames
from pipelines.ledger import MANIFEST_FILE, VIDEO_FILE, VideoRecord, read_ledger, read_manifest
from pipelines.set_description import DESCRIPTION_FILE, SetDescription, SetKind, description_at
from pipelines.shard_files import OpenShard, ShardNames, opened_shard
from pipelines.storage import Folder, concurrently, join, patient

Result = TypeVar("Result")

TEACHER_FOLDER = "_teacher"
"""A copy of the model that made the labels, as `pipelines.models` fetches it; of several, the first. The
others are in `_teacher2` and so on."""

_INDEXED = ("pair_id", "height", "width")
_PLACE = ("height", "width", "file", "row_group", "row")
_INDEX_SCHEMA = pa.schema(
    [
        *(PAIR_SCHEMA.field(name) for name in _INDEXED),
        ("file", pa.int32()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),
    ]
)
_FILES_LOOKED_AT = 64
"""For an example: of a set of a million videos, not every one."""


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """A pair set that is open for reading, here or in any process that it is sent to."""

    location: str
    """Folder or URI."""
    description: SetDescription
    files: ShardNames
    """The Parquet files, relative to the location, by folder and number."""
    max_spread: float = DEFAULT_MAX_SPREAD
    """Pixels by which several teachers may disagree on a label that is trusted."""
    uncertainty_tolerance: float | None = None
    """Pixels by which a label is expected to be off that counts 1 / e of a sure one; None takes all for
    sure."""
    where: PairFilter | None = None
    """Which pairs the index has; None for all."""

    @classmethod
    def open(cls, location: str) -> Self:
        """The set in a folder or at a URI.

        FileNotFoundError where there is no set, ValueError where it is another version's or isn't finished.
        """
        folder = Folder(location)
        description = description_at(folder)
        if description is None:
            if not folder.exists():
                raise FileNotFoundError(
                    f"there is no folder {location}; make it with `{typed('pseudolabel')}`"
                )
            raise FileNotFoundError(
                f"{location} is no pair set, it has no {DESCRIPTION_FILE}; give the folder that "
                f"`{typed('pseudolabel')}` was given as --labels"
            )
        try:
            videos = read_manifest(location)
        except FileNotFoundError:
            raise ValueError(
                f"{location} isn't finished, it has no {MANIFEST_FILE}; run the command that writes it, "
                f"`{typed('pseudolabel')} RECIPE --videos ... --teacher ... --labels ...`, again, which adds "
                f"only what is missing, or `{typed('import_labels')}`"
            ) from None
        files = ShardNames(tuple(sorted((video.folder, video.shards) for video in videos)))
        return cls(location=location, description=description, files=files)

    @property
    def label_set(self) -> str:
        """The digest of what the set is made of."""
        return self.description.digest

    @property
    def kind(self) -> SetKind:
        """What the set has beside its frames."""
        return self.description.kind

    @property
    def has_labels(self) -> bool:
        """True where the flow is a teacher's, or came as files."""
        return self.kind in ("labels", "imported")

    @property
    def has_truth(self) -> bool:
        """True where the flow is what a data set knows."""
        return self.kind == "truth"

    @property
    def generation(self) -> int:
        """How many teachers stand between these labels and the unlabelled videos."""
        return int(self.description.provenance.get("generation", "0"))

    @property
    def teacher(self) -> str | None:
        """Where the model that made the labels lies, for `models.fetch_model`; None where the set keeps
        none, as imported labels don't say it."""
        return join(self.location, TEACHER_FOLDER) if self.kind == "labels" else None

    @property
    def quality_columns(self) -> tuple[str, ...]:
        """The columns that grade a label with a number; none without labels."""
        return tuple(field.name for field in self.description.columns if pa.types.is_float32(field.type))

    def videos(self) -> list[VideoRecord]:
        """The videos that gave pairs, as the manifest lists them; FileNotFoundError of an unfinished set."""
        return read_manifest(self.location)

    def ledger(self) -> list[VideoRecord]:
        """The inputs that gave less than they might; FileNotFoundError of an unfinished set."""
        return read_ledger(self.location)

    def index(self, columns: Sequence[str] = ()) -> pa.Table:
        """Every pair that `where` keeps: pair_id string, height and width; file int32, the position in
        `files`; row_group and row, int32; and the given columns of numbers, such as the `quality_columns`.

        In the order of file, row_group and row; reads small columns alone. FileNotFoundError where a file is
        missing, ValueError where `where` fits none of the pairs or not their columns.
        """
        if self.where is not None:
            self.where.require_columns(self.description.columns)
        index = self.index_of(range(len(self.files)), columns)
        if self.where is not None and index.num_rows == 0:
            raise self._nothing_kept(self.where)
        return index

    def index_of(self, files: Sequence[int], columns: Sequence[str] = ()) -> pa.Table:
        """What the `index` has of these files, which may be nothing."""
        parts = concurrently(patient(partial(self._index_of, columns)), files)
        return pa.concat_tables([self._index_schema(columns).empty_table(), *parts])

    def files_looked_at(self, most: int) -> range:
        """The positions of at most this many of the `files`, all over the set."""
        every = max(1, -(-len(self.files) // most))
        return range(0, len(self.files), every)

    @property
    def folders(self) -> list[str]:
        """Of each of the `files`, the folder of the video that its pairs are of. Of a truth, a folder has
        some samples that follow each other."""
        return [posixpath.dirname(file) for file in self.files]

    def num_pairs(self) -> int:
        """The pairs of the set, whatever `where` keeps; reads footers."""
        return sum(self._of_files(self._num_pairs_of))

    @patient
    def read_group(self, file: str, row_group: int) -> list[dict[str, Any]]:
        """The rows of a row group of one of the `files`, by column, each with both of its frames; list
        columns are flat arrays. ValueError for a row without a second frame."""
        with self._opened(file) as shard:
            return rows_of(shard.read(groups=[row_group]))

    def read(self, place: Mapping[str, Any]) -> dict[str, Any]:
        """The row at a place of the index."""
        rows = self.read_group(self.files[place["file"]], place["row_group"])
        return rows[cast(int, place["row"])]

    def decode(self, row: Mapping[str, Any]) -> FramePair:
        """The pair in a row of `read_group`; ValueError, which names pair and set, of a damaged one."""
        try:
            return decode_row(row, self.max_spread, self.uncertainty_tolerance)
        except ValueError as error:
            raise ValueError(
                f"pair {row['pair_id']} in {self.location}, of {row['video']}, can't be read: {error}"
            ) from error

    def example(self) -> FramePair:
        """The pair in `example_row`."""
        return self.decode(self.example_row())

    def example_row(self) -> dict[str, Any]:
        """A labelled pair to look at: of a few files all over the set, the one that moves more (`flow_p50`)
        than nine tenths of theirs do. The first of them may be the label of a cut that nobody found."""
        columns = ("flow_p50",)
        places = self.index_of(self.files_looked_at(_FILES_LOOKED_AT), columns)
        ranked = places.sort_by([(name, "ascending") for name in (*columns, "file", "row_group", "row")])
        (place,) = ranked.slice(int(0.9 * len(ranked)), 1).to_pylist()
        return self.read(place)

    def _of_files(self, work: Callable[[int], Result]) -> list[Result]:
        """What `work` makes of each file's position, in their order."""
        return list(concurrently(patient(work), range(len(self.files))))

    def _num_pairs_of(self, file: int) -> int:
        with self._opened(self.files[file]) as shard:
            return sum(shard.group_pairs)

    def _index_of(self, columns: Sequence[str], file: int) -> pa.Table:
        compared = [] if self.where is None else self.where.columns
        with self._opened(self.files[file]) as shard:
            sizes = shard.group_pairs
            table = shard.read(list(dict.fromkeys((*_INDEXED, *columns, *compared))))
        if problem := _problem(table.select(dict.fromkeys((*_INDEXED, *columns)))):
            raise ValueError(f"{self.files[file]} in {self.location} is damaged, it has {problem}")
        place = (
            np.full(table.num_rows, file, np.int32),
            np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            np.concatenate([np.arange(size, dtype=np.int32) for size in (0, *sizes)]),
        )
        values = [*table.select(_INDEXED).columns, *place, *table.select(columns).columns]
        index = pa.table(values, schema=self._index_schema(columns))
        return index if self.where is None else index.take(self.where.rows(table))

    def _index_schema(self, columns: Sequence[str]) -> pa.Schema:
        return pa.schema([*_INDEX_SCHEMA, *(self.description.columns.field(name) for name in columns)])

    def _columns_of(self, names: Sequence[str], file: int) -> pa.Table:
        with self._opened(self.files[file]) as shard:
            return shard.read(names)

    def _nothing_kept(self, where: PairFilter) -> ValueError:
        """The error, which tells what there is to be kept."""
        table = pa.concat_tables(self._of_files(partial(self._columns_of, where.columns)))
        ranges = {name: pc.min_max(table[name]).as_py() for name in where.columns}
        there = "; ".join(f"{name} is {each['min']} to {each['max']}" for name, each in ranges.items())
        return ValueError(
            f"where {where.text!r} keeps none of the {table.num_rows} pairs of {self.location}, in which "
            f"{there}; loosen it"
        )

    @contextmanager
    def _opened(self, file: str) -> Iterator[OpenShard]:
        try:
            with opened_shard(self.location, file, [self.description.columns]) as shard:
                yield shard
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{file} is missing in {self.location}, though {MANIFEST_FILE} lists it; delete "
                f"{posixpath.dirname(file)}/{VIDEO_FILE} there and run the command that made the set again"
            ) from error


def _problem(table: pa.Table) -> str:
    """What keeps the columns of an index from being one; empty if nothing does."""
    if lacking := [name for name in table.column_names if table[name].null_count]:
        return f"pairs without {', '.join(lacking)}"
    if not pc.all(pc.match_substring_regex(table["pair_id"], f"^{PAIR_ID.pattern}$")).as_py():
        return "names of pairs that aren't 32 hexadecimal digits"
    least = [pc.min(table[side]).as_py() for side in ("height", "width")]
    return "" if min(least) > 0 else f"frames of {least[0]}x{least[1]} px (height x width)"


def one_of_each_size(index: pa.Table) -> list[dict[str, Any]]:
    """A place of a set's index for each (height, width) of its frames."""
    # By one thread, so that the first is the first in the index.
    sizes = index.group_by(["height", "width"], use_threads=False)
    firsts = sizes.aggregate([(name, "first") for name in ("file", "row_group", "row")])
    return cast(list[dict[str, Any]], firsts.rename_columns(_PLACE).to_pylist())


def rows_of(row_group: pa.Table) -> list[dict[str, Any]]:
    """See `PairSet.read_group`."""
    values = {name: row_values(row_group.column(name)) for name in row_group.column_names}
    return with_second_frames(
        [{name: each[row] for name, each in values.items()} for row in range(row_group.num_rows)]
    )


def row_values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column by row; of lists as flat arrays."""
    if not pa.types.is_list(column.type):
        return cast(list[Any], column.to_pylist())
    values: list[ndarray] = []
    for chunk in column.chunks:
        flat = _unpacked(chunk.values) if pa.types.is_boolean(chunk.values.type) else chunk.values.to_numpy()
        values += [flat[start:end] for start, end in pairwise(chunk.offsets.to_numpy())]
    return values


def _unpacked(values: pa.BooleanArray) -> Bool[ndarray, "values"]:
    """Without nulls. Arrow's own `to_numpy` takes twenty times as long."""
    bits = np.frombuffer(values.buffers()[1], np.uint8)
    unpacked = np.unpackbits(bits, count=values.offset + len(values), bitorder="little")
    return unpacked[values.offset :].view(bool)
