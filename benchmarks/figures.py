"""What does the method look like? The figures of docs/method.md, from a rendered scene and its true flow.

    python benchmarks/figures.py

The true flow stands for a teacher's, so that the pictures show the method and not one network's errors.
"""

from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from flowcore.drawing import Picture, flow_colors, occlusion_image, panel
from flowcore.formats import write_image
from flowcore.hallucination import CopyPaste, Crop, Geometric, SuperpixelNoise
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.pairs import FramePair
from flowcore.scenes import SceneOptions, render_scene

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"
SCENE = render_scene(7, SceneOptions(height=192, width=256, num_frames=2, camera_speed=24, layer_speed=12))
PAIR = FramePair(
    image1=SCENE.frames[0],
    image2=SCENE.frames[1],
    flow_fw=SCENE.flow_fw[0],
    flow_bw=SCENE.flow_bw[0],
    confidence_fw=(~SCENE.occ_fw[0]).astype(np.float32),
    confidence_bw=(~SCENE.occ_bw[0]).astype(np.float32),
)
MOST = float(np.hypot(*SCENE.flow_fw[0]).max())


def check(pair: FramePair) -> ndarray:
    """What the forward-backward check finds in the pair's own flow."""
    assert pair.flow_fw is not None
    assert pair.flow_bw is not None
    forward, backward = (
        torch.from_numpy(np.array(flow, np.float32))[None] for flow in (pair.flow_fw, pair.flow_bw)
    )
    return ForwardBackwardCheck()(forward, backward)[0, 0].numpy()


def trusted(pair: FramePair) -> ndarray:
    assert pair.confidence_fw is not None
    return pair.confidence_fw > 0


def flow(pair: FramePair) -> Picture:
    assert pair.flow_fw is not None
    return flow_colors(np.array(pair.flow_fw), MOST)


def framed(image: ndarray, top: int, left: int, height: int, width: int) -> ndarray:
    """The image, darker outside a window."""
    result = (image * 0.35).astype(np.uint8)
    window = slice(top, top + height), slice(left, left + width)
    result[window] = image[window]
    return result


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    occluded = SCENE.occ_fw[0]
    figures = {
        "occlusion": [
            [
                ("image1", PAIR.image1),
                ("image2", PAIR.image2),
                ("flow_fw", flow(PAIR)),
                ("true occlusion", occlusion_image(occluded)),
                ("forward-backward check", occlusion_image(check(PAIR))),
            ]
        ]
    }
    crop = Crop(height=128, width=160)
    cropped = crop(PAIR, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    top, left = int(rng.integers(192 - 128 + 1)), int(rng.integers(256 - 160 + 1))
    hallucinated = check(cropped) & trusted(cropped)
    figures["crop"] = [
        [
            ("image1, the student's window", framed(PAIR.image1, top, left, 128, 160)),
            ("image2, the same window", framed(PAIR.image2, top, left, 128, 160)),
            ("T(w_f), the label", flow(cropped)),
            ("what the crop hallucinates", occlusion_image(hallucinated)),
        ]
    ]
    figures["masks"] = [
        [
            ("T(O), occluded for the teacher", occlusion_image(~trusted(cropped))),
            ("O~, occluded for the student", occlusion_image(check(cropped))),
            ("M = O~ (1 - T(O)), occlusion view", occlusion_image(hallucinated)),
            ("C = 1 - T(O), confidence view", occlusion_image(trusted(cropped))),
        ]
    ]
    noisy = SuperpixelNoise(chance=1.0)(PAIR, np.random.default_rng(1))
    hidden = hidden_by((noisy.image2 != PAIR.image2).any(axis=-1), SCENE.flow_fw[0])
    figures["superpixels"] = [
        [
            ("image1", noisy.image1),
            ("image2 with superpixel noise", noisy.image2),
            ("T(w_f), the label: as before", flow(noisy)),
            ("what the noise hides of image1", occlusion_image(hidden & ~occluded)),
        ]
    ]
    turned = Geometric(chance=1.0)(PAIR, np.random.default_rng(11))
    figures["geometric"] = [
        [
            ("A1 image1", turned.image1),
            ("A2 image2", turned.image2),
            ("w' = A2(x + w(x)) - x'", flow(turned)),
            ("confidence: 0 outside the frame", occlusion_image(trusted(turned))),
        ]
    ]
    pasted = CopyPaste(chance=1.0, count=(2, 2), radius=(0.15, 0.25))(PAIR, np.random.default_rng(8))
    figures["pasted"] = [
        [
            ("image1 with pieces of itself", pasted.image1),
            ("image2, where they moved", pasted.image2),
            ("T(w_f), the label", flow(pasted)),
            ("what the pieces hide of image1", occlusion_image(check(pasted) & ~occluded)),
        ]
    ]
    for name, rows in figures.items():
        write_image(FOLDER / f"{name}.png", panel(rows))
        print(FOLDER / f"{name}.png")


def hidden_by(covered: ndarray, motion: ndarray) -> ndarray:
    """The pixels whose flow ends in a covered place."""
    height, width = covered.shape
    y, x = np.mgrid[:height, :width]
    column, row = np.rint(x + motion[0]).astype(int), np.rint(y + motion[1]).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return inside & covered[row.clip(0, height - 1), column.clip(0, width - 1)]


if __name__ == "__main__":
    main()
