import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowcore.photometric import (
    DISTANCES,
    census_border,
    census_distance,
    distance_everywhere,
    grey,
    rgb_distance,
    robust,
    smoothness,
    ssim_distance,
)

few = settings(max_examples=30)
seeds = st.integers(0, 2**31)
sides = st.integers(1, 12)


def frames(seed: int, height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Two frames of some grey levels' contrast, where neither soft function saturates."""
    generator = torch.Generator().manual_seed(seed)
    image1, image2 = (
        torch.rand(2, batch, 3, height, width, generator=generator, dtype=torch.float64) * 0.02 + 0.5
    )
    return image1, image2


def census_with_49_channels(image1: Tensor, image2: Tensor) -> Tensor:
    """The distance as the paper writes it, left to autograd."""

    def signature(image: Tensor) -> Tensor:
        red, green, blue = image.unbind(dim=1)
        levels = 255 * (0.2989 * red + 0.5870 * green + 0.1140 * blue)[:, None]
        height, width = levels.shape[-2:]
        patches = torch.nn.functional.unfold(levels, 7, padding=3).view(-1, 49, height, width)
        difference = patches - levels
        return difference / (0.81 + difference**2).sqrt()

    mismatch = (signature(image1) - signature(image2)) ** 2
    distance = (mismatch / (0.1 + mismatch)).sum(dim=1, keepdim=True)
    inside = torch.zeros_like(distance)
    inside[..., 3:-3, 3:-3] = 1 if min(distance.shape[-2:]) > 6 else 0
    return distance * inside


@few
@given(seed=seeds, height=sides, width=sides)
def test_the_census_distance_equals_that_of_49_channels_through_autograd(
    seed: int, height: int, width: int
) -> None:
    image1, image2 = (image.requires_grad_() for image in frames(seed, height, width, batch=2))
    weight = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed)).double()
    answers = []
    for function in (census_distance, census_with_49_channels):
        distance = function(image1, image2)
        answers.append((distance, *torch.autograd.grad((distance * weight).sum(), (image1, image2))))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_gradient_of_the_census_distance_is_that_of_finite_differences() -> None:
    image1, image2 = (image.requires_grad_() for image in frames(0, 8, 9))
    assert torch.autograd.gradcheck(census_distance, (image1, image2), eps=1e-7)


def test_one_brighter_pixel_has_a_census_distance_that_fits_on_paper() -> None:
    flat, spot = torch.zeros(2, 1, 3, 7, 7)
    # 1.2 grey levels: t^2 = 1.44 / (0.81 + 1.44) = 0.64, and the distance is 48 * 0.64 / (0.1 + 0.64).
    spot[..., 3, 3] = 1.2 / (255 * 0.9999)
    distance = census_distance(flat, spot)
    assert distance[0, 0, 3, 3].item() == pytest.approx(48 * 0.64 / 0.74)
    assert distance.count_nonzero() == 1


@few
@given(seed=seeds, height=sides, width=sides)
def test_the_census_distance_is_symmetric_bounded_and_zero_on_the_border(
    seed: int, height: int, width: int
) -> None:
    image1, image2 = frames(seed, height, width)
    distance = census_distance(image1 * 40 - 20, image2 * 40 - 20)
    assert census_distance(image2 * 40 - 20, image1 * 40 - 20).equal(distance)
    assert distance.ge(0).all()
    assert distance.le(48).all()
    assert distance[census_border(image1)].eq(0).all()


@few
@given(seed=seeds, offset=st.floats(-0.5, 0.5))
def test_brightening_a_whole_frame_does_not_change_the_census_distance(seed: int, offset: float) -> None:
    image1, image2 = frames(seed, 9, 10)
    torch.testing.assert_close(
        census_distance(image1, image2 + offset), census_distance(image1, image2), rtol=1e-9, atol=1e-9
    )


def test_equal_frames_have_no_census_distance_and_no_gradient() -> None:
    image, _ = frames(0, 9, 10)
    image1, image2 = image.clone().requires_grad_(), image.clone().requires_grad_()
    distance = census_distance(image1, image2)
    assert distance.eq(0).all()
    for gradient in torch.autograd.grad(robust(distance).sum(), (image1, image2)):
        assert gradient.eq(0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 20), (6, 7), (20, 6)])
