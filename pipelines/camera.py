"""What does a camera see? A film of its next frames, which is then a video like any other.

A camera shows nothing twice. Its frames are recorded first, so that the flow has its video beside it, and the
same command again finishes what is missing.
"""

import time
from pathlib import Path

import cv2

from pipelines.disclosure import tell
from pipelines.film import Film
from pipelines.storage import Folder, absolute, join, split

_SECONDS = 30.0
"""Without a new frame, after which a camera is given up."""
_PAUSE_SECONDS = 0.05
"""Between two looks at a camera that has yet to give its first frame."""


def film_of(camera: int | str, output: str) -> str:
    """Where the film of a camera lies: beside the folder or URI `output`, with the camera in its name."""
    folder, name = split(absolute(output, "--output"))
    return join(folder, f"{name}-camera{Path(str(camera)).stem}.mp4")


def recorded(camera: int | str, output: str, pairs: int | None, stride: int = 1) -> str:
    """The film of so many pairs of the camera's next frames, where `film_of` says; one that is there is left
    as it is. A frame that doesn't come ends it: those before and after it are no pair.

    camera: OpenCV's number of it, or whatever else OpenCV opens. stride: frames between the two of a pair.
    ValueError where there is none, where it gives fewer than two frames, and where the number of pairs is
    None, as a camera has no end.
    """
    if pairs is None:
        raise ValueError(f"--videos {camera} is a camera, which has no end; add --limit, the pairs to record")
    film = film_of(camera, output)
    folder, name = split(film)
    if Folder(folder).size(name) is not None:
        tell(f"{film} was recorded before; remove it, or give another --output, to record anew")
    else:
        wanted = pairs * stride + 1
        capture = _opened(camera)
        try:
            if not capture.isOpened():
                raise ValueError(
                    f"--videos {camera}: OpenCV finds no camera {camera} on this machine; connect one, give "
                    "another number, or give a video"
                )
            with Folder(folder).writing(name) as path:
                count = _record(capture, path, wanted)
                if count < 2:
                    raise ValueError(
                        f"--videos {camera}: the camera gives no frames; see whether other software holds it"
                    )
        finally:
            capture.release()
        if count < wanted:
            tell(
                f"{film} has {count} frames and not {wanted}: the camera gave no more; remove it to try again"
            )
    return film


def _opened(camera: int | str) -> cv2.VideoCapture:
    """Without the pages that OpenCV prints where it finds none."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(camera)
    finally:
        logging.setLogLevel(before)


def _record(capture: cv2.VideoCapture, path: Path, num_frames: int) -> int:
    """How many frames came."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    film = Film(path)
    try:
        latest, count = time.monotonic(), 0
        while count < num_frames and time.monotonic() - latest < _SECONDS:
            is_there, frame = capture.read()
            if is_there:
                film.add(frame[..., ::-1], 1 / rate if rate > 0 else float("nan"))
                latest, count = time.monotonic(), count + 1
            elif count > 0:
                break
            else:
                time.sleep(_PAUSE_SECONDS)
        film.finish()
    finally:
        film.close()
    return count
