"""What are the networks made of?"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowcore.shapes import Flow

_NEIGHBOURS = 9
_SCALE_WIDTH = 32
"""Channels of the convolutions that find the scale of a flow's error."""

FLOW_SCALE = 20.0
"""Pixels of motion per unit of a decoder's output, the factor by which PWC-Net and FlowNet scale truth."""


def draw_weights(weight: Tensor, **how: Any) -> None:
    """He's normal distribution, see `nn.init.kaiming_normal_`. Nothing on the meta device, where torch would
    import its compiler, two seconds of a core, to draw nothing."""
    if not weight.is_meta:
        nn.init.kaiming_normal_(weight, **how)


def convolution(
    channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """A convolution, padded to keep the size but for its stride, and a leaky ReLU."""
    layer = nn.Conv2d(
        channels_in,
        channels_out,
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
    )
    draw_weights(layer.weight, a=0.1)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(layer, nn.LeakyReLU(0.1, inplace=True))


class _Head(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return in_full_precision(super().forward, input)


def flow_head(channels: int) -> nn.Conv2d:
    """A convolution from features to flow, in full precision."""
    return _Head(channels, 2, 3, padding=1)


class ScaleHead(nn.Module):
    """From what a decoder saw, and the flow that it found, to the natural logarithm of the scale of that
    flow's error, in pixels. Fresh weights answer about 1 px everywhere.

    What it sees gets no gradient from it: the flow learns nothing from this head.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels + 2, _SCALE_WIDTH), convolution(_SCALE_WIDTH, _SCALE_WIDTH)
        )
        self.last = _Head(_SCALE_WIDTH, 1, 3, padding=1)
        self.last.weight.data *= 0.1

    def forward(self, flow: Flow, *features: Tensor) -> Tensor:
        """flow: in full-resolution pixels."""
        seen = torch.cat([flow / FLOW_SCALE, *features], dim=1)
        log_scale: Tensor = self.last(self.body(seen.detach()))
        return log_scale


def in_full_precision(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function` of the inputs with autocast off. bfloat16's eight bits are too coarse for flow, and for the
    features that are compared to find it."""
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return function(*inputs)
    with torch.autocast(device, enabled=False):
        return function(*(each.float() for each in inputs))


def resampled(values: Tensor, factor: int) -> Tensor:
    """Values on a grid so many times as fine, interpolated bilinearly."""
    return functional.interpolate(values, scale_factor=factor, mode="bilinear", align_corners=False)


def upsampling_weights(channels: int) -> nn.Sequential:
    """From features to the weights that `doubled` takes."""
    return nn.Sequential(convolution(channels, channels), nn.Conv2d(channels, 4 * _NEIGHBOURS, 1))


def doubled(flow: Flow, mask: Tensor) -> Tensor:
    """Flow at twice the resolution: each vector is a weighted mean of the 3x3 coarse ones around it.

    Source: RAFT, "Upsampling".
    """
    return weighted_neighbours(functional.pad(flow, (1, 1, 1, 1), mode="replicate"), mask, 2)


def weighted_neighbours(padded: Flow, mask: Tensor, factor: int) -> Tensor:
    """Flow at `factor` times the resolution, each vector the mean of the 3x3 coarse ones around it, with the
    softmax of the mask as weights. The flow has a margin of one vector."""
    batch, _, height, width = mask.shape
    weights = mask.reshape(batch, 1, _NEIGHBOURS, factor, factor, height, width).softmax(dim=2)
    around = functional.unfold(padded, 3).reshape(batch, 2, _NEIGHBOURS, 1, 1, height, width)
    fine = (weights * around).sum(dim=2)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, factor * height, factor * width)
