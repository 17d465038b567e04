"""Which frame pairs of a benchmark have truth, and what is it? Which frames does it offer beside them?

A sample is a flow file whose two frames exist, so partial downloads and scenes with truth for a few frames
are fine. Occlusion truth is the benchmark's own and isn't repaired. MPI-Sintel's maps leave out part of what
moves out of the frame (0.1 to 1.2 % of all pixels in five frames measured, mostly those that end within 10 px
of the border). NOC and OCC errors are what the files say; an occlusion estimate that rightly marks those
pixels is charged with false positives there. Middlebury stereo without a map has it from the disparities of
both frames.

What is learnt from without truth are sequences: consecutive frames of one scene. They are found among names
of files alone, so that a folder on object storage is searched like a local one.
"""

import hashlib
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

CHAIRS_SPLIT = "FlyingChairs_train_val.txt"
_FRAME = "frame_[0-9][0-9][0-9][0-9]"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Where one frame pair and its truth are."""

    name: str
    """Unique within its group and the same on every machine, such as `cave_2/frame_0011`."""
    group: str
    """Prefix of its metrics: sintel/clean, sintel/final, kitti12, kitti15, chairs, chairs2, middlebury or
    scenes, and kitti15-stereo or middlebury-stereo."""
    image1: Path
    image2: Path
    flow: Path
    occlusion: Path | None = None
    """A mask, not zero = occluded."""
    visible: Path | None = None
    """A mask, 255 = not occluded, less = occluded or unknown (Middlebury stereo)."""
    invalid: Path | None = None
    """A mask, not zero = the flow file's value doesn't count."""
    flow_noc: Path | None = None
    """Flow that is known at non-occluded pixels only (KITTI)."""
    disparity_scale: float | None = None
    """For rectified stereo pairs, the left frame first: the truth's files hold disparity times this."""
    disparity_right: Path | None = None
    """The right frame's disparity, which tells what is occluded where no file says it."""
    split: Literal["training", "validation"] | None = None
    """Where the set's own split file says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """One frame pair with its truth, as arrays."""

    image1: UInt8[np.ndarray, "height width 3"]
    image2: UInt8[np.ndarray, "height width 3"]
    flow: Float[np.ndarray, "2 height width"]
    """From image1 to image2, in pixels; zero where not valid."""
    valid: Bool[np.ndarray, "height width"]
    is_stereo: bool = False
    """u is minus the disparity and v is 0; only u is asked for."""
    occluded: Bool[np.ndarray, "height width"] | None
    """True = image2 doesn't show this pixel of image1; counts where `valid`. None = no such truth."""


def find_samples(benchmark: str, root: Path, *, to_learn_from: bool = False) -> list[Sample]:
    """The samples in a benchmark's unpacked folder (or its `training` folder), sorted by group and name: of a
    set with a split file those of validation, or of training if they are to learn from.

    Raises ValueError for an unknown benchmark, FileNotFoundError when no sample is there in the layout
    expected.
    """
    if benchmark not in _BENCHMARKS:
        raise ValueError(f"unknown benchmark {benchmark!r}; known are {', '.join(_BENCHMARKS)}")
    layout, find = _BENCHMARKS[benchmark]
    samples = [
        sample
        for sample in find(root)
        if sample.split != ("validation" if to_learn_from else "training")
        and all(path.is_file() for path in (sample.image1, sample.image2, sample.flow))
    ]
    if not samples:
        found = "no frame pair with truth in" if root.is_dir() else "there is no folder"
        raise FileNotFoundError(f"{found} {root.absolute()}; {benchmark} is expected as {layout}")
    return sorted(samples, key=lambda sample: (sample.group, sample.name))


def samples_digest(samples: Sequence[Sample]) -> str:
    """Names the pairs and the sizes of their files, not every byte of them."""
    files = [(sample.image1, sample.image2, sample.flow) for sample in samples]
    listed = [
        (sample.group, sample.name, *(file.stat().st_size for file in each))
        for sample, each in zip(samples, files, strict=True)
    ]
    return hashlib.blake2b(repr(listed).encode(), digest_size=16).hexdigest()


