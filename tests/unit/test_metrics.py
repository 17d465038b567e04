import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowcore.metrics import (
    FlowErrors,
    OcclusionCounts,
    Sparsification,
    endpoint_error,
    flow_errors,
    occlusion_counts,
    sparsification,
)

few = settings(max_examples=50)


def uniform(u: float, v: float, height: int = 2, width: int = 3) -> Tensor:
    return torch.tensor([u, v]).view(1, 2, 1, 1).expand(1, 2, height, width)


def everywhere(flow: Tensor) -> Tensor:
    return torch.ones_like(flow[:, :1], dtype=torch.bool)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, height, width = draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    truth = torch.randn(batch, 2, height, width, generator=random) * 20
    flow = truth + torch.randn(batch, 2, height, width, generator=random) * 3
    valid = torch.rand(batch, 1, height, width, generator=random) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    occluded = torch.rand(batch, 1, height, width, generator=random) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return flow, truth, valid, occluded


def test_a_pixel_three_right_and_four_down_is_five_away() -> None:
    error = endpoint_error(uniform(4.0, 6.0), uniform(1.0, 2.0))
    assert error.shape == (1, 1, 2, 3)
    assert error.eq(5.0).all()


def test_the_error_of_the_truth_is_zero_and_so_is_its_gradient() -> None:
    flow = uniform(1.0, 2.0).clone().requires_grad_()
    endpoint_error(flow, uniform(1.0, 2.0)).sum().backward()
    assert flow.grad is not None
    assert flow.grad.eq(0).all()


