"""Which settings go together? Each recipe is a full set of options for every stage; a job's flags change
single ones.

smoke: proves in a minute that the chain runs; it learns nothing. Any laptop.
demo: frames of about 96x128 px and a small network; two CPU cores, five minutes for teacher and student. On
    rendered scenes the student's error is about three quarters of its teacher's (README has the tables).
video: your own videos at 384x640 px, the light PWC-Net of DDFlow and SelFlow and their schedule. Made for one
    node with GPUs; not yet run to its end by us, so no hours and no score are quoted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flowcore.hallucination import Challenge, Crop
from flowcore.networks import AnyNetworkConfig, FlowNetConfig, PWCNetConfig, RAFTConfig
from flowcore.video import ClipOptions
from pipelines.labelling import LabellingOptions
from pipelines.training import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What each stage takes its defaults from."""

    description: str
    clips: ClipOptions
    networks: dict[str, AnyNetworkConfig]
    """By the name of the backbone, of a size that suits the recipe; the first is the one that it takes."""
    augmentation: Challenge
    """The teacher's."""
    teacher: TrainingOptions
    challenge: Challenge
    """The student's."""
    student: TrainingOptions
    finetune: TrainingOptions

    @property
    def network(self) -> AnyNetworkConfig:
        """The backbone that the recipe takes when none is named."""
        return next(iter(self.networks.values()))

    @property
    def labelling(self) -> LabellingOptions:
        """The same frame pairs as the teacher's."""
        return LabellingOptions(clips=self.clips)


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

RECIPES = {
    "smoke": Recipe(
        description="Proves in a minute that the chain runs; learns nothing. Any laptop.",
        clips=ClipOptions(size=(64, 96)),
        networks=_TINY,
        augmentation=Challenge(crop=Crop(height=56, width=88)),
        teacher=TrainingOptions(
            steps=8, unmasked_steps=8, global_batch=2, learning_rate=4e-4, log_every=2, validate_every=4
        ),
        challenge=Challenge(crop=Crop(height=48, width=64)),
        student=TrainingOptions(
            steps=8, unmasked_steps=8, global_batch=2, learning_rate=4e-4, log_every=2, validate_every=4
        ),
        finetune=TrainingOptions(steps=8, global_batch=2, learning_rate=4e-4, log_every=2, validate_every=4),
    ),
    "demo": Recipe(
        description="Frames of about 96x128 px and a small network; two CPU cores, some five minutes.",
        clips=ClipOptions(size=(96, 128)),
        networks=_SMALL,
        augmentation=Challenge(crop=Crop(height=96, width=128)),
        teacher=TrainingOptions(
            steps=800,
            unmasked_steps=240,
            global_batch=4,
            learning_rate=4e-4,
            schedule="cosine",
            validate_every=200,
        ),
        challenge=Challenge(crop=Crop(height=80, width=112)),
        student=TrainingOptions(
            steps=800, global_batch=4, learning_rate=4e-4, schedule="cosine", validate_every=200
        ),
        finetune=TrainingOptions(
            steps=400, global_batch=4, learning_rate=4e-4, schedule="cosine", validate_every=200
        ),
    ),
    "video": Recipe(
        description="Your own videos at 384x640 px, the networks and schedule of DDFlow and SelFlow; GPUs.",
        clips=ClipOptions(size=(384, 640)),
        networks=_FULL,
        augmentation=Challenge(crop=Crop(height=320, width=576)),
        teacher=TrainingOptions(
            steps=400_000,
            unmasked_steps=100_000,
            learning_rate=1e-4,
            halve_every=100_000,
            readers=6,
            log_every=100,
            validate_every=5_000,
        ),
        challenge=Challenge(crop=Crop(height=256, width=448)),
        student=TrainingOptions(
            steps=300_000,
            learning_rate=1e-4,
            halve_every=100_000,
            readers=6,
            log_every=100,
            validate_every=5_000,
        ),
        finetune=TrainingOptions(
            steps=50_000,
            learning_rate=1e-4,
            halve_every=20_000,
            readers=6,
            log_every=100,
            validate_every=2_500,
        ),
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
