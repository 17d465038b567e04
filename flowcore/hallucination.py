"""How is a pair made harder for the student than it was for the teacher? Transformations of frames, flow and
confidence alike.

A transformation is a frozen object called with a pair and a random generator; the generator is keyed by what
it decides (seed, epoch, pair), so that a pair gets the same crop on any cluster. Everything is NumPy, where
the feed's processes work.
"""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from flowcore.pairs import FramePair


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
    """Rows of the window, in pixels; a multiple of the network's, which the error names."""
    width: int
    """Columns of the window, in pixels; a multiple of the network's, which the error names."""

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"crop ({self.height}, {self.width}) must be at least 1 px on each side")

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        """ValueError where the crop is larger than the frames."""
        height, width = pair.image1.shape[:2]
        return _cut(pair, self.window(height, width, rng))

    def window(self, height: int, width: int, rng: np.random.Generator) -> "Window":
        """Where in frames of this size; ValueError where the crop is larger."""
        if self.height > height or self.width > width:
            raise ValueError(
                f"crop ({self.height}, {self.width}) is larger than the frames ({height}, {width}), in px; "
                "choose a smaller crop, or leave smaller videos out when the pairs are made (min_size)"
            )
        top = int(rng.integers(height - self.height + 1))
        left = int(rng.integers(width - self.width + 1))
        return Window(top=top, left=left, height=self.height, width=self.width)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def widened(self, margin: int) -> "Window":
        """With so many pixels more on every side."""
        return Window(
            top=self.top - margin,
            left=self.left - margin,
            height=self.height + 2 * margin,
            width=self.width + 2 * margin,
        )

    def moved(self, offset: int) -> "Window":
        """So many pixels further down and to the right."""
        return replace(self, top=self.top + offset, left=self.left + offset)


def _framed(pair: FramePair, margin: int) -> FramePair:
    """The pair with so many pixels around it that are not inside the frame: its border, repeated."""
    if margin == 0:
        return pair
    sides = ((margin, margin), (margin, margin))
    return pair.map(
        image=lambda image: np.pad(image, (*sides, (0, 0)), mode="edge"),
        flow=lambda flow: np.pad(flow, ((0, 0), *sides)),
        mask=lambda mask: np.pad(mask, sides),
    )


def _cut(pair: FramePair, window: Window) -> FramePair:
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
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
    """Share of the pairs, in [0, 1], that are mirrored left to right."""
    up_down: float = 0.5
    """Share of the pairs, in [0, 1], that are mirrored top to bottom. Take 0 for road scenes."""

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

    chance: float = 1.0
    """Share of the pairs, in [0, 1], whose colour channels are shuffled."""

    def __post_init__(self) -> None:
        _check_chance(self.chance)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not _happens(self.chance, rng):
            return pair
        order = rng.permutation(3)
        return replace(pair, image1=pair.image1[..., order], image2=pair.image2[..., order])


def _happens(chance: float, rng: np.random.Generator) -> bool:
    """True with this probability; what is certain draws nothing."""
    return chance >= 1 or (chance > 0 and rng.random() < chance)


def _check_chance(chance: float) -> None:
    if not 0 <= chance <= 1:
        raise ValueError(f"chance {chance} must be a probability, in [0, 1]")


def _check_range(name: str, values: tuple[int | float, int | float], least: int | float) -> None:
    if not least <= values[0] <= values[1]:
        raise ValueError(f"{name} {values} must be (smallest, largest), at least {least}")


Affine = Float[ndarray, "2 3"]
"""x' = M x + t, of points [x, y] in pixels."""


