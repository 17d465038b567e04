"""What a GPU computes is what a CPU computes; most of these need a GPU."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowcore import networks
from flowcore.frame_codec import FrameCodec
from flowcore.losses import Photometric
from flowcore.networks import AnyNetworkConfig, PWCNetConfig
from flowcore.networks.correlation import cost_volume
from flowcore.objectives import StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.passes import passes_for
from flowcore.photometric import census_distance
from flowcore.pseudolabels import pseudo_labels
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import Flow, Mask, to_images
from flowcore.video import ClipOptions
from pipelines.checkpoints import WEIGHTS_FILE, load_model, save_model
from pipelines.decoding_answers import EncodedChunk
from pipelines.labelling_plan import Plan
from pipelines.messages import Shard
from pipelines.models import BEST, fetch_model
from pipelines.step import OptimiserStep
from pipelines.teachers import TeacherModel, precision
from pipelines.teaching import Teacher, Teaching
from pipelines.training_options import TrainingOptions

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=on_a_gpu)]
TINY = PWCNetConfig(
    encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,), learned_upsampling=True
)
OBJECTIVES = {
    "teacher": TeacherObjective(unmasked_steps=5),
    "range map": TeacherObjective(photometric=Photometric(smoothness_order=2)),
    "occlusion view": StudentObjective(),
    "confidence view": StudentObjective(view="confidence", photometric_weight=1.0),
}


@dataclass(frozen=True, kw_only=True)
class Learn:
    objective: TeacherObjective | StudentObjective
    weight: float = 1.0


def batch(seed: int, device: str, margin: int = 8) -> Batch:
    """Frames that the loss sees more of, with labels."""
    generator = torch.Generator().manual_seed(seed)
    scene1 = torch.rand(2, 3, 64 + 2 * margin, 64 + 2 * margin, generator=generator)
    scene2 = 0.7 * scene1 + 0.3 * torch.rand(scene1.shape, generator=generator)
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    flow_fw, flow_bw = 2 * torch.randn(2, 2, 2, 64, 64, generator=generator)
    confidence_fw, confidence_bw = torch.rand(2, 2, 1, 64, 64, generator=generator)
    inside = torch.ones(2, 1, *scene1.shape[-2:], dtype=torch.bool)
    inside[..., :5] = False
    whole = Batch(
        image1=scene1[inner],
        image2=scene2[inner],
        scene1=scene1,
        scene2=scene2,
        inside1=inside,
        inside2=inside,
        flow_fw=flow_fw,
        flow_bw=flow_bw,
        confidence_fw=confidence_fw,
        confidence_bw=confidence_bw,
    )
    return Batch(**{name: value.to(device) for name, value in whole.known().items()})


def optimiser(
    name: str, device: str, config: AnyNetworkConfig = TINY, *, replayed: bool = True, **options: Any
) -> OptimiserStep:
    torch.manual_seed(0)
    check = OcclusionCheck(kind="range-map" if name == "range map" else "forward-backward")
    training = TrainingOptions(**{"steps": 20, "global_batch": 2, "learning_rate": 1e-3, **options})
    lessons = [Learn(objective=OBJECTIVES[name])]
    where = torch.device(device)
    return OptimiserStep(config.build(), lessons, check, training, device=where, replayed=replayed)


def expect_close_gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, Tensor], tolerance: float
) -> None:
    """Value and gradients of the function on the GPU and on the CPU."""
    found = []
    for device in ("cpu", "cuda"):
        here = [each.detach().to(device).requires_grad_() for each in inputs]
        value = function(*here)
        weight = torch.rand(value.shape, generator=torch.Generator().manual_seed(1)).to(device)
        found.append([each.cpu() for each in (value, *torch.autograd.grad(value, here, weight))])
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=tolerance * float(mine.abs().max()))


@on_a_gpu
@pytest.mark.parametrize("size", [(33, 50), (8, 7), (5, 9)])
def test_the_census_distance_of_a_gpu_is_that_of_a_cpu(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image1, image2 = torch.rand(2, 2, 3, *size, generator=generator) * 0.02 + 0.5
    expect_close_gradients(census_distance, (image1, image2), 1e-4)


@on_a_gpu
@pytest.mark.parametrize(("channels", "radius"), [(5, 2), (33, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_cost_volume_of_a_gpu_is_that_of_a_cpu(channels: int, radius: int, layout: Any) -> None:
    features = torch.randn(2, 2, channels, 12, 21, generator=torch.Generator().manual_seed(0))
    first, second = (each.contiguous(memory_format=layout) for each in features)
    expect_close_gradients(lambda one, two: cost_volume(one, two, radius), (first, second), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
def test_a_frame_that_needs_no_gradient_gets_none_and_the_other_one_what_it_gets_with_it(
    device: str, needed: tuple[bool, bool]
) -> None:
    generator = torch.Generator().manual_seed(0)
    grey1, grey2, weight = 100 * torch.rand(3, 2, 1, 12, 21, generator=generator).to(device)
    features1, features2 = torch.randn(2, 2, 5, 12, 21, generator=generator).to(device)
    weights = torch.randn(2, 25, 12, 21, generator=generator).to(device)
    passes, _ = passes_for(grey1)
    for gradients in (
        lambda which: passes.census_gradients(grey1, grey2, weight, which, 3, 0.81, 0.1),
        lambda which: passes.cost_volume_gradients(features1, features2, weights, which, 2),
    ):
        for is_needed, mine, its in zip(needed, gradients(needed), gradients((True, True)), strict=True):
            assert mine is None if not is_needed else torch.equal(mine, its)


def test_a_first_frame_that_is_given_gets_no_gradient_and_the_second_one_its_own() -> None:
    first, second = torch.rand(2, 1, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    for function in (census_distance, partial(cost_volume, radius=2)):
        both = [each.clone().requires_grad_() for each in (first, second)]
        one = second.clone().requires_grad_()
        function(*both).square().sum().backward()
        function(first, one).square().sum().backward()
        assert torch.equal(one.grad, both[1].grad)


# Steps so short that rounding, which longer ones let grow to a tenth of the loss within ten steps, stays
# rounding: that of TF32 changes a loss by four ten-thousandths.
SHORT = 1e-6


def moments(step: OptimiserStep, name: str) -> Tensor:
    """Of Adam."""
    states = step.state()["optimizer"]["state"].values()
    return torch.cat([each[name].flatten().cpu() for each in states])


def expect_same_steps(one: OptimiserStep, other: OptimiserStep) -> None:
    """Through the three steps before a replay is captured, some replayed, and the mask that begins among
    them. Gradients point the same way; their lengths follow rounding more than the loss does."""
    for seed in range(12):
        losses = [step.take([batch(seed, step.device.type)]).facts["loss"] for step in (one, other)]
        assert losses[1] == pytest.approx(losses[0], rel=2e-3)
        mine, its = moments(one, "exp_avg"), moments(other, "exp_avg")
        assert torch.dot(mine, its) > 0.5 * mine.norm() * its.norm()
        assert torch.equal(moments(one, "step"), moments(other, "step"))


@on_a_gpu
@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_of_a_gpu_are_those_of_a_cpu_through_every_phase(name: str) -> None:
    cpu, gpu = (optimiser(name, device, learning_rate=SHORT, ema_decay=0.9) for device in ("cpu", "cuda"))
    expect_same_steps(cpu, gpu)


@on_a_gpu
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"checkpoint_activations": True}])
def test_replayed_steps_are_the_steps_themselves(options: dict[str, Any]) -> None:
    launched, replayed = (
        optimiser("teacher", "cuda", replayed=replayed, learning_rate=SHORT, **options)
        for replayed in (False, True)
    )
    expect_same_steps(launched, replayed)


@on_a_gpu
@pytest.mark.parametrize("config", networks.tiny().values(), ids=list(networks.tiny()))
def test_every_network_is_replayed_in_bfloat16(config: AnyNetworkConfig) -> None:
    step = optimiser("occlusion view", "cuda", config, precision="bfloat16", channels_last=True)
    for seed in range(6):
        assert step.take([batch(seed, "cuda")]).skipped is None


@on_a_gpu
def test_steps_are_at_work_until_the_gpu_has_ended_them() -> None:
    step = optimiser("teacher", "cuda")
    for seed in range(6):
        taken = step.take([batch(seed, "cuda")])
    # To look is to wait.
    assert taken.facts["loss"] > 0
    torch.cuda.synchronize()
    assert not step.is_at_work


@on_a_gpu
def test_a_step_that_is_not_finite_changes_nothing_on_a_gpu() -> None:
    step = optimiser("teacher", "cuda")
    for seed in range(5):
        step.take([batch(seed, "cuda")])
    before = [weight.detach().clone() for weight in step.network.parameters()]
    broken = batch(9, "cuda")
    skipped = step.take([replace(broken, scene2=broken.scene2 * float("nan"))])
    assert skipped.skipped == "the loss of step 5 is nan"
    assert step.skipped == 1
    assert all(torch.equal(*both) for both in zip(before, step.network.parameters(), strict=True))
    assert step.take([batch(6, "cuda")]).skipped is None


@pytest.mark.parametrize(
    ("capability", "convolutions", "products", "expected"),
    [
        (None, True, True, "float32"),
        ((7, 5), True, True, "float32"),
        ((9, 0), False, False, "float32"),
        ((9, 0), True, False, "tf32"),
        ((8, 0), False, True, "tf32"),
    ],
)
def test_labels_are_of_tf32_where_a_card_has_it_and_torch_lets_it(
    capability: tuple[int, int] | None, convolutions: bool, products: bool, expected: str
) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32, matmul.allow_tf32 = convolutions, products
        assert precision(capability) == expected
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def shard(number: int, codec: FrameCodec) -> Shard:
    """Three pairs of noise."""
    frames = np.random.default_rng(number).integers(0, 256, (4, 48, 64, 3), np.uint8)
    chunk = EncodedChunk(
        index=0,
        frames=[codec.encode(frame) for frame in frames],
        frame_indices=[*range(4)],
        timestamps=[0.0] * 4,
        height=48,
        width=64,
    )
    return Shard(video="v", folder="v", number=number, pairs=3, share=1.0, chunks=(chunk,))


@dataclass(frozen=True)
class CountedCodec(FrameCodec):
    """Tells when the frames of two shards are decoded."""

    seen: list[bytes] = field(default_factory=list, compare=False)
    both: Event = field(default_factory=Event, compare=False)

    def decode(self, data: bytes, size: tuple[int, int] | None = None) -> Any:
        self.seen.append(data)
        if len(self.seen) == 8:
            self.both.set()
        return super().decode(data, size)


LENIENT = 1e6
"""A fresh network's flow would be occluded everywhere."""


