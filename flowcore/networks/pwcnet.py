"""PWC-Net: pyramid, warping, cost volume (Sun et al., CVPR 2018), in the light version that DDFlow trains.

Each level adds to the upsampled flow of the level before; the context network refines the finest one. Flow is
in pixels of the full-resolution frame at every level, and is divided by the level's stride only to warp
features.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowcore.geometry import backward_warp
from flowcore.networks.correlation import cost_volume, normalize_features
from flowcore.networks.interface import FlowLevel, FlowNetwork, LogScale, NetworkConfig
from flowcore.networks.layers import (
    FLOW_SCALE,
    ScaleHead,
    convolution,
    doubled,
    flow_head,
    resampled,
    upsampling_weights,
)
from flowcore.shapes import Image


@dataclass(frozen=True, kw_only=True)
class PWCNetConfig(NetworkConfig):
    """Widths and depth of PWC-Net; the defaults are the light network of DDFlow and SelFlow, but for
    `refines`: their levels predict the flow afresh.

    Encoder level l has stride 2^l. The convolutions of the context network have dilations 1, 2, 4, 8, 16, 1,
    and 1 for the flow.
    """

    encoder_widths: tuple[int, ...] = (16, 32, 64, 96, 128, 192)
    """Channels of each encoder level, one level a width; each halves the resolution. Lower them for speed, at
    the cost of accuracy; add a level for faster motion."""
    decoder_widths: tuple[int, ...] = (128, 128, 96, 64, 32)
    """Channels of the decoder's convolutions, the same at every level. Lower them for speed, at the cost of
    accuracy."""
    context_widths: tuple[int, ...] = (128, 128, 128, 96, 64, 32)
    """Channels of the context network, which refines the final flow: a convolution a width, at most 6. Lower
    them for speed."""
    finest_level: int = 2
    """Level of the final flow: 2 gives a vector every 4 px. Take 1 for finer detail, a vector every 2 px, for
    about three times as long a step."""
    radius: int = 4
    """Reach of the cost volume at each level, in that level's pixels. Raise it for faster motion; memory
    grows with its square."""
    refines: bool = True
    """Each level adds to the flow of the level before. Off, it predicts the flow afresh and learns more
    slowly: turn it off only to compare."""
    learned_upsampling: bool = False
    """Doubles the finest flow's resolution with learned weights, in place of a level that is twice as fine.
    Labels then have four times the bytes. Turn it on for sharper edges of the flow."""

    uncertainty: bool = False
    """Also predicts how far its flow is off, in pixels. Each step of a teacher then looks at the scene around
    the crop too, which takes more time. Turn it on to weigh labels by it."""

    def __post_init__(self) -> None:
        if not 1 <= self.finest_level < len(self.encoder_widths):
            raise ValueError(
                f"finest_level {self.finest_level} must lie in 1..{len(self.encoder_widths) - 1}, below the "
                f"number of levels of encoder_widths {self.encoder_widths}"
            )
        if len(self.context_widths) > 6:
            raise ValueError(f"context_widths {self.context_widths} must have at most 6 entries")

    def build(self) -> "PWCNet":
        return PWCNet(self)

    @property
    def predicts_scale(self) -> bool:
        return self.uncertainty


def tiny() -> dict[str, PWCNetConfig]:
    """For tests: builds at once, learns little."""
    return {"pwcnet": PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,))}


def small() -> dict[str, PWCNetConfig]:
    """For frames of about 96x128 px on a CPU."""
    return {
        "pwcnet": PWCNetConfig(
            encoder_widths=(16, 32, 48, 64),
            decoder_widths=(48, 32, 24),
            context_widths=(32, 32),
            radius=3,
            learned_upsampling=True,
        )
    }


def light() -> dict[str, PWCNetConfig]:
    """For frames of about 320x448 px on a CPU."""
    return {
        "pwcnet": PWCNetConfig(
            encoder_widths=(16, 32, 48, 64, 80),
            decoder_widths=(48, 32, 24),
            context_widths=(32, 32),
            radius=3,
        )
    }


def full() -> dict[str, PWCNetConfig]:
    """The light network of DDFlow and SelFlow."""
    return {"pwcnet": PWCNetConfig()}


class PWCNet(FlowNetwork):
    """See PWCNetConfig. A fresh network estimates small random flow."""

    def __init__(self, config: PWCNetConfig) -> None:
        super().__init__()
        self.config: PWCNetConfig = config
        levels = len(config.encoder_widths)
        self.multiple = 2**levels
        self.strides = tuple(2**level for level in range(config.finest_level, levels + 1))
        self._level_strides = self.strides
        if config.learned_upsampling:
            self.strides = (self.strides[0] // 2, *self.strides)
        self.encoder = nn.ModuleList(
            nn.Sequential(convolution(before, after, stride=2), convolution(after, after))
            for before, after in pairwise((3, *config.encoder_widths))
        )
        self.decoders = nn.ModuleList()
        self.heads = nn.ModuleList()
        volume = (2 * config.radius + 1) ** 2
        for level in range(config.finest_level, levels + 1):
            features = config.encoder_widths[level - 1]
            channels = volume + features + (0 if level == levels else 2 + config.decoder_widths[-1])
            widths = (channels, *config.decoder_widths)
            self.decoders.append(nn.Sequential(*(convolution(a, b) for a, b in pairwise(widths))))
            self.heads.append(flow_head(config.decoder_widths[-1]))
        context_widths = (config.decoder_widths[-1] + 2, *config.context_widths)
        self.context = nn.Sequential(
            *(
                convolution(a, b, dilation=d)
                for (a, b), d in zip(pairwise(context_widths), (1, 2, 4, 8, 16, 1), strict=False)
            ),
            flow_head(context_widths[-1]),
        )
        self.mask = upsampling_weights(config.decoder_widths[-1]) if config.learned_upsampling else None
        self.predicts_scale = config.uncertainty
        # Last, so that the other fresh weights are those of the same network without it.
        self.scale = ScaleHead(config.decoder_widths[-1] + volume) if config.uncertainty else None

    def encode(self, images: Image) -> list[Tensor]:
        self._require_fitting(images)
        features = []
        x = images - 0.5
        for block in self.encoder:
            x = self._block(block, x)
            features.append(x)
        return features[self.config.finest_level - 1 :]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[FlowLevel]:
        return self._decoded(features1, features2)[0]

    def decode_with_scale(
        self, features1: list[Tensor], features2: list[Tensor]
    ) -> tuple[list[FlowLevel], LogScale]:
        if self.scale is None:
            return super().decode_with_scale(features1, features2)
        levels, flow, seen = self._decoded(features1, features2)
        log_scale = self.scale(flow, *seen)
        if self.mask is not None:
            log_scale = resampled(log_scale, 2)
        return levels, log_scale

    def _decoded(
        self, features1: list[Tensor], features2: list[Tensor]
    ) -> tuple[list[FlowLevel], FlowLevel, tuple[Tensor, Tensor]]:
        """The levels, finest first; the last decoder's flow, and its features and costs."""
        levels: list[Tensor] = []
        flow = hidden = None
        for index in reversed(range(len(features1))):
            first, second = features1[index], features2[index]
            stride = self._level_strides[index]
            if flow is None or hidden is None:
                known = [first]
            else:
                flow, hidden = resampled(flow, 2), resampled(hidden, 2)
                second = backward_warp(second, flow / stride)
                known = [first, flow / FLOW_SCALE, hidden]
            volume = cost_volume(normalize_features(first), normalize_features(second), self.config.radius)
            volume = functional.leaky_relu(volume, 0.1, inplace=True)
            hidden = self._block(self.decoders[index], torch.cat([volume, *known], dim=1))
            scaled = self.heads[index](hidden)
            if self.config.refines and flow is not None:
                scaled = scaled + flow / FLOW_SCALE
            if index == 0:
                scaled = scaled + self._block(self.context, torch.cat([hidden, scaled], dim=1))
            flow = scaled * FLOW_SCALE
            levels.append(flow)
        assert flow is not None
        assert hidden is not None
        if self.mask is not None:
            levels.append(doubled(flow, self.mask(hidden)))
        return levels[::-1], flow, (hidden, volume)
