"""How does a collection of videos become a pair set, each pair once, whatever is killed on the way?

Three stages of Ray Data, a shard at a time: read a video into encoded frames, ask the teacher (absent where
frames alone are wanted), write the shard. A shard's name and content follow from the video and the options, it
appears whole, and it is skipped where it is there; so a rerun of the same command does what is left.

The choice that isn't obvious is that a reading task yields one row a shard even for shards that are there
already, and Ray makes each row a block. Ray runs a task anew when its worker dies and goes on behind the blocks
that were consumed before, by their number: a task that left out what is written by then would lose shards.
"""

import dataclasses
import fcntl
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit
from uuid import uuid4

import pyarrow as pa
import ray
import ray.data
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flowcore import networks
from flowcore.geometry import backward_warp, upsample_flow
from flowcore.networks import FlowNetwork
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.photometric import census_border, census_distance
from flowcore.shapes import Flow, Mask
from flowcore.video import SAMPLER_VERSION, ClipOptions, VideoError
from pipelines import checkpoints
from pipelines.clips import DecoderProcess, EncodedChunk, FrameCodec, VideoSource, find_videos
from pipelines.labels import (
    LABEL_SCHEMA,
    PAIR_SCHEMA,
    VIDEO_FILE,
    Folder,
    LedgerEntry,
    SetDescription,
    VideoEntry,
    describe_set,
    encode_shard,
    label_grid,
    masks,
    pair_id,
    quantized,
    shard_name,
    storage_of,
    write_manifest,
)

_READ_CPUS, _WRITE_CPUS, _TEACHER_CPUS = 0.75, 0.25, 1.0
"""What a task of each stage asks of Ray: together two CPUs, so that the smallest machine runs one of each."""
_MOST_TASKS = 1000
"""Reading tasks of a run; in a larger collection a task reads several videos, because Ray's driver pays for each."""


@dataclass(frozen=True, kw_only=True)
class LabellingOptions:
    """How a collection becomes a pair set.

    shard_pairs: a shard is closed once it holds so many pairs, with whole chunks. row_group_pairs: pairs that are
    read together. max_bad_share: of the inputs, those that gave nothing, above which the run fails.
    num_teachers: processes that label; None takes one a GPU, or without GPUs most of the CPUs.
    teacher_gpus: GPUs for each, None takes one if the cluster has any now.
    """

    clips: ClipOptions = field(default_factory=ClipOptions)
    codec: FrameCodec = field(default_factory=FrameCodec)
    check: ForwardBackwardCheck = field(default_factory=ForwardBackwardCheck)
    shard_pairs: int = 64
    row_group_pairs: int = 8
    max_bad_share: float = 0.5
    num_teachers: int | None = None
    teacher_gpus: float | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("shard_pairs", self.shard_pairs),
            ("row_group_pairs", self.row_group_pairs),
            ("num_teachers", self.num_teachers),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share {self.max_bad_share} must be a share of the inputs, in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class LabellingProgress:
    """How far a run is; pairs_per_second counts the pairs that this run made."""

    videos_done: int
    num_videos: int
    new_pairs: int
    pairs_per_second: float


@dataclass(frozen=True, kw_only=True)
class LabellingSummary:
    """What the set holds after a run, and what the run did.

    label_set: digest of what the set is made of. num_*, bytes: of the whole set. new_pairs: made by this run, in
    `seconds`, from the start of Ray's work to its end; pairs_per_second is their quotient. stage_seconds: work
    of all processes by stage. ledger: every input that gave less than it might.
    """

    label_set: str
    num_videos: int
    num_pairs: int
    num_shards: int
    bytes: int
    new_pairs: int
    seconds: float
    pairs_per_second: float
    stage_seconds: Mapping[str, float]
    ledger: tuple[LedgerEntry, ...]


OnProgress = Callable[[LabellingProgress], None]


