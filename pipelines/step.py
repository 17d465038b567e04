"""What does one optimiser step do to a network?

Every worker takes the step on its share of the global batch. Losses are normalised over the whole of it: the
workers add up each term's total and count before they divide, so that any number of workers, taking their
shares in any number of parts, give the gradient of one worker with the whole batch.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add
from typing import Any, Protocol, cast

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor

from flowcore.networks import BidirectionalFlow, Estimator, FlowNetwork, RAFTConfig
from flowcore.objectives import Objective, Outcome
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.shapes import Image
from pipelines.replay import Replay
from pipelines.training_options import TrainingOptions

_LOSS, _NORM = "loss", "gradient_norm"


class Lesson(Protocol):
    """What a network learns from one of the batches of a step."""

    @property
    def objective(self) -> Objective:
        """What it is to do with the batch."""

    @property
    def weight(self) -> float:
        """Weight of this loss among those of all lessons."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a step was like, the same on every worker.

    A GPU may still be at work on it: whoever looks waits, and a step that nobody looks at costs no wait.
    """

    step: int
    learning_rate: float
    names: tuple[str, ...]
    """What the values are: the loss of the global batch, its kinds of terms, what the first objective
    watches, and the gradient's norm."""
    values: Float[Tensor, "names"]

    @property
    def facts(self) -> Mapping[str, float]:
        """The values by name, with the learning rate; empty for a skipped step."""
        return {} if self.skipped else {**self._numbers, "learning_rate": self.learning_rate}

    @property
    def skipped(self) -> str | None:
        """Why the step changed nothing; None if it wasn't skipped."""
        loss = self._numbers[_LOSS]
        if not math.isfinite(loss):
            return f"the loss of step {self.step} is {loss}"
        if not math.isfinite(self._numbers[_NORM]):
            return f"the gradient of step {self.step} is not finite"
        return None

    @cached_property
    def _numbers(self) -> dict[str, float]:
        return dict(zip(self.names, self.values.tolist(), strict=True))


