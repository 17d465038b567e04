"""Transformations move frames, flow and confidence alike, keyed by their generator."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.segmentation import slic

from flowcore.augmentation import Crop, Flips, Geometric, Scaling, affine, warped
from flowcore.colour import ChannelPermutation, Colour
from flowcore.geometry import backward_warp, flip_left_right, flip_up_down
from flowcore.hallucination import (
    Challenge,
    CopyPaste,
    RectangleNoise,
    SuperpixelNoise,
    Transformation,
    superpixels,
)
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import FramePair
from flowcore.scenes import SceneOptions, render_scene

SCENE = render_scene(3, SceneOptions(height=64, width=80, num_frames=2))


def pair() -> FramePair:
    return FramePair(
        image1=SCENE.frames[0],
        image2=SCENE.frames[1],
        flow_fw=SCENE.flow_fw[0],
        flow_bw=SCENE.flow_bw[0],
        confidence_fw=(~SCENE.occ_fw[0]).astype(np.float32),
        confidence_bw=(~SCENE.occ_bw[0]).astype(np.float32),
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
    assert transformed.confidence_fw is not None
    seen = (transformed.confidence_fw > 0) & stays
    return float(np.abs(warped - transformed.image1.astype(np.float32)).mean(axis=-1)[seen].mean())


@given(st.integers(0, 2**32 - 1))
def test_after_any_crop_and_flip_the_flow_still_explains_the_second_frame(seed: int) -> None:
    rng = np.random.default_rng(seed)
    transformed = Challenge(crop=Crop(height=48, width=56))(pair(), rng)
    assert transformed.image1.shape == (48, 56, 3)
    assert warp_error(transformed) < 3.0


def test_a_crop_of_the_whole_frame_changes_nothing() -> None:
    whole = pair()
    cropped = Crop(height=64, width=80)(whole, np.random.default_rng(0))
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(cropped, name), value)


EVERY_TRANSFORMATION: list[Transformation] = [
    Crop(height=32, width=40),
    Flips(),
    ChannelPermutation(),
    Geometric(chance=1.0),
    Geometric(chance=1.0, soft=True),
    Colour(chance=1.0),
    Colour(chance=1.0, asymmetric=0.5, hue=0.2),
    SuperpixelNoise(chance=1.0),
    RectangleNoise(chance=1.0),
    RectangleNoise(chance=1.0, filling="mean"),
    CopyPaste(chance=1.0),
    Challenge(
        crop=Crop(height=32, width=40),
        scaling=Scaling(chance=0.5),
        geometric=Geometric(chance=0.5),
        pasted=CopyPaste(chance=0.5),
        colour=Colour(chance=0.5),
        superpixels=SuperpixelNoise(chance=0.5),
        rectangles=RectangleNoise(chance=0.5),
    ),
]


@pytest.mark.parametrize("transformation", EVERY_TRANSFORMATION)
def test_equal_keys_transform_alike_and_other_keys_otherwise(transformation: Transformation) -> None:
    first, again = (transformation(pair(), np.random.default_rng([3, 5])) for _ in range(2))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    others = [transformation(pair(), np.random.default_rng([3, key])) for key in range(8)]
    assert any(not np.array_equal(other.image2, first.image2) for other in others)


def test_what_has_no_chance_changes_nothing_and_draws_nothing() -> None:
    rng = np.random.default_rng(4)
    for off in (
        *(Geometric(), Colour(), CopyPaste(), SuperpixelNoise(), RectangleNoise()),
        ChannelPermutation(chance=0.0),
    ):
        assert vars(off(pair(), rng)).keys() == vars(pair()).keys()
        np.testing.assert_array_equal(off(pair(), rng).image2, SCENE.frames[1])
    assert rng.random() == np.random.default_rng(4).random()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_after_any_geometric_transformation_the_flow_still_explains_the_second_frame(
    seed: int, soft: bool
) -> None:
    transformed = Geometric(chance=1.0, soft=soft)(pair(), np.random.default_rng(seed))
    assert warp_error(replace(transformed, confidence_fw=trusted(transformed.confidence_fw))) < 5.0


def trusted(confidence: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """1 where a pixel and its neighbours are sure: beside them flow was sampled across an edge of motion."""
    assert confidence is not None
    return cv2.erode((confidence == 1).astype(np.float32), np.ones((5, 5), np.uint8))


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_uniform_flow_under_two_affine_maps_is_what_the_vector_law_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    flow = np.broadcast_to(np.array([3.0, -2.0], np.float32).reshape(2, 1, 1), (2, 64, 80))
    sure = np.ones((64, 80), np.float32)
    before = replace(pair(), flow_fw=flow, flow_bw=-flow, confidence_fw=sure, confidence_bw=sure)
    first, second = (
        affine(64, 80, rng.uniform(0.8, 1.5, 2), rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2, 2))
        for _ in range(2)
    )
    after = warped(before, first, second)
    y, x = rng.integers(64), rng.integers(80)
    for result, here, there, motion in (
        (after.flow_fw, first, second, np.array([3.0, -2.0])),
        (after.flow_bw, second, first, np.array([-3.0, 2.0])),
    ):
        source = np.linalg.solve(here[:, :2], np.array([x, y]) - here[:, 2])
        landing = there[:, :2] @ (source + motion) + there[:, 2]
        assert result is not None
        np.testing.assert_allclose(result[:, y, x], landing - [x, y], atol=1e-3)
        inside = bool((source >= 0).all() and (source <= [79, 63]).all())
        mask = after.inside1 if here is first else after.inside2
        confidence = after.confidence_fw if here is first else after.confidence_bw
        assert mask is not None
        assert confidence is not None
        assert mask[y, x] == inside
        assert confidence[y, x] == inside


def sparse_truth(seed: int) -> FramePair:
    """A pair of whose pixels a third has a truth, of vectors that all differ in both components."""
    rng = np.random.default_rng(seed)
    known = rng.uniform(size=(64, 80)) < 0.3
    vectors = (rng.permutation(2 * 64 * 80) - 64 * 80).reshape(2, 64, 80) / 256
    flow = np.where(known, vectors, 0.0).astype(np.float32)
    return replace(
        pair(), flow_fw=flow, flow_bw=None, confidence_fw=known.astype(np.float32), confidence_bw=None
    )


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.6, 2.0), st.floats(0.6, 2.0))
def test_each_vector_of_a_scaled_sparse_truth_is_a_known_one_scaled_next_to_its_place(
    seed: int, wide: float, tall: float
) -> None:
    before = sparse_truth(seed)
    assert before.flow_fw is not None
    assert before.confidence_fw is not None
    zoom = np.array([[wide, 0.0, 0.0], [0.0, tall, 0.0]])
    after = warped(before, zoom, zoom)
    assert after.flow_fw is not None
    assert after.confidence_fw is not None
    expected: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for y, x in np.argwhere(before.confidence_fw > 0):
        place = round(y * tall), round(x * wide)
        if place[0] < 64 and place[1] < 80:
            u, v = before.flow_fw[:, y, x]
            expected.setdefault(place, []).append((u * wide, v * tall))
    assert {(y, x) for y, x in np.argwhere(after.confidence_fw > 0)} == expected.keys()
    for (y, x), candidates in expected.items():
        found = after.flow_fw[:, y, x]
        assert min(np.abs(found - candidate).max() for candidate in candidates) < 1e-4


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_a_challenge_invents_no_vector_of_a_sparse_truth(seed: int) -> None:
    challenge = Challenge(
        scaling=Scaling(chance=0.8, factor=(1.5, 1.5), stretch_chance=0.0),
        crop=Crop(height=40, width=56),
        colour=Colour(chance=0.5),
    )
    before = sparse_truth(seed)
    after = challenge(before, np.random.default_rng(seed))
    assert before.flow_fw is not None
    assert before.confidence_fw is not None
    assert after.flow_fw is not None
    assert after.confidence_fw is not None
    known = np.abs(before.flow_fw[:, before.confidence_fw > 0]).T
    found = np.abs(after.flow_fw[:, after.confidence_fw > 0]).T
    assert len(found) > 100
    distances = [
        min(np.abs(vector / factor - known).max(axis=1).min() for factor in (1.0, 1.5)) for vector in found
    ]
    assert max(distances) < 1e-4


def test_a_truth_known_everywhere_is_interpolated_and_stays_known_everywhere() -> None:
    sure = np.ones((64, 80), np.float32)
    dense = replace(pair(), flow_bw=None, confidence_fw=sure, confidence_bw=None)
    zoom = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    after = warped(dense, zoom, zoom)
    assert after.confidence_fw is not None
    assert after.confidence_fw.all()
    assert after.flow_fw is not None
    middle = (SCENE.flow_fw[0][:, :31, :39] + SCENE.flow_fw[0][:, :31, 1:40]) / 2
    np.testing.assert_allclose(after.flow_fw[:, 0:62:2, 1:79:2], 2 * middle, atol=1e-3)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_after_any_scaling_the_flow_still_explains_the_second_frame(seed: int) -> None:
    challenge = Challenge(
        scaling=Scaling(chance=1.0), crop=Crop(height=48, width=56), channels=ChannelPermutation(chance=0.0)
    )
    transformed = challenge(pair(), np.random.default_rng(seed))
    assert transformed.image1.shape == (48, 56, 3)
    assert transformed.inside1 is not None
    assert transformed.inside1.all()
    assert warp_error(replace(transformed, confidence_fw=trusted(transformed.confidence_fw))) < 5.0


def test_no_frame_is_scaled_to_less_than_the_crop() -> None:
    challenge = Challenge(
        scaling=Scaling(chance=1.0, factor=(0.5, 0.5), stretch_chance=0.0),
        crop=Crop(height=64, width=80),
        flips=Flips(left_right=0.0, up_down=0.0),
        channels=ChannelPermutation(chance=0.0),
    )
    same = challenge(pair(), np.random.default_rng(0))
    np.testing.assert_array_equal(same.image1, pair().image1)
    np.testing.assert_allclose(same.flow_fw, pair().flow_fw, atol=1e-4)


@pytest.mark.parametrize("soft", [False, True])
def test_sparse_truth_keeps_its_flow_between_unknown_pixels(soft: bool) -> None:
    known = np.random.default_rng(3).uniform(size=(64, 80)) < 0.3
    flow = np.where(known, np.array([20.0, -4.0]).reshape(2, 1, 1), 0.0).astype(np.float32)
    sparse = replace(
        pair(), flow_fw=flow, flow_bw=None, confidence_fw=known.astype(np.float32), confidence_bw=None
    )
    shift = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.25]])
    after = warped(sparse, shift, shift, soft=soft)
    assert after.flow_fw is not None
    assert after.confidence_fw is not None
    counted = after.confidence_fw > 0
    assert counted.mean() > 0.2
    np.testing.assert_allclose(after.flow_fw[0, counted], 20.0, atol=1e-3)
    np.testing.assert_allclose(after.flow_fw[1, counted], -4.0, atol=1e-3)


def test_small_deltas_are_likelier_the_larger_the_exponent() -> None:
    def shifts(exponent: float) -> NDArray[np.float64]:
        geometric = Geometric(
            chance=1.0,
            delta_zoom=(1.0, 1.0),
            delta_rotation=0.0,
            delta_translation=0.2,
            delta_exponent=exponent,
        )
        maps = [geometric.maps(101, 101, np.random.default_rng(seed)) for seed in range(200)]
        return np.array([np.abs(second - first)[:, 2] for first, second in (both for both in maps if both)])

    even, steep = shifts(1.0), shifts(3.0)
    # a fifth of half the frame's side
    assert max(even.max(), steep.max()) <= 10.0 + 1e-9
    assert np.median(even) == pytest.approx(5.0, abs=0.7)
    assert np.median(steep) == pytest.approx(10 * 0.5**3, abs=0.5)


def test_the_identity_changes_nothing() -> None:
    identity = affine(64, 80, np.ones(2), 0.0, np.zeros(2))
    same = warped(pair(), identity, identity)
    assert same.inside1 is not None
    assert same.inside1.all()
    for name, value in vars(pair()).items():
        if value is not None:
            np.testing.assert_allclose(getattr(same, name), value, atol=1e-4)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_challenge_gives_what_a_crop_of_the_whole_transformed_frames_gives(seed: int, soft: bool) -> None:
    """It computes the window alone, which is fast, and draws the same numbers."""
    geometric, crop = Geometric(chance=1.0, soft=soft), Crop(height=40, width=56)
    rng = np.random.default_rng(seed)
    whole = crop(geometric(pair(), rng), rng)
    challenge = Challenge(
        geometric=geometric,
        crop=crop,
        flips=Flips(left_right=0.0, up_down=0.0),
        channels=ChannelPermutation(chance=0.0),
    )
    window = challenge(pair(), np.random.default_rng(seed))
    for name, expected in whole.known().items():
        found = getattr(window, name)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        # OpenCV rounds where it samples to 1/32 px
        difference = np.abs(found.astype(float) - expected.astype(float))
        limit = 0.01 if name.startswith("flow") else (2.0 if name.startswith("image") else 0.05)
        assert np.median(difference) <= limit
        assert (difference > limit).mean() < 0.02


def test_zoom_by_two_and_three_multiplies_u_and_v_by_them() -> None:
    flow = np.broadcast_to(np.array([1.0, 1.0], np.float32).reshape(2, 1, 1), (2, 64, 80))
    zoom = affine(64, 80, np.array([2.0, 3.0]), 0.0, np.zeros(2))
    result = warped(replace(pair(), flow_fw=flow), zoom, zoom).flow_fw
    assert result is not None
    np.testing.assert_allclose(result[0], 2.0, atol=1e-4)
    np.testing.assert_allclose(result[1], 3.0, atol=1e-4)


def test_what_comes_from_outside_the_frame_is_neither_inside_nor_trusted() -> None:
    # half as large: a border of a quarter on each side comes from outside
    half = affine(64, 80, np.array([0.5, 0.5]), 0.0, np.zeros(2))
    sure = np.ones((64, 80), np.float32)
    small = warped(replace(pair(), confidence_fw=sure), half, half)
    assert small.inside1 is not None
    assert small.inside1.sum() == 32 * 40
    assert small.inside1[16:48, 20:60].all()
    assert small.confidence_fw is not None
    assert (small.confidence_fw == small.inside1).all()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_what_is_pasted_moves_as_its_flow_says_and_is_trusted(seed: int) -> None:
    before = pair()
    pasted = CopyPaste(chance=1.0, count=(1, 1), radius=(0.2, 0.3))(before, np.random.default_rng(seed))
    assert pasted.flow_fw is not None
    assert before.flow_fw is not None
    assert pasted.confidence_fw is not None
    changed = (pasted.flow_fw != before.flow_fw).any(axis=0)
    assert (pasted.confidence_fw[changed] == 1).all()
    # beside the outline the frame below shines through, and what the piece covers in image2 is not seen there
    within = cv2.erode(changed.astype(np.float32), np.ones((5, 5), np.uint8))
    if within.any():
        moved = replace(pasted, confidence_fw=within)
        if np.isfinite(error := warp_error(moved)):
            # a piece that is partly covered by nothing is found where its flow points
            assert error < 12.0


def test_a_pasted_piece_hides_from_the_student_what_the_teacher_saw() -> None:
    before = pair()
    pasted = CopyPaste(chance=1.0, count=(3, 3), radius=(0.2, 0.3))(before, np.random.default_rng(1))
    assert pasted.flow_fw is not None
    assert before.flow_fw is not None
    assert pasted.confidence_fw is not None
    same = (pasted.flow_fw == before.flow_fw).all(axis=0)
    np.testing.assert_array_equal(pasted.confidence_fw[same & (before.confidence_fw == 1)], 1.0)
    landing = pasted.flow_fw + np.mgrid[:64, :80][::-1]
    x, y = np.clip(np.round(landing), 0, [[[79]], [[63]]]).astype(int)
    other = np.abs(pasted.image2.astype(int) - before.image2).max(axis=-1) > 0
    # trusted pixels of the background whose place in image2 is covered
    assert (same & other[y, x] & (pasted.confidence_fw == 1)).sum() > 20


@pytest.mark.parametrize("noise", [SuperpixelNoise(chance=1.0), RectangleNoise(chance=1.0)])
def test_noise_hides_a_part_of_the_target_frame_and_leaves_all_else(noise: Transformation) -> None:
    noisy = noise(pair(), np.random.default_rng(2))
    changed = (noisy.image2 != SCENE.frames[1]).any(axis=-1)
    assert 0.01 < changed.mean() < 0.4
    for name, value in vars(pair()).items():
        if name != "image2":
            np.testing.assert_array_equal(getattr(noisy, name), value)
    values = noisy.image2[changed].astype(float)
    # uniform in 0..255: mean 127.5 and standard deviation 73.9
    assert abs(values.mean() - 127.5) < 10
    assert abs(values.std() - 73.9) < 8


def test_superpixel_noise_fills_whole_superpixels_in_the_number_asked_for() -> None:
    noisy = SuperpixelNoise(chance=1.0, segments=100, filled=(5, 5))(pair(), np.random.default_rng(2))
    changed = (noisy.image2 != SCENE.frames[1]).any(axis=-1)
    labels = slic(SCENE.frames[1], n_segments=100, compactness=30.0, start_label=0)
    share = [changed[labels == label].mean() for label in np.unique(labels)]
    # a pixel's noise may be its colour by chance
    assert sum(each > 0.99 for each in share) == 5
    assert sum(each > 0 for each in share) == 5


def explained(image: np.ndarray, labels: np.ndarray) -> float:
    """The share of the variance of the colours that superpixels of one colour each would keep."""
    colours, which = image.reshape(-1, 3).astype(float), labels.reshape(-1)
    count = np.maximum(np.bincount(which), 1)
    means = np.stack([np.bincount(which, colours[:, channel]) / count for channel in range(3)], axis=1)
    return float(means[which].var(axis=0).sum() / colours.var(axis=0).sum())


def test_superpixels_of_a_large_frame_follow_its_edges_as_slic_on_all_its_pixels_does() -> None:
    frame = render_scene(1, SceneOptions(height=240, width=320, num_frames=2)).frames[0]
    ours = superpixels(frame, 100, 30.0)
    assert ours.shape == (240, 320)
    assert 60 < len(np.unique(ours)) < 140
    whole = slic(frame, n_segments=100, compactness=30.0, start_label=0)
    blocks = np.add.outer(np.arange(240) // 24 * 100, np.arange(320) // 32)
    assert explained(frame, ours) > 0.97 * explained(frame, whole)
    assert explained(frame, ours) > 1.1 * explained(frame, blocks)


def test_superpixel_noise_on_both_frames_hides_other_places_in_each() -> None:
    noisy = SuperpixelNoise(chance=1.0, on_both=True)(pair(), np.random.default_rng(2))
    first, second = ((noisy.image1 != SCENE.frames[0]).any(-1), (noisy.image2 != SCENE.frames[1]).any(-1))
    assert first.any()
    assert second.any()
    assert not np.array_equal(first, second)


def test_colour_changes_the_frames_alike_and_nothing_else() -> None:
    frames = SCENE.frames[0]
    colour = Colour(chance=1.0, noise=0.0)
    still = replace(pair(), image1=frames, image2=frames)
    for key in range(10):
        changed = colour(still, np.random.default_rng(key))
        np.testing.assert_array_equal(changed.image1, changed.image2)
        assert not np.array_equal(changed.image1, frames)
        for name in ("flow_fw", "flow_bw", "confidence_fw", "confidence_bw"):
            assert getattr(changed, name) is getattr(still, name)


def test_frames_that_change_apart_differ_where_they_were_equal() -> None:
    frames = SCENE.frames[0]
    still = replace(pair(), image1=frames, image2=frames)
    changed = Colour(chance=1.0, asymmetric=1.0, noise=0.0)(still, np.random.default_rng(0))
    assert not np.array_equal(changed.image1, changed.image2)


def test_a_turned_hue_keeps_greys_and_the_mean_of_the_channels() -> None:
    turned = Colour(
        chance=1.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.5,
        gamma=(1.0, 1.0),
        blur_chance=0.0,
        noise=0.0,
    )
    grey = np.full((8, 8, 3), 100, np.uint8)
    # A turn of any angle keeps it within 0 and 255.
    blueish = np.broadcast_to(np.array([90, 120, 150], np.uint8), (8, 8, 3))
    for key in range(10):
        changed = turned(FramePair(image1=grey, image2=blueish), np.random.default_rng(key))
        np.testing.assert_array_equal(changed.image1, grey)
        np.testing.assert_allclose(changed.image2.mean(axis=-1), 120, atol=1)
        assert not np.array_equal(changed.image2, blueish)


def test_rectangles_filled_with_the_mean_have_the_frame_s_mean_colour() -> None:
    mean = np.floor(SCENE.frames[1].mean(axis=(0, 1)) + 0.5)
    after = RectangleNoise(chance=1.0, filling="mean")(pair(), np.random.default_rng(0))
    hidden = (after.image2 != SCENE.frames[1]).any(axis=-1)
    assert hidden.any()
    assert (after.image2[hidden] == mean).all()
    np.testing.assert_array_equal(after.image1, SCENE.frames[0])


def test_brightness_alone_scales_every_value() -> None:
    bright = Colour(
        chance=1.0, brightness=0.3, contrast=0.0, saturation=0.0, gamma=(1.0, 1.0), blur_chance=0.0, noise=0.0
    )
    dim = np.full((8, 8, 3), 100, np.uint8)
    values = {
        int(bright(FramePair(image1=dim, image2=dim), np.random.default_rng(key)).image1[0, 0, 0])
        for key in range(200)
    }
    assert min(values) in (70, 71, 72)
    assert max(values) in (128, 129, 130)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Colour(chance=1.5), r"chance 1.5 must be a probability"),
        (lambda: Geometric(zoom=(1.5, 1.0)), r"zoom \(1.5, 1.0\) must be \(smallest, largest\)"),
        (lambda: SuperpixelNoise(filled=(0, 3)), r"filled \(0, 3\) must be .* at least 1"),
        (lambda: SuperpixelNoise(segments=1), "segments 1 must be at least 2"),
        (lambda: RectangleNoise(side=(-0.1, 0.2)), "side"),
        (lambda: Scaling(factor=(0.4, 1.0)), r"factor \(0.4, 1.0\) must be .* at least 0.5"),
        (lambda: Scaling(stretch=0.9), "stretch 0.9 must be at least 1"),
        (lambda: Colour(hue=0.6), r"hue 0.6 must lie in \[0, 0.5\]"),
        (lambda: Colour(asymmetric=2.0), "asymmetric 2.0 must be a probability"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


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
    np.testing.assert_array_equal(both.confidence_fw, ~SCENE.occ_fw[0][::-1, ::-1])


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
    transformed = Challenge(crop=Crop(height=32, width=32), geometric=Geometric(chance=1.0))(
        bare, np.random.default_rng(0)
    )
    assert transformed.flow_fw is None
    assert transformed.confidence_bw is None


def test_a_crop_hides_from_the_student_what_the_teacher_sees() -> None:
    flow = np.zeros((2, 8, 12), np.float32)
    flow[0] = 3.0
    visible = np.ones((8, 12), np.float32)
    frames = np.zeros((8, 12, 3), np.uint8)
    whole = FramePair(
        image1=frames,
        image2=frames,
        flow_fw=flow,
        flow_bw=-flow,
        confidence_fw=visible,
        confidence_bw=visible,
    )
    cropped = Crop(height=8, width=6)(whole, np.random.default_rng(0))
    forward, backward = (torch.from_numpy(f.copy())[None] for f in (cropped.flow_fw, cropped.flow_bw))
    student = OcclusionCheck()(forward, backward)[0, 0].numpy()
    assert cropped.confidence_fw is not None
    hallucinated = student & (cropped.confidence_fw > 0)
    # three of six columns move out of the window to the right
    assert hallucinated.tolist() == [[False] * 3 + [True] * 3] * 8
