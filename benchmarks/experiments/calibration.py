"""Which quality column of a label set tells how wrong its labels are?

    python -m benchmarks.experiments.calibration [--data DATA]

Labels pairs whose truth is known as jobs/pseudolabel.py does: by a classical method, by a network that learnt
from real clips, and by three teachers together. For every quality column, leaves out the worst quarter, half
and three quarters of the pairs by that column, and prints the mean error of the labels that are kept. `error
itself` is the same with the truly worst pairs left out, `at random` with any pairs left out. The error is the
EPE on the pixels that the label calls visible, from which a student learns. AUSE is the area between a
column's curve and that of the error itself (sparsification), over the mean error: 0 is perfect.

The pairs are 288 of rendered scenes of many speeds and of changing light, and with --data the real ones of
the folder's Sintel, Middlebury, Chairs and KITTI. Writes docs/results/calibration.md and its picture.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy import ndarray
from tqdm import tqdm

from benchmarks import report
from benchmarks.inputs import real_sets
from flowcore.datasets import find_samples, load
from flowcore.metrics import endpoint_error
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import pseudo_labels
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import to_images
from pipelines.checkpoints import fetch_model, load_model
from pipelines.labels import decode_flow, label_columns
from pipelines.storage import PROJECT_FOLDER

PAGE = PROJECT_FOLDER / "docs" / "results" / "calibration.md"
STUDENT = str(PROJECT_FOLDER / "docs" / "results" / "real-pixels" / "student")
TEACHERS = {
    "DIS": ("opencv:dis_medium",),
    "the student of real clips": (STUDENT,),
    "DIS, Farneback and the student": ("opencv:dis_medium", "opencv:farneback", STUDENT),
}
SCENES = range(30_000, 30_096)
COLUMNS = ("forward_backward", "photometric", "occluded", "flow_p50", "flow_p99", "flow_max", "spread")
"""The last one only in several teachers' labels."""
ITSELF, AT_RANDOM = "error itself", "at random"
COVERAGES = (1.0, 0.75, 0.5, 0.25)

Pair = tuple[ndarray, ndarray, ndarray, ndarray]
"""(frame, frame, true flow, where it is known)."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A labelled pair. error: EPE in px on the label's visible pixels; quality: its columns by name."""

    error: float
    quality: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """errors: the mean of the best pairs by a column, 1 of them, 2 and so on."""

    errors: ndarray
    ause: float

    def at(self, coverage: float) -> float:
        return float(self.errors[max(1, round(coverage * len(self.errors))) - 1])


def rendered() -> Iterator[Pair]:
    """Of scenes from almost still to wild."""
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


def real(data: Path) -> Iterator[Pair]:
    for data_set in real_sets(data):
        for sample in find_samples(data_set.name, Path(data_set.root)):
            truth = load(sample)
            yield truth.image1, truth.image2, truth.flow, truth.valid


def judged(networks: Sequence[FlowNetwork], pair: Pair) -> Judged:
    image1, image2, flow, known = pair
    frames = to_images(np.stack([image1, image2]))
    labels = pseudo_labels(networks, frames, OcclusionCheck())
    row = label_columns(labels, "a teacher").to_pylist()[0]
    height, width = image1.shape[:2]
    label = decode_flow(row["flow_fw"], row["flow_stride"], height, width)
    counted = known & ~np.array(row["occ_fw"]).reshape(height, width)
    error = endpoint_error(torch.from_numpy(label)[None], torch.from_numpy(flow)[None])[0, 0].numpy()
    return Judged(
        error=float(error[counted].mean()) if counted.any() else float("nan"),
        quality={name: row[name] for name in COLUMNS if name in row},
    )


