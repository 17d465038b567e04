"""Does labelling stay as fast as it began, and its driver as small, however many files a run writes?

    python benchmarks/steady.py [--files 3000]

Labels small rendered videos with the network of `smoke` into files of few pairs, so that a run of minutes
writes as many as another of days. Prints for each tenth of the run after the first one, in which processes
still start, the pairs a second beside the mean, and the driver's memory.
"""

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from labelling import render_videos

from flowcore.video import ClipOptions
from jobs.command import connect
from jobs.recipes import RECIPES
from pipelines.checkpoints import save_model
from pipelines.labelling import LabellingOptions, LabellingProgress, write_labels

_SIZE = (64, 96)
_FILE_PAIRS = 4
_VIDEO_FILES = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=3_000)
    arguments = parser.parse_args()
    clips = ClipOptions(size=_SIZE, min_size=(32, 32), chunk_pairs=_FILE_PAIRS)
    options = LabellingOptions(clips=clips, shard_pairs=_FILE_PAIRS, row_group_pairs=_FILE_PAIRS)
    looks: list[tuple[float, int, float]] = []

    def look(progress: LabellingProgress) -> None:
        if progress.new_pairs > (looks[-1][1] if looks else 0):
            megabytes = psutil.Process().memory_info().rss / 1e6
            looks.append((time.monotonic(), progress.new_pairs, megabytes))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_videos(
            folder / "videos", arguments.files // _VIDEO_FILES, _FILE_PAIRS * _VIDEO_FILES + 1, _SIZE
        )
        torch.manual_seed(0)
        save_model(folder / "teacher", RECIPES["smoke"].network.build(), {"stage": "benchmark"})
        connect()
        summary = write_labels(
            str(folder / "videos"),
            [str(folder / "teacher")],
            str(folder / "labels"),
            options,
            on_progress=look,
        )
    tenths = [looks[tenth * (len(looks) - 1) // 10] for tenth in range(1, 11)]
    speeds = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(tenths)]
    mean = statistics.harmonic_mean(speeds)
    print(f"command: python {shlex.join(sys.argv)}")
    print(f"{summary.num_shards} files, {summary.num_pairs} pairs, {summary.seconds:.0f} s")
    print("| files | pairs a second | of the mean | the driver's MB |\n|---:|---:|---:|---:|")
    for speed, (_, pairs, megabytes) in zip(speeds, tenths[1:], strict=True):
        print(f"| {pairs // _FILE_PAIRS} | {speed:.0f} | {speed / mean:.3f} | {megabytes:.0f} |")


if __name__ == "__main__":
    main()
