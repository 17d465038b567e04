"""Which frames does a video hold, whoever made it?

FFmpeg never sees a name. It reads an open file, and of its protocols only the one for that, so nothing in a
video can name another file or a host. How large a frame may be is asked of the header, and again of each
frame.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import av
import cv2
import numpy as np
from av.codec.context import ThreadType
from av.error import ArgumentError, FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from flowcore.shots import DecodedFrame, resized

SAMPLER_VERSION = 2
"""Part of every pair's identity. Raise it when the same video and options begin to give other pairs or
pixels."""


@runtime_checkable
class BinaryFile(Protocol):
    """An open binary file, whichever library opened it."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def close(self) -> None: ...


ImageFile = str | PathLike[str] | Callable[[], BinaryFile]
"""One frame of an image sequence: its path, or a function that opens it."""
VideoInput = str | PathLike[str] | int | BinaryFile | Sequence[ImageFile]
"""A path, the descriptor of an open file, a file object, or the frames of an image sequence in order."""
_FORMATS_WITH_DURATION = frozenset({"avi", "matroska", "mov", "webm"})
_LEAST_OF_PROMISED = 0.9
"""A video shorter than this share of the duration in its header counts as cut off."""
READ_BYTES = 1 << 20
"""Bytes read from a file object at a time; on object storage each read is a request."""
MOST_ASPECT = 8
"""How many times longer than the other a side of a frame may be. The widest of real videos, of three screens
side by side, has 5.3. A frame keeps its aspect when it is scaled down to cover a size, so a strip would stay
as long as it is, and cost a teacher gigabytes."""

# fmt: off
_DEMUXERS = (
    "asf", "av1", "avi", "dv", "flv", "gif", "h264", "hevc", "ivf", "m4v", "matroska", "mjpeg", "mov", "mpeg",
    "mpegts", "mpegvideo", "mpjpeg", "mxf", "nut", "obu", "ogg", "rm", "yuv4mpegpipe",
)
# fmt: on
"""FFmpeg's names of the formats that are read: those of videos that hold their own frames. Among its others
are playlists, lists of files, session descriptions and scripts. Those read other files or the network, and
FFmpeg knows them by their content, whatever their name."""

# fmt: off
_IMAGES = (
    b"BM", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF",
    b"P1", b"P2", b"P3", b"P4", b"P5", b"P6",
)
# fmt: on
"""With what BMP, JPEG, PNG, TIFF, WebP and PPM begin. OpenCV knows more formats, by their content too."""
_TOO_LARGE = "CV_IO_MAX_IMAGE_PIXELS"
"""In OpenCV's error, the environment variable with the most pixels of an image, which it compares with an
image's header. It reads the variable when it is loaded."""

# swscale's area filter alone darkens frames by 2 of 255, with a mean error of 2.5. With accurate rounding and
# planar output these are 0.0 and 0.7, at half the cost of its flag for full chroma in packed output. BITEXACT
# gives the same pixels on every node, whatever its processor.
_AREA = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_PLANAR_RGB = "gbrp"


