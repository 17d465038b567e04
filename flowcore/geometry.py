"""Where does a pixel land, and what is there? Coordinates, sampling and resampling of frames and flow.

Pixel centres lie at whole coordinates: (0, 0) is the centre of the top left pixel and the frame ends at
(width - 1, height - 1). Resampling uses half-pixel centres (`align_corners=False`), so that a stride-s grid
covers the same area as the full frame.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from flowcore.shapes import Flow


def pixel_grid(
    height: int, width: int, device: torch.device | None = None
) -> Float[Tensor, "1 2 {height} {width}"]:
    """The coordinates [x, y] of every pixel centre, in pixels."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y]).unsqueeze(0)


def backward_warp(
    image: Float[Tensor, "batch channels height width"], flow: Flow
) -> Float[Tensor, "batch channels height width"]:
    """`image` sampled bilinearly at p + flow(p); outside the frame, its border. Flow in pixels.

    Where the flow is NaN the result is NaN: a diverging network is reported as a non-finite loss. (Handed to
    `grid_sample`, a NaN coordinate ends the process on a CPU.) The result has the flow's precision.
    """
    height, width = image.shape[-2:]
    pixels = pixel_grid(height, width, flow.device)[0].movedim(0, -1)
    size = pixels[-1, -1] + 1
    # As grid_sample wants it: -1 and 1 are the frame's ends, half a pixel beyond the centres of its corners.
    target = torch.addcmul((2 * pixels + 1) / size - 1, flow.movedim(1, -1), 2 / size)
    # Beyond the border nothing changes, nor with infinities bounded.
    grid = target.clamp(-2, 2).nan_to_num(nan=0.0)
    sampled: Tensor = functional.grid_sample(
        image.to(flow.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    lost = flow[:, :1].isnan() | flow[:, 1:].isnan()
    return sampled.masked_fill_(lost, float("nan"))


def in_frame(flow: Flow) -> Bool[Tensor, "batch 1 height width"]:
    """True where p + flow(p) lies inside the frame; flow in pixels, NaN counts as outside."""
    height, width = flow.shape[-2:]
    x, y = (pixel_grid(height, width, flow.device) + flow).split(1, dim=1)
    inside: Tensor = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside


def squared_length(flow: Flow) -> Float[Tensor, "batch 1 height width"]:
    """|flow|^2, in squared pixels."""
    u, v = flow[:, :1], flow[:, 1:]
    # Summed over their axis, two components take several times as long.
    return u * u + v * v


def resize_image(
    image: Float[Tensor, "batch channels height width"], height: int, width: int
) -> Float[Tensor, "batch channels new_height new_width"]:
    """`image` at another size: averaged over areas when smaller, bilinear when larger."""
    if image.shape[-2:] == (height, width):
        return image
    if height <= image.shape[-2] and width <= image.shape[-1]:
        return functional.interpolate(image, (height, width), mode="area")
    return functional.interpolate(image, (height, width), mode="bilinear", align_corners=False)


def upsample_flow(
    flow: Flow, stride: int, height: int, width: int
) -> Float[Tensor, "batch 2 {height} {width}"]:
    """A stride-`stride` grid of flow in full-resolution pixels, upsampled bilinearly (half-pixel centres) and
    cropped to height x width.

    The values keep their unit; only the grid changes. Of a grid that covers padding too, the ceil(height /
    stride) x ceil(width / stride) part over the frame alone is read. This is how every network here makes its
    full-resolution flow from its last level, and how a label stored at a stride is read back.
    """
    # not -(-height // stride): exported, integers are divided towards zero
    flow = flow[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride]
    if stride == 1:
        return flow
    full = functional.interpolate(flow, scale_factor=stride, mode="bilinear", align_corners=False)
    return full[..., :height, :width]


def flip_left_right(flow: Flow) -> Flow:
    """The flow of frames mirrored left to right: the grid is mirrored and u changes its sign."""
    return flow.flip(-1) * flow.new_tensor([-1.0, 1.0]).view(1, 2, 1, 1)


def flip_up_down(flow: Flow) -> Flow:
    """The flow of frames mirrored up to down: the grid is mirrored and v changes its sign."""
    return flow.flip(-2) * flow.new_tensor([1.0, -1.0]).view(1, 2, 1, 1)


def pad_to_multiple(
    image: Float[Tensor, "batch channels height width"], multiple: int
) -> Float[Tensor, "batch channels _ _"]:
    """`image` with its right and bottom border repeated until both sides are multiples of `multiple` px."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return functional.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image
