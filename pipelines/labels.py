"""What is a pair set on disk, and how is a pair read from it?

A pair set is a folder, local or on object storage, of Parquet files of frame pairs,
`<video digest>/<shard>.parquet`; where a teacher made pseudo-labels of them it is a label set. Any Parquet
reader understands a row without this module:

- `flow_fw`, `flow_bw`: planar [2, ceil(height / s), ceil(width / s)] of int32, where s is `flow_stride`: how
  much each value exceeds the one above it, the first row as it is, in units of 1/64 px. Summed down the
  columns, divided by 64, upsampled s times (bilinear, half-pixel centres, the border repeated) and cropped to
  height x width, this is the teacher's flow within 1/128 px.
- `occ_fw`, `occ_bw`: [height, width] of bool, True = occluded.

Two choices aren't obvious. A video's folder is named after its content: a copy or a renamed video is the same
video, and a changed one is another, whose pairs never mix with those of the old. And flow is stored as
differences down the columns, since Parquet's own delta encoding takes them along the rows alone; with both,
the same flow takes about half the bytes at full resolution.
"""

import base64
import hashlib
import json
import posixpath
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Self, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from flowcore.geometry import upsample_flow
from flowcore.hallucination import FramePair
from flowcore.video import SAMPLER_VERSION
from pipelines.clips import FrameCodec
from pipelines.filters import PairFilter
from pipelines.locations import Folder, concurrently, join, patient, storage_of

Result = TypeVar("Result")

FORMAT = 4
"""Version of the layout, of the rows' meaning and of what computes them: counted up, too, where the same
teacher would give other numbers. Another one is refused."""
FLOW_UNITS = 64
"""Units of a stored flow per pixel."""

DESCRIPTION_FILE = "_label_set.json"
"""What the set is made of; written first."""
MANIFEST_FILE = "_manifest.json"
"""What the set holds; written last, so that a set without it is unfinished."""
LEDGER_FILE = "_ledger.json"
"""The inputs that gave nothing or less than they hold, and why."""
TEACHER_FOLDER = "_teacher"
"""A copy of the model that made the labels, as `pipelines.checkpoints` reads it; of several, the first. The
others are in `_teacher2` and so on."""
VIDEO_FILE = "_video.json"
"""In a video's folder: what became of it; written after its last shard."""

_INTEGERS, _BOOLS = (
    pa.list_(pa.field("element", element, nullable=False)) for element in (pa.int32(), pa.bool_())
)
"""Never null, which Parquet then needn't tell of each element."""


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
"""A frame pair: `frame` is the first frame's number in the video, `timestamp` its time in seconds or nan,
images are encoded as the set's codec says, `label_set` is the digest of what the set is made of."""
LABEL_SCHEMA = pa.schema(
    [
        *_lists(_INTEGERS, "flow_fw", "flow_bw"),
        ("flow_stride", pa.int32()),
        *_lists(_BOOLS, "occ_fw", "occ_bw"),
        ("occluded", pa.float32()),
        ("forward_backward", pa.float32()),
        ("photometric", pa.float32()),
        ("flow_p50", pa.float32()),
        ("flow_p99", pa.float32()),
        ("flow_max", pa.float32()),
        ("teacher", pa.string()),
    ]
)
"""What a teacher adds to a pair. `teacher` is its digest; the numbers are means over both directions:

occluded: share of occluded pixels. forward_backward: px by which the two flows disagree, over the visible
pixels. photometric: census distance (0 to 48) after warping, over the visible pixels. flow_p50, flow_p99,
flow_max: length of the flow in px, over all pixels. See `pipelines.labelling`, where they are computed.
"""

SPREAD_SCHEMA = pa.schema(
    [
        *_lists(_INTEGERS, "spread_fw", "spread_bw"),
        ("spread", pa.float32()),
    ]
)
"""What several teachers add, whose mean the flow is, with the mean's own occlusion: how far they disagree, on
the flow's grid and stored as it is, as the root mean square distance of their flows to the mean; and its mean
in px over all pixels of both directions."""
TRUTH_SCHEMA = pa.schema(
    [
        *_lists(_INTEGERS, "flow_fw"),
        ("flow_stride", pa.int32()),
        *_lists(_BOOLS, "valid_fw"),
    ]
)
"""What a benchmark adds to a pair, where there is truth in place of labels: `flow_fw` as above at stride 1,
and `valid_fw`, [height, width], True where it is known."""

