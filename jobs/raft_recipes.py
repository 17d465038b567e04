"""Which settings go together for RAFT? Those of SMURF (Stone et al., CVPR 2021) without truth, and with truth
RAFT's own (Teed and Deng, ECCV 2020).

From SMURF's code: steps, rates and clipping of teacher and student, the crops of KITTI and Sintel, the
checks, smoothness, self-supervision and labels from three frames; eight pairs a step are its paper's. From
RAFT's code: AdamW, steps, rates, batches and crops, the ranges of size, colour and erasing, L1 and its
sequence.

Deviations: smoothness is taken at full resolution, where SMURF takes it at stride 4; of Chairs the teacher
sees crops with what lies around them, where SMURF's sees whole frames; convolutions are in bfloat16. SMURF
shortens all of Sintel's steps to a fifth but those before its self-supervision: here these too. What
`video:raft` takes, and the student's challenges, are a choice.

None of them was run to its end by us: hours are estimates, docs/results/recipes.md has the arithmetic.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from flowcore.augmentation import Crop, Flips, Scaling
from flowcore.colour import ChannelPermutation, Colour
from flowcore.hallucination import Challenge, RectangleNoise
from flowcore.losses import Photometric
from flowcore.networks import RAFTConfig
from flowcore.objectives import StudentObjective, SupervisedObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.self_supervision import SelfSupervision
from pipelines.training_options import TrainingOptions

if TYPE_CHECKING:
    from jobs.recipes import Recipe


_ERASED = RectangleNoise(chance=0.5, count=(1, 2), side=(0.1, 0.25), filling="mean")


def _light(most: float, hue: float, asymmetric: float) -> Colour:
    """Colours as RAFT's code varies them."""
    return Colour(
        chance=1.0,
        asymmetric=asymmetric,
        brightness=most,
        contrast=most,
        saturation=most,
        hue=hue,
        gamma=(1.0, 1.0),
        blur_chance=0.0,
        noise=0.0,
    )


def _for_truth(crop: Crop, factor: tuple[float, float], *, is_sparse: bool = False) -> Challenge:
    """What RAFT's code does to pairs with truth; it neither stretches nor mirrors those with a sparse one."""
    return Challenge(
        scaling=Scaling(chance=0.8, factor=factor, stretch_chance=0.0 if is_sparse else 0.8),
        crop=crop,
        flips=Flips(left_right=0.0, up_down=0.0) if is_sparse else Flips(left_right=0.5, up_down=0.1),
        channels=ChannelPermutation(chance=0.0),
        colour=_light(0.3, hue=0.1, asymmetric=0.0) if is_sparse else _light(0.4, hue=0.16, asymmetric=0.2),
        rectangles=_ERASED,
    )


def _as_smurf(on_a_gpu: TrainingOptions, steps: int) -> TrainingOptions:
    return replace(on_a_gpu, steps=steps, learning_rate=2e-4, warmup=0.0, decay="halve-late")


def _as_raft(
    on_a_gpu: TrainingOptions,
    steps: int,
    learning_rate: float,
    global_batch: int = 6,
    weight_decay: float = 1e-5,
) -> TrainingOptions:
    return replace(
        on_a_gpu,
        steps=steps,
        global_batch=global_batch,
        learning_rate=learning_rate,
        warmup=0.05,
        decay="one-cycle",
        weight_decay=weight_decay,
    )


