import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowcore.geometry import flip_left_right, flip_up_down, in_frame
from flowcore.occlusion import OcclusionCheck

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
