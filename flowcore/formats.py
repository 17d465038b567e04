"""How are flow fields, images and masks stored in files?

Flow is read together with where it is known, because each format has its own way to say "unknown": a value
above 1e9 in `.flo` and `.pfm`, NaN in Spring's `.flo5` and in `.npy`, a zero third channel in KITTI's PNG. A
writer encodes in memory, writes a temporary file and renames it, so that a killed process leaves the old file
or the new one, never half of it.
"""

import re
import uuid
from os import PathLike
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from flowcore.flo5 import decode_flo5, encode_flo5
from flowcore.image_size import MOST_PIXELS, RefusedError, image_size, require_decoded, require_size
from flowcore.numpy_files import decode_flow_npy, decode_npy, decode_npz, encode_flow_npy

FLOW_SUFFIXES = (".flo", ".flo5", ".npy", ".pfm", ".png")

_FLO_MAGIC = np.float32(202021.25).tobytes()  # spells PIEH
_UNKNOWN_ABOVE = 1e9
_UNKNOWN = 1e10
_PNG_UNITS_PER_PIXEL = 64
_PNG_ZERO = 2**15
_PNG_MAX = 2**16 - 1
_MOST_VALUE_BYTES = 32
"""Of a pixel in a file, at most: two numbers of HDF5's longest kind."""
_SPARE_BYTES = 2**24
"""Of a file beside its pixels, such as a camera's notes."""
# An image is what its pixels are, not what a camera noted of how it was held: its flow lies on the pixels.
_IMAGE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_PFM_HEADER = re.compile(
    rb"(PF|Pf)\s{1,9}(\d{1,9})\s{1,9}(\d{1,9})\s{1,9}([-+]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40})(?:[eE][-+]?\d{1,3})?)\s"
)


def read_flow(
    path: str | PathLike[str], size: tuple[int, int] | None = None
) -> tuple[Float[np.ndarray, "2 height width"], Bool[np.ndarray, "height width"]]:
    """Flow in pixels (float32) and where it is known; zero where it isn't.

    The extension decides the format: `.flo` (Middlebury), `.flo5` (Spring), `.png` (KITTI, 16 bit, 1/64 px),
    `.npy` (float [height, width, 2]) or `.pfm` (channels u, v, 0). size: the (height, width) of its frames,
    which it must have. Raises ValueError for content that isn't of that format, is truncated or has another
    size.
    """
    path = Path(path)
    _flow_suffix(path)
    return decode_flow(_content(path, size), path, size)


def decode_flow(
    content: bytes, name: str | PathLike[str], size: tuple[int, int] | None = None
) -> tuple[Float[np.ndarray, "2 height width"], Bool[np.ndarray, "height width"]]:
    """What `read_flow` makes of a file of this name with this content."""
    path = Path(name)
    suffix = _flow_suffix(path)
    if suffix == ".png":
        return _decode_kitti(content, path, size)
    decode = {
        ".flo": _decode_flo,
        ".flo5": decode_flo5,
        ".npy": decode_flow_npy,
        ".pfm": _decode_flow_pfm,
    }[suffix]
    flow = decode(content, path, size)
    valid = (np.abs(flow) <= _UNKNOWN_ABOVE).all(axis=0)  # false for NaN too
    return np.where(valid, flow, np.float32(0)), valid


def write_flow(
    path: str | PathLike[str],
    flow: Float[np.ndarray, "2 height width"],
    valid: Bool[np.ndarray, "height width"] | None = None,
) -> None:
    """Writes what `encode_flow` makes of the flow."""
    _write_whole(Path(path), encode_flow(flow, path, valid))


