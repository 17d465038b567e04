"""What do other cameras and light make of a pair's colours? Channels in another order, brightness, contrast,
saturation, hue, blur and noise.

A transformation is what `flowcore.augmentation` describes. These change the frames alone, never the flow.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from flowcore.augmentation import check_chance, check_range, happens
from flowcore.pairs import FramePair


@dataclass(frozen=True, kw_only=True)
class ChannelPermutation:
    """The RGB channels in a random order, the same for both frames. Source: DDFlow's augmentation."""

    chance: float = 1.0
    """Share of the pairs, in [0, 1], whose colour channels are shuffled. Raise it if your videos have few
    colours."""

    def __post_init__(self) -> None:
        check_chance("chance", self.chance)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not happens(self.chance, rng):
            return pair
        order = rng.permutation(3)
        return replace(pair, image1=pair.image1[..., order], image2=pair.image2[..., order])


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Brightness, contrast, saturation, hue, gamma, Gaussian blur and noise: of the student's frames, never
    of the label. Both frames change by the same amounts, but for the noise and a share of the pairs.

    Source: ARFlow (Liu et al., CVPR 2020), its augmentation for Sintel; the blur's width and the noise are a
    choice. Hue and frames that change apart are RAFT's (Teed and Deng, ECCV 2020); a deviation: colours turn
    about the axis of greys, where RAFT moves the hue of HSV.
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], whose colours change. 0 leaves all as they are. Raise it if light or
    cameras vary."""
    asymmetric: float = 0.0
    """Share of the pairs with changed colours, in [0, 1], whose two frames change by amounts of their own.
    Raise it for cameras that set their exposure anew from frame to frame."""
    brightness: float = 0.5
    """Largest relative change of brightness. Raise it if your videos are darker or brighter than those that
    you train on."""
    contrast: float = 0.5
    """Largest relative change of contrast. Lower it if dark and bright parts lose their detail."""
    saturation: float = 0.5
    """Largest relative change of saturation. Raise it if cameras reproduce colours differently."""
    hue: float = 0.0
    """Largest turn of the colours in either direction, as a share of the whole circle, at most 0.5. Raise it
    if cameras reproduce colours differently."""
    gamma: tuple[float, float] = (0.7, 1.5)
    """Smallest and largest exponent of the gamma curve; 1 changes nothing. Widen the range for other cameras
    and displays."""
    blur_chance: float = 0.5
    """Share of the pairs with changed colours, in [0, 1], that are blurred too. Raise it for videos that are
    often out of focus."""
    blur: tuple[float, float] = (0.3, 1.5)
    """Standard deviation of the Gaussian, in pixels. Raise it for videos that are often out of focus."""
    noise: float = 0.02
    """Largest standard deviation of the noise, of values in [0, 1]. Raise it for videos that were taken in
    the dark."""

    def __post_init__(self) -> None:
        for name in ("chance", "asymmetric", "blur_chance"):
            check_chance(name, getattr(self, name))
        check_range("gamma", self.gamma, 0.01)
        check_range("blur", self.blur, 0.01)
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue {self.hue} must lie in [0, 0.5]")

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not happens(self.chance, rng):
            return pair
        frames = np.stack([pair.image1, pair.image2]).astype(np.float32) / 255
        parts = np.split(frames, 2) if happens(self.asymmetric, rng) else [frames]
        frames = np.concatenate([self._changed(part, rng) for part in parts])
        frames = frames + rng.uniform(0, self.noise) * rng.standard_normal(frames.shape, np.float32)
        image1, image2 = (frames * 255 + 0.5).clip(0, 255).astype(np.uint8)
        return replace(pair, image1=image1, image2=image2)

    def _changed(
        self, frames: Float[ndarray, "frames height width 3"], rng: np.random.Generator
    ) -> Float[ndarray, "frames height width 3"]:
        """The frames, in [0, 1], all changed by the same amounts."""
        brightness, contrast, saturation = (
            rng.uniform(max(0.0, 1 - most), 1 + most)
            for most in (self.brightness, self.contrast, self.saturation)
        )
        gamma = rng.uniform(*self.gamma)
        frames = frames * brightness
        # one middle for all frames: a mean of each would change what is equal in them
        middle = frames.mean()
        frames = (frames - middle) * contrast + middle
        grey = frames.mean(axis=-1, keepdims=True)
        frames = (frames - grey) * saturation + grey
        if self.hue > 0:
            frames = frames @ _turn(2 * np.pi * rng.uniform(-self.hue, self.hue)).T
        frames = frames.clip(0, 1) ** np.float32(gamma)
        if happens(self.blur_chance, rng):
            deviation = rng.uniform(*self.blur)
            frames = np.stack([cv2.GaussianBlur(frame, (0, 0), deviation) for frame in frames])
        return frames


def _turn(angle: float) -> Float[ndarray, "3 3"]:
    """The matrix that turns RGB about the axis of greys by so many radians, red towards green."""
    around = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix: ndarray = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) / 3 + np.sin(angle) * around
    return matrix.astype(np.float32)
