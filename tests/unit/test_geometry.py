import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowcore.geometry import (
    Window,
    backward_warp,
    flip_left_right,
    flip_up_down,
    in_frame,
    pad_to_multiple,
    pixel_grid,
    resize_image,
    upsample_flow,
)

few = settings(max_examples=50)
seeds = st.integers(0, 2**31)
sides = st.integers(1, 9)


def uniform(u: float, v: float, height: int, width: int) -> Tensor:
    return torch.tensor([float(u), float(v)]).view(1, 2, 1, 1).expand(1, 2, height, width)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def sampled_by_hand(image: Tensor, x: float, y: float) -> Tensor:
    """[channels] bilinearly at (x, y), coordinates first moved to the nearest point of the frame."""
    height, width = image.shape[-2:]
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = x - left, y - top
    upper = (1 - a) * image[:, top, left] + a * image[:, top, right]
    lower = (1 - a) * image[:, bottom, left] + a * image[:, bottom, right]
    return (1 - b) * upper + b * lower


def test_the_first_coordinate_counts_columns_and_the_second_rows() -> None:
    grid = pixel_grid(2, 3)
    assert grid.tolist() == [[[[0, 1, 2], [0, 1, 2]], [[0, 0, 0], [1, 1, 1]]]]


@few
@given(seed=seeds, height=sides, width=sides, u=st.integers(-9, 9), v=st.integers(-9, 9))
def test_warping_by_a_uniform_whole_flow_shifts_the_frame_and_repeats_its_border(
    seed: int, height: int, width: int, u: int, v: int
) -> None:
    image = random(seed, 1, 3, height, width)
    columns = (torch.arange(width) + u).clamp(0, width - 1)
    rows = (torch.arange(height) + v).clamp(0, height - 1)
    shifted = image[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(backward_warp(image, uniform(u, v, height, width)), shifted, atol=1e-5, rtol=0)


@few
@given(seed=seeds, height=sides, width=sides)
def test_the_warp_equals_a_slow_loop_over_pixels(seed: int, height: int, width: int) -> None:
    image = random(seed, 2, 4, height, width)
    flow = (random(seed + 1, 2, 2, height, width) - 0.5) * 2 * max(height, width)
    warped = backward_warp(image, flow)
    for b in range(2):
        for y in range(height):
            for x in range(width):
                u, v = flow[b, :, y, x].tolist()
                expected = sampled_by_hand(image[b], x + u, y + v)
                torch.testing.assert_close(warped[b, :, y, x], expected, atol=1e-5, rtol=0)


def test_a_flow_of_a_quarter_pixel_takes_a_quarter_of_the_neighbour() -> None:
    image = torch.tensor([[[[0.0, 4.0, 8.0]]]])
    warped = backward_warp(image, uniform(0.25, 0.0, 1, 3))
    torch.testing.assert_close(warped, torch.tensor([[[[1.0, 5.0, 8.0]]]]), atol=1e-5, rtol=0)


def test_the_gradient_of_the_warp_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 2, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    # Between pixel centres, where bilinear sampling is smooth, inside the frame and outside it.
    flow = torch.randint(-4, 5, (1, 2, 4, 5), generator=generator).double() + 0.4
    assert torch.autograd.gradcheck(backward_warp, (image, flow.requires_grad_()))


@pytest.mark.parametrize("component", [0, 1])
def test_a_nan_in_the_flow_gives_nan_there_alone_and_no_crash_backward(component: int) -> None:
    flow = torch.zeros(1, 2, 3, 4)
    flow[0, component, 1, 2] = math.nan
    flow.requires_grad_()
    image = random(0, 1, 3, 3, 4).requires_grad_()
    warped = backward_warp(image, flow)
    assert warped[0, :, 1, 2].isnan().all()
    assert warped.isnan().sum() == 3
    warped.sum().backward()
    assert image.grad is not None
    assert flow.grad is not None
    assert image.grad.isfinite().all()
    assert flow.grad.isfinite().all()


def test_a_flow_of_nothing_but_nan_is_survived_forward_and_backward() -> None:
    flow = torch.full((2, 2, 8, 8), math.nan, requires_grad=True)
    warped = backward_warp(random(0, 2, 3, 8, 8), flow)
    assert warped.isnan().all()
    warped.sum().backward()


@pytest.mark.parametrize("far", [math.inf, -math.inf, 3e38, -3e38, 1e9])
def test_an_infinite_or_huge_flow_ends_at_the_border_with_a_zero_gradient(far: float) -> None:
    image = random(0, 1, 3, 4, 5)
    flow = uniform(far, 0.0, 4, 5).clone().requires_grad_()
    warped = backward_warp(image, flow)
    column = image[..., -1:] if far > 0 else image[..., :1]
    torch.testing.assert_close(warped, column.expand_as(image), atol=1e-5, rtol=0)
    warped.sum().backward()
    assert flow.grad is not None
    assert flow.grad[:, 0].eq(0).all()
    assert flow.grad.isfinite().all()


def test_the_frame_ends_at_the_centres_of_its_outer_pixels() -> None:
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([-0.001, -1.0, 1.0, 0.001])
    assert in_frame(flow).tolist() == [[[[False, True, True, False]]]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_flow_that_is_not_finite_lands_outside(value: float) -> None:
    assert not in_frame(uniform(value, 0.0, 2, 2)).any()
    assert not in_frame(uniform(0.0, value, 2, 2)).any()


@few
@given(seed=seeds, rows=sides, columns=sides, factor=st.integers(1, 4))
def test_a_smaller_image_is_the_mean_of_the_pixels_under_it(
    seed: int, rows: int, columns: int, factor: int
) -> None:
    image = random(seed, 1, 2, rows * factor, columns * factor)
    blocks = image.view(1, 2, rows, factor, columns, factor).mean(dim=(3, 5))
    torch.testing.assert_close(resize_image(image, rows, columns), blocks)


def test_an_image_at_its_own_size_is_itself() -> None:
    image = random(0, 1, 3, 4, 5)
    assert resize_image(image, 4, 5) is image


def test_upsampling_by_two_mixes_neighbours_three_to_one_and_repeats_the_border() -> None:
    # Half-pixel centres: the fine centres lie at -1/4, 1/4, 3/4 and 5/4 of the coarse grid.
    coarse = torch.tensor([0.0, 8.0]).view(1, 1, 1, 2).expand(1, 2, 1, 2)
    fine = upsample_flow(coarse, 2, 2, 4)
    assert fine[0, 0].tolist() == fine[0, 1].tolist() == [[0.0, 2.0, 6.0, 8.0]] * 2


def test_upsampling_by_four_keeps_pixels_and_crops_right_and_bottom() -> None:
    coarse = torch.tensor([[0.0, 8.0], [16.0, 24.0]]).expand(1, 2, 2, 2)
    # Fine centres of a stride of 4 lie at -3/8, -1/8, 1/8, 3/8, 5/8, 7/8, 9/8 of the coarse grid.
    along_x = torch.tensor([0.0, 0.0, 1.0, 3.0, 5.0, 7.0, 8.0])
    along_y = torch.tensor([0.0, 0.0, 2.0, 6.0, 10.0])
    fine = upsample_flow(coarse, 4, 5, 7)
    assert fine.shape == (1, 2, 5, 7)
    torch.testing.assert_close(fine[0, 0], along_y[:, None] + along_x[None])
    torch.testing.assert_close(fine[0, 1], along_y[:, None] + along_x[None])


@few
@given(
    u=st.floats(-100, 100, width=32), v=st.floats(-100, 100, width=32), stride=st.sampled_from([1, 2, 4, 8])
)
def test_upsampling_a_uniform_flow_does_not_change_its_vectors(u: float, v: float, stride: int) -> None:
    height, width = 3 * stride - stride // 2, 2 * stride
    fine = upsample_flow(uniform(u, v, 3, 2), stride, height, width)
    torch.testing.assert_close(fine, uniform(u, v, height, width))


@few
@given(seed=seeds, height=sides, width=sides)
def test_a_flip_twice_is_the_identity_and_the_two_flips_commute(seed: int, height: int, width: int) -> None:
    flow = random(seed, 2, 2, height, width) - 0.5
    assert flip_left_right(flip_left_right(flow)).equal(flow)
    assert flip_up_down(flip_up_down(flow)).equal(flow)
    assert flip_left_right(flip_up_down(flow)).equal(flip_up_down(flip_left_right(flow)))


@few
@given(seed=seeds, height=sides, width=sides)
def test_mirrored_frames_warped_by_mirrored_flow_are_the_mirrored_warp(
    seed: int, height: int, width: int
) -> None:
    image = random(seed, 1, 3, height, width)
    flow = (random(seed + 1, 1, 2, height, width) - 0.5) * 8
    warped = backward_warp(image, flow)
    for flip, axis in ((flip_left_right, -1), (flip_up_down, -2)):
        mirrored = backward_warp(image.flip(axis), flip(flow))
        torch.testing.assert_close(mirrored, warped.flip(axis), atol=2e-5, rtol=0)


def test_a_left_right_flip_turns_motion_to_the_right_into_motion_to_the_left() -> None:
    flow = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert flip_left_right(flow).tolist() == [[[[-2.0, -1.0]], [[4.0, 3.0]]]]
    assert flip_up_down(flow).tolist() == [[[[1.0, 2.0]], [[-3.0, -4.0]]]]


@few
@given(seed=seeds, height=st.integers(1, 20), width=st.integers(1, 20), multiple=st.sampled_from([1, 4, 16]))
def test_padding_keeps_the_frame_at_the_top_left_and_repeats_its_border(
    seed: int, height: int, width: int, multiple: int
) -> None:
    image = random(seed, 1, 3, height, width)
    padded = pad_to_multiple(image, multiple)
    rows, columns = padded.shape[-2:]
    assert rows % multiple == columns % multiple == 0
    assert 0 <= rows - height < multiple
    assert 0 <= columns - width < multiple
    assert padded[..., :height, :width].equal(image)
    assert padded[..., height:, :].eq(padded[..., height - 1 : height, :]).all()
    assert padded[..., width:].eq(padded[..., width - 1 : width]).all()


@few
@given(
    seed=seeds, height=st.integers(4, 9), width=st.integers(4, 9), u=st.integers(-3, 3), v=st.integers(-3, 3)
)
def test_warping_there_and_back_returns_what_stays_inside(
    seed: int, height: int, width: int, u: int, v: int
) -> None:
    image = random(seed, 1, 3, height, width)
    there = backward_warp(image, uniform(u, v, height, width))
    back = backward_warp(there, uniform(-u, -v, height, width))
    inside = in_frame(uniform(-u, -v, height, width)).expand_as(image)
    torch.testing.assert_close(back[inside], image[inside], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(13, 18), (16, 16), (17, 31)])
def test_upsampling_reads_nothing_of_a_grid_beyond_the_frame(height: int, width: int) -> None:
    grid = torch.arange(2.0 * 8 * 8).view(1, 2, 8, 8)
    rows, columns = -(-height // 4), -(-width // 4)
    beyond = grid.clone()
    beyond[..., rows:, :] = 1e6
    beyond[..., :, columns:] = -1e6
    part = upsample_flow(grid[..., :rows, :columns], 4, height, width)
    assert torch.equal(upsample_flow(beyond, 4, height, width), part)


@given(seed=seeds, margin=st.integers(0, 2), offset=st.integers(0, 2))
def test_a_window_is_the_same_part_of_a_frame_however_it_is_reached(
    seed: int, margin: int, offset: int
) -> None:
    frame, window = random(seed, 9, 9), Window(top=2, left=3, height=3, width=4)
    assert frame[window.place].shape == (3, 4)
    wide = frame[window.widened(margin).place]
    assert torch.equal(wide[margin : margin + 3, margin : margin + 4], frame[window.place])
    assert torch.equal(frame[window.moved(offset).place], frame[offset:, offset:][window.place])
