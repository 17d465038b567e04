"""What does every flow network offer?"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowcore.geometry import pad_to_multiple, upsample_flow
from flowcore.shapes import Flow, Image

# Every level has its own size; with Flow, one height and width would have to fit all levels of a call.
FlowLevel = Float[Tensor, "batch 2 _ _"]
LogScale = Float[Tensor, "batch 1 _ _"]
"""The natural logarithm of the scale of a flow's error in pixels: how far the flow is expected to be off."""

_BRIGHTEST = 2.0
"""What no frame in [0, 1] reaches, though resampling may take it somewhat above 1."""


@dataclass(frozen=True, kw_only=True)
class BidirectionalFlow:
    """Flow in both directions between two frames, each as a list of levels, finest first.

    A level of stride s is a grid of [height / s, width / s] vectors in pixels of the full-resolution frame.
    Levels may share a stride: a recurrent network's are its iterations, the last one first.
    """

    forward: list[FlowLevel]
    backward: list[FlowLevel]
    strides: tuple[int, ...]
    """The stride of each level."""
    log_scale_fw: LogScale | None = None
    """Of the finest forward flow, on its grid; None of a network that doesn't predict it."""
    log_scale_bw: LogScale | None = None

    @property
    def is_sequence(self) -> bool:
        """Whether the levels are a recurrent network's iterations: several, all of one stride."""
        return len(self.strides) > 1 and len(set(self.strides)) == 1

    def reversed(self) -> "BidirectionalFlow":
        """The same estimate with the roles of the frames swapped."""
        return BidirectionalFlow(
            forward=self.backward,
            backward=self.forward,
            strides=self.strides,
            log_scale_fw=self.log_scale_bw,
            log_scale_bw=self.log_scale_fw,
        )

    @classmethod
    def of_both(
        cls, pairs: int, levels: list[FlowLevel], strides: tuple[int, ...], log_scale: LogScale | None
    ) -> "BidirectionalFlow":
        """The estimate of so many pairs whose levels have the forward flows first, then the backward ones."""
        return cls(
            forward=[level[:pairs] for level in levels],
            backward=[level[pairs:] for level in levels],
            strides=strides,
            log_scale_fw=None if log_scale is None else log_scale[:pairs],
            log_scale_bw=None if log_scale is None else log_scale[pairs:],
        )

    @classmethod
    def joined(cls, parts: "Sequence[BidirectionalFlow]") -> "BidirectionalFlow":
        """The finest level of the pairs of all the parts, in their order."""

        def cat(values: "Iterable[Tensor | None]") -> Tensor | None:
            known = [value for value in values if value is not None]
            return torch.cat(known) if known else None

        return cls(
            forward=[torch.cat([part.forward[0] for part in parts])],
            backward=[torch.cat([part.backward[0] for part in parts])],
            strides=parts[0].strides[:1],
            log_scale_fw=cat(part.log_scale_fw for part in parts),
            log_scale_bw=cat(part.log_scale_bw for part in parts),
        )


def no_scale(network: str) -> str:
    """What is wrong where a network doesn't predict the scale of its error, and which one fits."""
    return (
        f"{network} doesn't predict how far its flow is off; PWC-Net and RAFT do where they were trained "
        "with --network.uncertainty"
    )


Estimator = Callable[[Image, Image], BidirectionalFlow]
"""A flow network, or what wraps one for training on several workers."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A network's configuration, which builds it."""

    def build(self) -> "FlowNetwork":
        """A network with fresh weights, drawn from torch's global random generator."""
        raise NotImplementedError

    @property
    def predicts_scale(self) -> bool:
        """Whether the network predicts the scale of its flow's error."""
        return False


