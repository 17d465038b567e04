"""How do other tools exchange labels with us? As files in the layout of a data set that every tool knows.

An export numbers the pairs in the order of the set's index. Names thus follow from the set and the filter
alone, and a rerun keeps what is there and finishes what is missing. An import takes its identity from the
bytes of the files: other files are another set.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from flowcore.datasets import find_samples
from flowcore.formats import encode_flow, encode_image, encode_mask
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import FramePair
from flowcore.pseudolabels import labels_of
from flowcore.records import LIST_BYTES
from flowcore.samples import Sample, Truth, load, unreadable
from flowcore.shapes import Flow, Mask, to_images
from pipelines.invocation import typed
from pipelines.label_rows import decode_occlusion, label_columns
from pipelines.labels import MOST_FLOW, PAIR_ID, beside
from pipelines.ledger import write_ledger
from pipelines.pair_set import PairSet
from pipelines.sample_set import SAMPLE_CODEC, frame_pair, in_parts, sample_set
from pipelines.set_description import SetDescription
from pipelines.set_files import read_record, require_plain
from pipelines.storage import Folder, join, json_bytes

Layout = Literal["chairs2", "chairs2-flo5", "kitti2015"]

EXPORT_FILE = "export.json"
"""What the folder holds, with the ids of its pairs in the order of their numbers."""
_KITTI_LIMIT = 511.0
"""Pixels; its 16 bits have no number for more."""


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export left in a folder."""

    pairs: int
    """In the folder."""
    new_pairs: int
    """Of them, those that this call wrote."""
    unknown_pixels: int
    """Of the new pairs, those whose flow the layout has no number for."""


def export_labels(
    pairs: PairSet, location: str, layout: Layout, *, on_progress: Callable[[int, int], object] | None = None
) -> ExportSummary:
    """Writes the pairs of a label set that its `where` keeps as files into a folder or its URI.

    chairs2: FlyingChairs2's names, 0000000-img_0.png, -img_1.png, -flow_01.flo and -flow_10.flo (forward and
    backward), -occ_01.png and -occ_10.png (255 = occluded). chairs2-flo5: the same with Spring's .flo5.
    kitti2015: training/image_2/000000_10.png and _11.png, flow_occ/ (every pixel) and flow_noc/ (without
    those that the teacher found occluded), forward alone.

    on_progress gets the pairs that are there and those that will be. ValueError for a set without labels, and
    for a folder that holds anything else.
    """
    if not pairs.has_labels:
        raise ValueError(
            f"{pairs.location} has frame pairs without labels; make labels with `{typed('pseudolabel')}`"
        )
    places = pairs.index().to_pylist()
    folder = Folder(location)
    _claim(
        folder,
        {
            "label_set": pairs.label_set,
            "layout": layout,
            "where": None if pairs.where is None else pairs.where.text,
            "pairs": [place["pair_id"] for place in places],
        },
    )
    there = folder.infos()
    left: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
    for number, place in enumerate(places):
        if (last := _last_file(layout, number)) not in there:
            left[place["file"], place["row_group"]].append((place["row"], last))

    def write_group(group: tuple[int, int]) -> tuple[int, int]:
        """The pairs of a row group that are left: how many, and their unknown pixels."""
        rows = pairs.read_group(pairs.files[group[0]], group[1])
        unknown_pixels = 0
        for row, last in left[group]:
            files = _files_of(pairs, rows[row], layout, last)
            for name, content in files.content.items():
                folder.write(name, content)
            unknown_pixels += files.unknown_pixels
        return len(left[group]), unknown_pixels

    new_pairs = unknown_pixels = 0
    done = len(places) - sum(map(len, left.values()))
    with ThreadPoolExecutor() as threads:
        for count, unknown in threads.map(write_group, left):
            new_pairs, unknown_pixels = new_pairs + count, unknown_pixels + unknown
            if on_progress is not None:
                on_progress(done + new_pairs, len(places))
    return ExportSummary(pairs=len(places), new_pairs=new_pairs, unknown_pixels=unknown_pixels)


