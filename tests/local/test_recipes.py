"""The recipes: what fits what, and the first step of each stage on tiny folders laid out like the data sets.

Labels are made in the test, and what a worker does first is done here: chains on Ray are in end_to_end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from bare_graph import BareGraph

from flowcore.augmentation import Crop
from flowcore.datasets import find_samples
from flowcore.formats import write_flow, write_image, write_mask
from flowcore.hallucination import Challenge
from flowcore.networks import FlowNetwork, full, tiny
from flowcore.objectives import Objective
from flowcore.pairs import Batch, FramePair
from flowcore.samples import load
from flowcore.scenes import Scene, SceneOptions, render_scene, write_video
from jobs import distill, finetune, pseudolabel, train_teacher
from jobs.recipes import RECIPES
from jobs.stages import Distill, TrainingStage
from pipelines.checkpoints import model_digest, save_model
from pipelines.collection import Collection
from pipelines.labelling import LabellingOptions, write_labels, write_pairs
from pipelines.models import StartingPoint
from pipelines.pair_set import PairSet
from pipelines.step import OptimiserStep, Taken
from pipelines.teachers import Teachers

HEIGHT, WIDTH = 64, 96
RAFT = tiny()["raft"]
SMALLEST_FRAMES = {"chairs": (384, 512), "sintel": (436, 1024), "kitti": (370, 1224), "video": (384, 640)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_student_sees_less_than_its_teacher(name: str) -> None:
    teacher, student = RECIPES[name].augmentation.crop, RECIPES[name].challenge.crop
    assert student.height <= teacher.height
    assert student.width <= teacher.width
    assert student != teacher


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_crops_suit_its_networks(name: str) -> None:
    recipe = RECIPES[name]
    for network in recipe.networks.values():
        multiple = network.build().multiple
        for crop in (recipe.augmentation.crop, recipe.challenge.crop, recipe.tuned_augmentation.crop):
            assert crop.height % multiple == crop.width % multiple == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_crops_fit_into_its_smallest_frames(name: str) -> None:
    recipe = RECIPES[name]
    data_set = name.removeprefix("ddflow-").removesuffix(":raft")
    height, width = SMALLEST_FRAMES.get(data_set, recipe.clips.min_size)
    for crop in (recipe.augmentation.crop, recipe.tuned_augmentation.crop):
        assert crop.height <= height
        assert crop.width <= width


def test_a_recipe_has_one_check_for_all_of_its_stages() -> None:
    for job in (train_teacher, pseudolabel, distill, finetune):
        checks = {name: stage.check.kind for name, (_, stage) in job.recipes().items()}
        assert checks["demo"] == RECIPES["demo"].check.kind == "range-map"
        assert checks["sintel"] == "range-map"
        assert checks["kitti"] == checks["ddflow-sintel"] == "forward-backward"


@pytest.mark.parametrize("name", ["chairs", "sintel", "kitti"])
def test_a_paper_s_student_has_our_loss_unless_ddflow_s_is_asked_for(name: str) -> None:
    ours, papers = (RECIPES[each].student_objective for each in (name, f"ddflow-{name}"))
    assert (ours.view, ours.photometric_weight, ours.photometric.clean) == ("confidence", 1.0, True)
    assert (papers.view, papers.photometric_weight, papers.photometric.clean) == ("occlusion", None, False)


@pytest.mark.parametrize("name", ["chairs", "sintel", "kitti"])
def test_the_papers_recipes_have_the_papers_steps(name: str) -> None:
    recipe = RECIPES[name]
    assert (recipe.teacher_objective.unmasked_steps, recipe.teacher.steps) == (100_000, 400_000)
    assert (recipe.student_objective.unmasked_steps, recipe.student.steps) == (0, 300_000)
    for training in (recipe.teacher, recipe.student, recipe.finetune):
        assert (training.global_batch, training.learning_rate) == (4, 1e-4)
        quarter = training.steps // 4
        halvings = [(quarter - 1, 1e-4), (quarter, 5e-5), (2 * quarter, 2.5e-5), (3 * quarter, 1.25e-5)]
        assert [(step, training.learning_rate_at(step)) for step, _ in halvings] == halvings


@pytest.mark.parametrize(
    ("name", "teacher", "tuned", "peak"),
    [("sintel:raft", 15_000, 100_000, 1.25e-4), ("kitti:raft", 75_000, 50_000, 1e-4)],
)
def test_raft_s_recipes_have_the_steps_and_rates_of_smurf_and_of_raft(
    name: str, teacher: int, tuned: int, peak: float
) -> None:
    recipe = RECIPES[name]
    assert (recipe.teacher.steps, recipe.teacher.global_batch, recipe.teacher.clip_norm) == (teacher, 8, 1.0)
    late = teacher * 5 // 6
    rates = [recipe.teacher.learning_rate_at(late + halvings * teacher // 30) for halvings in range(5)]
    assert rates == pytest.approx([2e-4, 1e-4, 5e-5, 2.5e-5, 1.25e-5])
    assert (recipe.finetune.steps, recipe.finetune.global_batch) == (tuned, 6)
    assert recipe.finetune.weight_decay == 1e-5
    rates = [recipe.finetune.learning_rate_at(tuned * share // 40 - 1) for share in (1, 2, 21, 40)]
    assert rates == pytest.approx([peak / 2, peak, peak / 2, 0.0], abs=peak * 1e-4)


def test_the_network_of_raft_s_recipes_is_the_published_one_in_every_stage() -> None:
    for job in (train_teacher, distill, finetune):
        for name in ("chairs:raft", "sintel:raft", "kitti:raft", "video:raft"):
            assert job.recipes()[name][1].network == full()["raft"]


def rendered(seed: int, num_frames: int) -> Scene:
    return render_scene(seed, SceneOptions(height=HEIGHT, width=WIDTH, num_frames=num_frames))


def put_image(path: Path, frame: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, frame)


def put_flow(path: Path, flow: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_flow(path, flow)


def write_chairs(root: Path) -> int:
    for pair in range(1, 6):
        scene = rendered(pair, 2)
        for number, frame in enumerate(scene.frames, start=1):
            put_image(root / "data" / f"{pair:05d}_img{number}.ppm", frame)
        put_flow(root / "data" / f"{pair:05d}_flow.flo", scene.flow_fw[0])
    (root / "FlyingChairs_train_val.txt").write_text("1\n1\n2\n1\n1\n")
    return 4


def write_sintel(root: Path) -> int:
    for name, seed in (("alley_1", 5), ("cave_2", 6)):
        scene = rendered(seed, 3)
        for number, frame in enumerate(scene.frames, start=1):
            for look, image in (("clean", frame), ("final", 255 - frame)):
                put_image(root / "training" / look / name / f"frame_{number:04d}.png", image)
        for number, (flow, occluded) in enumerate(zip(scene.flow_fw, scene.occ_fw, strict=True), start=1):
            put_flow(root / "training" / "flow" / name / f"frame_{number:04d}.flo", flow)
            mask = root / "training" / "occlusions" / name / f"frame_{number:04d}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            write_mask(mask, occluded)
    return 2 * 2 * 2


def write_kitti(root: Path) -> int:
    """Frames 7 to 14, of which two pairs a scene are learnt from."""
    for number in range(3):
        scene = rendered(7 + number, 8)
        for frame, image in enumerate(scene.frames, start=7):
            put_image(root / "training" / "image_2" / f"{number:06d}_{frame:02d}.png", image)
        for truth in ("flow_occ", "flow_noc"):
            put_flow(root / "training" / truth / f"{number:06d}_10.png", scene.flow_fw[3])
    return 3 * 2


def write_films(root: Path) -> int:
    """Returns the pairs of every second frame."""
    root.mkdir()
    for seed in (10, 11):
        write_video(root / f"{seed}.mp4", rendered(seed, 7).frames)
    return 2 * 3


SETS: dict[str, tuple[Callable[[Path], int], str]] = {
    "chairs": (write_chairs, "chairs:"),
    "sintel": (write_sintel, "sintel:"),
    "kitti": (write_kitti, "kitti2015:"),
    "video": (write_films, ""),
    "laptop": (write_films, ""),
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """A recipe's data set in a folder."""

    recipe: str
    folder: Path
    num_pairs: int
    """Of those that are learnt from."""

    @property
    def videos(self) -> str:
        """As the recipe's stages name it."""
        return f"{SETS[self.recipe][1]}{self.folder}"

    def labels_of(self, teacher: str) -> PairSet:
        """What a teacher writes beside the folder."""
        _, stage = pseudolabel.recipes()[self.recipe]
        collection, teachers = Collection.find(self.videos), Teachers.fetched([teacher])
        location, clips = str(self.folder.parent / "labels"), replace(stage.clips, min_size=(56, 88))
        write_labels(collection, teachers, location, clips, stage.check, stage.labelling, graph=BareGraph())
        return PairSet.open(location)


