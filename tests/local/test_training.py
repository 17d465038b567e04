"""The one training loop on real Ray, MLflow and Parquet: resuming, validation beside it, early ends, errors.
What a step does to a network is in unit/test_step.py, what a judge says in unit/test_validation.py."""

import json
import math
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bare_graph import BareGraph
from ray import cloudpickle
from ray.train import WorkerGroupError

from flowcore.augmentation import ChannelPermutation, Crop
from flowcore.hallucination import Challenge
from flowcore.networks import PWCNetConfig
from flowcore.objectives import Estimator, Objective, Outcome, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from jobs import train_teacher
from pipelines import tracking
from pipelines.checkpoints import (
    CARD_FILE,
    WEIGHTS_FILE,
    StartingPoint,
    load_model,
    load_training_state,
    save_model,
)
from pipelines.collection import Collection
from pipelines.feed import Plan
from pipelines.held_back import HeldBack
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.lineage import StageRun
from pipelines.pair_set import PairSet, one_of_each_size
from pipelines.split import hold_back
from pipelines.training import Source, Trained, train
from pipelines.training_options import TrainingOptions
from pipelines.validation import CollapseAlarm, Judge, TrainingStopped
from pipelines.worker import KEPT_FOLDER

# Ray's workers can't import this module; they get what it defines by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NETWORK = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,), radius=2)
OPTIONS = TrainingOptions(
    steps=4, global_batch=4, learning_rate=4e-4, log_every=2, validate_every=2, readers=1
)
# Without a mask, so that fresh weights have something to learn from.
TEACHER = TeacherObjective(unmasked_steps=4)
NO_ALARM = CollapseAlarm(max_occluded=2.0, min_flow_variance=-1.0, must_improve=False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PairSet:
    folder = tmp_path_factory.mktemp("pairs")
    for seed in range(2):
        scene = render_scene(seed, SceneOptions(height=64, width=80, num_frames=13))
        write_video(folder / "videos" / f"scene{seed}.mp4", scene.frames)
    write_pairs(
        Collection.find(str(folder / "videos")),
        str(folder / "set"),
        ClipOptions(size=(64, 80), chunk_pairs=4),
        LabellingOptions(),
        graph=BareGraph(),
    )
    return PairSet.open(str(folder / "set"))


def source(pairs: PairSet, objective: Objective = TEACHER, crop: Crop | None = None) -> Source:
    crop = crop or Crop(height=48, width=64)
    transformation = Challenge(crop=crop, channels=ChannelPermutation(chance=0.0))
    return Source(pairs=pairs, transformation=transformation, objective=objective)


def trained(
    source: Source,
    project_folder: Path,
    options: TrainingOptions = OPTIONS,
    *,
    judge: Judge | None = None,
    resume: str | None = None,
) -> tuple[Trained, str]:
    with tracking.start(
        "train_teacher",
        recipe="test",
        parameters=options,
        resume_run_id=resume,
        project_folder=project_folder,
    ) as run:
        provenance = {"stage": "train_teacher", "run_id": run.run_id}
        stage_run = StageRun(run, "train_teacher", str(project_folder / "runs"), provenance)
        judge = judge or Judge(alarm=NO_ALARM)
        return (
            train(StartingPoint(network=NETWORK), [source], options, judge=judge, run=stage_run),
            run.run_id,
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@dataclass(frozen=True)
class Announcing:
    """The teacher's objective; makes a file when a step begins."""

    file: Path
    unmasked_steps: int = 4

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        self.file.touch()
        return TEACHER(estimate, batch, step=step, check=check)


@dataclass(frozen=True, kw_only=True)
class Waiting(PairSet):
    """Pairs that can be read once a file is there; without one, never."""

    file: Path | None

    def read(self, place: Mapping[str, Any]) -> dict[str, Any]:
        for _ in range(9000 if self.file else 0):
            if self.file and self.file.exists():
                return super().read(place)
            time.sleep(0.1)
        raise OSError("no such pairs any more")


@pytest.fixture(scope="module")
def failed(pairs: PairSet, project: Path) -> tuple[str, str]:
    """The error of a training whose validation can't be done, and its run."""
    averaged = replace(OPTIONS, ema_decay=0.4, max_failures=0)
    lost = Judge(truth=Waiting(**vars(pairs), file=None), alarm=NO_ALARM)
    with pytest.raises(WorkerGroupError) as failure:
        trained(source(pairs), project, averaged, judge=lost)
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    (run,) = client.search_runs([experiment.experiment_id])
    return str(failure.value), run.info.run_id


@pytest.fixture(scope="module")
def finished(pairs: PairSet, project: Path, failed: tuple[str, str]) -> tuple[Trained, str]:
    """That run, resumed; its next validation can't end before a step has begun."""
    file = project / "begun"
    found = Judge(truth=Waiting(**vars(pairs), file=file), alarm=NO_ALARM)
    averaged = replace(OPTIONS, ema_decay=0.4)
    return trained(source(pairs, Announcing(file)), project, averaged, judge=found, resume=failed[1])


def test_a_validation_that_fails_is_the_trainings_error_and_is_made_up_for_later(
    project: Path, failed: tuple[str, str], finished: tuple[Trained, str]
) -> None:
    error, run_id = failed
    assert "no such pairs any more" in error
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    history = client.get_metric_history(run_id, "validation/unmasked")
    assert [metric.step for metric in history] == [0, 2, 4]
    assert finished[0].validation["unmasked"] == history[-1].value


def test_a_training_is_one_run_with_every_loss_logged_once(
    project: Path, finished: tuple[Trained, str]
) -> None:
    result, run_id = finished
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    history = client.get_metric_history(run_id, "train/loss")
    assert [metric.step for metric in history] == [2, 4]
    assert all(math.isfinite(metric.value) for metric in history)
    validations = client.get_metric_history(run_id, "validation/photometric")
    assert [metric.step for metric in validations] == [0, 2, 4]
    assert result.validation["photometric"] == pytest.approx(validations[-1].value)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert {path.name for path in result.model.iterdir()} == {WEIGHTS_FILE, CARD_FILE}
    assert result.judge.score(result.model) == pytest.approx(result.score)


def test_the_model_of_an_averaged_training_is_the_average(
    project: Path, finished: tuple[Trained, str]
) -> None:
    result, run_id = finished
    last = project / "runs" / run_id / "step-00000004"
    weights = load_training_state(last)["optimiser"]["weights"]
    average, final = (load_model(folder)[0].state_dict() for folder in (last, result.model))
    assert all(torch.equal(final[name], value) for name, value in average.items())
    assert not torch.equal(average["encoder.0.0.0.weight"], weights["encoder.0.0.0.weight"])


@dataclass(frozen=True)
class Poisoned:
    """The teacher's objective, whose loss is no number from the fourth step on."""

    unmasked_steps: int = 4

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        outcome = TEACHER(estimate, batch, step=step, check=check)
        if step < 3:
            return outcome
        return replace(outcome, terms=[replace(term, total=term.total * math.nan) for term in outcome.terms])


def test_skipped_steps_are_named_and_one_too_many_ends_the_training(pairs: PairSet, project: Path) -> None:
    options = replace(OPTIONS, steps=6, max_skipped=1)
    with pytest.raises(TrainingStopped, match="the loss of step 4 is nan, and max_skipped 1") as stopped:
        trained(source(pairs, Poisoned()), project, options)
    (folder,) = re.findall(r"checkpoint is (\S+)\)", str(stopped.value))
    assert folder.endswith("step-00000004")
    network, _ = load_model(Path(folder))
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    run_id = Path(folder).parent.name
    history = client.get_metric_history(run_id, "train/skipped_steps")
    assert [(metric.step, metric.value) for metric in history] == [(2, 0), (4, 1)]
    # The mean of the one step that wasn't skipped.
    assert math.isfinite(client.get_metric_history(run_id, "train/loss")[-1].value)
    index, _ = hold_back(pairs.index(), pairs.folders, OPTIONS.held_back_share, OPTIONS.held_back_most)
    plan = Plan(index=index, global_batch=OPTIONS.global_batch, seed=OPTIONS.seed)
    order = np.concatenate([plan.epoch(epoch) for epoch in range(2)])
    for step in (3, 4):
        name = f"skipped/step-{step:08d}.json"
        skipped = json.loads(Path(client.download_artifacts(run_id, name, str(project))).read_text())
        assert skipped == {
            "reason": f"the loss of step {step} is nan",
            "pair_ids": [index["pair_id"].take(order[4 * step : 4 * step + 4]).to_pylist()],
        }


@dataclass(frozen=True)
class Unlearning:
    """The teacher's objective turned round: each validation is worse than the one before."""

    unmasked_steps: int = 4

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        outcome = TEACHER(estimate, batch, step=0, check=check)
        return replace(outcome, terms=[replace(term, weight=-term.weight) for term in outcome.terms])


def test_out_of_patience_training_ends_early_with_its_best_model(pairs: PairSet, project: Path) -> None:
    unwise = replace(OPTIONS, steps=40, patience=2, keep_checkpoints=2, keep_every=4)
    result, run_id = trained(source(pairs, Unlearning()), project, unwise)
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    history = client.get_metric_history(run_id, "validation/comparable")
    scores = {metric.step: metric.value for metric in history if metric.step > 0}
    best = min(scores, key=lambda step: scores[step])
    # That it got no better is known a validation later.
    ended = max(scores) + unwise.validate_every
    assert (result.score, result.step, result.ended_at) == (scores[best], best, ended)
    assert max(scores) == best + 2 * unwise.validate_every < unwise.steps
    assert client.get_run(run_id).info.status == "FINISHED"
    stored = project / "runs" / run_id / f"step-{best:08d}"
    assert load_model(result.model)[1].digest == load_model(stored)[1].digest
    last = stored.with_name(f"step-{max(scores):08d}")
    folders = set(stored.parent.glob("step-*"))
    # The best two, and the latest where it is another.
    assert {stored, last} <= folders
    assert len(folders) <= 3
    kept = sorted((stored.parent / KEPT_FOLDER).iterdir())
    assert [folder.name for folder in kept] == [
        f"step-{step:08d}" for step in sorted(scores) if step % 4 == 0
    ]
    assert [load_training_state(folder)["optimiser"]["step"] for folder in kept] == [
        step for step in sorted(scores) if step % 4 == 0
    ]


def test_a_checkpoint_whose_flow_is_not_finite_is_no_good_one(pairs: PairSet, project: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"not finite at step 2; .*step-00000000") as stopped:
        trained(source(pairs), project, replace(OPTIONS, learning_rate=1e30))
    (folder,) = re.findall(r"checkpoint is (\S+)\)", str(stopped.value))
    assert all(torch.isfinite(weight).all() for weight in load_model(Path(folder))[0].parameters())


def test_a_network_is_judged_by_the_check_of_its_run(pairs: PairSet) -> None:
    _, places = hold_back(pairs.index(), pairs.folders, 0.1, 2)
    torch.manual_seed(0)
    network = NETWORK.build().eval()

    def occluded(check: OcclusionCheck) -> float:
        held_back = HeldBack(pairs=pairs, places=places, check=check, stage="test")
        return held_back.judge(network, torch.device("cpu"))[0]["occluded"]

    # To a check that lets everything pass only what leaves the frame is occluded.
    assert occluded(OcclusionCheck(alpha2=1e9)) < occluded(OcclusionCheck(alpha1=0.0, alpha2=1e-9))


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        (Crop(height=128, width=128), "larger than the frames"),
        (Crop(height=44, width=64), "multiple of 8 px"),
    ],
)
def test_a_crop_that_does_not_fit_is_refused_before_training(
    pairs: PairSet, project: Path, crop: Crop, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(source(pairs, crop=crop), project)


def test_a_crop_is_tried_on_every_size_of_frame(ray_session: None, tmp_path: Path, project: Path) -> None:
    for seed in range(3):
        height = 40 if seed == 1 else 64
        scene = render_scene(seed, SceneOptions(height=height, width=80, num_frames=3))
        write_video(tmp_path / "videos" / f"scene{seed}.mp4", scene.frames)
    write_pairs(
        Collection.find(str(tmp_path / "videos")),
        str(tmp_path / "set"),
        ClipOptions(),
        LabellingOptions(),
        graph=BareGraph(),
    )
    mixed = PairSet.open(str(tmp_path / "set"))
    places = one_of_each_size(mixed.index())
    assert sorted((place["height"], place["width"]) for place in places) == [(40, 80), (64, 80)]
    assert all(mixed.read(place)["height"] == place["height"] for place in places)
    with pytest.raises(ValueError, match=r"larger than the frames \(40, 80\).*min_size"):
        trained(source(mixed), project)


def test_a_run_is_resumed_with_its_run_root_and_its_pairs_or_not_at_all(
    pairs: PairSet,
    project: Path,
    tmp_path: Path,
    finished: tuple[Trained, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, run_id = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(project))
    longer = replace(OPTIONS, steps=8, max_failures=0)
    with pytest.raises(FileNotFoundError, match=f"{run_id} has left no checkpoint in .*--run-root"):
        trained(source(pairs), tmp_path, longer, resume=run_id)
    with pytest.raises(WorkerGroupError, match="the run began with other pairs, other labels of them"):
        trained(source(pairs), project, replace(longer, seed=1), resume=run_id)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_and_says_how_to_go_on(
    pairs: PairSet, project: Path, finished: tuple[Trained, str]
) -> None:
    _, run_id = finished
    # In the way of the next checkpoint, as a full disk is.
    (project / "runs" / run_id / "step-00000006").write_text("")
    longer = replace(OPTIONS, steps=6, max_failures=0)
    with pytest.raises(WorkerGroupError, match=f"step 6 can't be written into .* --resume {run_id}"):
        trained(source(pairs), project, longer, resume=run_id)
    load_training_state(project / "runs" / run_id / "step-00000004")


def test_more_unmasked_steps_than_steps_are_refused(pairs: PairSet, project: Path) -> None:
    with pytest.raises(ValueError, match="unmasked_steps 5 must be at most steps 4"):
        trained(source(pairs, TeacherObjective(unmasked_steps=5)), project)


def test_a_teacher_cannot_start_from_a_model_of_another_configuration(tmp_path: Path) -> None:
    save_model(tmp_path / "other", NETWORK.build(), {"stage": "test"})
    _, stage = train_teacher.recipes()["demo"]
    with pytest.raises(ValueError, match="encoder_widths"):
        train_teacher.train_teacher(
            replace(stage, videos="v", run_root=str(tmp_path), init=str(tmp_path / "other")), "demo"
        )


def test_more_workers_than_there_is_room_for_are_an_error_and_not_a_wait(
    pairs: PairSet, project: Path
) -> None:
    with pytest.raises(RuntimeError, match="need 65 CPUs"):
        trained(source(pairs), project, replace(OPTIONS, workers=64, global_batch=64))
