"""The laws of an optimiser step, without a trainer: gloo stands for a cluster."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from flowcore.losses import Photometric
from flowcore.networks import BidirectionalFlow, Estimator, FlowNetwork, PWCNetConfig, tiny
from flowcore.objectives import Objective, Outcome, SupervisedObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch, FramePair
from flowcore.scenes import SceneOptions, render_scene
from pipelines.step import OptimiserStep
from pipelines.training_options import Decay, TrainingOptions

NETWORK = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,), radius=2)
CHECK = OcclusionCheck()
# Without a mask, so that fresh weights have something to learn from.
TEACHER = TeacherObjective(unmasked_steps=100)
OPTIONS = TrainingOptions(steps=8, global_batch=5, learning_rate=4e-4, clip_norm=1e9)


@dataclass(frozen=True, kw_only=True)
class Learn:
    objective: Objective = TEACHER
    weight: float = 1.0


SMOOTH = Photometric(distance="rgb", smoothness_weight=1.0, smoothness_order=2)
LESSONS = (Learn(), Learn(objective=replace(TEACHER, photometric=SMOOTH), weight=0.25))


def batch(seed: int, pairs: int = 5) -> Batch:
    image1, image2 = torch.rand(2, pairs, 3, 32, 48, generator=torch.Generator().manual_seed(seed))
    return Batch(image1=image1, image2=image2)


def optimiser(
    options: TrainingOptions = OPTIONS,
    lessons: Sequence[Learn] = (Learn(),),
    wrap: Callable[[Any], Estimator] = lambda network: network,
    world_size: int = 1,
) -> OptimiserStep:
    torch.manual_seed(0)
    return OptimiserStep(NETWORK.build(), lessons, CHECK, options, world_size=world_size, wrap=wrap)


def gradient(step: OptimiserStep) -> Tensor:
    """The gradient of the first step: ten times Adam's first moment."""
    moments = step.state()["optimizer"]["state"]
    return 10 * torch.cat([moments[number]["exp_avg"].flatten() for number in sorted(moments)])


def weights(step: OptimiserStep) -> Tensor:
    return torch.cat([weight.detach().clone().flatten() for weight in step.network.parameters()])


def average(step: OptimiserStep) -> Tensor:
    return torch.cat([weight.detach().clone().flatten() for weight in step.result.parameters()])


def expect_close(one: Tensor, other: Tensor) -> None:
    assert one.abs().max() > 0
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


def test_the_rate_rises_over_the_warm_up_and_falls_along_a_cosine() -> None:
    options = replace(OPTIONS, learning_rate=8.0, steps=100, warmup=0.1, decay="cosine")
    rates = [options.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.8 * (step + 1) for step in range(10)])
    assert rates[10] == 8.0
    assert rates[55] == pytest.approx(4.0)
    assert 0 < rates[-1] < 0.01


def test_the_rate_halves_after_each_quarter() -> None:
    options = replace(OPTIONS, learning_rate=8.0, steps=40, decay="halve")
    assert [options.learning_rate_at(step) for step in (0, 9, 10, 19, 20, 29, 30, 39)] == [
        *(8, 8, 4, 4),
        *(2, 2, 1, 1),
    ]


def test_the_rate_of_one_cycle_rises_over_a_twentieth_and_falls_along_a_line() -> None:
    options = replace(OPTIONS, learning_rate=9.5, steps=100, decay="one-cycle")
    rates = [options.learning_rate_at(step) for step in range(100)]
    assert rates[:5] == pytest.approx([1.9, 3.8, 5.7, 7.6, 9.5])
    assert rates[5:] == pytest.approx([0.1 * left for left in range(95, 0, -1)])
    longer = replace(options, warmup=0.5)
    assert [longer.learning_rate_at(step) for step in (0, 49, 50, 75)] == pytest.approx(
        [0.19, 9.5, 9.5, 4.75]
    )


def test_a_rate_that_halves_late_stays_for_five_sixths_and_then_halves_five_times() -> None:
    options = replace(OPTIONS, learning_rate=8.0, steps=60, decay="halve-late")
    assert {options.learning_rate_at(step) for step in range(51)} == {8.0}
    assert [options.learning_rate_at(step) for step in (52, 54, 56, 58, 60)] == pytest.approx(
        [4.0, 2.0, 1.0, 0.5, 0.25]
    )