class VideoError(Exception):
    """A video yields no pair; the message is the reason, for the ledger."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How a video is cut into chunks of frames."""

    size: tuple[int, int] | None = None
    """(height, width) in px to scale frames down to. The aspect ratio is kept: a frame still covers this
    size. Smaller frames are not enlarged. `none` keeps the native size. Lower it for speed; raise it for
    small things."""
    stride: int = 1
    """Distance in frames between the two frames of a pair. Raise it for videos with little motion from frame
    to frame."""
    chunk_pairs: int = 16
    """Maximum pairs per chunk. A chunk is held in memory whole; lower it if memory runs out."""
    cut_threshold: float | None = 3.0
    """How many times larger than the change of the frames around it a frame's change must be to count as a
    cut. Raise it if fast motion is taken for cuts; `none` looks for no cuts."""
    # Measured: duplicates in compressed video up to 0.06, the noise of a still scene 0.08 to 0.13 and 0.25
    # at key frames, slow motion from 0.2.
    static_threshold: float = 0.2
    """Pairs whose mean absolute grey difference (0 to 255) is below this are static and left out; 0 keeps
    all. Lower it for slow or dark videos."""
    # The flattest frame of real clips has 9.2, black frames of a broadcast have 0.0.
    fade_contrast: float = 1.0
    """Frames whose standard deviation of grey (0 to 255) is below this are blank. Pairs with a blank frame
    are left out, and so are the pairs of a fade to or from one, up to 50 frames. 0 keeps all; lower it for
    videos of flat scenes."""
    max_pairs_per_video: int | None = None
    """Take only this many pairs from the start of each video; `none` takes all. Lower it if a few long videos
    outweigh the others."""
    max_frames_per_video: int | None = 2_000_000
    """Read only this many frames from the start of each video, whether they give pairs or not; `none` reads
    all. The default is 22 hours at 25 frames a second. Lower it to bound what an endless file costs."""
    min_size: tuple[int, int] = (32, 32)
    """Smallest (height, width) in px of a frame after scaling; videos with smaller frames are left out. Raise
    it to the size of the training's crops."""
    # 8192x4320 px, the largest form of 8K, has 35.4 million.
    max_pixels: int = 36_000_000
    """Maximum pixels of a frame before scaling; videos with larger frames are skipped before decoding. The
    default takes 8K. It also sets how much memory decoding may take: lower it on small machines."""

    def __post_init__(self) -> None:
        for name, value in (
            ("stride", self.stride),
            ("chunk_pairs", self.chunk_pairs),
            ("max_pairs_per_video", self.max_pairs_per_video),
            ("max_frames_per_video", self.max_frames_per_video),
            ("max_pixels", self.max_pixels),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if min(self.min_size) < 1:
            raise ValueError(f"min_size {self.min_size} must be at least 1 px on each side")
        if self.size is not None and _is_smaller(self.size, self.min_size):
            raise ValueError(
                f"size {self.size} must not be below min_size {self.min_size}, both (height, width) in px: "
                "raise the first or lower the second"
            )
        if self.cut_threshold is not None and not self.cut_threshold > 1:
            raise ValueError(
                f"cut_threshold {self.cut_threshold} must be above 1, the change of the frames around a cut; "
                "None looks for no cuts"
            )
        if not 0 <= self.static_threshold <= 255:
            raise ValueError(
                f"static_threshold {self.static_threshold} must be a grey difference in [0, 255]; "
                "0 keeps static pairs"
            )
        if not 0 <= self.fade_contrast <= 128:
            raise ValueError(
                f"fade_contrast {self.fade_contrast} must be a standard deviation of grey in [0, 128]; "
                "0 keeps fades"
            )


EVERY_PAIR = ClipOptions(cut_threshold=None, static_threshold=0.0, fade_contrast=0.0)
"""Leaves out no pair for what its frames show."""


def decoded_frames(source: VideoInput, options: ClipOptions, threads: int = 1) -> Iterator[DecodedFrame]:
    """Frames up to the end; VideoError where the video breaks, or where its frames aren't to be decoded.

    An OSError of a file object is passed on.
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        yield from _decode_images(source, options)
    elif isinstance(source, str | PathLike):
        try:
            # Opening what isn't a file, such as a pipe, must not wait for ever.
            descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise VideoError(f"can't be opened as a video: {_cause(error)}") from error
        try:
            yield from _decode_video(descriptor, options, threads)
        finally:
            os.close(descriptor)
    else:
        yield from _decode_video(source, options, threads)


def _opened(source: int | BinaryFile, max_pixels: int) -> av.container.InputContainer:
    # What FFmpeg may open by itself: of a file object nothing, of a descriptor that one.
    allowed = {"protocol_whitelist": "", "format_whitelist": ",".join(_DEMUXERS)}
    place: str | BinaryFile
    if isinstance(source, int):
        os.lseek(source, 0, os.SEEK_SET)
        allowed |= {"protocol_whitelist": "fd", "fd": str(source)}
        place = "fd:"
    else:
        source.seek(0)
        place = source
    try:
        return av.open(
            place,
            mode="r",
            options=_decoder_options(max_pixels),
            container_options=allowed,
            # Broken text in the metadata must not make the video unreadable.
            metadata_errors="replace",
            buffer_size=READ_BYTES,
        )
    except ArgumentError as error:
        raise VideoError(
            f"can't be opened as a video: {_cause(error)}; the formats that are read are "
            f"{', '.join(_DEMUXERS)}"
        ) from error
    except FFmpegError as error:
        raise VideoError(f"can't be opened as a video: {_cause(error)}") from error


def _decoder_options(max_pixels: int) -> dict[str, str]:
    """With which a decoder itself refuses frames that are much too large, before it makes room for them. It
    counts its padding too."""
    return {"max_pixels": str(max_pixels * 5 // 4 + 2**18)}


def _decode_video(source: int | BinaryFile, options: ClipOptions, threads: int) -> Iterator[DecodedFrame]:
    container = _opened(source, options.max_pixels)
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise VideoError("no video stream")
        if stream.codec_context is None:
            raise VideoError("no decoder for its video stream")
        _require_decodable((stream.codec_context.height, stream.codec_context.width), options)
        # The header may lie, and frames may grow.
        stream.codec_context.options = _decoder_options(options.max_pixels)
        stream.thread_type = ThreadType.AUTO
        stream.thread_count = threads
        converter = _Converter(options)
        index = damaged = 0
        end = math.nan
        undecodable: FFmpegError | None = None
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except FFmpegError as error:
                    # A recording cut from a broadcast begins between two key frames: skip what comes before
                    # the first decodable frame.
                    if index > 0:
                        raise
                    undecodable = error
                    continue
                for frame in frames:
                    # The decoder has invented what was missing, and that would be learned as motion.
                    if frame.is_corrupt:
                        damaged += 1
                    else:
                        yield converter.convert(frame, index, _share(container, frame.time), damaged)
                    index += 1
                    if frame.time is not None and frame.time_base is not None:
                        end = frame.time + float((frame.duration or 0) * frame.time_base)
        except FFmpegError as error:
            _require_decodable((stream.codec_context.height, stream.codec_context.width), options)
            raise VideoError(f"breaks after {index} frames: {_cause(error)}") from error
        promised = _promised_end(container, stream)
        if end < _LEAST_OF_PROMISED * promised:
            raise VideoError(f"cut off: ends at {end:.1f} s, and its header says {promised:.1f} s")
    if index == damaged:
        _require_decodable((stream.codec_context.height, stream.codec_context.width), options)
        cause = "" if undecodable is None else f": {_cause(undecodable)}"
        raise VideoError(f"no intact frame in its video stream{cause}")


def _promised_end(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """When the video ends by its header, in seconds; nan if the header gives no end for this stream.

    FFmpeg reads a file that was cut off without an error, so this is how we notice. For formats other than
    `_FORMATS_WITH_DURATION` FFmpeg guesses the duration, and a guess is no promise.
    """
    if not _FORMATS_WITH_DURATION & set(container.format.name.split(",")):
        return math.nan
    if stream.duration is not None and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    if len(container.streams) == 1 and container.duration is not None:
        return ((container.start_time or 0) + container.duration) / av.time_base
    return math.nan


def _share(container: av.container.InputContainer, time: float | None) -> float:
    """Share of the container's duration, which FFmpeg may have guessed; 0 if it has none."""
    if time is None or not container.duration:
        return 0.0
    return min(1.0, max(0.0, (time * av.time_base - (container.start_time or 0)) / container.duration))


class _Converter:
    """Turns PyAV's frames of one video into ours."""

    def __init__(self, options: ClipOptions) -> None:
        self._options = options
        self._reformatter = VideoReformatter()
        self._rotation: int | None = None
        self._matrix = (1, 0, 0, 1)

    def convert(self, frame: av.VideoFrame, index: int, share: float, damaged: int) -> DecodedFrame:
        """damaged: how many frames before this one were left out."""
        # Reading a frame's side data puts it into a reference cycle, and hundreds of frames then wait for the
        # garbage collector (900 MB instead of 130 at 1080p). So it is read only when the rotation changes.
        if frame.rotation != self._rotation:
            self._rotation, self._matrix = frame.rotation, _display_matrix(frame)
        stored = (frame.height, frame.width)
        _require_decodable(stored, self._options)
        sideways = abs(self._matrix[1]) > abs(self._matrix[0])
        wanted = _wanted_size(stored[::-1] if sideways else stored, self._options)
        height, width = wanted[::-1] if sideways else wanted
        first = (stored[1], stored[0]) if frame.interlaced_frame else (width, height)
        reformatted = self._reformatter.reformat(frame, *first, _PLANAR_RGB, interpolation=_AREA, threads=1)
        scaled = cast(NDArray[np.uint8], reformatted.to_ndarray())
        if frame.interlaced_frame:
            # Odd and even lines show two moments, which gives moving edges combs: keep one moment.
            scaled = resized(scaled[::2], (height, width))
        image = _upright(scaled, self._matrix)
        strand = (*stored, *self._matrix, damaged)
        time = math.nan if frame.time is None else frame.time
        return DecodedFrame(index, time, share, strand, image)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): the stored pixel (x, y) is shown at (a x + c y, b x + d y), up to scale and shift."""
    data = cast(Mapping[SideDataType, bytes], frame.side_data).get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return a, b, c, d


def _upright(image: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """The image as it is meant to be seen, by the nearest of the eight quarter turns and reflections."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _decode_images(items: Sequence[ImageFile], options: ClipOptions) -> Iterator[DecodedFrame]:
    for index, item in enumerate(items):
        name = f"number {index}" if callable(item) else Path(item).name
        try:
            with closing(item() if callable(item) else open(item, "rb")) as file:
                data = file.read()
            if not data.startswith(_IMAGES):
                raise VideoError(f"image {name} can't be decoded: it is no BMP, JPEG, PNG, PPM, TIFF or WebP")
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        except FileNotFoundError as error:
            raise VideoError(f"image {name} can't be read: {_cause(error)}") from error
        except cv2.error as error:
            if _TOO_LARGE in str(error):
                why = (
                    f"too large: image {name} has more than {options.max_pixels} pixels (--clips.max-pixels)"
                )
                raise VideoError(why) from error
            raise VideoError(f"image {name} can't be read: {_cause(error)}") from error
        if image is None:
            raise VideoError(f"image {name} can't be decoded")
        stored = image.shape[:2]
        _require_decodable(stored, options)
        wanted = _wanted_size(stored, options)
        yield DecodedFrame(index, math.nan, (index + 1) / len(items), stored, resized(image, wanted))
    if not items:
        raise VideoError("no frame")


