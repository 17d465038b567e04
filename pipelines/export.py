"""How does a label set leave for tools that read files of flow? In the layout of a data set that they know.

Pairs are numbered in the order of the set's index, so that the names follow from the set and the filter
alone: a rerun finds what is there and does what is left.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowcore.formats import write_flow, write_image, write_mask
from pipelines.labels import PairSet
from pipelines.locations import write_whole

Layout = Literal["chairs2", "chairs2-flo5", "kitti2015"]

EXPORT_FILE = "export.json"
"""What the folder holds, with the ids of its pairs in the order of their numbers."""
_KITTI_LIMIT = 511.0
"""Pixels; its 16 bits have no number for more."""


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """pairs: in the folder. new_pairs: written by this call. unknown_pixels: of the new pairs, those whose
    flow the layout has no number for."""

    pairs: int
    new_pairs: int
    unknown_pixels: int


def export(
    pairs: PairSet, folder: Path, layout: Layout, *, on_progress: Callable[[int, int], object] | None = None
) -> ExportSummary:
    """Writes the pairs of a label set that its `where` keeps as files.

    chairs2: FlyingChairs2's names, 0000000-img_0.png, -img_1.png, -flow_01.flo and -flow_10.flo (forward and
    backward), -occ_01.png and -occ_10.png (255 = occluded). chairs2-flo5: the same with Spring's .flo5.
    kitti2015: training/image_2/000000_10.png and _11.png, flow_occ/ (every pixel) and flow_noc/ (without
    those that the teacher found occluded), forward alone.

    on_progress gets the pairs that are there and those that will be. ValueError for a set without labels, and
    for a folder that holds anything else.
    """
    if not pairs.has_labels:
        raise ValueError(f"{pairs.location} has frame pairs without labels; make labels with pseudolabel")
    places = pairs.index().to_pylist()
    _claim(
        folder,
        {
            "label_set": pairs.label_set,
            "layout": layout,
            "where": None if pairs.where is None else pairs.where.text,
            "pairs": [place["pair_id"] for place in places],
        },
    )
    write = _write_kitti if layout == "kitti2015" else _write_chairs2
    left: dict[tuple[int, int], list[tuple[int, Path]]] = defaultdict(list)
    for number, place in enumerate(places):
        if not (file := _last_file(folder, layout, number)).exists():
            left[place["file"], place["row_group"]].append((place["row"], file))

    def write_group(group: tuple[int, int]) -> tuple[int, int]:
        """The pairs of a row group that are left: how many, and their unknown pixels."""
        rows = pairs.read_group(pairs.files[group[0]], group[1])
        return len(left[group]), sum(write(pairs, rows[row], file) for row, file in left[group])

    new_pairs = unknown_pixels = 0
    done = len(places) - sum(map(len, left.values()))
    with ThreadPoolExecutor() as threads:
        for count, unknown in threads.map(write_group, left):
            new_pairs, unknown_pixels = new_pairs + count, unknown_pixels + unknown
            if on_progress is not None:
                on_progress(done + new_pairs, len(places))
    return ExportSummary(pairs=len(places), new_pairs=new_pairs, unknown_pixels=unknown_pixels)


def _claim(folder: Path, content: Mapping[str, Any]) -> None:
    """Makes the folder this export's; ValueError where it is something else."""
    file = folder / EXPORT_FILE
    if not file.exists():
        # A hidden one is what a killed export left.
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(f"{folder} holds other files; give a new folder")
        write_whole(file, (json.dumps(content, indent=1) + "\n").encode())
    elif json.loads(file.read_text()) != content:
        raise ValueError(
            f"{folder} holds the export of another label set, layout or filter, or of this set when it held "
            f"other pairs (see {EXPORT_FILE}); give a new folder"
        )


def _last_file(folder: Path, layout: Layout, number: int) -> Path:
    """The file of a pair that is written last: a pair that has it is whole."""
    if layout == "kitti2015":
        return folder / "training" / "flow_occ" / f"{number:06d}_10.png"
    suffix = ".flo5" if layout == "chairs2-flo5" else ".flo"
    return folder / f"{number:07d}-flow_01{suffix}"


def _write_chairs2(pairs: PairSet, row: Mapping[str, Any], last: Path) -> int:
    pair = pairs.decode(row)
    assert pair.flow_fw is not None
    assert pair.flow_bw is not None
    number = last.name.partition("-")[0]
    for name, image in (("img_0", pair.image1), ("img_1", pair.image2)):
        write_image(last.with_name(f"{number}-{name}.png"), image)
    for name, column in (("occ_01", "occ_fw"), ("occ_10", "occ_bw")):
        write_mask(last.with_name(f"{number}-{name}.png"), _mask(row, column))
    write_flow(last.with_name(f"{number}-flow_10{last.suffix}"), pair.flow_bw)
    write_flow(last, pair.flow_fw)
    return 0


def _write_kitti(pairs: PairSet, row: Mapping[str, Any], last: Path) -> int:
    pair = pairs.decode(row)
    assert pair.flow_fw is not None
    training, target = last.parent.parent, last.name.replace("_10.", "_11.")
    for folder in ("image_2", "flow_noc", "flow_occ"):
        (training / folder).mkdir(parents=True, exist_ok=True)
    write_image(training / "image_2" / last.name, pair.image1)
    write_image(training / "image_2" / target, pair.image2)
    known = (np.abs(pair.flow_fw) <= _KITTI_LIMIT).all(axis=0)
    write_flow(training / "flow_noc" / last.name, pair.flow_fw, known & ~_mask(row, "occ_fw"))
    write_flow(last, pair.flow_fw, known)
    return int((~known).sum())


def _mask(row: Mapping[str, Any], column: str) -> np.ndarray:
    return np.asarray(row[column], bool).reshape(row["height"], row["width"])
