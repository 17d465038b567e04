"""Does labelling stay as fast as it began, and its driver as small, however many files a run writes?

    python -m benchmarks.endurance.steady [--files 3000] [--videos 30]

Labels small rendered videos with the network of `smoke` into files of few pairs, so that a run of minutes
writes as many files as another of days. Prints for each tenth of the run the pairs a second beside the mean,
the driver's memory, and that of the largest process that reads, decodes, labels or writes. Leaves out the
first tenth, in which processes still start. With `--videos 1` all pairs are of one long video.
"""

import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.inputs import fresh_teacher, label, render_long_videos
from benchmarks.processes import kind_of
from flowcore.video import ClipOptions
from jobs.recipes import RECIPES
from pipelines.cluster import connect
from pipelines.labelling import LabellingOptions
from pipelines.labelling_progress import LabellingProgress

_SIZE = (64, 96)
_FILE_PAIRS = 4
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Look:
    """A moment of the run. megabytes: what the driver and the largest worker hold alone."""

    time: float
    pairs: int
    driver_megabytes: float
    worker_megabytes: float


def own_megabytes(process: psutil.Process) -> float:
    """Without what it shares with others, such as libraries and Ray's objects."""
    memory = process.memory_info()
    return float(memory.rss - memory.shared) / 1e6


def largest_worker() -> float:
    """Megabytes."""
    sizes = [0.0]
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if kind_of(process) != "Ray's own":
                sizes.append(own_megabytes(process))
    return max(sizes)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--files", type=int, default=3_000, help="of labels to write; 3000 by default")
    parser.add_argument("--videos", type=int, default=30, help="to label; 30 by default")
    arguments = parser.parse_args()
    clips = ClipOptions(size=_SIZE, min_size=(32, 32), chunk_pairs=_FILE_PAIRS)
    options = LabellingOptions(shard_pairs=_FILE_PAIRS, row_group_pairs=_FILE_PAIRS)
    looks: list[Look] = []

    def look(progress: LabellingProgress) -> None:
        now = time.monotonic()
        if progress.new_pairs and now > (looks[-1].time if looks else 0) + _LOOK_SECONDS:
            looks.append(Look(now, progress.new_pairs, own_megabytes(psutil.Process()), largest_worker()))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = _FILE_PAIRS * (arguments.files // arguments.videos) + 1
        videos = render_long_videos(folder / "videos", arguments.videos, frames, _SIZE)
        teacher = fresh_teacher(folder / "teacher", RECIPES["smoke"].network)
        connect()
        summary = label(videos, teacher, folder / "labels", clips, options, on_progress=look)
    if len(looks) <= 10:
        raise SystemExit(f"labelling ended after {summary.seconds:.0f} s; take more --files")
    tenths = [looks[tenth * (len(looks) - 1) // 10] for tenth in range(1, 11)]
    speeds = [(after.pairs - before.pairs) / (after.time - before.time) for before, after in pairwise(tenths)]
    mean = statistics.harmonic_mean(speeds)
    first, last = (statistics.harmonic_mean(half) for half in (speeds[:4], speeds[-4:]))
    print(report.command())
    print(
        f"{summary.num_videos} videos, {summary.num_shards} files, {summary.num_pairs} pairs, "
        f"{summary.seconds:.0f} s"
    )
    print(f"the last four of these tenths ran at this share of the first four's speed: {last / first:.3f}")
    rows = [
        (
            end.pairs // _FILE_PAIRS,
            f"{speed:.0f}",
            f"{speed / mean:.3f}",
            f"{end.driver_megabytes:.0f}",
            f"{end.worker_megabytes:.0f}",
        )
        for speed, end in zip(speeds, tenths[1:], strict=True)
    ]
    titles = ["files", "pairs a second", "of the mean", "the driver's MB", "the largest worker's MB"]
    print(report.table(titles, rows, texts=0))


if __name__ == "__main__":
    main()
