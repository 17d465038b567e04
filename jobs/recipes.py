"""Which settings go together? Each recipe is a full set of options for every stage; a job's flags change
single ones.

Each says its hardware, hours and score. `smoke`, `demo` and `laptop` are ours, for a laptop, and `video`, for
a GPU. The others follow the schedule of DDFlow and SelFlow (Liu et al., AAAI and CVPR 2019); `ddflow-chairs`,
`ddflow-sintel` and `ddflow-kitti` their loss and network too: the final flow's loss alone, on what the
network sees, without smoothness, and levels that predict the flow afresh.

From these papers: 100,000 steps without the occlusion mask and 300,000 with it, 300,000 steps of
distillation, four pairs a step, Adam at 1e-4 halved stepwise, flips and channel permutation, the teacher's
crop of KITTI, superpixel noise on the target frame, the light PWC-Net, and that KITTI starts from the chairs
teacher. From ARFlow (Liu et al., CVPR 2020): the ranges of geometry and colour. Where the papers are silent,
we chose: when the rate is halved, the other crops, how often a pair gets noise, geometry or colour, all of
fine-tuning, and that Sintel starts from the chairs teacher too.

Those with RAFT and a schedule of their own are in `jobs.raft_recipes`.

Hours are of teacher, student and fine-tuning together. docs/results/recipes.md has the arithmetic and the
hours on CPUs. None of the papers' recipes was run to its end by us: hours are estimates, and scores are
DDFlow's own after distillation, on the pairs with truth.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TypeVar

from flowcore import networks
from flowcore.augmentation import Crop, Geometric
from flowcore.colour import Colour
from flowcore.hallucination import Challenge, CopyPaste, RectangleNoise, SuperpixelNoise
from flowcore.losses import Photometric
from flowcore.networks import AnyNetworkConfig, PWCNetConfig
from flowcore.objectives import StudentObjective, SupervisedObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.video import EVERY_PAIR, ClipOptions
from jobs.manual import with_network
from jobs.options import REQUIRED
from jobs.raft_recipes import raft_recipes
from pipelines.labelling import LabellingOptions
from pipelines.training_options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What each stage takes its defaults from."""

    description: str
    """What it is for, in one sentence of a line; then its hardware, hours and score."""
    clips: ClipOptions
    """How videos become frame pairs."""
    networks: dict[str, AnyNetworkConfig]
    """By the name of the backbone, of a size that suits the recipe. The recipe takes the first one unless
    another is named."""
    augmentation: Challenge
    """What is done to the teacher's pairs."""
    teacher: TrainingOptions
    teacher_objective: TeacherObjective
    labelling: LabellingOptions = field(default_factory=LabellingOptions)
    """How labels are written."""
    challenge: Challenge
    """What is done to the student's pairs."""
    student: TrainingOptions
    student_objective: StudentObjective = field(default_factory=StudentObjective)
    finetune: TrainingOptions
    supervised: SupervisedObjective = field(default_factory=SupervisedObjective)
    """What is learnt from truth."""
    truth_augmentation: Challenge | None = None
    """What is done to pairs with truth; None does to them what is done to the teacher's."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """What tells occluded pixels, in every stage."""

    @property
    def network(self) -> AnyNetworkConfig:
        """The backbone that the recipe takes when none is named."""
        return next(iter(self.networks.values()))

    @property
    def tuned_augmentation(self) -> Challenge:
        """What is done to pairs with truth."""
        return self.truth_augmentation or self.augmentation

    @property
    def tuned_objective(self) -> StudentObjective:
        """The student's, for a network that is trained already: it needs no steps without the mask."""
        return replace(self.student_objective, unmasked_steps=0)


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


def _briefly(steps: int = 8) -> TrainingOptions:
    return TrainingOptions(
        steps=steps, global_batch=2, learning_rate=4e-4, log_every=2, validate_every=4, readers=1
    )


def _from_fresh_weights(steps: int, learning_rate: float) -> TrainingOptions:
    """The rate rises over the first tenth of the steps, then falls to 0."""
    return TrainingOptions(steps=steps, learning_rate=learning_rate, warmup=0.1, decay="cosine", readers=1)


def _in_minutes(steps: int, learning_rate: float) -> TrainingOptions:
    return replace(
        _from_fresh_weights(steps, learning_rate),
        workers=2,
        channels_last=True,
        # At its begin and its end: a validation takes a core for ten seconds.
        validate_every=1_000_000,
    )


def _on_a_laptop(steps: int, learning_rate: float = 4e-4) -> TrainingOptions:
    return replace(_from_fresh_weights(steps, learning_rate), validate_every=1_000)


def _on_a_gpu(steps: int, learning_rate: float) -> TrainingOptions:
    return TrainingOptions(
        steps=steps,
        global_batch=8,
        learning_rate=learning_rate,
        warmup=0.05,
        decay="cosine",
        precision="bfloat16",
        channels_last=True,
        readers=12,
        log_every=100,
        validate_every=2_500,
    )


