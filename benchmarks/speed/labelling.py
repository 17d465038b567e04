"""How fast is labelling, beside the script that one would write today and beside the teacher's own speed?

    python -m benchmarks.speed.labelling [--videos CLIPS] [--network laptop] [--pairs 64] [--rounds 3]

Measures all of these on the same cores:

- the script: OpenCV decodes, the network answers once for each direction and encodes both frames each time,
  the check follows, and each pair is written as a compressed .npz; by one process with a thread for each
  core, and by one process of one thread for each core;
- the limit: the same teacher on frames in memory, each encoded once, with nothing checked or written;
- the same with the check and a label's quality columns;
- labelling, from video files to Parquet, once it is running.

The machine's speed changes from minute to minute, so they take turns, in rounds; ratios are within a round.
Prints pairs a second, what kind of process the cores' time went to, the bytes of a pair, and the seconds from
starting Ray to the first label on the disk.

Takes rendered videos, or at most --pairs pairs of each video of a folder. The scripts and the limit take
fewer pairs, but some of each video. The teacher has fresh weights.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import ray
import torch
from numpy import ndarray

from benchmarks import report
from benchmarks.inputs import fresh_teacher, label, read_chunks, render_long_videos
from benchmarks.processes import kind_of
from flowcore.geometry import pad_to_multiple, upsample_flow
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import pseudo_labels
from flowcore.shapes import to_images
from flowcore.video import ClipOptions
from jobs.recipes import RECIPES
from pipelines.checkpoints import load_model
from pipelines.cluster import connect
from pipelines.label_rows import label_columns
from pipelines.labelling import LabellingOptions, LabellingSummary
from pipelines.labelling_progress import LabellingProgress

_CHUNK_PAIRS = 16
_SCRIPT_PAIRS = 8
"""Of each video."""
_LIMIT_SECONDS = 8.0
_TRIED_CHUNKS = 4
_LOOK_SECONDS = 5.0


class Script:
    """What one would write today for a folder of videos."""

    def __init__(self, network: FlowNetwork, threads: int) -> None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._network = network.eval()

    def pairs_per_second(self, videos: Sequence[str], options: ClipOptions, folder: str) -> float:
        """Of as many pairs of each video as the options say."""
        pairs, start = 0, time.monotonic()
        for video in videos:
            before = None
            for frame in self._frames(video, options):
                if before is not None:
                    self._label(before, frame, f"{folder}/{Path(video).stem}-{pairs}.npz")
                    pairs += 1
                before = frame
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
        check = OcclusionCheck()
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


class InMemory:
    """A teacher beside its frames."""

    def __init__(self, network: FlowNetwork, chunks: Sequence[ndarray]) -> None:
        torch.set_num_threads(1)
        self._network = network.ready(torch.device("cpu"))
        self._chunks = [to_images(chunk) for chunk in chunks]

    def pairs_per_second(self, chunks: int | None, at_once: int, *, checked: bool) -> float:
        """Over the first chunks, or all, again and again. checked: with the check and a label's numbers."""
        pairs, start = 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < _LIMIT_SECONDS or pairs == 0:
            for frames in self._chunks[:chunks]:
                if checked:
                    labels = pseudo_labels([self._network], frames, OcclusionCheck(), at_once)
                    label_columns(labels, "a teacher")
                else:
                    self._network.estimate_chunk(frames, at_once)
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
    scripts: list[Any] = [ray.remote(num_cpus=1)(Script).remote(network, threads) for _ in range(processes)]
    speeds = [
        script.pairs_per_second.remote(videos[number::processes], options, str(folder))
        for number, script in enumerate(scripts)
    ]
    total = float(sum(ray.get(speeds)))
    for script in scripts:
        ray.kill(script)
    return total


