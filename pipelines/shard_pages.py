"""What does a part of a Parquet file unpack to? Told by the headers of its pages, before a value is unpacked.

A column's values lie in pages. A page's header says how many it holds and how many bytes they take, and
whoever reads it believes that: of a page of a kilobyte it may be two billion values. So each page is asked
first, and held against what frames of the file's size can have.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_DATA, _DICTIONARY = 0, 2
"""Parquet's kinds of pages, as the next ones, in its format/src/main/thrift/parquet.thrift."""
_PLAIN, _OLD_DICTIONARY, _RLE, _DELTA, _IN_DICTIONARY, _SPLIT = 0, 2, 3, 5, 8, 9
_ENCODINGS = {
    "BYTE_ARRAY": {_PLAIN, _OLD_DICTIONARY, _IN_DICTIONARY},
    "BOOLEAN": {_PLAIN, _RLE},
    "INT32": {_PLAIN, _DELTA, _OLD_DICTIONARY, _IN_DICTIONARY},
    "FLOAT": {_PLAIN, _SPLIT, _OLD_DICTIONARY, _IN_DICTIONARY},
    "DOUBLE": {_PLAIN, _SPLIT, _OLD_DICTIONARY, _IN_DICTIONARY},
}
_BITS = {"BOOLEAN": 1, "INT32": 32, "FLOAT": 32, "DOUBLE": 64}
_LEVEL_BITS = 4
"""Of a value's place in its list, at most, where it isn't run-length coded."""
_SPARE = 2048
"""Bytes of a page beyond its values, such as the headers of their blocks."""
_TEXT_BYTES = {"pair_id": 64, "label_set": 64}
_MOST_TEXT_BYTES = 2**15
"""Of a text, such as a video's name, in the other columns."""
_MOST_TEXTS_BYTES = 2**28
"""Of a column of texts in a row group."""
_FRAMES = ("image1", "image2")
_CHANNELS = {"flow_fw": 2, "flow_bw": 2, "true_flow_fw": 2}
"""Values for each pixel of a frame, at most; of the other lists one."""
PIXELS_A_BYTE = 1024
"""Of an encoded frame, at most: a PNG of one colour has 344, a JPEG of one 170."""
_MOST_PIXELS = 2**29
"""Of the frames of a row group: eight pairs of the largest frames."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A column of a row group, as the file's footer tells of it."""

    column: str
    kind: str
    """Parquet's name of the type of its values."""
    is_list: bool
    is_packed: bool
    start: int
    end: int
    values: int

    @classmethod
    def of(cls, metadata: Any) -> "Chunk":
        """metadata: a `pyarrow.parquet.ColumnChunkMetaData`."""
        start = metadata.data_page_offset
        if metadata.has_dictionary_page and metadata.dictionary_page_offset:
            start = min(start, metadata.dictionary_page_offset)
        column, _, rest = metadata.path_in_schema.partition(".")
        return cls(
            column=column,
            kind=metadata.physical_type,
            is_list=bool(rest),
            is_packed=metadata.compression != "UNCOMPRESSED",
            start=start,
            end=start + metadata.total_compressed_size,
            values=metadata.num_values,
        )


def most_values(chunk: Chunk, rows: int, frame_bytes: int) -> int:
    """How many values a column may have in a row group of so many rows.

    frame_bytes: of all that `image1` holds there, by the file.
    """
    if not chunk.is_list:
        return rows
    return _CHANNELS.get(chunk.column, 1) * min(PIXELS_A_BYTE * frame_bytes, _MOST_PIXELS)