def _as_the_papers(steps: int) -> TrainingOptions:
    return TrainingOptions(
        steps=steps, learning_rate=1e-4, decay="halve", readers=6, log_every=100, validate_every=5_000
    )


_LARGE_FILES = LabellingOptions(shard_pairs=256)
"""On GPUs pairs are made so fast that the driver, which pays for each file, would be short first."""
_RANGE_MAP = OcclusionCheck(kind="range-map")
"""Its mask is the best one on rendered scenes. Real video and KITTI keep the other check, as UFlow does on
KITTI: it also leaves out pixels whose flow is wrong, and labels need that."""
_SHARPER = {
    **networks.full(),
    "pwcnet": PWCNetConfig(learned_upsampling=True),
}
_FOUR_LEVELS = Photometric(level_weights=(1.0, 0.5, 0.25, 0.125))
_ROADS = Photometric(smoothness_order=2)
_TEACHER = _as_the_papers(400_000)
_UNMASKED = TeacherObjective(unmasked_steps=100_000)
_CONFIDENT = StudentObjective(view="confidence", photometric_weight=1.0, distillation_weight=2.0)
"""Of the views, the one that costs visible pixels least (docs/results/losses.md)."""
_STUDENT = _as_the_papers(300_000)
_FINETUNE = _as_the_papers(50_000)

RECIPES: dict[str, Recipe] = {
    "smoke": Recipe(
        description="Proves in a minute that the chain runs, and learns nothing. Any laptop.",
        clips=ClipOptions(size=(64, 96), min_size=(56, 88)),
        networks=networks.tiny(),
        augmentation=Challenge(crop=Crop(height=48, width=80)),
        teacher=_briefly(),
        teacher_objective=TeacherObjective(unmasked_steps=8),
        challenge=Challenge(crop=Crop(height=48, width=64)),
        student=_briefly(),
        student_objective=StudentObjective(unmasked_steps=8),
        finetune=_briefly(),
    ),
    "demo": Recipe(
        description="A small network for frames of about 96x128 px. Two CPU cores, five to fifteen minutes.",
        clips=ClipOptions(size=(96, 128), min_size=(96, 128)),
        networks=networks.small(),
        augmentation=Challenge(crop=Crop(height=80, width=112), surroundings=16),
        check=_RANGE_MAP,
        teacher=_in_minutes(2_400, learning_rate=1e-3),
        teacher_objective=TeacherObjective(unmasked_steps=720),
        challenge=Challenge(crop=Crop(height=64, width=96), surroundings=32),
        student=_in_minutes(800, learning_rate=7e-4),
        student_objective=_CONFIDENT,
        finetune=_in_minutes(400, learning_rate=4e-4),
    ),
    "laptop": Recipe(
        description="Your own videos without a GPU, at about 320x448 px. It takes every second frame and at "
        "most 160 pairs a video. Label with --teacher opencv:dis_fine, then distill with --init fresh."
        " Two CPU cores, an hour and a half. In the repository, docs/results/real-pixels.md has its"
        " errors on real pairs.",
        clips=ClipOptions(size=(320, 448), min_size=(192, 256), stride=2, max_pairs_per_video=160),
        networks=networks.light(),
        augmentation=Challenge(geometric=_CAMERA, crop=Crop(height=192, width=256)),
        teacher=_on_a_laptop(8_000),
        teacher_objective=TeacherObjective(unmasked_steps=2_400),
        challenge=Challenge(
            geometric=_CAMERA,
            crop=Crop(height=160, width=224),
            colour=Colour(chance=0.5, blur_chance=0.3),
            rectangles=RectangleNoise(chance=0.5),
            pasted=CopyPaste(chance=0.5),
        ),
        student=_on_a_laptop(10_000, learning_rate=1e-3),
        finetune=_on_a_laptop(2_000),
        student_objective=StudentObjective(view="confidence", photometric=_FOUR_LEVELS),
    ),
    "chairs": Recipe(
        description="Flying Chairs without its truth, where sintel and kitti start. A GPU and 24 cores; "
        "about 2 hours on an H200, extrapolated. We quote no score.",
        # Here and below: a data set's sequences are of one shot each, and the papers leave no pair out.
        clips=EVERY_PAIR,
        networks=networks.full(),
        augmentation=Challenge(crop=Crop(height=320, width=448), surroundings=32),
        check=_RANGE_MAP,
        teacher=_TEACHER,
        teacher_objective=_UNMASKED,
        labelling=_LARGE_FILES,
        challenge=Challenge(
            crop=Crop(height=256, width=320), surroundings=64, superpixels=SuperpixelNoise(chance=0.5)
        ),
        student=_STUDENT,
        student_objective=_CONFIDENT,
        finetune=_FINETUNE,
    ),
    "sintel": Recipe(
        description="MPI-Sintel, from the chairs teacher (--init). A GPU and 16 cores; about 5 hours on an "
        "H200, extrapolated. DDFlow's paper: EPE 2.92 on clean, 3.98 on final.",
        clips=EVERY_PAIR,
        networks=networks.full(),
        augmentation=Challenge(crop=Crop(height=384, width=832), surroundings=64),
        check=_RANGE_MAP,
        teacher=_TEACHER,
        teacher_objective=_UNMASKED,
        labelling=_LARGE_FILES,
        challenge=Challenge(
            geometric=Geometric(chance=0.5),
            crop=Crop(height=256, width=576),
            colour=Colour(chance=0.5, noise=0.0),
            superpixels=SuperpixelNoise(chance=0.5),
            surroundings=64,
        ),
        student=_STUDENT,
        student_objective=_CONFIDENT,
        finetune=_FINETUNE,
    ),
    "kitti": Recipe(
        description="KITTI multi-view, from the chairs teacher (--init). A GPU and 16 cores; about 5 hours on"
        " an H200, extrapolated. DDFlow's paper: EPE 2.35 on 2012, 5.72 on 2015.",
        clips=EVERY_PAIR,
        networks=networks.full(),
        augmentation=Challenge(crop=Crop(height=320, width=896), surroundings=64),
        teacher=_TEACHER,
        teacher_objective=replace(_UNMASKED, photometric=_ROADS),
        labelling=_LARGE_FILES,
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
            surroundings=64,
        ),
        student=_STUDENT,
        student_objective=replace(_CONFIDENT, photometric=_ROADS),
        finetune=_FINETUNE,
    ),
    "video": Recipe(
        description="Your own videos at 384x640 px, with the loss and the network that we found best. A GPU "
        "and 16 cores; half an hour on an H200, from the speed of its first 12,000 steps."
        " In the repository, docs/results/minutes.md has the errors after these.",
        clips=ClipOptions(size=(384, 640), min_size=(288, 384), stride=2, max_pairs_per_video=160),
        networks=_SHARPER,
        augmentation=Challenge(geometric=_CAMERA, crop=Crop(height=256, width=384), surroundings=32),
        teacher=_on_a_gpu(60_000, learning_rate=4e-4),
        teacher_objective=TeacherObjective(photometric=_FOUR_LEVELS, unmasked_steps=18_000),
        labelling=_LARGE_FILES,
        challenge=Challenge(
            crop=Crop(height=192, width=320),
            surroundings=32,
            colour=Colour(chance=0.5, blur_chance=0.3),
            rectangles=RectangleNoise(chance=0.5),
        ),
        student=_on_a_gpu(30_000, learning_rate=2e-4),
        finetune=_on_a_gpu(10_000, learning_rate=1e-4),
        student_objective=replace(_CONFIDENT, photometric=_FOUR_LEVELS),
    ),
}


