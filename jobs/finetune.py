"""Fine-tunes a network with true flow, sparse or dense, and on unlabelled pairs beside it if you like.

    python jobs/finetune.py demo --truth kitti2015:/data/kitti --init models:/flow-student@champion --run-root
    runs

--truth names a benchmark and its unpacked folder. With --labels, a folder that pseudolabel wrote, every step
also learns from a batch of those pairs as the student did: semi-supervised; --where takes the ones that it
keeps, as in distill, and validation's pairs, which have truth, stay the same. --label-share takes a part of
the pairs with truth. Of Flying Chairs with its split file, and of FlyingChairs2 with train/ and val/, the
training pairs are learnt from, and evaluate judges those of validation; of the other sets it judges every
pair, also those that were learnt from. Prints the URI of the network, which evaluate and predict take. With
--resume RUN_ID a run that was killed goes on from its last checkpoint.
"""

from dataclasses import dataclass, field, replace

import tyro

from flowcore.hallucination import Challenge
from flowcore.networks import AnyNetworkConfig
from flowcore.objectives import StudentObjective, SupervisedObjective
from flowcore.occlusion import ForwardBackwardCheck
from jobs.command import StageRun, finish, kept_pairs, run_recipe, training_run
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
from pipelines.truth import truth_location, truth_set
from pipelines.validation import CollapseAlarm, Judge

_NO_ALARM = CollapseAlarm(max_occluded=1.0, min_flow_variance=0.0, must_improve=False)
"""What the truth teaches can't collapse."""


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Options of finetune."""

    truth: str
    """<benchmark>:<its unpacked folder>, such as kitti2015:/data/kitti2015."""
    run_root: str
    """Folder or URI, shared by all nodes, for the pairs with truth, checkpoints and models."""
    init: str
    """The model to start from, such as models:/flow-student@champion; `fresh` for the recipe's network with
    fresh weights."""
    network: AnyNetworkConfig
    """The network, if it starts fresh."""
    augmentation: Challenge
    """What is done to the pairs with truth."""
    training: TrainingOptions
    label_share: float = 1.0
    """The part of the pairs with truth that is trained on; a larger one has a smaller one's pairs too."""
    objective: SupervisedObjective = field(default_factory=SupervisedObjective)
    labels: str | None = None
    """Folder or URI that pseudolabel wrote, to learn from as a student beside the truth."""
    where: str | None = None
    """Those of the pairs that are learnt from, by columns of the labels, as in distill: "occluded < 0.6"."""
    check: ForwardBackwardCheck = field(default_factory=ForwardBackwardCheck)
    """The occlusion check of the run."""
    max_spread: float = DEFAULT_MAX_SPREAD
    """Pixels by which several teachers may disagree on a label that is learnt from."""
    challenge: Challenge
    """What is done to those pairs."""
    student: StudentObjective = field(default_factory=StudentObjective)
    """What is learnt from them."""
    unlabelled_weight: float = 1.0
    """Of that loss against the supervised one."""
    resume: str | None = None
    """The id of an MLflow run of this job to go on with."""

    def __post_init__(self) -> None:
        if self.where is not None:
            PairFilter(self.where)
            if self.labels is None:
                raise ValueError(f"--where {self.where!r} is about pseudo-labels; give --labels too")


def finetune(recipe: str, options: Finetune) -> str:
    """Runs the stage; returns the registered network's URI."""
    run_root = absolute(options.run_root, "--run-root")
    benchmark, folder = truth_location(options.truth, "--truth")
    inputs = {"truth": f"{benchmark}:{folder}"}
    if options.init != "fresh":
        inputs["init"] = absolute_model(options.init, "--init")
    unlabelled, kept = None, {}
    if options.labels is not None:
        inputs["labels"] = absolute(options.labels, "--labels")
        where = None if options.where is None else PairFilter(options.where)
        unlabelled = replace(PairSet.open(inputs["labels"]), max_spread=options.max_spread, where=where)
        kept = kept_pairs(unlabelled)
    with training_run("finetune", recipe, options, recipes(), inputs) as run:
        pairs = truth_set(benchmark, folder, run_root, to_learn_from=True)
        run.dataset("truth", inputs["truth"], pairs.label_set, "training")
        sources = [
            Source(
                pairs=pairs,
                transformation=options.augmentation,
                objective=options.objective,
                share=options.label_share,
            )
        ]
        if unlabelled is not None:
            run.log(0, kept)
            run.dataset("labels", inputs["labels"], unlabelled.label_set, "training")
            run.link("labels", unlabelled.description.provenance.get("run_id"))
            sources.append(
                Source(
                    pairs=unlabelled,
                    transformation=options.challenge,
                    objective=options.student,
                    weight=options.unlabelled_weight,
                )
            )
        start = starting_point(inputs.get("init"), options.network)
        info = start.info
        provenance = {"stage": "finetune", "recipe": recipe, "truth": inputs["truth"], "run_id": run.run_id}
        if options.where is not None:
            provenance["where"] = options.where
        if info is not None:
            provenance |= {"init": info.digest, "generation": str(info.generation)}
            run.link("init", info.run_id)
        result = train(
            start,
            sources,
            options.training,
            judge=Judge(check=options.check, alarm=_NO_ALARM),
            run=StageRun(
                stage="finetune", uri=run.uri, run_id=run.run_id, root=run_root, provenance=provenance
            ),
        )
        return finish(run, result, "flow-finetuned")


def main(recipe: str, options: Finetune) -> None:
    connect()
    uri = finetune(recipe, options)
    print(f"fine-tuned: {uri}\nlook at it: {tracking.ui_command()}")


def recipes() -> dict[str, tuple[str, Finetune]]:
    """This job's options by recipe, and recipe:backbone."""
    return with_backbones(
        lambda recipe, network: Finetune(
            truth=tyro.MISSING,
            run_root=tyro.MISSING,
            init=tyro.MISSING,
            network=network,
            augmentation=recipe.augmentation,
            challenge=recipe.challenge,
            student=recipe.objective,
            training=recipe.finetune,
        )
    )


if __name__ == "__main__":
    run_recipe(main, recipes())
