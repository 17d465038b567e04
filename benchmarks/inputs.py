"""What do the measurements work on? Rendered videos, real ones, pairs with truth, and teachers of fresh
weights.

A teacher of fresh weights labels as slowly, and its labels are fed as slowly, as those of a trained one.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from flowcore.chunks import ChunkReader
from flowcore.datasets import DataSet
from flowcore.networks import AnyNetworkConfig
from flowcore.objectives import Objective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import FramePair
from flowcore.scenes import Scene, SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions, VideoError
from pipelines.checkpoints import save_model
from pipelines.collection import Collection, find_videos
from pipelines.labelling import LabellingOptions, LabellingSummary, write_labels
from pipelines.labelling_progress import OnProgress
from pipelines.teachers import Teachers

_REAL_SETS = {
    "middlebury": "middlebury_flow",
    "chairs": "flyingchairs",
    "sintel": "sintel",
    "kitti2012": "kitti2012",
}
"""The folders of data sets with truth, by the names of the sets."""
_SCENES = 4
_SCENE_PAIRS = 16


def real_sets(data: Path) -> list[DataSet]:
    """Those data sets with truth that are in the folder DATA."""
    sets = [DataSet(name, str(data / folder)) for name, folder in _REAL_SETS.items()]
    return [each for each in sets if Path(each.root).exists()]


def render_videos(folder: Path, count: int, options: SceneOptions | None = None) -> str:
    """The folder, with a video of each of the scenes 0, 1 and so on."""
    for seed in range(count):
        write_video(folder / f"{seed}.mp4", render_scene(seed, options or SceneOptions()).frames)
    return str(folder)


def render_long_videos(folder: Path, count: int, frames: int, size: tuple[int, int]) -> str:
    """The folder, with different videos of any length that take little time to render: each plays one of few
    scenes forwards and backwards, from another frame on."""
    scene = SceneOptions(height=size[0], width=size[1], num_frames=_SCENE_PAIRS + 1)
    rendered = [render_scene(seed, scene).frames for seed in range(_SCENES)]
    there_and_back = [*range(_SCENE_PAIRS), *range(_SCENE_PAIRS, 0, -1)]
    for number in range(count):
        begin, scene_number = divmod(number, _SCENES)
        order = [there_and_back[(begin + frame) % len(there_and_back)] for frame in range(frames)]
        write_video(folder / f"{number}.mp4", rendered[scene_number][order])
    return str(folder)


def read_chunks(
    videos: str, options: ClipOptions, *, most: int | None = None
) -> Iterator[tuple[str, ndarray]]:
    """The URI of a video and the frames of a chunk, uint8 [frames, height, width, 3]: at most so many chunks
    of each video of a collection. Leaves out image sequences and what can't be read."""
    for source in find_videos(videos):
        if not source.frames:
            with suppress(VideoError):
                for chunk in islice(ChunkReader(source.uri, options), most):
                    yield source.uri, np.stack(chunk.frames)


def true_pair(scene: Scene, frame: int = 0) -> FramePair:
    """A frame of a scene and the next one, with the truth as their label."""
    return FramePair(
        image1=scene.frames[frame],
        image2=scene.frames[frame + 1],
        flow_fw=scene.flow_fw[frame].astype(np.float32),
        flow_bw=scene.flow_bw[frame].astype(np.float32),
        confidence_fw=1.0 - scene.occ_fw[frame].astype(np.float32),
        confidence_bw=1.0 - scene.occ_bw[frame].astype(np.float32),
    )


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What `OptimiserStep` trains for, without a set of pairs."""

    objective: Objective
    weight: float = 1.0


def fresh_teacher(folder: Path, network: AnyNetworkConfig) -> str:
    """The folder, with a network of fresh weights, the same every time."""
    torch.manual_seed(0)
    save_model(folder, network.build(), {"stage": "benchmark"})
    return str(folder)


def without_flow(pair: FramePair) -> FramePair:
    """The pair as unlabelled video gives it, but for its confidence."""
    return replace(pair, flow_fw=None, flow_bw=None)


def label(
    videos: str,
    teacher: str,
    location: Path | str,
    clips: ClipOptions,
    options: LabellingOptions | None = None,
    on_progress: OnProgress | None = None,
) -> LabellingSummary:
    """Labels a collection on the Ray that runs, as `pseudolabel` does, without a run in MLflow."""
    return write_labels(
        Collection.find(videos),
        Teachers.fetched([teacher]),
        str(location),
        clips,
        OcclusionCheck(),
        options or LabellingOptions(),
        on_progress=on_progress,
    )
