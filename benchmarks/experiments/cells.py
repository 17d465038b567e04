"""What are the cells of the ablation, and how is one trained and judged?

A cell is a network trained through the jobs' own code, on rendered videos without labels, and judged on
rendered scenes that it never saw. Each is a run in MLflow, and a file in docs/results/ablation once it is
done. Other experiments take the same scenes, networks and trainings.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from flowcore import networks
from flowcore.augmentation import Crop, Geometric
from flowcore.colour import Colour
from flowcore.datasets import DataSet
from flowcore.hallucination import Challenge, RectangleNoise, SuperpixelNoise
from flowcore.losses import Photometric
from flowcore.networks import AnyNetworkConfig, FlowNetConfig, PWCNetConfig
from flowcore.objectives import StudentObjective, TeacherObjective
from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, evaluate, finetune, pseudolabel, train_teacher
from jobs.stages import Evaluate, TrainTeacher
from pipelines.installation import PROJECT_FOLDER
from pipelines.ledger import MANIFEST_FILE
from pipelines.models import fetch_model
from pipelines.revision import revision_of
from pipelines.storage import write_whole
from pipelines.training_options import TrainingOptions
from pipelines.validation import TrainingStopped

RESULTS = PROJECT_FOLDER / "docs" / "results"
RECORDS = RESULTS / "ablation"
WORK = PROJECT_FOLDER / "runs" / "ablation"
TRACKING_URI = f"sqlite:///{WORK / 'mlflow.db'}"

FAST = SceneOptions(camera_speed=3.0, layers=(3, 5), layer_speed=18.0, layer_radius=(0.2, 0.4))
KINDS = {
    # As in the demo.
    "mixed": SceneOptions(),
    # A camera that moves past few things.
    "camera": SceneOptions(layers=(0, 1)),
    # Many layers in front of a camera almost at rest.
    "objects": SceneOptions(camera_speed=1.0, layers=(5, 8), layer_speed=8.0),
    # Rectified stereo pairs.
    "stereo": SceneOptions(stereo=True),
    # As in the demo, in light that changes from frame to frame.
    "lit": SceneOptions(lighting=0.2),
    # As in the demo, with motion that changes from frame to frame.
    "unsteady": SceneOptions(unsteadiness=3.0),
    # Large fast layers, which hide much of the frame.
    "fast": FAST,
    # The same in such light; of all kinds the most like the papers' films.
    "busy": replace(FAST, lighting=0.2),
}
"""Kinds of scenes."""
TRAINING_SCENES = range(25)
TEST_SCENES = range(10_000, 10_040)

SEEDS = (0, 1, 2)
TEACHER_STEPS, UNMASKED_STEPS = 600, 180
STUDENT_STEPS = 500
FINETUNE_STEPS = 300
_TRAINING = TrainingOptions(
    steps=TEACHER_STEPS, learning_rate=4e-4, warmup=0.1, decay="cosine", validate_every=200
)
_FLOWNETS_RATE = 1e-3
LEVEL_BY_LEVEL = Photometric(full_resolution=False, clean=False, smoothness_weight=0.0)
"""The loss that the ablation was measured with: level by level, on what the network sees, without smoothness;
its networks predict the flow afresh at every level, as DDFlow's do. `losses` compares it with today's."""
_SMALL = networks.small()
NETWORKS: dict[str, AnyNetworkConfig] = {
    "pwcnet": replace(
        cast(PWCNetConfig, _SMALL["pwcnet"]),
        decoder_widths=(48, 32, 24),
        context_widths=(32, 32),
        radius=3,
        refines=False,
        learned_upsampling=False,
    ),
    "flownets": replace(cast(FlowNetConfig, _SMALL["flownets"]), refines=False),
    "flownetc": replace(cast(FlowNetConfig, _SMALL["flownetc"]), refines=False),
}
"""Of a size that lets all cells be done in some hours on two cores: half the demo's work a step."""
GENERALISED = tuple(NETWORKS)[1:]
LABEL_SHARES = (0.01, 0.05, 0.2, 1.0)
CROP = Challenge(crop=Crop(height=80, width=112))
"""What the student sees: a crop, flips and a channel permutation."""
WHOLE = Challenge(crop=Crop(height=96, width=128))
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


def teacher_options(backbone: str) -> TrainTeacher:
    """How the teacher of a backbone is trained.

    FlowNetS learns more slowly, without a cost volume: with the others' training the check finds 98 % of its
    frames occluded when the mask begins, and the collapse alarm ends it. So it has more steps, a higher rate
    and no mask.
    """
    options = train_teacher.recipes()["demo"][1]
    training, unmasked_steps = _TRAINING, UNMASKED_STEPS
    if backbone == "flownets":
        training = replace(training, steps=2 * TEACHER_STEPS, learning_rate=_FLOWNETS_RATE)
        unmasked_steps = training.steps
    objective = TeacherObjective(photometric=LEVEL_BY_LEVEL, unmasked_steps=unmasked_steps)
    return replace(
        options, network=NETWORKS[backbone], training=training, objective=objective, augmentation=WHOLE
    )