@dataclass(frozen=True, kw_only=True)
class Geometric:
    """Zoom, squeeze, rotation and translation of the whole frames about their centre, a little different for
    the second frame.

    Frames are warped by A1 and A2, and vectors with them: w'(x') = A2(x + w(x)) - x' with x = A1^-1 x'. What
    comes from outside the frame has confidence 0 and is not `inside`.
    Source: ARFlow (Liu et al., CVPR 2020), its augmentation for Sintel, whose numbers are the defaults.
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], that are zoomed, squeezed, turned and moved. 0 leaves all as they
    are."""
    zoom: tuple[float, float] = (1.0, 1.5)
    """Smallest and largest zoom; above 1 enlarges."""
    squeeze: tuple[float, float] = (0.86, 1.16)
    """x is scaled by zoom times this, y by zoom over this."""
    rotation: float = 0.2
    """Radians, to either side."""
    translation: float = 0.2
    """To either side, as a share of half the frame's width and height."""
    delta_zoom: tuple[float, float] = (0.985, 1.015)
    """What the second frame has on top of the first one's."""
    delta_rotation: float = 0.015
    """Radians, to either side, by which the second frame turns more than the first."""
    delta_translation: float = 0.015
    """How much further the second frame moves, to either side, as a share of half the frame's size."""
    delta_exponent: float = 1.0
    """A rotation or translation of the second frame is its largest times |s|^this, s uniform in [-1, 1]:
    above 1, small ones are likelier than large ones."""
    soft: bool = False
    """Confidence is sampled bilinearly and lies in [0, 1], in place of the nearest pixel's 0 or 1."""

    def __post_init__(self) -> None:
        _check_chance(self.chance)
        for name in ("zoom", "squeeze", "delta_zoom"):
            _check_range(name, getattr(self, name), 0.01)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        height, width = pair.image1.shape[:2]
        maps = self.maps(height, width, rng)
        return pair if maps is None else warped(pair, *maps, soft=self.soft)

    def maps(self, height: int, width: int, rng: np.random.Generator) -> "tuple[Affine, Affine] | None":
        """What the first and the second frame of this size are mapped by; None where nothing happens."""
        if not _happens(self.chance, rng):
            return None
        squeeze = rng.uniform(*self.squeeze)
        zoom = rng.uniform(*self.zoom) * np.array([squeeze, 1 / squeeze])
        angle = rng.uniform(-self.rotation, self.rotation)
        shift = rng.uniform(-self.translation, self.translation, 2)
        first = affine(height, width, zoom, angle, shift)
        zoom = zoom * rng.uniform(*self.delta_zoom)
        angle += _small_first(self.delta_rotation, self.delta_exponent, rng)
        shift = shift + [_small_first(self.delta_translation, self.delta_exponent, rng) for _ in range(2)]
        return first, affine(height, width, zoom, angle, shift)


def _small_first(most: float, exponent: float, rng: np.random.Generator) -> float:
    """Between -most and most; small values are the likelier, the larger the exponent is above 1."""
    part = rng.uniform(-1, 1)
    return float(most * np.sign(part) * np.abs(part) ** exponent)


def affine(height: int, width: int, zoom: ndarray, angle: float, shift: ndarray) -> Affine:
    """The map that scales x and y by `zoom`, turns by `angle` radians about the frame's centre and shifts by
    `shift` times half the frame's width and height."""
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    return _about(centre, zoom, angle, shift * centre)


def _about(centre: ndarray, zoom: float | ndarray, angle: float, moved: ndarray) -> Affine:
    """Scales and turns about a point, then moves, in pixels."""
    matrix = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([matrix, centre + moved - matrix @ centre])


