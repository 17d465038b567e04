"""Frame pairs: what is known of two frames and of the flow between them."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor

from flowcore.shapes import Flow, Image, Mask


@dataclass(frozen=True, kw_only=True)
class FramePair:
    """Two frames, and what is known of the flow between them, where something is."""

    image1: UInt8[ndarray, "height width 3"]
    image2: UInt8[ndarray, "height width 3"]
    flow_fw: Float[ndarray, "2 height width"] | None = None
    """The teacher's pseudo-label, or the truth; pixels."""
    flow_bw: Float[ndarray, "2 height width"] | None = None
    confidence_fw: Float[ndarray, "height width"] | None = None
    """How far `flow_fw` is to be trusted, in [0, 1]: 0 where the teacher found the pixel occluded, where no
    truth is known, and where a transformation brought the pixel in from outside the frame."""
    confidence_bw: Float[ndarray, "height width"] | None = None
    inside1: Bool[ndarray, "height width"] | None = None
    """True on the pixels of image1 that come from inside the frame; absent where all do."""
    inside2: Bool[ndarray, "height width"] | None = None

    def map(
        self,
        image: Callable[[ndarray], ndarray],
        flow: Callable[[ndarray], ndarray],
        mask: Callable[[ndarray], ndarray],
    ) -> "FramePair":
        """Each field through the function for its kind, confidence as a mask; what is absent stays absent."""
        kinds = {"image1": image, "image2": image, "flow_fw": flow, "flow_bw": flow}
        present = {name: value for name, value in vars(self).items() if value is not None}
        return FramePair(**{name: kinds.get(name, mask)(value) for name, value in present.items()})


Weights = Float[Tensor, "batch 1 height width"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Frame pairs as a network sees them in training, with what is known of their flow where something is.

    See `flowcore.hallucination.FramePair`, which a Batch is a stack of.
    """

    image1: Image
    image2: Image
    flow_fw: Flow | None = None
    """The teacher's flow on the untransformed frames, transformed as they were, or the truth; pixels."""
    flow_bw: Flow | None = None
    confidence_fw: Weights | None = None
    """How far `flow_fw` is to be trusted, in [0, 1]; 1 - T(O) for a teacher's occlusion O."""
    confidence_bw: Weights | None = None
    inside1: Mask | None = None
    """True on the pixels of image1 that come from inside the frame; absent where all do."""
    inside2: Mask | None = None
