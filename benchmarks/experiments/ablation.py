"""Does every part of the method do what the papers say?

    python -m benchmarks.experiments.ablation [--quick] [--only student/crop ...] [--seeds 0 1 2] [--print]

Trains and judges the cells of the ablation, networks that differ in one part of the method. A cell whose file
is in docs/results/ablation isn't done again, so a run that was killed goes on where it was. Several processes
may share the work if they take different seeds, best with a core each (taskset). Prints the tables at the
end, with --print from the cells that are there.

Every student stands beside its teacher and beside the control: the teacher trained on without distillation,
for the student's steps on the student's crops. The gap to the control is what distillation gives.
"""

import json
import os
import shlex
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import report
from benchmarks.experiments.cells import (
    BASE,
    CELLS,
    CHALLENGES,
    FINETUNE_STEPS,
    GENERALISED,
    LABEL_SHARES,
    OBJECTIVES,
    RECORDS,
    SEEDS,
    STAGE_1,
    STAGE_1_SCENES,
    TRACKING_URI,
    WORK,
    Numbers,
    do,
    file_name,
)
from benchmarks.report import mean_and_spread
from pipelines.cluster import connect


def records_of(name: str) -> dict[int, dict[str, Any]]:
    """The records of a cell's finished seeds."""
    records = [json.loads(path.read_text()) for path in RECORDS.glob(f"{file_name(name)}.seed*.json")]
    return {record["seed"]: record for record in sorted(records, key=lambda record: record["seed"])}


def seeds_of(name: str, kind: str | None = None) -> dict[int, Numbers]:
    """The errors of a cell on a kind of scenes, its first by default, by seed; without trainings that were
    stopped."""
    kind = kind or CELLS[name].kinds[0]
    return {
        seed: record["errors"][kind] for seed, record in records_of(name).items() if kind in record["errors"]
    }


def stopped(name: str) -> str:
    """How the trainings of a cell that were stopped ended; empty if there are none."""
    messages = [record["stopped"] for record in records_of(name).values() if "stopped" in record]
    return f"{len(messages)} stopped, {messages[0].split(',')[0]}" if messages else ""


def row(title: str, name: str, *, against: str | None = None, kind: str | None = None) -> list[str]:
    """A line of a table. against: the control, whose occluded and non-occluded errors the last columns
    compare with, seed by seed."""
    errors = seeds_of(name, kind)
    if not errors:
        return [title, "0", stopped(name)] if stopped(name) else [title, "not run yet"]
    cells = [title, str(len(errors))]
    for key in ("all", "noc", "occ"):
        cells.append(mean_and_spread([each[key] for each in errors.values()]))
    cells.append(mean_and_spread([100 * each["fl"] for each in errors.values()], 1))
    cells.append(mean_and_spread([each["f1"] for each in errors.values()]))
    if against is not None:
        for key in ("occ", "noc"):
            changes = changes_against(name, against, key, kind)
            cells.append(f"{mean_and_spread(changes, 1)} %" if changes else "")
    return cells


def control_of(challenge: str) -> str:
    """The control that saw what the students of a challenge saw: whole frames or crops."""
    return "control/whole" if challenge in ("rectangles", "superpixels") else "control/crop"


def changes_against(name: str, other: str, key: str, kind: str | None = None) -> list[float]:
    """By how many per cent a cell's error is above the other's, for the seeds that both have."""
    mine, its = seeds_of(name, kind), seeds_of(other, kind)
    return [100 * (mine[seed][key] / its[seed][key] - 1) for seed in sorted(mine.keys() & its.keys())]


def table(rows: Sequence[Sequence[str]]) -> str:
    heads = ["", "seeds", "EPE all", "noc", "occ", "Fl %", "occlusion F", "occ against control", "noc"]
    width = max(len(each) for each in rows)
    return report.table(heads[:width], [[*each, *[""] * (width - len(each))] for each in rows])


