"""The demo as a user types it: its table, its picture, its numbers, and what its runs say of each other."""

import json
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
from mlflow.entities import Run
from terminal import client_of, runs_by_stage, typed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MODELS = ("zero", "dis", "teacher", "student")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo left."""

    project: Path
    """Where its runs are recorded."""
    folder: Path
    told: str
    errors: str
    """What it wrote to stderr."""
    summary: dict[str, Any]
    runs: dict[str, list[Run]]
    """By stage."""

    def run(self, stage: str) -> Run:
        """The only one of its stage."""
        (run,) = self.runs[stage]
        return run


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    project = tmp_path_factory.mktemp("project")
    (project / "home" / ".ray").mkdir(parents=True)
    command = [sys.executable, "jobs/demo.py", "smoke", "--run-root", str(project)]
    ended = typed(*command, folder=project, HOME=str(project / "home"))
    assert ended.returncode == 0, ended.stderr[-4000:]
    (folder,) = project.glob("demo-*")
    return Demo(
        project=project,
        folder=folder,
        told=ended.stdout,
        errors=ended.stderr,
        summary=json.loads((folder / "summary.json").read_text()),
        runs=runs_by_stage(project),
    )


def test_the_key_to_the_embedded_ray_is_the_user_s_alone(demo: Demo) -> None:
    # Whoever has it runs code there.
    assert stat.S_IMODE((demo.project / "home" / ".ray" / "auth_token").stat().st_mode) == 0o600


def test_the_demo_s_table_and_its_json_have_the_same_numbers(demo: Demo) -> None:
    for model in MODELS:
        numbers = demo.summary[model]
        assert set(numbers) == {"epe", "fl", "occlusion_f1"}
        assert set(numbers["epe"]) == {"all", "noc", "occ"}
        assert f"{numbers['epe']['all']:.2f}" in demo.told


def test_in_the_demo_dis_knows_the_motion_that_zero_flow_does_not(demo: Demo) -> None:
    assert demo.summary["dis"]["epe"]["all"] < 0.5 * demo.summary["zero"]["epe"]["all"]


def test_the_demo_labels_every_pair_of_its_scenes(demo: Demo) -> None:
    assert demo.summary["pairs"] == 120


def test_the_demo_says_how_long_each_stage_took(demo: Demo) -> None:
    stages = {"render", "train_teacher", "pseudolabel", "distill", "evaluate"}
    assert set(demo.summary["seconds"]) >= stages


def test_the_demo_ends_with_a_picture(demo: Demo) -> None:
    assert cv2.imread(str(demo.folder / "comparison.png")).std() > 10


def test_the_demo_says_where_its_numbers_are_and_how_to_look_at_its_runs(demo: Demo) -> None:
    assert str(demo.folder / "summary.json") in demo.told
    assert "mlflow ui --backend-store-uri sqlite:///" in demo.told


def test_ray_s_own_processes_write_nothing_between_the_lines_of_the_demo(demo: Demo) -> None:
    assert re.findall(r".*\w+\.cc:\d+.*", demo.told + demo.errors) == []


def test_the_demo_leaves_a_run_of_each_stage_and_of_each_evaluation(demo: Demo) -> None:
    assert {stage: len(found) for stage, found in demo.runs.items()} == {
        "train_teacher": 1,
        "pseudolabel": 1,
        "distill": 1,
        "evaluate": 4,
        "demo": 1,
    }
    assert {run.info.run_name for run in demo.runs["evaluate"]} == {
        f"evaluate: scenes, {name}" for name in MODELS
    }


def test_the_demo_s_own_run_is_above_the_others_and_has_its_numbers(demo: Demo) -> None:
    chain = demo.run("demo")
    epe = demo.summary["student"]["epe"]["occ"]
    assert chain.data.metrics["student/epe/occ"] == pytest.approx(epe)
    others = [run for stage, found in demo.runs.items() for run in found if stage != "demo"]
    assert {run.data.tags["mlflow.parentRunId"] for run in others} == {chain.info.run_id}


def test_the_demo_s_own_run_says_what_it_made_and_shows_it(demo: Demo) -> None:
    told = demo.run("demo").data.tags["mlflow.note.content"]
    assert f"Labels: `{demo.folder / 'labels'}`" in told
    assert f"Model: `{demo.summary['models']['student']}`" in told
    assert "![the picture that was logged last](get-artifact?path=images%2Fdemo~comparison" in told


def test_the_demo_says_how_good_its_labels_look(demo: Demo) -> None:
    assert "quality, medians of" in demo.told


def test_the_demo_s_student_leads_back_to_its_labels_their_teacher_and_the_videos(demo: Demo) -> None:
    student, labels, teacher = (demo.run(name) for name in ("distill", "pseudolabel", "train_teacher"))
    assert student.data.tags["input.labels.run"] == labels.info.run_id
    assert student.data.tags["label_set"] == labels.data.tags["label_set"]
    assert labels.data.tags["input.teacher.run"] == teacher.info.run_id
    assert teacher.data.tags["input.videos"] == str(demo.folder / "videos")


def test_a_training_s_run_has_its_options_its_speed_and_its_model(demo: Demo) -> None:
    for stage in ("train_teacher", "distill"):
        run = demo.run(stage)
        assert run.data.params["training.seed"] == "0"
        assert "train/pairs_per_second" in run.data.metrics
        stored = {each.path for each in client_of(demo.project).list_artifacts(run.info.run_id, "model")}
        assert {"model/model.safetensors", "model/model.json"} <= stored
