"""How does a collection of videos become a pair set, each pair once, whatever is killed on the way?

Three stages of Ray Data, a shard at a time: read a video into encoded frames, ask the teacher (absent where
frames alone are wanted), write the shard. A shard's name and content follow from the video and the options,
it appears whole, and it is skipped where it is there; so a rerun of the same command does what is left.

The choice that isn't obvious is that a reader yields one row a shard even for shards that are there
already, and Ray makes each row a block. Ray runs a task anew when its process dies, and goes on behind the
blocks that were consumed before, by their number: a reader that left out what is written by then would lose
shards.
"""

import dataclasses
import fcntl
import json
import os
import posixpath
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, cast
from uuid import uuid4

import numpy as np
import pyarrow as pa
import ray
import ray.data
import safetensors.torch
import torch
from jaxtyping import Float
from numpy import ndarray
from pyarrow.fs import FileInfo, LocalFileSystem
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from torch import Tensor
from torch.nn import functional

from flowcore import networks
from flowcore.formats import FrameCodec
from flowcore.geometry import backward_warp, squared_length, upsample_flow
from flowcore.networks import FlowNetwork, NetworkConfig
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.photometric import census_border, census_distance
from flowcore.shapes import Flow, Mask, to_images
from flowcore.video import SAMPLER_VERSION, ClipOptions, VideoError, VideoReport
from pipelines import checkpoints
from pipelines.cluster import (
    READ_CPUS,
    TEACHER_CPUS,
    WRITE_CPUS,
    Accelerator,
    LabellingRoom,
    labelling_room,
    resources,
)
from pipelines.collection import Stamp, VideoSource, find_videos, stamp_of
from pipelines.decoding import DecoderProcess, EncodedChunk
from pipelines.labels import (
    LABEL_SCHEMA,
    PAIR_SCHEMA,
    SPREAD_SCHEMA,
    encode_shard,
    label_grid,
    masks,
    pair_id,
    quantized,
)
from pipelines.ledger import (
    LEDGER_FILE,
    MANIFEST_FILE,
    VIDEO_FILE,
    LedgerEntry,
    Outcome,
    VideoEntry,
    VideoRecord,
    read_ledger,
    video_record,
    write_ledger,
    write_manifest,
)
from pipelines.pair_set import (
    DESCRIPTION_FILE,
    TEACHER_FOLDER,
    SetDescription,
    ShardSize,
    describe_set,
    description_at,
    require_own,
    shard_at,
    shard_name,
    video_of_shards,
)
from pipelines.storage import STORAGE_THREADS, Folder, concurrently, patient, storage_of

_PIXEL_BYTES = {"jpeg": 1, "png": 3}
"""About, of a stored frame with its share of the labels."""
_UNKNOWN_SIZE = (1080, 1920)
_MOST_TASKS = 1000
"""Reading tasks of a run, as Ray's driver pays for each; in larger collections one reads several videos."""
_STEP_PIXELS = {"cpu": 200_000, "cuda": 4_000_000}
"""Pixels of the pairs that a network labels at once. On a CPU the light PWC-Net took 530 ms and 0.7 GB for a
pair of 384x640 px alone, 744 ms each and 2.3 GB for sixteen at once; at 96x128 px sixteen were fastest."""
_MOST_ALIKE = 16
"""Videos of one size that one task reads for the sake of the few that may be copies."""
_SAMPLE_BYTES = 4096
_REASONS = {
    "duplicate": "has the content of another video",
    "unreadable now": "unreadable then; a run of the same command tries again",
}
"""What a status says of the ledger's outcomes whose own reasons name a file each."""


