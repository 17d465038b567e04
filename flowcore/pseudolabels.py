"""What do teachers say of a video's frames? Flow, occlusion, and how far each label is to be trusted.

Both directions go through every function together, the forward ones first: the reverse of a pair is a pair,
and one call for both costs less than two.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from flowcore.geometry import backward_warp, squared_length, upsample_flow, upsample_values
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.photometric import census_border, census_distance
from flowcore.shapes import Flow, Mask
from flowcore.three_frames import continue_motion
from flowcore.uncertainty import scales_of

Merge = Literal["mean", "first"]
"""What several teachers' label is: the mean of their flows, or each vector of the first one whose flow agrees
there and back, in the teachers' order, and of the last one where none does."""

_HIDDEN = 0.25
"""Share of a cell of the flow's grid that is occluded where its motion is continued. The outer pixels of what
is hidden share their cells with visible ones."""


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """What teachers say of the K pairs of K + 1 consecutive frames.

    The numbers that grade a pair, from `occluded` on, are over both its directions. All but `occluded` are
    taken on the flow's grid, with the frames averaged down to it, as the teacher's own loss is.
    """

    flow_stride: int
    """Pixels from one vector of the flow's grid to the next; `upsample_flow` makes it a vector a pixel."""
    flow_fw: Float[Tensor, "pairs 2 rows columns"]
    """From each frame to the next, [u, v] in pixels; of several teachers what `Merge` says."""
    flow_bw: Float[Tensor, "pairs 2 rows columns"]
    occ_fw: Bool[Tensor, "pairs 1 height width"]
    """True where a pixel of the first frame isn't visible in the second."""
    occ_bw: Bool[Tensor, "pairs 1 height width"]
    occluded: Float[Tensor, "pairs"]
    """Share of occluded pixels."""
    forward_backward: Float[Tensor, "pairs"]
    """Pixels by which the two flows disagree, averaged over the visible pixels; nan where there are none."""
    photometric: Float[Tensor, "pairs"]
    """Census distance (0 to 48) after warping, averaged over the visible pixels; nan where there are none."""
    flow_p50: Float[Tensor, "pairs"]
    """Median length of the flow in pixels."""
    flow_p99: Float[Tensor, "pairs"]
    """Length of the flow in pixels that one vector in a hundred exceeds."""
    flow_max: Float[Tensor, "pairs"]
    """Length of the longest vector in pixels."""
    spread_fw: Float[Tensor, "pairs 1 rows columns"] | None = None
    """Root mean square distance of several teachers' flows to their mean, in pixels; None where the label
    isn't a mean."""
    spread_bw: Float[Tensor, "pairs 1 rows columns"] | None = None
    spread: Float[Tensor, "pairs"] | None = None
    """Mean of the two before."""
    uncertainty_fw: Float[Tensor, "pairs 1 rows columns"] | None = None
    """Pixels by which the teacher expects `flow_fw` to be off, see `flowcore.uncertainty`; of several
    teachers the mean, or that of the one whose flow it is. None unless all of them predict it."""
    uncertainty_bw: Float[Tensor, "pairs 1 rows columns"] | None = None
    uncertainty: Float[Tensor, "pairs"] | None = None
    """Mean of the two before."""
    continued_fw: Bool[Tensor, "pairs 1 rows columns"] | None = None
    """True where `flow_fw` continues the motion from the frame before, as the next one hides what moves; None
    of labels from two frames alone."""
    continued_bw: Bool[Tensor, "pairs 1 rows columns"] | None = None
    """True where `flow_bw` continues the motion from the frame after the pair."""
    continued: Float[Tensor, "pairs"] | None = None
    """Share of the flow's grid that is continued."""
    misfit: Float[Tensor, "pairs"] | None = None
    """Pixels by which a continued motion misses the one found, averaged over what all three frames show; nan
    where a pair has no third frame."""

    def __len__(self) -> int:
        return len(self.flow_fw)

    def cpu(self) -> "PseudoLabels":
        """The same labels in the CPU's memory."""
        values = vars(self)
        tensors = {name: value.cpu() for name, value in values.items() if isinstance(value, Tensor)}
        return PseudoLabels(**{**values, **tensors})

    @classmethod
    def joined(cls, parts: "Sequence[PseudoLabels]") -> "PseudoLabels":
        """The pairs of all the parts, which are labelled by the same teachers, in their order."""
        first = parts[0]
        values = {
            each.name: torch.cat([getattr(part, each.name) for part in parts])
            for each in fields(cls)
            if isinstance(getattr(first, each.name), Tensor)
        }
        return cls(flow_stride=first.flow_stride, **values)


