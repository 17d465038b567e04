"""What do labels from three frames give, and their students?

    python -m benchmarks.experiments.three_frames [--seeds 0 1 2] [--kinds mixed unsteady] [--print]

On rendered scenes whose things move steadily (mixed) and on such whose motion changes from frame to frame
(unsteady): a teacher learns without labels, and labels the pairs from two frames and from three. The error of
the labels themselves, then that of a student of each on scenes never trained on, beside the control, the
teacher trained on without labels. What is done is in docs/results/three_frames and isn't done again. Prints
the tables at the end, with --print from the files that are there.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks import report
from benchmarks.experiments import alone
from benchmarks.experiments.cells import RESULTS, SEEDS
from benchmarks.experiments.losses import TODAY, WIDER
from benchmarks.experiments.records import Records
from flowcore.networks import FlowNetwork
from flowcore.objectives import StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import FramePair
from jobs.recipes import RECIPES
from pipelines.checkpoints import load_model, save_model
from pipelines.installation import PROJECT_FOLDER
from pipelines.training_options import TrainingOptions

RECORDS = Records(RESULTS / "three_frames")
MODELS = PROJECT_FOLDER / "runs" / "three_frames"
KINDS = {"mixed": "steady motion", "unsteady": "motion that changes by 3 px a frame"}
CHECK = OcclusionCheck(kind="range-map")
DEMO = RECIPES["demo"]
LABELS = {"two frames": False, "three frames": True}
VIEWS = {
    "occlusion view": StudentObjective(),
    "confidence view": DEMO.student_objective,
}
STUDENTS = tuple(f"{labels}, {view}" for labels in LABELS for view in VIEWS)


def options(steps: int, seed: int) -> TrainingOptions:
    return TrainingOptions(
        steps=steps, learning_rate=1e-3, warmup=0.1, decay="cosine", channels_last=True, seed=seed
    )


def teacher(kind: str, seed: int) -> FlowNetwork:
    """As the demo's, trained if it isn't there."""
    folder = MODELS / f"teacher-{kind}-seed{seed}"
    if not folder.exists():
        torch.manual_seed(seed)
        steps = DEMO.teacher.steps
        objective = TeacherObjective(unmasked_steps=round(0.3 * steps))
        pairs = alone.unlabelled_pairs(kind)
        network = alone.trained(TODAY.build(), pairs, WIDER, objective, CHECK, options(steps, seed))
        save_model(folder.with_name(f".{folder.name}"), network, {"stage": "benchmark", "cell": "teacher"})
        folder.with_name(f".{folder.name}").rename(folder)
    return load_model(folder)[0].ready(alone.DEVICE)


Labelled = tuple[StudentObjective, Sequence[FramePair]]
"""What a student learns, and from which labelled pairs."""


def judged_follower(kind: str, seed: int, labelled: Labelled | None) -> dict[str, float]:
    return alone.judged(follower(kind, seed, labelled), kind, CHECK)


def follower(kind: str, seed: int, labelled: Labelled | None) -> FlowNetwork:
    """The teacher trained on: a student, or the control."""
    torch.manual_seed(seed)
    network = teacher(kind, seed).train()
    training = options(DEMO.student.steps, seed)
    if labelled is not None:
        objective, pairs = labelled
        return alone.trained(network, pairs, DEMO.challenge, objective, CHECK, training)
    unlabelled = alone.unlabelled_pairs(kind)
    return alone.trained(network, unlabelled, WIDER, TeacherObjective(), CHECK, training)


def errors_of(kind: str, pairs: Sequence[FramePair]) -> dict[str, float]:
    """Of labels: the error in px on truly visible pixels, on truly occluded ones, and on those of the
    occluded ones that a student learns, with their share."""
    sums = np.zeros((3, 2))
    for label, truth in zip(pairs, alone.true_pairs(kind), strict=True):
        for mine, true in ((label, truth), (label.reversed(), truth.reversed())):
            assert mine.flow_fw is not None
            assert mine.confidence_fw is not None
            assert true.flow_fw is not None
            assert true.confidence_fw is not None
            error = np.linalg.norm(mine.flow_fw - true.flow_fw, axis=0)
            occluded = true.confidence_fw == 0
            taught = occluded & (mine.confidence_fw > 0)
            sums += [[error[mask].sum(), mask.sum()] for mask in (~occluded, occluded, taught)]
    visible, hidden, learnt = (sums[:, 0] / sums[:, 1].clip(1)).tolist()
    return {"noc": visible, "occ": hidden, "learnt": learnt, "share": float(sums[2, 1] / sums[1, 1])}


def do(kind: str, name: str, seed: int, make: Callable[[], Mapping[str, float]]) -> None:
    RECORDS.measure(f"{kind}/{name}", seed, make, kind=kind, name=name)


def measure(kind: str, seed: int) -> None:
    do(kind, "teacher", seed, lambda: alone.judged(teacher(kind, seed), kind, CHECK))
    do(kind, "control", seed, lambda: judged_follower(kind, seed, None))
    for labels, three_frames in LABELS.items():
        pairs = alone.labelled_pairs(kind, [teacher(kind, seed)], CHECK, three_frames=three_frames)
        do(kind, f"labels, {labels}", seed, partial(errors_of, kind, pairs))
        for view, objective in VIEWS.items():
            student = partial(judged_follower, kind, seed, (objective, pairs))
            do(kind, f"{labels}, {view}", seed, student)


def change(kind: str, name: str, against: str, key: str) -> str:
    return RECORDS.change(f"{kind}/{name}", f"{kind}/{against}", key)


def mean(kind: str, name: str, key: str) -> str:
    return RECORDS.mean(f"{kind}/{name}", key)


def of_labels(kind: str) -> str:
    rows = []
    for labels in LABELS:
        name = f"labels, {labels}"
        against = "" if labels == "two frames" else change(kind, name, "labels, two frames", "occ")
        numbers = [mean(kind, name, key) for key in ("noc", "occ", "learnt", "share")]
        rows.append([labels, str(len(RECORDS.of(f"{kind}/{name}"))), *numbers, against])
    heads = ("labels of", "seeds", "EPE noc", "occ", "occ, learnt", "share learnt", "occ against two frames")
    return report.table(heads, rows)


def of_students(kind: str) -> str:
    rows = []
    for name in ("teacher", "control", *STUDENTS):
        numbers = [mean(kind, name, key) for key in ("all", "noc", "occ", "f1")]
        changes = [change(kind, name, "control", key) if name in STUDENTS else "" for key in ("occ", "noc")]
        rows.append([name, str(len(RECORDS.of(f"{kind}/{name}"))), *numbers, *changes])
    heads = (
        "",
        "seeds",
        "EPE all",
        "noc",
        "occ",
        "occlusion F",
        "occ against control",
        "noc against control",
    )
    return report.table(heads, rows)


def tables() -> str:
    parts = []
    for kind, title in KINDS.items():
        if not RECORDS.of(f"{kind}/teacher"):
            continue
        parts += [f"## Labels, {title}", of_labels(kind), f"## Their students, {title}", of_students(kind)]
    return "\n\n".join(parts)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="0 1 2 by default")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of scenes")
    parser.add_argument("--print", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.print:
        for kind in arguments.kinds:
            for seed in arguments.seeds:
                measure(kind, seed)
    print(tables())


if __name__ == "__main__":
    main()
