"""RAFT: recurrent refinement over all pairs of features (Teed and Deng, ECCV 2020), full and small.

One flow field on one grid is refined by a recurrent unit. At several scales it looks up how similar the
features around its current estimate are. One comparison of all pairs serves both directions.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from flowcore.networks.all_pairs import Correlation, both_ways, one_way
from flowcore.networks.interface import BidirectionalFlow, FlowLevel, FlowNetwork, LogScale, NetworkConfig
from flowcore.networks.layers import ScaleHead, resampled
from flowcore.networks.raft_layers import (
    ConvGRU,
    MotionEncoder,
    convexly_upsampled,
    encoder,
    flow_change,
    upsampling_logits,
)
from flowcore.shapes import Image


@dataclass(frozen=True, kw_only=True)
class RAFTConfig(NetworkConfig):
    """Variant and widths of RAFT; the defaults are the paper's full network.

    The full variant has plain residual blocks, batch norm in the context encoder, and a recurrent unit for
    rows and one for columns. Its upsampling is learned: its flow, and so a label of it, has a vector for
    every pixel.
    The small one has bottlenecks, no norm in the context encoder and one recurrent unit; its flow is on the
    coarse grid.

    Deviations from the paper's code: batch norm has frozen statistics (`FrozenBatchNorm`), and the small
    variant's flow is upsampled with half-pixel centres, as all flow here is, where the code aligns corners.
    """

    variant: Literal["full", "small"] = "full"
    """full is the larger network, with an upsampling that it learns; small has a fifth of its weights."""
    encoder_widths: tuple[int, ...] = (64, 96, 128)
    """Channels of the encoders, two residual blocks a width; multiples of 4 in the small variant."""
    stride: int = 8
    """Pixels from one vector of the refined flow to the next: 2, 4 or 8. Take 4 for frames of about 100 px;
    an iteration then takes four times as long."""
    feature_width: int = 256
    """Channels of the features that are compared."""
    hidden_width: int = 128
    """Channels of the recurrent unit's state."""
    context_width: int = 128
    """Channels of the first frame's features that every iteration sees."""
    similarity_widths: tuple[int, ...] = (256, 192)
    """Channels of the convolutions that encode similarities, the first of 1x1, the others of 3x3."""
    flow_widths: tuple[int, ...] = (128, 64)
    """Channels of the two convolutions that encode the flow."""
    motion_width: int = 128
    """Channels into which similarities and flow are encoded, with the flow itself."""
    head_width: int = 256
    """Channels between the state and the change of the flow, and between it and the upsampling."""
    iterations: int = 12
    """Refinements of the flow in training; more are slower and more accurate."""
    scales: int = 4
    """Resolutions at which similarities are looked up, each half the one before."""
    radius: int = 4
    """Radius of the neighbourhood that is looked up, in pixels of each scale."""

    uncertainty: bool = False
    """Also predicts how far its flow is off, in pixels. Each step of a teacher then looks at the scene around
    the crop too, which takes more time. Turn it on to weigh labels by it."""

    def __post_init__(self) -> None:
        for name in ("iterations", "scales", "radius", "feature_width", "hidden_width", "context_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.stride not in (2, 4, 8) or 2 ** len(self.encoder_widths) < self.stride:
            raise ValueError(
                f"stride {self.stride} must be 2, 4 or 8, and with encoder_widths {self.encoder_widths} at "
                f"most {2 ** len(self.encoder_widths)}"
            )
        if not self.encoder_widths or len(self.flow_widths) != 2 or not self.similarity_widths:
            raise ValueError(
                f"encoder_widths {self.encoder_widths} and similarity_widths {self.similarity_widths} must "
                f"have at least one entry, flow_widths {self.flow_widths} two"
            )
        if self.motion_width < 3:
            raise ValueError(
                f"motion_width {self.motion_width} must be at least 3, two of which are the flow"
            )
        if self.variant == "small" and any(width % 4 for width in self.encoder_widths):
            raise ValueError(
                f"encoder_widths {self.encoder_widths} of the small variant must be multiples of 4"
            )

    def build(self) -> "RAFT":
        return RAFT(self)

    @property
    def predicts_scale(self) -> bool:
        return self.uncertainty


def tiny() -> dict[str, RAFTConfig]:
    """For tests: builds at once, learns little."""
    raft = RAFTConfig(
        encoder_widths=(8, 12, 16),
        feature_width=16,
        hidden_width=12,
        context_width=12,
        similarity_widths=(16, 12),
        flow_widths=(8, 8),
        motion_width=16,
        head_width=16,
        iterations=3,
        scales=2,
        radius=2,
    )
    return {"raft_small": replace(raft, variant="small", stride=4, similarity_widths=(16,)), "raft": raft}


def small() -> dict[str, RAFTConfig]:
    """For frames of about 96x128 px on a CPU."""
    return {
        "raft_small": RAFTConfig(
            variant="small",
            encoder_widths=(24, 32, 48),
            stride=4,
            feature_width=64,
            hidden_width=48,
            context_width=32,
            similarity_widths=(64,),
            flow_widths=(32, 16),
            motion_width=48,
            head_width=64,
            iterations=6,
            scales=3,
            radius=3,
        ),
        "raft": RAFTConfig(
            encoder_widths=(24, 48, 64),
            feature_width=96,
            hidden_width=64,
            context_width=48,
            similarity_widths=(96, 64),
            flow_widths=(48, 32),
            motion_width=64,
            head_width=96,
            iterations=8,
            scales=3,
            radius=3,
        ),
    }


def full() -> dict[str, RAFTConfig]:
    """The paper's small and full networks."""
    return {
        "raft_small": RAFTConfig(
            variant="small",
            encoder_widths=(32, 64, 96),
            feature_width=128,
            hidden_width=96,
            context_width=64,
            similarity_widths=(96,),
            flow_widths=(64, 32),
            motion_width=82,
            head_width=128,
            radius=3,
        ),
        "raft": RAFTConfig(),
    }


class RAFT(FlowNetwork):
    """See RAFTConfig. Its levels are the iterations' flows, the last one first: upsampled to every pixel in
    the full variant, at the stride of the features in the small one."""

    def __init__(self, config: RAFTConfig) -> None:
        super().__init__()
        self.config: RAFTConfig = config
        self.multiple = config.stride
        is_small = config.variant == "small"
        hidden, context = config.hidden_width, config.context_width
        self.features = encoder(
            config.encoder_widths, config.feature_width, config.stride, "instance", is_bottleneck=is_small
        )
        self.context = encoder(
            config.encoder_widths,
            hidden + context,
            config.stride,
            "none" if is_small else "batch",
            is_bottleneck=is_small,
        )
        first, second = config.flow_widths
        self.motion = MotionEncoder(
            config.scales * (2 * config.radius + 1) ** 2,
            config.similarity_widths,
            (first, second),
            config.motion_width,
        )
        kernels = [(3, 3)] if is_small else [(1, 5), (5, 1)]
        self.update = nn.ModuleList(
            ConvGRU(hidden, context, config.motion_width, kernel) for kernel in kernels
        )
        self.head = flow_change(hidden, config.head_width)
        self.mask = None if is_small else upsampling_logits(hidden, config.head_width, config.stride)
        self.predicts_scale = config.uncertainty
        # Last, so that the other fresh weights are those of the same network without it.
        self.scale = ScaleHead(hidden) if config.uncertainty else None
        self.set_iterations(config.iterations)

    def set_iterations(self, iterations: int) -> None:
        if iterations < 1:
            raise ValueError(f"iterations {iterations} must be at least 1")
        self._iterations = iterations
        self.strides = (self.config.stride if self.mask is None else 1,) * iterations

    def encode(self, images: Image) -> list[Tensor]:
        self._require_fitting(images)
        centred = 2 * images - 1
        return [self._block(self.features, centred), self._block(self.context, centred)]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[FlowLevel]:
        return self._levels(self._one_way(features1, features2), features1[1])[0]

    def decode_with_scale(
        self, features1: list[Tensor], features2: list[Tensor]
    ) -> tuple[list[FlowLevel], LogScale]:
        levels, log_scale = self._levels(self._one_way(features1, features2), features1[1])
        return (
            (levels, log_scale) if log_scale is not None else super().decode_with_scale(features1, features2)
        )

    def decode_finest(self, features1: list[Tensor], features2: list[Tensor]) -> FlowLevel:
        return self._at_full_size(*self._last(self._one_way(features1, features2), features1[1]))

    def _both_directions(self, first: list[Tensor], second: list[Tensor]) -> BidirectionalFlow:
        levels, log_scale = self._levels(self._both_ways(first, second), torch.cat([first[1], second[1]]))
        return BidirectionalFlow.of_both(first[0].shape[0], levels, self.strides, log_scale)

    def _finest_of_both(self, first: list[Tensor], second: list[Tensor]) -> BidirectionalFlow:
        last = self._last(self._both_ways(first, second), torch.cat([first[1], second[1]]))
        return BidirectionalFlow.of_both(
            first[0].shape[0], [self._at_full_size(*last)], self.strides[:1], self._log_scale(*last)
        )

    def _one_way(self, features1: list[Tensor], features2: list[Tensor]) -> Correlation:
        return one_way(features1[0], features2[0], self.config.scales, self.config.radius)

    def _both_ways(self, features1: list[Tensor], features2: list[Tensor]) -> Correlation:
        return both_ways(features1[0], features2[0], self.config.scales, self.config.radius)

    def _levels(self, correlation: Correlation, encoded: Tensor) -> tuple[list[FlowLevel], LogScale | None]:
        """Every iteration's flow, the last one first, and the scale of the last one's error."""
        levels: list[FlowLevel] = []
        log_scale: LogScale | None = None
        for number, (flow, hidden) in enumerate(self._refined(correlation, encoded), start=1):
            levels.append(self._block(self._at_full_size, flow, hidden))
            if number == self._iterations:
                log_scale = self._log_scale(flow, hidden)
        return levels[::-1], log_scale

    def _last(self, correlation: Correlation, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Flow and state after the last iteration."""
        return deque(self._refined(correlation, encoded), maxlen=1).pop()

    def _log_scale(self, flow: Tensor, hidden: Tensor) -> LogScale | None:
        """On the grid of `_at_full_size`; None where the network has no head for it."""
        if self.scale is None:
            return None
        log_scale: Tensor = self.scale(flow * self.config.stride, hidden)
        return log_scale if self.mask is None else resampled(log_scale, self.config.stride)

    def _refined(self, correlation: Correlation, encoded: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Flow, in pixels of the features, and state after each iteration."""
        hidden, context = encoded.split([self.config.hidden_width, self.config.context_width], dim=1)
        hidden, context = hidden.tanh(), context.relu()
        shared = [cast(ConvGRU, unit).context(context) for unit in self.update]
        flow = encoded.new_zeros(encoded.shape[0], 2, *encoded.shape[-2:], dtype=torch.float32)
        for _ in range(self._iterations):
            # Each iteration is trained for its own step alone.
            flow, hidden = self._block(partial(self._step, correlation), flow.detach(), hidden, *shared)
            yield flow, hidden

    def _step(
        self, correlation: Correlation, flow: Tensor, hidden: Tensor, *shared: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Flow and state after another iteration."""
        motion = self.motion(correlation.around(flow), flow)
        for unit, of_context in zip(self.update, shared, strict=True):
            hidden = unit(hidden, of_context, motion)
        return flow + self.head(hidden), hidden

    def _at_full_size(self, flow: Tensor, hidden: Tensor) -> FlowLevel:
        """In the unit of BidirectionalFlow, and for every pixel if upsampling is learned."""
        if self.mask is None:
            return flow * self.config.stride
        return convexly_upsampled(flow, self.mask(hidden), self.config.stride)
