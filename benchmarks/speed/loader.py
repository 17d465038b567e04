"""Is the feed as fast as the loader that one would write: a torch Dataset of .flo and PNG files?

    python -m benchmarks.speed.loader [--pairs 512] [--readers 3]

Renders videos of 256x320 px and labels them twice: with a network of fresh weights, whose labels are at its
stride of 4, and with OpenCV's DIS, whose labels are at full resolution. Exports both as FlyingChairs2's
files, frames and masks as PNG and flow as .flo. Reads each in four ways, with the same crops:

- as training does, by readers in Ray's processes, into the batches that a step takes;
- by torch's DataLoader with as many workers, into the same batches;
- by the feed's reader in this process, with one thread;
- by the Dataset in this process, with one thread.

Prints pairs a second once each is running, with the files in the page cache, and the bytes of a pair; then
the milliseconds that each challenge takes for a pair in one process.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch.utils.data import DataLoader, Dataset

from benchmarks import report
from benchmarks.inputs import fresh_teacher, label, render_videos
from flowcore.augmentation import Crop, Geometric
from flowcore.colour import Colour
from flowcore.formats import read_flow, read_image, read_mask
from flowcore.hallucination import Challenge, CopyPaste, RectangleNoise, SuperpixelNoise
from flowcore.pairs import Batch, FramePair
from flowcore.scenes import SceneOptions
from jobs.recipes import RECIPES
from pipelines.cluster import connect
from pipelines.feed import Plan, batches
from pipelines.label_files import EXPORT_FILE, export_labels
from pipelines.models import fetch_model
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
        return in_order(_CROP(self.read(number), np.random.default_rng(number)))


def in_order(pair: FramePair) -> dict[str, ndarray]:
    """What is known of a pair, as arrays whose pixels lie in memory as they do in a batch."""
    return {name: np.ascontiguousarray(value) for name, value in pair.known().items()}


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
                yield Batch.of_arrays({name: each.numpy() for name, each in arrays.items()})

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

    def read(number: int) -> dict[str, ndarray]:
        place = places[number]
        key = place["file"], place["row_group"]
        if key not in kept:
            kept.clear()
            kept[key] = pairs.read_group(pairs.files[key[0]], key[1])
        return in_order(_CROP(pairs.decode(kept[key][place["row"]]), np.random.default_rng(number)))

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
    parser = report.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=512, help="to label; 512 by default")
    parser.add_argument("--readers", type=int, default=3, help="and workers of the DataLoader; 3 by default")
    arguments = parser.parse_args()
    scene = SceneOptions(height=_HEIGHT, width=_WIDTH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = render_videos(folder / "videos", -(-arguments.pairs // (scene.num_frames - 1)), scene)
        network = fresh_teacher(folder / "teacher", RECIPES["laptop"].network)
        connect()
        clips = replace(RECIPES["demo"].clips, size=(_HEIGHT, _WIDTH))
        print(report.head(["labels", "read by", "pairs/s", "times the DataLoader", "kB a pair"], texts=2))
        for title, teacher in (
            ("full resolution", str(fetch_model("opencv:dis_fast"))),
            ("the network's stride", network),
        ):
            labels, files = folder / f"labels-{title}", folder / f"files-{title}"
            label(videos, teacher, labels, clips)
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
                numbers = (f"{pairs_a_second:.0f}", f"{against:.2f}", f"{size / count / 1000:.0f}")
                print(report.row([title, way, *numbers]), flush=True)
        rows = [(name, f"{milliseconds:.1f}") for name, milliseconds in costs(both.read(0))]
        print(f"\n{report.table(['challenge', 'ms a pair'], rows)}")


if __name__ == "__main__":
    main()
