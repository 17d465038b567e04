"""How are arrays read from NumPy's files, .npy and .npz, that others made?

By their headers first: a header can ask for any memory, and an array of objects would run code.
"""

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flowcore.image_size import RefusedError, require_size

_NUMBERS = "fiu"
"""NumPy's kinds of numbers: floats, integers with a sign and without."""


def decode_flow_npy(
    content: bytes, path: Path, size: tuple[int, int] | None
) -> Float[np.ndarray, "2 height width"]:
    """Flow of a file of floats [height, width, 2]."""
    with _as_npy(path):
        file = io.BytesIO(content)
        shape, _, dtype = _header(file)
        if len(shape) != 3 or shape[2] != 2 or dtype.kind != "f":
            raise RefusedError(f"{path} holds {dtype} {shape}; flow is float [height, width, 2]")
        _require_all(path, shape, dtype, size, file.tell(), len(content))
        flow = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return np.ascontiguousarray(flow.transpose(2, 0, 1), dtype=np.float32)


def encode_flow_npy(flow: Float[np.ndarray, "2 height width"]) -> bytes:
    """The content of a file with this flow."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(flow.transpose(1, 2, 0)), allow_pickle=False)
    return file.getvalue()


def decode_npy(content: bytes, path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """The numbers [height, width] of a file."""
    with _as_npy(path):
        file = io.BytesIO(content)
        shape, _, dtype = _header(file)
        _require_map(path, shape, dtype)
        _require_all(path, shape, dtype, size, file.tell(), len(content))
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def decode_npz(
    content: bytes, path: Path, size: tuple[int, int] | None, names: Sequence[str] | None = None
) -> list[np.ndarray]:
    """The numbers [height, width] of these names in an archive; without names, of its only array."""
    with _as_npy(path), zipfile.ZipFile(io.BytesIO(content)) as archive:
        if names is None:
            (member,) = archive.infolist()
            return [_member(archive, member, path, size)]
        return [_member(archive, archive.getinfo(f"{name}.npy"), path, size) for name in names]


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, size: tuple[int, int] | None
) -> np.ndarray:
    with archive.open(member) as file:
        shape, _, dtype = _header(file)
        _require_map(path, shape, dtype)
        _require_all(path, shape, dtype, size, file.tell(), member.file_size)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _require_map(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) != 2 or dtype.kind not in _NUMBERS:
        raise RefusedError(f"{path} holds {dtype} {shape}; it must be numbers [height, width]")


def _require_all(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    size: tuple[int, int] | None,
    header_bytes: int,
    found: int,
) -> None:
    """Whether the array has the size that is asked for, and the file as many bytes as its header says."""
    require_size(path, shape[:2], size)
    if header_bytes + math.prod(shape) * dtype.itemsize != found:
        raise ValueError(f"its header says {shape}, and {found} bytes are there")


@contextmanager
def _as_npy(path: Path) -> Iterator[None]:
    """ValueError for whatever a damaged file makes its parsers raise: zipfile, zlib and NumPy's header parser
    have errors of their own."""
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is truncated or is not an {path.suffix} file with one array: {error}"
        ) from error


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether it lies column by column, type) of an array in NumPy's format."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
