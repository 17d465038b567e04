"""Distills the student: the teacher's network, trained on transformed crops of what the teacher labelled.

    python jobs/distill.py demo --labels my_labels --run-root runs

The student starts from the weights of the teacher that made the labels. --init names another model, or
`fresh` for the recipe's network with fresh weights; then demo:raft_small names another network. Labels of
import_labels need --init, because nobody knows their teacher. Prints the URI of the student, which evaluate
and predict take.

    python jobs/distill.py demo --labels my_labels --run-root runs
        --where "occluded < 0.6 and photometric < 4"

--where selects the pairs to learn from and to validate on. A champion that other pairs judged is judged on
these before the student takes its place.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from flowcore.hallucination import Challenge
from flowcore.objectives import StudentObjective
<<<<<<< HEAD
from jobs.command import run_training
from jobs.options import REQUIRED
=======
from flowcore.occlusion import ForwardBackwardCheck
from jobs.command import StageRun, finish, kept_pairs, run_recipe, training_run, validation_set
>>>>>>> training
from jobs.recipes import with_backbones
from jobs.stages import FRESH, LabelledStage, TrainingStage
from pipelines.checkpoints import StartingPoint
from pipelines.pair_set import PairSet
<<<<<<< HEAD
=======
from pipelines.step import TrainingOptions
from pipelines.storage import absolute
from pipelines.training import Source, train
from pipelines.truth import truth_location
from pipelines.validation import CollapseAlarm, Judge
>>>>>>> training


@dataclass(frozen=True, kw_only=True)
class Distill(LabelledStage):
    """Options of distill."""

    labels: str
    """Folder or URI of the labels, as pseudolabel or import_labels wrote them."""
    challenge: Challenge
    """What makes a pair harder for the student than it was for the teacher."""
    objective: StudentObjective = field(default_factory=StudentObjective)
<<<<<<< HEAD
    """What the student learns from the labels and from the frames."""
=======
    init: str | None = None
    """The model to start from, in place of the teacher that made the labels; `fresh` for the recipe's network
    with fresh weights, as the student of an external teacher has to."""
    check: ForwardBackwardCheck = field(default_factory=ForwardBackwardCheck)
    """The occlusion check of the run."""
    max_spread: float = DEFAULT_MAX_SPREAD
    """Pixels by which several teachers may disagree on a label that is learnt from."""
    where: str | None = None
    """The pairs to take, for validation too, by columns of the labels: "occluded < 0.6 and photometric < 4".
    Numbers, texts in single quotes, < <= > >= == !=, and, or, not, parentheses; SQL takes the same text."""
    validate_on: str | None = None
    """<benchmark>:<its unpacked folder>, such as sintel:/data/MPI-Sintel, whose truth judges the network
    while it trains, in place of the held-back pairs."""
    resume: str | None = None
    """The id of an MLflow run of this job to go on with."""
>>>>>>> training

    common: ClassVar[tuple[str, ...]] = (*TrainingStage.common, "where", "objective.view")

    def start(self, recipe: str, labels: PairSet) -> StartingPoint:
        """The teacher that made the labels, or what --init names."""
        if self.init != FRESH and ":" in recipe:
            raise ValueError(
                f"recipe {recipe} names a network, which only fresh weights take; add --init fresh, or give "
                f"{recipe.partition(':')[0]} to start from a model"
            )
        if self.init is None and labels.teacher is None:
            raise ValueError(
                f"--labels {labels.location} came as files, without the teacher that made them; give --init "
                "fresh to train the recipe's network from fresh weights, or a model"
            )
<<<<<<< HEAD
        return self.starting_point(default=labels.teacher)
=======
        inputs["init"] = init
    start = starting_point(inputs.get("init"), options.network)
    info = start.info
    with training_run("distill", recipe, options, recipes(), inputs) as run:
        validation = validation_set(run, judge, run_root)
        run.dataset("labels", labels, pairs.label_set, "training")
        run.log(0, kept)
        run.tag("label_set", pairs.label_set)
        run.link("labels", pairs.description.provenance.get("run_id"))
        generation = str(int(pairs.description.provenance.get("generation", "0")) + 1)
        run.tag("generation", generation)
        provenance = {
            "stage": "distill",
            "recipe": recipe,
            "labels": labels,
            "label_set": pairs.label_set,
            "generation": generation,
            "run_id": run.run_id,
        }
        if options.where is not None:
            provenance["where"] = options.where
        if info is not None:
            provenance["init"] = info.digest
            run.link("init", info.run_id)
        # labels alone teach a network whose own two flows don't agree yet
        alarm = CollapseAlarm() if options.objective.learns_from_frames else CollapseAlarm(max_occluded=1.0)
        result = train(
            start,
            [Source(pairs=pairs, transformation=options.challenge, objective=options.objective)],
            options.training,
            judge=Judge(truth=validation, check=options.check, alarm=alarm),
            run=StageRun(
                stage="distill", uri=run.uri, run_id=run.run_id, root=run_root, provenance=provenance
            ),
        )
        return finish(run, result, "flow-student")
>>>>>>> training


def distill(stage: Distill, recipe: str) -> str:
    """Runs the stage; returns the registered student's URI."""
    from pipelines.lineage import lineage
    from pipelines.training import Source, train
    from pipelines.validation import CollapseAlarm

    labels = stage.open(stage.labels)
    start = stage.start(recipe, labels)
    # Labels alone may teach a network whose own two flows don't agree yet.
    alarm = CollapseAlarm() if stage.objective.learns_from_frames else CollapseAlarm(max_occluded=1.0)
    made_from = {"labels": labels, "init": start}
    usual = recipes()[recipe][1]
    with lineage("distill", recipe, stage, made_from, generation=labels.generation + 1, usual=usual) as run:
        source = Source(pairs=labels, transformation=stage.challenge, objective=stage.objective)
        trained = train(start, [source], stage.training, judge=stage.judge(run, alarm), run=run)
        return run.register(trained, "flow-student")


def recipes() -> dict[str, tuple[str, Distill]]:
    """This job's options by recipe, and recipe:network."""
    return with_backbones(
        lambda recipe, network: Distill(
            labels=REQUIRED,
            run_root=REQUIRED,
            challenge=recipe.challenge,
            network=network,
            training=recipe.student,
            objective=recipe.student_objective,
        )
    )


if __name__ == "__main__":
    run_training(distill, recipes(), "student")
