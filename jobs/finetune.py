"""Fine-tunes a network with true flow.

    python jobs/finetune.py demo --truth kitti2015:/data/kitti --run-root runs \\
        --init models:/flow-student@champion

With --labels, a folder that pseudolabel wrote, every step also learns from a batch of those pairs as the
student did (semi-supervised). --where and --max-spread select among these pairs, as in distill. --label-share
takes a part of the pairs with truth.

Of Flying Chairs with its split file, and of FlyingChairs2 with train/ and val/, the training pairs are learnt
from and evaluate judges the validation pairs. Of the other data sets evaluate judges every pair, also those
that were learnt from. Prints the URI of the network, which evaluate and predict take.
"""

from pathlib import Path

from jobs.command import run_training
from jobs.recipes import by_recipe
from jobs.stages import Finetune
from pipelines.cluster import connect


def finetune(stage: Finetune, recipe: str) -> str:
    """Runs the stage; returns the registered network's URI."""
    data_set = stage.data_set()
    start = stage.starting_point()
    labels = None if stage.labels is None else stage.open(stage.labels)
    connect()
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines.lineage import Made, lineage
    from pipelines.training import Source, train
    from pipelines.truth import truth_set
    from pipelines.validation import CollapseAlarm

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
        augmentation="tuned_augmentation",
        challenge="challenge",
        check="check",
        training="finetune",
        objective="supervised",
        student="tuned_objective",
    )


if __name__ == "__main__":
    run_training(finetune, recipes(), "fine-tuned")
