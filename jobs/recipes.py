"""Which settings go together? Each recipe is a full set of options for every stage; a job's flags change
single ones.

Each says its hardware, hours and score. `smoke`, `demo` and `laptop` are ours, for a laptop; the others have
the schedule of DDFlow and SelFlow (Liu et al., AAAI and CVPR 2019).

From these papers: 100,000 steps without the occlusion mask and 300,000 with it, 300,000 of distillation,
four pairs a step, Adam at 1e-4 halved stepwise, flips and channel permutation, the teacher's crop of KITTI,
superpixel noise on the target frame, the light PWC-Net, and that KITTI begins at the chairs teacher. From
ARFlow (Liu et al., CVPR 2020): the ranges of geometry and colour. Where they are silent, choices: when the
rate is halved, the other crops, how often a pair gets noise, geometry or colour, all of fine-tuning, and
that Sintel begins at the chairs teacher too.

Hours are of teacher, student and fine-tuning together, from `python benchmarks/recipes.py`; its output,
docs/results/recipes.md, has the arithmetic and the hours on CPUs. None of the four was run to its end by us:
hours are estimates, and scores are DDFlow's own after distillation, on the sets' pairs with truth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from flowcore.hallucination import (
    Challenge,
    Colour,
    CopyPaste,
    Crop,
    Geometric,
    RectangleNoise,
    SuperpixelNoise,
)
from flowcore.networks import AnyNetworkConfig, FlowNetConfig, PWCNetConfig, RAFTConfig
from flowcore.objectives import Photometric, StudentObjective
from flowcore.video import EVERY_PAIR, ClipOptions
from pipelines.labelling import LabellingOptions
from pipelines.training import Schedule, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What each stage takes its defaults from."""

    description: str
    clips: ClipOptions
    """What frame pairs are made of."""
    networks: dict[str, AnyNetworkConfig]
    """By the name of the backbone, of a size that suits the recipe; the first is the one that it takes."""
    augmentation: Challenge
    """The teacher's."""
    teacher: TrainingOptions
    challenge: Challenge
    """The student's."""
    student: TrainingOptions
    finetune: TrainingOptions
    objective: StudentObjective = field(default_factory=StudentObjective)

    @property
    def network(self) -> AnyNetworkConfig:
        """The backbone that the recipe takes when none is named."""
        return next(iter(self.networks.values()))

    @property
    def labelling(self) -> LabellingOptions:
        """The same frame pairs as the teacher's."""
        return LabellingOptions()


_TINY: dict[str, AnyNetworkConfig] = {
    "pwcnet": PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,)),
    "flownets": FlowNetConfig(encoder_widths=(8, 8, 12, 16), decoder_widths=(8, 12)),
    "flownetc": FlowNetConfig(
        variant="correlated",
        encoder_widths=(8, 8, 12, 16),
        decoder_widths=(8, 12),
        redirected_width=8,
        radius=3,
    ),
    "raft_small": RAFTConfig(
        encoder_widths=(8, 12),
        feature_width=16,
        hidden_width=12,
        context_width=12,
        motion_width=16,
        iterations=3,
        scales=2,
        radius=2,
        learned_upsampling=False,
    ),
    "raft": RAFTConfig(
        encoder_widths=(8, 12, 16),
        feature_width=16,
        hidden_width=12,
        context_width=12,
        motion_width=16,
        iterations=3,
        scales=2,
        radius=2,
    ),
}
_SMALL: dict[str, AnyNetworkConfig] = {
    "pwcnet": PWCNetConfig(
        encoder_widths=(16, 32, 48, 64), decoder_widths=(64, 48, 32), context_widths=(64, 64, 32)
    ),
    "flownets": FlowNetConfig(encoder_widths=(24, 32, 64, 96), decoder_widths=(48, 64)),
    "flownetc": FlowNetConfig(
        variant="correlated", encoder_widths=(24, 32, 64, 96), decoder_widths=(48, 64), radius=4
    ),
    "raft_small": RAFTConfig(
        encoder_widths=(24, 48),
        feature_width=64,
        hidden_width=48,
        context_width=32,
        motion_width=64,
        iterations=6,
        scales=3,
        radius=3,
        learned_upsampling=False,
    ),
    "raft": RAFTConfig(
        encoder_widths=(24, 48, 64),
        feature_width=96,
        hidden_width=64,
        context_width=48,
        motion_width=64,
        iterations=8,
        scales=3,
        radius=3,
    ),
}
_FULL: dict[str, AnyNetworkConfig] = {
    "pwcnet": PWCNetConfig(),
    "flownets": FlowNetConfig(),
    "flownetc": FlowNetConfig(variant="correlated"),
    "raft_small": RAFTConfig(
        encoder_widths=(32, 64, 96),
        feature_width=128,
        hidden_width=96,
        context_width=64,
        motion_width=82,
        radius=3,
        learned_upsampling=False,
    ),
    "raft": RAFTConfig(),
}

