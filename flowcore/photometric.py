"""How differently do two frames look, pixel by pixel? Distances, and every loss's penalty.

The census distance is the hot spot of training on a CPU. Written as 49-channel tensors through autograd it
takes most of a step; here one custom function visits an offset of the 7x7 patch at a time, keeps nothing but
the two grey frames, and recomputes in the backward pass. An offset and its opposite share their value, so
that 24 visits stand for 48.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flowcore.shapes import Image, Mask

PATCH_RADIUS = 3
"""Of the census patch, in pixels; the border of this width has no full patch."""
_SOFT_SIGN = 0.81
_SOFT_HAMMING = 0.1

# DDFlow's own conversion (TensorFlow's rgb_to_grayscale).
_LUMA = (0.2989, 0.5870, 0.1140)

Grey = Float[Tensor, "batch 1 height width"]


def robust(x: Float[Tensor, "*shape"], eps: float = 0.01, q: float = 0.4) -> Float[Tensor, "*shape"]:
    """psi(x) = (|x| + eps)^q, the robust penalty of every loss. Source: DDFlow, "Photometric Loss"."""
    return (x.abs() + eps).pow(q)


def grey(image: Image) -> Grey:
    """Luma of RGB in [0, 1], scaled to [0, 255]."""
    weights = image.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (image * weights).sum(dim=1, keepdim=True) * 255.0


def census_distance(image1: Image, image2: Image) -> Grey:
    """The soft Hamming distance of the frames' 7x7 census signatures, in [0, 48]; 0 on the 3 px border.

    On grey in [0, 255]: t = d / sqrt(0.81 + d^2) for the 48 differences d to the patch's centre, and the sum
    over them of (t - t')^2 / (0.1 + (t - t')^2). Gradients are exact, for both frames.
    Source: DDFlow, "Photometric Loss"; UnFlow, "Data loss".
    """
    distance: Grey = _CensusDistance.apply(grey(image1), grey(image2))  # type: ignore[no-untyped-call]
    return distance


def census_border(image: Float[Tensor, "batch _ height width"]) -> Mask:
    """True on the pixels whose 7x7 patch leaves the frame."""
    border = torch.ones_like(image[:, :1], dtype=torch.bool)
    border[
        ..., PATCH_RADIUS : image.shape[-2] - PATCH_RADIUS, PATCH_RADIUS : image.shape[-1] - PATCH_RADIUS
    ] = False
    return border


def rgb_distance(image1: Image, image2: Image) -> Image:
    """The absolute difference of each channel, in [0, 1]; with `robust`, the brightness constancy of DDFlow.

    Source: DDFlow, "Photometric Loss".
    """
    return (image1 - image2).abs()


def ssim_distance(image1: Image, image2: Image) -> Image:
    """(1 - SSIM) / 2 of each channel over 3x3 windows, in [0, 1]; meaningless on the 1 px border.

    SSIM = (2 m1 m2 + .01^2) (2 c12 + .03^2) / ((m1^2 + m2^2 + .01^2) (v1 + v2 + .03^2)) of means, variances
    and covariance, each pixel of a window weighing the same. Source: Wang et al., TIP 2004; as a loss of
    flow, ARFlow (Liu et al., CVPR 2020), "Photometric loss".
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
"""By name: the distance, of one channel or three, and the width of the border on which it means nothing."""


def distance_everywhere(name: str, image1: Image, image2: Image) -> Tensor:
    """The distance of this name with a meaning on every pixel: a patch that leaves the frames sees the pixels
    at their sides repeated."""
    distance, radius = DISTANCES[name]
    if radius == 0:
        return distance(image1, image2)
    wider1, wider2 = (functional.pad(image, [radius] * 4, mode="replicate") for image in (image1, image2))
    return distance(wider1, wider2)[..., radius:-radius, radius:-radius]


def _offsets() -> Iterator[tuple[int, int]]:
    """One of each two opposite offsets (dy, dx) of the patch."""
    for dy in range(PATCH_RADIUS + 1):
        for dx in range(-PATCH_RADIUS, PATCH_RADIUS + 1):
            if dy > 0 or dx > 0:
                yield dy, dx


