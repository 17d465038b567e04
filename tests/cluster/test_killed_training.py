"""A training worker and then the driver killed with -9: training goes on from the last checkpoint, to the
same weights, in one run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flowcore.scenes import SceneOptions, render_scene, write_video
from pipelines import tracking
from pipelines.checkpoints import load_model

REPOSITORY = Path(__file__).resolve().parents[2]

DRIVER = """
import json, sys
import tyro
from dataclasses import replace
from pathlib import Path
from jobs.command import connect
from jobs.recipes import RECIPES
from jobs.train_teacher import recipes, train_teacher

if __name__ == "__main__":
    videos, root, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    resume = sys.argv[4] if len(sys.argv) > 4 else None
    _, options = recipes()["smoke"]
    training = replace(options.training, steps=steps, unmasked_steps=steps, validate_every=10, log_every=5)
    connect()
    options = replace(options, videos=videos, run_root=root, training=training, resume=resume)
    uri = train_teacher("smoke", options)
    print("RESULT", json.dumps(uri))
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(2):
        scene = render_scene(seed, SceneOptions(height=64, width=96, num_frames=9))
        write_video(folder / f"scene{seed}.mp4", scene.frames)
    return folder


def start(folder: Path, videos: Path, steps: int, *resume: str) -> subprocess.Popen[str]:
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, str(driver), str(videos), str(folder / "runs"), str(steps), *resume],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(driver: subprocess.Popen[str]) -> str:
    out, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors[-4000:]
    return str(json.loads(out.split("RESULT", 1)[1]))


def train_worker_of(driver: subprocess.Popen[str]) -> psutil.Process:
    children = psutil.Process(driver.pid).children(recursive=True)
    return next(child for child in children if "RayTrainWorker" in " ".join(child.cmdline()))


def weights_digest(folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    return load_model(tracking.download(uri))[1].digest


def await_checkpoint(driver: subprocess.Popen[str], folder: Path, step: int) -> str:
    """The id of the run that wrote it."""
    deadline = time.monotonic() + 200
    while not (written := list((folder / "runs").glob(f"*/step-{step:08}/model.json"))):
        assert driver.poll() is None, driver.communicate()[1][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return written[0].parent.parent.name


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_killing_a_worker_and_then_the_driver_ends_in_the_same_weights_and_one_run(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    calm = result_of(start(undisturbed, videos, steps=60))

    driver = start(disturbed, videos, steps=60)
    await_checkpoint(driver, disturbed, 10)
    os.kill(train_worker_of(driver).pid, signal.SIGKILL)
    # only a worker that went on from a checkpoint gets there
    run_id = await_checkpoint(driver, disturbed, 30)
    driver.kill()
    driver.communicate()
    resumed = result_of(start(disturbed, videos, 60, run_id))

    assert weights_digest(disturbed, resumed, monkeypatch) == weights_digest(undisturbed, calm, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disturbed / 'mlflow.db'}")
    client = tracking.MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == run_id
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run_id, "train/loss")]
    assert sorted(set(steps)) == list(range(5, 61, 5))
    assert len(steps) == len(set(steps))
