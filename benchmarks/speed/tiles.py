"""What do tiles cost, and what do they save?

    python -m benchmarks.speed.tiles --model MODEL [--size 2160 3840] [--tile-pixels 8300000 2100000 500000]

Estimates the flow there and back of a rendered pair of frames, in tiles of so many pixels at most, each time
in a process of its own. Prints the number of tiles, the seconds, the process's peak of memory, and the error
to the true flow: tiles lose motion at their borders.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks import report
from flowcore.inference import InferenceOptions, estimate_frames, tiles_of
from flowcore.scenes import SceneOptions, render_scene
from pipelines.checkpoints import load_model
from pipelines.models import fetch_model


def measure(model: str, pair: Path, tile_pixels: int) -> None:
    """Prints a line of the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_model(fetch_model(model))[0].ready(device)
    with np.load(pair) as arrays:
        frames, truth = arrays["frames"], arrays["flow"]
    height, width = frames.shape[1:3]
    started = time.monotonic()
    options = InferenceOptions(tile_pixels=tile_pixels)
    flow = next(iter(estimate_frames(network, frames, device, options, both=True)))[0][0].cpu().numpy()
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    tiles = tiles_of(height, width, tile_pixels, network.multiple)
    error = np.hypot(*(flow - truth)).mean()
    cells = (
        len(tiles),
        f"{tiles[0].height}x{tiles[0].width}",
        f"{seconds:.1f}",
        f"{peak:.0f}",
        f"{error:.2f}",
    )
    print(report.row(cells), flush=True)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", required=True, help="as predict takes it")
    parser.add_argument("--size", type=int, nargs=2, default=[2160, 3840], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument(
        "--tile-pixels", type=int, nargs="+", default=[8_300_000, 2_100_000, 500_000], metavar="PIXELS"
    )
    parser.add_argument("--pair", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pair is not None:
        measure(arguments.model, arguments.pair, arguments.tile_pixels[0])
        return
    print(report.command())
    print(report.head(("tiles", "size", "seconds", "MB at most", "EPE"), texts=0), flush=True)
    height, width = arguments.size
    scene = render_scene(
        0, SceneOptions(height=height, width=width, num_frames=2, camera_speed=24, layer_speed=40)
    )
    with TemporaryDirectory() as folder:
        pair = Path(folder) / "pair.npz"
        np.savez(pair, frames=scene.frames, flow=scene.flow_fw[0])
        for tile_pixels in arguments.tile_pixels:
            command = [sys.executable, "-m", __spec__.name, "--model", arguments.model, "--pair", str(pair)]
            subprocess.run([*command, "--tile-pixels", str(tile_pixels)], check=True)


if __name__ == "__main__":
    main()