def import_labels(folder: Path, location: str, check: OcclusionCheck, *, on_cluster: bool = False) -> PairSet:
    """Makes a label set of files in FlyingChairs2's layout, as `export_labels` writes it or another tool.

    0000000-img_0.png, -img_1.png, and -flow_01 and -flow_10, each .flo or .flo5, have to be there; without
    -occ_01.png and -occ_10.png `check` says what is occluded. Where flow is unknown it
    counts as occluded, which nothing is learnt from. What `export_labels` wrote keeps its pair ids; the
    numbers of `pipelines.labels.LABEL_SCHEMA` are computed anew, at full resolution. Of a folder with train/
    and val/ only train/ is taken. on_cluster: whether Ray's nodes do the work, or this process.

    Nothing is written where a file can't be read: ValueError, which names it. ValueError, too, for files of
    one direction alone, and as `pipelines.labels.describe_set`; FileNotFoundError as `find_samples`.
    """
    samples = find_samples("chairs2", folder, to_learn_from=True)
    if lacking := [sample.flow for sample in samples if not _backward(sample).flow.is_file()]:
        raise ValueError(
            f"{len(lacking)} of {len(samples)} pairs in {folder} have no flow back, such as "
            f"{_backward_name(lacking[0])}; a label is of both directions. Write these files, or learn from "
            f"forward flow alone, with `{typed('finetune')} RECIPE --truth chairs2:{folder}`"
        )
    read = [each for part in in_parts(_read_all, samples, "files", on_cluster=on_cluster) for each in part]
    if errors := [each.error for each in read if each.error]:
        raise unreadable(errors, len(samples), folder)
    ids = _exported_ids(folder)
    content = [
        (sample.name, ids.get(sample.name), each.digest) for sample, each in zip(samples, read, strict=True)
    ]
    digest = hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()
    made_of = {
        "files": "chairs2",
        "teacher": {"digest": digest},
        "check": dataclasses.asdict(check),
        "codec": dataclasses.asdict(SAMPLE_CODEC),
    }
    description = SetDescription(
        kind="imported", made_of=made_of, provenance={"files": str(folder)}, num_teachers=1
    )
    row = partial(_label_row, folder=folder, teacher=digest, check=check)
    pairs = sample_set(location, description, samples, row, "labels", on_cluster=on_cluster)
    write_ledger(location, ())
    return pairs


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What was found in a pair's files."""

    digest: str = ""
    """Of their content."""
    error: str = ""
    """Why they can't be read; empty if they can."""


def _read_all(number: int, samples: Sequence[Sample]) -> list[_Read]:
    return [_read(sample) for sample in samples]


def _read(sample: Sample) -> _Read:
    content = hashlib.blake2b(digest_size=16)
    try:
        for direction in (sample, _backward(sample)):
            furthest = np.abs(load(direction).flow).max()
            if furthest > MOST_FLOW:
                raise ValueError(
                    f"{direction.flow} has flow of {furthest:g} px, and a label at most {MOST_FLOW}"
                )
            for file in (direction.image1, direction.flow, direction.occlusion):
                content.update(b"" if file is None else hashlib.blake2b(file.read_bytes()).digest())
    except (ValueError, OSError, MemoryError) as error:
        return _Read(error=f"{sample.name}: {error}")
    return _Read(digest=content.hexdigest())


def _exported_ids(folder: Path) -> dict[str, str]:
    """By the name of a pair that `export_labels` wrote; none in a folder of another tool."""
    if not (folder / EXPORT_FILE).is_file():
        return {}
    values = read_record(str(folder), EXPORT_FILE, LIST_BYTES)
    names = values.get("pairs") if isinstance(values, dict) else None
    if not isinstance(names, list) or not all(
        isinstance(name, str) and PAIR_ID.fullmatch(name) for name in names
    ):
        raise ValueError(f"{EXPORT_FILE} in {folder} lists other pairs than an export does; remove it")
    if len(set(names)) < len(names):
        raise ValueError(f"{EXPORT_FILE} in {folder} lists a pair twice; remove it")
    return {f"{number:07d}": name for number, name in enumerate(names)}


@lru_cache(maxsize=1)
def _ids_of(folder: Path, teacher: str) -> dict[str, str]:
    """Those of a folder whose files have this digest, read once in each process: they may be many."""
    return _exported_ids(folder)


def _backward_name(flow: Path) -> Path:
    return flow.with_name(flow.name.replace("-flow_01.", "-flow_10."))


def _backward(sample: Sample) -> Sample:
    """The same pair the other way round."""
    occlusion = sample.flow.with_name(sample.flow.name.partition("-flow_01.")[0] + "-occ_10.png")
    return dataclasses.replace(
        sample,
        image1=sample.image2,
        image2=sample.image1,
        flow=_backward_name(sample.flow),
        occlusion=occlusion if occlusion.is_file() else None,
    )


