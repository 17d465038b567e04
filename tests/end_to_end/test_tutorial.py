"""The tutorial's commands, as its page shows them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from mlflow import MlflowClient

from flowcore.scenes import SceneOptions, render_scene, write_video

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_FRAMES = 9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_goes_from_videos_to_a_student_and_its_flow(tmp_path: Path) -> None:
    for name in ("jobs", "docs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    for seed in range(2):
        scene = render_scene(seed, SceneOptions(height=72, width=120, num_frames=NUM_FRAMES))
        write_video(tmp_path / "my_videos" / f"scene{seed}.mp4", scene.frames)

    typed = subprocess.run(
        ["bash", "-eu", "-c", bash_blocks(REPOSITORY / "docs" / "tutorial.md")],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert typed.returncode == 0, f"{typed.stdout[-3000:]} {typed.stderr[-3000:]}"
    for flow in ("first-flow", "flow"):
        for kind in (".flo", ".png"):
            assert len(list((tmp_path / "runs" / flow).rglob(f"*{kind}"))) == 2 * (NUM_FRAMES - 1)
    picture = next((tmp_path / "runs" / "first-flow").rglob("*.png"))
    assert cv2.imread(str(picture)).std() > 10
    assert "<html" in (tmp_path / "runs" / "gallery.html").read_text()
    assert_metrics_are_documented(tmp_path)


def bash_blocks(page: Path) -> str:
    """What a reader types: a page's blocks that are marked `bash`, in one shell."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))


def assert_metrics_are_documented(folder: Path) -> None:
    """Every metric of the runs is on the reference's page, but for those that MLflow logs of the machine."""
    page = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    documented = re.findall(r"`([a-z][\w/<>.]+)`", page)
    patterns = [re.sub(r"<\w+>", r"[\\w-]+", name).replace("...", ".+") for name in documented]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = (each for each in client.search_experiments() if each.name == "distillflow")
    logged = {name for run in client.search_runs([experiment.experiment_id]) for name in run.data.metrics}
    undocumented = {
        name
        for name in logged
        if not name.startswith("system/") and not any(re.fullmatch(each, name) for each in patterns)
    }
    assert undocumented == set()
