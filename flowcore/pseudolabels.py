"""What do teachers say of a video's frames? Flow, occlusion, and how far each label is to be trusted.

Both directions go through every function together, the forward ones first: the reverse of a pair is a pair,
and one call for both costs less than two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from flowcore.geometry import backward_warp, squared_length, upsample_flow
from flowcore.networks import FlowNetwork
from flowcore.photometric import census_border, census_distance
from flowcore.shapes import Flow, Mask


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """What teachers say of the K pairs of K + 1 consecutive frames.

    The numbers that grade a pair, from `occluded` on, are over both its directions. All but `occluded` are
    taken on the flow's grid, with the frames averaged down to it, as the teacher's own loss is.
    """

    flow_stride: int
    """Pixels from one vector of the flow's grid to the next; `upsample_flow` makes it a vector a pixel."""
    flow_fw: Float[Tensor, "pairs 2 rows columns"]
    """From each frame to the next, [u, v] in pixels; of several teachers the mean."""
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
    """Root mean square distance of several teachers' flows to their mean, in pixels; None of one teacher."""
    spread_bw: Float[Tensor, "pairs 1 rows columns"] | None = None
    spread: Float[Tensor, "pairs"] | None = None
    """Mean of the two before."""

    def __len__(self) -> int:
        return len(self.flow_fw)

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
) -> PseudoLabels:
    """What the teachers say of the pairs of consecutive frames.

    check: tells the occlusion by the flows there and back, at full resolution. at_once: how many pairs are
    worked on together, None for all. The label of several teachers is their mean. Teachers of different
    strides meet at full resolution.
    """
    height, width = frames.shape[-2:]
    pairs = len(frames) - 1
    at_once = at_once or pairs
    strides = {teacher.strides[0] for teacher in teachers}
    stride = strides.pop() if len(strides) == 1 else 1
    estimates = [teacher.estimate_chunk(frames, at_once) for teacher in teachers]
    parts = []
    for first in range(0, pairs, at_once):
        flows = []
        for teacher, both in zip(teachers, estimates, strict=True):
            own_stride = teacher.strides[0]
            rows, columns = label_grid(height, width, own_stride)
            grid = torch.cat([flow[first : first + at_once, :, :rows, :columns] for flow in both])
            flows.append(grid if stride == own_stride else upsample_flow(grid, own_stride, height, width))
        parts.append(labels_of(flows, stride, frames[first : first + at_once + 1], check))
    return PseudoLabels.joined(parts)


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
    pairs = len(frames) - 1
    there = torch.stack([*flows]).mean(dim=0)
    back = there.roll(pairs, dims=0)
    full = upsample_flow(there, stride, height, width)
    occluded = check(full, full.roll(pairs, dims=0))
    visible = functional.avg_pool2d(occluded.float(), stride, ceil_mode=True) <= 0.5
    mismatch = _length(there + backward_warp(back, there / stride))
    small = functional.avg_pool2d(frames, stride, ceil_mode=True)
    first, second = torch.cat([small[:-1], small[1:]]), torch.cat([small[1:], small[:-1]])
    distance = census_distance(first, backward_warp(second, there / stride))
    p50, p99, longest = _quantiles(_length(there), (0.5, 0.99, 1.0))
    spread = None
    if len(flows) > 1:
        spread = torch.stack([_length(flow - there).square() for flow in flows]).mean(dim=0).sqrt()
    return PseudoLabels(
        flow_stride=stride,
        flow_fw=there[:pairs],
        flow_bw=there[pairs:],
        occ_fw=occluded[:pairs],
        occ_bw=occluded[pairs:],
        occluded=_pair_means(occluded.float(), torch.ones_like(occluded)),
        forward_backward=_pair_means(mismatch, visible),
        photometric=_pair_means(distance, visible & ~census_border(distance)),
        flow_p50=p50,
        flow_p99=p99,
        flow_max=longest,
        spread_fw=None if spread is None else spread[:pairs],
        spread_bw=None if spread is None else spread[pairs:],
        spread=None if spread is None else _pair_means(spread, torch.ones_like(spread, dtype=torch.bool)),
    )


def _length(flow: Flow) -> Float[Tensor, "batch 1 height width"]:
    return squared_length(flow).sqrt()


def _quantiles(
    lengths: Float[Tensor, "directions 1 rows columns"], shares: tuple[float, ...]
) -> list[Float[Tensor, "pairs"]]:
    """Of both directions of each pair together, on the CPU."""
    # torch's own quantile takes no more than 16 million values.
    values = lengths.view(2, len(lengths) // 2, -1).transpose(0, 1).flatten(1).cpu().numpy()
    return [torch.from_numpy(each.astype(np.float32)) for each in np.quantile(values, shares, axis=1)]


def _pair_means(
    values: Float[Tensor, "directions 1 rows columns"], counted: Bool[Tensor, "directions 1 rows columns"]
) -> Float[Tensor, "pairs"]:
    """Over the counted pixels of both directions of each pair; nan over none."""
    total = torch.where(counted, values, 0.0).sum(dim=(1, 2, 3)).view(2, -1).sum(dim=0)
    mean: Tensor = total / counted.sum(dim=(1, 2, 3)).view(2, -1).sum(dim=0)
    return mean