_LIGHT: dict[str, AnyNetworkConfig] = {
    "pwcnet": PWCNetConfig(
        encoder_widths=(16, 32, 48, 64, 80), decoder_widths=(48, 32, 24), context_widths=(32, 32), radius=3
    ),
}
_CAMERA = Geometric(
    chance=0.85,
    zoom=(0.8, 1.6),
    rotation=0.3,
    delta_zoom=(0.94, 1.06),
    delta_rotation=0.06,
    delta_translation=0.06,
    soft=True,
)
"""Moves the camera where it stood still, as it does in most clips: what never moves teaches no flow."""


_COSINE: Schedule = ((0.1, 1.0, "linear"), (1.0, 0.0, "cosine"))
"""Rises over the first tenth, then falls to 0."""


def _halved(*until: float) -> Schedule:
    """After each of these shares of the steps, and constant between them."""
    return tuple((end, 0.5**halvings, "constant") for halvings, end in enumerate((*until, 1.0)))


def _trained(steps: int, *, unmasked_steps: int = 0, schedule: Schedule) -> TrainingOptions:
    return TrainingOptions(
        steps=steps,
        unmasked_steps=unmasked_steps,
        global_batch=4,
        learning_rate=1e-4,
        schedule=schedule,
        readers=6,
        log_every=100,
        validate_every=5_000,
    )


def _on_a_laptop(steps: int, unmasked_steps: int = 0, learning_rate: float = 4e-4) -> TrainingOptions:
    return TrainingOptions(
        steps=steps,
        unmasked_steps=unmasked_steps,
        global_batch=4,
        learning_rate=learning_rate,
        schedule=_COSINE,
        readers=1,
        validate_every=1_000,
    )


_TEACHER = _trained(400_000, unmasked_steps=100_000, schedule=_halved(0.25, 0.5, 0.75))
_STUDENT = _trained(300_000, schedule=_halved(1 / 3, 2 / 3))
_FINETUNE = _trained(50_000, schedule=_halved(0.4, 0.8))
_BRIEFLY = TrainingOptions(
    steps=8, global_batch=2, learning_rate=4e-4, log_every=2, validate_every=4, readers=1
)

