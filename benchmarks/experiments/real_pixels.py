"""What does a student learn from real videos in two hours on two cores, without a label?

    python -m benchmarks.experiments.real_pixels DATA [--judge]

Runs the recipe `laptop` on real clips: OpenCV's DIS labels them, and a student learns from those labels from
fresh weights. Judges the student on real pairs with truth that it never saw, beside zero flow, the classical
methods and its teacher. DATA holds `clips` and `frames` to learn from, and `middlebury_flow`, `flyingchairs`,
`sintel` and `kitti2012`, each in its own layout, to judge on; a set that isn't there is left out. Labels that
are there aren't made again. Writes the student to pipelines/shipped/laptop and its errors to
docs/results/real-pixels, and prints the tables. --judge judges the student that is there, without training.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.experiments.real_pairs import RESULTS, STUDENT, beside_dis, errors_on_real_pairs
from jobs import distill, pseudolabel
from pipelines.checkpoints import load_model, save_model
from pipelines.cluster import connect
from pipelines.installation import PROJECT_FOLDER
from pipelines.models import fetch_model

FACTS, ERRORS = RESULTS / "facts.json", RESULTS / "errors.json"
WORK = PROJECT_FOLDER / "runs" / "real_pixels"

TEACHER = "opencv:dis_medium"
WHERE = "flow_p99 > 2"
"""Some of the clips hardly move."""
LEARNT = ("clips", "frames")


def make_student(data: Path, workers: int) -> None:
    """Labels, trains, and puts the student and the seconds of both stages in their place."""
    WORK.mkdir(parents=True, exist_ok=True)
    collection = WORK / "collection.txt"
    collection.write_text("".join(f"{(data / name).resolve()}\n" for name in LEARNT))
    seconds = {}
    started = time.monotonic()
    _, labelling = pseudolabel.recipes()["laptop"]
    labels = str(WORK / "labels")
    labelling = replace(labelling, videos=str(collection), teacher=(TEACHER,), labels=labels)
    written = pseudolabel.pseudolabel(labelling, "laptop")
    seconds["labelling"] = time.monotonic() - started
    started = time.monotonic()
    _, distillation = distill.recipes()["laptop"]
    training = replace(distillation.training, workers=workers)
    distillation = replace(
        distillation, labels=labels, run_root=str(WORK), init="fresh", where=WHERE, training=training
    )
    uri = distill.distill(distillation, "laptop")
    seconds["distillation"] = time.monotonic() - started
    network, info = load_model(fetch_model(uri))
    kept = ("stage", "recipe", "label_set", "where", "generation")
    save_model(STUDENT, network, {name: info.provenance[name] for name in kept})
    facts = {
        "videos": written.num_videos,
        "pairs": written.num_pairs,
        "workers": workers,
        "steps": training.steps,
        "seconds": {stage: round(value) for stage, value in seconds.items()},
    }
    FACTS.write_text(json.dumps(facts, indent=1) + "\n")


def tables() -> str:
    """The errors that were found, a table for each group of pairs."""
    heads = ("EPE all", "EPE noc", "EPE occ", "Fl %", "occlusion F")
    found = []
    for group, models in json.loads(ERRORS.read_text()).items():
        rows = []
        for name, numbers in models.items():
            values = [*numbers["epe"].values(), 100 * numbers["fl"], numbers["occlusion"]["f1"]]
            rows.append([name, *("-" if value is None else f"{value:.2f}" for value in values)])
        found.append(report.table([group, *heads], rows))
    return "\n\n".join(found)


def card() -> str:
    """The network's errors in its card."""
    return beside_dis(json.loads(ERRORS.read_text()), TEACHER, "student")


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("data", type=Path, help="a folder of clips and data sets")
    parser.add_argument("--workers", type=int, default=2, help="training processes; 2 by default")
    parser.add_argument("--judge", action="store_true", help="only judge the student that is there")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{WORK / 'mlflow.db'}"
    connect()
    if not arguments.judge:
        make_student(arguments.data, arguments.workers)
    models = {name: name for name in ("zero", "opencv:farneback", "opencv:dis_fast", TEACHER)}
    found = errors_on_real_pairs(arguments.data, {**models, "student": str(STUDENT)})
    ERRORS.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{tables()}\n\n{card()}")


if __name__ == "__main__":
    main()
