"""Is the feed as fast as the loader that one would write: a torch Dataset of .flo and PNG files?

    python benchmarks/loader.py [--pairs 512] [--readers 3]

Renders videos of 256x320 px and labels them twice, with a network of fresh weights (labels at its stride, 4)
and with OpenCV's DIS (labels at full resolution); writes both also as FlyingChairs2's files, frames and masks
as PNG and flow as .flo. Then reads each four ways with the same crops: as training does, in Ray's processes;
by torch's DataLoader with as many workers, both to the batches that a step takes; and by either's reader in
this process, one thread. Prints pairs a second once running (the files are in the page cache) and the bytes
of a pair, and what each challenge takes for a pair in one process. Seed 0.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch.utils.data import DataLoader, Dataset

from flowcore.formats import read_flow, read_image, read_mask
from flowcore.hallucination import (
    Challenge,
    Colour,
    CopyPaste,
    Crop,
    Geometric,
    RectangleNoise,
    SuperpixelNoise,
)
from flowcore.pairs import FramePair
from flowcore.scenes import SceneOptions, render_scene, write_video
from jobs.recipes import RECIPES
from pipelines.checkpoints import fetch_model, save_model
from pipelines.cluster import connect
from pipelines.feed import Plan, batches, to_batch
from pipelines.label_files import EXPORT_FILE, export_labels
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.pair_set import PairSet

_HEIGHT, _WIDTH, _BATCH = 256, 320, 4
_CROP = Challenge(crop=Crop(height=192, width=256))
CHALLENGES = {
    "crop": _CROP,
    "crop, rectangles": replace(_CROP, rectangles=RectangleNoise(chance=1.0)),
    "crop, superpixels": replace(_CROP, superpixels=SuperpixelNoise(chance=1.0)),
    "crop, geometry": replace(_CROP, geometric=Geometric(chance=1.0)),
    "crop, colour": replace(_CROP, colour=Colour(chance=1.0)),
    "crop, pasted pieces": replace(_CROP, pasted=CopyPaste(chance=1.0)),
}


@dataclass(frozen=True)
class Files(Dataset[dict[str, ndarray]]):
    """A folder of FlyingChairs2's names, the way a training script would read it."""

    folder: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, number: int) -> FramePair:
        place = self.folder / f"{number:07d}"
        visible = [1.0 - read_mask(Path(f"{place}-occ_{way}.png")).astype(np.float32) for way in ("01", "10")]
        return FramePair(
            image1=read_image(Path(f"{place}-img_0.png")),
            image2=read_image(Path(f"{place}-img_1.png")),
            flow_fw=read_flow(Path(f"{place}-flow_01.flo"))[0],
            flow_bw=read_flow(Path(f"{place}-flow_10.flo"))[0],
            confidence_fw=visible[0],
            confidence_bw=visible[1],
        )

    def __getitem__(self, number: int) -> dict[str, ndarray]:
        pair = _CROP(self.read(number), np.random.default_rng(number))
        values = {field.name: getattr(pair, field.name) for field in fields(pair)}
        return {name: np.ascontiguousarray(each) for name, each in values.items() if each is not None}


def rate(steps: Iterator[Any], pairs_a_step: int, warm_up: int) -> float:
    """Pairs a second of what comes after the first `warm_up` steps."""
    for _ in range(warm_up):
        next(steps)
    started, count = time.perf_counter(), 0
    for _ in steps:
        count += 1
    return count * pairs_a_step / (time.perf_counter() - started)


def fed(pairs: PairSet, readers: int) -> float:
    index = pairs.index()
    plan = Plan(index=index, global_batch=_BATCH, seed=0)
    epochs = 4
    steps_per_epoch = index.num_rows // _BATCH
    steps = batches(pairs, plan, _CROP, start=0, stop=epochs * steps_per_epoch, readers=readers)
    return rate(steps, _BATCH, steps_per_epoch)


