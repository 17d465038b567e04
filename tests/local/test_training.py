"""The one training loop on real Ray, MLflow and Parquet: resuming, validation beside it, early ends, errors.
What a step does to a network is in unit/test_step.py, what a judge says in unit/test_validation.py, when
too many steps were skipped in unit/test_logbook.py."""

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from bare_graph import BareGraph
from mlflow.entities import Metric
from ray import cloudpickle
from ray.train import Checkpoint, WorkerGroupError

from flowcore.augmentation import Crop
from flowcore.colour import ChannelPermutation
from flowcore.hallucination import Challenge
from flowcore.networks import Estimator, PWCNetConfig
from flowcore.objectives import Objective, Outcome, TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from jobs import train_teacher
from pipelines import run_store, tracking, training
from pipelines.checkpoints import (
    CARD_FILE,
    KEPT_FOLDER,
    WEIGHTS_FILE,
    load_model,
    load_training_state,
    save_model,
)
from pipelines.collection import Collection
from pipelines.feed import Plan
from pipelines.held_back import HeldBack, Validation
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.lineage import StageRun
from pipelines.models import StartingPoint
from pipelines.pair_set import PairSet, one_of_each_size
from pipelines.split import hold_back
from pipelines.training import Source, Trained, train
from pipelines.training_options import TrainingOptions
from pipelines.validation import CollapseAlarm, Judge, TrainingStopped

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
    nodes: int = 1,
) -> tuple[Trained, str]:
    with (
        pytest.MonkeyPatch.context() as patch,
        tracking.start(
            "train_teacher",
            recipe="test",
            parameters=options,
            resume_run_id=resume,
            project_folder=project_folder,
        ) as run,
    ):
        patch.setattr(training, "num_nodes", lambda have: nodes)
        provenance = {"stage": "train_teacher", "run_id": run.run_id}
        stage_run = StageRun(run, "train_teacher", str(project_folder / "runs"), provenance)
        judge = judge or Judge(alarm=NO_ALARM)
        return (
            train(StartingPoint(network=NETWORK), [source], options, judge=judge, run=stage_run),
            run.run_id,
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(empty_store, folder)
    return folder


def history(project: Path, run_id: str, metric: str) -> list[Metric]:
    return tracking.MlflowClient(run_store.tracking_uri(project)).get_metric_history(run_id, metric)


def steps_of(metrics: list[Metric]) -> list[int]:
    return [metric.step for metric in metrics]


SKIPPED = 2


@dataclass(frozen=True)
class Announcing:
    """The teacher's objective; makes a file when a step begins. The loss of one of them is no number."""

    file: Path
    unmasked_steps: int = 4

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        self.file.touch()
        outcome = TEACHER(estimate, batch, step=step, check=check)
        if step != SKIPPED:
            return outcome
        return replace(outcome, terms=[replace(term, total=term.total * math.nan) for term in outcome.terms])


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
    """The error of a training whose validation, a task, can't be done, and its run."""
    averaged = replace(OPTIONS, ema_decay=0.4, max_failures=0)
    lost = Judge(truth=Waiting(**vars(pairs), file=None), alarm=NO_ALARM)
    with pytest.raises(WorkerGroupError) as failure:
        trained(source(pairs), project, averaged, judge=lost, nodes=2)
    client = tracking.MlflowClient(run_store.tracking_uri(project))
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    (run,) = client.search_runs([experiment.experiment_id])
    return str(failure.value), run.info.run_id


@pytest.fixture(scope="module")
def finished(pairs: PairSet, project: Path, failed: tuple[str, str]) -> tuple[Trained, str]:
    """That run, resumed; its next validation can't end before a step has begun."""
    file = project / "begun"
    found = Judge(truth=Waiting(**vars(pairs), file=file), alarm=NO_ALARM)
    averaged = replace(OPTIONS, ema_decay=0.4)
    return trained(source(pairs, Announcing(file)), project, averaged, judge=found, resume=failed[1], nodes=2)


def test_a_validation_that_fails_is_the_trainings_error(failed: tuple[str, str]) -> None:
    error, _ = failed
    assert "no such pairs any more" in error


def test_a_validation_between_two_steps_that_fails_is_the_training_s_error(
    pairs: PairSet, project: Path
) -> None:
    lost = Judge(truth=Waiting(**vars(pairs), file=None), alarm=NO_ALARM)
    with pytest.raises(WorkerGroupError, match="no such pairs any more"):
        trained(source(pairs), project, replace(OPTIONS, max_failures=0), judge=lost)


def test_a_validation_that_failed_is_made_up_for_when_the_training_goes_on(
    project: Path, failed: tuple[str, str], finished: tuple[Trained, str]
) -> None:
    assert finished[1] == failed[1]
    assert steps_of(history(project, failed[1], "validation/unmasked")) == [0, 2, 4]


def test_a_training_is_one_run_with_every_loss_logged_once(
    project: Path, finished: tuple[Trained, str]
) -> None:
    losses = history(project, finished[1], "train/loss")
    assert steps_of(losses) == [2, 4]
    assert all(math.isfinite(metric.value) for metric in losses)
    client = tracking.MlflowClient(run_store.tracking_uri(project))
    assert client.get_run(finished[1]).info.status == "FINISHED"


def test_a_training_starts_no_process_that_has_nothing_to_do(finished: tuple[Trained, str]) -> None:
    started = {actor["ActorClassName"].split(".")[-1] for actor in ray._private.state.actors().values()}
    assert any(name.startswith("RayTrainWorker") for name in started)
    assert started.isdisjoint({"DatasetManager", "PlacementGroupCleaner"})


def test_a_trainings_numbers_are_those_of_its_last_validation(
    project: Path, finished: tuple[Trained, str]
) -> None:
    result, run_id = finished
    for name in ("unmasked", "photometric"):
        assert result.validation[name] == history(project, run_id, f"validation/{name}")[-1].value


def test_a_network_in_memory_is_judged_as_its_checkpoint_is(
    project: Path, finished: tuple[Trained, str], tmp_path: Path
) -> None:
    result, _ = finished
    with tracking.start("train_teacher", recipe="test", parameters=OPTIONS, project_folder=project) as run:
        uri = run_store.tracking_uri(project)
        validation = Validation(held_back=result.judge, tracking_uri=uri, run_id=run.run_id)
        network = load_model(result.model)[0]
        save_model(tmp_path, network, {})
        stored = validation(Checkpoint.from_directory(str(tmp_path)), 4)
        assert validation.of(network.eval(), torch.device("cpu"), 4) == pytest.approx(stored)


def test_a_trained_model_is_weights_and_a_card_and_nothing_else(finished: tuple[Trained, str]) -> None:
    assert {path.name for path in finished[0].model.iterdir()} == {WEIGHTS_FILE, CARD_FILE}


def test_a_trainings_judge_gives_its_model_the_score_that_the_training_did(
    finished: tuple[Trained, str],
) -> None:
    result, _ = finished
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


def test_a_run_counts_the_steps_that_were_skipped(project: Path, finished: tuple[Trained, str]) -> None:
    skipped = history(project, finished[1], "train/skipped_steps")
    assert [(metric.step, metric.value) for metric in skipped] == [(2, 0), (4, 1)]


def test_a_run_names_the_pairs_of_a_step_that_was_skipped(
    pairs: PairSet, project: Path, finished: tuple[Trained, str]
) -> None:
    index, _ = hold_back(pairs.index(), pairs.folders, OPTIONS.held_back_share, OPTIONS.held_back_most)
    plan = Plan(index=index, global_batch=OPTIONS.global_batch, seed=OPTIONS.seed)
    order = np.concatenate([plan.epoch(epoch) for epoch in range(2)])
    client = tracking.MlflowClient(run_store.tracking_uri(project))
    name = f"skipped/step-{SKIPPED:08d}.json"
    skipped = json.loads(Path(client.download_artifacts(finished[1], name, str(project))).read_text())
    assert skipped == {
        "reason": f"the loss of step {SKIPPED} is nan",
        "pair_ids": [index["pair_id"].take(order[4 * SKIPPED : 4 * SKIPPED + 4]).to_pylist()],
    }


@dataclass(frozen=True)
class Unlearning:
    """The teacher's objective turned round: each validation is worse than the one before."""

    unmasked_steps: int = 4

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        outcome = TEACHER(estimate, batch, step=0, check=check)
        return replace(outcome, terms=[replace(term, weight=-term.weight) for term in outcome.terms])


@dataclass(frozen=True, kw_only=True)
class Unlearnt:
    """What a training left that ran out of patience."""

    result: Trained
    run: Path
    """The folder of its checkpoints."""
    scores: dict[int, float]
    """Of its checkpoints, by step."""

    @property
    def best(self) -> int:
        return min(self.scores, key=lambda step: self.scores[step])


UNWISE = replace(OPTIONS, steps=40, patience=2, keep_checkpoints=2, keep_every=4)


@pytest.fixture(scope="module")
def unlearnt(pairs: PairSet, project: Path) -> Unlearnt:
    result, run_id = trained(source(pairs, Unlearning()), project, UNWISE)
    scores = history(project, run_id, "validation/comparable")
    return Unlearnt(
        result=result,
        run=project / "runs" / run_id,
        scores={metric.step: metric.value for metric in scores if metric.step > 0},
    )


def test_out_of_patience_a_training_ends_before_its_last_step(unlearnt: Unlearnt) -> None:
    last = max(unlearnt.scores)
    assert last == unlearnt.best + 2 * UNWISE.validate_every < UNWISE.steps
    # That it got no better is known a validation later.
    assert unlearnt.result.ended_at == last + UNWISE.validate_every


def test_a_training_with_patience_gives_its_best_model(unlearnt: Unlearnt) -> None:
    result, best = unlearnt.result, unlearnt.best
    assert (result.score, result.step) == (unlearnt.scores[best], best)
    stored = unlearnt.run / f"step-{best:08d}"
    assert load_model(result.model)[1].digest == load_model(stored)[1].digest


def test_the_best_checkpoints_and_the_latest_one_are_kept(unlearnt: Unlearnt) -> None:
    folders = {folder.name for folder in unlearnt.run.glob("step-*")}
    assert {f"step-{unlearnt.best:08d}", f"step-{max(unlearnt.scores):08d}"} <= folders
    # The best two, and the latest where it is another.
    assert len(folders) <= 3


def test_the_checkpoints_that_are_to_be_kept_for_ever_are_whole(unlearnt: Unlearnt) -> None:
    kept = sorted((unlearnt.run / KEPT_FOLDER).iterdir())
    steps = [step for step in sorted(unlearnt.scores) if step % 4 == 0]
    assert [folder.name for folder in kept] == [f"step-{step:08d}" for step in steps]
    assert [load_training_state(folder)["optimiser"]["step"] for folder in kept] == steps


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
        (Crop(height=44, width=64), r"multiple of 8 px .*--challenge\.crop .*--augmentation\.crop"),
    ],
)
def test_a_crop_that_does_not_fit_is_refused_before_training(
    pairs: PairSet, project: Path, crop: Crop, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(source(pairs, crop=crop), project)


@pytest.fixture(scope="module")
def of_two_sizes(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    folder = tmp_path_factory.mktemp("sizes")
    for seed in range(3):
        height = 40 if seed == 1 else 64
        scene = render_scene(seed, SceneOptions(height=height, width=80, num_frames=3))
        write_video(folder / "videos" / f"scene{seed}.mp4", scene.frames)
    write_pairs(
        Collection.find(str(folder / "videos")),
        str(folder / "set"),
        ClipOptions(),
        LabellingOptions(),
        graph=BareGraph(),
    )
    return PairSet.open(str(folder / "set"))


def test_there_is_a_pair_of_each_size_of_frame(of_two_sizes: PairSet) -> None:
    places = one_of_each_size(of_two_sizes.index())
    assert sorted((place["height"], place["width"]) for place in places) == [(40, 80), (64, 80)]
    assert all(of_two_sizes.read(place)["height"] == place["height"] for place in places)


def test_a_crop_is_tried_on_every_size_of_frame(of_two_sizes: PairSet, project: Path) -> None:
    with pytest.raises(ValueError, match=r"larger than the frames \(40, 80\).*--clips\.min-size"):
        trained(source(of_two_sizes), project)


def test_a_run_is_resumed_with_its_run_root_or_not_at_all(
    pairs: PairSet, project: Path, tmp_path: Path, finished: tuple[Trained, str]
) -> None:
    _, run_id = finished
    # Its runs are those of the project, its checkpoints not.
    shutil.copy(project / "mlflow.db", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{run_id} has left no checkpoint in .*--run-root"):
        trained(source(pairs), tmp_path, replace(OPTIONS, steps=8), resume=run_id)


def test_a_run_is_resumed_with_its_pairs_or_not_at_all(
    pairs: PairSet, project: Path, finished: tuple[Trained, str]
) -> None:
    others = replace(OPTIONS, steps=8, seed=1, max_failures=0)
    with pytest.raises(WorkerGroupError, match="the run began with other pairs, other labels of them"):
        trained(source(pairs), project, others, resume=finished[1])


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
