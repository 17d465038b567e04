"""What does the recipe `video` learn from real videos in some minutes of a GPU?

    python -m benchmarks.experiments.minutes train VIDEOS OUT [--steps 8000 3000] [--init MODEL]
    python -m benchmarks.experiments.minutes judge DATA OUT
    python -m benchmarks.experiments.minutes print

`train` runs the recipe's stages in one process: a teacher from fresh weights or from --init, its labels, and
the student. OUT gets the models, and some of the teacher on its way. A later training goes on from OUT's.

`judge` looks at the errors of OUT's models on pairs with truth, which nothing was chosen by, and compares the
last of them with distillflow:laptop without truth, on videos that it didn't learn from.
DATA holds `clips`, `clips_more` and data sets with truth, each in its own layout. `print` prints the tables
of what `judge` found.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.experiments.real_pairs import (
    STUDENT,
    errors_on_real_pairs,
    videos_learnt_from,
    without_truth,
)
from jobs import distill, pseudolabel, train_teacher
from pipelines.checkpoints import KEPT_FOLDER, load_model, save_model
from pipelines.cluster import connect
from pipelines.installation import PROJECT_FOLDER
from pipelines.models import SHIPPED_FOLDER, fetch_model
from pipelines.training_options import TrainingOptions

RESULTS = PROJECT_FOLDER / "docs" / "results" / "minutes"
NETWORK = SHIPPED_FOLDER / "video"
ERRORS = RESULTS / "errors.json"
_UNMASKED = 0.3
_LOOKS = 4
"""Validations of a training, each of which keeps its model."""


def _brief(training: TrainingOptions, steps: int, batch: int, readers: int) -> TrainingOptions:
    looks = max(1, steps // _LOOKS)
    return replace(
        training,
        steps=steps,
        global_batch=batch,
        readers=readers,
        validate_every=looks,
        keep_every=looks,
        held_back_most=8,
        log_every=max(1, min(100, looks)),
    )


def _keep(uri: str, folder: Path) -> str:
    """Copies a model into the folder; returns its run."""
    network, info = load_model(fetch_model(uri))
    kept = ("stage", "recipe", "generation", "run_id", "teacher")
    save_model(folder, network, {name: info.provenance[name] for name in kept if name in info.provenance})
    return info.provenance["run_id"]


def train(arguments: argparse.Namespace) -> None:
    out, work = arguments.out.resolve(), arguments.work.resolve()
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    _, teaching = train_teacher.recipes()["video"]
    steps = arguments.steps[0]
    unmasked = 0 if arguments.init else round(_UNMASKED * steps)
    teaching = replace(
        teaching,
        videos=arguments.videos,
        run_root=str(work),
        init=arguments.init,
        objective=replace(teaching.objective, unmasked_steps=unmasked),
        training=_brief(teaching.training, steps, arguments.batch, arguments.readers),
    )
    teacher = train_teacher.train_teacher(teaching, "video")
    run_id = _keep(teacher, out / "teacher")
    for kept in sorted((work / run_id / KEPT_FOLDER).glob("step-*"))[:-1]:
        # Only to be looked at: half the bytes.
        save_model(out / kept.name, load_model(kept)[0].bfloat16(), {"stage": "train_teacher"})
    print(f"teacher: {time.monotonic() - began:.0f} s", flush=True)
    _, labelling = pseudolabel.recipes()["video"]
    labels = str(work / "labels")
    labelling = replace(labelling, videos=arguments.videos, teacher=(teacher,), labels=labels)
    written = pseudolabel.pseudolabel(labelling, "video")
    print(f"labels: {time.monotonic() - began:.0f} s, {written.num_pairs} pairs", flush=True)
    _, distilling = distill.recipes()["video"]
    distilling = replace(
        distilling,
        labels=labels,
        run_root=str(work),
        objective=replace(distilling.objective, unmasked_steps=0),
        training=_brief(distilling.training, arguments.steps[1], arguments.batch, arguments.readers),
    )
    _keep(distill.distill(distilling, "video"), out / "student")
    print(f"student: {time.monotonic() - began:.0f} s", flush=True)


def judge(data: Path, out: Path) -> dict[str, Any]:
    """Errors by set and model, and the error without truth of the last model and of the laptop's."""
    steps = {f"teacher, {int(each.name[5:])} steps": str(each) for each in sorted(out.glob("step-*"))}
    last = {name: str(out / name) for name in ("teacher", "student") if (out / name).exists()}
    models = {"DIS": "opencv:dis_medium", "laptop's student": str(STUDENT), **steps, **last}
    compared = {name: models[name] for name in ("laptop's student", *list(last)[-1:])}
    return {"errors": errors_on_real_pairs(data, models), "unseen": without_truth(data, compared)}


_REGIONS = ("all", "noc", "occ")


def errors() -> str:
    """On pairs with truth."""
    rows = []
    for group, models in json.loads(ERRORS.read_text())["errors"].items():
        for name, numbers in models.items():
            epe = [
                "-" if numbers["epe"][each] is None else f"{numbers['epe'][each]:.2f}" for each in _REGIONS
            ]
            rows.append([group, name, *epe, f"{100 * numbers['fl']:.2f}"])
    return report.table(["pairs", "model", "EPE all", "noc", "occ", "Fl %"], rows, texts=2)


def scores() -> str:
    """Without truth."""
    found = json.loads(ERRORS.read_text())["unseen"]["scores"]
    return report.table(["model", "error"], [[name, f"{score:.4f}"] for name, score in found.items()])


def videos() -> str:
    """What it learnt from."""
    rows = [[each["file"], each["licence"], each["source"]] for each in videos_learnt_from()]
    return report.table(["video", "licence, as the source states it", "source"], rows, texts=3)


def main() -> None:
    parser = report.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="a teacher, its labels and the student")
    training.add_argument("videos", help="folder, list file or URI")
    training.add_argument("out", type=Path, help="folder for the models")
    training.add_argument("--steps", type=int, nargs=2, default=[8_000, 3_000], help="teacher's, student's")
    training.add_argument("--batch", type=int, default=8, help="pairs a step")
    training.add_argument("--readers", type=int, default=12, help="processes that feed a training")
    training.add_argument("--init", help="the model that the teacher begins with; fresh weights without it")
    training.add_argument("--work", type=Path, default=Path("runs/minutes"), help="for everything else")
    judging = commands.add_parser("judge", help="errors of what was trained")
    judging.add_argument("data", type=Path, help="a folder of clips and data sets")
    judging.add_argument("out", type=Path, help="the folder that train wrote")
    commands.add_parser("print", help="only print the tables")
    arguments = parser.parse_args()
    if arguments.command == "train":
        connect()
        train(arguments)
        return
    if arguments.command == "judge":
        connect()
        found = judge(arguments.data, arguments.out)
        ERRORS.write_text(json.dumps(found, indent=1) + "\n")
    print("\n\n".join([errors(), scores(), videos()]))


if __name__ == "__main__":
    main()
