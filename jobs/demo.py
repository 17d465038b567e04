"""The whole chain on this machine: videos, teacher, pseudo-labels, student, evaluation.

    python jobs/demo.py                       # on rendered videos, whose true flow is known
    python jobs/demo.py --videos my_videos    # on your own
    python jobs/demo.py smoke                 # with another recipe than demo

In a checkout, `make demo` does the same. Everything lands in a new folder under runs/, every stage is a run
in MLflow, and the last lines say where to look.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobs.command import run_recipe
from flowcore.formats import read_image
from jobs import chain
from jobs.recipes import RECIPES
from pipelines.cluster import connect
from pipelines.collection import Collection
from pipelines.disclosure import tell
from pipelines.installation import home_of
from pipelines.storage import shared_folder

if TYPE_CHECKING:
    from pipelines.evaluation import Errors


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Options of the demo."""

    videos: str | None = None
    """Your own videos: a folder, glob, video, list file or URI. Without it, videos are rendered."""
    seed: int = 0
    """Decides weights, the order of pairs and crops. The rendered scenes are always the same. Change it to
    see how much results vary."""
    run_root: str = field(default_factory=lambda: str(home_of() / "runs"))
    """Where the demo makes its folder. Give another one if this disk has little space."""


def demo(options: Demo, recipe: str) -> None:
    """Runs the chain; every stage has the recipe."""
    from pipelines import run_store
    from pipelines.error_tables import error_table
    from pipelines.lineage import lineage

    stamp, clock = time.strftime("%Y%m%d-%H%M%S"), chain.StageClock()
    folder = shared_folder(options.run_root, "--run-root") / f"demo-{stamp}-seed{options.seed}"
    videos = Collection.find(options.videos).place if options.videos else str(folder / "videos")
    if not options.videos:
        with clock.stage(
            "render", f"{len(chain.TRAINING_SCENES)} videos and {len(chain.TEST_SCENES)} test scenes"
        ):
            chain.render(folder, RECIPES[recipe].clips.size or (96, 128))
    with clock.stage("start", "an embedded Ray"):
        connect()
    picture, numbers = folder / "comparison.png", folder / "summary.json"
    subject = f"seed {options.seed}"
    made_from = {"videos": videos}
    with lineage("demo", recipe, options, made_from, subject=subject, is_chain=True) as run:
        models, pairs = chain.train_both(recipe, options.seed, videos, folder, clock)
        errors: dict[str, Errors] = {}
        if options.videos:
            with clock.stage("picture", "teacher and student on your videos"):
                chain.draw(recipe, folder, picture, models)
        else:
            with clock.stage("evaluate", "zero flow, DIS, teacher and student on scenes never trained on"):
                errors = chain.judge(recipe, folder, picture, models)
        for model, error in errors.items():
            run.summary(error.metrics(model))
        numbers.write_bytes(chain.summary_json(options.seed, models, pairs, errors, clock))
        run.artifact(numbers)
        run.picture("demo/comparison", read_image(picture), step=0)
        run.tag("labels", str(folder / "labels"))
        run.tag("made", models["student"])
    tell(f"\n{error_table(subject, errors) if errors else ''}\n\npicture: {picture}")
    tell(f"numbers: {numbers}\nlabels:  {folder / 'labels'}\nstudent: {models['student']}")
    tell(f"every step: {run_store.ui_command()}")


def recipes() -> dict[str, tuple[str, Demo]]:
    """This job's options by recipe: those whose stages need nothing but videos."""
    return {name: (RECIPES[name].description, Demo()) for name in ("smoke", "demo", "video")}


if __name__ == "__main__":
    run_recipe(demo, recipes(), usual="demo")
