"""What does one training worker do? Its share of every step.

It feeds itself. Its place in the data is the number of steps taken, from which `pipelines.feed` plans the
rest. At a checkpoint the worker first waits for the validation of the one before, and hears the judge's
verdict.
"""

import copy
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import PreemptionInfo, ReportedCheckpoint, ReportedCheckpointStatus
from ray.train.collective import broadcast_from_rank_zero

from flowcore.networks import Estimator, FlowNetwork
from pipelines import progress
from pipelines.checkpoints import (
    KEPT_FOLDER,
    load_training_state,
    load_weights_into,
    save_model,
    save_training_state,
)
from pipelines.feed import Plan, batches
from pipelines.held_back import SCORE, Validation
from pipelines.logbook import Logbook
from pipelines.models import StartingPoint
from pipelines.room import num_cores
from pipelines.split import hold_back, part_of
from pipelines.step import OptimiserStep, Taken
from pipelines.storage import patient
from pipelines.training_options import TrainingOptions
from pipelines.validation import Judge, Judging, TrainingStopped

if TYPE_CHECKING:
    from pipelines.training import Source

STEP = "step"
"""The key of a checkpoint's step among what Ray Train knows of it."""
VALIDATED = "validated"
"""The key of whether a worker has validated it itself, 1 or 0."""
_NOTICE_STEPS = 10
"""Steps between two questions whether a node is about to be taken away. Each makes the workers wait for each
other, some milliseconds, and Ray itself asks every 5 seconds."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """All that the workers of a training need to know. They may be on other machines."""

    start: StartingPoint
    sources: "tuple[Source, ...]"
    options: TrainingOptions
    judge: Judge
    validation: Validation
    """Validates the checkpoints, and names the MLflow run."""
    validates_itself: bool
    """Whether the first worker validates between two steps, and no task does."""
    provenance: dict[str, str]
    """Written into every checkpoint."""
    reader_cpus: float
    """What each reading task asks of Ray."""
    reporter: progress.Reporter


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the work ended, the same on every worker."""

    step: int
    stopped: str | None
    """Why going on is useless; None if training came to its end."""
    condemned: float
    """The step of the checkpoint that a validation found useless; infinite without one."""
    numbers: dict[str, float]
    """The last validation's."""


