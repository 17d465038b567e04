"""The papers' recipes: what fits what, and two steps of each on tiny folders laid out like the data sets."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from flowcore.formats import write_flow, write_image, write_mask
from flowcore.hallucination import Challenge, Crop
from flowcore.scenes import Scene, SceneOptions, render_scene, write_video
from jobs import distill, finetune, pseudolabel, train_teacher
from jobs.recipes import RECIPES
from pipelines.checkpoints import fetch_model, load_model, save_model
from pipelines.training import TrainingOptions

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
    height, width = SMALLEST_FRAMES.get(name, recipe.clips.min_size)
    assert teacher.height <= height
    assert teacher.width <= width


@pytest.mark.parametrize("name", SMALLEST_FRAMES)
def test_the_papers_recipes_have_the_papers_steps(name: str) -> None:
    recipe = RECIPES[name]
    assert (recipe.teacher.unmasked_steps, recipe.teacher.steps) == (100_000, 400_000)
    assert (recipe.student.unmasked_steps, recipe.student.steps) == (0, 300_000)
    for options in (recipe.teacher, recipe.student):
        assert (options.global_batch, options.learning_rate) == (4, 1e-4)
        assert [options.learning_rate_at(step) for step in (99_999, 100_000, 200_000)] == [1e-4, 5e-5, 2.5e-5]


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


def write_films(root: Path, num_frames: int = 4) -> int:
    root.mkdir()
    for seed in (10, 11):
        write_video(root / f"{seed}.mp4", rendered(seed, num_frames).frames)
    return 2 * (num_frames - 1)


SETS = {
    "chairs": (write_chairs, "chairs:"),
    "sintel": (write_sintel, "sintel:"),
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
    return replace(training, steps=2, unmasked_steps=2, global_batch=2, readers=1, validate_every=2)


def small(challenge: Challenge, height: int, width: int) -> Challenge:
    return replace(challenge, crop=Crop(height=height, width=width))


def teacher_of(name: str, videos: str, project: Path) -> str:
    options = train_teacher.recipes()[name][1]
    is_second_set = name in ("sintel", "kitti")
    # The chain is RAFT's; the other backbones have theirs in test_backbones.py.
    network = RECIPES["smoke"].networks["raft" if name == "kitti" else "pwcnet"]
    if is_second_set:
        save_model(project / "start", network.build(), {"stage": "test"})
    return train_teacher.train_teacher(
        name,
        replace(
            options,
            videos=videos,
            run_root=str(project / "runs"),
            clips=replace(options.clips, min_size=(56, 88)),
            network=network,
            augmentation=small(options.augmentation, 56, 88),
            training=few(options.training),
            init=str(project / "start") if is_second_set else None,
        ),
    )


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("name", ["chairs", "sintel", "video"])
def test_a_recipe_learns_from_its_data_set_s_folder(name: str, project: Path) -> None:
    write, prefix = SETS[name]
    num_pairs = write(project / name)
    teacher = teacher_of(name, f"{prefix}{project / name}", project)
    load_model(fetch_model(teacher))
    (index,) = duckdb.sql(f"select count(*) from '{project}/runs/pairs-*/*/*.parquet'").fetchall()
    assert index == (num_pairs,)
    shutil.rmtree(project / "runs")


@pytest.mark.usefixtures("ray_session")
def test_a_recipe_leads_from_a_data_set_s_folder_to_a_student_tuned_on_its_truth(project: Path) -> None:
    root, labels = project / "kitti", str(project / "labels")
    num_pairs = write_kitti(root)
    videos = f"kitti2015:{root}"
    teacher = teacher_of("kitti", videos, project)
    labelling = pseudolabel.recipes()["kitti"][1]
    summary = pseudolabel.pseudolabel(
        "kitti", replace(labelling, videos=videos, teacher=(teacher,), labels=labels)
    )
    assert summary.num_pairs == num_pairs
    assert not summary.ledger
    sources = duckdb.sql(f"select distinct video from '{labels}/*/*.parquet'").fetchall()
    assert len(sources) == summary.num_videos
    second = distill.recipes()["kitti"][1]
    student = distill.distill(
        "kitti",
        replace(
            second,
            labels=labels,
            run_root=str(project / "runs"),
            challenge=small(second.challenge, 48, 64),
            training=few(second.training),
        ),
    )
    _, info = load_model(fetch_model(student))
    assert (info.generation, info.config) == (1, RECIPES["smoke"].networks["raft"])
    third = finetune.recipes()["kitti"][1]
    finetune.finetune(
        "kitti",
        replace(
            third,
            truth=videos,
            run_root=str(project / "runs"),
            init=student,
            augmentation=small(third.augmentation, 56, 88),
            training=few(third.training),
        ),
    )


@pytest.mark.usefixtures("ray_session")
def test_on_a_laptop_a_fresh_network_learns_from_labels_that_needed_no_training(project: Path) -> None:
    films, labels = project / "my_films", str(project / "laptop-labels")
    write_films(films, num_frames=7)
    labelling = pseudolabel.recipes()["laptop"][1]
    smallest = replace(labelling.labelling.clips, min_size=(56, 88))
    summary = pseudolabel.pseudolabel(
        "laptop",
        replace(
            labelling,
            videos=str(films),
            teacher=("opencv:dis_medium",),
            labels=labels,
            labelling=replace(labelling.labelling, clips=smallest),
        ),
    )
    # frames 0 and 2, 2 and 4, 4 and 6 of each
    assert summary.num_pairs == 2 * 3
    options = distill.recipes()["laptop"][1]
    student = distill.distill(
        "laptop",
        replace(
            options,
            labels=labels,
            run_root=str(project / "runs"),
            init="fresh",
            challenge=small(options.challenge, 48, 64),
            network=RECIPES["smoke"].network,
            training=few(options.training),
        ),
    )
    _, info = load_model(fetch_model(student))
    assert (info.generation, info.config) == (1, RECIPES["smoke"].network)
