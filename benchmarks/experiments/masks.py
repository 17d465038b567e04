"""Why does the occlusion mask not help the ablation's teachers?

    python -m benchmarks.experiments.masks [--steps 600 1800] [--seeds 0 1 2] [--print]
        [--masks none check lenient truth] [--kinds mixed objects fast]

Trains the ablation's teacher with the census loss in this process, with the loss masked in four ways: by
nothing, by the forward-backward check, by a check that forgives 2 px of disagreement, and by the true
occlusion of the rendered scenes, which is known nowhere else. If the truth helps and the check doesn't, the
check's mistakes are what costs. Prints the errors on the ablation's test scenes and how well the check then
finds their occlusion. Each training is written to docs/results/masks when it is done and isn't done again.
Prints the table at the end, with --print from the trainings that are there.
"""

import itertools
import json
import time
from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch

from benchmarks import report
from benchmarks.experiments import alone
from benchmarks.experiments.cells import (
    LEVEL_BY_LEVEL,
    NETWORKS,
    RESULTS,
    TEACHER_STEPS,
    UNMASKED_STEPS,
    teacher_options,
)
from benchmarks.inputs import without_flow
from benchmarks.report import mean_and_spread
from flowcore.networks import Estimator, FlowNetwork
from flowcore.objectives import Objective, Outcome, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from pipelines.storage import write_whole
from pipelines.training_options import TrainingOptions

RECORDS = RESULTS / "masks"
MASKS = {
    "none": "no mask",
    "check": "mask from the check",
    "lenient": "mask from a check that forgives 2 px",
    "truth": "mask from the truth",
}
CHECKS = {"check": OcclusionCheck(), "lenient": OcclusionCheck(alpha2=4.0)}
SCENES = {"mixed": "the demo's", "objects": "many layers", "fast": "large fast layers"}
"""The kinds that are trained on, see `cells.KINDS`."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The ablation's, stretched to `steps`."""

    steps: int
    seed: int

    @property
    def options(self) -> TrainingOptions:
        training: TrainingOptions = teacher_options("pwcnet").training
        return replace(training, steps=self.steps, seed=self.seed)

    @property
    def unmasked_steps(self) -> int:
        return UNMASKED_STEPS * self.steps // TEACHER_STEPS


@dataclass(frozen=True, kw_only=True)
class TrulyMasked:
    """The teacher's objective, masked by the true occlusion, which a batch carries as its confidence."""

    unmasked_steps: int

    def phase(self, step: int) -> Hashable:
        return step >= self.unmasked_steps

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        assert batch.confidence_fw is not None
        assert batch.confidence_bw is not None
        occ_fw, occ_bw = batch.confidence_fw < 0.5, batch.confidence_bw < 0.5
        flows = estimate(batch.image1, batch.image2)
        masked = step >= self.unmasked_steps
        terms = LEVEL_BY_LEVEL.terms(batch, flows, (occ_fw, occ_bw) if masked else None)
        return Outcome(terms=terms, watched={"occluded": occ_fw.float().mean(dim=(1, 2, 3)).sum()})


def objective(mask: str, schedule: Schedule) -> Objective:
    if mask == "truth":
        return TrulyMasked(unmasked_steps=schedule.unmasked_steps)
    unmasked_steps = schedule.steps if mask == "none" else schedule.unmasked_steps
    return TeacherObjective(photometric=LEVEL_BY_LEVEL, unmasked_steps=unmasked_steps)


def trained(kind: str, mask: str, schedule: Schedule) -> FlowNetwork:
    options = schedule.options
    # Their confidence is the true visibility.
    pairs = [without_flow(pair) for pair in alone.true_pairs(kind)]
    torch.manual_seed(options.seed)
    network = NETWORKS["pwcnet"].build()
    augmentation = teacher_options("pwcnet").augmentation
    check = CHECKS.get(mask, OcclusionCheck())
    return alone.trained(network, pairs, augmentation, objective(mask, schedule), check, options)


def do(kind: str, mask: str, schedule: Schedule) -> None:
    """Trains and judges, unless the record is there."""
    path = RECORDS / f"{kind}.{mask}.steps{schedule.steps}.seed{schedule.seed}.json"
    if path.exists():
        return
    started = time.monotonic()
    numbers = alone.judged(trained(kind, mask, schedule), kind, OcclusionCheck())
    seconds = round(time.monotonic() - started)
    record = {"kind": kind, "mask": mask, **vars(schedule), **numbers, "seconds": seconds}
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    print(record, flush=True)


def table() -> str:
    """Of the trainings that are there."""
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    errors_of = ("EPE all", "noc", "occ", "occ against no mask", "precision", "recall")
    rows = []
    for kind, steps in itertools.product(SCENES, sorted({record["steps"] for record in records})):
        by_mask = {
            mask: {
                each["seed"]: each
                for each in records
                if (each["kind"], each["steps"], each["mask"]) == (kind, steps, mask)
            }
            for mask in MASKS
        }
        for mask, found in by_mask.items():
            if not found:
                continue
            pairs = [(each["occ"], by_mask["none"][seed]["occ"]) for seed, each in found.items()]
            change = mean_and_spread([mine - its for mine, its in pairs]) if mask != "none" else ""
            errors = [
                mean_and_spread([each[key] for each in found.values()]) for key in ("all", "noc", "occ")
            ]
            counts = [
                mean_and_spread([each[key] for each in found.values()]) for key in ("precision", "recall")
            ]
            rows.append((SCENES[kind], steps, MASKS[mask], len(found), *errors, change, *counts))
    return report.table(["scenes", "steps", "loss", "seeds", *errors_of], rows)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[TEACHER_STEPS, 3 * TEACHER_STEPS], help="of a training"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a training for each")
    parser.add_argument("--masks", nargs="+", choices=list(MASKS), default=list(MASKS), help="of the loss")
    parser.add_argument("--kinds", nargs="+", choices=list(SCENES), default=list(SCENES), help="of scenes")
    parser.add_argument("--print", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if not arguments.print:
        for seed in arguments.seeds:
            for steps in arguments.steps:
                for kind in arguments.kinds:
                    for mask in arguments.masks:
                        do(kind, mask, Schedule(steps=steps, seed=seed))
    print(table())


if __name__ == "__main__":
    main()
