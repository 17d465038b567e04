"""The one training loop on real Ray, MLflow and Parquet: gradients, resuming, alarms, errors."""

import json
import math
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from ray.train import WorkerGroupError

from flowcore.hallucination import Challenge, ChannelPermutation, Crop
from flowcore.networks import PWCNetConfig
from flowcore.objectives import Estimator, Objective, Outcome, Photometric, TeacherObjective
from flowcore.pairs import Batch
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from jobs import train_teacher
from pipelines import tracking
from pipelines.checkpoints import CARD_FILE, WEIGHTS_FILE, load_model, load_training_state, save_model
from pipelines.feed import Plan, hold_back
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.pair_set import PairSet, one_of_each_size
from pipelines.training import (
    KEPT_FOLDER,
    Source,
    Training,
    TrainingOptions,
    TrainingResult,
    train,
)
from pipelines.validation import CollapseAlarm, TrainingStopped

# Ray's workers can't import this module; they get what it defines by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

NETWORK = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,), radius=2)
OPTIONS = TrainingOptions(
    steps=4, unmasked_steps=4, global_batch=4, learning_rate=4e-4, log_every=2, validate_every=2, readers=1
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PairSet:
    folder = tmp_path_factory.mktemp("pairs")
    for seed in range(2):
        scene = render_scene(seed, SceneOptions(height=64, width=80, num_frames=13))
        write_video(folder / "videos" / f"scene{seed}.mp4", scene.frames)
    write_pairs(
        str(folder / "videos"),
        str(folder / "set"),
        LabellingOptions(clips=ClipOptions(size=(64, 80), chunk_pairs=4)),
    )
    return PairSet.open(str(folder / "set"))


def trained(
    pairs: PairSet,
    project_folder: Path,
    options: TrainingOptions,
    *,
    crop: Crop | None = None,
    objective: Objective | None = None,
    sources: tuple[Source, ...] = (),
    alarm: CollapseAlarm | None = None,
    validation: PairSet | None = None,
    resume: str | None = None,
    network: PWCNetConfig = NETWORK,
) -> tuple[TrainingResult, str]:
    with tracking.start(
        "train_teacher",
        recipe="test",
        parameters=options,
        resume_run_id=resume,
        project_folder=project_folder,
    ) as run:
        training = Training(
            stage="train_teacher",
            network=network,
            initial=None,
            sources=sources
            or (
                Source(
                    pairs=pairs,
                    transformation=Challenge(
                        crop=crop or Crop(height=48, width=64), channels=ChannelPermutation(chance=0.0)
                    ),
                    objective=objective or TeacherObjective(),
                ),
            ),
            options=options,
            provenance={"stage": "train_teacher", "run_id": run.run_id},
            tracking_uri=run.uri,
            run_id=run.run_id,
            validation=validation,
            alarm=alarm or CollapseAlarm(max_occluded=2.0, min_flow_variance=-1.0, must_improve=False),
        )
        return train(training, str(project_folder / "runs")), run.run_id


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


def several(pairs: PairSet) -> tuple[Source, ...]:
    """Two sources of the same pairs that learn different things of them."""
    first = Source(
        pairs=pairs, transformation=Crop(height=48, width=64), objective=TeacherObjective(), share=0.5
    )
    photometric = Photometric(distance="rgb", smoothness_weight=1.0, smoothness_order=2)
    second = replace(first, objective=TeacherObjective(photometric=photometric), weight=0.25, share=1.0)
    return first, second


def test_two_workers_in_two_parts_and_one_worker_at_equal_global_batch_give_equal_gradients(
    pairs: PairSet, project: Path
) -> None:
    sources = several(pairs)
    # Neither the workers' shares of five pairs nor their parts are equal.
    one_step = replace(OPTIONS, steps=1, unmasked_steps=1, clip_norm=1e9, global_batch=5)
    moments = []
    for workers, parts in ((1, 1), (2, 2)):
        shared = replace(one_step, workers=workers, accumulate=parts)
        _, run_id = trained(pairs, project, shared, sources=sources)
        checkpoint = project / "runs" / run_id / "step-00000001"
        state = load_training_state(checkpoint)["optimizer"]["state"]
        # after Adam's first step its first moment is a tenth of the gradient
        moments.append([state[number]["exp_avg"] for number in sorted(state)])
    assert len(moments[0]) == len(list(NETWORK.build().parameters()))
    for one, two in zip(*moments, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


@pytest.fixture(scope="module")
def finished(pairs: PairSet, project: Path) -> tuple[TrainingResult, str]:
    """A training that nothing disturbed, and its run."""
    return trained(pairs, project, OPTIONS)


def test_training_is_one_run_with_every_loss_logged_once_a_step(
    project: Path, finished: tuple[TrainingResult, str]
) -> None:
    result, run_id = finished
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    history = client.get_metric_history(run_id, "train/loss")
    assert [metric.step for metric in history] == [2, 4]
    assert all(math.isfinite(metric.value) for metric in history)
    assert [m.step for m in client.get_metric_history(run_id, "validation/photometric")] == [0, 2, 4]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert {path.name for path in result.model.iterdir()} == {WEIGHTS_FILE, CARD_FILE}
    assert result.judge.score(result.model) == pytest.approx(result.score)
    assert result.validation["photometric"] == pytest.approx(
        client.get_metric_history(run_id, "validation/photometric")[-1].value
    )


class _Explosive(torch.autograd.Function):
    """The value itself, whose gradient is no number."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.nan


@dataclass(frozen=True)
class Poisoned:
    """The teacher's objective, until it has been asked three times; then its loss is no number, but once its
    gradient alone."""

    asked: list[int] = field(default_factory=list)

    def __call__(self, estimate: Estimator, batch: Batch, *, masked: bool) -> Outcome:
        outcome = TeacherObjective()(estimate, batch, masked=masked)
        self.asked.append(1)
        poison = (lambda total: total * math.nan) if len(self.asked) != 5 else _Explosive.apply
        if len(self.asked) <= 3:
            return outcome
        return replace(outcome, terms=[replace(term, total=poison(term.total)) for term in outcome.terms])


def test_steps_whose_loss_or_gradient_is_not_finite_are_left_out_and_named_and_above_a_limit_end_the_training(
    pairs: PairSet, project: Path
) -> None:
    options = replace(OPTIONS, steps=8, unmasked_steps=8, max_skipped=2)
    with pytest.raises(TrainingStopped, match="the loss of step 5 is nan, and max_skipped 2") as stopped:
        trained(pairs, project, options, objective=Poisoned())
    (folder,) = re.findall(r"checkpoint is (\S+)\)", str(stopped.value))
    assert folder.endswith("step-00000004")
    network, _ = load_model(Path(folder))
    assert all(torch.isfinite(weight).all() for weight in network.parameters())
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    run_id = Path(folder).parent.name
    history = client.get_metric_history(run_id, "train/skipped_steps")
    assert [(metric.step, metric.value) for metric in history] == [(2, 0), (4, 1)]
    # The mean of the one step that wasn't left out.
    assert math.isfinite(client.get_metric_history(run_id, "train/loss")[-1].value)
    index, _ = hold_back(pairs.index(), OPTIONS.held_back_share, OPTIONS.held_back_most)
    plan = Plan(index=index, global_batch=OPTIONS.global_batch, seed=OPTIONS.seed)
    order = np.concatenate([plan.epoch(epoch) for epoch in range(2)])
    for step in (3, 4, 5):
        name = f"skipped/step-{step:08d}.json"
        skipped = json.loads(Path(client.download_artifacts(run_id, name, str(project))).read_text())
        assert skipped == {
            "reason": "the gradient of step 4 is not finite"
            if step == 4
            else f"the loss of step {step} is nan",
            "pair_ids": [index["pair_id"].take(order[4 * step : 4 * step + 4]).to_pylist()],
        }


def test_the_average_of_the_weights_is_what_a_training_gives_also_resumed(
    pairs: PairSet, project: Path, finished: tuple[TrainingResult, str]
) -> None:
    half = replace(OPTIONS, steps=2, unmasked_steps=2, validate_every=1, keep_checkpoints=9, ema_decay=0.4)
    _, run_id = trained(pairs, project, half)
    result, _ = trained(pairs, project, replace(half, steps=4, unmasked_steps=4), resume=run_id)
    folders = [project / "runs" / run_id / f"step-{step:08d}" for step in (1, 2, 3, 4)]
    weights = [load_training_state(folder)["weights"] for folder in folders]
    averages = [load_model(folder)[0].state_dict() for folder in folders]
    # The training itself is the one without an average.
    plain = load_model(finished[0].model)[0].state_dict()
    assert all(torch.equal(weights[3][name], value) for name, value in plain.items())
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (3, 4 / 13)):
        for name, value in averages[step].items():
            expected = decay * averages[step - 1][name] + (1 - decay) * weights[step][name]
            torch.testing.assert_close(value, expected)
    assert not torch.equal(averages[3]["encoder.0.0.0.weight"], weights[3]["encoder.0.0.0.weight"])
    final = load_model(result.model)[0].state_dict()
    assert all(torch.equal(final[name], value) for name, value in averages[3].items())


def test_ways_to_a_cheaper_step_lead_where_the_plain_step_leads_also_resumed(
    pairs: PairSet, project: Path, finished: tuple[TrainingResult, str]
) -> None:
    cheaper = replace(
        OPTIONS, precision="float16", channels_last=True, checkpoint_activations=True, compiled=True
    )
    _, run_id = trained(pairs, project, replace(cheaper, steps=2, unmasked_steps=2))
    # Compiled or not, the checkpoint is the same.
    result, _ = trained(pairs, project, replace(cheaper, compiled=False), resume=run_id)
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    losses, plain = (
        [metric.value for metric in client.get_metric_history(run, "train/loss")]
        for run in (run_id, finished[1])
    )
    assert losses == pytest.approx(plain, rel=1e-2)
    assert losses != plain
    states = [
        load_training_state(project / "runs" / run_id / f"step-{step:08d}")["scaler"] for step in (2, 4)
    ]
    assert 0 < states[1]["scale"] <= states[0]["scale"] <= 2**16
    assert all(weight.dtype == torch.float32 for weight in load_model(result.model)[0].parameters())


@dataclass(frozen=True)
class Overflowing:
    """The teacher's objective a hundred times as strong: scaled for float16, its gradients overflow."""

    def __call__(self, estimate: Estimator, batch: Batch, *, masked: bool) -> Outcome:
        outcome = TeacherObjective()(estimate, batch, masked=masked)
        return replace(outcome, terms=[replace(term, weight=100 * term.weight) for term in outcome.terms])


def test_a_step_whose_half_precision_overflows_is_done_again_with_a_smaller_scale(
    pairs: PairSet, project: Path
) -> None:
    options = replace(OPTIONS, steps=2, unmasked_steps=2, log_every=1, precision="float16", max_skipped=0)
    _, run_id = trained(pairs, project, options, objective=Overflowing())
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    scales = [metric.value for metric in client.get_metric_history(run_id, "train/loss_scale")]
    assert len(scales) == 2
    assert max(scales) < 2**16


@dataclass(frozen=True)
class Unlearning:
    """The teacher's objective turned round: each validation is worse than the one before."""

    def __call__(self, estimate: Estimator, batch: Batch, *, masked: bool) -> Outcome:
        outcome = TeacherObjective()(estimate, batch, masked=masked)
        return replace(outcome, terms=[replace(term, weight=-term.weight) for term in outcome.terms])


def test_training_that_gets_no_better_ends_early_with_its_best_model_and_keeps_what_it_was_told_to(
    pairs: PairSet, project: Path
) -> None:
    unwise = replace(OPTIONS, steps=40, unmasked_steps=40, patience=2, keep_checkpoints=2, keep_every=4)
    result, run_id = trained(pairs, project, unwise, objective=Unlearning())
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    history = client.get_metric_history(run_id, "validation/unmasked")
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
    assert [load_training_state(folder)["step"] for folder in kept] == [
        step for step in sorted(scores) if step % 4 == 0
    ]


@dataclass(frozen=True)
class Announcing:
    """The teacher's objective; makes a file when a step begins."""

    file: Path

    def __call__(self, estimate: Estimator, batch: Batch, *, masked: bool) -> Outcome:
        self.file.touch()
        return TeacherObjective()(estimate, batch, masked=masked)


@dataclass(frozen=True, kw_only=True)
class Waiting(PairSet):
    """Pairs that can be read once a file is there; without one, never."""

    file: Path | None

    def read(self, place: Mapping[str, Any]) -> dict[str, Any]:
        for _ in range(600 if self.file else 0):
            if self.file and self.file.exists():
                return super().read(place)
            time.sleep(0.1)
        raise OSError("no such pairs any more")


def test_training_goes_on_while_it_is_validated(pairs: PairSet, project: Path, tmp_path: Path) -> None:
    # The first validation can't end before the first step has begun.
    file = tmp_path / "begun"
    source = Source(
        pairs=pairs, transformation=Crop(height=48, width=64), objective=Announcing(file), share=1.0
    )
    waiting = Waiting(**vars(pairs), file=file)
    _, run_id = trained(pairs, project, OPTIONS, sources=(source,), validation=waiting)
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    assert [m.step for m in client.get_metric_history(run_id, "validation/unmasked")] == [0, 2, 4]


def test_a_validation_that_fails_ends_the_training_with_its_error_and_is_made_up_for_when_it_is_resumed(
    pairs: PairSet, project: Path
) -> None:
    lost = Waiting(**vars(pairs), file=None)
    with pytest.raises(WorkerGroupError, match="no such pairs any more"):
        trained(pairs, project, replace(OPTIONS, max_failures=0), validation=lost)
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    run_id = client.search_runs([experiment.experiment_id], max_results=1)[0].info.run_id
    result, _ = trained(pairs, project, OPTIONS, validation=pairs, resume=run_id)
    assert [m.step for m in client.get_metric_history(run_id, "validation/unmasked")] == [0, 2, 4]
    assert result.validation["unmasked"] == client.get_run(run_id).data.metrics["validation/unmasked"]


def test_a_network_whose_flow_is_not_finite_is_no_good_checkpoint(pairs: PairSet, project: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"not finite at step 2; .*step-00000000") as stopped:
        trained(pairs, project, replace(OPTIONS, learning_rate=1e30))
    (folder,) = re.findall(r"checkpoint is (\S+)\)", str(stopped.value))
    assert all(torch.isfinite(weight).all() for weight in load_model(Path(folder))[0].parameters())


def test_a_collapse_stops_with_its_remedy(pairs: PairSet, project: Path) -> None:
    alarm = CollapseAlarm(max_occluded=-1.0)
    with pytest.raises(TrainingStopped, match="unmasked_steps"):
        trained(pairs, project, replace(OPTIONS, unmasked_steps=0), alarm=alarm)


HEALTHY = {"occluded": 0.2, "flow_variance": 1.0, "photometric": 2.0, "unmasked": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"occluded": 0.96}, "96% of the held-back frames occluded"),
        ({"flow_variance": 1e-6}, "the same everywhere"),
        ({"unmasked": 3.0}, "not learning"),
    ],
)
def test_the_alarm_names_what_is_wrong_and_only_then(change: dict[str, float], message: str) -> None:
    # to fresh weights nothing may be visible: what is compared has to be there all the same
    fresh = {"occluded": 1.0, "flow_variance": 1.0, "photometric": 0.0, "unmasked": 3.0}
    CollapseAlarm().check(HEALTHY, fresh)
    with pytest.raises(TrainingStopped, match=message):
        CollapseAlarm().check(HEALTHY | change, fresh)
    if "unmasked" in change:
        CollapseAlarm().check(HEALTHY | change, None)


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
        trained(pairs, project, OPTIONS, crop=crop)