def warped(
    pair: FramePair, first: Affine, second: Affine, *, window: Window | None = None, soft: bool = False
) -> FramePair:
    """The pair with its frames mapped by `first` and `second`; see Geometric for flow and confidence.

    Of the mapped frames only the window is computed, where there is one: to cut it out is to shift both maps.
    """
    height, width = pair.image1.shape[:2]
    if window is not None:
        corner = np.array([[0, 0, window.left], [0, 0, window.top]])
        first, second = first - corner, second - corner
        height, width = window.height, window.width

    def sampled(image: ndarray, mapping: Affine, interpolation: int, border: int) -> ndarray:
        size = (width, height)
        result: ndarray = cv2.warpAffine(image, mapping, size, flags=interpolation, borderMode=border)
        return result

    def half(pair: FramePair, here: Affine, there: Affine) -> FramePair:
        """The pair with what belongs to its first frame transformed, and the rest as it was."""
        inside = _inside(_mapped_grid(_inverse(here), height, width), *pair.image1.shape[:2])
        flow, confidence = pair.flow_fw, pair.confidence_fw
        if flow is not None:
            # Unknown pixels, which most of a sparse truth are, count only where no known one is near.
            known = np.float32(1) if confidence is None else np.where(confidence > 0, 1, 1e-6)
            weight = np.broadcast_to(known, flow[0].shape).astype(np.float32)
            u, v, total = (
                sampled(each, here, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
                for each in (flow[0] * weight, flow[1] * weight, weight)
            )
            flow = _transformed_flow(u / total, v / total, here, there)
        if confidence is not None:
            nearest = cv2.INTER_LINEAR if soft else cv2.INTER_NEAREST
            confidence = sampled(confidence, here, nearest, cv2.BORDER_CONSTANT) * inside
        if pair.inside1 is not None:
            before = sampled(pair.inside1.astype(np.uint8), here, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
            inside &= before > 0
        image = sampled(pair.image1, here, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
        return replace(pair, image1=image, flow_fw=flow, confidence_fw=confidence, inside1=inside)

    pair = half(pair, first, second)
    return half(pair.reversed(), second, first).reversed()


def _inverse(mapping: Affine) -> Affine:
    inverse = np.linalg.inv(mapping[:, :2])
    return np.column_stack([inverse, -inverse @ mapping[:, 2]])


def _mapped_grid(mapping: Affine, height: int, width: int) -> Float[ndarray, "2 height width"]:
    """Where the map takes each pixel [x, y]."""
    x, y = np.arange(width), np.arange(height)[:, None]
    return np.stack([row[0] * x + row[1] * y + row[2] for row in mapping])


def _inside(points: Float[ndarray, "2 *grid"], height: int, width: int) -> Bool[ndarray, "*grid"]:
    """Which points [x, y] lie in a frame of this size."""
    x, y = points
    # half a thousandth of a pixel: the identity must not lose its border to rounding
    return np.asarray((x > -5e-4) & (x < width - 1 + 5e-4) & (y > -5e-4) & (y < height - 1 + 5e-4))


def _transformed_flow(
    u: Float[ndarray, "height width"], v: Float[ndarray, "height width"], here: Affine, there: Affine
) -> Float[ndarray, "2 height width"]:
    """A2(A1^-1 x + w) - x, which is M2 w plus what an affine map alone moves x by; w = (u, v), at x of the
    mapped frame."""
    linear = there[:, :2]
    back = _inverse(here)
    still = np.column_stack([linear @ back[:, :2], linear @ back[:, 2] + there[:, 2]])
    moved = _mapped_grid(still - np.eye(2, 3), *u.shape).astype(np.float32)
    for row, (of_u, of_v) in zip(moved, linear.astype(np.float32), strict=True):
        row += of_u * u
        row += of_v * v
    return moved


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Brightness, contrast, saturation, gamma, Gaussian blur and noise: of the student's frames, never of the
    label, and by the same amounts in both frames but for the noise.

    Source: ARFlow (Liu et al., CVPR 2020), its augmentation for Sintel; the blur's width and the noise are a
    choice.
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], whose colours change. 0 leaves all as they are."""
    brightness: float = 0.5
    """Largest relative change of brightness."""
    contrast: float = 0.5
    """Largest relative change of contrast."""
    saturation: float = 0.5
    """Largest relative change of saturation."""
    gamma: tuple[float, float] = (0.7, 1.5)
    """Smallest and largest exponent of the gamma curve; 1 changes nothing."""
    blur_chance: float = 0.5
    """Share of the pairs with changed colours, in [0, 1], that are blurred too."""
    blur: tuple[float, float] = (0.3, 1.5)
    """The standard deviation of the Gaussian, in pixels."""
    noise: float = 0.02
    """The largest standard deviation of the noise, of values in [0, 1]."""

    def __post_init__(self) -> None:
        _check_chance(self.chance)
        _check_chance(self.blur_chance)
        _check_range("gamma", self.gamma, 0.01)
        _check_range("blur", self.blur, 0.01)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not _happens(self.chance, rng):
            return pair
        brightness, contrast, saturation = (
            rng.uniform(max(0.0, 1 - most), 1 + most)
            for most in (self.brightness, self.contrast, self.saturation)
        )
        gamma = rng.uniform(*self.gamma)
        frames = np.stack([pair.image1, pair.image2]).astype(np.float32) / 255 * brightness
        # one middle for both frames: a mean of each would change what is equal in them
        middle = frames.mean()
        frames = (frames - middle) * contrast + middle
        grey = frames.mean(axis=-1, keepdims=True)
        frames = ((frames - grey) * saturation + grey).clip(0, 1) ** np.float32(gamma)
        if _happens(self.blur_chance, rng):
            deviation = rng.uniform(*self.blur)
            frames = np.stack([cv2.GaussianBlur(frame, (0, 0), deviation) for frame in frames])
        frames = frames + rng.uniform(0, self.noise) * rng.standard_normal(frames.shape, np.float32)
        image1, image2 = (frames * 255 + 0.5).clip(0, 255).astype(np.uint8)
        return replace(pair, image1=image1, image2=image2)


@dataclass(frozen=True, kw_only=True)
class SuperpixelNoise:
    """Some superpixels of the target frame become noise, uniform and independent for each pixel and channel.

    What they covered is hidden from the student, along the edges of things, as if something had moved before
    them. The label stays. Source: SelFlow (Liu et al., CVPR 2019), "Occlusion Hallucination".
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], that get superpixels of noise. It costs 0.6 s for a frame of 256x640
    px."""
    segments: int = 200
    """Superpixels in a frame, about."""
    compactness: float = 30.0
    """How much nearness counts against likeness in CIELAB. With the usual 10 rough texture breaks into
    crumbs, and joining them leaves a quarter of the superpixels."""
    filled: tuple[int, int] = (8, 15)
    """Fewest and most of them that become noise."""
    on_both: bool = False
    """Also in the reference frame, others."""

    def __post_init__(self) -> None:
        _check_chance(self.chance)
        _check_range("filled", self.filled, 1)
        if self.segments < 2:
            raise ValueError(f"segments {self.segments} must be at least 2")

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not _happens(self.chance, rng):
            return pair
        image2 = self._noisy(pair.image2, rng)
        image1 = self._noisy(pair.image1, rng) if self.on_both else pair.image1
        return replace(pair, image1=image1, image2=image2)

    def _noisy(self, image: ndarray, rng: np.random.Generator) -> ndarray:
        # Imported here, as SciPy comes with it: half a second for each process of a job. It takes 6.9 ms for
        # a frame of 96x128 px; a vectorised SLIC of our own took 9.7 ms.
        from skimage.segmentation import slic

        labels = slic(image, n_segments=self.segments, compactness=self.compactness, start_label=0)
        present = np.unique(labels)
        count = min(len(present), int(rng.integers(self.filled[0], self.filled[1] + 1)))
        return _filled(image, np.isin(labels, rng.choice(present, count, replace=False)), rng)


@dataclass(frozen=True, kw_only=True)
class RectangleNoise:
    """Some rectangles of the target frame become noise; SelFlow's simpler variant of SuperpixelNoise.

    Their number and size are a choice: the sources are silent.
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], that get rectangles of noise."""
    count: tuple[int, int] = (3, 6)
    """Fewest and most rectangles."""
    side: tuple[float, float] = (0.08, 0.25)
    """Smallest and largest side, as a share of the frame's."""

    def __post_init__(self) -> None:
        _check_chance(self.chance)
        _check_range("count", self.count, 1)
        _check_range("side", self.side, 0.0)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not _happens(self.chance, rng):
            return pair
        height, width = pair.image2.shape[:2]
        hidden = np.zeros((height, width), bool)
        for _ in range(int(rng.integers(self.count[0], self.count[1] + 1))):
            tall, wide = (max(1, round(rng.uniform(*self.side) * length)) for length in (height, width))
            top = int(rng.integers(max(1, height - tall + 1)))
            left = int(rng.integers(max(1, width - wide + 1)))
            hidden[top : top + tall, left : left + wide] = True
        return replace(pair, image2=_filled(pair.image2, hidden, rng))


