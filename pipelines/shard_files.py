"""May a shard of a pair set be read? The one door to Parquet files.

A set may come from a stranger, and a value of an extension type is made by the class that is registered for
it: Ray registers one that unpickles, which runs whatever the file holds. A file names such types in the Arrow
schema that it keeps. So Arrow never sees that schema: its key is changed in the footer before Arrow parses
it, and the columns are of Parquet's own types. Both are compared with what a set has, these types and what
the Arrow schema says.
"""

import base64
import posixpath
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.labels import PAIR_SCHEMA, TRUTH_SCHEMA, label_schema
from pipelines.ledger import VIDEO_FILE
from pipelines.storage import Folder, patient, storage_of

FRAME_COLUMNS = PAIR_SCHEMA
TRUTH_COLUMNS = pa.schema([*PAIR_SCHEMA, *TRUTH_SCHEMA])
LABEL_COLUMNS = pa.schema([*PAIR_SCHEMA, *label_schema(is_of_several=False)])
SPREAD_COLUMNS = pa.schema([*PAIR_SCHEMA, *label_schema(is_of_several=True)])
_EVERY_KIND = (FRAME_COLUMNS, TRUTH_COLUMNS, LABEL_COLUMNS, SPREAD_COLUMNS)

_FOOTER_BYTES = 1 << 16
"""Read at once from the end of a Parquet file, whose footer is rarely longer."""
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


def require_own(location: str, label_set: str, found: str) -> None:
    """RuntimeError where something that was found in a set's folder is of another set."""
    if found != label_set:
        raise RuntimeError(
            f"{location} holds labels of the set {found} beside those of {label_set}: a run with other "
            "options or another teacher writes there at the same time, or did; give each a folder of its own"
        )


def shard_at(location: str, name: str, label_set: str | None = None) -> ShardSize | None:
    """The size of a shard of the set, None if it isn't there; see `require_own`."""
    size = Folder(location).size(name)
    if size is None:
        return None
    metadata = _metadata(location, name)
    if label_set is not None:
        column = metadata.schema.names.index("label_set")
        require_own(location, label_set, metadata.row_group(0).column(column).statistics.max)
    return ShardSize(pairs=metadata.num_rows, bytes=size)


def video_of_shards(location: str, video_folder: str) -> str | None:
    """The video that the shards in a folder of the set come from, None without a shard."""
    shards = Folder(location).files(".parquet", within=video_folder)
    return _video_of(location, shards[0]) if shards else None


@patient
def _metadata(location: str, name: str) -> pq.FileMetaData:
    with opened_shard(location, name) as parquet:
        return parquet.metadata


@patient
def _video_of(location: str, name: str) -> str:
    with opened_shard(location, name) as parquet:
        return cast(str, parquet.read(["video"]).column("video")[0].as_py())


@contextmanager
def opened_shard(
    location: str, name: str, schemas: Sequence[pa.Schema] = _EVERY_KIND
) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a set, for every reader of one.

    ValueError, which names the column, where its columns aren't those of one of the `schemas`;
    FileNotFoundError where it isn't there.
    """
    filesystem, root = storage_of(location)
    with filesystem.open_input_file(f"{root}/{name}") as file:
        footer = _footer(file).replace(_ARROW_SCHEMA, _ARROW_SCHEMA.lower())
        remedy = (
            f"restore it, or delete it and {posixpath.dirname(name)}/{VIDEO_FILE} there and run the command "
            "that made the set again"
        )
        try:
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
        yield pq.ParquetFile(file, metadata=checked.metadata, pre_buffer=True, arrow_extensions_enabled=False)


def _footer(file: pa.NativeFile) -> bytes:
    """The end of a Parquet file: its metadata, their length and four letters. Whatever the end of another
    file."""
    size = file.size()
    end = cast(bytes, file.read_at(min(size, _FOOTER_BYTES), max(0, size - _FOOTER_BYTES)))
    length = min(size, int.from_bytes(end[-8:-4], "little") + 8)
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