def encode_flow(
    flow: Float[np.ndarray, "2 height width"],
    name: str | PathLike[str],
    valid: Bool[np.ndarray, "height width"] | None = None,
) -> bytes:
    """The content of a file of this name: flow in pixels in the extension's format (see `read_flow`).

    `valid` says where the flow is known, None = everywhere. `.flo`, `.flo5`, `.npy` and `.pfm` keep
    float32 exactly; `.png` rounds to the nearest 1/64 px. Raises ValueError for a known value that isn't
    finite or doesn't fit the format.
    """
    name = Path(name)
    suffix = _flow_suffix(name)
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow has shape {flow.shape}; it must be [2, height, width]")
    known = np.ones(flow.shape[1:], dtype=bool) if valid is None else valid
    if known.shape != flow.shape[1:] or known.dtype != np.bool_:
        raise ValueError(
            f"valid is {known.dtype} {known.shape}; it must be bool {flow.shape[1:]} like the flow"
        )
    beyond = known & ~(np.abs(flow) <= _UNKNOWN_ABOVE).all(axis=0)
    if beyond.any():
        raise ValueError(
            f"flow for {name} is not finite or above 1e9 px at {beyond.sum()} known pixels; mark them False "
            "in valid"
        )
    flow = np.where(known, flow, 0).astype(np.float32)
    if suffix == ".png":
        return _encode_kitti(flow, known, name)
    flow = np.where(known, flow, np.float32(np.nan if suffix in (".flo5", ".npy") else _UNKNOWN))
    encode = {
        ".flo": _encode_flo,
        ".flo5": encode_flo5,
        ".npy": encode_flow_npy,
        ".pfm": _encode_flow_pfm,
    }[suffix]
    return encode(flow)


def read_component_flow(
    path: Path, size: tuple[int, int] | None = None
) -> tuple[Float[np.ndarray, "2 height width"], Bool[np.ndarray, "height width"]]:
    """As `read_flow`, of a .npz with the arrays u and v [height, width] (VIPER): unknown is what isn't
    finite."""
    components = decode_npz(_content(path, size), path, size, ("u", "v"))
    if components[0].shape != components[1].shape:
        raise ValueError(f"{path} holds u {components[0].shape} and v {components[1].shape} of two sizes")
    flow = np.stack(components).astype(np.float32)
    valid = (np.abs(flow[0]) <= _UNKNOWN_ABOVE) & (np.abs(flow[1]) <= _UNKNOWN_ABOVE)
    return np.where(valid, flow, np.float32(0)), valid


def read_ranged_flow(
    path: Path, least: float, most: float, size: tuple[int, int] | None = None
) -> Float[np.ndarray, "2 height width"]:
    """Flow in pixels of a 16-bit PNG whose red holds v and green u (Kubric), 0 for `least` px and 65535 for
    `most`; known everywhere."""
    bgr = _decode_image(_content(path, size), path, cv2.IMREAD_UNCHANGED, size)
    if bgr.dtype != np.uint16 or bgr.ndim != 3 or bgr.shape[2] != 3:
        raise ValueError(
            f"{path} is {bgr.dtype} {bgr.shape}; a flow PNG (Kubric) is uint16 [height, width, 3]"
        )
    share = bgr[..., 1:].transpose(2, 0, 1).astype(np.float64) / _PNG_MAX
    return (least + share * (most - least)).astype(np.float32)