@pytest.mark.parametrize("decay", get_args(Decay))
def test_the_rate_of_a_step_does_not_depend_on_how_many_workers_share_it(decay: Decay) -> None:
    one = replace(OPTIONS, steps=40, warmup=0.1, decay=decay)
    several = replace(one, workers=2, min_workers=1, accumulate=2)
    assert [several.learning_rate_at(step) for step in range(40)] == [
        one.learning_rate_at(step) for step in range(40)
    ]


def test_a_constant_rate_is_the_peak_from_the_first_step_to_the_last() -> None:
    assert {OPTIONS.learning_rate_at(step) for step in range(OPTIONS.steps)} == {OPTIONS.learning_rate}


def test_one_step_has_every_schedule_at_its_peak() -> None:
    for decay in get_args(Decay):
        assert replace(OPTIONS, steps=1, warmup=0.9, decay=decay).learning_rate_at(0) == 4e-4


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"workers": 6},
        {"min_workers": 2},
        {"patience": 0},
        {"keep_checkpoints": 1},
        {"keep_every": 3},
        {"keep_every": 0},
        {"accumulate": 6},
        {"held_back_share": 1.0},
        {"held_back_most": 0},
        {"learning_rate": 0.0},
        {"clip_norm": -1.0},
        {"ema_decay": 1.0},
        {"max_skipped": -1},
        {"precision": "float16"},
        {"weight_decay": -1e-4},
        {"warmup": 1.0},
        {"decay": "quadratic"},
        {"accelerator": "tpu"},
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(OPTIONS, **change)


@pytest.mark.parametrize("parts", [2, 5])
def test_a_step_in_parts_has_the_gradient_of_the_whole(parts: int) -> None:
    whole, apart = optimiser(lessons=LESSONS), optimiser(replace(OPTIONS, accumulate=parts), LESSONS)
    facts = [step.take([batch(1), batch(2)]).facts for step in (whole, apart)]
    assert facts[1] == pytest.approx(facts[0], rel=1e-5)
    expect_close(gradient(whole), gradient(apart))


def test_recomputed_activations_and_channels_last_have_the_same_gradient() -> None:
    plain = optimiser()
    cheaper = optimiser(replace(OPTIONS, checkpoint_activations=True, channels_last=True))
    for step in (plain, cheaper):
        step.take([batch(1)])
    # Sums in another order: psi is steep where the frames agree, and rounding grows there.
    expected = gradient(plain)
    torch.testing.assert_close(
        gradient(cheaper), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())
    )


def test_bfloat16_leads_where_float32_leads_with_weights_of_float32() -> None:
    plain, lower = optimiser(), optimiser(replace(OPTIONS, precision="bfloat16"))
    losses = [[step.take([batch(seed)]).facts["loss"] for seed in range(3)] for step in (plain, lower)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] != losses[1]
    assert all(weight.dtype == torch.float32 for weight in lower.network.parameters())


def test_a_long_gradient_is_scaled_down_to_the_limit() -> None:
    free, clipped = optimiser(), optimiser(replace(OPTIONS, clip_norm=0.5))
    norms = [step.take([batch(1)]).facts["gradient_norm"] for step in (free, clipped)]
    # What is logged is the length before.
    assert norms[0] == norms[1] == pytest.approx(float(gradient(free).norm()), rel=1e-4)
    assert norms[0] > 0.5
    assert float(gradient(clipped).norm()) == pytest.approx(0.5, rel=1e-3)
    expect_close(gradient(clipped) * norms[0] / 0.5, gradient(free))


def test_weight_decay_takes_its_share_of_each_weight_times_the_rate() -> None:
    plain, decayed = optimiser(), optimiser(replace(OPTIONS, weight_decay=10.0))
    before = weights(plain)
    for step in (plain, decayed):
        step.take([batch(1)])
    # 10 times the rate of 4e-4
    torch.testing.assert_close(weights(plain) - weights(decayed), 0.004 * before, rtol=1e-3, atol=1e-7)


class Explosive(torch.autograd.Function):
    """The value itself, whose gradient is no number."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


@dataclass(frozen=True)
class Poisoned:
    """The teacher's objective with what `poison` makes of its totals at these steps."""

    poison: Callable[[Tensor], Tensor]
    steps: tuple[int, ...]
    unmasked_steps: int = 100

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        outcome = TEACHER(estimate, batch, step=step, check=check)
        if step not in self.steps:
            return outcome
        return replace(outcome, terms=[replace(t, total=self.poison(t.total)) for t in outcome.terms])


def times_nan(total: Tensor) -> Tensor:
    return total * math.nan