RECIPES = {
    "smoke": Recipe(
        description="Proves in a minute that the chain runs; learns nothing. Any laptop.",
        clips=ClipOptions(size=(64, 96), min_size=(56, 88)),
        networks=_TINY,
        augmentation=Challenge(crop=Crop(height=48, width=80)),
        teacher=replace(_BRIEFLY, unmasked_steps=8),
        challenge=Challenge(crop=Crop(height=48, width=64)),
        student=replace(_BRIEFLY, unmasked_steps=8),
        finetune=_BRIEFLY,
    ),
    "demo": Recipe(
        description="Frames of about 96x128 px and a small network; two CPU cores, some seven minutes.",
        clips=ClipOptions(size=(96, 128), min_size=(96, 128)),
        networks=_SMALL,
        augmentation=Challenge(crop=Crop(height=96, width=128)),
        teacher=TrainingOptions(
            steps=800,
            unmasked_steps=240,
            global_batch=4,
            learning_rate=4e-4,
            schedule=_COSINE,
            validate_every=200,
        ),
        challenge=Challenge(crop=Crop(height=80, width=112)),
        student=TrainingOptions(
            steps=800, global_batch=4, learning_rate=4e-4, schedule=_COSINE, validate_every=200
        ),
        finetune=TrainingOptions(
            steps=400, global_batch=4, learning_rate=4e-4, schedule=_COSINE, validate_every=200
        ),
    ),
    "laptop": Recipe(
        description="Your own videos without a GPU, at about 320x448 px, every second frame, at most 160 "
        "pairs a video. Label with --teacher opencv:dis_medium, then distill with --init fresh; two CPU "
        "cores, an hour and a half. Its errors on real pairs are in docs/results/real-pixels.md.",
        clips=ClipOptions(size=(320, 448), min_size=(192, 256), stride=2, max_pairs_per_video=160),
        networks=_LIGHT,
        augmentation=Challenge(geometric=_CAMERA, crop=Crop(height=192, width=256)),
        teacher=_on_a_laptop(8_000, unmasked_steps=2_400),
        challenge=Challenge(
            geometric=_CAMERA,
            crop=Crop(height=160, width=224),
            colour=Colour(chance=0.5, blur_chance=0.3),
            rectangles=RectangleNoise(chance=0.5),
            pasted=CopyPaste(chance=0.5),
        ),
        student=_on_a_laptop(10_000, learning_rate=1e-3),
        finetune=_on_a_laptop(2_000),
        objective=StudentObjective(
            view="confidence", photometric=Photometric(level_weights=(1.0, 0.5, 0.25, 0.125))
        ),
    ),
    "chairs": Recipe(
        description="Flying Chairs without its truth, where sintel and kitti start. A GPU and 8 cores; on an "
        "A100 some 25 hours, estimated. We quote no score.",
        # Here and below: a data set's sequences are of one shot each, and the papers leave no pair out.
        clips=EVERY_PAIR,
        networks=_FULL,
        augmentation=Challenge(crop=Crop(height=320, width=448)),
        teacher=_TEACHER,
        challenge=Challenge(crop=Crop(height=256, width=320), superpixels=SuperpixelNoise(chance=0.5)),
        student=_STUDENT,
        finetune=_FINETUNE,
    ),
    "sintel": Recipe(
        description="MPI-Sintel; give --init the chairs teacher. A GPU and 8 cores; on an A100 some "
        "50 hours, estimated. DDFlow's paper: EPE 2.92 on clean, 3.98 on final.",
        clips=EVERY_PAIR,
        networks=_FULL,
        augmentation=Challenge(crop=Crop(height=384, width=832)),
        teacher=_TEACHER,
        challenge=Challenge(
            geometric=Geometric(chance=0.5),
            crop=Crop(height=256, width=576),
            colour=Colour(chance=0.5, noise=0.0),
            superpixels=SuperpixelNoise(chance=0.5),
        ),
        student=_STUDENT,
        finetune=_FINETUNE,
    ),
    "kitti": Recipe(
        description="KITTI multi-view; give --init the chairs teacher. A GPU and 8 cores; on an A100 "
        "some 50 hours, estimated. DDFlow's paper: EPE 2.35 on 2012, 5.72 on 2015.",
        clips=EVERY_PAIR,
        networks=_FULL,
        augmentation=Challenge(crop=Crop(height=320, width=896)),
        teacher=_TEACHER,
        challenge=Challenge(
            geometric=Geometric(
                chance=0.5,
                zoom=(1.0, 1.4),
                squeeze=(1.0, 1.0),
                rotation=0.01,
                translation=0.04,
                delta_zoom=(0.99, 1.01),
                delta_rotation=0.01,
                delta_translation=0.005,
            ),
            # A deviation: 224x640 px in DDFlow, and a side of PWC-Net's is a multiple of 64 here.
            crop=Crop(height=256, width=640),
            colour=Colour(chance=0.5, contrast=0.0, saturation=0.0, gamma=(1.0, 1.0), noise=0.0),
            superpixels=SuperpixelNoise(chance=0.5),
        ),
        student=_STUDENT,
        finetune=_FINETUNE,
    ),
    "video": Recipe(
        description="Your own videos at 384x640 px, as the papers train. A GPU and 8 cores; on an A100 "
        "some 30 hours, estimated. Its score depends on the videos.",
        clips=ClipOptions(size=(384, 640), min_size=(320, 576)),
        networks=_FULL,
        augmentation=Challenge(crop=Crop(height=320, width=576)),
        teacher=_TEACHER,
        challenge=Challenge(crop=Crop(height=256, width=448)),
        student=_STUDENT,
        finetune=_FINETUNE,
    ),
}


Options = TypeVar("Options")


def with_backbones(make: Callable[[Recipe, AnyNetworkConfig], Options]) -> dict[str, tuple[str, Options]]:
    """A job's options by recipe, and by recipe:backbone for those that it doesn't take by itself."""
    options = {}
    for name, recipe in RECIPES.items():
        for backbone, network in recipe.networks.items():
            is_own = network is recipe.network
            key = name if is_own else f"{name}:{backbone}"
            description = recipe.description if is_own else f"As {name}, with {backbone}."
            options[key] = (description, make(recipe, network))
    return options
