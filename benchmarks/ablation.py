"""Does every part of the method do what the papers say? The ablation, cell by cell.

    python benchmarks/ablation.py [--quick] [--only student/crop ...] [--seeds 0 1 2] [--print]

A cell is a network trained through the jobs' own code, on rendered videos without labels, and judged on
rendered scenes never trained on. Each is a run in MLflow, and a file in docs/results/ablation once it is
done: a cell whose file is there isn't done again, so that a killed run goes on where it was. --quick does one
seed. --only does some cells, those of stage 2 with what they start from; several processes may share the work
if they take different seeds, best with a core each (taskset). At the end, and with --print without training
anything, the tables are written to docs/results/ablation.md.

Every student stands beside its teacher and beside the control: the teacher trained on without distillation
for the student's steps on the student's crops. Only the gap to the control is distillation's.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from flowcore.hallucination import Challenge, Colour, Geometric, RectangleNoise, SuperpixelNoise
from flowcore.networks import AnyNetworkConfig, PWCNetConfig, RAFTConfig
from flowcore.objectives import Photometric, StudentObjective, TeacherObjective
from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, evaluate, finetune, pseudolabel, train_teacher
from jobs.recipes import RECIPES
from pipelines.checkpoints import fetch_model
from pipelines.cluster import connect
from pipelines.ledger import MANIFEST_FILE
from pipelines.storage import PROJECT_FOLDER, write_whole
from pipelines.training import TrainingOptions
from pipelines.validation import TrainingStopped

RESULTS = PROJECT_FOLDER / "docs" / "results"
RECORDS = RESULTS / "ablation"
WORK = PROJECT_FOLDER / "runs" / "ablation"
TRACKING_URI = f"sqlite:///{WORK / 'mlflow.db'}"

FAST = SceneOptions(camera_speed=3.0, layers=(3, 5), layer_speed=18.0, layer_radius=(0.2, 0.4))
KINDS = {
    "mixed": SceneOptions(),
    "camera": SceneOptions(layers=(0, 1)),
    "objects": SceneOptions(camera_speed=1.0, layers=(5, 8), layer_speed=8.0),
    "stereo": SceneOptions(stereo=True),
    "lit": SceneOptions(lighting=0.2),
    "fast": FAST,
    "busy": replace(FAST, lighting=0.2),
}
"""The scenes of the demo; of a camera that moves past little; of many layers before a camera almost at rest;
rectified stereo pairs; the demo's in light that changes from frame to frame; of large fast layers, which hide
much of the frame; and of these in such light, the likest to the papers' films."""
TRAINING_SCENES = range(25)
TEST_SCENES = range(10_000, 10_040)

SEEDS = (0, 1, 2)
TEACHER_STEPS, UNMASKED_STEPS = 600, 180
STUDENT_STEPS = 500
FINETUNE_STEPS = 300
_DEMO = RECIPES["demo"].networks
NETWORKS: dict[str, AnyNetworkConfig] = {
    "pwcnet": replace(
        cast(PWCNetConfig, _DEMO["pwcnet"]), decoder_widths=(48, 32, 24), context_widths=(32, 32), radius=3
    ),
    "flownets": _DEMO["flownets"],
    "flownetc": _DEMO["flownetc"],
    "raft_small": replace(
        cast(RAFTConfig, _DEMO["raft_small"]),
        encoder_widths=(24, 32, 48),
        iterations=4,
        learned_upsampling=True,
    ),
}
"""Of a size that lets all cells be done in some hours on two cores: half the demo's work a step."""
GENERALISED = tuple(NETWORKS)[1:]
LABEL_SHARES = (0.01, 0.05, 0.2, 1.0)
CROP = distill.recipes()["demo"][1].challenge
"""What the demo's student sees: a crop, flips and a channel permutation."""
WHOLE = replace(CROP, crop=train_teacher.recipes()["demo"][1].augmentation.crop)
CHALLENGES: dict[str, Challenge] = {
    "crop": CROP,
    "rectangles": replace(WHOLE, rectangles=RectangleNoise(chance=1.0)),
    "superpixels": replace(WHOLE, superpixels=SuperpixelNoise(chance=1.0)),
    "crop+superpixels": replace(CROP, superpixels=SuperpixelNoise(chance=1.0)),
    "all": replace(
        CROP,
        geometric=Geometric(chance=1.0),
        colour=Colour(chance=1.0),
        superpixels=SuperpixelNoise(chance=1.0),
    ),
}


