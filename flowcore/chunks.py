"""Which pairs of consecutive frames does a video hold?

A video is read in chunks of up to K + 1 frames of one shot, which are K pairs, so that every frame is decoded
once. Chunk boundaries depend on the video and the options alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from flowcore.shots import DecodedFrame, Frame, with_fades, with_shots
from flowcore.video import ClipOptions, VideoError, VideoInput, decoded_frames


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
        most = self._options.max_frames_per_video
        try:
            for frame in decoded_frames(self._source, self._options, self._threads):
                if most is not None and frame.index >= most:
                    raise VideoError(f"read as far as {most} frames (max_frames_per_video)")
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
