"""How is a pair varied while a network trains? Crop, flips, another size and a moving camera, for frames,
flow and confidence alike.

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
class Scaling:
    """The whole frames at another size, of which the crop then takes a window of the same size as ever.

    Source: RAFT (Teed and Deng, ECCV 2020), whose code's numbers for FlyingThings are the defaults. Like it,
    it makes no frame smaller than the crop.
    """

    chance: float = 0.0
    """Share of the pairs, in [0, 1], that are scaled. 0 leaves all as they are. Raise it if there are few
    pairs with truth."""
    factor: tuple[float, float] = (0.76, 1.74)
    """Smallest and largest factor of both sides, at least 0.5; twice as large is as likely as half as large.
    Raise the larger one for faster motion than that of your pairs."""
    stretch: float = 1.15
    """Largest factor, at least 1, by which each side is stretched or squeezed further. 1 keeps the aspect
    ratio."""
    stretch_chance: float = 0.8
    """Share of the scaled pairs, in [0, 1], that are stretched. Take 0 for cameras that all have the same
    pixels."""

    def __post_init__(self) -> None:
        check_chance("chance", self.chance)
        check_chance("stretch_chance", self.stretch_chance)
        check_range("factor", self.factor, 0.5)
        if not self.stretch >= 1:
            raise ValueError(f"stretch {self.stretch} must be at least 1")

    def scaled(
        self, height: int, width: int, crop: Crop, rng: np.random.Generator
    ) -> "tuple[Affine, tuple[int, int]] | None":
        """(what frames of this size are mapped by, the size that they then have); None where nothing
        happens."""
        if not happens(self.chance, rng):
            return None
        sides = np.full(2, self._drawn(*self.factor, rng))
        if happens(self.stretch_chance, rng):
            sides *= [self._drawn(1 / self.stretch, self.stretch, rng) for _ in range(2)]
        # The outermost pixel centres stay the outermost ones, so that nothing comes from outside the frame.
        spans = np.array([width - 1, height - 1])
        least = max((crop.width - 1) / max(1, width - 1), (crop.height - 1) / max(1, height - 1))
        sides = np.maximum(sides, least)
        # Half a thousandth of a pixel: rounding must not cost the crop a column.
        new_width, new_height = (int(last) + 1 for last in spans * sides + 5e-4)
        return np.column_stack([np.diag(sides), np.zeros(2)]), (new_height, new_width)

    @staticmethod
    def _drawn(least: float, most: float, rng: np.random.Generator) -> float:
        return float(np.exp(rng.uniform(np.log(least), np.log(most))))


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


def composed(then: Affine, before: Affine) -> Affine:
    """The map that does one thing after the other."""
    moved = then[:, :2] @ before[:, 2] + then[:, 2]
    return np.column_stack([then[:, :2] @ before[:, :2], moved])


def warped(
    pair: FramePair, first: Affine, second: Affine, *, window: Window | None = None, soft: bool = False
) -> FramePair:
    """The pair with its frames mapped by `first` and `second`; see Geometric for flow and confidence.

    Flow is interpolated, except that of a sparse truth: see `_scattered`.

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
        if flow is not None and confidence is not None and is_sparse_truth(pair):
            flow, confidence = _scattered(flow, confidence > 0, here, there, height, width)
        else:
            if flow is not None:
                # A label's untrusted pixels count only where no trusted one is near.
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


def is_sparse_truth(pair: FramePair) -> bool:
    """Whether the pair's flow is a truth that isn't known at every pixel.

    A truth is of one direction, and says nothing where it isn't known. A pseudo-label has both directions,
    and a vector at every pixel, trusted or not.
    """
    return pair.flow_bw is None and pair.confidence_fw is not None and not pair.confidence_fw.all()


def _scattered(
    flow: Float[ndarray, "2 rows columns"],
    known: Bool[ndarray, "rows columns"],
    here: Affine,
    there: Affine,
    height: int,
    width: int,
) -> tuple[Float[ndarray, "2 {height} {width}"], Float[ndarray, "{height} {width}"]]:
    """(flow, confidence) of the mapped first frame: each known vector, mapped with its own pixel, at the
    pixel next to where that lands. All others are unknown.

    Between the points of a laser scanner lies often an edge of something, so that a mean of two of its
    vectors is the motion of nothing. Of several vectors that land on a pixel, the last one in reading order
    stays. Source: RAFT, its code for sparse truth.
    """
    y, x = np.nonzero(known)
    pixels = np.stack([x, y]).astype(np.float64)
    landed = here[:, :2] @ pixels + here[:, 2:]
    vectors = there[:, :2] @ (pixels + flow[:, y, x]) + there[:, 2:] - landed
    column, row = np.rint(landed).astype(np.intp)
    stays = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row[stays], column[stays]
    result, confidence = np.zeros((2, height, width), np.float32), np.zeros((height, width), np.float32)
    result[:, place[0], place[1]] = vectors[:, stays]
    confidence[place] = 1
    return result, confidence


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
