"""How is a pair varied while a network trains? Crop, flips, colour and a moving camera, for frames, flow and
confidence alike.

A transformation is a frozen object called with a pair and a random generator; the generator is keyed by what
it decides (seed, epoch, pair), so that a pair gets the same crop on any cluster. Everything is NumPy, where
the feed's processes work.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from flowcore.geometry import Window
from flowcore.pairs import FramePair


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A window of the pair at a uniform offset, the same in both frames, never resized.

    What leaves the window between the frames is occluded for the student and may be visible for the teacher:
    a crop hallucinates occlusion at its border. Source: DDFlow (Liu et al., AAAI 2019), "Data Distillation
    for Occlusion".
    """

    height: int
    """Rows of the window, in pixels; a multiple of the network's, which the error names. Raise it for large
    motion; lower it if memory runs out."""
    width: int
    """Columns of the window, in pixels; a multiple of the network's, which the error names. Raise it for
    large motion; lower it if memory runs out."""

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"height {self.height} and width {self.width} must be at least 1 px")

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        """ValueError where the crop is larger than the frames."""
        height, width = pair.image1.shape[:2]
        return cut(pair, self.window(height, width, rng))

    def window(self, height: int, width: int, rng: np.random.Generator) -> Window:
        """Where in frames of this size; ValueError where the crop is larger."""
        if self.height > height or self.width > width:
            raise ValueError(
                f"crop ({self.height}, {self.width}) is larger than the frames ({height}, {width}), in px; "
                "choose a smaller crop, or leave smaller videos out when the pairs are made "
                "(--clips.min-size)"
            )
        top = int(rng.integers(height - self.height + 1))
        left = int(rng.integers(width - self.width + 1))
        return Window(top=top, left=left, height=self.height, width=self.width)


def framed(pair: FramePair, margin: int) -> FramePair:
    """The pair with so many pixels around it that are not inside the frame: its border, repeated."""
    if margin == 0:
        return pair
    sides = ((margin, margin), (margin, margin))
    return pair.map(
        image=lambda image: np.pad(image, (*sides, (0, 0)), mode="edge"),
        flow=lambda flow: np.pad(flow, ((0, 0), *sides)),
        mask=lambda mask: np.pad(mask, sides),
    )


def cut(pair: FramePair, window: Window) -> FramePair:
    rows, columns = window.place
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
    """Share of the pairs, in [0, 1], that are mirrored left to right. Take 0 if left and right differ in your
    videos, as with text."""
    up_down: float = 0.5
    """Share of the pairs, in [0, 1], that are mirrored top to bottom. Take 0 for road scenes."""

    def __post_init__(self) -> None:
        check_chance("left_right", self.left_right)
        check_chance("up_down", self.up_down)

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
    """Share of the pairs, in [0, 1], whose colour channels are shuffled. Raise it if your videos have few
    colours."""

    def __post_init__(self) -> None:
        check_chance("chance", self.chance)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not happens(self.chance, rng):
            return pair
        order = rng.permutation(3)
        return replace(pair, image1=pair.image1[..., order], image2=pair.image2[..., order])


def happens(chance: float, rng: np.random.Generator) -> bool:
    """True with this probability; what is certain draws nothing."""
    return chance >= 1 or (chance > 0 and rng.random() < chance)


def check_chance(name: str, chance: float) -> None:
    if not 0 <= chance <= 1:
        raise ValueError(f"{name} {chance} must be a probability, in [0, 1]")