def tables() -> str:
    """Every table that the finished cells give, as Markdown."""
    parts: list[tuple[str, list[list[str]]]] = [
        *(
            (
                f"Stage 1: {title}",
                [row(each, f"teacher/{name}{where}") for name, each in STAGE_1.items()],
            )
            for where, (_, title) in STAGE_1_SCENES.items()
        ),
        (
            "Stage 2: what makes it hard for the student (occlusion view)",
            [
                row("teacher", BASE),
                row("control: trained on, whole frames", "control/whole"),
                row("control: trained on, crops", "control/crop"),
                *(
                    row(
                        f"+ distillation: {name}",
                        f"student/{name}",
                        against=control_of(name),
                    )
                    for name in CHALLENGES
                ),
            ],
        ),
        (
            "The two variants of the student (crop)",
            [
                row("occlusion view", "student/crop", against="control/crop"),
                row("confidence view", "student/confidence", against="control/crop"),
                row(
                    "confidence view + photometric", "student/confidence+photometric", against="control/crop"
                ),
                row(
                    "occlusion view, a quarter of the distillation's weight",
                    "student/quarter",
                    against="control/crop",
                ),
            ],
        ),
        (
            "Model distillation: several teachers (occlusion view, crop)",
            [
                row("1 teacher", "student/crop", against="control/crop"),
                row("2 teachers", "student/2 teachers", against="control/crop"),
                row("3 teachers", "student/3 teachers", against="control/crop"),
            ],
        ),
        (
            "Framework generalisation",
            [
                *(
                    row("PWC-Net: " + part, name)
                    for part, name in (("teacher", BASE), ("control", "control/crop"))
                ),
                row("PWC-Net: student", "student/crop", against="control/crop"),
                *(
                    row(f"{backbone}: {part}", f"{part}/{backbone}", against=f"control/{backbone}")
                    if part == "student"
                    else row(f"{backbone}: {part}", f"{part}/{backbone}")
                    for backbone in GENERALISED
                    for part in ("teacher", "control", "student")
                ),
            ],
        ),
        (
            f"Fine-tuning with the truth of some pairs, {FINETUNE_STEPS} steps",
            [
                row(f"{share:.0%} of the labels, from {start}", f"finetuned/{share:.0%} from {start}")
                for share in LABEL_SHARES
                for start in ("scratch", "teacher", "student", "student, semi-supervised")
            ],
        ),
        (
            "Cross-dataset generalisation: trained on one kind of scene, tested on another",
            [
                row(
                    f"{part}: {kind} -> {other}",
                    f"{part}/{kind}",
                    kind=other,
                    against=f"control/{kind}" if part == "student" else None,
                )
                for kind in ("camera", "objects")
                for other in CELLS[f"teacher/{kind}"].kinds
                for part in ("teacher", "control", "student")
            ],
        ),
        (
            "Correspondence generalisation: rectified stereo",
            [
                row("teacher", "teacher/stereo"),
                row("control", "control/stereo"),
                row("student", "student/stereo", against="control/stereo"),
            ],
        ),
    ]
    return "\n\n".join(f"## {title}\n\n{table(rows)}" for title, rows in parts)


def below(name: str, other: str, key: str) -> tuple[bool | None, str]:
    """Whether a cell's error is below the other's beyond the spread of the seeds: the mean of the differences
    of equal seeds is further from 0 than their standard deviation. None for fewer than two seeds."""
    mine, its = seeds_of(name), seeds_of(other)
    differences = [mine[seed][key] - its[seed][key] for seed in sorted(mine.keys() & its.keys())]
    if len(mine) > 1 and stopped(other) and not its:
        return True, f"{name} against {other}: {stopped(other)}"
    if len(differences) < 2:
        return None, f"{name} against {other}"
    met = statistics.mean(differences) < -statistics.stdev(differences)
    return met, f"{name} against {other}, EPE {key}: {mean_and_spread(differences)} px"


def claims() -> str:
    """What the ablation was asked to show, and whether it does."""
    lines: list[tuple[str, bool | None, str]] = []
    for where in STAGE_1_SCENES:
        for other in list(STAGE_1)[:-1]:
            claim = "mask + census beats the other rows on occluded pixels"
            lines.append((claim, *below(f"{BASE}{where}", f"teacher/{other}{where}", "occ")))
    for student_of in (*CHALLENGES, *OBJECTIVES):
        name, against = f"student/{student_of}", control_of(student_of)
        for key, least in (("occ", 16.0), ("noc", 3.0)):
            changes = changes_against(name, against, key)
            if len(changes) > 1:
                worst = statistics.mean(changes) + statistics.stdev(changes)
                text = f"{name}: {mean_and_spread(changes, 1)} % against {against}"
                lines.append((f"distillation cuts EPE {key} by {least:g} %", worst <= -least, text))
    for name in ("crop", *GENERALISED):
        claim = "every backbone's student beats its control on occluded pixels"
        lines.append((claim, *below(f"student/{name}", f"control/{name}", "occ")))
    one, three = seeds_of("student/crop"), seeds_of("student/3 teachers")
    if common := sorted(one.keys() & three.keys()):
        gap = [three[seed]["all"] - one[seed]["all"] for seed in common]
        met = statistics.mean(gap) <= (statistics.stdev(gap) if len(gap) > 1 else 0.0)
        lines.append(("three teachers are not worse than one", met, f"EPE all {mean_and_spread(gap)} px"))
    for share in LABEL_SHARES:
        claim = "at every label fraction the student start beats scratch"
        scratch, start = (f"finetuned/{share:.0%} from {each}" for each in ("scratch", "student"))
        lines.append((claim, *below(start, scratch, "all")))
    verdicts = {True: "yes", False: "NO", None: "too few cells yet"}
    return "\n".join(f"- {verdicts[met]}: {claim} ({text})" for claim, met, text in lines)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="the first of the seeds alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="0 1 2 by default")
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(CELLS),
        metavar="CELL",
        help="cells whose names begin so; a student comes with its teacher and labels",
    )
    parser.add_argument("--print", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    names = [name for name in CELLS if any(name.startswith(only) for only in arguments.only)]
    if not names:
        parser.error(f"no cell begins with {shlex.join(arguments.only)}; there are {', '.join(CELLS)}")
    if not arguments.print:
        WORK.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = TRACKING_URI
        connect()
        for seed in seeds:
            for name in names:
                do(name, seed)
    print(f"{tables()}\n\n{claims()}")


if __name__ == "__main__":
    main()
