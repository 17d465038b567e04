"""How is a network trained on a cluster? One loop for every stage; the objective is the argument.

Ray Train starts the workers and starts them again from the last checkpoint when one dies; each worker feeds
itself from the planned order of `pipelines.feed`, so that a checkpoint needs no more than the step to know
its place in the data. Nothing in the loop draws random numbers (crops and order are keyed by seed, epoch and
pair), so a checkpoint holds no random state either.

Losses are normalised over the global batch: the workers add up each term's sum and count before they divide.
"""

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from pyarrow.fs import FileSystem
from ray.train import PreemptionInfo
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowcore.drawing import comparison_panel
from flowcore.hallucination import FramePair, Transformation
from flowcore.metrics import endpoint_error
from flowcore.networks import BidirectionalFlow, FlowNetwork, NetworkConfig
from flowcore.objectives import Batch, Objective, Outcome, validate_pair
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.shapes import Image
from pipelines import progress
from pipelines.checkpoints import (
    CARD_FILE,
    WEIGHTS_FILE,
    load_training_state,
    load_weights_into,
    save_model,
    save_training_state,
    vanishing_folder,
)
from pipelines.feed import Plan, batches, hold_back, part_of, to_batch
from pipelines.labels import PairSet
from pipelines.locations import Folder, join, patient

if TYPE_CHECKING:
    from pipelines.tracking import Run


_NOTICE_STEPS = 10
"""Steps between two questions whether a node is about to be taken away: each makes the workers wait for each
other, some milliseconds, and Ray itself asks every 5 seconds."""
KEPT_FOLDER = "kept"
"""In a run's folder: the checkpoints of `keep_every`."""
_STEP, _SCORE = "step", "score"
"""What Ray Train knows of a checkpoint beside its validation; the lowest score is the best one's."""
_RESIZE_SECONDS = 60.0
"""Between two looks whether the cluster has room for more workers: each that comes costs the steps since the
last checkpoint."""
_ELASTIC_CPUS = 2
"""Of a worker with its reading tasks, which ask for none, where there are no GPUs and the number of workers
follows the cluster: they would take every CPU, and tasks that asked for one wait for ever."""


