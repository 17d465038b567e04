"""How does a collection of videos become a pair set, each pair once, whatever is killed on the way?

The work is that of `pipelines.labelling_stages`; here is what a run is asked for, and what it answers.
"""

import dataclasses
import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args
from uuid import uuid4

from pyarrow.fs import LocalFileSystem

from flowcore.datasets import DataSet
from flowcore.frame_codec import FrameCodec
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import Merge
from flowcore.video import SAMPLER_VERSION, ClipOptions
from pipelines.collection import Collection, Stamp, VideoSource, stamps_of
from pipelines.labelling_plan import Plan
from pipelines.labelling_progress import OnProgress, read_progress, reported
from pipelines.ledger import (
    VideoRecord,
    failed_before,
    with_less,
    with_pairs,
)
from pipelines.messages import Message, VideoEnded
from pipelines.room import Accelerator
from pipelines.set_description import SetDescription, describe_set
from pipelines.set_files import require_plain
from pipelines.storage import Folder, storage_of
from pipelines.tally import Tally
from pipelines.teachers import Teachers
from pipelines.teaching import Teaching


@dataclass(frozen=True, kw_only=True)
class LabellingOptions:
    """How a collection becomes a pair set."""

    codec: Literal["auto", "jpeg", "png"] = "auto"
    """How frames are stored. `auto` takes png, which is lossless, for a data set's image files, and jpeg of
    quality 95 for videos, which have lost detail already. Take jpeg to save space, png to keep every
    pixel."""
    shard_pairs: int = 64
    """Pairs after which a file is closed, at the end of a chunk. Raise it for fewer, larger files."""
    row_group_pairs: int = 8
    """Pairs per Parquet row group, the smallest unit a reader loads. Lower it if readers run out of memory;
    raise it for smaller sets."""
    max_bad_share: float = 0.5
    """Maximum share of videos, in [0, 1], that may yield no pair before the run fails. Raise it for
    collections with many broken files. A video that the storage can't deliver fails the run in any case,
    after the others are done."""
    merge: Merge = "mean"
    """How the flows of several teachers become one label. `mean`: their mean, trusted where they agree.
    `first`: each vector is that of the first one, in the order of --teacher, whose flow agrees there and
    back, and of the last one where none does. Take `first` where that one is more exact than the others."""
    three_frames: bool = False
    """Where the second frame of a pair hides a pixel and the frame before the pair shows it, continue its
    motion. The student learns that, too. Don't use it where motion changes between frames."""
    num_teachers: int | None = None
    """Maximum number of labelling processes. `none` takes one for each GPU, with `gpu` also those that an
    autoscaler adds; without GPUs it takes most of the CPUs. Lower it to leave room for other work, or if
    memory runs out. Set it above the number of GPUs if they are idle at times: processes then share them."""
    accelerator: Accelerator = "auto"
    """What teachers run on. `auto` takes GPUs if the cluster has any at the start; take `gpu` to wait for an
    autoscaler to bring them, `cpu` to leave GPUs alone."""

    def __post_init__(self) -> None:
        for name, value in (
            ("shard_pairs", self.shard_pairs),
            ("row_group_pairs", self.row_group_pairs),
            ("num_teachers", self.num_teachers),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if self.accelerator not in get_args(Accelerator):
            raise ValueError(
                f"accelerator {self.accelerator!r} must be one of {', '.join(get_args(Accelerator))}"
            )
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share {self.max_bad_share} must be a share of the videos, in [0, 1]")
        if self.merge not in get_args(Merge):
            raise ValueError(f"merge {self.merge!r} must be one of {', '.join(get_args(Merge))}")
        if self.codec not in ("auto", "jpeg", "png"):
            raise ValueError(f"codec {self.codec!r} must be one of auto, jpeg, png")

    def codec_for(self, videos: str) -> FrameCodec:
        """What the frames of a collection are stored with."""
        if self.codec == "auto":
            return FrameCodec(kind="jpeg" if DataSet.parse(videos) is None else "png")
        return FrameCodec(kind=self.codec)


_BUSY = 0.5
"""Share of a run from which on a stage is what the others wait for."""
_REMEDIES = {
    "reading": "decode-bound: the teachers waited for frames; give Ray more CPUs, or let fewer processes "
    "label (--labelling.num-teachers) so that more can decode",
    "labelling": "teacher-bound: frames waited for the teachers; give Ray more GPUs, or CPUs where there are "
    "none, or take smaller frames (--clips.size)",
    "writing": "write-bound: labels waited for the storage; write to a faster or nearer one, or in larger "
    "files (--labelling.shard-pairs)",
}


@dataclass(frozen=True, kw_only=True)
class LabellingSummary:
    """What the set holds after a run, and what the run did."""

    location: str
    digest: str
    """Digest of the set's description."""
    num_videos: int
    """Videos in the whole set."""
    num_pairs: int
    """Pairs in the whole set."""
    num_shards: int
    """Files in the whole set."""
    bytes: int
    """Size of these files."""
    new_pairs: int
    """Made by this run."""
    seconds: float
    """How long this run took."""
    stage_seconds: Mapping[str, float]
    """Work by stage, of all processes together."""
    processes: Mapping[str, int]
    """How many each stage had at most; none in a run that found nothing to do."""
    ledger: tuple[VideoRecord, ...]
    """The videos that gave less than they might."""
    left_out: Mapping[str, int]
    """Pairs of the set's videos that aren't in it, by reason."""
    unread: tuple[VideoRecord, ...] = ()
    """Videos of the collection that the storage couldn't deliver; the same run again tries them."""

    def require_all_read(self) -> None:
        """OSError where the storage couldn't deliver every video, which says nothing of the video itself."""
        if self.unread:
            examples = "; ".join(f"{record.video}: {record.reason}" for record in self.unread[:3])
            raise OSError(
                f"{len(self.unread)} videos can't be read now ({examples}). {self.location} has the others' "
                "pairs. Run the same command again, which tries only these; if the error persists, "
                "repair the storage or leave these videos out"
            )

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
        outcomes = Counter(record.outcome.replace(" ", "_") for record in self.ledger)
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


class Graph(Protocol):
    """What runs the stages."""

    @property
    def arithmetic(self) -> Mapping[str, str]:
        """How teachers compute."""
        ...

    @property
    def processes(self) -> Mapping[str, int]:
        """How many processes each stage had at most; none before there was anything to do."""
        ...

    def messages(
        self,
        sources: Sequence[VideoSource],
        stamps: Mapping[str, Stamp],
        plan: Plan,
        teaching: Teaching | None,
    ) -> Iterator[Message]:
        """Writes what is missing of these videos; what comes out of the last stage, in no order. teaching:
        None where frames alone are wanted."""
        ...


def write_pairs(
    collection: Collection,
    location: str,
    clips: ClipOptions,
    options: LabellingOptions,
    *,
    on_progress: OnProgress | None = None,
    graph: Graph | None = None,
) -> LabellingSummary:
    """Writes the frame pairs of a collection into a folder or URI; done work is kept.

    graph: what reads and writes; None takes Ray, which has to be running. Raises ValueError where the folder
    is another set's, and RuntimeError, with the ledger written, if nothing or too little came of the inputs.
    What the storage couldn't deliver is no bad input: see `LabellingSummary.require_all_read`.
    """
    codec = options.codec_for(collection.place)
    description = SetDescription(
        kind="frames", made_of=_made_of(codec, clips, options), provenance={"videos": collection.place}
    )
    plan = _plan(location, description, codec, clips, options, is_labelled=False)
    graph = graph or _on_ray(options)
    return _write_set(collection, description, plan, Teachers(), None, options, on_progress, graph)


def write_labels(
    collection: Collection,
    teachers: Teachers,
    location: str,
    clips: ClipOptions,
    check: OcclusionCheck,
    options: LabellingOptions,
    *,
    run_id: str | None = None,
    on_progress: OnProgress | None = None,
    graph: Graph | None = None,
) -> LabellingSummary:
    """Writes the pairs of a collection with the teachers' pseudo-labels; see `write_pairs`.

    teachers: one or several; the set keeps a copy of each, `PairSet.teacher` is the first one's. check: tells
    what is occluded. run_id: the MLflow run that labels, for those who come from the labels. The networks see
    the frames as they are stored, so that a label belongs to exactly the pixels that the student will see.

    The label of several teachers is by default their mean, occluded where the mean's own check says so, with
    their spread beside it, above which the student doesn't trust it. The rule is a choice: DistillFlow, which
    names it model distillation, doesn't publish its own. With a pixel occluded where any teacher's check says
    so, three teachers' student had 1.11 px where this rule gives 1.07 (the ablation's scenes, seed 1): a
    check that flags many visible pixels flags more of them the more often it is asked.
    """
    graph = graph or _on_ray(options)
    codec = options.codec_for(collection.place)
    run = {} if run_id is None else {"run_id": run_id}
    is_first = len(teachers.uris) > 1 and options.merge == "first"
    description = SetDescription(
        kind="labels",
        made_of={
            **_made_of(codec, clips, options),
            "teacher": teachers.identity,
            "check": dataclasses.asdict(check),
            "arithmetic": dict(graph.arithmetic),
            **({"merge": options.merge} if is_first else {}),
            **({"three_frames": True} if options.three_frames else {}),
        },
        provenance={"videos": collection.place, **run, **teachers.provenance},
        num_teachers=len(teachers.uris),
        has_spread=len(teachers.uris) > 1 and not is_first,
        is_of_three_frames=options.three_frames,
        has_uncertainty=teachers.predict_scales,
    )
    plan = _plan(location, description, codec, clips, options, is_labelled=True)
    teaching = Teaching(
        teachers=teachers.models, check=check, merge=options.merge, three_frames=options.three_frames
    )
    return _write_set(collection, description, plan, teachers, teaching, options, on_progress, graph)


def _made_of(codec: FrameCodec, clips: ClipOptions, options: LabellingOptions) -> dict[str, Any]:
    return {
        "sampler": SAMPLER_VERSION,
        "clips": dataclasses.asdict(clips),
        "codec": dataclasses.asdict(codec),
        "shard_pairs": options.shard_pairs,
        "row_group_pairs": options.row_group_pairs,
    }


def _plan(
    location: str,
    description: SetDescription,
    codec: FrameCodec,
    clips: ClipOptions,
    options: LabellingOptions,
    *,
    is_labelled: bool,
) -> Plan:
    return Plan(
        run=uuid4().hex,
        location=location,
        label_set=description.digest,
        clips=clips,
        codec=codec,
        shard_pairs=options.shard_pairs,
        row_group_pairs=options.row_group_pairs,
        is_labelled=is_labelled,
        last=failed_before(location),
    )


def _on_ray(options: LabellingOptions) -> Graph:
    # Ray's import takes seconds, for which whoever asks for a status would wait.
    from pipelines.shards import RayGraph

    return RayGraph(options.num_teachers, options.accelerator)


def _write_set(
    collection: Collection,
    description: SetDescription,
    plan: Plan,
    teachers: Teachers,
    teaching: Teaching | None,
    options: LabellingOptions,
    on_progress: OnProgress | None,
    graph: Graph,
) -> LabellingSummary:
    location = plan.location
    stamps = stamps_of(collection.videos)
    with _alone_in(location):
        describe_set(location, description)
        Folder(location).sweep()
        tally = Tally(plan.location, plan.run, plan.label_set, stamps, read_progress(location))
        for source in collection.videos:
            if source.misnomer:
                record = VideoRecord(video=source.name, outcome="nothing", reason=source.misnomer)
                tally.add(VideoEnded(record=record))
        left = [source for source in collection.videos if not tally.is_done(source.name)]
        with reported(location, lambda: tally.progress):
            if left:
                teachers.keep(location)
                for message in graph.messages(left, stamps, plan, teaching):
                    tally.add(message)
                    if on_progress is not None:
                        on_progress(tally.progress)
            seconds = tally.seconds
            records = tally.finish(options.max_bad_share)
        if left:
            # A writer that died meanwhile was replaced, but not its file.
            Folder(location).sweep()
    videos_with_pairs = with_pairs(records)
    return LabellingSummary(
        location=location,
        digest=description.digest,
        num_videos=len(videos_with_pairs),
        num_pairs=sum(record.pairs for record in videos_with_pairs),
        num_shards=sum(record.shards for record in videos_with_pairs),
        bytes=sum(record.bytes for record in videos_with_pairs),
        new_pairs=tally.new_pairs,
        seconds=seconds,
        stage_seconds=tally.stage_seconds,
        processes=graph.processes,
        ledger=tuple(with_less(records)),
        unread=tuple(
            record for record in records if record.video in stamps and record.outcome == "unreadable now"
        ),
        left_out={
            reason: sum(getattr(record, reason) for record in records)
            for reason in ("cuts", "static_pairs", "faded_pairs")
        },
    )


@contextmanager
def _alone_in(location: str) -> Iterator[None]:
    """Keeps a second run out of a local folder. Object storage can't: nothing is swept there, and each run's
    manifest lists what the other has finished."""
    filesystem, root = storage_of(location)
    if not isinstance(filesystem, LocalFileSystem):
        yield
        return
    os.makedirs(root, exist_ok=True)
    require_plain(Folder(location))
    # The kernel frees the lock of a killed process.
    with open(os.path.join(root, ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another run writes into {location}; wait for it or give another folder"
            ) from error
        yield