Numbers = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A network to train and judge. make: its URI for a seed; kinds: the scenes that it is judged on."""

    make: Callable[[int], str]
    kinds: tuple[str, ...] = ("mixed",)


def run_root(seed: int) -> str:
    """Of its own for each seed: two processes can't write frame pairs into one folder at once."""
    return str(WORK / f"seed{seed}")


def teacher_options(backbone: str) -> train_teacher.TrainTeacher:
    options = train_teacher.recipes()["demo"][1]
    training = replace(options.training, steps=TEACHER_STEPS, unmasked_steps=UNMASKED_STEPS)
    if backbone == "flownets":
        training = _unmasked(replace(training, steps=2 * TEACHER_STEPS))
    return replace(options, network=NETWORKS[backbone], training=training)


def student_training(seed: int, backbone: str) -> TrainingOptions:
    """The control's, too."""
    training = distill.recipes()["demo"][1].training
    training = replace(training, seed=seed, steps=STUDENT_STEPS)
    return _unmasked(training) if backbone == "flownets" else training


def _unmasked(training: TrainingOptions) -> TrainingOptions:
    """For FlowNetS, which learns more slowly without a cost volume: with the others' training the check finds
    98 % of its frames occluded when the mask begins, and the collapse alarm ends it."""
    return replace(training, learning_rate=1e-3, unmasked_steps=training.steps)


def teacher(
    seed: int,
    *,
    kind: str = "mixed",
    distance: str = "census",
    masked: bool = True,
    backbone: str = "pwcnet",
) -> str:
    """Stage 1."""
    options = teacher_options(backbone)
    objective = TeacherObjective(photometric=Photometric(distance=distance))  # type: ignore[arg-type]
    unmasked = options.training.unmasked_steps if masked else options.training.steps
    return train_teacher.train_teacher(
        "demo",
        replace(
            options,
            videos=videos(kind),
            run_root=run_root(seed),
            objective=objective,
            training=replace(options.training, seed=seed, unmasked_steps=unmasked),
        ),
    )


def control(seed: int, *, of: str, crop: bool = True, kind: str = "mixed", backbone: str = "pwcnet") -> str:
    """The teacher trained on without distillation for the student's steps on the student's crops."""
    options = teacher_options(backbone)
    return train_teacher.train_teacher(
        "demo",
        replace(
            options,
            videos=videos(kind),
            run_root=run_root(seed),
            init=model(of, seed),
            augmentation=CROP if crop else WHOLE,
            training=student_training(seed, backbone),
        ),
    )


def labels(seed: int, of: Sequence[str], kind: str) -> str:
    """The label set of one or several teachers; the further ones are of other seeds."""
    location = WORK / "labels" / f"{'+'.join(of).replace('/', '.')}-seed{seed}"
    if not (location / MANIFEST_FILE).exists():
        _, options = pseudolabel.recipes()["demo"]
        teachers = tuple(model(name, seed) for name in of)
        pseudolabel.pseudolabel(
            "demo", replace(options, videos=videos(kind), teacher=teachers, labels=str(location))
        )
    return str(location)


def student(
    seed: int,
    *,
    of: Sequence[str],
    challenge: str = "crop",
    objective: StudentObjective | None = None,
    kind: str = "mixed",
    backbone: str = "pwcnet",
) -> str:
    """Stage 2. backbone: the teacher's."""
    _, options = distill.recipes()["demo"]
    return distill.distill(
        "demo",
        replace(
            options,
            labels=labels(seed, of, kind),
            run_root=run_root(seed),
            challenge=CHALLENGES[challenge],
            objective=objective or options.objective,
            training=student_training(seed, backbone),
        ),
    )


