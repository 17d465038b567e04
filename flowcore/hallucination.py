"""How is a pair made harder for the student than it was for the teacher? A crop, noise and pasted pieces hide
what was visible.

A transformation is what `flowcore.augmentation` describes; a `Challenge` is all that is done to a pair.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

from flowcore.augmentation import (
    Affine,
    Crop,
    Flips,
    Geometric,
    Scaling,
    about,
    check_chance,
    check_range,
    composed,
    cut,
    framed,
    happens,
    inverse,
    mapped_grid,
    small_first,
    warped,
)
from flowcore.colour import ChannelPermutation, Colour
from flowcore.geometry import Window
from flowcore.pairs import FramePair


@runtime_checkable
class Transformation(Protocol):
    """A pair in, a pair out; all randomness from the generator."""

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair: ...


def pair_generator(seed: int, epoch: int, pair_id: str) -> np.random.Generator:
    """The randomness of what is done to a pair in an epoch: the same in any order and on any cluster."""
    return np.random.default_rng([seed, epoch, int(pair_id[:16], 16)])


_SUPERPIXEL_PIXELS = 50
"""Pixels of a superpixel from which on SLIC finds the edges of things. More make it slower, not better
(`python -m benchmarks.speed.superpixels`)."""


@dataclass(frozen=True, kw_only=True)
class SuperpixelNoise:
    """Some superpixels of the second frame become noise, uniform and independent for each pixel and channel.

    What they covered is hidden from the student, along the edges of things, as if something had moved before
    them. The label stays. Source: SelFlow (Liu et al., CVPR 2019), "Occlusion Hallucination".
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], that get superpixels of noise. Raise it for more hidden pixels along the
    edges of things."""
    segments: int = 200
    """Approximate number of superpixels per frame. Raise it for smaller occluders."""
    compactness: float = 30.0
    """How round superpixels are; higher values give rounder ones. At 10, rough texture breaks into fragments,
    and joining them leaves a quarter of the superpixels. Lower it if superpixels should follow edges more
    closely."""
    filled: tuple[int, int] = (8, 15)
    """Minimum and maximum number of superpixels filled with noise. Raise them to hide more of a frame."""
    on_both: bool = False
    """Also fill superpixels of the first frame, chosen independently. Turn it on to hide pixels from the
    backward flow too."""

    def __post_init__(self) -> None:
        check_chance("chance", self.chance)
        check_range("filled", self.filled, 1)
        if self.segments < 2:
            raise ValueError(f"segments {self.segments} must be at least 2")

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not happens(self.chance, rng):
            return pair
        image2 = self._noisy(pair.image2, rng)
        image1 = self._noisy(pair.image1, rng) if self.on_both else pair.image1
        return replace(pair, image1=image1, image2=image2)

    def _noisy(self, image: ndarray, rng: np.random.Generator) -> ndarray:
        labels = superpixels(image, self.segments, self.compactness)
        present = np.unique(labels)
        count = min(len(present), int(rng.integers(self.filled[0], self.filled[1] + 1)))
        return _filled(image, np.isin(labels, rng.choice(present, count, replace=False)), rng)


def superpixels(
    image: UInt8[ndarray, "height width 3"],
    segments: int,
    compactness: float,
    pixels: int = _SUPERPIXEL_PIXELS,
) -> Int[ndarray, "height width"]:
    """The number of the superpixel that each pixel belongs to, of about `segments`, from 0.

    SLIC (Achanta et al., TPAMI 2012) on the frame reduced by a whole number, so that `pixels` of each
    superpixel are left or a few more.
    """
    # Imported here, as SciPy comes with it: half a second for each process of a job. It takes 6.9 ms for a
    # frame of 96x128 px; a vectorised SLIC of our own took 9.7 ms.
    from skimage.segmentation import slic

    height, width = image.shape[:2]
    factor = max(1, math.isqrt(height * width // (segments * pixels)))
    reduced = cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
    labels = slic(reduced, n_segments=segments, compactness=compactness, start_label=0).astype(np.int32)
    return np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST))


@dataclass(frozen=True, kw_only=True)
class RectangleNoise:
    """Some rectangles of the second frame become noise, or the frame's mean colour.

    Source: SelFlow, which has noise as a simpler variant of SuperpixelNoise. Number and size are a choice:
    the sources are silent. RAFT (Teed and Deng, ECCV 2020) fills one or two rectangles with the mean colour,
    of 50 to 100 px whatever the frame's size.
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], that get rectangles of noise. Raise it for more hidden pixels; it is
    faster than superpixels."""
    count: tuple[int, int] = (3, 6)
    """Minimum and maximum number of rectangles. Raise them to hide more of a frame."""
    side: tuple[float, float] = (0.08, 0.25)
    """Smallest and largest side, as a share of the frame's. Raise them for larger occluders."""
    filling: Literal["noise", "mean"] = "noise"
    """What they are filled with: noise, or the mean colour of the frame. Take mean if noise makes occluders
    too easy to tell."""

    def __post_init__(self) -> None:
        check_chance("chance", self.chance)
        check_range("count", self.count, 1)
        check_range("side", self.side, 0.0)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not happens(self.chance, rng):
            return pair
        height, width = pair.image2.shape[:2]
        hidden = np.zeros((height, width), bool)
        for _ in range(int(rng.integers(self.count[0], self.count[1] + 1))):
            tall, wide = (max(1, round(rng.uniform(*self.side) * length)) for length in (height, width))
            top = int(rng.integers(max(1, height - tall + 1)))
            left = int(rng.integers(max(1, width - wide + 1)))
            hidden[top : top + tall, left : left + wide] = True
        if self.filling == "noise":
            return replace(pair, image2=_filled(pair.image2, hidden, rng))
        mean = (pair.image2.mean(axis=(0, 1)) + 0.5).astype(np.uint8)
        return replace(pair, image2=np.where(hidden[..., None], mean, pair.image2))


