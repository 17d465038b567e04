"""Which quality column of a label set tells how wrong its labels are?

    python benchmarks/calibration.py [TEACHER] [--data DATA]

On pairs whose truth is known, labelled as jobs/pseudolabel.py labels: for every quality column, the mean
error of the labels that are kept when the worst quarter, half and three quarters of the pairs by that column
are left out, beside what leaving out the truly worst would give (`error itself`). The error is the EPE on the
pixels that the label calls visible, which are those that a student learns from. AUSE is the area between a
column's curve and the error's own (sparsification), over the mean error: 0 is perfect.

Rendered scenes of many speeds and of changing light, 288 pairs, and with DATA the real pairs of its Sintel,
Middlebury, Chairs and KITTI too. Writes docs/results/calibration.md.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from tqdm import tqdm

from flowcore.benchmarks import find_samples, load
from flowcore.metrics import endpoint_error
from flowcore.networks import FlowNetwork
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import to_images
from pipelines.checkpoints import fetch_model, load_model
from pipelines.labelling import label_chunk
from pipelines.labels import decode_flow
from pipelines.locations import PROJECT_FOLDER

PAGE = PROJECT_FOLDER / "docs" / "results" / "calibration.md"
REAL = {
    "middlebury_flow": "middlebury",
    "flyingchairs": "chairs",
    "sintel": "sintel",
    "kitti2012": "kitti2012",
}
SCENES = range(30_000, 30_096)
COLUMNS = ("forward_backward", "photometric", "occluded", "flow_p50", "flow_p99", "flow_max")
COVERAGES = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A labelled pair. error: EPE in px on the label's visible pixels; quality: its columns by name."""

    error: float
    quality: dict[str, float]


def rendered() -> Iterator[tuple[ndarray, ndarray, ndarray, ndarray]]:
    """(frame, frame, true flow, where it is known) of scenes from almost still to wild."""
    for scene in SCENES:
        rng = np.random.default_rng(scene)
        options = SceneOptions(
            num_frames=4,
            camera_speed=rng.uniform(1, 25),
            layer_speed=rng.uniform(1, 20),
            lighting=rng.choice([0.0, 0.15]),
        )
        frames = render_scene(scene, options)
        for index, flow in enumerate(frames.flow_fw):
            yield frames.frames[index], frames.frames[index + 1], flow, np.ones(flow.shape[1:], bool)


def real(data: Path) -> Iterator[tuple[ndarray, ndarray, ndarray, ndarray]]:
    for folder, benchmark in REAL.items():
        if (data / folder).exists():
            for sample in find_samples(benchmark, data / folder):
                truth = load(sample)
                yield truth.image1, truth.image2, truth.flow, truth.valid


def judged(network: FlowNetwork, pair: tuple[ndarray, ndarray, ndarray, ndarray]) -> Judged:
    image1, image2, flow, known = pair
    frames = to_images(np.stack([image1, image2]))
    row = label_chunk([network], frames, ForwardBackwardCheck()).to_pylist()[0]
    height, width = image1.shape[:2]
    label = decode_flow(row["flow_fw"], row["flow_stride"], height, width)
    counted = known & ~np.array(row["occ_fw"]).reshape(height, width)
    error = endpoint_error(torch.from_numpy(label)[None], torch.from_numpy(flow)[None])[0, 0].numpy()
    return Judged(
        error=float(error[counted].mean()) if counted.any() else float("nan"),
        quality={name: row[name] for name in COLUMNS},
    )


def kept_errors(errors: ndarray, order: ndarray) -> list[float]:
    """The mean error of the best pairs, for each coverage."""
    return [float(errors[order[: max(1, round(share * len(order)))]].mean()) for share in COVERAGES]


def ause(errors: ndarray, order: ndarray) -> float:
    """The area between the curves of an order and of the best one, relative to the mean error."""
    counts = np.arange(1, len(errors) + 1)
    curve, best = (np.cumsum(errors[each]) / counts for each in (order, np.argsort(errors)))
    return float((curve - best).mean() / errors.mean())


def table(title: str, pairs: list[Judged]) -> str:
    # A pair without a visible pixel gives no error and no label to learn from.
    pairs = [pair for pair in pairs if np.isfinite(pair.error)]
    errors = np.array([pair.error for pair in pairs])
    orders = {
        "error itself": np.argsort(errors),
        **{name: np.argsort([pair.quality[name] for pair in pairs], kind="stable") for name in COLUMNS},
    }
    lines = [
        "| " + " | ".join([title, *(f"{share:.0%} kept" for share in COVERAGES), "AUSE"]) + " |",
        "|" + " --- |" * (len(COVERAGES) + 2),
    ]
    rows = {name: (kept_errors(errors, order), ause(errors, order)) for name, order in orders.items()}
    for name, (kept, area) in sorted(rows.items(), key=lambda row: row[1][1]):
        lines.append("| " + " | ".join([name, *(f"{error:.2f}" for error in kept), f"{area:.2f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "teacher", nargs="?", default="opencv:dis_medium", help="a model, as evaluate takes it"
    )
    parser.add_argument("--data", type=Path, help="the folder of the real benchmarks")
    arguments = parser.parse_args()
    network, _ = load_model(fetch_model(arguments.teacher))
    network.eval()
    pairs = [judged(network, pair) for pair in tqdm(rendered(), total=3 * len(SCENES), unit="pair")]
    parts = [table(f"rendered, {len(pairs)} pairs", pairs)]
    if arguments.data is not None:
        found = [judged(network, pair) for pair in tqdm(real(arguments.data), unit="pair")]
        parts.append(table(f"real, {len(found)} pairs", found))
    text = (
        "# Which quality column tells a bad label\n\n"
        f"Printed by `python benchmarks/calibration.py {arguments.teacher}"
        f"{' --data DATA' if arguments.data else ''}`: EPE in px on the pixels that the label calls "
        "visible, of the pairs that are kept by each column, best first.\n\n" + "\n\n".join(parts) + "\n"
    )
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
