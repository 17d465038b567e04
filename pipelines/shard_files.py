"""May a shard of a pair set be read? The one door to Parquet files.

A set may come from a stranger, and a value of an extension type is made by the class that is registered for
it: Ray registers one that unpickles, which runs whatever the file holds. A file names such types in the Arrow
schema that it keeps. So Arrow never sees that schema: its key is changed in the footer before Arrow parses
it, and the columns are of Parquet's own types. Both are compared with what a set has, these types and what
the Arrow schema says.

Nor does Arrow see the file itself. The columns that are asked for are read, each part in one piece, their
pages are checked as `pipelines.shard_pages` does, and Arrow unpacks them from memory.
"""

import base64
import bisect
import mmap
import posixpath
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from typing import cast, overload

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.labels import PAIR_SCHEMA, TRUTH_SCHEMA, label_schema
from pipelines.ledger import VIDEO_FILE
from pipelines.set_files import opened
from pipelines.shard_pages import Chunk, most_values, require_honest
from pipelines.storage import Folder, patient

FRAME_COLUMNS = PAIR_SCHEMA
TRUTH_COLUMNS = pa.schema([*PAIR_SCHEMA, *TRUTH_SCHEMA])


def columns_of_labels(*, has_spread: bool, is_of_three_frames: bool, has_uncertainty: bool) -> pa.Schema:
    """The columns of pairs with labels, see `labels.label_schema`."""
    labels = label_schema(
        has_spread=has_spread, is_of_three_frames=is_of_three_frames, has_uncertainty=has_uncertainty
    )
    return pa.schema([*PAIR_SCHEMA, *labels])


_EVERY_KIND = (
    FRAME_COLUMNS,
    TRUTH_COLUMNS,
    *(
        columns_of_labels(has_spread=several, is_of_three_frames=three_frames, has_uncertainty=uncertain)
        for several, three_frames, uncertain in product((False, True), repeat=3)
    ),
)

_FOOTER_BYTES = 1 << 16
"""Read at once from the end of a Parquet file, whose footer is rarely longer."""
_MOST_FOOTER_BYTES = 1 << 26
_MOST_PAIRS = 1 << 20
_MOST_GROUP_BYTES = 1 << 32
"""Limits on a shard's footer, its pairs and a row group; far above any real set."""
_MAP_NORESERVE = 0x4000
"""Linux's; Python names it from 3.13 on."""
_GAP_BYTES = 1 << 16
"""Between two columns that are read in one piece all the same."""
_ARROW_SCHEMA = b"ARROW:schema"
"""The key under which a Parquet file keeps the Arrow schema that it was written with."""
_EXTENSION = b"ARROW:extension:"
"""What begins the keys by which a field of an Arrow schema says that it is of an extension type."""
_DIFFERENCES_TOLD = 3


@dataclass(frozen=True, kw_only=True)
class ShardSize:
    """What a shard holds and takes."""

    pairs: int
    bytes: int


def shard_name(video_folder: str, shard: int) -> str:
    """The file of a video's shard, relative to the set's folder."""
    return f"{video_folder}/{shard:05d}.parquet"


@dataclass(frozen=True)
class ShardNames(Sequence[str]):
    """The files of videos, by folder and number. Names are made when they are asked for: a manifest of some
    bytes may say that there are millions."""

    shards: tuple[tuple[str, int], ...]
    """(folder, how many) of each video, sorted."""

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        number = range(len(self))[place]
        video = bisect.bisect_right(self._ends, number)
        folder, count = self.shards[video]
        return shard_name(folder, number - self._ends[video] + count)

    @cached_property
    def _ends(self) -> list[int]:
        """How many files there are up to the end of each video."""
        return list(accumulate(count for _, count in self.shards))


class ForeignSetError(RuntimeError):
    """Labels of two sets lie in one folder, or are about to."""


def require_own(location: str, label_set: str, found: str) -> None:
    """ForeignSetError where something that was found in a set's folder is of another set."""
    if found != label_set:
        raise ForeignSetError(
            f"{location} holds labels of the set {found} beside those of {label_set}: a run with other "
            "options or another teacher writes there at the same time, or did; give each a folder of its own"
        )


