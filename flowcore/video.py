"""Which pairs of consecutive frames does a video hold?

A video is read in chunks of up to K + 1 frames of one shot, which are K pairs, so that every frame is decoded
once. Chunk boundaries depend on the video and the options alone.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from os import PathLike, fspath
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

from flowcore.shots import DecodedFrame, Frame, resized, with_fades, with_shots

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
VideoInput = str | PathLike[str] | BinaryFile | Sequence[ImageFile]
"""A path, an open file, or the frames of an image sequence in order."""
_FORMATS_WITH_DURATION = frozenset({"avi", "matroska", "mov", "webm"})
_LEAST_OF_PROMISED = 0.9
"""A video shorter than this share of the duration in its header counts as cut off."""
_READ_BYTES = 1 << 20
"""Bytes read from a file object at a time; on object storage each read is a request."""

# fmt: off
_DEMUXERS = (
    "asf", "av1", "avi", "dv", "flv", "gif", "h264", "hevc", "ivf", "m4v", "matroska", "mjpeg", "mov", "mpeg",
    "mpegts", "mpegvideo", "mpjpeg", "mxf", "nut", "obu", "ogg", "rm", "yuv4mpegpipe",
)
# fmt: on
"""FFmpeg's names of the formats that are read: those of videos that hold their own frames. Among its others
are playlists, lists of files, session descriptions and scripts. Those read other files or the network, and
FFmpeg knows them by their content, whatever their name."""

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
    size. Smaller frames are not enlarged. None keeps the native size."""
    stride: int = 1
    """Distance in frames between the two frames of a pair. Raise it for videos with little motion from frame
    to frame."""
    chunk_pairs: int = 16
    """Most pairs in a chunk, which is decoded and held in memory at once. Lower it if memory runs out."""
    cut_threshold: float | None = 3.0
    """How many times larger than the change of the frames around it a frame's change must be to count as a
    cut. Raise it if fast motion is taken for cuts; None looks for no cuts."""
    # Measured: duplicates in compressed video up to 0.06, the noise of a still scene 0.08 to 0.13 and 0.25
    # at key frames, slow motion from 0.2.
    static_threshold: float = 0.2
    """Pairs whose mean absolute grey difference (0 to 255) is below this are static and left out; 0 keeps
    all."""
    # The flattest frame of real clips has 9.2, black frames of a broadcast have 0.0.
    fade_contrast: float = 1.0
    """Frames whose standard deviation of grey (0 to 255) is below this are blank. Pairs with a blank frame
    are left out, and so are the pairs of a fade to or from one, up to 50 frames. 0 keeps all."""
    max_pairs_per_video: int | None = None
    """Take only this many pairs from the start of each video; `none` takes all."""
    min_size: tuple[int, int] = (32, 32)
    """Smallest (height, width) in px of a frame after scaling; videos with smaller frames are left out."""

    def __post_init__(self) -> None:
        for name, value in (
            ("stride", self.stride),
            ("chunk_pairs", self.chunk_pairs),
            ("max_pairs_per_video", self.max_pairs_per_video),
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


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive frames of one shot: frames k and k + 1 are a pair."""

    index: int
    """The chunk's number in the video, from 0."""
    frames: list[Frame]
    """Two or more, of one size. Don't write to them: the first may also be the last of the chunk before."""
    frame_indices: list[int]
    """The frames' numbers in decoding order, counted from 0 over the whole video."""
    timestamps: list[float]
    """Presentation times in seconds; nan where the video has none."""


@dataclass(kw_only=True)
class VideoReport:
    """What became of a video's frames so far."""

    frames_read: int = 0
    """Without damaged frames."""
    pairs: int = 0
    cuts: int = 0
    """Ends of shots within the video. A shot also ends where frames are damaged or change size."""
    static_pairs: int = 0
    """Pairs left out because nothing moves."""
    faded_pairs: int = 0
    """Pairs left out because they are part of a fade or have a blank frame."""
    truncated: str | None = None
    """Why reading stopped before the end of the video; None if it didn't."""
    share: float = field(default=0.0, compare=False)
    """Share of the video read up to the end of the last chunk, or of the pairs wanted, in [0, 1]. It is taken
    from the container's duration or the number of images; 0 if neither is known."""


class ChunkReader:
    """The chunks of one video, in order; iterating again reads it again.

    Memory holds about one chunk, and up to 50 more frames while contrast falls.

    Iterating yields at least one chunk or raises VideoError. A video that breaks midway yields the chunks
    before the break. An OSError from the storage is passed on and never taken for the video's end: trying
    again may help.
    """

    report: VideoReport
    """On the latest iteration, during it and afterwards."""

    def __init__(
        self,
        source: VideoInput,
        options: ClipOptions,
        *,
        threads: int = 1,
        on_frame: Callable[[], None] | None = None,
    ) -> None:
        """on_frame: called after each decoded frame, to tell a stretch without pairs from a hang."""
        self._source = source
        self._options = options
        self._threads = threads
        self._on_frame = on_frame
        self.report = VideoReport()

    def __iter__(self) -> Iterator[Chunk]:
        self.report = report = VideoReport()
        limit = self._options.max_pairs_per_video
        index = 0
        for run in self._runs():
            if limit is not None:
                run = run[: limit - report.pairs + 1]
            if len(run) < 2:
                continue
            report.pairs += len(run) - 1
            report.share = max(run[-1].share, report.pairs / limit if limit else 0.0)
            yield Chunk(
                index=index,
                frames=[frame.image for frame in run],
                frame_indices=[frame.index for frame in run],
                timestamps=[frame.time for frame in run],
            )
            index += 1
            if report.pairs == limit:
                return
        if report.pairs == 0:
            raise VideoError(self._why_no_pairs())

    def _runs(self) -> Iterator[list[DecodedFrame]]:
        """Lists of frames in which every two neighbours are a pair: at most chunk_pairs + 1, perhaps none."""
        options = self._options
        run: list[DecodedFrame] = []
        shot_start = 0
        faded = False
        shots = with_shots(self._decoded(), options.cut_threshold, options.static_threshold)
        for frame, begins_shot, fades in with_fades(shots, options.fade_contrast, options.static_threshold):
            faded |= fades
            if begins_shot:
                self.report.cuts += 1
                yield run
                run, shot_start = [], frame.index
            if (frame.index - shot_start) % options.stride != 0:
                continue
            if run and (faded or run[-1].change_to(frame) < options.static_threshold):
                self.report.faded_pairs += faded
                self.report.static_pairs += not faded
                yield run
                run = []
            run.append(frame)
            faded = False
            if len(run) > options.chunk_pairs:
                yield run
                run = run[-1:]
        yield run

    def _decoded(self) -> Iterator[DecodedFrame]:
        """Frames up to the end or a break; VideoError for a break before the first frame."""
        source = self._source
        if isinstance(source, Sequence) and not isinstance(source, str):
            frames = _decode_images(source, self._options)
        else:
            frames = _decode_video(source, self._options, self._threads)
        try:
            for frame in frames:
                self.report.frames_read += 1
                if self._on_frame is not None:
                    self._on_frame()
                yield frame
        except VideoError as error:
            if self.report.frames_read == 0:
                raise
            self.report.truncated = str(error)

    def _why_no_pairs(self) -> str:
        report = self.report
        why = (
            f"no pair in {report.frames_read} frame(s): stride {self._options.stride}, {report.cuts} cuts, "
            f"{report.static_pairs} static pairs (grey difference below {self._options.static_threshold}), "
            f"{report.faded_pairs} of fades or blank frames"
        )
        return why if report.truncated is None else f"{why}; {report.truncated}"


def content_digest(source: VideoInput, *, on_block: Callable[[], None] | None = None) -> str:
    """32 hexadecimal digits that identify the content: equal bytes give equal digits under any name or path.

    BLAKE2b of the file; for an image sequence, BLAKE2b of its files' digests in order, so that renaming
    changes nothing there either. on_block is called after each MiB. Raises OSError if a file can't be read.
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        whole = _digest()
        for item in source:
            with closing(_open_image(item)) as file:
                whole.update(_digest_of(file, on_block).digest())
        return whole.hexdigest()
    if isinstance(source, str | PathLike):
        with open(source, "rb") as file:
            return _digest_of(file, on_block).hexdigest()
    source.seek(0)
    return _digest_of(source, on_block).hexdigest()


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _digest_of(file: BinaryFile, on_block: Callable[[], None] | None) -> hashlib.blake2b:
    digest = _digest()
    while block := file.read(_READ_BYTES):
        digest.update(block)
        if on_block is not None:
            on_block()
    return digest


def _decode_video(
    source: str | PathLike[str] | BinaryFile, options: ClipOptions, threads: int
) -> Iterator[DecodedFrame]:
    # What FFmpeg may open by itself: of a file that is open, nothing.
    protocols = "file"
    if isinstance(source, PathLike):
        source = fspath(source)
    elif not isinstance(source, str):
        source.seek(0)
        protocols = ""
    allowed = {"protocol_whitelist": protocols, "format_whitelist": ",".join(_DEMUXERS)}
    try:
        container = av.open(
            source,
            mode="r",
            container_options=allowed,
            # Broken text in the metadata must not make the video unreadable.
            metadata_errors="replace",
            buffer_size=_READ_BYTES,
        )
    except ArgumentError as error:
        raise VideoError(
            f"can't be opened as a video: {_cause(error)}; the formats that are read are "
            f"{', '.join(_DEMUXERS)}"
        ) from error
    except FFmpegError as error:
        raise VideoError(f"can't be opened as a video: {_cause(error)}") from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise VideoError("no video stream")
        if stream.codec_context is None:
            raise VideoError("no decoder for its video stream")
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
            raise VideoError(f"breaks after {index} frames: {_cause(error)}") from error
        promised = _promised_end(container, stream)
        if end < _LEAST_OF_PROMISED * promised:
            raise VideoError(f"cut off: ends at {end:.1f} s, and its header says {promised:.1f} s")
    if index == damaged:
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
            with closing(_open_image(item)) as file:
                data = np.frombuffer(file.read(), np.uint8)
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        except (FileNotFoundError, cv2.error) as error:
            raise VideoError(f"image {name} can't be read: {_cause(error)}") from error
        if image is None:
            raise VideoError(f"image {name} can't be decoded")
        stored = image.shape[:2]
        wanted = _wanted_size(stored, options)
        yield DecodedFrame(index, math.nan, (index + 1) / len(items), stored, resized(image, wanted))
    if not items:
        raise VideoError("no frame")


def _open_image(item: ImageFile) -> BinaryFile:
    return item() if callable(item) else open(item, "rb")


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
            f"{options.min_size[0]}x{options.min_size[1]} (min_size)"
        )
    return size


def _is_smaller(size: tuple[int, int], least: tuple[int, int]) -> bool:
    return size[0] < least[0] or size[1] < least[1]


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
