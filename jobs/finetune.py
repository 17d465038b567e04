"""Fine-tunes a network with true flow, sparse or dense; on unlabelled pairs too if you like.

    python jobs/finetune.py demo --truth kitti2015:/data/kitti --run-root runs
        --init models:/flow-student@champion

With --labels, a folder that pseudolabel wrote, every step also learns from a batch of those pairs as the
student did (semi-supervised). --where and --max-spread select among these pairs, as in distill. --label-share
takes a part of the pairs with truth.

Of Flying Chairs with its split file, and of FlyingChairs2 with train/ and val/, the training pairs are learnt
from and evaluate judges the validation pairs. Of the other data sets evaluate judges every pair, also those
that were learnt from. Prints the URI of the network, which evaluate and predict take.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from flowcore.hallucination import Challenge
from flowcore.objectives import StudentObjective, SupervisedObjective
from jobs.command import run_training
from jobs.options import REQUIRED
from jobs.recipes import by_recipe
from jobs.stages import LabelledStage, TrainingStage, data_set_at


@dataclass(frozen=True, kw_only=True)
class Finetune(LabelledStage):
    """Options of finetune."""

    truth: str
    """The data set whose truth is learnt from, such as kitti2015:/data/kitti."""
    init: str | None = field()
    """The model to start from, such as models:/flow-student@champion; `fresh` takes fresh weights of the
    recipe's network."""
    augmentation: Challenge
    """What is done to the pairs with truth."""
    label_share: float = 1.0
    """The part of the pairs with truth to train on, above 0 and up to 1. A larger part contains a smaller
    one."""
    objective: SupervisedObjective = field(default_factory=SupervisedObjective)
    """What is learnt from the truth."""
    labels: str | None = None
    """Folder or URI that pseudolabel wrote, to learn from beside the truth as a student does."""
    challenge: Challenge
    """What is done to the pairs of --labels."""
    student: StudentObjective = field(default_factory=StudentObjective)
    """What is learnt from the pairs of --labels."""
    unlabelled_weight: float = 1.0
    """Weight of the loss on the pairs of --labels; that on the truth has weight 1."""

    common: ClassVar[tuple[str, ...]] = (*TrainingStage.common, "labels", "label_share")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truth is not REQUIRED:
            data_set_at(self.truth, "--truth")
        if self.where is not None and self.labels is None:
            raise ValueError(f"--where {self.where!r} is about pseudo-labels; give --labels too")


def finetune(stage: Finetune, recipe: str) -> str:
    """Runs the stage; returns the registered network's URI."""
    from pipelines.lineage import Made, lineage
    from pipelines.training import Source, train
    from pipelines.truth import truth_set
    from pipelines.validation import CollapseAlarm

    data_set = data_set_at(stage.truth, "--truth")
    start = stage.starting_point()
    labels = None if stage.labels is None else stage.open(stage.labels)
    made_from: dict[str, Made] = {"truth": str(data_set), "init": start}
    if labels is not None:
        made_from["labels"] = labels
    usual = recipes()[recipe][1]
    with lineage("finetune", recipe, stage, made_from, generation=start.generation, usual=usual) as run:
        truth = truth_set(data_set.name, Path(data_set.root), run.root, to_learn_from=True)
        run.reads("truth", str(data_set), truth, "training")
        # What the truth teaches can't collapse.
        judge = stage.judge(run, CollapseAlarm(max_occluded=1.0, min_flow_variance=0.0, must_improve=False))
        sources = [
            Source(
                pairs=truth,
                transformation=stage.augmentation,
                objective=stage.objective,
                share=stage.label_share,
            )
        ]
        if labels is not None:
            sources.append(
                Source(
                    pairs=labels,
                    transformation=stage.challenge,
                    objective=stage.student,
                    weight=stage.unlabelled_weight,
                )
            )
        trained = train(start, sources, stage.training, judge=judge, run=run)
        return run.register(trained, "flow-finetuned")


def recipes() -> dict[str, tuple[str, Finetune]]:
    """This job's options by recipe, and recipe:network."""
    return by_recipe(
        Finetune,
        network="network",
        augmentation="augmentation",
        challenge="challenge",
        check="check",
        training="finetune",
        student="tuned_objective",
    )


if __name__ == "__main__":
    run_training(finetune, recipes(), "fine-tuned")
