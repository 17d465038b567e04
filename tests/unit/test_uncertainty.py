"""How far a network expects to be off: laws of what it learns, of how it is stored, and of what heeds it."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.inputs import Lesson
from flowcore import networks
from flowcore.frame_codec import FrameCodec
from flowcore.inference import InferenceOptions, estimate_frames, estimate_scaled
from flowcore.networks import AnyNetworkConfig, BidirectionalFlow, FlowNetwork, PWCNetConfig, tiny
from flowcore.objectives import StudentObjective, SupervisedObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.pseudolabels import pseudo_labels
from flowcore.self_supervision import SelfSupervision
from flowcore.uncertainty import LEAST, scale_codes, scale_terms, scales_of_codes, trust
from jobs import train_teacher
from pipelines.label_rows import decode_row, decode_uncertainty, label_columns
from pipelines.labels import MEANINGS
from pipelines.step import OptimiserStep
from pipelines.training_options import TrainingOptions

WITH_HEAD = ("pwcnet", "raft_small", "raft")
HEIGHT, WIDTH, MARGIN = 64, 96, 16
CPU = torch.device("cpu")


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def config(name: str, *, uncertainty: bool = True) -> AnyNetworkConfig:
    return dataclasses.replace(tiny()[name], uncertainty=uncertainty)  # type: ignore[call-arg]


def network(name: str, *, uncertainty: bool = True) -> FlowNetwork:
    torch.manual_seed(0)
    return config(name, uncertainty=uncertainty).build()


def crops() -> Batch:
    """Crops from the middle of scenes."""
    scene1, scene2 = random(0, 2, 2, 3, HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN)
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return Batch(image1=scene1[inner], image2=scene2[inner], scene1=scene1, scene2=scene2)


def labelled(confidence: Tensor) -> Batch:
    image1, image2 = random(1, 2, len(confidence), 3, *confidence.shape[-2:])
    flow = torch.zeros(len(confidence), 2, *confidence.shape[-2:])
    return Batch(
        image1=image1,
        image2=image2,
        flow_fw=flow,
        flow_bw=flow,
        confidence_fw=confidence,
        confidence_bw=confidence,
    )


def estimate_of(lengths: Tensor, log_scale: Tensor) -> BidirectionalFlow:
    flow = torch.cat([lengths, torch.zeros_like(lengths)], dim=1)
    return BidirectionalFlow(
        forward=[flow], backward=[flow], strides=(1,), log_scale_fw=log_scale, log_scale_bw=log_scale
    )


def cost(lengths: Tensor, log_scale: Tensor, confidence: Tensor) -> Tensor:
    term, _ = scale_terms(labelled(confidence), estimate_of(lengths, log_scale))
    return term.total / term.count


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), longest=st.floats(0.1, 100.0))
def test_the_likeliest_scale_is_the_mean_length_of_the_error(seed: int, longest: float) -> None:
    lengths = LEAST + longest * random(seed, 1, 1, 4, 5)
    everywhere = torch.ones_like(lengths)
    log_scale = lengths.mean().log().expand_as(lengths).clone().requires_grad_()
    best = cost(lengths, log_scale, everywhere)
    (gradient,) = torch.autograd.grad(best, log_scale)
    # Of one scale for all pixels.
    assert gradient.sum().item() == pytest.approx(0, abs=1e-5)
    for factor in (0.5, 0.9, 1.1, 2.0):
        other = cost(lengths, log_scale.detach() + torch.tensor(factor).log(), everywhere)
        assert other > best


def test_a_pixel_without_a_label_teaches_the_scale_nothing_even_if_the_label_is_nan() -> None:
    confidence = torch.ones(1, 1, 4, 4)
    confidence[..., 0, 0] = 0
    lengths, log_scale = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, requires_grad=True)
    lengths[..., 0, 0] = torch.nan
    value = cost(lengths, log_scale, confidence)
    (gradient,) = torch.autograd.grad(value, log_scale)
    # 1 px off where 1 px is expected: 1 / 1 + log 1.
    assert value.item() == 1
    assert gradient.isfinite().all()
    assert gradient[0, 0, 0, 0] == 0


@pytest.mark.parametrize("name", WITH_HEAD)
def test_a_network_s_flow_is_the_same_with_and_without_a_scale(name: str) -> None:
    plain, scaled = network(name, uncertainty=False), network(name)
    weights = plain.state_dict()
    assert {key for key in scaled.state_dict() if key not in weights} == {
        key for key in scaled.state_dict() if key.startswith("scale.")
    }
    assert all(torch.equal(value, scaled.state_dict()[key]) for key, value in weights.items())
    image1, image2 = random(2, 2, 1, 3, HEIGHT, WIDTH)
    one, other = plain(image1, image2), scaled(image1, image2)
    assert one.log_scale_fw is one.log_scale_bw is None
    for mine, its in zip((*one.forward, *one.backward), (*other.forward, *other.backward), strict=True):
        assert torch.equal(mine, its)
    assert other.log_scale_fw is not None
    assert other.log_scale_fw.shape == (1, 1, *other.forward[0].shape[-2:])


@pytest.mark.parametrize("name", WITH_HEAD)
def test_the_scale_s_gradient_reaches_its_own_head_alone(name: str) -> None:
    scaled = network(name)
    flows = scaled(*random(2, 2, 1, 3, HEIGHT, WIDTH))
    assert flows.log_scale_fw is not None
    flows.log_scale_fw.sum().backward()
    reached = {key for key, weight in scaled.named_parameters() if weight.grad is not None}
    assert reached == {key for key, _ in scaled.named_parameters() if key.startswith("scale.")}


def test_a_pair_seen_backwards_has_its_scales_swapped() -> None:
    scaled = network("pwcnet").eval()
    image1, image2 = random(2, 2, 1, 3, HEIGHT, WIDTH)
    there, back = scaled(image1, image2), scaled(image2, image1).reversed()
    assert there.log_scale_fw is not None
    assert back.log_scale_fw is not None
    torch.testing.assert_close(there.log_scale_fw, back.log_scale_fw)


@pytest.mark.parametrize("name", WITH_HEAD)
def test_frames_in_steps_have_the_scales_of_all_at_once(name: str) -> None:
    scaled, frames = network(name).eval(), random(3, 4, 3, HEIGHT, WIDTH)
    at_once, in_steps = (scaled.estimate_both(frames, steps) for steps in (None, 1))
    assert at_once.log_scale_bw is not None
    assert in_steps.log_scale_bw is not None
    torch.testing.assert_close(at_once.log_scale_bw, in_steps.log_scale_bw, rtol=1e-4, atol=1e-4)


def test_a_configuration_from_before_there_were_scales_has_none() -> None:
    values = networks.to_dict(tiny()["pwcnet"])
    assert values.pop("uncertainty") is False
    assert networks.from_dict(values) == tiny()["pwcnet"]


@pytest.mark.parametrize("name", ["flownetc", "pwcnet"])
def test_a_network_without_a_scale_names_those_that_have_one(name: str) -> None:
    plain = tiny()[name].build()
    features = plain.encode(random(2, 1, 3, HEIGHT, WIDTH))
    with pytest.raises(ValueError, match=r"PWC-Net and RAFT do .* --network\.uncertainty"):
        plain.decode_with_scale(features, features)


def asked_for(scaled: FlowNetwork) -> dict[str, tuple[object, Batch]]:
    confidence = torch.ones(2, 1, HEIGHT, WIDTH)
    return {
        "teacher": (TeacherObjective(), crops()),
        "student": (StudentObjective(), labelled(confidence)),
        "truth": (SupervisedObjective(), labelled(confidence)),
    }


@pytest.mark.parametrize("stage", ["teacher", "student", "truth"])
def test_every_stage_teaches_the_scale_and_every_weight_has_a_gradient(stage: str) -> None:
    scaled = network("pwcnet").train()
    objective, batch = asked_for(scaled)[stage]
    outcome = objective(scaled, batch, step=0, check=OcclusionCheck())  # type: ignore[operator]
    names = {term.name for term in outcome.terms}
    assert {"uncertainty/fw", "uncertainty/bw"} <= names
    sum(term.weight * term.total for term in outcome.terms).backward()
    assert all(weight.grad is not None for name, weight in scaled.named_parameters() if "scale" in name)
    assert any(weight.grad.abs().sum() > 0 for name, weight in scaled.named_parameters() if "scale" in name)  # type: ignore[union-attr]


def test_before_its_beginning_a_scale_has_a_gradient_of_zero_and_the_network_is_asked_once() -> None:
    scaled = network("pwcnet").train()
    objective = TeacherObjective(self_supervision=SelfSupervision(begins=10))
    asked = []

    def estimate(image1: Tensor, image2: Tensor) -> BidirectionalFlow:
        asked.append(image1.shape)
        return scaled(image1, image2)

    outcome = objective(estimate, crops(), step=9, check=OcclusionCheck())
    sum(term.weight * term.total for term in outcome.terms).backward()  # type: ignore[union-attr]
    assert len(asked) == 1
    for name, weight in scaled.named_parameters():
        if name.startswith("scale."):
            assert weight.grad is not None
            assert not weight.grad.any()
    objective(estimate, crops(), step=10, check=OcclusionCheck())
    assert len(asked) == 3


def test_a_network_learns_the_same_flow_with_a_scale_as_without() -> None:
    options = TrainingOptions(steps=2, learning_rate=1e-3)
    learnt = []
    for uncertainty in (False, True):
        lessons = [Lesson(objective=TeacherObjective())]
        step = OptimiserStep(network("pwcnet", uncertainty=uncertainty), lessons, OcclusionCheck(), options)
        for _ in range(options.steps):
            assert step.take([crops()]).skipped is None
        learnt.append(step.result.state_dict())
    plain, scaled = learnt
    assert all(torch.equal(weight, scaled[name]) for name, weight in plain.items())
    fresh = network("pwcnet").state_dict()
    assert not any(torch.equal(fresh[name], scaled[name]) for name in scaled if name.startswith("scale."))


def test_a_teacher_s_scale_without_surroundings_is_refused_by_its_options() -> None:
    options = train_teacher.recipes()["smoke"][1]
    with pytest.raises(ValueError, match=r"--augmentation\.surroundings is 0 px"):
        dataclasses.replace(options, network=config("pwcnet"))


@settings(max_examples=50)
@given(st.lists(st.floats(LEAST, 1e6), min_size=1, max_size=20))
def test_a_stored_scale_comes_back_within_its_rule_s_bound(scales: list[float]) -> None:
    scale = torch.tensor(scales)
    codes = scale_codes(scale)
    assert codes.dtype == np.uint8
    # A step is 2^(1/8), and rounding misses by half of it at most.
    np.testing.assert_allclose(np.log2(scales_of_codes(codes)), np.log2(scales), atol=1 / 16 + 1e-4)


def test_the_contract_of_labels_tells_the_codes_rule() -> None:
    assert "code c stands for 2^(c / 8) / 64 px" in MEANINGS["uncertainty_fw"]
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(scales_of_codes(codes), 2.0 ** (codes / 8) / 64, rtol=1e-5)


def test_scales_beyond_the_codes_are_the_first_and_the_last() -> None:
    codes = scale_codes(torch.tensor([0.0, 1 / 64, 1.0, torch.inf]))
    assert codes.tolist() == [0, 0, 48, 255]
    with pytest.raises(ValueError, match="diverged"):
        scale_codes(torch.tensor([torch.nan]))


def test_trust_falls_to_nothing_with_the_expected_error() -> None:
    found = trust(np.array([0.0, 2.0, np.inf], np.float32), 2.0)
    np.testing.assert_allclose(found, [1, np.exp(-1), 0], rtol=1e-6)


class Sure(FlowNetwork):
    """Answers that nothing moves, and that it expects to be off by so many pixels."""

    multiple = 8
    strides = (4,)
    predicts_scale = True

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def encode(self, images: Tensor) -> list[Tensor]:
        return [images]

    def decode_with_scale(
        self, features1: list[Tensor], features2: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        flow = torch.zeros(len(features1[0]), 2, *(side // 4 for side in features1[0].shape[-2:]))
        return [flow], torch.full_like(flow[:, :1], self.scale).log()


def frames(count: int = 3) -> Tensor:
    return random(4, count, 3, 40, 80)


def test_the_scale_of_several_teachers_is_their_mean() -> None:
    labels = pseudo_labels([Sure(1.0), Sure(3.0)], frames(), OcclusionCheck())
    assert labels.uncertainty_fw is not None
    assert labels.uncertainty_fw.shape == (2, 1, 10, 20)
    torch.testing.assert_close(labels.uncertainty_fw, torch.full((2, 1, 10, 20), 2.0))
    assert labels.uncertainty is not None
    assert labels.uncertainty.tolist() == pytest.approx([2, 2])


def test_a_label_of_the_first_teacher_that_agrees_has_that_teacher_s_scale() -> None:
    # Nothing moves by either, so the first one agrees everywhere.
    labels = pseudo_labels([Sure(1.0), Sure(3.0)], frames(), OcclusionCheck(), merge="first")
    assert labels.uncertainty_fw is not None
    torch.testing.assert_close(labels.uncertainty_fw, torch.ones(2, 1, 10, 20))


def test_labels_of_teachers_of_which_one_predicts_no_scale_have_none() -> None:
    teachers = [network("pwcnet").eval(), network("pwcnet", uncertainty=False).eval()]
    labels = pseudo_labels(teachers, frames(), OcclusionCheck())
    assert labels.uncertainty_fw is labels.uncertainty_bw is labels.uncertainty is None
    assert "uncertainty_fw" not in label_columns(labels, "aa").column_names


def row_of(scale: float) -> dict[str, object]:
    labels = pseudo_labels([Sure(scale)], frames(2), OcclusionCheck())
    (row,) = label_columns(labels, "aa").to_pylist()
    encoded = FrameCodec("png").encode(np.zeros((40, 80, 3), np.uint8))
    return {**row, "height": 40, "width": 80, "image1": encoded, "image2": encoded}


def test_a_label_weighs_what_its_teacher_expects_of_it() -> None:
    row = row_of(2.0)
    assert decode_uncertainty(row).shape == (40, 80)
    assert (decode_uncertainty(row) == 2).all()
    plain, weighed = decode_row(row), decode_row(row, uncertainty_tolerance=2.0)
    assert plain.confidence_fw is not None
    assert weighed.confidence_fw is not None
    assert plain.confidence_fw.any()
    np.testing.assert_allclose(weighed.confidence_fw, plain.confidence_fw * np.exp(-1), rtol=1e-6)


def test_a_label_that_is_expected_to_be_anywhere_counts_nothing() -> None:
    weighed = decode_row(row_of(1e9), uncertainty_tolerance=1.0)
    assert weighed.confidence_fw is not None
    assert not weighed.confidence_fw.any()


def test_the_scale_of_frames_of_any_size_is_in_their_own_pixels() -> None:
    shown = [np.zeros((50, 70, 3), np.uint8)] * 3
    for options in (InferenceOptions(), InferenceOptions(scale=(0.5,)), InferenceOptions(scale=(0.5, 1.0))):
        scales = [scale for _, _, scale in estimate_scaled(Sure(2.0), shown, CPU, options, both=False)]
        # A pixel of the smaller frames is two of these.
        wanted = torch.full((2, 1, 50, 70), 2.0 / options.scale[0])
        torch.testing.assert_close(torch.cat(scales), wanted)


class Split(Sure):
    """Says of frames of 70 px that all moves by 9 px there and back, which agrees nowhere. Of smaller ones
    it says that nothing moves."""

    def decode_with_scale(
        self, features1: list[Tensor], features2: list[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        (flow,), scale = super().decode_with_scale(features1, features2)
        if features1[0].shape[-1] >= 70:
            flow += 9.0
        return [flow], scale


def test_of_several_scales_the_error_that_is_expected_is_that_of_the_flow_that_is_taken() -> None:
    shown = [np.zeros((50, 70, 3), np.uint8)] * 2
    options = InferenceOptions(scale=(1.0, 0.5))
    ((flow, _, scale),) = estimate_scaled(Split(2.0), shown, CPU, options, both=False)
    assert not flow.any()
    torch.testing.assert_close(scale, torch.full((1, 1, 50, 70), 4.0))


def test_with_its_scale_a_network_gives_the_flow_that_it_gives_without() -> None:
    scaled = network("pwcnet").eval()
    shown = [np.asarray(frame) for frame in (255 * random(5, 3, 50, 70, 3)).byte().numpy()]
    ((there, back, scale),) = estimate_scaled(scaled, shown, CPU, InferenceOptions(), both=True)
    ((flow_fw, flow_bw),) = estimate_frames(scaled, shown, CPU, InferenceOptions(), both=True)
    assert torch.equal(there, flow_fw)
    assert flow_bw is not None
    assert torch.equal(back, flow_bw)
    assert scale.shape == (2, 1, 50, 70)
    assert (scale > 0).all()


def test_a_network_without_a_scale_is_not_asked_for_one() -> None:
    shown = [np.zeros((50, 70, 3), np.uint8)] * 2
    with pytest.raises(ValueError, match=r"--network\.uncertainty"):
        next(estimate_scaled(PWCNetConfig().build(), shown, CPU, InferenceOptions(), both=False))