def _with_raft(
    on_a_gpu: TrainingOptions,
    recipe: "Recipe",
    description: str,
    *,
    crop: Crop,
    surroundings: int,
    steps: int,
    unmasked_steps: int = 0,
    smoothness: Photometric,
    student_steps: int,
    student_crop: Crop,
    truth_augmentation: Challenge,
    finetune: TrainingOptions,
    sequence_gamma: float = 0.85,
) -> "Recipe":
    """A recipe with the full RAFT, trained as SMURF is, and on truth as RAFT is. Without steps that aren't
    masked its check is the range map."""
    # 31,250 and 6,250 of 75,000 steps.
    own_crops = SelfSupervision(weight=0.3, begins=steps * 5 // 12, ramp=steps // 12)
    return replace(
        recipe,
        description=description,
        networks={"raft": RAFTConfig()},
        augmentation=replace(
            recipe.augmentation,
            crop=crop,
            surroundings=surroundings,
            colour=_light(0.4, hue=0.16, asymmetric=0.2),
            rectangles=_ERASED,
        ),
        teacher=_as_smurf(on_a_gpu, steps),
        teacher_objective=TeacherObjective(
            photometric=smoothness, unmasked_steps=unmasked_steps, self_supervision=own_crops
        ),
        labelling=replace(recipe.labelling, three_frames=True),
        challenge=replace(recipe.challenge, crop=student_crop, surroundings=0),
        student=_as_smurf(on_a_gpu, student_steps),
        student_objective=StudentObjective(
            # Labels alone.
            view="confidence",
            photometric=Photometric(smoothness_weight=0.0),
        ),
        finetune=finetune,
        supervised=SupervisedObjective(penalty="l1", max_flow=400.0, sequence_gamma=sequence_gamma),
        truth_augmentation=truth_augmentation,
        check=OcclusionCheck(kind="forward-backward" if unmasked_steps else "range-map"),
    )


def raft_recipes(recipes: "Mapping[str, Recipe]") -> "dict[str, Recipe]":
    """By name; their clips and challenges are those of the recipes before the colon, and what depends on the
    machine is that of `video`."""
    on_a_gpu = recipes["video"].teacher
    with_raft, as_raft = partial(_with_raft, on_a_gpu), partial(_as_raft, on_a_gpu)
    return {
        "chairs:raft": with_raft(
            recipes["chairs"],
            "Flying Chairs with RAFT, where sintel:raft and kitti:raft start. A GPU and 16 cores; about 14 "
            "hours on an H200, extrapolated. We quote no score.",
            crop=Crop(height=320, width=448),
            surroundings=32,
            steps=75_000,
            smoothness=Photometric(smoothness_weight=2.0, smoothness_edge=150.0),
            student_steps=30_000,
            student_crop=Crop(height=256, width=320),
            truth_augmentation=_for_truth(Crop(height=368, width=496), (0.93, 2.0)),
            finetune=as_raft(100_000, learning_rate=4e-4, global_batch=12, weight_decay=1e-4),
            sequence_gamma=0.8,
        ),
        "sintel:raft": with_raft(
            recipes["sintel"],
            "MPI-Sintel with RAFT, from the teacher of chairs:raft (--init). A GPU and 16 cores; about 8 "
            "hours on an H200, extrapolated. We quote no score.",
            crop=Crop(height=368, width=496),
            surroundings=32,
            steps=15_000,
            smoothness=Photometric(smoothness_weight=2.5, smoothness_edge=150.0),
            student_steps=6_000,
            student_crop=Crop(height=256, width=448),
            truth_augmentation=_for_truth(Crop(height=368, width=768), (0.87, 1.52)),
            finetune=as_raft(100_000, learning_rate=1.25e-4),
        ),
        "kitti:raft": with_raft(
            recipes["kitti"],
            "KITTI multi-view with RAFT, from the teacher of chairs:raft (--init). A GPU and 16 cores; about "
            "11 hours on an H200, extrapolated. SMURF's paper: Fl 6.83 % on the test pairs of 2015.",
            crop=Crop(height=296, width=696),
            surroundings=40,
            steps=75_000,
            unmasked_steps=25_000,
            smoothness=Photometric(smoothness_weight=2.0, smoothness_order=2, smoothness_edge=150.0),
            student_steps=30_000,
            student_crop=Crop(height=256, width=640),
            truth_augmentation=_for_truth(Crop(height=288, width=960), (0.87, 1.32), is_sparse=True),
            finetune=as_raft(50_000, learning_rate=1e-4),
        ),
        "video:raft": with_raft(
            recipes["video"],
            "Your own videos at 384x640 px with RAFT, which takes longer than video. A GPU and 16 cores; "
            "about 4 hours on an H200, extrapolated. We quote no score.",
            crop=Crop(height=256, width=384),
            surroundings=64,
            steps=75_000,
            smoothness=Photometric(smoothness_weight=2.5, smoothness_edge=150.0),
            student_steps=30_000,
            student_crop=Crop(height=192, width=320),
            truth_augmentation=_for_truth(Crop(height=256, width=384), (0.87, 1.41)),
            finetune=as_raft(10_000, learning_rate=1e-4),
        ),
    }
