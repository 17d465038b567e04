"""What do a flow, its error and its occlusion look like?

Flow is drawn with the Middlebury colour wheel (Baker et al., "A Database and Evaluation Methodology for
Optical Flow"): hue is direction, saturation is speed, white is rest, black is unknown. All flows of one
picture share one scale, or they could not be compared; errors have a fixed one, so that pictures of different
runs can be compared too. Of occlusion, white is occluded, black is visible and grey is not trusted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from flowcore.geometry import backward_warp, in_frame

Picture = UInt8[np.ndarray, "_ _ 3"]
"""uint8 [height, width, 3], RGB."""
Cell = tuple[str, Picture]
"""A caption and its picture."""

MAX_ERROR = 5.0
"""The error in pixels from which `error_colors` saturates."""
MAX_WARP_ERROR = 32.0
"""The grey levels from which a `warp_error` is best drawn saturated: of good labels the mean is 1 to 5."""

_MIN_WIDTH, _MAX_WIDTH = 256, 512
_GAP = 6
_CAPTION_HEIGHT = 18
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
_BACKGROUND = 225
_INK = 20
_ARROW, _ARROW_EDGE = (255, 235, 60), (0, 0, 0)
_UNKNOWN = 128
"""The grey of an unknown error and of an occlusion that is not trusted."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network, a label or a truth says about a pair, to be drawn."""

    flow: Float[np.ndarray, "2 height width"]
    """In pixels."""
    occlusion: Bool[np.ndarray, "height width"] | None = None
    """True = occluded; None where the predictor doesn't say."""
    trusted: Bool[np.ndarray, "height width"] | None = None
    """False where several teachers disagree, or there is no truth; None = everywhere. Of occluded pixels,
    which are drawn white, it doesn't matter."""


