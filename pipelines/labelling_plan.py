"""What is a labelling run going to do? What all of its processes know, and which videos a task reads."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import pyarrow as pa

from flowcore.frame_codec import FrameCodec
from flowcore.video import ClipOptions
from pipelines.collection import Stamp, VideoSource
from pipelines.copies import possible_copies

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
    is_labelled: bool
    """Whether teachers label the pairs."""
    last: frozenset[str] = frozenset()
    """Names of the videos that failed in the run before, which this one reads after all others."""

    @property
    def shard_bytes(self) -> int:
        """About what a shard takes in memory."""
        height, width = self.clips.size or _UNKNOWN_SIZE
        return self.shard_pairs * height * width * _PIXEL_BYTES[self.codec.kind]


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