def _ends(image: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """The pixels p and the pixels p + (dy, dx), for every p at which both lie inside the frame."""
    height, width = image.shape[-2:]
    here = image[..., : height - dy, max(0, -dx) : width - max(0, dx)]
    there = image[..., dy:, max(0, dx) : width - max(0, -dx)]
    return here, there


def _soft_sign(difference: Tensor) -> tuple[Tensor, Tensor]:
    """d / sqrt(0.81 + d^2) and its derivative's cube root 1 / sqrt(0.81 + d^2)."""
    inverse = difference.square().add_(_SOFT_SIGN).rsqrt_()
    return difference * inverse, inverse


class _CensusDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grey1: Tensor, grey2: Tensor) -> Tensor:
        ctx.save_for_backward(grey1, grey2)
        height, width = grey1.shape[-2:]
        distance = torch.zeros_like(grey1)
        if min(height, width) <= 2 * PATCH_RADIUS:
            return distance
        for dy, dx in _offsets():
            here1, there1 = _ends(grey1, dy, dx)
            here2, there2 = _ends(grey2, dy, dx)
            mismatch = _soft_sign(there1 - here1)[0].sub_(_soft_sign(there2 - here2)[0]).square_()
            share = mismatch.div_(mismatch + _SOFT_HAMMING)
            here, there = _ends(distance, dy, dx)
            here += share
            there += share
        return distance.masked_fill_(census_border(distance), 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        grey1, grey2 = ctx.saved_tensors
        height, width = grey1.shape[-2:]
        gradient1, gradient2 = torch.zeros_like(grey1), torch.zeros_like(grey2)
        if min(height, width) <= 2 * PATCH_RADIUS:
            return gradient1, gradient2
        counted = gradient.masked_fill(census_border(gradient), 0.0)
        for dy, dx in _offsets():
            here1, there1 = _ends(grey1, dy, dx)
            here2, there2 = _ends(grey2, dy, dx)
            sign1, inverse1 = _soft_sign(there1 - here1)
            sign2, inverse2 = _soft_sign(there2 - here2)
            mismatch = sign1.sub_(sign2)
            here, there = _ends(counted, dy, dx)
            # d/dm of m^2 / (0.1 + m^2) is 0.2 m / (0.1 + m^2)^2.
            # d/dd of the soft sign is 0.81 / sqrt(0.81 + d^2)^3.
            slope = mismatch.square().add_(_SOFT_HAMMING).pow_(-2).mul_(mismatch).mul_(here + there)
            slope.mul_(2 * _SOFT_HAMMING * _SOFT_SIGN)
            for total, inverse, toward in ((gradient1, inverse1, 1.0), (gradient2, inverse2, -1.0)):
                step = inverse.pow_(3).mul_(slope).mul_(toward)
                here, there = _ends(total, dy, dx)
                there += step
                here -= step
        return gradient1, gradient2


def smoothness(
    flow: Float[Tensor, "batch 2 height width"], image: Image, edge_weight: float = 10.0, order: int = 1
) -> Float[Tensor, ""]:
    """Mean over both axes of exp(-edge_weight mean_c |dI|) |d^order w|: flow may change where the frame does.

    Order 1 likes flow that is constant, order 2 flow that changes evenly, as that of a road does. `flow` in
    pixels and `image` on the same grid. An option: DDFlow and SelFlow do without.
    Source: ARFlow (Liu et al., CVPR 2020), smoothness loss; edge_weight 10 there, 150 in UFlow (Jonschkowski
    et al., ECCV 2020), which takes order 2 for KITTI.
    """
    terms = []
    for axis in (-1, -2):
        change = flow.diff(n=order, dim=axis).abs()
        edge = image.diff(dim=axis).abs().mean(dim=1, keepdim=True)
        if order == 2:
            # at the middle one of the three pixels: the stronger of the edges to either side
            length = edge.shape[axis] - 1
            edge = torch.maximum(edge.narrow(axis, 0, length), edge.narrow(axis, 1, length))
        terms.append((torch.exp(-edge_weight * edge) * change).mean())
    return (terms[0] + terms[1]) / 2