@dataclass(frozen=True, kw_only=True)
class LabellingOptions:
    """How a collection becomes a pair set."""

    clips: ClipOptions = field(default_factory=ClipOptions)
    codec: FrameCodec = field(default_factory=FrameCodec)
    check: ForwardBackwardCheck = field(default_factory=ForwardBackwardCheck)
    shard_pairs: int = 64
    """A shard, which is a file, is closed once it holds so many pairs, with whole chunks."""
    row_group_pairs: int = 8
    """Pairs that a reader gets together."""
    max_bad_share: float = 0.5
    """Share of the inputs that may give nothing; above it the run fails."""
    num_teachers: int | None = None
    """Most processes that label; None takes one a GPU, with `gpu` also of those that an autoscaler brings, or
    without GPUs most of the CPUs."""
    accelerator: Accelerator = "auto"
    """What they run on. `auto` takes GPUs if the cluster has any at the start; `gpu` waits for an autoscaler
    to bring them."""

    def __post_init__(self) -> None:
        for name, value in (
            ("shard_pairs", self.shard_pairs),
            ("row_group_pairs", self.row_group_pairs),
            ("num_teachers", self.num_teachers),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if self.accelerator not in ("auto", "gpu", "cpu"):
            raise ValueError(f"accelerator {self.accelerator!r} must be 'auto', 'gpu' or 'cpu'")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share {self.max_bad_share} must be a share of the inputs, in [0, 1]")

    @property
    def shard_bytes(self) -> int:
        """About what a shard takes in memory."""
        height, width = self.clips.size or _UNKNOWN_SIZE
        return self.shard_pairs * height * width * _PIXEL_BYTES[self.codec.kind]


@dataclass(frozen=True, kw_only=True)
class LabellingProgress:
    """How far a run is; pairs_per_second counts the pairs that this run made. videos_done: those that are
    begun count as their written share. videos_before: of them, those that earlier runs finished.
    stage_shares: of the work done so far, by stage; they add up to 1 once there is some."""

    videos_done: float
    videos_before: int
    num_videos: int
    new_pairs: int
    pairs_per_second: float
    stage_shares: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LabellingSummary:
    """What the set holds after a run, and what the run did.

    digest: of what the set is made of. num_*, bytes: of the whole set. new_pairs: made by this run in
    `seconds`; pairs_per_second is their quotient. stage_seconds: work by stage, of all processes together;
    processes: how many each stage had at most, none in a run that found nothing to do. ledger: every input
    that gave less than it might. left_out: pairs of the set's videos that aren't in it, by reason.
    """

    location: str
    digest: str
    num_videos: int
    num_pairs: int
    num_shards: int
    bytes: int
    new_pairs: int
    seconds: float
    stage_seconds: Mapping[str, float]
    processes: Mapping[str, int]
    ledger: tuple[LedgerEntry, ...]
    left_out: Mapping[str, int]

    @property
    def pairs_per_second(self) -> float:
        return self.new_pairs / self.seconds

    @property
    def busy(self) -> dict[str, float]:
        """The share of the run that each stage's processes worked, 1 where all of them always did."""
        return {
            stage: self.stage_seconds[stage] / (count * self.seconds)
            for stage, count in self.processes.items()
        }

    @property
    def verdict(self) -> str:
        """Which stage the others waited for, and what would help; empty where this run made no pair."""
        if not self.new_pairs:
            return ""
        stage, share = max(self.busy.items(), key=lambda item: item[1])
        if share < _BUSY:
            return (
                "no stage was busy most of the time: starting up took longer than the work, as it does for "
                "few videos, or more than Ray's processes share these cores"
            )
        return _REMEDIES[stage]

    def metrics(self, prefix: str) -> dict[str, float]:
        """The numbers under paths that begin with prefix, the ledger counted by outcome."""
        outcomes = Counter(entry.outcome.replace(" ", "_") for entry in self.ledger)
        values = {
            "videos": self.num_videos,
            "pairs": self.num_pairs,
            "shards": self.num_shards,
            "bytes": self.bytes,
            "new_pairs": self.new_pairs,
            "seconds": self.seconds,
            "pairs_per_second": self.pairs_per_second,
            **{f"seconds/{stage}": seconds for stage, seconds in self.stage_seconds.items()},
            **{f"busy/{stage}": share for stage, share in self.busy.items()},
            **{f"ledger/{outcome}": count for outcome, count in outcomes.items()},
            **{f"left_out/{reason}": count for reason, count in self.left_out.items()},
        }
        return {f"{prefix}/{name}": float(value) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class LabellingStatus:
    """How far the labelling of a collection into a folder is, by what lies in the folder.

    videos: in the collection. finished: those of them that gave pairs and need no more work. skipped: by
    reason, how many gave none. pairs: in the folder. pairs_per_second: of the run that wrote last, between
    its first shard and its last; None with less than two. seconds_left: at that speed, if a byte of video
    gives as many pairs as so far; None where that can't be told. last_written: the newest shard's time, in
    seconds since 1970; None without a shard.
    """

    state: Literal["not begun", "unfinished", "finished"]
    videos: int
    finished: int
    skipped: Mapping[str, int]
    pairs: int
    pairs_per_second: float | None
    seconds_left: float | None
    last_written: float | None

    @property
    def left(self) -> int:
        """Videos that a run of the same command has yet to look at, or is looking at."""
        return self.videos - self.finished - sum(self.skipped.values())


OnProgress = Callable[[LabellingProgress], None]


def write_pairs(
    videos: str,
    location: str,
    options: LabellingOptions,
    *,
    on_progress: OnProgress | None = None,
) -> LabellingSummary:
    """Writes the frame pairs of a collection (see `find_videos`) into a folder or URI; done work is kept.

    Ray has to be running. Raises FileNotFoundError where there is no video, ValueError where the folder is
    another set's, and RuntimeError, with the ledger written, if nothing or too little came of the inputs.
    """
    description = SetDescription(made_of=_made_of(options), provenance={"videos": videos})
    return _write_set(videos, location, options, description, on_progress)


def write_labels(
    videos: str,
    teachers: Sequence[str],
    location: str,
    options: LabellingOptions,
    *,
    run_id: str | None = None,
    on_progress: OnProgress | None = None,
) -> LabellingSummary:
    """Writes the pairs of a collection with the teachers' pseudo-labels; see `write_pairs`.

    teachers: what `checkpoints.fetch_model` takes, one or several; the set keeps a copy, `PairSet.teacher` is
    the first one's. run_id: the MLflow run that this is, for those who come from the labels. The networks see
    the frames as they are stored, so that a label belongs to exactly the pixels that the student will see.

    The label of several teachers is their mean, occluded where the mean's own check says so, with their
    spread beside it, above which the student doesn't trust it. The rule is a choice: DistillFlow, which names
    it model distillation, doesn't publish its own. With a pixel occluded where any teacher's check says so,
    three teachers' student had 1.11 px where this rule gives 1.07 (the ablation's scenes, seed 1): a check
    that flags many visible pixels flags more of them the more often it is asked.
    """
    folders = [checkpoints.fetch_model(teacher) for teacher in teachers]
    infos = [checkpoints.load_model(folder)[1] for folder in folders]
    names = teacher_names(len(teachers))
    identities = [{"digest": info.digest, "network": networks.to_dict(info.config)} for info in infos]
    several = {str(number): identity for number, identity in enumerate(identities, start=1)}
    made_of = {
        **_made_of(options),
        "teacher": identities[0] if len(identities) == 1 else several,
        "check": dataclasses.asdict(options.check),
    }
    origin = {
        "run_id": run_id,
        **{f"{name}_run_id": info.run_id for name, info in zip(names, infos, strict=True)},
        "generation": str(max(info.generation for info in infos)),
    }
    provenance = {"videos": videos, "teacher": " ".join(teachers)}
    provenance |= {name: value for name, value in origin.items() if value}
    models = tuple(
        _TeacherModel(info.digest, info.config, f"_{name}/{checkpoints.WEIGHTS_FILE}")
        for name, info in zip(names, infos, strict=True)
    )
    files = {
        f"_{name}/{file}": (folder / file).read_bytes()
        for name, folder in zip(names, folders, strict=True)
        for file in (checkpoints.WEIGHTS_FILE, checkpoints.CARD_FILE)
    }
    description = SetDescription(made_of=made_of, provenance=provenance)
    return _write_set(videos, location, options, description, on_progress, models, files)


def labelling_status(location: str, videos: str | None = None) -> LabellingStatus:
    """How far a folder is, without Ray and without a trace: reads the listings of folder and collection, the
    videos' records, the ledger, and the footers of what isn't finished.

    videos: the collection; None for that of the folder's description, of which ValueError if there is none.
    FileNotFoundError where the collection has no video. A copy, and a file that can't be read at all, is left
    until a run has ended: they have no record, and the ledger is written last.
    """
    folder = Folder(location)
    description = description_at(folder)
    if videos is None:
        if description is None or "videos" not in description.provenance:
            raise ValueError(
                f"{location} names no collection: its labels came as files, or nothing was labelled there "
                "yet; add --videos"
            )
        videos = description.provenance["videos"]
    stamps = _stamps(find_videos(videos))
    files = folder.infos()
    shards: dict[str, list[str]] = defaultdict(list)
    for name in files:
        if name.endswith(".parquet"):
            shards[posixpath.dirname(name)].append(name)
    recorded = [posixpath.dirname(name) for name in files if name.endswith(f"/{VIDEO_FILE}")]
    records = _records_in(location, recorded)
    begun = [name for each in shards.keys() - records.keys() for name in shards[each]]
    sizes = concurrently(partial(shard_at, location), begun)
    begun_pairs = sum(size.pairs for size in sizes if size is not None)
    current = _current_of(records.values(), stamps)
    # Of what has a record, that knows whether it tells of the content that is there now.
    without_record = stamps.keys() - {record.video for record in records.values()}
    ledger = read_ledger(location) if LEDGER_FILE in files else []
    skipped = {
        entry.video: _REASONS.get(entry.outcome, entry.reason)
        for entry in ledger
        if entry.video in without_record
    }
    skipped |= {video: record.reason for video, record in current.items() if record.pairs == 0}
    left = stamps.keys() - current.keys() - skipped.keys()
    pairs = begun_pairs + sum(record.pairs for record in records.values())
    times = _times_of_last_run(files, shards, records)
    speed = None
    if len(times) > 1 and times[-1] > times[0]:
        num_shards = sum(len(names) for names in shards.values())
        speed = pairs / num_shards * (len(times) - 1) / (times[-1] - times[0])
    seconds_left = None if left else 0.0
    if left and speed and (bytes_done := sum(stamps[video].size for video in current)):
        pairs_a_byte = sum(record.pairs for record in current.values()) / bytes_done
        expected = pairs_a_byte * sum(stamps[video].size for video in left) - begun_pairs
        seconds_left = max(0.0, expected) / speed
    is_finished = not left and MANIFEST_FILE in files
    return LabellingStatus(
        state="finished" if is_finished else "not begun" if description is None else "unfinished",
        videos=len(stamps),
        finished=len(current) - sum(record.pairs == 0 for record in current.values()),
        skipped=Counter(skipped.values()),
        pairs=pairs,
        pairs_per_second=speed,
        seconds_left=seconds_left,
        last_written=max(
            (_written(files[name]) for names in shards.values() for name in names), default=None
        ),
    )


def teacher_names(count: int) -> list[str]:
    """teacher, teacher2 and so on: in provenance, among a run's inputs and, after `_`, of a set's folders."""
    return ["teacher", *(f"teacher{number}" for number in range(2, count + 1))]


@dataclass(frozen=True)
class _TeacherModel:
    """Which model a set's copy is. weights: its file in the set."""

    digest: str
    config: NetworkConfig
    weights: str

    def load(self, location: str, device: torch.device) -> FlowNetwork:
        """The network, from the set's copy of it."""
        network = self.config.build()
        network.load_state_dict(safetensors.torch.load(Folder(location).read(self.weights)))
        return network.ready(device)


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
    on_progress: OnProgress | None,
    teachers: tuple[_TeacherModel, ...] = (),
    model_files: Mapping[str, bytes] = MappingProxyType({}),
) -> LabellingSummary:
    sources = find_videos(videos)
    stamps = _stamps(sources)
    with _alone_in(location):
        describe_set(location, description)
        Folder(location).sweep()
        run = uuid4().hex
        tally = _Tally(location, run, description.digest, stamps, on_progress)
        processes: dict[str, int] = {}
        left = [source for source in sources if not tally.is_done(source.name)]
        if left:
            _keep_teachers(location, model_files)
            plan = _Plan(
                run=run,
                location=location,
                label_set=description.digest,
                teachers=teachers,
                options=options,
            )
            room = labelling_room(
                resources(),
                has_teachers=bool(teachers),
                num_teachers=options.num_teachers,
                accelerator=options.accelerator,
            )
            for row in _rows(left, stamps, plan, room):
                tally.add(row)
            processes = room.processes(resources())
        return tally.finish(options.max_bad_share, processes)


def _keep_teachers(location: str, files: Mapping[str, bytes]) -> None:
    """Copies in the set: the alias by which a teacher was named may mean another one tomorrow."""
    for name, content in files.items():
        if Folder(location).size(name) is None:
            Folder(location).write(name, content)


@contextmanager
def _alone_in(location: str) -> Iterator[None]:
    """Keeps a second run out of a local folder. Object storage can't: nothing is swept there, and each run's
    manifest lists what the other has finished."""
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
            raise RuntimeError(
                f"another run writes into {location}; wait for it or give another folder"
            ) from error
        yield


def _stamps(sources: Sequence[VideoSource]) -> dict[str, Stamp]:
    """By name."""
    return dict(zip((source.name for source in sources), concurrently(stamp_of, sources), strict=True))


def _groups(sources: Sequence[VideoSource], stamps: Mapping[str, Stamp]) -> list[list[VideoSource]]:
    """Videos that may be copies of each other together, so that one task sees it, by the order of names; the
    largest first, as teachers would otherwise wait at the end for one that came last.

    A sample of the content is looked at only where many are of one size, as uncompressed ones are.
    """
    alike = defaultdict(list)
    for source in sources:
        alike[len(source.frames), stamps[source.name].size].append(source)
    groups: list[list[VideoSource]] = []
    for _, group in sorted(alike.items(), key=lambda item: -item[0][1]):
        if len(group) <= _MOST_ALIKE:
            groups.append(group)
            continue
        by_sample = defaultdict(list)
        for source, sample in zip(group, concurrently(_sample, group), strict=True):
            by_sample[sample].append(source)
        groups += by_sample.values()
    return groups


def _sample(source: VideoSource) -> bytes:
    """Some bytes from the middle of its first file; equal for equal content. No bytes where it can't be read,
    which is for the task to say that reads it."""
    try:
        return _middle_of(source)
    except OSError:
        return b""


@patient
def _middle_of(source: VideoSource) -> bytes:
    filesystem, path = storage_of(source.uri)
    with filesystem.open_input_file(f"{path}/{source.frames[0]}" if source.frames else path) as file:
        return cast(bytes, file.read_at(_SAMPLE_BYTES, file.size() // 2))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What every task knows. teachers: none for frames alone."""

    run: str
    location: str
    label_set: str
    teachers: tuple[_TeacherModel, ...]
    options: LabellingOptions


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
        ("share", pa.float64()),
        ("bytes", pa.int64()),
        ("is_new", pa.bool_()),
        ("chunks", pa.list_(_CHUNK)),
        ("labels", pa.large_binary()),
        ("record", pa.string()),
        ("entry", pa.string()),
        ("reading", pa.float64()),
        ("labelling", pa.float64()),
        ("writing", pa.float64()),
    ]
)
"""What travels between the stages: a shard, or the end of a video with its record or ledger entry.

share: of the video, up to the shard's end. chunks: empty for a shard that was there before, and once it is
written. labels: an Arrow stream of LABEL_SCHEMA. The last three are seconds of work.
"""
_STAGES = ("reading", "labelling", "writing")
_BUSY = 0.5
"""The share of a run from which on a stage is what the others wait for."""
_REMEDIES = {
    "reading": "decode-bound: the teachers waited for frames; give Ray more CPUs, or let fewer processes "
    "label (--labelling.num-teachers) so that more can decode",
    "labelling": "teacher-bound: frames waited for the teachers; give Ray more GPUs, or CPUs where there are "
    "none, or take smaller frames (--labelling.clips.size)",
    "writing": "write-bound: labels waited for the storage; write to a faster or nearer one, or in larger "
    "files (--labelling.shard-pairs)",
}


def _row(**values: object) -> pa.Table:
    nothing: dict[str, object] = {"is_new": False, "chunks": [], "labels": b""}
    return pa.Table.from_pylist([nothing | dict.fromkeys(_STAGES, 0.0) | values], schema=_ROW)


def _rows(
    sources: Sequence[VideoSource], stamps: Mapping[str, Stamp], plan: _Plan, room: LabellingRoom
) -> Iterator[dict[str, Any]]:
    """The rows that come out of the last stage, in no order."""
    groups = [
        json.dumps([(each.uri, each.frames, each.scene, stamps[each.name].text) for each in group])
        for group in _groups(sources, stamps)
    ]
    num_tasks = min(len(groups), _MOST_TASKS)
    blocks = [pa.table({"group": groups[task::num_tasks]}) for task in range(num_tasks)]
    data: ray.data.Dataset = ray.data.from_arrow(blocks)
    context = data.context
    # Each row a block: see above.
    context.target_max_block_size = 1
    context.execution_options.resource_limits = room.ahead(plan.options.shard_bytes)
    context.custom_execution_callback_classes.append(_ForgetBlocks)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # An hour of a still scene gives no row; whether a decoder hangs is the decoder's to say.
    context.execution_no_progress_timeout_s = -1
    settings: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    readers = min(num_tasks, room.readers or num_tasks)
    data = data.map_batches(_Reader(plan), compute=_tasks(readers), num_cpus=READ_CPUS, **settings)
    if plan.teachers:
        data = data.map_batches(
            _Teacher,
            compute=ray.data.ActorPoolStrategy(min_size=room.least_teachers, max_size=room.teachers),
            num_cpus=TEACHER_CPUS,
            num_gpus=room.gpus,
            fn_constructor_args=[plan, "cuda" if room.gpus else "cpu"],
            **settings,
        )
    data = data.map_batches(_Writer(plan), compute=_tasks(room.writers), num_cpus=WRITE_CPUS, **settings)
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from cast(pa.Table, batch).to_pylist()


def _tasks(most: int) -> ray.data.TaskPoolStrategy:
    """At most so many at once. Without a limit Ray starts a process for each small task that waits, and each
    imports for seconds: on two cores that stopped everything else for as long."""
    return ray.data.TaskPoolStrategy(size=most)


class _ForgetBlocks(ExecutionCallback):
    """Empties the lists of every block's statistics, which nobody reads here: they cost the driver 3 kB a
    shard, gigabytes for a thousand hours of video."""

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        for operator in executor._topology or ():
            if isinstance(operator, MapOperator):
                for statistics in operator.get_stats().values():
                    cast(list[object], statistics).clear()


@lru_cache(maxsize=1)
def _decoder() -> DecoderProcess:
    """One for each of Ray's processes, from task to task."""
    return DecoderProcess()


@dataclass(frozen=True)
class _Reader:
    """Gives for each video a row a shard and one at its end."""

    plan: _Plan

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for group in table.column("group").to_pylist():
            first: dict[str, str] = {}
            for uri, frames, scene, stamp in json.loads(group):
                source = VideoSource(uri, tuple(frames), scene)
                try:
                    folder = _decoder().digest(source)
                except (VideoError, OSError) as error:
                    yield _row(entry=_json(_failure(source.name, error, VideoReport())))
                    continue
                if folder in first:
                    yield _row(entry=_json(_copy(source.name, first[folder])))
                    continue
                first[folder] = source.name
                before = video_record(self.plan.location, folder)
                if before is not None:
                    require_own(self.plan.location, self.plan.label_set, before.label_set)
                # Run anew by Ray, this must not see what this run wrote: it would yield other rows.
                if before is not None and before.run != self.plan.run:
                    yield _row(folder=folder, record=_json(replace(before, video=source.name, stamp=stamp)))
                else:
                    yield from self._read(source, stamp, folder)

    def _read(self, source: VideoSource, stamp: str, folder: str) -> Iterator[pa.Table]:
        decoder, options = _decoder(), self.plan.options
        waiting: list[EncodedChunk] = []
        shards = 0
        reason = None
        started = time.monotonic()
        try:
            with closing(decoder.read(source, options.clips, options.codec)) as chunks:
                for chunk in chunks:
                    waiting.append(chunk)
                    if _num_pairs(waiting) >= options.shard_pairs:
                        yield self._shard(source, folder, shards, waiting, time.monotonic() - started)
                        waiting, shards = [], shards + 1
                        started = time.monotonic()
        except VideoError as error:
            reason = str(error)
        except OSError as error:
            yield _row(entry=_json(_failure(source.name, error, decoder.report)))
            return
        if waiting:
            yield self._shard(source, folder, shards, waiting, time.monotonic() - started)
            shards += 1
        report = decoder.report
        reason = reason or report.truncated
        record = VideoRecord(
            video=source.name,
            stamp=stamp,
            folder=folder,
            label_set=self.plan.label_set,
            outcome="nothing" if shards == 0 else "done" if reason is None else "cut short",
            reason=reason or "",
            frames_read=report.frames_read,
            cuts=report.cuts,
            static_pairs=report.static_pairs,
            faded_pairs=report.faded_pairs,
            pairs=0,
            shards=shards,
            bytes=0,
            run=self.plan.run,
        )
        yield _row(folder=folder, record=_json(record))

    def _shard(
        self, source: VideoSource, folder: str, shard: int, chunks: Sequence[EncodedChunk], seconds: float
    ) -> pa.Table:
        num_pairs = _num_pairs(chunks)
        there = shard_at(self.plan.location, shard_name(folder, shard), self.plan.label_set)
        # A decoder that died once, and not again, left a shorter one.
        is_done = there is not None and there.pairs == num_pairs
        contents = [{name: getattr(chunk, name) for name in _CHUNK.names} for chunk in chunks]
        return _row(
            video=source.name,
            folder=folder,
            shard=shard,
            pairs=num_pairs,
            share=_decoder().report.share,
            bytes=there.bytes if there is not None else 0,
            chunks=[] if is_done else contents,
            reading=seconds,
        )


def _num_pairs(chunks: Sequence[EncodedChunk]) -> int:
    return sum(len(chunk.frames) - 1 for chunk in chunks)


def _failure(video: str, error: VideoError | OSError, report: VideoReport) -> LedgerEntry:
    """Of a video whose content isn't known, or isn't to be had now: another run tries again."""
    outcome: Outcome = "nothing" if isinstance(error, VideoError) else "unreadable now"
    return LedgerEntry(
        video=video, outcome=outcome, reason=str(error), frames_read=report.frames_read, pairs=0
    )


def _copy(video: str, original: str) -> LedgerEntry:
    reason = f"has the content of {original}"
    return LedgerEntry(video=video, outcome="duplicate", reason=reason, frames_read=0, pairs=0)


def _records_in(location: str, folders: Sequence[str]) -> dict[str, VideoRecord]:
    """By folder, of those that have one."""
    found = concurrently(partial(video_record, location), folders)
    return {record.folder: record for record in found if record is not None}


def _current_of(records: Iterable[VideoRecord], stamps: Mapping[str, Stamp]) -> dict[str, VideoRecord]:
    """By video, the records that tell of the content that the collection has now."""
    return {
        record.video: record
        for record in records
        if record.video in stamps and stamps[record.video].text == record.stamp
    }


def _times_of_last_run(
    files: Mapping[str, FileInfo], shards: Mapping[str, Sequence[str]], records: Mapping[str, VideoRecord]
) -> list[float]:
    """When the run that wrote the newest shard wrote each of its own, sorted.

    A run that finds the set unfinished writes its description first, and one that ends its manifest; what
    came before the last of these that isn't newer than all shards is another run's. Of a set that was
    finished more than once, records tell the runs apart.
    """
    every = {name: _written(files[name]) for names in shards.values() for name in names}
    newest = max(every.values(), default=0.0)
    marks = [_written(files[name]) for name in (DESCRIPTION_FILE, MANIFEST_FILE) if name in files]
    since = max((mark for mark in marks if mark <= newest), default=0.0)
    late = {name: time for name, time in every.items() if time >= since}
    runs = {
        name: records[folder].run for folder in records for name in shards.get(folder, ()) if name in late
    }
    last = runs[max(runs, key=lambda name: late[name])] if runs else None
    return sorted(time for name, time in late.items() if runs.get(name, last) == last)


def _written(info: FileInfo) -> float:
    return float(info.mtime_ns or 0) / 1e9


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return cast(bytes, sink.getvalue().to_pybytes())


def _json(values: VideoRecord | LedgerEntry) -> str:
    return json.dumps(vars(values), indent=1)


class _Teacher:
    """Adds the labels to a shard; lives in an actor with the networks."""

    def __init__(self, plan: _Plan, device: str) -> None:
        # On more threads sums come in another order, and labels would depend on the machine.
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        self._plan = plan
        self._device = torch.device(device)
        self._digest = "+".join(model.digest for model in plan.teachers)
        self._networks = [model.load(plan.location, self._device) for model in plan.teachers]

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for row in table.to_pylist():
            started = time.monotonic()
            if row["chunks"]:
                row["labels"] = _stream(pa.concat_tables([self._labels(chunk) for chunk in row["chunks"]]))
            row["labelling"] = time.monotonic() - started
            yield pa.Table.from_pylist([row], schema=_ROW)

    def _labels(self, chunk: Mapping[str, Any]) -> pa.Table:
        codec = self._plan.options.codec
        frames = to_images(np.stack([codec.decode(frame) for frame in chunk["frames"]]), self._device)
        at_once = max(1, _STEP_PIXELS[self._device.type] // frames[0, 0].numel())
        labels = label_chunk(self._networks, frames, self._plan.options.check, at_once)
        teacher = pa.array([self._digest] * len(labels), pa.string())
        schema = LABEL_SCHEMA if len(self._networks) == 1 else pa.schema([*LABEL_SCHEMA, *SPREAD_SCHEMA])
        return labels.append_column("teacher", teacher).select(schema.names).cast(schema)


def label_chunk(
    teachers: Sequence[FlowNetwork],
    frames: Float[Tensor, "frames 3 height width"],
    check: ForwardBackwardCheck,
    at_once: int | None = None,
) -> pa.Table:
    """The columns of LABEL_SCHEMA but `teacher`, for the pairs of consecutive frames, and of several teachers
    those of SPREAD_SCHEMA. at_once: how many pairs are worked on together, None for all.

    Occlusion is checked at full resolution. The other numbers are taken on the flow's grid, with the frames
    averaged down to it, as the teacher's own loss is; nan where no pixel is visible in either direction.
    Teachers of different strides meet at full resolution.
    """
    height, width = frames.shape[-2:]
    pairs = len(frames) - 1
    at_once = at_once or pairs
    strides = {teacher.strides[0] for teacher in teachers}
    stride = strides.pop() if len(strides) == 1 else 1
    estimates = [teacher.estimate_chunk(frames, at_once) for teacher in teachers]
    tables = []
    for first in range(0, pairs, at_once):
        flows = []
        for teacher, both in zip(teachers, estimates, strict=True):
            own_stride = teacher.strides[0]
            rows, columns = label_grid(height, width, own_stride)
            # Both directions together, the forward ones first.
            grid = torch.cat([flow[first : first + at_once, :, :rows, :columns] for flow in both])
            flows.append(grid if stride == own_stride else upsample_flow(grid, own_stride, height, width))
        tables.append(label_columns(flows, stride, frames[first : first + at_once + 1], check))
    return pa.concat_tables(tables)


def label_columns(
    flows: Sequence[Float[Tensor, "directions 2 rows columns"]],
    stride: int,
    frames: Float[Tensor, "frames 3 height width"],
    check: Callable[[Flow, Flow], Mask],
) -> pa.Table:
    """See `label_chunk`. flows: each teacher's, on a grid of this stride, the forward ones first. check: the
    occlusion by the flows there and back."""
    height, width = frames.shape[-2:]
    pairs = len(frames) - 1
    there = torch.stack([*flows]).mean(dim=0)
    back = there.roll(pairs, dims=0)
    full = upsample_flow(there, stride, height, width)
    occluded = check(full, full.roll(pairs, dims=0))
    visible = functional.avg_pool2d(occluded.float(), stride, ceil_mode=True) <= 0.5
    mismatch = _length(there + backward_warp(back, there / stride))
    small = functional.avg_pool2d(frames, stride, ceil_mode=True)
    first, second = torch.cat([small[:-1], small[1:]]), torch.cat([small[1:], small[:-1]])
    distance = census_distance(first, backward_warp(second, there / stride))
    lengths = _length(there).view(2, pairs, -1).transpose(0, 1).flatten(1)
    p50, p99, longest = np.quantile(lengths.cpu().numpy(), (0.5, 0.99, 1.0), axis=1)
    columns = {
        "flow_fw": quantized(there[:pairs]),
        "flow_bw": quantized(there[pairs:]),
        "flow_stride": np.full(pairs, stride, np.int32),
        "occ_fw": masks(occluded[:pairs]),
        "occ_bw": masks(occluded[pairs:]),
        "occluded": _pair_means(occluded.float(), torch.ones_like(occluded)),
        "forward_backward": _pair_means(mismatch, visible),
        "photometric": _pair_means(distance, visible & ~census_border(distance)),
        "flow_p50": p50.astype(np.float32),
        "flow_p99": p99.astype(np.float32),
        "flow_max": longest.astype(np.float32),
    }
    if len(flows) > 1:
        spread = torch.stack([_length(flow - there).square() for flow in flows]).mean(dim=0).sqrt()
        columns |= {
            "spread_fw": quantized(spread[:pairs]),
            "spread_bw": quantized(spread[pairs:]),
            "spread": _pair_means(spread, torch.ones_like(spread, dtype=torch.bool)),
        }
    return pa.table(columns)


def _length(flow: Flow) -> Float[Tensor, "batch 1 height width"]:
    return squared_length(flow).sqrt()


def _pair_means(values: Float[Tensor, "directions 1 rows columns"], counted: Mask) -> Float[ndarray, "pairs"]:
    """Over the counted pixels of both directions of each pair, the forward ones come first; nan over none."""
    total = torch.where(counted, values, 0.0).sum(dim=(1, 2, 3)).view(2, -1).sum(dim=0)
    return (total / counted.sum(dim=(1, 2, 3)).view(2, -1).sum(dim=0)).cpu().numpy()


@dataclass(frozen=True)
class _Writer:
    """Writes the shards that aren't there, and keeps their rows without what is big."""

    plan: _Plan

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        folder = Folder(self.plan.location)
        for row in table.to_pylist():
            started = time.monotonic()
            if row["chunks"]:
                name = shard_name(row["folder"], row["shard"])
                # Ray runs a task anew that was killed after it had written.
                there = shard_at(self.plan.location, name, self.plan.label_set)
                if there is None or there.pairs != row["pairs"]:
                    content = encode_shard(self._table(row), self.plan.options.row_group_pairs)
                    folder.write(name, content)
                    there = ShardSize(pairs=row["pairs"], bytes=len(content))
                row |= {"bytes": there.bytes, "is_new": True, "chunks": [], "labels": b""}
            row["writing"] = time.monotonic() - started
            yield pa.Table.from_pylist([row], schema=_ROW)

    def _table(self, row: Mapping[str, Any]) -> pa.Table:
        stride = self.plan.options.clips.stride
        pairs = [
            {
                "pair_id": pair_id(row["folder"], indices, stride, chunk["height"], chunk["width"]),
                "video": row["video"],
                "frame": indices[0],
                "stride": stride,
                "timestamp": timestamp,
                "height": chunk["height"],
                "width": chunk["width"],
                "image1": images[0],
                "image2": images[1],
                "label_set": self.plan.label_set,
            }
            for chunk in row["chunks"]
            for indices, timestamp, images in zip(
                pairwise(chunk["frame_indices"]), chunk["timestamps"], pairwise(chunk["frames"]), strict=False
            )
        ]
        frames = pa.Table.from_pylist(pairs, schema=PAIR_SCHEMA)
        if not self.plan.teachers:
            return frames
        labels = pa.ipc.open_stream(row["labels"]).read_all()
        return pa.table(
            [*frames.columns, *labels.columns], schema=pa.schema([*frames.schema, *labels.schema])
        )


@dataclass
class _Written:
    """The shards of a video that this run has seen written or found."""

    shards: int = 0
    pairs: int = 0
    bytes: int = 0
    share: float = 0.0


class _Tally:
    """What has become of each video; holds a few numbers a video, none a pair."""

    def __init__(
        self,
        location: str,
        run: str,
        label_set: str,
        stamps: Mapping[str, Stamp],
        on_progress: OnProgress | None,
    ) -> None:
        self._location = location
        self._run = run
        self._label_set = label_set
        self._stamps = stamps
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._threads = ThreadPoolExecutor(STORAGE_THREADS)
        self._folders = self._listed()
        self._before = _records_in(location, self._folders)
        self._current = _current_of(self._before.values(), stamps)
        self._num_before = len(self._current)
        self._entries: list[LedgerEntry] = []
        self._ends: dict[str, VideoRecord] = {}
        self._written: dict[str, _Written] = defaultdict(_Written)
        self._writes: deque[Future[None]] = deque()
        self._new_pairs = 0
        self._stage_seconds = dict.fromkeys(_STAGES, 0.0)

    def _listed(self) -> list[str]:
        """The folders of videos that are there now."""
        return [name for name in Folder(self._location).folders() if not name.startswith(TEACHER_FOLDER)]

    def is_done(self, video: str) -> bool:
        """True if an earlier run finished it."""
        return video in self._current

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes note of a row that came out of the last stage."""
        for stage in _STAGES:
            self._stage_seconds[stage] += row[stage]
        if row["entry"] is not None:
            self._entries.append(LedgerEntry(**json.loads(row["entry"])))
        elif row["record"] is not None:
            self._end(VideoRecord(**json.loads(row["record"])))
        else:
            written = self._written[row["folder"]]
            written.shards += 1
            written.pairs += row["pairs"]
            written.bytes += row["bytes"]
            written.share = max(written.share, row["share"])
            self._new_pairs += row["pairs"] if row["is_new"] else 0
            self._close(row["folder"])
        self._report()

    def _end(self, record: VideoRecord) -> None:
        before = self._before.get(record.folder)
        if before is None and record.run == self._run:
            self._ends[record.folder] = record
            self._close(record.folder)
        elif before is not None and before.video in self._current:
            self._entries.append(_copy(record.video, before.video))
        else:
            self._keep(record)

    def _close(self, folder: str) -> None:
        """Keeps the record of a video whose shards are all there."""
        end = self._ends.get(folder)
        written = self._written[folder]
        if end is not None and written.shards == end.shards:
            del self._ends[folder], self._written[folder]
            self._keep(replace(end, pairs=written.pairs, bytes=written.bytes))

    def _keep(self, record: VideoRecord) -> None:
        self._current[record.video] = record
        name, content = f"{record.folder}/{VIDEO_FILE}", _json(record).encode()
        self._writes.append(self._threads.submit(Folder(self._location).write, name, content))
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()

    def _report(self) -> None:
        if self._on_progress is not None:
            work = sum(self._stage_seconds.values()) or 1.0
            done = len(self._current) + len(self._entries)
            begun = sum(written.share for written in self._written.values())
            self._on_progress(
                LabellingProgress(
                    # A video that became unreadable midway is both.
                    videos_done=min(done + begun, len(self._stamps)),
                    videos_before=self._num_before,
                    num_videos=len(self._stamps),
                    new_pairs=self._new_pairs,
                    pairs_per_second=self._new_pairs / (time.monotonic() - self._started),
                    stage_shares={stage: each / work for stage, each in self._stage_seconds.items()},
                )
            )

    def finish(self, max_bad_share: float, processes: Mapping[str, int]) -> LabellingSummary:
        """Writes ledger and manifest, clears away what changed videos left; RuntimeError as `write_pairs`."""
        seconds = time.monotonic() - self._started
        for write in self._writes:
            write.result()
        accounted = self._current.keys() | {entry.video for entry in self._entries}
        if lost := sorted(self._stamps.keys() - accounted):
            raise RuntimeError(
                f"shards of {len(lost)} video(s), {lost[0]} the first, were lost on the way, as may happen "
                "with a node; run the same command again"
            )
        stale = self._stale()
        records = self._before | {record.folder: record for record in self._current.values()}
        records = {folder: record for folder, record in records.items() if folder not in stale}
        records |= self._meanwhile(records)
        description = description_at(Folder(self._location))
        for found in {record.label_set for record in records.values()} | {description and description.digest}:
            require_own(self._location, self._label_set, str(found))
        ledger = [
            *self._entries,
            *(_ledger_entry(each) for each in records.values() if each.outcome != "done"),
        ]
        write_ledger(self._location, ledger)
        with_pairs = [record for record in records.values() if record.pairs > 0]
        self._check(ledger, bool(with_pairs), max_bad_share)
        videos = [
            VideoEntry(
                video=each.video, folder=each.folder, pairs=each.pairs, shards=each.shards, bytes=each.bytes
            )
            for each in with_pairs
        ]
        # A reader that has the new manifest doesn't miss what is removed then.
        write_manifest(self._location, self._label_set, videos)
        for folder in stale:
            Folder(self._location).remove_folder(folder)
        return LabellingSummary(
            location=self._location,
            digest=self._label_set,
            num_videos=len(videos),
            num_pairs=sum(video.pairs for video in videos),
            num_shards=sum(video.shards for video in videos),
            bytes=sum(video.bytes for video in videos),
            new_pairs=self._new_pairs,
            seconds=seconds,
            stage_seconds=self._stage_seconds,
            processes=processes,
            ledger=tuple(ledger),
            left_out={
                reason: sum(getattr(record, reason) for record in records.values())
                for reason in ("cuts", "static_pairs", "faded_pairs")
            },
        )

    def _meanwhile(self, records: Mapping[str, VideoRecord]) -> dict[str, VideoRecord]:
        """By folder, what another run has finished beside this one, as object storage can't keep it from."""
        known = records.keys() | set(self._folders)
        folders = [name for name in self._listed() if name not in known]
        return _records_in(self._location, folders)

    def _stale(self) -> set[str]:
        """The folders of content that a video of the collection no longer has."""
        kept = {record.folder for record in self._current.values()}
        others = [folder for folder in self._folders if folder not in kept]
        videos = concurrently(self._video_of, others)
        return {folder for folder, video in zip(others, videos, strict=True) if video in self._current}

    def _video_of(self, folder: str) -> str | None:
        """The video that a folder was made from, as its record or, of an unfinished one, its shard says."""
        if folder in self._before:
            return self._before[folder].video
        return video_of_shards(self._location, folder)

    def _check(self, ledger: Sequence[LedgerEntry], has_pairs: bool, max_bad_share: float) -> None:
        bad = [
            entry
            for entry in ledger
            if entry.video in self._stamps and entry.outcome in ("nothing", "unreadable now")
        ]
        if has_pairs and len(bad) <= max_bad_share * len(self._stamps):
            return
        examples = "; ".join(f"{entry.video}: {entry.reason}" for entry in bad[:3])
        raise RuntimeError(
            f"{len(bad)} of {len(self._stamps)} videos gave no pair, "
            + (f"above max_bad_share {max_bad_share:g}" if has_pairs else "and there is none at all")
            + f" ({examples}); mend these inputs or leave them out, {self._location}/{LEDGER_FILE} has all"
        )


def _ledger_entry(record: VideoRecord) -> LedgerEntry:
    assert record.outcome != "done"
    return LedgerEntry(
        video=record.video,
        outcome=record.outcome,
        reason=record.reason,
        frames_read=record.frames_read,
        pairs=record.pairs,
        cuts=record.cuts,
        static_pairs=record.static_pairs,
        faded_pairs=record.faded_pairs,
    )