def flow_colors(flow: Float[np.ndarray, "2 height width"], max_motion: float | None) -> Picture:
    """Flow as colours; `max_motion` (pixels) is drawn fully saturated, None = the largest motion in the flow.

    Faster motion is darkened, as in Baker et al.'s colour code; what is not finite is unknown and black.
    """
    known = np.isfinite(flow).all(axis=0)
    u, v = np.where(known, flow, 0).astype(np.float64)
    speed = np.hypot(u, v)
    scale = float(speed.max(initial=0.0)) if max_motion is None else max_motion
    radius = (speed / scale if scale > 0 else speed)[..., None]
    wheel = _color_wheel()
    # v + 0.0 turns -0.0 into 0.0: motion to the right would jump from the wheel's start to its end.
    position = (np.arctan2(-(v + 0.0), -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    below = np.floor(position).astype(int)
    share = (position - below)[..., None]
    hue = (1 - share) * wheel[below] + share * wheel[(below + 1) % len(wheel)]
    colors = np.where(radius <= 1, 1 - radius * (1 - hue), 0.75 * hue)
    return np.where(known[..., None], np.floor(255 * colors), 0).astype(np.uint8)


def error_colors(error: Float[np.ndarray, "height width"], max_error: float = MAX_ERROR) -> Picture:
    """An error, of a flow in pixels, black (0) to pale yellow (`max_error` and above); grey = not finite,
    unknown."""
    known = np.isfinite(error)
    level = np.rint(np.clip(np.where(known, error, 0) / max_error, 0, 1) * 255).astype(np.uint8)
    colors = cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.where(known[..., None], colors, np.uint8(_UNKNOWN))


def occlusion_image(
    occluded: Bool[np.ndarray, "height width"], trusted: Bool[np.ndarray, "height width"] | None = None
) -> Picture:
    """White = occluded, black = visible, grey = not occluded and not trusted; None trusts every pixel."""
    levels = np.where(occluded, np.uint8(255), np.uint8(0))
    if trusted is not None:
        levels[~occluded & ~trusted] = _UNKNOWN
    return np.repeat(levels[..., None], 3, axis=2)


def confidence_image(confidence: Float[np.ndarray, "height width"]) -> Picture:
    """White = trusted (1), black = not (0)."""
    return np.repeat(np.rint(255 * confidence).astype(np.uint8)[..., None], 3, axis=2)


def warp_error(
    image1: UInt8[np.ndarray, "height width 3"],
    image2: UInt8[np.ndarray, "height width 3"],
    flow: Float[np.ndarray, "2 height width"],
) -> Float[np.ndarray, "height width"]:
    """|image1 - image2 at p + flow(p)|, the mean over the colours, in grey levels (0 to 255); nan where
    p + flow(p) lies outside the frame. Flow in pixels.

    Large where the flow is wrong or the light changed, and at occluded pixels, however right their flow is.
    """
    first, second = (
        torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.float32) for image in (image1, image2)
    )
    forward = torch.from_numpy(flow)[None].to(torch.float32)
    error = (first - backward_warp(second, forward)).abs().mean(dim=1, keepdim=True)
    return error.masked_fill(~in_frame(forward), torch.nan)[0, 0].numpy()


def brought_back(
    image2: UInt8[np.ndarray, "height width 3"], flow: Float[np.ndarray, "2 height width"]
) -> Picture:
    """image2 at p + flow(p), which is image1 where the flow is right and the pixel visible; grey where that
    lies outside the frame. Flow in pixels."""
    second = torch.from_numpy(image2.astype(np.float32)).permute(2, 0, 1)[None]
    forward = torch.from_numpy(flow)[None].to(torch.float32)
    warped = backward_warp(second, forward).masked_fill(~in_frame(forward), _UNKNOWN)
    picture: Picture = warped[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return picture


def motion_scale(flows: Sequence[Float[np.ndarray, "2 height width"]], percentile: int = 99) -> float:
    """The speed in pixels, for `flow_colors`, that so many percent of the flows' known pixels stay below; 0
    where none is known. Not the largest: a few wild pixels would turn the rest white."""
    speeds = np.concatenate([np.hypot(*flow).ravel() for flow in flows]) if flows else np.zeros(0)
    speeds = speeds[np.isfinite(speeds)]
    return float(np.percentile(speeds, percentile)) if speeds.size else 0.0


def fitted(picture: Picture) -> Picture:
    """The picture 256 to 512 px wide: a small one grows by a whole factor with its pixels kept sharp; a large
    one is averaged down."""
    height, width = picture.shape[:2]
    if width < _MIN_WIDTH:
        factor = -(-_MIN_WIDTH // width)
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    if width > _MAX_WIDTH:
        size = (_MAX_WIDTH, max(1, round(height * _MAX_WIDTH / width)))
        return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
    return picture


def flow_legend(height: int, width: int) -> Picture:
    """The colour wheel as a disc: at each place the colour of the motion from the disc's centre to it."""
    v, u = np.mgrid[:height, :width].astype(np.float64) - (np.array([[[height - 1]], [[width - 1]]]) / 2)
    radius = min(height, width) / 2
    return flow_colors(np.where(np.hypot(u, v) <= radius, np.stack([u, v]), 0.0), max_motion=radius)


def with_arrows(
    image: UInt8[np.ndarray, "height width 3"], flow: Float[np.ndarray, "2 height width"]
) -> Picture:
    """The image with about 24 arrows along its longer side, each from a pixel to where its flow takes it;
    none where it moves by less than a pixel. Flow in pixels."""
    drawn = image.copy()
    height, width = image.shape[:2]
    spacing, thickness = max(16, max(height, width) // 24), max(1, width // _MAX_WIDTH)
    for y in range(spacing // 2, height, spacing):
        for x in range(spacing // 2, width, spacing):
            u, v = np.clip(np.nan_to_num(flow[:, y, x]), -width - height, width + height)
            if np.hypot(u, v) >= 1:
                end = round(x + u), round(y + v)
                for colour, wide in ((_ARROW_EDGE, 3 * thickness), (_ARROW, thickness)):
                    cv2.arrowedLine(drawn, (x, y), end, colour, wide, cv2.LINE_AA, tipLength=0.3)
    return drawn


def panel(rows: Sequence[Sequence[Cell | None]]) -> Picture:
    """Captioned pictures in a grid (None = an empty place), each `fitted`; ValueError when there is none."""
    shown = [[None if cell is None else _captioned(*cell) for cell in row] for row in rows]
    drawn = [cell for row in shown for cell in row if cell is not None]
    if not drawn:
        raise ValueError(f"panel of {len(rows)} rows holds no picture; give at least one")
    num_columns = max(len(row) for row in shown)
    columns = [[row[column] for row in shown if column < len(row)] for column in range(num_columns)]
    lefts = _starts([_largest(column, axis=1) for column in columns])
    tops = _starts([_largest(row, axis=0) for row in shown])
    canvas = np.full((tops[-1], lefts[-1], 3), _BACKGROUND, np.uint8)
    for row, top in zip(shown, tops, strict=False):
        for cell, left in zip(row, lefts, strict=False):
            if cell is not None:
                canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return canvas


def comparison_panel(
    image1: UInt8[np.ndarray, "height width 3"],
    image2: UInt8[np.ndarray, "height width 3"],
    *,
    truth: Float[np.ndarray, "2 height width"] | None = None,
    valid: Bool[np.ndarray, "height width"] | None = None,
    occlusion: Bool[np.ndarray, "height width"] | None = None,
    predictions: Mapping[str, Prediction],
) -> Picture:
    """The frames, the truth if there is one, and each prediction's flow, occlusion and error, on one scale.

    `valid` says where the truth is known, None = everywhere. The scale is the largest true motion; without
    truth the predictions' 99th percentile, so that a few wild pixels don't turn the rest white.
    """
    known_truth = truth if truth is None or valid is None else np.where(valid, truth, np.float32(np.nan))
    flows = [each.flow for each in predictions.values()] if known_truth is None else [known_truth]
    scale = motion_scale(flows, percentile=99 if known_truth is None else 100)
    rows: list[list[Cell | None]] = [
        [
            ("frame 1", image1),
            ("frame 2", image2),
            (f"motion up to {scale:.1f} px", flow_legend(*image1.shape[:2])),
        ]
    ]
    if known_truth is not None:
        true_flow: Cell = ("true flow", flow_colors(known_truth, scale))
        rows.append(
            [true_flow, None if occlusion is None else ("true occlusion", occlusion_image(occlusion))]
        )
    for name, each in predictions.items():
        row: list[Cell | None] = [
            (f"{name}: flow", flow_colors(each.flow, scale)),
            _occlusion_cell(name, each),
        ]
        if known_truth is not None:
            error = np.hypot(*(each.flow - known_truth))
            mean = error[np.isfinite(known_truth).all(axis=0)].mean()
            row.append((f"{name}: error, EPE {mean:.2f}, bright from {MAX_ERROR:g} px", error_colors(error)))
        rows.append(row)
    return panel(rows)


def _occlusion_cell(name: str, prediction: Prediction) -> Cell | None:
    """The caption is the legend: it explains the grey, if there may be any."""
    occluded, trusted = prediction.occlusion, prediction.trusted
    if trusted is None:
        return None if occluded is None else (f"{name}: occlusion", occlusion_image(occluded))
    if occluded is None:
        return f"{name}: grey is not trusted", occlusion_image(np.zeros_like(trusted), trusted)
    return f"{name}: occlusion, grey is not trusted", occlusion_image(occluded, trusted)


def _color_wheel() -> Float[np.ndarray, "55 3"]:
    """The wheel's 55 hues in [0, 1]: from each corner of the colour cube to the next in so many steps."""
    red, yellow, green, cyan, blue, magenta = np.array(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]], dtype=np.float64
    )
    arcs = [
        (red, yellow, 15),
        (yellow, green, 6),
        (green, cyan, 4),
        (cyan, blue, 11),
        (blue, magenta, 13),
        (magenta, red, 6),
    ]
    return np.concatenate([np.linspace(start, end, steps, endpoint=False) for start, end, steps in arcs])


def _captioned(caption: str, picture: Picture) -> Picture:
    picture = fitted(picture)
    strip = np.full((_CAPTION_HEIGHT, picture.shape[1], 3), _BACKGROUND, np.uint8)
    (text_width, _), _ = cv2.getTextSize(caption, _FONT, _FONT_SCALE, 1)
    font_scale = _FONT_SCALE * min(1.0, (picture.shape[1] - 4) / max(text_width, 1))
    cv2.putText(strip, caption, (2, _CAPTION_HEIGHT - 5), _FONT, font_scale, (_INK,) * 3, 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def _largest(cells: Sequence[Picture | None], *, axis: int) -> int:
    return max((cell.shape[axis] for cell in cells if cell is not None), default=0)


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where things in a row begin, with a gap before each, and at last where the whole ends."""
    starts = [_GAP]
    for size in sizes:
        starts.append(starts[-1] + size + _GAP)
    return starts
