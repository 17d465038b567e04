"""The whole chain on this machine: videos, teacher, pseudo-labels, student, evaluation.

    make demo                    # on rendered videos, whose true flow is known
    make demo VIDEOS=my_videos   # on your own

Everything lands in a new folder under runs/, every stage is a run in MLflow, and the last lines say where to
look.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flowcore.drawing import comparison_panel
from flowcore.formats import write_image
from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, evaluate, pseudolabel, recipes, train_teacher
from jobs.command import run
from jobs.stages import Evaluate
from pipelines.cluster import connect
from pipelines.collection import Collection
from pipelines.pair_set import PairSet
from pipelines.progress import StageClock
from pipelines.storage import PROJECT_FOLDER, shared_folder

if TYPE_CHECKING:
    from pipelines.evaluation import Errors

_TRAINING_SCENES = range(25)
_TEST_SCENES = range(10_000, 10_040)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Options of the demo."""

    videos: str | None = None
    """Your own videos: a folder, glob, video, list file or URI. Without it, videos are rendered."""
    seed: int = 0
    """Decides weights, the order of pairs and crops. The rendered videos are always the same."""
    recipe: Literal["smoke", "demo", "video"] = "demo"
    """The recipe of every stage: smoke takes a minute and learns nothing, video needs a GPU."""
    run_root: str = str(PROJECT_FOLDER / "runs")
    """Where the demo makes its folder."""


def main(options: Demo) -> None:
    from pipelines import tracking
    from pipelines.evaluation import table

    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}-seed{options.seed}"
    folder = shared_folder(options.run_root, "--run-root") / name
    clock = StageClock()
    videos = Collection.find(options.videos).place if options.videos else str(folder / "videos")
    if not options.videos:
        with clock.stage("render", f"{len(_TRAINING_SCENES)} videos and {len(_TEST_SCENES)} test scenes"):
            render(folder, recipes.RECIPES[options.recipe].clips.size or (96, 128))
    with clock.stage("start", "an embedded Ray"):
        connect()
    picture, numbers = folder / "comparison.png", folder / "summary.json"
    with tracking.start(
        "demo", recipe=options.recipe, parameters=options, subject=f"seed {options.seed}", is_chain=True
    ) as chain:
        models, pairs = train_both(options, videos, folder, clock)
        summary: dict[str, object] = {"seed": options.seed, "models": models, "pairs": pairs}
        errors: Mapping[str, Errors] = {}
        if options.videos:
            with clock.stage("picture", "teacher and student on your videos"):
                draw(picture, folder / "labels", models)
        else:
            with clock.stage("evaluate", "zero flow, DIS, teacher and student on scenes never trained on"):
                errors = judge(options, folder, picture, models)
            summary["pairs"] = errors["student"].pairs
        for model, error in errors.items():
            found = error.summary()
            f1 = found["occlusion"]["f1"]
            summary[model] = {"epe": found["epe"], "fl": found["fl"], "occlusion_f1": f1}
            chain.summary(error.metrics(model))
        numbers.write_text(json.dumps(summary | {"seconds": clock.summary}, indent=2) + "\n")
        chain.artifact(numbers)
        chain.artifact(picture)
    print(f"\n{table(f'seed {options.seed}', errors) if errors else ''}\n\npicture: {picture}")
    print(f"numbers: {numbers}\nlabels:  {folder / 'labels'}\nstudent: {models['student']}")
    print(f"every step: {tracking.ui_command()}")


def render(folder: Path, size: tuple[int, int]) -> None:
    """Videos to train on, and scenes with their truth to test on."""
    height, width = size
    training = SceneOptions(height=height, width=width)
    for seed in _TRAINING_SCENES:
        write_video(folder / "videos" / f"scene{seed:02d}.mp4", render_scene(seed, training).frames)
    test = SceneOptions(height=height, width=width, num_frames=4)
    for seed in _TEST_SCENES:
        write_truth(folder / "scenes" / f"scene{seed}", render_scene(seed, test))


def train_both(options: Demo, videos: str, folder: Path, clock: StageClock) -> tuple[dict[str, str], int]:
    """(the URIs of teacher and student, the pairs that the teacher labelled)."""
    recipe, run_root, labels = options.recipe, str(folder), str(folder / "labels")
    with clock.stage("train_teacher", "learns optical flow from the videos, without labels"):
        first = train_teacher.recipes()[recipe][1]
        training = replace(first.training, seed=options.seed)
        first = replace(first, videos=videos, run_root=run_root, training=training)
        teacher = train_teacher.train_teacher(first, recipe)
    with clock.stage("pseudolabel", "the teacher writes flow and occlusion of every pair"):
        second = pseudolabel.recipes()[recipe][1]
        second = replace(second, videos=videos, teacher=(teacher,), labels=labels)
        written = pseudolabel.pseudolabel(second, recipe)
    with clock.stage("distill", "a student learns from the labels on harder crops"):
        third = distill.recipes()[recipe][1]
        training = replace(third.training, seed=options.seed)
        third = replace(third, labels=labels, run_root=run_root, training=training)
        student = distill.distill(third, recipe)
    return {"teacher": teacher, "student": student}, written.num_pairs


def judge(options: Demo, folder: Path, picture: Path, models: Mapping[str, str]) -> "dict[str, Errors]":
    """The errors on the test scenes, by model; draws teacher and student on the student's median scene."""
    from pipelines.evaluation import example, load_estimator

    stage = Evaluate(
        model=("zero",), truth=f"scenes:{folder / 'scenes'}", check=recipes.RECIPES[options.recipe].check
    )
    results = evaluate.evaluate_models({"zero": "zero", "dis": "opencv:dis_medium", **models}, stage)
    ranked = results["student"].ranked
    estimators = {name: load_estimator(uri) for name, uri in models.items()}
    write_image(picture, example(ranked[len(ranked) // 2], estimators, stage.check))
    return {name: result.total for name, result in results.items()}


def draw(picture: Path, labels: Path, models: Mapping[str, str]) -> None:
    """Teacher and student on a pair of the label set."""
    from pipelines.evaluation import DEFAULT_CHECK, load_estimator, predictions

    pair = PairSet.open(str(labels)).example()
    estimators = {name: load_estimator(uri) for name, uri in models.items()}
    both = predictions(pair.image1, pair.image2, estimators, DEFAULT_CHECK)
    write_image(picture, comparison_panel(pair.image1, pair.image2, predictions=both))


if __name__ == "__main__":
    run(main, Demo)
