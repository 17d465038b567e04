"""Which pixels of the reference frame are not visible in the target frame?"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowcore.geometry import backward_warp, in_frame, pixel_grid, squared_length
from flowcore.shapes import Flow, Mask


@dataclass(frozen=True, kw_only=True)
class OcclusionCheck:
    """How occluded pixels are told from the flow in both directions. No gradient.

    forward-backward: a pixel p is visible if |w_f + w_b'|^2 < alpha1 (|w_f|^2 + |w_b'|^2) + alpha2 and
    p + w_f(p) lies inside the frame, where w_b'(p) = w_b(p + w_f(p)) is the backward flow found there.
    Source: DDFlow (Liu et al., AAAI 2019), "Occlusion Estimation"; after UnFlow (Meister et al., AAAI 2018).

    range-map: a pixel is visible if the backward flow of the other frame brings enough pixels to it: at least
    `least_landing`, counted bilinearly. What leaves the frame gets none. Source: Wang et al. (CVPR 2018),
    "Occlusion Aware Unsupervised Learning of Optical Flow"; UFlow (Jonschkowski et al., ECCV 2020) takes it
    for Sintel and Flying Chairs. It needs no flow that agrees with itself, so that fresh weights find little
    occluded.
    """

    kind: Literal["forward-backward", "range-map"] = "forward-backward"
    """How occluded pixels are found: where forward and backward flow disagree, or where no pixel of the other
    frame lands. Take the range map if the two flows disagree almost everywhere."""
    alpha1: float = 0.01
    """Forward-backward: mismatch allowed as a share of the squared lengths of both flows. Raise it if fast
    motion is wrongly called occluded."""
    alpha2: float = 0.5
    """Forward-backward: mismatch allowed at any speed, in squared pixels. Raise it if slow motion is wrongly
    called occluded."""
    least_landing: float = 0.5
    """Range map: how many pixels of the other frame must land on a visible one, above 0. Lower it if what
    comes nearer is wrongly called occluded."""

    def __post_init__(self) -> None:
        if self.alpha1 < 0 or self.alpha2 <= 0:
            raise ValueError(
                f"alpha1 {self.alpha1} must be >= 0 and alpha2 {self.alpha2} > 0 (squared pixels)"
            )
        if self.least_landing <= 0:
            raise ValueError(f"least_landing {self.least_landing} must be above 0 (pixels)")

    @torch.no_grad()
    def __call__(self, flow_fw: Flow, flow_bw: Flow) -> Mask:
        """The occlusion of the frame that `flow_fw` starts from, True = occluded; flows in pixels.

        Swap the flows for the occlusion of the other frame.
        """
        if self.kind == "range-map":
            # NaN compares as False on either side.
            return ~(range_map(flow_bw) >= self.least_landing) | ~flow_fw.isfinite().all(dim=1, keepdim=True)
        returned = backward_warp(flow_bw, flow_fw)
        mismatch = squared_length(flow_fw + returned)
        travelled = squared_length(flow_fw) + squared_length(returned)
        visible = (mismatch < self.alpha1 * travelled + self.alpha2) & in_frame(flow_fw)
        return ~visible

    def both(self, flow_fw: Flow, flow_bw: Flow) -> tuple[Mask, Mask]:
        """The occlusion of the frame that each flow starts from."""
        return self(flow_fw, flow_bw), self(flow_bw, flow_fw)


@torch.no_grad()
def range_map(flow: Flow) -> Float[Tensor, "batch 1 height width"]:
    """How many pixels the flow brings to each pixel of the other frame: each counts 1, shared bilinearly by
    the four pixels around where it lands; what lands outside, or nowhere, counts for none. Flow in pixels."""
    batch, _, height, width = flow.shape
    x, y = (pixel_grid(height, width, flow.device) + flow).reshape(batch, 2, -1).unbind(dim=1)
    left, top = x.floor(), y.floor()
    count = flow.new_zeros(batch, height * width)
    for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
            outside = ~((column >= 0) & (column < width) & (row >= 0) & (row < height))
            place = (row * width + column).masked_fill(outside, 0.0).long()
            count.scatter_add_(1, place, (share_x * share_y).masked_fill(outside, 0.0))
    return count.reshape(batch, 1, height, width)


@torch.no_grad()
def agreement(flow_fw: Flow, flow_bw: Flow, sigma: float = 0.003) -> Float[Tensor, "batch 1 height width"]:
    """How well the flow there and back agree, from 0 to 1: exp(-|w_f + w_b'|^2 / (sigma^2 (H^2 + W^2))), with
    w_b' as in `OcclusionCheck`, and 0 where p + w_f(p) lies outside the frame. Flows in pixels.

    Source: SMURF (Stone et al., CVPR 2021), the mask of its teacher, whose sigma is the default.
    """
    height, width = flow_fw.shape[-2:]
    mismatch = squared_length(flow_fw + backward_warp(flow_bw, flow_fw))
    found = torch.exp(-mismatch / (sigma**2 * (height**2 + width**2)))
    return found.masked_fill(~in_frame(flow_fw), 0.0).nan_to_num(nan=0.0)
