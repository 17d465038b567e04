"""How large is an image in a file, and may it be? By its header, before anything is decoded.

An image of one colour takes a thousand times its file, and its header can ask for more. So whoever decodes
what others made asks first. Of the formats that a header names, OpenCV decodes the one that the content is
in, whatever the file's name, so only those are images here that this module knows.
"""

import re
from pathlib import Path

MOST_PIXELS = 2**26
"""Of an image or a flow: 8192x8192, twice a frame of 8K video."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
"""Markers of the segments of a JPEG that hold its size."""
_JPEG_ALONE = {0x00, 0x01, *range(0xD0, 0xDB)}
"""Markers without a length, or of the image itself: none of them comes before the size."""
_SPACE = rb"[ \t\r\n](?:[ \t\r\n]|#[^\r\n]*[\r\n])*"
"""As OpenCV reads it: either line end ends a comment, and none begins right behind a number."""
_PNM = re.compile(rb"P[1-6Ff]" + _SPACE + rb"([0-9]{1,9})" + _SPACE + rb"([0-9]{1,9})[ \t\r\n]")
_PNM_HEADER_BYTES = 2**16
"""Of such a header and its comments, at most."""


class RefusedError(ValueError):
    """What a file holds isn't to be read; the message names the file."""


def require_size(path: Path, found: tuple[int, ...], size: tuple[int, int] | None) -> None:
    """RefusedError where an image or a flow of the (height, width) `found` isn't to be read.

    size: the (height, width) of the frames that it belongs to, None if it is such a frame.
    """
    shown = f"{path} is {found[0]}x{found[1]} px (height x width)"
    if size is not None and tuple(found) != tuple(size):
        raise RefusedError(f"{shown} and its frames are {size[0]}x{size[1]} px; they must be of one size")
    if found[0] * found[1] > MOST_PIXELS:
        raise RefusedError(f"{shown}; more than {MOST_PIXELS} pixels aren't read")


def require_decoded(found: tuple[int, ...], content: bytes) -> None:
    """ValueError where the image that was decoded has another (height, width), the first of `found`, than its
    header says: whatever else the decoder makes of a header, what was checked by it is what is used."""
    said = image_size(content)
    if tuple(found[:2]) != said:
        raise ValueError(f"its header says {said} px (height, width), and {tuple(found[:2])} px were decoded")


def image_size(content: bytes) -> tuple[int, int]:
    """(height, width) in px of a PNG, a JPEG, or a PBM, PGM, PPM or PFM; ValueError for anything else."""
    if content[:8] == _PNG and content[12:16] == b"IHDR" and len(content) >= 24:
        return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    if content[:2] == _JPEG:
        return _jpeg_size(content)
    if match := _PNM.match(content, 0, _PNM_HEADER_BYTES):
        return int(match[2]), int(match[1])
    raise ValueError(f"it begins with {content[:8]!r}, as no PNG, JPEG, PGM, PPM or PFM does")


def _jpeg_size(content: bytes) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in _JPEG_FRAMES:
            height, width = content[at + 5 : at + 7], content[at + 7 : at + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        if marker in _JPEG_ALONE:
            break
        # Another 0xFF only fills.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise ValueError("it is a JPEG whose header holds no size")
