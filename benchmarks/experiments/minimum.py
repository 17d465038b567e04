"""How far from the true motion is the photometric loss least?

    python -m benchmarks.experiments.minimum [--scenes 20]

Moves the true flow of windows of rendered scenes, in both axes by up to 1.5 px, and looks for the offset of
the least census loss: on the flow's own grid of stride 4 with the frames averaged down to it, as a loss level
by level takes it, on full-resolution frames, and on such frames stored as JPEG. Prints the mean distance of
that offset to 0. Windows with occluded pixels are left out.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from flowcore.frame_codec import FrameCodec
from flowcore.geometry import backward_warp, resize_image
from flowcore.photometric import census_distance, robust
from flowcore.scenes import Scene, SceneOptions, render_scene
from flowcore.shapes import to_images

_FIRST_SCENE = 20_000
_WINDOW = 16
_STRIDE = 4
_OFFSETS = np.arange(-1.5, 1.51, 0.1)
_CODECS = {"full resolution": None, "full resolution, JPEG 95": FrameCodec(), "stride 4": None}


def windows(scene: Scene) -> Iterator[tuple[slice, slice]]:
    """Those of the first pair in which nothing is occluded, away from the border."""
    height, width = scene.occ_fw[0].shape
    for top in range(8, height - _WINDOW - 8, _WINDOW // 2):
        for left in range(8, width - _WINDOW - 8, _WINDOW // 2):
            window = slice(top, top + _WINDOW), slice(left, left + _WINDOW)
            if not scene.occ_fw[0][window].any():
                yield window


def costs(image1: Tensor, image2: Tensor, flow: Tensor, stride: int) -> Tensor:
    """The loss of each pixel of the grid of a stride, for each offset: [v, u, rows, columns]."""
    height, width = (side // stride for side in flow.shape[-2:])
    first, second, flow = (resize_image(each, height, width) for each in (image1, image2, flow))
    rows = []
    for v in _OFFSETS:
        offsets = torch.tensor([[u, v] for u in _OFFSETS], dtype=flow.dtype)[..., None, None]
        moved = (flow + offsets) / stride
        many = [each.expand(len(_OFFSETS), -1, -1, -1) for each in (first, second)]
        rows.append(robust(census_distance(many[0], backward_warp(many[1], moved)))[:, 0])
    return torch.stack(rows)


def distances(scene: Scene, stride: int, codec: FrameCodec | None) -> list[float]:
    """Of the least loss's offset to no offset, in pixels, for each window."""
    frames = [frame if codec is None else codec.decode(codec.encode(frame)) for frame in scene.frames[:2]]
    image1, image2 = to_images(np.stack(frames)).split(1)
    cost = costs(image1, image2, torch.from_numpy(scene.flow_fw[0])[None], stride)
    found = []
    for window in windows(scene):
        rows, columns = (slice(each.start // stride, each.stop // stride) for each in window)
        total = cost[:, :, rows, columns].sum(dim=(2, 3))
        v, u = np.unravel_index(int(total.argmin()), tuple(total.shape))
        found.append(float(np.hypot(_OFFSETS[v], _OFFSETS[u])))
    return found


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--scenes", type=int, default=20, help="20 by default")
    arguments = parser.parse_args()
    print(report.command())
    found: dict[str, list[float]] = {name: [] for name in _CODECS}
    for seed in range(_FIRST_SCENE, _FIRST_SCENE + arguments.scenes):
        scene = render_scene(seed, SceneOptions(num_frames=2))
        for name, codec in _CODECS.items():
            found[name] += distances(scene, _STRIDE if name == "stride 4" else 1, codec)
    rows = [[name, len(each), f"{np.mean(each):.2f}"] for name, each in found.items()]
    print(report.table(["the loss is taken at", "windows", "px from the truth"], rows))


if __name__ == "__main__":
    main()
