"""How near does labelling come to the teacher's own speed?

    python benchmarks/labelling.py [--videos 48] [--size 96 128] [--network demo] [--teachers 2]

Renders videos and measures, in one run and with as many processes of one thread each: the teacher's flow in
both directions on frames in memory, each frame encoded once and nothing written; and labelling, from video
files to Parquet, once it runs. Prints both in pairs a second and their quotient, the share of the limit that
labelling reaches. Weights are fresh, which costs what good ones do.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch

from flowcore.networks import FlowNetwork
from flowcore.scenes import SceneOptions, render_scene, write_video
from jobs.command import connect
from jobs.recipes import RECIPES
from pipelines.checkpoints import save_model
from pipelines.labelling import LabellingOptions, LabellingProgress, LabellingSummary, write_labels

_CHUNK_PAIRS = 16
_LIMIT_SECONDS = 8.0


@ray.remote(num_cpus=1)
class InMemory:
    """A teacher beside its frames."""

    def __init__(self, network: FlowNetwork, frames: torch.Tensor) -> None:
        torch.set_num_threads(1)
        self._network, self._frames = network.eval(), frames

    def pairs_per_second(self, seconds: float, pairs_at_once: int) -> float:
        pairs, start = 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds or pairs == 0:
            for first in range(0, _CHUNK_PAIRS, pairs_at_once):
                self._network.estimate_chunk(self._frames[first : first + pairs_at_once + 1])
            pairs += _CHUNK_PAIRS
        return pairs / elapsed


def limit(network: FlowNetwork, frames: torch.Tensor, processes: int) -> float:
    """Pairs a second of all processes together, at the better number of pairs at once."""
    teachers = [InMemory.remote(network, frames) for _ in range(processes)]
    ray.get([teacher.pairs_per_second.remote(0.0, _CHUNK_PAIRS) for teacher in teachers])
    speeds = [
        sum(ray.get([teacher.pairs_per_second.remote(_LIMIT_SECONDS, at_once) for teacher in teachers]))
        for at_once in (1, _CHUNK_PAIRS)
    ]
    for teacher in teachers:
        ray.kill(teacher)
    return max(speeds)


def labelled(folder: Path, options: LabellingOptions) -> tuple[LabellingSummary, float, float]:
    """The summary, the seconds to the first shard, and the pairs a second from there to the last."""
    start = time.monotonic()
    steps: list[tuple[float, int]] = []

    def note(progress: LabellingProgress) -> None:
        if not steps or progress.new_pairs > steps[-1][1]:
            steps.append((time.monotonic(), progress.new_pairs))

    summary = write_labels(
        str(folder / "videos"), [str(folder / "teacher")], str(folder / "labels"), options, on_progress=note
    )
    (first, before), (last, after) = steps[1], steps[-1]
    return summary, first - start, (after - before) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--frames", type=int, default=65, help="of each video")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--network", default="demo", choices=sorted(RECIPES), help="that of a recipe")
    parser.add_argument("--teachers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    height, width = arguments.size
    scene = SceneOptions(height=height, width=width, num_frames=_CHUNK_PAIRS + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(arguments.videos):
            frames = render_scene(seed % 4, scene).frames
            # Back and forth, begun elsewhere, so that no two videos are the same and rendering is quick.
            there_and_back = [*range(_CHUNK_PAIRS), *range(_CHUNK_PAIRS, 0, -1)]
            order = [there_and_back[(seed + i) % len(there_and_back)] for i in range(arguments.frames)]
            write_video(folder / "videos" / f"{seed}.mp4", frames[order])
        torch.manual_seed(0)
        network = RECIPES[arguments.network].network.build()
        save_model(folder / "teacher", network, {"stage": "benchmark"})
        connect()
        speed_limit = limit(
            network, torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255, arguments.teachers
        )
        summary, seconds_to_first, speed = labelled(folder, LabellingOptions(num_teachers=arguments.teachers))
    print(f"command: python {shlex.join(sys.argv)}")
    print(
        f"{arguments.videos} videos of {arguments.frames} frames, {height}x{width} px, {summary.num_pairs} "
        f"pairs; {arguments.network} network; {arguments.teachers} teacher(s) of one thread on "
        f"{len(os.sched_getaffinity(0))} cores"
    )
    print(f"teacher on frames in memory: {speed_limit:.1f} pairs/s")
    print(f"labelling, once it runs:     {speed:.1f} pairs/s, {speed / speed_limit:.0%} of that")
    print(f"first shard after {seconds_to_first:.1f} s; work by stage: ", end="")
    print(", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stage_seconds.items()))
    print(
        f"{summary.bytes / summary.num_pairs / (height * width):.2f} bytes a pixel of a pair, frames included"
    )


if __name__ == "__main__":
    main()
