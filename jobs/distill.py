"""Distills the student: the teacher's network, trained on transformed crops of what the teacher labelled.

    python jobs/distill.py demo --labels my_labels --run-root runs

The student starts from the weights of the teacher that made the labels, unless --init names another model, or
is `fresh`: then it is the recipe's network, whatever the teacher was, and demo:raft_small names another one.
Labels that import_labels wrote need --init, as nobody knows their teacher.
Prints the URI of the student, which evaluate and predict take. With --resume RUN_ID a run that was killed
goes on from its last checkpoint.

    python jobs/distill.py demo --labels my_labels --run-root runs
    --where "occluded < 0.6 and photometric < 4"

--where takes the pairs that it keeps, for validation too; a champion that other pairs judged is judged on
these before the student takes its place.
"""

from dataclasses import dataclass, field, replace

import tyro

from flowcore.hallucination import Challenge
from flowcore.networks import AnyNetworkConfig
from flowcore.objectives import StudentObjective
from flowcore.occlusion import ForwardBackwardCheck
from jobs.command import StageRun, finish, kept_pairs, run_recipe, training_run, validation_set
from jobs.recipes import with_backbones
from pipelines import tracking
from pipelines.checkpoints import absolute_model, starting_point
from pipelines.cluster import connect
from pipelines.filters import PairFilter
from pipelines.labels import DEFAULT_MAX_SPREAD
from pipelines.pair_set import PairSet
from pipelines.step import TrainingOptions
from pipelines.storage import absolute
from pipelines.training import Source, train
from pipelines.truth import truth_location
from pipelines.validation import CollapseAlarm, Judge


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Options of distill."""

    labels: str
    """Folder or URI that pseudolabel or import_labels wrote."""
    run_root: str
    """Folder or URI, shared by all nodes, for checkpoints and models."""
    challenge: Challenge
    """What makes a pair harder for the student than it was for the teacher; what it hides is hidden from the
    student alone."""
    network: AnyNetworkConfig
    """The network, if it starts fresh."""
    training: TrainingOptions
    objective: StudentObjective = field(default_factory=StudentObjective)
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

    def __post_init__(self) -> None:
        if self.where is not None:
            PairFilter(self.where)


def distill(recipe: str, options: Distill) -> str:
    """Runs the stage; returns the registered student's URI."""
    labels, run_root = absolute(options.labels, "--labels"), absolute(options.run_root, "--run-root")
    where = None if options.where is None else PairFilter(options.where)
    pairs = replace(PairSet.open(labels), max_spread=options.max_spread, where=where)
    if not pairs.has_labels:
        raise ValueError(
            f"--labels {labels} has frame pairs without labels; make labels with jobs/pseudolabel.py"
        )
    kept = kept_pairs(pairs)
    inputs = {"labels": labels}
    judge = None if options.validate_on is None else truth_location(options.validate_on, "--validate-on")
    if options.init != "fresh":
        if ":" in recipe:
            raise ValueError(
                f"recipe {recipe} names a network, which only fresh weights take; add --init fresh, or give "
                f"{recipe.partition(':')[0]} to start from a model"
            )
        if (init := absolute_model(options.init, "--init") if options.init else pairs.teacher) is None:
            raise ValueError(
                f"--labels {labels} came as files, without the teacher that made them; give --init fresh to "
                "train the recipe's network from fresh weights, or a model"
            )
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


def main(recipe: str, options: Distill) -> None:
    connect()
    uri = distill(recipe, options)
    print(f"student: {uri}\nlook at it: {tracking.ui_command()}")


def recipes() -> dict[str, tuple[str, Distill]]:
    """This job's options by recipe, and recipe:backbone."""
    return with_backbones(
        lambda recipe, network: Distill(
            labels=tyro.MISSING,
            run_root=tyro.MISSING,
            challenge=recipe.challenge,
            network=network,
            training=recipe.student,
            objective=recipe.objective,
        )
    )


if __name__ == "__main__":
    run_recipe(main, recipes())
