import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowcore.metrics import flow_errors
from flowcore.slices import SLICES, SliceErrors, added, sliced_errors

few = settings(max_examples=50)


def field(*pixels: float) -> Tensor:
    """Motion to the right by so many px, a frame of one row."""
    u = torch.tensor(pixels).view(1, 1, 1, -1)
    return torch.cat([u, torch.zeros_like(u)], dim=1)


def mask(*pixels: int) -> Tensor:
    return torch.tensor(pixels, dtype=torch.bool).view(1, 1, 1, -1)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    truth = torch.randn(batch, 2, height, width, generator=random) * 25
    flow = truth + torch.randn(batch, 2, height, width, generator=random) * 3
    masks = [
        torch.rand(batch, 1, height, width, generator=random) < draw(st.sampled_from([0.0, 0.4, 1.0]))
        for _ in range(3)
    ]
    return flow, truth, masks[0], masks[1], masks[2]


def slow(error: float) -> float:
    """A pixel's part of WAUC by Spring's and VIPER's formula: each threshold of 0.05 to 5 px that the error
    doesn't exceed, weighted."""
    weights = [1 - (i - 1) / 100 for i in range(1, 101)]
    hits = [weight for i, weight in enumerate(weights, start=1) if error <= i / 20]
    return sum(hits) / sum(weights)


