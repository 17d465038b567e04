"""What MLflow's pages show of runs, in the order of a chain."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from pipelines import run_store, tracking
from pipelines.lineage import lineage
from pipelines.pages import NOTE, VIEW_TAG, runs_page


@pytest.fixture
def project(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with an empty store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def client(project: Path) -> MlflowClient:
    return MlflowClient(run_store.tracking_uri(project))


@dataclass(frozen=True, kw_only=True)
class Options:
    resume: str | None = None


def finished(project: Path, *pictures: int, resume: str | None = None) -> Run:
    """A run that logged grey pictures of these values."""
    options, inputs = Options(resume=resume), {"labels": "/data/labels"}
    with lineage("distill", "smoke", options, inputs, project_folder=project) as run:
        for step, value in enumerate(pictures):
            run.picture("validation", np.full((8, 8, 3), value, np.uint8), step)
    return client(project).get_run(run.run_id)


def experiment(project: Path) -> Experiment:
    found = client(project).get_experiment_by_name(tracking.EXPERIMENT)
    assert found is not None
    return found


def test_the_experiment_s_page_leads_to_its_runs_in_the_order_in_which_they_were_made(project: Path) -> None:
    finished(project)
    page = experiment(project)
    assert f"]({runs_page(page.experiment_id)})" in page.tags[NOTE]
    # As MLflow's page names the tag that an address asks for.
    key = runs_page(page.experiment_id).partition("viewStateShareKey=")[2]
    assert f"mlflow.sharedViewState.{key}" == VIEW_TAG
    assert json.loads(page.tags[VIEW_TAG])["orderByAsc"] is True


def test_what_a_user_made_of_the_experiment_s_page_stays(project: Path) -> None:
    finished(project)
    before = experiment(project)
    for name in (NOTE, VIEW_TAG):
        client(project).set_experiment_tag(before.experiment_id, name, "mine")
    finished(project)
    assert {experiment(project).tags[name] for name in (NOTE, VIEW_TAG)} == {"mine"}


def test_a_finished_run_s_description_shows_the_picture_that_it_logged_last(project: Path) -> None:
    run = finished(project, 0, 200)
    note = run.data.tags[NOTE]
    assert note.count("![") == 1
    assert f"&run_uuid={run.info.run_id})" in note
    assert "validation%2Bstep%2B1%2B" in note


def test_the_description_of_a_run_that_was_resumed_knows_what_came_of_it(project: Path) -> None:
    begun = finished(project)
    assert "![" not in begun.data.tags[NOTE]
    assert "![" in finished(project, 0, resume=begun.info.run_id).data.tags[NOTE]
