"""What does each part of the loss and of the decoder give, and what does distillation add to it?

    python -m benchmarks.experiments.losses [--only "loss/full resolution" ...] [--seeds 0 1 2] [--print]

Trains and judges networks that differ in one part, on rendered scenes without labels and on scenes never
trained on, in this process, on a GPU if there is one. A network whose file is in docs/results/losses isn't
trained again, so a run that was killed goes on where it was; several processes may share the work if they
take different seeds. Prints the tables at the end, with --print from the files that are there.

Decoders have equal time, not equal steps: the steps of each are those that fit, by the CPU time of a step.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks import report
from benchmarks.experiments import alone
from benchmarks.experiments.cells import (
    CHALLENGES,
    CROP,
    LEVEL_BY_LEVEL,
    RESULTS,
    SEEDS,
    WHOLE,
    file_name,
    revision,
)
from benchmarks.report import mean_and_spread, tau
from flowcore import networks
from flowcore.colour import Colour
from flowcore.hallucination import Challenge, RectangleNoise
from flowcore.losses import Photometric
from flowcore.networks import AnyNetworkConfig, FlowNetwork, PWCNetConfig
from flowcore.objectives import StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from pipelines.checkpoints import load_model, save_model
from pipelines.installation import PROJECT_FOLDER
from pipelines.storage import write_whole
from pipelines.training_options import TrainingOptions

RECORDS = RESULTS / "losses"
MODELS = PROJECT_FOLDER / "runs" / "losses"
STEPS, GOOD_STEPS = 600, 2400
_RATE = 1e-3
_UNMASKED = 0.3
_BACKBONES = networks.small()
TODAY = cast(PWCNetConfig, _BACKBONES["pwcnet"])
PLAIN = replace(TODAY, learned_upsampling=False)
FULL = Photometric(smoothness_weight=0.0)
SMOOTH = Photometric()
NOISY = replace(WHOLE, colour=Colour(chance=0.5), rectangles=RectangleNoise(chance=0.5))
WIDER = replace(CROP, surroundings=16)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A network to train and judge; a teacher, unless it has labels."""

    network: AnyNetworkConfig = PLAIN
    photometric: Photometric = SMOOTH
    challenge: Challenge = WHOLE
    student: StudentObjective | None = None
    """What it learns from labels; None for a teacher."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    masked: bool = True
    kind: str = "mixed"
    """Of the scenes."""
    steps: int = STEPS
    start: str | None = None
    """The cell whose network goes on, and labels the pairs for a student."""


LOSSES: Mapping[str, Cell] = {
    "stride 4": Cell(photometric=LEVEL_BY_LEVEL),
    "stride 4, smoothness": Cell(photometric=replace(LEVEL_BY_LEVEL, smoothness_weight=1.0)),
    "full resolution": Cell(photometric=FULL),
    "full resolution, smoothness order 1": Cell(),
    "full resolution, smoothness order 2": Cell(photometric=replace(SMOOTH, smoothness_order=2)),
    "the same on crops": Cell(challenge=CROP),
    "crops, full-image warping": Cell(challenge=WIDER),
    "hard frames, loss on hard ones": Cell(photometric=replace(SMOOTH, clean=False), challenge=NOISY),
    "hard frames, clean loss": Cell(challenge=NOISY),
}
"""Where nothing else is said, of order 1."""
DECODERS: Mapping[str, Cell] = {
    "levels afresh": Cell(network=replace(PLAIN, refines=False)),
    "levels refine": LOSSES["full resolution, smoothness order 1"],
    "levels refine, stride 2": Cell(network=replace(PLAIN, finest_level=1), steps=STEPS * 36 // 100),
    "levels refine, learned upsampling": Cell(network=TODAY, steps=STEPS * 82 // 100),
}
"""With the steps that take as long as those of the first."""
CHECKS: Mapping[str, tuple[OcclusionCheck, bool]] = {
    "no mask": (OcclusionCheck(), False),
    "forward-backward": (OcclusionCheck(), True),
    "range map": (OcclusionCheck(kind="range-map"), True),
}
KINDS = ("mixed", "lit", "busy")
STUDENTS: Mapping[str, StudentObjective] = {
    "occlusion view": StudentObjective(photometric=SMOOTH),
    "confidence view": StudentObjective(
        view="confidence", photometric=SMOOTH, photometric_weight=1.0, distillation_weight=2.0
    ),
}
GENERALISED: Mapping[str, AnyNetworkConfig] = {
    "pwcnet": TODAY,
    "flownets": _BACKBONES["flownets"],
    "flownetc": _BACKBONES["flownetc"],
}


def _teacher(backbone: str) -> Cell:
    """FlowNetS, without a cost volume, has no mask: it takes longer to have flow that agrees with itself."""
    return Cell(
        network=GENERALISED[backbone],
        challenge=WIDER,
        steps=GOOD_STEPS if backbone == "pwcnet" else GOOD_STEPS // 2,
        masked=backbone != "flownets",
    )


def _after(backbone: str, *, view: str | None = None, challenge: str = "crop") -> Cell:
    """What follows a backbone's teacher: a student, or the control without a view."""
    return Cell(
        network=GENERALISED[backbone],
        challenge=WIDER if view is None else replace(CHALLENGES[challenge], surroundings=16),
        student=None if view is None else STUDENTS[view],
        masked=backbone != "flownets",
        start=f"backbone/{backbone}, teacher",
    )


