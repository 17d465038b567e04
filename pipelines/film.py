"""How is a video's flow drawn? As pictures, and as a film of them.

Pictures are drawn when all flow is there, so that one scale serves the whole video: in pictures with scales
of their own the same colour would be another speed.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

from flowcore.drawing import (
    Cell,
    Picture,
    brought_back,
    flow_colors,
    flow_legend,
    occlusion_image,
    panel,
    with_arrows,
)
from flowcore.formats import decode_mask, encode_image
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess
from pipelines.destinations import flow_name
from pipelines.flow_files import FILM_NAME, OCCLUSION, PICTURE, PredictionOptions, written_flow
from pipelines.inference import SeenPair, seen_pairs
from pipelines.storage import Folder

_DEFAULT_RATE = Fraction(25)
_FASTEST, _SLOWEST = 1000.0, 10.0
"""Pictures a second, and seconds of a picture, that are still taken for a video's own."""


def draw(source: VideoSource, folder: Folder, options: PredictionOptions, scale: float) -> Iterator[SeenPair]:
    """Draws the pairs whose flow lies in the folder, and gives each once it is drawn; `scale` pixels are
    drawn in full colour. Pictures of an earlier run that aren't drawn anew have another scale, and go."""
    drawn = set()
    with ExitStack() as stack:
        decoder = stack.enter_context(DecoderProcess())
        shown = stack.enter_context(film(folder)) if options.video else None
        for pair in seen_pairs(decoder, source, stride=options.stride, most=options.limit):
            picture = _picture(folder, flow_name(source, pair.index), pair, options, scale)
            if options.pictures:
                name = flow_name(source, pair.index) + PICTURE
                folder.write(name, encode_image(picture, name))
                drawn.add(name)
            if shown is not None:
                shown.add(picture, pair.seconds)
            yield pair
    if options.pictures:
        for name in folder.infos(recursive=False):
            if name.endswith(PICTURE) and name not in drawn:
                folder.remove(name)


def _picture(folder: Folder, name: str, pair: SeenPair, options: PredictionOptions, scale: float) -> Picture:
    flow = written_flow(folder, options, name, pair)
    row: list[Cell | None] = [
        ("frame", with_arrows(pair.image1, flow)),
        ("flow", flow_colors(flow, scale)),
    ]
    if options.warped:
        row.append(("next frame, brought back", brought_back(pair.image2, flow)))
    if options.occlusion:
        occluded = decode_mask(folder.read(name + OCCLUSION), name + OCCLUSION)
        row.append(("white: not seen in the next frame", occlusion_image(occluded)))
    side = min(128, *pair.image1.shape[:2])
    row.append((f"up to {scale:.1f} px, darker beyond", flow_legend(side, side)))
    return panel([row])


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
