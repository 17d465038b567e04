"""Where does a pixel land, and what is there? Coordinates, sampling and resampling of frames and flow.

Pixel centres lie at whole coordinates: (0, 0) is the centre of the top left pixel and the frame ends at
(width - 1, height - 1). Resampling uses half-pixel centres (`align_corners=False`), so that a stride-s grid
covers the same area as the full frame.
"""

from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from flowcore.shapes import Flow


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns, to index a frame with."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def widened(self, margin: int) -> "Window":
        """With so many pixels more on every side."""
        return Window(
            top=self.top - margin,
            left=self.left - margin,
            height=self.height + 2 * margin,
            width=self.width + 2 * margin,
        )

    def moved(self, offset: int) -> "Window":
        """So many pixels further down and to the right."""
        return replace(self, top=self.top + offset, left=self.left + offset)


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
    image: Float[Tensor, "batch channels _ _"], flow: Flow, margin: int = 0
) -> Float[Tensor, "batch channels height width"]:
    """`image` sampled bilinearly at p + flow(p); outside the frame, its border. Flow in pixels.

    margin: by how many pixels `image` reaches further than the flow's grid, on each side.

    NaN in the flow gives NaN, so that a diverging network shows as a non-finite loss. (`grid_sample` itself
    crashes on NaN coordinates on a CPU.) The result has the flow's precision.
    """
    height, width = flow.shape[-2:]
    pixels = pixel_grid(height, width, flow.device)[0].movedim(0, -1)
    size = pixels[-1, -1] + 1 + 2 * margin
    # grid_sample's coordinates: -1 and 1 are the frame's edges, half a pixel beyond the corners' centres.
    target = torch.addcmul((2 * (pixels + margin) + 1) / size - 1, flow.movedim(1, -1), 2 / size)
    # Beyond the border nothing changes, so clamping is exact, for infinities too.
    grid = target.clamp(-2, 2).nan_to_num(nan=0.0)
    sampled: Tensor = functional.grid_sample(
        image.to(flow.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    lost = flow[:, :1].isnan() | flow[:, 1:].isnan()
    return sampled.masked_fill_(lost, float("nan"))


def in_frame(flow: Flow, margin: int = 0) -> Bool[Tensor, "batch 1 height width"]:
    """True where p + flow(p) lies inside the frame, or within `margin` pixels of it; flow in pixels, NaN
    counts as outside."""
    height, width = flow.shape[-2:]
    x, y = (pixel_grid(height, width, flow.device) + flow).split(1, dim=1)
    last_x, last_y = width - 1 + margin, height - 1 + margin
    inside: Tensor = (x >= -margin) & (x <= last_x) & (y >= -margin) & (y <= last_y)
    return inside


def squared_length(flow: Flow) -> Float[Tensor, "batch 1 height width"]:
    """|flow|^2, in squared pixels."""
    u, v = flow[:, :1], flow[:, 1:]
    # A sum over the axis of two components takes several times as long.
    return u * u + v * v


def resize_image(
    image: Float[Tensor, "batch channels height width"], height: int, width: int
) -> Float[Tensor, "batch channels new_height new_width"]:
    """`image` at another size: averaged over areas if that is smaller, interpolated bilinearly if larger."""
    if image.shape[-2:] == (height, width):
        return image
    if height <= image.shape[-2] and width <= image.shape[-1]:
        return functional.interpolate(image, (height, width), mode="area")
    return functional.interpolate(image, (height, width), mode="bilinear", align_corners=False)


def upsample_flow(
    flow: Flow, stride: int, height: int, width: int
) -> Float[Tensor, "batch 2 {height} {width}"]:
    """Flow on a grid of stride `stride`, upsampled bilinearly (half-pixel centres) and cropped to height x
    width.

    The vectors are in full-resolution pixels before and after; only the grid changes. A grid that also covers
    padding is first cropped to its ceil(height / stride) x ceil(width / stride) part over the frame. This is
    how every network's finest level becomes full-resolution flow, and how a stored label is read back.
    """
    return upsample_values(flow, stride, height, width)


def upsample_values(
    values: Float[Tensor, "batch channels _ _"], stride: int, height: int, width: int
) -> Float[Tensor, "batch channels {height} {width}"]:
    """What `upsample_flow` makes of any values on a flow's grid."""
    # Not -(-height // stride): an exported graph divides integers towards zero.
    values = values[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride]
    if stride == 1:
        return values
    full = functional.interpolate(values, scale_factor=stride, mode="bilinear", align_corners=False)
    return full[..., :height, :width]


def flip_left_right(flow: Flow) -> Flow:
    """The flow of frames mirrored left to right: the grid is mirrored and u changes sign."""
    return flow.flip(-1) * flow.new_tensor([-1.0, 1.0]).view(1, 2, 1, 1)


def flip_up_down(flow: Flow) -> Flow:
    """The flow of frames turned upside down: the grid is mirrored and v changes sign."""
    return flow.flip(-2) * flow.new_tensor([1.0, -1.0]).view(1, 2, 1, 1)


AnyTensor = TypeVar("AnyTensor", bound=Tensor | None)


def centred(values: AnyTensor, margin: int) -> AnyTensor:
    """The values, of pixels along the last two axes, without so many on every side; None of None."""
    if values is None or margin == 0:
        return values
    return cast(AnyTensor, values[..., margin:-margin, margin:-margin])


def pad_to_multiple(
    image: Float[Tensor, "batch channels height width"], multiple: int
) -> Float[Tensor, "batch channels _ _"]:
    """`image` with its right and bottom border repeated until both sides are multiples of `multiple` px."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom == right == 0:
        return image
    return functional.pad(image, (0, right, 0, bottom), mode="replicate")
