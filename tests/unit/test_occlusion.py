import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowcore.geometry import flip_left_right, flip_up_down, in_frame
from flowcore.occlusion import OcclusionCheck, agreement, range_map

few = settings(max_examples=50)
seeds = st.integers(0, 2**31)
check = OcclusionCheck()


def uniform(u: float, v: float, height: int, width: int) -> Tensor:
    return torch.tensor([u, v]).view(1, 2, 1, 1).expand(1, 2, height, width)


def whole_flow(seed: int, height: int, width: int) -> Tensor:
    """Whole pixels up to 5: no mismatch is closer to its tolerance than 0.01, so rounding decides nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-5, 6, (1, 2, height, width), generator=generator).float()


@few
@given(
    u=st.floats(-12, 12, width=32),
    v=st.floats(-12, 12, width=32),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_uniform_motion_is_occluded_only_where_it_leaves_the_frame(
    u: float, v: float, height: int, width: int
) -> None:
    flow_fw, flow_bw = uniform(u, v, height, width), uniform(-u, -v, height, width)
    assert check(flow_fw, flow_bw).equal(~in_frame(flow_fw))
    assert check(flow_bw, flow_fw).equal(~in_frame(flow_bw))


def test_what_moves_three_columns_to_the_right_occludes_the_last_three() -> None:
    occluded = check(uniform(3.0, 0.0, 2, 8), uniform(-3.0, 0.0, 2, 8))
    assert occluded.tolist() == [[[[False] * 5 + [True] * 3] * 2]]


def test_a_bar_hides_the_background_that_it_moves_over() -> None:
    # Columns 2 to 4 move right by four before a background at rest.
    flow_fw, flow_bw = torch.zeros(1, 2, 3, 12), torch.zeros(1, 2, 3, 12)
    flow_fw[:, 0, :, 2:5] = 4.0
    flow_bw[:, 0, :, 6:9] = -4.0
    occ_fw, occ_bw = check(flow_fw, flow_bw), check(flow_bw, flow_fw)
    assert all(row.nonzero().flatten().tolist() == [6, 7, 8] for row in occ_fw[0, 0])
    assert all(row.nonzero().flatten().tolist() == [2, 3, 4] for row in occ_bw[0, 0])


@pytest.mark.parametrize(
    ("motion", "short", "occluded"),
    [
        (0.0, 0.7, False),  # 0.49 < 0.01 * 0.49 + 0.5
        (0.0, 0.72, True),  # 0.5184 > 0.01 * 0.5184 + 0.5
        (10.0, 1.4, False),  # 1.96 < 0.01 * (100 + 73.96) + 0.5 = 2.2396
        (10.0, 1.5, True),  # 2.25 > 0.01 * (100 + 72.25) + 0.5 = 2.2225
    ],
)
def test_the_tolerance_is_what_the_paper_says(motion: float, short: float, occluded: bool) -> None:
    answer = check(uniform(motion, 0.0, 1, 30), uniform(short - motion, 0.0, 1, 30))
    assert answer[..., :15].eq(occluded).all()


@few
@given(seed=seeds, height=st.integers(1, 8), width=st.integers(1, 8))
def test_the_check_equals_a_slow_loop_over_pixels(seed: int, height: int, width: int) -> None:
    flow_fw, flow_bw = whole_flow(seed, height, width), whole_flow(seed + 1, height, width)
    occluded = check(flow_fw, flow_bw)
    for y in range(height):
        for x in range(width):
            u, v = (int(value) for value in flow_fw[0, :, y, x])
            visible = False
            if 0 <= x + u < width and 0 <= y + v < height:
                back_u, back_v = flow_bw[0, :, y + v, x + u].tolist()
                mismatch = (u + back_u) ** 2 + (v + back_v) ** 2
                visible = mismatch < 0.01 * (u**2 + v**2 + back_u**2 + back_v**2) + 0.5
            assert bool(occluded[0, 0, y, x]) == (not visible)


@few
@given(seed=seeds, height=st.integers(1, 8), width=st.integers(1, 8))
def test_the_occlusion_of_mirrored_frames_is_the_mirrored_occlusion(
    seed: int, height: int, width: int
) -> None:
    flow_fw, flow_bw = whole_flow(seed, height, width), whole_flow(seed + 1, height, width)
    occluded = check(flow_fw, flow_bw)
    assert check(flip_left_right(flow_fw), flip_left_right(flow_bw)).equal(occluded.flip(-1))
    assert check(flip_up_down(flow_fw), flip_up_down(flow_bw)).equal(occluded.flip(-2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_pixel_whose_flow_is_not_finite_is_occluded_in_either_direction(value: float) -> None:
    lost, still = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    lost[0, 1, 3, 0] = value
    assert check(lost, still).nonzero().tolist() == [[0, 0, 3, 0]]
    assert check(still, lost)[0, 0, 3, 0]
    assert not check(still, lost)[0, 0, :2].any()


def test_the_check_has_no_gradient() -> None:
    flow = torch.zeros(1, 2, 4, 4, requires_grad=True)
    occluded = check(flow, -flow)
    assert occluded.dtype == torch.bool
    assert not occluded.requires_grad


@pytest.mark.parametrize("options", [{"alpha1": -0.01}, {"alpha2": 0.0}, {"alpha2": -1.0}])
def test_a_tolerance_that_no_pixel_can_meet_is_refused(options: dict[str, float]) -> None:
    # With alpha2 = 0 a pixel at rest would be occluded.
    with pytest.raises(ValueError, match=r"alpha1 .* must be >= 0 and alpha2 .* > 0"):
        OcclusionCheck(**options)


@pytest.mark.parametrize(("u", "v"), [(3, 0), (-2, 5), (0, 0)])
def test_the_range_map_counts_whole_pixels_of_motion_exactly(u: int, v: int) -> None:
    flow = torch.tensor([float(u), float(v)]).view(1, 2, 1, 1).repeat(2, 1, 12, 16)
    expected = torch.zeros(12, 16)
    for y in range(12):
        for x in range(16):
            if 0 <= y + v < 12 and 0 <= x + u < 16:
                expected[y + v, x + u] += 1
    assert range_map(flow).equal(expected.expand(2, 1, 12, 16))


def test_the_range_map_shares_a_pixel_that_lands_between_others() -> None:
    flow = torch.full((1, 2, 5, 5), math.nan)
    flow[0, :, 2, 1] = torch.tensor([1.25, -0.5])
    landed = range_map(flow)[0, 0]
    assert landed.sum() == 1
    assert landed[1:3, 2:4].tolist() == [[0.375, 0.125], [0.375, 0.125]]


def test_the_range_map_finds_what_a_bar_covers_and_what_leaves_the_frame() -> None:
    check = OcclusionCheck(kind="range-map")
    # The frame moves two columns to the left; columns 6 to 8 of the second one are a bar at rest before it.
    flow_bw = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 8, 12)
    flow_bw[:, 0, :, 6:9] = 0.0
    flow_fw = -flow_bw
    occluded = check(flow_fw, flow_bw)[0, 0, 0]
    # Nothing comes to columns 0 and 1, which left; of 8 to 10 only 8 is the bar's.
    assert occluded.nonzero().flatten().tolist() == [0, 1, 9, 10]


def test_nothing_is_occluded_for_a_network_at_rest_and_everything_where_the_flow_is_not_finite() -> None:
    check = OcclusionCheck(kind="range-map")
    still = torch.zeros(1, 2, 6, 8)
    assert not check(still, still).any()
    lost = torch.full_like(still, math.nan)
    assert check(lost, still).all()
    assert check(still, lost).all()


def test_a_range_map_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"least_landing 0\.0 must be above 0"):
        OcclusionCheck(kind="range-map", least_landing=0.0)


def test_flows_that_undo_each_other_agree_and_others_do_by_how_far_they_are_apart() -> None:
    there = torch.zeros(1, 2, 30, 40)
    there[:, 0] = 3.0
    assert (agreement(there, -there)[..., :-3] == 1).all()
    # What leaves the frame can't be checked.
    assert (agreement(there, -there)[..., -3:] == 0).all()
    sigma = 0.003 * 50
    off = torch.tensor([0.0, sigma]).view(1, 2, 1, 1)
    torch.testing.assert_close(
        agreement(there, off - there)[..., :-3], torch.full((1, 1, 30, 37), math.exp(-1))
    )
