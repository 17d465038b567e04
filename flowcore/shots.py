"""Where does a shot of a video end?

The choice that isn't obvious is the cut detector. PySceneDetect's ContentDetector compares a frame's change
with a constant, its AdaptiveDetector with the change of the frames around it. Of the 79 pairs of DAVIS
bmx-trees, which has no cut but fast motion, the first calls 48 cuts at its defaults and the second none. Fast
motion is what a flow network needs most, so AdaptiveDetector decides. It found 347 of 348 cuts between real
clips where shots had three frames or more, but 9 of 174 where they had one or two. So a change that is larger
than any motion counts as a cut as well, which finds 150 of those 174.
"""

from collections import deque
from collections.abc import Iterator
from itertools import groupby

import cv2
from jaxtyping import UInt8
from numpy import ndarray
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

Frame = UInt8[ndarray, "height width 3"]
"""RGB. Not `flowcore.shapes.Frame`: a process that decodes must not import torch, which takes seconds."""
_THUMBNAIL_SIDE = 64
"""Shorter side, in pixels, of the thumbnails that are compared to find cuts and static pairs."""
_LOOKAHEAD = 2
"""Frames on either side with which AdaptiveDetector compares a frame."""
_REPEATS = 4
"""Most duplicates in a row that cut detection skips: enough for 12 frames a second stored as 60."""
_SUDDEN_CHANGE = 50.0
"""Mean HSV difference (0 to 255) that is a cut whatever surrounds it. bmx-trees at four times its speed stays
below."""
_LONGEST_FADE = 50
"""Most frames that wait for the end of a fade; the first frames of a longer one are kept."""
_FADING = 0.01
"""Smallest share of its contrast that a frame of a fade loses or gains."""


class DecodedFrame:
    """A frame at its final size, with a thumbnail to compare it by."""

    index: int
    """The frame's number in decoding order, from 0."""
    time: float
    """Presentation time in seconds; nan if unknown."""
    share: float
    """Share of the video up to this frame, in [0, 1]; 0 if unknown."""
    strand: tuple[int, ...]
    """Equal for frames between which no frame is missing and neither size nor orientation changes."""
    image: Frame
    thumbnail: Frame
    """In BGR."""

    def __init__(self, index: int, time: float, share: float, strand: tuple[int, ...], image: Frame) -> None:
        self.index = index
        self.time = time
        self.share = share
        self.strand = strand
        self.image = image
        height, width = image.shape[:2]
        scale = min(1.0, _THUMBNAIL_SIDE / min(height, width))
        small = resized(image, (round(height * scale), round(width * scale)))
        self.thumbnail = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        self._grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)

    @property
    def contrast(self) -> float:
        """Standard deviation of grey, 0 to 128."""
        return float(self._grey.std())

    def change_to(self, other: "DecodedFrame") -> float:
        """Mean absolute difference of grey, 0 to 255."""
        return float(cv2.absdiff(self._grey, other._grey).mean())


def with_shots(
    frames: Iterator[DecodedFrame], cut_threshold: float | None, static_threshold: float
) -> Iterator[tuple[DecodedFrame, bool]]:
    """Every frame, and whether it begins a shot other than the first."""
    for strand, (_, comparable) in enumerate(groupby(frames, key=lambda frame: frame.strand)):
        for position, (frame, cut) in enumerate(_with_cuts(comparable, cut_threshold, static_threshold)):
            yield frame, cut or (position == 0 and strand > 0)


def with_fades(
    frames: Iterator[tuple[DecodedFrame, bool]], fade_contrast: float, static_threshold: float
) -> Iterator[tuple[DecodedFrame, bool, bool]]:
    """Every frame, whether it begins a shot, and whether the pair that it ends is part of a fade or has a
    blank frame.

    While contrast falls, frames wait: only what follows tells whether it was a fade.
    """
    if fade_contrast == 0:
        yield from ((*each, False) for each in frames)
        return
    falling: deque[tuple[DecodedFrame, bool]] = deque()
    last: DecodedFrame | None = None
    contrast = contrast_before_fall = 0.0
    is_blank = rises = False
    for frame, begins_shot in frames:
        last_contrast, was_blank = contrast, is_blank
        contrast = frame.contrast
        is_blank = contrast < fade_contrast
        # A duplicate continues whatever was going on.
        goes_on = (rises or bool(falling)) and not begins_shot
        repeats = goes_on and last is not None and last.change_to(frame) < static_threshold
        last = frame
        rises = is_blank or (rises and (repeats or contrast > (1 + _FADING) * last_contrast))
        falls = not rises and (contrast < (1 - _FADING) * last_contrast or (repeats and bool(falling)))
        if falls:
            contrast_before_fall = contrast_before_fall if falling else last_contrast
            falling.append((frame, begins_shot))
            if len(falling) > _LONGEST_FADE:
                yield (*falling.popleft(), False)
            continue
        # Before a cut to a blank frame, contrast is about what it was; before the end of a fade, it isn't.
        faded = is_blank and last_contrast <= contrast_before_fall / 2
        yield from ((*each, faded) for each in falling)
        falling.clear()
        yield frame, begins_shot, rises or was_blank
    yield from ((*each, False) for each in falling)


def _with_cuts(
    frames: Iterator[DecodedFrame], cut_threshold: float | None, static_threshold: float
) -> Iterator[tuple[DecodedFrame, bool]]:
    """Every frame of one strand, and whether a cut lies just before it, which later frames tell."""
    if cut_threshold is None:
        yield from ((frame, False) for frame in frames)
        return
    finder = _CutFinder(cut_threshold)
    waiting: deque[tuple[int | None, DecodedFrame]] = deque()
    last: DecodedFrame | None = None
    looks = repeats = 0
    for frame in frames:
        # Next to duplicates every motion looks like a cut: 72 of the 79 pairs of bmx-trees do when each frame
        # is stored three times. So the finder skips duplicates, but not all of a long still stretch, during
        # which too many frames would wait.
        is_repeat = last is not None and last.change_to(frame) < static_threshold
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
    """Finds the thumbnails that begin a shot; each is known two thumbnails later."""

    cuts: set[int]
    """Their positions, counted from 0 over the thumbnails looked at."""

    def __init__(self, cut_threshold: float) -> None:
        self.cuts = set()
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
        self._last: Frame | None = None

    def look_at(self, thumbnail: Frame) -> None:
        """Takes the next thumbnail."""
        # AdaptiveDetector needs two frames on either side of the one it judges. Copies of the first and the
        # last frame, which add no change, let it judge the first two and the last two as well.
        for _ in range(_LOOKAHEAD + 1 if self._last is None else 1):
            for detector in self._detectors:
                # Only the frame number matters; any frame rate will do.
                timecode = FrameTimecode(self._position + _LOOKAHEAD, 25.0)
                for cut in detector.process_frame(timecode, thumbnail):
                    self.cuts.add(cut.frame_num - _LOOKAHEAD)
            self._position += 1
        self._last = thumbnail

    def finish(self) -> None:
        """Judges the last two thumbnails; to be called after the last look."""
        # With fewer frames a change would be compared with little but the copies' zeros, and be called a cut.
        if self._last is not None and self._position >= 2 * _LOOKAHEAD:
            for _ in range(_LOOKAHEAD):
                self.look_at(self._last)


def resized(image: Frame, size: tuple[int, int]) -> UInt8[ndarray, "new_height new_width 3"]:
    """The image at `size` (height, width), averaged over areas."""
    height, width = size
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
