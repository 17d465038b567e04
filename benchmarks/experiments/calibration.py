"""Which quality column of a label set tells how wrong its labels are?

    python -m benchmarks.experiments.calibration [--data DATA] [--print]

Labels pairs whose truth is known as jobs/pseudolabel.py does: by a classical method, by a network that learnt
from real clips, and by three teachers together. For every quality column, leaves out the worst quarter, half
and three quarters of the pairs by that column, and prints the mean error of the labels that are kept. `error
itself` is the same with the truly worst pairs left out, `at random` with any pairs left out. The error is the
EPE on the pixels that the label calls visible, from which a student learns. AUSE is the area between a
column's curve and that of the error itself (sparsification), over the mean error: 0 is perfect.

The pairs are 288 of rendered scenes of many speeds and of changing light, and with --data the real ones of
the folder's Sintel, Middlebury, Chairs and KITTI. Writes each pair's error and columns to
docs/results/calibration; --print prints the tables of what is there.
"""

import csv
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from benchmarks import report
from benchmarks.experiments.cells import RESULTS, file_name
from benchmarks.experiments.real_pairs import STUDENT
from benchmarks.inputs import real_sets
from flowcore.datasets import find_samples
from flowcore.metrics import endpoint_error
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import pseudo_labels
from flowcore.samples import load
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import to_images
from pipelines.checkpoints import load_model
from pipelines.label_rows import decode_flow, label_columns
from pipelines.models import fetch_model
from pipelines.progress import Progress
from pipelines.storage import write_whole

RECORDS = RESULTS / "calibration"
TEACHERS = {
    "DIS": ("opencv:dis_medium",),
    "the student of real clips": (str(STUDENT),),
    "DIS, Farneback and the student": ("opencv:dis_medium", "opencv:farneback", str(STUDENT)),
}
KINDS = ("rendered", "real")
"""Of pairs."""
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


def record_file(kind: str, teacher: str) -> Path:
    return RECORDS / f"{kind}.{file_name(teacher)}.tsv"


def record(kind: str, teacher: str, pairs: Sequence[Judged]) -> None:
    """Keeps labelled pairs: a line each, to five digits."""
    rows = [{"error": pair.error, **pair.quality} for pair in pairs]
    lines = [list(rows[0]), *([f"{value:.5g}" for value in row.values()] for row in rows)]
    write_whole(record_file(kind, teacher), "".join("\t".join(line) + "\n" for line in lines).encode())


def recorded() -> dict[tuple[str, str], list[Judged]]:
    """The labelled pairs by (kind, teacher)."""
    found = {}
    for kind, teacher in itertools.product(KINDS, TEACHERS):
        if (path := record_file(kind, teacher)).exists():
            with path.open() as file:
                lines = [
                    {name: float(value) for name, value in line.items()}
                    for line in csv.DictReader(file, delimiter="\t")
                ]
            found[kind, teacher] = [Judged(error=line.pop("error"), quality=line) for line in lines]
    return found


def tables() -> str:
    """For each kind of pairs and each teacher."""
    return "\n\n".join(
        table(f"{kind}, {len(pairs)} pairs: {teacher}", curves(pairs))
        for (kind, teacher), pairs in recorded().items()
    )


def table(title: str, found: dict[str, Curve]) -> str:
    rows = [
        (name, *(f"{curve.at(share):.2f}" for share in COVERAGES), f"{curve.ause:.2f}")
        for name, curve in found.items()
    ]
    return report.table([title, *(f"{share:.0%} kept" for share in COVERAGES), "AUSE"], rows)


def summary() -> str:
    """Each column's areas, the smallest mean first."""
    results = {key: curves(pairs) for key, pairs in recorded().items()}
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


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--data", type=Path, help="a folder of data sets with truth")
    parser.add_argument("--print", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.print:
        kinds = {"rendered": rendered()}
        if arguments.data is not None:
            kinds["real"] = real(arguments.data)
        for kind, found in kinds.items():
            pairs = list(found)
            for teacher, models in TEACHERS.items():
                networks = [load_model(fetch_model(model))[0].eval() for model in models]
                results = []
                with Progress(f"{kind}, {teacher}", "pair", len(pairs)) as progress:
                    for pair in pairs:
                        results.append(judged(networks, pair))
                        progress.advance(1)
                record(kind, teacher, results)
    print(f"{summary()}\n\n{tables()}")


if __name__ == "__main__":
    main()
