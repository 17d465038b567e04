"""Transformations move frames, flow and occlusion alike, keyed by their generator."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowcore.geometry import backward_warp, flip_left_right, flip_up_down
from flowcore.hallucination import ChannelPermutation, Composed, Crop, Flips, FramePair
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.scenes import SceneOptions, render_scene

SCENE = render_scene(3, SceneOptions(height=64, width=80, num_frames=2))


def pair() -> FramePair:
    return FramePair(
        image1=SCENE.frames[0],
        image2=SCENE.frames[1],
        flow_fw=SCENE.flow_fw[0],
        flow_bw=SCENE.flow_bw[0],
        occ_fw=SCENE.occ_fw[0],
        occ_bw=SCENE.occ_bw[0],
    )


def warp_error(transformed: FramePair) -> float:
    """Mean absolute difference of image1 and image2 warped by the flow, over visible pixels that stay in the
    window."""
    flow = torch.from_numpy(np.ascontiguousarray(transformed.flow_fw))[None]
    image2 = torch.from_numpy(np.ascontiguousarray(transformed.image2).astype(np.float32)).permute(2, 0, 1)[
        None
    ]
    warped = backward_warp(image2, flow)[0].permute(1, 2, 0).numpy()
    height, width = transformed.image1.shape[:2]
    y, x = np.mgrid[:height, :width]
    assert transformed.flow_fw is not None
    stays = (
        (x + transformed.flow_fw[0] >= 0)
        & (x + transformed.flow_fw[0] <= width - 1)
        & (y + transformed.flow_fw[1] >= 0)
        & (y + transformed.flow_fw[1] <= height - 1)
    )
    seen = ~transformed.occ_fw & stays
    return float(np.abs(warped - transformed.image1.astype(np.float32)).mean(axis=-1)[seen].mean())


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_after_any_crop_and_flip_the_flow_still_explains_the_second_frame(seed: int) -> None:
    rng = np.random.default_rng(seed)
    transformed = Composed(steps=(Crop(height=48, width=56), Flips(), ChannelPermutation()))(pair(), rng)
    assert transformed.image1.shape == (48, 56, 3)
    assert warp_error(transformed) < 3.0


def test_a_crop_of_the_whole_frame_changes_nothing() -> None:
    whole = pair()
    cropped = Crop(height=64, width=80)(whole, np.random.default_rng(0))
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(cropped, name), value)


def test_equal_keys_give_equal_crops_and_offsets_reach_every_place() -> None:
    crop = Crop(height=62, width=80)
    tops = set()
    for key in range(40):
        first, again = (crop(pair(), np.random.default_rng([7, key])) for _ in range(2))
        np.testing.assert_array_equal(first.image1, again.image1)
        tops.add(
            next(top for top in range(3) if np.array_equal(first.image1, SCENE.frames[0][top : top + 62]))
        )
    assert tops == {0, 1, 2}


def test_a_crop_larger_than_the_frames_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"crop \(65, 80\) is larger than the frames \(64, 80\)"):
        Crop(height=65, width=80)(pair(), np.random.default_rng(0))


def test_flips_agree_with_the_flips_of_geometry() -> None:
    both = Flips(left_right=1.0, up_down=1.0)(pair(), np.random.default_rng(0))
    expected = flip_up_down(flip_left_right(torch.from_numpy(SCENE.flow_fw[:1])))[0].numpy()
    np.testing.assert_allclose(both.flow_fw, expected)
    np.testing.assert_array_equal(both.occ_fw, SCENE.occ_fw[0][::-1, ::-1])


def test_a_channel_permutation_is_the_same_in_both_frames_and_touches_no_label() -> None:
    permuted = ChannelPermutation()(pair(), np.random.default_rng(1))
    orders = [
        order
        for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        if np.array_equal(permuted.image1, SCENE.frames[0][..., list(order)])
    ]
    assert len(orders) == 1
    np.testing.assert_array_equal(permuted.image2, SCENE.frames[1][..., list(orders[0])])
    assert permuted.flow_fw is pair().flow_fw or np.array_equal(permuted.flow_fw, SCENE.flow_fw[0])


def test_frames_without_labels_stay_without() -> None:
    bare = FramePair(image1=SCENE.frames[0], image2=SCENE.frames[1])
    transformed = Composed(steps=(Crop(height=32, width=32), Flips(left_right=1.0)))(
        bare, np.random.default_rng(0)
    )
    assert transformed.flow_fw is None
    assert transformed.occ_bw is None


def test_a_crop_hides_from_the_student_what_the_teacher_sees() -> None:
    flow = np.zeros((2, 8, 12), np.float32)
    flow[0] = 3.0
    visible = np.zeros((8, 12), bool)
    frames = np.zeros((8, 12, 3), np.uint8)
    whole = FramePair(
        image1=frames, image2=frames, flow_fw=flow, flow_bw=-flow, occ_fw=visible, occ_bw=visible
    )
    cropped = Crop(height=8, width=6)(whole, np.random.default_rng(0))
    forward, backward = (torch.from_numpy(f.copy())[None] for f in (cropped.flow_fw, cropped.flow_bw))
    student = ForwardBackwardCheck()(forward, backward)[0, 0].numpy()
    hallucinated = student & ~cropped.occ_fw
    # three of six columns move out of the window to the right
    assert hallucinated.tolist() == [[False] * 3 + [True] * 3] * 8
