"""How different do two frames look, pixel by pixel?

The census distance is the hot spot of training. As a function of its own it stores only the two grey frames,
and recomputes the rest in the backward pass; `flowcore.passes` has what computes both.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flowcore.passes import passes_for
from flowcore.shapes import Image, Mask

PATCH_RADIUS = 3
"""Radius of the census patch in pixels; on a border of this width the patch leaves the frame."""
_SOFT_SIGN = 0.81
_SOFT_HAMMING = 0.1

# DDFlow's own conversion (TensorFlow's rgb_to_grayscale).
_LUMA = (0.2989, 0.5870, 0.1140)

Grey = Float[Tensor, "batch 1 height width"]


def robust(x: Float[Tensor, "*shape"], eps: float = 0.01, q: float = 0.4) -> Float[Tensor, "*shape"]:
    """psi(x) = (|x| + eps)^q, the robust penalty of all losses. Source: DDFlow, "Photometric Loss"."""
    return (x.abs() + eps).pow(q)


def grey(image: Image) -> Grey:
    """Luma in [0, 255]."""
    red, green, blue = (image[:, channel : channel + 1] for channel in range(3))
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue) * 255.0


def census_distance(image1: Image, image2: Image) -> Grey:
    """Soft Hamming distance of the frames' 7x7 census signatures, in [0, 48]; 0 on the 3 px border.

    The signature of a pixel is t = d / sqrt(0.81 + d^2) for the 48 differences d of grey (0 to 255) between
    the patch and its centre. The distance is the sum of (t - t')^2 / (0.1 + (t - t')^2) over them. Gradients
    are exact, for both frames. Source: DDFlow, "Photometric Loss"; UnFlow, "Data loss".
    """
    distance: Grey = _CensusDistance.apply(grey(image1), grey(image2))  # type: ignore[no-untyped-call]
    return distance


def census_border(image: Float[Tensor, "batch _ height width"]) -> Mask:
    """True on the pixels whose 7x7 patch leaves the frame."""
    border = torch.ones_like(image[:, :1], dtype=torch.bool)
    height, width = image.shape[-2:]
    border[..., PATCH_RADIUS : height - PATCH_RADIUS, PATCH_RADIUS : width - PATCH_RADIUS].fill_(False)
    return border


def rgb_distance(image1: Image, image2: Image) -> Image:
    """Absolute difference of each channel, in [0, 1]; with `robust`, DDFlow's brightness constancy.

    Source: DDFlow, "Photometric Loss".
    """
    return (image1 - image2).abs()


def ssim_distance(image1: Image, image2: Image) -> Image:
    """(1 - SSIM) / 2 of each channel over 3x3 windows, in [0, 1]; meaningless on the 1 px border.

    SSIM = (2 m1 m2 + .01^2) (2 c12 + .03^2) / ((m1^2 + m2^2 + .01^2) (v1 + v2 + .03^2)), with means m,
    variances v and covariance c12 over the window, all pixels weighing the same. Source: Wang et al., TIP
    2004; as a loss for flow, ARFlow (Liu et al., CVPR 2020), "Photometric loss".
    """
    mean1, mean2, square1, square2, product = (
        functional.avg_pool2d(values, 3, stride=1, padding=1)
        for values in (image1, image2, image1.square(), image2.square(), image1 * image2)
    )
    variance1, variance2 = square1 - mean1.square(), square2 - mean2.square()
    covariance = product - mean1 * mean2
    luminance = (2 * mean1 * mean2 + 0.01**2) / (mean1.square() + mean2.square() + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance1 + variance2 + 0.03**2)
    return ((1 - luminance * structure) / 2).clamp(0, 1)


DISTANCES: dict[str, tuple[Callable[[Image, Image], Tensor], int]] = {
    "census": (census_distance, PATCH_RADIUS),
    "rgb": (rgb_distance, 0),
    "ssim": (ssim_distance, 1),
}
"""By name: the distance, with one channel or three, and the width of the border where it is meaningless."""


def distance_everywhere(name: str, image1: Image, image2: Image) -> Tensor:
    """The distance of this name, meaningful on every pixel: patches that leave the frame see its border
    repeated."""
    distance, radius = DISTANCES[name]
    if radius == 0:
        return distance(image1, image2)
    wider1, wider2 = (functional.pad(image, [radius] * 4, mode="replicate") for image in (image1, image2))
    return distance(wider1, wider2)[..., radius:-radius, radius:-radius]


class _CensusDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grey1: Tensor, grey2: Tensor) -> Tensor:
        passes, greys = passes_for(grey1, grey2)
        ctx.save_for_backward(*greys)
        distance: Tensor = passes.census(*greys, PATCH_RADIUS, _SOFT_SIGN, _SOFT_HAMMING)
        return distance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        passes, tensors = passes_for(*ctx.saved_tensors, gradient)
        # The frame that isn't warped needs none.
        needed = ctx.needs_input_grad
        gradient1, gradient2 = passes.census_gradients(
            *tensors, needed, PATCH_RADIUS, _SOFT_SIGN, _SOFT_HAMMING
        )
        return gradient1, gradient2


def smoothness(
    flow: Float[Tensor, "batch 2 height width"], image: Image, edge_weight: float = 10.0, order: int = 1
) -> Float[Tensor, ""]:
    """Mean over both axes of exp(-edge_weight mean_c |dI|) |d^order w|: flow may change where the frame does.

    Order 1 favours constant flow, order 2 flow that changes evenly, as on a road. `flow` is in pixels, on the
    grid of `image`. Optional: DDFlow and SelFlow have no smoothness loss.
    Source: ARFlow (Liu et al., CVPR 2020), smoothness loss, edge_weight 10. UFlow (Jonschkowski et al., ECCV
    2020) uses 150, and order 2 for KITTI.
    """
    terms = []
    for axis in (-1, -2):
        change = flow.diff(n=order, dim=axis).abs()
        edge = image.diff(dim=axis).abs().mean(dim=1, keepdim=True)
        if order == 2:
            # At the middle of the three pixels: the stronger of the edges on either side.
            length = edge.shape[axis] - 1
            edge = torch.maximum(edge.narrow(axis, 0, length), edge.narrow(axis, 1, length))
        terms.append((torch.exp(-edge_weight * edge) * change).mean())
    return (terms[0] + terms[1]) / 2
