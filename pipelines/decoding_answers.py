"""Is what a decoder process answers what it was asked for?

The process may have been taken over by a video, so nothing that it sends is believed: not how much it is, not
that frames are images of the size that it names, and not that it has the pairs that it counts.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from flowcore.chunks import VideoReport
from flowcore.frame_codec import FrameCodec
from flowcore.video import MOST_ASPECT, ClipOptions
from pipelines.channel import Message, WrongMessageError, is_list_of

_MOST_COUNT = 2**31 - 1
_MOST_SECONDS = 2**53
"""Of a time in a video: beyond, not every second is a number."""
_MOST_REASON = 2000
"""Characters of a reason that are kept."""
_FRAME_BYTES = 4
"""Most bytes of a pixel of an encoded frame: noise takes 3 as PNG."""
_HEADER_BYTES = 1 << 16
"""Most bytes of an encoded frame beside its pixels."""


@dataclass(frozen=True, eq=False)
class EncodedChunk:
    """A `flowcore.chunks.Chunk` with encoded frames."""

    index: int
    frames: list[bytes]
    frame_indices: list[int]
    timestamps: list[float]
    height: int
    """Of every frame, in pixels."""
    width: int


def most_kept_pixels(options: ClipOptions) -> int:
    """Of the largest frame that there may be after scaling."""
    if options.size is None:
        return options.max_pixels
    return min(options.max_pixels, MOST_ASPECT * max(options.size) ** 2)


class Answers:
    """The answers to one request. Each method raises WrongMessageError for what wasn't asked for."""

    report: VideoReport
    """On the video, as far as it was read."""

    def __init__(self, options: ClipOptions, codec: FrameCodec) -> None:
        self.report = VideoReport()
        self._options = options
        self._codec = codec
        self._chunks = self._pairs = 0
        self._last_frame = -1

    @property
    def most_bytes(self) -> int:
        """Of the bodies of a message."""
        most_frame = _FRAME_BYTES * most_kept_pixels(self._options) + _HEADER_BYTES
        return (self._options.chunk_pairs + 1) * most_frame

    def note(self, message: Message) -> None:
        """Keeps the report that comes with every message."""
        values = message.header.get("report")
        if not isinstance(values, dict) or values.keys() != {each.name for each in fields(VideoReport)}:
            raise WrongMessageError("no report")
        for name, value in values.items():
            if name == "truncated":
                is_right = value is None or isinstance(value, str)
            elif name == "share":
                is_right = _is_number(value) and 0 <= value <= 1
            else:
                is_right = _is_count(value)
            if not is_right:
                raise WrongMessageError(f"a report whose {name} is {value!r:.100}")
        self.report = VideoReport(**{**values, "truncated": _reason(values["truncated"])})

    def chunk(self, message: Message) -> EncodedChunk:
        """The next chunk."""
        values, frames = message.header, message.bodies
        indices, times = values.get("frame_indices"), values.get("timestamps")
        height, width = values.get("height"), values.get("width")
        if values.get("index") != self._chunks:
            raise WrongMessageError(f"chunk {values.get('index')!r:.20} in the place of {self._chunks}")
        if not 2 <= len(frames) <= self._options.chunk_pairs + 1:
            raise WrongMessageError(f"{len(frames)} frames in a chunk")
        if not is_list_of(indices, int) or not isinstance(times, list) or not all(map(_is_number, times)):
            raise WrongMessageError("frames without numbers and times")
        expected = range(indices[0], indices[0] + len(frames) * self._options.stride, self._options.stride)
        if indices != list(expected) or not self._last_frame <= indices[0] <= indices[-1] <= _MOST_COUNT:
            raise WrongMessageError("frames that don't follow each other")
        if len(times) != len(frames) or not _is_count(height) or not _is_count(width):
            raise WrongMessageError("frames without times and sizes")
        if height * width > most_kept_pixels(self._options) or height * width == 0:
            raise WrongMessageError(f"frames of {height}x{width} px")
        for frame in frames:
            if len(frame) > _FRAME_BYTES * height * width + _HEADER_BYTES:
                raise WrongMessageError(f"a frame of {len(frame)} bytes")
            if not self._codec.holds(frame, (height, width)):
                raise WrongMessageError(f"a frame that is no {self._codec.kind} of {height}x{width} px")
        self._pairs += len(frames) - 1
        if self._options.max_pairs_per_video is not None and self._pairs > self._options.max_pairs_per_video:
            raise WrongMessageError(f"{self._pairs} pairs")
        self._chunks += 1
        self._last_frame = indices[-1]
        return EncodedChunk(values["index"], frames, indices, [float(time) for time in times], height, width)

    def end(self, message: Message) -> str | None:
        """Why the video has no more; None at its end."""
        failure = message.header.get("failure")
        if failure is not None and not isinstance(failure, str):
            raise WrongMessageError("an end without a reason")
        if self.report.pairs != self._pairs:
            raise WrongMessageError(f"{self._pairs} pairs of {self.report.pairs}")
        return _reason(failure)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST_COUNT


def _is_number(value: Any) -> bool:
    # A time that isn't known is nan, which is beyond nothing.
    return type(value) in (int, float) and not abs(value) > _MOST_SECONDS


def _reason(text: str | None) -> str | None:
    return None if text is None else text[:_MOST_REASON]
