"""How small are labels, how exact and how quickly read, at full resolution and at the network's stride?

    python benchmarks/encoding.py [--videos FOLDER] [--pairs 64] [--model FOLDER_OR_URI]

Labels pairs of the videos, or without them of rendered scenes, with a network, and stores its flow in both
directions and both occlusion masks: as label sets do at the network's stride, the same upsampled to full
resolution, as .flo with PNG masks, and as KITTI's PNG with PNG masks. Prints bytes per pixel, how far what is
read back is from the network's flow at full resolution, on rendered scenes also from the truth, and how many
bytes of .flo a second one core reads back, all in one run.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy import ndarray
from torch import Tensor

from flowcore.formats import read_flow, read_mask, write_flow, write_mask
from flowcore.metrics import endpoint_error
from flowcore.networks import FlowNetwork
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import to_images
from flowcore.video import ChunkReader, ClipOptions, VideoError
from pipelines.checkpoints import fetch_model, load_model
from pipelines.collection import find_videos
from pipelines.labelling import label_chunk
from pipelines.labels import decode_flow, encode_shard, label_grid, masks, quantized, stored_pixels
from pipelines.pair_set import row_values
from pipelines.storage import PROJECT_FOLDER

_COLUMNS = ("flow_fw", "flow_bw", "occ_fw", "occ_bw")
_FLO_BYTES = 8
_HEIGHT, _WIDTH = 240, 320
_ROUNDS = 3


def chunks(videos: str | None, pairs: int) -> tuple[list[ndarray], Tensor | None]:
    """Frames of one size, uint8 [frames, height, width, 3], of as many videos as give `pairs` pairs; and the
    true forward flow of all where it is known."""
    if videos is None:
        scene = SceneOptions(height=_HEIGHT, width=_WIDTH, num_frames=9)
        rendered = [render_scene(seed, scene) for seed in range(-(-pairs // 8))]
        truth = torch.from_numpy(np.concatenate([each.flow_fw for each in rendered]))
        return [each.frames for each in rendered], truth
    size = (_HEIGHT, _WIDTH)
    options = ClipOptions(size=size, min_size=size, chunk_pairs=8, max_pairs_per_video=8)
    found: list[ndarray] = []
    for source in find_videos(videos):
        if not source.frames and len(found) * 8 < pairs:
            with suppress(VideoError):
                for chunk in ChunkReader(source.uri, options):
                    found.append(np.stack(chunk.frames)[:, :_HEIGHT, :_WIDTH])
    return found, None


def labelled(network: FlowNetwork, frames: ndarray) -> tuple[pa.Table, list[Tensor]]:
    """The labels of the pairs, and the network's flow in both directions at full resolution, not rounded."""
    pixels = to_images(frames)
    parts = [
        label_chunk([network], pixels[at : at + 2], ForwardBackwardCheck()) for at in range(len(pixels) - 1)
    ]
    estimates = [network.estimate(first[None], second[None]) for first, second in pairwise(pixels)]
    exact = [torch.cat(direction) for direction in zip(*estimates, strict=True)]
    return pa.concat_tables(parts).select([*_COLUMNS, "flow_stride"]), exact


def parquet(table: pa.Table) -> bytes:
    return encode_shard(table, 8)


def read_parquet(content: bytes, height: int, width: int, *, upsampled: bool) -> None:
    """Every flow in pixels and every mask of a shard."""
    table = pq.read_table(pa.BufferReader(content))
    stride = table["flow_stride"][0].as_py()
    for column in _COLUMNS:
        for row in row_values(table[column]):
            if column.startswith("occ"):
                row.reshape(height, width)
            elif upsampled:
                decode_flow(row, stride, height, width)
            else:
                stored_pixels(row, *label_grid(height, width, stride))