_SCHEMAS = tuple(
    pa.schema([field for part in parts for field in part])
    for parts in (
        (PAIR_SCHEMA,),
        (PAIR_SCHEMA, TRUTH_SCHEMA),
        (PAIR_SCHEMA, LABEL_SCHEMA),
        (PAIR_SCHEMA, LABEL_SCHEMA, SPREAD_SCHEMA),
    )
)
"""Of every kind of set: frames alone, a benchmark's truth, one teacher's labels, several teachers'."""
_FRAMES, _TRUTH, _LABELS, _LABELS_OF_SEVERAL = _SCHEMAS

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
_FLOWS = ("flow_fw", "flow_bw")
_SPREADS = ("spread_fw", "spread_bw")
_MASKS = ("occ_fw", "occ_bw", "valid_fw")
_IMAGES = ("image1", "image2")
_FILES_LOOKED_AT = 64
"""For an example: of a set of a million videos, not every one."""
_REPEATED = ("video", "label_set", "teacher")
_FOOTER_BYTES = 1 << 16
"""Read at once from the end of a Parquet file, whose footer is rarely longer."""
_ARROW_SCHEMA = b"ARROW:schema"
"""The key under which a Parquet file keeps the Arrow schema that it was written with."""
_EXTENSION = b"ARROW:extension:"
"""What begins the keys by which a field of an Arrow schema says that it is of an extension type."""
_DIFFERENCES_TOLD = 3
"""Of a file's columns from a set's, in an error."""


def label_grid(height: int, width: int, stride: int) -> tuple[int, int]:
    """(rows, columns) of a flow stored at `stride`: the part of a network's grid that lies over the frame."""
    return -(-height // stride), -(-width // stride)


def pair_id(video_digest: str, frames: tuple[int, int], stride: int, height: int, width: int) -> str:
    """32 hexadecimal digits that name a pair, whatever labels it."""
    identity = (video_digest, *frames, stride, height, width, SAMPLER_VERSION)
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest()


def quantized(flow: Float[Tensor, "pairs _ rows columns"]) -> pa.ListArray:
    """The column that stores `flow`, in pixels, to within 1/128 px; ValueError if it isn't finite."""
    if not torch.isfinite(flow).all():
        raise ValueError("flow must be finite to be a label: the network that gave it has diverged")
    units = (flow * FLOW_UNITS).round().to(torch.int32).cpu().numpy()
    return _flat_lists(np.diff(units, axis=2, prepend=np.int32(0)), _INTEGERS)


def masks(mask: Bool[Tensor, "pairs 1 height width"]) -> pa.ListArray:
    """The column that stores `mask`."""
    return _flat_lists(mask.cpu().numpy(), _BOOLS)


def _flat_lists(values: ndarray, type_: pa.DataType) -> pa.ListArray:
    """One flat list an entry of the first axis."""
    size = values[0].size
    offsets = np.arange(len(values) + 1, dtype=np.int32) * size
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)), type=type_)


def stored_pixels(
    differences: Sequence[int], rows: int, columns: int
) -> Float[ndarray, "channels rows columns"]:
    """What `quantized` stored of a pair, in pixels and on the stored grid."""
    # torch sums down columns three times as fast as numpy.
    grid = torch.tensor(np.asarray(differences, np.int32)).view(-1, rows, columns)
    return (grid.cumsum(dim=1, dtype=torch.int32) / FLOW_UNITS).numpy()


def encode_shard(table: pa.Table, row_group_pairs: int) -> bytes:
    """The Parquet file of a table of PAIR_SCHEMA and what labels or truth add to it.

    Flow is delta coded, flow and masks are zstd compressed; images are compressed already.
    """
    names = table.column_names
    leaves = {name: f"{name}.list.element" for name in (*_FLOWS, *_SPREADS, *_MASKS) if name in names}
    plain = {name: "PLAIN" for name in names if name not in leaves and name not in _REPEATED}
    encodings = {leaves[name]: "PLAIN" if name in _MASKS else "DELTA_BINARY_PACKED" for name in leaves}
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


DEFAULT_MAX_SPREAD = 1.0


