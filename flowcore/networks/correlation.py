"""How similar are the features of two frames, for every small displacement? The cost volume of PWC-Net.

As a function of its own it stores only its two inputs; `flowcore.passes` has what computes its two passes.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flowcore.networks.layers import in_full_precision
from flowcore.passes import passes_for

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
        passes, features = passes_for(features1, features2)
        ctx.radius = radius
        ctx.save_for_backward(*features)
        volume: Tensor = passes.cost_volume(*features, radius)
        return volume

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        passes, tensors = passes_for(*ctx.saved_tensors, gradient)
        gradient1, gradient2 = passes.cost_volume_gradients(*tensors, ctx.needs_input_grad[:2], ctx.radius)
        return gradient1, gradient2, None
