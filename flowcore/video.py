"""Which pairs of consecutive frames does a video hold?

A video becomes chunks: up to K+1 frames of one shot, which are K pairs, so that every frame is decoded once.
Chunk boundaries follow from the video and the options alone.

The choice that isn't obvious is the cut detector. PySceneDetect's ContentDetector compares a frame's change
with a constant, its AdaptiveDetector with the change of the frames around it. At their defaults the former
called 48 of the 79 pairs of DAVIS bmx-trees cuts, the latter none, and fast motion is what a flow network
needs most. Of 348 joints of real clips the latter found 347 where shots had three frames or more, but of 174
only 9 where they had one or two. So a change larger than motion makes it counts as a cut too: that finds 150
of them.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
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
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

SAMPLER_VERSION = 2
"""Part of every pair's identity: to be raised when a video and the same options come to give other pairs or
pixels."""


@runtime_checkable
class BinaryFile(Protocol):
    """What is read from an open binary file, whichever library opened it."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def close(self) -> None: ...


ImageFile = str | PathLike[str] | Callable[[], BinaryFile]
"""One frame of an image sequence: its path, or what opens it."""
VideoInput = str | PathLike[str] | BinaryFile | Sequence[ImageFile]
"""A path, an open file, or the frames of an image sequence in order."""

_THUMBNAIL_SIDE = 64
"""Shorter side in pixels of the frames on which cuts and static pairs are sought."""
_LOOKAHEAD = 2
"""Frames on either side that AdaptiveDetector compares a frame with."""
_REPEATS = 4
"""Duplicates in a row that cut detection overlooks: 12 frames a second stored as 60."""
_SUDDEN_CHANGE = 50.0
"""Mean HSV difference (0 to 255) that is a cut whatever surrounds it; bmx-trees, four times faster, isn't."""
_LONGEST_FADE = 50
"""Frames that wait at most for the end of a fade; of a longer one the first are taken for none of it."""
_FADING = 0.01
"""The share of its contrast that a frame of a fade loses, or gains, at least."""
_FORMATS_WITH_DURATION = frozenset({"avi", "matroska", "mov", "webm"})
_LEAST_OF_PROMISED = 0.9
"""The share of its promised duration that a video may last without counting as cut off."""
_READ_BYTES = 1 << 20
"""Bytes asked of a file object at a time: on object storage each read is a request."""

# fmt: off
_DEMUXERS = (
    "asf", "av1", "avi", "dv", "flv", "gif", "h264", "hevc", "ivf", "m4v", "matroska", "mjpeg", "mov", "mpeg",
    "mpegts", "mpegvideo", "mpjpeg", "mxf", "nut", "obu", "ogg", "rm", "yuv4mpegpipe",
)
# fmt: on
"""FFmpeg's names of the formats that are read: those of videos that hold their own frames. Among its others
are playlists, lists of files, session descriptions and scripts. Those read other files or the network, and
FFmpeg knows them by their content, whatever their name."""

# swscale's area filter alone darkens frames by 2 of 255 and errs by 2.5 in the mean. With accurate rounding
# and planar output it is off by 0.0 and 0.7, at half the cost of its flag for full chroma in packed output.
# BITEXACT gives the same pixels on every node, whatever its processor.
_AREA = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_PLANAR_RGB = "gbrp"