def decode_row(row: Mapping[str, Any], max_spread: float = DEFAULT_MAX_SPREAD) -> FramePair:
    """The pair in a row of `PairSet.read_group`; what the row has no column for is None.

    Where several teachers' spread is `max_spread` px or more the label has confidence 0.
    """
    codec = FrameCodec()
    height, width = row["height"], row["width"]
    return FramePair(
        image1=codec.decode(row["image1"]),
        image2=codec.decode(row["image2"]),
        flow_fw=decode_flow(row["flow_fw"], row["flow_stride"], height, width) if "flow_fw" in row else None,
        flow_bw=decode_flow(row["flow_bw"], row["flow_stride"], height, width) if "flow_bw" in row else None,
        confidence_fw=_confidence(row, "fw", max_spread),
        confidence_bw=_confidence(row, "bw", max_spread),
    )


def _confidence(
    row: Mapping[str, Any], direction: str, max_spread: float
) -> Float[ndarray, "height width"] | None:
    """1 where a label is visible in the other frame and its teachers agree, or a truth is known; else 0."""
    height, width = row["height"], row["width"]
    if f"occ_{direction}" in row:
        trusted = ~np.asarray(row[f"occ_{direction}"], bool)
    elif f"valid_{direction}" in row:
        trusted = np.asarray(row[f"valid_{direction}"], bool)
    else:
        return None
    confidence = trusted.astype(np.float32).reshape(height, width)
    if f"spread_{direction}" in row:
        stride = row["flow_stride"]
        (grid,) = stored_pixels(row[f"spread_{direction}"], *label_grid(height, width, stride))
        agreed = np.repeat(np.repeat(grid < max_spread, stride, axis=0), stride, axis=1)[:height, :width]
        confidence *= agreed
    return confidence


def decode_flow(
    differences: Sequence[int], stride: int, height: int, width: int
) -> Float[ndarray, "2 height width"]:
    """The teacher's flow in pixels from a `flow_fw` or `flow_bw` of a row."""
    grid = torch.from_numpy(stored_pixels(differences, *label_grid(height, width, stride)))
    return upsample_flow(grid[None], stride, height, width)[0].numpy()


@dataclass(frozen=True, kw_only=True)
class SetDescription:
    """What a set is made of, which decides whether two runs may write into one folder.

    made_of: JSON values, all that the labels depend on. provenance: texts that name where that came from,
    such as the teacher's URI; they may differ.
    """

    made_of: Mapping[str, Any]
    provenance: Mapping[str, str]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, the `label_set` of each row."""
        canonical = json.dumps({"format": FORMAT, **self.made_of}, sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def describe_set(location: str, description: SetDescription) -> None:
    """Makes the folder a set of this description; ValueError, with what differs, if it is another's.

    The provenance is that of the run that finished the set first, not of one that was killed before.
    """
    folder = Folder(location)
    before = description_at(folder)
    if before is None and folder.files():
        raise ValueError(f"{location} holds other files and is no pair set; give a new folder")
    if before is not None and before.digest != description.digest:
        ours, theirs = _leaves(description.made_of), _leaves(before.made_of)
        differing = [
            f"{name} is {theirs.get(name)} there and {ours.get(name)} here"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        raise ValueError(
            f"{location} is a set made otherwise: {'; '.join(differing)}; labels of two makings never mix: "
            "give another folder, or the options that the set was made with"
        )
    if before is None or folder.size(MANIFEST_FILE) is None:
        values = {
            "format": FORMAT,
            "label_set": description.digest,
            "made_of": dict(description.made_of),
            "provenance": dict(description.provenance),
        }
        folder.write(DESCRIPTION_FILE, _json(values))


def description_at(folder: "Folder") -> SetDescription | None:
    """What the folder's set is made of, None where none was begun; ValueError as `PairSet.open`."""
    try:
        text = folder.read(DESCRIPTION_FILE)
    except FileNotFoundError:
        return None
    try:
        values = json.loads(text)
        version = values["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{DESCRIPTION_FILE} in {folder.location} is damaged ({error!r}); restore it or make the set anew"
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{folder.location} has format {version}, and this version reads {FORMAT}; use the version that "
            "wrote it, or make the set anew in another folder"
        )
    return SetDescription(made_of=values["made_of"], provenance=values["provenance"])


def _leaves(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, Mapping):
        inner = (_leaves(each, f"{path}.{key}" if path else str(key)) for key, each in value.items())
        return {name: leaf for leaves in inner for name, leaf in leaves.items()}
    # As it comes back from JSON.
    return {path: list(value) if isinstance(value, tuple) else value}