def label_grid(height: int, width: int, stride: int) -> tuple[int, int]:
    """(rows, columns) of a flow stored at `stride`: the part of a network's grid that lies over the frame."""
    return -(-height // stride), -(-width // stride)


def pseudo_labels(
    teachers: Sequence[FlowNetwork],
    frames: Float[Tensor, "frames 3 height width"],
    check: Callable[[Flow, Flow], Mask],
    at_once: int | None = None,
    *,
    merge: Merge = "mean",
    three_frames: bool = False,
) -> PseudoLabels:
    """What the teachers say of the pairs of consecutive frames.

    check: tells the occlusion by the flows there and back, at full resolution. at_once: how many pairs are
    worked on together, None for all. merge: see `merged`. three_frames: continues the motion of what one
    neighbour of a frame hides and the other shows, as `flowcore.three_frames` does. Teachers of different
    strides meet at full resolution.
    """
    height, width = frames.shape[-2:]
    pairs = len(frames) - 1
    at_once = at_once or pairs
    strides = {teacher.strides[0] for teacher in teachers}
    stride = strides.pop() if len(strides) == 1 else 1
    estimates = [teacher.estimate_both(frames, at_once) for teacher in teachers]
    parts = [slice(first, first + at_once) for first in range(0, pairs, at_once)]
    answers = []
    for part in parts:
        flows, scales = [], []
        for both in estimates:
            on_grid = partial(_on_grid, part, both.strides[0], stride, height, width)
            flows.append(on_grid([both.forward[0], both.backward[0]]))
            if found := scales_of(both):
                scales.append(on_grid(found))
        answers.append(_answer(flows, stride, height, width, check, scales, merge))
    if three_frames:
        # A pair's neighbours may be in other parts.
        whole = _with_third_frames(_Answer.joined(answers))
        answers = [whole.part(part) for part in parts]
    graded = [
        _graded(answer, stride, frames[part.start : part.stop + 1])
        for part, answer in zip(parts, answers, strict=True)
    ]
    return PseudoLabels.joined(graded)


def _on_grid(
    part: slice, own_stride: int, stride: int, height: int, width: int, directions: Sequence[Tensor]
) -> Float[Tensor, "directions channels rows columns"]:
    """A network's values of some pairs over the frame, forward and then backward, on a grid of `stride`: its
    own, or 1."""
    rows, columns = label_grid(height, width, own_stride)
    grid = torch.cat([each[part, :, :rows, :columns] for each in directions])
    return grid if stride == own_stride else upsample_values(grid, own_stride, height, width)


def labels_of(
    flows: Sequence[Float[Tensor, "directions 2 rows columns"]],
    stride: int,
    frames: Float[Tensor, "frames 3 height width"],
    check: Callable[[Flow, Flow], Mask],
) -> PseudoLabels:
    """The labels that each teacher's flows make together; see `pseudo_labels`.

    flows: a tensor a teacher, on a grid of this stride, the forward flows of all pairs first.
    """
    height, width = frames.shape[-2:]
    return _graded(_answer(flows, stride, height, width, check), stride, frames)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What teachers find, before it is graded. Tensors have a first axis of forward and backward, and a
    second of pairs."""

    flow: Float[Tensor, "2 pairs 2 rows columns"]
    occluded: Bool[Tensor, "2 pairs 1 height width"]
    hidden: Float[Tensor, "2 pairs 1 rows columns"]
    """Share of occluded pixels in each cell of the flow's grid."""
    spread: Float[Tensor, "2 pairs 1 rows columns"] | None = None
    uncertainty: Float[Tensor, "2 pairs 1 rows columns"] | None = None
    continued: Bool[Tensor, "2 pairs 1 rows columns"] | None = None
    misfit: Float[Tensor, "2 pairs"] | None = None

    @classmethod
    def joined(cls, parts: "Sequence[_Answer]") -> "_Answer":
        names = [name for name, value in vars(parts[0]).items() if value is not None]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names})

    def part(self, pairs: slice) -> "_Answer":
        values = {name: value[:, pairs] for name, value in vars(self).items() if value is not None}
        return _Answer(**values)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The flows of several teachers as one, on their grid; the forward ones of all pairs come first."""

    flow: Float[Tensor, "directions 2 rows columns"]
    spread: Float[Tensor, "directions 1 rows columns"] | None = None
    """Root mean square distance of the flows to their mean, in pixels; None where that isn't the flow."""
    uncertainty: Float[Tensor, "directions 1 rows columns"] | None = None
    """Of the flow; None unless it is known of all."""


