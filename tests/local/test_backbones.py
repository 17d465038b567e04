"""Every network learns from frames, labels them, starts its student and is judged. Its jobs on Ray are
PWC-Net's wherever no other is named, FlowNetS's in test_distillation.py and RAFT's in test_new_stage.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bare_graph import BareGraph

from flowcore.augmentation import Crop
from flowcore.objectives import Objective, StudentObjective, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from jobs.recipes import RECIPES
from pipelines.checkpoints import load_model, save_model
from pipelines.collection import Collection
from pipelines.held_back import HeldBack
from pipelines.labelling import LabellingOptions, write_labels, write_pairs
from pipelines.models import StartingPoint, starting_point
from pipelines.pair_set import PairSet
from pipelines.step import OptimiserStep
from pipelines.teachers import Teachers
from pipelines.training import Source
from pipelines.training_options import TrainingOptions

NETWORKS = RECIPES["smoke"].networks
CHECK = OcclusionCheck()


def one_step(start: StartingPoint, pairs: PairSet, objective: Objective, folder: Path) -> None:
    """Saves what the first pairs of a set make of a network."""
    source = Source(pairs=pairs, transformation=Crop(height=48, width=64), objective=objective)
    rows = pairs.read_group(pairs.files[0], 0)[:2]
    batch = Batch.stack([source.transformation(pairs.decode(row), np.random.default_rng(0)) for row in rows])
    torch.manual_seed(0)
    network = start.network.build()
    if start.weights is not None:
        network.load_state_dict(start.weights)
    step = OptimiserStep(network, [source], CHECK, TrainingOptions(steps=1, global_batch=2))
    assert step.take([batch]).skipped is None
    save_model(folder, step.result, {})


@pytest.mark.parametrize("backbone", [name for name in NETWORKS if name != "pwcnet"])
def test_a_network_learns_labels_starts_its_student_and_is_judged(backbone: str, tmp_path: Path) -> None:
    videos, frames, labels = (str(tmp_path / name) for name in ("videos", "frames", "labels"))
    scene = render_scene(0, SceneOptions(height=64, width=96, num_frames=5))
    write_video(Path(videos) / "scene.mp4", scene.frames)
    collection = Collection.find(videos)
    write_pairs(collection, frames, ClipOptions(), LabellingOptions(), graph=BareGraph())
    fresh = StartingPoint(network=NETWORKS[backbone])
    one_step(fresh, PairSet.open(frames), TeacherObjective(unmasked_steps=1), tmp_path / "teacher")

    teachers = Teachers.fetched([str(tmp_path / "teacher")])
    write_labels(collection, teachers, labels, ClipOptions(), CHECK, LabellingOptions(), graph=BareGraph())
    labelled = PairSet.open(labels)
    start = starting_point(labelled.teacher, RECIPES["smoke"].network)
    assert start.network == NETWORKS[backbone]
    one_step(start, labelled, StudentObjective(unmasked_steps=1), tmp_path / "student")

    judged = HeldBack(pairs=labelled, places=labelled.index(), check=CHECK, stage="student")
    scores = [judged.score(tmp_path / name) for name in ("teacher", "student")]
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]
    assert load_model(tmp_path / "student")[1].config == NETWORKS[backbone]
