"""Runs, their lineage and the registry, in a real MLflow store."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
import torch
from bare_graph import BareGraph
from clips import TINY, render, save_teacher
from mlflow import MlflowClient
from mlflow.artifacts import load_text
from mlflow.entities.model_registry import ModelVersion
from object_storage import Bucket

from jobs.command import run as run_job
from flowcore.extras import install_line
from flowcore.networks import FlowNetwork, tiny
from flowcore.occlusion import OcclusionCheck
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from jobs import predict
from pipelines import registry, revision, run_store, tracking
from pipelines.checkpoints import CARD_FILE, WEIGHTS_FILE, ModelInfo, save_model
from pipelines.collection import Collection
from pipelines.held_back import HeldBack
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.lineage import Made, StageRun, lineage
from pipelines.models import StartingPoint
from pipelines.pages import VIEW_TAG
from pipelines.pair_set import PairSet
from pipelines.storage import Folder
from pipelines.teachers import Teachers
from pipelines.tracking import Run
from pipelines.training import Trained

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    learning_rate: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class Census:
    radius: int = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    steps: int = 100
    size: tuple[int, int] = (96, 128)
    optimiser: Optimiser = field(default_factory=Optimiser)
    objectives: tuple[object, ...] = (Census(),)
    note: str = "short"


@dataclass(frozen=True, kw_only=True)
class Resumable:
    resume: str | None = None


@pytest.fixture
def project(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with an empty store, while the current folder is another."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "project"
    for each in (elsewhere, folder):
        each.mkdir()
    monkeypatch.chdir(elsewhere)
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def client(project: Path) -> MlflowClient:
    return MlflowClient(run_store.tracking_uri(project))


def unasked(uri: str) -> float:
    raise AssertionError(f"{uri} was judged on the same pairs")


def history(run: Run, key: str) -> list[tuple[int, float]]:
    points = MlflowClient(run.uri).get_metric_history(run.run_id, key)
    return sorted((point.step, point.value) for point in points)


def finished_run(project: Path, content: bytes = b"weights") -> Run:
    """A run that stored a model folder."""
    with tracking.start("train teacher", recipe="smoke", parameters={}, project_folder=project) as run:
        folder = project / "made"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(content)
        run.artifact(folder, "model")
    return run


FIRST_RUN = """
import sys
from pathlib import Path
from pipelines import run_store, tracking
print("ready", flush=True)
sys.stdin.readline()
with tracking.start("evaluate", parameters={}, project_folder=Path(sys.argv[1])):
    pass
"""


def test_jobs_that_start_at_once_share_a_database_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-c", FIRST_RUN, str(tmp_path)]
    jobs = [
        subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("\n")
        job.stdin.flush()
    for job in jobs:
        job.communicate()
    assert [job.returncode for job in jobs] == [0, 0, 0]
    (experiment,) = client(tmp_path).search_experiments(filter_string="name != 'Default'")
    assert len(client(tmp_path).search_runs([experiment.experiment_id])) == 3


KILLED = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from pipelines.run_store import client_of

@event.listens_for(Engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if "CREATE TABLE _alembic_tmp_experiments" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

client_of(sys.argv[1])
"""