def test_a_crop_is_tried_on_every_size_of_frame(ray_session: None, tmp_path: Path, project: Path) -> None:
    for seed in range(3):
        height = 40 if seed == 1 else 64
        scene = render_scene(seed, SceneOptions(height=height, width=80, num_frames=3))
        write_video(tmp_path / "videos" / f"scene{seed}.mp4", scene.frames)
    write_pairs(str(tmp_path / "videos"), str(tmp_path / "set"), LabellingOptions())
    mixed = PairSet.open(str(tmp_path / "set"))
    places = one_of_each_size(mixed.index())
    assert sorted((place["height"], place["width"]) for place in places) == [(40, 80), (64, 80)]
    assert all(mixed.read(place)["height"] == place["height"] for place in places)
    with pytest.raises(ValueError, match=r"larger than the frames \(40, 80\).*min_size"):
        trained(mixed, project, OPTIONS)


def test_a_run_is_resumed_where_it_was_and_with_its_network_or_not_at_all(
    pairs: PairSet,
    project: Path,
    tmp_path: Path,
    finished: tuple[TrainingResult, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, run_id = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(project))
    with pytest.raises(FileNotFoundError, match=f"{run_id} has left no checkpoint in .*--run-root"):
        trained(pairs, tmp_path, replace(OPTIONS, steps=8), resume=run_id)
    other = replace(NETWORK, context_widths=(16,))
    with pytest.raises(WorkerGroupError) as failed:
        trained(pairs, project, replace(OPTIONS, steps=8, max_failures=0), resume=run_id, network=other)
    with pytest.raises(
        WorkerGroupError,
        match="the run began with other pairs, other labels of them, another global_batch or",
    ):
        trained(pairs, project, replace(OPTIONS, steps=8, seed=1, max_failures=0), resume=run_id)
    assert "context_widths is (12,)" in str(failed.value).replace("[12]", "(12,)")
    # In the way of the next checkpoint, as a full disk is.
    (project / "runs" / run_id / "step-00000006").write_text("")
    with pytest.raises(WorkerGroupError, match=f"step 6 can't be written into .* --resume {run_id}"):
        trained(pairs, project, replace(OPTIONS, steps=8, max_failures=0), resume=run_id)
    load_training_state(project / "runs" / run_id / "step-00000004")


def test_a_teacher_cannot_start_from_a_model_of_another_configuration(tmp_path: Path) -> None:
    save_model(tmp_path / "other", NETWORK.build(), {"stage": "test"})
    _, options = train_teacher.recipes()["demo"]
    with pytest.raises(ValueError, match="encoder_widths"):
        train_teacher.train_teacher(
            "demo", replace(options, videos="v", run_root=str(tmp_path), init=str(tmp_path / "other"))
        )


def test_more_workers_than_the_cluster_has_room_for_is_an_error_and_not_a_wait(
    pairs: PairSet, project: Path
) -> None:
    with pytest.raises(RuntimeError, match="need 65 CPUs"):
        trained(pairs, project, replace(OPTIONS, workers=64, global_batch=64))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"unmasked_steps": 5},
        {"workers": 5},
        {"min_workers": 2},
        {"patience": 0},
        {"keep_checkpoints": 1},
        {"keep_every": 3},
        {"keep_every": 0},
        {"accumulate": 5},
        {"held_back_share": 1.0},
        {"held_back_most": 0},
        {"learning_rate": 0.0},
        {"clip_norm": -1.0},
        {"ema_decay": 1.0},
        {"max_skipped": -1},
        {"precision": "float64"},
        {"schedule": ()},
        {"schedule": ((0.5, 1.0, "constant"),)},
        {"schedule": ((0.5, 1.0, "constant"), (0.5, 0.5, "constant"), (1.0, 0.5, "constant"))},
        {"schedule": ((1.0, -1.0, "linear"),)},
        {"schedule": ((1.0, 1.0, "quadratic"),)},
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(OPTIONS, **change)


def test_a_schedule_is_followed_phase_by_phase_whatever_the_number_of_steps() -> None:
    halved = replace(
        OPTIONS, learning_rate=8.0, steps=30, schedule=((1 / 3, 1.0, "constant"), (1.0, 0.5, "constant"))
    )
    assert [halved.learning_rate_at(step) for step in (0, 9, 10, 29)] == [8.0, 8.0, 4.0, 4.0]
    warmed = replace(halved, steps=100, schedule=((0.1, 1.0, "linear"), (1.0, 0.0, "cosine")))
    rates = [warmed.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.8 * (step + 1) for step in range(10)])
    assert rates[10] == 8.0
    assert rates[55] == pytest.approx(4.0)
    assert 0 < rates[-1] < 0.01
    # A disruption, and one step that is all phases at once.
    again = replace(warmed, schedule=((0.5, 0.5, "linear"), (0.6, 2.0, "constant"), (1.0, 1.0, "linear")))
    assert [again.learning_rate_at(step) for step in (49, 50, 59, 79, 99)] == pytest.approx(
        [4, 16, 16, 12, 8]
    )
    assert replace(warmed, steps=1, unmasked_steps=0).learning_rate_at(0) == 8.0