@dataclass(frozen=True, kw_only=True)
class AloneOnTheDevice(OcclusionCheck):
    """Waits, while it has the device, until the next shard is decoded; fails if another one has it, too."""

    both: Event
    taken: Lock = field(default_factory=Lock)

    def __call__(self, flow_fw: Flow, flow_bw: Flow) -> Mask:
        assert self.taken.acquire(blocking=False)
        assert self.both.wait(timeout=60)
        occluded = super().__call__(flow_fw, flow_bw)
        self.taken.release()
        return occluded


@pytest.mark.parametrize("device", DEVICES)
def test_a_teacher_decodes_a_shard_while_another_one_has_the_device_alone(
    device: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    digest = save_model(tmp_path, TINY.build(), {})
    codec = CountedCodec()
    plan = Plan(
        run="",
        location=str(tmp_path),
        label_set="",
        clips=ClipOptions(),
        codec=codec,
        shard_pairs=3,
        row_group_pairs=3,
        is_labelled=True,
    )
    teaching = Teaching(
        teachers=(TeacherModel(digest, TINY, WEIGHTS_FILE),),
        check=AloneOnTheDevice(both=codec.both, alpha2=LENIENT),
    )
    tables = [shard(number, codec).to_arrow() for number in range(4)]

    def labelled(teacher: Teacher, table: pa.Table) -> Shard:
        (done,) = teacher(table)
        return Shard.from_arrow(done)

    together = Teacher(plan, teaching, device, shards_at_once=2)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda table: labelled(together, table), tables))
    alone = Teacher(plan, replace(teaching, check=OcclusionCheck(alpha2=LENIENT)), device)
    for one, table in zip(found, tables, strict=True):
        assert one.failure == ""
        assert one.labels.equals(labelled(alone, table).labels)