def curves(pairs: Sequence[Judged]) -> dict[str, Curve]:
    """By column, and that of leaving out the truly worst; the smallest area first."""
    # A pair without a visible pixel gives no error and no label to learn from.
    pairs = [pair for pair in pairs if np.isfinite(pair.error)]
    errors = np.array([pair.error for pair in pairs])
    counts = np.arange(1, len(errors) + 1)
    best = np.cumsum(np.sort(errors)) / counts
    kept = {ITSELF: best}
    for name in pairs[0].quality:
        order = np.argsort([pair.quality[name] for pair in pairs], kind="stable")
        kept[name] = np.cumsum(errors[order]) / counts
    kept[AT_RANDOM] = np.full_like(best, errors.mean())
    found = {
        name: Curve(errors=curve, ause=float((curve - best).mean() / errors.mean()))
        for name, curve in kept.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].ause))


def table(title: str, found: dict[str, Curve]) -> str:
    rows = [
        (name, *(f"{curve.at(share):.2f}" for share in COVERAGES), f"{curve.ause:.2f}")
        for name, curve in found.items()
    ]
    return report.table([title, *(f"{share:.0%} kept" for share in COVERAGES), "AUSE"], rows)


def summary(results: dict[tuple[str, str], dict[str, Curve]]) -> str:
    """Each column's areas, the smallest mean first."""
    rows = []
    for name in COLUMNS:
        areas = [found[name].ause if name in found else None for found in results.values()]
        present = [area for area in areas if area is not None]
        rows.append((statistics.mean(present), max(present), name, areas))
    rows.sort()
    titles = [f"{pairs}, {teacher}" for pairs, teacher in results]
    lines = [
        (name, *("-" if area is None else f"{area:.2f}" for area in (mean, worst, *areas)))
        for mean, worst, name, areas in rows
    ]
    everywhere = min((row for row in rows if None not in row[3]), key=lambda row: row[0])
    return f"Best in the mean of what every label set has: `{everywhere[2]}`.\n\n" + report.table(
        ["AUSE", "mean", "worst", *titles], lines
    )


def draw(results: dict[tuple[str, str], dict[str, Curve]]) -> None:
    kinds = list(dict.fromkeys(kind for kind, _ in results))
    figure, axes = plt.subplots(
        len(kinds), len(TEACHERS), figsize=(4 * len(TEACHERS), 3.2 * len(kinds)), squeeze=False
    )
    colours = {name: f"C{number}" for number, name in enumerate(COLUMNS)}
    for axis, ((kind, teacher), found) in zip(axes.flat, results.items(), strict=True):
        for name, curve in found.items():
            coverage = np.arange(1, len(curve.errors) + 1) / len(curve.errors)
            axis.plot(
                coverage,
                curve.errors,
                label=name,
                color=colours.get(name, "black"),
                linestyle=":" if name == AT_RANDOM else "-",
                linewidth=2 if name == ITSELF else 1,
            )
        axis.set(title=f"{kind}: {teacher}", xlabel="share of the pairs kept", ylim=(0, None))
        axis.title.set_fontsize(9)
    for row in axes:
        row[0].set_ylabel("EPE of those kept, px")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), fontsize=8)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(PAGE.with_suffix(".png"), dpi=80)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of data sets with truth")
    arguments = parser.parse_args()
    collections = {"rendered": list(rendered())}
    if arguments.data is not None:
        collections["real"] = list(real(arguments.data))
    results = {}
    for kind, pairs in collections.items():
        for title, models in TEACHERS.items():
            networks = [load_model(fetch_model(model))[0].eval() for model in models]
            labelled = [judged(networks, pair) for pair in tqdm(pairs, desc=f"{kind}, {title}", unit="pair")]
            results[kind, title] = curves(labelled)
    draw(results)
    parts = [
        "# Which quality column tells a bad label\n\n"
        "Printed by `python -m benchmarks.experiments.calibration"
        f"{' --data DATA' if arguments.data else ''}`: EPE in px on the pixels that the label calls visible, "
        "of the pairs that are kept by each column, best first. AUSE: the area between a column's curve and "
        "that of leaving out the truly worst, over the mean error.",
        summary(results),
        f"![error against the share kept]({PAGE.stem}.png)",
        *(
            table(f"{kind}, {len(collections[kind])} pairs: {title}", found)
            for (kind, title), found in results.items()
        ),
    ]
    text = "\n\n".join(parts) + "\n"
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
