"""RAFT: recurrent refinement over all pairs of features (Teed and Deng, ECCV 2020).

One flow field at one resolution is refined by a recurrent unit. At several scales it looks up how similar the
features around its current estimate are. All pairs of features are compared once for each direction, before
the iterations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowcore.geometry import pixel_grid
from flowcore.networks.correlation import normalize_features
from flowcore.networks.interface import FlowLevel, FlowNetwork, NetworkConfig
from flowcore.networks.layers import (
    convolution,
    doubled,
    flow_head,
    in_full_precision,
    upsampling_weights,
)
from flowcore.shapes import Image


@dataclass(frozen=True, kw_only=True)
class RAFTConfig(NetworkConfig):
    """Size of RAFT; the defaults have the size of the paper's full network. With n encoder levels the flow
    has stride 2^n.

    Deviations from the paper: residual blocks have no normalisation layers, because batches of a few pairs
    give poor statistics. Features are normalised with `normalize_features`, because no truth teaches their
    scale. The learned upsampling only doubles the resolution, so that a loss at the flow's own resolution
    trains it; the rest is bilinear. The paper's small variant has none.
    """

    encoder_widths: tuple[int, ...] = (64, 96, 128)
    """Channels of each encoder level, one level a width; each halves the resolution of the flow."""
    feature_width: int = 256
    """Channels of the features that are compared."""
    hidden_width: int = 128
    """Channels of the recurrent unit's state."""
    context_width: int = 128
    """Channels of the first frame's features that every iteration sees."""
    motion_width: int = 128
    """Channels into which similarities and flow are encoded."""
    iterations: int = 12
    """Refinements of the flow; more are slower and more accurate."""
    scales: int = 4
    """Resolutions at which similarities are looked up, each half the one before."""
    radius: int = 4
    """Radius of the neighbourhood that is looked up, in pixels of each scale."""
    learned_upsampling: bool = True
    """Doubles the flow's resolution with learned weights. Labels then have four times the bytes."""

    def __post_init__(self) -> None:
        for name in ("iterations", "scales", "radius", "feature_width", "hidden_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if not self.encoder_widths:
            raise ValueError(f"encoder_widths {self.encoder_widths} must have at least one level")

    def build(self) -> "RAFT":
        return RAFT(self)


def tiny() -> dict[str, RAFTConfig]:
    """For tests: builds at once, learns little."""
    raft = RAFTConfig(
        encoder_widths=(8, 12, 16),
        feature_width=16,
        hidden_width=12,
        context_width=12,
        motion_width=16,
        iterations=3,
        scales=2,
        radius=2,
    )
    return {"raft_small": replace(raft, encoder_widths=(8, 12), learned_upsampling=False), "raft": raft}


def small() -> dict[str, RAFTConfig]:
    """For frames of about 96x128 px on a CPU."""
    return {
        "raft_small": RAFTConfig(
            encoder_widths=(24, 48),
            feature_width=64,
            hidden_width=48,
            context_width=32,
            motion_width=64,
            iterations=6,
            scales=3,
            radius=3,
            learned_upsampling=False,
        ),
        "raft": RAFTConfig(
            encoder_widths=(24, 48, 64),
            feature_width=96,
            hidden_width=64,
            context_width=48,
            motion_width=64,
            iterations=8,
            scales=3,
            radius=3,
        ),
    }


def full() -> dict[str, RAFTConfig]:
    """Networks of the size of the paper's small and full ones."""
    return {
        "raft_small": RAFTConfig(
            encoder_widths=(32, 64, 96),
            feature_width=128,
            hidden_width=96,
            context_width=64,
            motion_width=82,
            radius=3,
            learned_upsampling=False,
        ),
        "raft": RAFTConfig(),
    }


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels_in, channels_out, stride=2), convolution(channels_out, channels_out)
        )
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x) + self.shortcut(x)
        return result


def _encoder(widths: tuple[int, ...], channels: int) -> nn.Sequential:
    first, *others = widths
    blocks: list[nn.Module] = [convolution(3, first, 7, stride=2)]
    before = first
    for width in others:
        blocks.append(_Residual(before, width))
        before = width
    return nn.Sequential(*blocks, nn.Conv2d(before, channels, 1))