class VideoError(Exception):
    """No pair can be had from a video; the message is the reason, for the ledger."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How a video is cut into chunks of frames."""

    size: tuple[int, int] | None = None
    """(height, width) in px that a frame still covers after scaling down with its aspect kept. Smaller
    frames are never enlarged. None keeps the native size."""
    stride: int = 1
    """Frames from the first to the second of a pair; those between them are skipped."""
    chunk_pairs: int = 16
    """Most pairs in a chunk; a shot's next chunk begins with the last frame of this one."""
    cut_threshold: float | None = 3.0
    """How many times a frame's change must exceed that of the frames around it to be a cut; None seeks no
    cuts."""
    # Measured: duplicates in compressed video up to 0.06, the noise of a still scene 0.08 to 0.13 and 0.25
    # at key frames, slow motion from 0.2.
    static_threshold: float = 0.2
    """Mean absolute grey difference (0 to 255) below which a pair is static and left out; 0 keeps all."""
    # Of real clips the flattest frame has 9.2, a broadcast's black 0.0.
    fade_contrast: float = 1.0
    """Standard deviation of grey (0 to 255) below which a frame is blank. No pair has a blank frame, and none
    is of the last 50 frames of a fade, whose contrast falls until one is blank, or of one that rises from
    there. 0 keeps all."""
    max_pairs_per_video: int | None = None
    """The first so many pairs are taken; None takes all."""
    min_size: tuple[int, int] = (32, 32)
    """Smallest (height, width) in px that a frame may have, after scaling; a video of smaller ones is left
    out."""

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
                "raise size or lower min_size"
            )
        if self.cut_threshold is not None and not self.cut_threshold > 1:
            raise ValueError(
                f"cut_threshold {self.cut_threshold} must be above 1, the change of the frames around a cut; "
                "None seeks no cuts"
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
"""Leaves out nothing for what it shows."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive frames of one shot: frames k and k+1 are a pair.

    frames: two or more, uint8 [H, W, 3] RGB, of one size; the first may be the last of the chunk before, so
        they aren't to be written to.
    frame_indices: the frames' numbers in decoding order, counted from 0 over the whole video.
    timestamps: presentation times in seconds, nan where the video gives none.
    """

    index: int
    frames: list[NDArray[np.uint8]]
    frame_indices: list[int]
    timestamps: list[float]


@dataclass(kw_only=True)
class VideoReport:
    """What became of a video's frames so far.

    frames_read leaves out damaged frames. cuts counts the shots' ends within the video; where frames are
    damaged or change their size a shot ends as well. static_pairs and faded_pairs were left out. truncated
    says why reading ended before the video did, None if it didn't. share: of the video up to the last chunk's
    end, or of the pairs that are wanted, in [0, 1], by its container's duration or its number of images; 0
    where that isn't known.
    """

    frames_read: int = 0
    pairs: int = 0
    cuts: int = 0
    static_pairs: int = 0
    faded_pairs: int = 0
    truncated: str | None = None
    share: float = field(default=0.0, compare=False)


class ChunkReader:
    """The chunks of one video, in order; iterating again reads it again.

    Memory holds about one chunk, and up to 50 frames more while contrast falls. A reader yields at least one
    chunk or raises VideoError; a video that breaks midway yields what came before the break. An OSError is
    the storage's fault and not the video's: it may be gone another time, so it isn't taken for the video's
    end. report tells about the latest iteration, during it and afterwards. on_frame is called after each
    decoded frame: it tells a stretch without pairs from a hang.
    """

    def __init__(
        self,
        source: VideoInput,
        options: ClipOptions,
        *,
        threads: int = 1,
        on_frame: Callable[[], None] | None = None,
    ) -> None:
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

    def _runs(self) -> Iterator[list["_Frame"]]:
        """Frames of which each two neighbours are a pair; at most chunk_pairs + 1, perhaps one or none."""
        options = self._options
        run: list[_Frame] = []
        shot_start = 0
        faded = False
        shots = _with_shots(self._decoded(), options)
        for frame, begins_shot, fades in _with_fades(shots, options):
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

    def _decoded(self) -> Iterator["_Frame"]:
        """Frames up to the end or to a break; VideoError if it breaks before the first."""
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
    """32 hexadecimal digits that name the content: equal for equal bytes under any name or path.

    BLAKE2b of the file; of an image sequence, BLAKE2b of its files' digests in order. Names are left out: as
    with a video file, renaming changes nothing. on_block is called after each MiB. OSError if a file can't be
    read.
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


class _Frame:
    """A frame ready for use: image [H, W, 3] RGB as wanted, thumbnail [h, w, 3] BGR for comparisons.

    strand: equal for frames between which neither size nor orientation changes and nothing is missing.
    time: seconds or nan. share: of the video up to it, 0 where that isn't known.
    """

    def __init__(
        self, index: int, time: float, share: float, strand: tuple[int, ...], image: NDArray[np.uint8]
    ) -> None:
        self.index = index
        self.time = time
        self.share = share
        self.strand = strand
        self.image = image
        height, width = image.shape[:2]
        scale = min(1.0, _THUMBNAIL_SIDE / min(height, width))
        small = _resized(image, (round(height * scale), round(width * scale)))
        self.thumbnail = cast(NDArray[np.uint8], cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        self._grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)

    @property
    def contrast(self) -> float:
        """Standard deviation of grey, 0 to 128."""
        return float(self._grey.std())

    def change_to(self, other: "_Frame") -> float:
        """Mean absolute grey difference, 0 to 255."""
        return float(cv2.absdiff(self._grey, other._grey).mean())


def _with_shots(frames: Iterator[_Frame], options: ClipOptions) -> Iterator[tuple[_Frame, bool]]:
    """Every frame with whether it begins a shot other than the first."""
    for strand, (_, comparable) in enumerate(groupby(frames, key=lambda frame: frame.strand)):
        for position, (frame, cut) in enumerate(_with_cuts(comparable, options)):
            yield frame, cut or (position == 0 and strand > 0)


def _with_fades(
    frames: Iterator[tuple[_Frame, bool]], options: ClipOptions
) -> Iterator[tuple[_Frame, bool, bool]]:
    """Every frame, whether it begins a shot, and whether its step from the one before is part of a fade or
    has a blank frame. Frames wait while contrast falls, as what follows tells."""
    if options.fade_contrast == 0:
        yield from ((*each, False) for each in frames)
        return
    falling: deque[tuple[_Frame, bool]] = deque()
    last: _Frame | None = None
    contrast = contrast_before_fall = 0.0
    is_blank = rises = False
    for frame, begins_shot in frames:
        last_contrast, was_blank = contrast, is_blank
        contrast = frame.contrast
        is_blank = contrast < options.fade_contrast
        # A duplicate goes on with what was going on.
        goes_on = (rises or bool(falling)) and not begins_shot
        repeats = goes_on and last is not None and last.change_to(frame) < options.static_threshold
        last = frame
        rises = is_blank or (rises and (repeats or contrast > (1 + _FADING) * last_contrast))
        falls = not rises and (contrast < (1 - _FADING) * last_contrast or (repeats and bool(falling)))
        if falls:
            contrast_before_fall = contrast_before_fall if falling else last_contrast
            falling.append((frame, begins_shot))
            if len(falling) > _LONGEST_FADE:
                yield (*falling.popleft(), False)
            continue
        # A cut to a blank frame comes from a contrast that is as good as before.
        faded = is_blank and last_contrast <= contrast_before_fall / 2
        yield from ((*each, faded) for each in falling)
        falling.clear()
        yield frame, begins_shot, rises or was_blank
    yield from ((*each, False) for each in falling)


def _with_cuts(frames: Iterator[_Frame], options: ClipOptions) -> Iterator[tuple[_Frame, bool]]:
    """Every frame, all of one strand, with whether a cut lies just before it, as later frames tell."""
    if options.cut_threshold is None:
        yield from ((frame, False) for frame in frames)
        return
    finder = _CutFinder(options.cut_threshold)
    waiting: deque[tuple[int | None, _Frame]] = deque()
    last: _Frame | None = None
    looks = repeats = 0
    for frame in frames:
        # Between duplicates every motion looks like a cut: of bmx-trees with each frame stored three times,
        # 72 of 79 moving pairs. So the finder doesn't see them, save in a still stretch, which frames can't
        # wait out.
        is_repeat = last is not None and last.change_to(frame) < options.static_threshold
        last = frame
        if is_repeat and repeats < _REPEATS:
            repeats += 1
            waiting.append((None, frame))
            continue
        finder.look_at(frame.thumbnail)
        waiting.append((looks, frame))
        looks, repeats = looks + 1, 0
        while waiting[0][0] is None or waiting[0][0] < looks - _LOOKAHEAD:
            position, ready = waiting.popleft()
            yield ready, position in finder.cuts
    finder.finish()
    for position, ready in waiting:
        yield ready, position in finder.cuts


class _CutFinder:
    """The positions, among the thumbnails looked at, of those that begin a shot; known two looks later."""

    def __init__(self, cut_threshold: float) -> None:
        self.cuts: set[int] = set()
        self._detectors = (
            AdaptiveDetector(
                adaptive_threshold=cut_threshold,
                window_width=_LOOKAHEAD,
                min_content_val=15.0,
                min_scene_len=1,
            ),
            ContentDetector(threshold=_SUDDEN_CHANGE, min_scene_len=1),
        )
        self._position = -_LOOKAHEAD
        self._last: NDArray[np.uint8] | None = None

    def look_at(self, thumbnail: NDArray[np.uint8]) -> None:
        # AdaptiveDetector judges a frame between two on either side, so never the first and last two. Copies
        # of the first and the last, which stand for no change, let it judge these as well.
        for _ in range(_LOOKAHEAD + 1 if self._last is None else 1):
            for detector in self._detectors:
                # Only the frame number counts here, any rate will do.
                timecode = FrameTimecode(self._position + _LOOKAHEAD, 25.0)
                for cut in detector.process_frame(timecode, thumbnail):
                    self.cuts.add(cut.frame_num - _LOOKAHEAD)
            self._position += 1
        self._last = thumbnail

    def finish(self) -> None:
        # With fewer frames a change would be compared with little but the copies' zeros, and be a cut.
        if self._last is not None and self._position >= 2 * _LOOKAHEAD:
            for _ in range(_LOOKAHEAD):
                self.look_at(self._last)


def _decode_video(
    source: str | PathLike[str] | BinaryFile, options: ClipOptions, threads: int
) -> Iterator[_Frame]:
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
            # Broken text in the metadata must not cost the video.
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
                    # A recording cut out of a broadcast begins between two key frames: what precedes the
                    # first decodable frame is skipped.
                    if index > 0:
                        raise
                    undecodable = error
                    continue
                for frame in frames:
                    # The decoder made up what was missing, which would be learnt as motion.
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
    """When the video ends in seconds, as its header says; nan where none does, or only that of all streams
    together.

    FFmpeg reads a file that was cut off without an error. Of other formats it guesses the duration.
    """
    if not _FORMATS_WITH_DURATION & set(container.format.name.split(",")):
        return math.nan
    if stream.duration is not None and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    if len(container.streams) == 1 and container.duration is not None:
        return ((container.start_time or 0) + container.duration) / av.time_base
    return math.nan


def _share(container: av.container.InputContainer, time: float | None) -> float:
    """Of the container's duration, which may be a guess of FFmpeg's; 0 where it has none."""
    if time is None or not container.duration:
        return 0.0
    return min(1.0, max(0.0, (time * av.time_base - (container.start_time or 0)) / container.duration))


class _Converter:
    """From PyAV's frames of one video to ours; holds what is set up once."""

    def __init__(self, options: ClipOptions) -> None:
        self._options = options
        self._reformatter = VideoReformatter()
        self._rotation: int | None = None
        self._matrix = (1, 0, 0, 1)

    def convert(self, frame: av.VideoFrame, index: int, share: float, damaged: int) -> _Frame:
        """damaged: how many frames before this one are missing."""
        # Reading a frame's side data ties it into a reference cycle, and hundreds of frames then wait for the
        # garbage collector (900 MB instead of 130 on 1080p): it is read only where the rotation changes.
        if frame.rotation != self._rotation:
            self._rotation, self._matrix = frame.rotation, _display_matrix(frame)
        stored = (frame.height, frame.width)
        sideways = abs(self._matrix[1]) > abs(self._matrix[0])
        wanted = _wanted_size(stored[::-1] if sideways else stored, self._options)
        height, width = wanted[::-1] if sideways else wanted
        first = (stored[1], stored[0]) if frame.interlaced_frame else (width, height)
        scaled = cast(
            NDArray[np.uint8],
            self._reformatter.reformat(
                frame, *first, _PLANAR_RGB, interpolation=_AREA, threads=1
            ).to_ndarray(),
        )
        if frame.interlaced_frame:
            # Its lines are of two moments in turn, and what moves has a comb's edges: one moment is enough.
            scaled = _resized(scaled[::2], (height, width))
        image = _upright(scaled, self._matrix)
        strand = (*stored, *self._matrix, damaged)
        time = math.nan if frame.time is None else frame.time
        return _Frame(index, time, share, strand, image)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): a stored pixel (x, y) is shown at (a x + c y, b x + d y), up to scale and shift."""
    data = cast(Mapping[SideDataType, bytes], frame.side_data).get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return a, b, c, d


def _upright(image: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """image as it is meant to be seen, by the nearest of the eight quarter turns and reflections."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _decode_images(items: Sequence[ImageFile], options: ClipOptions) -> Iterator[_Frame]:
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
        share = (index + 1) / len(items)
        yield _Frame(index, math.nan, share, stored, _resized(cast(NDArray[np.uint8], image), wanted))
    if not items:
        raise VideoError("no frame")


def _open_image(item: ImageFile) -> BinaryFile:
    return item() if callable(item) else open(item, "rb")


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size
    return cast(NDArray[np.uint8], cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def _wanted_size(size: tuple[int, int], options: ClipOptions) -> tuple[int, int]:
    """The smallest (height, width) of size's aspect that covers options.size; never more than size."""
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