CELLS: dict[str, Cell] = {
    **{f"loss/{name}": cell for name, cell in LOSSES.items()},
    **{f"decoder/{name}": cell for name, cell in DECODERS.items()},
    **{
        f"check/{name} on {kind}": Cell(check=check, masked=masked, kind=kind)
        for kind in KINDS
        for name, (check, masked) in CHECKS.items()
    },
    **{
        name: cell
        for backbone in GENERALISED
        for name, cell in {
            f"backbone/{backbone}, teacher": _teacher(backbone),
            f"backbone/{backbone}, control": _after(backbone),
            f"backbone/{backbone}, crop, confidence view": _after(backbone, view="confidence view"),
        }.items()
    },
    **{
        f"backbone/pwcnet, {challenge}, {view}": _after("pwcnet", view=view, challenge=challenge)
        for challenge in ("crop", "all")
        for view in STUDENTS
    },
}


def first_name(name: str) -> str:
    """Of the cells that are the same one."""
    return next(each for each, cell in CELLS.items() if cell == CELLS[name])


def record_file(name: str, seed: int) -> Path:
    return RECORDS / f"{file_name(first_name(name))}.seed{seed}.json"


def model(name: str, seed: int) -> FlowNetwork:
    """A cell's network, trained if it isn't there."""
    folder = MODELS / f"{file_name(first_name(name))}-seed{seed}"
    if not folder.exists():
        network = make(CELLS[name], seed)
        save_model(folder.with_name(f".{folder.name}"), network, {"stage": "benchmark", "cell": name})
        folder.with_name(f".{folder.name}").rename(folder)
    return load_model(folder)[0].ready(alone.DEVICE)


def make(cell: Cell, seed: int) -> FlowNetwork:
    torch.manual_seed(seed)
    teacher = None if cell.start is None else model(cell.start, seed)
    if teacher is None or cell.student is None:
        pairs = alone.unlabelled_pairs(cell.kind)
    else:
        pairs = alone.labelled_pairs(cell.kind, [teacher])
    unmasked_steps = 0 if cell.start is not None else round(_UNMASKED * cell.steps)
    unmasked_steps = unmasked_steps if cell.masked else cell.steps
    objective: TeacherObjective | StudentObjective
    if cell.student is None:
        objective = TeacherObjective(photometric=cell.photometric, unmasked_steps=unmasked_steps)
    else:
        objective = replace(cell.student, unmasked_steps=unmasked_steps)
    options = TrainingOptions(
        steps=cell.steps, learning_rate=_RATE, warmup=0.1, decay="cosine", channels_last=True, seed=seed
    )
    network = cell.network.build() if teacher is None else teacher.train()
    return alone.trained(network, pairs, cell.challenge, objective, cell.check, options)


