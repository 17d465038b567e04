"""What do tiles cost, and what do they save?

    python -m benchmarks.speed.tiles [--model distillflow:video] [--size 2160 3840]
        [--tile-pixels 2073600 518400]

Runs predict, with --occlusion, on a rendered pair of frames, in tiles of so many pixels at most. Prints the
number of tiles, the seconds of the whole job, its peak of memory (PSS of all its processes, looked at every
tenth of a second), and the error to the true flow: tiles lose motion at their borders.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import psutil

from benchmarks import report
from flowcore.formats import read_flow
from flowcore.inference import tiles_of
from flowcore.scenes import SceneOptions, render_scene
from pipelines.checkpoints import load_model
from pipelines.installation import PROJECT_FOLDER
from pipelines.models import BEST, fetch_model


def memory_of(job: psutil.Process) -> int:
    """Bytes of a process and all that it started; what several share counts once."""
    total = 0
    for process in (job, *job.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def peak_of(command: list[str], folder: Path) -> tuple[float, int]:
    """Seconds and most bytes of a command that runs in a folder. Raises RuntimeError with what it said if it
    fails."""
    started, peak = time.monotonic(), 0
    log = folder / "log"
    with log.open("w") as words:
        # Neither on somebody's cluster nor among somebody's runs.
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        own |= {"PYTHONPATH": str(PROJECT_FOLDER), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
        job = psutil.Popen(command, cwd=folder, env=own, stdout=words, stderr=words)
        while job.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, memory_of(job))
            time.sleep(0.1)
    if job.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()}")
    return time.monotonic() - started, peak


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", default=BEST, help="as predict takes it")
    parser.add_argument("--size", type=int, nargs=2, default=[2160, 3840], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--tile-pixels", type=int, nargs="+", default=[2_073_600, 518_400], metavar="PIXELS")
    arguments = parser.parse_args()
    print(report.command())
    print(report.head(("tiles", "size", "seconds", "MB at most", "EPE"), texts=0), flush=True)
    model = str(fetch_model(arguments.model).absolute())
    multiple = load_model(Path(model))[0].multiple
    height, width = arguments.size
    scene = render_scene(
        0, SceneOptions(height=height, width=width, num_frames=2, camera_speed=24, layer_speed=40)
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pair").mkdir()
        for place, frame in enumerate(scene.frames):
            cv2.imwrite(str(folder / "pair" / f"{place}.png"), frame[..., ::-1])
        for most in arguments.tile_pixels:
            output = folder / f"flow-{most}"
            options = ["--model", model, "--videos", "pair", "--output", output.name]
            options += ["--format", "npy", "--occlusion", "--inference.tile-pixels", str(most)]
            seconds, peak = peak_of([sys.executable, "-m", "jobs.predict", *options], folder)
            flow, _ = read_flow(output / "0.npy")
            error = np.hypot(*(flow - scene.flow_fw[0])).mean()
            tiles = tiles_of(height, width, most, multiple)
            size = f"{tiles[0].height}x{tiles[0].width}"
            cells = len(tiles), size, f"{seconds:.0f}", f"{peak / 1e6:.0f}", f"{error:.2f}"
            print(report.row(cells), flush=True)


if __name__ == "__main__":
    main()
