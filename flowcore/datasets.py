"""Which public data sets are known, and which samples does a folder of one hold?"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from flowcore.layouts import LAYOUTS
from flowcore.samples import Sample

DATA_SETS = tuple(LAYOUTS)
"""The names that `find_samples` knows."""
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


def find_samples(name: str, root: Path, *, to_learn_from: bool = False) -> list[Sample]:
    """The samples in a data set's unpacked folder, or in its `training` folder, sorted by group and name.

    Where a split file is there, only validation pairs are taken; with `to_learn_from`, only training pairs.

    Raises ValueError for an unknown data set, FileNotFoundError where the expected layout has no sample.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(DATA_SETS)}")
    layout, find = LAYOUTS[name]
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
