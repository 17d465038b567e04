"""Every backbone goes through the same jobs: it learns, labels, is distilled, exported and loaded again.
PWC-Net does so wherever no other is named, RAFT in test_recipes.py."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, evaluate, pseudolabel, train_teacher
from jobs.recipes import RECIPES
from pipelines.checkpoints import fetch_model, load_model
from pipelines.storage import PROJECT_FOLDER

NETWORKS = RECIPES["smoke"].networks
SCENE = SceneOptions(height=64, width=96, num_frames=5)


@pytest.mark.parametrize("backbone", [name for name in NETWORKS if name not in ("pwcnet", "raft")])
def test_a_backbone_is_trained_labels_is_distilled_exported_and_judged(
    backbone: str, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    videos, run_root, labels, scenes = (
        str(tmp_path / name) for name in ("videos", "runs", "labels", "truth")
    )
    write_video(Path(videos) / "scene.mp4", render_scene(0, SCENE).frames)
    write_truth(Path(scenes) / "scene", render_scene(1, replace(SCENE, num_frames=2)))
    recipe = f"smoke:{backbone}"
    _, learning = train_teacher.recipes()[recipe]
    brief = replace(learning.training, steps=1, unmasked_steps=1, validate_every=1)
    teacher = train_teacher.train_teacher(
        recipe, replace(learning, videos=videos, run_root=run_root, training=brief)
    )
    _, labelling = pseudolabel.recipes()["smoke"]
    pseudolabel.pseudolabel("smoke", replace(labelling, videos=videos, teacher=(teacher,), labels=labels))
    _, distilling = distill.recipes()["smoke"]
    student = distill.distill("smoke", replace(distilling, labels=labels, run_root=run_root, training=brief))
    for uri, generation in ((teacher, 0), (student, 1)):
        _, info = load_model(fetch_model(uri))
        assert (info.config, info.generation) == (NETWORKS[backbone], generation)
    # Not in this process, where shapes are checked: what checks them can't be traced.
    export = [sys.executable, "jobs/export_model.py", "--model", student, "--output", str(tmp_path / "a.pt2")]
    subprocess.run(export, cwd=PROJECT_FOLDER, check=True, timeout=200)
    assert (tmp_path / "a.pt2").stat().st_size > 0
    options = evaluate.Evaluate(model=(student,), benchmark="scenes", root=scenes)
    assert (
        evaluate.evaluate_models({"student": student}, options)["student"].total.summary()["epe"]["all"] > 0
    )