@pytest.mark.parametrize(
    ("poison", "reason"),
    [(times_nan, "the loss of step 1 is nan"), (Explosive.apply, "the gradient of step 1 is not finite")],
)
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(
    poison: Callable[[Tensor], Tensor], reason: str
) -> None:
    step = optimiser(replace(OPTIONS, ema_decay=0.5), (Learn(objective=Poisoned(poison, (1,))),))
    step.take([batch(0)])
    before = weights(step), average(step)
    skipped = step.take([batch(1)])
    assert (skipped.skipped, skipped.facts) == (reason, {})
    assert (step.step, step.skipped) == (2, 1)
    assert torch.equal(weights(step), before[0])
    assert torch.equal(average(step), before[1])
    assert step.take([batch(2)]).skipped is None
    assert torch.isfinite(weights(step)).all()


def test_the_average_keeps_its_share_and_less_in_the_first_steps() -> None:
    plain, step = optimiser(), optimiser(replace(OPTIONS, ema_decay=0.22))
    assert torch.equal(average(step), weights(step))
    # (1 + step) / (10 + step), until it is above 0.22; the first average is the first step's weights.
    for seed, decay in enumerate((0.0, 2 / 11, 0.22, 0.22)):
        before = average(step)
        plain.take([batch(seed)])
        step.take([batch(seed)])
        torch.testing.assert_close(average(step), decay * before + (1 - decay) * weights(step))
    # Training itself is the one without an average.
    assert torch.equal(weights(plain), weights(step))


@pytest.mark.parametrize(
    ("ema_decay", "decay", "weight_decay"),
    [(0.0, "cosine", 0.0), (0.9, "cosine", 0.0), (0.0, "one-cycle", 1.0), (0.0, "halve-late", 0.0)],
)
def test_restored_in_the_middle_training_ends_in_the_same_weights(
    ema_decay: float, decay: Decay, weight_decay: float
) -> None:
    options = replace(OPTIONS, ema_decay=ema_decay, warmup=0.2, decay=decay, weight_decay=weight_decay)
    through, first, second = optimiser(options), optimiser(options), optimiser(options)
    for seed in range(4):
        through.take([batch(seed)])
    for seed in range(2):
        first.take([batch(seed)])
    torch.nn.init.zeros_(next(iter(second.network.parameters())))
    second.result.load_state_dict(first.result.state_dict())
    second.restore(first.state())
    assert (second.step, second.skipped) == (2, 0)
    for seed in range(2, 4):
        second.take([batch(seed)])
    assert torch.equal(weights(second), weights(through))
    assert torch.equal(average(second), average(through))


def test_a_resumed_training_decays_weights_as_its_own_options_say() -> None:
    plain, decayed = optimiser(), optimiser(replace(OPTIONS, weight_decay=10.0))
    state = optimiser().state()
    for step in (plain, decayed):
        step.restore(state)
        step.take([batch(1)])
    assert not torch.equal(weights(plain), weights(decayed))


COMPILED = replace(OPTIONS, ema_decay=0.4)


def train_compiled(_: int, file: Path) -> None:
    """Two steps of a compiled network, in a process in which shapes aren't asserted.

    The graphs are run as they were captured: to make machine code of them takes a minute.
    """
    step = optimiser(COMPILED, wrap=partial(torch.compile, backend="aot_eager"))
    losses = [step.take([batch(seed)]).facts["loss"] for seed in range(2)]
    torch.save({"losses": losses, "state": step.state(), "average": step.result.state_dict()}, file)