def work(config: dict[str, Any]) -> Ended:
    """One worker's whole life."""
    return _Worker(config["assignment"]).run()


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What a validation found, of all that Ray Train knows of its checkpoint."""
    return {name: value for name, value in metrics.items() if name not in (STEP, VALIDATED, SCORE)}


class _Worker:
    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            _share_cores(context.get_local_world_size())
        self.plans = [_plan(source, assignment.options) for source in assignment.sources]
        self.optimiser = OptimiserStep(
            _network(assignment.start, assignment.options.seed),
            assignment.sources,
            assignment.judge.check,
            assignment.options,
            world_size=self.world_size,
            device=self.device,
            wrap=self._prepared,
        )
        self.judging = Judging(
            assignment.judge.alarm,
            patience=assignment.options.patience,
            unmasked_steps=assignment.sources[0].objective.unmasked_steps,
            starts_fresh=assignment.start.weights is None,
        )
        self.numbers: dict[str, float] = {}
        self.condemned = math.inf
        self.notice: PreemptionInfo | None = None
        self.log = None
        if self.rank == 0:
            # Imports MLflow, which would cost each of the other workers a second.
            from pipelines.tracking import Run

            self.log = Run.reopen(assignment.validation.tracking_uri, assignment.validation.run_id)
        self._resume()
        self.began = self.optimiser.step
        self.logbook = Logbook(
            skipped=self.optimiser.skipped,
            max_skipped=assignment.options.max_skipped,
            on_skipped=self._note_skipped,
        )

    def run(self) -> Ended:
        """Trains to the last step, or to where going on is useless."""
        stopped = None
        try:
            self._train()
        except TrainingStopped as reason:
            # Every worker sees the same global numbers, so that all stop here, and none is started again.
            stopped = str(reason)
        return Ended(
            step=self.optimiser.step, stopped=stopped, condemned=self.condemned, numbers=self.numbers
        )

    def _train(self) -> None:
        options, optimiser, logbook = self.assignment.options, self.optimiser, self.logbook
        if ray.train.get_checkpoint() is None:
            self._checkpoint()
        feed = zip(*self._feeds(), strict=True)
        while optimiser.step < options.steps and not self.judging.is_out_of_patience:
            logbook.begin()
            step_batches = next(feed)
            if not optimiser.is_at_work:
                logbook.has_waited()
            logbook.add(optimiser.take(step_batches), options.global_batch * len(step_batches))
            is_last = optimiser.step == options.steps
            is_due = optimiser.step % options.validate_every == 0 or is_last
            is_news = optimiser.step % _NOTICE_STEPS == 0 and self._is_news()
            is_logged = optimiser.step % options.log_every == 0 or is_last
            if is_due or is_news or is_logged:
                logbook.look()
            if is_logged:
                self._log_entry(logbook.entry())
            if is_due:
                self._hear_verdict()
                if not self.judging.is_out_of_patience:
                    self._checkpoint()
            elif is_news:
                self._checkpoint(is_validated=False)
        self._hear_verdict()

    def _prepared(self, network: FlowNetwork) -> Estimator:
        parallel = ray.train.torch.prepare_model(network, move_to_device=False)
        return cast(Estimator, torch.compile(parallel) if self.assignment.options.compiled else parallel)

    def _feeds(self) -> list[Any]:
        """The batches of each source from this step on."""
        options = self.assignment.options
        return [
            batches(
                source.pairs,
                plan,
                source.transformation,
                start=self.optimiser.step,
                stop=options.steps,
                rank=self.rank,
                world_size=self.world_size,
                readers=options.readers,
                reader_cpus=self.assignment.reader_cpus,
                device=self.device,
            )
            for source, plan in zip(self.assignment.sources, self.plans, strict=True)
        ]

    def _hear_verdict(self) -> None:
        """Waits for the validation that is under way; TrainingStopped if it finds the network useless."""
        began = time.monotonic()
        reported = [
            each
            for each in ray.train.get_all_reported_checkpoints()
            if (each.status is not ReportedCheckpointStatus.COMMITTED or each.metrics[VALIDATED])
            and each.metrics[STEP] > self.judging.standing.judged
        ]
        if reported and not self.assignment.validates_itself:
            self._log({"train/waiting_for_validation_seconds": time.monotonic() - began})
        for each in sorted(reported, key=lambda each: each.metrics[STEP]):
            step = each.metrics[STEP]
            self.numbers = self._numbers(each)
            verdict = self.judging.look_at(self.numbers, step)
            if verdict.decision == "useless":
                self.condemned = step
                raise TrainingStopped(verdict.reason)

    def _numbers(self, reported: ReportedCheckpoint) -> dict[str, float]:
        """What the validation found. If its task failed it is done here, so that its error is the
        training's."""
        if reported.status is not ReportedCheckpointStatus.VALIDATION_FAILED:
            return numbers_of(reported.metrics)
        validate = self.assignment.validation
        mine = validate(reported.checkpoint, reported.metrics[STEP]) if self.rank == 0 else None
        return cast(dict[str, float], broadcast_from_rank_zero(mine))

    def _is_news(self) -> bool:
        """Whether a node with a worker is about to be taken away, and wasn't when last asked."""
        before, self.notice = self.notice, ray.train.get_preemption_info()
        return self.notice is not None and self.notice != before

    def _note_skipped(self, taken: Taken) -> None:
        if self.log is not None:
            pairs = [plan.pair_ids(taken.step) for plan in self.plans]
            skipped = {"reason": taken.skipped, "pair_ids": pairs}
            self.log.document(f"skipped/step-{taken.step:08d}.json", skipped)

    def _log(self, values: Mapping[str, float]) -> None:
        if self.log is not None:
            self.log.log(self.optimiser.step, values)

    def _log_entry(self, means: Mapping[str, float]) -> None:
        logged = {**means, "skipped_steps": self.logbook.skipped, "workers": self.world_size}
        self._log({f"train/{key}": value for key, value in logged.items()})
        if self.rank == 0:
            facts = [f"{means['pairs_per_second']:.3g} pairs/s"]
            facts.append(f"{means['waiting_for_data']:.0%} waiting for pairs")
            if "loss" in means:
                facts.append(f"loss {means['loss']:.3g}")
            self.assignment.reporter.report(self.optimiser.step, *facts, before=self.began)

    @property
    def _plan_digests(self) -> list[str]:
        """Digests of what decides which pair has which place in which batch."""
        sources = self.assignment.sources
        return [
            f"{source.pairs.label_set} {plan.digest()}"
            for source, plan in zip(sources, self.plans, strict=True)
        ]

    def _checkpoint(self, *, is_validated: bool = True) -> None:
        """Every worker reports; the first one's folder is the checkpoint."""
        step = self.optimiser.step
        metrics = {STEP: step, VALIDATED: 0, SCORE: math.inf}
        if is_validated and self.assignment.validates_itself:
            metrics |= {VALIDATED: 1, **self._own_validation()}
            is_validated = False
        report: Any = partial(ray.train.report, checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC)
        if self.rank != 0:
            report(metrics)
            return
        folder = Path(tempfile.mkdtemp(prefix="distillflow-checkpoint-"))
        save_model(folder, self.optimiser.result, self.assignment.provenance)
        state = {
            "optimiser": self.optimiser.state(),
            "judging": self.judging.state(),
            "plans": self._plan_digests,
        }
        save_training_state(folder, state)
        task = ray.train.ValidationTaskConfig(fn_kwargs={"step": step})
        # Written while training goes on; Ray removes the folder here then.
        report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=f"step-{step:08d}",
            checkpoint_upload_fn=partial(
                _stored, step, self.assignment.options.keep_every, self.assignment.validation.run_id
            ),
            validation=task if is_validated else False,
        )

    def _own_validation(self) -> dict[str, float]:
        """What a validation finds of the network as it is now, on every worker."""
        began, numbers = time.monotonic(), None
        if self.rank == 0:
            # A copy, as a network that trains isn't to be set up for inference.
            network = copy.deepcopy(self.optimiser.result).to(self.device).eval()
            threads = torch.get_num_threads()
            # The other workers wait.
            torch.set_num_threads(num_cores())
            numbers = self.assignment.validation.of(network, self.device, self.optimiser.step)
            torch.set_num_threads(threads)
        heard = cast(dict[str, float], broadcast_from_rank_zero(numbers))
        self._log({"train/waiting_for_validation_seconds": time.monotonic() - began})
        return heard

    def _resume(self) -> None:
        """Continues from the last checkpoint, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            state = self._load(checkpoint)
            if state["plans"] != self._plan_digests:
                raise ValueError(
                    "the run began with other pairs, other labels of them, another global_batch or another "
                    "seed; resume it with the same videos or labels, --where and options, or start a new one"
                )
            self.optimiser.restore(state["optimiser"])
            self.judging.restore(state["judging"])
        if self.log is not None and (last := self.log.last_step("train/loss")) > 0:
            # At the step that was lost last, since more than one restart may begin at the same checkpoint.
            self.log.log(last, {"train/steps_done_again": max(0, last - self.optimiser.step)})

    @patient
    def _load(self, checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
        """Takes the checkpoint's weights; returns the rest of the state."""
        with checkpoint.as_directory() as folder:
            load_weights_into(self.optimiser.result, Path(folder))
            return load_training_state(Path(folder))