def load(sample: Sample) -> Truth:
    """Reads a sample's files; ValueError when they differ in size, FileNotFoundError when one is gone."""
    image1, image2 = read_image(sample.image1), read_image(sample.image2)
    flow, valid = _read_truth(sample, sample.flow, image1.shape[:2])
    occluded = _read_occlusion(sample, flow, valid)
    invalid = np.zeros_like(valid) if sample.invalid is None else read_mask(sample.invalid)
    sizes = {
        "image1": image1.shape[:2],
        "image2": image2.shape[:2],
        "flow": valid.shape,
        "occlusion": valid.shape if occluded is None else occluded.shape,
        "invalid": invalid.shape,
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the files of {sample.group} {sample.name} differ in (height, width): {sizes}")
    known = valid & ~invalid
    return Truth(
        image1=image1,
        image2=image2,
        flow=np.where(known, flow, np.float32(0)),
        valid=known,
        is_stereo=sample.disparity_scale is not None,
        occluded=occluded,
    )


@dataclass(frozen=True, kw_only=True)
class FrameSequence:
    """Consecutive frames of one scene, two or more."""

    folder: str
    """Relative to the data set's, with / between parts; empty where it is that folder itself."""
    frames: tuple[str, ...]
    """Their files' names within the folder, in order."""

    @property
    def name(self) -> str:
        """Of the first frame, without extension: unique within the folder, which may hold many scenes."""
        return posixpath.splitext(self.frames[0])[0]


def find_sequences(benchmark: str, files: Collection[str], read: Callable[[str], str]) -> list[FrameSequence]:
    """The sequences of a benchmark that a network may learn from without truth, in its unpacked folder.

    files: those in the folder, relative to it, with / between parts. read: the text of one of them. A missing
    frame ends a sequence, and the next frame begins another. Left out: the pairs with truth of KITTI and the
    frames beside them, and the validation pairs of Flying Chairs where its split is there. Sintel's frames
    are all taken, of both passes, in training/ and test/.

    Raises ValueError for a benchmark without such frames, FileNotFoundError where there is no sequence in the
    layout expected.
    """
    if benchmark not in _SEQUENCES:
        raise ValueError(f"{benchmark!r} has no layout of frames; those known are {', '.join(_SEQUENCES)}")
    layout, patterns = _SEQUENCES[benchmark]
    sequences = next(filter(None, (_sequences(files, pattern) for pattern in patterns)), [])
    split = next((file for file in files if posixpath.basename(file) == CHAIRS_SPLIT), None)
    if benchmark == "chairs" and split is not None:
        parts = read(split).split()
        sequences = [pair for pair in sequences if not _is_validation(pair.name.split("_")[0], parts)]
    if not sequences:
        raise FileNotFoundError(
            f"no sequence of two or more frames among {len(files)} files; {benchmark} is expected as {layout}"
        )
    return sequences


def _sequences(files: Iterable[str], pattern: str) -> list[FrameSequence]:
    """The runs of files that match `pattern` with the same scene and with frame numbers that follow each
    other, sorted."""
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
    sample: Sample, path: Path, size: tuple[int, int] | None = None
) -> tuple[Float[np.ndarray, "2 height width"], Bool[np.ndarray, "height width"]]:
    """Flow, of this size (height, width), and where it is known; what stands at x in the left frame is at
    x - disparity in the right one."""
    if sample.disparity_scale is None:
        return read_flow(path, size)
    disparity, known = read_disparity(path, sample.disparity_scale)
    return np.stack([-disparity, np.zeros_like(disparity)]), known


def _read_occlusion(
    sample: Sample, flow: Float[np.ndarray, "2 height width"], valid: Bool[np.ndarray, "height width"]
) -> Bool[np.ndarray, "rows columns"] | None:
    """What the sample's files say is occluded, which counts where `valid`; None when they don't tell."""
    occluded: np.ndarray | None = None
    if sample.occlusion is not None:
        occluded = read_mask(sample.occlusion)
    elif sample.visible is not None:
        occluded = (read_image(sample.visible) != 255).any(axis=2)
    elif sample.flow_noc is not None:
        occluded = valid & ~_read_truth(sample, sample.flow_noc, valid.shape)[1]
    elif sample.disparity_right is not None:
        of_right, _ = _read_truth(sample, sample.disparity_right)
        if of_right.shape != flow.shape:
            raise ValueError(
                f"the disparities of {sample.group} {sample.name} differ in (height, width): "
                f"left {flow.shape[1:]}, right {of_right.shape[1:]}"
            )
        occluded = _behind_nearer(-flow[0], -of_right[0])
    return occluded


def _behind_nearer(
    left: Float[np.ndarray, "height width"], right: Float[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """True where the left frame's disparity leads out of the right frame or to one larger by over 1 px there.

    In pixels, 0 = unknown, which hides nothing. Source: Scharstein and Szeliski, A Taxonomy and Evaluation of
    Dense Two-Frame Stereo Correspondence Algorithms (IJCV 2002), "occluded regions". On Middlebury's Cones it
    says the same as the map that Pandora comes with at 99.0 % of the pixels (precision 0.96, recall 0.95).
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
    parts = None if split is None else split.read_text().split()
    for flow in pairs.glob("[0-9]*_flow.flo"):
        name = flow.name.removesuffix("_flow.flo")
        yield Sample(
            name=name,
            group="chairs",
            image1=pairs / f"{name}_img1.ppm",
            image2=pairs / f"{name}_img2.ppm",
            flow=flow,
            split=None if parts is None else "validation" if _is_validation(name, parts) else "training",
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


def _is_validation(name: str, parts: list[str]) -> bool:
    """Line n of the split file is for pair n, from 1, whichever pairs exist; 1 = train, 2 = validation."""
    line = int(name)
    if not 1 <= line <= len(parts):
        raise ValueError(
            f"{CHAIRS_SPLIT} has {len(parts)} lines and none for pair {name} (line n is pair n, from 1); "
            "it belongs to another set: remove one of them"
        )
    return parts[line - 1] == "2"


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


_BENCHMARKS: dict[str, tuple[str, Callable[[Path], Iterator[Sample]]]] = {
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
        "0000000-occ_01.png; of val/ and train/ only the one asked for",
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

# Frames 10 and 11 of a scene are its pair with truth, or the test's. Leaving their neighbours out as well is
# a choice, which DDFlow made before us.
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
"""The layout in words, and patterns of the files' names, of which the first that finds something counts."""

BENCHMARKS = tuple(_BENCHMARKS)
"""The names that `find_samples` knows."""
SEQUENCES = tuple(_SEQUENCES)
"""The names that `find_sequences` knows."""
