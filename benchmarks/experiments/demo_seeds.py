"""How much do the demo's results vary with the seed?

    python -m benchmarks.experiments.demo_seeds run OUT [--seeds 0 1 2]
    python -m benchmarks.experiments.demo_seeds print

`run` makes the demo with each seed, one after the other, in a folder of OUT, and keeps its numbers in
docs/results/demo; a seed whose numbers are there isn't run again. `print` prints the tables of all seeds.
"""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from pipelines.installation import PROJECT_FOLDER

NUMBERS = PROJECT_FOLDER / "docs" / "results" / "demo"
MODELS = ("zero", "dis", "teacher", "student")


def run(out: Path, seeds: list[int]) -> None:
    for seed in seeds:
        kept = NUMBERS / f"seed-{seed}.json"
        if kept.exists():
            continue
        place = out / f"seed-{seed}"
        # Of a demo that was stopped.
        shutil.rmtree(place, ignore_errors=True)
        typed = [sys.executable, "jobs/demo.py", "--seed", str(seed), "--run-root", str(place)]
        subprocess.run(typed, cwd=PROJECT_FOLDER, check=True)
        (summary,) = place.glob("demo-*/summary.json")
        numbers = json.loads(summary.read_text())
        # Those of this machine's MLflow.
        del numbers["models"]
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(numbers, indent=1) + "\n")


def _found() -> list[dict[str, Any]]:
    found = (json.loads(each.read_text()) for each in NUMBERS.glob("seed-*.json"))
    return sorted(found, key=lambda numbers: numbers["seed"])


def errors() -> str:
    """The errors of each model, by seed, and their mean and spread."""
    found, rows = _found(), []
    for model in MODELS:
        of_seeds = [_errors(numbers[model]) for numbers in found]
        # These two have no weights.
        if model in ("zero", "dis"):
            rows.append([model, "-", *(f"{value:.2f}" for value in of_seeds[0])])
            continue
        for numbers, values in zip(found, of_seeds, strict=True):
            rows.append([model, numbers["seed"], *(f"{value:.2f}" for value in values)])
        spread = [report.mean_and_spread(values) for values in zip(*of_seeds, strict=True)]
        rows.append([model, "mean", *spread])
    return report.table(["model", "seed", "EPE all", "EPE noc", "EPE occ", "Fl %", "occlusion F"], rows)


def _errors(numbers: dict[str, Any]) -> list[float]:
    epe = numbers["epe"]
    return [epe["all"], epe["noc"], epe["occ"], 100 * numbers["fl"], numbers["occlusion_f1"]]


def seconds() -> str:
    """What each stage took, by seed."""
    found = _found()
    stages = list(found[0]["seconds"])
    rows = [[numbers["seed"], *(round(numbers["seconds"][stage]) for stage in stages)] for numbers in found]
    total = statistics.mean(numbers["seconds"]["total"] for numbers in found)
    return f"{report.table(['seed', *stages], rows)}\n\n{total / 60:.1f} minutes each."


def main() -> None:
    parser = report.parser(__doc__)
    ways = parser.add_subparsers(required=True, dest="way")
    running = ways.add_parser("run")
    running.add_argument("out", type=Path)
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ways.add_parser("print")
    arguments = parser.parse_args()
    if arguments.way == "run":
        run(arguments.out.resolve(), arguments.seeds)
    else:
        print(errors(), seconds(), sep="\n\n")


if __name__ == "__main__":
    main()