@on_a_gpu
@pytest.mark.parametrize("three_frames", [False, True])
def test_the_labels_of_a_gpu_are_those_of_a_cpu(three_frames: bool) -> None:
    scene = render_scene(0, SceneOptions(height=192, width=256, num_frames=4))
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        network, _ = load_model(fetch_model(BEST))
        frames = to_images(scene.frames, device)
        teachers = [network.ready(device)]
        found.append(pseudo_labels(teachers, frames, OcclusionCheck(), three_frames=three_frames).cpu())
    mine, its = found
    for name in ("flow_fw", "flow_bw"):
        apart = (getattr(mine, name) - getattr(its, name)).norm(dim=1)
        assert (apart < 1 / 64).float().mean() >= 0.999
    for name in ("occ_fw", "occ_bw"):
        assert (getattr(mine, name) == getattr(its, name)).float().mean() >= 0.999
    for name in ("flow_p50", "flow_p99", "photometric", "forward_backward"):
        torch.testing.assert_close(getattr(mine, name), getattr(its, name), rtol=0.01, atol=1 / 64)


class NoWait(TorchDispatchMode):
    """Refuses what makes a GPU's driver wait: values that Python asks for, constants that it sends, and
    results whose size is a value."""

    forbidden = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "unique", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(func.name().startswith(f"aten::{name}") for name in self.forbidden), func.name()
        assert not (func.name().startswith("aten::index.") and _has_mask(args)), func.name()
        return func(*args, **kwargs or {})


def _has_mask(args: Any) -> bool:
    return any(each is not None and each.dtype == torch.bool for each in args[1])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("network", networks.tiny())
def test_a_step_asks_the_device_for_nothing(name: str, network: str) -> None:
    step = optimiser(name, "cpu", networks.tiny()[network], ema_decay=0.5, checkpoint_activations=True)
    pairs = batch(0, "cpu")
    with NoWait():
        taken = step.take([pairs])
    assert taken.facts["loss"] > 0
