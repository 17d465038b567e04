"""How are flow fields, images and masks stored in files, and when is a file not what its name says?

Every reader returns flow together with where it is known, because each format has its own way to say
"unknown": a value beyond 1e9 in `.flo` and `.pfm`, NaN in Spring's `.flo5`, a zero third channel in KITTI's
PNG. Every writer encodes in memory and renames a finished temporary file into place, so that a killed process
leaves the old file or the new one, never half of it.
"""

import io
import math
import re
import uuid
import zlib
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

FLOW_SUFFIXES = (".flo", ".flo5", ".pfm", ".png")

_FLO_MAGIC = np.float32(202021.25).tobytes()  # spells PIEH
_UNKNOWN_ABOVE = 1e9
_UNKNOWN = 1e10
_PNG_UNITS_PER_PIXEL = 64
_PNG_ZERO = 2**15
_PNG_MAX = 2**16 - 1
_MOST_PIXELS = 2**26
"""Of flow whose file is compressed, so that the file's size doesn't bound it: 8192x8192, twice a frame of 8K
video."""
_GZIP, _LZF = 1, 32000
"""HDF5's numbers of the filters that compress."""
_MOST_UNPACKED = {_GZIP: 1032, _LZF: 88}
"""Bytes at most that a filter makes of one."""
_HARMLESS_FILTERS = {2, 3}
"""HDF5's numbers of shuffling and checksums, which change no size."""
_MOST_CHUNK_BYTES = 2**28
"""Memory that HDF5 may need to unpack one chunk of a data set."""
_MOST_NPZ_BYTES = 8 * _MOST_PIXELS
_PFM_HEADER = re.compile(rb"(PF|Pf)\s+(\d+)\s+(\d+)\s+([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s")


def read_flow(
    path: str | PathLike[str], size: tuple[int, int] | None = None
) -> tuple[Float[np.ndarray, "2 height width"], Bool[np.ndarray, "height width"]]:
    """Flow in pixels (float32, [u, v]) and where it is known; zero where it is not.

    The extension decides: `.flo` (Middlebury), `.flo5` (Spring), `.png` (KITTI, 16 bit, 1/64 px), `.pfm`
    (channels u, v, 0). size: the (height, width) of its frames, which it must have. Raises ValueError when
    the content is not that format, is truncated or has another size.
    """
    path = Path(path)
    suffix = _flow_suffix(path)
    content = path.read_bytes()
    if suffix == ".png":
        flow, valid = _decode_kitti(content, path)
        _require_size(path, valid.shape, size)
        return flow, valid
    if suffix == ".flo5":
        flow = _decode_flo5(content, path, size)
    else:
        flow = {".flo": _decode_flo, ".pfm": _decode_flow_pfm}[suffix](content, path)
        _require_size(path, flow.shape[1:], size)
    valid = (np.abs(flow) <= _UNKNOWN_ABOVE).all(axis=0)  # false for NaN too
    return np.where(valid, flow, np.float32(0)), valid


def write_flow(
    path: str | PathLike[str],
    flow: Float[np.ndarray, "2 height width"],
    valid: Bool[np.ndarray, "height width"] | None = None,
) -> None:
    """Writes flow in pixels in the format of the extension (see `read_flow`); no `valid` = known everywhere.

    `.flo`, `.flo5` and `.pfm` keep float32 exactly; `.png` rounds to the nearest 1/64 px. Raises ValueError
    when a known value is not finite or does not fit the format.
    """
    path = Path(path)
    suffix = _flow_suffix(path)
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
            f"flow for {path} is not finite, or above 1e9 px, at {beyond.sum()} pixels that count as known; "
            "mark them False in valid"
        )
    flow = np.where(known, flow, 0).astype(np.float32)
    if suffix == ".png":
        _write_whole(path, _encode_kitti(flow, known, path))
        return
    flow = np.where(known, flow, np.float32(np.nan if suffix == ".flo5" else _UNKNOWN))
    encode = {".flo": _encode_flo, ".flo5": _encode_flo5, ".pfm": _encode_flow_pfm}[suffix]
    _write_whole(path, encode(flow))


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The image as 8-bit RGB; grey becomes three equal channels, 16 bit becomes its upper byte, alpha is
    lost."""
    bgr = _decode_image(path.read_bytes(), path, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(bgr[..., ::-1])


def write_image(path: Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes an RGB image in the format of the extension (.png, .ppm, .jpg, ...)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}; it must be uint8 [height, width, 3], RGB")
    _write_whole(path, _encode_image(path, image[..., ::-1]))


def read_disparity(
    path: Path, scale: float = 1.0
) -> tuple[Float[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """(disparity in pixels, where it is known) from .png, .pgm, .pfm or .npz, whose values are `scale` times
    that.

    Unknown, and 0 in the result, is what is 0 (KITTI, Middlebury 2003) or infinite (Middlebury 2014). Scales:
    256 for KITTI's 16-bit PNG, 4 for Middlebury 2003, 1 for .pfm and for .npz, which holds one array. Raises
    ValueError when the content is not that format or is truncated.
    """
    content = path.read_bytes()
    if path.suffix.lower() == ".npz":
        values = _decode_npz(content, path)
    else:
        values = _decode_image(content, path, cv2.IMREAD_UNCHANGED)
    disparity = (values if values.ndim == 2 else values[..., 0]).astype(np.float32) / np.float32(scale)
    known = np.isfinite(disparity) & (disparity > 0)
    return np.where(known, disparity, np.float32(0)), known


def read_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """True where the image is not zero in red, green or blue, at any depth."""
    bgr = _decode_image(path.read_bytes(), path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    mask: np.ndarray = (bgr != 0).any(axis=2)
    return mask


def write_mask(path: Path, mask: Bool[np.ndarray, "height width"]) -> None:
    """Writes a grey PNG, 255 = True; a lossy format would make false pixels true."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"mask {path}: the extension must be .png, which loses nothing")
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}; it must be bool [height, width]")
    _write_whole(path, _encode_image(path, mask.astype(np.uint8) * 255))


