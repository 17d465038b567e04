"""How is a pair made harder for the student than it was for the teacher? Transformations of frames, flow and
confidence alike.

A transformation is a frozen object called with a pair and a random generator; the generator is keyed by what
it decides (seed, epoch, pair), so that a pair gets the same crop on any cluster. Everything is NumPy, where
the feed's processes work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray


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


@runtime_checkable
class Transformation(Protocol):
    """A pair in, a pair out; all randomness from the generator."""

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair: ...


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A window of the pair at a uniform offset, the same in both frames, never resized.

    What leaves the window between the frames is occluded for the student and may be visible for the teacher:
    a crop hallucinates occlusion at its border. Source: DDFlow (Liu et al., AAAI 2019), "Data Distillation
    for Occlusion".
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"crop ({self.height}, {self.width}) must be at least 1 px on each side")

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        """ValueError where the crop is larger than the frames."""
        height, width = pair.image1.shape[:2]
        if self.height > height or self.width > width:
            raise ValueError(
                f"crop ({self.height}, {self.width}) is larger than the frames ({height}, {width}), in px; "
                "choose a smaller crop, or leave smaller videos out when the pairs are made (min_side)"
            )
        top = int(rng.integers(height - self.height + 1))
        left = int(rng.integers(width - self.width + 1))
        rows, columns = slice(top, top + self.height), slice(left, left + self.width)
        return pair.map(
            image=lambda image: image[rows, columns],
            flow=lambda flow: flow[:, rows, columns],
            mask=lambda mask: mask[rows, columns],
        )


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Mirrors the pair left to right, and up to down, each with the given probability. Source: DDFlow's
    augmentation."""

    left_right: float = 0.5
    up_down: float = 0.5

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        for chance, axis in ((self.left_right, 1), (self.up_down, 0)):
            if rng.random() < chance:
                pair = _mirrored(pair, axis)
        return pair


def _mirrored(pair: FramePair, axis: int) -> FramePair:
    """axis 0 mirrors up to down and negates v, axis 1 left to right and negates u."""
    sign = np.array([1.0, -1.0] if axis == 0 else [-1.0, 1.0], np.float32).reshape(2, 1, 1)
    return pair.map(
        image=lambda image: np.flip(image, axis),
        flow=lambda flow: np.flip(flow, axis + 1) * sign,
        mask=lambda mask: np.flip(mask, axis),
    )


@dataclass(frozen=True, kw_only=True)
class ChannelPermutation:
    """The RGB channels in a random order, the same for both frames. Source: DDFlow's augmentation."""

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        order = rng.permutation(3)
        return replace(pair, image1=pair.image1[..., order], image2=pair.image2[..., order])


@dataclass(frozen=True, kw_only=True)
class Composed:
    """Transformations one after another."""

    steps: Sequence[Transformation]

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        for step in self.steps:
            pair = step(pair, rng)
        return pair