def finetuned(seed: int, *, start: str | None, share: float, unlabelled: bool = False) -> str:
    """With the truth of a share of the training pairs; unlabelled: as a student of all pairs too."""
    _, options = finetune.recipes()["demo"]
    return finetune.finetune(
        "demo",
        replace(
            options,
            truth=f"scenes:{truth('mixed', TRAINING_SCENES)}",
            run_root=run_root(seed),
            init="fresh" if start is None else model(start, seed),
            network=NETWORKS["pwcnet"],
            label_share=share,
            labels=labels(seed, [BASE], "mixed") if unlabelled else None,
            training=replace(options.training, seed=seed, steps=FINETUNE_STEPS),
        ),
    )


BASE = "teacher/census+mask"
OBJECTIVES = {
    "confidence": StudentObjective(view="confidence"),
    "confidence+photometric": StudentObjective(view="confidence", photometric_weight=1.0),
    "quarter": StudentObjective(distillation_weight=0.25),
}
"""Of the student on crops, beside the occlusion view."""
STAGE_1 = {
    "rgb": "no mask, RGB",
    "rgb+mask": "mask, RGB",
    "census": "no mask, census",
    "census+mask": "mask, census",
}
STAGE_1_SCENES = {
    "": ("mixed", "what the teacher's loss is made of"),
    " in changing light": ("lit", "the same where the brightness changes by up to a fifth every frame"),
    " among fast layers": (
        "busy",
        "in such light, on large fast layers that hide a sixth of the frame",
    ),
}
"""By what the cells' names end with: the kind of scenes, and the table's title."""
CELLS: dict[str, Cell] = {
    **{
        f"teacher/{name}{where}": Cell(
            make=partial(teacher, kind=kind, distance=name.split("+")[0], masked="+" in name), kinds=(kind,)
        )
        for where, (kind, _) in STAGE_1_SCENES.items()
        for name in STAGE_1
    },
    "teacher/second": Cell(make=lambda seed: teacher(seed + 100)),
    "teacher/third": Cell(make=lambda seed: teacher(seed + 200)),
    "control/crop": Cell(make=partial(control, of=BASE)),
    "control/whole": Cell(make=partial(control, of=BASE, crop=False)),
    **{f"student/{name}": Cell(make=partial(student, of=[BASE], challenge=name)) for name in CHALLENGES},
    **{
        f"student/{name}": Cell(make=partial(student, of=[BASE], objective=objective))
        for name, objective in OBJECTIVES.items()
    },
    "student/2 teachers": Cell(make=partial(student, of=[BASE, "teacher/second"])),
    "student/3 teachers": Cell(make=partial(student, of=[BASE, "teacher/second", "teacher/third"])),
}
for _backbone in GENERALISED:
    CELLS[f"teacher/{_backbone}"] = Cell(make=partial(teacher, backbone=_backbone))
    CELLS[f"control/{_backbone}"] = Cell(make=partial(control, of=f"teacher/{_backbone}", backbone=_backbone))
    CELLS[f"student/{_backbone}"] = Cell(
        make=partial(student, of=[f"teacher/{_backbone}"], backbone=_backbone)
    )
for _kind, _on in (
    ("camera", ("camera", "objects")),
    ("objects", ("objects", "camera")),
    ("stereo", ("stereo",)),
):
    CELLS[f"teacher/{_kind}"] = Cell(make=partial(teacher, kind=_kind), kinds=_on)
    CELLS[f"control/{_kind}"] = Cell(make=partial(control, of=f"teacher/{_kind}", kind=_kind), kinds=_on)
    CELLS[f"student/{_kind}"] = Cell(make=partial(student, of=[f"teacher/{_kind}"], kind=_kind), kinds=_on)
for _share in LABEL_SHARES:
    for _start, _from in (("scratch", None), ("teacher", BASE), ("student", "student/crop")):
        CELLS[f"finetuned/{_share:.0%} from {_start}"] = Cell(
            make=partial(finetuned, start=_from, share=_share)
        )
    CELLS[f"finetuned/{_share:.0%} from student, semi-supervised"] = Cell(
        make=partial(finetuned, start="student/crop", share=_share, unlabelled=True)
    )


