"""Trains the teacher: a network that learns optical flow from unlabelled videos alone.

    python jobs/train_teacher.py demo --videos my_videos --run-root runs

The frame pairs of the videos are written to Parquet under the run root once, and read from there in every
epoch. A recipe may name another network, such as demo:raft_small. Prints the URI of the teacher, which
pseudolabel takes.
"""

import hashlib

from jobs.command import run_training
from jobs.recipes import by_recipe
from jobs.stages import TrainTeacher
from pipelines.cluster import connect
from pipelines.collection import Collection
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.pair_set import PairSet
from pipelines.storage import join


def train_teacher(stage: TrainTeacher, recipe: str) -> str:
    """Runs the stage; returns the registered teacher's URI."""
    start = stage.starting_point()
    start.require(stage.network)
    collection = Collection.find(stage.videos)
    connect()
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines import progress
    from pipelines.lineage import lineage
    from pipelines.training import Source, train
    from pipelines.validation import CollapseAlarm

    with lineage(
        "train_teacher",
        recipe,
        stage,
        {"videos": collection.place, "init": start},
        generation=start.generation,
        usual=recipes()[recipe][1],
    ) as run:
        made = hashlib.blake2b(repr((collection.place, stage.clips)).encode(), digest_size=6).hexdigest()
        location = join(run.root, f"pairs-{made}")
        with progress.of_labelling("frame pairs") as show:
            written = write_pairs(collection, location, stage.clips, LabellingOptions(), on_progress=show)
        run.summary(written.metrics("pairs"))
        written.require_all_read()
        pairs = PairSet.open(location)
        run.reads("videos", collection.place, pairs, "training")
        source = Source(pairs=pairs, transformation=stage.augmentation, objective=stage.objective)
        judge = stage.judge(run, CollapseAlarm())
        return run.register(train(start, [source], stage.training, judge=judge, run=run), "flow-teacher")


def recipes() -> dict[str, tuple[str, TrainTeacher]]:
    """This job's options by recipe, and recipe:network."""
    return by_recipe(
        TrainTeacher,
        clips="clips",
        network="network",
        augmentation="augmentation",
        check="check",
        training="teacher",
        objective="teacher_objective",
    )


if __name__ == "__main__":
    run_training(train_teacher, recipes(), "teacher")
