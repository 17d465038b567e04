"""What is a labelling run going to do? What all of its processes know, and which videos a task reads."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from flowcore.frame_codec import FrameCodec
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import Merge
from flowcore.video import ClipOptions
from pipelines.collection import Stamp, VideoSource
from pipelines.copies import possible_copies
from pipelines.messages import Message
from pipelines.teachers import TeacherModel

_UNKNOWN_SIZE = (1080, 1920)
_PIXEL_BYTES = {"jpeg": 1, "png": 3}
"""About, of a stored frame with its share of the labels."""
_VIDEOS = pa.list_(
    pa.struct(
        [
            ("uri", pa.string()),
            ("frames", pa.list_(pa.string())),
            ("scene", pa.string()),
            ("stamp", pa.string()),
        ]
    )
)
"""What a reader is given together: videos that may be copies of each other."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every process of a run knows."""

    run: str
    location: str
    label_set: str
    clips: ClipOptions
    codec: FrameCodec
    shard_pairs: int
    row_group_pairs: int
    teachers: tuple[TeacherModel, ...]
    """None of them where frames alone are wanted."""
    check: OcclusionCheck
    """Tells what is occluded by the teachers' flow."""
    merge: Merge = "mean"
    three_frames: bool = False
    """Whether labels continue the motion from a third frame."""
    last: frozenset[str] = frozenset()
    """Names of the videos that failed in the run before, which this one reads after all others."""

    @property
    def shard_bytes(self) -> int:
        """About what a shard takes in memory."""
        height, width = self.clips.size or _UNKNOWN_SIZE
        return self.shard_pairs * height * width * _PIXEL_BYTES[self.codec.kind]


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
        self, sources: Sequence[VideoSource], stamps: Mapping[str, Stamp], plan: Plan
    ) -> Iterator[Message]:
        """Writes what is missing of these videos; what comes out of the last stage, in no order."""
        ...


def group_tables(
    sources: Sequence[VideoSource], stamps: Mapping[str, Stamp], last: Set[str], most: int
) -> list[pa.Table]:
    """The tables for at most `most` reading tasks. Each row is a group of videos that may be copies of each
    other. Those named in `last` come at the end."""
    groups = pa.array(
        [
            [
                {"uri": each.uri, "frames": each.frames, "scene": each.scene, "stamp": stamps[each.name].text}
                for each in group
            ]
            for group in sorted(
                possible_copies(sources, stamps), key=lambda group: any(each.name in last for each in group)
            )
        ],
        _VIDEOS,
    )
    tasks = min(len(groups), most)
    parts = [groups.take(pa.array(range(task, len(groups), tasks))) for task in range(tasks)]
    return [pa.table({"videos": part}) for part in parts]
