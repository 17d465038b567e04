"""What teachers say of frames: laws that hold for motions known by hand."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import PseudoLabels, pseudo_labels, quantiles_by_sorting

CHECK = OcclusionCheck()


class Shift(FlowNetwork):
    """Answers that everything moves `pixels` to the right, and back."""

    multiple = 8
    strides = (4, 8)

    def __init__(self, pixels: float) -> None:
        super().__init__()
        self.pixels = pixels

    def encode(self, images: Tensor) -> list[Tensor]:
        return [images]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[Tensor]:
        flow = torch.zeros(len(features1[0]), 2, *(side // 4 for side in features1[0].shape[-2:]))
        half = len(flow) // 2
        flow[:half, 0], flow[half:, 0] = self.pixels, -self.pixels
        return [flow]


class FineShift(Shift):
    """The same on a grid of every second pixel."""

    strides = (2,)

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[Tensor]:
        (coarse,) = super().decode(features1, features2)
        return [coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)]


def noise(frames: int) -> Tensor:
    return torch.rand(frames, 3, 40, 80, generator=torch.Generator().manual_seed(0))


def assert_equal(one: PseudoLabels, other: PseudoLabels, *, but: tuple[str, ...] = ()) -> None:
    for name in {each.name for each in fields(PseudoLabels)} - {"flow_stride", *but}:
        ours, theirs = getattr(one, name), getattr(other, name)
        if isinstance(ours, Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        else:
            assert ours is theirs is None


def test_the_quality_of_a_known_motion_is_as_on_paper() -> None:
    texture = torch.rand(1, 3, 40, 200, generator=torch.Generator().manual_seed(0))
    # Two columns of the flow's grid, so that averaging down to it keeps the motion exact.
    frames = torch.cat([texture[..., 100 - 8 * i : 180 - 8 * i] for i in range(3)])
    right = pseudo_labels([Shift(8.0)], frames, CHECK)
    assert len(right) == 2
    assert right.flow_stride == 4
    # Eight of eighty columns leave the frame.
    assert right.occluded.tolist() == pytest.approx([0.1, 0.1])
    assert right.forward_backward.tolist() == [0, 0]
    for lengths in (right.flow_p50, right.flow_p99, right.flow_max):
        assert lengths.tolist() == [8, 8]
    # Only where a patch reaches over the edge of what is visible does the right motion look wrong.
    wrong = pseudo_labels([Shift(4.0)], frames, CHECK)
    assert (wrong.photometric > 10 * right.photometric).all()


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 300), unknown=st.integers(0, 2))
def test_quantiles_that_are_found_by_sorting_are_those_of_numpy(seed: int, count: int, unknown: int) -> None:
    values = 30 * torch.rand(2, count, generator=torch.Generator().manual_seed(seed))
    values[:unknown, 0] = torch.nan
    shares = (0.0, 0.3, 0.5, 0.99, 1.0)
    expected = np.quantile(values.numpy(), shares, axis=1).astype(np.float32)
    for mine, its in zip(quantiles_by_sorting(values, shares), expected, strict=True):
        np.testing.assert_array_equal(mine.numpy(), its)


def test_where_nothing_is_visible_there_is_nothing_to_average() -> None:
    away = pseudo_labels([Shift(500.0)], noise(2), CHECK)
    assert away.occluded.tolist() == [1]
    assert away.photometric.isnan().all()
    assert away.forward_backward.isnan().all()


def test_two_teachers_by_hand() -> None:
    labels = pseudo_labels([Shift(8.0), Shift(20.0)], noise(2), CHECK)
    assert labels.spread_fw is not None
    assert labels.spread_bw is not None
    assert labels.spread is not None
    # The mean of 8 and 20 is 14, and both are 6 away from it.
    assert (labels.flow_fw == torch.tensor([14.0, 0.0]).view(1, 2, 1, 1)).all()
    assert (labels.flow_bw == torch.tensor([-14.0, 0.0]).view(1, 2, 1, 1)).all()
    for spread in (labels.spread_fw, labels.spread_bw, labels.spread):
        assert (spread == 6).all()
    # What leaves the frame by their mean: the last 14 of 80 columns.
    assert labels.occ_fw[0, 0].sum(dim=0).tolist() == [0] * 66 + [40] * 14


def test_two_equal_teachers_label_as_one_does_and_do_not_disagree() -> None:
    one, both = (pseudo_labels(teachers, noise(3), CHECK) for teachers in ([Shift(8.0)], [Shift(8.0)] * 2))
    assert_equal(one, both, but=("spread_fw", "spread_bw", "spread"))
    assert both.spread is not None
    assert both.spread.tolist() == [0, 0]


def test_a_chunk_is_labelled_in_steps_as_at_once() -> None:
    at_once, in_steps = (pseudo_labels([Shift(8.0)], noise(6), CHECK, steps) for steps in (None, 2))
    assert len(in_steps) == 5
    assert_equal(at_once, in_steps)


def test_a_pair_seen_backwards_has_its_labels_swapped() -> None:
    frames = noise(2)
    there, back = (
        pseudo_labels([Shift(8.0)], frames, CHECK),
        pseudo_labels([Shift(-8.0)], frames.flip(0), CHECK),
    )
    for ours, theirs in (("flow_fw", "flow_bw"), ("occ_fw", "occ_bw")):
        assert torch.equal(getattr(there, ours), getattr(back, theirs))
    np.testing.assert_allclose(there.photometric, back.photometric, rtol=1e-5)


def test_teachers_of_different_strides_meet_at_full_resolution() -> None:
    labels = pseudo_labels([Shift(8.0), FineShift(9.0)], noise(2), CHECK)
    assert labels.flow_stride == 1
    assert labels.flow_fw.shape == (1, 2, 40, 80)
    assert (labels.flow_fw[:, 0] == 8.5).all()
    assert labels.spread_fw is not None
    assert (labels.spread_fw == 0.5).all()


class OnlyThere(Shift):
    """Finds no motion back."""

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[Tensor]:
        (flow,) = super().decode(features1, features2)
        flow[len(flow) // 2 :] = 0
        return [flow]


class HalfSure(Shift):
    """Comes back to where it started from in the upper half of the frame alone."""

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[Tensor]:
        (flow,) = super().decode(features1, features2)
        flow[len(flow) // 2 :, 0, flow.shape[2] // 2 :] += 50
        return [flow]


def test_of_several_teachers_the_first_one_whose_flow_agrees_there_and_back_labels_a_pixel() -> None:
    labels = pseudo_labels([HalfSure(8.0), Shift(12.0)], noise(2), CHECK, merge="first")
    # What leaves the frame by the first one's flow: the last 8 of 80 columns, two of the grid's twenty.
    assert (labels.flow_fw[0, 0, :5, :18] == 8).all()
    assert (labels.flow_fw[0, 0, :5, 18:] == 12).all()
    assert (labels.flow_fw[0, 0, 5:] == 12).all()
    assert labels.spread is labels.spread_fw is labels.spread_bw is None


def test_where_no_teacher_s_flow_agrees_there_and_back_the_last_one_labels_a_hidden_pixel() -> None:
    labels = pseudo_labels([HalfSure(8.0), HalfSure(12.0)], noise(2), CHECK, merge="first")
    assert (labels.flow_fw[0, 0, 5:] == 12).all()
    assert labels.occ_fw[0, 0, 24:].all()
    assert not labels.occ_fw[0, 0, :16, 8:56].any()


def test_the_order_of_teachers_counts_where_the_first_one_labels() -> None:
    sure = pseudo_labels([Shift(12.0), HalfSure(8.0)], noise(2), CHECK, merge="first")
    # 3 of the grid's 20 columns leave the frame, where the other one is asked.
    assert (sure.flow_fw[0, 0, :, :17] == 12).all()
    assert (sure.flow_fw[0, 0, :, 17:] == 8).all()


def test_the_first_teacher_has_to_agree_there_and_back_whatever_tells_occlusion() -> None:
    check = OcclusionCheck(kind="range-map")
    labels = pseudo_labels([OnlyThere(9.0), Shift(12.0)], noise(2), check, merge="first")
    assert (labels.flow_fw[:, 0] == 12).all()


def test_a_motion_is_continued_of_what_the_first_teacher_that_agrees_labels() -> None:
    teachers = [Shift(8.0), Shift(8.5)]
    labels, of_one = (
        pseudo_labels(each, noise(4), CHECK, merge="first", three_frames=True)
        for each in (teachers, teachers[:1])
    )
    assert labels.continued_fw is not None
    assert of_one.continued_fw is not None
    # The last columns, from where the first teacher leads out of the frame, are the second one's.
    assert torch.equal(labels.flow_fw[1:, :, :, :17], of_one.flow_fw[1:, :, :, :17])


def test_labels_of_three_frames_tell_where_motion_is_continued() -> None:
    labels = pseudo_labels([Shift(8.0)], noise(4), CHECK, three_frames=True)
    # What leaves to the right came from the left, and was seen in the frame before.
    leaving, arriving = torch.zeros(2, 1, 10, 20, dtype=torch.bool)
    leaving[..., 18:], arriving[..., :2] = True, True
    assert labels.continued_fw is not None
    assert labels.continued_bw is not None
    nowhere = torch.zeros_like(leaving)
    assert torch.equal(labels.continued_fw, torch.stack([nowhere, leaving, leaving]))
    assert torch.equal(labels.continued_bw, torch.stack([arriving, arriving, nowhere]))


def test_a_pair_is_graded_by_what_was_continued_of_both_its_directions() -> None:
    labels = pseudo_labels([Shift(8.0)], noise(4), CHECK, three_frames=True)
    assert labels.continued is not None
    assert labels.misfit is not None
    assert labels.continued.tolist() == pytest.approx([0.05, 0.1, 0.05])
    assert labels.misfit.tolist() == pytest.approx([0, 0, 0], abs=1e-4)


def test_continued_motion_leaves_everything_else_as_it_was() -> None:
    of_two = pseudo_labels([Shift(8.0)], noise(4), CHECK)
    of_three = pseudo_labels([Shift(8.0)], noise(4), CHECK, three_frames=True)
    names = ("continued_fw", "continued_bw", "continued", "misfit")
    assert_equal(of_two, of_three, but=(*names, "flow_fw", "flow_bw", "flow_p50", "flow_p99", "flow_max"))
    assert of_two.continued is None
    torch.testing.assert_close(of_two.flow_fw, of_three.flow_fw, rtol=0, atol=1e-3)


def test_two_frames_have_no_third_one() -> None:
    labels = pseudo_labels([Shift(8.0)], noise(2), CHECK, three_frames=True)
    assert labels.continued is not None
    assert labels.misfit is not None
    assert labels.continued.tolist() == [0]
    assert labels.misfit.isnan().all()
    assert_equal(
        pseudo_labels([Shift(8.0)], noise(2), CHECK),
        labels,
        but=("continued_fw", "continued_bw", "continued", "misfit"),
    )


def test_third_frames_are_found_however_many_pairs_are_worked_on_together() -> None:
    at_once, in_steps = (
        pseudo_labels([Shift(8.0)], noise(6), CHECK, steps, three_frames=True) for steps in (None, 2)
    )
    assert_equal(at_once, in_steps)


def test_teachers_agree_on_continued_motion_as_on_the_motion_that_it_continues() -> None:
    labels = pseudo_labels([Shift(8.0), Shift(8.5)], noise(4), CHECK, three_frames=True)
    assert labels.continued is not None
    assert labels.continued[1] > 0
    assert labels.spread_fw is not None
    assert (labels.spread_fw == 0.25).all()