def _filled(image: ndarray, where: Bool[ndarray, "height width"], rng: np.random.Generator) -> ndarray:
    noise = rng.integers(0, 256, image.shape, dtype=np.uint8)
    return np.where(where[..., None], noise, image)


@dataclass(frozen=True, kw_only=True)
class CopyPaste:
    """Pastes pieces of the first frame over both frames, each turned, scaled and with a motion of its
    own.

    What a piece covers in one frame alone is occluded for the student and not for the teacher, along an
    outline that moves; the piece's own flow is known exactly, wherever it goes, and has confidence 1. So
    pairs of one rigid motion, which most clips are full of, get moving things and motion boundaries. A choice
    beside superpixel noise, after what Flying Chairs (Dosovitskiy et al., ICCV 2015) does to still photos.
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], that get pieces of their own first frame pasted over them. Raise it if
    your videos have few things that move by themselves."""
    count: tuple[int, int] = (1, 3)
    """Minimum and maximum number of pieces. Raise them for crowded scenes."""
    radius: tuple[float, float] = (0.08, 0.3)
    """Smallest and largest mean radius, as a share of the frame's height. Raise them for larger occluders."""
    translation: float = 0.3
    """Largest motion along either axis, as a share of the frame's height; small ones are likelier. Raise it
    for fast things."""
    rotation: float = 0.2
    """Largest rotation of a piece between the frames, in radians; small ones are likelier. Raise it for
    things that turn."""
    zoom: tuple[float, float] = (0.9, 1.1)
    """Smallest and largest scale of a piece in the second frame, relative to the first. Widen the range for
    things that come nearer."""

    def __post_init__(self) -> None:
        check_chance("chance", self.chance)
        check_range("count", self.count, 1)
        check_range("radius", self.radius, 0.01)
        check_range("zoom", self.zoom, 0.01)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not happens(self.chance, rng):
            return pair
        source = np.ascontiguousarray(pair.image1)
        for _ in range(int(rng.integers(self.count[0], self.count[1] + 1))):
            pair = self._pasted(source, pair, rng)
        return pair

    def _pasted(self, source: ndarray, pair: FramePair, rng: np.random.Generator) -> FramePair:
        """The pair with one more piece of `source`."""
        height, width = source.shape[:2]
        centre = rng.uniform(0, 1, 2) * [width, height]
        outline = centre + height * rng.uniform(*self.radius) * _outline(rng)
        moved = [small_first(height * self.translation, 2.0, rng) for _ in range(2)]
        angle = small_first(self.rotation, 2.0, rng)
        motion = about(centre, rng.uniform(*self.zoom), angle, np.array(moved))
        # the piece is any other place of the frame, under any angle
        elsewhere = (rng.uniform(0, 1, 2) - rng.uniform(0, 1, 2)) * [width, height]
        placement = about(centre, rng.uniform(0.7, 1.5), rng.uniform(-np.pi, np.pi), elsewhere)
        still = np.eye(2, 3)
        pair = _over_first_frame(pair, source, outline, placement, still, motion)
        return _over_first_frame(
            pair.reversed(), source, outline, placement, motion, inverse(motion)
        ).reversed()


