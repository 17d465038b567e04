import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from flowcore.geometry import backward_warp, flip_left_right, flip_up_down, in_frame
from flowcore.losses import Photometric, Term
from flowcore.networks import BidirectionalFlow, PWCNet, PWCNetConfig
from flowcore.objectives import (
    Estimator,
    Objective,
    Outcome,
    StudentObjective,
    SupervisedObjective,
    TeacherObjective,
    validate_pair,
)
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.photometric import census_distance, robust

few = settings(max_examples=10)
seeds = st.integers(0, 2**31)

PSI_ZERO = 0.01**0.4
"""The robust penalty of nothing."""
OWN_GRIDS = Photometric(full_resolution=False, smoothness_weight=0.0)
"""The loss level by level, each on its own grid."""
FINEST = replace(OWN_GRIDS, level_weights=(1.0,))
CHECK = OcclusionCheck()
# Objectives here are asked at their first step, and so count occluded pixels with one unmasked step.
NOW = {"step": 0, "check": CHECK}
ODD = Photometric(distance="ssim", smoothness_weight=1.0, smoothness_order=2)
EVERY_OBJECTIVE = [
    objective
    for unmasked_steps in (0, 1)
    for objective in (
        TeacherObjective(unmasked_steps=unmasked_steps),
        TeacherObjective(photometric=Photometric(distance="rgb"), unmasked_steps=unmasked_steps),
        TeacherObjective(photometric=ODD, unmasked_steps=unmasked_steps),
        StudentObjective(unmasked_steps=unmasked_steps),
        StudentObjective(view="confidence", photometric_weight=0.5, unmasked_steps=unmasked_steps),
    )
] + [StudentObjective(view="confidence"), SupervisedObjective()]


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def uniform(u: float, v: float, batch: int, height: int, width: int) -> Tensor:
    return torch.tensor([float(u), float(v)]).view(1, 2, 1, 1).repeat(batch, 1, height, width)


def everywhere(batch: Batch, value: bool) -> Tensor:
    return torch.full_like(batch.image1[:, :1], value, dtype=torch.bool)


def pairs(seed: int, batch: int, height: int, width: int, *, labelled: bool = False) -> Batch:
    """Random frames, and random labels if asked for."""
    image1, image2 = random(seed, 2, batch, 3, height, width)
    if not labelled:
        return Batch(image1=image1, image2=image2)
    flow_fw, flow_bw = (random(seed + 1, 2, batch, 2, height, width) - 0.5) * 20
    confidence_fw, confidence_bw = (random(seed + 2, 2, batch, 1, height, width) >= 0.3).float()
    return Batch(
        image1=image1,
        image2=image2,
        flow_fw=flow_fw,
        flow_bw=flow_bw,
        confidence_fw=confidence_fw,
        confidence_bw=confidence_bw,
    )


def trusted(batch: Batch, mask: Tensor) -> Batch:
    """The batch with labels that count where the mask is True, in both directions."""
    return replace(batch, confidence_fw=mask.float(), confidence_bw=mask.clone().float())


def answer(
    forward: Sequence[Tensor], backward: Sequence[Tensor], strides: tuple[int, ...]
) -> BidirectionalFlow:
    """Levels of flow that can be asked for their gradient."""
    return BidirectionalFlow(
        forward=[level.clone().requires_grad_() for level in forward],
        backward=[level.clone().requires_grad_() for level in backward],
        strides=strides,
    )


def estimator(flows: BidirectionalFlow) -> Estimator:
    return lambda image1, image2: flows


def small_network() -> PWCNet:
    torch.manual_seed(0)
    return PWCNetConfig(
        encoder_widths=(4, 6, 8), decoder_widths=(8, 6), context_widths=(8,), finest_level=1, radius=2
    ).build()


def loss(terms: Sequence[Term]) -> Tensor:
    return torch.stack([term.weight * term.total / term.count.clamp(min=1) for term in terms]).sum()


def named(outcome: Outcome, name: str) -> Term:
    (term,) = (term for term in outcome.terms if term.name == name)
    return term


def gradients(terms: Sequence[Term], flows: BidirectionalFlow) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(terms), [*flows.forward, *flows.backward])


def leave_left() -> tuple[Tensor, Tensor]:
    """Motion of 8 px to the left: the student's check finds the first 8 of 32 columns occluded, and the last
    8 in the other frame."""
    return uniform(-8, 0, 1, 16, 32), uniform(8, 0, 1, 16, 32)


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_objectives_are_what_the_training_loop_takes(objective: object) -> None:
    assert isinstance(objective, Objective)


def test_equal_frames_at_rest_cost_the_penalty_of_zero_at_every_pixel_up_to_the_sides() -> None:
    image = random(0, 2, 3, 40, 48)
    still = [torch.zeros(2, 2, 10, 12)]
    flows = answer(still, still, (4,))
    terms = FINEST.terms(Batch(image1=image, image2=image), flows, None)
    assert [term.name for term in terms] == ["photometric/stride4/fw", "photometric/stride4/bw"]
    for term in terms:
        assert term.count.item() == 2 * 10 * 12
        assert term.total.item() == pytest.approx(term.count.item() * PSI_ZERO)


