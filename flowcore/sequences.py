"""Which frames of a data set may a network learn from without truth?

Sequences: consecutive frames of one scene. They are found from file names alone, so that a folder on object
storage is searched like a local one.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from flowcore.chairs_split import CHAIRS_SPLIT, SPLIT_BYTES, split_of, split_parts


@dataclass(frozen=True, kw_only=True)
class FrameSequence:
    """Two or more consecutive frames of one scene."""

    folder: str
    """Relative to the data set's folder, with / between parts; empty for that folder itself."""
    frames: tuple[str, ...]
    """File names within `folder`, in order."""

    @property
    def name(self) -> str:
        """The first frame's name without extension: unique in a folder that holds many scenes."""
        return posixpath.splitext(self.frames[0])[0]


def find_sequences(
    name: str, files: Collection[str], read: Callable[[str, int], bytes]
) -> list[FrameSequence]:
    """The sequences of a data set that a network may learn from without truth.

    files: names of the files in the unpacked folder, relative to it, with / between parts.
    read: gives the beginning of one of these files, at most so many bytes.

    A missing frame ends a sequence, and the next frame begins another. Left out are KITTI's pairs with truth
    with the frames beside them, and, where the split file is there, Flying Chairs' validation pairs. All
    frames of the other sets are taken, with truth or without: of Sintel both passes, in training/ and test/.

    Raises ValueError for a data set without such frames and for a split file that is none, FileNotFoundError
    where the expected layout has no sequence.
    """
    if name not in _SEQUENCES:
        raise ValueError(
            f"{name!r} has no layout of frames to learn from; those that have are {', '.join(SEQUENCES)}"
        )
    layout, patterns = _SEQUENCES[name]
    sequences = next(filter(None, (_sequences(files, pattern) for pattern in patterns)), [])
    split = next((file for file in files if posixpath.basename(file) == CHAIRS_SPLIT), None)
    if name == "chairs" and split is not None:
        parts = split_parts(read(split, SPLIT_BYTES + 1), split)
        sequences = [pair for pair in sequences if split_of(pair.name.split("_")[0], parts) == "training"]
    if not sequences:
        raise FileNotFoundError(
            f"no sequence of two or more frames among {len(files)} files; {name} is expected as {layout}"
        )
    return sequences


def _sequences(files: Iterable[str], pattern: str) -> list[FrameSequence]:
    """Files that match `pattern`, grouped into runs of one scene with consecutive frame numbers; sorted."""
    scenes: dict[str, dict[int, str]] = defaultdict(dict)
    for file in files:
        if match := re.fullmatch(rf"(.*/)?{pattern}", file):
            scenes[file[: match.start("frame")]][int(match["frame"])] = file
    runs: list[list[str]] = []
    for _, frames in sorted(scenes.items()):
        for number in sorted(frames):
            if number - 1 not in frames:
                runs.append([])
            runs[-1].append(frames[number])
    return [
        FrameSequence(folder=posixpath.dirname(run[0]), frames=tuple(map(posixpath.basename, run)))
        for run in runs
        if len(run) > 1
    ]


# Frames 10 and 11 of a scene are its pair with truth, or the hidden test pair. We leave out their neighbours
# as well, as DDFlow does.
_KITTI_FRAME = r"\d{6}_(?P<frame>(?!09|10|11|12)\d\d)\.png"
_SEQUENCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "chairs": (
        f"[data/]00001_img1.ppm and 00001_img2.ppm; beside {CHAIRS_SPLIT} only training pairs",
        (r"\d{5}_img(?P<frame>[12])\.ppm",),
    ),
    "sintel": (
        "{training,test}/{clean,final}/<scene>/frame_0001.png and so on",
        (r"(clean|final)/[^/]+/frame_(?P<frame>\d{4})\.png",),
    ),
    "kitti2012": (
        "the multi-view extension, {training,testing}/{colored_0 or image_0}/000000_00.png to _20.png, "
        "of which frames 9 to 12 are left out",
        (rf"colored_0/{_KITTI_FRAME}", rf"image_0/{_KITTI_FRAME}"),
    ),
    "kitti2015": (
        "the multi-view extension, {training,testing}/image_2/000000_00.png to _20.png, "
        "of which frames 9 to 12 are left out",
        (rf"image_2/{_KITTI_FRAME}",),
    ),
    "spring": (
        "{train,test}/<scene>/{frame_left,frame_right}/frame_left_0001.png and so on",
        (r"frame_(left|right)/frame_(left|right)_(?P<frame>\d{4})\.png",),
    ),
    "hd1k": (
        "{hd1k_input,hd1k_challenge}/image_2/000000_0010.png and so on",
        (r"image_2/\d{6}_(?P<frame>\d{4})\.png",),
    ),
    "tartanair": (
        "<environment>/<Easy or Hard>/P000/{image_left,image_right}/000000_left.png and so on",
        (r"image_(left|right)/(?P<frame>\d{6})_(left|right)\.png",),
    ),
    "viper": (
        "{train,val,test}/img/001/001_00001.png (or .jpg) and so on",
        (r"img/\d+/\d+_(?P<frame>\d{5})\.png", r"img/\d+/\d+_(?P<frame>\d{5})\.jpg"),
    ),
    "kubric": ("<scene>/rgba_00000.png and so on", (r"rgba_(?P<frame>\d{5})\.png",)),
}
"""The layout in words, and patterns of file names; the first pattern that finds a sequence is used."""
SEQUENCES = tuple(_SEQUENCES)
"""The names that `find_sequences` knows."""
