"""How coarse may a frame be in which superpixels are found?

    python -m benchmarks.speed.superpixels --videos FOLDER [--size 256 640] [--pixels 50 100 ...]

Finds the superpixels that `SuperpixelNoise` fills, in a frame of each video, on the frame reduced until a
superpixel has so many pixels left, and on all pixels. Prints the CPU time of a frame, how many superpixels
there are, and the share of the colours' variance that they explain: 1 if each had one colour. Blocks of the
same size, which follow no edge, are the last row.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray

from benchmarks import report
from benchmarks.cost import cpu_seconds
from benchmarks.inputs import read_chunks
from flowcore.hallucination import SuperpixelNoise, superpixels
from flowcore.video import ClipOptions

_ROUNDS = 3


def explained(image: UInt8[ndarray, "height width 3"], labels: Int[ndarray, "height width"]) -> float:
    """The explained variation (Moore et al., CVPR 2008)."""
    colours, which = image.reshape(-1, 3).astype(float), labels.reshape(-1)
    count = np.maximum(np.bincount(which), 1)
    means = np.stack([np.bincount(which, colours[:, channel]) / count for channel in range(3)], axis=1)
    return float(means[which].var(axis=0).sum() / colours.var(axis=0).sum())


def blocks(image: UInt8[ndarray, "height width 3"], segments: int) -> Int[ndarray, "height width"]:
    height, width = image.shape[:2]
    side = max(1, math.isqrt(height * width // segments))
    found: ndarray = np.add.outer(np.arange(height) // side * width, np.arange(width) // side)
    return found


def _all(find: Callable[[ndarray], object], frames: Sequence[ndarray]) -> None:
    for frame in frames:
        find(frame)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--videos", required=True, help="a folder of videos")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--pixels", type=int, nargs="+", default=[25, 50, 100, 200], metavar="PIXELS")
    arguments = parser.parse_args()
    noise = SuperpixelNoise()
    options = ClipOptions(size=tuple(arguments.size), max_pairs_per_video=1, chunk_pairs=1)
    frames = [frames[0] for _, frames in read_chunks(arguments.videos, options)]
    print(report.command())
    print(f"{len(frames)} frames of {arguments.size[0]}x{arguments.size[1]} px\n")
    print(report.head(("pixels of a superpixel", "ms a frame", "superpixels", "explained"), texts=1))
    whole = arguments.size[0] * arguments.size[1]
    for pixels in (whole, *reversed(arguments.pixels)):
        find = partial(superpixels, segments=noise.segments, compactness=noise.compactness, pixels=pixels)
        found = [find(frame) for frame in frames]
        seconds = cpu_seconds(partial(_all, find, frames), _ROUNDS) / len(frames)
        shares = [explained(*each) for each in zip(frames, found, strict=True)]
        cells = (f"{1e3 * seconds:.1f}", round(np.mean([len(np.unique(each)) for each in found])))
        title = "all" if pixels == whole else f"{pixels} or more"
        print(report.row((title, *cells, f"{np.mean(shares):.3f}")), flush=True)
    shares = [explained(frame, blocks(frame, noise.segments)) for frame in frames]
    print(report.row(("blocks", "", "", f"{np.mean(shares):.3f}")))


if __name__ == "__main__":
    main()