class FlowNetwork(nn.Module):
    """A network that estimates flow in both directions between two frames."""

    config: NetworkConfig
    multiple: int
    """Both sides of a frame must be multiples of this, in pixels."""
    strides: tuple[int, ...]
    """The stride of each level, finest first."""
    predicts_scale: bool = False
    """Whether `decode_with_scale` works."""
    checkpoints_activations: bool = False
    """Recomputes each block's activations in the backward pass instead of storing them: less memory, the time
    of a second forward pass, the same gradients."""

    @abstractmethod
    def encode(self, images: Image) -> list[Tensor]:
        """Whatever `decode` needs of each frame; frames are the first axis of each tensor."""

    @abstractmethod
    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[FlowLevel]:
        """The flow from frames 1 to frames 2, finest level first, in the unit of BidirectionalFlow."""

    def decode_finest(self, features1: list[Tensor], features2: list[Tensor]) -> FlowLevel:
        """The finest level that `decode` gives, alone: the estimate."""
        return self.decode(features1, features2)[0]

    def decode_with_scale(
        self, features1: list[Tensor], features2: list[Tensor]
    ) -> tuple[list[FlowLevel], LogScale]:
        """What `decode` gives, and the logarithm of the scale of the finest level's error; ValueError of a
        network that doesn't predict it."""
        raise ValueError(no_scale(type(self).__name__))

    def weights_by_task(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The weights that find the flow, and those that find the scale of its error alone."""
        flow: list[nn.Parameter] = []
        scale: list[nn.Parameter] = []
        for name, weight in self.named_parameters():
            (scale if self.predicts_scale and name.startswith("scale.") else flow).append(weight)
        return flow, scale

    def set_iterations(self, iterations: int) -> None:
        """How often a recurrent network refines its flow from now on; its weights stay as they are.

        ValueError for fewer than one, and for a network that isn't recurrent.
        """
        raise ValueError(
            f"{type(self).__name__} has no iterations to set to {iterations}; of our networks RAFT has them"
        )

    def _block(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """`function` of the inputs, recomputed in the backward pass if `checkpoints_activations`."""
        if not (self.checkpoints_activations and torch.is_grad_enabled()):
            return function(*inputs)
        # No block draws random numbers, and asking a GPU for its generator's state would wait for it.
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)

    def _require_fitting(self, images: Image) -> None:
        """ValueError for frames whose sides aren't multiples of `multiple`."""
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"frames of ({height}, {width}) px must be multiples of {self.multiple} px on each side for "
                "this network; pad them, or choose another crop size"
            )

    def forward(self, image1: Image, image2: Image) -> BidirectionalFlow:
        """Flow in both directions; each frame is encoded once."""
        features = self.encode(torch.cat([image1, image2]))
        first = [level[: image1.shape[0]] for level in features]
        second = [level[image1.shape[0] :] for level in features]
        return self._both_directions(first, second)

    def _both_directions(self, first: list[Tensor], second: list[Tensor]) -> BidirectionalFlow:
        there = [torch.cat(both) for both in zip(first, second, strict=True)]
        back = [torch.cat(both) for both in zip(second, first, strict=True)]
        log_scale: LogScale | None = None
        if self.predicts_scale:
            levels, log_scale = self.decode_with_scale(there, back)
        else:
            levels = self.decode(there, back)
        return BidirectionalFlow.of_both(first[0].shape[0], levels, self.strides, log_scale)

    def _finest_of_both(self, first: list[Tensor], second: list[Tensor]) -> BidirectionalFlow:
        """The finest level of both directions, alone or with others."""
        return self._both_directions(first, second)

    def ready(self, device: torch.device) -> "FlowNetwork":
        """This network, set up on the device for inference."""
        if device.type == "cpu":
            # Saves light PWC-Net a sixth of its time.
            cast(Any, self).to(memory_format=torch.channels_last)
        return self.to(device).eval()

    @torch.no_grad()
    def estimate_chunk(
        self, frames: Float[Tensor, "frames 3 height width"], at_once: int | None = None
    ) -> tuple[Float[Tensor, "pairs 2 _ _"], Float[Tensor, "pairs 2 _ _"]]:
        """Forward and backward flow of the K pairs in K + 1 consecutive frames of any size, at the network's
        finest stride.

        Each frame is encoded once. The flow's grid covers the frame padded to `multiple`;
        `upsample_flow(flow, strides[0], height, width)` gives the full-resolution flow.

        at_once: number of pairs that go through the network together; None takes all.
        """
        both = self.estimate_both(frames, at_once)
        return both.forward[0], both.backward[0]

    @torch.no_grad()
    def estimate_both(
        self, frames: Float[Tensor, "frames 3 height width"], at_once: int | None = None
    ) -> BidirectionalFlow:
        """What `estimate_chunk` gives as the only level, with its scale where the network predicts it."""
        parts = [self._finest_of_both(*both) for both in self._encoded_pairs(frames, at_once)]
        return BidirectionalFlow.joined(parts)

    @torch.no_grad()
    def estimate_forward(
        self, frames: Float[Tensor, "frames 3 height width"], at_once: int | None = None
    ) -> Float[Tensor, "pairs 2 _ _"]:
        """The forward flow alone, in about half the time; see `estimate_chunk`."""
        return torch.cat([self.decode_finest(*both) for both in self._encoded_pairs(frames, at_once)])

    def _encoded_pairs(
        self, frames: Float[Tensor, "frames 3 height width"], at_once: int | None
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """The features of the first frames and of the second frames of so many pairs after the other."""
        pairs = len(frames) - 1
        at_once = at_once or pairs
        last: list[Tensor] | None = None
        for first in range(0, pairs, at_once):
            new = frames[first if last is None else first + 1 : first + at_once + 1]
            features = self.encode(pad_to_multiple(new, self.multiple))
            if last is not None:
                features = [torch.cat(level) for level in zip(last, features, strict=True)]
            last = [level[-1:] for level in features]
            yield [level[:-1] for level in features], [level[1:] for level in features]

    @torch.no_grad()
    def estimate(self, image1: Image, image2: Image) -> tuple[Flow, Flow]:
        """Forward and backward flow at full resolution, for frames of any size: they are padded and the flow
        is cropped. ValueError for what aren't two batches of frames of one size, RGB in [0, 1]."""
        _require_frames(image1, image2)
        height, width = image1.shape[-2:]
        frames = torch.cat([image1, image2])
        features = self.encode(pad_to_multiple(frames, self.multiple))
        first = [level[: len(image1)] for level in features]
        second = [level[len(image1) :] for level in features]
        both, stride = self._finest_of_both(first, second), self.strides[0]
        return (
            upsample_flow(both.forward[0], stride, height, width),
            upsample_flow(both.backward[0], stride, height, width),
        )


def _require_frames(image1: Tensor, image2: Tensor) -> None:
    """ValueError, with the remedy, for what aren't two batches of frames of one size, RGB in [0, 1]."""
    for name, image in (("image1", image1), ("image2", image2)):
        shape = list(image.shape)
        if image.ndim == 3:
            raise ValueError(f"{name} {shape} must be (batch, 3, height, width); one frame is image[None]")
        if image.ndim != 4 or shape[1] != 3:
            hint = "; move the channels: image.movedim(-1, 1)" if shape[3:] == [3] else ""
            raise ValueError(f"{name} {shape} must be (batch, 3, height, width){hint}")
        if not image.is_floating_point():
            raise ValueError(f"{name} is {image.dtype} and must be RGB in [0, 1]; take image.float() / 255")
        if image.numel() and float(image.max()) > _BRIGHTEST:
            raise ValueError(f"{name} reaches {float(image.max()):g} and must be in [0, 1]; divide it by 255")
    if image1.shape != image2.shape:
        raise ValueError(
            f"image1 {list(image1.shape)} and image2 {list(image2.shape)} must have the same shape; resize "
            "one or crop both"
        )
