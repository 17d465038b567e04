"""The whole chain on this machine: videos, teacher, pseudo-labels, student, evaluation.

    make demo                    # on rendered videos, whose true flow is known
    make demo VIDEOS=my_videos   # on your own

Everything lands in a new folder under runs/, every stage is a run in MLflow, and the last lines say where to
look.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flowcore.datasets import Sample
from flowcore.drawing import Picture, comparison_panel
from flowcore.formats import write_image
from flowcore.occlusion import OcclusionCheck
from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, evaluate, pseudolabel, recipes, train_teacher
from jobs.command import run
from pipelines.collection import absolute_collection
from pipelines.pair_set import PairSet
from pipelines.step import TrainingOptions
from pipelines.storage import PROJECT_FOLDER, shared_folder

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


class Stages:
    """The seconds that each stage took; prints a line as one begins and as it ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        print(f"\n== {name}: {what}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"== {name}: done in {self.seconds[name]:.1f} s", flush=True)


def main(options: Demo) -> None:
    from pipelines import tracking
    from pipelines.cluster import connect
    from pipelines.evaluation import table as evaluation_table

    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}-seed{options.seed}"
    folder = shared_folder(options.run_root, "--run-root") / name
    stages = Stages()
    videos = absolute_collection(options.videos, "--videos") if options.videos else str(folder / "videos")
    if not options.videos:
        with stages.stage("render", f"{len(_TRAINING_SCENES)} videos and {len(_TEST_SCENES)} test scenes"):
            render(folder, recipes.RECIPES[options.recipe].clips.size or (96, 128))
    with stages.stage("start", "an embedded Ray"):
        connect()
    with tracking.start(
        "demo", recipe=options.recipe, parameters=options, subject=f"seed {options.seed}", is_chain=True
    ) as chain:
        models, num_pairs = train_both(options, videos, folder, stages)
        summary: dict[str, object] = {"seed": options.seed, "models": models, "pairs": num_pairs}
        picture, table = folder / "comparison.png", ""
        if options.videos:
            with stages.stage("picture", "teacher and student on your videos"):
                write_image(picture, on_own_videos(str(folder / "labels"), models))
        else:
            with stages.stage("evaluate", "zero flow, DIS, teacher and student on scenes never trained on"):
                results = evaluate.evaluate_models(
                    {"zero": "zero", "dis": "opencv:dis_medium", **models},
                    evaluate.Evaluate(
                        model=("zero",),
                        truth=f"scenes:{folder / 'scenes'}",
                        check=recipes.RECIPES[options.recipe].check,
                    ),
                )
                ranked = results["student"].ranked
                write_image(picture, on_a_scene(ranked[len(ranked) // 2], models))
            totals = {name: result.total for name, result in results.items()}
            summary["pairs"] = totals["student"].pairs
            for name, errors in totals.items():
                numbers = errors.summary()
                f1 = numbers["occlusion"]["f1"]
                summary[name] = {"epe": numbers["epe"], "fl": numbers["fl"], "occlusion_f1": f1}
                chain.summary(errors.metrics(name))
            table = evaluation_table(f"seed {options.seed}", totals)
        summary["seconds"] = stages.seconds | {"total": round(sum(stages.seconds.values()), 1)}
        path = folder / "summary.json"
        path.write_text(json.dumps(summary, indent=2) + "\n")
        chain.artifact(path)
        chain.artifact(picture)
    print(f"\n{table}\n\npicture: {picture}\nnumbers: {path}\nlabels:  {folder / 'labels'}")
    print(f"student: {models['student']}\nevery step: {tracking.ui_command()}")


def train_both(options: Demo, videos: str, folder: Path, stages: Stages) -> tuple[dict[str, str], int]:
    """(the URIs of teacher and student, the pairs that the teacher labelled)."""
    recipe, run_root, labels = options.recipe, str(folder), str(folder / "labels")

    def seeded(training: TrainingOptions) -> TrainingOptions:
        return replace(training, seed=options.seed)

    with stages.stage("train_teacher", "learns optical flow from the videos, without labels"):
        first = train_teacher.recipes()[recipe][1]
        first = replace(first, videos=videos, run_root=run_root, training=seeded(first.training))
        teacher = train_teacher.train_teacher(first, recipe)
    with stages.stage("pseudolabel", "the teacher writes flow and occlusion of every pair"):
        second = pseudolabel.recipes()[recipe][1]
        second = replace(second, videos=videos, teacher=(teacher,), labels=labels)
        written = pseudolabel.pseudolabel(second, recipe)
    with stages.stage("distill", "a student learns from the labels on harder crops"):
        third = distill.recipes()[recipe][1]
        third = replace(third, labels=labels, run_root=run_root, training=seeded(third.training))
        student = distill.distill(third, recipe)
    return {"teacher": teacher, "student": student}, written.num_pairs


def render(folder: Path, size: tuple[int, int]) -> None:
    """Videos to train on, and scenes with their truth to test on."""
    height, width = size
    training = SceneOptions(height=height, width=width)
    for seed in _TRAINING_SCENES:
        write_video(folder / "videos" / f"scene{seed:02d}.mp4", render_scene(seed, training).frames)
    test = SceneOptions(height=height, width=width, num_frames=4)
    for seed in _TEST_SCENES:
        write_truth(folder / "scenes" / f"scene{seed}", render_scene(seed, test))


def on_a_scene(sample: Sample, models: Mapping[str, str]) -> Picture:
    """Truth, teacher and student on a test scene."""
    from pipelines.evaluation import example, load_estimator

    estimators = {name: load_estimator(uri) for name, uri in models.items()}
    return example(sample, estimators, OcclusionCheck())


def on_own_videos(labels: str, models: Mapping[str, str]) -> Picture:
    """Teacher and student on a pair of the label set."""
    from pipelines.evaluation import load_estimator, predictions

    pair = PairSet.open(labels).example()
    estimators = {name: load_estimator(uri) for name, uri in models.items()}
    both = predictions(pair.image1, pair.image2, estimators, OcclusionCheck())
    return comparison_panel(pair.image1, pair.image2, predictions=both)


if __name__ == "__main__":
    run(main, Demo)