def merged(
    flows: Sequence[Float[Tensor, "directions 2 rows columns"]],
    stride: int,
    height: int,
    width: int,
    check: Callable[[Flow, Flow], Mask],
    merge: Merge,
    scales: Sequence[Float[Tensor, "directions 1 rows columns"]] = (),
) -> Merged:
    """What the teachers' flows say together; see `Merge`.

    flows: a tensor a teacher, on a grid of this stride. scales: of their errors; of some of them they tell
    nothing of the whole. With `first` the flows must agree there and back even where a range map tells what
    is occluded: that looks at one direction alone.
    """
    scales = scales if len(scales) == len(flows) else ()
    if merge == "mean":
        mean = torch.stack([*flows]).mean(dim=0)
        squares = [_length(flow - mean).square() for flow in flows]
        return Merged(
            flow=mean,
            spread=torch.stack(squares).mean(dim=0).sqrt() if len(flows) > 1 else None,
            uncertainty=torch.stack([*scales]).mean(dim=0) if scales else None,
        )
    if isinstance(check, OcclusionCheck):
        check = replace(check, kind="forward-backward")
    flow, uncertainty = flows[-1], scales[-1] if scales else None
    for number in reversed(range(len(flows) - 1)):
        agrees = _hidden_share(_occlusion(flows[number], stride, height, width, check), stride) <= 0.5
        flow = torch.where(agrees, flows[number], flow)
        if uncertainty is not None:
            uncertainty = torch.where(agrees, scales[number], uncertainty)
    return Merged(flow=flow, uncertainty=uncertainty)