def data_of(recipe: str, folder: Path) -> Data:
    write, _ = SETS[recipe]
    return Data(recipe=recipe, folder=folder / "data", num_pairs=write(folder / "data"))


@pytest.fixture(scope="module", params=SETS)
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Data:
    return data_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def frames(data: Data) -> PairSet:
    """What the teacher of a recipe learns from."""
    _, stage = train_teacher.recipes()[data.recipe]
    location, clips = str(data.folder.parent / "frames"), replace(stage.clips, min_size=(56, 88))
    write_pairs(Collection.find(data.videos), location, clips, LabellingOptions(), graph=BareGraph())
    return PairSet.open(location)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    save_model(folder, RAFT.build(), {})
    return str(folder)


@pytest.fixture(scope="module")
def labels(data: Data, teacher: str) -> PairSet:
    return data.labels_of(teacher)


@pytest.fixture(scope="module")
def labels_of_dis(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    return data_of("laptop", tmp_path_factory.mktemp("dis")).labels_of("opencv:dis_medium")


@pytest.fixture(scope="module")
def labels_of_raft(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    return data_of("laptop", tmp_path_factory.mktemp("raft")).labels_of(teacher)


@dataclass(frozen=True, kw_only=True)
class Learn:
    objective: Objective
    weight: float = 1.0


def small(challenge: Challenge, height: int, width: int) -> Challenge:
    return replace(challenge, crop=Crop(height=height, width=width))


def first_pairs(pairs: PairSet) -> list[FramePair]:
    return [pairs.decode(row) for row in pairs.read_group(pairs.files[0], 0)[:2]]


def batch(pairs: Sequence[FramePair], challenge: Challenge) -> Batch:
    return Batch.stack([challenge(pair, np.random.default_rng(0)) for pair in pairs])


def first_step(
    stage: TrainingStage, network: FlowNetwork, lessons: Sequence[Learn], batches: Sequence[Batch]
) -> Taken:
    """What a worker does with its first batches."""
    training = replace(stage.training, steps=2, global_batch=2)
    return OptimiserStep(network, lessons, stage.check, training).take(batches)


def test_a_recipe_finds_the_pairs_of_its_data_set_s_folder(data: Data, frames: PairSet) -> None:
    assert frames.index().num_rows == data.num_pairs


def test_a_recipe_s_teacher_learns_from_its_data_set_s_folder(data: Data, frames: PairSet) -> None:
    _, stage = train_teacher.recipes()[data.recipe]
    seen = batch(first_pairs(frames), small(stage.augmentation, 56, 88))
    taken = first_step(stage, tiny()["pwcnet"].build(), [Learn(objective=stage.objective)], [seen])
    assert taken.skipped is None


def test_a_recipe_s_teacher_labels_the_pairs_that_it_learnt_from(frames: PairSet, labels: PairSet) -> None:
    learnt, labelled = (sorted(each.index()["pair_id"].to_pylist()) for each in (frames, labels))
    assert labelled == learnt
    assert labels.ledger() == []


def test_each_sequence_of_a_data_set_keeps_its_name_in_the_labels(labels: PairSet) -> None:
    names = duckdb.sql(f"select distinct video from '{labels.location}/*/*.parquet'").fetchall()
    assert len(names) == len(labels.videos())


def student_of(recipe: str, labels: PairSet, **more: Any) -> Distill:
    _, stage = distill.recipes()[recipe]
    return replace(stage, labels=labels.location, run_root="/runs", **more)


def test_a_recipe_s_student_begins_as_the_teacher_of_its_labels(
    data: Data, labels: PairSet, teacher: str
) -> None:
    start = student_of(data.recipe, labels).starting_point_for(labels, data.recipe)
    assert start.network == RAFT
    assert start.info is not None
    assert start.info.digest == model_digest(Path(teacher))


def taught(stage: Distill, start: StartingPoint) -> Taken:
    """A student's first step."""
    network = start.network.build()
    network.load_state_dict(start.weights or network.state_dict())
    seen = batch(first_pairs(stage.open(stage.labels)), small(stage.challenge, 48, 64))
    return first_step(stage, network, [Learn(objective=stage.objective)], [seen])


def test_a_recipe_s_student_learns_from_its_labels(data: Data, labels: PairSet) -> None:
    stage = student_of(data.recipe, labels)
    taken = taught(stage, stage.starting_point_for(labels, data.recipe))
    assert "loss/distillation" in taken.facts


def test_on_a_laptop_a_fresh_network_learns_from_labels_that_needed_no_training(
    labels_of_dis: PairSet,
) -> None:
    stage = student_of("laptop", labels_of_dis, init="fresh", network=tiny()["pwcnet"])
    start = stage.starting_point_for(labels_of_dis, "laptop")
    assert start == StartingPoint(network=tiny()["pwcnet"])
    assert "loss/distillation" in taught(stage, start).facts


def test_labels_that_needed_no_training_leave_no_model_to_start_from(labels_of_dis: PairSet) -> None:
    with pytest.raises(ValueError, match=r"is opencv:dis_medium, .* give --init fresh"):
        student_of("laptop", labels_of_dis).starting_point_for(labels_of_dis, "laptop")


def test_a_recipe_of_raft_s_starts_from_the_teacher_of_its_labels(
    labels_of_raft: PairSet, teacher: str
) -> None:
    start = student_of("video:raft", labels_of_raft).starting_point_for(labels_of_raft, "video:raft")
    assert start.network == RAFT


def test_a_recipe_that_names_a_network_asks_for_fresh_weights(labels_of_dis: PairSet) -> None:
    stage = student_of("smoke:flownets", labels_of_dis)
    with pytest.raises(ValueError, match=r"smoke:flownets names a network, .* add --init fresh"):
        stage.starting_point_for(labels_of_dis, "smoke:flownets")


@pytest.mark.parametrize("network", ["", ":raft"])
@pytest.mark.parametrize("data", ["chairs", "sintel", "kitti"], indirect=True)
def test_each_step_of_a_recipe_s_fine_tuning_learns_from_truth_and_from_labels(
    data: Data, labels: PairSet, network: str
) -> None:
    _, stage = finetune.recipes()[f"{data.recipe}{network}"]
    stage = replace(stage, truth=data.videos, run_root="/runs", init="fresh", labels=labels.location)
    samples = find_samples(stage.data_set().name, data.folder, to_learn_from=True)
    truths = [
        FramePair(
            image1=truth.image1,
            image2=truth.image2,
            flow_fw=truth.flow,
            confidence_fw=truth.valid.astype(np.float32),
        )
        for truth in map(load, samples[:2])
    ]
    seen = [
        batch(truths, small(stage.augmentation, 56, 88)),
        batch(first_pairs(labels), small(stage.challenge, 48, 64)),
    ]
    lessons = [Learn(objective=stage.objective), Learn(objective=stage.student)]
    taken = first_step(stage, RAFT.build(), lessons, seen)
    assert {"loss/supervised", "loss/distillation"} <= taken.facts.keys()


def sparse_pairs() -> list[FramePair]:
    """Pairs of a rendered scene, of whose pixels a fifth has a truth."""
    scene = rendered(12, 5)
    known = np.random.default_rng(0).uniform(size=(HEIGHT, WIDTH)) < 0.2
    return [
        FramePair(
            image1=scene.frames[at],
            image2=scene.frames[at + 1],
            flow_fw=np.where(known, scene.flow_fw[at], np.float32(0)),
            confidence_fw=known.astype(np.float32),
        )
        for at in range(4)
    ]


def test_a_few_steps_of_kitti_s_fine_tuning_of_raft_lower_the_error_on_its_sparse_truth() -> None:
    _, stage = finetune.recipes()["kitti:raft"]
    challenge, rng = small(stage.augmentation, 56, 88), np.random.default_rng(0)
    training = replace(stage.training, steps=40, global_batch=4, learning_rate=1e-3, precision="float32")
    torch.manual_seed(0)
    step = OptimiserStep(RAFT.build(), [Learn(objective=stage.objective)], stage.check, training)
    whole = Batch.stack(sparse_pairs())

    def error() -> float:
        with torch.no_grad():
            outcome = stage.objective(step.network, whole, step=0, check=stage.check)
        return sum(float(each.weight * each.total / each.count) for each in outcome.terms)

    before = error()
    for _ in range(40):
        seen = Batch.stack([challenge(pair, rng) for pair in sparse_pairs()])
        assert step.take([seen]).skipped is None
    assert error() < 0.9 * before


def test_a_few_steps_of_video_s_raft_lower_the_loss_of_its_teacher_and_then_teach_it_its_own_crops() -> None:
    _, stage = train_teacher.recipes()["video:raft"]
    frames = [FramePair(image1=each.image1, image2=each.image2) for each in sparse_pairs()]
    rng = np.random.default_rng(0)
    challenge = replace(small(stage.augmentation, 48, 64), surroundings=16)
    seen = Batch.stack([challenge(pair, rng) for pair in frames])
    own_crops = replace(stage.objective.self_supervision, begins=20, ramp=0)
    objective = replace(stage.objective, self_supervision=own_crops)
    training = replace(stage.training, steps=30, global_batch=4, learning_rate=1e-3, precision="float32")
    torch.manual_seed(0)
    step = OptimiserStep(RAFT.build(), [Learn(objective=objective)], stage.check, training)
    facts = [step.take([seen]).facts for _ in range(21)]
    assert facts[19]["loss/photometric"] < facts[0]["loss/photometric"]
    assert "loss/self_supervision" not in facts[19]
    assert facts[20]["loss/self_supervision"] > 0