def require_honest(chunk: Chunk, content: memoryview, most: int) -> None:
    """ValueError where the pages of a chunk, whose bytes are `content`, don't hold the values that the footer
    tells of, or unpack to more than these take.

    most: how many values there may be, and, of a column that isn't of lists, have to be.
    """
    if chunk.values > most or (not chunk.is_list and chunk.values != most):
        raise ValueError(f"{chunk.values} values in {chunk.column}, and there can be {most}")
    if chunk.column in _FRAMES and chunk.is_packed:
        raise ValueError(f"{chunk.column} packed once more; frames are stored as they are")
    values = unpacked = dictionary = 0
    for page in _pages(content):
        is_text = chunk.kind == "BYTE_ARRAY"
        if page.values > chunk.values:
            raise ValueError(f"a page of {page.values} values in {chunk.column}, which has {chunk.values}")
        if page.kind == _DICTIONARY:
            if values or dictionary or page.encoding not in (_PLAIN, _OLD_DICTIONARY):
                raise ValueError(f"a dictionary of {chunk.column} that isn't its first page")
            if chunk.column in _FRAMES:
                raise ValueError(f"{chunk.column} in a dictionary; frames are stored as they are")
            dictionary = page.unpacked
        elif page.encoding not in _ENCODINGS.get(chunk.kind, ()):
            raise ValueError(f"{chunk.column} in the encoding {page.encoding}")
        else:
            values += page.values
        if chunk.column in _FRAMES:
            # Not packed, so the file holds what it unpacks to.
            continue
        bits = 8 * (_TEXT_BYTES.get(chunk.column, _MOST_TEXT_BYTES) + 4) if is_text else _BITS[chunk.kind]
        unpacked += page.unpacked
        if page.unpacked > page.values * (bits + bits // 8 + _LEVEL_BITS) // 8 + _SPARE:
            raise ValueError(f"{page.values} values in {chunk.column} that unpack to {page.unpacked} bytes")
        if is_text and unpacked + dictionary * values > _MOST_TEXTS_BYTES:
            raise ValueError(f"texts in {chunk.column} of more than {_MOST_TEXTS_BYTES} bytes")
    if values != chunk.values:
        raise ValueError(
            f"{values} values in the pages of {chunk.column}, and its footer says {chunk.values}"
        )


@dataclass(frozen=True)
class _Page:
    kind: int
    unpacked: int
    values: int
    encoding: int


def _pages(content: memoryview) -> Iterator[_Page]:
    """The pages of a column chunk; ValueError for what isn't written as one follows the other."""
    at = 0
    while at < len(content):
        header, at = _numbers(content, at)
        kind = header.get((1,), -1)
        about = {_DATA: 5, _DICTIONARY: 7}.get(kind)
        if about is None or (about, 1) not in header:
            raise ValueError(f"a page of the kind {kind}")
        if kind == _DATA and (header.get((5, 3)), header.get((5, 4))) != (_RLE, _RLE):
            raise ValueError("a page whose levels aren't run-length coded")
        at += header.get((3,), len(content))
        if at > len(content):
            raise ValueError("a page that ends behind its column")
        yield _Page(kind, header.get((2,), 0), header[about, 1], header.get((about, 2), -1))


def _numbers(content: memoryview, at: int) -> tuple[dict[tuple[int, ...], int], int]:
    """(the numbers of a page's header by the ids of their fields, where the header ends), of Thrift's compact
    protocol; ValueError for what no writer writes, as readers differ in what they make of it."""
    numbers: dict[tuple[int, ...], int] = {}
    path: list[int] = [0]
    try:
        while True:
            head = content[at]
            at += 1
            if head == 0:
                path.pop()
                if not path:
                    return numbers, at
                continue
            step, kind = head >> 4, head & 15
            if step == 0:
                raise ValueError("a page whose header isn't in order")
            path[-1] += step
            if kind in (1, 2):
                continue
            if kind == 12:
                path.append(0)
                if len(path) > 4:
                    raise ValueError("a page whose header is nested")
            elif kind in (5, 6, 8):
                number, shift = 0, 0
                while True:
                    byte = content[at]
                    at += 1
                    number |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                    if shift > 63:
                        raise ValueError("a page whose header has a number without an end")
                if kind == 8:
                    at += number
                elif number & 1 and kind == 5 and path[0] != 4:
                    raise ValueError("a page with a negative number")
                else:
                    if kind == 5 and number >= 2**32:
                        raise ValueError("a page with a number of more than 32 bits")
                    numbers[tuple(path)] = number >> 1
            else:
                raise ValueError("a page with a header of an unknown kind")
    except IndexError:
        raise ValueError("a page without a whole header") from None
