"""How much memory does a driver need to plan the labelling of a million videos?

    python -m benchmarks.speed.planning [--videos 100 10000 1000000]

Plans collections of so many videos, each in a process of its own. The videos don't exist: a list names them,
with sizes and times. All else is as in a run, up to the first task's answer, which is that there is no such
file. Prints the driver's memory before planning and its peak. The number of pairs in a video doesn't matter.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NoReturn

from benchmarks import report
from flowcore.video import ClipOptions
from pipelines.cluster import connect
from pipelines.collection import Collection, Stamp, VideoSource
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.labelling_progress import LabellingProgress


def listed(count: int) -> list[VideoSource]:
    """As object storage lists them: of many sizes, so that few may be copies."""
    return [
        VideoSource(
            f"/bucket/videos/{number // 1000:04d}/camera-{number % 1000:04d}-clip.mp4",
            listed=Stamp(
                size=1_000_000 + 7919 * number % 9_000_000, text=f"{number} {1_700_000_000 + number}"
            ),
        )
        for number in range(count)
    ]


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def plan(count: int) -> None:
    """Prints a line of the table; ends the process."""
    connect()
    before, start = peak_megabytes(), time.monotonic()

    def end(progress: LabellingProgress) -> NoReturn:
        peak, seconds = peak_megabytes(), time.monotonic() - start
        each = 1e6 * (peak - before) / progress.num_videos
        numbers = (f"{number:.0f}" for number in (before, peak, each, seconds))
        print(report.row([count, *numbers]), flush=True)
        shutil.rmtree(folder)
        os._exit(0)

    with tempfile.TemporaryDirectory() as folder:
        collection = Collection("anywhere", tuple(listed(count)))
        write_pairs(collection, f"{folder}/pairs", ClipOptions(), LabellingOptions(), on_progress=end)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument(
        "--videos",
        type=int,
        nargs="+",
        default=[100, 10_000, 1_000_000],
        metavar="COUNT",
        help="sizes of collections; 100 10000 1000000 by default",
    )
    parser.add_argument("--plan", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan is not None:
        plan(arguments.plan)
    print(report.command())
    titles = ["videos", "MB before", "MB at most", "bytes a video", "seconds to the first answer"]
    print(report.head(titles, texts=0), flush=True)
    for count in arguments.videos:
        subprocess.run([sys.executable, "-m", __spec__.name, "--plan", str(count)], check=True)


if __name__ == "__main__":
    main()