def write_pairs(
    videos: str,
    location: str,
    options: LabellingOptions,
    *,
    on_progress: OnProgress | None = None,
) -> LabellingSummary:
    """Writes the frame pairs of a collection (see `find_videos`) into a folder or URI; done work is kept.

    Raises FileNotFoundError where there is no video, ValueError where the folder is another set's, and
    RuntimeError, with the ledger written, if nothing or too little came of the inputs.
    """
    description = SetDescription(made_of=_made_of(options), provenance={"videos": videos})
    return _write_set(videos, location, options, description, None, on_progress)


def write_labels(
    videos: str,
    teacher: str,
    location: str,
    options: LabellingOptions,
    *,
    on_progress: OnProgress | None = None,
) -> LabellingSummary:
    """Writes the pairs of a collection with the teacher's pseudo-labels; see `write_pairs`.

    teacher: what `checkpoints.fetch_model` takes. The network sees the frames as they are stored, so that a
    label belongs to exactly the pixels that the student will see.
    """
    network, info = checkpoints.load_model(checkpoints.fetch_model(teacher))
    made_of = {
        **_made_of(options),
        "teacher": {"digest": info.digest, "network": networks.to_dict(info.config)},
        "check": dataclasses.asdict(options.check),
    }
    provenance = {"videos": videos, "teacher": teacher, "teacher_run": info.run_id or ""}
    description = SetDescription(made_of=made_of, provenance=provenance)
    return _write_set(videos, location, options, description, network, on_progress)


def _made_of(options: LabellingOptions) -> dict[str, Any]:
    return {
        "sampler": SAMPLER_VERSION,
        "clips": dataclasses.asdict(options.clips),
        "codec": dataclasses.asdict(options.codec),
        "shard_pairs": options.shard_pairs,
        "row_group_pairs": options.row_group_pairs,
    }


def _write_set(
    videos: str,
    location: str,
    options: LabellingOptions,
    description: SetDescription,
    network: FlowNetwork | None,
    on_progress: OnProgress | None,
) -> LabellingSummary:
    sources = find_videos(videos)
    stamps = _stamps(sources)
    with _alone_in(location):
        describe_set(location, description)
        Folder(location).sweep()
        tally = _Tally(location, stamps, on_progress)
        left = [source for source in sources if not tally.is_done(source.uri)]
        if left:
            teacher = description.made_of.get("teacher")
            plan = _Plan(
                run=uuid4().hex,
                location=location,
                label_set=description.digest,
                teacher=None if teacher is None else teacher["digest"],
                options=options,
            )
            for row in _rows(left, stamps, plan, network):
                tally.add(row)
        return tally.finish(description.digest, options.max_bad_share)