def _as_ddflow(name: str) -> Recipe:
    """A recipe with the loss and the network of DDFlow."""
    recipe, photometric = RECIPES[name], Photometric(level_weights=(1.0,), clean=False, smoothness_weight=0.0)
    return replace(
        recipe,
        description=f"As {name}, with the loss and the network of DDFlow.",
        networks={"pwcnet": PWCNetConfig(refines=False)},
        check=OcclusionCheck(),
        augmentation=replace(recipe.augmentation, surroundings=0),
        teacher_objective=replace(recipe.teacher_objective, photometric=photometric),
        challenge=replace(recipe.challenge, surroundings=0),
        student_objective=StudentObjective(photometric=photometric),
    )


RECIPES |= {f"ddflow-{name}": _as_ddflow(name) for name in ("chairs", "sintel", "kitti")}

RECIPES |= raft_recipes(RECIPES)

Options = TypeVar("Options")


def by_recipe(stage: Callable[..., Options], **parts: str) -> dict[str, tuple[str, Options]]:
    """A stage's options by recipe; if it has a network, by recipe:backbone for those that a recipe doesn't
    take itself and that have no recipe of their own, too.

    stage: its dataclass. parts: the attributes of a recipe that fields take their values from. Other fields
    have their defaults, or must be given by the user.
    """
    given = {
        each.name: REQUIRED
        for each in fields(stage)  # type: ignore[arg-type]
        if each.default is MISSING and each.default_factory is MISSING
    }

    def options(recipe: Recipe) -> Options:
        return stage(**given | {field: getattr(recipe, part) for field, part in parts.items()})

    found = {}
    for name, recipe in RECIPES.items():
        found[name] = (recipe.description, options(recipe))
        for backbone, network in list(recipe.networks.items())[1:] if "network" in parts else []:
            if f"{name}:{backbone}" not in RECIPES:
                other = replace(recipe, networks={backbone: network})
                found[f"{name}:{backbone}"] = (with_network(name, backbone), options(other))
    return found
