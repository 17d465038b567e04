"""What does the method look like? Draws the figures of docs/explanation/method.md.

    python -m docs.make.figures ../shared/data/clips/sam2__bedroom.mp4

The teacher is the network that comes with this software, at several scales.
"""

import numpy as np
import torch
from numpy import ndarray

from benchmarks import report
from benchmarks.inputs import read_chunks
from flowcore.augmentation import Crop, Geometric
from flowcore.drawing import Picture, flow_colors, occlusion_image, panel
from flowcore.formats import write_image
from flowcore.hallucination import CopyPaste, SuperpixelNoise
from flowcore.inference import InferenceOptions
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import FramePair
from flowcore.video import ClipOptions
from pipelines.estimators import load_estimator
from pipelines.installation import PROJECT_FOLDER
from pipelines.models import BEST

FOLDER = PROJECT_FOLDER / "docs" / "figures"
HEIGHT, WIDTH = 216, 384
CROP = 144, 240
STRIDE = 3
"""Frames from the first of a pair to the second, so that something moves."""
PAIR = 12
"""The number of the pair among those of the clip's beginning."""


def labelled_pair(clip: str) -> FramePair:
    """A pair of the clip with its label."""
    options = ClipOptions(size=(HEIGHT, WIDTH), min_size=(HEIGHT, WIDTH), stride=STRIDE)
    ((_, frames),) = read_chunks(clip, options, most=1)
    image1, image2 = frames[PAIR], frames[PAIR + 1]
    teacher = load_estimator(BEST, InferenceOptions(scale=(1.5, 1.0, 0.5)))
    flow_fw, flow_bw = teacher(image1, image2)
    both = torch.from_numpy(flow_fw)[None], torch.from_numpy(flow_bw)[None]
    confidence_fw, confidence_bw = (1.0 - each[0, 0].numpy() for each in OcclusionCheck().both(*both))
    return FramePair(
        image1=image1,
        image2=image2,
        flow_fw=flow_fw,
        flow_bw=flow_bw,
        confidence_fw=confidence_fw.astype(np.float32),
        confidence_bw=confidence_bw.astype(np.float32),
    )


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
    parser = report.parser(__doc__)
    parser.add_argument("clip", help="a video in which something moves")
    pair = labelled_pair(parser.parse_args().clip)
    FOLDER.mkdir(parents=True, exist_ok=True)
    assert pair.flow_fw is not None
    motion, occluded = pair.flow_fw, ~trusted(pair)
    fastest = float(np.quantile(np.hypot(*motion), 0.99))
    figures = {
        "occlusion": [
            [
                ("image1", pair.image1),
                ("image2", pair.image2),
                ("w_f, the teacher's flow", flow(pair, fastest)),
                ("O_f, by the forward-backward check", occlusion_image(occluded)),
            ]
        ]
    }
    crop = Crop(height=CROP[0], width=CROP[1])
    cropped = crop(pair, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    window = int(rng.integers(HEIGHT - CROP[0] + 1)), int(rng.integers(WIDTH - CROP[1] + 1)), *CROP
    hallucinated = check(cropped) & trusted(cropped)
    figures["crop"] = [
        [
            ("image1, the student's window", framed(pair.image1, *window)),
            ("image2, the same window", framed(pair.image2, *window)),
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