def shard_at(location: str, name: str, label_set: str | None = None) -> ShardSize | None:
    """The size of a shard of the set, None if it isn't there; see `require_own`."""
    size = Folder(location).size(name)
    if size is None:
        return None
    pairs, found = _pairs_and_set(location, name)
    if label_set is not None:
        require_own(location, label_set, found)
    return ShardSize(pairs=pairs, bytes=size)


def video_of_shards(location: str, video_folder: str) -> str | None:
    """The video that the shards in a folder of the set come from, None without a shard."""
    shards = Folder(location).files(".parquet", within=video_folder)
    return _video_of(location, shards[0]) if shards else None


@patient
def _pairs_and_set(location: str, name: str) -> tuple[int, str]:
    """How many pairs a shard has, and which set its first one says that it is of."""
    with opened_shard(location, name) as shard:
        return sum(shard.group_pairs), _first(shard, "label_set")


@patient
def _video_of(location: str, name: str) -> str:
    with opened_shard(location, name) as shard:
        return _first(shard, "video")


def _first(shard: "OpenShard", column: str) -> str:
    return str(shard.read([column], groups=[0])[column][0].as_py())


class OpenShard:
    """A Parquet file of a set whose columns are a set's."""

    def __init__(self, file: pa.NativeFile, checked: pq.ParquetFile, place: str, remedy: str) -> None:
        metadata = checked.metadata
        self._file = file
        self._size = file.size()
        self._metadata = metadata
        # Each of a set's columns is one of Parquet's.
        self._columns = {name: position for position, name in enumerate(checked.schema_arrow.names)}
        self._place = place
        self._remedy = remedy
        groups = range(metadata.num_row_groups)
        self.group_pairs: list[int] = [metadata.row_group(group).num_rows for group in groups]
        """How many pairs each row group has."""
        if min(self.group_pairs, default=0) < 1 or sum(self.group_pairs) > _MOST_PAIRS:
            raise self._damaged(f"row groups of {reprlib.repr(self.group_pairs)} pairs")

    def read(self, columns: Sequence[str] | None = None, groups: Iterable[int] | None = None) -> pa.Table:
        """These columns of these row groups; None for all. ValueError where they hold something else than
        the file's footer tells, or would unpack to more than frames of the file's size can have."""
        groups = list(range(len(self.group_pairs)) if groups is None else groups)
        # As large as the file, but of what isn't written to it the kernel holds no memory.
        content = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        for group in groups:
            self._fetch(group, columns, content)
        try:
            parquet = pq.ParquetFile(
                pa.BufferReader(content),
                metadata=self._metadata,
                pre_buffer=False,
                arrow_extensions_enabled=False,
            )
            return parquet.read_row_groups(groups, columns=None if columns is None else list(columns))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise self._damaged(f"values that can't be read ({error})") from error

    def _fetch(self, group: int, columns: Sequence[str] | None, content: mmap.mmap) -> None:
        """Adds these columns of a row group to what is in memory, checked."""
        row_group = self._metadata.row_group(group)
        chunks = [Chunk.of(row_group.column(self._columns[name])) for name in columns or self._columns]
        frames = Chunk.of(row_group.column(self._columns["image1"]))
        if not all(0 < each.start < each.end <= self._size for each in (*chunks, frames)):
            raise self._damaged("columns that don't lie in it")
        for start, end, together in _together(chunks):
            if end - start > _MOST_GROUP_BYTES:
                raise self._damaged(f"a row group of {end - start} bytes")
            piece = memoryview(self._file.read_at(end - start, start))
            if len(piece) < end - start:
                # The storage's fault, which another try may repair.
                raise OSError(f"{self._place} ended after {start + len(piece)} bytes")
            content[start:end] = piece
            for chunk in together:
                try:
                    require_honest(
                        chunk,
                        piece[chunk.start - start : chunk.end - start],
                        most_values(chunk, self.group_pairs[group], frames.end - frames.start),
                    )
                except ValueError as error:
                    raise self._damaged(str(error)) from error

    def _damaged(self, found: str) -> ValueError:
        return ValueError(f"{self._place} is damaged, it has {found}; {self._remedy}")


