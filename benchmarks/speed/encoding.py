"""How small are labels, how exact, and how quickly are they read, beside .flo and PNG files?

    python -m benchmarks.speed.encoding [--videos FOLDER] [--pairs 64] [--model FOLDER_OR_URI]

Labels pairs with a network, and stores its flow in both directions and both occlusion masks in four ways: at
the network's stride, as label sets do; the same upsampled to full resolution; as .flo with PNG masks; and as
KITTI's PNG with PNG masks. Prints for each

- the bytes per pixel of a pair;
- the largest distance between what is read back and the network's flow at full resolution;
- for rendered scenes, the EPE to the truth;
- how quickly one core reads it back, in MB a second of the same flow as .flo.
"""

import tempfile
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy import ndarray
from torch import Tensor

from benchmarks import report
from benchmarks.cost import cpu_seconds
from benchmarks.inputs import read_chunks
from flowcore.formats import read_flow, read_mask, write_flow, write_mask
from flowcore.metrics import endpoint_error
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import PseudoLabels, label_grid, pseudo_labels
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import to_images
from flowcore.video import ClipOptions
from pipelines.checkpoints import load_model
from pipelines.label_rows import decode_flow, label_columns, masks, quantized, stored_pixels
from pipelines.labels import encode_shard
from pipelines.models import fetch_model
from pipelines.pair_set import row_values

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
    found = (frames[:, :_HEIGHT, :_WIDTH] for _, frames in read_chunks(videos, options))
    return list(islice(found, -(-pairs // 8))), None


def labelled(network: FlowNetwork, frames: ndarray) -> tuple[pa.Table, list[Tensor]]:
    """The labels of the pairs, and the network's flow in both directions at full resolution, not rounded."""
    pixels = to_images(frames)
    parts = [pseudo_labels([network], pixels[at : at + 2], OcclusionCheck()) for at in range(len(pixels) - 1)]
    estimates = [network.estimate(first[None], second[None]) for first, second in pairwise(pixels)]
    exact = [torch.cat(direction) for direction in zip(*estimates, strict=True)]
    table = label_columns(PseudoLabels.joined(parts), "a teacher")
    return table.select([*_COLUMNS, "flow_stride"]), exact


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


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument(
        "--videos", help="a folder of videos, scaled and cut to 240x320 px; rendered scenes without it"
    )
    parser.add_argument("--pairs", type=int, default=64, help="to label; 64 by default")
    parser.add_argument(
        "--model",
        default="distillflow:laptop",
        metavar="FOLDER_OR_URI",
        help="the network; distillflow:laptop by default",
    )
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
    print(report.command())
    print(f"{pairs} pairs of {height}x{width} px, flow at stride {stride}, one thread")
    titles = (
        "stored as",
        "bytes a pixel of a pair",
        "farthest from the network's flow, px",
        "EPE to the truth, px",
        "read back, MB of .flo a second",
    )
    print(report.head(titles))

    def line(title: str, size: int, read: list[Tensor], took: float) -> None:
        farthest = max(float((each - exact).abs().max()) for each, exact in zip(read, full, strict=True))
        error = "-" if truth is None else f"{float(endpoint_error(read[0], truth).mean()):.5f}"
        numbers = (f"{size / pixels:.3f}", f"{farthest:.5f}", error, f"{flo_bytes / took / 1e6:.0f}")
        print(report.row([title, *numbers]), flush=True)

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
        took = cpu_seconds(partial(read_parquet, content, height, width, upsampled=upsampled), _ROUNDS)
        line(title, len(content), decoded(table), took)
    for suffix in (".flo", ".png"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = as_files(folder, suffix, flows, hidden)
            numbers = range(len(flows))
            stored = torch.from_numpy(
                np.stack([read_flow(folder / f"{each}{suffix}")[0] for each in numbers])
            )
            took = cpu_seconds(partial(read_files, folder), _ROUNDS)
            line(f"{suffix} and PNG masks", size, list(stored.chunk(2)), took)


if __name__ == "__main__":
    main()
