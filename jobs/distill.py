"""Distills the student: the teacher's network, trained on transformed crops of what the teacher labelled.

    python jobs/distill.py demo --labels my_labels --run-root runs

The student starts from the weights of the teacher that made the labels, unless --init names another model.
Prints the URI of the student, which evaluate and predict take. With --resume RUN_ID a run that was killed
goes on from its last checkpoint.
"""

from dataclasses import dataclass, field, replace

import tyro

from flowcore.hallucination import Challenge
from flowcore.objectives import StudentObjective
from jobs.command import announce, connect, run_recipe
from jobs.recipes import RECIPES
from pipelines import tracking
from pipelines.checkpoints import fetch_model, load_model
from pipelines.labels import DEFAULT_MAX_SPREAD, PairSet
from pipelines.locations import absolute
from pipelines.training import Source, Training, TrainingOptions, finish, train


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Options of distill."""

    labels: str
    """Folder or URI that pseudolabel wrote."""
    run_root: str
    """Folder or URI, shared by all nodes, for checkpoints and models."""
    challenge: Challenge
    """What makes a pair harder for the student than it was for the teacher; what it hides is hidden from the
    student alone."""
    training: TrainingOptions
    objective: StudentObjective = field(default_factory=StudentObjective)
    init: str | None = None
    """The model to start from, in place of the teacher that made the labels."""
    max_spread: float = DEFAULT_MAX_SPREAD
    """Pixels by which several teachers may disagree on a label that is learnt from."""
    resume: str | None = None
    """The id of an MLflow run of this job to go on with."""


def distill(recipe: str, options: Distill) -> str:
    """Runs the stage; returns the registered student's URI."""
    labels, run_root = absolute(options.labels, "--labels"), absolute(options.run_root, "--run-root")
    pairs = replace(PairSet.open(labels), max_spread=options.max_spread)
    if (teacher := pairs.teacher) is None:
        raise ValueError(
            f"--labels {labels} has frame pairs without labels; make labels with jobs/pseudolabel.py"
        )
    start = absolute(options.init, "--init") if options.init else teacher
    with tracking.start(
        "distill",
        recipe=recipe,
        parameters=options,
        inputs={"labels": labels, "init": start},
        resume_run_id=options.resume,
    ) as run:
        announce(run)
        run.dataset("labels", labels, pairs.label_set, "training")
        run.tag("label_set", pairs.label_set)
        run.link("labels", pairs.description.provenance.get("run_id"))
        network, info = load_model(fetch_model(start))
        run.link("init", info.run_id)
        generation = str(int(pairs.description.provenance.get("generation", "0")) + 1)
        run.tag("generation", generation)
        result = train(
            Training(
                stage="distill",
                network=network.config,
                initial=network.state_dict(),
                sources=(
                    Source(
                        pairs=pairs,
                        transformation=options.challenge,
                        objective=options.objective,
                    ),
                ),
                options=options.training,
                provenance={
                    "stage": "distill",
                    "recipe": recipe,
                    "labels": labels,
                    "label_set": pairs.label_set,
                    "init": info.digest,
                    "generation": generation,
                    "run_id": run.run_id,
                },
                run=run.handle,
            ),
            run_root,
        )
        return finish(run, result, "flow-student")


def main(recipe: str, options: Distill) -> None:
    connect()
    uri = distill(recipe, options)
    print(f"student: {uri}\nlook at it: {tracking.ui_command()}")


def recipes() -> dict[str, tuple[str, Distill]]:
    """This job's options by recipe."""
    return {
        name: (
            recipe.description,
            Distill(
                labels=tyro.MISSING,
                run_root=tyro.MISSING,
                challenge=recipe.challenge,
                training=recipe.student,
            ),
        )
        for name, recipe in RECIPES.items()
    }


if __name__ == "__main__":
    run_recipe(main, recipes())