class TrainingStopped(RuntimeError):  # noqa: N818 - not every stop is an error of the program
    """Training ended before its last step because going on is useless; the message names the remedy."""


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
    """Adam's, at its highest."""
    schedule: Literal["halved", "cosine"] = "halved"
    """`halved`: multiplied by 1/2 every `halve_every` steps. `cosine`: rises over the first tenth, then falls
    to 0 by the end."""
    halve_every: int = 50_000
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
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    """`auto`: GPUs where the cluster has any now. `gpu` also waits for nodes that an autoscaler has yet to
    start."""
    readers: int = 2
    """Processes that read and transform pairs for each worker."""
    seed: int = 0
    """Decides fresh weights, the order of the pairs and every crop."""
    log_every: int = 20
    validate_every: int = 200
    """Steps between validations on the held-back pairs; each makes a checkpoint too."""
    patience: int | None = None
    """Validations in a row that may be no better than the best one before training ends early; the model is
    then the best one's, see `score_of`. None: trains to the last step, whose model it is."""
    held_back_share: float = 0.05
    held_back_most: int = 64
    """The share of pairs that is held back for validation, and the most of them."""
    keep_checkpoints: int = 3
    """The latest ones that are kept, and with `patience` the best one."""
    keep_every: int | None = None
    """Keep the checkpoint of every step that is a multiple of this too, in `kept` in the run's folder, to
    look back on; a multiple of validate_every."""
    max_failures: int = 3
    """Dead workers to recover from before giving up. Nodes that are taken away with notice, as spot machines
    are, don't count."""

    def __post_init__(self) -> None:
        for name in (
            *("steps", "global_batch", "halve_every", "workers", "readers", "log_every", "validate_every"),
            *("held_back_most", "keep_checkpoints", "accumulate"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
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
            ("schedule", ("halved", "cosine")),
            ("precision", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} must be one of {', '.join(known)}")
        if not 0 < self.held_back_share < 1:
            raise ValueError(f"held_back_share {self.held_back_share} must lie between 0 and 1")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if self.schedule == "halved":
            return float(self.learning_rate * 0.5 ** (step // self.halve_every))
        rise = max(1, self.steps // 10)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        progress = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class CollapseAlarm:
    """Stops a training that has settled on a useless answer. Watched at each validation, after the unmasked
    steps."""

    max_occluded: float = 0.95
    """The mean occluded share of frames above which nothing is left to learn from."""
    min_flow_variance: float = 1e-5
    """Squared pixels; below it the flow is the same everywhere."""
    must_improve: bool = True
    """Whether fresh weights that have not become better than they were are a reason to stop."""

    def check(self, validation: Mapping[str, float], first: Mapping[str, float] | None) -> None:
        """Raises TrainingStopped; `first` is the validation of the fresh weights, None where training went on
        from a trained network."""
        if validation["occluded"] > self.max_occluded:
            raise TrainingStopped(
                f"collapsed: the check finds {validation['occluded']:.0%} of the held-back frames occluded, "
                "so the masked loss is empty; "
                "train longer without the mask (unmasked_steps) or with a lower learning_rate"
            )
        if validation["flow_variance"] < self.min_flow_variance:
            raise TrainingStopped(
                "collapsed: the flow is the same everywhere "
                f"(variance {validation['flow_variance']:.1e} px^2); "
                "lower learning_rate, or check that the videos move"
            )
        # over all pixels: to fresh weights the check may leave none
        if self.must_improve and first is not None and validation["unmasked"] >= first["unmasked"]:
            raise TrainingStopped(
                f"not learning: the photometric error on held-back pairs is {validation['unmasked']:.3f}, "
                f"and was {first['unmasked']:.3f} with fresh weights; lower learning_rate or train longer "
                "without the mask (unmasked_steps)"
            )


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
    """The last step; before the planned one where validation got no better."""
    validation: dict[str, float]
    """Of the model, on the held-back pairs."""
    validation_digest: str
    """Of the held-back pairs, so that two models judged on the same ones can be compared."""

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
    if _run_of(training).has("validation/photometric"):
        # without its state Ray Train would silently begin anew
        state = join(run_root, training.run_id)
        if not Folder(state).exists():
            raise FileNotFoundError(
                f"run {training.run_id} has left no checkpoint in {state}; resume it with the --run-root "
                "that it was started with"
            )
    _require_fitting_crops(training)
    use_gpu = _use_gpu(options)
    with progress.shown(training.stage, options.steps, "step") as reporter:
        result = ray.train.torch.TorchTrainer(
            cast(Any, _work),
            train_loop_config={"training": training, "reporter": reporter},
            scaling_config=_scaling(options, use_gpu),
            run_config=ray.train.RunConfig(
                name=training.run_id,
                storage_path=run_root,
                failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=options.keep_checkpoints,
                    # The latest one is kept in any case.
                    checkpoint_score_attribute=None if options.patience is None else _SCORE,
                    checkpoint_score_order="min",
                ),
            ),
        ).fit()
    outcome = cast(Any, result).return_value
    if outcome["stopped"] is not None:
        where = (
            f"the last good checkpoint is {result.checkpoint.path}"
            if result.checkpoint
            else "before the first checkpoint"
        )
        raise TrainingStopped(f"{outcome['stopped']} ({where})")
    assert result.checkpoint is not None
    kept = cast(Any, result).best_checkpoints
    if options.patience is None:
        checkpoint, facts = max(kept, key=lambda each: each[1][_STEP])
    else:
        checkpoint, facts = min(kept, key=lambda each: each[1][_SCORE])
    return TrainingResult(
        model=_model_of(checkpoint),
        step=facts[_STEP],
        ended_at=outcome["step"],
        validation={name: value for name, value in facts.items() if name not in (_STEP, _SCORE)},
        validation_digest=outcome["validation_digest"],
    )


@patient
def _model_of(checkpoint: ray.train.Checkpoint) -> Path:
    """A folder with the checkpoint's model, without the optimiser's state, which is twice as large."""
    folder = vanishing_folder()
    filesystem, place = cast(FileSystem, checkpoint.filesystem), checkpoint.path
    for name in (WEIGHTS_FILE, CARD_FILE):
        with filesystem.open_input_file(f"{place}/{name}") as file:
            (folder / name).write_bytes(file.read())
    return folder


def _run_of(training: Training) -> "Run":
    # Brings MLflow, which would cost Ray's other processes a second each: they import this module.
    from pipelines.tracking import Run

    return Run.reopen(training.tracking_uri, training.run_id)


def _require_fitting_crops(training: Training) -> None:
    """Tries the transformation on a pair of each size, so that a wrong crop ends the job before workers
    start."""
    multiple = training.network.build().multiple
    for source in training.sources:
        for place in source.pairs.one_of_each_size():
            row = source.pairs.read(place)
            pair = source.transformation(source.pairs.decode(row), np.random.default_rng(0))
            height, width = pair.image1.shape[:2]
            if height % multiple or width % multiple:
                raise ValueError(
                    f"crop ({height}, {width}) must be a multiple of {multiple} px on each side, for this "
                    "network"
                )


def _use_gpu(options: TrainingOptions) -> bool:
    """Whether workers get GPUs; RuntimeError where they, or the tasks that feed them, would wait for ever."""
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = have.get("CPU", 0), have.get("GPU", 0)
    workers = options.min_workers or options.workers
    if options.accelerator == "gpu" or (options.accelerator == "auto" and gpus):
        if options.accelerator == "auto" and gpus < workers:
            raise RuntimeError(
                f"{workers} workers need {workers} GPUs; this cluster has {gpus:g}. Choose "
                "fewer workers, add nodes, or set accelerator to gpu to wait for an autoscaler"
            )
        return True
    needed = workers + 1 if options.min_workers is None else workers * _ELASTIC_CPUS
    # where there are none at all an autoscaler has yet to begin
    if 0 < cpus < needed:
        raise RuntimeError(
            f"{workers} workers and the tasks that feed them need {needed:g} CPUs; this "
            f"cluster has {cpus:g}. Start Ray with more (logical) CPUs, or choose fewer workers"
        )
    return False


def _scaling(options: TrainingOptions, use_gpu: bool) -> ray.train.ScalingConfig:
    if options.min_workers is None:
        return ray.train.ScalingConfig(num_workers=options.workers, use_gpu=use_gpu)
    # Typed as an older Ray Train's.
    return cast(Any, ray.train.ScalingConfig)(  # type: ignore[no-any-return]
        num_workers=(options.min_workers, options.workers),
        use_gpu=use_gpu,
        resources_per_worker=None if use_gpu else {"CPU": _ELASTIC_CPUS},
        elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
    )


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """One worker's whole life; returns what the driver needs to know, the same on every worker."""
    return _Worker(config["training"], config["reporter"]).run()


class _Worker:
    def __init__(self, training: Training, reporter: progress.Reporter) -> None:
        self.training = training
        self.reporter = reporter
        self.options = training.options
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // context.get_local_world_size()))
        self.validated = training.validation or training.sources[0].pairs
        self.plans: list[Plan] = []
        for source in training.sources:
            share, most = self.options.held_back_share, self.options.held_back_most
            rows, held_back = hold_back(source.pairs.index(), share, most)
            if not self.plans:
                self.held_back = held_back
            rows = part_of(rows, source.share)
            self.plans.append(
                Plan(index=rows, global_batch=self.options.global_batch, seed=self.options.seed)
            )
        if training.validation is not None:
            _, self.held_back = hold_back(self.validated.index(), 1.0, self.options.held_back_most)
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
        self.first_validation, self.validation = state["first_validation"], state["validation"]
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
            if self.step == 0:
                self.validation = self._validate()
                self.first_validation = self.validation if self.training.initial is None else None
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
                    reader_cpus=1 if options.min_workers is None or self.device.type != "cpu" else 0,
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
                    self.validation = self._validate()
                    if self.step > options.unmasked_steps:
                        self.training.alarm.check(self.validation, self.first_validation)
                    score = score_of(self.validation)
                    self.not_better = 0 if score < self.best else self.not_better + 1
                    self.best = min(self.best, score)
                    self._checkpoint()
                    is_stored = True
                if self.step % _NOTICE_STEPS == 0 and self._is_news() and not is_stored:
                    self._checkpoint(is_validated=False)
        except TrainingStopped as reason:
            # every worker sees the same global numbers, so that every worker stops here, and none is started
            # again
            stopped = str(reason)
        return {
            "stopped": stopped,
            "step": self.step,
            "validation_digest": _digest(self.held_back["pair_id"].to_pylist()),
        }

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
        parts = list(zip(*(_split(batch, self.options.accumulate) for batch in step_batches), strict=True))
        with torch.set_grad_enabled(len(parts) == 1):
            outcome = _added([self._outcome(part) for part in parts])
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

    def _held_back_pairs(self) -> list[FramePair]:
        """This worker's share of the held-back pairs, whole frames."""
        mine = self.held_back.to_pylist()[self.rank :: self.world_size]
        return [self.validated.decode(self.validated.read(place)) for place in mine]

    def _validate(self) -> dict[str, float]:
        """Means over all workers' held-back pairs; logged, with a picture of the first pair."""
        sums: dict[str, float] = dict.fromkeys(
            (
                *("photometric", "visible", "unmasked", "pixels"),
                *("pairs", "occluded", "motion", "flow_variance", "error", "with_truth"),
            ),
            0.0,
        )
        network = self.result.eval()
        check = ForwardBackwardCheck()
        has_truth = self.validated.has_truth
        for number, pair in enumerate(self._held_back_pairs()):
            frames = to_batch({"image1": pair.image1[None], "image2": pair.image2[None]}, self.device)
            flow_fw, flow_bw = network.estimate(frames.image1, frames.image2)
            for key, value in validate_pair(frames.image1, frames.image2, flow_fw, flow_bw, check).items():
                sums[key] += value
            if has_truth:
                assert pair.flow_fw is not None
                assert pair.confidence_fw is not None
                known = pair.confidence_fw > 0
                errors = endpoint_error(flow_fw.cpu(), torch.from_numpy(pair.flow_fw)[None])[0, 0].numpy()
                sums["error"] += float(errors[known].sum(dtype=np.float64))
                sums["with_truth"] += float(known.sum())
            if number == 0 and self.log is not None:
                predictions = {
                    self.training.stage: (
                        flow_fw[0].cpu().numpy(),
                        check(flow_fw, flow_bw)[0, 0].cpu().numpy(),
                    )
                }
                if pair.flow_fw is not None and pair.confidence_fw is not None:
                    label = (pair.flow_fw, pair.confidence_fw < 0.5)
                    predictions = {"truth" if has_truth else "pseudo-label": label, **predictions}
                self.log.picture(
                    "validation",
                    comparison_panel(pair.image1, pair.image2, predictions=predictions),
                    self.step,
                )
        network.train()
        totals = dict(zip(sums, _summed(list(sums.values()), self.world_size, self.device), strict=True))
        pairs = max(totals["pairs"], 1.0)
        means = {key: totals[key] / pairs for key in ("occluded", "motion", "flow_variance")}
        means["photometric"] = totals["photometric"] / max(totals["visible"], 1.0)
        means["unmasked"] = totals["unmasked"] / max(totals["pixels"], 1.0)
        if has_truth:
            means["epe"] = totals["error"] / max(totals["with_truth"], 1.0)
        if not math.isfinite(sum(means.values())):
            raise TrainingStopped(
                f"the flow on held-back pairs is not finite at step {self.step}; lower learning_rate"
            )
        self._log({f"validation/{key}": value for key, value in means.items()})
        return means

    def _log(self, values: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.log(self.step, values)

    def _checkpoint(self, *, is_validated: bool = True) -> None:
        """Every worker reports; the first one's folder is the checkpoint."""
        score = score_of(self.validation) if is_validated else math.inf
        metrics = {_STEP: self.step, **self.validation, _SCORE: score}
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
                "first_validation": self.first_validation,
                "validation": self.validation,
                "best": self.best,
                "not_better": self.not_better,
            },
        )
        # Written while training goes on; Ray removes the folder here then.
        report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=f"step-{self.step:08d}",
            checkpoint_upload_fn=partial(self._store, self.step),
        )

    def _store(self, step: int, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Writes a checkpoint into the run's folder, and into `KEPT_FOLDER` in it what is kept for ever."""
        storage = ray.train.get_context().get_storage()
        every = self.options.keep_every
        try:
            if every is not None and step % every == 0:
                storage.persist_current_checkpoint(checkpoint, f"{KEPT_FOLDER}/{name}")
            return cast(ray.train.Checkpoint, storage.persist_current_checkpoint(checkpoint, name))
        except OSError as error:
            raise OSError(
                f"the checkpoint of step {step} can't be written into --run-root: {error}; the one before is "
                "whole: free space there, or mend the storage, and go on with --resume "
                f"{self.training.run_id}"
            ) from error


def score_of(validation: Mapping[str, float]) -> float:
    """What models are compared by, lower is better: the error on the held-back pairs where those have truth,
    else the photometric error of all pixels, as that of the visible ones is 0 for a model that finds nothing
    visible."""
    return validation["epe"] if "epe" in validation else validation["unmasked"]


def _split(batch: Batch, parts: int) -> list[Batch]:
    """Parts of the batch's pairs, in their order; of sizes that differ by at most one."""
    fields = {name: value.tensor_split(parts) for name, value in vars(batch).items() if value is not None}
    return [Batch(**{name: each[part] for name, each in fields.items()}) for part in range(parts)]


def _added(outcomes: Sequence[Outcome]) -> Outcome:
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


def _summed(values: list[float], world_size: int, device: torch.device) -> list[float]:
    packed = torch.tensor(values, dtype=torch.float64, device=device)
    if world_size > 1:
        torch.distributed.all_reduce(packed)
    return cast(list[float], packed.tolist())


def _digest(pair_ids: list[str]) -> str:
    return hashlib.blake2b("\n".join(sorted(pair_ids)).encode(), digest_size=16).hexdigest()
