"""How do pictures become a video?"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

from flowcore.drawing import Picture
from pipelines.storage import Folder

FILM_NAME = "flow.mp4"
_DEFAULT_RATE = Fraction(25)
_FASTEST, _SLOWEST = 1000.0, 10.0
"""Pictures a second, and seconds of a picture, that are still taken for a video's own."""


class Film:
    """An H.264 video, written picture by picture."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._container: OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def add(self, picture: Picture, seconds: float) -> None:
        """`seconds` from this picture to the next; the first picture decides the film's rate."""
        # H.264 has even sides.
        even = np.pad(picture, [(0, side % 2) for side in picture.shape[:2]] + [(0, 0)], mode="edge")
        if self._container is None or self._stream is None:
            self._container = av.open(str(self._path), "w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=_rate(seconds), options={"crf": "18"})
            self._stream.height, self._stream.width = even.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Writes what the encoder still holds."""
        if self._container is not None and self._stream is not None:
            self._container.mux(self._stream.encode(None))

    def close(self) -> None:
        if self._container is not None:
            self._container.close()


@contextmanager
def film(folder: Folder) -> Iterator[Film]:
    """The folder's film, which appears complete or not at all; without a picture, none."""
    with folder.writing(FILM_NAME) as path:
        new = Film(path)
        try:
            yield new
            new.finish()
        finally:
            new.close()


def _rate(seconds: float) -> Fraction:
    """Pictures a second."""
    if math.isnan(seconds) or not 1 / _FASTEST <= seconds <= _SLOWEST:
        return _DEFAULT_RATE
    return Fraction(1 / seconds).limit_denominator(1001)