def check_range(name: str, values: tuple[int | float, int | float], least: int | float) -> None:
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
    """Share of the pairs, in [0, 1], that are zoomed, squeezed, turned and moved. 0 leaves all as they are.
    Raise it if there are few videos or they hardly move."""
    zoom: tuple[float, float] = (1.0, 1.5)
    """Smallest and largest zoom; above 1 enlarges. Raise the larger one for objects that come close."""
    squeeze: tuple[float, float] = (0.86, 1.16)
    """Smallest and largest change of the aspect ratio; 1 keeps it. Take 1 1 if shapes must stay as they
    are."""
    rotation: float = 0.2
    """Largest rotation in either direction, in radians. Raise it for hand-held cameras; lower it for level
    ones."""
    translation: float = 0.2
    """Largest shift in either direction, as a share of half the frame's width and height. Lower it if too
    much of a frame leaves the view."""
    delta_zoom: tuple[float, float] = (0.985, 1.015)
    """Smallest and largest extra zoom of the second frame, as a factor. Widen the range for cameras that move
    forward."""
    delta_rotation: float = 0.015
    """Largest extra rotation of the second frame in either direction, in radians. Raise it for cameras that
    roll."""
    delta_translation: float = 0.015
    """Largest extra shift of the second frame, as a share of half the frame's width and height. Raise it if
    your videos move little and the flow to learn is fast."""
    delta_exponent: float = 1.0
    """Skews the second frame's extra rotation and shift towards small values: 1 draws them uniformly, larger
    values make small ones likelier. Raise it if most motion is slow."""
    soft: bool = False
    """Confidence is sampled bilinearly and lies in [0, 1], in place of the nearest pixel's 0 or 1. Turn it on
    for softer borders between trusted and other pixels."""

    def __post_init__(self) -> None:
        check_chance("chance", self.chance)
        for name in ("zoom", "squeeze", "delta_zoom"):
            check_range(name, getattr(self, name), 0.01)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        height, width = pair.image1.shape[:2]
        maps = self.maps(height, width, rng)
        return pair if maps is None else warped(pair, *maps, soft=self.soft)

    def maps(self, height: int, width: int, rng: np.random.Generator) -> "tuple[Affine, Affine] | None":
        """What the first and the second frame of this size are mapped by; None where nothing happens."""
        if not happens(self.chance, rng):
            return None
        squeeze = rng.uniform(*self.squeeze)
        zoom = rng.uniform(*self.zoom) * np.array([squeeze, 1 / squeeze])
        angle = rng.uniform(-self.rotation, self.rotation)
        shift = rng.uniform(-self.translation, self.translation, 2)
        first = affine(height, width, zoom, angle, shift)
        zoom = zoom * rng.uniform(*self.delta_zoom)
        angle += small_first(self.delta_rotation, self.delta_exponent, rng)
        shift = shift + [small_first(self.delta_translation, self.delta_exponent, rng) for _ in range(2)]
        return first, affine(height, width, zoom, angle, shift)


def small_first(most: float, exponent: float, rng: np.random.Generator) -> float:
    """Between -most and most; small values are the likelier, the larger the exponent is above 1."""
    part = rng.uniform(-1, 1)
    return float(most * np.sign(part) * np.abs(part) ** exponent)


def affine(height: int, width: int, zoom: ndarray, angle: float, shift: ndarray) -> Affine:
    """The map that scales x and y by `zoom`, turns by `angle` radians about the frame's centre and shifts by
    `shift` times half the frame's width and height."""
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    return about(centre, zoom, angle, shift * centre)


def about(centre: ndarray, zoom: float | ndarray, angle: float, moved: ndarray) -> Affine:
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
        inside = _inside(mapped_grid(inverse(here), height, width), *pair.image1.shape[:2])
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


def inverse(mapping: Affine) -> Affine:
    inverse = np.linalg.inv(mapping[:, :2])
    return np.column_stack([inverse, -inverse @ mapping[:, 2]])


def mapped_grid(mapping: Affine, height: int, width: int) -> Float[ndarray, "2 height width"]:
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
    back = inverse(here)
    still = np.column_stack([linear @ back[:, :2], linear @ back[:, 2] + there[:, 2]])
    moved = mapped_grid(still - np.eye(2, 3), *u.shape).astype(np.float32)
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
    """Share of the pairs, in [0, 1], whose colours change. 0 leaves all as they are. Raise it if light or
    cameras vary."""
    brightness: float = 0.5
    """Largest relative change of brightness. Raise it if your videos are darker or brighter than those that
    you train on."""
    contrast: float = 0.5
    """Largest relative change of contrast. Lower it if dark and bright parts lose their detail."""
    saturation: float = 0.5
    """Largest relative change of saturation. Raise it if cameras reproduce colours differently."""
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
        check_chance("chance", self.chance)
        check_chance("blur_chance", self.blur_chance)
        check_range("gamma", self.gamma, 0.01)
        check_range("blur", self.blur, 0.01)

    def __call__(self, pair: FramePair, rng: np.random.Generator) -> FramePair:
        if not happens(self.chance, rng):
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
        if happens(self.blur_chance, rng):
            deviation = rng.uniform(*self.blur)
            frames = np.stack([cv2.GaussianBlur(frame, (0, 0), deviation) for frame in frames])
        frames = frames + rng.uniform(0, self.noise) * rng.standard_normal(frames.shape, np.float32)
        image1, image2 = (frames * 255 + 0.5).clip(0, 255).astype(np.uint8)
        return replace(pair, image1=image1, image2=image2)
