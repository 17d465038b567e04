"""Is labelling as fast as in another checkout?

    python -m benchmarks.speed.beside CHECKOUT [--videos CLIPS] [--network video] [--count 4] [--pairs 24]

The other checkout has its own environment, in .venv, and a `benchmarks.inputs.label` like this one's. The two
label the same videos with the same weights, in turns, as a machine's speed changes from minute to minute.
Prints the pairs a second of each and the seconds of a core that a pair took all processes, from the third
file to the last, and their ratios within a round. What else the machine does slows the first down and hardly
changes the second.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.inputs import fresh_teacher, render_long_videos
from jobs.recipes import RECIPES

# In the other checkout there may be no such script.
_LABELLING = """
import sys, time
import psutil
from benchmarks.inputs import label
from flowcore.video import ClipOptions
from pipelines.cluster import connect
from pipelines.labelling import LabellingOptions
connect()
videos, teacher, location, height, width, pairs, cores = sys.argv[1:]
clips = ClipOptions(size=(int(height), int(width)), min_size=(32, 32), max_pairs_per_video=int(pairs))
options = LabellingOptions(num_teachers=int(cores), shard_pairs=4)
def worked():
    this, total = psutil.Process(), 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
steps = []
def note(progress):
    if progress.new_pairs > (steps[-1][1] if steps else 0):
        steps.append((time.monotonic(), progress.new_pairs, worked()))
label(videos, teacher, location, clips, options, on_progress=note)
(begin, few, before), (end, most, after) = steps[2], steps[-1]
print("SPEED", (most - few) / (end - begin), (after - before) / (most - few))
"""


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("checkout", type=Path, help="the other one")
    parser.add_argument("--videos", help="a folder of videos; rendered ones without it")
    parser.add_argument("--count", type=int, default=4, help="rendered videos; 4 by default")
    parser.add_argument("--pairs", type=int, default=24, help="most pairs of a video; 24 by default")
    parser.add_argument("--size", type=int, nargs=2, default=[384, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--network", default="video", choices=sorted(RECIPES))
    parser.add_argument("--rounds", type=int, default=3, help="3 by default")
    arguments = parser.parse_args()
    checkouts = {"this checkout": Path.cwd(), "the other": arguments.checkout.resolve()}
    speeds: dict[str, list[float]] = {name: [] for name in checkouts}
    costs: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = (arguments.size[0], arguments.size[1])
        videos = arguments.videos or render_long_videos(
            folder / "videos", arguments.count, arguments.pairs + 1, size
        )
        teacher = fresh_teacher(folder / "teacher", RECIPES[arguments.network].network)
        cores = len(os.sched_getaffinity(0))
        for number in range(arguments.rounds):
            # Whoever begins may find the machine warmer or colder.
            for title in sorted(checkouts, reverse=number % 2 == 1):
                place = checkouts[title]
                location = folder / f"{title} {number}"
                run = subprocess.run(
                    [
                        *(place / ".venv/bin/python", "-c", _LABELLING),
                        *map(str, (videos, teacher, location, *size, arguments.pairs, cores)),
                    ],
                    cwd=place,
                    env=os.environ | {"PYTHONPATH": str(place)},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                speed, cost = map(float, run.stdout.split("SPEED")[1].split()[:2])
                speeds[title].append(speed)
                costs[title].append(cost)
                print(f"round {number + 1}: {title}: {speed:.2f} pairs/s, {cost:.3f} s", file=sys.stderr)
    print(report.command())
    rows = [
        (title, *(report.median_and_range(values[title]) for values in (speeds, costs)))
        for title in checkouts
    ]
    ratios = [
        report.median_and_range([here / there for here, there in zip(*values.values(), strict=True)])
        for values in (speeds, costs)
    ]
    heads = ["labelling", "pairs a second", "seconds of a core for a pair"]
    print(report.table(heads, [*rows, ("ratio", *ratios)]))


if __name__ == "__main__":
    main()