def student_training(seed: int, backbone: str) -> TrainingOptions:
    """How a student is trained, and its control."""
    training = replace(_TRAINING, seed=seed, steps=STUDENT_STEPS)
    return replace(training, learning_rate=_FLOWNETS_RATE) if backbone == "flownets" else training


def student_unmasked_steps(backbone: str) -> int:
    """The steps of a student, and of its control, before the mask applies."""
    return STUDENT_STEPS if backbone == "flownets" else 0


def _teacher(seed: int, kind: str, options: TrainTeacher) -> str:
    options = replace(options, videos=videos(kind), run_root=run_root(seed))
    return train_teacher.train_teacher(options, "demo")


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
    objective = TeacherObjective(
        photometric=replace(LEVEL_BY_LEVEL, distance=distance),  # type: ignore[arg-type]
        unmasked_steps=options.objective.unmasked_steps if masked else options.training.steps,
    )
    training = replace(options.training, seed=seed)
    return _teacher(seed, kind, replace(options, objective=objective, training=training))


def control(seed: int, *, of: str, crop: bool = True, kind: str = "mixed", backbone: str = "pwcnet") -> str:
    """The teacher trained on without distillation for the student's steps on the student's crops."""
    options = teacher_options(backbone)
    options = replace(
        options,
        init=model(of, seed),
        augmentation=CROP if crop else WHOLE,
        objective=replace(options.objective, unmasked_steps=student_unmasked_steps(backbone)),
        training=student_training(seed, backbone),
    )
    return _teacher(seed, kind, options)


def labels(seed: int, of: Sequence[str], kind: str) -> str:
    """The label set of one or several teachers; the further ones are of other seeds."""
    location = WORK / "labels" / f"{'+'.join(of).replace('/', '.')}-seed{seed}"
    if not (location / MANIFEST_FILE).exists():
        _, options = pseudolabel.recipes()["demo"]
        teachers = tuple(model(name, seed) for name in of)
        options = replace(options, videos=videos(kind), teacher=teachers, labels=str(location))
        pseudolabel.pseudolabel(options, "demo")
    return str(location)


def student(
    seed: int,
    *,
    of: Sequence[str],
    challenge: str = "crop",
    objective: StudentObjective | None = None,
    photometric: Photometric = LEVEL_BY_LEVEL,
    kind: str = "mixed",
    backbone: str = "pwcnet",
) -> str:
    """Stage 2. backbone: the teacher's."""
    _, options = distill.recipes()["demo"]
    objective = replace(objective or StudentObjective(), photometric=photometric)
    options = replace(
        options,
        labels=labels(seed, of, kind),
        run_root=run_root(seed),
        challenge=CHALLENGES[challenge],
        objective=replace(objective, unmasked_steps=student_unmasked_steps(backbone)),
        training=student_training(seed, backbone),
    )
    return distill.distill(options, "demo")


def finetuned(seed: int, *, start: str | None, share: float, unlabelled: bool = False) -> str:
    """With the truth of a share of the training pairs; unlabelled: as a student of all pairs too."""
    _, options = finetune.recipes()["demo"]
    options = replace(
        options,
        truth=str(DataSet("scenes", truth("mixed", TRAINING_SCENES))),
        run_root=run_root(seed),
        init="fresh" if start is None else model(start, seed),
        network=NETWORKS["pwcnet"],
        augmentation=WHOLE,
        challenge=CROP,
        student=replace(options.student, photometric=LEVEL_BY_LEVEL),
        label_share=share,
        labels=labels(seed, [BASE], "mixed") if unlabelled else None,
        training=replace(_TRAINING, seed=seed, steps=FINETUNE_STEPS),
    )
    return finetune.finetune(options, "demo")


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
        scenes = DataSet("scenes", truth(kind, TEST_SCENES))
        stage = Evaluate(model=(place,), truth=str(scenes))
        numbers = evaluate.evaluate_models({name: place}, stage)[name].total.summary()
        epe, f1 = numbers["epe"], numbers["occlusion"]["f1"]
        # Of rendered scenes all is known.
        errors[kind] = {**epe, "fl": numbers["fl"], "f1": f1}  # type: ignore[dict-item]
    return errors


def revision() -> str:
    """Of the code, as runs have it."""
    revision, is_dirty = revision_of(PROJECT_FOLDER)
    return f"{revision[:9]}-dirty" if is_dirty == "true" else revision
