"""How similar are the features of two frames, for every small displacement? The cost volume of PWC-Net.

Written as a loop over slices for autograd, a third of a training step goes into zero-filling gradients. This
function computes both passes itself, one displacement at a time, and stores only its two inputs. On a GPU
`flowcore.kernels` does the same.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flowcore.networks.layers import in_full_precision

Features = Float[Tensor, "batch channels height width"]


def normalize_features(features: Features) -> Features:
    """Features with zero mean per channel over the image, then scaled to unit length per pixel.

    Deviation: DDFlow's PWC-Net normalises over the whole tensor. In a small trial with the census loss, that
    was no better than zero flow after 600 steps; this had half its error after 200.
    """
    return in_full_precision(_normalized, features)


def _normalized(features: Tensor) -> Tensor:
    centred = features - features.mean(dim=(2, 3), keepdim=True)
    # functional.normalize gives the same but takes up to 17 times as long for channels in planes.
    return centred * (centred * centred).sum(dim=1, keepdim=True).clamp_min(1e-12).rsqrt()


def cost_volume(
    features1: Features, features2: Features, radius: int = 4
) -> Float[Tensor, "batch _ height width"]:
    """sum_c f1(p) f2(p + d) for all (2 radius + 1)^2 displacements d, row by row; 0 where p + d is outside.

    Gradients are exact, for both inputs. Source: PWC-Net (Sun et al., CVPR 2018), "Cost volume layer",
    without its factor 1 / channels, since features have unit length.
    """
    return in_full_precision(partial(_cost_volume, radius), features1, features2)


def _cost_volume(radius: int, features1: Tensor, features2: Tensor) -> Tensor:
    if torch.compiler.is_exporting():
        return _cost_volume_to_export(radius, features1, features2)
    volume: Tensor = _CostVolume.apply(features1, features2, radius)  # type: ignore[no-untyped-call]
    return volume


def _cost_volume_to_export(radius: int, features1: Tensor, features2: Tensor) -> Tensor:
    """The same for an exported graph, where each write into part of a tensor would copy the whole."""
    height, width = features1.shape[-2:]
    padded = functional.pad(features2, (radius,) * 4)
    windows = (
        padded[..., dy : dy + height, dx : dx + width]
        for dy in range(2 * radius + 1)
        for dx in range(2 * radius + 1)
    )
    return torch.cat([(features1 * window).sum(dim=1, keepdim=True) for window in windows], dim=1)


class _CostVolume(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features1: Tensor, features2: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        if features1.is_cuda:
            from flowcore import kernels

            features1, features2 = features1.contiguous(), features2.contiguous()
            ctx.save_for_backward(features1, features2)
            return kernels.cost_volume(features1, features2, radius)
        ctx.save_for_backward(features1, features2)
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

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        features1, features2 = ctx.saved_tensors
        radius = ctx.radius
        if features1.is_cuda:
            from flowcore import kernels

            return *kernels.cost_volume_gradients(features1, features2, gradient.contiguous(), radius), None
        height, width = features1.shape[-2:]
        side = 2 * radius + 1
        padded = functional.pad(features2, (radius,) * 4)
        gradient1, padded_gradient = torch.zeros_like(features1), torch.zeros_like(padded)
        for index in range(side * side):
            dy, dx = divmod(index, side)
            window = (..., slice(dy, dy + height), slice(dx, dx + width))
            weight = gradient[:, index : index + 1]
            gradient1.addcmul_(weight, padded[window])
            padded_gradient[window].addcmul_(weight, features1)
        gradient2 = padded_gradient[..., radius : radius + height, radius : radius + width]
        return gradient1, gradient2, None