def test_the_true_motion_costs_least_and_less_without_what_left_the_frame() -> None:
    texture = random(3, 1, 3, 20, 40).repeat_interleave(4, 2).repeat_interleave(4, 3)
    # The content of image1 stands 16 px further right in image2.
    batch = Batch(image1=texture[..., 32:128], image2=texture[..., 16:112])

    def cost(u: float, occlusions: tuple[Tensor, Tensor] | None) -> float:
        flows = answer([uniform(u, 0, 1, 20, 24)], [uniform(-u, 0, 1, 20, 24)], (4,))
        return loss(FINEST.terms(batch, flows, occlusions)).item()

    costs = {u: cost(u, None) for u in (-16, 0, 12, 16, 20)}
    assert min(costs, key=costs.__getitem__) == 16
    occ_fw = everywhere(batch, False)
    occ_fw[..., -16:] = True
    assert 2 * PSI_ZERO < cost(16, (occ_fw, occ_fw.flip(-1))) < costs[16]


def test_pixels_deep_inside_the_occlusion_change_neither_the_loss_nor_the_gradient() -> None:
    batch = pairs(0, 1, 80, 80)
    forward, backward = (random(5, 2, 1, 2, 20, 20) - 0.5) * 4
    occluded = everywhere(batch, False)
    occluded[..., 12:60, 12:60] = True  # columns 3 to 14 of the level at stride 4
    deep = (..., slice(7, 11), slice(7, 11))  # whose patches hold occluded pixels alone
    changed = forward.clone()
    changed[deep] += 3.0
    changed_image1 = batch.image1.clone()
    changed_image1[..., 28:44, 28:44] = 0.0
    other = replace(batch, image1=changed_image1)
    before, after = answer([forward], [backward], (4,)), answer([changed], [backward], (4,))
    term, same = (
        FINEST.terms(batch, before, (occluded, occluded))[0],
        FINEST.terms(other, after, (occluded, occluded))[0],
    )
    assert term.count.item() == 20 * 20 - 12 * 12
    assert same.total.item() == term.total.item()
    (gradient,) = torch.autograd.grad(term.total, before.forward)
    (same_gradient,) = torch.autograd.grad(same.total, after.forward)
    assert gradient[deep].eq(0).all()
    assert gradient.count_nonzero() > 0
    assert gradient.equal(same_gradient)


@pytest.mark.parametrize(("occluded_pixels", "counted"), [(7, 49), (8, 48)])
def test_a_coarse_pixel_is_counted_where_more_than_half_of_what_is_under_it_is_visible(
    occluded_pixels: int, counted: int
) -> None:
    batch = pairs(0, 1, 28, 28)
    still = [torch.zeros(1, 2, 7, 7)]
    occluded = everywhere(batch, False)
    occluded[..., 12:16, 12:16] = (torch.arange(16) < occluded_pixels).view(4, 4)
    for term in FINEST.terms(batch, answer(still, still, (4,)), (occluded, occluded)):
        assert term.count.item() == counted


FINAL = Photometric(level_weights=(1.0,), smoothness_weight=0.0)
"""The papers' loss: the final flow alone, at full resolution."""


