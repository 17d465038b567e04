"""Continued motion: laws that hold for motions known by hand."""

import pytest
import torch
from torch import Tensor

from flowcore.scenes import SceneOptions, render_scene
from flowcore.three_frames import continue_motion

HEIGHT, WIDTH = 24, 32


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def nothing() -> Tensor:
    return torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)


def a_patch() -> Tensor:
    mask = nothing()
    mask[..., 8:16, 10:20] = True
    return mask


def smooth() -> Tensor:
    """A motion that changes over the frame."""
    return 4 * torch.nn.functional.interpolate(some(1, 2, 3, 4), (HEIGHT, WIDTH), mode="bicubic")


def spoilt(flow: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, flow + 100, flow)


def test_what_moves_at_constant_velocity_goes_on_where_it_is_hidden() -> None:
    flow = smooth()
    found = continue_motion(spoilt(flow, a_patch()), -flow, a_patch(), nothing())
    assert torch.equal(found.continued, a_patch())
    torch.testing.assert_close(found.flow, flow, rtol=0, atol=1e-4)
    assert found.misfit.item() == pytest.approx(0, abs=1e-4)


def test_what_speeds_up_everywhere_alike_goes_on_speeding_up() -> None:
    flow = smooth()
    found = continue_motion(spoilt(1.5 * flow + 2, a_patch()), -flow, a_patch(), nothing())
    assert torch.equal(found.continued, a_patch())
    torch.testing.assert_close(found.flow, 1.5 * flow + 2, rtol=0, atol=0.2)


def test_some_wrong_vectors_change_nothing() -> None:
    flow = smooth()
    wrong = torch.rand(1, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) < 0.1
    found = continue_motion(spoilt(flow, a_patch() | wrong), -flow, a_patch(), nothing())
    torch.testing.assert_close(found.flow[:, :, 8:16, 10:20], flow[:, :, 8:16, 10:20], rtol=0, atol=0.2)


def test_what_the_frame_before_hides_too_is_left_as_it_was() -> None:
    flow = spoilt(smooth(), a_patch())
    found = continue_motion(flow, -smooth(), a_patch(), a_patch())
    assert not found.continued.any()
    assert torch.equal(found.flow, flow)


def test_visible_flow_stays_as_it_was() -> None:
    flow, past = smooth() + some(1, 2, HEIGHT, WIDTH), -smooth()
    found = continue_motion(flow, past, a_patch(), nothing())
    assert torch.equal(found.flow.masked_fill(a_patch(), 0), flow.masked_fill(a_patch(), 0))


def test_motion_that_follows_no_rule_is_not_continued() -> None:
    flow, past = 20 * some(2, 1, 2, HEIGHT, WIDTH)
    found = continue_motion(flow, past, a_patch(), nothing())
    assert not found.continued.any()
    assert found.misfit.item() > 10


def test_a_motion_that_holds_on_one_side_of_the_frame_is_continued_there_alone() -> None:
    flow, past = smooth(), -smooth()
    left = nothing()
    left[..., : WIDTH // 2] = True
    noise = 20 * some(2, 1, 2, HEIGHT, WIDTH)
    flow, past = torch.where(left, flow, noise[0]), torch.where(left, past, noise[1])
    hidden = nothing()
    hidden[..., 8:16, 4:8] = True
    hidden[..., 8:16, 24:28] = True
    found = continue_motion(flow, past, hidden, nothing())
    assert torch.equal(found.continued, hidden & left)


@pytest.mark.parametrize("hidden", [False, True])
def test_frames_that_share_nothing_have_no_misfit(hidden: bool) -> None:
    everywhere = torch.ones_like(nothing())
    found = continue_motion(smooth(), -smooth(), everywhere if hidden else nothing(), everywhere)
    assert found.misfit.isnan().all()
    assert not found.continued.any()


def test_flow_that_is_not_finite_spoils_nothing_else() -> None:
    flow = smooth()
    broken = flow.clone()
    broken[..., 0, 0] = torch.nan
    found = continue_motion(spoilt(broken, a_patch()), -flow, a_patch(), nothing())
    torch.testing.assert_close(found.flow[..., 1:, :], flow[..., 1:, :], rtol=0, atol=1e-4)


def test_hidden_pixels_of_a_scene_in_steady_motion_get_their_true_flow() -> None:
    scene = render_scene(3, SceneOptions(num_frames=5))
    flow = torch.from_numpy(scene.flow_fw[1:])
    past = torch.from_numpy(scene.flow_bw[:-1])
    hidden, lost = torch.from_numpy(scene.occ_fw[1:])[:, None], torch.from_numpy(scene.occ_bw[:-1])[:, None]
    found = continue_motion(torch.where(hidden, 0.0, flow), past, hidden, lost)
    assert found.continued.sum() > 0.9 * (hidden & ~lost).sum()
    error = (found.flow - flow).norm(dim=1, keepdim=True)[found.continued]
    assert error.mean() < 0.2
    assert flow.norm(dim=1, keepdim=True)[found.continued].mean() > 2
