"""The tutorial, as a notebook: it is the page, and a reader who runs it comes to its end."""

import os
import re
from pathlib import Path

import cv2
import nbformat
import pytest
from clips import render
from nbclient import NotebookClient
from terminal import BIN, REPOSITORY, client_of

from docs.make.notebook import NOTEBOOK, PAGE, notebook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_FRAMES = 9


def test_the_notebook_is_the_page() -> None:
    """`python -m docs.make.notebook` makes it so."""
    assert nbformat.read(NOTEBOOK, as_version=4) == notebook(PAGE.read_text())


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who ran the notebook."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "docs").mkdir()
    (folder / "jobs").symlink_to(REPOSITORY / "jobs")
    for seed in range(2):
        render(folder / "my_videos" / f"scene{seed}.mp4", seed, NUM_FRAMES, height=72, width=120)
    read = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        NotebookClient(read, resources={"metadata": {"path": str(folder / "docs")}}).execute()
    return folder


@pytest.mark.parametrize("flow", ["first-flow", "flow"])
def test_the_tutorial_ends_in_the_flow_of_every_pair_and_its_picture(followed: Path, flow: str) -> None:
    for kind in (".flo", ".png"):
        assert len(list((followed / "runs" / "tutorial" / flow).rglob(f"*{kind}"))) == 2 * (NUM_FRAMES - 1)
    picture = next((followed / "runs" / "tutorial" / flow).rglob("*.png"))
    assert cv2.imread(str(picture)).std() > 10


def test_the_tutorial_makes_a_page_of_its_labels(followed: Path) -> None:
    assert "<html" in (followed / "runs" / "tutorial" / "gallery.html").read_text()


def test_every_metric_of_the_tutorial_s_runs_is_documented(followed: Path) -> None:
    """But for those that MLflow logs of the machine."""
    page = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    documented = re.findall(r"`([a-z][\w/<>.]+)`", page)
    patterns = [re.sub(r"<\w+>", r"[\\w-]+", name).replace("...", ".+") for name in documented]
    client = client_of(followed)
    (experiment,) = (each for each in client.search_experiments() if each.name == "distillflow")
    logged = {name for run in client.search_runs([experiment.experiment_id]) for name in run.data.metrics}
    undocumented = {
        name
        for name in logged
        if not name.startswith("system/") and not any(re.fullmatch(each, name) for each in patterns)
    }
    assert undocumented == set()
