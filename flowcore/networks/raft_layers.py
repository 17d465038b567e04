"""What is RAFT made of? Encoders, the motion encoder and the recurrent unit (Teed and Deng, ECCV 2020,
"Network Architecture" of the supplement)."""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowcore.networks.layers import draw_weights, flow_head, weighted_neighbours
from flowcore.shapes import Flow

Norm = Literal["instance", "batch", "none"]

_MASK_SCALE = 0.25
"""Of the upsampling weights' logits, which balances their gradient, as the authors say."""


class InstanceNorm(nn.Module):
    """Zero mean and unit variance per frame and channel; 0 where a frame has one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        # functional's forms refuse a single pixel.
        if x.device.type == "cpu":
            # A group a channel is the same, keeps the layout, and takes a fifth of the time there.
            return torch.group_norm(x, x.shape[1], None, None, 1e-5)
        return torch.instance_norm(x, None, None, None, None, True, 0.0, 1e-5, torch.backends.cudnn.enabled)


class FrozenBatchNorm(nn.Module):
    """Batch norm with stored statistics, in training too: fresh ones are mean 0 and variance 1, so that what
    is learnt is a scale and an offset per channel.

    The authors train the statistics on Flying Chairs and freeze them from then on. Here they are frozen from
    the start, as a batch of a few pairs has poor statistics. Nor may a pair's flow and gradient depend on
    which pairs share its batch or its worker.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias)


def _norm(kind: Norm, channels: int) -> list[nn.Module]:
    if kind == "instance":
        return [InstanceNorm()]
    if kind == "batch":
        return [FrozenBatchNorm(channels)]
    return []


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Of an encoder, padded to keep the size but for its stride."""
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2)
    draw_weights(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _activated(channels_in: int, channels_out: int, kernel: int, stride: int, norm: Norm) -> list[nn.Module]:
    return [
        _convolution(channels_in, channels_out, kernel, stride),
        *_norm(norm, channels_out),
        nn.ReLU(inplace=True),
    ]


class Residual(nn.Module):
    """Two convolutions of 3x3, or of 1x1, 3x3 and 1x1 through a quarter of the channels, beside a shortcut.
    Every convolution of the body is followed by a ReLU, and so is the sum."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, norm: Norm, *, is_bottleneck: bool
    ) -> None:
        super().__init__()
        if is_bottleneck:
            inner = channels_out // 4
            self.body = nn.Sequential(
                *_activated(channels_in, inner, 1, 1, norm),
                *_activated(inner, inner, 3, stride, norm),
                *_activated(inner, channels_out, 1, 1, norm),
            )
        else:
            self.body = nn.Sequential(
                *_activated(channels_in, channels_out, 3, stride, norm),
                *_activated(channels_out, channels_out, 3, 1, norm),
            )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                _convolution(channels_in, channels_out, 1, stride), *_norm(norm, channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.shortcut(x) + self.body(x), inplace=True)


def encoder(
    widths: tuple[int, ...], channels: int, stride: int, norm: Norm, *, is_bottleneck: bool
) -> nn.Sequential:
    """From frames to `channels` features, one every `stride` pixels: a convolution of 7x7 with stride 2, two
    residual blocks for each of the widths, and a convolution of 1x1. The first width keeps the resolution."""
    blocks: list[nn.Module] = _activated(3, widths[0], 7, 2, norm)
    reached = 2
    for number, (before, after) in enumerate(pairwise((widths[0], *widths))):
        step = 1 if number == 0 or reached == stride else 2
        reached *= step
        blocks.append(Residual(before, after, step, norm, is_bottleneck=is_bottleneck))
        blocks.append(Residual(after, after, 1, norm, is_bottleneck=is_bottleneck))
    return nn.Sequential(*blocks, _convolution(widths[-1], channels, 1))


class MotionEncoder(nn.Module):
    """Encodes similarities and flow in a branch each, then both together; the flow itself comes last."""

    def __init__(
        self,
        similarities: int,
        similarity_widths: tuple[int, ...],
        flow_widths: tuple[int, int],
        channels: int,
    ) -> None:
        super().__init__()
        self.similarity = nn.Sequential()
        for number, (before, after) in enumerate(pairwise((similarities, *similarity_widths))):
            kernel = 3 if number else 1
            self.similarity += nn.Sequential(
                nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU(inplace=True)
            )
        first, second = flow_widths
        self.flow = nn.Sequential(
            nn.Conv2d(2, first, 7, padding=3),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.both = nn.Sequential(
            nn.Conv2d(similarity_widths[-1] + second, channels - 2, 3, padding=1), nn.ReLU(inplace=True)
        )

    def forward(self, similarities: Tensor, flow: Tensor) -> Tensor:
        both = self.both(torch.cat([self.similarity(similarities), self.flow(flow)], dim=1))
        return torch.cat([both, flow], dim=1)


class ConvGRU(nn.Module):
    """A gated recurrent unit whose gates are convolutions over state, context and motion.

    update, reset = sigmoid(W [h, c, m]), proposal = tanh(W' [reset h, c, m]), h' = h + update (proposal - h).
    Convolutions are linear, so that the context's share, the same in every iteration, is computed once.
    Source: RAFT, "Iterative Updates".
    """

    def __init__(self, hidden: int, context: int, motion: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.hidden = hidden
        self.gates = nn.Conv2d(hidden + motion, 2 * hidden, kernel, padding=padding, bias=False)
        self.proposal = nn.Conv2d(hidden + motion, hidden, kernel, padding=padding, bias=False)
        self.context = nn.Conv2d(context, 3 * hidden, kernel, padding=padding)
        # As PyTorch draws a convolution over all three.
        bound = ((hidden + context + motion) * kernel[0] * kernel[1]) ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, hidden: Tensor, shared: Tensor, motion: Tensor) -> Tensor:
        """The next state; `shared` is `context` of the context."""
        for_gates, for_proposal = shared.split([2 * self.hidden, self.hidden], dim=1)
        gates = self.gates(torch.cat([hidden, motion], dim=1)).add_(for_gates).sigmoid_()
        update, reset = gates.chunk(2, dim=1)
        proposal = self.proposal(torch.cat([reset * hidden, motion], dim=1)).add_(for_proposal).tanh_()
        return torch.lerp(hidden, proposal, update)


def flow_change(hidden: int, width: int) -> nn.Sequential:
    """From the state to how much the flow changes, in full precision."""
    return nn.Sequential(nn.Conv2d(hidden, width, 3, padding=1), nn.ReLU(inplace=True), flow_head(width))


def upsampling_logits(hidden: int, width: int, stride: int) -> nn.Sequential:
    """From the state to what `convexly_upsampled` takes."""
    return nn.Sequential(
        nn.Conv2d(hidden, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, 9 * stride**2, 1)
    )


def convexly_upsampled(
    flow: Flow, logits: Float[Tensor, "batch _ height width"], stride: int
) -> Float[Tensor, "batch 2 _ _"]:
    """Flow at `stride` times the resolution: each vector is a convex combination of the 3x3 coarse ones
    around it, zeros outside the frame. Flow in pixels of the coarse grid before, of the fine one after.

    Source: RAFT, "Upsampling".
    """
    padded = functional.pad(stride * flow, (1, 1, 1, 1))
    return weighted_neighbours(padded, _MASK_SCALE * logits.float(), stride)
