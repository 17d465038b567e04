"""Distills the student: the teacher's network, trained on harder crops of its labels.

    python jobs/distill.py demo --labels my_labels --run-root runs

The student starts from the weights of the teacher that made the labels. --init names another model, or
`fresh` for the recipe's network with fresh weights; then demo:raft_small names another network. Labels of
import_labels need --init, because nobody knows their teacher. Prints the URI of the student, which evaluate
and predict take.

    python jobs/distill.py demo --labels my_labels --run-root runs \\
        --where "occluded < 0.6 and photometric < 4"

--where selects the pairs to learn from and to validate on. A champion that other pairs judged is judged on
these before the student takes its place.
"""

from jobs.command import run_training
from jobs.recipes import by_recipe
from jobs.stages import Distill
from pipelines.cluster import connect


def distill(stage: Distill, recipe: str) -> str:
    """Runs the stage; returns the registered student's URI."""
    labels = stage.open(stage.labels)
    start = stage.starting_point_for(labels, recipe)
    connect()
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines.lineage import lineage
    from pipelines.training import Source, train
    from pipelines.validation import CollapseAlarm

    # Labels alone may teach a network whose own two flows don't agree yet.
    alarm = CollapseAlarm() if stage.objective.learns_from_frames else CollapseAlarm(max_occluded=1.0)
    with lineage(
        "distill",
        recipe,
        stage,
        {"labels": labels, "init": start},
        generation=labels.generation + 1,
        usual=recipes()[recipe][1],
    ) as run:
        source = Source(pairs=labels, transformation=stage.challenge, objective=stage.objective)
        trained = train(start, [source], stage.training, judge=stage.judge(run, alarm), run=run)
        return run.register(trained, "flow-student")


def recipes() -> dict[str, tuple[str, Distill]]:
    """This job's options by recipe, and recipe:network."""
    return by_recipe(
        Distill,
        network="network",
        challenge="challenge",
        check="check",
        training="student",
        objective="student_objective",
    )


if __name__ == "__main__":
    run_training(distill, recipes(), "student")