class _Recurrent(nn.Module):
    """A convolutional GRU. Source: RAFT, "Update"."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(hidden + channels, 2 * hidden, 3, padding=1)
        self.candidate = nn.Conv2d(hidden + channels, hidden, 3, padding=1)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        update, reset = self.gates(torch.cat([hidden, x], dim=1)).sigmoid().chunk(2, dim=1)
        proposed = self.candidate(torch.cat([reset * hidden, x], dim=1)).tanh()
        result: Tensor = (1 - update) * hidden + update * proposed
        return result


class RAFT(FlowNetwork):
    """See RAFTConfig. Its levels are the iterations' flows, the last one first. With learned upsampling, the
    last flow at half the stride comes before them."""

    def __init__(self, config: RAFTConfig) -> None:
        super().__init__()
        self.config: RAFTConfig = config
        stride = 2 ** len(config.encoder_widths)
        self.multiple = stride
        self._stride = stride
        self.strides = (stride,) * config.iterations
        hidden = config.hidden_width
        self.features = _encoder(config.encoder_widths, config.feature_width)
        self.context = _encoder(config.encoder_widths, hidden + config.context_width)
        looked_up = config.scales * (2 * config.radius + 1) ** 2
        self.motion = nn.Sequential(
            convolution(looked_up + 2, config.motion_width, 1),
            convolution(config.motion_width, config.motion_width),
        )
        self.update = _Recurrent(hidden, config.motion_width + config.context_width + 2)
        self.head = nn.Sequential(convolution(hidden, hidden), flow_head(hidden))
        self.mask: nn.Module | None = None
        if config.learned_upsampling:
            self.strides = (stride // 2, *self.strides)
            self.mask = upsampling_weights(hidden)

    def encode(self, images: Image) -> list[Tensor]:
        self._require_fitting(images)
        centred = 2 * images - 1
        return [normalize_features(self._block(self.features, centred)), self._block(self.context, centred)]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[FlowLevel]:
        pyramid = _all_pairs(features1[0], features2[0], self.config.scales)
        hidden, context = features1[1].split([self.config.hidden_width, self.config.context_width], dim=1)
        hidden, context = hidden.tanh(), context.relu()
        batch, _, height, width = features1[0].shape
        flow = features1[0].new_zeros(batch, 2, height, width)
        levels = []
        for _ in range(self.config.iterations):
            # Each iteration is trained for its own step alone.
            flow, hidden = self._block(self._refined, flow.detach(), hidden, context, *pyramid)
            levels.append(flow * self._stride)
        if self.mask is not None:
            levels.append(doubled(flow, self.mask(hidden)) * self._stride)
        return levels[::-1]

    def _refined(
        self, flow: Tensor, hidden: Tensor, context: Tensor, *pyramid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Flow and hidden state after another iteration."""
        likeness = _lookup(pyramid, flow, self.config.radius, self.config.scales)
        motion = self.motion(torch.cat([likeness, flow], dim=1))
        hidden = self.update(hidden, torch.cat([motion, flow, context], dim=1))
        return flow + self.head(hidden), hidden


def _all_pairs(
    features1: Float[Tensor, "batch channels height width"],
    features2: Float[Tensor, "batch channels height width"],
    scales: int,
) -> list[Float[Tensor, "pixels 1 _ _"]]:
    """Similarity of each pixel of the first frame with every pixel of the second, averaged down to scales."""
    batch, _, height, width = features1.shape
    products = in_full_precision(_products, features1, features2)
    pyramid = [products.reshape(batch * height * width, 1, height, width)]
    while len(pyramid) < scales and min(pyramid[-1].shape[-2:]) > 1:
        pyramid.append(functional.avg_pool2d(pyramid[-1], 2))
    return pyramid


def _products(features1: Tensor, features2: Tensor) -> Tensor:
    return torch.einsum("bcp,bcq->bpq", features1.flatten(2), features2.flatten(2))


def _lookup(
    pyramid: Sequence[Float[Tensor, "pixels 1 _ _"]],
    flow: Float[Tensor, "batch 2 height width"],
    radius: int,
    scales: int,
) -> Float[Tensor, "batch _ height width"]:
    """The similarities around where the flow points, bilinear, at every scale; 0 outside the frame."""
    batch, _, height, width = flow.shape
    target = (pixel_grid(height, width, flow.device) + flow).movedim(1, -1).reshape(-1, 1, 1, 2)
    offsets = torch.arange(-radius, radius + 1, dtype=flow.dtype, device=flow.device)
    window = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy"), dim=-1)[None]
    found = []
    for scale, likeness in enumerate(pyramid):
        # Half-pixel centres: a coarse pixel is the mean of the area under it.
        x, y = ((target + 0.5) / 2**scale - 0.5 + window).unbind(dim=-1)
        size_y, size_x = likeness.shape[-2:]
        grid = torch.stack([(2 * x + 1) / size_x - 1, (2 * y + 1) / size_y - 1], dim=-1)
        sampled = functional.grid_sample(likeness, grid, padding_mode="zeros", align_corners=False)
        found.append(sampled.reshape(batch, height, width, -1).movedim(-1, 1))
    # Frames too small for a scale have nothing to look up there.
    missing = (scales - len(pyramid)) * (2 * radius + 1) ** 2
    return functional.pad(torch.cat(found, dim=1), (0, 0, 0, 0, 0, missing))