def _over_first_frame(
    pair: FramePair, source: ndarray, outline: ndarray, placement: Affine, to_frame: Affine, motion: Affine
) -> FramePair:
    """The pair with a piece of `source` pasted over its first frame, and what is known there changed with it.

    The piece is what `placement` brings inside the outline. `to_frame` takes it to this frame, and `motion`
    from there to the other one.
    """
    height, width = source.shape[:2]
    corners = outline @ to_frame[:, :2].T + to_frame[:, 2]
    opacity = np.zeros((height, width), np.uint8)
    # vertices in 1/16 px
    cv2.fillPoly(opacity, [np.round(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    texture = cv2.warpAffine(
        source,
        to_frame @ np.vstack([placement, [0, 0, 1]]),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    share = opacity[..., None].astype(np.float32) / 255
    image = (pair.image1 + share * (texture - pair.image1.astype(np.float32)) + 0.5).astype(np.uint8)
    covered = opacity >= 128
    flow, confidence, inside = pair.flow_fw, pair.confidence_fw, pair.inside1
    if flow is not None:
        own = mapped_grid(motion - np.eye(2, 3), height, width)
        flow = np.where(covered, own, flow).astype(np.float32)
    if confidence is not None:
        confidence = np.where(covered, np.float32(1), confidence)
    if inside is not None:
        inside = inside | covered
    return replace(pair, image1=image, flow_fw=flow, confidence_fw=confidence, inside1=inside)


def _outline(rng: np.random.Generator) -> Float[ndarray, "corners 2"]:
    """A smooth closed curve around 0, of mean radius about 1."""
    around = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(around)
    for waves in range(2, 6):
        radius += rng.uniform(0, 0.4 / waves) * np.cos(waves * around + rng.uniform(0, 2 * np.pi))
    points: ndarray = radius[:, None] * np.column_stack([np.cos(around), np.sin(around)])
    return points


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """What is done to a pair before a network trains on it, in this order; a chance of 0 leaves a part out.

    Crop, flips and the channel permutation are the augmentation of both stages. Size and geometry come
    first, from the whole frames, so that little comes in from outside; noise last, so that nothing transforms
    it. The surroundings are the full-image warping of SMURF (Stone et al., CVPR 2021).
    """

    scaling: Scaling = field(default_factory=Scaling)
    geometric: Geometric = field(default_factory=Geometric)
    crop: Crop
    pasted: CopyPaste = field(default_factory=CopyPaste)
    flips: Flips = field(default_factory=Flips)
    channels: ChannelPermutation = field(default_factory=ChannelPermutation)
    colour: Colour = field(default_factory=Colour)
    superpixels: SuperpixelNoise = field(default_factory=SuperpixelNoise)
    rectangles: RectangleNoise = field(default_factory=RectangleNoise)
    surroundings: int = 0
    """Pixels of the frame on every side of the crop that the loss sees and the network doesn't: what leaves
    the crop and not the frame then learns from the frames (full-image warping). Set it to the longest motion
    that you expect; more makes the feed slower."""

    def __post_init__(self) -> None:
        if self.surroundings < 0:
            raise ValueError(f"surroundings {self.surroundings} must not be below 0 px")

    @property
    def _of_the_scene(self) -> "tuple[CopyPaste, Flips, ChannelPermutation]":
        """What the loss is to see too."""
        return self.pasted, self.flips, self.channels

    @property
    def _of_the_frames(self) -> "tuple[Colour, SuperpixelNoise, RectangleNoise]":
        """What the network alone has to bear."""
        return self.colour, self.superpixels, self.rectangles

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        """A scene comes with the pair where what the network sees isn't what the loss is to see."""
        if max(self.scaling.chance, self.geometric.chance, self.surroundings) > 0 and pair.inside1 is None:
            # a batch has a field for all of its pairs or for none
            whole = np.ones(pair.image1.shape[:2], bool)
            pair = replace(pair, inside1=whole, inside2=whole)
        height, width = pair.image1.shape[:2]
        scaled = self.scaling.scaled(height, width, self.crop, rng)
        if scaled is not None:
            height, width = scaled[1]
        maps = self.geometric.maps(height, width, rng)
        window = self.crop.window(height, width, rng).widened(self.surroundings)
        if scaled is not None:
            still = np.eye(2, 3)
            first, second = maps or (still, still)
            maps = composed(first, scaled[0]), composed(second, scaled[0])
        if maps is not None:
            pair = warped(pair, *maps, window=window, soft=self.geometric.soft)
        else:
            pair = cut(framed(pair, self.surroundings), window.moved(self.surroundings))
        for step in self._of_the_scene:
            pair = step(pair, rng)
        scene = pair
        if self.surroundings > 0:
            inner = Window(
                top=self.surroundings,
                left=self.surroundings,
                height=self.crop.height,
                width=self.crop.width,
            )
            pair = cut(pair, inner)
        for each in self._of_the_frames:
            pair = each(pair, rng)
        if self.surroundings == 0 and all(each.chance == 0 for each in self._of_the_frames):
            return pair
        return replace(
            pair,
            scene1=scene.image1,
            scene2=scene.image2,
            inside1=scene.inside1,
            inside2=scene.inside2,
        )
