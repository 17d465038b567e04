"""Which files do the servers of Sintel, KITTI and Spring ask for, and does a folder hold them?

The pairs follow from the frames of the test split. What a folder lacks, or has in another form, is said
before anything is uploaded: servers take few submissions, and hardly say what is wrong with one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowcore.formats import encode_flow, read_flow
from flowcore.image_size import image_size
from flowcore.shapes import FlowArray

_HEADER_BYTES = 2**16
"""Of an image, more than its size lies behind."""
_SPRING_FRAME = re.compile(r"frame_(?:left|right)_(\d{4})\.png")


@dataclass(frozen=True, kw_only=True)
class AskedPair:
    """Two frames of a test split, and the file that their flow goes to."""

    image1: Path
    image2: Path
    file: str
    """Relative to the submission's folder, with / between parts."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """What a data set's server asks for."""

    find: Callable[[Path], Iterator[AskedPair]]
    """The pairs in a folder that the data set was unpacked to."""
    layout: str
    """Where the frames of the test split lie."""
    num_pairs: int
    """Of the whole test split; a server refuses less."""
    most_flow: float
    """Pixels that a component may have; its format, or what the server makes of it, holds no more."""
    archive: str | None = None
    """The zip file that is uploaded; None where the data set's own tool makes it."""
    remedy: str
    """What to do with the finished folder, called FOLDER."""

    def pairs(self, root: Path) -> list[AskedPair]:
        """The pairs of the test split in `root`, sorted by file. Raises FileNotFoundError where there is
        none, ValueError where some are missing."""
        pairs = sorted(self.find(root), key=lambda pair: pair.file)
        if not pairs:
            raise FileNotFoundError(f"no pair of test frames in {root.absolute()}; expected is {self.layout}")
        if len(pairs) != self.num_pairs:
            raise ValueError(
                f"{root.absolute()} has {len(pairs)} pairs of test frames, and the server asks for "
                f"{self.num_pairs}; unpack the whole test split, as {self.layout}"
            )
        return pairs

    def encoded(self, flow: FlowArray, file: str) -> bytes:
        """The content of a file of a submission. Longer components are cut to `most_flow`, the nearest that
        can be said; every pixel has an answer."""
        return encode_flow(np.clip(flow, -self.most_flow, self.most_flow), file)

    def problem(self, pair: AskedPair, folder: Path) -> str | None:
        """What is wrong with a pair's file in a submission's folder; None if nothing is."""
        path = folder / pair.file
        if not path.is_file():
            return f"{pair.file} is missing"
        with pair.image1.open("rb") as frame:
            size = image_size(frame.read(_HEADER_BYTES))
        try:
            flow, valid = read_flow(path, size)
        except ValueError as error:
            return str(error)
        if not valid.all():
            return f"{path} has no finite flow at {(~valid).sum()} pixels; a server asks for every pixel"
        if (longest := np.abs(flow).max()) > self.most_flow:
            return f"{path} has a component of {longest:.7g} px; at most {self.most_flow:g} is taken"
        return None


def problems(
    server: Server, pairs: Sequence[AskedPair], folder: Path, beside: Sequence[str] = ()
) -> list[str]:
    """What a server would refuse in a submission's folder: files that are missing, of another size or not
    finite, and files of other names, which are flow that the server doesn't find.

    beside: names of files in the folder that aren't flow.
    """
    found = [problem for pair in pairs if (problem := server.problem(pair, folder)) is not None]
    asked = {pair.file for pair in pairs} | set(beside)
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return found + [f"{name} isn't asked for" for name in sorted(there) if name not in asked]


def _sintel(root: Path) -> Iterator[AskedPair]:
    """The data set's "README" and bundler: one folder of .flo for each pass, named like the frames."""
    test = _inside(root, "test")
    for render_pass in ("clean", "final"):
        for image1 in (test / render_pass).glob("*/frame_[0-9][0-9][0-9][0-9].png"):
            number = int(image1.stem.removeprefix("frame_"))
            image2 = image1.with_name(f"frame_{number + 1:04d}.png")
            if image2.is_file():
                file = f"{render_pass}/{image1.parent.name}/{image1.stem}.flo"
                yield AskedPair(image1=image1, image2=image2, file=file)


def _kitti2012(root: Path) -> Iterator[AskedPair]:
    """The development kit's readme: in the root of the zip file."""
    testing = _inside(root, "testing")
    frames = testing / "colored_0"
    yield from _kitti(frames if frames.is_dir() else testing / "image_0", "")


def _kitti2015(root: Path) -> Iterator[AskedPair]:
    """The development kit's readme: in the folder `flow` of the zip file."""
    yield from _kitti(_inside(root, "testing") / "image_2", "flow/")


def _kitti(frames: Path, folder: str) -> Iterator[AskedPair]:
    for image1 in frames.glob("[0-9]*_10.png"):
        image2 = image1.with_name(image1.name.replace("_10.png", "_11.png"))
        if image2.is_file():
            yield AskedPair(image1=image1, image2=image2, file=f"{folder}{image1.name}")


def _spring(root: Path) -> Iterator[AskedPair]:
    """Its website, "How does the submission work?": both cameras, forward and backward in time."""
    for image1 in _inside(root, "test").glob("*/frame_*/frame_*.png"):
        match = _SPRING_FRAME.fullmatch(image1.name)
        if match is None:
            continue
        scene, camera = image1.parent.parent.name, image1.parent.name.removeprefix("frame_")
        for direction, step in (("FW", 1), ("BW", -1)):
            image2 = image1.with_name(f"frame_{camera}_{int(match[1]) + step:04d}.png")
            if image2.is_file():
                name = f"flow_{direction}_{camera}"
                file = f"{scene}/{name}/{name}_{match[1]}.flo5"
                yield AskedPair(image1=image1, image2=image2, file=file)


def _inside(root: Path, folder: str) -> Path:
    return root / folder if (root / folder).is_dir() else root


SERVERS = {
    "sintel": Server(
        find=_sintel,
        layout="test/{clean,final}/<scene>/frame_0001.png and so on",
        num_pairs=1104,
        most_flow=1e6,
        remedy="pack it with the data set's own bundler and upload the file that it writes: "
        "bundler/linux-x64/bundler FOLDER/clean FOLDER/final submission.lzma",
    ),
    "kitti2012": Server(
        find=_kitti2012,
        layout="testing/{colored_0 or image_0}/000000_10.png and _11.png",
        num_pairs=195,
        most_flow=511.0,
        archive="submission.zip",
        remedy="upload FOLDER/submission.zip",
    ),
    "kitti2015": Server(
        find=_kitti2015,
        layout="testing/image_2/000000_10.png and _11.png",
        num_pairs=200,
        most_flow=511.0,
        archive="submission.zip",
        remedy="upload FOLDER/submission.zip",
    ),
    "spring": Server(
        find=_spring,
        layout="test/<scene>/{frame_left,frame_right}/frame_left_0001.png and so on",
        num_pairs=3960,
        most_flow=65504.0,
        remedy="run the website's own tool, flow_subsampling FOLDER, and upload the flow_submission.hdf5 "
        "that it writes",
    ),
}
"""By the name of a data set. Sintel's limit is ours, far above any motion; KITTI's is its PNG's, and
Spring's that of the 16-bit floats which its tool makes."""
