"""A training worker, the driver or a node taken away: training goes on from the last checkpoint, to the same
weights, in one run."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from clips import render
from cluster_settings import QUICK_TO_SEE
from mlflow.entities import Run
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from pipelines import registry, tracking
from pipelines.checkpoints import load_model

CLUSTERS = ("training",)
pytestmark = [pytest.mark.usefixtures("ray_address_file"), pytest.mark.cluster, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).resolve().parents[2]
T = TypeVar("T")

DRIVER = """
import json, os, re, signal, sys, time
from dataclasses import dataclass, replace
from pathlib import Path
from flowcore.objectives import TeacherObjective
from jobs.train_teacher import recipes, train_teacher

@dataclass(frozen=True, kw_only=True)
class Deadly(TeacherObjective):
    # Kills a process as a step begins, once, and not before Ray Train has taken a checkpoint. A step waits
    # for `pause` seconds, which leaves the cores to others.
    pause: float
    folder: str
    driver: int
    worker_dies_at: int
    driver_dies_at: int

    def __call__(self, estimate, batch, *, step, check):
        for dies_at, pid in ((self.worker_dies_at, os.getpid()), (self.driver_dies_at, self.driver)):
            marker = Path(self.folder) / f"killed-{dies_at}"
            if step == dies_at and not marker.exists():
                while not any(
                    re.search("step-0*[1-9]", file.read_text())
                    for file in Path(self.folder).glob("runs/*/checkpoint_manager_snapshot.json")
                ):
                    time.sleep(0.05)
                marker.touch()
                os.kill(pid, signal.SIGKILL)
        time.sleep(self.pause)
        return super().__call__(estimate, batch, step=step, check=check)

if __name__ == "__main__":
    videos, folder, pause, (steps, validate_every, workers, worker_dies_at, driver_dies_at) = (
        sys.argv[1], sys.argv[2], float(sys.argv[3]), map(int, sys.argv[4:9])
    )
    resume = sys.argv[9] if len(sys.argv) > 9 else None
    _, stage = recipes()["smoke"]
    training = replace(
        stage.training, steps=steps, validate_every=validate_every, log_every=2,
        workers=workers, min_workers=None if workers == 1 else 1, resize_seconds=2.0,
    )
    stage = replace(
        stage, videos=videos, run_root=f"{folder}/runs", training=training, resume=resume,
        objective=Deadly(
            unmasked_steps=steps, pause=pause, folder=folder, driver=os.getpid(),
            worker_dies_at=worker_dies_at, driver_dies_at=driver_dies_at,
        ),
    )
    print("RESULT", json.dumps(train_teacher(stage, "smoke")))
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(2):
        render(folder / f"scene{seed}.mp4", seed, num_frames=9, height=64, width=96)
    return folder


def start(
    folder: Path,
    videos: Path,
    *resume: str,
    steps: int = 24,
    validate_every: int = 8,
    workers: int = 1,
    worker_dies_at: int = -1,
    driver_dies_at: int = -1,
    pause: float = 0.0,
    **environment: str,
) -> subprocess.Popen[str]:
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    numbers = steps, validate_every, workers, worker_dies_at, driver_dies_at
    return subprocess.Popen(
        [sys.executable, str(driver), str(videos), str(folder), str(pause), *map(str, numbers), *resume],
        env={
            **os.environ,
            **environment,
            "PYTHONPATH": str(REPOSITORY),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(driver: subprocess.Popen[str]) -> str:
    out, errors = driver.communicate(timeout=1500)
    assert driver.returncode == 0, errors[-4000:]
    # Of a cluster the workers print, too.
    return str(json.loads(out.split("RESULT", 1)[1].splitlines()[0]))


def train_worker_of(parent: int) -> psutil.Process | None:
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                return child
    return None


@dataclass(frozen=True, kw_only=True)
class Trained:
    folder: Path
    uri: str

    @property
    def weights_digest(self) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.folder / 'mlflow.db'}")
            return load_model(registry.download(self.uri))[1].digest


def await_(driver: subprocess.Popen[str], found: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + 900
    while (it := found()) is None:
        assert driver.poll() is None, driver.communicate()[1][-4000:]
        assert time.monotonic() < deadline
        # Each look asks MLflow's database, on the cores that train.
        time.sleep(0.5)
    return it


def known_checkpoint(folder: Path) -> int | None:
    """The step of the one that Ray Train has taken and would go on from, but for that of fresh weights."""
    for snapshot in (folder / "runs").glob("*/checkpoint_manager_snapshot.json"):
        return max(map(int, re.findall(r"step-(\d+)", snapshot.read_text())), default=0) or None
    return None


def only_run(folder: Path) -> Run:
    client = client_of(folder)
    (run,) = client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])
    return run