def memory_speed(
    network: FlowNetwork,
    frames: Any,
    processes: int,
    at_once: int,
    *,
    checked: bool,
    chunks: int | None = None,
) -> float:
    """Pairs a second of all processes together."""
    teachers: list[Any] = [ray.remote(num_cpus=1)(InMemory).remote(network, frames) for _ in range(processes)]
    speeds = [teacher.pairs_per_second.remote(chunks, at_once, checked=checked) for teacher in teachers]
    total = float(sum(ray.get(speeds)))
    for teacher in teachers:
        ray.kill(teacher)
    return total


@dataclass
class CoreTime:
    """Seconds that the cores worked for this process and all that it started, by what they are."""

    _before: dict[int, float] = field(default_factory=dict)
    _kinds: dict[int, str] = field(default_factory=dict)
    _looked: float = -_LOOK_SECONDS
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def look(self) -> None:
        """Now and then; what has ended since the last look is left out."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        this = psutil.Process()
        is_first = not self._before
        for process in (this, *this.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                now = times.user + times.system
                kind = "the driver" if process == this else kind_of(process)
                # Titles change; which teacher it is doesn't.
                kind = self._kinds.setdefault(process.pid, kind)
                self.seconds[kind] += 0.0 if is_first else now - self._before.get(process.pid, 0.0)
                self._before[process.pid] = now


def labelled(
    videos: str,
    teacher: str,
    location: Path,
    clips: ClipOptions,
    options: LabellingOptions,
    time_of: CoreTime,
) -> tuple[LabellingSummary, float, list[float]]:
    """The summary, the seconds to the first shard, and the pairs a second in each quarter from there to the
    last."""
    start = time.monotonic()
    steps: list[tuple[float, int]] = []

    def note(progress: LabellingProgress) -> None:
        if progress.new_pairs > (steps[-1][1] if steps else 0):
            steps.append((time.monotonic(), progress.new_pairs))
            time_of.look()

    summary = label(videos, teacher, location, clips, options, on_progress=note)
    if len(steps) < 10:
        raise SystemExit("labelling ended after fewer than ten files; take more videos or pairs")
    # From when each of the teachers has had time to give one.
    begun = options.num_teachers or 1
    marks = [steps[begun + quarter * (len(steps) - 1 - begun) // 4] for quarter in range(5)]
    speeds = [(after - before) / (then - now) for (now, before), (then, after) in pairwise(marks)]
    return summary, steps[0][0] - start, speeds


def import_seconds() -> float:
    """What each of Ray's processes takes before it can work, by itself."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import pipelines.shards"], check=True)
    return time.monotonic() - start


def first_label_seconds(
    video: str, teacher: str, location: Path, clips: ClipOptions, options: LabellingOptions
) -> float:
    """From before Ray starts to the first shard on the disk."""
    start = time.monotonic()
    connect()
    seconds: list[float] = []

    def note(progress: LabellingProgress) -> None:
        if progress.new_pairs and not seconds:
            seconds.append(time.monotonic() - start)

    label(video, teacher, location, clips, options, on_progress=note)
    return seconds[0]


