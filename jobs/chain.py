"""What is the whole chain? Videos, a teacher, its labels, a student, and what both are worth."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowcore.drawing import comparison_panel
from flowcore.formats import write_image
from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, evaluate, pseudolabel, recipes, train_teacher
from jobs.report import appraisal_text
from jobs.stages import Evaluate
from pipelines.appraisal import Appraisal
from pipelines.disclosure import tell
from pipelines.pair_set import PairSet

if TYPE_CHECKING:
    from pipelines.evaluation import Errors

TRAINING_SCENES = range(25)
TEST_SCENES = range(10_000, 10_040)
"""The seeds of the scenes that are rendered where there are no videos."""


class StageClock:
    """The seconds that each stage of a chain took; prints a line as one begins and as it ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Times the block."""
        tell(f"\n== {name}: {what}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        tell(f"== {name}: done in {self.seconds[name]:.1f} s")

    @property
    def summary(self) -> dict[str, float]:
        """By stage, and in total."""
        return self.seconds | {"total": round(sum(self.seconds.values()), 1)}


def render(folder: Path, size: tuple[int, int]) -> None:
    """Videos to train on, and scenes with their truth to test on."""
    height, width = size
    training = SceneOptions(height=height, width=width)
    for seed in TRAINING_SCENES:
        write_video(folder / "videos" / f"scene{seed:02d}.mp4", render_scene(seed, training).frames)
    test = SceneOptions(height=height, width=width, num_frames=4)
    for seed in TEST_SCENES:
        write_truth(folder / "scenes" / f"scene{seed}", render_scene(seed, test))


def train_both(
    recipe: str, seed: int, videos: str, folder: Path, clock: StageClock
) -> tuple[dict[str, str], int]:
    """(the URIs of teacher and student by name, the number of pairs that the teacher labelled)."""
    run_root, labels = str(folder), str(folder / "labels")
    with clock.stage("train_teacher", "learns optical flow from the videos, without labels"):
        first = train_teacher.recipes()[recipe][1]
        training = replace(first.training, seed=seed)
        first = replace(first, videos=videos, run_root=run_root, training=training)
        teacher = train_teacher.train_teacher(first, recipe)
    with clock.stage("pseudolabel", "the teacher writes flow and occlusion of every pair"):
        second = pseudolabel.recipes()[recipe][1]
        second = replace(second, videos=videos, teacher=(teacher,), labels=labels)
        written = pseudolabel.pseudolabel(second, recipe)
        tell(appraisal_text(Appraisal.of(PairSet.open(labels))))
    with clock.stage("distill", "a student learns from the labels on harder crops"):
        third = distill.recipes()[recipe][1]
        training = replace(third.training, seed=seed)
        third = replace(third, labels=labels, run_root=run_root, training=training)
        student = distill.distill(third, recipe)
    return {"teacher": teacher, "student": student}, written.num_pairs


def judge(recipe: str, folder: Path, picture: Path, models: Mapping[str, str]) -> "dict[str, Errors]":
    """The errors on the test scenes, by model; draws teacher and student on the student's median scene."""
    from pipelines.estimators import load_estimator
    from pipelines.evaluation import example

    stage = Evaluate(
        model=("zero",), truth=f"scenes:{folder / 'scenes'}", check=recipes.RECIPES[recipe].check
    )
    results = evaluate.evaluate_models({"zero": "zero", "dis": "opencv:dis_medium", **models}, stage)
    ranked = results["student"].ranked
    estimators = {name: load_estimator(uri) for name, uri in models.items()}
    write_image(picture, example(ranked[len(ranked) // 2], estimators, stage.check))
    return {name: result.total for name, result in results.items()}


def draw(recipe: str, folder: Path, picture: Path, models: Mapping[str, str]) -> None:
    """Teacher and student on a pair of the label set."""
    from pipelines.estimators import load_estimator, predictions

    pair = PairSet.open(str(folder / "labels")).example()
    estimators = {name: load_estimator(uri) for name, uri in models.items()}
    both = predictions(pair.image1, pair.image2, estimators, recipes.RECIPES[recipe].check)
    write_image(picture, comparison_panel(pair.image1, pair.image2, predictions=both))


def summary_json(
    seed: int, models: Mapping[str, str], pairs: int, errors: "Mapping[str, Errors]", clock: StageClock
) -> bytes:
    """The chain's models, how many pairs were labelled or, with truth, judged, the errors by model, and the
    seconds by stage."""
    summary: dict[str, object] = {"seed": seed, "models": dict(models), "pairs": pairs}
    if errors:
        summary["pairs"] = errors["student"].pairs
    for model, error in errors.items():
        sums = error.summary()
        summary[model] = {"epe": sums["epe"], "fl": sums["fl"], "occlusion_f1": sums["occlusion"]["f1"]}
    return (json.dumps(summary | {"seconds": clock.summary}, indent=2) + "\n").encode()
