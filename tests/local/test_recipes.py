"""The recipes: what fits what, and steps of each on tiny folders laid out like the data sets."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import ray.cloudpickle
from bare_graph import BareGraph
from mlflow.entities import Run

from flowcore.augmentation import Crop
from flowcore.formats import write_flow, write_image, write_mask
from flowcore.hallucination import Challenge
from flowcore.networks import tiny
from flowcore.objectives import StudentObjective
from flowcore.pairs import Batch
from flowcore.scenes import Scene, SceneOptions, render_scene, write_video
from jobs import distill, finetune, pseudolabel, rerun, train_teacher
from jobs.recipes import RECIPES
from jobs.stages import LabelledStage
from pipelines import registry, tracking
from pipelines.checkpoints import fetch_model, load_model, save_model
from pipelines.collection import Collection
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.pair_set import PairSet
from pipelines.step import OptimiserStep
from pipelines.training import Source
from pipelines.training_options import TrainingOptions

HEIGHT, WIDTH = 64, 96
SMALLEST_FRAMES = {"chairs": (384, 512), "sintel": (436, 1024), "kitti": (370, 1224), "video": (384, 640)}


@pytest.mark.parametrize("name", RECIPES)
def test_crops_suit_networks_and_frames_and_the_student_sees_less_than_the_teacher(name: str) -> None:
    recipe = RECIPES[name]
    teacher, student = recipe.augmentation.crop, recipe.challenge.crop
    assert student.height <= teacher.height
    assert student.width <= teacher.width
    assert student != teacher
    for network in recipe.networks.values():
        multiple = network.build().multiple
        for crop in (teacher, student):
            assert crop.height % multiple == crop.width % multiple == 0
    height, width = SMALLEST_FRAMES.get(name.removeprefix("ddflow-"), recipe.clips.min_size)
    assert teacher.height <= height
    assert teacher.width <= width


def test_a_recipe_has_one_check_for_all_of_its_stages() -> None:
    for job in (train_teacher, pseudolabel, distill, finetune):
        checks = {name: stage.check.kind for name, (_, stage) in job.recipes().items()}
        assert checks["demo"] == RECIPES["demo"].check.kind == "range-map"
        assert checks["kitti"] == checks["ddflow-sintel"] == "forward-backward"


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


def write_films(root: Path, num_frames: int = 5) -> int:
    """Returns the pairs of every second frame."""
    root.mkdir()
    for seed in (10, 11):
        write_video(root / f"{seed}.mp4", rendered(seed, num_frames).frames)
    return 2 * ((num_frames - 1) // 2)


SETS: dict[str, tuple[Callable[[Path], int], str]] = {
    "chairs": (write_chairs, "chairs:"),
    "sintel": (write_sintel, "sintel:"),
    "kitti": (write_kitti, "kitti2015:"),
    "video": (write_films, ""),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One MLflow store for all recipes, since making one takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield folder


def few(training: TrainingOptions) -> TrainingOptions:
    return replace(training, steps=2, global_batch=2, readers=1, validate_every=2)


def small(challenge: Challenge, height: int, width: int) -> Challenge:
    return replace(challenge, crop=Crop(height=height, width=width))


@pytest.mark.parametrize("name", SETS)
def test_a_recipe_learns_from_its_data_set_s_folder(name: str, tmp_path: Path) -> None:
    write, prefix = SETS[name]
    num_pairs = write(tmp_path / name)
    _, stage = train_teacher.recipes()[name]
    videos, location = f"{prefix}{tmp_path / name}", str(tmp_path / "pairs")
    clips = replace(stage.clips, min_size=(56, 88))
    write_pairs(Collection.find(videos), location, clips, LabellingOptions(), graph=BareGraph())
    pairs = PairSet.open(location)
    assert pairs.index().num_rows == num_pairs
    # What a worker does with its first batch.
    transformation = small(stage.augmentation, 56, 88)
    learned = Source(pairs=pairs, transformation=transformation, objective=stage.objective)
    rows = pairs.read_group(pairs.files[0], 0)[:2]
    batch = Batch.stack([transformation(pairs.decode(row), np.random.default_rng(0)) for row in rows])
    step = OptimiserStep(tiny()["pwcnet"].build(), [learned], stage.check, few(stage.training))
    assert step.take([batch]).skipped is None


@pytest.mark.usefixtures("ray_session")
def test_a_recipe_leads_from_a_data_set_to_a_student_tuned_on_its_truth(project: Path) -> None:
    root, labels, teacher = project / "kitti", str(project / "labels"), str(project / "teacher")
    num_pairs = write_kitti(root)
    videos = f"kitti2015:{root}"
    # The jobs of RAFT; those of the other backbones are elsewhere.
    save_model(Path(teacher), tiny()["raft"].build(), {"generation": "1", "run_id": "of-teacher"})
    labelling = replace(pseudolabel.recipes()["kitti"][1], videos=videos, teacher=(teacher,), labels=labels)
    summary = pseudolabel.pseudolabel(labelling, "kitti")
    assert summary.num_pairs == num_pairs
    assert not summary.ledger
    sources = duckdb.sql(f"select distinct video from '{labels}/*/*.parquet'").fetchall()
    assert len(sources) == summary.num_videos
    second = distill.recipes()["kitti"][1]
    student = distill.distill(
        replace(
            second,
            labels=labels,
            run_root=str(project / "runs"),
            challenge=small(second.challenge, 48, 64),
            training=few(second.training),
            objective=StudentObjective(unmasked_steps=2),
        ),
        "kitti",
    )
    _, info = load_model(fetch_model(student))
    # A student of an earlier round labelled for this one.
    assert (info.generation, info.config) == (2, tiny()["raft"])
    third = finetune.recipes()["kitti"][1]
    ((first,),) = duckdb.sql(f"select min(video) from '{labels}/*/*.parquet'").fetchall()
    where = f"video != '{first}'"
    ((kept,),) = duckdb.sql(f"select count(*) from '{labels}/*/*.parquet' where {where}").fetchall()
    assert 0 < kept < num_pairs
    tuned = finetune.finetune(
        replace(
            third,
            truth=videos,
            run_root=str(project / "runs"),
            init=student,
            augmentation=small(third.augmentation, 56, 88),
            # Every step learns from the labels, too.
            labels=labels,
            challenge=small(third.challenge, 48, 64),
            student=StudentObjective(unmasked_steps=2),
            unlabelled_weight=0.5,
            where=where,
            training=few(third.training),
        ),
        "kitti",
    )
    losses = {"train/loss/supervised", "train/loss/photometric", "train/loss/distillation"}
    assert losses <= run_of(tuned).data.metrics.keys()
    metrics = run_of(tuned).data.metrics
    assert (metrics["labels/pairs"], metrics["labels/pairs_kept"]) == (num_pairs, kept)
    _, info = load_model(fetch_model(tuned))
    assert (info.generation, info.provenance["where"]) == (2, where)

    # Back to where it comes from.
    linked = run_of(tuned).data.tags
    assert linked["from.init"] == run_of(student).info.run_id
    made = run_of(student).data.tags
    assert made["generation"] == "2"
    assert made["from.labels"] == linked["from.labels"]
    labelled = client().get_run(made["from.labels"]).data
    assert labelled.tags["from.teacher"] == "of-teacher"
    assert videos in json.dumps(labelled.tags | labelled.params)


def client() -> tracking.MlflowClient:
    return tracking.MlflowClient(tracking.tracking_uri())


def run_of(uri: str) -> Run:
    return client().get_run(str(registry.run_of(uri)))


# Ray's workers have no test module to import it from.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


# The diff that adds a stage: a student that is asked for brighter frames than its teacher saw.
@dataclass(frozen=True)
class Brighter:
    """Makes the first frame brighter by a factor."""

    factor: float = 1.5

    def __call__(self, pair: Any, generator: np.random.Generator) -> Any:
        image1 = np.clip(pair.image1 * self.factor, 0, 255).astype(np.uint8)
        return replace(pair, image1=image1)


@dataclass(frozen=True, kw_only=True)
class Brighten(LabelledStage):
    """Options of brighten."""

    labels: str
    """Folder or URI of the labels."""
    brighter: Brighter = Brighter()
    """What makes the frames brighter."""


def brighten(stage: Brighten, recipe: str) -> str:
    from pipelines.lineage import lineage
    from pipelines.training import train
    from pipelines.validation import CollapseAlarm

    labels = stage.open(stage.labels)
    start = stage.starting_point(default=labels.teacher)
    made_from: Any = {"labels": labels, "init": start}
    with lineage("brighten", recipe, stage, made_from, generation=labels.generation + 1) as run:
        source = Source(pairs=labels, transformation=stage.brighter, objective=StudentObjective())
        judge = stage.judge(run, CollapseAlarm(max_occluded=1.0))
        return run.register(train(start, [source], stage.training, judge=judge, run=run), "flow-brighter")


@pytest.mark.usefixtures("ray_session")
def test_on_a_laptop_a_fresh_network_learns_from_labels_that_needed_no_training(project: Path) -> None:
    films, labels = project / "my_films", str(project / "laptop-labels")
    write_films(films, num_frames=7)
    labelling = pseudolabel.recipes()["laptop"][1]
    summary = pseudolabel.pseudolabel(
        replace(
            labelling,
            videos=str(films),
            teacher=("opencv:dis_medium",),
            labels=labels,
            clips=replace(labelling.clips, min_size=(56, 88)),
        ),
        "laptop",
    )
    # frames 0 and 2, 2 and 4, 4 and 6 of each
    assert summary.num_pairs == 2 * 3
    stage = distill.recipes()["laptop"][1]
    student = distill.distill(
        replace(
            stage,
            labels=labels,
            run_root=str(project / "runs"),
            init="fresh",
            challenge=small(stage.challenge, 48, 64),
            network=tiny()["pwcnet"],
            training=few(stage.training),
        ),
        "laptop",
    )
    _, info = load_model(fetch_model(student))
    assert (info.generation, info.config) == (1, tiny()["pwcnet"])
    assert "init" not in info.provenance
    assert "from.labels" in run_of(student).data.tags
    assert "from.init" not in run_of(student).data.tags

    # A new stage goes on from there, and rerun finds it with the options that it had.
    new = Brighten(
        labels=labels,
        run_root=str(project / "runs"),
        network=tiny()["pwcnet"],
        init=student,
        training=few(stage.training),
    )
    uri = brighten(new, "laptop")
    _, info = load_model(fetch_model(uri))
    assert info.generation == 1
    begun: list[Brighten] = []
    stages: Any = {**rerun.STAGES, "brighten": (Brighten, lambda stage, _: begun.append(stage) or uri)}
    again = rerun.rerun(rerun.Rerun(run_id=info.provenance["run_id"]), stages)
    assert again == (uri, "the same: 1 losses equal to the last bit")
    assert begun == [replace(new, init=f"runs:/{registry.run_of(student)}/model")]