def ratio(values: Sequence[float], of: Sequence[float]) -> str:
    """The median of the rounds' quotients, and their range."""
    return report.median_and_range([each / other for each, other in zip(values, of, strict=True)])


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--videos", help="a folder of videos; rendered ones without it")
    parser.add_argument("--count", type=int, default=16, help="rendered videos; 16 by default")
    parser.add_argument("--pairs", type=int, default=64, help="most pairs of a video; 64 by default")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(192, 256),
        metavar=("HEIGHT", "WIDTH"),
        help="of the frames, px; 192 256 by default",
    )
    parser.add_argument(
        "--network", default="laptop", choices=sorted(RECIPES), help="the recipe whose network labels"
    )
    parser.add_argument("--rounds", type=int, default=3, help="3 by default")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    size = (arguments.size[0], arguments.size[1])
    clips = ClipOptions(size=size, min_size=(32, 32), max_pairs_per_video=arguments.pairs)
    # An even share of each video for each teacher, or the last one works alone.
    options = LabellingOptions(num_teachers=cores, shard_pairs=_CHUNK_PAIRS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = arguments.videos
        if videos is None:
            videos = render_long_videos(folder / "videos", arguments.count, arguments.pairs + 1, size)
        teacher = fresh_teacher(folder / "teacher", RECIPES[arguments.network].network)
        network, _ = load_model(Path(teacher))
        first_chunks = dict(read_chunks(videos, clips, most=1))
        files, chunks = list(first_chunks), list(first_chunks.values())
        importing = import_seconds()
        from_start = first_label_seconds(files[0], teacher, folder / "first", clips, options)
        some = replace(clips, max_pairs_per_video=_SCRIPT_PAIRS)
        frames = ray.put(chunks)

        def script(processes: int, threads: int) -> Callable[[int], float]:
            return lambda number: script_speed(
                network, files, some, folder / f"npz-{number}-{processes}", processes, threads
            )

        def in_memory(*, checked: bool) -> Callable[[int], float]:
            return lambda number: memory_speed(network, frames, cores, at_once, checked=checked)

        def labelling(number: int) -> float:
            runs.append(
                labelled(videos, teacher, folder / f"labels{number}", clips, options, time_of[number])
            )
            return statistics.harmonic_mean(runs[-1][2])

        tried = {
            each: memory_speed(network, frames, cores, each, checked=False, chunks=_TRIED_CHUNKS)
            for each in (1, 4, _CHUNK_PAIRS)
        }
        at_once = max(tried, key=lambda each: tried[each])
        runs: list[tuple[LabellingSummary, float, list[float]]] = []
        time_of = [CoreTime() for _ in range(arguments.rounds)]
        ways = {
            f"the script, one process of {cores} threads": script(1, cores),
            f"the script, {cores} processes of one thread": script(cores, 1),
            "the teacher on frames in memory: the limit": in_memory(checked=False),
            "the same with the check and a label's numbers": in_memory(checked=True),
            "labelling, from video to Parquet": labelling,
        }
        speeds: dict[str, list[float]] = {title: [] for title in ways}
        for number in range(arguments.rounds):
            for title, measured in ways.items():
                speeds[title].append(measured(number))
                print(f"round {number + 1}: {title}: {speeds[title][-1]:.1f} pairs/s", file=sys.stderr)
        npz_bytes = statistics.mean(path.stat().st_size for path in folder.glob("npz-0-1/*"))
    script_1, script_n, bare, *_ = speeds.values()
    summary = runs[0][0]
    print(report.command())
    print(
        f"{len(files)} videos, scaled to cover {size[0]}x{size[1]} px, {summary.num_pairs} pairs; network of "
        f"the recipe {arguments.network}, {at_once} pairs at once in memory; {cores} cores; medians of "
        f"{arguments.rounds} rounds (and the range of their ratios)"
    )
    print(
        f"from starting Ray to the first label on the disk {from_start:.1f} s; importing takes a process "
        f"{importing:.1f} s of them"
    )
    rows = [
        (title, f"{statistics.median(values):.1f}", *(ratio(values, of) for of in (script_1, script_n, bare)))
        for title, values in speeds.items()
    ]
    titles = ["", "pairs a second", "of the script's one process", "of its several", "of the limit"]
    print(report.table(titles, rows))
    for number, (_, seconds_to_first, quarters) in enumerate(runs, start=1):
        print(
            f"round {number}: first shard after {seconds_to_first:.1f} s, then by quarter "
            f"{', '.join(f'{each:.1f}' for each in quarters)} pairs/s"
        )
    total: Counter[str] = Counter()
    for each in time_of:
        total.update({kind: round(1e3 * seconds) for kind, seconds in each.seconds.items()})
    shares = ", ".join(f"{kind} {part / total.total():.1%}" for kind, part in total.most_common())
    print(f"the cores' time while it labels: {shares}")
    print(
        f"bytes a pair: {npz_bytes:.0f} in .npz, {summary.bytes / summary.num_pairs:.0f} in "
        "Parquet, frames included"
    )


if __name__ == "__main__":
    main()
