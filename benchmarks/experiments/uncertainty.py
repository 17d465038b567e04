"""Does a network's own uncertainty tell where its flow is wrong, and what is a student worth that uses it?

    python -m benchmarks.experiments.uncertainty [--seeds 0 1 2] [--ause-only] [--print]

On rendered scenes three small teachers with `uncertainty` learn without labels, on crops with changed colours
and hidden rectangles. AUSE on scenes never trained on, of what they predict, of the forward-backward residual
and of their spread; then the error of students of their labels: of one teacher and of three, weighed by the
predicted uncertainty and not. What is done is in docs/results/uncertainty and isn't done again. Prints the
tables at the end, with --print from the files that are there.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks import report
from benchmarks.experiments import alone
from benchmarks.experiments.cells import (
    KINDS,
    RESULTS,
    SEEDS,
    TEST_SCENES,
    TRAINING_SCENES,
)
from benchmarks.experiments.losses import TODAY, WIDER
from benchmarks.experiments.records import Records
from flowcore.colour import Colour
from flowcore.geometry import backward_warp, squared_length, upsample_flow, upsample_values
from flowcore.hallucination import RectangleNoise
from flowcore.metrics import Sparsification, endpoint_error, sparsification
from flowcore.networks import BidirectionalFlow, FlowNetwork
from flowcore.objectives import TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import pseudo_labels
from flowcore.shapes import to_images
from jobs.recipes import RECIPES
from pipelines.checkpoints import load_model, save_model
from pipelines.installation import PROJECT_FOLDER
from pipelines.label_rows import label_columns
from pipelines.labels import encode_shard
from pipelines.training_options import TrainingOptions

RECORDS = Records(RESULTS / "uncertainty")
MODELS = PROJECT_FOLDER / "runs" / "uncertainty"
KIND = "mixed"
CHECK = OcclusionCheck(kind="range-map")
NETWORK = replace(TODAY, uncertainty=True)
TEACHER_STEPS, STUDENT_STEPS = 600, 300
HARD = replace(WIDER, colour=Colour(chance=0.5), rectangles=RectangleNoise(chance=0.5))
"""What the teachers see. Their flow moves by it, and so they learn more of its error than at a crop's
sides."""
DEMO = RECIPES["demo"]
TEACHERS = 3
TOLERANCE = 1.0
"""Pixels."""
STUDENTS: Mapping[str, tuple[int, float | None]] = {
    "one teacher": (1, None),
    "three teachers": (TEACHERS, None),
    "one teacher, weighed": (1, TOLERANCE),
    "three teachers, weighed": (TEACHERS, TOLERANCE),
}
"""How many teachers label, and the tolerance of their uncertainty."""
MEASURES = ("predicted", "forward-backward", "spread")


def options(steps: int, seed: int) -> TrainingOptions:
    return TrainingOptions(
        steps=steps, learning_rate=1e-3, warmup=0.1, decay="cosine", channels_last=True, seed=seed
    )


def teacher(seed: int, number: int) -> FlowNetwork:
    """One of a seed's teachers, trained if it isn't there."""
    folder = MODELS / f"teacher{number}-seed{seed}"
    if not folder.exists():
        own_seed = TEACHERS * seed + number
        torch.manual_seed(own_seed)
        objective = TeacherObjective(unmasked_steps=round(0.3 * TEACHER_STEPS))
        network = alone.trained(
            NETWORK.build(),
            alone.unlabelled_pairs(KIND),
            HARD,
            objective,
            CHECK,
            options(TEACHER_STEPS, own_seed),
        )
        save_model(folder.with_name(f".{folder.name}"), network, {"stage": "benchmark", "cell": "teacher"})
        folder.with_name(f".{folder.name}").rename(folder)
    return load_model(folder)[0].ready(alone.DEVICE)


def teachers(seed: int, count: int) -> list[FlowNetwork]:
    return [teacher(seed, number) for number in range(count)]


def areas(seed: int, count: int) -> dict[str, float]:
    """Of the mean flow of so many teachers on the test scenes: its EPE, and the AUSE of what tells its
    error."""
    networks = teachers(seed, count)
    told = dict.fromkeys(MEASURES[: 2 + (count > 1)], Sparsification())
    total = pixels = 0.0
    for number in TEST_SCENES:
        truth = alone.test_scene(number, KIND)
        found = [network.estimate_both(to_images(truth.frames, alone.DEVICE)) for network in networks]
        flows = [_at_full_size(each, *truth.frames.shape[1:3]) for each in found]
        forward, backward, scale = (torch.stack(each).mean(dim=0) for each in zip(*flows, strict=True))
        error = endpoint_error(forward.cpu().double(), torch.from_numpy(truth.flow_fw).double())
        mismatch = squared_length(forward + backward_warp(backward, forward)).sqrt()
        spread = torch.stack([squared_length(each[0] - forward) for each in flows]).mean(dim=0).sqrt()
        for name, values in zip(MEASURES, (scale, mismatch, spread), strict=True):
            if name in told:
                for one, of_one in zip(error, values.cpu(), strict=True):
                    told[name] += sparsification(one.flatten(), of_one.flatten())
        total, pixels = total + float(error.sum()), pixels + error.numel()
    return {"epe": total / pixels} | {name: each.ause or 0.0 for name, each in told.items()}


def _at_full_size(flows: BidirectionalFlow, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flow there and back, and the predicted scale, in pixels."""
    stride = flows.strides[0]
    assert flows.log_scale_fw is not None
    return (
        upsample_flow(flows.forward[0], stride, height, width),
        upsample_flow(flows.backward[0], stride, height, width),
        upsample_values(flows.log_scale_fw, stride, height, width).exp(),
    )


