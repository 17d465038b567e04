"""Does a labelled pair cost as much as in another checkout?

    python -m benchmarks.speed.beside CHECKOUT [--videos CLIPS] [--network video] [--count 4] [--pairs 12]

The other checkout has its own environment, in .venv, and `benchmarks.inputs` and `tests/bare_graph.py` like
this one's. The two label the same videos with the same weights in turns: all stages one after the other in
one process, and the decoder's beside it. Prints the seconds of a core that a pair takes both processes, and
their ratio within a round: what else the machine does hardly changes it.
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
import sys
sys.path.insert(0, "tests")
import psutil, torch
from bare_graph import BareGraph
from flowcore.occlusion import OcclusionCheck
from flowcore.video import ClipOptions
from pipelines.collection import Collection
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.teachers import Teachers
torch.set_num_threads(1)
videos, teacher, location, height, width, pairs = sys.argv[1:]
collection, teachers = Collection.find(videos), Teachers.fetched([teacher])
def worked():
    this = psutil.Process()
    every = [each.cpu_times() for each in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in every)
def label(name, most):
    clips = ClipOptions(size=(int(height), int(width)), min_size=(32, 32), max_pairs_per_video=most)
    place, options = f"{location}/{name}", LabellingOptions()
    return write_labels(collection, teachers, place, clips, OcclusionCheck(), options, graph=BareGraph())
# So that all is imported and the decoder runs.
label("first", 1)
before = worked()
summary = label("labels", int(pairs))
print("COST", (worked() - before) / summary.new_pairs)
"""


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("checkout", type=Path, help="the other one")
    parser.add_argument("--videos", help="a folder of videos; rendered ones without it")
    parser.add_argument("--count", type=int, default=4, help="rendered videos; 4 by default")
    parser.add_argument("--pairs", type=int, default=12, help="most pairs of a video; 12 by default")
    parser.add_argument("--size", type=int, nargs=2, default=[384, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--network", default="video", choices=sorted(RECIPES))
    parser.add_argument("--rounds", type=int, default=3, help="3 by default")
    arguments = parser.parse_args()
    checkouts = {"this checkout": Path.cwd(), "the other": arguments.checkout.resolve()}
    costs: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = (arguments.size[0], arguments.size[1])
        videos = arguments.videos or render_long_videos(
            folder / "videos", arguments.count, arguments.pairs + 1, size
        )
        teacher = fresh_teacher(folder / "teacher", RECIPES[arguments.network].network)
        for number in range(arguments.rounds):
            # Whoever begins may find the machine warmer or colder.
            for title in sorted(checkouts, reverse=number % 2 == 1):
                place = checkouts[title]
                location = folder / f"{title} {number}"
                run = subprocess.run(
                    [
                        *(place / ".venv/bin/python", "-c", _LABELLING),
                        *map(str, (videos, teacher, location, *size, arguments.pairs)),
                    ],
                    cwd=place,
                    env=os.environ | {"PYTHONPATH": str(place)},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                costs[title].append(float(run.stdout.split("COST")[1].split()[0]))
                print(f"round {number + 1}: {title}: {costs[title][-1]:.3f} s", file=sys.stderr)
    print(report.command())
    ratios = [here / there for here, there in zip(*costs.values(), strict=True)]
    rows = [(title, report.median_and_range(values)) for title, values in {**costs, "ratio": ratios}.items()]
    print(report.table(["labelling", "seconds of a core for a pair"], rows))


if __name__ == "__main__":
    main()