def _share_cores(workers: int) -> None:
    """Leaves each of the workers on this node its share of the cores."""
    torch.set_num_threads(max(1, num_cores() // workers))


def _plan(source: "Source", options: TrainingOptions) -> Plan:
    pairs = source.pairs
    rows, _ = hold_back(
        pairs.index(),
        pairs.folders,
        options.held_back_share,
        options.held_back_most,
        # A data set's samples are pairs of their own.
        share_frames=not pairs.has_truth,
    )
    return Plan(index=part_of(rows, source.share), global_batch=options.global_batch, seed=options.seed)


def _network(start: StartingPoint, seed: int) -> FlowNetwork:
    torch.manual_seed(seed)
    network = start.network.build()
    if start.weights is not None:
        network.load_state_dict(start.weights)
    return network


def _stored(
    step: int, keep_every: int | None, run_id: str, checkpoint: ray.train.Checkpoint, name: str
) -> ray.train.Checkpoint:
    """Writes a checkpoint into the run's folder, and one to keep for ever into `KEPT_FOLDER` there."""
    storage = ray.train.get_context().get_storage()
    try:
        if keep_every is not None and step > 0 and step % keep_every == 0:
            storage.persist_current_checkpoint(checkpoint, f"{KEPT_FOLDER}/{name}")
        return cast(ray.train.Checkpoint, storage.persist_current_checkpoint(checkpoint, name))
    except OSError as error:
        raise OSError(
            f"the checkpoint of step {step} can't be written into --run-root: {error}; the one before is "
            f"whole: free space there, or repair the storage, and continue with --resume {run_id}"
        ) from error
