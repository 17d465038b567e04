"""The commands as a user types them: the demo, and every job on a started head."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from pipelines.pair_set import PairSet

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def typed(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def runs_by_stage(folder: Path) -> dict[str, list[Run]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("distillflow")
    runs: dict[str, list[Run]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        runs.setdefault(run.data.tags["stage"], []).append(run)
    return runs


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_ends_with_a_table_a_picture_and_the_same_numbers_as_json(tmp_path: Path) -> None:
    demo = typed(sys.executable, "jobs/demo.py", "smoke", "--run-root", str(tmp_path), folder=tmp_path)
    assert demo.returncode == 0, demo.stderr[-4000:]
    (folder,) = tmp_path.glob("demo-*")
    summary = json.loads((folder / "summary.json").read_text())
    for model in ("zero", "dis", "teacher", "student"):
        assert set(summary[model]) == {"epe", "fl", "occlusion_f1"}
        assert set(summary[model]["epe"]) == {"all", "noc", "occ"}
        assert f"{summary[model]['epe']['all']:.2f}" in demo.stdout
    # DIS knows the motion that zero flow does not
    assert summary["dis"]["epe"]["all"] < 0.5 * summary["zero"]["epe"]["all"]
    assert summary["pairs"] == 120
    assert set(summary["seconds"]) >= {"render", "train_teacher", "pseudolabel", "distill", "evaluate"}
    assert cv2.imread(str(folder / "comparison.png")).std() > 10
    assert str(folder / "summary.json") in demo.stdout
    assert "mlflow ui --backend-store-uri sqlite:///" in demo.stdout

    runs = runs_by_stage(tmp_path)
    assert {stage: len(found) for stage, found in runs.items()} == {
        "train_teacher": 1,
        "pseudolabel": 1,
        "distill": 1,
        "evaluate": 4,
        "demo": 1,
    }
    (chain,) = runs.pop("demo")
    assert chain.data.metrics["student/epe/occ"] == pytest.approx(summary["student"]["epe"]["occ"])
    children = [run for found in runs.values() for run in found]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {chain.info.run_id}
    assert {run.info.run_name for run in runs["evaluate"]} == {
        f"evaluate scenes: {name}" for name in ("zero", "dis", "teacher", "student")
    }
    # from the student back to the videos
    (student,), (labels,), (teacher,) = runs["distill"], runs["pseudolabel"], runs["train_teacher"]
    assert student.data.tags["from.labels"] == labels.info.run_id
    assert student.data.tags["label_set"] == labels.data.tags["label_set"]
    assert labels.data.tags["from.teacher"] == teacher.info.run_id
    assert teacher.data.tags["input.videos"] == str(folder / "videos")
    assert teacher.data.params["training.seed"] == "0"
    assert "train/pairs_per_second" in student.data.metrics
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for run in (student, teacher):
        stored = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "model")}
        assert {"model/model.safetensors", "model/model.json"} <= stored


def test_make_demo_hands_the_users_videos_and_arguments_on() -> None:
    made = subprocess.run(
        [
            "make",
            "--dry-run",
            "demo",
            "VIDEOS=my videos",
            "SEED=3",
            "RECIPE=smoke",
            "ARGS=--run-root my_runs",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python jobs/demo.py smoke --videos 'my videos' --seed 3 --run-root my_runs" in made.stdout


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A started head with token authentication; the environment that reaches it."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text("a" * 64)
    port, dashboard, agent = free_ports(3)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    started = typed(
        str(BIN / "ray"),
        *("start", "--head", "--num-cpus", "4", "--port", str(port), "--dashboard-port", str(dashboard)),
        # the agent takes the jobs; on its usual port it would be in the way of another Ray's
        *("--dashboard-agent-listen-port", str(agent)),
        "--disable-usage-stats",
        folder=folder,
        **environment,
    )
    assert started.returncode == 0, started.stderr[-3000:]
    try:
        yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        stop_head(port)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def stop_head(port: int) -> None:
    """Ends this head's processes alone; `ray stop` would end every Ray of the machine."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if any(word.endswith((f":{port}", f"--gcs_server_port={port}")) for word in words):
            process.kill()


