"""Trains the teacher: a network that learns optical flow from unlabelled videos alone.

    python jobs/train_teacher.py demo --videos my_videos --run-root runs

The frame pairs of the videos are written to Parquet under the run root once, and read from there in every
epoch. A recipe may name another backbone, such as demo:raft_small. Prints the URI of the teacher, which
pseudolabel takes. With --resume RUN_ID a run that was killed goes on from its last checkpoint.
"""

import hashlib
from dataclasses import dataclass, field

import tyro

from flowcore.hallucination import Challenge
from flowcore.networks import AnyNetworkConfig
from flowcore.objectives import TeacherObjective
from flowcore.video import ClipOptions
from jobs.command import finish, run_recipe, training_run, validation_set
from jobs.recipes import with_backbones
from pipelines import tracking
from pipelines.checkpoints import absolute_model, fetch_model, load_weights_into
from pipelines.cluster import connect
from pipelines.collection import absolute_collection
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.pair_set import PairSet
from pipelines.progress import video_bar
from pipelines.storage import absolute, join
from pipelines.training import Source, Training, TrainingOptions, train
from pipelines.truth import truth_location


@dataclass(frozen=True, kw_only=True)
class TrainTeacher:
    """Options of train_teacher."""

    videos: str
    """Folder (searched through), glob, video, list file or URI; or a data set's unpacked folder, as
    chairs:<folder>, sintel:<folder>, kitti2012:<folder> or kitti2015:<folder>."""
    run_root: str
    """Folder or URI, shared by all nodes, for frame pairs, checkpoints and models."""
    clips: ClipOptions
    """How videos become frame pairs."""
    network: AnyNetworkConfig
    """The network, and later the student's; its options are those of the backbone."""
    augmentation: Challenge
    """The window of each frame that a training step sees, and how it is varied."""
    training: TrainingOptions
    objective: TeacherObjective = field(default_factory=TeacherObjective)
    init: str | None = None
    """A model of the same network to start from, such as one trained on rendered scenes; without, fresh
    weights. Videos that hardly move teach fresh weights little but to answer that nothing does."""
    validate_on: str | None = None
    """<benchmark>:<its unpacked folder>, such as sintel:/data/MPI-Sintel, whose truth judges the network
    while it trains, in place of the held-back pairs."""
    resume: str | None = None
    """The id of an MLflow run of this job to go on with."""


def train_teacher(recipe: str, options: TrainTeacher) -> str:
    """Runs the stage; returns the registered teacher's URI."""
    videos, run_root = (
        absolute_collection(options.videos, "--videos"),
        absolute(options.run_root, "--run-root"),
    )
    inputs = {"videos": videos}
    judge = None if options.validate_on is None else truth_location(options.validate_on, "--validate-on")
    network = options.network.build()
    info = None
    if options.init is not None:
        inputs["init"] = absolute_model(options.init, "--init")
        info = load_weights_into(network, fetch_model(inputs["init"]))
    provenance = {"init": info.digest, "generation": str(info.generation)} if info else {"generation": "0"}
    with training_run("train_teacher", recipe, options, recipes(), inputs) as run:
        validation = validation_set(run, judge, run_root)
        made_from = hashlib.blake2b(repr((videos, options.clips)).encode(), digest_size=6).hexdigest()
        location = join(run_root, f"pairs-{made_from}")
        with video_bar("frame pairs") as draw:
            summary = write_pairs(videos, location, options.clips, LabellingOptions(), on_progress=draw)
        run.summary(summary.metrics("pairs"))
        run.link("init", info.run_id if info else None)
        run.tag("generation", provenance["generation"])
        pairs = PairSet.open(location)
        run.dataset("videos", videos, pairs.label_set, "training")
        result = train(
            Training(
                stage="train_teacher",
                validation=validation,
                network=options.network,
                initial=network.state_dict() if info else None,
                sources=(
                    Source(
                        pairs=pairs,
                        transformation=options.augmentation,
                        objective=options.objective,
                    ),
                ),
                options=options.training,
                provenance={
                    "stage": "train_teacher",
                    "recipe": recipe,
                    "videos": videos,
                    "pair_set": pairs.label_set,
                    "run_id": run.run_id,
                    **provenance,
                },
                tracking_uri=run.uri,
                run_id=run.run_id,
            ),
            run_root,
        )
        return finish(run, result, "flow-teacher")


def main(recipe: str, options: TrainTeacher) -> None:
    connect()
    uri = train_teacher(recipe, options)
    print(f"teacher: {uri}\nlook at it: {tracking.ui_command()}")


def recipes() -> dict[str, tuple[str, TrainTeacher]]:
    """This job's options by recipe, and recipe:backbone."""
    return with_backbones(
        lambda recipe, network: TrainTeacher(
            videos=tyro.MISSING,
            run_root=tyro.MISSING,
            clips=recipe.clips,
            network=network,
            augmentation=recipe.augmentation,
            training=recipe.teacher,
        )
    )


if __name__ == "__main__":
    run_recipe(main, recipes())
