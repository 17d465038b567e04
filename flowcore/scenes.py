"""How are videos rendered whose flow and occlusion are known exactly?

A scene is a textured background seen by a moving camera, with textured layers in front of it and of each
other, each with its own affine motion. A layer's outline is a formula: occlusion is decided by evaluating it
where a pixel lands, not by comparing rendered masks. Everything follows from the seed.
"""

from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from flowcore.formats import write_flow, write_image, write_mask

_SUPERSAMPLING = 2
Affine = Float[ndarray, "3 3"]


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """What a rendered scene looks like; lengths in pixels, speeds in pixels a frame."""

    height: int = 96
    width: int = 128
    num_frames: int = 17
    camera_speed: float = 10.0
    """Largest translation of the camera."""
    layers: tuple[int, int] = (2, 4)
    """Fewest and most moving layers in front of the background."""
    layer_speed: float = 6.0
    """Largest translation of a layer, on top of the camera's."""
    layer_radius: tuple[float, float] = (0.12, 0.32)
    """Smallest and largest mean radius of a layer, as a share of the frame's height."""
    rotation: float = 0.03
    """Largest rotation of the camera and of each layer, in radians a frame."""
    zoom: float = 0.02
    """Largest relative change of scale a frame."""
    unsteadiness: float = 0.0
    """How much motion changes from frame to frame: the standard deviation in pixels, along x and along y, of
    what is added to each frame's step, of the camera and of each layer. 0 for constant velocity."""
    lighting: float = 0.0
    """How much the light flickers: each frame's brightness is multiplied by a factor drawn between
    1 - lighting and 1 + lighting. 0 for constant light."""
    stereo: bool = False
    """Makes consecutive frames rectified stereo pairs, left frame first: everything moves to the left along
    its row, nearer layers faster. Surfaces may slant: `rotation` shears them and `zoom` stretches them along
    the row."""

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16 or self.num_frames < 2:
            raise ValueError(
                f"a scene of {self.num_frames} frames of ({self.height}, {self.width}) is too small; "
                "at least 2 frames of 16 px a side"
            )
        if self.unsteadiness < 0:
            raise ValueError(f"unsteadiness {self.unsteadiness} must not be below 0")
        if not 0 <= self.lighting < 1:
            raise ValueError(f"lighting {self.lighting} must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The frames of a rendered scene, and the truth between each frame and the next."""

    frames: UInt8[ndarray, "frames height width 3"]
    """RGB."""
    flow_fw: Float[ndarray, "pairs 2 height width"]
    """In pixels."""
    flow_bw: Float[ndarray, "pairs 2 height width"]
    occ_fw: Bool[ndarray, "pairs height width"]
    """True where a pixel is hidden or outside in the other frame."""
    occ_bw: Bool[ndarray, "pairs height width"]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A textured shape that moves."""

    texture: Float[ndarray, "side side 3"]
    placements: list[Affine]
    """For each frame, from the layer's coordinates to the scene's."""
    radius: float | None
    """Mean radius of the outline; None for the background, which has no outline."""
    harmonics: Float[ndarray, "waves 2"]
    """Amplitude and phase of the outline's waves around its mean radius."""

    def outline_distance(self, points: Float[ndarray, "2 *grid"]) -> Float[ndarray, "*grid"]:
        """Roughly how far `points` (layer coordinates) are inside the outline, in pixels; below 0 outside."""
        if self.radius is None:
            return np.full(points.shape[1:], np.inf, np.float32)
        angle = np.arctan2(points[1], points[0])
        wobble = np.zeros_like(angle)
        for order, (amplitude, phase) in enumerate(self.harmonics, start=2):
            wobble += amplitude * np.cos(order * angle + phase)
        distance: Float[ndarray, "*grid"] = self.radius * (1 + wobble) - np.hypot(points[0], points[1])
        return distance

    def color(self, points: Float[ndarray, "2 *grid"]) -> Float[ndarray, "*grid 3"]:
        """The texture at `points` (layer coordinates), reflected beyond its sides."""
        centre = (self.texture.shape[0] - 1) / 2
        x, y = points[0] + centre, points[1] + centre
        return cv2.remap(
            self.texture,
            x.astype(np.float32),
            y.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )


def _transform(matrix: Affine, points: Float[ndarray, "2 *grid"]) -> Float[ndarray, "2 *grid"]:
    moved = np.tensordot(matrix[:2, :2], points, axes=1)
    shift = matrix[:2, 2].reshape(2, *[1] * (points.ndim - 1))
    transformed: ndarray = moved + shift
    return transformed


def _texture(rng: np.random.Generator, side: int) -> Float[ndarray, "side side 3"]:
    """Noise of several scales around one colour, with blots and strokes: no two places look alike."""
    image = np.zeros((side, side, 3), np.float32)
    weight = 0.0
    for cells, share in ((4, 0.5), (10, 0.8), (24, 1.0), (56, 0.7), (120, 0.4)):
        cells = max(2, cells * side // 256)
        coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        image += share * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        weight += share**2
    image = (
        0.5 + rng.uniform(0.12, 0.2) * image / np.sqrt(weight) + rng.uniform(-0.2, 0.2, 3).astype(np.float32)
    )
    for _ in range(side * side // 1500):
        color = tuple(float(c) for c in rng.uniform(0, 1, 3))
        x, y = (int(c) for c in rng.uniform(0, side, 2))
        if rng.random() < 0.5:
            axes = tuple(int(a) for a in rng.uniform(2, 12, 2))
            cv2.ellipse(image, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
        else:
            dx, dy = (int(d) for d in rng.uniform(-30, 30, 2))
            cv2.line(image, (x, y), (x + dx, y + dy), color, int(rng.integers(1, 4)), cv2.LINE_AA)
    texture: Float[ndarray, "side side 3"] = image.clip(0, 1)
    return texture


def _motion(rng: np.random.Generator, options: SceneOptions, speed: float) -> Affine:
    """The affine step of one frame: rotation and zoom about the frame's centre, then a shift of up to `speed`
    px. For stereo: shear and stretch along the row, then a shift to the left.
    """
    angle = rng.uniform(-options.rotation, options.rotation)
    scale = 1 + rng.uniform(-options.zoom, options.zoom)
    heading, length = rng.uniform(0, 2 * np.pi), speed * rng.uniform(0.2, 1)
    centre = np.array([(options.width - 1) / 2, (options.height - 1) / 2])
    turned = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = length * np.array([np.cos(heading), np.sin(heading)])
    if options.stereo:
        turned = np.array([[scale, angle], [0.0, 1.0]])
        # Far enough that no corner of a slanted surface moves to the right.
        slant = abs(scale - 1) * options.width / 2 + abs(angle) * options.height / 2
        shift = np.array([-length - slant, 0.0])
    step = np.eye(3)
    step[:2, :2] = turned
    step[:2, 2] = centre - turned @ centre + shift
    return step


def _placements(start: Affine, step: Affine, middle: int, num_frames: int) -> list[Affine]:
    """The placement in each frame of what is at `start` in frame `middle` and moves by `step` a frame."""
    back = np.linalg.inv(step)
    return [
        np.linalg.matrix_power(step if frame >= middle else back, abs(frame - middle)) @ start
        for frame in range(num_frames)
    ]


def _wandered(placements: list[Affine], offsets: Float[ndarray, "frames 2"]) -> list[Affine]:
    """The placements, each shifted in the scene."""
    shifts = np.tile(np.eye(3), (len(offsets), 1, 1))
    shifts[:, :2, 2] = offsets
    return [shift @ placement for shift, placement in zip(shifts, placements, strict=True)]


def _layers(seed: int, options: SceneOptions) -> list[_Layer]:
    """The background and the layers in front of it, from back to front."""
    rng = np.random.default_rng((seed, 0x5CE4E))
    # Its own random numbers, so that a seed gives the same scene however steady.
    unsteady = np.random.default_rng((seed, 0x57EAD))

    def offsets() -> Float[ndarray, "frames 2"]:
        steps = unsteady.normal(0.0, options.unsteadiness, (options.num_frames, 2))
        places = steps.cumsum(axis=0)
        centred: ndarray = places - places[options.num_frames // 2]
        return centred

    of_camera = offsets()
    height, width = options.height, options.width
    camera = _motion(rng, options, options.camera_speed)
    middle = options.num_frames // 2
    start = np.eye(3)
    start[:2, 2] = (width - 1) / 2, (height - 1) / 2
    layers = [
        _Layer(
            texture=_texture(rng, 2 * max(height, width)),
            placements=_wandered(_placements(start, camera, middle, options.num_frames), of_camera),
            radius=None,
            harmonics=np.zeros((0, 2)),
        )
    ]
    for _ in range(int(rng.integers(options.layers[0], options.layers[1] + 1))):
        radius = rng.uniform(*options.layer_radius) * height
        start = np.eye(3)
        start[:2, 2] = rng.uniform(0, width), rng.uniform(0, height)
        step = _motion(rng, options, options.layer_speed) @ camera
        layers.append(
            _Layer(
                texture=_texture(rng, max(32, int(3 * radius))),
                placements=_wandered(
                    _placements(start, step, int(rng.integers(options.num_frames)), options.num_frames),
                    of_camera + offsets(),
                ),
                radius=radius,
                harmonics=np.stack([rng.uniform(0, 0.18, 3), rng.uniform(0, 2 * np.pi, 3)], axis=1),
            )
        )
    return layers


def _grid(height: int, width: int, per_pixel: int = 1) -> Float[ndarray, "2 rows columns"]:
    y, x = np.mgrid[: height * per_pixel, : width * per_pixel].astype(np.float64)
    return np.stack([(x + 0.5) / per_pixel - 0.5, (y + 0.5) / per_pixel - 0.5])


def _render(
    layers: list[_Layer], frame: int, height: int, width: int, brightness: float
) -> UInt8[ndarray, "height width 3"]:
    grid = _grid(height, width, _SUPERSAMPLING)
    image = np.zeros((*grid.shape[1:], 3), np.float32)
    for layer in layers:
        points = _transform(np.linalg.inv(layer.placements[frame]), grid)
        inside = layer.outline_distance(points)
        opacity = (inside * _SUPERSAMPLING + 0.5).clip(0, 1).astype(np.float32)[..., None]
        image += opacity * (layer.color(points) - image)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return (image * (255 * brightness) + 0.5).clip(0, 255).astype(np.uint8)


def _truth(
    layers: list[_Layer], here: int, there: int, height: int, width: int
) -> tuple[Float[ndarray, "2 height width"], Bool[ndarray, "height width"]]:
    """Flow from frame `here` to `there`, and which pixels of `here` are hidden or outside in `there`."""
    grid = _grid(height, width)
    landing = np.zeros_like(grid)
    top = np.zeros((height, width), int)
    for depth, layer in enumerate(layers):
        points = _transform(np.linalg.inv(layer.placements[here]), grid)
        covered = layer.outline_distance(points) > 0
        landing = np.where(covered, _transform(layer.placements[there], points), landing)
        top = np.where(covered, depth, top)
    occluded = (landing[0] < 0) | (landing[0] > width - 1) | (landing[1] < 0) | (landing[1] > height - 1)
    for depth, layer in enumerate(layers):
        points = _transform(np.linalg.inv(layer.placements[there]), landing)
        occluded |= (layer.outline_distance(points) > 0) & (depth > top)
    return (landing - grid).astype(np.float32), occluded


def render_scene(seed: int, options: SceneOptions) -> Scene:
    """The scene of this seed: the same seed and options always give the same scene."""
    layers = _layers(seed, options)
    size = options.height, options.width
    pairs = range(options.num_frames - 1)
    # Its own random numbers, so that a seed gives the same scene in any light.
    light = np.random.default_rng((seed, 0x11647)).uniform(-1, 1, options.num_frames)
    forward = [_truth(layers, frame, frame + 1, *size) for frame in pairs]
    backward = [_truth(layers, frame + 1, frame, *size) for frame in pairs]
    return Scene(
        frames=np.stack(
            [
                _render(layers, frame, *size, brightness=1 + options.lighting * light[frame])
                for frame in range(options.num_frames)
            ]
        ),
        flow_fw=np.stack([flow for flow, _ in forward]),
        flow_bw=np.stack([flow for flow, _ in backward]),
        occ_fw=np.stack([occluded for _, occluded in forward]),
        occ_bw=np.stack([occluded for _, occluded in backward]),
    )


def write_video(
    path: Path, frames: UInt8[ndarray, "frames height width 3"], fps: int = 25, quality: int = 12
) -> None:
    """Writes an H.264 .mp4. `quality` is the encoder's constant rate factor, 0 (best) to 51 (worst).

    Raises ValueError for frames with an odd side.
    """
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"a video of ({height}, {width}) must have even sides for H.264")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(quality)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode())


def write_truth(folder: Path, scene: Scene) -> None:
    """Writes `scene` as a folder of the data set `scenes`: frame_0000.png, flow/frame_0000.flo,
    occlusions/frame_0000.png and so on."""
    for part in ("flow", "occlusions"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(scene.frames):
        write_image(folder / f"frame_{index:04d}.png", frame)
    for index, (flow, occluded) in enumerate(zip(scene.flow_fw, scene.occ_fw, strict=True)):
        write_flow(folder / "flow" / f"frame_{index:04d}.flo", flow)
        write_mask(folder / "occlusions" / f"frame_{index:04d}.png", occluded)
