from dataclasses import fields, replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowcore.datasets import find_samples
from flowcore.geometry import backward_warp, in_frame, pixel_grid
from flowcore.occlusion import OcclusionCheck
from flowcore.samples import load
from flowcore.scenes import Scene, SceneOptions, render_scene, write_truth, write_video

OPTIONS = SceneOptions(height=64, width=96, num_frames=4)
STILL = replace(OPTIONS, camera_speed=0.0, layer_speed=0.0, rotation=0.0, zoom=0.0)
SEEDS = range(6)


def frames(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.frames).permute(0, 3, 1, 2) / 255


def mask(occluded: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(occluded)[:, None]


def directions(scene: Scene) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """(reference frames, target frames, flow, flow back, occlusion), forward and backward."""
    flow_fw, flow_bw = torch.from_numpy(scene.flow_fw), torch.from_numpy(scene.flow_bw)
    first, second = frames(scene)[:-1], frames(scene)[1:]
    return [
        (first, second, flow_fw, flow_bw, mask(scene.occ_fw)),
        (second, first, flow_bw, flow_fw, mask(scene.occ_bw)),
    ]


def difference(frames1: Tensor, frames2: Tensor) -> Tensor:
    """Mean over the channels."""
    return (frames1 - frames2).abs().mean(dim=1, keepdim=True)


def test_a_seed_decides_the_whole_scene() -> None:
    scene, same, other = (render_scene(seed, OPTIONS) for seed in (3, 3, 4))
    for field in fields(Scene):
        assert np.array_equal(getattr(scene, field.name), getattr(same, field.name))
    assert not np.array_equal(scene.frames, other.frames)
    assert not np.array_equal(scene.flow_fw, other.flow_fw)


def test_a_scene_of_k_plus_one_frames_has_the_truth_of_k_pairs() -> None:
    scene = render_scene(0, OPTIONS)
    assert scene.frames.shape == (4, 64, 96, 3)
    assert scene.frames.dtype == np.uint8
    assert scene.flow_fw.shape == scene.flow_bw.shape == (3, 2, 64, 96)
    assert scene.flow_fw.dtype == scene.flow_bw.dtype == np.float32
    assert scene.occ_fw.shape == scene.occ_bw.shape == (3, 64, 96)
    assert all(0 < occluded.mean() < 0.5 for occluded in (*scene.occ_fw, *scene.occ_bw))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_target_warped_by_the_true_flow_is_the_reference_where_visible(
    seed: int,
) -> None:
    for reference, target, flow, _, occluded in directions(render_scene(seed, OPTIONS)):
        error = difference(backward_warp(target, flow), reference)
        hidden = occluded & in_frame(flow)
        assert error[~occluded].mean() < 0.015
        assert difference(target, reference)[~occluded].mean() > 5 * error[~occluded].mean()
        assert hidden.any()
        assert error[hidden].mean() > 10 * error[~occluded].mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_that_leaves_the_frame_is_occluded(seed: int) -> None:
    for _, _, flow, _, occluded in directions(render_scene(seed, OPTIONS)):
        assert occluded[~in_frame(flow)].all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_forward_backward_check_agrees_with_the_truth_nearly_everywhere(seed: int) -> None:
    check = OcclusionCheck()
    for _, _, flow, back, occluded in directions(render_scene(seed, OPTIONS)):
        found = check(flow, back)
        # Wrong next to outlines, where the flow back mixes two motions.
        assert found[~occluded].float().mean() < 0.03
        assert found[occluded].float().mean() > 0.95


def test_a_scene_without_layers_moves_by_one_affine_map() -> None:
    scene = render_scene(1, replace(OPTIONS, layers=(0, 0)))
    x, y = pixel_grid(64, 96)[0].double().reshape(2, -1).numpy()
    places = np.stack([x, y, np.ones_like(x)], axis=1)
    for flow in (*scene.flow_fw, *scene.flow_bw):
        _, residual, _, _ = np.linalg.lstsq(places, flow.reshape(2, -1).T.astype(float), rcond=None)
        assert np.sqrt(residual.max() / len(places)) < 1e-4
    for _, _, flow, _, occluded in directions(scene):
        assert occluded.equal(~in_frame(flow))


def test_where_nothing_moves_the_flow_is_zero_and_nothing_is_occluded() -> None:
    scene = render_scene(2, STILL)
    assert all(np.array_equal(frame, scene.frames[0]) for frame in scene.frames)
    np.testing.assert_allclose(scene.flow_fw, 0, atol=1e-5)
    assert not scene.occ_fw.any()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_camera_that_only_slides_moves_everything_by_one_vector(seed: int) -> None:
    scene = render_scene(seed, replace(STILL, camera_speed=10.0))
    motion = scene.flow_fw[0, :, 0, 0]
    assert 0.2 * 10 <= np.hypot(*motion) <= 10
    np.testing.assert_allclose(
        scene.flow_fw, np.broadcast_to(motion[:, None, None], scene.flow_fw.shape), atol=1e-4
    )
    np.testing.assert_allclose(scene.flow_bw, -scene.flow_fw, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_move_by_at_most_their_speed_before_a_camera_at_rest(seed: int) -> None:
    scene = render_scene(seed, replace(STILL, layer_speed=6.0, num_frames=2))
    speed = np.hypot(*scene.flow_fw[0])
    moving = speed > 1e-3
    assert 0 < moving.mean() < 1
    assert 0.2 * 6 <= speed[moving].min() <= speed.max() <= 6 + 1e-4
    # What is hidden is the resting background before a layer's way, or one layer behind another.
    assert scene.occ_fw.any()


def test_changing_light_changes_brightness_alone() -> None:
    constant = render_scene(1, OPTIONS)
    scene = render_scene(1, replace(OPTIONS, lighting=0.3))
    assert np.array_equal(scene.flow_fw, constant.flow_fw)
    assert np.array_equal(scene.occ_fw, constant.occ_fw)
    lit = constant.frames.astype(float)
    dark = (lit > 80) & (lit < 180)  # neither rounded much nor cut off at white
    factors = [
        scene.frames[frame][dark[frame]] / lit[frame][dark[frame]] for frame in range(len(scene.frames))
    ]
    assert all(np.ptp(factor) < 0.03 for factor in factors)
    means = [factor.mean() for factor in factors]
    assert all(0.7 <= mean <= 1.3 for mean in means)
    assert max(means) - min(means) > 0.1
    with pytest.raises(ValueError, match=r"lighting 1.0 must lie in \[0, 1\)"):
        replace(OPTIONS, lighting=1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_stereo_moves_everything_left_along_its_row(seed: int) -> None:
    scene = render_scene(seed, replace(OPTIONS, stereo=True))
    background = render_scene(seed, replace(OPTIONS, stereo=True, layers=(0, 0)))
    u, v = scene.flow_fw[:, 0], scene.flow_fw[:, 1]
    # v is a difference of coordinates
    assert np.abs(v).max() < 1e-4
    assert u.max() < 1e-4
    assert (u <= background.flow_fw[:, 0] + 1e-3).all()
    assert u.min() < background.flow_fw[:, 0].min() - 0.5


@pytest.mark.parametrize(("height", "width", "num_frames"), [(15, 16, 2), (16, 8, 2), (16, 16, 1)])
def test_a_scene_that_is_too_small_is_refused(height: int, width: int, num_frames: int) -> None:
    with pytest.raises(ValueError, match="is too small; at least 2 frames of 16 px a side"):
        SceneOptions(height=height, width=width, num_frames=num_frames)


def test_the_smallest_scene_can_be_rendered() -> None:
    scene = render_scene(0, SceneOptions(height=16, width=16, num_frames=2))
    assert scene.frames.shape == (2, 16, 16, 3)


def test_what_is_written_as_truth_is_what_the_benchmark_reads(tmp_path: Path) -> None:
    scene = render_scene(5, OPTIONS)
    write_truth(tmp_path / "truth" / "scene_0005", scene)
    samples = find_samples("scenes", tmp_path / "truth")
    assert [sample.name for sample in samples] == [f"scene_0005/frame_{index:04d}" for index in range(3)]
    for index, truth in enumerate(map(load, samples)):
        assert np.array_equal(truth.image1, scene.frames[index])
        assert np.array_equal(truth.image2, scene.frames[index + 1])
        assert np.array_equal(truth.flow, scene.flow_fw[index])
        assert truth.valid.all()
        assert truth.occluded is not None
        assert np.array_equal(truth.occluded, scene.occ_fw[index])


def test_writing_the_truth_again_changes_nothing(tmp_path: Path) -> None:
    scene = render_scene(5, OPTIONS)
    write_truth(tmp_path, scene)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_truth(tmp_path, scene)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_written_video_has_every_frame_once_in_order_and_looks_like_it(tmp_path: Path) -> None:
    scene = render_scene(0, replace(OPTIONS, num_frames=9))
    path = tmp_path / "new" / "scene.mp4"
    write_video(path, scene.frames, fps=10)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 10
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == scene.frames.shape
    errors = np.abs(decoded[:, None].astype(float) - scene.frames[None]).mean(axis=(2, 3, 4))
    assert errors.argmin(axis=1).tolist() == list(range(9))
    assert errors.diagonal().max() < 8


@pytest.mark.parametrize(("height", "width"), [(17, 20), (20, 17)])
def test_a_video_with_an_odd_side_is_refused_and_leaves_no_file(
    tmp_path: Path, height: int, width: int
) -> None:
    path = tmp_path / "odd.mp4"
    with pytest.raises(ValueError, match=rf"a video of \({height}, {width}\) must have even sides"):
        write_video(path, np.zeros((2, height, width, 3), np.uint8))
    assert not path.exists()
