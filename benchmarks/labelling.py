"""How fast is labelling, beside the script that one would write today and beside the teacher's own speed?

    python benchmarks/labelling.py [--videos CLIPS] [--network laptop] [--pairs 64]

Measures, in one run and on the same cores, with processes of one thread each:

- the script: OpenCV decodes, the network answers once for each direction, encoding both frames each time,
  then the check, and one compressed .npz a pair; a process a core, and one process with all the threads;
- the limit: the same teacher on frames in memory, each encoded once, nothing checked or written;
- labelling, from video files to Parquet, once it runs.

Takes rendered videos, or at most --pairs pairs of each of a folder's. Weights are fresh, which costs what
good ones do.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import ray
import torch
from numpy import ndarray

from flowcore.geometry import pad_to_multiple, upsample_flow
from flowcore.networks import FlowNetwork
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.shapes import to_images
from flowcore.video import ChunkReader, ClipOptions, VideoError
from jobs.command import connect
from jobs.recipes import RECIPES
from pipelines.checkpoints import save_model
from pipelines.clips import find_videos
from pipelines.labelling import (
    LabellingOptions,
    LabellingProgress,
    LabellingSummary,
    label_chunk,
    write_labels,
)

_CHUNK_PAIRS = 16
_LIMIT_SECONDS = 8.0
_SCRIPT_SECONDS = 40.0
_SCENES = 4


def render_videos(folder: Path, count: int, frames: int, size: tuple[int, int]) -> None:
    """Different ones of few scenes, so that rendering is quick."""
    scene = SceneOptions(height=size[0], width=size[1], num_frames=_CHUNK_PAIRS + 1)
    rendered = [render_scene(seed, scene).frames for seed in range(_SCENES)]
    there_and_back = [*range(_CHUNK_PAIRS), *range(_CHUNK_PAIRS, 0, -1)]
    for number in range(count):
        begin, scene_number = divmod(number, _SCENES)
        order = [there_and_back[(begin + i) % len(there_and_back)] for i in range(frames)]
        write_video(folder / f"{number}.mp4", rendered[scene_number][order])


@ray.remote(num_cpus=1)
class Script:
    """What one would write today for a folder of videos."""

    def __init__(self, network: FlowNetwork, threads: int) -> None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._network = network.eval()

    def pairs_per_second(self, videos: Sequence[str], options: ClipOptions, folder: str) -> float:
        """Of whole videos, until it has worked for long enough."""
        pairs, start = 0, time.monotonic()
        for video in videos:
            before = None
            for frame in self._frames(video, options):
                if before is not None:
                    self._label(before, frame, f"{folder}/{Path(video).stem}-{pairs}.npz")
                    pairs += 1
                before = frame
            if time.monotonic() - start > _SCRIPT_SECONDS:
                break
        return pairs / (time.monotonic() - start)

    def _frames(self, video: str, options: ClipOptions) -> Iterator[torch.Tensor]:
        capture = cv2.VideoCapture(video)
        for _ in range(1 + (options.max_pairs_per_video or sys.maxsize)):
            is_read, image = capture.read()
            if not is_read:
                return
            height, width = image.shape[:2]
            wanted = options.size or (height, width)
            scale = min(1.0, max(wanted[0] / height, wanted[1] / width))
            small = cv2.resize(
                image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
            )
            pixels = torch.from_numpy(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
            yield pixels.permute(2, 0, 1)[None].float() / 255

    @torch.inference_mode()
    def _label(self, image1: torch.Tensor, image2: torch.Tensor, path: str) -> None:
        flow_fw, flow_bw = self._flow(image1, image2), self._flow(image2, image1)
        check = ForwardBackwardCheck()
        np.savez_compressed(
            path,
            flow_fw=flow_fw[0].numpy(),
            flow_bw=flow_bw[0].numpy(),
            occ_fw=check(flow_fw, flow_bw)[0].numpy(),
            occ_bw=check(flow_bw, flow_fw)[0].numpy(),
        )

    def _flow(self, image1: torch.Tensor, image2: torch.Tensor) -> torch.Tensor:
        features = self._network.encode(pad_to_multiple(torch.cat([image1, image2]), self._network.multiple))
        (finest, *_) = self._network.decode([each[:1] for each in features], [each[1:] for each in features])
        return upsample_flow(finest, self._network.strides[0], *image1.shape[-2:])


@ray.remote(num_cpus=1)
class InMemory:
    """A teacher beside its frames."""

    def __init__(self, network: FlowNetwork, chunks: Sequence[ndarray]) -> None:
        torch.set_num_threads(1)
        self._network = network.eval()
        self._chunks = [to_images(chunk) for chunk in chunks]

    def pairs_per_second(self, seconds: float, at_once: int, *, checked: bool) -> float:
        """Over all chunks, again and again. checked: with the check and the numbers that go with a label."""
        pairs, start = 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds or pairs == 0:
            for frames in self._chunks:
                for first in range(0, len(frames) - 1, at_once):
                    some = frames[first : first + at_once + 1]
                    if checked:
                        label_chunk([self._network], some, ForwardBackwardCheck())
                    else:
                        self._network.estimate_chunk(some)
                pairs += len(frames) - 1
        return pairs / elapsed


def script_speed(
    network: FlowNetwork,
    videos: Sequence[str],
    options: ClipOptions,
    folder: Path,
    processes: int,
    threads: int,
) -> float:
    """Pairs a second of all processes together, from their first frame on."""
    folder.mkdir()
    scripts = [Script.remote(network, threads) for _ in range(processes)]
    speeds = [
        script.pairs_per_second.remote(videos[number::processes], options, str(folder))
        for number, script in enumerate(scripts)
    ]
    total = sum(ray.get(speeds))
    for script in scripts:
        ray.kill(script)
    return total


def memory_speeds(network: FlowNetwork, chunks: Sequence[ndarray], processes: int) -> tuple[float, float]:
    """Pairs a second of all processes together, bare and checked, each at the better number of pairs at
    once."""
    share = ray.put(list(chunks))
    teachers = [InMemory.remote(network, share) for _ in range(processes)]

    def speed(at_once: int, checked: bool) -> float:
        return sum(
            ray.get(
                [
                    teacher.pairs_per_second.remote(_LIMIT_SECONDS, at_once, checked=checked)
                    for teacher in teachers
                ]
            )
        )

    bare, checked = (max(speed(at_once, each) for at_once in (1, 4, _CHUNK_PAIRS)) for each in (False, True))
    for teacher in teachers:
        ray.kill(teacher)
    return bare, checked


def labelled(
    videos: str, teacher: Path, location: Path, options: LabellingOptions
) -> tuple[LabellingSummary, float, list[float]]:
    """The summary, the seconds to the first shard, and the pairs a second in each quarter from there to the
    last."""
    start = time.monotonic()
    steps: list[tuple[float, int]] = []

    def note(progress: LabellingProgress) -> None:
        if progress.new_pairs > (steps[-1][1] if steps else 0):
            steps.append((time.monotonic(), progress.new_pairs))

    summary = write_labels(videos, [str(teacher)], str(location), options, on_progress=note)
    if len(steps) < 5:
        raise SystemExit("labelling ended after fewer than five files; take more videos or pairs")
    marks = [steps[quarter * (len(steps) - 1) // 4] for quarter in range(5)]
    speeds = [(after - before) / (then - now) for (now, before), (then, after) in pairwise(marks)]
    return summary, marks[0][0] - start, speeds


def readable(videos: str, options: ClipOptions) -> tuple[list[str], list[ndarray]]:
    """Those videos of a collection that give pairs, and some of their chunks."""
    found, chunks = [], []
    for source in find_videos(videos):
        if source.frames:
            continue
        with suppress(VideoError):
            chunks.append(np.stack(next(iter(ChunkReader(source.uri, options))).frames))
            found.append(source.uri)
    return found, chunks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", help="a folder of videos; without it, they are rendered")
    parser.add_argument("--count", type=int, default=16, help="of the rendered videos")
    parser.add_argument("--pairs", type=int, default=64, help="most of a video")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--network", default="laptop", choices=sorted(RECIPES), help="that of a recipe")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    size = (arguments.size[0], arguments.size[1])
    clips = ClipOptions(size=size, min_size=(32, 32), max_pairs_per_video=arguments.pairs)
    # An even share of each video for each teacher, or the last one works alone.
    options = LabellingOptions(clips=clips, num_teachers=cores, shard_pairs=_CHUNK_PAIRS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = arguments.videos
        if videos is None:
            videos = str(folder / "videos")
            render_videos(Path(videos), arguments.count, arguments.pairs + 1, size)
        torch.manual_seed(0)
        network = RECIPES[arguments.network].network.build()
        save_model(folder / "teacher", network, {"stage": "benchmark"})
        connect()
        files, chunks = readable(videos, clips)
        scripts = {
            (processes, threads): script_speed(
                network, files, clips, folder / f"npz{threads}", processes, threads
            )
            for processes, threads in ((1, cores), (cores, 1))
        }
        bare, checked = memory_speeds(network, chunks, cores)
        summary, seconds_to_first, quarters = labelled(videos, folder / "teacher", folder / "labels", options)
        npz_bytes = statistics.mean(path.stat().st_size for path in (folder / "npz1").iterdir())
    script = max(scripts.values())
    speed = statistics.harmonic_mean(quarters)
    print(f"command: python {shlex.join(sys.argv)}")
    print(
        f"{len(files)} videos, scaled to cover {size[0]}x{size[1]} px, {summary.num_pairs} pairs; network of "
        f"the recipe {arguments.network}; {cores} cores"
    )
    print("| pairs a second | | of the script | of the limit |")
    print("|---|---:|---:|---:|")
    for title, each in (
        *(
            (f"the script, {n} process(es) of {threads} thread(s)", at)
            for (n, threads), at in scripts.items()
        ),
        ("the teacher on frames in memory: the limit", bare),
        ("the same with the check and a label's numbers", checked),
        ("labelling, from video to Parquet", speed),
    ):
        print(f"| {title} | {each:.1f} | {each / script:.2f} | {each / bare:.2f} |")
    print(f"by quarter of the labelling: {', '.join(f'{each:.1f}' for each in quarters)} pairs/s")
    print(f"first shard after {seconds_to_first:.1f} s; work by stage: ", end="")
    print(", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stage_seconds.items()))
    print(
        f"bytes a pair: {npz_bytes:.0f} in .npz, {summary.bytes / summary.num_pairs:.0f} in "
        "Parquet, frames included"
    )


if __name__ == "__main__":
    main()