def _filled(image: ndarray, where: Bool[ndarray, "height width"], rng: np.random.Generator) -> ndarray:
    noise = rng.integers(0, 256, image.shape, dtype=np.uint8)
    return np.where(where[..., None], noise, image)


@dataclass(frozen=True, kw_only=True)
class CopyPaste:
    """Pastes pieces of the reference frame over both frames, each turned, scaled and with a motion of its
    own.

    What a piece covers in one frame alone is occluded for the student and not for the teacher, along an
    outline that moves; the piece's own flow is known exactly, wherever it goes, and has confidence 1. So
    pairs of one rigid motion, which most clips are full of, get moving things and motion boundaries. A choice
    beside superpixel noise, after what Flying Chairs (Dosovitskiy et al., ICCV 2015) does to still photos.
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], that get pieces of other pairs pasted over them."""
    count: tuple[int, int] = (1, 3)
    """Fewest and most pieces."""
    radius: tuple[float, float] = (0.08, 0.3)
    """Smallest and largest mean radius, as a share of the frame's height."""
    translation: float = 0.3
    """The largest motion along either axis, as a share of the frame's height; small ones are likelier, by
    the square."""
    rotation: float = 0.2
    """The largest rotation between the frames, radians; so too."""
    zoom: tuple[float, float] = (0.9, 1.1)
    """Between the frames."""

    def __post_init__(self) -> None:
        _check_chance(self.chance)
        _check_range("count", self.count, 1)
        _check_range("radius", self.radius, 0.01)
        _check_range("zoom", self.zoom, 0.01)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not _happens(self.chance, rng):
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
        moved = [_small_first(height * self.translation, 2.0, rng) for _ in range(2)]
        angle = _small_first(self.rotation, 2.0, rng)
        motion = _about(centre, rng.uniform(*self.zoom), angle, np.array(moved))
        # the piece is any other place of the frame, under any angle
        elsewhere = (rng.uniform(0, 1, 2) - rng.uniform(0, 1, 2)) * [width, height]
        placement = _about(centre, rng.uniform(0.7, 1.5), rng.uniform(-np.pi, np.pi), elsewhere)
        still = np.eye(2, 3)
        pair = _over_first_frame(pair, source, outline, placement, still, motion)
        return _over_first_frame(
            pair.reversed(), source, outline, placement, motion, _inverse(motion)
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
        own = _mapped_grid(motion - np.eye(2, 3), height, width)
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

    Crop, flips and the channel permutation are the augmentation of both stages. Geometry comes first, from
    the whole frames, so that little comes in from outside; noise last, so that nothing transforms it.
    """

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
    the crop and not the frame then learns from the frames (full-image warping). As many as motion is long is
    enough; they make the feed slower. Source: SMURF (Stone et al., CVPR 2021)."""

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
        if (self.geometric.chance > 0 or self.surroundings > 0) and pair.inside1 is None:
            # a batch has a field for all of its pairs or for none
            whole = np.ones(pair.image1.shape[:2], bool)
            pair = replace(pair, inside1=whole, inside2=whole)
        height, width = pair.image1.shape[:2]
        maps = self.geometric.maps(height, width, rng)
        window = self.crop.window(height, width, rng).widened(self.surroundings)
        if maps is not None:
            pair = warped(pair, *maps, window=window, soft=self.geometric.soft)
        else:
            pair = _cut(_framed(pair, self.surroundings), window.moved(self.surroundings))
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
            pair = _cut(pair, inner)
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