def read_image(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """The image as 8-bit RGB. Grey becomes three equal channels, 16 bits become the upper 8, alpha is
    dropped.

    PNG, JPEG, PGM or PPM, whatever the file's name. size: the (height, width) that it must have. ValueError
    for anything else, and for more than `MOST_PIXELS`.
    """
    bgr = _decode_image(_content(path, size), path, _IMAGE, size)
    return np.ascontiguousarray(bgr[..., ::-1])


def write_image(path: Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes what `encode_image` makes of an RGB image."""
    _write_whole(path, encode_image(image, path))


def encode_image(image: UInt8[np.ndarray, "height width 3"], name: str | PathLike[str]) -> bytes:
    """The content of a file of this name: an RGB image in the extension's format (.png, .ppm, .jpg, ...)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}; it must be uint8 [height, width, 3], RGB")
    return _encode_image(Path(name), image[..., ::-1])


def read_disparity(
    path: Path, scale: float = 1.0, size: tuple[int, int] | None = None
) -> tuple[Float[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """Disparity in pixels and where it is known; zero where it isn't.

    The file (.png, .pgm, .pfm or .npz) holds disparity times `scale`: 256 for KITTI's 16-bit PNG, 4 for
    Middlebury 2003, 1 for .pfm and for .npz, which must hold one array. Unknown values are 0 (KITTI,
    Middlebury 2003) or infinite (Middlebury 2014). size: the (height, width) that it must have. Raises
    ValueError for content that isn't of that format, is truncated or has another size.
    """
    content = _content(path, size)
    if path.suffix.lower() == ".npz":
        (values,) = decode_npz(content, path, size)
    else:
        values = _decode_image(content, path, cv2.IMREAD_UNCHANGED, size)
    disparity = (values if values.ndim == 2 else values[..., 0]).astype(np.float32) / np.float32(scale)
    known = np.isfinite(disparity) & (disparity > 0)
    return np.where(known, disparity, np.float32(0)), known


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Bool[np.ndarray, "height width"]:
    """True where red, green or blue isn't zero, at any bit depth, or where a .npy file of numbers [height,
    width] isn't; raises as `read_image`."""
    return decode_mask(_content(path, size), path, size)


def decode_mask(
    content: bytes, name: str | PathLike[str], size: tuple[int, int] | None = None
) -> Bool[np.ndarray, "height width"]:
    """What `read_mask` makes of a file of this name with this content."""
    path = Path(name)
    mask: np.ndarray
    if path.suffix.lower() == ".npy":
        mask = decode_npy(content, path, size) != 0
    else:
        mask = (_decode_image(content, path, _IMAGE | cv2.IMREAD_ANYDEPTH, size) != 0).any(axis=2)
    return mask


def write_mask(path: Path, mask: Bool[np.ndarray, "height width"]) -> None:
    """Writes what `encode_mask` makes of a mask."""
    _write_whole(path, encode_mask(mask, path))


def encode_mask(mask: Bool[np.ndarray, "height width"], name: str | PathLike[str]) -> bytes:
    """The content of a grey PNG, 255 = True. Lossy formats are refused: they would turn false pixels true."""
    name = Path(name)
    if name.suffix.lower() != ".png":
        raise ValueError(f"mask {name}: the extension must be .png, which is lossless")
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}; it must be bool [height, width]")
    return _encode_image(name, mask.astype(np.uint8) * 255)


def encode_share(share: Float[np.ndarray, "height width"], name: str | PathLike[str]) -> bytes:
    """The content of a grey PNG, 255 = 1, of shares in [0, 1]."""
    return encode_grey(np.rint(255 * share).astype(np.uint8), name)


def encode_grey(values: UInt8[np.ndarray, "height width"], name: str | PathLike[str]) -> bytes:
    """The content of a grey PNG of these values."""
    return _encode_image(Path(name), values)


def _flow_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in FLOW_SUFFIXES:
        raise ValueError(
            f"flow file {path} has the extension {suffix!r}; known are {', '.join(FLOW_SUFFIXES)}"
        )
    return suffix


def _content(path: Path, size: tuple[int, int] | None) -> bytes:
    """The bytes of a file of this (height, width); ValueError for more than any format takes for it."""
    pixels = MOST_PIXELS if size is None else size[0] * size[1]
    most, found = pixels * _MOST_VALUE_BYTES + _SPARE_BYTES, path.stat().st_size
    if found > most:
        raise ValueError(f"{path} has {found} bytes, and {pixels} pixels take at most {most}")
    return path.read_bytes()


def _decode_flo(
    content: bytes, path: Path, size: tuple[int, int] | None
) -> Float[np.ndarray, "2 height width"]:
    if content[:4] != _FLO_MAGIC:
        raise ValueError(f"{path} starts with {content[:4]!r}; a .flo file starts with {_FLO_MAGIC!r}")
    if len(content) < 12:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, a .flo header has 12")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", count=2, offset=4))
    values = _decode_values(content, path, size, offset=12, dtype="<f4", shape=(height, width, 2))
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _encode_flo(flow: Float[np.ndarray, "2 height width"]) -> bytes:
    height, width = flow.shape[1:]
    size = np.array([width, height], "<i4").tobytes()
    return _FLO_MAGIC + size + flow.transpose(1, 2, 0).astype("<f4").tobytes()


def _decode_flow_pfm(
    content: bytes, path: Path, size: tuple[int, int] | None
) -> Float[np.ndarray, "2 height width"]:
    header = _PFM_HEADER.match(content)
    if header is None:
        raise ValueError(
            f"{path} starts with {content[:16]!r}; a .pfm file starts with PF, width, height and scale"
        )
    kind, width, height, scale = header.groups()
    if kind == b"Pf":
        raise ValueError(
            f"{path} has one channel, such as a disparity or a weight; flow needs three: u, v, 0"
        )
    if float(scale) == 0:
        raise ValueError(
            f"{path} has the scale 0; its sign gives the byte order: negative little, positive big endian"
        )
    dtype: Literal["<f4", ">f4"] = "<f4" if float(scale) < 0 else ">f4"
    values = _decode_values(
        content, path, size, offset=header.end(), dtype=dtype, shape=(int(height), int(width), 3)
    )
    bottom_up = values[::-1]
    return np.ascontiguousarray(bottom_up[..., :2].transpose(2, 0, 1), dtype=np.float32)


def _encode_flow_pfm(flow: Float[np.ndarray, "2 height width"]) -> bytes:
    _, height, width = flow.shape
    values = np.zeros((height, width, 3), "<f4")
    values[..., :2] = flow.transpose(1, 2, 0)
    return f"PF\n{width} {height}\n-1\n".encode() + values[::-1].tobytes()


def _decode_values(
    content: bytes,
    path: Path,
    size: tuple[int, int] | None,
    *,
    offset: int,
    dtype: Literal["<f4", ">f4"],
    shape: tuple[int, int, int],
) -> Float[np.ndarray, "height width channels"]:
    height, width, channels = shape
    if min(height, width) < 1:
        raise ValueError(f"{path} says it is {height} px high and {width} px wide; both must be positive")
    require_size(path, (height, width), size)
    expected, found = height * width * channels * 4, len(content) - offset
    if found < expected:
        raise ValueError(f"{path} is truncated: {found} bytes of values, {height}x{width} needs {expected}")
    if found > expected:
        raise ValueError(
            f"{path} does not match its header: {found} bytes of values, {height}x{width} needs {expected}"
        )
    return np.frombuffer(content, dtype, offset=offset).reshape(shape)


def _decode_kitti(
    content: bytes, path: Path, size: tuple[int, int] | None
) -> tuple[Float[np.ndarray, "2 height width"], Bool[np.ndarray, "height width"]]:
    bgr = _decode_image(content, path, cv2.IMREAD_UNCHANGED, size)
    if bgr.dtype != np.uint16 or bgr.ndim != 3 or bgr.shape[2] != 3:
        raise ValueError(
            f"{path} is {bgr.dtype} {bgr.shape}; a flow PNG (KITTI) is uint16 [height, width, 3]"
        )
    valid = bgr[..., 0] > 0
    flow = (bgr[..., :0:-1].transpose(2, 0, 1).astype(np.float32) - _PNG_ZERO) / _PNG_UNITS_PER_PIXEL
    return np.where(valid, flow, np.float32(0)), valid


def _encode_kitti(
    flow: Float[np.ndarray, "2 height width"], valid: Bool[np.ndarray, "height width"], path: Path
) -> bytes:
    units = np.rint(flow * _PNG_UNITS_PER_PIXEL) + _PNG_ZERO
    beyond = (units < 0) | (units > _PNG_MAX)
    if beyond.any():
        raise ValueError(
            f"flow {flow[beyond][0]} px does not fit the 16-bit PNG {path}, which holds -512 to 511.98 px; "
            "write .flo instead"
        )
    bgr = np.stack([np.ones_like(units[0]), units[1], units[0]], axis=-1).astype(np.uint16) * valid[..., None]
    return _encode_image(path, bgr)


def _decode_image(content: bytes, path: Path, mode: int, size: tuple[int, int] | None) -> np.ndarray:
    try:
        require_size(path, image_size(content), size)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
        if image is not None:
            require_decoded(image.shape, content)
    except RefusedError:
        raise
    except (ValueError, cv2.error) as error:
        raise ValueError(f"{path} is not an image: {error}") from error
    if image is None:
        raise ValueError(
            f"{path} ({len(content)} bytes) is truncated or is not an image that OpenCV can decode"
        )
    return image


def _encode_image(path: Path, image: np.ndarray) -> bytes:
    try:
        encoded, content = cv2.imencode(path.suffix, np.ascontiguousarray(image))
    except cv2.error as error:
        raise ValueError(
            f"image {path}: no encoder for the extension {path.suffix!r}; .png always works"
        ) from error
    if not encoded:
        raise ValueError(
            f"image {path}: {image.dtype} {image.shape} cannot be stored as {path.suffix!r}; use .png"
        )
    return content.tobytes()


def _write_whole(path: Path, content: bytes) -> None:
    # With the file's own name in it, it could be too long.
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
