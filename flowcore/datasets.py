"""Where do the public data sets keep their frames and their ground truth?

A sample is a flow file whose two frames exist, so partial downloads and scenes with truth for a few frames
are fine. Occlusion truth is taken as the data set gives it, mistakes included. MPI-Sintel's maps miss some
pixels that leave the frame: 0.1 to 1.2 % of all pixels in the five frames measured, most of which land within
10 px of the border. Errors on occluded and non-occluded pixels follow the files; an occlusion estimate that
rightly marks such a pixel is charged with a false positive. Where Middlebury stereo has no occlusion map, the
disparities of both frames give one.

Learning without truth takes sequences: consecutive frames of one scene. They are found from file names alone,
so that a folder on object storage is searched like a local one.
"""

import difflib
import hashlib
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from flowcore.formats import read_disparity, read_flow, read_image, read_mask

_MOST_TOLD = 1000
"""Problems that an error tells one by one."""
CHAIRS_SPLIT = "FlyingChairs_train_val.txt"
_SPLIT_BYTES = 2**20
"""Of such a file, at most: half a million lines. Flying Chairs has 22,872."""
_PAIR_NUMBER = re.compile("[0-9]{1,9}")
_FRAME = "frame_[0-9][0-9][0-9][0-9]"
_NAME = re.compile(r"[a-z][a-z0-9-]+", re.IGNORECASE)
"""What a user may mean as a data set's name, unlike a drive letter or the start of a path."""
_GLOB = re.compile(r"[*?[]")


@dataclass(frozen=True)
class DataSet:
    """A data set and the folder that it was unpacked to, written `sintel:/data/MPI-Sintel`."""

    name: str
    """One of `DATA_SETS`."""
    root: str
    """A path or a URI."""

    @classmethod
    def parse(cls, text: str) -> "DataSet | None":
        """The data set that `text` names; None where `text` is a path, a glob or a URI.

        Raises ValueError for an unknown name such as `sintle:/data`, unless a file or folder is called that.
        """
        name, colon, root = text.partition(":")
        if not colon or root.startswith("//"):
            return None
        if name in DATA_SETS:
            return cls(name, root)
        if not _NAME.fullmatch(name) or _GLOB.search(text) or os.path.exists(text):
            return None
        near = difflib.get_close_matches(name.lower(), DATA_SETS, n=2)
        if near:
            hint = f"perhaps you meant {' or '.join(near)}"
        else:
            hint = f"known are {', '.join(DATA_SETS)}; a URI has two slashes after the colon"
        raise ValueError(f"{text}: unknown data set {name!r} ({hint})")

    def __str__(self) -> str:
        return f"{self.name}:{self.root}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The files of one frame pair and its truth."""

    name: str
    """Unique within the group and the same on every machine, such as `cave_2/frame_0011`."""
    group: str
    """Prefix of the metrics: sintel/clean, sintel/final, kitti12, kitti15, chairs, chairs2, middlebury,
    scenes, kitti15-stereo or middlebury-stereo."""
    image1: Path
    image2: Path
    flow: Path
    occlusion: Path | None = None
    """Mask; nonzero = occluded."""
    visible: Path | None = None
    """Mask; 255 = visible, less = occluded or unknown (Middlebury stereo)."""
    invalid: Path | None = None
    """Mask; nonzero = ignore the flow here."""
    flow_noc: Path | None = None
    """Flow at non-occluded pixels only (KITTI)."""
    disparity_scale: float | None = None
    """Set for rectified stereo pairs, left frame first: `flow` then holds disparity times this."""
    disparity_right: Path | None = None
    """Disparity of the right frame; gives the occlusion where no file does."""
    split: Literal["training", "validation"] | None = None
    """What the data set's own split file says; None where there is no such file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """One frame pair and its truth, as arrays."""

    image1: UInt8[np.ndarray, "height width 3"]
    image2: UInt8[np.ndarray, "height width 3"]
    flow: Float[np.ndarray, "2 height width"]
    """From image1 to image2, in pixels; zero where not `valid`."""
    valid: Bool[np.ndarray, "height width"]
    is_stereo: bool = False
    """A rectified stereo pair: u is minus the disparity, v is 0, and only u is judged."""
    occluded: Bool[np.ndarray, "height width"] | None
    """True = image2 doesn't show this pixel of image1; meaningful where `valid`. None = unknown."""


