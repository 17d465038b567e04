"""A frame pair: two frames with what is known of the flow between them, as arrays or as tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from flowcore.shapes import Flow, FlowArray, Frame, Image, Mask, to_device, to_images

Weights = Float[Tensor, "batch 1 height width"]

AnyImage = TypeVar("AnyImage")
AnyFlow = TypeVar("AnyFlow")
AnyWeights = TypeVar("AnyWeights")
AnyMask = TypeVar("AnyMask")
AnyPair = TypeVar("AnyPair", bound="Pair[Any, Any, Any, Any]")
AnyReversible = TypeVar("AnyReversible", bound="Reversible")


@runtime_checkable
class Reversible(Protocol):
    """What has a forward and a backward direction."""

    def reversed(self: AnyReversible) -> AnyReversible: ...


def directions(forward: AnyReversible) -> tuple[tuple[str, AnyReversible], tuple[str, AnyReversible]]:
    """Both ways to look at a pair, each with its name: as it is ("fw"), and reversed ("bw")."""
    return ("fw", forward), ("bw", forward.reversed())


@dataclass(frozen=True, kw_only=True)
class Pair(Generic[AnyImage, AnyFlow, AnyWeights, AnyMask]):
    """The fields of a pair. Those that nothing is known of are None."""

    image1: AnyImage
    image2: AnyImage
    flow_fw: AnyFlow | None = None
    """The teacher's pseudo-label, or the truth; pixels. It is transformed as the frames are."""
    flow_bw: AnyFlow | None = None
    confidence_fw: AnyWeights | None = None
    """How far to trust `flow_fw`, in [0, 1]: 0 where the teacher found the pixel occluded, where no truth is
    known, and where a transformation brought the pixel in from outside the frame."""
    confidence_bw: AnyWeights | None = None
    scene1: AnyImage | None = None
    """What the loss looks at in place of image1: without the noise and the colours that the network has to
    bear, and with as many pixels of the frame around it on every side. None where image1 is that too."""
    scene2: AnyImage | None = None
    inside1: AnyMask | None = None
    """True on the pixels of scene1 that come from inside the frame, or of image1 where there is no scene1;
    None where all do."""
    inside2: AnyMask | None = None

    def known(self) -> dict[str, Any]:
        """The fields that aren't None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def reversed(self: AnyPair) -> AnyPair:
        """The pair with its frames exchanged, so that its forward flow is this one's backward flow."""
        return type(self)(
            image1=self.image2,
            image2=self.image1,
            flow_fw=self.flow_bw,
            flow_bw=self.flow_fw,
            confidence_fw=self.confidence_bw,
            confidence_bw=self.confidence_fw,
            scene1=self.scene2,
            scene2=self.scene1,
            inside1=self.inside2,
            inside2=self.inside1,
        )

    def map(
        self: AnyPair,
        image: Callable[[Any], Any],
        flow: Callable[[Any], Any],
        mask: Callable[[Any], Any],
    ) -> AnyPair:
        """Each known field through the function of its kind; confidence counts as a mask."""
        kinds: dict[str, Callable[[Any], Any]] = {
            "image1": image,
            "image2": image,
            "scene1": image,
            "scene2": image,
            "flow_fw": flow,
            "flow_bw": flow,
        }
        return type(self)(**{name: kinds.get(name, mask)(value) for name, value in self.known().items()})


@dataclass(frozen=True, kw_only=True)
class FramePair(Pair[Frame, FlowArray, Float[ndarray, "height width"], Bool[ndarray, "height width"]]):
    """A pair as arrays: what files hold, and what transformations change."""


@dataclass(frozen=True, kw_only=True)
class Batch(Pair[Image, Flow, Weights, Mask]):
    """Several pairs as tensors, with images in [0, 1]: what a network trains on."""

    @classmethod
    def stack(cls, pairs: Sequence[FramePair], device: torch.device | None = None) -> "Batch":
        """The batch of these pairs, of which the same fields are known."""
        return cls.of_arrays(stacked_arrays(pairs), device)

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, ndarray], device: torch.device | None = None) -> "Batch":
        """The batch of `stacked_arrays`, on the device."""

        def tensor(name: str) -> Tensor:
            if name.startswith(("image", "scene")):
                return to_images(arrays[name], device)
            values = to_device(arrays[name], device)
            return values if name.startswith("flow") else values.unsqueeze(1)

        return cls(**{name: tensor(name) for name in arrays})

    def split(self, parts: int) -> list["Batch"]:
        """The pairs in order, in parts whose sizes differ by at most one."""
        values = {name: value.tensor_split(parts) for name, value in self.known().items()}
        return [Batch(**{name: each[part] for name, each in values.items()}) for part in range(parts)]


def stacked_arrays(pairs: Sequence[FramePair]) -> dict[str, ndarray]:
    """The known fields of the pairs, stacked along a new first axis: a batch that can travel."""
    known = [pair.known() for pair in pairs]
    return {name: np.stack([np.ascontiguousarray(each[name]) for each in known]) for name in known[0]}
