"""How is a network trained on a cluster? One loop for every stage; the objective is the argument.

Ray Train starts the workers and starts them again from the last checkpoint when one dies; each worker feeds
itself from the planned order of `pipelines.feed`, so that a checkpoint needs no more than the step to know
its place in the data. Nothing in the loop draws random numbers (crops and order are keyed by seed, epoch and
pair), so a checkpoint holds no random state either.

Losses are normalised over the global batch: the workers add up each term's sum and count before they divide.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import PreemptionInfo, ReportedCheckpoint, ReportedCheckpointStatus
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowcore.hallucination import Transformation
from flowcore.networks import BidirectionalFlow, FlowNetwork, NetworkConfig
from flowcore.objectives import Objective, Outcome
from flowcore.pairs import Batch
from flowcore.shapes import Image
from pipelines import progress
from pipelines.checkpoints import (
    copy_model,
    load_training_state,
    load_weights_into,
    save_model,
    save_training_state,
    vanishing_folder,
)
from pipelines.cluster import Accelerator, TrainingRoom, resources, training_room
from pipelines.feed import Plan, batches, hold_back, part_of
from pipelines.pair_set import PairSet, one_of_each_size
from pipelines.storage import Folder, join, patient
from pipelines.validation import SCORE, CollapseAlarm, TrainingStopped, Validation, score_of

if TYPE_CHECKING:
    from pipelines.tracking import Run


_Shape = Literal["constant", "linear", "cosine"]
Schedule = tuple[tuple[float, float, _Shape], ...]
"""Of the learning rate: phases (until, factor, shape), see TrainingOptions.schedule."""
_NOTICE_STEPS = 10
"""Steps between two questions whether a node is about to be taken away: each makes the workers wait for each
other, some milliseconds, and Ray itself asks every 5 seconds."""
KEPT_FOLDER = "kept"
"""In a run's folder: the checkpoints of `keep_every`."""
_STEP = "step"
"""What Ray Train knows of a checkpoint before its validation, beside the worst SCORE."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long, how fast and on how many workers a network is trained."""

    steps: int
    """Optimiser updates."""
    unmasked_steps: int = 0
    """The first steps count occluded pixels too. From random weights the check can flag everything; the
    masked loss is then empty and the network stays there."""
    global_batch: int = 4
    """Pairs in a step, over all workers."""
    learning_rate: float = 1e-4
    """Adam's, which the schedule multiplies."""
    schedule: Schedule = ((1.0, 1.0, "constant"),)
    """Phases of the learning rate: until which share of the steps, its factor, and the shape. `constant` has
    the factor at once; `linear` and `cosine` go to it from the factor before, at first 0. So 0.1 1 linear 1 0
    cosine rises over the first tenth and falls to 0, and 0.5 1 constant 1 0.5 constant halves once."""
    clip_norm: float = 1.0
    """Gradients longer than this are scaled down to it."""
    ema_decay: float = 0.0
    """How much of the weights' moving average a step keeps, less in the first ones. The average is then what
    is validated, stored and registered. 0: the weights themselves."""
    max_skipped: int = 10
    """Steps that may be left out because their loss or gradient isn't finite; one more ends the training. The
    run's artifacts name their pairs, in `skipped`."""
    workers: int = 1
    """Training processes, each with a GPU or a CPU of its own."""
    min_workers: int | None = None
    """Fewest of them. Training then begins with as many as there is room for, goes on with those that are
    left where a node is lost, and from its last checkpoint with more where one comes; global batches,
    schedule and pairs stay the same. None: always `workers`."""
    accumulate: int = 1
    """In how many parts, one after the other, a worker takes its share of a global batch: less memory for the
    same gradient. More than one costs a second forward pass, since a loss is known when its pixels are
    counted."""
    checkpoint_activations: bool = False
    """Keep less between a step's two passes, and compute it again: less memory and the same gradient, for
    about a second forward pass. For large crops or the recurrent networks; FlowNet has little to gain."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the convolutions in training. What is compared, the flow and the losses stay float32, and so does
    validation. With float16 the loss is scaled up; where a gradient overflows, the step is done again with
    half the scale."""
    channels_last: bool = False
    """Let the channels of a pixel lie side by side in memory, which GPUs' half precision likes."""
    compiled: bool = False
    """torch.compile the network: some minutes at the start, for less time a step. On CPUs it needs a C++
    compiler on every node."""
    accelerator: Accelerator = "auto"
    """`auto`: GPUs where the cluster has any now. `gpu` also waits for nodes that an autoscaler has yet to
    start."""
    readers: int = 2
    """Processes that read and transform pairs for each worker."""
    seed: int = 0
    """Decides fresh weights, the order of the pairs and every crop."""
    log_every: int = 20
    validate_every: int = 200
    """Steps between validations on the held-back pairs, each of a checkpoint that is made for it. Training
    goes on meanwhile, and waits for a validation where the next one is due before it ended. It takes a GPU
    where the cluster has one more than workers, else half the cores of a node."""
    patience: int | None = None
    """Validations in a row that may be no better than the best one before training ends early; the model is
    then the best one's, see `score_of`. None: trains to the last step, whose model it is."""
    held_back_share: float = 0.05
    held_back_most: int = 64
    """The share of pairs that is held back for validation, and the most of them."""
    keep_checkpoints: int = 3
    """How many of the latest ones are kept; with `patience` of the best ones, beside the latest. 2 or more:
    the last one may be found to have collapsed."""
    keep_every: int | None = None
    """Keep the checkpoint of every step that is a multiple of this too, in `kept` in the run's folder, to
    look back on; a multiple of validate_every."""
    max_failures: int = 3
    """Dead workers to recover from before giving up. Nodes that are taken away with notice, as spot machines
    are, don't count."""

    def __post_init__(self) -> None:
        for name in (
            *("steps", "global_batch", "workers", "readers", "log_every", "validate_every"),
            *("held_back_most", "accumulate"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.keep_checkpoints < 2:
            raise ValueError(f"keep_checkpoints {self.keep_checkpoints} must be at least 2")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} must be above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} must lie in [0, 1)")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience {self.patience} must be at least 1, or None")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.validate_every):
            raise ValueError(
                f"keep_every {self.keep_every} must be a multiple of validate_every {self.validate_every}"
            )
        if self.max_skipped < 0:
            raise ValueError(f"max_skipped {self.max_skipped} must not be below 0")
        if not 0 <= self.unmasked_steps <= self.steps:
            raise ValueError(f"unmasked_steps {self.unmasked_steps} must lie in 0..steps, {self.steps}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"min_workers {self.min_workers} must lie in 1..workers, {self.workers}")
        if self.global_batch < self.workers * self.accumulate:
            raise ValueError(
                f"global_batch {self.global_batch} must be at least workers {self.workers} times accumulate "
                f"{self.accumulate}, so that each has a pair"
            )
        for name, known in (
            ("accelerator", ("auto", "gpu", "cpu")),
            ("precision", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} must be one of {', '.join(known)}")
        ends = [until for until, _, _ in self.schedule]
        if not ends or ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1:
            raise ValueError(
                f"schedule {self.schedule} must have phases that end later and later, the last at 1"
            )
        if any(factor < 0 or shape not in get_args(_Shape) for _, factor, shape in self.schedule):
            raise ValueError(
                f"schedule {self.schedule} must have factors of at least 0 and shapes of "
                f"{', '.join(get_args(_Shape))}"
            )
        if not 0 < self.held_back_share < 1:
            raise ValueError(f"held_back_share {self.held_back_share} must lie between 0 and 1")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        begin, before = 0, 0.0
        for until, factor, shape in self.schedule:
            end = round(until * self.steps)
            if step < end:
                done = _done_of_phase(shape, step - begin, end - begin)
                return self.learning_rate * (before + (factor - before) * done)
            begin, before = end, factor
        return self.learning_rate * before


def _done_of_phase(shape: _Shape, step: int, steps: int) -> float:
    """How far the factor is from the one before to the phase's own. A line ends on its factor, so that a rise
    from 0 begins above it; a cosine begins on the one before, so that a fall to 0 ends above it."""
    if shape == "linear":
        return (step + 1) / steps
    return 1.0 if shape == "constant" else (1 - math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pairs of which every step takes a global batch, and what the network learns from them."""

    pairs: PairSet
    transformation: Transformation
    objective: Objective
    weight: float = 1.0
    """Of its loss among those of all sources."""
    share: float = 1.0
    """The part of its pairs that is used, the same ones in every run; held-back pairs don't count."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of the pairs must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that the workers need to know."""

    stage: str
    network: NetworkConfig
    initial: dict[str, Tensor] | None
    """The weights to start from, or None for fresh ones. Not a folder: the workers may be other machines."""
    sources: tuple[Source, ...]
    """One for teacher and student; with several, a step adds up their losses. Pairs of the first one are held
    back for validation."""
    validation: PairSet | None = None
    """Pairs with truth to validate on, at most `held_back_most` of them, in place of those."""
    options: TrainingOptions
    provenance: dict[str, str]
    """Written into every checkpoint: what the model was made from."""
    tracking_uri: str
    run_id: str
    """The MLflow run that this is, and where it is recorded."""
    alarm: CollapseAlarm = field(default_factory=CollapseAlarm)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a finished training leaves."""

    model: Path
    """The folder of the trained model, which goes with this process."""
    step: int
    """Whose model it is."""
    ended_at: int
    """The last step; before the planned one where validation got no better, which is known a validation
    later."""
    validation: dict[str, float]
    """Of the model, on the held-back pairs."""
    judge: Validation
    """What validated it."""

    @property
    def score(self) -> float:
        """See `score_of`."""
        return score_of(self.validation)


def train(training: Training, run_root: str) -> TrainingResult:
    """Trains on the cluster that Ray is connected to, and returns the last checkpoint's model.

    The state of the run is kept in `run_root`/<MLflow run id>; the same run continues from its last
    checkpoint. Raises FileNotFoundError where that isn't there, and TrainingStopped when the loss is not
    finite or the network collapsed; the last checkpoint before that stays.
    """
    options = training.options
    run = _run_of(training)
    if run.has("train/loss") or run.has("validation/photometric"):
        # without its state Ray Train would silently begin anew
        state = join(run_root, training.run_id)
        if not Folder(state).exists():
            raise FileNotFoundError(
                f"run {training.run_id} has left no checkpoint in {state}; resume it with the --run-root "
                "that it was started with"
            )
    indices = [source.pairs.index() for source in training.sources]
    _require_fitting_crops(training, indices)
    have = resources()
    room = training_room(
        have, workers=options.workers, min_workers=options.min_workers, accelerator=options.accelerator
    )
    validation = _validation(training, indices[0])
    with progress.shown(training.stage, options.steps, "step") as reporter:
        # Typed as an older Ray Train's.
        result = cast(Any, ray.train.torch.TorchTrainer)(
            _work,
            train_loop_config={
                "training": training,
                "validation": validation,
                "room": room,
                "reporter": reporter,
            },
            scaling_config=room.scaling,
            run_config=ray.train.RunConfig(
                name=training.run_id,
                storage_path=run_root,
                failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=options.keep_checkpoints,
                    # The latest one is kept in any case.
                    checkpoint_score_attribute=None if options.patience is None else SCORE,
                    checkpoint_score_order="min",
                ),
            ),
            validation_config=ray.train.ValidationConfig(
                fn=cast(Any, validation), ray_remote_kwargs=room.validation(int(have.get("GPU", 0)))
            ),
        ).fit()
    outcome = result.return_value
    kept = sorted(result.best_checkpoints, key=lambda each: each[1][_STEP])
    if outcome["stopped"] is not None:
        good = [checkpoint for checkpoint, facts in kept if facts[_STEP] < outcome["condemned"]]
        where = f"the last good checkpoint is {good[-1].path}" if good else "there is no good checkpoint"
        raise TrainingStopped(f"{outcome['stopped']} ({where})")
    checkpoint, facts = kept[-1]
    if options.patience is not None:
        checkpoint, facts = min(kept, key=lambda each: each[1][SCORE])
    numbers = outcome["validation"] if facts[_STEP] == outcome["step"] else _numbers(facts)
    folder = vanishing_folder()
    copy_model(checkpoint, folder)
    return TrainingResult(
        model=folder,
        step=facts[_STEP],
        ended_at=outcome["step"],
        validation=numbers,
        judge=validation,
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What a validation found, of all that Ray Train knows of its checkpoint."""
    return {name: value for name, value in metrics.items() if name not in (_STEP, SCORE)}


def _validation(training: Training, index: pa.Table) -> Validation:
    """index: that of the first source."""
    pairs, share = training.sources[0].pairs, training.options.held_back_share
    if training.validation is not None:
        pairs, index, share = training.validation, training.validation.index(), 1.0
    _, held_back = hold_back(index, share, training.options.held_back_most)
    return Validation(
        stage=training.stage,
        pairs=pairs,
        held_back=held_back,
        tracking_uri=training.tracking_uri,
        run_id=training.run_id,
    )


def _run_of(training: Training) -> "Run":
    # Brings MLflow, which would cost Ray's other processes a second each: they import this module.
    from pipelines.tracking import Run

    return Run.reopen(training.tracking_uri, training.run_id)


def _require_fitting_crops(training: Training, indices: Sequence[pa.Table]) -> None:
    """Tries the transformation on a pair of each size, so that a wrong crop ends the job before workers
    start."""
    multiple = training.network.build().multiple
    for source, index in zip(training.sources, indices, strict=True):
        for place in one_of_each_size(index):
            row = source.pairs.read(place)
            pair = source.transformation(source.pairs.decode(row), np.random.default_rng(0))
            height, width = pair.image1.shape[:2]
            if height % multiple or width % multiple:
                raise ValueError(
                    f"crop ({height}, {width}) must be a multiple of {multiple} px on each side, for this "
                    "network"
                )


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """One worker's whole life; returns what the driver needs to know, the same on every worker."""
    return _Worker(config["training"], config["validation"], config["room"], config["reporter"]).run()


class _Worker:
    def __init__(
        self, training: Training, validate: Validation, room: TrainingRoom, reporter: progress.Reporter
    ) -> None:
        self.room = room
        self.training = training
        self.validate = validate
        self.reporter = reporter
        self.options = training.options
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // context.get_local_world_size()))
        self.plans: list[Plan] = []
        for source in training.sources:
            share, most = self.options.held_back_share, self.options.held_back_most
            rows, _ = hold_back(source.pairs.index(), share, most)
            rows = part_of(rows, source.share)
            self.plans.append(
                Plan(index=rows, global_batch=self.options.global_batch, seed=self.options.seed)
            )
        self._plan_digests = [
            f"{source.pairs.label_set} {plan.digest()}"
            for source, plan in zip(self.training.sources, self.plans, strict=True)
        ]
        self.network = self._initial_network().to(self.device)
        self.network.checkpoints_activations = self.options.checkpoint_activations
        if self.options.channels_last:
            cast(Any, self.network).to(memory_format=torch.channels_last)
        self.average = (
            AveragedModel(self.network, multi_avg_fn=self._average) if self.options.ema_decay else None
        )
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.options.learning_rate, betas=(0.9, 0.999)
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.options.precision == "float16")
        self.step = 0
        self.skipped = 0
        self.notice: PreemptionInfo | None = None
        self.judged = -1
        """The step of the checkpoint whose validation was looked at last."""
        self.condemned = math.inf
        """The step of one that a validation found useless."""
        self.first_validation: dict[str, float] | None = None
        self.validation: dict[str, float] = {}
        self.best = math.inf
        self.not_better = 0
        self.log = _run_of(training) if self.rank == 0 else None
        self._resume()
        parallel = ray.train.torch.prepare_model(self.network, move_to_device=False)
        self.parallel: Callable[..., BidirectionalFlow] = (
            torch.compile(parallel) if self.options.compiled else parallel
        )

    def _initial_network(self) -> FlowNetwork:
        torch.manual_seed(self.options.seed)
        network = self.training.network.build()
        if self.training.initial is not None:
            network.load_state_dict(self.training.initial)
        return network

    @property
    def result(self) -> FlowNetwork:
        """What the training makes: the network or its average."""
        return self.network if self.average is None else cast(FlowNetwork, self.average.module)

    def _average(self, averages: Any, weights: Any, _number: Any) -> None:
        # Fresh weights would be in the average for long: it begins with the mean of few steps.
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(averages, weights, _number)

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            self._restore(self._load(checkpoint))
        if self.log is not None and (last := self.log.last_step("train/loss")) > 0:
            # at the step that was lost last, since more than one restart may begin at the same checkpoint
            self.log.log(last, {"train/steps_done_again": max(0, last - self.step)})

    def _restore(self, state: dict[str, Any]) -> None:
        if state["plans"] != self._plan_digests:
            raise ValueError(
                "the run began with other pairs, other labels of them, another global_batch or another seed; "
                "resume it with the same videos or labels, --where and options, or start a new one"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped = state["step"], state["skipped"]
        self.judged, self.first_validation = state["judged"], state["first_validation"]
        self.best, self.not_better = state["best"], state["not_better"]

    @patient
    def _load(self, checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
        """Takes the checkpoint's weights; gives the rest of the state."""
        with checkpoint.as_directory() as folder:
            load_weights_into(self.result, Path(folder))
            state = load_training_state(Path(folder))
        weights = state["weights"]
        if self.average is not None:
            # A run that had no average begins one.
            self.average.n_averaged.fill_(int(bool(weights)))
            weights = weights or self.result.state_dict()
        if weights:
            self.network.load_state_dict(weights)
        return state

    def run(self) -> dict[str, Any]:
        """Trains from where the worker stands to the last step, or to where going on is useless."""
        options = self.options
        stopped = None
        try:
            if ray.train.get_checkpoint() is None:
                self._checkpoint()
            feeds = [
                batches(
                    source.pairs,
                    plan,
                    source.transformation,
                    start=self.step,
                    stop=options.steps,
                    rank=self.rank,
                    world_size=self.world_size,
                    readers=options.readers,
                    reader_cpus=self.room.reader_cpus,
                    device=self.device,
                )
                for source, plan in zip(self.training.sources, self.plans, strict=True)
            ]
            window = _Window()
            while self.step < options.steps and not self._is_out_of_patience:
                window.begin_waiting()
                step_batches = [next(feed) for feed in feeds]
                window.end_waiting()
                window.add(self._update(step_batches), options.global_batch * len(feeds))
                self.step += 1
                is_stored = False
                last = self.step == options.steps
                if self.step % options.log_every == 0 or last:
                    means = window.means()
                    logged = {**means, "skipped_steps": self.skipped, "workers": self.world_size}
                    self._log({f"train/{key}": value for key, value in logged.items()})
                    if self.rank == 0:
                        self.reporter.report(self.step, loss=means.get("loss", math.nan))
                    window = _Window()
                if self.step % options.validate_every == 0 or last:
                    self._judge()
                    if not self._is_out_of_patience:
                        self._checkpoint()
                    is_stored = True
                if self.step % _NOTICE_STEPS == 0 and self._is_news() and not is_stored:
                    self._checkpoint(is_validated=False)
            self._judge()
        except TrainingStopped as reason:
            # every worker sees the same global numbers, so that every worker stops here, and none is started
            # again
            stopped = str(reason)
        return {
            "stopped": stopped,
            "step": self.step,
            "condemned": self.condemned,
            "validation": self.validation,
        }

    def _judge(self) -> None:
        """Waits for the validation that is under way, and raises TrainingStopped where it says so."""
        began = time.monotonic()
        reported = [
            each
            for each in ray.train.get_all_reported_checkpoints()
            if each.status is not ReportedCheckpointStatus.COMMITTED and each.metrics[_STEP] > self.judged
        ]
        if reported:
            self._log({"train/waiting_for_validation_seconds": time.monotonic() - began})
        for each in sorted(reported, key=lambda each: each.metrics[_STEP]):
            self.judged = each.metrics[_STEP]
            self.validation = self._validation_of(each)
            self.condemned = self.judged
            if not self.validation:
                raise TrainingStopped(
                    f"the flow on held-back pairs is not finite at step {self.judged}; lower learning_rate"
                )
            if self.judged > self.options.unmasked_steps:
                self.training.alarm.check(self.validation, self.first_validation)
            self.condemned = math.inf
            if self.judged == 0:
                self.first_validation = self.validation if self.training.initial is None else None
                continue
            score = score_of(self.validation)
            self.not_better = 0 if score < self.best else self.not_better + 1
            self.best = min(self.best, score)

    def _validation_of(self, reported: ReportedCheckpoint) -> dict[str, float]:
        """Where its task failed it is done here, so that its error is the training's."""
        if reported.status is not ReportedCheckpointStatus.VALIDATION_FAILED:
            return _numbers(reported.metrics)
        mine = self.validate(reported.checkpoint, reported.metrics[_STEP]) if self.rank == 0 else None
        return cast(dict[str, float], broadcast_from_rank_zero(mine))

    @property
    def _is_out_of_patience(self) -> bool:
        return self.options.patience is not None and self.not_better >= self.options.patience

    def _is_news(self) -> bool:
        """Whether a node with a worker is about to be taken away, and wasn't when last asked."""
        before, self.notice = self.notice, ray.train.get_preemption_info()
        return self.notice is not None and self.notice != before

    def _update(self, step_batches: Sequence[Batch]) -> dict[str, float]:
        """One optimiser step; returns the global loss and what is watched, averaged over the global batch;
        nothing for a step that is left out."""
        rate = self.options.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = list(
            zip(*(split_batch(batch, self.options.accumulate) for batch in step_batches), strict=True)
        )
        with torch.set_grad_enabled(len(parts) == 1):
            outcome = added_outcomes([self._outcome(part) for part in parts])
        counts, facts = global_facts(outcome, self.world_size, self.options.global_batch)
        # Every worker sees the same global numbers, and skips the same steps.
        if not math.isfinite(facts["loss"]):
            self._skip(f"the loss of step {self.step} is {facts['loss']}")
            return {}
        self.optimizer.zero_grad()
        # Gradients are averaged over the workers once, with the last part.
        alone = getattr(self.parallel, "no_sync", nullcontext)
        for number, part in enumerate(parts, start=1):
            with alone() if number < len(parts) else nullcontext():
                mine = outcome if len(parts) == 1 else self._outcome(part)
                self.scaler.scale(global_loss(mine, counts, self.world_size)).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        scale = self.scaler.get_scale()
        if not torch.isfinite(norm):
            self.scaler.update()
            if 1 < self.scaler.get_scale() < scale:
                return self._update(step_batches)
            self._skip(f"the gradient of step {self.step} is not finite")
            return {}
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        scaled = {"loss_scale": scale} if self.scaler.is_enabled() else {}
        return {**facts, **scaled, "learning_rate": rate, "gradient_norm": float(norm)}

    def _estimate(self, image1: Image, image2: Image) -> BidirectionalFlow:
        precision = getattr(torch, self.options.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            return self.parallel(image1, image2)

    def _outcome(self, part: Sequence[Batch]) -> Outcome:
        """Of a batch of each source: the terms of all, what is watched of the first."""
        masked = self.step >= self.options.unmasked_steps
        outcomes = [
            source.objective(self._estimate, batch, masked=masked)
            for source, batch in zip(self.training.sources, part, strict=True)
        ]
        terms = [
            replace(term, weight=source.weight * term.weight)
            for source, outcome in zip(self.training.sources, outcomes, strict=True)
            for term in outcome.terms
        ]
        return Outcome(terms=terms, watched=outcomes[0].watched)

    def _skip(self, reason: str) -> None:
        self.skipped += 1
        if self.log is not None:
            pairs = [plan.pair_ids(self.step) for plan in self.plans]
            self.log.document(f"skipped/step-{self.step:08d}.json", {"reason": reason, "pair_ids": pairs})
        if self.skipped > self.options.max_skipped:
            raise TrainingStopped(
                f"{reason}, and max_skipped {self.options.max_skipped} such steps were left out before it; "
                "lower learning_rate or clip_norm, or look at the pairs, which skipped in its artifacts names"
            )

    def _log(self, values: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.log(self.step, values)

    def _checkpoint(self, *, is_validated: bool = True) -> None:
        """Every worker reports; the first one's folder is the checkpoint."""
        metrics = {_STEP: self.step, SCORE: math.inf}
        report: Callable[..., None] = partial(
            ray.train.report, checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC
        )
        if self.rank != 0:
            report(metrics)
            return
        folder = Path(tempfile.mkdtemp(prefix="distillflow-checkpoint-"))
        save_model(folder, self.result, self.training.provenance)
        save_training_state(
            folder,
            {
                "optimizer": self.optimizer.state_dict(),
                # Those of the network, where the model's are its average.
                "weights": {} if self.average is None else self.network.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "skipped": self.skipped,
                "plans": self._plan_digests,
                "judged": self.judged,
                "first_validation": self.first_validation,
                "best": self.best,
                "not_better": self.not_better,
            },
        )
        validation = ray.train.ValidationTaskConfig(fn_kwargs={"step": self.step})
        # Written while training goes on; Ray removes the folder here then.
        report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=f"step-{self.step:08d}",
            checkpoint_upload_fn=partial(self._store, self.step),
            validation=validation if is_validated else False,
        )

    def _store(self, step: int, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Writes a checkpoint into the run's folder, and into `KEPT_FOLDER` in it what is kept for ever."""
        storage = ray.train.get_context().get_storage()
        every = self.options.keep_every
        try:
            if every is not None and step > 0 and step % every == 0:
                storage.persist_current_checkpoint(checkpoint, f"{KEPT_FOLDER}/{name}")
            return cast(ray.train.Checkpoint, storage.persist_current_checkpoint(checkpoint, name))
        except OSError as error:
            raise OSError(
                f"the checkpoint of step {step} can't be written into --run-root: {error}; the one before is "
                "whole: free space there, or mend the storage, and go on with --resume "
                f"{self.training.run_id}"
            ) from error


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Parts of the batch's pairs, in their order; of sizes that differ by at most one."""
    fields = {name: value.tensor_split(parts) for name, value in vars(batch).items() if value is not None}
    return [Batch(**{name: each[part] for name, each in fields.items()}) for part in range(parts)]


def added_outcomes(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of all batches together."""
    first, *others = outcomes
    for other in others:
        terms = [
            replace(one, total=one.total + two.total, count=one.count + two.count)
            for one, two in zip(first.terms, other.terms, strict=True)
        ]
        watched = {name: value + other.watched[name] for name, value in first.watched.items()}
        first = Outcome(terms=terms, watched=watched)
    return first


def global_loss(outcome: Outcome, counts: Tensor, world_size: int) -> Tensor:
    """The loss whose gradient, added up over a worker's parts and averaged over workers, is the global
    batch's.

    The global loss is the sum over terms of weight * total / count, total and count over all workers;
    `counts` are those of `global_facts`.
    """
    # each worker adds its own pixels over everybody's count; DDP then averages, which the factor undoes
    parts = [
        term.weight * term.total / count
        for term, count in zip(outcome.terms, counts.to(outcome.terms[0].total.dtype), strict=True)
    ]
    return torch.stack(parts).sum() * world_size


def global_facts(outcome: Outcome, world_size: int, global_batch: int) -> tuple[Tensor, dict[str, float]]:
    """(the terms' counts over all workers, 1 for an empty one; the global batch's loss, its kinds of terms
    and what is watched)."""
    terms = outcome.terms
    totals = torch.stack([term.total.detach() for term in terms])
    counts = torch.stack([term.count for term in terms])
    watched = torch.stack([value.detach() for value in outcome.watched.values()])
    packed = torch.cat([totals, counts, watched]).double()
    if world_size > 1:
        torch.distributed.all_reduce(packed)
    totals, counts, watched = packed.split([len(terms), len(terms), len(outcome.watched)])
    counts = counts.clamp(min=1.0)
    facts: dict[str, float] = {"loss": 0.0}
    for term, total, count in zip(terms, totals.tolist(), counts.tolist(), strict=True):
        kind = f"loss/{term.name.split('/')[0]}"
        facts[kind] = facts.get(kind, 0.0) + term.weight * total / count
        facts["loss"] += term.weight * total / count
    for name, value in zip(outcome.watched, watched.tolist(), strict=True):
        facts[name] = value / global_batch
    return counts, facts


class _Window:
    """Sums of what is logged together: a few steps, without what comes between them, such as validation."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._pairs = 0
        self._waited = 0.0
        self._seconds = 0.0
        self._step_began = 0.0

    def begin_waiting(self) -> None:
        self._step_began = time.monotonic()

    def end_waiting(self) -> None:
        self._waited += time.monotonic() - self._step_began

    def add(self, facts: Mapping[str, float], pairs: int) -> None:
        for key, value in facts.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._steps += bool(facts)
        self._pairs += pairs
        self._seconds += time.monotonic() - self._step_began

    def means(self) -> dict[str, float]:
        seconds = max(self._seconds, 1e-9)
        return {
            **{key: value / self._steps for key, value in self._sums.items()},
            "pairs_per_second": self._pairs / seconds,
            "waiting_for_data": self._waited / seconds,
        }
