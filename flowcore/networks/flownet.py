"""FlowNetS and FlowNetC: an encoder and a decoder without warping (Dosovitskiy et al., ICCV 2015).

FlowNetS sees both frames as one image of six channels, so that no frame is encoded by itself. FlowNetC
encodes each frame and correlates the features at an eighth of the resolution.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowcore.networks.correlation import cost_volume, normalize_features
from flowcore.networks.interface import FlowLevel, FlowNetwork, NetworkConfig
from flowcore.networks.layers import FLOW_SCALE, convolution, flow_head
from flowcore.shapes import Image

_KERNELS = (7, 5, 5)
_FINEST_LEVEL = 2
_CORRELATED_LEVEL = 3


@dataclass(frozen=True, kw_only=True)
class FlowNetConfig(NetworkConfig):
    """Variant and widths of FlowNet; the defaults are the paper's FlowNetS, but for `refines`. Encoder level
    l has stride 2^l.

    Deviations from the paper's FlowNetC: features are normalised with `normalize_features`, and the
    correlation visits every displacement up to `radius`. The paper visits every second one up to 20; both
    make 441.
    """

    variant: Literal["simple", "correlated"] = "simple"
    """FlowNetS or FlowNetC. Take FlowNetC for matching by correlation, FlowNetS for speed."""
    encoder_widths: tuple[int, ...] = (64, 128, 256, 512, 512, 1024)
    """Channels of each encoder level, one level a width; each halves the resolution. Lower them for speed, at
    the cost of accuracy."""
    decoder_widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each decoder level, from level 2 on; two fewer than encoder levels. Lower them for
    speed."""
    redirected_width: int = 32
    """FlowNetC: channels of the first frame's features that bypass the correlation. Lower it for speed."""
    radius: int = 10
    """FlowNetC: reach of the correlation, in pixels at an eighth of the resolution. Raise it for faster
    motion."""
    refines: bool = True
    """Each level adds to the flow of the level before. Off, it predicts the flow afresh and learns more
    slowly: turn it off only to compare."""

    def __post_init__(self) -> None:
        if len(self.encoder_widths) < 4 or len(self.decoder_widths) != len(self.encoder_widths) - 2:
            raise ValueError(
                f"decoder_widths {self.decoder_widths} must be two fewer than encoder_widths "
                f"{self.encoder_widths}, of which there must be at least 4"
            )

    def build(self) -> "FlowNet":
        return FlowNet(self)


def tiny() -> dict[str, FlowNetConfig]:
    """For tests: builds at once, learns little."""
    simple = FlowNetConfig(encoder_widths=(8, 8, 12, 16), decoder_widths=(8, 12))
    correlated = replace(simple, variant="correlated", redirected_width=8, radius=3)
    return {"flownets": simple, "flownetc": correlated}


def small() -> dict[str, FlowNetConfig]:
    """For frames of about 96x128 px on a CPU."""
    simple = FlowNetConfig(encoder_widths=(24, 32, 64, 96), decoder_widths=(48, 64))
    return {"flownets": simple, "flownetc": replace(simple, variant="correlated", radius=4)}


def full() -> dict[str, FlowNetConfig]:
    """The paper's FlowNetS and FlowNetC."""
    return {"flownets": FlowNetConfig(), "flownetc": FlowNetConfig(variant="correlated")}


class FlowNet(FlowNetwork):
    """See FlowNetConfig. Its levels go from stride 4 to the coarsest."""

    def __init__(self, config: FlowNetConfig) -> None:
        super().__init__()
        self.config: FlowNetConfig = config
        widths = config.encoder_widths
        self.multiple = 2 ** len(widths)
        self.strides = tuple(2**level for level in range(_FINEST_LEVEL, len(widths) + 1))
        is_correlated = config.variant == "correlated"
        self.encoder = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((3 if is_correlated else 6, *widths)), start=1):
            kernel = _KERNELS[level - 1] if level <= len(_KERNELS) else 3
            self.encoder.append(convolution(before, after, kernel, stride=2))
        self.refiners = nn.ModuleList()
        for level, width in enumerate(widths[_CORRELATED_LEVEL - 1 :], start=_CORRELATED_LEVEL):
            channels = width
            if is_correlated and level == _CORRELATED_LEVEL:
                channels = (2 * config.radius + 1) ** 2 + config.redirected_width
            self.refiners.append(convolution(channels, width))
        self.redirection = (
            convolution(widths[_CORRELATED_LEVEL - 1], config.redirected_width, 1) if is_correlated else None
        )
        self.upsamplers, self.heads = nn.ModuleList(), nn.ModuleList()
        channels = widths[-1]
        self.heads.append(flow_head(channels))
        for skip, width in zip(
            reversed(widths[_FINEST_LEVEL - 1 : -1]), reversed(config.decoder_widths), strict=True
        ):
            self.upsamplers.append(convolution(channels, width))
            channels = width + skip + 2
            self.heads.append(flow_head(channels))

    def encode(self, images: Image) -> list[Tensor]:
        self._require_fitting(images)
        centred = images - 0.5
        if self.redirection is None:
            return [centred]
        features = [centred]
        for block in self.encoder[:_CORRELATED_LEVEL]:
            features.append(block(features[-1]))
        return features[_FINEST_LEVEL:]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[FlowLevel]:
        if self.redirection is None:
            x = torch.cat([features1[0], features2[0]], dim=1)
            skips = []
            for block in self.encoder[:_CORRELATED_LEVEL]:
                x = block(x)
                skips.append(x)
            skips = skips[_FINEST_LEVEL - 1 : _CORRELATED_LEVEL - 1]
        else:
            first, second = normalize_features(features1[-1]), normalize_features(features2[-1])
            volume = functional.leaky_relu(cost_volume(first, second, self.config.radius), 0.1)
            x = torch.cat([volume, self.redirection(features1[-1])], dim=1)
            skips = features1[:-1]
        x = self.refiners[0](x)
        for block, refiner in zip(self.encoder[_CORRELATED_LEVEL:], self.refiners[1:], strict=True):
            skips.append(x)
            x = self._block(nn.Sequential(block, refiner), x)
        flow = self.heads[0](x)
        levels = [flow * FLOW_SCALE]
        for skip, upsampler, head in zip(reversed(skips), self.upsamplers, self.heads[1:], strict=True):
            upsampled, flow = (
                functional.interpolate(each, scale_factor=2, mode="bilinear", align_corners=False)
                for each in (x, flow)
            )
            x = torch.cat([upsampler(upsampled), skip, flow], dim=1)
            flow = flow + head(x) if self.config.refines else head(x)
            levels.append(flow * FLOW_SCALE)
        return levels[::-1]
