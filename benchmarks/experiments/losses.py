"""What does each part of the loss and of the decoder give?

    python -m benchmarks.experiments.losses [--only "loss/full resolution" ...] [--seeds 0 1 2] [--print]

Trains and judges networks that differ in one part, through the jobs' own code, on rendered videos without
labels and on scenes never trained on, as the ablation does. A cell whose file is in docs/results/ablation
isn't done again, so a run that was killed goes on where it was; several processes may share the work if they
take different seeds. At the end the tables are written to docs/results/losses.md, with --print from the cells
that are there.

Decoders have equal time, not equal steps: the steps of each are those that fit, by the CPU time of a step.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import cast

from benchmarks import report
from benchmarks.experiments.ablation import row
from benchmarks.experiments.ablation import table as ablation_table
from benchmarks.experiments.cells import (
    CELLS,
    CROP,
    LEVEL_BY_LEVEL,
    RESULTS,
    SEEDS,
    TRACKING_URI,
    UNMASKED_STEPS,
    WHOLE,
    WORK,
    Cell,
    do,
    model,
    run_root,
    student,
    videos,
)
from flowcore import networks
from flowcore.hallucination import Challenge, Colour, RectangleNoise
from flowcore.networks import AnyNetworkConfig, PWCNetConfig
from flowcore.objectives import Photometric, StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from jobs import train_teacher
from pipelines.cluster import connect
from pipelines.step import TrainingOptions

STEPS = 600
_RATE = 1e-3
TODAY = cast(PWCNetConfig, networks.small()["pwcnet"])
PLAIN = replace(TODAY, learned_upsampling=False)
FULL = Photometric(smoothness_weight=0.0)
SMOOTH = Photometric()
NOISY = replace(WHOLE, colour=Colour(chance=0.5), rectangles=RectangleNoise(chance=0.5))
LOSSES: Mapping[str, tuple[Photometric, Challenge]] = {
    "stride 4": (LEVEL_BY_LEVEL, WHOLE),
    "stride 4, smoothness": (replace(LEVEL_BY_LEVEL, smoothness_weight=1.0), WHOLE),
    "full resolution": (FULL, WHOLE),
    "full resolution, smoothness order 1": (SMOOTH, WHOLE),
    "full resolution, smoothness order 2": (replace(SMOOTH, smoothness_order=2), WHOLE),
    "the same on crops": (SMOOTH, CROP),
    "crops, full-image warping": (SMOOTH, replace(CROP, surroundings=16)),
    "hard frames, loss on hard ones": (replace(SMOOTH, clean=False), NOISY),
    "hard frames, clean loss": (SMOOTH, NOISY),
}
DECODERS: Mapping[str, tuple[PWCNetConfig, int]] = {
    "levels afresh": (replace(PLAIN, refines=False), STEPS),
    "levels refine": (PLAIN, STEPS),
    "levels refine, stride 2": (replace(PLAIN, finest_level=1), STEPS * 36 // 100),
    "levels refine, learned upsampling": (TODAY, STEPS * 82 // 100),
}
"""With the steps that take as long as those of the first."""
CHECKS = {
    "no mask": (OcclusionCheck(), False),
    "forward-backward": (OcclusionCheck(), True),
    "range map": (OcclusionCheck(kind="range-map"), True),
}
KINDS = ("mixed", "lit", "busy")
VIEWS = {
    "occlusion view": StudentObjective(),
    "confidence view": StudentObjective(view="confidence", photometric_weight=1.0, distillation_weight=2.0),
}
BASE = "loss/crops, full-image warping"


def teacher(
    seed: int,
    *,
    photometric: Photometric = SMOOTH,
    challenge: Challenge = WHOLE,
    network: AnyNetworkConfig = PLAIN,
    steps: int = STEPS,
    check: OcclusionCheck | None = None,
    masked: bool = True,
    kind: str = "mixed",
    init: str | None = None,
) -> str:
    """Stage 1. init: the cell whose network is trained on."""
    options = train_teacher.recipes()["demo"][1]
    unmasked_steps = 0 if init is not None else UNMASKED_STEPS * steps // STEPS
    training = TrainingOptions(
        steps=steps, learning_rate=_RATE, warmup=0.1, decay="cosine", readers=1, validate_every=300, seed=seed
    )
    options = replace(
        options,
        videos=videos(kind),
        run_root=run_root(seed),
        network=network,
        augmentation=challenge,
        check=check or OcclusionCheck(),
        objective=TeacherObjective(
            photometric=photometric, unmasked_steps=unmasked_steps if masked else steps
        ),
        training=training,
        init=None if init is None else model(init, seed),
    )
    return train_teacher.train_teacher(options, "demo")


OWN: dict[str, Cell] = {
    **{
        f"loss/{name}": Cell(make=partial(teacher, photometric=photometric, challenge=challenge))
        for name, (photometric, challenge) in LOSSES.items()
    },
    **{
        f"decoder/{name}": Cell(make=partial(teacher, network=network, steps=steps))
        for name, (network, steps) in DECODERS.items()
    },
    **{
        f"check/{name} on {kind}": Cell(
            make=partial(teacher, check=check, masked=masked, kind=kind), kinds=(kind,)
        )
        for kind in KINDS
        for name, (check, masked) in CHECKS.items()
    },
    "distilled/control": Cell(make=partial(teacher, challenge=replace(CROP, surroundings=16), init=BASE)),
    **{
        f"distilled/{challenge}, {view}": Cell(
            make=partial(student, of=[BASE], challenge=challenge, objective=objective, photometric=SMOOTH)
        )
        for challenge in ("crop", "all")
        for view, objective in VIEWS.items()
    },
}


def tables() -> str:
    parts = {
        "The loss, stage 1": [row(name, f"loss/{name}") for name in LOSSES],
        "The decoder, at equal time": [row(name, f"decoder/{name}") for name in DECODERS],
        **{
            f"The occlusion check, scenes of kind {kind}": [
                row(name, f"check/{name} on {kind}", kind=kind) for name in CHECKS
            ]
            for kind in KINDS
        },
        "Distillation from such a teacher": [
            row("teacher", BASE),
            row("control: trained on", "distilled/control"),
            *(
                row(f"{challenge}, {view}", f"distilled/{challenge}, {view}", against="distilled/control")
                for challenge in ("crop", "all")
                for view in VIEWS
            ),
        ],
    }
    return "\n\n".join(f"## {title}\n\n{ablation_table(rows)}" for title, rows in parts.items())


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="0 1 2 by default")
    parser.add_argument(
        "--only", nargs="+", default=list(OWN), metavar="CELL", help="names, or their beginnings"
    )
    parser.add_argument("--print", action="store_true", help="only write the tables")
    arguments = parser.parse_args()
    CELLS.update(OWN)
    if not arguments.print:
        WORK.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = TRACKING_URI
        connect()
        for name in OWN:
            if any(name.startswith(each) for each in arguments.only):
                for seed in arguments.seeds:
                    do(name, seed)
    title = "# What each part of the loss gives"
    printed = "Printed by `python -m benchmarks.experiments.losses --print`."
    (RESULTS / "losses.md").write_text(f"{title}\n\n{printed}\n\n{tables()}\n")
    print(tables())


if __name__ == "__main__":
    main()