@few
@given(batches())
def test_errors_of_the_whole_are_the_sum_of_the_parts(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    parts = [flow_errors(*(tensor[i : i + 1] for tensor in batch)) for i in range(len(batch[0]))]
    added, whole = sum(parts, FlowErrors()), flow_errors(*batch)
    assert (added.pixels_all, added.pixels_noc, added.pixels_occ, added.outliers) == (
        whole.pixels_all,
        whole.pixels_noc,
        whole.pixels_occ,
        whole.outliers,
    )
    for name in ("error_all", "error_noc", "error_occ"):
        assert getattr(added, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    assert whole.pixels_all == whole.pixels_noc + whole.pixels_occ
    assert whole.error_all == pytest.approx(whole.error_noc + whole.error_occ, rel=1e-12)


@few
@given(batches())
def test_errors_equal_a_slow_loop_over_pixels(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    flow, truth, valid, occluded = batch
    errors: dict[bool, list[float]] = {True: [], False: []}
    outliers = 0
    for b, _, y, x in valid.nonzero().tolist():
        (u, v), (true_u, true_v) = flow[b, :, y, x].tolist(), truth[b, :, y, x].tolist()
        error = math.hypot(u - true_u, v - true_v)
        errors[bool(occluded[b, 0, y, x])].append(error)
        outliers += error > 3 and error > 0.05 * math.hypot(true_u, true_v)
    summary = flow_errors(*batch).summary()
    for region, values in (
        ("noc", errors[False]),
        ("occ", errors[True]),
        ("all", errors[False] + errors[True]),
    ):
        expected = sum(values) / len(values) if values else None
        assert summary["epe"][region] == (None if expected is None else pytest.approx(expected))  # type: ignore[literal-required]
    assert summary["fl"] == (outliers / int(valid.sum()) if valid.any() else None)


@few
@given(batches())
def test_pixels_without_truth_do_not_count_even_if_they_are_nan(
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    flow, truth, valid, occluded = batch
    unknown = torch.where(valid, truth, torch.nan)
    assert flow_errors(flow, unknown, valid, occluded) == flow_errors(flow, truth, valid, occluded)


@pytest.mark.parametrize(
    ("off", "true_motion", "fl"),
    [
        (3.0, 0.0, 0.0),  # three pixels are not more than three
        (3.5, 0.0, 1.0),
        (3.5, 69.0, 1.0),  # 5.07 % of the motion
        (3.5, 71.0, 0.0),  # 4.93 %
        (2.5, 1.0, 0.0),  # 250 %, but below three pixels
    ],
)
def test_an_outlier_is_wrong_by_more_than_three_pixels_and_five_percent(
    off: float, true_motion: float, fl: float
) -> None:
    truth = uniform(true_motion, 0.0)
    assert flow_errors(uniform(true_motion, off), truth, everywhere(truth), None).fl == fl


def test_the_mean_is_over_pixels_of_the_set_not_over_frames() -> None:
    small, large = uniform(1.0, 0.0, 1, 1), uniform(5.0, 0.0, 1, 3)
    total = sum(
        (flow_errors(flow, torch.zeros_like(flow), everywhere(flow), None) for flow in (small, large)),
        FlowErrors(),
    )
    assert total.epe["all"] == (1 + 3 * 5) / 4


def test_sums_of_many_pixels_keep_their_precision() -> None:
    flow = uniform(0.1, 0.0, 1000, 1000)
    errors = flow_errors(flow, torch.zeros_like(flow), everywhere(flow), None)
    total = sum([errors] * 100, FlowErrors())
    assert total.epe["all"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-9)


def test_regions_without_pixels_are_none_and_the_summary_is_json() -> None:
    flow = uniform(1.0, 0.0)
    unknown = flow_errors(flow, flow, everywhere(flow), None).summary()
    assert unknown == {"epe": {"all": 0.0, "noc": None, "occ": None}, "fl": 0.0}
    visible = flow_errors(flow, flow, everywhere(flow), ~everywhere(flow)).summary()
    assert visible["epe"] == {"all": 0.0, "noc": 0.0, "occ": None}
    empty = FlowErrors().summary()
    assert json.loads(json.dumps([unknown, visible, empty], allow_nan=False))[2] == {
        "epe": {"all": None, "noc": None, "occ": None},
        "fl": None,
    }


def test_frames_without_occlusion_truth_count_in_all_alone() -> None:
    near, far = uniform(1.0, 0.0), uniform(3.0, 0.0)
    zero, valid = torch.zeros_like(near), everywhere(near)
    total = flow_errors(near, zero, valid, valid) + flow_errors(far, zero, valid, None)
    assert total.epe == {"all": 2.0, "noc": None, "occ": 1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_flow_that_is_not_finite_where_truth_exists_is_an_error(value: float) -> None:
    flow = uniform(0.0, 0.0).clone()
    flow[0, 0, 1, 2] = value
    valid = everywhere(flow)
    with pytest.raises(ValueError, match="1 of 6 pixels with truth have a non-finite error"):
        flow_errors(flow, torch.zeros_like(flow), valid, None)
    valid[0, 0, 1, 2] = False
    assert flow_errors(flow, torch.zeros_like(flow), valid, None).epe["all"] == 0.0


def test_a_mask_is_not_broadcast_over_a_batch() -> None:
    flow = torch.zeros(2, 2, 3, 4)
    with pytest.raises((ValueError, TypeError)):
        flow_errors(flow, flow, torch.ones(1, 1, 3, 4, dtype=torch.bool), None)


@few
@given(batches())
def test_occlusion_counts_of_the_whole_are_the_sum_of_the_parts(
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    flow, _, valid, occluded = batch
    predicted = flow[:, :1] > 0
    parts = [
        occlusion_counts(predicted[i : i + 1], occluded[i : i + 1], valid[i : i + 1])
        for i in range(len(valid))
    ]
    whole = occlusion_counts(predicted, occluded, valid)
    assert sum(parts, OcclusionCounts()) == whole
    assert whole.pixels == int(valid.sum())


def test_precision_recall_and_f1_of_a_case_on_paper() -> None:
    predicted = torch.tensor([1, 1, 1, 1, 0, 0, 0, 1], dtype=torch.bool).view(1, 1, 2, 4)
    occluded = torch.tensor([1, 1, 1, 0, 1, 1, 0, 1], dtype=torch.bool).view(1, 1, 2, 4)
    valid = torch.tensor([1, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool).view(1, 1, 2, 4)
    counts = occlusion_counts(predicted, occluded, valid)
    assert counts == OcclusionCounts(true_positives=3, false_positives=1, false_negatives=2, true_negatives=1)
    assert counts.summary() == {"precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3}


@few
@given(*[st.integers(0, 3)] * 4)
def test_f1_is_the_harmonic_mean_and_defined_wherever_pixels_were_compared(
    true_positives: int, false_positives: int, false_negatives: int, true_negatives: int
) -> None:
    counts = OcclusionCounts(
        true_positives=true_positives,
        false_positives=false_positives,
        false_negatives=false_negatives,
        true_negatives=true_negatives,
    )
    precision, recall, f1 = counts.precision, counts.recall, counts.f1
    if counts.pixels == 0:
        assert precision is recall is f1 is None
        return
    assert precision is not None
    assert recall is not None
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert f1 == pytest.approx(harmonic)


def test_predicting_nothing_where_nothing_is_hidden_is_perfect() -> None:
    nothing = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    assert occlusion_counts(nothing, nothing, ~nothing).f1 == 1.0
    assert occlusion_counts(nothing, ~nothing, ~nothing).f1 == 0.0
    assert occlusion_counts(~nothing, nothing, ~nothing).f1 == 0.0
    assert occlusion_counts(~nothing, nothing, nothing).f1 is None


def ause(error: list[float], uncertainty: list[float]) -> float | None:
    return sparsification(torch.tensor(error), torch.tensor(uncertainty)).ause


def test_an_uncertainty_that_ranks_as_the_error_does_has_no_area() -> None:
    assert ause([1.0, 0.0, 3.0, 2.0], [1.0, 0.0, 3.0, 2.0]) == 0
    # In any unit.
    assert ause([1.0, 0.0, 3.0, 2.0], [1.0, 0.0, 27.0, 8.0]) == 0


def test_the_area_of_a_case_on_paper() -> None:
    # Errors 0, 1, 2 px, of mean 1. Left out from the worst: 1, 1/2, 0. Left out from the best: 1, 3/2, 2.
    assert ause([0.0, 1.0, 2.0], [2.0, 1.0, 0.0]) == pytest.approx((0 + 1 + 2) / 3)
    # The error says no pixel's place: 1, 1, 1.
    assert ause([0.0, 1.0, 2.0], [5.0, 5.0, 5.0]) == pytest.approx((0 + 0.5 + 1) / 3)


@few
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 5))
def test_the_area_equals_a_slow_loop_and_is_never_negative(seed: int, pixels: int, values: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    error = torch.rand(pixels, generator=generator).double()
    # Few values, so that many pixels share one.
    uncertainty = torch.randint(values, (pixels,), generator=generator).double()
    groups = {value: error[uncertainty == value] for value in uncertainty.unique().tolist()}
    expected = torch.cat([groups[value].mean().expand(len(groups[value])) for value in sorted(groups)])
    areas = [
        float(expected[:kept].mean() - error.sort().values[:kept].mean()) for kept in range(1, pixels + 1)
    ]
    found = sparsification(error, uncertainty).ause
    assert found == pytest.approx(sum(areas) / pixels / float(error.mean()), abs=1e-9)
    assert found >= -1e-12


def test_images_count_alike_and_those_without_an_error_not_at_all() -> None:
    bad = sparsification(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 0.0]))
    good = sparsification(torch.arange(30.0), torch.arange(30.0))
    none = sparsification(torch.zeros(5), torch.arange(5.0))
    empty = sparsification(torch.zeros(0), torch.zeros(0))
    assert (bad + good + none + empty).ause == pytest.approx(0.5)
    assert Sparsification().ause is None
