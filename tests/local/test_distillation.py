"""A student's training on Ray, as the job runs it: what it learns from, and what its run and model say."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from clips import label, save_teacher
from mlflow.entities import Run

from flowcore.objectives import StudentObjective
from flowcore.scenes import SceneOptions, render_scene, write_video
from jobs import distill
from jobs.recipes import RECIPES
from jobs.stages import Distill
from pipelines import registry, run_store, tracking
from pipelines.checkpoints import ModelInfo, load_model, save_model
from pipelines.models import fetch_model

pytestmark = pytest.mark.usefixtures("ray_session")

FLOWNETS = RECIPES["smoke"].networks["flownets"]


def save_wild_network(folder: Path) -> None:
    """Whose own two flows agree nowhere."""
    torch.manual_seed(0)
    network = FLOWNETS.build()
    for name, parameter in network.named_parameters():
        if name.startswith("heads.") and name.endswith("bias"):
            torch.nn.init.constant_(parameter, 3.0)
    save_model(folder, network, {"run_id": "of-wild"})


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, ray_session: None
) -> Iterator[Distill]:
    """A wild network's, on labels of a teacher that was itself a student."""
    folder = tmp_path_factory.mktemp("project")
    save_model(folder / "teacher", save_teacher(folder / "teacher"), {"generation": "1"})
    for seed in range(2):
        scene = render_scene(seed, SceneOptions(height=64, width=96, num_frames=9))
        write_video(folder / "videos" / f"{seed}.mp4", scene.frames)
    label(folder)
    save_wild_network(folder / "wild")
    shutil.copy(empty_store, folder)
    _, defaults = distill.recipes()["smoke"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield replace(
            defaults,
            labels=str(folder / "labels"),
            run_root=str(folder / "runs"),
            init=str(folder / "wild"),
            objective=StudentObjective(view="confidence"),
            training=replace(defaults.training, steps=1, learning_rate=1e-6),
            where="frame < 3 and occluded <= 1",
        )


@dataclass(frozen=True, kw_only=True)
class Student:
    info: ModelInfo
    run: Run


def client() -> tracking.MlflowClient:
    return tracking.MlflowClient(run_store.tracking_uri())


@pytest.fixture(scope="module")
def student(stage: Distill) -> Student:
    uri = distill.distill(stage, "smoke")
    return Student(info=load_model(fetch_model(uri))[1], run=client().get_run(str(registry.run_of(uri))))


def test_a_student_learns_from_the_pairs_that_its_filter_keeps(student: Student) -> None:
    metrics = student.run.data.metrics
    assert (metrics["labels/pairs"], metrics["labels/pairs_kept"]) == (16, 6)


def test_a_student_s_run_and_its_model_name_its_filter(stage: Distill, student: Student) -> None:
    assert student.run.data.params["where"] == student.info.provenance["where"] == stage.where


def test_a_student_is_of_the_generation_after_its_teacher_s(student: Student) -> None:
    assert student.info.generation == 2
    assert student.run.data.tags["distillations"] == "2"


def test_a_student_begins_where_init_says_and_not_where_its_teacher_is(student: Student) -> None:
    assert student.info.config == FLOWNETS
    assert student.run.data.tags["input.init.run"] == "of-wild"


def test_labels_teach_even_a_network_whose_own_two_flows_agree_nowhere(student: Student) -> None:
    assert student.run.info.status == "FINISHED"
    assert student.run.data.metrics["validation/occluded"] > 0.95


def test_a_filter_that_keeps_nothing_leaves_no_run(stage: Distill, student: Student) -> None:
    experiment = student.run.info.experiment_id
    before = len(client().search_runs([experiment]))
    with pytest.raises(ValueError, match="keeps none of the 16 pairs"):
        distill.distill(replace(stage, where="frame < 0"), "smoke")
    assert len(client().search_runs([experiment])) == before
