"""How small are labels, how exact and how quickly read, at full resolution and at the network's stride?

    python benchmarks/encoding.py [--videos FOLDER] [--pairs 64] [--model FOLDER_OR_URI]

Labels pairs of the videos, or without them of rendered scenes, with a network, and stores its flow in both
directions and both occlusion masks: as label sets do at the network's stride, the same upsampled to full
resolution, as .flo with PNG masks, and as KITTI's PNG with PNG masks. Prints bytes per pixel, what rounding
costs, and how many bytes of .flo a second one core reads back, all in one run.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy import ndarray

from flowcore.formats import read_flow, read_mask, write_flow, write_mask
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import to_images
from flowcore.video import ChunkReader, ClipOptions, VideoError
from pipelines.checkpoints import fetch_model, load_model
from pipelines.clips import find_videos
from pipelines.labelling import label_chunk
from pipelines.labels import (
    FLOW_UNITS,
    decode_flow,
    encode_shard,
    label_grid,
    masks,
    quantized,
    row_values,
    stored_pixels,
)
from pipelines.locations import PROJECT_FOLDER

_COLUMNS = ("flow_fw", "flow_bw", "occ_fw", "occ_bw")
_FLO_BYTES = 8
_HEIGHT, _WIDTH = 240, 320
_ROUNDS = 3


def chunks(videos: str | None, pairs: int) -> list[ndarray]:
    """Frames of one size, uint8 [frames, height, width, 3], of as many videos as give `pairs` pairs."""
    if videos is None:
        scene = SceneOptions(height=_HEIGHT, width=_WIDTH, num_frames=9)
        return [render_scene(seed, scene).frames for seed in range(-(-pairs // 8))]
    size = (_HEIGHT, _WIDTH)
    options = ClipOptions(size=size, min_size=size, chunk_pairs=8, max_pairs_per_video=8)
    found: list[ndarray] = []
    for source in find_videos(videos):
        if not source.frames and len(found) * 8 < pairs:
            with suppress(VideoError):
                for chunk in ChunkReader(source.uri, options):
                    found.append(np.stack(chunk.frames)[:, :_HEIGHT, :_WIDTH])
    return found


def labelled(network: torch.nn.Module, frames: ndarray) -> pa.Table:
    pixels = to_images(frames)
    parts = [
        label_chunk([network], pixels[at : at + 2], ForwardBackwardCheck())  # type: ignore[list-item]
        for at in range(len(pixels) - 1)
    ]
    return pa.concat_tables(parts).select([*_COLUMNS, "flow_stride"])


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
    network, _ = load_model(fetch_model(arguments.model))
    coarse = pa.concat_tables(
        [labelled(network.eval(), frames) for frames in chunks(arguments.videos, arguments.pairs)]
    ).combine_chunks()
    height, width = _HEIGHT, _WIDTH
    stride = coarse["flow_stride"][0].as_py()
    pairs, pixels = len(coarse), len(coarse) * height * width
    # The network's own flow to within the grid's rounding, which is what every format is asked to keep.
    full = [
        torch.stack(
            [torch.from_numpy(decode_flow(row, stride, height, width)) for row in row_values(coarse[name])]
        )
        for name in ("flow_fw", "flow_bw")
    ]
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
    rounding = max(float((torch.round(flow * FLOW_UNITS) / FLOW_UNITS - flow).abs().max()) for flow in full)
    flo_bytes = 2 * _FLO_BYTES * pixels
    flows = [flow.numpy() for direction in full for flow in direction]
    hidden = [mask[0].numpy() for direction in occluded for mask in direction]
    print(f"command: python {shlex.join(sys.argv)}")
    print(f"{pairs} pairs of {height}x{width} px, flow at stride {stride}, one thread")
    print("| stored as | bytes a pixel of a pair | rounded by at most | read back, MB of .flo a second |")
    print("|---|---:|---:|---:|")

    def line(title: str, size: int, rounded: str, took: float) -> None:
        print(f"| {title} | {size / pixels:.3f} | {rounded} | {flo_bytes / took / 1e6:.0f} |", flush=True)

    content, whole = parquet(coarse), parquet(fine)
    for title, stored, upsampled, rounded in (
        (f"Parquet, stride {stride}, read upsampled", content, True, "1/128 px, of the grid"),
        (f"Parquet, stride {stride}, read as stored", content, False, "1/128 px, of the grid"),
        ("Parquet, full resolution", whole, False, f"{rounding:.5f} px"),
    ):
        took = seconds(partial(read_parquet, stored, height, width, upsampled=upsampled))
        line(title, len(stored), rounded, took)
    for suffix in (".flo", ".png"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = as_files(folder, suffix, flows, hidden)
            rounded = "0" if suffix == ".flo" else f"{rounding:.5f} px"
            line(f"{suffix} and PNG masks", size, rounded, seconds(partial(read_files, folder)))


if __name__ == "__main__":
    main()
