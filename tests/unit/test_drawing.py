from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowcore.datasets import find_samples
from flowcore.drawing import (
    MAX_ERROR,
    Picture,
    Prediction,
    brought_back,
    comparison_panel,
    confidence_image,
    error_colors,
    flow_colors,
    flow_legend,
    motion_scale,
    occlusion_image,
    panel,
    warp_error,
    with_arrows,
)
from flowcore.samples import load

BACKGROUND = 225


def motion(u: float, v: float, height: int = 1, width: int = 1) -> np.ndarray:
    return np.broadcast_to(np.array([[[u]], [[v]]], np.float32), (2, height, width)).copy()


def color(u: float, v: float, max_motion: float | None = 1.0) -> list[int]:
    drawn: list[int] = flow_colors(motion(u, v), max_motion)[0, 0].tolist()
    return drawn


def whole_color_wheel() -> list[list[int]]:
    """The published wheel as integer arithmetic, arc by arc: an oracle for the hues."""
    wheel = [[255, 255 * i // 15, 0] for i in range(15)]
    wheel += [[255 - 255 * i // 6, 255, 0] for i in range(6)]
    wheel += [[0, 255, 255 * i // 4] for i in range(4)]
    wheel += [[0, 255 - 255 * i // 11, 255] for i in range(11)]
    wheel += [[255 * i // 13, 0, 255] for i in range(13)]
    wheel += [[255, 0, 255 - 255 * i // 6] for i in range(6)]
    return wheel


def test_rest_is_white_motion_to_the_right_red_and_to_the_left_the_wheels_middle() -> None:
    assert color(0, 0) == [255, 255, 255]
    assert color(1, 0) == color(1, -0.0) == [255, 0, 0]
    assert color(-1, -0.0)[0] == 0
    np.testing.assert_allclose(color(-1, 0), whole_color_wheel()[27], atol=1)


def test_every_hue_of_the_wheel_lies_at_its_angle() -> None:
    wheel = whole_color_wheel()
    assert len(wheel) == 55
    for index, hue in enumerate(wheel[:-1]):
        angle = (index / 54 * 2 - 1) * np.pi
        u, v = -np.cos(angle) * 0.99999, -np.sin(angle) * 0.99999
        np.testing.assert_allclose(color(u, v), hue, atol=1)


def test_half_the_speed_is_half_as_far_from_white() -> None:
    np.testing.assert_allclose(color(0.5, 0), [255, 127, 127], atol=1)
    np.testing.assert_allclose(color(5, 0, max_motion=10.0), [255, 127, 127], atol=1)


def test_motion_beyond_the_scale_is_darker() -> None:
    assert color(1.01, 0) == [191, 0, 0]
    assert color(1000, 0) == [191, 0, 0]


@settings(max_examples=50)
@given(st.floats(0, 2 * np.pi), st.floats(0.01, 100), st.floats(0.01, 100))
def test_only_speed_relative_to_the_scale_matters(angle: float, speed: float, factor: float) -> None:
    u, v = speed * np.cos(angle), speed * np.sin(angle)
    ours, scaled = color(u, v, 2 * speed), color(u * factor, v * factor, 2 * speed * factor)
    np.testing.assert_allclose(ours, scaled, atol=1)


def test_without_a_scale_the_largest_motion_is_fully_saturated() -> None:
    flow = np.concatenate([motion(4, 0), motion(2, 0), motion(0, 0)], axis=2)
    np.testing.assert_allclose(
        flow_colors(flow, None)[0], [[255, 0, 0], [255, 127, 127], [255, 255, 255]], atol=1
    )
    assert color(0, 0, None) == [255, 255, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_unknown_flow_is_black_and_does_not_set_the_scale(value: float) -> None:
    flow = np.concatenate([motion(1, 0), motion(value, 0), motion(0, value)], axis=2)
    assert flow_colors(flow, None)[0].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_errors_get_brighter_up_to_the_fixed_range_and_unknown_is_grey() -> None:
    drawn = error_colors(np.array([[0, 1, 2, 3, 4, MAX_ERROR, 100, np.nan]], np.float32))[0].astype(int)
    brightness = drawn[:7] @ np.array([299, 587, 114])
    assert (np.diff(brightness[:6]) > 0).all()
    assert drawn[5].tolist() == drawn[6].tolist()
    assert drawn[7].tolist() == [128, 128, 128]
    assert drawn[2][0] > drawn[2][1]  # inferno passes through red, so the channels are RGB, not BGR
    assert drawn[3][0] > drawn[3][2]


def test_occluded_pixels_are_white_and_untrusted_visible_ones_grey() -> None:
    occluded, trusted = np.array([[True, False, True, False]]), np.array([[True, True, False, False]])
    assert occlusion_image(occluded)[0, :, 0].tolist() == [255, 0, 255, 0]
    assert occlusion_image(occluded, trusted)[0, :, 0].tolist() == [255, 0, 255, 128]


def test_trusted_pixels_are_white_and_half_trusted_ones_grey() -> None:
    drawn = confidence_image(np.array([[1.0, 0.0, 0.5]], np.float32))
    assert drawn[0].tolist() == [[255] * 3, [0] * 3, [128] * 3]


@given(st.integers(-5, 5), st.integers(-4, 4))
def test_the_flow_that_moved_a_frame_has_no_warp_error_where_it_stays_inside(u: int, v: int) -> None:
    image1 = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image2 = np.roll(image1, (v, u), axis=(0, 1))
    error = warp_error(image1, image2, motion(u, v, 12, 16))
    y, x = np.mgrid[:12, :16]
    inside = (x + u >= 0) & (x + u < 16) & (y + v >= 0) & (y + v < 12)
    assert np.array_equal(np.isfinite(error), inside)
    assert np.abs(error[inside]).max() < 0.01


def test_without_motion_the_warp_error_is_the_mean_difference_of_the_colours() -> None:
    image1, image2 = (np.full((2, 3, 3), color, np.uint8) for color in ((200, 10, 50), (190, 30, 50)))
    np.testing.assert_allclose(warp_error(image1, image2, motion(0, 0, 2, 3)), 10, atol=1e-3)


def test_one_wild_pixel_of_many_does_not_set_the_scale() -> None:
    flow = motion(3, 4, 20, 20)
    flow[:, 0, 0] = 1000
    flow[:, 1, 1] = np.nan
    assert motion_scale([flow]) == 5
    assert motion_scale([motion(np.nan, 0)]) == motion_scale([]) == 0


def test_the_legend_shows_at_each_place_the_color_of_the_motion_towards_it() -> None:
    legend = flow_legend(101, 201)
    assert legend.shape == (101, 201, 3)
    np.testing.assert_allclose(legend[50, 100], [255, 255, 255])
    np.testing.assert_allclose(legend[50, 150], color(50 / 50.5, 0), atol=1)
    np.testing.assert_allclose(legend[90, 100], color(0, 40 / 50.5), atol=1)
    np.testing.assert_allclose(legend[0, 0], [255, 255, 255])


def test_small_pictures_are_shown_at_256_px_or_more_with_sharp_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    drawn = panel([[("noise", picture)]])
    assert drawn.shape[1] >= 256
    np.testing.assert_array_equal(drawn[-6 - 192 : -6 : 2, 6 : 6 + 256 : 2], picture)


def test_large_pictures_are_averaged_down_to_512_px() -> None:
    drawn = panel([[("flat", np.full((436, 1024, 3), (10, 20, 30), np.uint8))]])
    assert drawn.shape[1] == 512 + 2 * 6
    assert drawn[-7, 6].tolist() == [10, 20, 30]


def test_a_panel_has_a_place_for_each_picture_and_keeps_the_empty_ones_empty() -> None:
    black = np.zeros((256, 256, 3), np.uint8)
    drawn = panel([[("a", black), ("b", black)], [None, ("c", black)]])
    pitch = (drawn.shape[1] - 6) // 2
    places = [drawn[-6 - 256 : -6, 6 + column * pitch :][:256, :256] for column in (0, 1)]
    assert (places[0] == BACKGROUND).all()
    assert (places[1] == 0).all()


def test_captions_are_drawn_and_a_long_one_stays_over_its_picture() -> None:
    black = np.zeros((300, 300, 3), np.uint8)
    plain, short, long = (
        panel([[(caption, black), ("", black)]]) for caption in ("", "flow", "a very long caption " * 8)
    )
    assert (plain != short).any()
    assert (plain != long).any()
    right = 6 + 300 + 1
    np.testing.assert_array_equal(plain[:, right:], long[:, right:])


def test_a_panel_without_a_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        panel([[None]])


def test_all_flows_of_a_comparison_share_the_scale_of_the_truth() -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    truth = motion(8, 0, 96, 128)
    drawn = comparison_panel(
        image, image, truth=truth, predictions={"right": Prediction(truth), "half": Prediction(truth / 2)}
    )
    pitch = (drawn.shape[0] - 6) // 4
    centres = [drawn[6 + row * pitch + pitch // 2, 6 + 128].tolist() for row in range(4)]
    assert centres[:3] == [[0, 0, 0], [255, 0, 0], [255, 0, 0]]
    np.testing.assert_allclose(centres[3], [255, 127, 127], atol=1)


def test_pixels_without_truth_are_black_in_the_truth_and_grey_in_the_error() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    valid = np.zeros((256, 256), np.bool_)
    valid[:, 128:] = True
    truth = np.where(valid, motion(1, 0, 256, 256), np.float32(1e3))
    drawn = comparison_panel(
        image, image, truth=truth, valid=valid, occlusion=valid, predictions={"a": Prediction(truth, valid)}
    )
    pitch_y, pitch_x = (drawn.shape[0] - 6) // 3, (drawn.shape[1] - 6) // 3
    middle = [drawn[6 + row * pitch_y + 128, 6:] for row in range(3)]
    assert middle[1][50].tolist() == [0, 0, 0]
    assert middle[1][200].tolist() == [255, 0, 0]
    assert middle[2][2 * pitch_x + 50].tolist() == [128, 128, 128]
    assert middle[2][2 * pitch_x + 200].tolist() == error_colors(np.zeros((1, 1)))[0, 0].tolist()


def cells(drawn: Picture, rows: int) -> list[list[Picture]]:
    """The pictures of a panel of 256 x 256 px ones, by row and column."""
    pitch_y, pitch_x = (drawn.shape[0] - 6) // rows, 256 + 6
    return [
        [
            drawn[6 + (row + 1) * pitch_y - 6 - 256 :, 6 + column * pitch_x :][:256, :256]
            for column in range((drawn.shape[1] - 6) // pitch_x)
        ]
        for row in range(rows)
    ]


def test_what_is_not_trusted_is_not_drawn_as_occluded() -> None:
    image, flow = np.zeros((256, 256, 3), np.uint8), motion(1, 0, 256, 256)
    left, top = np.zeros((2, 256, 256), np.bool_)
    left[:, :128], top[:128] = True, True
    label = Prediction(flow, occlusion=left, trusted=~top)
    truth = Prediction(flow, trusted=~top)
    drawn = cells(comparison_panel(image, image, predictions={"label": label, "truth": truth}), rows=3)
    assert drawn[1][1][[50, 200]][:, [50, 200], 0].tolist() == [[255, 128], [255, 0]]
    assert drawn[2][1][[50, 200]][:, [50, 200], 0].tolist() == [[128, 128], [0, 0]]


@pytest.mark.parametrize("predictions", [{}, {"broken": Prediction(motion(np.nan, 0, 96, 128))}])
def test_a_comparison_is_drawn_without_truth_and_even_of_a_broken_flow(
    predictions: dict[str, Prediction],
) -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    for truth in (None, motion(0, 0, 96, 128)):
        drawn = comparison_panel(image, image, truth=truth, predictions=predictions)
        assert drawn.dtype == np.uint8


def test_a_comparison_of_real_frames_with_a_real_estimate_is_drawn(shared_data: Path) -> None:
    truth = load(find_samples("sintel", shared_data / "sintel")[0])
    grey1, grey2 = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (truth.image1, truth.image2))
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    flow = estimator.calc(grey1, grey2, np.zeros((*grey1.shape, 2), np.float32)).transpose(2, 0, 1)
    drawn = comparison_panel(
        truth.image1,
        truth.image2,
        truth=truth.flow,
        valid=truth.valid,
        occlusion=truth.occluded,
        predictions={"DIS": Prediction(flow)},
    )
    assert drawn.shape[1] == 3 * 512 + 4 * 6
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1000


def test_an_arrow_leads_from_a_pixel_to_where_it_moves() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    flow = np.zeros((2, 60, 60), np.float32)
    assert not with_arrows(image, flow).any()
    flow[0] = 9
    rows, columns, _ = with_arrows(image, flow).nonzero()
    # The first arrow, from (8, 8) to (17, 8).
    assert {8, 17} <= set(columns[np.abs(rows - 8) <= 1].tolist())
    assert not image.any()


def test_a_frame_brought_back_is_shifted_against_the_motion_and_grey_where_it_has_left() -> None:
    image2 = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    back = brought_back(image2, motion(2, -1, 4, 6))
    np.testing.assert_array_equal(back[1:, :4], image2[:3, 2:])
    assert (back[0] == 128).all()
    assert (back[:, 4:] == 128).all()
