"""Where, on visible pixels, is a student worse than its control?

    python -m benchmarks.experiments.visible [--kinds stereo camera] [--seed 0]

Compares the ablation's teacher, control and student of a seed with two more students: one in the confidence
view with the photometric loss, and one with a quarter of the distillation's weight. Trains those that aren't
in runs/ablation. Splits the visible pixels of the test scenes by what is near, an occluded pixel, the frame's
border or neither, and by how far they move, and prints each network's mean error on each part.
"""

import os
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks import report
from benchmarks.experiments.cells import (
    CELLS,
    KINDS,
    OBJECTIVES,
    TEST_SCENES,
    TRACKING_URI,
    WORK,
    Cell,
    model,
    student,
    truth,
)
from flowcore.datasets import find_samples
from flowcore.samples import Truth, load
from pipelines.cluster import connect
from pipelines.estimators import load_estimator

_NEAR_OCCLUDED, _NEAR_BORDER, _SLOW = 4, 8, 2.0
"""Pixels."""
OTHERS = {
    "confidence + photometric": OBJECTIVES["confidence+photometric"],
    "a quarter of the distillation": OBJECTIVES["quarter"],
}


def regions(truth_: Truth) -> dict[str, np.ndarray]:
    """Masks of the visible pixels; the first three make up all, so do the last two."""
    assert truth_.occluded is not None
    visible = truth_.valid & ~truth_.occluded
    kernel = np.ones((2 * _NEAR_OCCLUDED + 1,) * 2, np.uint8)
    near = cv2.dilate((truth_.valid & truth_.occluded).astype(np.uint8), kernel) > 0
    border = np.ones_like(near)
    border[_NEAR_BORDER:-_NEAR_BORDER, _NEAR_BORDER:-_NEAR_BORDER] = False
    slow = np.hypot(*truth_.flow) < _SLOW
    return {
        f"within {_NEAR_OCCLUDED} px of an occluded pixel": visible & near,
        f"else, within {_NEAR_BORDER} px of the border": visible & ~near & border,
        "else": visible & ~near & ~border,
        f"moving by less than {_SLOW:g} px": visible & slow,
        f"moving by {_SLOW:g} px or more": visible & ~slow,
    }


def split_errors(places: dict[str, str], root: str) -> list[list[str]]:
    """A row for each region: its share of the visible pixels, and each network's mean error there."""
    estimators = {name: load_estimator(place) for name, place in places.items()}
    pixels: dict[str, int] = {}
    errors: dict[tuple[str, str], float] = {}
    for sample in find_samples("scenes", Path(root)):
        pair = load(sample)
        masks = regions(pair)
        for region, mask in masks.items():
            pixels[region] = pixels.get(region, 0) + int(mask.sum())
        for name, estimator in estimators.items():
            distance = np.hypot(*(estimator(pair.image1, pair.image2)[0] - pair.flow))
            for region, mask in masks.items():
                errors[region, name] = errors.get((region, name), 0.0) + float(distance[mask].sum())
    total = sum(list(pixels.values())[:3])
    return [
        [region, f"{100 * count / total:.0f} %", *(f"{errors[region, name] / count:.2f}" for name in places)]
        for region, count in pixels.items()
        if count
    ]


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["stereo", "camera"],
        choices=sorted(KINDS),
        help="of scenes to train on; stereo camera by default",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cells; 0 by default")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = TRACKING_URI
    connect()
    print(report.command())
    for kind in arguments.kinds:
        titles = {part: f"{part}/{kind}" for part in ("teacher", "control", "student")}
        for title, objective in OTHERS.items():
            titles[title] = f"student/{kind}, {title}"
            make = partial(student, of=[f"teacher/{kind}"], kind=kind, objective=objective)
            CELLS[titles[title]] = Cell(make=make, kinds=(kind,))
        places = {title: model(name, arguments.seed) for title, name in titles.items()}
        for tested in CELLS[f"teacher/{kind}"].kinds:
            print(f"\n{kind} -> {tested}, seed {arguments.seed}\n")
            errors = split_errors(places, truth(tested, TEST_SCENES))
            print(report.table(["visible pixels", "share", *places], errors), flush=True)


if __name__ == "__main__":
    main()