def _flow_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in FLOW_SUFFIXES:
        raise ValueError(
            f"flow file {path} has the extension {suffix!r}; known are {', '.join(FLOW_SUFFIXES)}"
        )
    return suffix


def _decode_flo(content: bytes, path: Path) -> Float[np.ndarray, "2 height width"]:
    if content[:4] != _FLO_MAGIC:
        raise ValueError(f"{path} starts with {content[:4]!r}; a .flo file starts with {_FLO_MAGIC!r}")
    if len(content) < 12:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, a .flo header has 12")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", count=2, offset=4))
    values = _decode_values(content, path, offset=12, dtype="<f4", shape=(height, width, 2))
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _encode_flo(flow: Float[np.ndarray, "2 height width"]) -> bytes:
    height, width = flow.shape[1:]
    size = np.array([width, height], "<i4").tobytes()
    return _FLO_MAGIC + size + flow.transpose(1, 2, 0).astype("<f4").tobytes()


class _RefusedFlowError(ValueError):
    """What a file holds as flow isn't to be read; the message names the file."""


def _require_size(path: Path, found: tuple[int, ...], size: tuple[int, int] | None) -> None:
    if size is not None and found != size:
        raise _RefusedFlowError(
            f"the flow in {path} is {found[0]}x{found[1]} px (height x width) and its frames are "
            f"{size[0]}x{size[1]} px; they must be of one size"
        )


def _decode_flo5(
    content: bytes, path: Path, size: tuple[int, int] | None
) -> Float[np.ndarray, "2 height width"]:
    # It takes a tenth of a second to import, and few read this format.
    import h5py

    try:
        with h5py.File(io.BytesIO(content)) as file:
            link = file.get("flow", getlink=True)
            if link is not None and not isinstance(link, h5py.HardLink):
                raise _RefusedFlowError(f"the flow in {path} is a link; the file must hold the flow itself")
            dataset = file["flow"]
            if problem := _why_not_plain(dataset) or _why_too_large(dataset, len(content)):
                raise _RefusedFlowError(f"the flow in {path} {problem}")
            _require_size(path, dataset.shape[:2], size)
            values = np.asarray(dataset, np.float32)
    except _RefusedFlowError:
        raise
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not an HDF5 file with a data set 'flow', as .flo5 is: {error}"
        ) from error
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _why_not_plain(dataset: Any) -> str:
    """What makes an HDF5 object something else than floats [height, width, 2] in the file itself; empty if
    nothing does."""
    if not hasattr(dataset, "shape"):
        return "is no data set"
    if dataset.is_virtual or dataset.external is not None:
        return "is stored in other files; the file must hold the flow itself"
    if dataset.dtype.kind != "f":
        return f"is of {dataset.dtype}; it must be of floats"
    if dataset.ndim != 3 or dataset.shape[2] != 2 or dataset.size == 0:
        return f"has shape {dataset.shape}; it must be [height, width, 2]"
    filters = _filters(dataset)
    others = [each for each in filters if each not in _HARMLESS_FILTERS]
    if len(others) > 1 or not _MOST_UNPACKED.keys() >= {*others}:
        return f"went through HDF5's filters {filters}; compress it with gzip or LZF once, or not at all"
    return ""


