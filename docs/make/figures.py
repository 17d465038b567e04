"""What does the method look like? Draws the figures of docs/explanation/method.md.

    python -m docs.make.figures

They show a rendered scene and its true flow. The truth takes the place of a teacher's flow, so that the
pictures show the method and not one network's errors.
"""

import numpy as np
import torch
from numpy import ndarray

from benchmarks import report
from benchmarks.inputs import true_pair
from flowcore.augmentation import Crop, Geometric
from flowcore.drawing import Picture, flow_colors, occlusion_image, panel
from flowcore.formats import write_image
from flowcore.hallucination import CopyPaste, SuperpixelNoise
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import FramePair
from flowcore.scenes import SceneOptions, render_scene
from pipelines.installation import PROJECT_FOLDER

FOLDER = PROJECT_FOLDER / "docs" / "figures"
SCENE = SceneOptions(height=192, width=256, num_frames=2, camera_speed=24.0, layer_speed=12.0)


def check(pair: FramePair) -> ndarray:
    """What the forward-backward check finds in the pair's own flow."""
    assert pair.flow_fw is not None
    assert pair.flow_bw is not None
    forward, backward = (
        torch.from_numpy(np.array(flow, np.float32))[None] for flow in (pair.flow_fw, pair.flow_bw)
    )
    return OcclusionCheck()(forward, backward)[0, 0].numpy()


def trusted(pair: FramePair) -> ndarray:
    assert pair.confidence_fw is not None
    return pair.confidence_fw > 0


def flow(pair: FramePair, fastest: float) -> Picture:
    """fastest: the motion of full saturation, px."""
    assert pair.flow_fw is not None
    return flow_colors(np.array(pair.flow_fw), fastest)


def framed(image: ndarray, top: int, left: int, height: int, width: int) -> ndarray:
    """The image, darker outside a window."""
    result = (image * 0.35).astype(np.uint8)
    window = slice(top, top + height), slice(left, left + width)
    result[window] = image[window]
    return result


def main() -> None:
    report.parser(__doc__).parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    scene = render_scene(7, SCENE)
    pair, motion, occluded = true_pair(scene), scene.flow_fw[0], scene.occ_fw[0]
    fastest = float(np.hypot(*motion).max())
    figures = {
        "occlusion": [
            [
                ("image1", pair.image1),
                ("image2", pair.image2),
                ("flow_fw", flow(pair, fastest)),
                ("true occlusion", occlusion_image(occluded)),
                ("forward-backward check", occlusion_image(check(pair))),
            ]
        ]
    }
    crop = Crop(height=128, width=160)
    cropped = crop(pair, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    top, left = int(rng.integers(192 - 128 + 1)), int(rng.integers(256 - 160 + 1))
    hallucinated = check(cropped) & trusted(cropped)
    figures["crop"] = [
        [
            ("image1, the student's window", framed(pair.image1, top, left, 128, 160)),
            ("image2, the same window", framed(pair.image2, top, left, 128, 160)),
            ("T(w_f), the label", flow(cropped, fastest)),
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
    noisy = SuperpixelNoise(chance=1.0)(pair, np.random.default_rng(1))
    hidden = hidden_by((noisy.image2 != pair.image2).any(axis=-1), motion)
    figures["superpixels"] = [
        [
            ("image1", noisy.image1),
            ("image2 with superpixel noise", noisy.image2),
            ("T(w_f), the label: as before", flow(noisy, fastest)),
            ("what the noise hides of image1", occlusion_image(hidden & ~occluded)),
        ]
    ]
    turned = Geometric(chance=1.0)(pair, np.random.default_rng(11))
    figures["geometric"] = [
        [
            ("A1 image1", turned.image1),
            ("A2 image2", turned.image2),
            ("w' = A2(x + w(x)) - x'", flow(turned, fastest)),
            ("confidence: 0 outside the frame", occlusion_image(trusted(turned))),
        ]
    ]
    pasted = CopyPaste(chance=1.0, count=(2, 2), radius=(0.15, 0.25))(pair, np.random.default_rng(8))
    figures["pasted"] = [
        [
            ("image1 with pieces of itself", pasted.image1),
            ("image2, where they moved", pasted.image2),
            ("T(w_f), the label", flow(pasted, fastest)),
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
    found: ndarray = inside & covered[row.clip(0, height - 1), column.clip(0, width - 1)]
    return found


if __name__ == "__main__":
    main()