def as_files(folder: Path, suffix: str, flows: list[ndarray], occluded: list[ndarray]) -> int:
    """Bytes of the files written."""
    for number, (flow, mask) in enumerate(zip(flows, occluded, strict=True)):
        write_flow(folder / f"{number}{suffix}", flow)
        write_mask(folder / f"{number}.occ.png", mask)
    return sum(path.stat().st_size for path in folder.iterdir())


def read_files(folder: Path) -> None:
    for path in folder.iterdir():
        (read_mask if path.name.endswith(".occ.png") else read_flow)(path)


def seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads, of the fastest of some rounds."""
    times = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", help="a folder of videos; scaled and cut to 240x320 px")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--model", default=str(PROJECT_FOLDER / "docs/results/real-pixels/student"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    network = load_model(fetch_model(arguments.model))[0].ready(torch.device("cpu"))
    some, truth = chunks(arguments.videos, arguments.pairs)
    parts = [labelled(network, frames) for frames in some]
    coarse = pa.concat_tables([table for table, _ in parts]).combine_chunks()
    height, width = _HEIGHT, _WIDTH
    stride = coarse["flow_stride"][0].as_py()
    pairs, pixels = len(coarse), len(coarse) * height * width
    # Forward and backward, as the network gives it.
    full = [torch.cat([exact[direction] for _, exact in parts]) for direction in range(2)]
    occluded = [
        torch.from_numpy(np.stack(row_values(coarse[name]))).view(pairs, 1, height, width)
        for name in ("occ_fw", "occ_bw")
    ]
    fine = pa.table(
        {
            "flow_fw": quantized(full[0]),
            "flow_bw": quantized(full[1]),
            "occ_fw": masks(occluded[0]),
            "occ_bw": masks(occluded[1]),
            "flow_stride": pa.array([1] * pairs, pa.int32()),
        }
    )
    flo_bytes = 2 * _FLO_BYTES * pixels
    flows = [flow.numpy() for direction in full for flow in direction]
    hidden = [mask[0].numpy() for direction in occluded for mask in direction]
    print(f"command: python {shlex.join(sys.argv)}")
    print(f"{pairs} pairs of {height}x{width} px, flow at stride {stride}, one thread")
    print(
        "| stored as | bytes a pixel of a pair | farthest from the network's flow, px | "
        "EPE to the truth, px | read back, MB of .flo a second |"
    )
    print("|---|---:|---:|---:|---:|")

    def line(title: str, size: int, read: list[Tensor], took: float) -> None:
        farthest = max(float((each - exact).abs().max()) for each, exact in zip(read, full, strict=True))
        error = "-" if truth is None else f"{float(endpoint_error(read[0], truth).mean()):.5f}"
        speed = flo_bytes / took / 1e6
        print(f"| {title} | {size / pixels:.3f} | {farthest:.5f} | {error} | {speed:.0f} |", flush=True)

    def decoded(table: pa.Table) -> list[Tensor]:
        each_stride = table["flow_stride"][0].as_py()
        return [
            torch.from_numpy(
                np.stack([decode_flow(row, each_stride, height, width) for row in row_values(table[name])])
            )
            for name in ("flow_fw", "flow_bw")
        ]

    for title, table, upsampled in (
        (f"Parquet, stride {stride}, read upsampled", coarse, True),
        (f"Parquet, stride {stride}, read as stored", coarse, False),
        ("Parquet, full resolution", fine, False),
    ):
        content = parquet(table)
        took = seconds(partial(read_parquet, content, height, width, upsampled=upsampled))
        line(title, len(content), decoded(table), took)
    for suffix in (".flo", ".png"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = as_files(folder, suffix, flows, hidden)
            numbers = range(len(flows))
            stored = torch.from_numpy(
                np.stack([read_flow(folder / f"{each}{suffix}")[0] for each in numbers])
            )
            line(f"{suffix} and PNG masks", size, list(stored.chunk(2)), seconds(partial(read_files, folder)))


if __name__ == "__main__":
    main()
