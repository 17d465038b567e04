"""How many hours does each of the papers' recipes take? Prints docs/results/recipes.md, with the arithmetic.

    python -m docs.make.recipes > docs/results/recipes.md

Measures one training step of each stage at the recipe's own crop and batch (see benchmarks/cost.py), and
multiplies it by the recipe's steps. Of RAFT it counts the operations of a pair.
"""

import operator
from dataclasses import replace
from itertools import pairwise

import cv2
import torch

from benchmarks import report
from benchmarks.cost import GPU, MEASURED, PairCost, gpu_rate, training_cost
from benchmarks.inputs import true_pair
from flowcore.augmentation import Crop
from flowcore.hallucination import Challenge
from flowcore.networks import PWCNetConfig, RAFTConfig
from flowcore.objectives import Objective, StudentObjective, SupervisedObjective, TeacherObjective
from flowcore.pairs import FramePair
from flowcore.scenes import SceneOptions, render_scene
from jobs.recipes import RECIPES
from pipelines.training_options import TrainingOptions

FRAMES = {"chairs": (384, 512), "sintel": (436, 1024), "kitti": (375, 1242)}
"""(height, width) of each recipe's frames, px."""


RAFT_FRAMES = {f"{name}:raft": size for name, size in FRAMES.items()} | {"video:raft": (384, 640)}


def main() -> None:
    report.parser(__doc__).parse_args()
    _print_pwcnet()
    _print_raft()


def _print_raft() -> None:
    """Counts on a single pair that is never computed: a step of the batch would take minutes here."""
    print(
        "\n## RAFT\n\n"
        "Counted on one pair of each stage and multiplied by the batch; nothing here was run or timed. A "
        "teacher's step has a second number from the step on at which it teaches its own crops.\n"
    )
    columns = ("crop, px", "batch", "steps", "GFLOP a step", f"hours on {GPU}", "GB a step keeps")
    print(report.head(["stage", *columns]), flush=True)
    rate = gpu_rate("bfloat16")
    sums = []
    for name, (height, width) in RAFT_FRAMES.items():
        recipe = RECIPES[name]
        assert isinstance(recipe.network, RAFTConfig)
        frames = true_pair(render_scene(0, SceneOptions(height=height, width=width, num_frames=2)))
        true = replace(frames, flow_bw=None, confidence_bw=None)
        begins = recipe.teacher_objective.self_supervision.begins
        stages: dict[str, tuple[FramePair, TrainingOptions, Challenge, Objective, tuple[int, ...]]] = {
            "teacher": (frames, recipe.teacher, recipe.augmentation, recipe.teacher_objective, (0, begins)),
            "student": (frames, recipe.student, recipe.challenge, recipe.student_objective, (0,)),
            "fine-tuning": (true, recipe.finetune, recipe.tuned_augmentation, recipe.supervised, (0,)),
        }
        total = 0.0
        for stage, (pair, options, challenge, objective, phases) in stages.items():
            costs = [PairCost.of(pair, recipe.network, challenge, objective, step) for step in phases]
            operations = [each.operations * options.global_batch for each in costs]
            lengths = [end - start for start, end in pairwise([*phases, options.steps])]
            hours = sum(map(operator.mul, lengths, operations)) / rate / 3600
            total += hours
            print(
                report.row(
                    [
                        f"{name}: {stage}",
                        f"{challenge.crop.height}x{challenge.crop.width}",
                        options.global_batch,
                        options.steps,
                        ", ".join(f"{each / 1e9:.0f}" for each in operations),
                        f"{hours:.1f}",
                        f"{max(each.kept for each in costs) * options.global_batch / 1e9:.0f}",
                    ]
                ),
                flush=True,
            )
        sums.append(f"- {name}: {total:.1f} hours on one {GPU}.")
    print("\n" + "\n".join(sums))
    print(
        f"\nHours are the operations over {rate / 1e12:.1f} TFLOP/s, which is what the card did in PWC-Net's "
        "step in bfloat16 with channels last (13.8 ms). RAFT was never run on a GPU by us: neither its hours "
        "nor its memory were measured. Counted are convolutions and products of all pairs, forward and "
        "backward, not the look-ups in these. What a step keeps is what autograd holds between the two "
        "passes, with convolutions in bfloat16; a step needs more than that at its peak."
    )


