"""What is each stage asked for?

A stage is a frozen dataclass: its fields are the options of its job, and its methods open what they name, so
that a wrong name is an error before Ray starts and before MLflow has a run.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from flowcore.datasets import DataSet, find_samples
from flowcore.hallucination import Challenge
from flowcore.inference import InferenceOptions
from flowcore.networks import AnyNetworkConfig
from flowcore.objectives import StudentObjective, SupervisedObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import Merge
from flowcore.video import ClipOptions
from jobs.options import REQUIRED
from jobs.recipes import RECIPES
from pipelines.filters import PairFilter
from pipelines.invocation import typed
from pipelines.label_rows import DEFAULT_MAX_SPREAD
from pipelines.labelling import LabellingOptions
from pipelines.models import StartingPoint, absolute_model, starting_point
from pipelines.pair_set import PairSet
from pipelines.storage import absolute, shared_folder
from pipelines.teachers import Teachers
from pipelines.training_options import TrainingOptions

if TYPE_CHECKING:
    from pipelines.lineage import StageRun
    from pipelines.validation import CollapseAlarm, Judge

FRESH = "fresh"
"""In place of a model to start from: fresh weights."""


def data_set_at(text: str, option: str) -> DataSet:
    """The data set that an option names, in a folder that every process of the job finds.

    ValueError, with the option's name, for anything else.
    """
    try:
        data_set = DataSet.parse(text)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None
    if data_set is None:
        raise ValueError(f"{option} {text!r} must be NAME:FOLDER, such as sintel:/data/MPI-Sintel")
    return replace(data_set, root=str(shared_folder(data_set.root, option)))


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """What every stage that trains a network takes."""

    run_root: str
    """Folder or URI for frame pairs, checkpoints and models. All nodes of a cluster must share it."""
    network: AnyNetworkConfig
    """The network to train if it starts from fresh weights."""
    training: TrainingOptions
    """How long, how fast and on how many workers the network is trained."""
    init: str | None = None
    """The model to start from: a checkpoint folder or its URI, runs:/<run id>/model, models:/<name>@<alias>,
    hf://<owner>/<name> or distillflow:<name>. Take `fresh` for fresh weights of the recipe's network."""
    validate_on: str | None = None
    """A data set whose truth judges the network while it trains, such as sintel:/data/MPI-Sintel. Without it,
    pairs that are held back from training judge the network. Take it if you have truth of scenes like
    yours."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """How this stage finds occluded pixels, wherever it needs them."""
    resume: str | None = None
    """The id of an MLflow run of this job that was killed: go on with it from its last checkpoint. Give the
    other options as before."""

    common: ClassVar[tuple[str, ...]] = (
        "init",
        "resume",
        "training.steps",
        "training.global_batch",
        "training.learning_rate",
        "training.workers",
    )
    """The options that `--help` shows, beside those that must be given."""

    def __post_init__(self) -> None:
        if self.validate_on is not None:
            data_set_at(self.validate_on, "--validate-on")

    def starting_point(self, default: str | None = None) -> StartingPoint:
        """The model of --init, or without it of `default`; fresh weights of the network where neither is
        there."""
        if self.init == FRESH:
            return starting_point(None, self.network)
        model = default if self.init is None else absolute_model(self.init, "--init")
        return starting_point(model, self.network)

    def judge(self, run: "StageRun", alarm: "CollapseAlarm") -> "Judge":
        """What judges the network while it trains; a data set's truth is recorded as an input of the run."""
        from pipelines.truth import truth_set
        from pipelines.validation import Judge

        truth = None
        if self.validate_on is not None:
            data_set = data_set_at(self.validate_on, "--validate-on")
            truth = truth_set(data_set.name, Path(data_set.root), run.root, to_learn_from=False)
            run.reads("validation", str(data_set), truth, "validation")
        return Judge(truth=truth, check=self.check, alarm=alarm)


@dataclass(frozen=True, kw_only=True)
class TrainTeacher(TrainingStage):
    """Options of train_teacher."""

    videos: str
    """The videos: a folder (searched through), glob, video, list file or URI, or a data set such as
    sintel:/data/MPI-Sintel."""
    clips: ClipOptions
    """How videos become frame pairs."""
    augmentation: Challenge
    """Which window of a frame a training step sees, and how it is varied."""
    objective: TeacherObjective = field(default_factory=TeacherObjective)
    """What the teacher learns from the frames."""

    common: ClassVar[tuple[str, ...]] = (*TrainingStage.common, "clips.size", "clips.stride")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.network is not REQUIRED
            and self.network.predicts_scale
            and not self.augmentation.surroundings
        ):
            raise ValueError(
                "--network.uncertainty is learnt from what lies around a crop, and "
                "--augmentation.surroundings is 0 px; set it, for example to 16 px, or leave out "
                "--network.uncertainty"
            )