def _json(values: object) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


Outcome = Literal["nothing", "cut short", "duplicate", "unreadable now"]


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """An input that gave no pair, or fewer than it holds, or that is another one's copy.

    "unreadable now" is the storage's fault: another run tries again. cuts, static_pairs, faded_pairs: how
    many of its pairs were left out for each, as in `flowcore.video.VideoReport`.
    """

    video: str
    outcome: Outcome
    reason: str
    frames_read: int
    pairs: int
    cuts: int = 0
    static_pairs: int = 0
    faded_pairs: int = 0


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """A video of a set. folder: its content's digest. bytes: of its shards."""

    video: str
    folder: str
    pairs: int
    shards: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """What became of a video whose content is known: its `_video.json`.

    stamp: tells a changed file. folder: its content's digest. run: the run that wrote it. outcome, reason: as
    in the ledger; "done" if it was read to its end. cuts, static_pairs, faded_pairs: as in
    `flowcore.video.VideoReport`. bytes: of its shards. label_set: of those.
    """

    video: str
    stamp: str
    folder: str
    label_set: str
    outcome: Literal["done", "nothing", "cut short"]
    reason: str
    frames_read: int
    cuts: int
    static_pairs: int
    faded_pairs: int
    pairs: int
    shards: int
    bytes: int
    run: str


def video_record(location: str, folder: str) -> VideoRecord | None:
    """The record in a video's folder of the set, None where no run came to its end."""
    try:
        return VideoRecord(**json.loads(Folder(location).read(f"{folder}/{VIDEO_FILE}")))
    except FileNotFoundError:
        return None


def read_ledger(location: str) -> list[LedgerEntry]:
    """The ledger of a folder; FileNotFoundError where no run has ended."""
    return [LedgerEntry(**entry) for entry in json.loads(Folder(location).read(LEDGER_FILE))]


def write_ledger(location: str, ledger: Sequence[LedgerEntry]) -> None:
    """Writes the ledger over the one before, sorted by video."""
    entries = sorted(ledger, key=lambda entry: (entry.video, entry.outcome))
    Folder(location).write(LEDGER_FILE, _json([vars(entry) for entry in entries]))


def write_manifest(location: str, label_set: str, videos: Sequence[VideoEntry]) -> None:
    """Finishes the set, or brings the list of a finished one up to date."""
    manifest = {
        "format": FORMAT,
        "label_set": label_set,
        "num_videos": len(videos),
        "num_pairs": sum(video.pairs for video in videos),
        "num_shards": sum(video.shards for video in videos),
        "bytes": sum(video.bytes for video in videos),
        "videos": [vars(video) for video in sorted(videos, key=lambda video: video.folder)],
    }
    Folder(location).write(MANIFEST_FILE, _json(manifest))


def shard_name(video_folder: str, shard: int) -> str:
    """The file of a video's shard, relative to the set's folder."""
    return f"{video_folder}/{shard:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class ShardSize:
    """What a shard holds and takes."""

    pairs: int
    bytes: int


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
    metadata = _shard_metadata(location, name)
    if label_set is not None:
        column = metadata.schema.names.index("label_set")
        require_own(location, label_set, metadata.row_group(0).column(column).statistics.max)
    return ShardSize(pairs=metadata.num_rows, bytes=size)


def video_of_shards(location: str, video_folder: str) -> str | None:
    """The video that the shards in a folder of the set come from, None without a shard."""
    shards = Folder(location).files(".parquet", within=video_folder)
    if not shards:
        return None
    return _video_of_shard(location, shards[0])


@patient
def _shard_metadata(location: str, name: str) -> pq.FileMetaData:
    with opened_shard(location, name) as parquet:
        return parquet.metadata


@patient
def _video_of_shard(location: str, name: str) -> str:
    with opened_shard(location, name) as parquet:
        return cast(str, parquet.read(["video"]).column("video")[0].as_py())