def find_samples(name: str, root: Path, *, to_learn_from: bool = False) -> list[Sample]:
    """The samples in a data set's unpacked folder, or in its `training` folder, sorted by group and name.

    Where a split file is there, only validation pairs are taken; with `to_learn_from`, only training pairs.

    Raises ValueError for an unknown data set, FileNotFoundError where the expected layout has no sample.
    """
    if name not in _LAYOUTS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(DATA_SETS)}")
    layout, find = _LAYOUTS[name]
    samples = [
        sample
        for sample in find(root)
        if sample.split != ("validation" if to_learn_from else "training")
        and all(path.is_file() for path in (sample.image1, sample.image2, sample.flow))
    ]
    if not samples:
        found = "no frame pair with truth in" if root.is_dir() else "there is no folder"
        raise FileNotFoundError(f"{found} {root.absolute()}; {name} is expected as {layout}")
    return sorted(samples, key=lambda sample: (sample.group, sample.name))


def samples_digest(samples: Sequence[Sample]) -> str:
    """32 hexadecimal digits that change with the pairs' names and file sizes, but not with their content."""
    files = [(sample.image1, sample.image2, sample.flow) for sample in samples]
    listed = [
        (sample.group, sample.name, *(file.stat().st_size for file in each))
        for sample, each in zip(samples, files, strict=True)
    ]
    return hashlib.blake2b(repr(listed).encode(), digest_size=16).hexdigest()


def load(sample: Sample) -> Truth:
    """Reads a sample's files. Raises ValueError if they differ in size, FileNotFoundError if one is gone."""
    image1 = read_image(sample.image1)
    size = image1.shape[:2]
    image2 = read_image(sample.image2, size)
    flow, valid = _read_truth(sample, sample.flow, size)
    occluded = _read_occlusion(sample, flow, valid)
    invalid = np.zeros_like(valid) if sample.invalid is None else read_mask(sample.invalid, size)
    known = valid & ~invalid
    return Truth(
        image1=image1,
        image2=image2,
        flow=np.where(known, flow, np.float32(0)),
        valid=known,
        is_stereo=sample.disparity_scale is not None,
        occluded=occluded,
    )


def unreadable(problems: Sequence[str], num_samples: int, place: object) -> ValueError:
    """What to raise where samples can't be read: it names each, so that all can be repaired at once.

    problems: a line for each, which begins with the sample's name.
    """
    told = list(problems[:_MOST_TOLD])
    if more := len(problems) - len(told):
        told.append(f"and {more} more")
    lines = "\n  ".join(told)
    return ValueError(
        f"{len(problems)} of {num_samples} pairs in {place} can't be read, and nothing was written; repair "
        f"or remove them:\n  {lines}"
    )


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
    frames of Sintel are taken: both passes, in training/ and test/.

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
        parts = _split_parts(read(split, _SPLIT_BYTES + 1), split)
        sequences = [pair for pair in sequences if _split_of(pair.name.split("_")[0], parts) == "training"]
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


def _read_truth(
    sample: Sample, path: Path, size: tuple[int, int]
) -> tuple[Float[np.ndarray, "2 height width"], Bool[np.ndarray, "height width"]]:
    """Flow, of this size (height, width), and where it is known. What is at x in the left frame is at
    x - disparity in the right one."""
    if sample.disparity_scale is None:
        return read_flow(path, size)
    disparity, known = read_disparity(path, sample.disparity_scale, size)
    return np.stack([-disparity, np.zeros_like(disparity)]), known


