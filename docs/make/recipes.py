"""How many hours does each of the papers' recipes take? Prints docs/results/recipes.md, with the arithmetic.

    python -m docs.make.recipes > docs/results/recipes.md

Measures one training step of each stage at the recipe's own crop and batch (see benchmarks/cost.py), and
multiplies it by the recipe's steps.
"""

from dataclasses import replace

import cv2
import torch

from benchmarks import report
from benchmarks.cost import GPU, MEASURED, gpu_rate, training_cost
from benchmarks.inputs import true_pair
from flowcore.augmentation import Crop
from flowcore.networks import PWCNetConfig
from flowcore.objectives import StudentObjective, SupervisedObjective, TeacherObjective
from flowcore.scenes import SceneOptions, render_scene
from jobs.recipes import RECIPES

FRAMES = {"chairs": (384, 512), "sintel": (436, 1024), "kitti": (375, 1242)}
"""(height, width) of each recipe's frames, px."""


def main() -> None:
    report.parser(__doc__).parse_args()
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