def do(name: str, seed: int) -> None:
    """Trains and judges a cell, unless its record is there."""
    path = record_file(name, seed)
    if path.exists():
        return
    started = time.monotonic()
    cell = CELLS[name]
    numbers = alone.judged(model(name, seed), cell.kind, cell.check)
    record: dict[str, Any] = {
        "cell": first_name(name),
        "seed": seed,
        "kind": cell.kind,
        "steps": cell.steps,
        "revision": revision(),
        "device": alone.DEVICE.type,
        **numbers,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    print(record, flush=True)


def records(name: str) -> dict[int, dict[str, Any]]:
    """Of a cell, by seed."""
    paths = (record_file(name, seed) for seed in SEEDS)
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    return {each["seed"]: each for each in found}


def row(title: str, name: str, *, against: str | None = None) -> list[str]:
    """Means and spreads over the seeds; against the control, seed by seed."""
    found = records(name)
    if not found:
        return [title, str(CELLS[name].steps), "0", *[""] * 6]
    cells = [title, str(CELLS[name].steps), str(len(found))]
    cells += [mean_and_spread([each[key] for each in found.values()]) for key in ("all", "noc", "occ", "f1")]
    for key in ("occ", "noc"):
        control = records(against) if against is not None else {}
        changes = [100 * (found[seed][key] / control[seed][key] - 1) for seed in found if seed in control]
        cells.append(f"{mean_and_spread(changes, 1)} %" if changes else "")
    return cells


_HEADS = (
    *("", "steps", "seeds", "EPE all", "noc", "occ", "occlusion F"),
    *("occ against control", "noc against control"),
)
_WITHOUT_CONTROL = -2


def table(rows: Sequence[Sequence[str]]) -> str:
    width = len(_HEADS) if any(each[-1] for each in rows) else _WITHOUT_CONTROL
    return report.table(_HEADS[:width], [each[:width] for each in rows])


def ranking() -> str:
    """Whether models are in the same order by the errors that need no truth and by the endpoint error."""
    scores = ("comparable", "unmasked", "photometric")
    rows = []
    for kind in KINDS:
        names = {first_name(name): cell for name, cell in CELLS.items() if cell.kind == kind}
        found = [each for name in names for each in records(name).values()]
        if len(found) > 1:
            errors = [each["all"] for each in found]
            taus = [tau([each[score] for each in found], errors) for score in scores]
            rows.append([kind, str(len(found)), *(f"{each:.2f}" for each in taus)])
    return report.table(["scenes", "models", *scores], rows)


def tables() -> str:
    parts = {
        "The loss, stage 1": table([row(name, f"loss/{name}") for name in LOSSES]),
        "The decoder, at equal time": table([row(name, f"decoder/{name}") for name in DECODERS]),
        **{
            f"The occlusion check, scenes of kind {kind}": table(
                [row(name, f"check/{name} on {kind}") for name in CHECKS]
            )
            for kind in KINDS
        },
        "What distillation adds to a good teacher": table(
            [
                row("teacher", "backbone/pwcnet, teacher"),
                row("control: trained on, on crops", "backbone/pwcnet, control"),
                *(
                    row(
                        f"{challenge}, {view}",
                        f"backbone/pwcnet, {challenge}, {view}",
                        against="backbone/pwcnet, control",
                    )
                    for challenge in ("crop", "all")
                    for view in STUDENTS
                ),
            ]
        ),
        "Every backbone": table(
            [
                row(
                    f"{backbone}, {name}",
                    f"backbone/{backbone}, {name}",
                    against=None if name in ("teacher", "control") else f"backbone/{backbone}, control",
                )
                for backbone in GENERALISED
                for name in ("teacher", "control", "crop, confidence view")
            ]
        ),
        "Kendall's tau between the order of all these models by an error that needs no truth and by EPE": (
            ranking()
        ),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="0 1 2 by default")
    parser.add_argument(
        "--only", nargs="+", default=list(CELLS), metavar="CELL", help="names, or their beginnings"
    )
    parser.add_argument("--print", action="store_true", help="only print the tables")
    arguments = parser.parse_args()
    if not arguments.print:
        for seed in arguments.seeds:
            for name in CELLS:
                if any(name.startswith(each) for each in arguments.only):
                    do(name, seed)
    print(tables())


if __name__ == "__main__":
    main()