@contextmanager
def _alone_in(location: str) -> Iterator[None]:
    """Keeps a second run out of a local folder; object storage needs no such care, nothing is swept there."""
    filesystem, root = storage_of(location)
    if not isinstance(filesystem, LocalFileSystem):
        yield
        return
    os.makedirs(root, exist_ok=True)
    # The kernel frees the lock of a killed process.
    with open(os.path.join(root, ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"another run writes into {location}; wait for it or give another folder") from error
        yield


@dataclass(frozen=True, kw_only=True)
class _Stamp:
    """What tells a file's content from a changed one without reading it. size: bytes, of a sequence in all."""

    size: int
    text: str


def _stamps(sources: Sequence[VideoSource]) -> dict[str, _Stamp]:
    """By URI."""
    with ThreadPoolExecutor(_STORAGE_THREADS) as threads:
        return dict(zip((source.uri for source in sources), threads.map(_stamp, sources), strict=True))


def _stamp(source: VideoSource) -> _Stamp:
    filesystem, path = _place_of(source.uri)
    files = [f"{path}/{name}" for name in source.frames] or [path]
    infos = filesystem.get_file_info(files)
    texts = [f"{info.size} {info.mtime_ns}" for info in infos]
    text = texts[0] if len(texts) == 1 else hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()
    return _Stamp(size=sum(info.size or 0 for info in infos), text=text)


def _place_of(uri: str) -> tuple[FileSystem, str]:
    """Like `storage_of`, with one client for all that lies in one bucket."""
    if "://" not in uri:
        return storage_of(uri)
    parts = urlsplit(uri, allow_fragments=False)
    filesystem, root = storage_of(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
    return filesystem, root + unquote(parts.path)


def _groups(sources: Sequence[VideoSource], stamps: Mapping[str, _Stamp]) -> list[list[VideoSource]]:
    """Videos that may be copies of each other together, so that one task sees it and the first name counts."""
    groups = defaultdict(list)
    for source in sources:
        groups[len(source.frames), stamps[source.uri].size].append(source)
    return list(groups.values())


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What every task knows. teacher: the model's digest, None for frames alone."""

    run: str
    location: str
    label_set: str
    teacher: str | None
    options: LabellingOptions


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What became of a video whose content is known: its `video.json`.

    run: the run that wrote it. outcome, reason: as in the ledger; "done" for a video that was read to its end.
    """

    video: str
    stamp: str
    folder: str
    outcome: Literal["done", "nothing", "cut short"]
    reason: str
    frames_read: int
    cuts: int
    static_pairs: int
    pairs: int
    shards: int
    bytes: int
    run: str


_CHUNK = pa.struct(
    [
        ("frames", pa.list_(pa.binary())),
        ("frame_indices", pa.list_(pa.int32())),
        ("timestamps", pa.list_(pa.float64())),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
_ROW = pa.schema(
    [
        ("video", pa.string()),
        ("folder", pa.string()),
        ("shard", pa.int32()),
        ("pairs", pa.int32()),
        ("bytes", pa.int64()),
        ("chunks", pa.list_(_CHUNK)),
        ("labels", pa.binary()),
        ("record", pa.string()),
        ("entry", pa.string()),
        ("reading", pa.float64()),
        ("labelling", pa.float64()),
        ("writing", pa.float64()),
    ]
)
"""What travels between the stages: a shard, or the end of a video (shard -1) with its record or ledger entry.

chunks: empty for a shard that is there already. labels: an Arrow stream of LABEL_SCHEMA. The last three are
seconds of work.
"""
_STAGES = ("reading", "labelling", "writing")


def _row(**values: object) -> pa.Table:
    nothing: dict[str, object] = {"shard": -1, "pairs": 0, "bytes": 0, "chunks": [], "labels": b""}
    return pa.Table.from_pylist([nothing | dict.fromkeys(_STAGES, 0.0) | values], schema=_ROW)


def _rows(
    sources: Sequence[VideoSource], stamps: Mapping[str, _Stamp], plan: _Plan, network: FlowNetwork | None
) -> Iterator[dict[str, Any]]:
    """The rows that come out of the last stage, in no order."""
    groups = _groups(sources, stamps)
    items = [
        {"group": json.dumps([(source.uri, source.frames, stamps[source.uri].text) for source in group])}
        for group in groups
    ]
    data = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_TASKS))
    context = data.context
    # Each row a block: see above.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    settings: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    data = data.map_batches(_read_videos, num_cpus=_READ_CPUS, fn_args=[plan], **settings)
    if network is not None:
        data = data.map_batches(
            _Teacher,
            compute=_teacher_pool(plan.options),
            num_cpus=_TEACHER_CPUS,
            num_gpus=_teacher_gpus(plan.options),
            fn_constructor_args=[plan, ray.put(network)],
            **settings,
        )
    data = data.map_batches(_write_shards, num_cpus=_WRITE_CPUS, fn_args=[plan], **settings)
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _teacher_gpus(options: LabellingOptions) -> float:
    if options.teacher_gpus is not None:
        return options.teacher_gpus
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0


def _teacher_pool(options: LabellingOptions) -> ray.data.ActorPoolStrategy:
    if options.num_teachers is not None:
        return ray.data.ActorPoolStrategy(size=options.num_teachers)
    resources = ray.cluster_resources()
    if gpus := _teacher_gpus(options):
        return ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(resources.get("GPU", 0) / gpus)))
    # A teacher takes ten times as long as reading and writing do, but one CPU has to be left for these.
    cpus = int(resources["CPU"])
    return ray.data.ActorPoolStrategy(size=max(1, min(cpus - 1, int(0.8 * cpus))))


@lru_cache(maxsize=1)
def _decoder() -> DecoderProcess:
    """One for each of Ray's workers, from task to task."""
    return DecoderProcess()


def _read_videos(table: pa.Table, plan: _Plan) -> Iterator[pa.Table]:
    """For each video a row a shard and one at its end."""
    for group in table.column("group").to_pylist():
        first: dict[str, str] = {}
        for uri, frames, stamp in json.loads(group):
            source = VideoSource(uri, tuple(frames))
            try:
                folder = _decoder().digest(source)
            except (VideoError, OSError) as error:
                yield _row(entry=_json(_failure(uri, error, VideoReport())))
                continue
            if folder in first:
                yield _row(entry=_json(_copy(uri, first[folder])))
                continue
            first[folder] = uri
            before = _record_at(plan.location, folder)
            # What this run wrote, a task that Ray runs anew must not see: it would yield other rows than before.
            if before is not None and before.run != plan.run:
                yield _row(folder=folder, record=_json(replace(before, video=uri, stamp=stamp)))
            else:
                yield from _read_video(source, stamp, folder, plan)


def _read_video(source: VideoSource, stamp: str, folder: str, plan: _Plan) -> Iterator[pa.Table]:
    decoder = _decoder()
    waiting: list[EncodedChunk] = []
    shards = 0
    reason = None
    started = time.monotonic()
    try:
        with closing(decoder.read(source, plan.options.clips, plan.options.codec)) as chunks:
            for chunk in chunks:
                waiting.append(chunk)
                if _num_pairs(waiting) >= plan.options.shard_pairs:
                    yield _shard(source, folder, shards, waiting, plan, time.monotonic() - started)
                    waiting, shards = [], shards + 1
                    started = time.monotonic()
    except VideoError as error:
        reason = str(error)
    except OSError as error:
        yield _row(entry=_json(_failure(source.uri, error, decoder.report)))
        return
    if waiting:
        yield _shard(source, folder, shards, waiting, plan, time.monotonic() - started)
        shards += 1
    report = decoder.report
    reason = reason or report.truncated
    record = _Record(
        video=source.uri,
        stamp=stamp,
        folder=folder,
        outcome="nothing" if shards == 0 else "done" if reason is None else "cut short",
        reason=reason or "",
        frames_read=report.frames_read,
        cuts=report.cuts,
        static_pairs=report.static_pairs,
        pairs=0,
        shards=shards,
        bytes=0,
        run=plan.run,
    )
    yield _row(video=source.uri, folder=folder, record=_json(record))


def _shard(
    source: VideoSource, folder: str, shard: int, chunks: list[EncodedChunk], plan: _Plan, seconds: float
) -> pa.Table:
    size = Folder(plan.location).size(shard_name(folder, shard))
    return _row(
        video=source.uri,
        folder=folder,
        shard=shard,
        pairs=_num_pairs(chunks),
        bytes=size or 0,
        chunks=[{name: getattr(chunk, name) for name in _CHUNK.names} for chunk in chunks] if size is None else [],
        reading=seconds,
    )


def _num_pairs(chunks: Sequence[EncodedChunk]) -> int:
    return sum(len(chunk.frames) - 1 for chunk in chunks)


def _failure(uri: str, error: VideoError | OSError, report: VideoReport) -> LedgerEntry:
    """Of a video whose content isn't known, or isn't to be had now: another run tries again."""
    outcome: Outcome = "nothing" if isinstance(error, VideoError) else "unreadable now"
    return LedgerEntry(video=uri, outcome=outcome, reason=str(error), frames_read=report.frames_read, pairs=0)


def _copy(uri: str, original: str) -> LedgerEntry:
    reason = f"has the content of {original}"
    return LedgerEntry(video=uri, outcome="duplicate", reason=reason, frames_read=0, pairs=0)


def _record_at(location: str, folder: str) -> _Record | None:
    try:
        return _Record(**json.loads(Folder(location).read(f"{folder}/{VIDEO_FILE}")))
    except FileNotFoundError:
        return None


def _json(values: _Record | LedgerEntry) -> str:
    return json.dumps(vars(values), indent=1)


class _Teacher:
    """Adds the labels to a shard; lives in an actor with the network."""

    def __init__(self, plan: _Plan, network: "ray.ObjectRef[FlowNetwork]") -> None:
        # On more threads sums come in another order, and labels would depend on the machine.
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        self._plan = plan
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = ray.get(network).to(self._device).eval()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for row in table.to_pylist():
            started = time.monotonic()
            if row["chunks"]:
                row["labels"] = _stream(pa.concat_tables([self._labels(chunk) for chunk in row["chunks"]]))
            row["labelling"] = time.monotonic() - started
            yield pa.Table.from_pylist([row], schema=_ROW)

    def _labels(self, chunk: Mapping[str, Any]) -> pa.Table:
        codec = self._plan.options.codec
        pixels = torch.from_numpy(np.stack([codec.decode(frame) for frame in chunk["frames"]]))
        frames = pixels.to(self._device).permute(0, 3, 1, 2).float() / 255
        labels = label_chunk(self._network, frames, self._plan.options.check)
        teacher = pa.array([self._plan.teacher] * len(labels), pa.string())
        return labels.append_column("teacher", teacher).cast(LABEL_SCHEMA)


def label_chunk(
    network: FlowNetwork, frames: Float[Tensor, "frames 3 height width"], check: ForwardBackwardCheck
) -> pa.Table:
    """The columns of LABEL_SCHEMA but `teacher`, for the pairs of consecutive frames.

    Flow and occlusion are those at full resolution. The quality numbers are taken on the flow's grid, with the
    frames averaged down to it, as the teacher's own loss is; nan where no pixel is visible in either direction.
    """
    height, width = frames.shape[-2:]
    stride = network.strides[0]
    rows, columns = label_grid(height, width, stride)
    grid_fw, grid_bw = (flow[..., :rows, :columns] for flow in network.estimate_chunk(frames))
    full_fw = upsample_flow(grid_fw, stride, height, width)
    full_bw = upsample_flow(grid_bw, stride, height, width)
    occ_fw, occ_bw = check(full_fw, full_bw), check(full_bw, full_fw)
    small = functional.avg_pool2d(frames, stride, ceil_mode=True)
    sums = _Sums.of(small[:-1], small[1:], grid_fw, grid_bw, occ_fw, stride)
    sums += _Sums.of(small[1:], small[:-1], grid_bw, grid_fw, occ_bw, stride)
    lengths = torch.cat([grid_fw, grid_bw], dim=-1).norm(dim=1).flatten(1).cpu().numpy()
    p50, p99, largest = np.quantile(lengths, (0.5, 0.99, 1.0), axis=1)
    occluded = (occ_fw.float().mean(dim=(1, 2, 3)) + occ_bw.float().mean(dim=(1, 2, 3))) / 2
    values = {
        "flow_fw": quantized(grid_fw),
        "flow_bw": quantized(grid_bw),
        "flow_stride": np.full(len(grid_fw), stride, np.int32),
        "occ_fw": masks(occ_fw),
        "occ_bw": masks(occ_bw),
        "occluded": occluded.cpu().numpy(),
        "forward_backward": 0,
    }
    return pa.table(values)
