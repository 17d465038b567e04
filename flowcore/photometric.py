"""How different do two frames look, pixel by pixel?

The census distance is the hot spot of training on a CPU: written as 49-channel tensors for autograd it takes
most of a step. Here a custom function visits the 7x7 patch one offset at a time, stores only the two grey
frames, and recomputes the rest in the backward pass. Opposite offsets have equal values, so 24 visits do for
48. On a GPU `flowcore.kernels` does the same.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

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


def _offsets() -> Iterator[tuple[int, int]]:
    """One offset (dy, dx) of each opposite pair in the patch."""
    for dy in range(PATCH_RADIUS + 1):
        for dx in range(-PATCH_RADIUS, PATCH_RADIUS + 1):
            if dy > 0 or dx > 0:
                yield dy, dx


def _ends(image: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """The pixels p and the pixels p + (dy, dx), for every p where both lie inside the frame."""
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
        if grey1.is_cuda:
            from flowcore import kernels

            grey1, grey2 = grey1.contiguous(), grey2.contiguous()
            ctx.save_for_backward(grey1, grey2)
            return kernels.census(grey1, grey2, PATCH_RADIUS, _SOFT_SIGN, _SOFT_HAMMING)
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grey1, grey2 = ctx.saved_tensors
        if grey1.is_cuda:
            from flowcore import kernels

            return kernels.census_gradients(
                grey1, grey2, gradient.contiguous(), PATCH_RADIUS, _SOFT_SIGN, _SOFT_HAMMING
            )
        height, width = grey1.shape[-2:]
        # The frame that isn't warped needs none.
        gradient1, gradient2 = (
            torch.zeros_like(each) if is_needed else None
            for each, is_needed in zip((grey1, grey2), ctx.needs_input_grad, strict=True)
        )
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
            # d/dm of m^2 / (0.1 + m^2) is 0.2 m / (0.1 + m^2)^2, and d/dd of the soft sign is
            # 0.81 / sqrt(0.81 + d^2)^3.
            slope = mismatch.square().add_(_SOFT_HAMMING).pow_(-2).mul_(mismatch).mul_(here + there)
            slope.mul_(2 * _SOFT_HAMMING * _SOFT_SIGN)
            for total, inverse, toward in ((gradient1, inverse1, 1.0), (gradient2, inverse2, -1.0)):
                if total is None:
                    continue
                step = inverse.pow_(3).mul_(slope).mul_(toward)
                here, there = _ends(total, dy, dx)
                there += step
                here -= step
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
