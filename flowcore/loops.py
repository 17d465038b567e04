"""How are the census distance and the cost volume computed without a GPU? One offset after the other.

Written for autograd, the census distance has 49 channels and takes most of a training step, and a third of a
step goes into zero-filling the gradients of a cost volume's slices. Here each pass stores no more than its
result and what one offset needs. `flowcore.kernels` has the same functions for a GPU, with these as their
reference.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Grey = Float[Tensor, "batch 1 height width"]
Features = Float[Tensor, "batch channels height width"]
Volume = Float[Tensor, "batch displacements height width"]


def census(grey1: Grey, grey2: Grey, radius: int, soft_sign: float, soft_hamming: float) -> Grey:
    """The soft Hamming distance of `flowcore.photometric.census_distance`."""
    distance = torch.zeros_like(grey1)
    if min(grey1.shape[-2:]) <= 2 * radius:
        return distance
    # Opposite offsets have equal values, so half of the visits do for all.
    for dy, dx in _offsets(radius):
        here1, there1 = _ends(grey1, dy, dx)
        here2, there2 = _ends(grey2, dy, dx)
        sign1, _ = _soft_sign(there1 - here1, soft_sign)
        sign2, _ = _soft_sign(there2 - here2, soft_sign)
        mismatch = sign1.sub_(sign2).square_()
        share = mismatch.div_(mismatch + soft_hamming)
        here, there = _ends(distance, dy, dx)
        here += share
        there += share
    return _without_border(distance, radius)


def census_gradients(
    grey1: Grey,
    grey2: Grey,
    gradient: Grey,
    needed: tuple[bool, bool],
    radius: int,
    soft_sign: float,
    soft_hamming: float,
) -> tuple[Grey | None, Grey | None]:
    """The gradients for both frames, of the distance's; None for a frame that needs none."""
    gradient1 = torch.zeros_like(grey1) if needed[0] else None
    gradient2 = torch.zeros_like(grey2) if needed[1] else None
    if min(grey1.shape[-2:]) <= 2 * radius:
        return gradient1, gradient2
    counted = _without_border(gradient.clone(), radius)
    for dy, dx in _offsets(radius):
        here1, there1 = _ends(grey1, dy, dx)
        here2, there2 = _ends(grey2, dy, dx)
        sign1, inverse1 = _soft_sign(there1 - here1, soft_sign)
        sign2, inverse2 = _soft_sign(there2 - here2, soft_sign)
        mismatch = sign1.sub_(sign2)
        here, there = _ends(counted, dy, dx)
        # With h the soft Hamming's constant and s the soft sign's, d/dm of m^2 / (h + m^2) is
        # 2 h m / (h + m^2)^2, and d/dd of the soft sign is s / sqrt(s + d^2)^3.
        slope = mismatch.square().add_(soft_hamming).pow_(-2).mul_(mismatch).mul_(here + there)
        slope.mul_(2 * soft_hamming * soft_sign)
        for total, inverse, toward in ((gradient1, inverse1, 1.0), (gradient2, inverse2, -1.0)):
            if total is None:
                continue
            step = inverse.pow_(3).mul_(slope).mul_(toward)
            here, there = _ends(total, dy, dx)
            there += step
            here -= step
    return gradient1, gradient2


def cost_volume(features1: Features, features2: Features, radius: int) -> Volume:
    """See `flowcore.networks.correlation.cost_volume`."""
    batch, _, height, width = features1.shape
    side = 2 * radius + 1
    # In the same layout as features1: a warp returns channels in planes.
    is_last = features1.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    padded = functional.pad(features2, (radius,) * 4).contiguous(memory_format=layout)
    volume = torch.empty(
        (batch, side * side, height, width),
        dtype=features1.dtype,
        device=features1.device,
        memory_format=layout,
    )
    product = torch.empty_like(features1)
    for index in range(side * side):
        dy, dx = divmod(index, side)
        torch.mul(features1, padded[..., dy : dy + height, dx : dx + width], out=product)
        torch.sum(product, dim=1, out=volume[:, index])
    return volume


def cost_volume_gradients(
    features1: Features, features2: Features, gradient: Volume, needed: tuple[bool, bool], radius: int
) -> tuple[Features | None, Features | None]:
    """The gradients for both frames' features, of the volume's; None for a frame that needs none."""
    height, width = features1.shape[-2:]
    side = 2 * radius + 1
    padded = functional.pad(features2, (radius,) * 4)
    gradient1 = torch.zeros_like(features1) if needed[0] else None
    padded_gradient = torch.zeros_like(padded) if needed[1] else None
    for index in range(side * side):
        dy, dx = divmod(index, side)
        window = (..., slice(dy, dy + height), slice(dx, dx + width))
        weight = gradient[:, index : index + 1]
        if gradient1 is not None:
            gradient1.addcmul_(weight, padded[window])
        if padded_gradient is not None:
            padded_gradient[window].addcmul_(weight, features1)
    if padded_gradient is None:
        return gradient1, None
    return gradient1, padded_gradient[..., radius : radius + height, radius : radius + width]


def _offsets(radius: int) -> Iterator[tuple[int, int]]:
    """One offset (dy, dx) of each opposite pair in the patch."""
    for dy in range(radius + 1):
        for dx in range(-radius, radius + 1):
            if dy > 0 or dx > 0:
                yield dy, dx


def _ends(image: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """The pixels p and the pixels p + (dy, dx), for every p where both lie inside the frame."""
    height, width = image.shape[-2:]
    here = image[..., : height - dy, max(0, -dx) : width - max(0, dx)]
    there = image[..., dy:, max(0, dx) : width - max(0, -dx)]
    return here, there


def _soft_sign(difference: Tensor, soft_sign: float) -> tuple[Tensor, Tensor]:
    """d / sqrt(soft_sign + d^2) and 1 / sqrt(soft_sign + d^2), of which its derivative is the cube."""
    inverse = difference.square().add_(soft_sign).rsqrt_()
    return difference * inverse, inverse


def _without_border(values: Tensor, radius: int) -> Tensor:
    """The values, set to 0 where the patch leaves the frame."""
    height, width = values.shape[-2:]
    for rows, columns in (
        (slice(radius), slice(None)),
        (slice(height - radius, None), slice(None)),
        (slice(None), slice(radius)),
        (slice(None), slice(width - radius, None)),
    ):
        values[..., rows, columns].zero_()
    return values
