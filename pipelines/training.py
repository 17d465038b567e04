"""How is a network trained on a cluster? Every stage calls `train`, with its objectives as arguments.

Ray Train starts the workers, see `pipelines.worker`, and starts them again from the last checkpoint when one
dies. Nothing draws random numbers once training has begun (crops and order are keyed by seed, epoch and
pair), so that the same step follows from the same checkpoint on any cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import ray.train
from ray.train.torch import TorchTrainer

from flowcore.hallucination import Transformation
from flowcore.networks import NetworkConfig, require_affordable
from flowcore.objectives import Objective
from pipelines import progress, worker
from pipelines.cluster import has_cluster
from pipelines.held_back import SCORE, HeldBack, Validation
from pipelines.models import StartingPoint, copy_model, vanishing_folder
from pipelines.pair_set import PairSet, one_of_each_size
from pipelines.room import TrainingRoom, num_nodes, resources, training_room
from pipelines.split import hold_back
from pipelines.storage import Folder, join
from pipelines.training_options import TrainingOptions
from pipelines.validation import Judge, TrainingStopped, score_of


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pairs of which every step takes a global batch, with what the network learns from them."""

    pairs: PairSet
    transformation: Transformation
    objective: Objective
    weight: float = 1.0
    """Weight of its loss among those of all sources."""
    share: float = 1.0
    """Share of its pairs to use, in (0, 1], the same ones in every run; held-back pairs don't count."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of the pairs must lie in (0, 1]")


class TrainingRun(Protocol):
    """The run that a training belongs to."""

    @property
    def stage(self) -> str:
        """Such as distill."""

    @property
    def uri(self) -> str:
        """Where MLflow records the run."""

    @property
    def run_id(self) -> str:
        """Its id there."""

    @property
    def root(self) -> str:
        """Folder or URI, shared by all nodes, in which the run has a folder of its own for checkpoints."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """What the model is made from; written into every checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a finished training leaves."""

    model: Path
    """The folder of the trained model, which goes with this process."""
    step: int
    """The step that the model comes from."""
    ended_at: int
    """The last step. With patience it comes before the planned one, a validation after the one that gave the
    verdict."""
    validation: Mapping[str, float]
    """The model's numbers on the held-back pairs."""
    judge: HeldBack
    """These pairs, to judge other models on."""

    @property
    def score(self) -> float:
        """See `score_of`."""
        return score_of(self.validation)


def train(
    start: StartingPoint,
    sources: Sequence[Source],
    options: TrainingOptions,
    *,
    judge: Judge,
    run: TrainingRun,
) -> Trained:
    """Trains on the cluster that Ray is connected to; returns the last checkpoint's model, with patience the
    best one's.

    A step adds up the losses of all sources. Pairs of the first one are held back for validation, unless the
    judge has pairs with truth. The same run continues from its last checkpoint. Raises FileNotFoundError if
    that is missing. Raises TrainingStopped if the loss isn't finite or the network collapsed; the last
    checkpoint before that stays.
    """
    _require_checkpoint_of_resumed(run)
    unmasked_steps = sources[0].objective.unmasked_steps
    if unmasked_steps > options.steps:
        raise ValueError(
            f"unmasked_steps {unmasked_steps} must be at most steps {options.steps}; lower "
            "--objective.unmasked-steps or raise --training.steps"
        )
    indices = [source.pairs.index() for source in sources]
    # Before hours of training: what is read back is checked so.
    require_affordable(start.network)
    _require_fitting_crops(start.network, sources, indices)
    have = resources()
    room = training_room(
        have,
        workers=options.workers,
        min_workers=options.min_workers,
        accelerator=options.accelerator,
        resize_seconds=options.resize_seconds,
    )
    validation = Validation(
        held_back=_held_back(judge, sources[0].pairs, indices[0], options, run.stage),
        tracking_uri=run.uri,
        run_id=run.run_id,
    )
    with progress.of_worker(run.stage, "step", options.steps) as reporter:
        assignment = worker.Assignment(
            start=start,
            sources=tuple(sources),
            options=options,
            judge=judge,
            validation=validation,
            validates_itself=room.validates_itself(gpus=int(have.get("GPU", 0)), nodes=num_nodes(have)),
            provenance=dict(run.provenance),
            reader_cpus=room.reader_cpus,
            reporter=reporter,
        )
        result = _fit(assignment, run, room)
    ended: worker.Ended = result.return_value
    checkpoint, facts = _chosen(result.best_checkpoints, ended, options)
    folder = vanishing_folder()
    copy_model(checkpoint, folder)
    return Trained(
        model=folder,
        step=facts[worker.STEP],
        ended_at=ended.step,
        # Ray Train may not know yet what the validation of the last checkpoint found.
        validation=ended.numbers if facts[worker.STEP] == ended.step else worker.numbers_of(facts),
        judge=validation.held_back,
    )


