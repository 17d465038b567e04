"""What do students learn from real videos on two cores, without a label?

    python -m benchmarks.experiments.real_pixels train DATA OUT TEACHER [--steps 10000] [--only "of DIS"]
    python -m benchmarks.experiments.real_pixels judge DATA OUT TEACHER
    python -m benchmarks.experiments.real_pixels print

`train` runs the recipe `laptop` on real clips, for each of four students from fresh weights. One learns from
labels of OpenCV's DIS down to every pixel, and ships as distillflow:laptop. One learns from DIS's usual
labels, one from these and from the frames, one from labels of a teacher that never met DIS: TEACHER, that of
`video` which `benchmarks.experiments.minutes` trained. A fifth goes on from distillflow:video, as it is in
this checkout, by the second stage of the recipe `video`. Its labels are of DIS down to every pixel where that
agrees there and back, and elsewhere of TEACHER; it ships as the next distillflow:video. OUT gets the
students; one that is there isn't trained again.

`judge` looks at the students' errors on real pairs with truth, which nothing was chosen by, beside zero flow,
the classical methods and the teachers, and compares them without truth on videos that none of them learnt
from. Of a student that isn't in OUT any more it keeps what it found before. `print` prints
the tables of what `judge` found.

DATA holds `clips`, `clips_more` and data sets with truth, each in its own layout.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.experiments.real_pairs import (
    RESULTS,
    beside_dis,
    errors_on_real_pairs,
    videos_of_the_release,
    without_truth,
)
from flowcore.inference import InferenceOptions
from flowcore.pseudolabels import Merge
from jobs import distill, evaluate, pseudolabel
from jobs.recipes import RECIPES
from pipelines.checkpoints import load_model, save_model
from pipelines.cluster import connect
from pipelines.models import fetch_model

ERRORS = RESULTS / "errors.json"
DIS, FINE, NEVER_MET_DIS = "opencv:dis_medium", "opencv:dis_fine", "teacher of video"
SMALL = "of DIS down to every pixel"
"""What README has for one's own videos without a GPU; it ships as distillflow:laptop."""
VIDEO = "of both teachers"
"""What ships as distillflow:video."""
LABELS = "labels of both teachers"
"""What that student learns from."""
_SCALES, _ITERATIONS = (1.5, 1.0, 0.5), 20
WAYS = {
    "refined": InferenceOptions(refinement=_ITERATIONS),
    "several scales": InferenceOptions(scale=_SCALES),
    "several scales, refined": InferenceOptions(scale=_SCALES, refinement=_ITERATIONS),
}
"""How else networks are run, after they were trained."""
WHERE = "flow_p99 > 2"
"""Some of the clips hardly move."""


@dataclass(frozen=True)
class Student:
    """What a student learns from, by which recipe."""

    teachers: tuple[str, ...]
    learns: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe's objective, what is different."""
    recipe: str = "laptop"
    init: str = "fresh"
    merge: Merge = "mean"


STUDENTS = {
    SMALL: Student((FINE,)),
    "of DIS": Student((DIS,)),
    "of DIS and the frames": Student((DIS,), {"photometric_weight": 1.0, "distillation_weight": 2.0}),
    "of the teacher of video": Student((NEVER_MET_DIS,)),
    VIDEO: Student((FINE, NEVER_MET_DIS), recipe="video", init="distillflow:video", merge="first"),
}


def _place(out: Path, name: str) -> Path:
    return out / name.replace(" ", "-").replace(":", "-")