def test_whoever_is_killed_while_a_database_is_made_leaves_none_that_cannot_be_opened(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    killed = subprocess.run([sys.executable, "-c", KILLED, uri], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [each.name for each in run_store.client_of(uri).search_experiments()] == ["Default"]


@pytest.fixture
def trained(project: Path) -> Run:
    """A run that logged what a training logs."""
    with tracking.start("train teacher", recipe="smoke", parameters=Options(), project_folder=project) as run:
        run.log(10, {"train/loss/photometric": 2.0, "train/lr": 1e-4})
        run.log(20, {"train/loss/photometric": 1.0})
        run.summary({"sintel/clean/epe/occ": 29.5})
    return run


def test_a_run_records_each_option_under_its_path(project: Path, trained: Run) -> None:
    assert client(project).get_run(trained.run_id).data.params == {
        "steps": "100",
        "size": "(96, 128)",
        "optimiser": "Optimiser",
        "optimiser.learning_rate": "0.0001",
        "objectives.0": "Census",
        "objectives.0.radius": "3",
        "note": "short",
    }


def test_a_run_records_its_stage_recipe_command_and_versions(project: Path, trained: Run) -> None:
    tags = client(project).get_run(trained.run_id).data.tags
    assert (tags["stage"], tags["recipe"]) == ("train teacher", "smoke")
    assert tags["command"]
    assert tags["version.torch"].startswith("2.")


def test_a_run_that_ends_is_finished_and_named_after_its_stage_and_recipe(
    project: Path, trained: Run
) -> None:
    info = client(project).get_run(trained.run_id).info
    assert (info.status, info.run_name) == ("FINISHED", "train teacher smoke")


def test_a_metric_is_logged_at_its_step_and_a_summary_at_the_last_one(trained: Run) -> None:
    assert history(trained, "train/loss/photometric") == [(10, 2.0), (20, 1.0)]
    assert history(trained, "sintel/clean/epe/occ") == [(20, 29.5)]


def test_runs_inside_a_chain_are_its_children_and_those_after_it_are_not(project: Path) -> None:
    with tracking.start(
        "demo", recipe="demo", parameters={}, subject="seed 1", is_chain=True, project_folder=project
    ) as chain:
        with tracking.start("evaluate", parameters={}, subject="dis", project_folder=project) as inside:
            pass
        with tracking.start("evaluate", parameters={}, project_folder=project) as beside:
            pass
    with tracking.start("evaluate", parameters={}, project_folder=project) as after:
        pass
    runs = [client(project).get_run(run.run_id) for run in (chain, inside, beside, after)]
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
    assert parents == [None, chain.run_id, chain.run_id, None]
    assert [run.info.run_name for run in runs] == ["demo: seed 1", "evaluate: dis", "evaluate", "evaluate"]


def test_nothing_is_written_into_the_current_folder(project: Path) -> None:
    run = finished_run(project)
    registry.register(run, "teacher", validation_loss=1.0, validation_digest="a", judge=unasked)
    registry.download("models:/teacher@champion", project)
    assert list(Path.cwd().iterdir()) == []
    assert (project / "mlartifacts").is_dir()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("crop too large"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_that_raises_ends_as_failed_or_killed_and_says_why(
    project: Path, error: BaseException, status: str
) -> None:
    with (
        pytest.raises(type(error)),
        tracking.start("distill", recipe="smoke", parameters={}, project_folder=project) as run,
    ):
        raise error
    stored = client(project).get_run(run.run_id)
    assert stored.info.status == status
    assert type(error).__name__ in stored.data.tags["failure"]


KILLED_WHILE_TRAINING = """
import os, signal, sys
from pathlib import Path
from pipelines import run_store, tracking
folder = Path(sys.argv[1])
with tracking.start("distill", recipe="smoke", parameters={"steps": 20}, project_folder=folder) as run:
    print(run.run_id, flush=True)
    for step in range(1, 13):
        run.log(step, {"loss": 1 / step, "epe": 2 / step})
        if step % 4 == 0:
            run.log(step, {"held_out/epe": 3 / step})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_steps_replayed_after_a_kill_are_logged_once(project: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_TRAINING, str(project)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_id = killed.stdout.strip()
    assert client(project).get_run(run_id).info.status == "RUNNING"
    with tracking.start(
        "distill", recipe="smoke", parameters={"steps": 20}, resume_run_id=run_id, project_folder=project
    ) as run:
        # Training resumes from the checkpoint of step 8 and replays what was logged beyond it.
        for step in range(9, 21):
            run.log(step, {"loss": 1 / step, "epe": 2 / step})
            if step % 4 == 0:
                run.log(step, {"held_out/epe": 3 / step})
    assert run.run_id == run_id
    assert history(run, "loss") == [(step, 1 / step) for step in range(1, 21)]
    assert history(run, "epe") == [(step, 2 / step) for step in range(1, 21)]
    assert history(run, "held_out/epe") == [(step, 3 / step) for step in range(4, 21, 4)]
    stored = client(project).get_run(run_id)
    assert stored.info.status == "FINISHED"
    assert not any(tag.startswith("resumed.") for tag in stored.data.tags)


def test_a_worker_goes_on_with_the_run_of_its_driver(project: Path) -> None:
    with tracking.start("distill", recipe="smoke", parameters={}, project_folder=project) as run:
        run.log(1, {"loss": 3.0})
        worker = Run.reopen(run.uri, run.run_id)
        worker.log(1, {"loss": 3.0})
        worker.log(2, {"loss": 2.0})
    assert history(run, "loss") == [(1, 3.0), (2, 2.0)]


def test_a_run_in_a_file_of_another_machine_is_refused_and_no_file_is_made(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with pytest.raises(ConnectionError, match="mlflow server"):
        Run.reopen(f"sqlite:///{file}", "0" * 32)
    assert not file.exists()


def test_a_resumed_run_keeps_its_parameters_and_tags_the_changed_ones(project: Path) -> None:
    with tracking.start(
        "distill", recipe="smoke", parameters=Options(steps=100), project_folder=project
    ) as run:
        pass
    with tracking.start(
        "distill",
        recipe="smoke",
        parameters=Options(steps=200),
        resume_run_id=run.run_id,
        project_folder=project,
    ):
        pass
    stored = client(project).get_run(run.run_id)
    assert stored.data.params["steps"] == "100"
    assert {tag: text for tag, text in stored.data.tags.items() if tag.startswith("resumed.")} == {
        "resumed.steps": "200"
    }


def test_only_a_run_of_the_same_stage_is_resumed(project: Path) -> None:
    with tracking.start("distill", recipe="smoke", parameters={}, project_folder=project) as run:
        pass
    for run_id, complaint in ((run.run_id, "of stage 'distill'"), ("0" * 32, "no run 0000")):
        with (
            pytest.raises(ValueError, match=complaint),
            tracking.start(
                "fine-tune", recipe="smoke", parameters={}, resume_run_id=run_id, project_folder=project
            ),
        ):
            pass


def test_a_parameter_of_any_length_and_number_is_recorded(project: Path) -> None:
    options = {"long": "x" * 20_000, **{f"option{index}": index for index in range(300)}}
    with tracking.start("distill", recipe="smoke", parameters=options, project_folder=project) as run:
        pass
    params = client(project).get_run(run.run_id).data.params
    assert len(params) == 301
    assert params["long"].endswith("x... (20000 characters)")


def test_passwords_in_locations_are_not_recorded(project: Path) -> None:
    location = "s3://key:secret@bucket/videos"
    with tracking.start(
        "pseudolabel",
        recipe="smoke",
        parameters={"videos": location},
        inputs={"videos": location},
        project_folder=project,
    ) as run:
        run.dataset("videos", location, "ab" * 16, "labelling")
    stored = client(project).get_run(run.run_id)
    assert stored.data.params["videos"] == stored.data.tags["input.videos"] == "s3://***@bucket/videos"
    assert "secret" not in stored.inputs.dataset_inputs[0].dataset.source


def test_the_data_of_a_run_is_recorded_once_under_its_own_digest(project: Path) -> None:
    with tracking.start("distill", recipe="smoke", parameters={}, project_folder=project) as run:
        for _ in range(2):
            run.dataset("labels", "s3://bucket/labels", "0123456789abcdef", "training")
    [data] = client(project).get_run(run.run_id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("labels", "0123456789abcdef")
    assert [tag.value for tag in data.tags] == ["training"]


def test_a_run_is_named_after_what_is_not_as_in_its_recipe(project: Path) -> None:
    options = replace(Options(), note="long", optimiser=Optimiser(learning_rate=2.0))
    for defaults, inputs, name in (
        (options, {}, "distill smoke"),
        (Options(), {}, "distill smoke: optimiser.learning_rate 2.0, note long"),
        (Options(), {"note": "a place"}, "distill smoke: optimiser.learning_rate 2.0"),
    ):
        with tracking.start(
            "distill",
            recipe="smoke",
            parameters=options,
            defaults=defaults,
            inputs=inputs,
            project_folder=project,
        ) as run:
            pass
        assert client(project).get_run(run.run_id).info.run_name == name


def test_a_run_has_the_load_of_its_machine(project: Path) -> None:
    with tracking.start("evaluate", parameters={}, sample_seconds=0.05, project_folder=project) as run:
        while not (points := history(run, "system/cpu_utilization_percentage")):
            pass
    assert all(0 <= value <= 100 for _, value in points)


def test_a_picture_of_a_step_is_stored_once_also_after_reopening(project: Path) -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    with tracking.start("distill", recipe="smoke", parameters={}, project_folder=project) as run:
        run.picture("held out/flow_fw", image, 1)
        run.picture("held out/flow_fw", image, 10)
        reopened = Run.reopen(run.uri, run.run_id)
        reopened.picture("held out/flow_fw", image, 10)
        reopened.picture("held out/flow_bw", image, 10)
    stored = [entry.path for entry in client(project).list_artifacts(run.run_id, "images")]
    assert len([path for path in stored if path.endswith(".png")]) == 3


def test_a_picture_of_other_than_bytes_is_refused(project: Path) -> None:
    with (
        tracking.start("distill", recipe="smoke", parameters={}, project_folder=project) as run,
        pytest.raises(ValueError, match=r"float64 \[8, 12, 3\] and must be uint8"),
    ):
        run.picture("held out/flow_fw", np.zeros((8, 12, 3)), 11)


def champion_of(project: Path) -> ModelVersion:
    return client(project).get_model_version_by_alias("teacher", "champion")


def registered(project: Path, loss: float, digest: str, judge: Callable[[str], float]) -> bool:
    """Whether a model becomes champion."""
    run = finished_run(project)
    outcome = registry.register(run, "teacher", validation_loss=loss, validation_digest=digest, judge=judge)
    assert outcome.is_champion == (champion_of(project).run_id == run.run_id)
    return outcome.is_champion


def test_the_first_model_is_champion_with_its_error_and_what_it_was_judged_on(project: Path) -> None:
    assert registered(project, 2.0, "sintel", unasked)
    tags = champion_of(project).tags
    assert (tags["validation.loss"], tags["validation.digest"]) == ("2.0", "sintel")


def test_on_the_same_data_only_a_better_model_becomes_champion(project: Path) -> None:
    losses = (2.0, 2.5, 1.5)
    assert [registered(project, loss, "sintel", unasked) for loss in losses] == [True, False, True]


def test_a_champion_that_another_set_judged_is_judged_again(project: Path) -> None:
    asked = []

    def judge(uri: str) -> float:
        asked.append(uri)
        return 2.0

    registered(project, 1.5, "sintel", unasked)
    assert [registered(project, loss, "kitti", judge) for loss in (9.0, 1.9)] == [False, True]
    assert asked == ["models:/teacher/1"] * 2


def test_a_champion_that_cannot_be_judged_again_is_replaced(project: Path) -> None:
    def judge(uri: str) -> float:
        raise registry.AbsentModelError("its folder was deleted")

    registered(project, 1.5, "sintel", unasked)
    assert registered(project, 5.0, "chairs", judge)


def test_a_champion_that_was_crowned_meanwhile_is_compared_too(project: Path) -> None:
    first, second, third = (finished_run(project) for _ in range(3))
    registry.register(first, "teacher", validation_loss=3.0, validation_digest="kitti", judge=unasked)

    def judge(uri: str) -> float:
        if uri == "models:/teacher/1":
            registry.register(
                second, "teacher", validation_loss=1.0, validation_digest="a", judge=lambda _: 3.0
            )
        return 3.0

    outcome = registry.register(third, "teacher", validation_loss=2.0, validation_digest="a", judge=judge)
    assert not outcome.is_champion
    assert client(project).get_model_version_by_alias("teacher", "champion").run_id == second.run_id


def test_a_fault_of_the_storage_costs_no_champion_its_place(
    project: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, name = bucket.endpoint, bucket.name
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client(project).create_experiment(tracking.EXPERIMENT, artifact_location=f"s3://{name}/runs")
    champion, challenger = finished_run(project), finished_run(project)
    registry.register(champion, "teacher", validation_loss=1.0, validation_digest="kitti", judge=unasked)

    def judge(uri: str) -> float:
        bucket.server.refused_share = refused_share
        try:
            registry.download(uri, project)
        finally:
            bucket.server.reset()
        return 1.0

    def crowned() -> bool:
        return registry.register(
            challenger, "teacher", validation_loss=90.0, validation_digest="a", judge=judge
        ).is_champion

    refused_share = 1.0
    with pytest.raises(ConnectionError, match=r"can't be read .* now"):
        crowned()
    assert client(project).get_model_version_by_alias("teacher", "champion").run_id == champion.run_id
    refused_share = 0.0
    assert not crowned()
    Folder(bucket.uri()).remove_folder(f"runs/{champion.run_id}/artifacts/model")
    # Nothing at all of the run is there, as where the bucket is another one.
    with pytest.raises(ConnectionError, match=r"can't be read .* now"):
        crowned()
    champion.document("other.json", {})
    assert crowned()


def test_a_model_that_a_stale_listing_leaves_out_is_not_gone(
    project: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", bucket.endpoint)
    client(project).create_experiment(tracking.EXPERIMENT, artifact_location=f"s3://{bucket.name}/runs")
    with tracking.start("train teacher", parameters={}, project_folder=project) as run:
        run.document("other.json", {})
        bucket.server.lists_stale = True
        for folder in ("", "model"):
            run.client.list_artifacts(run.run_id, folder)
        save_model(project / "made", TINY.build(), {})
        run.artifact(project / "made", "model")
    with pytest.raises(ConnectionError, match=r"can't be read .* now"):
        registry.download(f"runs:/{run.run_id}/model", project)
    bucket.server.reset()
    assert (registry.download(f"runs:/{run.run_id}/model", project) / CARD_FILE).is_file()


@dataclass(frozen=True, kw_only=True)
class Sure(HeldBack):
    """Pairs on which every network that can be loaded is as good."""

    def judge(self, network: FlowNetwork, device: torch.device) -> tuple[dict[str, float], np.ndarray]:
        return {"photometric": 1.0, "comparable": 1.0}, np.zeros((1, 1, 3), np.uint8)


def finished_training(project: Path, pairs: str, comparable: float, resume: str | None = None) -> StageRun:
    """A job's run from the end of its training on: it registers what it trained."""
    judge = Sure(
        stage="distill",
        pairs=cast(PairSet, None),
        places=pa.table({"pair_id": [pairs]}),
        check=OcclusionCheck(),
    )
    with lineage("distill", "smoke", Resumable(resume=resume), {}, project_folder=project) as run:
        save_model(project / "trained", TINY.build(), {})
        validation = {"photometric": comparable, "comparable": comparable}
        trained = Trained(model=project / "trained", step=1, ended_at=1, validation=validation, judge=judge)
        run.register(trained, "student")
    return run


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_card(**changes: object) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        card = json.loads((model / CARD_FILE).read_text())
        (model / CARD_FILE).write_text(json.dumps(card | changes))

    return change


def unmounted(model: Path) -> None:
    """The root of all runs' files is an empty folder."""
    root = model.parents[2]
    shutil.rmtree(root)
    root.mkdir()


PASSING = {
    "its disk isn't mounted": (unmounted, "check that the artifact store is there and mounted"),
    "its run's files aren't there": (lambda model: shutil.rmtree(model.parent), "is there and mounted"),
    "a listing lacks its weights": (lambda model: (model / WEIGHTS_FILE).unlink(), f"no {WEIGHTS_FILE} in"),
    "a listing lacks its card": (lambda model: (model / CARD_FILE).unlink(), f"no {CARD_FILE} in"),
    "its weights are copied in half": (lambda model: half(model / WEIGHTS_FILE), "it is damaged, or"),
    "its card is copied in half": (lambda model: half(model / CARD_FILE), "doesn't describe a model"),
    "its card is empty": (lambda model: (model / CARD_FILE).write_bytes(b""), "doesn't describe a model"),
}
"""By what happens to a champion's files, how, and what is told."""
FOR_GOOD: dict[str, Callable[[Path], object]] = {
    "deleted": shutil.rmtree,
    "of another format": with_card(format=1),
    "of an unknown network": with_card(config={"architecture": "perceptron"}),
}


@pytest.fixture
def recorded_in(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose store the environment names, as jobs find it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run_store.tracking_uri(project))
    return project


@pytest.mark.parametrize("happened", PASSING)
def test_files_that_may_come_back_cost_no_champion_its_place(
    happened: str, recorded_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = finished_training(recorded_in, "a", 1.0)
    files = Path(champion.artifact_uri)
    kept = shutil.copytree(files, tmp_path / "kept")
    happen, told = PASSING[happened]
    happen(files / "model")
    with pytest.raises((OSError, ValueError), match=re.escape(told)):
        finished_training(recorded_in, "b", 90.0)
    assert "it stays the champion" in capsys.readouterr().out
    store = client(recorded_in)
    (alone,) = store.search_model_versions("name = 'student'")
    assert store.get_model_version_by_alias("student", "champion").run_id == alone.run_id == champion.run_id
    # Once the files are back, the run goes on where it failed.
    shutil.rmtree(files, ignore_errors=True)
    shutil.copytree(kept, files)
    experiment = store.get_run(champion.run_id).info.experiment_id
    (failed,) = store.search_runs([experiment], "attributes.status = 'FAILED'")
    finished_training(recorded_in, "b", 90.0, resume=failed.info.run_id)
    assert len(store.search_model_versions("name = 'student'")) == 2
    assert store.get_model_version_by_alias("student", "champion").run_id == champion.run_id


@pytest.mark.parametrize("happened", FOR_GOOD)
def test_a_champion_that_is_a_model_no_longer_is_succeeded(happened: str, recorded_in: Path) -> None:
    champion = finished_training(recorded_in, "a", 1.0)
    FOR_GOOD[happened](Path(champion.artifact_uri) / "model")
    successor = finished_training(recorded_in, "b", 90.0)
    assert client(recorded_in).get_model_version_by_alias("student", "champion").run_id == successor.run_id


def test_a_store_that_fails_is_not_taken_for_one_without_the_run_to_resume(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking.start("distill", parameters={}, project_folder=project) as run:
        pass
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("alter table runs rename to elsewhere")
    with (
        pytest.raises(ConnectionError, match="doesn't answer as MLflow"),
        tracking.start("distill", parameters={}, resume_run_id=run.run_id, project_folder=project),
    ):
        pass


def test_a_database_that_takes_no_connection_is_named_before_mlflow_tries_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("psycopg2", reason="psycopg2 is absent: make install brings it")
    # Nothing listens there.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://me:hush@127.0.0.1:{port}/runs")
        with (
            pytest.raises(ConnectionError, match=r"doesn't take MLflow's connection .*refused") as refused,
            tracking.start("distill", parameters={}),
        ):
            pass
    assert "hush" not in str(refused.value)
    assert "Operation will be retried" not in caplog.text


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2"])
def test_a_database_whose_driver_is_missing_names_one_and_its_install_line(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None is how Python says that there is no such module. Without a name, either may be the driver.
    for driver in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://me:hush@127.0.0.1:1/runs")
    with (
        pytest.raises(RuntimeError, match=re.escape(install_line("server"))) as missing,
        tracking.start("distill", parameters={}),
    ):
        pass
    assert "postgresql+psycopg2://" in str(missing.value)
    assert "hush" not in str(missing.value)


def test_a_model_that_finds_nothing_visible_is_no_champion_for_that(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = HeldBack(
        stage="distill",
        pairs=cast(PairSet, None),
        places=pa.table({"pair_id": ["a"]}),
        check=OcclusionCheck(),
    )

    def finished(photometric: float, comparable: float) -> str:
        with lineage("distill", "smoke", {}, {}, project_folder=project) as run:
            model = project / "model"
            model.mkdir(exist_ok=True)
            (model / "model.safetensors").write_bytes(b"weights")
            validation = {"photometric": photometric, "comparable": comparable}
            trained = Trained(model=model, step=1, ended_at=1, validation=validation, judge=judge)
            run.register(trained, "student")
            return run.run_id

    finished(0.0, 9.0)
    better = finished(2.0, 3.0)
    assert "champion" not in capsys.readouterr().out
    finished(1.0, 4.0)
    assert "models:/student@champion stays the earlier version" in capsys.readouterr().out
    assert client(project).get_model_version_by_alias("student", "champion").run_id == better


def test_registering_a_run_again_makes_no_second_version(project: Path) -> None:
    run = finished_run(project)
    first, again = [
        registry.register(
            run, "teacher", validation_loss=2.0, validation_digest="a", judge=unasked, tags={"model": "12"}
        )
        for _ in range(2)
    ]
    assert first == again
    assert again.is_champion
    assert len(client(project).search_model_versions("name = 'teacher'")) == 1


@pytest.mark.parametrize(
    ("loss", "folder", "complaint"),
    [(float("nan"), "model", "must be finite"), (1.0, "weights", "no artifact folder 'weights'")],
)
def test_a_diverged_or_missing_model_is_not_registered(
    project: Path, loss: float, folder: str, complaint: str
) -> None:
    run = finished_run(project)
    with pytest.raises(ValueError, match=complaint):
        registry.register(
            run, "teacher", validation_loss=loss, validation_digest="a", judge=unasked, folder=folder
        )
    assert client(project).search_registered_models() == []


def test_a_model_is_downloaded_by_run_alias_and_version_and_knows_its_run(project: Path) -> None:
    older, newer = finished_run(project, b"older"), finished_run(project, b"newer")
    for run, loss in ((older, 2.0), (newer, 1.0)):
        registry.register(run, "teacher", validation_loss=loss, validation_digest="a", judge=unasked)
    for uri, run, content in (
        ("models:/teacher@champion", newer, b"newer"),
        ("models:/teacher/1", older, b"older"),
        (f"runs:/{newer.run_id}", newer, b"newer"),
        (f"runs:/{older.run_id}/model", older, b"older"),
    ):
        assert (registry.download(uri, project) / "model.safetensors").read_bytes() == content
        assert registry.run_of(uri, project) == run.run_id


@pytest.mark.parametrize(
    "uri", ["models:/nobody@champion", "models:/teacher@best", "models:/teacher/7", f"runs:/{'0' * 32}/model"]
)
def test_a_model_that_mlflow_does_not_have_is_named(project: Path, uri: str) -> None:
    registry.register(
        finished_run(project), "teacher", validation_loss=1.0, validation_digest="a", judge=unasked
    )
    with pytest.raises(FileNotFoundError, match=f"has no {uri}"):
        registry.download(uri, project)


def test_a_run_without_a_model_is_named(project: Path) -> None:
    with tracking.start("distill", recipe="smoke", parameters=Options(), project_folder=project) as run:
        pass
    with pytest.raises(FileNotFoundError, match="there are no files at"):
        registry.download(f"runs:/{run.run_id}/model", project)


@pytest.mark.parametrize("uri", ["models:/teacher/latest", "models:/m-0123", "runs:/"])
def test_another_form_of_model_uri_is_refused(project: Path, uri: str) -> None:
    with pytest.raises(ValueError, match=f"'{uri}' is no model"):
        registry.download(uri, project)


@dataclass(frozen=True, kw_only=True)
class Descended:
    """A student's run, and that of the teacher that it was made from."""

    run: StageRun
    teacher: Run
    made_from: dict[str, Made]


@pytest.fixture
def descended(project: Path) -> Descended:
    teacher = finished_run(project)
    registry.register(teacher, "teacher", validation_loss=1.0, validation_digest="a", judge=unasked)
    start = StartingPoint(
        network=tiny()["pwcnet"],
        info=ModelInfo(config=tiny()["pwcnet"], digest="d1", provenance={"run_id": "r1", "generation": "1"}),
        uri="/models/student",
    )
    made_from: dict[str, Made] = {
        "teacher": "models:/teacher@champion",
        "videos": "/videos",
        "init": start,
    }
    with lineage(
        "distill", "smoke", {}, made_from, generation=start.generation + 1, project_folder=project
    ) as run:
        pass
    return Descended(run=run, teacher=teacher, made_from=made_from)


def test_a_model_carries_what_it_was_made_from(descended: Descended) -> None:
    assert descended.run.provenance == {
        "stage": "distill",
        "recipe": "smoke",
        "run_id": descended.run.run_id,
        "teacher": "models:/teacher@champion",
        "videos": "/videos",
        "init": "d1",
        "generation": "2",
    }


def test_a_run_is_linked_to_the_runs_that_made_what_it_reads(project: Path, descended: Descended) -> None:
    tags = client(project).get_run(descended.run.run_id).data.tags
    assert tags["input.teacher.run"] == descended.teacher.run_id
    assert tags["input.init.run"] == "r1"
    assert "input.videos.run" not in tags


def test_a_run_names_the_places_of_what_it_reads(project: Path, descended: Descended) -> None:
    tags = client(project).get_run(descended.run.run_id).data.tags
    assert {name: tags[f"input.{name}"] for name in descended.made_from} == {
        "teacher": "models:/teacher@champion",
        "videos": "/videos",
        "init": "/models/student",
    }


def test_a_run_counts_its_distillations_in_a_tag_that_the_experiment_s_page_shows(
    project: Path, descended: Descended
) -> None:
    run = client(project).get_run(descended.run.run_id)
    assert run.data.tags["distillations"] == "2"
    page = client(project).get_experiment(run.info.experiment_id)
    assert "tags.`distillations`" in json.loads(page.tags[VIEW_TAG])["selectedColumns"]


@pytest.fixture
def labelled(project: Path, tmp_path: Path) -> tuple[StageRun, PairSet]:
    """(the run that labelled, its labels); run 0123 made the teacher."""
    render(tmp_path / "videos" / "a.mp4", 0, num_frames=3)
    save_teacher(tmp_path / "teacher")
    collection = Collection.find(str(tmp_path / "videos"))
    teachers, location = Teachers.fetched([str(tmp_path / "teacher")]), str(tmp_path / "labels")
    made_from: dict[str, Made] = {"videos": collection.place, **teachers.places}
    with lineage("pseudolabel", "smoke", {}, made_from, project_folder=project) as run:
        summary = write_labels(
            collection,
            teachers,
            location,
            ClipOptions(),
            OcclusionCheck(),
            LabellingOptions(),
            run_id=run.run_id,
            graph=BareGraph(),
        )
        labels = PairSet.open(location)
        run.wrote(summary, labels)
    return run, labels


def test_a_labelling_run_leads_back_to_the_videos_and_to_the_run_of_its_teacher(
    project: Path, tmp_path: Path, labelled: tuple[StageRun, PairSet]
) -> None:
    tags = client(project).get_run(labelled[0].run_id).data.tags
    assert tags["input.teacher.run"] == "0123"
    assert tags["input.videos"] == str(tmp_path / "videos")


def test_a_student_s_run_leads_back_to_the_run_that_labelled(
    project: Path, labelled: tuple[StageRun, PairSet]
) -> None:
    labelling, labels = labelled
    with lineage("distill", "smoke", {}, {"labels": labels}, project_folder=project) as run:
        pass
    tags = client(project).get_run(run.run_id).data.tags
    assert tags["input.labels.run"] == labelling.run_id
    assert tags["label_set"] == labels.label_set


def test_fresh_weights_are_no_input(project: Path) -> None:
    fresh = StartingPoint(network=tiny()["pwcnet"])
    with lineage("distill", "smoke", {}, {"init": fresh}, project_folder=project) as run:
        assert "init" not in run.provenance
    assert not any(tag.endswith(".init") for tag in client(project).get_run(run.run_id).data.tags)


def test_a_run_that_can_be_resumed_says_how(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lineage("distill", "smoke", Resumable(), {}, project_folder=project) as run:
        pass
    assert f"jobs/distill.py with the same options and --resume {run.run_id}" in capsys.readouterr().out


@pytest.mark.parametrize("job", ["demo", "rerun"])
def test_a_training_inside_another_job_names_no_command_that_nobody_typed(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "smoke"])
    with (
        pytest.raises(KeyboardInterrupt) as stop,
        lineage("distill", "smoke", Resumable(), {}, project_folder=project) as run,
    ):
        raise KeyboardInterrupt
    told = capsys.readouterr().out
    assert f"/runs/{run.run_id}?" in told
    assert "--resume" not in told
    assert not hasattr(stop.value, "__notes__")


def test_a_run_in_a_database_names_the_command_before_the_page_that_the_command_serves(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lineage("distill", "smoke", Resumable(), {}, project_folder=project) as run:
        pass
    told = capsys.readouterr().out
    command, page = told.index(run_store.ui_command(project)), told.index("http://127.0.0.1:5000/#/")
    assert command < page < told.index("--resume")
    assert f"/runs/{run.run_id}?" in told[page:]


def test_ctrl_c_says_how_to_go_on_with_the_run(project: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt) as stop,
        lineage("distill", "smoke", Resumable(), {}, project_folder=project) as run,
    ):
        raise KeyboardInterrupt
    (note,) = stop.value.__notes__
    assert note.startswith("to go on: ")
    assert note.endswith(f" --resume {run.run_id}")


def test_a_run_describes_what_it_was_made_from(project: Path, descended: Descended) -> None:
    note = client(project).get_run(descended.run.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("Trains a student")
    assert "model to start from: `/models/student`" in note
    assert f"/runs/{descended.teacher.run_id}?" in note


def test_a_description_that_a_user_wrote_stays(project: Path) -> None:
    with lineage("distill", "smoke", {}, {}, project_folder=project) as run:
        run.tag("mlflow.note.content", "the good one")
    assert client(project).get_run(run.run_id).data.tags["mlflow.note.content"] == "the good one"


def test_a_stage_that_is_resumed_goes_on_with_its_run(project: Path) -> None:
    with lineage("distill", "smoke", Resumable(), {}, project_folder=project) as run:
        pass
    with lineage("distill", "smoke", Resumable(resume=run.run_id), {}, project_folder=project) as again:
        pass
    assert again.run_id == run.run_id


def test_a_run_tells_when_and_how_it_began(project: Path) -> None:
    before = datetime.now(UTC).replace(second=0, microsecond=0)
    with tracking.start("pseudolabel", parameters={}, project_folder=project) as run:
        pass
    told = tracking.origin(run.run_id, project)
    began = datetime.strptime(told["began"], "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert before <= began <= datetime.now(UTC)
    assert told["command"] == shlex.join(sys.argv)[:5000]
    assert told["revision"] == "unknown"


def test_nothing_is_told_of_an_unknown_run(project: Path) -> None:
    assert tracking.origin("0123", project) == {}


def test_the_default_store_is_an_absolute_file_in_the_project_folder(project: Path) -> None:
    assert run_store.tracking_uri(project) == f"sqlite:///{project}/mlflow.db"


def test_what_is_told_to_look_at_the_runs_can_be_typed(project: Path) -> None:
    command = shlex.split(run_store.ui_command(project))
    assert command[1:] == ["ui", "--backend-store-uri", f"sqlite:///{project}/mlflow.db"]
    assert shutil.which(command[0]) is not None


def test_the_default_store_is_refused_in_the_working_folder_of_a_ray_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    with pytest.raises(ValueError, match="--runtime-env-json"):
        run_store.tracking_uri(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert run_store.tracking_uri(copy) == "http://server:5000"


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "sqlite://", "file:///tmp/mlruns", "mlruns", "/tmp/mlruns"]
)
def test_a_store_that_depends_on_the_process_or_is_a_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match=uri) as failure:
        run_store.tracking_uri()
    assert "sqlite:////" in str(failure.value)


@pytest.mark.parametrize("listens", [True, False])
def test_a_server_that_does_not_answer_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    # Listening without accepting: the connection stands and no answer comes.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with (
            pytest.raises(ConnectionError, match=r"http://\*\*\*@127.0.0.1") as failure,
            tracking.start("distill", recipe="smoke", parameters={}),
        ):
            pass
        assert "secret" not in str(failure.value)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Of one commit."""
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return tmp_path


def test_without_git_the_revision_is_what_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISTILLFLOW_REVISION", raising=False)
    assert revision.revision_of(tmp_path) == ("unknown", "unknown")
    monkeypatch.setenv("DISTILLFLOW_REVISION", "abc")
    assert revision.revision_of(tmp_path) == ("abc", "unknown")


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """A folder that a wheel was installed into."""
    (tmp_path / "distillflow_ray-0.1.0.dist-info").mkdir()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "distill.py").write_text("steps = 8")
    return tmp_path


def test_the_revision_of_installed_code_changes_with_its_files(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISTILLFLOW_REVISION", raising=False)
    before = revision.revision_of(site_packages)
    assert before == revision.revision_of(site_packages)
    (site_packages / "jobs" / "distill.py").write_text("steps = 9")
    assert revision.revision_of(site_packages) != before


def test_the_runs_of_installed_code_are_recorded_in_the_current_folder(
    site_packages: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path_factory.mktemp("current")
    monkeypatch.chdir(folder)
    assert run_store.tracking_uri(site_packages) == f"sqlite:///{folder}/mlflow.db"


def test_the_revision_is_that_of_git_and_a_new_file_makes_it_dirty(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLFLOW_REVISION", "abc")
    commit, is_dirty = revision.revision_of(repository)
    assert (len(commit), is_dirty) == (40, "false")
    (repository / "file").touch()
    assert revision.revision_of(repository) == (commit, "true")


def test_code_that_git_does_not_know_is_kept_whatever_it_is_called_and_holds(repository: Path) -> None:
    (repository / "flow_für_alle.py").write_bytes(b"name = 'J\xf6rg'\n")
    code = revision.code_files(repository)[revision.DIFF_FILE]
    assert "+++ b/flow_für_alle.py" in code
    assert "+name = 'J" in code


def test_the_packages_of_a_run_are_the_same_whatever_was_imported() -> None:
    program = (
        "from pathlib import Path; from pipelines import revision; here = Path('.'); "
        "before = revision.code_files(here)[revision.PACKAGES_FILE]; import ray.data; "
        "after = revision.code_files(here)[revision.PACKAGES_FILE]; "
        "print(before == after, 'torch==' in before)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "True True\n"


LOGGING_BESIDE = """
import sys
from pipelines.tracking import Run
run = Run.reopen(sys.argv[1], sys.argv[2])
print("ready", flush=True)
for step in range(30):
    run.log(step, {"worker": step})
"""


def test_two_processes_log_to_one_file_without_losing_a_point(project: Path) -> None:
    with tracking.start("distill", recipe="smoke", parameters={}, project_folder=project) as run:
        command = [sys.executable, "-c", LOGGING_BESIDE, run.uri, run.run_id]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            for step in range(30):
                run.log(step, {"driver": step})
        assert worker.returncode == 0
    assert [len(history(run, key)) for key in ("driver", "worker")] == [30, 30]


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server that keeps the artifacts itself."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/files",
    ]
    # Its runner of evaluation jobs, which nobody uses here, doubles the time to start.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_the_password_in_a_server_s_address_is_kept_nowhere(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A word that isn't in this file, whose changes the run keeps.
    secret = uuid4().hex
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("://", f"://me:{secret}@"))
    write_video(tmp_path / "a.mp4", render_scene(0, SceneOptions(height=64, width=96, num_frames=3)).frames)
    words = ["--videos", str(tmp_path / "a.mp4"), "--output", str(tmp_path / "flow"), "--model"]
    run_job(predict.main, predict.Predict, [*words, "opencv:dis_ultrafast"])
    with pytest.raises(SystemExit):
        run_job(predict.main, predict.Predict, [*words, "models:/none@champion"])
    assert secret not in "".join(capsys.readouterr())
    stored = MlflowClient(server)
    (run,) = stored.search_runs([each.experiment_id for each in stored.search_experiments()])
    assert run.info.run_name == "predict: a.mp4"
    assert secret not in str(run.to_dictionary())
    for name in ("options.json", "uncommitted.diff", "packages.txt"):
        assert secret not in load_text(f"{run.info.artifact_uri}/repeat/{name}")


@pytest.fixture
def served(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run on the server that logged a loss and a picture, twice each, and stored a model."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.safetensors").write_bytes(b"weights")
    with tracking.start("distill", recipe="smoke", parameters=Options()) as run:
        run.log(1, {"loss": 2.0})
        Run.reopen(run.uri, run.run_id).log(1, {"loss": 2.0})
        for _ in range(2):
            run.picture("held out/flow_fw", np.zeros((8, 12, 3), np.uint8), 1)
        run.artifact(tmp_path / "made", "model")
    return run


def test_a_server_keeps_a_metric_and_a_picture_once(server: str, served: Run) -> None:
    assert history(served, "loss") == [(1, 2.0)]
    assert len(MlflowClient(server).list_artifacts(served.run_id, "images")) == 2


def test_a_model_goes_through_a_server(served: Run) -> None:
    outcomes = [
        registry.register(served, "student", validation_loss=1.0, validation_digest="a", judge=unasked)
        for _ in range(2)
    ]
    assert outcomes[0] == outcomes[1]
    downloaded = registry.download(outcomes[0].uri)
    assert (downloaded / "model.safetensors").read_bytes() == b"weights"
    assert registry.run_of(outcomes[0].uri) == served.run_id


def test_a_checkpoint_goes_through_a_server_once_with_its_validation(served: Run, tmp_path: Path) -> None:
    served.log(1, {"validation/comparable": 2.0})
    first, again = [
        registry.log_checkpoint(
            served, 1, tmp_path / "made", params={"stage": "distill"}, judged_on=("held back", "0" * 32)
        )
        for _ in range(2)
    ]
    assert first == again
    assert (registry.download(f"models:/{first}") / "model.safetensors").read_bytes() == b"weights"
    assert registry.run_of(f"models:/{first}") == served.run_id
    (number,) = served.client.get_logged_model(first).metrics
    assert (number.key, number.value, number.dataset_name) == ("validation/comparable", 2.0, "held back")
    assert history(served, "validation/comparable") == [(1, 2.0)]


def test_of_a_registered_model_the_logged_one_is_known_as_long_as_it_is_there(
    served: Run, tmp_path: Path
) -> None:
    version = registry.register(served, "logged", validation_loss=1.0, validation_digest="a", judge=unasked)
    assert registry.logged_model_of(version.uri, served.run_id) is None
    params, judged_on = {"stage": "distill"}, ("held back", "0" * 32)
    result, earlier = [
        registry.log_checkpoint(served, step, tmp_path / "made", params=params, judged_on=judged_on)
        for step in (2, 1)
    ]
    registry.link_version(served, result, version)
    for uri in (version.uri, "models:/logged@champion", f"runs:/{served.run_id}/model", f"models:/{result}"):
        assert registry.logged_model_of(uri, registry.run_of(uri)) == result
    assert registry.logged_model_of(f"models:/{earlier}", served.run_id) == earlier
    served.client.delete_logged_model(result)
    assert registry.logged_model_of(version.uri, served.run_id) is None


def test_a_model_that_a_server_does_not_have_is_named(served: Run) -> None:
    with pytest.raises(FileNotFoundError, match="has no models:/nobody@champion"):
        registry.download("models:/nobody@champion")


def test_a_run_on_a_server_has_an_address(server: str, served: Run) -> None:
    assert served.how_to_look.startswith(f"{server}/#/experiments/")
    assert served.how_to_look.endswith(f"/runs/{served.run_id}?workflowType=machine_learning")


def test_a_run_on_a_server_writes_nothing_into_the_current_folder(served: Run, tmp_path: Path) -> None:
    registry.register(served, "other", validation_loss=1.0, validation_digest="a", judge=unasked)
    registry.download("models:/other@champion")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
