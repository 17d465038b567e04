"""How is Spring's .flo5 stored, an HDF5 file with a data set `flow` [height, width, 2] of floats?

HDF5 can do far more: it follows links into other files, unpacks with code that it finds, and asks for the
memory that a header says. A file may come from a stranger, so nothing but the plain data set is read, once
its shape fits its frames and its file.
"""

import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flowcore.image_size import RefusedError, require_size

_GZIP, _LZF = 1, 32000
"""HDF5's numbers of the filters that compress."""
_MOST_UNPACKED = {_GZIP: 1032, _LZF: 88}
"""Bytes at most that a filter makes of one."""
_HARMLESS_FILTERS = {2, 3}
"""HDF5's numbers of shuffling and checksums, which change no size."""
_MOST_CHUNK_BYTES = 2**28
"""Memory that HDF5 may need to unpack one chunk of a data set."""
_MOST_CHUNKS = 2**20
"""Of a data set; each is an object in memory."""


def decode_flo5(
    content: bytes, path: Path, size: tuple[int, int] | None
) -> Float[np.ndarray, "2 height width"]:
    """Flow in pixels, nan where it isn't known, of a file at `path` with this content.

    size: see `flowcore.formats.read_flow`. ValueError for anything else than plain floats of that size in the
    file itself.
    """
    # It takes a tenth of a second to import, and few read this format.
    import h5py

    try:
        with h5py.File(io.BytesIO(content)) as file:
            link = file.get("flow", getlink=True)
            if link is not None and not isinstance(link, h5py.HardLink):
                raise RefusedError(f"the flow in {path} is a link; the file must hold the flow itself")
            dataset = file["flow"]
            if problem := _why_not_plain(dataset):
                raise RefusedError(f"the flow in {path} {problem}")
            require_size(path, dataset.shape[:2], size)
            if problem := _why_too_large(dataset, len(content)):
                raise RefusedError(f"the flow in {path} {problem}")
            values = np.asarray(dataset, np.float32)
    except RefusedError:
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
    filters = _filters(dataset)
    packer = next((each for each in filters if each in _MOST_UNPACKED), None)
    ratio = 1 if packer is None else _MOST_UNPACKED[packer]
    lacking = f"is {height}x{width} px (height x width), and the file doesn't hold so many"
    if dataset.nbytes > ratio * file_bytes:
        return lacking
    if dataset.chunks is None:
        return "" if dataset.id.get_storage_size() == dataset.nbytes else lacking
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    count = math.prod(-(-whole // part) for whole, part in sides)
    if count > _MOST_CHUNKS:
        return f"is stored in {count} chunks of {dataset.chunks}; at most {_MOST_CHUNKS} are read"
    chunks: list[Any] = []
    dataset.id.chunk_iter(chunks.append)
    if len(chunks) < count:
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


def encode_flo5(flow: Float[np.ndarray, "2 height width"]) -> bytes:
    """The content of a file with this flow."""
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("flow", data=flow.transpose(1, 2, 0), compression="gzip", compression_opts=5)
    return content.getvalue()