@cache
def client_of(folder: Path) -> tracking.MlflowClient:
    return tracking.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def logged(folder: Path, metric: str) -> dict[int, float]:
    """By step; no step twice."""
    history = client_of(folder).get_metric_history(only_run(folder).info.run_id, metric)
    values = {each.step: each.value for each in history}
    assert len(values) == len(history)
    return values


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, videos: Path, empty_store: Path) -> Trained:
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_store, folder)
    return Trained(folder=folder, uri=result_of(start(folder, videos)))


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory, videos: Path, empty_store: Path) -> Trained:
    """A worker is killed, then the driver, each inside an epoch, of seven steps, and behind a checkpoint; the
    run is resumed."""
    folder = tmp_path_factory.mktemp("disturbed")
    shutil.copy(empty_store, folder)
    driver = start(folder, videos, worker_dies_at=10, driver_dies_at=18)
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL
    assert (folder / "killed-10").exists()
    run_id = only_run(folder).info.run_id
    resumed = start(folder, videos, run_id, worker_dies_at=10, driver_dies_at=18)
    return Trained(folder=folder, uri=result_of(resumed))


def test_killing_a_worker_and_then_the_driver_ends_in_the_same_weights(
    undisturbed: Trained, disturbed: Trained
) -> None:
    assert disturbed.weights_digest == undisturbed.weights_digest


def test_a_training_that_was_killed_and_resumed_is_one_run_with_each_step_once(disturbed: Trained) -> None:
    assert only_run(disturbed.folder).info.status == "FINISHED"
    assert sorted(logged(disturbed.folder, "train/loss")) == list(range(2, 25, 2))


def test_a_training_that_was_killed_tells_the_steps_that_it_did_again(disturbed: Trained) -> None:
    assert max(logged(disturbed.folder, "train/steps_done_again").values()) > 0


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """A training of two workers that lost a node and got another."""

    folder: Path
    checkpoint: int
    """The step of what was kept when the node was about to be taken away."""


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory, videos: Path, empty_store: Path) -> Elastic:
    folder = tmp_path_factory.mktemp("elastic")
    shutil.copy(empty_store, folder)
    # A worker fits each node, and nothing but the driver the head.
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_SEE},
    )
    try:
        cluster.add_node(num_cpus=2)
        node = cluster.add_node(num_cpus=2)
        driver = start(
            folder,
            videos,
            # More than it ever gets to, on any machine.
            steps=1_000_000,
            validate_every=1_000_000,
            workers=2,
            # It only has to be there when nodes come and go.
            pause=0.2,
            RAY_ADDRESS=cluster.address,
            RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="1",
            RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.2",
            # Where Ray hasn't seen yet that a node is gone it first tries to start as many as before.
            RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="5",
        )
        await_(driver, lambda: train_worker_of(os.getpid()))
        await_(driver, lambda: logged(folder, "train/workers") or None)
        # As the command `ray drain-node` does, which takes seconds to start.
        deadline = int((time.time() + 120) * 1000)
        preemption = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        GcsClient(cluster.address).drain_node(node.node_id, preemption, "a spot machine", deadline)
        step = await_(driver, lambda: known_checkpoint(folder))
        cluster.remove_node(node, allow_graceful=False)
        await_(driver, lambda: numbers_of_workers(folder)[1:] or None)
        cluster.add_node(num_cpus=2)
        await_(driver, lambda: numbers_of_workers(folder)[2:] or None)
        driver.kill()
        driver.communicate()
    finally:
        cluster.shutdown()
    return Elastic(folder=folder, checkpoint=step)


def test_fewer_workers_go_on_without_a_node_and_more_where_one_comes(elastic: Elastic) -> None:
    first, without, with_another = numbers_of_workers(elastic.folder)
    assert without < first == with_another


def test_a_training_goes_on_from_what_was_kept_before_a_node_was_taken_away(elastic: Elastic) -> None:
    # Both times, since it is never validated.
    again = logged(elastic.folder, "train/steps_done_again")
    assert [at - steps for at, steps in sorted(again.items())] == [elastic.checkpoint] * 2


def test_no_step_is_logged_twice_whoever_comes_and_goes(elastic: Elastic) -> None:
    steps = sorted(logged(elastic.folder, "train/loss"))
    assert steps == list(range(2, steps[-1] + 1, 2))


def numbers_of_workers(folder: Path) -> list[float]:
    """One after the other, in the order of steps."""
    workers = logged(folder, "train/workers")
    return [number for number, _ in groupby(workers[step] for step in sorted(workers))]