def _require_checkpoint_of_resumed(run: TrainingRun) -> None:
    """FileNotFoundError if the run has begun and its checkpoints aren't here; Ray Train would silently start
    over."""
    # Imports MLflow, which would cost Ray's other processes a second each: they import this module.
    from pipelines.tracking import Run

    recorded = Run.reopen(run.uri, run.run_id)
    folder = join(run.root, run.run_id)
    has_begun = recorded.has("train/loss") or recorded.has("validation/photometric")
    if has_begun and not Folder(folder).exists():
        raise FileNotFoundError(
            f"run {run.run_id} has left no checkpoint in {folder}; resume it with the --run-root that it was "
            "started with"
        )


def _require_fitting_crops(
    network: NetworkConfig, sources: Sequence[Source], indices: Sequence[pa.Table]
) -> None:
    """Tries the transformation on a pair of each size, so that a wrong crop ends the job before workers
    start."""
    multiple = network.build().multiple
    for source, index in zip(sources, indices, strict=True):
        for place in one_of_each_size(index):
            row = source.pairs.read(place)
            pair = source.transformation(source.pairs.decode(row), np.random.default_rng(0))
            height, width = pair.image1.shape[:2]
            if height % multiple or width % multiple:
                raise ValueError(
                    f"crop ({height}, {width}) must be a multiple of {multiple} px on each side, for this "
                    "network; set --challenge.crop where labels are learnt from, else --augmentation.crop"
                )


def _held_back(
    judge: Judge, pairs: PairSet, index: pa.Table, options: TrainingOptions, stage: str
) -> HeldBack:
    """The judge's pairs with truth, or pairs of a set with this index."""
    share = options.held_back_share
    if judge.truth is not None:
        pairs, index, share = judge.truth, judge.truth.index(), 1.0
    _, places = hold_back(index, pairs.folders, share, options.held_back_most)
    return HeldBack(pairs=pairs, places=places, check=judge.check, stage=stage)


_CLEANER = "PlacementGroupCleanerCallback"


class _Trainer(TorchTrainer):
    """Ray Train's, without processes that import for seconds, on cores that train, and have nothing to do.

    One hands out datasets, but each worker reads its own. One frees what was reserved for a training whose
    controller was killed, but an embedded Ray is there for one training and ends with its driver.
    """

    def _create_default_callbacks(self) -> list[Any]:
        idle = {"DatasetsCallback"} if has_cluster() else {"DatasetsCallback", _CLEANER}
        # Typed as an older Ray Train's.
        callbacks = cast(Any, super())._create_default_callbacks()
        return [each for each in callbacks if type(each).__name__ not in idle]


def _fit(assignment: worker.Assignment, run: TrainingRun, room: TrainingRoom) -> Any:
    """Runs the workers to their end; returns Ray Train's result."""
    options = assignment.options
    # Typed as an older Ray Train's.
    trainer = cast(Any, _Trainer)(
        worker.work,
        train_loop_config={"assignment": assignment},
        scaling_config=room.scaling,
        run_config=ray.train.RunConfig(
            name=run.run_id,
            storage_path=run.root,
            failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=options.keep_checkpoints,
                # The latest one is kept in any case.
                checkpoint_score_attribute=None if options.patience is None else SCORE,
                checkpoint_score_order="min",
            ),
        ),
        validation_config=ray.train.ValidationConfig(
            fn=cast(Any, assignment.validation), ray_remote_kwargs=room.validation()
        ),
    )
    return trainer.fit()


def _chosen(
    kept: Sequence[tuple[ray.train.Checkpoint, dict[str, Any]]],
    ended: worker.Ended,
    options: TrainingOptions,
) -> tuple[ray.train.Checkpoint, dict[str, Any]]:
    """The checkpoint that is the training's result, with what Ray Train knows of it; TrainingStopped if
    training was useless."""
    in_order = sorted(kept, key=lambda each: each[1][worker.STEP])
    if ended.stopped is not None:
        good = [checkpoint for checkpoint, facts in in_order if facts[worker.STEP] < ended.condemned]
        where = f"the last good checkpoint is {good[-1].path}" if good else "there is no good checkpoint"
        raise TrainingStopped(f"{ended.stopped} ({where})")
    if options.patience is None:
        return in_order[-1]
    return min(in_order, key=lambda each: float(each[1][SCORE]))