def _occlusion(
    flow: Float[Tensor, "directions 2 rows columns"],
    stride: int,
    height: int,
    width: int,
    check: Callable[[Flow, Flow], Mask],
) -> Bool[Tensor, "directions 1 height width"]:
    full = upsample_flow(flow, stride, height, width)
    return check(full, full.roll(len(full) // 2, dims=0))


def _hidden_share(
    occluded: Bool[Tensor, "directions 1 height width"], stride: int
) -> Float[Tensor, "directions 1 rows columns"]:
    """Of each cell of the flow's grid."""
    return functional.avg_pool2d(occluded.float(), stride, ceil_mode=True)


def _answer(
    flows: Sequence[Float[Tensor, "directions 2 rows columns"]],
    stride: int,
    height: int,
    width: int,
    check: Callable[[Flow, Flow], Mask],
    scales: Sequence[Float[Tensor, "directions 1 rows columns"]] = (),
    merge: Merge = "mean",
) -> _Answer:
    """scales: as in `merged`."""
    label = merged(flows, stride, height, width, check, merge, scales)
    occluded = _occlusion(label.flow, stride, height, width, check)
    parts = {"occluded": occluded, "hidden": _hidden_share(occluded, stride), **vars(label)}
    return _Answer(**{name: part.unflatten(0, (2, -1)) for name, part in parts.items() if part is not None})


def _with_third_frames(answer: _Answer) -> _Answer:
    """With the flow continued of what the other frame of a pair hides, and the frame on the other side shows.

    From its first frame that is where the pair before came from, and from its second where the next one goes.
    """
    flow = answer.flow.clone()
    hidden, lost = answer.hidden >= _HIDDEN, answer.hidden > 0.5
    ahead, behind = slice(1, None), slice(None, -1)
    found = continue_motion(
        torch.cat([flow[0, ahead], flow[1, behind]]),
        torch.cat([flow[1, behind], flow[0, ahead]]),
        torch.cat([hidden[0, ahead], hidden[1, behind]]),
        torch.cat([lost[1, behind], lost[0, ahead]]),
    )
    continued = torch.zeros_like(hidden)
    misfit = flow.new_full(flow.shape[:2], torch.nan)
    flow[0, ahead], flow[1, behind] = found.flow.tensor_split(2)
    continued[0, ahead], continued[1, behind] = found.continued.tensor_split(2)
    misfit[0, ahead], misfit[1, behind] = found.misfit.tensor_split(2)

    def continued_as(values: Tensor | None) -> Tensor | None:
        """A continued flow is as sure as the one that it continues."""
        if values is None:
            return None
        past = torch.zeros_like(values)
        past[0, ahead], past[1, behind] = values[1, behind], values[0, ahead]
        return torch.where(continued, past, values)

    return replace(
        answer,
        flow=flow,
        spread=continued_as(answer.spread),
        uncertainty=continued_as(answer.uncertainty),
        continued=continued,
        misfit=misfit,
    )


def _graded(answer: _Answer, stride: int, frames: Float[Tensor, "frames 3 height width"]) -> PseudoLabels:
    there, back = answer.flow.flatten(0, 1), answer.flow.flip(0).flatten(0, 1)
    occluded, visible = answer.occluded.flatten(0, 1), answer.hidden.flatten(0, 1) <= 0.5
    mismatch = _length(there + backward_warp(back, there / stride))
    small = functional.avg_pool2d(frames, stride, ceil_mode=True)
    first, second = torch.cat([small[:-1], small[1:]]), torch.cat([small[1:], small[:-1]])
    distance = census_distance(first, backward_warp(second, there / stride))
    p50, p99, longest = _quantiles(_length(there), (0.5, 0.99, 1.0))
    labels = PseudoLabels(
        flow_stride=stride,
        flow_fw=answer.flow[0],
        flow_bw=answer.flow[1],
        occ_fw=answer.occluded[0],
        occ_bw=answer.occluded[1],
        occluded=_pair_means(occluded.float(), torch.ones_like(occluded)),
        forward_backward=_pair_means(mismatch, visible),
        photometric=_pair_means(distance, visible & ~census_border(distance)),
        flow_p50=p50,
        flow_p99=p99,
        flow_max=longest,
    )
    if answer.spread is not None:
        spread_fw, spread_bw = answer.spread
        spread = answer.spread.mean(dim=(0, 2, 3, 4))
        labels = replace(labels, spread_fw=spread_fw, spread_bw=spread_bw, spread=spread)
    if answer.uncertainty is not None:
        labels = replace(
            labels,
            uncertainty_fw=answer.uncertainty[0],
            uncertainty_bw=answer.uncertainty[1],
            uncertainty=answer.uncertainty.mean(dim=(0, 2, 3, 4)),
        )
    if answer.continued is not None:
        assert answer.misfit is not None
        labels = replace(
            labels,
            continued_fw=answer.continued[0],
            continued_bw=answer.continued[1],
            continued=answer.continued.float().mean(dim=(0, 2, 3, 4)),
            misfit=answer.misfit.nanmean(dim=0),
        )
    return labels


def _length(flow: Flow) -> Float[Tensor, "batch 1 height width"]:
    return squared_length(flow).sqrt()


def _quantiles(
    lengths: Float[Tensor, "directions 1 rows columns"], shares: tuple[float, ...]
) -> list[Float[Tensor, "pairs"]]:
    """Of both directions of each pair together."""
    values = lengths.view(2, len(lengths) // 2, -1).transpose(0, 1).flatten(1)
    if values.is_cuda:
        return quantiles_by_sorting(values, shares)
    # A core sorts for five times as long as NumPy takes.
    found = np.quantile(values.numpy(), shares, axis=1).astype(np.float32)
    return list(torch.from_numpy(found))


def quantiles_by_sorting(
    values: Float[Tensor, "pairs values"], shares: Sequence[float]
) -> list[Float[Tensor, "pairs"]]:
    """The same numbers as `numpy.quantile` gives, found where the values are; nan where one of them is."""
    # torch's own quantile takes no more than 16 million values.
    ordered = values.sort(dim=1).values
    unknown = ordered[:, -1].isnan()
    found = []
    for share in shares:
        place = share * (ordered.shape[1] - 1)
        before, after = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        gap, part = (after - before).double(), place % 1
        # NumPy begins at the nearer of the two.
        between = before + gap * part if part < 0.5 else after - gap * (1 - part)
        found.append(between.float().masked_fill(unknown, torch.nan))
    return found


def _pair_means(
    values: Float[Tensor, "directions 1 rows columns"], counted: Bool[Tensor, "directions 1 rows columns"]
) -> Float[Tensor, "pairs"]:
    """Over the counted pixels of both directions of each pair; nan over none."""
    total = torch.where(counted, values, 0.0).sum(dim=(1, 2, 3)).view(2, -1).sum(dim=0)
    mean: Tensor = total / counted.sum(dim=(1, 2, 3)).view(2, -1).sum(dim=0)
    return mean
