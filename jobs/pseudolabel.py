"""Labels videos with a teacher: flow and occlusion of every frame pair, written to Parquet.

    python jobs/pseudolabel.py demo --videos my_videos --teacher models:/flow-teacher@champion --labels my_labels

Killed at any moment, the same command again finishes the set: each pair is there once, and what was finished is not done again.
"""

from dataclasses import dataclass

import tyro

from jobs.command import connect, run_recipe
from jobs.recipes import RECIPES
from pipelines import tracking
from pipelines.labelling import LabellingOptions, LabellingSummary, write_labels
from pipelines.locations import absolute


@dataclass(frozen=True, kw_only=True)
class Pseudolabel:
    """Options of pseudolabel."""

    videos: str
    """Folder (searched through), glob, video, list file or URI."""
    teacher: str
    """Checkpoint folder, runs:/<run id>/model, or models:/<name>@<alias>."""
    labels: str
    """Folder or URI, shared by all nodes, that the labels are written to."""
    labelling: LabellingOptions


def pseudolabel(recipe: str, options: Pseudolabel) -> LabellingSummary:
    """Runs the stage; returns what was written."""
    videos, labels = absolute(options.videos, "--videos"), absolute(options.labels, "--labels")
    teacher = absolute(options.teacher, "--teacher")
    with tracking.start(
        "pseudolabel", recipe=recipe, parameters=options, inputs={"videos": videos, "teacher": teacher}
    ) as run:
        summary = write_labels(videos, teacher, labels, options.labelling)
        run.dataset("videos", videos, summary.label_set, "labelling")
        run.tag("label_set", summary.label_set)
        run.tag("labels", labels)
        return summary


def main(recipe: str, options: Pseudolabel) -> None:
    connect()
    print(pseudolabel(recipe, options))


def recipes() -> dict[str, tuple[str, Pseudolabel]]:
    """This job's options by recipe."""
    return {
        name: (
            recipe.description,
            Pseudolabel(
                videos=tyro.MISSING, teacher=tyro.MISSING, labels=tyro.MISSING, labelling=recipe.labelling
            ),
        )
        for name, recipe in RECIPES.items()
    }


if __name__ == "__main__":
    run_recipe(main, recipes())
