"""Flow of frames that go through a network in tiles, and at another scale."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowcore.inference import InferenceOptions, estimate_frames, in_tiles, tiles_of
from flowcore.networks import FlowNetwork, PWCNetConfig, external_network
from flowcore.refinement import refined
from flowcore.scenes import SceneOptions, render_scene

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SIDES = st.integers(1, 3000)


@given(height=SIDES, width=SIDES, most=st.integers(40_000, 2_000_000), multiple=st.sampled_from([1, 8, 64]))
def test_tiles_cover_the_frame_and_are_of_one_size(height: int, width: int, most: int, multiple: int) -> None:
    covered = np.zeros((height, width), bool)
    tiles = tiles_of(height, width, most, multiple)
    for tile in tiles:
        assert (tile.height, tile.width) == (tiles[0].height, tiles[0].width)
        assert 0 <= tile.top <= height - tile.height
        assert 0 <= tile.left <= width - tile.width
        covered[tile.place] = True
    assert covered.all()
    if len(tiles) == 1:
        assert height * width <= most or max(height, width) <= 2 * multiple


@given(height=st.integers(300, 3000), width=st.integers(300, 3000), multiple=st.sampled_from([1, 8, 64]))
def test_neighbouring_tiles_share_enough_to_be_blended(height: int, width: int, multiple: int) -> None:
    tiles = tiles_of(height, width, 200_000, multiple)
    for starts, side in (
        (sorted({tile.top for tile in tiles}), tiles[0].height),
        (sorted({tile.left for tile in tiles}), tiles[0].width),
    ):
        for start, following in pairwise(starts):
            assert start + side - following >= 64


def positions(images: Tensor) -> list[Tensor]:
    """A flow that says where each pixel is, by frames that do."""
    return [images[:-1, :2]]


@pytest.mark.parametrize(("height", "width"), [(300, 500), (257, 1000), (1200, 130)])
def test_tiles_that_agree_are_blended_into_what_they_agree_on(height: int, width: int) -> None:
    images = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    images = torch.cat([images, images[:1]]).float().expand(3, -1, -1, -1)
    tiles = tiles_of(height, width, 60_000, 8)
    assert len(tiles) > 1
    (blended,) = in_tiles(positions, images, tiles)
    torch.testing.assert_close(blended, images[:-1, :2], rtol=0, atol=1e-3)


def test_where_tiles_disagree_there_is_no_seam() -> None:
    height, width = 300, 2000
    tiles = tiles_of(height, width, 200_000, 8)
    numbers = iter(range(len(tiles)))

    def disagreeing(images: Tensor) -> list[Tensor]:
        return [torch.full((1, 2, *images.shape[-2:]), float(next(numbers)))]

    (blended,) = in_tiles(disagreeing, torch.zeros(2, 3, height, width), tiles)
    # Neighbours differ by one pixel of flow, which changes over what they share and nowhere at once.
    assert blended.diff(dim=-1).abs().max() < 0.05
    assert blended.diff(dim=-2).abs().max() < 0.05
    assert blended.max() == len(tiles) - 1


def flow_of(frames: Sequence[np.ndarray], **options: float | tuple[float, ...]) -> Tensor:
    torch.manual_seed(0)
    network = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,)).build()
    network.eval()
    parts = list(
        estimate_frames(network, frames, CPU, InferenceOptions(**options), both=True)  # type: ignore[arg-type]
    )
    assert all(back is not None and back.shape == there.shape for there, back in parts)
    return torch.cat([there for there, _ in parts])


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return list(render_scene(0, SceneOptions(height=200, width=330, num_frames=4)).frames)


def test_on_a_cpu_few_pairs_are_computed_before_the_first_one_is_given() -> None:
    network = external_network("opencv:dis_fast").build()
    many = list(np.zeros((9, 250, 400, 3), np.uint8))
    parts = [len(there) for there, _ in estimate_frames(network, many, CPU, InferenceOptions(), both=False)]
    assert parts == [2, 2, 2, 2]
    small = [frame[:64, :64] for frame in many]
    parts = [len(there) for there, _ in estimate_frames(network, small, CPU, InferenceOptions(), both=False)]
    assert parts == [8]


def test_of_a_network_s_tiles_there_is_no_seam_either(frames: list[np.ndarray]) -> None:
    whole, tiled = flow_of(frames), flow_of(frames, tile_pixels=20_000)
    assert whole.shape == tiled.shape == (3, 2, 200, 330)
    tiles = tiles_of(200, 330, 20_000, 8)
    assert len(tiles) > 2
    for border in {tile.left for tile in tiles} - {0}:
        jump = (tiled[..., border] - tiled[..., border - 1]).abs().mean()
        assert jump < 1.5 * whole.diff(dim=-1).abs().mean() + 0.01


def test_at_another_scale_the_flow_is_in_the_frames_own_pixels(frames: list[np.ndarray]) -> None:
    moved = [np.roll(frames[0], shift, axis=1) for shift in (0, 4)]
    config = external_network("opencv:dis_medium")
    assert config is not None
    for scale in (0.5, 1.0, 2.0):
        (flow, back), *rest = estimate_frames(
            config.build(), moved, CPU, InferenceOptions(scale=(scale,)), both=False
        )
        assert (rest, back) == ([], None)
        assert flow.shape == (1, 2, 200, 330)
        middle = flow[0, :, 40:-40, 40:-40]
        assert middle[0].median() == pytest.approx(4, abs=0.3)
        assert middle[1].median() == pytest.approx(0, abs=0.3)


class Slow(FlowNetwork):
    """Says that what moves by 1.5 px an image moves by 1 px."""

    multiple = 1
    strides = (1,)

    def encode(self, images: Tensor) -> list[Tensor]:
        return [images]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[Tensor]:
        flow = torch.zeros(len(features1[0]), 2, *features1[0].shape[-2:])
        half = len(flow) // 2
        flow[:half, 0], flow[half:, 0] = 1.0, -1.0
        return [flow]


class Torn(Slow):
    """Frames of 120 px move by 2 px, and their left half as nothing can: by 9 px there and back. Frames of
    60 px move by 2.5 px."""

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[Tensor]:
        (flow,) = super().decode(features1, features2)
        is_whole = flow.shape[-1] == 120
        flow *= 2.0 if is_whole else 2.5
        if is_whole:
            flow[:, 0, :, :60] = 9.0
        return [flow]


def test_of_several_scales_a_vector_is_that_of_the_first_one_whose_flow_agrees_there_and_back() -> None:
    frames = [np.zeros((80, 120, 3), np.uint8)] * 3
    pairs = list(estimate_frames(Torn(), frames, CPU, InferenceOptions(scale=(1.0, 0.5)), both=True))
    assert len(pairs) == 2
    there, back = (torch.cat(flows) for flows in zip(*pairs, strict=True))  # type: ignore[arg-type]
    for flow, sign in (there, 1.0), (back, -1.0):
        assert torch.equal(flow[..., 20:50].unique(), torch.tensor([0.0, sign * 5.0]).sort().values)
        assert torch.equal(flow[..., 70:100].unique(), torch.tensor([0.0, sign * 2.0]).sort().values)


def test_several_scales_give_the_flow_there_alone_too(frames: list[np.ndarray]) -> None:
    network = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,)).build()
    for tile_pixels in (None, 20_000):
        options = InferenceOptions(scale=(1.0, 0.6), tile_pixels=tile_pixels)
        both = estimate_frames(network.eval(), frames, CPU, options, both=True)
        alone = estimate_frames(network.eval(), frames, CPU, options, both=False)
        for (flow, _), (flow_alone, back) in zip(both, alone, strict=True):
            assert back is None
            assert torch.equal(flow_alone, flow)


def test_a_scale_that_is_named_twice_is_that_scale(frames: list[np.ndarray]) -> None:
    assert torch.equal(flow_of(frames, scale=(0.5, 0.5)), flow_of(frames, scale=(0.5,)))


def test_a_refined_flow_is_nearer_to_a_motion_by_a_fraction_of_a_pixel() -> None:
    texture = cv2.GaussianBlur(np.random.default_rng(0).uniform(size=(80, 240, 3)), (0, 0), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    # Twice as wide as the frames, so that 3 px of it are 1.5 px of theirs.
    moved = [np.roll(texture, 3 * number, axis=1) for number in range(4)]
    frames = [cv2.resize(each, (120, 80), interpolation=cv2.INTER_AREA) for each in moved]
    before, after = (
        list(estimate_frames(Slow(), frames, CPU, InferenceOptions(refinement=times), both=True))
        for times in (0, 20)
    )

    def error(estimates: list[tuple[Tensor, Tensor | None]], way: int) -> float:
        flow = torch.cat([pair[way] for pair in estimates])[..., 10:-10, 10:-10]  # type: ignore[misc]
        assert flow.shape[:2] == (3, 2)
        truth = torch.tensor([1.5 if way == 0 else -1.5, 0.0]).view(1, 2, 1, 1)
        return float((flow - truth).norm(dim=1).max(dim=0).values.mean())

    for way in (0, 1):
        assert error(before, way) == pytest.approx(0.5)
        assert error(after, way) < 0.3


@pytest.mark.parametrize("options", [{}, {"tile_pixels": 20_000}, {"scale": (0.5,)}, {"scale": (1.0, 0.5)}])
def test_tiles_and_scales_are_refined_as_a_whole_frame_of_their_flow(
    frames: list[np.ndarray], options: dict[str, float | tuple[float, ...]]
) -> None:
    plain, after = flow_of(frames, **options), flow_of(frames, **options, refinement=3)
    torch.testing.assert_close(after, refined(plain, frames[:-1], frames[1:], 3))


def test_a_single_pixel_is_refined(frames: list[np.ndarray]) -> None:
    pixel = [frame[:1, :1] for frame in frames]
    assert refined(torch.zeros(1, 2, 1, 1), pixel[:1], pixel[1:2], 3).isfinite().all()


def test_flow_that_is_not_finite_is_not_refined(frames: list[np.ndarray]) -> None:
    flow = torch.zeros(2, 2, 200, 330)
    flow[0, 0, 50, 50] = torch.nan
    after = refined(flow, frames[:2], frames[1:3], 3)
    torch.testing.assert_close(after[0], flow[0], equal_nan=True)
    assert not torch.equal(after[1], flow[1])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scale": (1.0, 0.0)}, r"scale \(1.0, 0.0\)"),
        ({"scale": (5.0,)}, "scale"),
        ({"scale": ()}, "scale"),
        ({"tile_pixels": 9}, "tile_"),
        ({"refinement": -1}, "refinement -1"),
    ],
)
def test_what_no_network_can_be_shown_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        InferenceOptions(**options)


ULTRA_HD = """
import resource
import numpy as np, torch
from flowcore.inference import InferenceOptions, estimate_frames
from pipelines.checkpoints import load_model
from pipelines.models import fetch_model
options, cpu = InferenceOptions(), torch.device("cpu")
network = options.ready(load_model(fetch_model("distillflow:laptop"))[0], cpu)
frames = np.random.default_rng(0).integers(0, 256, (2, 2160, 3840, 3), np.uint8)
((there, back),) = estimate_frames(network, list(frames), cpu, options, both=True)
print(*there.shape, *back.shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_4k_pair_there_and_back_takes_less_than_2_gib_in_tiles() -> None:
    # Without tiles it is 2.4 GiB.
    child = [sys.executable, "-c", ULTRA_HD]
    told = subprocess.run(child, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    assert told[:8] == ["1", "2", "2160", "3840"] * 2
    assert int(told[8]) * 1024 < 2 << 30
