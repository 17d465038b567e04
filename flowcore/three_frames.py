"""Where does a pixel go that the next frame hides, and the frame before shows?

Most things go on as they moved. How the flow to the next frame follows from the flow to the one before is
learnt from the pixels that both frames show, for this one triple of frames, and continues the motion of those
that the next frame hides.

Source: SMURF (Stone et al., CVPR 2021), "Multi-frame self-supervision". A deviation: its model is a small
network, trained by gradient descent; ours is linear and has a closed form, so that a label is the same
wherever it is made.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flowcore.geometry import squared_length
from flowcore.shapes import Flow, Mask

_REWEIGHTINGS = 4
_RIDGE = 0.01
"""How firmly constant velocity is believed, as a share of what one pixel says."""
_SHARE, _SQUARED_PIXELS = 0.01, 0.5
"""By how much a motion may miss its continuation, as the forward-backward check tolerates a mismatch: a share
of both flows' squared lengths, and squared pixels at any speed."""
_WINDOW = 8
"""How often the window in which a continuation has to hold goes into the frame's shorter side."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The flow from a frame to the next, continued from the frame before where the next one hides pixels."""

    flow: Flow
    """In pixels; where nothing was filled, as it was."""
    continued: Mask
    """True where it was filled."""
    misfit: Float[Tensor, "batch"]
    """Pixels by which the continued flow misses the flow that was found, averaged over the pixels that both
    other frames show; nan where there are none."""


@torch.no_grad()
def continue_motion(flow: Flow, past: Flow, hidden: Mask, lost: Mask, least: float = 0.5) -> Continuation:
    """The flow of a frame to the next with the motion of hidden pixels continued.

    past: flow to the frame before. hidden, lost: True where a pixel isn't visible in the next frame, and in
    the frame before. Flows in pixels, all on one grid, which may be coarser than the frame.

    Fits w' = -w_past + A w_past + B (x, y, 1) where both are known, by least squares that count outliers
    little and lean towards constant velocity, A = B = 0. Fills what is hidden and wasn't before, where w'
    holds for at least the share `least` of the pixels around.
    """
    known = ~hidden & ~lost & (flow + past).isfinite().all(dim=1, keepdim=True)
    features = torch.cat([past, _plane(past)], dim=1).flatten(2).double()
    fitted = features.masked_fill(~known.flatten(2), 0.0)
    change = (flow + past).flatten(2).double().masked_fill(~known.flatten(2), 0.0)
    tolerance = _SHARE * (squared_length(flow) + squared_length(past)) + _SQUARED_PIXELS
    tolerance = tolerance.masked_fill(~known, 1.0)
    counted = known.flatten(2).double()
    # Begins with constant velocity.
    missed = change.square().sum(dim=1, keepdim=True)
    for _ in range(_REWEIGHTINGS):
        weights = counted / (tolerance.flatten(2) + missed)
        ridge = _RIDGE * (1 + weights.sum(dim=2))
        normal = (fitted * weights) @ fitted.mT + torch.diag_embed(ridge.expand(-1, fitted.shape[1]))
        found = torch.linalg.solve(normal, (fitted * weights) @ change.mT)
        missed = (change - found.mT @ fitted).square().sum(dim=1, keepdim=True)
    missed = missed.view_as(tolerance)
    holds = _share_around(missed < tolerance, known)
    filled = hidden & ~lost & (holds >= least)
    motion = (found.mT @ features).view_as(flow).to(flow.dtype) - past
    misfit = (missed.sqrt() * known).sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3))
    return Continuation(
        flow=torch.where(filled, motion, flow), continued=filled, misfit=misfit.to(flow.dtype)
    )


def _plane(flow: Flow) -> Float[Tensor, "batch 3 height width"]:
    """x and y of each pixel, from -1 to 1, and 1."""
    batch, _, height, width = flow.shape
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, device=flow.device),
        torch.linspace(-1, 1, width, device=flow.device),
        indexing="ij",
    )
    return torch.stack([x, y, torch.ones_like(x)]).expand(batch, -1, -1, -1)


def _share_around(true: Mask, counted: Mask) -> Float[Tensor, "batch 1 height width"]:
    """The share of counted pixels in a window around each where it is true; that of the whole frame where the
    window has none, and nan where the frame has none."""
    radius = max(1, round(min(true.shape[-2:]) / _WINDOW / 2))
    hits = (true & counted).float()

    def around(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, 2 * radius + 1, 1, radius)

    overall = hits.sum(dim=(2, 3), keepdim=True) / counted.sum(dim=(2, 3), keepdim=True)
    there = around(counted.float())
    return torch.where(there > 0, around(hits) / there, overall)