def sizes(seed: int) -> dict[str, float]:
    """Bytes a pair of the columns of labels of the training scenes, in both directions."""
    found: dict[str, float] = {}
    pairs = 0
    for number in TRAINING_SCENES:
        frames = to_images(alone.scene(number, KINDS[KIND]).frames, alone.DEVICE)
        labels = pseudo_labels(teachers(seed, 1), frames, CHECK)
        file = pq.ParquetFile(io.BytesIO(encode_shard(label_columns(labels, "a teacher"), 8)))
        pairs += len(labels)
        for group in range(file.metadata.num_row_groups):
            columns = file.metadata.row_group(group)
            for place in range(columns.num_columns):
                column = columns.column(place)
                name = column.path_in_schema.partition(".")[0].removesuffix("_fw").removesuffix("_bw")
                found[name] = found.get(name, 0.0) + column.total_compressed_size
    vectors = 2 * labels.flow_fw[0, 0].numel()
    return {name: found[name] / pairs for name in ("flow", "occ", "uncertainty")} | {"vectors": vectors}


def student(seed: int, name: str) -> dict[str, float]:
    """The first teacher trained on with labels, judged on the test scenes."""
    count, tolerance = STUDENTS[name]
    pairs = alone.labelled_pairs(KIND, teachers(seed, count), CHECK, tolerance=tolerance)
    torch.manual_seed(seed)
    network = teacher(seed, 0).train()
    objective = DEMO.student_objective
    trained = alone.trained(network, pairs, DEMO.challenge, objective, CHECK, options(STUDENT_STEPS, seed))
    return alone.judged(trained, KIND, CHECK)


def do(name: str, seed: int, make: Callable[[], Mapping[str, float]]) -> None:
    RECORDS.measure(name, seed, make, name=name)


def measure(seed: int, *, ause_only: bool) -> None:
    do("size", seed, partial(sizes, seed))
    do("AUSE one teacher", seed, partial(areas, seed, 1))
    do("teacher", seed, lambda: alone.judged(teacher(seed, 0), KIND, CHECK))
    wanted = [] if ause_only else list(STUDENTS)
    # What needs one teacher comes first: two more take as long as all that.
    for name in [name for name in wanted if STUDENTS[name][0] == 1]:
        do(name, seed, partial(student, seed, name))
    do("AUSE three teachers", seed, partial(areas, seed, TEACHERS))
    for name in wanted:
        do(name, seed, partial(student, seed, name))


def means(name: str, keys: Sequence[str], digits: int = 2) -> list[str]:
    return [RECORDS.mean(name, key, digits) for key in keys]


def of_students() -> str:
    rows = []
    for name in ("teacher", *STUDENTS):
        changes = [
            RECORDS.change(name, "teacher", key) if name != "teacher" else "" for key in ("noc", "occ")
        ]
        numbers = means(name, ("all", "noc", "occ", "f1"))
        rows.append([name, len(RECORDS.of(name)), *numbers, *changes])
    heads = (
        "",
        "seeds",
        "EPE all",
        "noc",
        "occ",
        "occlusion F",
        "noc against teacher",
        "occ against teacher",
    )
    return report.table(heads, rows)


def tables() -> str:
    of_areas = [
        [name, len(RECORDS.of(f"AUSE {name}")), *means(f"AUSE {name}", ("epe", *MEASURES))]
        for name in ("one teacher", "three teachers")
    ]
    heads = ("flow of", "seeds", "EPE", *(f"AUSE {name}" for name in MEASURES))
    of_sizes = report.table(
        ("bytes a pair, both directions", "flow", "occlusion", "uncertainty", "vectors"),
        [["96x128 px", *means("size", ("flow", "occ", "uncertainty", "vectors"), 0)]],
    )
    parts = ["## What tells the error", report.table(heads, of_areas), "## Students", of_students()]
    return "\n\n".join([*parts, "## Size", of_sizes])


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="0 1 2 by default")
    parser.add_argument("--ause-only", action="store_true", help="train no students")
    parser.add_argument("--print", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.print:
        for seed in arguments.seeds:
            measure(seed, ause_only=arguments.ause_only)
    print(tables())


if __name__ == "__main__":
    main()