def test_a_compiled_step_is_the_plain_one_and_its_state_goes_on_uncompiled(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_compiled, (tmp_path / "state.pt",))
    compiled = torch.load(tmp_path / "state.pt")
    plain, resumed = optimiser(COMPILED), optimiser(COMPILED)
    assert compiled["losses"] == pytest.approx(
        [plain.take([batch(seed)]).facts["loss"] for seed in range(2)], rel=1e-3
    )
    resumed.result.load_state_dict(compiled["average"])
    resumed.restore(compiled["state"])
    losses = [step.take([batch(2)]).facts["loss"] for step in (plain, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_training_without_an_average_begins_one_when_it_is_restored() -> None:
    first, second = optimiser(), optimiser(replace(OPTIONS, ema_decay=0.9))
    first.take([batch(0)])
    second.result.load_state_dict(first.result.state_dict())
    second.restore(first.state())
    assert torch.equal(weights(second), weights(first))
    second.take([batch(1)])
    assert torch.equal(average(second), weights(second))


def test_steps_on_truth_lower_its_error() -> None:
    scene = render_scene(0, SceneOptions(height=64, width=96, num_frames=5))
    pairs = [
        FramePair(
            image1=scene.frames[at],
            image2=scene.frames[at + 1],
            flow_fw=scene.flow_fw[at],
            confidence_fw=np.ones((64, 96), np.float32),
        )
        for at in range(4)
    ]
    truth = Batch.stack(pairs)
    options = replace(OPTIONS, steps=20, global_batch=4, learning_rate=2e-3, clip_norm=1.0)
    step = optimiser(options, (Learn(objective=SupervisedObjective()),))
    losses = [step.take([truth]).facts["loss/supervised"] for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


@dataclass(frozen=True)
class Watching:
    """The teacher's objective; remembers the steps at which it is asked, and the check."""

    asked: list[tuple[int, OcclusionCheck]] = field(default_factory=list)
    unmasked_steps: int = 0

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        self.asked.append((step, check))
        return TEACHER(estimate, batch, step=step, check=check)


def test_an_objective_is_told_the_step_and_the_check_of_the_run() -> None:
    objective = Watching()
    step = optimiser(lessons=(Learn(objective=objective),))
    for seed in range(2):
        step.take([batch(seed)])
    assert objective.asked == [(0, CHECK), (1, CHECK)]


def train_as(rank: int, folder: Path) -> None:
    """One of two workers: three steps in two parts, the second of which one worker alone can't take."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    poison = (1,) if rank == 0 else ()
    lessons = (Learn(objective=Poisoned(times_nan, poison)), LESSONS[1])
    step = optimiser(replace(OPTIONS, accumulate=2, workers=2), lessons, DistributedDataParallel, 2)
    # Neither the workers' shares of five pairs nor their parts are equal.
    share = slice(0, 2) if rank == 0 else slice(2, 5)
    taken, gradients = [], []
    for seed in range(3):
        shares = [
            Batch(**{name: value[share] for name, value in batch(2 * seed + lesson).known().items()})
            for lesson in range(2)
        ]
        taken.append(step.take(shares))
        gradients.append(gradient(step))
    facts = [(each.facts, each.skipped) for each in taken]
    torch.save({"facts": facts, "gradient": gradients[0], "weights": weights(step)}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers was left with."""
    folder = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(train_as, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_workers_in_two_parts_have_the_gradient_of_one_with_the_same_global_batch(
    two_workers: list[dict[str, Any]],
) -> None:
    alone = optimiser(lessons=LESSONS)
    facts = alone.take([batch(0), batch(1)]).facts
    for worker in two_workers:
        expect_close(gradient(alone), worker["gradient"])
        assert worker["facts"][0][0] == pytest.approx(facts, rel=1e-4)


def test_all_workers_skip_a_step_that_one_of_them_can_not_take(two_workers: list[dict[str, Any]]) -> None:
    for worker in two_workers:
        assert [skipped for _, skipped in worker["facts"]] == [None, "the loss of step 1 is nan", None]


def test_all_workers_have_the_same_weights_and_facts_to_the_last_bit(
    two_workers: list[dict[str, Any]],
) -> None:
    one, other = two_workers
    assert torch.equal(one["weights"], other["weights"])
    assert one["facts"] == other["facts"]


def exhausted(network: FlowNetwork) -> Estimator:
    """The network on a device without memory."""

    def estimate(image1: Tensor, image2: Tensor) -> BidirectionalFlow:
        raise torch.OutOfMemoryError("2 GiB more")

    return estimate


def test_where_memory_runs_out_the_error_says_what_to_lower_and_what_it_saves() -> None:
    step = optimiser(replace(OPTIONS, accumulate=2), wrap=exhausted)
    with pytest.raises(RuntimeError, match="has too little memory for a step") as failure:
        step.take([batch(0)])
    remedies = str(failure.value)
    assert "--training.accumulate 4 saves 50%" in remedies
    assert "--training.checkpoint-activations saves about half" in remedies
    assert "these 32x48 px on each side saves 44%" in remedies
    # It can be taken again, with less.
    assert step.step == 0


def test_where_memory_runs_out_in_a_sequence_loss_the_error_names_fewer_iterations() -> None:
    options = replace(OPTIONS, global_batch=1, accumulate=1)
    step = OptimiserStep(tiny()["raft"].build(), [Learn()], CHECK, options, wrap=exhausted)
    with pytest.raises(RuntimeError, match=r"--network\.iterations 1 saves about 67%"):
        step.take([batch(0, 1)])