@dataclass(frozen=True, kw_only=True)
class Pseudolabel:
    """Options of pseudolabel."""

    videos: str
    """The videos: a folder (searched through), glob, video, list file or URI, or a data set such as
    sintel:/data/MPI-Sintel. With --status: the videos to count against; by default, what the last run into
    --labels found."""
    teacher: tuple[str, ...]
    """One or several models: checkpoint folders, runs:/<run id>/model, models:/<name>@<alias>,
    hf://<owner>/<name>, distillflow:<name>, opencv:<name>, torchvision:<name> or ptlflow:<name>. Take several
    to learn only where they agree, or see --labelling.merge."""
    labels: str
    """Folder or URI to write the labels to. All nodes of a cluster must share it."""
    clips: ClipOptions
    """How videos become frame pairs."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """Tells occluded pixels from the teacher's flow in both directions."""
    labelling: LabellingOptions = field(default_factory=LabellingOptions)
    """How the labels are written, and by how many processes."""
    status: bool = False
    """Label nothing: print how many videos are finished, left and skipped in --labels, and when it will be
    done. Needs --labels alone."""

    common: ClassVar[tuple[str, ...]] = (
        "status",
        "clips.size",
        "clips.stride",
        "clips.max_pairs_per_video",
        "labelling.num_teachers",
        "labelling.accelerator",
        "labelling.codec",
    )
    excused: ClassVar[dict[str, dict[str, object]]] = {"status": {"videos": "", "teacher": ()}}
    goes_on: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.teacher and not self.status:
            raise ValueError("--teacher is empty; name at least one, such as models:/flow-teacher@champion")

    def teachers(self) -> Teachers:
        """The models of --teacher."""
        return Teachers.fetched([absolute_model(teacher, "--teacher") for teacher in self.teacher])