def _require_decodable(size: tuple[int, int], options: ClipOptions) -> None:
    """VideoError for a (height, width), in px, of frames that aren't to be decoded; (0, 0) is unknown."""
    height, width = size
    if height * width > options.max_pixels:
        raise VideoError(
            f"too large: frames are {height}x{width} px (height x width), and at most {options.max_pixels} "
            "pixels are read (--clips.max-pixels)"
        )
    if max(size) > MOST_ASPECT * min(size):
        raise VideoError(
            f"too narrow: frames are {height}x{width} px (height x width), and no side may be longer than "
            f"{MOST_ASPECT} times the other"
        )


def _wanted_size(size: tuple[int, int], options: ClipOptions) -> tuple[int, int]:
    """The smallest (height, width) with the aspect of `size` that covers `options.size`; at most `size`."""
    if options.size is not None:
        scale = max(options.size[0] / size[0], options.size[1] / size[1])
        if scale < 1:
            size = (
                max(options.size[0], round(size[0] * scale)),
                max(options.size[1], round(size[1] * scale)),
            )
    if _is_smaller(size, options.min_size):
        raise VideoError(
            f"too small: frames are {size[0]}x{size[1]} px (height x width) and must have at least "
            f"{options.min_size[0]}x{options.min_size[1]} (--clips.min-size)"
        )
    return size


def _is_smaller(size: tuple[int, int], least: tuple[int, int]) -> bool:
    return size[0] < least[0] or size[1] < least[1]


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