def submitted(head: dict[str, str], folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "DISTILLFLOW_REVISION": "abc123"}
    job = None
    deadline = time.monotonic() + 600
    # a head takes jobs some seconds after `ray start` returns
    while job is None or ("No available agent" in job.stderr and time.monotonic() < deadline):
        job = typed(
            str(BIN / "ray"),
            *("job", "submit", "--working-dir", "."),
            *("--runtime-env-json", json.dumps({"env_vars": variables})),
            *("--", *command),
            folder=folder,
            **head,
        )
    return job


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_job_runs_on_a_started_head(head: dict[str, str], tmp_path: Path) -> None:
    for seed in range(2):
        scene = render_scene(seed, SceneOptions(height=64, width=96, num_frames=9))
        write_video(tmp_path / "videos" / f"scene{seed}.mp4", scene.frames)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"not a video")
    truth = render_scene(9, SceneOptions(height=64, width=96, num_frames=3))
    write_truth(tmp_path / "truth" / "scene9", truth)
    videos, run_root, labels, scenes = (
        str(tmp_path / name) for name in ("videos", "runs", "labels", "truth")
    )
    teacher, student = "models:/flow-teacher@champion", "models:/flow-student@champion"
    for command in (
        ("train_teacher", "smoke", "--videos", videos, "--run-root", run_root),
        ("pseudolabel", "smoke", "--videos", videos, "--teacher", teacher, "--labels", labels),
        ("distill", "smoke", "--labels", labels, "--run-root", run_root, "--validate-on", f"scenes:{scenes}"),
        ("evaluate", "--model", student, "zero", "--truth", f"scenes:{scenes}"),
        ("predict", "--model", student, "--videos", f"{videos}/s*.mp4", "--output", str(tmp_path / "flow")),
    ):
        job = submitted(head, tmp_path, "python", f"jobs/{command[0]}.py", *command[1:])
        assert job.returncode == 0, f"{command[0]}: {job.stdout[-4000:]} {job.stderr[-2000:]}"
    assert PairSet.open(labels).index().num_rows == 16
    ledger = json.loads((tmp_path / "labels" / "_ledger.json").read_text())
    assert [Path(entry["video"]).name for entry in ledger] == ["broken.mp4"]
    assert len(list((tmp_path / "flow").rglob("*.flo"))) == 16
    runs = runs_by_stage(tmp_path)
    assert {stage: len(found) for stage, found in runs.items()} == {
        "train_teacher": 1,
        "pseudolabel": 1,
        "distill": 1,
        "evaluate": 2,
        "predict": 1,
    }
    (predicted,), (student_run,) = runs["predict"], runs["distill"]
    # what it was validated on while it trained is what evaluate judges
    judged = {
        run.data.tags["model.name"]: value
        for run in runs["evaluate"]
        for name, value in run.data.metrics.items()
        if name.endswith("/epe/all")
    }
    assert judged[student] == pytest.approx(student_run.data.metrics["final/epe"], rel=1e-2)
    assert "validation/epe" not in runs["train_teacher"][0].data.metrics
    assert predicted.data.tags["from.model"] == student_run.info.run_id
    assert predicted.data.metrics["predict/pairs"] == 16
    assert {run.data.tags["mlflow.source.git.commit"] for each in runs.values() for run in each} == {"abc123"}


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_relative_path_under_a_job_is_refused_with_the_reason(head: dict[str, str], tmp_path: Path) -> None:
    job = submitted(
        head,
        tmp_path,
        *("python", "jobs/train_teacher.py", "smoke", "--videos", "videos", "--run-root", str(tmp_path)),
    )
    assert job.returncode != 0
    assert "--videos 'videos' is a relative path" in job.stdout