@dataclass(frozen=True, kw_only=True)
class LabelledStage(TrainingStage):
    """What every stage that learns from pseudo-labels takes."""

    where: str | None = None
    """The pairs to take, for validation too, by columns of the labels: "occluded < 0.6 and photometric < 4".
    Give it to leave out bad labels. Write numbers, texts in single quotes, < <= > >= == !=, and, or, not,
    parentheses; SQL takes the same text."""
    max_spread: float = DEFAULT_MAX_SPREAD
    """Ignore pixels of a label on which the teachers whose mean it is differ by this many pixels or more.
    Lower it to learn only where they agree closely."""
    uncertainty_tolerance: float | None = None
    """Weigh a pixel of a label by exp(-b / this), where b is by how many pixels the teacher expects to be
    off; `none` weighs all alike. Set it, for example to 1 px, if the labels' teacher has
    --network.uncertainty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is not None:
            PairFilter(self.where)
        if self.uncertainty_tolerance is not None and not self.uncertainty_tolerance > 0:
            raise ValueError(f"uncertainty_tolerance {self.uncertainty_tolerance} must be above 0 px")

    def open(self, labels: str) -> PairSet:
        """The selected pairs of the label set at --labels; ValueError for frame pairs without labels."""
        where = None if self.where is None else PairFilter(self.where)
        pairs = replace(
            PairSet.open(absolute(labels, "--labels")),
            max_spread=self.max_spread,
            uncertainty_tolerance=self.uncertainty_tolerance,
            where=where,
        )
        if not pairs.has_labels:
            raise ValueError(
                f"--labels {labels} has frame pairs without labels; make labels with `{typed('pseudolabel')}`"
            )
        if self.uncertainty_tolerance is not None and not pairs.description.has_uncertainty:
            raise ValueError(
                f"--uncertainty-tolerance {self.uncertainty_tolerance} needs labels that tell how far they "
                f"may be off, and those of --labels {labels} don't; label with teachers that were all "
                "trained with --network.uncertainty, or leave it out"
            )
        return pairs

    def starting_point_for(self, labels: PairSet, recipe: str) -> StartingPoint:
        """What --init names, or without it the teacher that made the labels."""
        if self.init != FRESH and ":" in recipe and recipe not in RECIPES:
            raise ValueError(
                f"recipe {recipe} names a network, which only fresh weights take; add --init fresh, or give "
                f"{recipe.partition(':')[0]} to start from a model"
            )
        if self.init is None and labels.teacher is None:
            raise ValueError(
                f"--labels {labels.location} came as files, without the teacher that made them; give --init "
                "fresh to train the recipe's network from fresh weights, or a model"
            )
        return self.starting_point(default=labels.teacher)


@dataclass(frozen=True, kw_only=True)
class Distill(LabelledStage):
    """Options of distill."""

    labels: str
    """Folder or URI of the labels, as pseudolabel or import_labels wrote them."""
    challenge: Challenge
    """What makes a pair harder for the student than it was for the teacher."""
    objective: StudentObjective = field(default_factory=StudentObjective)
    """What the student learns from the labels and from the frames."""

    common: ClassVar[tuple[str, ...]] = (*TrainingStage.common, "where", "objective.view")


@dataclass(frozen=True, kw_only=True)
class Finetune(LabelledStage):
    """Options of finetune."""

    truth: str
    """The data set whose truth is learnt from, NAME:FOLDER with one of the names sintel, kitti2012,
    kitti2015, chairs, chairs2, middlebury, spring, hd1k, tartanair, viper, kubric, kitti2015-stereo,
    middlebury-stereo and scenes (rendered)."""
    init: str | None = field()
    """The model to start from, such as models:/flow-student@champion, hf://<owner>/<name> or
    distillflow:<name>. Take `fresh` for fresh weights of the recipe's network."""
    augmentation: Challenge
    """What is done to the pairs with truth."""
    label_share: float = 1.0
    """Share of the pairs with truth to train on, in (0, 1]. A larger share includes the pairs of a smaller
    one. Lower it to see what fewer labels are worth."""
    objective: SupervisedObjective = field(default_factory=SupervisedObjective)
    """What is learnt from the truth."""
    labels: str | None = None
    """Folder or URI of the labels, as pseudolabel or import_labels wrote them, to learn from beside the truth
    as a student does."""
    challenge: Challenge
    """What is done to the pairs of --labels."""
    student: StudentObjective = field(default_factory=StudentObjective)
    """What is learnt from the pairs of --labels."""
    unlabelled_weight: float = 1.0
    """Weight of the loss on the pairs of --labels; that on the truth has weight 1. Lower it if the error on
    the truth stays high."""

    common: ClassVar[tuple[str, ...]] = (*TrainingStage.common, "labels", "label_share")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truth is not REQUIRED:
            data_set_at(self.truth, "--truth")
        if not 0 < self.label_share <= 1:
            raise ValueError(f"label_share {self.label_share} of the pairs must lie in (0, 1]")
        if self.where is not None and self.labels is None:
            raise ValueError(f"--where {self.where!r} is about pseudo-labels; give --labels too")

    def data_set(self) -> DataSet:
        """The data set at --truth; FileNotFoundError where it has no pairs to learn from."""
        data_set = data_set_at(self.truth, "--truth")
        find_samples(data_set.name, Path(data_set.root), to_learn_from=True)
        return data_set


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Options of evaluate."""

    model: tuple[str, ...]
    """One or several models: checkpoint folders or URIs, runs:/<run id>/model, models:/<name>@<alias>,
    hf://<owner>/<name>, distillflow:<name>, opencv:<name>, torchvision:<name>, ptlflow:<name>, or `zero`,
    which answers that nothing moves."""
    truth: str
    """The data set to judge by, NAME:FOLDER with one of the names sintel, kitti2012, kitti2015, chairs,
    chairs2, middlebury, spring, hd1k, tartanair, viper, kubric, kitti2015-stereo, middlebury-stereo and
    scenes (rendered). All nodes must share the folder. Of a stereo set disparity is judged: its EPE, and D1
    under the name Fl."""
    together: Merge | None = None
    """Also judge all of --model together, as several teachers label: `mean` is their mean flow, and how well
    their spread tells its error; with `first` each vector is that of the first one, in the order of --model,
    whose flow agrees there and back. Needs at least two."""
    json: str | None = None
    """File to write the numbers to, a path or a URI: those of the model, or of several models by name. Give
    it to compare by script."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """Tells occluded pixels from the flow in both directions."""
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    """How the networks are run, and how their flow is refined."""

    common: ClassVar[tuple[str, ...]] = (
        "model",
        "truth",
        "together",
        "json",
        "check.kind",
        "inference.scale",
        "inference.refinement",
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("--model is empty; name at least one, such as zero")
        if self.together and len(self.model) < 2:
            raise ValueError(
                f"--together judges several models, and --model names {self.model[0]} alone; add others"
            )
        data_set_at(self.truth, "--truth")
