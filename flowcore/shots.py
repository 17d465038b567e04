"""Where does a shot of a video end?

The choice that isn't obvious is the cut detector. PySceneDetect's ContentDetector compares a frame's change
with a constant, its AdaptiveDetector with the change of the frames around it. At their defaults the former
called 48 of the 79 pairs of DAVIS bmx-trees cuts, the latter none, and fast motion is what a flow network
needs most. Of 348 joints of real clips the latter found 347 where shots had three frames or more, but of 174
only 9 where they had one or two. So a change larger than motion makes it counts as a cut too: that finds 150
of them.
"""

from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

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


class DecodedFrame:
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
        small = resized(image, (round(height * scale), round(width * scale)))
        self.thumbnail = cast(NDArray[np.uint8], cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        self._grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)

    @property
    def contrast(self) -> float:
        """Standard deviation of grey, 0 to 128."""
        return float(self._grey.std())

    def change_to(self, other: "DecodedFrame") -> float:
        """Mean absolute grey difference, 0 to 255."""
        return float(cv2.absdiff(self._grey, other._grey).mean())


def with_shots(
    frames: Iterator[DecodedFrame], cut_threshold: float | None, static_threshold: float
) -> Iterator[tuple[DecodedFrame, bool]]:
    """Every frame with whether it begins a shot other than the first."""
    for strand, (_, comparable) in enumerate(groupby(frames, key=lambda frame: frame.strand)):
        for position, (frame, cut) in enumerate(_with_cuts(comparable, cut_threshold, static_threshold)):
            yield frame, cut or (position == 0 and strand > 0)


def with_fades(
    frames: Iterator[tuple[DecodedFrame, bool]], fade_contrast: float, static_threshold: float
) -> Iterator[tuple[DecodedFrame, bool, bool]]:
    """Every frame, whether it begins a shot, and whether its step from the one before is part of a fade or
    has a blank frame. Frames wait while contrast falls, as what follows tells."""
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
        # A duplicate goes on with what was going on.
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
        # A cut to a blank frame comes from a contrast that is as good as before.
        faded = is_blank and last_contrast <= contrast_before_fall / 2
        yield from ((*each, faded) for each in falling)
        falling.clear()
        yield frame, begins_shot, rises or was_blank
    yield from ((*each, False) for each in falling)


def _with_cuts(
    frames: Iterator[DecodedFrame], cut_threshold: float | None, static_threshold: float
) -> Iterator[tuple[DecodedFrame, bool]]:
    """Every frame, all of one strand, with whether a cut lies just before it, as later frames tell."""
    if cut_threshold is None:
        yield from ((frame, False) for frame in frames)
        return
    finder = _CutFinder(cut_threshold)
    waiting: deque[tuple[int | None, DecodedFrame]] = deque()
    last: DecodedFrame | None = None
    looks = repeats = 0
    for frame in frames:
        # Between duplicates every motion looks like a cut: of bmx-trees with each frame stored three times,
        # 72 of 79 moving pairs. So the finder doesn't see them, save in a still stretch, which frames can't
        # wait out.
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


def resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = size
    return cast(NDArray[np.uint8], cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