def test_a_frame_without_a_whole_patch_has_no_distance_and_a_zero_gradient(height: int, width: int) -> None:
    image1, image2 = (image.requires_grad_() for image in frames(0, height, width))
    distance = census_distance(image1, image2)
    assert distance.shape == (1, 1, height, width)
    assert distance.eq(0).all()
    assert census_border(image1).all()
    for gradient in torch.autograd.grad(distance.sum(), (image1, image2)):
        assert gradient.eq(0).all()


def test_the_border_of_a_frame_is_three_pixels_wide() -> None:
    border = census_border(torch.zeros(2, 3, 8, 10))
    assert border.shape == (2, 1, 8, 10)
    assert (~border).nonzero().tolist() == [
        [b, 0, y, x] for b in range(2) for y in (3, 4) for x in range(3, 7)
    ]


def test_a_nan_reaches_the_pixels_whose_patch_holds_it_and_no_others() -> None:
    image1, image2 = frames(0, 16, 16)
    clean = census_distance(image1, image2)
    image2[0, 1, 8, 7] = math.nan
    distance = census_distance(image1, image2)
    reached = torch.zeros_like(distance, dtype=torch.bool)
    reached[..., 5:12, 4:11] = True
    assert distance.isnan().equal(reached)
    assert distance[~reached].equal(clean[~reached])


def test_between_its_passes_the_census_distance_keeps_two_grey_frames() -> None:
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    def nothing(tensor: Any) -> Any:
        return tensor

    image1, image2 = (image.requires_grad_() for image in frames(0, 20, 30))
    with torch.autograd.graph.saved_tensors_hooks(count, nothing):
        distance = census_distance(image1, image2)
    # Apart from them: the three weights of red, green and blue, once a frame.
    assert 2 * 20 * 30 <= sum(kept.values()) <= 2 * 20 * 30 + 2 * 3
    distance.sum().backward()


def test_grey_is_luma_in_255_levels() -> None:
    colours = torch.eye(3).view(1, 3, 1, 3)
    torch.testing.assert_close(grey(colours).flatten(), torch.tensor([76.2195, 149.685, 29.07]))


def test_the_robust_penalty_fits_on_paper() -> None:
    penalty = robust(torch.tensor([0.0, 0.99, -0.99, 31.99]))
    # (0 + 0.01)^0.4 = 10^-0.8, 1^0.4 = 1, 32^0.4 = 2^2
    torch.testing.assert_close(penalty, torch.tensor([10**-0.8, 1.0, 1.0, 4.0]))


@few
@given(smaller=st.floats(0, 1e4), larger=st.floats(0, 1e4))
def test_the_robust_penalty_grows_with_the_size_of_its_argument_alone(smaller: float, larger: float) -> None:
    smaller, larger = sorted((smaller, larger))
    values = torch.tensor([smaller, -smaller, larger, -larger], dtype=torch.float64)
    low, low_negative, high, high_negative = robust(values).tolist()
    assert low == low_negative <= high == high_negative


def test_smoothness_of_a_ramp_fits_on_paper() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 4, 5)
    flow = torch.cat([ramp, torch.zeros_like(ramp)], dim=1)
    # |du/dx| = 1, the other three derivatives are 0; the mean is over u and v, then over the axes.
    assert smoothness(flow, torch.zeros(1, 3, 4, 5)).item() == pytest.approx(1 / 4)
    edges = torch.zeros(1, 3, 4, 5)
    edges[:, 0] = 0.3 * torch.arange(5)
    # One of three channels changes by 0.3 a pixel: exp(-10 * 0.1).
    assert smoothness(flow, edges).item() == pytest.approx(math.exp(-1) / 4)
    assert smoothness(flow, edges, edge_weight=0.0).item() == pytest.approx(1 / 4)


def test_a_uniform_flow_is_perfectly_smooth() -> None:
    image, _ = frames(0, 6, 7)
    assert smoothness(torch.full((1, 2, 6, 7), 3.0), image).item() == 0.0