def texture(seed: int, height: int, width: int) -> Tensor:
    """A random frame without detail finer than two pixels."""
    noise = random(seed, 1, 3, height // 2, width // 2)
    return functional.interpolate(noise, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def shifted(image: Tensor, u: float) -> Tensor:
    """The frame's content u px further right."""
    return backward_warp(image, uniform(-u, 0, 1, *image.shape[-2:]))


@pytest.mark.parametrize("u", [0.25, 0.5, -1.3, 2.75])
def test_at_full_resolution_the_loss_is_least_at_the_true_motion_to_a_tenth_of_a_pixel(u: float) -> None:
    wide = texture(0, 64, 128)
    image1, image2 = wide[..., 16:112], shifted(wide, u)[..., 16:112]
    batch = Batch(image1=image1, image2=image2)

    def cost(guess: float) -> float:
        flow = [uniform(guess, 0, 1, 16, 24)]
        graded = FINAL.graded(answer(flow, [-flow[0]], (4,)), 64, 96)
        return float(loss(FINAL.terms(batch, graded, None)))

    tried = [u + offset / 20 for offset in range(-20, 21)]
    assert min(tried, key=cost) == pytest.approx(u, abs=0.1)


def test_only_the_final_flow_is_graded_at_full_resolution_without_its_border() -> None:
    sizes = {4: (12, 24), 8: (6, 12), 16: (3, 6)}
    still = [torch.zeros(1, 2, *size) for size in sizes.values()]
    outcome = TeacherObjective(photometric=replace(FINAL, level_weights=(1.0, 0.5)))(
        estimator(answer(still, still, tuple(sizes))), pairs(0, 1, 48, 96), **NOW
    )
    assert {term.name: term.count.item() for term in outcome.terms} == {
        "photometric/stride1/fw": 42 * 90,
        "photometric/stride1/bw": 42 * 90,
        "photometric/stride8/fw": 6 * 12,
        "photometric/stride8/bw": 6 * 12,
    }


def test_frames_that_are_all_border_are_refused_with_the_remedy() -> None:
    still = [torch.zeros(1, 2, 6, 32)]
    with pytest.raises(
        ValueError, match=r"\(6, 32\) px are all border for the census.*--augmentation.crop.height"
    ):
        FINAL.terms(pairs(0, 1, 6, 32), answer(still, still, (1,)), None)


@few
@given(seed=seeds)
def test_a_crop_with_its_surroundings_costs_what_its_pixels_cost_in_the_whole_frame(seed: int) -> None:
    margin, height, width = 16, 24, 40
    whole = pairs(seed, 1, height + 2 * margin, width + 2 * margin)
    # Some of it leaves the crop, none of it the frame.
    flow = (random(seed, 2, 1, 2, height + 2 * margin, width + 2 * margin) - 0.5) * 2 * (margin - 1)
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    crop = Batch(
        image1=random(seed + 1, 1, 3, height, width),
        image2=random(seed + 2, 1, 3, height, width),
        scene1=whole.image1,
        scene2=whole.image2,
    )
    blind = everywhere(crop, True)
    own = answer([flow[0][inner]], [flow[1][inner]], (1,))
    # What the check can't see, as it leaves the crop, is seen all the same.
    outside = ~in_frame(flow[0][inner])
    (term, _) = FINAL.terms(crop, own, (~outside, blind))
    whole_seen = backward_warp(whole.image2, flow[0])
    distance = census_distance(whole.image1[inner], whole_seen[inner])[..., 3:-3, 3:-3]
    counted = outside[..., 3:-3, 3:-3]
    assert term.count.item() == counted.sum().item() > 0
    assert term.total.item() == pytest.approx(robust(distance)[counted].sum().item(), rel=1e-4)


def test_the_loss_looks_at_the_clean_frames_and_not_at_the_noise() -> None:
    clean, noisy = pairs(0, 1, 32, 48), pairs(1, 1, 32, 48)
    still = [torch.zeros(1, 2, 32, 48)]
    hard = replace(noisy, scene1=clean.image1, scene2=clean.image2)

    def costs(photometric: Photometric, batch: Batch) -> list[float]:
        return [term.total.item() for term in photometric.terms(batch, answer(still, still, (1,)), None)]

    assert costs(FINAL, hard) == costs(FINAL, clean)
    assert costs(replace(FINAL, clean=False), hard) == costs(FINAL, noisy)


def test_what_lands_outside_the_frame_teaches_nothing() -> None:
    batch = pairs(0, 1, 32, 48)
    inside = everywhere(batch, True)
    filled = inside.clone()
    filled[..., 40:] = False
    batch = replace(batch, inside1=inside, inside2=filled)
    flow = [uniform(8, 0, 1, 32, 48)]
    forward, backward = FINEST.terms(batch, answer(flow, [-flow[0]], (1,)), None)
    # Eight columns of the first frame land on what was filled; of the second as many start there.
    assert (forward.count.item(), backward.count.item()) == (32 * 32, 32 * 40)


def test_where_everything_is_occluded_the_loss_is_zero_with_a_zero_gradient() -> None:
    batch = pairs(0, 2, 40, 40, labelled=True)
    levels = [(random(1, 2, 2, 10, 10) - 0.5) * 4]
    flows = answer(levels, levels, (4,))
    terms = FINEST.terms(batch, flows, (everywhere(batch, True), everywhere(batch, True)))
    assert [term.count.item() for term in terms] == [0, 0]
    assert loss(terms).item() == 0
    assert all(gradient.eq(0).all() for gradient in gradients(terms, flows))


def test_where_nothing_is_hallucinated_the_teacher_says_nothing() -> None:
    batch = pairs(0, 1, 16, 32, labelled=True)
    batch = trusted(batch, everywhere(batch, False))
    forward, backward = leave_left()
    flows = answer([forward], [backward], (1,))
    outcome = StudentObjective(photometric=FINEST)(estimator(flows), batch, **NOW)
    labels = [term for term in outcome.terms if term.name.startswith("distillation")]
    assert [term.count.item() for term in labels] == [0, 0]
    assert loss(labels).item() == 0
    assert all(gradient.eq(0).all() for gradient in gradients(labels, flows))
    assert outcome.watched["hallucinated"].item() == 0


def test_hallucinated_is_what_the_student_cannot_see_and_the_teacher_could() -> None:
    batch = pairs(0, 1, 16, 32, labelled=True)
    assert batch.confidence_fw is not None
    assert batch.confidence_bw is not None
    forward, backward = leave_left()
    flows = answer([forward], [backward], (1,))
    outcome = StudentObjective(photometric=FINEST)(estimator(flows), batch, **NOW)
    student_fw, student_bw = everywhere(batch, False), everywhere(batch, False)
    student_fw[..., :8], student_bw[..., -8:] = True, True
    expected_fw, expected_bw = (
        int((student_fw & (batch.confidence_fw > 0)).sum()),
        int((student_bw & (batch.confidence_bw > 0)).sum()),
    )
    assert 0 < expected_fw < 16 * 8
    assert named(outcome, "distillation/stride1/fw").count.item() == expected_fw
    assert named(outcome, "distillation/stride1/bw").count.item() == expected_bw
    share = (expected_fw + expected_bw) / (2 * 16 * 32)
    assert outcome.watched["hallucinated"].item() == pytest.approx(share)
    assert outcome.watched["occluded"].item() == pytest.approx(8 / 32)


@pytest.mark.parametrize("elsewhere", [1e6, math.nan, math.inf])
@pytest.mark.parametrize("stride", [1, 4])
def test_labels_where_nothing_is_hallucinated_change_neither_the_loss_nor_the_gradient(
    elsewhere: float, stride: int
) -> None:
    batch = pairs(0, 1, 32, 64, labelled=True)
    assert batch.flow_fw is not None
    assert batch.confidence_fw is not None
    objective = StudentObjective(photometric=FINEST)
    left, right = uniform(-8, 0, 1, 32 // stride, 64 // stride), uniform(8, 0, 1, 32 // stride, 64 // stride)
    hallucinated = everywhere(batch, False)
    hallucinated[..., :8] = True
    hallucinated &= batch.confidence_fw > 0
    answers = []
    for label in (batch.flow_fw, torch.where(hallucinated, batch.flow_fw, elsewhere)):
        flows = answer([left], [right], (stride,))
        outcome = objective(estimator(flows), replace(batch, flow_fw=label), **NOW)
        answers.append((loss(outcome.terms), *gradients(outcome.terms, flows)))
        assert named(outcome, f"distillation/stride{stride}/fw").count.item() > 0
    for before, after in zip(*answers, strict=True):
        assert before.isfinite().all()
        assert before.equal(after)


def test_a_label_does_not_pull_where_the_teacher_is_occluded_even_if_the_flow_there_is_not_finite() -> None:
    batch = pairs(0, 1, 16, 32, labelled=True)
    forward, backward = leave_left()
    batch = trusted(batch, everywhere(batch, True))
    assert batch.confidence_fw is not None
    batch.confidence_fw[0, 0, 5, 3] = 0
    forward[0, 0, 5, 3] = math.nan
    flows = answer([forward], [backward], (1,))
    outcome = StudentObjective(photometric=FINEST)(estimator(flows), batch, **NOW)
    term = named(outcome, "distillation/stride1/fw")
    assert term.count.item() == 16 * 8 - 1
    (gradient,) = torch.autograd.grad(term.total, flows.forward)
    assert term.total.isfinite()
    assert gradient.isfinite().all()
    assert gradient.count_nonzero() == 2 * (16 * 8 - 1)
    assert gradient[0, :, 5, 3].eq(0).all()


def test_a_network_that_diverged_has_a_loss_that_is_not_finite() -> None:
    batch = pairs(0, 1, 40, 40)
    flow = torch.zeros(1, 2, 10, 10)
    flow[0, 0, 5, 5] = math.nan
    outcome = TeacherObjective(photometric=FINEST)(
        estimator(answer([flow], [torch.zeros_like(flow)], (4,))), batch, **NOW
    )
    assert loss(outcome.terms).isnan()


def test_a_label_off_by_almost_a_pixel_fits_on_paper() -> None:
    forward, backward = leave_left()
    batch = Batch(
        image1=random(0, 1, 3, 16, 32),
        image2=random(1, 1, 3, 16, 32),
        flow_fw=forward + uniform(0.99, 0, 1, 16, 32),
        flow_bw=backward,
        confidence_fw=torch.ones(1, 1, 16, 32),
        confidence_bw=torch.ones(1, 1, 16, 32),
    )
    flows = answer([forward], [backward], (1,))
    outcome = StudentObjective(photometric=FINEST, distillation_weight=3.0)(estimator(flows), batch, **NOW)
    off, right = named(outcome, "distillation/stride1/fw"), named(outcome, "distillation/stride1/bw")
    assert off.weight == right.weight == 3.0
    assert off.count.item() == right.count.item() == 16 * 8
    # psi(0.99) = 1 for u and psi(0) for v; the right one has psi(0) for both.
    assert off.total.item() == pytest.approx(16 * 8 * (1 + PSI_ZERO))
    assert right.total.item() == pytest.approx(16 * 8 * 2 * PSI_ZERO)


def test_a_label_is_in_pixels_of_the_frame_at_every_level() -> None:
    sizes = {4: (12, 24), 8: (6, 12), 16: (3, 6)}
    left = [uniform(-32, 0, 1, *size) for size in sizes.values()]
    right = [uniform(32, 0, 1, *size) for size in sizes.values()]
    batch = replace(
        pairs(0, 1, 48, 96, labelled=True),
        flow_fw=uniform(-32, 0, 1, 48, 96),
        flow_bw=uniform(32, 0, 1, 48, 96),
    )
    batch = trusted(batch, everywhere(batch, True))
    outcome = StudentObjective(photometric=OWN_GRIDS)(
        estimator(answer(left, right, tuple(sizes))), batch, **NOW
    )
    labels = [term for term in outcome.terms if term.name.startswith("distillation")]
    assert [term.weight for term in labels] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    for term, stride in zip(labels, (4, 4, 8, 8, 16, 16), strict=True):
        assert term.count.item() == 48 * 32 / stride**2
        assert term.total.item() == pytest.approx(term.count.item() * 2 * PSI_ZERO)


@pytest.mark.parametrize("absent", ["flow_fw", "flow_bw", "confidence_fw", "confidence_bw"])
def test_a_student_without_labels_is_an_error_that_says_so(absent: str) -> None:
    batch = replace(pairs(0, 1, 16, 16, labelled=True), **{absent: None})
    with pytest.raises(ValueError, match="needs pseudo-labels; this batch has none"):
        StudentObjective()(small_network(), batch, **NOW)


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
@few
@given(seed=seeds)
def test_terms_of_a_batch_are_the_sum_of_the_terms_of_its_parts(objective: Objective, seed: int) -> None:
    batch = pairs(seed, 3, 32, 48, labelled=True)
    forward, backward = (random(seed, 2, 3, 2, 8, 12) - 0.5) * 12

    def outcome(part: Batch, flows: slice) -> Outcome:
        levels = answer([forward[flows]], [backward[flows]], (4,))
        return objective(estimator(levels), part, **NOW)

    whole = outcome(batch, slice(0, 3))
    parts = [
        outcome(part, flows) for part, flows in zip(batch.split(2), (slice(0, 2), slice(2, 3)), strict=True)
    ]
    added = parts[0] + parts[1]
    assert [term.total for term in added.terms] == [
        a.total + b.total for a, b in zip(*(p.terms for p in parts), strict=True)
    ]
    for term, *split in zip(whole.terms, *(part.terms for part in parts), strict=True):
        assert {(part.name, part.weight) for part in split} == {(term.name, term.weight)}
        assert sum(part.count.item() for part in split) == term.count.item()
        assert sum(part.total.item() for part in split) == pytest.approx(term.total.item(), rel=1e-5)
    for name, value in whole.watched.items():
        assert sum(part.watched[name].item() for part in parts) == pytest.approx(value.item(), rel=1e-5)


@few
@given(seed=seeds)
def test_exchanging_the_frames_exchanges_forward_and_backward(seed: int) -> None:
    batch = pairs(seed, 1, 64, 80, labelled=True)
    # Seven coarse pixels to the right and two down leave the frame.
    motion = uniform(28, 8, 1, 16, 20)
    forward, backward = torch.stack([motion, -motion]) + (random(seed, 2, 1, 2, 16, 20) - 0.5) * 0.2
    objective = StudentObjective(photometric=FINEST)
    there = objective(estimator(answer([forward], [backward], (4,))), batch, **NOW)
    back = objective(estimator(answer([backward], [forward], (4,))), batch.reversed(), **NOW)
    for kind in ("photometric", "distillation"):
        for name, other in (("fw", "bw"), ("bw", "fw")):
            term, same = named(there, f"{kind}/stride4/{name}"), named(back, f"{kind}/stride4/{other}")
            assert 0 < term.count.item() == same.count.item()
            assert term.total.equal(same.total)


@pytest.mark.parametrize(("flip", "axis"), [(flip_left_right, -1), (flip_up_down, -2)])
def test_mirrored_frames_with_mirrored_flow_cost_the_same(
    flip: Callable[[Tensor], Tensor], axis: int
) -> None:
    batch = pairs(0, 1, 40, 48)
    forward, backward = (random(1, 2, 1, 2, 10, 12) - 0.5) * 12
    occluded = random(2, 1, 1, 40, 48) < 0.3
    terms = FINEST.terms(batch, answer([forward], [backward], (4,)), (occluded, occluded))
    mirrored = FINEST.terms(
        Batch(image1=batch.image1.flip(axis), image2=batch.image2.flip(axis)),
        answer([flip(forward)], [flip(backward)], (4,)),
        (occluded.flip(axis), occluded.flip(axis)),
    )
    for term, same in zip(terms, mirrored, strict=True):
        assert term.count.equal(same.count)
        torch.testing.assert_close(term.total, same.total, rtol=1e-4, atol=0)


def test_the_warm_up_counts_occluded_pixels_and_the_check_is_watched_all_the_same() -> None:
    forward, backward = leave_left()
    batch = pairs(0, 1, 16, 32)
    flows = answer([forward], [backward], (1,))
    warm_up = TeacherObjective(photometric=FINEST, unmasked_steps=1)(estimator(flows), batch, **NOW)
    masked = TeacherObjective(photometric=FINEST)(estimator(flows), batch, **NOW)
    assert {term.count.item() for term in warm_up.terms} == {16.0 * 32}
    # Eight of 32 columns are occluded.
    assert {term.count.item() for term in masked.terms} == {16.0 * (32 - 8)}
    assert warm_up.watched == masked.watched
    assert masked.watched["occluded"].item() == pytest.approx(8 / 32)


def test_the_mask_begins_after_the_unmasked_steps_and_is_that_of_the_check() -> None:
    forward, backward = leave_left()
    objective = TeacherObjective(photometric=FINEST, unmasked_steps=5)

    def counted(step: int, check: OcclusionCheck) -> float:
        flows = answer([forward], [backward * 1.5], (1,))
        outcome = objective(estimator(flows), pairs(0, 1, 16, 32), step=step, check=check)
        return named(outcome, "photometric/stride1/fw").count.item()

    # The backward flow misses by four pixels: to the usual check nothing comes back.
    lenient = OcclusionCheck(alpha1=0.0, alpha2=17.0)
    assert [counted(4, CHECK), counted(5, CHECK), counted(5, lenient)] == [512, 0, 16.0 * (32 - 8)]


def test_what_is_watched_fits_on_paper() -> None:
    flow = uniform(3, 4, 2, 8, 8)
    flow[1] = 0.0
    flow[1, 0, :, 4:] = 2.0
    outcome = TeacherObjective(photometric=FINEST)(
        estimator(answer([flow], [flow], (1,))), pairs(0, 2, 8, 8), **NOW
    )
    # The first pair moves by five pixels everywhere; the second by zero or two.
    assert outcome.watched["motion"].item() == pytest.approx(5 + 1)
    # u is one away from its mean at each of 64 pixels and v is 0; the mean over u and v is watched.
    assert outcome.watched["flow_variance"].item() == pytest.approx((64 / 63 + 0) / 2)


def test_a_network_with_more_levels_than_weights_answers_for_its_finest_ones() -> None:
    network = small_network()
    terms = TeacherObjective(photometric=replace(OWN_GRIDS, level_weights=(2.0, 0.5)))(
        network, pairs(0, 1, 32, 32), **NOW
    ).terms
    assert [(term.name, term.weight) for term in terms] == [
        ("photometric/stride2/fw", 2.0),
        ("photometric/stride2/bw", 2.0),
        ("photometric/stride4/fw", 0.5),
        ("photometric/stride4/bw", 0.5),
    ]


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_every_weight_of_a_network_has_a_finite_gradient(objective: Objective) -> None:
    network = small_network()
    batch = pairs(7, 2, 48, 64, labelled=True)
    loss(objective(network, batch, **NOW).terms).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # With the mask fresh weights may have nothing to learn from: what the check says is all occluded.
        is_masked = objective.unmasked_steps == 0 and not isinstance(objective, SupervisedObjective)
        assert is_masked or parameter.grad.count_nonzero() > 0, name


def test_a_small_step_down_the_gradient_lowers_the_loss_by_about_the_slope() -> None:
    network = small_network().double()
    batch = pairs(7, 2, 48, 64)
    batch = Batch(image1=batch.image1.double(), image2=batch.image2.double())
    before = loss(TeacherObjective(unmasked_steps=1)(network, batch, **NOW).terms)
    before.backward()
    steps = [(parameter, parameter.grad) for parameter in network.parameters() if parameter.grad is not None]
    slope = sum(float(gradient.square().sum()) for _, gradient in steps)
    step = 1e-7
    with torch.no_grad():
        for parameter, gradient in steps:
            parameter.sub_(step * gradient)
        after = loss(TeacherObjective(unmasked_steps=1)(network, batch, **NOW).terms)
    assert (before - after).item() == pytest.approx(step * slope, rel=1e-2)


def test_the_confidence_view_learns_every_confident_pixel_and_nothing_from_the_frames() -> None:
    batch = pairs(0, 1, 16, 32, labelled=True)
    assert batch.confidence_fw is not None
    forward, backward = leave_left()
    objective = StudentObjective(view="confidence", photometric=FINEST)
    outcome = objective(estimator(answer([forward], [backward], (1,))), batch, **NOW)
    assert [term.name for term in outcome.terms] == ["distillation/stride1/fw", "distillation/stride1/bw"]
    assert outcome.terms[0].count.item() == batch.confidence_fw.sum().item() > 16 * 8


def test_the_photometric_term_beside_the_confidence_view_has_the_weight_asked_for() -> None:
    batch = pairs(0, 1, 16, 32, labelled=True)
    forward, backward = leave_left()
    flows = answer([forward], [backward], (1,))
    objective = StudentObjective(view="confidence", photometric=FINEST, photometric_weight=0.5)
    term = named(objective(estimator(flows), batch, **NOW), "photometric/stride1/fw")
    alone = named(TeacherObjective(photometric=FINEST)(estimator(flows), batch, **NOW), term.name)
    assert (term.weight, alone.weight) == (0.5, 1.0)
    assert term.total.equal(alone.total)


def test_a_pixel_half_as_sure_pulls_half_as_much() -> None:
    batch = pairs(0, 1, 16, 32, labelled=True)
    flow = uniform(3, -2, 1, 16, 32)
    pulls = []
    for confidence in (1.0, 0.5):
        weights = torch.ones(1, 1, 16, 32)
        weights[..., 4, 7] = confidence
        flows = answer([flow], [flow], (1,))
        objective = StudentObjective(view="confidence", photometric=FINEST)
        outcome = objective(estimator(flows), replace(batch, confidence_fw=weights), **NOW)
        term = named(outcome, "distillation/stride1/fw")
        assert term.count.item() == 16 * 32 - 1 + confidence
        (gradient,) = torch.autograd.grad(term.total, flows.forward)
        pulls.append(gradient[0, :, 4, 7])
    torch.testing.assert_close(pulls[1], pulls[0] / 2)


def test_a_coarse_label_is_the_mean_weighted_by_confidence() -> None:
    label, weights = torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    # three of the four pixels under the coarse one have a label: (1 * 8 + .5 * 2 + .5 * 0) / 2 = 4.5
    label[0, 0, 0, 0], label[0, 0, 0, 1], label[0, 0, 1, 1] = 8.0, 2.0, 1e9
    weights[0, 0, 0, 0], weights[0, 0, 0, 1], weights[0, 0, 1, 0] = 1.0, 0.5, 0.5
    flow = torch.zeros(1, 2, 2, 2)
    batch = replace(pairs(0, 1, 4, 4), flow_fw=label, confidence_fw=weights)
    batch = replace(batch, flow_bw=label, confidence_bw=torch.zeros_like(weights))
    objective = StudentObjective(view="confidence", photometric=FINEST)
    outcome = objective(estimator(answer([flow], [flow], (2,))), batch, **NOW)
    term = named(outcome, "distillation/stride2/fw")
    assert term.count.item() == pytest.approx(2 / 3)
    assert term.total.item() == pytest.approx((4.51**0.4 + PSI_ZERO) * 2 / 3)


@few
@given(seed=seeds)
def test_pixels_from_outside_the_frame_change_no_photometric_loss(seed: int) -> None:
    batch = pairs(seed, 1, 40, 48)
    inside = everywhere(batch, True)
    inside[..., :20] = False
    batch = replace(batch, inside1=inside, inside2=inside)
    still = torch.zeros(1, 2, 40, 48)
    # the census patch and the warp reach three pixels over the line
    image1, image2 = batch.image1.clone(), batch.image2.clone()
    image1[..., :17], image2[..., :17] = 0.0, 1.0
    for distance in ("census", "rgb", "ssim"):
        photometric = replace(FINEST, distance=distance)
        first, second = (
            photometric.terms(each, answer([still], [still], (1,)), None)
            for each in (batch, replace(batch, image1=image1, image2=image2))
        )
        for term, other in zip(first, second, strict=True):
            assert term.count.item() == other.count.item() > 0
            assert term.total.item() == pytest.approx(other.total.item(), rel=1e-5)


def test_the_rgb_loss_is_the_mean_penalty_of_the_channels() -> None:
    image1 = torch.zeros(1, 3, 8, 8)
    image2 = torch.zeros(1, 3, 8, 8)
    image2[:, 0] = 0.99
    still = torch.zeros(1, 2, 8, 8)
    photometric = replace(FINEST, distance="rgb")
    term = photometric.terms(Batch(image1=image1, image2=image2), answer([still], [still], (1,)), None)[0]
    assert term.count.item() == 64
    assert term.total.item() == pytest.approx(64 * (1.0 + 2 * PSI_ZERO) / 3)


def test_supervision_counts_the_pixels_with_truth_at_full_resolution_and_at_every_level() -> None:
    batch = pairs(0, 1, 16, 32)
    valid = torch.zeros(1, 1, 16, 32)
    valid[..., 3, 5] = valid[..., 9, 20] = 1
    truth = torch.where(valid > 0, uniform(4.99, 1, 1, 16, 32), math.nan)
    batch = replace(batch, flow_fw=truth, confidence_fw=valid)
    levels = [uniform(4, 1, 1, 4, 8), uniform(4, 1, 1, 2, 4)]
    outcome = SupervisedObjective()(estimator(answer(levels, levels, (4, 8))), batch, **NOW)
    assert [term.weight for term in outcome.terms] == [1.0, 0.5]
    for term in outcome.terms:
        assert term.count.item() == 2
        # psi(0.99) = 1 for u and psi(0) for v
        assert term.total.item() == pytest.approx(2 * (1 + PSI_ZERO), rel=1e-5)


def test_supervision_by_l1_sums_the_lengths_of_the_errors_in_u_and_v() -> None:
    batch = pairs(0, 1, 16, 32)
    batch = replace(batch, flow_fw=uniform(3, -4, 1, 16, 32), confidence_fw=torch.ones(1, 1, 16, 32))
    still = [uniform(0, 0, 1, 16, 32)]
    (term,) = SupervisedObjective(penalty="l1")(estimator(answer(still, still, (1,))), batch, **NOW).terms
    assert (term.total.item(), term.count.item()) == (7 * 16 * 32, 16 * 32)


def test_motion_that_is_too_long_for_supervision_changes_neither_the_loss_nor_the_count() -> None:
    batch = pairs(0, 1, 16, 32)
    # 5 px on the left half, 50 px on the right one
    truth = uniform(3, -4, 1, 16, 32)
    truth[..., 16:] *= 10
    batch = replace(batch, flow_fw=truth, confidence_fw=torch.ones(1, 1, 16, 32))
    still = [uniform(0, 0, 1, 16, 32)]
    for max_flow, counted in ((50.1, 512), (50.0, 256), (5.0, 0)):
        objective = SupervisedObjective(penalty="l1", max_flow=max_flow)
        (term,) = objective(estimator(answer(still, still, (1,))), batch, **NOW).terms
        assert term.count.item() == counted
        assert term.total.item() == {512: 256 * 7 + 256 * 70, 256: 256 * 7, 0: 0}[counted]


def test_supervision_without_any_motion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_flow 0\.0 must be above 0 px, or none"):
        SupervisedObjective(max_flow=0.0)


def test_supervision_without_truth_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="needs true flow; this batch has none"):
        SupervisedObjective()(small_network(), pairs(0, 1, 16, 16), **NOW)


@pytest.mark.parametrize("objective", [TeacherObjective, StudentObjective])
def test_unmasked_steps_below_zero_are_refused(objective: Callable[..., Objective]) -> None:
    with pytest.raises(ValueError, match="unmasked_steps -1 must not be below 0"):
        objective(unmasked_steps=-1)


def test_negative_weights_of_the_student_are_refused() -> None:
    with pytest.raises(ValueError, match=r"photometric_weight -1\.0 and distillation_weight"):
        StudentObjective(photometric_weight=-1.0)


@pytest.mark.parametrize("weights", [(), (1.0, -0.5)])
def test_level_weights_that_are_none_or_negative_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be at least one number, none below 0"):
        Photometric(level_weights=weights)


def test_perfect_flow_has_the_penalty_of_zero() -> None:
    image, still = random(0, 1, 3, 16, 16), torch.zeros(1, 2, 16, 16)
    perfect = validate_pair(Batch(image1=image, image2=image), still, still, CHECK)
    assert perfect["pairs"] == 1
    assert perfect["visible"] == 2 * 10 * 10
    assert perfect["photometric"] == pytest.approx(200 * PSI_ZERO)
    assert perfect["unmasked"] == perfect["photometric"]
    assert perfect["pixels"] == 200
    assert perfect["occluded"] == perfect["motion"] == perfect["flow_variance"] == 0


def test_uniform_flow_has_its_length_and_is_occluded_where_it_leaves_the_frame() -> None:
    image, image2, flow = random(0, 1, 3, 16, 16), random(1, 1, 3, 16, 16), uniform(3, 4, 1, 16, 16)
    moved = validate_pair(Batch(image1=image, image2=image2), flow, -flow, CHECK)
    assert moved["motion"] == 5
    assert moved["occluded"] == pytest.approx(1 - 13 * 12 / 256)


def test_validation_sums_add() -> None:
    image, still = random(0, 1, 3, 16, 16), torch.zeros(1, 2, 16, 16)
    image2, flow = random(1, 1, 3, 16, 16), uniform(3, 4, 1, 16, 16)
    perfect = validate_pair(Batch(image1=image, image2=image), still, still, CHECK)
    moved = validate_pair(Batch(image1=image, image2=image2), flow, -flow, CHECK)
    both = validate_pair(
        Batch(image1=image.repeat(2, 1, 1, 1), image2=torch.cat([image, image2])),
        torch.cat([still, flow]),
        torch.cat([still, -flow]),
        CHECK,
    )
    for key, value in both.items():
        assert value == pytest.approx(perfect[key] + moved[key])


def test_a_flow_that_is_occluded_everywhere_has_an_unmasked_error_and_no_other() -> None:
    image, image2 = random(0, 1, 3, 16, 16), random(1, 1, 3, 16, 16)
    # both ways to the right: no pixel comes back
    flow = uniform(4, 0, 1, 16, 16)
    blind = validate_pair(Batch(image1=image, image2=image2), flow, flow, CHECK)
    assert blind["visible"] == blind["photometric"] == 0
    assert blind["pixels"] == 200
    assert blind["unmasked"] > 200 * 2 * PSI_ZERO


def test_smoothness_can_be_left_out_and_pulls_only_on_flow_that_changes() -> None:
    batch = pairs(3, 2, 64, 64)
    network = small_network()
    plain = TeacherObjective(photometric=Photometric(smoothness_weight=0.0), unmasked_steps=1)(
        network, batch, **NOW
    )
    assert not [term for term in plain.terms if term.name.startswith("smoothness")]
    smooth = TeacherObjective(photometric=Photometric(smoothness_weight=4.0), unmasked_steps=1)
    terms = {term.name: term for term in smooth(network, batch, **NOW).terms if term.name[:6] == "smooth"}
    assert set(terms) == {"smoothness/stride2/fw", "smoothness/stride2/bw"}
    assert all(term.weight == 4.0 and term.count == 2 and term.total > 0 for term in terms.values())
    flat = [uniform(3.0, 1.0, 2, 16, 16)]
    still = smooth(
        lambda image1, image2: BidirectionalFlow(forward=flat, backward=flat, strides=(4,)),
        batch,
        **NOW,
    )
    assert named(still, "smoothness/stride4/fw").total == 0


def test_a_students_flow_is_smooth_in_either_view_by_a_weight_of_its_own() -> None:
    batch = pairs(3, 2, 64, 64)
    label = torch.zeros(2, 2, 64, 64)
    batch = replace(
        batch, flow_fw=label, flow_bw=label, confidence_fw=label[:, :1], confidence_bw=label[:, :1]
    )
    for view, weight in (("occlusion", 2.0), ("confidence", None)):
        student = StudentObjective(
            view=view,  # type: ignore[arg-type]
            photometric=Photometric(smoothness_weight=4.0),
            photometric_weight=weight,
        )
        term = named(student(small_network(), batch, **NOW), "smoothness/stride2/fw")
        assert term.weight == 4.0
        assert term.total > 0
