"""How many hours does a recipe take? The estimate's arithmetic, from steps measured on this machine.

    python benchmarks/recipes.py

For each stage of the papers' recipes: the seconds of a training step (network, objective, both passes,
optimiser) at the recipe's own crop and batch, the floating-point operations of that step, and the seconds
that one core takes to transform its pairs. Seconds are the CPU's, not the clock's, so that neighbours on the
machine count little. Prints a Markdown page, docs/results/recipes.md.
"""

import time
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowcore.hallucination import Challenge, Crop
from flowcore.networks import PWCNetConfig
from flowcore.objectives import Objective, StudentObjective, SupervisedObjective, TeacherObjective
from flowcore.pairs import FramePair
from flowcore.scenes import Scene, SceneOptions, render_scene
from jobs.recipes import RECIPES
from pipelines.feed import to_batch
from pipelines.training import TrainingOptions, global_facts, global_loss

FRAMES = {"chairs": (384, 512), "sintel": (436, 1024), "kitti": (375, 1242), "video": (384, 640)}
"""(height, width) of each recipe's frames, in px."""
TRANSFORMED = 5
"""Steps' pairs to transform: by chance each is transformed otherwise."""
GPU, GPU_PEAK, UTILISATION = "NVIDIA A100", 19.5e12, 0.2
"""FP32 without tensor cores, as its data sheet says, and the share of it that we assume is reached."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training of a recipe, and what one of its optimiser steps takes."""

    challenge: Challenge
    options: TrainingOptions
    seconds: float
    operations: float
    """Counted of convolutions; those of the cost volumes by formula."""
    cost_volume_share: float
    """The latter's part of them."""
    transforming: float
    """Seconds on one core."""

    @property
    def hours(self) -> float:
        return self.options.steps * self.seconds / 3600

    @property
    def gpu_seconds(self) -> float:
        return self.operations / (GPU_PEAK * UTILISATION)

    @property
    def gpu_hours(self) -> float:
        return self.options.steps * self.gpu_seconds / 3600


def first_pair(scene: Scene) -> FramePair:
    """With its truth as the label."""
    return FramePair(
        image1=scene.frames[0],
        image2=scene.frames[1],
        flow_fw=scene.flow_fw[0],
        flow_bw=scene.flow_bw[0],
        confidence_fw=1 - scene.occ_fw[0].astype(np.float32),
        confidence_bw=1 - scene.occ_bw[0].astype(np.float32),
    )


def measured(
    frames: FramePair,
    config: PWCNetConfig,
    challenge: Challenge,
    options: TrainingOptions,
    objective: Objective,
) -> Stage:
    rng = np.random.default_rng(0)
    started = time.process_time()
    pairs = [challenge(frames, rng) for _ in range(TRANSFORMED * options.global_batch)]
    transforming = (time.process_time() - started) / TRANSFORMED
    pairs = pairs[: options.global_batch]
    fields = [name for name, value in vars(pairs[0]).items() if value is not None]
    batch = to_batch({name: np.stack([getattr(pair, name) for pair in pairs]) for name in fields})
    torch.manual_seed(0)
    network = config.build()
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)

    started = time.process_time()
    with FlopCounterMode(display=False) as counter:
        outcome = objective(network, batch, masked=True)
        loss = global_loss(outcome, global_facts(outcome, 1, options.global_batch)[0], 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
        optimizer.step()
    seconds = (time.process_time() - started) / torch.get_num_threads()
    height, width = batch.image1.shape[-2:]
    uncounted = cost_volume_operations(config, options.global_batch, height, width)
    operations = counter.get_total_flops() + uncounted
    return Stage(
        challenge=challenge,
        options=options,
        seconds=seconds,
        operations=operations,
        cost_volume_share=uncounted / operations,
        transforming=transforming,
    )


def cost_volume_operations(config: PWCNetConfig, pairs: int, height: int, width: int) -> float:
    """A product and a sum for each channel, place and displacement, in both directions of each pair; the same
    again for the gradient of each of the two inputs."""
    levels = range(config.finest_level, len(config.encoder_widths) + 1)
    values = sum(config.encoder_widths[level - 1] * height * width / 4**level for level in levels)
    return 2 * pairs * (2 * config.radius + 1) ** 2 * values * 2 * 3


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    # As in the feed's processes; their seconds are one core's.
    cv2.setNumThreads(1)
    print(
        "# How long the recipes take\n\n"
        f"Printed by `python benchmarks/recipes.py` on {torch.get_num_threads()} CPU cores: a step of each "
        "stage, fresh weights, frames of a rendered scene. Seconds are the CPU's over the number of cores.\n"
    )
    heads = ("stage", "crop, px", "steps", "s a step", "hours here", "GFLOP a step", f"hours on {GPU}")
    print(row(*heads, "s of a core to transform a step's pairs", "such cores for that GPU"))
    print(row("---", *["---:"] * (len(heads) + 1)), flush=True)
    shares = []
    sums = []
    for name, (height, width) in FRAMES.items():
        recipe = RECIPES[name]
        assert isinstance(recipe.network, PWCNetConfig)
        frames = first_pair(render_scene(0, SceneOptions(height=height, width=width, num_frames=2)))
        # Small, to warm up.
        small = replace(recipe.augmentation, crop=Crop(height=64, width=64))
        measured(frames, recipe.network, small, recipe.teacher, TeacherObjective())
        stages = {
            "teacher": measured(
                frames, recipe.network, recipe.augmentation, recipe.teacher, TeacherObjective()
            ),
            "student": measured(frames, recipe.network, recipe.challenge, recipe.student, StudentObjective()),
            "fine-tuning": measured(
                frames, recipe.network, recipe.augmentation, recipe.finetune, SupervisedObjective()
            ),
        }
        for stage, each in stages.items():
            shares.append(each.cost_volume_share)
            print(
                row(
                    f"{name}: {stage}",
                    f"{each.challenge.crop.height}x{each.challenge.crop.width}",
                    f"{each.options.steps}",
                    f"{each.seconds:.2f}",
                    f"{each.hours:.0f}",
                    f"{each.operations / 1e9:.0f}",
                    f"{each.gpu_hours:.1f}",
                    f"{each.transforming:.2f}",
                    f"{each.transforming / each.gpu_seconds:.1f}",
                ),
                flush=True,
            )
        hours = " + ".join(f"{each.options.steps} x {each.seconds:.2f} s" for each in stages.values())
        gpu_hours = " + ".join(
            f"{each.options.steps} x {each.operations / 1e9:.0f} GFLOP" for each in stages.values()
        )
        total, gpu_total = (
            sum(each.hours for each in stages.values()),
            sum(each.gpu_hours for each in stages.values()),
        )
        sums.append(
            f"- {name}: ({hours}) / 3600 = {total:.0f} hours here; ({gpu_hours}) / "
            f"({GPU_PEAK / 1e12:g} TFLOP/s x {UTILISATION:.0%}) / 3600 = {gpu_total:.0f} hours on one {GPU}."
        )
    print("\n" + "\n".join(sums))
    print(
        f"\n{GPU}: its published peak in FP32, {GPU_PEAK / 1e12:g} TFLOP/s, of which {UTILISATION:.0%} is an "
        "assumption; nothing was run on one. Counted are convolutions, forward and backward, and by formula "
        f"the cost volumes, up to {max(shares):.1%} of the whole; not counted are the census "
        "distance, warping and whatever else works pixel by pixel and waits for memory. Left out are making "
        "pairs and labels (once over the data), validation, and reading."
    )


if __name__ == "__main__":
    main()