def train(arguments: argparse.Namespace) -> None:
    out, work = arguments.out.resolve(), arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    collection = work / "collection.txt"
    collection.write_text("".join(f"{each}\n" for each in videos_of_the_release(arguments.data)))
    given = {NEVER_MET_DIS: str(arguments.teacher.resolve())}
    for name in arguments.only or STUDENTS:
        place = _place(out, name)
        if place.exists():
            continue
        student = STUDENTS[name]
        began = time.monotonic()
        labels = str(_place(work, " ".join([*student.teachers, student.recipe])))
        _, labelling = pseudolabel.recipes()[student.recipe]
        written = pseudolabel.pseudolabel(
            replace(
                labelling,
                videos=str(collection),
                clips=replace(labelling.clips, max_pairs_per_video=arguments.pairs),
                teacher=tuple(given.get(each, each) for each in student.teachers),
                labelling=replace(labelling.labelling, merge=student.merge),
                labels=labels,
            ),
            student.recipe,
        )
        labelled = time.monotonic()
        _, distilling = distill.recipes()[student.recipe]
        training = replace(
            distilling.training,
            steps=arguments.steps,
            workers=arguments.workers,
            precision=arguments.precision,
            readers=1,
            held_back_most=8,
            validate_every=max(1, arguments.steps // 2),
        )
        stage = replace(
            distilling,
            labels=labels,
            run_root=str(work),
            init=student.init,
            where=WHERE,
            training=training,
            objective=replace(distilling.objective, **student.learns),
        )
        network, info = load_model(fetch_model(distill.distill(stage, student.recipe)))
        # Fresh weights have no init.
        kept = {"stage", "recipe", "init", "label_set", "where", "generation"} & info.provenance.keys()
        save_model(place, network, {key: info.provenance[key] for key in sorted(kept)})
        facts = {
            "steps": training.steps,
            "batch": training.global_batch,
            "workers": training.workers,
            "precision": training.precision,
            "of a video": arguments.pairs,
            "videos": written.num_videos,
            "pairs": written.num_pairs,
            "seconds": {
                "labelling": round(labelled - began),
                "distillation": round(time.monotonic() - labelled),
            },
        }
        (place / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{name}: {facts['seconds']}", flush=True)


def judge(data: Path, out: Path, teacher: Path) -> dict[str, Any]:
    """Errors by set and model, errors without truth, and how each student was trained."""
    students = {name: str(_place(out, name)) for name in STUDENTS if _place(out, name).exists()}
    teachers = {FINE: FINE, NEVER_MET_DIS: str(teacher)}
    compared = {DIS: DIS, **teachers, **students}
    classical = {name: name for name in ("zero", "opencv:farneback", "opencv:dis_fast")}
    errors = errors_on_real_pairs(data, classical | compared)
    of_labels = errors_on_real_pairs(data, teachers, together="first")
    for group, found in errors.items():
        found[LABELS] = of_labels[group][evaluate.TOGETHER]
    otherwise: dict[str, tuple[str, InferenceOptions]] = {}
    for way, inference in WAYS.items():
        run = {f"{name}, {way}": name for name in (SMALL, VIDEO) if name in compared}
        otherwise |= {new: (name, inference) for new, name in run.items()}
        of_way = errors_on_real_pairs(
            data, {new: compared[name] for new, name in run.items()}, inference=inference
        )
        for group, found in errors.items():
            found |= of_way[group]
    return {
        "errors": errors,
        "unseen": without_truth(data, compared, {LABELS: tuple(teachers)}, otherwise),
        "trained": {
            name: json.loads((Path(place) / "facts.json").read_text()) for name, place in students.items()
        },
    }


def _with_those_before(found: dict[str, Any]) -> dict[str, Any]:
    """With what was found before of students that aren't in OUT any more."""
    before = _found()
    found["trained"] = before["trained"] | found["trained"]
    found["unseen"]["scores"] = before["unseen"]["scores"] | found["unseen"]["scores"]
    for group, models in before["errors"].items():
        found["errors"][group] = models | found["errors"].get(group, {})
    return found


def _found() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ERRORS.read_text())
    return found


def tables() -> str:
    """The errors that were found, a table for each group of pairs."""
    heads = ("EPE all", "EPE noc", "EPE occ", "Fl %", "occlusion F")
    tables = []
    for group, models in _found()["errors"].items():
        rows = []
        for name, numbers in models.items():
            values = [*numbers["epe"].values(), 100 * numbers["fl"], numbers["occlusion"]["f1"]]
            rows.append([name, *("-" if value is None else f"{value:.2f}" for value in values)])
        tables.append(report.table([group, *heads], rows))
    return "\n\n".join(tables)


def trained() -> str:
    """What each student took."""
    rows = []
    for name, facts in _found()["trained"].items():
        rows.append([name, facts["videos"], facts["pairs"], facts["steps"], facts["batch"]])
        rows[-1] += facts["seconds"].values()
    heads = ["student", "videos", "pairs", "steps", "batch", "s of labelling", "s of distillation"]
    return report.table(heads, rows)


def scores() -> str:
    """Without truth."""
    found = _found()["unseen"]["scores"]
    return report.table(["network", "error"], [[name, f"{score:.4f}"] for name, score in found.items()])


def card_of_laptop() -> str:
    """The errors of distillflow:laptop in its card."""
    return beside_dis(_found()["errors"], DIS, SMALL)


def card_of_video() -> str:
    """The errors of distillflow:video in its card."""
    return beside_dis(_found()["errors"], DIS, VIDEO)


def main() -> None:
    parser = report.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="the students")
    training.add_argument("data", type=Path, help="a folder of clips")
    training.add_argument("out", type=Path, help="folder for the students")
    training.add_argument("teacher", type=Path, help="folder of the teacher that never met DIS")
    steps = RECIPES["laptop"].student.steps
    training.add_argument("--steps", type=int, default=steps, help=f"of each; {steps} by default")
    training.add_argument(
        "--only", action="append", choices=STUDENTS, metavar="STUDENT", help="this one; may be repeated"
    )
    training.add_argument("--pairs", type=int, default=40, help="of a video, at most; 40 by default")
    training.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="as --training.precision"
    )
    training.add_argument("--workers", type=int, default=2, help="training processes; 2 by default")
    training.add_argument("--work", type=Path, default=Path("runs/real_pixels"), help="for everything else")
    judging = commands.add_parser("judge", help="errors of what was trained")
    judging.add_argument("data", type=Path, help="a folder of clips and data sets")
    judging.add_argument("out", type=Path, help="the folder that train wrote")
    judging.add_argument("teacher", type=Path, help="folder of that teacher")
    commands.add_parser("print", help="only print the tables")
    arguments = parser.parse_args()
    if arguments.command == "train":
        connect()
        train(arguments)
        return
    if arguments.command == "judge":
        connect()
        found = judge(arguments.data, arguments.out, arguments.teacher)
        ERRORS.write_text(json.dumps(_with_those_before(found), indent=1) + "\n")
    print("\n\n".join([trained(), scores(), tables(), card_of_laptop(), card_of_video()]))


if __name__ == "__main__":
    main()