def _read_occlusion(
    sample: Sample, flow: Float[np.ndarray, "2 height width"], valid: Bool[np.ndarray, "height width"]
) -> Bool[np.ndarray, "rows columns"] | None:
    """True = occluded, by the sample's files; meaningful where `valid`. None where no file tells."""
    occluded: np.ndarray | None = None
    if sample.occlusion is not None:
        occluded = read_mask(sample.occlusion, valid.shape)
    elif sample.visible is not None:
        occluded = (read_image(sample.visible, valid.shape) != 255).any(axis=2)
    elif sample.flow_noc is not None:
        occluded = valid & ~_read_truth(sample, sample.flow_noc, valid.shape)[1]
    elif sample.disparity_right is not None:
        of_right, _ = _read_truth(sample, sample.disparity_right, valid.shape)
        occluded = _behind_nearer(-flow[0], -of_right[0])
    return occluded


def _behind_nearer(
    left: Float[np.ndarray, "height width"], right: Float[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """True where a pixel's disparity leads out of the right frame, or to a disparity over 1 px larger there.

    Disparities are in pixels; 0 is unknown and hides nothing. Source: Scharstein and Szeliski, A Taxonomy and
    Evaluation of Dense Two-Frame Stereo Correspondence Algorithms (IJCV 2002), "occluded regions". On
    Middlebury's Cones it agrees with the map that ships with Pandora at 99.0 % of the pixels (precision 0.96,
    recall 0.95).
    """
    width = left.shape[1]
    x = np.arange(width) - left
    nearest = np.rint(x).astype(np.intp).clip(0, width - 1)
    there = np.take_along_axis(right, nearest, axis=1)
    hidden: np.ndarray = (x < 0) | (there > left + 1)
    return hidden


def _find_sintel(root: Path) -> Iterator[Sample]:
    training = _inside(root, "training")
    for flow in training.glob(f"flow/*/{_FRAME}.flo"):
        scene = flow.parent.name
        for render_pass in ("clean", "final"):
            frames = training / render_pass / scene
            yield Sample(
                name=f"{scene}/{flow.stem}",
                group=f"sintel/{render_pass}",
                image1=frames / f"{flow.stem}.png",
                image2=frames / f"{_next(flow.stem)}.png",
                flow=flow,
                occlusion=_if_there(training / "occlusions" / scene / f"{flow.stem}.png"),
                invalid=_if_there(training / "invalid" / scene / f"{flow.stem}.png"),
            )


def _find_kitti(root: Path, *, group: str, image_folders: tuple[str, ...]) -> Iterator[Sample]:
    training = _inside(root, "training")
    for flow in training.glob("flow_occ/*_10.png"):
        target = flow.name.replace("_10.png", "_11.png")
        folders = [training / folder for folder in image_folders]
        frames = next((folder for folder in folders if (folder / target).is_file()), folders[-1])
        yield Sample(
            name=flow.stem,
            group=group,
            image1=frames / flow.name,
            image2=frames / target,
            flow=flow,
            flow_noc=_if_there(training / "flow_noc" / flow.name),
        )


def _find_kitti2012(root: Path) -> Iterator[Sample]:
    return _find_kitti(root, group="kitti12", image_folders=("colored_0", "image_0"))


def _find_kitti2015(root: Path) -> Iterator[Sample]:
    return _find_kitti(root, group="kitti15", image_folders=("image_2",))


def _find_kitti2015_stereo(root: Path) -> Iterator[Sample]:
    training = _inside(root, "training")
    for disparity in training.glob("disp_occ_0/*_10.png"):
        yield Sample(
            name=disparity.stem,
            group="kitti15-stereo",
            image1=training / "image_2" / disparity.name,
            image2=training / "image_3" / disparity.name,
            flow=disparity,
            flow_noc=_if_there(training / "disp_noc_0" / disparity.name),
            disparity_scale=256.0,
        )


def _find_middlebury_stereo(root: Path) -> Iterator[Sample]:
    for truth, of_right, left, right, scale in (
        ("disp2.pgm", "disp6.pgm", "im2.png", "im6.png", 4.0),
        ("disp2.png", "disp6.png", "im2.png", "im6.png", 4.0),
        ("disp0.pfm", "disp1.pfm", "im0.png", "im1.png", 1.0),
        ("disp0GT.pfm", "disp1GT.pfm", "im0.png", "im1.png", 1.0),
    ):
        for disparity in root.glob(f"*/{truth}"):
            scene = disparity.parent
            yield Sample(
                name=scene.name,
                group="middlebury-stereo",
                image1=scene / left,
                image2=scene / right,
                flow=disparity,
                visible=_if_there(scene / "mask0nocc.png") or _if_there(scene / "occlusion.png"),
                disparity_scale=scale,
                disparity_right=_if_there(scene / of_right),
            )
    for disparity in root.glob("*_disp.npz"):
        name = disparity.name.removesuffix("_disp.npz")
        yield Sample(
            name=name,
            group="middlebury-stereo",
            image1=root / f"{name}_left.png",
            image2=root / f"{name}_right.png",
            flow=disparity,
            disparity_scale=1.0,
        )


def _find_chairs(root: Path) -> Iterator[Sample]:
    pairs = _inside(root, "data")
    split = next((file for file in (root / CHAIRS_SPLIT, pairs / CHAIRS_SPLIT) if file.is_file()), None)
    parts: list[str] | None = None
    if split is not None:
        with split.open("rb") as file:
            parts = _split_parts(file.read(_SPLIT_BYTES + 1), split)
    for flow in pairs.glob("[0-9]*_flow.flo"):
        name = flow.name.removesuffix("_flow.flo")
        if not _PAIR_NUMBER.fullmatch(name):
            continue
        yield Sample(
            name=name,
            group="chairs",
            image1=pairs / f"{name}_img1.ppm",
            image2=pairs / f"{name}_img2.ppm",
            flow=flow,
            split=None if parts is None else _split_of(name, parts),
        )


def _find_chairs2(root: Path) -> Iterator[Sample]:
    found = {flow.with_suffix(""): flow for flow in sorted(root.glob("**/*-flow_01.flo*"), reverse=True)}
    for flow in found.values():
        pair = flow.name.partition("-flow_01.")[0]
        folder = flow.parent.relative_to(root)
        yield Sample(
            name=(folder / pair).as_posix(),
            group="chairs2",
            image1=flow.parent / f"{pair}-img_0.png",
            image2=flow.parent / f"{pair}-img_1.png",
            flow=flow,
            occlusion=_if_there(flow.parent / f"{pair}-occ_01.png"),
            split={"train": "training", "val": "validation"}.get(folder.name),  # type: ignore[arg-type]
        )


def _split_parts(content: bytes, file: object) -> list[str]:
    """The lines of a split file, of which the beginning was read; ValueError for one of another kind."""
    if len(content) > _SPLIT_BYTES:
        raise ValueError(
            f"{file} has more than {_SPLIT_BYTES} bytes; a split file has a line, 1 or 2, for a pair"
        )
    parts = content.split()
    if other := next((part for part in parts if part not in (b"1", b"2")), None):
        raise ValueError(f"{file} has a line {other[:20]!r}; each line of a split file is 1 or 2")
    return [part.decode() for part in parts]


def _split_of(name: str, parts: list[str]) -> Literal["training", "validation"]:
    """Line n of the split file is about pair n, counted from 1, whichever pairs exist: 1 training, 2
    validation."""
    line = int(name)
    if not 1 <= line <= len(parts):
        raise ValueError(
            f"{CHAIRS_SPLIT} has {len(parts)} lines and none for pair {name} (line n is pair n, from 1); "
            "it belongs to another set: remove one of them"
        )
    return "validation" if parts[line - 1] == "2" else "training"


def _find_middlebury(root: Path) -> Iterator[Sample]:
    for flow in root.glob("*/flow10.flo"):
        scene = flow.parent
        yield Sample(
            name=scene.name,
            group="middlebury",
            image1=scene / "frame10.png",
            image2=scene / "frame11.png",
            flow=flow,
        )


def _find_scenes(root: Path) -> Iterator[Sample]:
    for flow in root.glob(f"*/flow/{_FRAME}.flo"):
        scene = flow.parent.parent
        yield Sample(
            name=f"{scene.name}/{flow.stem}",
            group="scenes",
            image1=scene / f"{flow.stem}.png",
            image2=scene / f"{_next(flow.stem)}.png",
            flow=flow,
            occlusion=_if_there(scene / "occlusions" / f"{flow.stem}.png"),
        )


def _inside(root: Path, folder: str) -> Path:
    return root / folder if (root / folder).is_dir() else root


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _next(frame: str) -> str:
    """`frame_0009` -> `frame_0010`."""
    prefix, number = frame.rsplit("_", 1)
    return f"{prefix}_{int(number) + 1:0{len(number)}d}"


_LAYOUTS: dict[str, tuple[str, Callable[[Path], Iterator[Sample]]]] = {
    "sintel": (
        "training/{clean,final}/<scene>/frame_0001.png and training/flow/<scene>/frame_0001.flo, "
        "with occlusions/ and invalid/ beside flow/",
        _find_sintel,
    ),
    "kitti2012": (
        "training/{colored_0 or image_0}/000000_10.png and _11.png, training/flow_occ/000000_10.png, "
        "with flow_noc/ beside flow_occ/",
        _find_kitti2012,
    ),
    "kitti2015": (
        "training/image_2/000000_10.png and _11.png, training/flow_occ/000000_10.png, "
        "with flow_noc/ beside flow_occ/",
        _find_kitti2015,
    ),
    "chairs": (
        f"[data/]00001_img1.ppm, 00001_img2.ppm, 00001_flow.flo; beside {CHAIRS_SPLIT} only validation pairs",
        _find_chairs,
    ),
    "chairs2": (
        "[train/ or val/]0000000-img_0.png, 0000000-img_1.png, 0000000-flow_01.flo (or .flo5), "
        "0000000-occ_01.png; val/ to judge, train/ to learn from",
        _find_chairs2,
    ),
    "middlebury": ("<scene>/frame10.png, frame11.png, flow10.flo", _find_middlebury),
    "kitti2015-stereo": (
        "training/image_2/000000_10.png, training/image_3/000000_10.png, training/disp_occ_0/000000_10.png, "
        "with disp_noc_0/ beside disp_occ_0/",
        _find_kitti2015_stereo,
    ),
    "middlebury-stereo": (
        "<scene>/im2.png, im6.png and disp2.pgm or .png (2003), or <scene>/im0.png, im1.png and disp0.pfm "
        "(2014) or disp0GT.pfm (MiddEval3), with mask0nocc.png or occlusion.png, 255 = visible, or the right "
        "frame's disp6 or disp1 beside it; or <scene>_left.png, _right.png and _disp.npz (scikit-image)",
        _find_middlebury_stereo,
    ),
    "scenes": (
        "<scene>/frame_0000.png, <scene>/flow/frame_0000.flo, <scene>/occlusions/frame_0000.png",
        _find_scenes,
    ),
}

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
}
"""The layout in words, and patterns of file names; the first pattern that finds a sequence is used."""

DATA_SETS = tuple(_LAYOUTS)
"""The names that `find_samples` knows."""
SEQUENCES = tuple(_SEQUENCES)
"""The names that `find_sequences` knows."""