def _label_row(
    sample: Sample,
    label_set: str,
    *,
    folder: Path,
    teacher: str,
    check: OcclusionCheck,
) -> pa.Table:
    both = load(sample), load(_backward(sample))
    flows = torch.from_numpy(np.stack([each.flow for each in both]))
    frames = to_images(np.stack([each.image1 for each in both]))
    labels = labels_of([flows], 1, frames, partial(_occluded, both, check))
    name = _ids_of(folder, teacher).get(sample.name)
    return beside(frame_pair(sample, both[0], label_set, name), label_columns(labels, teacher))


def _occluded(both: tuple[Truth, Truth], check: OcclusionCheck, there: Flow, back: Flow) -> Mask:
    known = torch.from_numpy(np.stack([each.valid for each in both]))[:, None]
    told = [each.occluded for each in both if each.occluded is not None]
    occluded = torch.from_numpy(np.stack(told))[:, None] if len(told) == 2 else check(there, back)
    return occluded | ~known


def _claim(folder: Folder, content: Mapping[str, Any]) -> None:
    """Makes the folder this export's; ValueError where it is something else."""
    require_plain(folder)
    for inner in ("training", *(f"training/{name}" for name in ("image_2", "flow_occ", "flow_noc"))):
        require_plain(Folder(join(folder.location, inner)))
    if folder.size(EXPORT_FILE) is None:
        # Hidden files are what a killed export left.
        if folder.files():
            raise ValueError(f"{folder.location} holds other files; give a new folder")
        folder.write(EXPORT_FILE, json_bytes(content))
    elif read_record(folder.location, EXPORT_FILE, LIST_BYTES) != content:
        raise ValueError(
            f"{folder.location} holds the export of another label set, layout or filter, or of this set when "
            f"it held other pairs (see {EXPORT_FILE}); give a new folder"
        )


def _last_file(layout: Layout, number: int) -> str:
    """The file of a pair that is written last: a pair that has it is whole."""
    if layout == "kitti2015":
        return f"training/flow_occ/{number:06d}_10.png"
    suffix = ".flo5" if layout == "chairs2-flo5" else ".flo"
    return f"{number:07d}-flow_01{suffix}"


@dataclass(frozen=True, kw_only=True)
class _PairFiles:
    content: Mapping[str, bytes]
    """By name, in the order of writing."""
    unknown_pixels: int = 0
    """Whose flow the layout has no number for."""


def _files_of(pairs: PairSet, row: Mapping[str, Any], layout: Layout, last: str) -> _PairFiles:
    pair = pairs.decode(row)
    return _kitti_files(pair, row, last) if layout == "kitti2015" else _chairs2_files(pair, row, last)


def _chairs2_files(pair: FramePair, row: Mapping[str, Any], last: str) -> _PairFiles:
    assert pair.flow_fw is not None
    assert pair.flow_bw is not None
    number = last.partition("-")[0]
    content = {}
    for name, image in ((f"{number}-img_0.png", pair.image1), (f"{number}-img_1.png", pair.image2)):
        content[name] = encode_image(image, name)
    for name, column in ((f"{number}-occ_01.png", "occ_fw"), (f"{number}-occ_10.png", "occ_bw")):
        content[name] = encode_mask(decode_occlusion(row, column), name)
    for name, flow in ((last.replace("-flow_01.", "-flow_10."), pair.flow_bw), (last, pair.flow_fw)):
        content[name] = encode_flow(flow, name)
    return _PairFiles(content=content)


def _kitti_files(pair: FramePair, row: Mapping[str, Any], last: str) -> _PairFiles:
    assert pair.flow_fw is not None
    first_frame, visible = last.replace("/flow_occ/", "/image_2/"), last.replace("/flow_occ/", "/flow_noc/")
    second_frame = first_frame.replace("_10.", "_11.")
    known = (np.abs(pair.flow_fw) <= _KITTI_LIMIT).all(axis=0)
    content = {
        first_frame: encode_image(pair.image1, first_frame),
        second_frame: encode_image(pair.image2, second_frame),
        visible: encode_flow(pair.flow_fw, visible, known & ~decode_occlusion(row)),
        last: encode_flow(pair.flow_fw, last, known),
    }
    return _PairFiles(content=content, unknown_pixels=int((~known).sum()))