def videos(kind: str) -> str:
    """The folder of the kind's training videos, rendered if need be."""
    folder = WORK / "videos" / kind
    for scene in TRAINING_SCENES:
        path = folder / f"scene{scene:02d}.mp4"
        if not path.exists():
            write_video(path.with_suffix(".part.mp4"), render_scene(scene, KINDS[kind]).frames)
            path.with_suffix(".part.mp4").rename(path)
    return str(folder)


def truth(kind: str, scenes: range) -> str:
    """The folder of scenes with their truth, rendered if need be: all frames of training ones, few of test
    ones."""
    folder = WORK / "scenes" / f"{kind}-{scenes.start}"
    options = KINDS[kind] if scenes == TRAINING_SCENES else replace(KINDS[kind], num_frames=4)
    for scene in scenes:
        place = folder / f"scene{scene}"
        if not place.exists():
            write_truth(place.with_name(f".{place.name}"), render_scene(scene, options))
            place.with_name(f".{place.name}").rename(place)
    return str(folder)


def file_name(cell: str) -> str:
    return cell.replace("/", ".").replace(",", "").replace(" ", "-").replace("%", "")


def record_file(name: str, seed: int) -> Path:
    return RECORDS / f"{file_name(name)}.seed{seed}.json"


def model(name: str, seed: int) -> str:
    """The folder of a cell's network, trained if it isn't there."""
    folder = WORK / "models" / f"{file_name(name)}-seed{seed}"
    if not folder.exists():
        uri = CELLS[name].make(seed)
        partial_folder = folder.with_name(f".{folder.name}")
        shutil.rmtree(partial_folder, ignore_errors=True)
        shutil.copytree(fetch_model(uri), partial_folder)
        partial_folder.rename(folder)
    return str(folder)


def do(name: str, seed: int) -> None:
    """Trains and judges a cell, unless its record is there."""
    path = record_file(name, seed)
    if path.exists():
        return
    print(f"== {name}, seed {seed}", flush=True)
    started = time.monotonic()
    record: dict[str, Any] = {"cell": name, "seed": seed, "revision": revision()}
    try:
        place = model(name, seed)
    except TrainingStopped as stopped:
        # without the place of its checkpoint
        record |= {"errors": {}, "stopped": str(stopped).partition(" (the last good")[0]}
    else:
        run_id = json.loads((Path(place) / "model.json").read_text())["provenance"]["run_id"]
        record |= {"errors": errors_of(name, place), "run": run_id}
    record["seconds"] = round(time.monotonic() - started)
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    print(f"== {name}, seed {seed}: {record}", flush=True)


def errors_of(name: str, place: str) -> dict[str, Numbers]:
    """Of a cell's network, by kind of scenes."""
    errors: dict[str, Numbers] = {}
    for kind in CELLS[name].kinds:
        options = evaluate.Evaluate(model=(place,), benchmark="scenes", root=truth(kind, TEST_SCENES))
        numbers = evaluate.evaluate_models({name: place}, options)[name].total.summary()
        errors[kind] = {**numbers["epe"], "fl": numbers["fl"], "f1": numbers["occlusion"]["f1"]}
    return errors