class OptimiserStep:
    """Takes the steps of a training, one after the other: AdamW on a network, with its moving average.

    A step never waits for a GPU. Whether its loss and gradient are finite is decided there, by Adam's own
    switch for that. One worker's steps on a GPU are replayed, see `pipelines.replay`.
    """

    step = 0
    """The steps taken so far, skipped ones too."""

    def __init__(
        self,
        network: FlowNetwork,
        lessons: Sequence[Lesson],
        check: OcclusionCheck,
        options: TrainingOptions,
        *,
        world_size: int = 1,
        device: torch.device | None = None,
        wrap: Callable[[FlowNetwork], Estimator] = lambda network: network,
        replayed: bool = True,
    ) -> None:
        """`wrap` makes of the network what several workers train, such as DistributedDataParallel.

        replayed: False launches every kernel of a GPU's step by itself.
        """
        self.device = device or torch.device("cpu")
        self.network = network.to(self.device)
        self.network.checkpoints_activations = options.checkpoint_activations
        if options.channels_last:
            cast(Any, self.network).to(memory_format=torch.channels_last)
        self._average = copy.deepcopy(self.network) if options.ema_decay else None
        # What a step is told and keeps beside the weights, on the device, where a replay finds it.
        self._rate, self._kept, self._is_begun, self._skipped = torch.zeros(4, 1, device=self.device)
        self._options = options
        # Without a weight decay it is Adam.
        self._adam = torch.optim.AdamW(self.network.parameters(), betas=(0.9, 0.999), fused=True)
        self._prepare_adam()
        self._wrapped = wrap(self.network)
        self._lessons = lessons
        self._check = check
        self._world_size = world_size
        self._names: tuple[str, ...] = ()
        self._replay: Replay | None = None
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            if replayed and world_size == 1:
                self._replay = Replay(self._updated, self.device)

    def _prepare_adam(self) -> None:
        """Also after a resume, whose options hold and not those of the state."""
        for group in self._adam.param_groups:
            group.update(
                lr=self._rate,
                weight_decay=self._options.weight_decay,
                capturable=self.device.type == "cuda",
            )

    @property
    def is_at_work(self) -> bool:
        """Whether a GPU hasn't finished the steps that were taken."""
        return self._replay is not None and self._replay.is_at_work

    @property
    def skipped(self) -> int:
        """How many of the steps were skipped."""
        return int(self._skipped)

    @property
    def result(self) -> FlowNetwork:
        """What training makes: the moving average of the network, or the network itself without one."""
        return self.network if self._average is None else self._average

    def take(self, batches: Sequence[Batch]) -> Taken:
        """One step on this worker's share of the global batch, a batch for each lesson.

        RuntimeError, with what to lower, where the device has too little memory for it.
        """
        rate = self._options.learning_rate_at(self.step)
        self._rate.fill_(rate)
        # A constant decay would keep the fresh weights for long; the first averages are of few steps.
        self._kept.fill_(min(self._options.ema_decay, (1 + self.step) / (10 + self.step)))
        try:
            if self._replay is None:
                values = self._updated(batches)
            else:
                phase = tuple(lesson.objective.phase(self.step) for lesson in self._lessons)
                values = self._replay(batches, phase)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(self._remedies(batches)) from error
        taken = Taken(step=self.step, learning_rate=rate, names=self._names, values=values)
        self.step += 1
        return taken

    def _updated(self, batches: Sequence[Batch]) -> Float[Tensor, "names"]:
        """Updates the weights, unless something isn't finite; returns the values of `Taken`."""
        parts = list(zip(*(batch.split(self._options.accumulate) for batch in batches), strict=True))
        is_whole = len(parts) == 1
        # With several parts the counts have to be known before the first backward pass.
        with torch.set_grad_enabled(is_whole):
            outcome = reduce(add, (self._outcome(part) for part in parts))
        counts, facts = global_facts(outcome, self._world_size, self._options.global_batch)
        self._adam.zero_grad()
        # Gradients are averaged over the workers once, with the last part.
        without_averaging = getattr(self._wrapped, "no_sync", nullcontext)
        for number, part in enumerate(parts, start=1):
            with without_averaging() if number < len(parts) else nullcontext():
                mine = outcome if is_whole else self._outcome(part)
                global_loss(mine, counts, self._world_size).backward()
        flow, scale = self.network.weights_by_task()
        norm = torch.nn.utils.clip_grad_norm_(flow, self._options.clip_norm)
        if scale:
            # By itself, so that it takes nothing from what is learnt of the flow. Where it isn't finite,
            # the sum isn't either.
            norm = norm + 0 * torch.nn.utils.clip_grad_norm_(scale, self._options.clip_norm)
        # Every worker sees the same global numbers, and skips the same steps.
        is_skipped = (~(facts[_LOSS].isfinite() & norm.isfinite())).float()
        cast(Any, self._adam).found_inf = is_skipped
        self._adam.step()
        self._skipped += is_skipped
        if self._average is not None:
            self._move_average(1 - is_skipped)
        facts[_NORM] = norm.double()
        self._names = tuple(facts)
        return torch.stack(list(facts.values()))

    @torch.no_grad()
    def _move_average(self, is_taken: Tensor) -> None:
        assert self._average is not None
        # The first average is the first step's weights.
        share = is_taken * (1 - self._kept * self._is_begun)
        self._is_begun.copy_(torch.maximum(self._is_begun, is_taken))
        for mine, its in zip(self._average.parameters(), self.network.parameters(), strict=True):
            mine.lerp_(its, share)

    def _remedies(self, batches: Sequence[Batch]) -> str:
        """What to do where memory ran out, and what each would save of what a step keeps between its passes:
        of PWC-Net as `python -m benchmarks.speed.memory` measures it."""
        options = self._options
        height, width = batches[0].image1.shape[-2:]
        pairs = max(1, options.global_batch // self._world_size)
        remedies = []
        if options.accumulate < pairs:
            parts = min(pairs, 2 * options.accumulate)
            remedies.append(f"--training.accumulate {parts} saves {1 - options.accumulate / parts:.0%}")
        if isinstance(config := self.network.config, RAFTConfig) and config.iterations > 1:
            # What an iteration keeps, of which the sequence loss needs each.
            fewer = max(1, config.iterations // 2)
            remedies.append(f"--network.iterations {fewer} saves about {1 - fewer / config.iterations:.0%}")
        if not options.checkpoint_activations:
            remedies.append("--training.checkpoint-activations saves about half")
        if options.precision == "float32":
            remedies.append("--training.precision bfloat16 saves about a sixth")
        remedies.append(
            f"a crop of three quarters of these {height}x{width} px on each side saves {1 - 0.75**2:.0%}"
        )
        return f"{self.device} has too little memory for a step: {'; '.join(remedies)}"

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside the weights of `result`, as `checkpoints.save_training_state` takes
        it."""
        return {
            "optimizer": self._adam.state_dict(),
            # The result has the average's weights, if there is one.
            "weights": {} if self._average is None else self.network.state_dict(),
            "step": self.step,
            "skipped": self.skipped,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`, once the weights of its `result` have been loaded into this one's."""
        weights = state["weights"]
        if self._average is not None:
            # A training that had no average begins one.
            self._is_begun.fill_(bool(weights))
            weights = weights or self.result.state_dict()
        if weights:
            self.network.load_state_dict(weights)
        self._adam.load_state_dict(state["optimizer"])
        self._prepare_adam()
        self.step = state["step"]
        self._skipped.fill_(state["skipped"])

    def _estimate(self, image1: Image, image2: Image) -> BidirectionalFlow:
        is_lower = self._options.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_lower):
            return self._wrapped(image1, image2)

    def _outcome(self, part: Sequence[Batch]) -> Outcome:
        """The terms of all lessons, with what the first one watches."""
        outcomes = [
            lesson.objective(self._estimate, batch, step=self.step, check=self._check)
            for lesson, batch in zip(self._lessons, part, strict=True)
        ]
        terms = [
            replace(term, weight=lesson.weight * term.weight)
            for lesson, outcome in zip(self._lessons, outcomes, strict=True)
            for term in outcome.terms
        ]
        return Outcome(terms=terms, watched=outcomes[0].watched)


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


def global_facts(outcome: Outcome, world_size: int, global_batch: int) -> tuple[Tensor, dict[str, Tensor]]:
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
    facts = {_LOSS: totals.new_zeros(())}
    for term, mean in zip(terms, (totals / counts).unbind(), strict=True):
        kind = f"loss/{term.name.split('/')[0]}"
        facts[kind] = facts.get(kind, 0.0) + term.weight * mean
        facts[_LOSS] = facts[_LOSS] + term.weight * mean
    for name, value in zip(outcome.watched, (watched / global_batch).unbind(), strict=True):
        facts[name] = value
    return counts, facts
