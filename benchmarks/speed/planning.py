"""What does a labelling cost its driver? Memory to plan a million videos, and CPU time for each file.

    python -m benchmarks.speed.planning [--videos 100 10000 1000000] [--shard-pairs 64 256] [--files 1000]

Plans collections of so many videos, each in a process of its own. The videos don't exist: a list names them,
with sizes and times. All else is as in a run, up to the first task's answer, which is that there is no such
file. Prints the driver's memory before planning and its peak. The number of pairs in a video doesn't matter.

Then labels as many files of so many pairs with stages that do nothing: readers give empty frames, teachers
and writers pass them on. Ray's graph, the messages and what becomes of them are as in a run. Prints the CPU
time of the driver's process, in which the first tenth of the files isn't counted, and the share of a core
that it would take if the teachers made 26,000 pairs a second. It is at most that: Ray's loop in the driver
takes time whether files come or not, and here few come in a second.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa

from benchmarks import report
from flowcore.occlusion import OcclusionCheck
from flowcore.video import ClipOptions
from pipelines.cluster import connect
from pipelines.collection import Collection, Stamp, VideoSource
from pipelines.decoding_answers import EncodedChunk
from pipelines.labelling import LabellingOptions, write_labels, write_pairs
from pipelines.labelling_plan import Plan
from pipelines.labelling_progress import LabellingProgress
from pipelines.ledger import VideoRecord
from pipelines.messages import Shard, VideoEnded, messages
from pipelines.models import SHIPPED
from pipelines.shards import RayGraph
from pipelines.teachers import Teachers
from pipelines.teaching import Teaching

PAIRS_A_SECOND = 26_000
"""512 GPUs at fifty each."""
_FILES_OF_A_VIDEO = 100


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


@dataclass(frozen=True)
class EmptyReader:
    """Gives the shards of each video, of frames without content."""

    plan: Plan

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        pairs = self.plan.shard_pairs
        chunk = EncodedChunk(
            index=0,
            frames=[b""] * (pairs + 1),
            frame_indices=[*range(pairs + 1)],
            timestamps=[0.0] * (pairs + 1),
            height=1,
            width=1,
        )
        for video in (each for group in table["videos"].to_pylist() for each in group):
            folder = f"{zlib.crc32(video['uri'].encode()):032x}"
            for number in range(_FILES_OF_A_VIDEO):
                shard = Shard(
                    video=video["uri"],
                    folder=folder,
                    number=number,
                    pairs=pairs,
                    share=(number + 1) / _FILES_OF_A_VIDEO,
                    chunks=(chunk,),
                )
                yield shard.to_arrow()
            record = VideoRecord(
                video=video["uri"],
                outcome="done",
                stamp=video["stamp"],
                folder=folder,
                shards=_FILES_OF_A_VIDEO,
                label_set=self.plan.label_set,
                run=self.plan.run,
            )
            yield VideoEnded(record=record).to_arrow()


class IdleTeacher:
    def __init__(self, plan: Plan, teaching: Teaching, device: str, shards_at_once: int) -> None:
        pass

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        yield table


@dataclass(frozen=True)
class IdleWriter:
    """Says that it has written each shard."""

    plan: Plan

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for message in messages(table):
            if isinstance(message, Shard):
                message = message.lighter(bytes=1, is_new=True)
            yield message.to_arrow()


class IdleGraph(RayGraph):
    """Ray's graph of stages that do nothing."""

    reader, teacher, writer = EmptyReader, IdleTeacher, IdleWriter


@dataclass(frozen=True, kw_only=True)
class Driven:
    """What the files of a run cost its driver."""

    seconds: float
    """CPU time of its process, for a file."""
    files_per_second: float


def drive(files: int, shard_pairs: int) -> Driven:
    """Labels so many files, rounded up to whole videos, in the cluster that there is."""
    connect()
    seen: list[tuple[int, float, float]] = []

    def note(progress: LabellingProgress) -> None:
        seen.append((progress.new_pairs // shard_pairs, time.process_time(), time.monotonic()))

    collection = Collection("anywhere", tuple(listed(-(-files // _FILES_OF_A_VIDEO))))
    options = LabellingOptions(shard_pairs=shard_pairs, row_group_pairs=shard_pairs)
    teachers = Teachers.fetched([f"{SHIPPED}laptop"])
    with tempfile.TemporaryDirectory() as folder:
        write_labels(
            collection,
            teachers,
            f"{folder}/labels",
            ClipOptions(),
            OcclusionCheck(),
            options,
            on_progress=note,
            graph=IdleGraph(None, "cpu"),
        )
    first, last = seen[len(seen) // 10], seen[-1]
    count, cpu, clock = (end - begin for begin, end in zip(first, last, strict=True))
    return Driven(seconds=cpu / count, files_per_second=count / clock)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument(
        "--videos",
        type=int,
        nargs="*",
        default=[100, 10_000, 1_000_000],
        metavar="COUNT",
        help="sizes of collections; 100 10000 1000000 by default",
    )
    parser.add_argument(
        "--shard-pairs",
        type=int,
        nargs="*",
        default=[64, 256],
        metavar="COUNT",
        help="pairs in each file; 64 256 by default",
    )
    parser.add_argument("--files", type=int, default=1000, help="1000 by default")
    parser.add_argument("--plan", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan is not None:
        plan(arguments.plan)
    print(report.command())
    if arguments.videos:
        titles = ["videos", "MB before", "MB at most", "bytes a video", "seconds to the first answer"]
        print(report.head(titles, texts=0), flush=True)
    for count in arguments.videos:
        subprocess.run([sys.executable, "-m", __spec__.name, "--plan", str(count)], check=True)
    if arguments.shard_pairs:
        titles = ["pairs in a file", "files a second here", "the driver's ms for a file", "µs for a pair"]
        print(f"\n{report.head([*titles, f'of its core at {PAIRS_A_SECOND} pairs/s'], texts=0)}", flush=True)
    for pairs in arguments.shard_pairs:
        driven = drive(arguments.files, pairs)
        each = driven.seconds / pairs
        numbers = (f"{driven.files_per_second:.0f}", f"{1e3 * driven.seconds:.1f}", f"{1e6 * each:.0f}")
        print(report.row([pairs, *numbers, f"{PAIRS_A_SECOND * each:.0%}"]), flush=True)


if __name__ == "__main__":
    main()