@contextmanager
def opened_shard(
    location: str, name: str, schemas: Sequence[pa.Schema] = _SCHEMAS
) -> Iterator[pq.ParquetFile]:
    """A Parquet file of a set, for every reader of one. ValueError, which names the column, where its columns
    aren't those of one of the `schemas`; FileNotFoundError where it isn't there.

    A set may come from a stranger, and a value of an extension type is made by the class that is registered
    for it: Ray registers one that unpickles, which runs whatever the file holds. A file names such types in
    the Arrow schema that it keeps. So Arrow never sees that one: its key is changed in the footer before
    Arrow parses it, and the columns are of Parquet's own types. Both are compared, these and what the Arrow
    schema says.
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


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """A pair set that is open for reading, here or in any process that it is sent to.

    files: the Parquet files, relative to the location, sorted. max_spread: px by which several teachers may
    disagree on a label that is trusted. where: which pairs the index has; None for all.
    """

    location: str
    description: SetDescription
    files: tuple[str, ...]
    max_spread: float = DEFAULT_MAX_SPREAD
    where: PairFilter | None = None

    @classmethod
    def open(cls, location: str) -> Self:
        """The set in a folder or at a URI.

        FileNotFoundError where there is no set, ValueError where it is another version's or isn't finished.
        """
        folder = Folder(location)
        description = description_at(folder)
        if description is None:
            if not folder.exists():
                raise FileNotFoundError(f"there is no folder {location}; make it with jobs/pseudolabel.py")
            raise FileNotFoundError(
                f"{location} is no pair set, it has no {DESCRIPTION_FILE}; give the folder that "
                "jobs/pseudolabel.py was given as --labels"
            )
        try:
            manifest = json.loads(folder.read(MANIFEST_FILE))
        except FileNotFoundError:
            raise ValueError(
                f"{location} isn't finished, it has no {MANIFEST_FILE}; run the command that writes it, "
                "jobs/pseudolabel.py RECIPE --videos ... --teacher ... --labels ..., again: it adds only "
                "what is missing"
            ) from None
        files = [
            shard_name(video["folder"], shard)
            for video in manifest["videos"]
            for shard in range(video["shards"])
        ]
        return cls(location=location, description=description, files=tuple(sorted(files)))

    @property
    def label_set(self) -> str:
        """The digest of what the set is made of."""
        return self.description.digest

    @property
    def has_labels(self) -> bool:
        """False where there are frames alone."""
        return "teacher" in self.description.made_of

    @property
    def has_truth(self) -> bool:
        """True where the flow is the truth of a benchmark, not a teacher's."""
        return "truth" in self.description.made_of

    @property
    def schema(self) -> pa.Schema:
        """The columns of its files, by its kind."""
        if self.has_truth:
            return _TRUTH
        if not self.has_labels:
            return _FRAMES
        return _LABELS if "digest" in self.description.made_of["teacher"] else _LABELS_OF_SEVERAL

    @property
    def teacher(self) -> str | None:
        """Where the model that made the labels lies, for `checkpoints.fetch_model`; None without labels, and
        where they came as files, which don't say it."""
        has_model = self.has_labels and "files" not in self.description.made_of
        return join(self.location, TEACHER_FOLDER) if has_model else None

    @property
    def quality_columns(self) -> tuple[str, ...]:
        """The columns that grade a label with a number; none without labels."""
        return tuple(field.name for field in self.schema if pa.types.is_float32(field.type))

    def videos(self) -> list[VideoEntry]:
        """The videos that gave pairs, as the manifest lists them; FileNotFoundError of an unfinished set."""
        manifest = json.loads(Folder(self.location).read(MANIFEST_FILE))
        return [VideoEntry(**entry) for entry in manifest["videos"]]

    def ledger(self) -> list[LedgerEntry]:
        """The inputs that gave less than they might; FileNotFoundError of an unfinished set."""
        return read_ledger(self.location)

    def index(self, columns: Sequence[str] = ()) -> pa.Table:
        """Every pair that `where` keeps: pair_id string, height and width; file int32, the position in
        `files`; row_group and row, int32; and the given columns of numbers, such as the `quality_columns`.

        In the order of file, row_group and row; reads footers and small columns, and those that `where`
        compares in the row groups that it doesn't rule out. FileNotFoundError where a file is missing,
        ValueError where `where` fits none of the pairs or not their columns.
        """
        parts = self._of_files(partial(self._index_of, columns))
        index = pa.concat_tables([_index_schema(columns).empty_table(), *parts])
        if self.where is not None and index.num_rows == 0:
            raise self._nothing_kept(self.where)
        return index

    def num_pairs(self) -> int:
        """The pairs of the set, whatever `where` keeps; reads footers."""
        return sum(self._of_files(self._num_pairs_of))

    @patient
    def read_group(
        self, file: str, row_group: int, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a row group of one of the `files`, by column; list columns are flat arrays."""
        with self._opened(file) as parquet:
            table = parquet.read_row_group(row_group, columns=None if columns is None else list(columns))
        values = {name: row_values(table.column(name)) for name in table.column_names}
        return [{name: each[row] for name, each in values.items()} for row in range(table.num_rows)]

    def read(self, place: Mapping[str, Any]) -> dict[str, Any]:
        """The row at a place of the index."""
        rows = self.read_group(self.files[place["file"]], place["row_group"])
        return rows[cast(int, place["row"])]

    def decode(self, row: Mapping[str, Any]) -> FramePair:
        """The pair in a row of `read_group`."""
        return decode_row(row, self.max_spread)

    def example(self) -> FramePair:
        """A labelled pair to look at: of a few files all over the set, the one that moves more (`flow_p50`)
        than nine tenths of theirs do. The first of them may be the label of a cut that nobody found."""
        every = -(-len(self.files) // _FILES_LOOKED_AT)
        columns = ("flow_p50",)
        read = patient(partial(self._index_of, columns))
        places = pa.concat_tables(read(file) for file in range(0, len(self.files), every))
        ranked = places.sort_by([(name, "ascending") for name in (*columns, "file", "row_group", "row")])
        (place,) = ranked.slice(int(0.9 * len(ranked)), 1).to_pylist()
        return self.decode(self.read(place))

    def _of_files(self, work: Callable[[int], Result]) -> list[Result]:
        """What `work` makes of each file's position, in their order."""
        return list(concurrently(patient(work), range(len(self.files))))

    def _num_pairs_of(self, file: int) -> int:
        with self._opened(self.files[file]) as parquet:
            return cast(int, parquet.metadata.num_rows)

    def _index_of(self, columns: Sequence[str], file: int) -> pa.Table:
        with self._opened(self.files[file]) as parquet:
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            groups, compared = list(range(len(sizes))), list[str]()
            if self.where is not None:
                # Of the metadata that were checked, without the file's own Arrow schema.
                footer = pa.BufferOutputStream()
                parquet.metadata.write_metadata_file(footer)
                groups = self.where.row_groups(ds.ParquetFileFormat().make_fragment(footer.getvalue()))
                compared = self.where.columns
            names = list(dict.fromkeys((*_INDEXED, *columns, *compared)))
            table = parquet.read_row_groups(groups, columns=names)
        read = [sizes[group] for group in groups]
        place = (
            np.full(table.num_rows, file, np.int32),
            np.repeat(np.array(groups, np.int32), read),
            np.concatenate([np.arange(size, dtype=np.int32) for size in (0, *read)]),
        )
        values = [*table.select(_INDEXED).columns, *place, *table.select(columns).columns]
        index = pa.table(values, schema=_index_schema(columns))
        return index if self.where is None else index.take(self.where.rows(table))

    def _columns_of(self, names: Sequence[str], file: int) -> pa.Table:
        with self._opened(self.files[file]) as parquet:
            return parquet.read(list(names))

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
    def _opened(self, file: str) -> Iterator[pq.ParquetFile]:
        try:
            with opened_shard(self.location, file, [self.schema]) as parquet:
                yield parquet
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{file} is missing in {self.location}, though {MANIFEST_FILE} lists it; delete "
                f"{posixpath.dirname(file)}/{VIDEO_FILE} there and run the command that made the set again"
            ) from error


def one_of_each_size(index: pa.Table) -> list[dict[str, Any]]:
    """A place of a set's index for each (height, width) of its frames."""
    # by one thread, so that the first is the first in the index
    sizes = index.group_by(["height", "width"], use_threads=False)
    firsts = sizes.aggregate([(name, "first") for name in ("file", "row_group", "row")])
    return cast(list[dict[str, Any]], firsts.rename_columns(_PLACE).to_pylist())


def _index_schema(columns: Sequence[str]) -> pa.Schema:
    known = pa.unify_schemas([PAIR_SCHEMA, LABEL_SCHEMA, SPREAD_SCHEMA])
    return pa.schema([*_INDEX_SCHEMA, *(known.field(name) for name in columns)])


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
