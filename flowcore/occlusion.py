"""Which pixels of the reference frame are not visible in the target frame? The forward-backward check."""

from dataclasses import dataclass

import torch

from flowcore.geometry import backward_warp, in_frame, squared_length
from flowcore.shapes import Flow, Mask


@dataclass(frozen=True, kw_only=True)
class ForwardBackwardCheck:
    """Occluded where the backward flow doesn't bring a pixel back or the forward flow leaves the frame.

    A pixel p is visible if |w_f + w_b'|^2 < alpha1 (|w_f|^2 + |w_b'|^2) + alpha2 and p + w_f(p) lies inside
    the frame, where w_b'(p) = w_b(p + w_f(p)) is the backward flow found there. No gradient.
    Source: DDFlow (Liu et al., AAAI 2019), "Occlusion Estimation"; after UnFlow (Meister et al., AAAI 2018).
    """

    alpha1: float = 0.01
    """Mismatch allowed as a share of the squared lengths of both flows. Raise it if fast motion is wrongly
    called occluded."""
    alpha2: float = 0.5
    """Mismatch allowed at any speed, in squared pixels. Raise it if slow motion is wrongly called
    occluded."""

    def __post_init__(self) -> None:
        if self.alpha1 < 0 or self.alpha2 <= 0:
            raise ValueError(
                f"alpha1 {self.alpha1} must be >= 0 and alpha2 {self.alpha2} > 0 (squared pixels)"
            )

    @torch.no_grad()
    def __call__(self, flow_fw: Flow, flow_bw: Flow) -> Mask:
        """The occlusion of the frame that `flow_fw` starts from, True = occluded; flows in pixels.

        Swap the flows for the occlusion of the other frame.
        """
        returned = backward_warp(flow_bw, flow_fw)
        mismatch = squared_length(flow_fw + returned)
        travelled = squared_length(flow_fw) + squared_length(returned)
        visible = (mismatch < self.alpha1 * travelled + self.alpha2) & in_frame(flow_fw)
        return ~visible