def _print_pwcnet() -> None:
    # As in the feed's processes; their seconds are one core's.
    cv2.setNumThreads(1)
    print(
        "# How long the recipes take\n\n"
        f"Printed by `python -m docs.make.recipes` on {torch.get_num_threads()} CPU cores: a step of each "
        "stage, fresh weights, frames of a rendered scene. Seconds are the CPU's over the number of cores.\n"
    )
    steps = ("crop, px", "steps", "s a step", "hours here", "GFLOP a step", f"hours on {GPU}")
    transforming = ("s of a core to transform a step's pairs", "such cores for that GPU")
    print(report.head(["stage", *steps, *transforming]), flush=True)
    shares = []
    sums = []
    rate = gpu_rate("float32")
    for name, (height, width) in FRAMES.items():
        recipe = RECIPES[name]
        assert isinstance(recipe.network, PWCNetConfig)
        frames = true_pair(render_scene(0, SceneOptions(height=height, width=width, num_frames=2)))
        # Small, to warm up.
        small = replace(recipe.augmentation, crop=Crop(height=64, width=64))
        training_cost(frames, recipe.network, small, recipe.teacher, TeacherObjective())
        stages = {
            "teacher": training_cost(
                frames, recipe.network, recipe.augmentation, recipe.teacher, TeacherObjective()
            ),
            "student": training_cost(
                frames, recipe.network, recipe.challenge, recipe.student, StudentObjective()
            ),
            "fine-tuning": training_cost(
                frames, recipe.network, recipe.augmentation, recipe.finetune, SupervisedObjective()
            ),
        }
        for stage, each in stages.items():
            shares.append(each.cost_volume_share)
            print(
                report.row(
                    [
                        f"{name}: {stage}",
                        f"{each.challenge.crop.height}x{each.challenge.crop.width}",
                        each.options.steps,
                        f"{each.seconds:.2f}",
                        f"{each.hours:.0f}",
                        f"{each.operations / 1e9:.0f}",
                        f"{each.gpu_hours:.1f}",
                        f"{each.transforming:.2f}",
                        f"{each.transforming / each.gpu_seconds:.1f}",
                    ]
                ),
                flush=True,
            )
        hours = " + ".join(f"{each.options.steps} x {each.seconds:.2f} s" for each in stages.values())
        gpu_hours = " + ".join(
            f"{each.options.steps} x {each.operations / 1e9:.0f} GFLOP" for each in stages.values()
        )
        total = sum(each.hours for each in stages.values())
        gpu_total = sum(each.gpu_hours for each in stages.values())
        sums.append(
            f"- {name}: ({hours}) / 3600 = {total:.0f} hours here; ({gpu_hours}) / "
            f"{rate / 1e12:.1f} TFLOP/s / 3600 = {gpu_total:.1f} hours on one {GPU}."
        )
    print("\n" + "\n".join(sums))
    print(
        f"\n{GPU}: measured there is one step of 8 pairs of 256x384 px, {1e3 * MEASURED['float32']:.1f} ms "
        f"in float32 ([speed](speed.md#on-a-gpu)), in which it did {rate / 1e12:.1f} TFLOP/s. The hours are "
        "extrapolated from it; none of these recipes was run on one. With fewer cores than the last column "
        "says, the GPU waits for superpixels. Counted are convolutions, forward and backward, and by formula "
        f"the cost volumes, up to {max(shares):.1%} of the whole. Left out are making pairs and labels (once "
        "over the data), validation, and reading."
    )


if __name__ == "__main__":
    main()