def revision() -> str:
    command = ["git", "-C", str(PROJECT_FOLDER), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def records_of(name: str) -> dict[int, dict[str, Any]]:
    """The records of a cell's finished seeds."""
    records = [json.loads(path.read_text()) for path in RECORDS.glob(f"{file_name(name)}.seed*.json")]
    return {record["seed"]: record for record in sorted(records, key=lambda record: record["seed"])}


def seeds_of(name: str, kind: str | None = None) -> dict[int, Numbers]:
    """The errors of a cell on a kind of scenes, its first by default, by seed; without trainings that were
    stopped."""
    kind = kind or CELLS[name].kinds[0]
    return {
        seed: record["errors"][kind] for seed, record in records_of(name).items() if kind in record["errors"]
    }


def stopped(name: str) -> str:
    """How the trainings of a cell that were stopped ended; empty if there are none."""
    messages = [record["stopped"] for record in records_of(name).values() if "stopped" in record]
    return f"{len(messages)} stopped, {messages[0].split(',')[0]}" if messages else ""


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and the standard deviation over the seeds where there are several."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def row(title: str, name: str, *, against: str | None = None, kind: str | None = None) -> list[str]:
    """A line of a table. against: the control, whose occluded and non-occluded errors the last columns
    compare with, seed by seed."""
    errors = seeds_of(name, kind)
    if not errors:
        return [title, "0", stopped(name)] if stopped(name) else [title, "not run yet"]
    cells = [title, str(len(errors))]
    for key in ("all", "noc", "occ"):
        cells.append(mean_and_spread([each[key] for each in errors.values()]))
    cells.append(mean_and_spread([100 * each["fl"] for each in errors.values()], 1))
    cells.append(mean_and_spread([each["f1"] for each in errors.values()]))
    if against is not None:
        for key in ("occ", "noc"):
            changes = changes_against(name, against, key, kind)
            cells.append(f"{mean_and_spread(changes, 1)} %" if changes else "")
    return cells


def control_of(challenge: str) -> str:
    """The control that saw what the students of a challenge saw: whole frames or crops."""
    return "control/whole" if challenge in ("rectangles", "superpixels") else "control/crop"


def changes_against(name: str, other: str, key: str, kind: str | None = None) -> list[float]:
    """By how many per cent a cell's error is above the other's, for the seeds that both have."""
    mine, its = seeds_of(name, kind), seeds_of(other, kind)
    return [100 * (mine[seed][key] / its[seed][key] - 1) for seed in sorted(mine.keys() & its.keys())]


def table(rows: Sequence[Sequence[str]]) -> str:
    heads = ["", "seeds", "EPE all", "noc", "occ", "Fl %", "occlusion F", "occ against control", "noc"]
    width = max(len(each) for each in rows)
    lines = [heads[:width], ["---"] * width, *([*each, *[""] * (width - len(each))] for each in rows)]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def tables() -> str:
    """Every table that the finished cells give, as Markdown."""
    parts: list[tuple[str, list[list[str]]]] = [
        *(
            (
                f"Stage 1: {title}",
                [row(each, f"teacher/{name}{where}") for name, each in STAGE_1.items()],
            )
            for where, (_, title) in STAGE_1_SCENES.items()
        ),
        (
            "Stage 2: what makes it hard for the student (occlusion view)",
            [
                row("teacher", BASE),
                row("control: trained on, whole frames", "control/whole"),
                row("control: trained on, crops", "control/crop"),
                *(
                    row(
                        f"+ distillation: {name}",
                        f"student/{name}",
                        against=control_of(name),
                    )
                    for name in CHALLENGES
                ),
            ],
        ),
        (
            "The two variants of the student (crop)",
            [
                row("occlusion view", "student/crop", against="control/crop"),
                row("confidence view", "student/confidence", against="control/crop"),
                row(
                    "confidence view + photometric", "student/confidence+photometric", against="control/crop"
                ),
                row(
                    "occlusion view, a quarter of the distillation's weight",
                    "student/quarter",
                    against="control/crop",
                ),
            ],
        ),
        (
            "Model distillation: several teachers (occlusion view, crop)",
            [
                row("1 teacher", "student/crop", against="control/crop"),
                row("2 teachers", "student/2 teachers", against="control/crop"),
                row("3 teachers", "student/3 teachers", against="control/crop"),
            ],
        ),
        (
            "Framework generalisation",
            [
                *(
                    row("PWC-Net: " + part, name)
                    for part, name in (("teacher", BASE), ("control", "control/crop"))
                ),
                row("PWC-Net: student", "student/crop", against="control/crop"),
                *(
                    row(f"{backbone}: {part}", f"{part}/{backbone}", against=f"control/{backbone}")
                    if part == "student"
                    else row(f"{backbone}: {part}", f"{part}/{backbone}")
                    for backbone in GENERALISED
                    for part in ("teacher", "control", "student")
                ),
            ],
        ),
        (
            f"Fine-tuning with the truth of some pairs, {FINETUNE_STEPS} steps",
            [
                row(f"{share:.0%} of the labels, from {start}", f"finetuned/{share:.0%} from {start}")
                for share in LABEL_SHARES
                for start in ("scratch", "teacher", "student", "student, semi-supervised")
            ],
        ),
        (
            "Cross-dataset generalisation: trained on one kind of scene, tested on another",
            [
                row(
                    f"{part}: {kind} -> {other}",
                    f"{part}/{kind}",
                    kind=other,
                    against=f"control/{kind}" if part == "student" else None,
                )
                for kind in ("camera", "objects")
                for other in CELLS[f"teacher/{kind}"].kinds
                for part in ("teacher", "control", "student")
            ],
        ),
        (
            "Correspondence generalisation: rectified stereo",
            [
                row("teacher", "teacher/stereo"),
                row("control", "control/stereo"),
                row("student", "student/stereo", against="control/stereo"),
            ],
        ),
    ]
    shown = [(title, [line for line in rows if len(line) > 2]) for title, rows in parts]
    return "\n\n".join(f"## {title}\n\n{table(rows)}" for title, rows in shown if rows)


def below(name: str, other: str, key: str) -> tuple[bool | None, str]:
    """Whether a cell's error is below the other's beyond the spread of the seeds: the mean of the differences
    of equal seeds is further from 0 than their standard deviation. None for fewer than two seeds."""
    mine, its = seeds_of(name), seeds_of(other)
    differences = [mine[seed][key] - its[seed][key] for seed in sorted(mine.keys() & its.keys())]
    if len(mine) > 1 and stopped(other) and not its:
        return True, f"{name} against {other}: {stopped(other)}"
    if len(differences) < 2:
        return None, f"{name} against {other}"
    met = statistics.mean(differences) < -statistics.stdev(differences)
    return met, f"{name} against {other}, EPE {key}: {mean_and_spread(differences)} px"


def claims() -> str:
    """What the ablation was asked to show, and whether it does."""
    lines: list[tuple[str, bool | None, str]] = []
    for where in STAGE_1_SCENES:
        for other in list(STAGE_1)[:-1]:
            claim = "mask + census beats the other rows on occluded pixels"
            lines.append((claim, *below(f"{BASE}{where}", f"teacher/{other}{where}", "occ")))
    for student_of in (*CHALLENGES, *OBJECTIVES):
        name, against = f"student/{student_of}", control_of(student_of)
        for key, least in (("occ", 16.0), ("noc", 3.0)):
            changes = changes_against(name, against, key)
            if len(changes) > 1:
                worst = statistics.mean(changes) + statistics.stdev(changes)
                text = f"{name}: {mean_and_spread(changes, 1)} % against {against}"
                lines.append((f"distillation cuts EPE {key} by {least:g} %", worst <= -least, text))
    for name in ("crop", *GENERALISED):
        claim = "every backbone's student beats its control on occluded pixels"
        lines.append((claim, *below(f"student/{name}", f"control/{name}", "occ")))
    one, three = seeds_of("student/crop"), seeds_of("student/3 teachers")
    if common := sorted(one.keys() & three.keys()):
        gap = [three[seed]["all"] - one[seed]["all"] for seed in common]
        met = statistics.mean(gap) <= (statistics.stdev(gap) if len(gap) > 1 else 0.0)
        lines.append(("three teachers are not worse than one", met, f"EPE all {mean_and_spread(gap)} px"))
    for share in LABEL_SHARES:
        claim = "at every label fraction the student start beats scratch"
        scratch, start = (f"finetuned/{share:.0%} from {each}" for each in ("scratch", "student"))
        lines.append((claim, *below(start, scratch, "all")))
    verdicts = {True: "yes", False: "NO", None: "too few cells yet"}
    return "\n".join(f"- {verdicts[met]}: {claim} ({text})" for claim, met, text in lines)


REASONS = """\
- RGB beats census where the light is constant, since there a pixel and its counterpart are equal but for
  interpolation; the papers' videos aren't like that. In changing light the order is the papers'.
- On the demo's scenes the mask does harm. It isn't the idea: masked by the true occlusion a teacher is as
  good as without a mask, so the loss of the few occluded pixels there misleads nobody. It is the check, most
  of whose occluded pixels are visible while the flow is still off by more than it forgives. Among large fast
  layers, which hide a sixth of the frame, the true mask helps on occluded pixels, and so does the check's;
  visible ones still pay for its mistakes (`docs/results/masks.md`, `python benchmarks/masks.py`). There, in
  changing light, mask + census is best on occluded pixels, as in the papers: on one of three kinds of scenes.
- RGB with the mask in changing light ends in a collapse: the flow is so bad that the check finds nothing
  visible.
- Rectangles and superpixels alone hardly help on occluded pixels, since they hide another way: four fifths
  of what is occluded on these scenes leaves the frame (7.5 % of the pixels; something covers 1.8 %). A crop
  hides 6.4 % of the pixels so; rectangles hide 11.2 % and superpixels 3.5 %, all by covering them
  (`python benchmarks/hidden.py`). That rectangles, and all transformations together, cost visible pixels
  4 % was not looked into.
- On visible pixels PWC-Net's students gain under 3 %, the stereo student loses, and so does that of scenes
  with a moving camera alone once it is tested on moving objects. It is the weight of the distillation, whose
  few pixels count as much as all others together: with a quarter of it visible pixels gain, as they do in the
  confidence view with the photometric loss (`docs/results/visible.md`, `python benchmarks/visible.py`). On
  moving objects that explains a third.
"""


def unfinished() -> str:
    """A sentence about the cells that have no result for some seed."""
    left = [name for name in CELLS if len(records_of(name)) < len(SEEDS)]
    return f"Not run yet, or not for {len(SEEDS)} seeds: {', '.join(left)}.\n\n" if left else ""


def report() -> str:
    spent = sum(json.loads(path.read_text())["seconds"] for path in RECORDS.glob("*.json"))
    count = len(list(RECORDS.glob("*.json")))
    return (
        "# The ablation\n\n"
        "Printed by `python benchmarks/ablation.py --print` from the cells in `docs/results/ablation`, each "
        f"written when it was done; {count} cells so far, {spent / 3600:.1f} hours of processes, two at once "
        f"on two cores: {spent / 7200:.1f} hours.\n\n"
        f"Rendered scenes of 96x128 px, small networks: {len(TRAINING_SCENES)} videos without labels, "
        f"{len(TEST_SCENES)} other scenes for the test; {TEACHER_STEPS} steps for a teacher, "
        f"{STUDENT_STEPS} for a student and for a control; EPE in px, mean ± standard deviation over seeds. "
        "`against control` is the change of the error against the teacher trained on without distillation "
        "for as many steps. FlowNetS has twice the teacher's steps, a learning rate of 1e-3 and no mask: "
        "with the others' training it collapses when the mask begins.\n\n"
        f"{tables()}\n\n{unfinished()}"
        f"## What it was asked to show\n\nBeyond the spread of the seeds:\n\n{claims()}\n\n"
        f"## Where it disagrees with the papers\n\n{REASONS}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument(
        "--only", nargs="+", default=list(CELLS), metavar="CELL", help="a cell, or a beginning"
    )
    parser.add_argument("--print", action="store_true", help="only write the tables")
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    names = [name for name in CELLS if any(name.startswith(only) for only in arguments.only)]
    if not names:
        parser.error(f"no cell begins with {shlex.join(arguments.only)}; there are {', '.join(CELLS)}")
    if not arguments.print:
        WORK.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = TRACKING_URI
        connect()
        for seed in seeds:
            for name in names:
                do(name, seed)
    text = report()
    (RESULTS / "ablation.md").write_text(text)
    print(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