def loaded(files: Files, readers: int) -> float:
    loader = DataLoader(
        files, batch_size=_BATCH, shuffle=True, num_workers=readers, drop_last=True, persistent_workers=True
    )
    next(iter(loader))

    def steps() -> Iterator[Any]:
        for _ in range(3):
            for arrays in loader:
                yield to_batch({name: each.numpy() for name, each in arrays.items()})

    return rate(steps(), _BATCH, len(loader) // 2)


def alone(read: Callable[[int], object], count: int) -> float:
    read(0)
    started = time.perf_counter()
    for number in range(count):
        read(number)
    return count / (time.perf_counter() - started)


def read_rows(pairs: PairSet) -> Callable[[int], object]:
    """The n-th pair of the set, a row group read once for all its rows, as the feed does."""
    places = pairs.index().to_pylist()
    kept: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def read(number: int) -> list[ndarray]:
        place = places[number]
        key = place["file"], place["row_group"]
        if key not in kept:
            kept.clear()
            kept[key] = pairs.read_group(pairs.files[key[0]], key[1])
        pair = _CROP(pairs.decode(kept[key][place["row"]]), np.random.default_rng(number))
        return [np.ascontiguousarray(each) for each in vars(pair).values() if each is not None]

    return read


def size_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.name != EXPORT_FILE)


def costs(pair: FramePair, rounds: int = 40) -> Iterator[tuple[str, float]]:
    """Milliseconds that each challenge takes for a pair."""
    for name, challenge in CHALLENGES.items():
        rng = np.random.default_rng(0)
        challenge(pair, rng)
        started = time.perf_counter()
        for _ in range(rounds):
            challenge(pair, rng)
        yield name, 1000 * (time.perf_counter() - started) / rounds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--readers", type=int, default=3)
    arguments = parser.parse_args()
    scene = SceneOptions(height=_HEIGHT, width=_WIDTH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(-(-arguments.pairs // (scene.num_frames - 1))):
            write_video(folder / "videos" / f"{seed}.mp4", render_scene(seed, scene).frames)
        torch.manual_seed(0)
        save_model(folder / "teacher", RECIPES["laptop"].network.build(), {"stage": "benchmark"})
        connect()
        options = LabellingOptions(clips=replace(RECIPES["demo"].labelling.clips, size=(_HEIGHT, _WIDTH)))
        print("| labels | read by | pairs/s | times the DataLoader | kB a pair |\n|---|---|---|---|---|")
        for title, teacher in (
            ("full resolution", str(fetch_model("opencv:dis_fast"))),
            ("the network's stride", str(folder / "teacher")),
        ):
            labels, files = folder / f"labels-{title}", folder / f"files-{title}"
            write_labels(str(folder / "videos"), [teacher], str(labels), options)
            pairs = PairSet.open(str(labels))
            count = export_labels(pairs, str(files), "chairs2").pairs
            both = Files(files, count)
            torch.set_num_threads(1)
            rates = {
                f"DataLoader, {arguments.readers} workers": loaded(both, arguments.readers),
                f"the feed, {arguments.readers} readers": fed(pairs, arguments.readers),
                "the Dataset in this process": alone(both.__getitem__, count),
                "the feed's reader in this process": alone(read_rows(pairs), count),
            }
            first = list(rates.values())
            for number, (way, pairs_a_second) in enumerate(rates.items()):
                size = size_of(labels, "*.parquet") if "feed" in way else size_of(files, "*")
                against = pairs_a_second / first[number - number % 2]
                print(
                    f"| {title} | {way} | {pairs_a_second:.0f} | {against:.2f} | {size / count / 1000:.0f} |",
                    flush=True,
                )
        print("\n| challenge | ms a pair |\n|---|---|")
        for challenge, milliseconds in costs(both.read(0)):
            print(f"| {challenge} | {milliseconds:.1f} |")


if __name__ == "__main__":
    main()