@few
@given(batches())
def test_every_slice_equals_a_slow_loop_over_its_pixels(
    batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    flow, truth, valid, occluded, foreground = batch
    errors: dict[str, list[tuple[int, float, float]]] = {name: [] for name in SLICES}
    for b, _, y, x in valid.nonzero().tolist():
        (u, v), (true_u, true_v) = flow[b, :, y, x].tolist(), truth[b, :, y, x].tolist()
        length = math.hypot(true_u, true_v)
        speed = "s0-10" if length < 10 else "s10-40" if length < 40 else "s40"
        hidden = "occ" if occluded[b, 0, y, x] else "noc"
        moves = "fg" if foreground[b, 0, y, x] else "bg"
        for name in ("all", speed, hidden, moves):
            errors[name].append((b, math.hypot(u - true_u, v - true_v), length))
    found = sliced_errors(flow, truth, valid, occluded=occluded, foreground=foreground)
    assert found.keys() == {name for name, pixels in errors.items() if pixels}
    for name, slice_errors in found.items():
        pixels = errors[name]
        images = [[error for b, error, _ in pixels if b == image] for image in {b for b, *_ in pixels}]
        outliers = [error > 3 and error > 0.05 * length for _, error, length in pixels]
        assert slice_errors.measures == pytest.approx(
            {
                "epe": sum(error for _, error, _ in pixels) / len(pixels),
                "fl": sum(outliers) / len(pixels),
                "1px": sum(error > 1 for _, error, _ in pixels) / len(pixels),
                "3px": sum(error > 3 for _, error, _ in pixels) / len(pixels),
                "wauc": sum(slow(error) for _, error, _ in pixels) / len(pixels),
                "epe_per_image": sum(sum(image) / len(image) for image in images) / len(images),
                "fl_per_image": sum(
                    sum(bad for bad, (b, *_) in zip(outliers, pixels, strict=True) if b == image)
                    / sum(b == image for b, *_ in pixels)
                    for image in {b for b, *_ in pixels}
                )
                / len(images),
                "3px_per_image": sum(sum(error > 3 for error in image) / len(image) for image in images)
                / len(images),
            },
            rel=1e-5,
        )


@few
@given(batches())
def test_slices_of_the_whole_are_the_sum_of_the_parts(
    batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    flow, truth, valid, occluded, foreground = batch
    parts: dict[str, SliceErrors] = {}
    for i in range(len(flow)):
        one = slice(i, i + 1)
        parts = added(
            parts,
            sliced_errors(
                flow[one], truth[one], valid[one], occluded=occluded[one], foreground=foreground[one]
            ),
        )
    whole = sliced_errors(flow, truth, valid, occluded=occluded, foreground=foreground)
    assert list(parts) == list(whole)
    for name, errors in whole.items():
        assert vars(parts[name]) == pytest.approx(vars(errors), rel=1e-12)


@few
@given(batches())
def test_all_noc_and_occ_are_those_of_the_errors_beside_them(
    batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    flow, truth, valid, occluded, _ = batch
    slices, errors = sliced_errors(flow, truth, valid, occluded=occluded), flow_errors(*batch[:4])
    for region, epe in errors.epe.items():
        assert slices.get(region, SliceErrors()).epe == (None if epe is None else pytest.approx(epe))
    assert slices.get("all", SliceErrors()).fl == errors.fl


@pytest.mark.parametrize(
    ("error", "wauc"),
    [
        (0.0, 1.0),
        (0.0625, 1 - 100 / 5050),  # the first threshold, of the largest weight, is missed
        (0.25, 1 - (100 + 99 + 98 + 97) / 5050),  # an error equal to the threshold is within it
        (4.96875, 1 / 5050),  # only the last one is met, of rank 1
        (5.0, 1 / 5050),
        (5.125, 0.0),
    ],
)
def test_wauc_of_one_pixel_is_the_weight_of_the_thresholds_that_it_meets(error: float, wauc: float) -> None:
    truth = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    flow = torch.tensor([error, 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    errors = sliced_errors(flow, truth, mask(1))["all"]
    assert errors.wauc == pytest.approx(wauc, abs=1e-12)
    assert errors.wauc == pytest.approx(slow(error), abs=1e-12)


def test_one_pixel_off_is_not_more_than_one() -> None:
    errors = sliced_errors(field(1.0, 1.5, 3.0, 4.0), field(0.0, 0.0, 0.0, 0.0), mask(1, 1, 1, 1))["all"]
    assert (errors.off_1px, errors.off_3px) == (3 / 4, 1 / 4)


def test_every_pixel_weighs_the_same_or_every_image_does() -> None:
    small = sliced_errors(field(1.0), field(0.0), mask(1))
    large = sliced_errors(field(5.0, 5.0, 5.0), field(0.0, 0.0, 0.0), mask(1, 1, 1))
    both = added(small, large)["all"]
    assert (both.epe, both.epe_per_image) == (4.0, 3.0)
    assert (both.fl, both.fl_per_image) == (0.75, 0.5)


def test_an_image_without_a_pixel_of_a_slice_is_none_of_its_images() -> None:
    slow_pair = sliced_errors(field(1.0), field(0.0), mask(1))
    fast_pair = sliced_errors(field(52.0), field(50.0), mask(1))
    both = added(slow_pair, fast_pair)
    assert both["s40"].images == both["s0-10"].images == 1
    assert both["s40"].epe_per_image == 2.0
    assert both["all"].images == 2


def test_the_limits_of_speed_belong_to_the_faster_slice() -> None:
    truth = field(9.5, 10.0, 39.5, 40.0)
    found = sliced_errors(truth, truth, mask(1, 1, 1, 1))
    assert {name: errors.pixels for name, errors in found.items()} == {
        "all": 4,
        "s0-10": 1,
        "s10-40": 2,
        "s40": 1,
    }


def test_unmasked_counts_the_pixels_that_a_mask_leaves_out() -> None:
    flow, everywhere = field(1.0, 1.0, 1.0), field(0.0, 4.0, 9.0)
    masked = field(0.0, 0.0, 0.0)
    found = sliced_errors(flow, masked, mask(1, 0, 0), unmasked=(everywhere, mask(1, 1, 0)))
    assert found["all"].epe == 1.0
    assert (found["unmasked"].pixels, found["unmasked"].epe) == (2, 2.0)


def test_the_nearest_of_four_vectors_counts_and_the_longest_in_fl() -> None:
    # 4 px off 60 px is 6.7 %, and off the longest, 100 px, 4 %.
    finer = torch.stack([field(60.0), field(58.0), field(100.0), field(56.0)], dim=1)
    found = sliced_errors(field(64.0), field(60.0), mask(1), finer=finer)
    assert (found["all"].epe, found["all"].fl) == (4.0, 1.0)
    assert (found["nearest"].epe, found["nearest"].fl) == (4.0, 0.0)
    nearer = torch.stack([field(60.0), field(63.5), field(100.0), field(56.0)], dim=1)
    assert sliced_errors(field(64.0), field(60.0), mask(1), finer=nearer)["nearest"].epe == 0.5


def test_a_slice_that_nothing_tells_of_is_missing() -> None:
    found = sliced_errors(field(1.0), field(0.0), mask(1))
    assert found.keys() == {"all", "s0-10"}
    assert sliced_errors(field(1.0), field(0.0), mask(0)) == {}


def test_the_summary_is_json() -> None:
    summary = sliced_errors(field(4.0), field(0.0), mask(1))["all"].summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == {
        "epe": 4.0,
        "fl": 1.0,
        "1px": 1.0,
        "3px": 1.0,
        "wauc": pytest.approx(sum(range(1, 22)) / 5050),
        "epe_per_image": 4.0,
        "fl_per_image": 1.0,
        "3px_per_image": 1.0,
        "pixels": 1,
        "images": 1,
    }
    assert SliceErrors().measures == dict.fromkeys(SliceErrors().measures)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_flow_that_is_not_finite_is_an_error_in_every_slice(value: float) -> None:
    with pytest.raises(ValueError, match="1 of 1 pixels with truth have a non-finite error"):
        sliced_errors(field(value), field(0.0), mask(1))