def _why_too_large(dataset: Any, file_bytes: int) -> str:
    """What makes a plain data set ask for more memory than its file accounts for; empty if nothing does.

    HDF5 allocates what a header says, fills in what isn't stored, and unpacks a chunk to its end, which may
    be far beyond the chunk's size.
    """
    height, width, _ = dataset.shape
    if height * width > _MOST_PIXELS:
        return f"is {height}x{width} px (height x width); flow of more than {_MOST_PIXELS} pixels isn't read"
    filters = _filters(dataset)
    packer = next((each for each in filters if each in _MOST_UNPACKED), None)
    ratio = 1 if packer is None else _MOST_UNPACKED[packer]
    lacking = f"is {height}x{width} px (height x width), and the file doesn't hold so many"
    if dataset.nbytes > ratio * file_bytes:
        return lacking
    if dataset.chunks is None:
        return "" if dataset.id.get_storage_size() == dataset.nbytes else lacking
    chunks: list[Any] = []
    dataset.id.chunk_iter(chunks.append)
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    if len(chunks) < math.prod(-(-whole // part) for whole, part in sides):
        return lacking
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk_bytes > max(dataset.nbytes, _MOST_CHUNK_BYTES):
        return f"is stored in chunks of {dataset.chunks}, more than the flow itself"
    if packer is None:
        return ""
    for chunk in chunks:
        # Noise, which no filter makes smaller, is stored as it is.
        is_packed = not chunk.filter_mask >> filters.index(packer) & 1
        is_suspect = is_packed and chunk.size * ratio > _MOST_CHUNK_BYTES
        if is_suspect and (packer != _GZIP or not _unzips_within(dataset, chunk, chunk_bytes)):
            return f"has a chunk of {chunk.size} bytes that may unpack to more than {chunk_bytes}"
    return ""


def _filters(dataset: Any) -> list[int]:
    """HDF5's numbers of what each chunk went through, in this order."""
    properties = dataset.id.get_create_plist()
    return [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]


def _unzips_within(dataset: Any, chunk: Any, most: int) -> bool:
    """Whether a gzip chunk unpacks to at most so many bytes."""
    _, content = dataset.id.read_direct_chunk(chunk.chunk_offset)
    return len(zlib.decompressobj().decompress(content, most + 1)) <= most


def _encode_flo5(flow: Float[np.ndarray, "2 height width"]) -> bytes:
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("flow", data=flow.transpose(1, 2, 0), compression="gzip", compression_opts=5)
    return content.getvalue()


def _decode_flow_pfm(content: bytes, path: Path) -> Float[np.ndarray, "2 height width"]:
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
            f"{path} has the scale 0; its sign says the byte order: below 0 little, above 0 big endian"
        )
    dtype: Literal["<f4", ">f4"] = "<f4" if float(scale) < 0 else ">f4"
    values = _decode_values(
        content, path, offset=header.end(), dtype=dtype, shape=(int(height), int(width), 3)
    )
    bottom_up = values[::-1]
    return np.ascontiguousarray(bottom_up[..., :2].transpose(2, 0, 1), dtype=np.float32)


def _encode_flow_pfm(flow: Float[np.ndarray, "2 height width"]) -> bytes:
    _, height, width = flow.shape
    values = np.zeros((height, width, 3), "<f4")
    values[..., :2] = flow.transpose(1, 2, 0)
    return f"PF\n{width} {height}\n-1\n".encode() + values[::-1].tobytes()


def _decode_values(
    content: bytes, path: Path, *, offset: int, dtype: Literal["<f4", ">f4"], shape: tuple[int, int, int]
) -> Float[np.ndarray, "height width channels"]:
    height, width, channels = shape
    if min(height, width) < 1:
        raise ValueError(f"{path} says it is {height} px high and {width} px wide; both must be positive")
    expected, found = height * width * channels * 4, len(content) - offset
    if found < expected:
        raise ValueError(f"{path} is truncated: {found} bytes of values, {height}x{width} needs {expected}")
    if found > expected:
        raise ValueError(
            f"{path} does not match its header: {found} bytes of values, {height}x{width} needs {expected}"
        )
    return np.frombuffer(content, dtype, offset=offset).reshape(shape)


def _decode_kitti(
    content: bytes, path: Path
) -> tuple[Float[np.ndarray, "2 height width"], Bool[np.ndarray, "height width"]]:
    bgr = _decode_image(content, path, cv2.IMREAD_UNCHANGED)
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


def _decode_npz(content: bytes, path: Path) -> np.ndarray:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            unpacked = sum(each.file_size for each in arrays.zip.infolist())
            if unpacked > _MOST_NPZ_BYTES:
                raise ValueError(f"it unpacks to {unpacked} bytes; at most {_MOST_NPZ_BYTES} are read")
            (values,) = map(np.asarray, arrays.values())
    except Exception as error:  # zipfile, zlib and the parsers of NumPy's header have errors of their own
        raise ValueError(f"{path} is truncated or is not an .npz file with one array: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {values.dtype} {values.shape}; it must be numbers [height, width]")
    return values


def _decode_image(content: bytes, path: Path, mode: int) -> np.ndarray:
    # OpenCV asserts on an empty buffer; for every other broken file it answers None.
    image = cv2.imdecode(np.frombuffer(content, np.uint8), mode) if content else None
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
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
