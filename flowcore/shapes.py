"""What shapes travel through flowcore? Annotations, which the tests assert."""

import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor

Image = Float[Tensor, "batch 3 height width"]
"""RGB in [0, 1]."""
Flow = Float[Tensor, "batch 2 height width"]
"""[u, v] in pixels, u to the right, v down."""
Mask = Bool[Tensor, "batch 1 height width"]
"""True = what the name says."""

Frame = UInt8[ndarray, "height width 3"]
"""RGB of one frame, as files hold it."""
FlowArray = Float[ndarray, "2 height width"]
"""[u, v] in pixels of one frame pair."""


def to_device(array: ndarray, device: torch.device | str | None = None) -> Tensor:
    """A copy of the array; to a GPU it goes through pinned memory, and whoever asked doesn't wait for it."""
    if device is None or torch.device(device).type != "cuda":
        return torch.tensor(array, device=device)
    return torch.tensor(array).pin_memory().to(device, non_blocking=True)


def to_images(
    frames: UInt8[ndarray, "batch height width 3"], device: torch.device | str | None = None
) -> Image:
    """Frames as networks take them, copied into the order of their shape: a view of the frames' own order is
    slower on CPUs."""
    return to_device(frames, device).movedim(-1, 1).contiguous().float() / 255