def test_second_order_smoothness_sees_bends_alone() -> None:
    x = torch.arange(5.0).expand(1, 1, 4, 5)
    plane = torch.cat([3 * x + 1, -2 * x], dim=1)
    plain = torch.zeros(1, 3, 4, 5)
    assert smoothness(plane, plain, order=2).item() == 0.0
    bend = torch.cat([(x - 2).clamp(min=0), torch.zeros_like(x)], dim=1)
    # |d2u/dx2| = 1 at one of the three columns that have one, for u alone; mean over u, v and the axes
    assert smoothness(bend, plain, order=2).item() == pytest.approx(1 / 12)
    edge = torch.zeros(1, 3, 4, 5)
    edge[..., 3:] = 0.1
    # between columns 2 and 3 all channels change by 0.1: exp(-10 * 0.1)
    assert smoothness(bend, edge, order=2).item() == pytest.approx(math.exp(-1) / 12)


def ssim_by_loop(image1: Tensor, image2: Tensor, y: int, x: int) -> float:
    """Of one channel's 3x3 window around (y, x)."""
    first = image1[y - 1 : y + 2, x - 1 : x + 2].flatten().tolist()
    second = image2[y - 1 : y + 2, x - 1 : x + 2].flatten().tolist()
    mean1, mean2 = sum(first) / 9, sum(second) / 9
    variance1 = sum((a - mean1) ** 2 for a in first) / 9
    variance2 = sum((b - mean2) ** 2 for b in second) / 9
    covariance = sum((a - mean1) * (b - mean2) for a, b in zip(first, second, strict=True)) / 9
    luminance = (2 * mean1 * mean2 + 0.0001) / (mean1**2 + mean2**2 + 0.0001)
    return luminance * (2 * covariance + 0.0009) / (variance1 + variance2 + 0.0009)


@few
@given(seeds)
def test_ssim_is_that_of_a_slow_loop(seed: int) -> None:
    image1, image2 = torch.rand(
        2, 1, 3, 6, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    distance = ssim_distance(image1, image2)
    for channel, y, x in ((0, 1, 1), (1, 3, 4), (2, 4, 5)):
        similarity = ssim_by_loop(image1[0, channel], image2[0, channel], y, x)
        assert distance[0, channel, y, x].item() == pytest.approx((1 - similarity) / 2)


@pytest.mark.parametrize("name", DISTANCES)
@few
@given(seeds)
def test_every_distance_is_symmetric_and_zero_between_equal_frames(name: str, seed: int) -> None:
    image1, image2 = frames(seed, 10, 12)
    distance = DISTANCES[name][0]
    assert distance(image1, image2).min() >= 0
    torch.testing.assert_close(distance(image1, image2), distance(image2, image1))
    assert distance(image1, image1).abs().max() < 1e-9


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_at_the_sides_sees_their_pixels_repeated(name: str) -> None:
    image1, image2 = frames(3, 20, 24)
    distance, radius = DISTANCES[name]
    everywhere = distance_everywhere(name, image1, image2)
    assert everywhere.shape == distance(image1, image2).shape
    assert everywhere.gt(0).all()
    inside = (..., slice(radius, 20 - radius), slice(radius, 24 - radius))
    torch.testing.assert_close(everywhere[inside], distance(image1, image2)[inside])
    wider = [torch.cat([image[..., :1]] * radius + [image], dim=-1) for image in (image1, image2)]
    left_side = (..., slice(radius, 20 - radius), slice(0, 4))
    torch.testing.assert_close(
        everywhere[left_side], distance(wider[0], wider[1])[..., radius:][left_side], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (6, 7)])
def test_a_level_smaller_than_a_patch_still_teaches(name: str, height: int, width: int) -> None:
    image1, image2 = (image.requires_grad_() for image in frames(4, height, width))
    distance_everywhere(name, image1, image2 if height * width > 1 else image2 + 0.01).sum().backward()
    if height * width > 1:
        assert image2.grad is not None
        assert image2.grad.abs().sum() > 0


def test_the_rgb_distance_is_the_difference_of_each_channel() -> None:
    red, grey_level = torch.tensor([0.75, 0.0, 0.5]), torch.tensor([0.5, 0.25, 0.5])
    distance = rgb_distance(red.view(1, 3, 1, 1), grey_level.view(1, 3, 1, 1))
    assert distance.flatten().tolist() == [0.25, 0.25, 0.0]
