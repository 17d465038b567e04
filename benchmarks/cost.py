"""What does one training step of a recipe cost: seconds here, floating-point operations, hours on a GPU?

Seconds are CPU time, not the clock's, so that other processes on the machine hardly change them. Hours on a
GPU are arithmetic: the operations, over those that one step measured there did in a second.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import Lesson, true_pair
from flowcore import networks
from flowcore.augmentation import Crop
from flowcore.hallucination import Challenge
from flowcore.networks import BidirectionalFlow, FlowNetwork, PWCNetConfig, RAFTConfig
from flowcore.objectives import Objective, Outcome, StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch, FramePair
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import Image
from pipelines.step import OptimiserStep
from pipelines.training_options import Precision, TrainingOptions

GPU = "NVIDIA H200"
MEASURED: dict[Precision, float] = {"float32": 0.0178, "bfloat16": 0.0138}
"""Seconds there of a teacher's step: the full PWC-Net, 8 pairs of 256x384 px and 32 px around. Printed by
`python -m benchmarks.speed.gpu --quick`, see docs/results/speed.md; bfloat16 is with channels last."""
MEASURED_STUDENT = 0.0119
"""Seconds there of a student's step in bfloat16 with channels last: the same network, in the confidence view
with the photometric loss, 8 pairs of 192x320 px and 32 px around; from the same table."""
_TRANSFORMED = 5
"""Steps whose pairs are transformed, since chance decides what is done to each."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training of a recipe, and what one of its optimiser steps costs."""

    challenge: Challenge
    options: TrainingOptions
    seconds: float
    """CPU time over the number of cores."""
    operations: float
    """Those of convolutions, as counted, and those of cost volumes, by formula."""
    cost_volume_share: float
    """The cost volumes' share of the operations."""
    transforming: float
    """Seconds of one core to transform a step's pairs."""

    @property
    def hours(self) -> float:
        return self.options.steps * self.seconds / 3600

    @property
    def gpu_seconds(self) -> float:
        """Of a step."""
        return self.operations / gpu_rate(self.options.precision)

    @property
    def gpu_hours(self) -> float:
        return self.options.steps * self.gpu_seconds / 3600


@cache
def gpu_rate(precision: Precision) -> float:
    """Operations a second on the GPU, those of the teacher's step that was measured there."""
    return _measured_operations(Crop(height=256, width=384), TeacherObjective()) / MEASURED[precision]


@cache
def student_gpu_rate() -> float:
    """The same of a student's step in bfloat16."""
    objective = StudentObjective(view="confidence", photometric_weight=1.0)
    return _measured_operations(Crop(height=192, width=320), objective) / MEASURED_STUDENT


def _measured_operations(crop: Crop, objective: Objective) -> float:
    """Those of a step that was measured on the GPU."""
    config = networks.full()["pwcnet"]
    assert isinstance(config, PWCNetConfig)
    challenge = Challenge(crop=crop, surroundings=32)
    frames = true_pair(render_scene(0, SceneOptions(height=384, width=512, num_frames=2)))
    options = TrainingOptions(steps=1, global_batch=8)
    return training_cost(frames, config, challenge, options, objective).operations


def training_cost(
    pair: FramePair,
    config: PWCNetConfig,
    challenge: Challenge,
    options: TrainingOptions,
    objective: Objective,
) -> Stage:
    """Measured in one step from fresh weights: network, objective, both passes and the optimiser."""
    rng = np.random.default_rng(0)
    pairs: list[FramePair] = []
    transforming = cpu_seconds(
        lambda: pairs.extend(challenge(pair, rng) for _ in range(_TRANSFORMED * options.global_batch))
    )
    batch = Batch.stack(pairs[: options.global_batch])
    torch.manual_seed(0)
    lessons = [Lesson(objective=objective)]
    step = OptimiserStep(config.build(), lessons, OcclusionCheck(), options)
    with FlopCounterMode(display=False) as counter:
        seconds = cpu_seconds(lambda: step.take([batch])) / torch.get_num_threads()
    height, width = batch.image1.shape[-2:]
    uncounted = cost_volume_operations(config, options.global_batch, height, width)
    operations = counter.get_total_flops() + uncounted
    return Stage(
        challenge=challenge,
        options=options,
        seconds=seconds,
        operations=operations,
        cost_volume_share=uncounted / operations,
        transforming=transforming / _TRANSFORMED,
    )


def forward_pass(
    network: FlowNetwork, objective: Objective, batch: Batch, *, is_lower: bool, step: int = 0
) -> tuple[Outcome, int]:
    """(what the objective says of a batch at a step, the bytes that autograd keeps for the backward pass,
    without the weights). is_lower: convolutions are in bfloat16."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def estimate(image1: Image, image2: Image) -> BidirectionalFlow:
        with torch.autocast("cpu", torch.bfloat16) if is_lower else nullcontext():
            flows: BidirectionalFlow = network(image1, image2)
            return flows

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outcome = objective(estimate, batch, step=step, check=OcclusionCheck())
    weights = {each.untyped_storage()._cdata for each in network.parameters()}
    storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in kept}
    return outcome, sum(size for place, size in storages.items() if place not in weights)


@dataclass(frozen=True, kw_only=True)
class PairCost:
    """What a pair costs in a step of a recurrent network, counted and not timed."""

    operations: float
    """Those of convolutions and of the products of all pairs, forward and backward."""
    kept: int
    """Bytes from the forward to the backward pass."""

    @classmethod
    def of(
        cls, pair: FramePair, config: RAFTConfig, challenge: Challenge, objective: Objective, step: int
    ) -> "PairCost":
        """At an optimiser step, with convolutions in bfloat16. Nothing is computed: no tensor has values."""
        batch = Batch.stack([challenge(pair, np.random.default_rng(0))])
        shapes = FakeTensorMode()
        unreal = Batch(**{name: shapes.from_tensor(value) for name, value in batch.known().items()})
        with shapes, FlopCounterMode(display=False) as counter:
            network = config.build()
            outcome, kept = forward_pass(network, objective, unreal, is_lower=True, step=step)
            torch.stack([each.weight * each.total for each in outcome.terms]).sum().backward()
        return cls(operations=counter.get_total_flops(), kept=kept)


def cost_volume_operations(config: PWCNetConfig, pairs: int, height: int, width: int) -> float:
    """Of a forward and a backward pass: a product and a sum for each channel, place and displacement, in both
    directions of each pair, and the same again for the gradient of each of the two inputs."""
    levels = range(config.finest_level, len(config.encoder_widths) + 1)
    values: float = sum(config.encoder_widths[level - 1] * height * width / 4**level for level in levels)
    return 2 * pairs * (2 * config.radius + 1) ** 2 * values * 2 * 3


def cpu_seconds(work: Callable[[], object], rounds: int = 1) -> float:
    """CPU time of all threads of this process; the fastest round's."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)