def _together(chunks: Sequence[Chunk]) -> Iterator[tuple[int, int, list[Chunk]]]:
    """(start, end, the chunks in it) of each piece of a file that is read at once."""
    piece: list[Chunk] = []
    end = 0
    for chunk in sorted(chunks, key=lambda each: each.start):
        if piece and chunk.start > end + _GAP_BYTES:
            yield piece[0].start, end, piece
            piece = []
        piece.append(chunk)
        end = max(end, chunk.end)
    if piece:
        yield piece[0].start, end, piece


@contextmanager
def opened_shard(location: str, name: str, schemas: Sequence[pa.Schema] = _EVERY_KIND) -> Iterator[OpenShard]:
    """A Parquet file of a set, for every reader of one.

    ValueError, which names the column, where its columns aren't those of one of the `schemas`;
    FileNotFoundError where it isn't there.
    """
    with opened(location, name) as file:
        remedy = (
            f"restore it, or delete it and {posixpath.dirname(name)}/{VIDEO_FILE} there and run the command "
            "that made the set again"
        )
        # What the storage raises meanwhile isn't the file's fault.
        footer = _footer(file).replace(_ARROW_SCHEMA, _ARROW_SCHEMA.lower())
        try:
            if len(footer) > _MOST_FOOTER_BYTES:
                raise ValueError(f"its footer has {len(footer)} bytes or more")
            # As long as no value is read, a footer alone is a Parquet file.
            checked = pq.ParquetFile(pa.BufferReader(b"PAR1" + footer), arrow_extensions_enabled=False)
            found = [checked.schema_arrow, *_declared_schema(checked.metadata)]
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ValueError(f"{name} in {location} is damaged ({error}); {remedy}") from error
        differing = min((_differences(found, schema) for schema in schemas), key=len)
        if differing:
            raise ValueError(
                f"{name} in {location} has {', '.join(differing[:_DIFFERENCES_TOLD])}; nothing of a file is "
                f"read whose columns aren't exactly a set's: {remedy}"
            )
        yield OpenShard(file, checked, f"{name} in {location}", remedy)


def _footer(file: pa.NativeFile) -> bytes:
    """The end of a Parquet file: its metadata, their length and four letters. Whatever the end of another
    file; more than `_MOST_FOOTER_BYTES` aren't read."""
    size = file.size()
    end = cast(bytes, file.read_at(min(size, _FOOTER_BYTES), max(0, size - _FOOTER_BYTES)))
    length = min(size, int.from_bytes(end[-8:-4], "little") + 8)
    length = min(length, _MOST_FOOTER_BYTES + 1)
    return end[-length:] if length <= len(end) else cast(bytes, file.read_at(length, size - length))


def _declared_schema(metadata: pq.FileMetaData) -> list[pa.Schema]:
    """The Arrow schema that a file was written with, if it says, where an extension type is mere metadata of
    a field."""
    declared = (metadata.metadata or {}).get(_ARROW_SCHEMA.lower())
    if declared is None:
        return []
    content = base64.b64decode(declared).replace(_EXTENSION, _EXTENSION.lower())
    return [pa.ipc.read_schema(pa.py_buffer(content))]


def _differences(found: Sequence[pa.Schema], wanted: pa.Schema) -> list[str]:
    """What sets the columns of a file, as each of `found` tells of them, apart from those it should have."""
    differences: list[str] = []
    for schema in found:
        for name, count in Counter(schema.names).items():
            fields = [schema.field(position) for position in schema.get_all_field_indices(name)]
            if name not in wanted.names:
                differences.append(f"an unknown column {reprlib.repr(name)}")
            elif count > 1:
                differences.append(f"{count} columns {name!r}")
            elif not fields[0].equals(wanted.field(name)):
                types = (_type(field) for field in (fields[0], wanted.field(name)))
                differences.append(f"a column {name!r} of {' in place of '.join(types)}")
            elif not fields[0].equals(wanted.field(name), check_metadata=True):
                differences.append(f"a column {name!r} with metadata, as an extension type has")
        differences += [f"no column {name!r}" for name in wanted.names if name not in schema.names]
    return list(dict.fromkeys(differences))


def _type(field: pa.Field) -> str:
    """As an error tells it; a stranger's may be long."""
    return f"{str(field.type)[:100]}{'' if field.nullable else ' not null'}"
