"""What does a student learn from real videos in two hours on two cores, without a label?

    python -m benchmarks.experiments.real_pixels DATA [--print]

Runs the recipe `laptop` on real clips: OpenCV's DIS labels them, and a student learns from those labels from
fresh weights. Judges the student on real pairs with truth that it never saw, beside zero flow, the classical
methods and its teacher. DATA holds `clips` and `frames` to learn from, and `middlebury_flow`, `flyingchairs`,
`sintel` and `kitti2012`, each in its own layout, to judge on; a set that isn't there is left out. Labels that
are there aren't made again. Writes docs/results/real-pixels.md and the student beside it. --print judges that
student again, without training.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.inputs import real_sets
from flowcore.formats import write_image
from flowcore.networks import PWCNetConfig
from flowcore.occlusion import OcclusionCheck
from jobs import distill, evaluate, pseudolabel
from pipelines.checkpoints import fetch_model, load_model, save_model
from pipelines.cluster import connect
from pipelines.estimators import load_estimator
from pipelines.evaluation import example, table
from pipelines.storage import PROJECT_FOLDER

RESULTS = PROJECT_FOLDER / "docs" / "results" / "real-pixels"
PAGE = RESULTS.with_suffix(".md")
STUDENT, FACTS = RESULTS / "student", RESULTS / "facts.json"
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


def judge(data: Path) -> str:
    """The tables, as Markdown; a picture of each set's median pair goes to runs/real_pixels."""
    models = {name: name for name in ("zero", "opencv:farneback", "opencv:dis_fast", TEACHER)}
    models["student"] = str(STUDENT)
    estimators = {title: load_estimator(models[title]) for title in (TEACHER, "student")}
    tables = []
    for data_set in real_sets(data):
        stage = evaluate.Evaluate(model=("zero",), truth=str(data_set))
        results = evaluate.evaluate_models(models, stage)
        for group, errors in results["student"].groups.items():
            rows = {title: result.groups[group] for title, result in results.items()}
            tables.append(table(f"{group}, {errors.pairs} pairs", rows))
        ranked = results["student"].ranked
        picture = WORK / f"{data_set.name}.png"
        write_image(picture, example(ranked[len(ranked) // 2], estimators, OcclusionCheck()))
        print(f"picture: {picture}")
    return "\n\n".join(tables)


def page(tables: str) -> str:
    facts = json.loads(FACTS.read_text())
    seconds = facts["seconds"]
    config = load_model(STUDENT)[1].config
    assert isinstance(config, PWCNetConfig)
    levels = "refine the flow" if config.refines else "predict the flow afresh"
    return (
        "# A student of real videos, on real pairs with truth\n\n"
        "Printed by `python -m benchmarks.experiments.real_pixels DATA`. The recipe `laptop`, seed 0: "
        f"{facts['pairs']} pairs of {facts['videos']} real clips and image sequences, labelled by {TEACHER}, "
        f"which never saw truth; those with `{WHERE}`; a PWC-Net from fresh weights whose levels {levels}, "
        f"{facts['steps']} steps "
        f"in the confidence view. {seconds['labelling']} s of labelling and {seconds['distillation']} s of "
        f"distillation on two CPU cores ({facts['workers']} workers). Nothing was learnt from the pairs "
        "below or from their neighbours. The student is in `docs/results/real-pixels/student`: `evaluate`, "
        "`predict` and `pseudolabel` take that folder, and so does `--init`.\n\n"
        "EPE in pixels at the pairs' own size; noc and occ where the set tells what is occluded.\n\n"
        f"{tables}\n"
    )


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("data", type=Path, help="a folder of clips and data sets")
    parser.add_argument("--workers", type=int, default=2, help="training processes; 2 by default")
    parser.add_argument("--print", action="store_true", help="only judge the student that is in docs/results")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{WORK / 'mlflow.db'}"
    connect()
    if not arguments.print:
        make_student(arguments.data, arguments.workers)
    text = page(judge(arguments.data))
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
