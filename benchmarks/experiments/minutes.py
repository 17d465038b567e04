"""What does the recipe `video` learn from real videos in some minutes of a GPU?

    python -m benchmarks.experiments.minutes VIDEOS OUT [--steps 8000 3000] [--init MODEL]

Runs the recipe's three stages in one process: a teacher from fresh weights, or from --init, its labels, and
the student. OUT gets both models, the curves of their trainings, and models of the teacher on its way, for
curves of errors. A training of more minutes goes on from OUT's teacher.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from jobs import distill, pseudolabel, train_teacher
from pipelines.checkpoints import fetch_model, load_model, save_model
from pipelines.cluster import connect
from pipelines.step import TrainingOptions
from pipelines.worker import KEPT_FOLDER

_UNMASKED = 0.3
_LOOKS = 4
"""Validations of a training, each of which keeps its model."""


def _brief(training: TrainingOptions, steps: int, arguments: object) -> TrainingOptions:
    looks = max(1, steps // _LOOKS)
    batch, readers = arguments.batch, arguments.readers  # type: ignore[attr-defined]
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


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("videos", help="folder, list file or URI")
    parser.add_argument("out", type=Path, help="folder for models and curves")
    parser.add_argument("--steps", type=int, nargs=2, default=[8_000, 3_000], help="teacher's, student's")
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    parser.add_argument("--readers", type=int, default=12, help="processes that feed a training")
    parser.add_argument("--init", help="the model that the teacher begins with; fresh weights without it")
    parser.add_argument("--work", type=Path, default=Path("runs/minutes"), help="folder for everything else")
    arguments = parser.parse_args()
    out, work = arguments.out.resolve(), arguments.work.resolve()
    out.mkdir(parents=True, exist_ok=True)
    connect()
    began = time.monotonic()
    seconds = {}
    _, teaching = train_teacher.recipes()["video"]
    steps = arguments.steps[0]
    unmasked = 0 if arguments.init else round(_UNMASKED * steps)
    teaching = replace(
        teaching,
        videos=arguments.videos,
        run_root=str(work),
        init=arguments.init,
        objective=replace(teaching.objective, unmasked_steps=unmasked),
        training=_brief(teaching.training, steps, arguments),
    )
    teacher = train_teacher.train_teacher(teaching, "video")
    run_id = _keep(teacher, out / "teacher")
    for kept in sorted((work / run_id / KEPT_FOLDER).glob("step-*"))[:-1]:
        network = load_model(kept)[0]
        save_model(out / kept.name, network.bfloat16(), {"stage": "train_teacher"})
    seconds["teacher"] = time.monotonic() - began
    print(f"teacher: {seconds['teacher']:.0f} s", flush=True)
    _, labelling = pseudolabel.recipes()["video"]
    labelling = replace(labelling, videos=arguments.videos, teacher=(teacher,), labels=str(work / "labels"))
    written = pseudolabel.pseudolabel(labelling, "video")
    seconds["labels"] = time.monotonic() - began
    print(f"labels: {seconds['labels']:.0f} s, {written.num_pairs} pairs", flush=True)
    _, distilling = distill.recipes()["video"]
    distilling = replace(
        distilling,
        labels=str(work / "labels"),
        run_root=str(work),
        objective=replace(distilling.objective, unmasked_steps=0),
        training=_brief(distilling.training, arguments.steps[1], arguments),
    )
    student = distill.distill(distilling, "video")
    _keep(student, out / "student")
    seconds["student"] = time.monotonic() - began
    facts = {"pairs": written.num_pairs, "videos": written.num_videos, "seconds": seconds}
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(facts)


if __name__ == "__main__":
    main()
