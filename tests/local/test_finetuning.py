"""Truth as a pair set, fine-tuning on it, and doing that again; and a student of labels that came without a
network. A chain from videos to a network tuned on its truth is in test_recipes.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowcore.datasets import find_samples, load
from flowcore.formats import write_flow, write_image
from flowcore.networks import FlowNetwork
from flowcore.objectives import StudentObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, finetune, pseudolabel, rerun
from jobs.recipes import RECIPES
from pipelines import recorded, registry, revision, tracking
from pipelines.checkpoints import fetch_model, load_model, save_model
from pipelines.estimators import NetworkEstimator
from pipelines.evaluation import Errors, pair_errors
from pipelines.held_back import HeldBack
from pipelines.ledger import MANIFEST_FILE
from pipelines.pair_set import PairSet
from pipelines.truth import truth_set

pytestmark = pytest.mark.usefixtures("ray_session")

SCENE = SceneOptions(height=64, width=96, num_frames=9)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(2):
        write_truth(folder / f"scene{seed}", render_scene(seed, SCENE))
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def options(scenes: Path, project: Path) -> finetune.Finetune:
    _, defaults = finetune.recipes()["smoke"]
    training = replace(defaults.training, steps=4, validate_every=2)
    return replace(
        defaults,
        truth=f"scenes:{scenes}",
        run_root=str(project / "runs"),
        init="fresh",
        training=training,
    )


def pairs_of(labels: PairSet) -> list[dict[str, object]]:
    rows = (row for file in labels.files for row in labels.read_group(file, 0))
    return [{name: row[name] for name in ("pair_id", "video", "label_set")} for row in rows]


def test_a_truth_set_has_every_sample_once_with_its_flow_and_is_not_written_twice(
    scenes: Path, tmp_path: Path
) -> None:
    truth = truth_set("scenes", scenes, str(tmp_path), to_learn_from=True)
    assert truth.has_truth
    assert not truth.has_labels
    assert truth.index().num_rows == len(set(truth.index().column("pair_id").to_pylist())) == 16
    samples = {f"{sample.group} {sample.name}": load(sample) for sample in find_samples("scenes", scenes)}
    for row in truth.read_group(truth.files[0], 0):
        pair, expected = truth.decode(row), samples[row["video"]]
        assert pair.flow_fw is not None
        np.testing.assert_array_equal(pair.flow_fw, expected.flow)
        assert pair.flow_bw is None
        assert pair.confidence_fw is not None
        assert pair.confidence_fw.all()
        np.testing.assert_array_equal(pair.image1, expected.image1)
        np.testing.assert_array_equal(pair.image2, expected.image2)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    (tmp_path / truth.location / MANIFEST_FILE).unlink()
    again = truth_set("scenes", scenes, str(tmp_path), to_learn_from=True)
    assert pairs_of(again) == pairs_of(truth)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == written


def test_where_sparse_truth_is_not_known_it_is_not_trusted(tmp_path: Path) -> None:
    scene = render_scene(0, SCENE)
    root = tmp_path / "kitti" / "training"
    valid = np.zeros((64, 96), bool)
    valid[10:20, 30:50] = True
    for part in ("image_2", "flow_occ", "flow_noc"):
        (root / part).mkdir(parents=True)
    for folder, frame in (("10", 0), ("11", 1)):
        write_image(root / "image_2" / f"000000_{folder}.png", scene.frames[frame])
    for kind in ("flow_occ", "flow_noc"):
        write_flow(root / kind / "000000_10.png", scene.flow_fw[0], valid)
    truth = truth_set("kitti2015", tmp_path / "kitti", str(tmp_path / "runs"), to_learn_from=True)
    pair = truth.decode(truth.read_group(truth.files[0], 0)[0])
    assert pair.confidence_fw is not None
    assert ((pair.confidence_fw == 1) == valid).all()
    assert pair.flow_fw is not None
    # A PNG of KITTI's keeps 1/64 px.
    assert np.abs(pair.flow_fw - scene.flow_fw[0])[:, valid].max() <= 1 / 64


def test_a_validation_on_truth_gives_the_error_that_an_evaluation_gives(scenes: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = RECIPES["smoke"].network.build().eval()
    estimator = NetworkEstimator(network)
    errors = [
        pair_errors(estimator, load(sample), OcclusionCheck()) for sample in find_samples("scenes", scenes)
    ]
    expected = sum(errors, Errors()).flow.epe["all"]
    assert validated(network, scenes, tmp_path)["epe"] == pytest.approx(expected, rel=1e-6)


def validated(network: FlowNetwork, scenes: Path, folder: Path) -> dict[str, float]:
    """What a validation on the scenes' truth finds."""
    truth = truth_set("scenes", scenes, str(folder), to_learn_from=False)
    judge = HeldBack(pairs=truth, places=truth.index(), check=OcclusionCheck(), stage="test")
    numbers, _ = judge.judge(network, torch.device("cpu"))
    return numbers


def test_labels_teach_even_a_network_whose_own_two_flows_agree_nowhere(project: Path) -> None:
    write_video(project / "videos" / "scene.mp4", render_scene(5, SCENE).frames)
    labels = str(project / "labels")
    _, labelling = pseudolabel.recipes()["smoke"]
    teacher, videos = ("opencv:dis_medium",), str(project / "videos")
    pseudolabel.pseudolabel(replace(labelling, videos=videos, teacher=teacher, labels=labels), "smoke")
    _, options = distill.recipes()["smoke:flownets"]
    options = replace(options, labels=labels, run_root=str(project / "runs"))
    with pytest.raises(ValueError, match=r"is opencv:dis_medium, .* give --init fresh"):
        distill.distill(options, "smoke")
    with pytest.raises(ValueError, match=r"smoke:flownets names a network, .* add --init fresh"):
        distill.distill(options, "smoke:flownets")

    network = RECIPES["smoke"].networks["flownets"].build()
    for name, parameter in network.named_parameters():
        if name.startswith("heads.") and name.endswith("bias"):
            torch.nn.init.constant_(parameter, 3.0)
    save_model(project / "wild", network, {"stage": "test"})
    confident = StudentObjective(view="confidence")
    training = replace(options.training, steps=1, learning_rate=1e-6)
    uri = distill.distill(
        replace(options, init=str(project / "wild"), objective=confident, training=training), "smoke"
    )
    _, info = load_model(fetch_model(uri))
    assert info.config == RECIPES["smoke"].networks["flownets"]
    assert recorded_metrics(uri)["validation/occluded"] > 0.95


def recorded_metrics(uri: str) -> dict[str, float]:
    client = tracking.MlflowClient(tracking.tracking_uri())
    metrics: dict[str, float] = client.get_run(str(registry.run_of(uri))).data.metrics
    return metrics


def test_a_truth_that_names_no_data_set_is_refused(project: Path, scenes: Path) -> None:
    with pytest.raises(ValueError, match=r"--truth .* must be NAME:FOLDER"):
        replace(options(scenes, project), truth=str(scenes))
    with pytest.raises(ValueError, match="nothing"):
        replace(options(scenes, project), truth=f"nothing:{scenes}")


def test_a_fine_tuning_is_done_again_from_its_run_alone_and_comes_out_the_same(
    scenes: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = "models:/flow-finetuned@champion"
    torch.manual_seed(3)
    network = RECIPES["smoke"].network.build().eval()
    save_model(project / "start", network, {"stage": "test"})
    with tracking.start("finetune", parameters={}) as run:
        run.artifact(project / "start", "model")
    registry.register(
        run, "flow-finetuned", validation_loss=9.0, validation_digest="-", judge=lambda uri: 9.0
    )
    stage = replace(options(scenes, project), init=alias, validate_on=f"scenes:{scenes}")
    uri = finetune.finetune(replace(stage, training=replace(stage.training, log_every=2)), "smoke")
    run_id = registry.run_of(uri)
    assert run_id is not None
    # It began at those weights, and was validated against the truth.
    client = tracking.MlflowClient(tracking.tracking_uri(project))
    history = client.get_metric_history(run_id, "validation/epe")
    assert [metric.step for metric in history] == [0, 2, 4]
    assert history[0].value == pytest.approx(validated(network, scenes, project)["epe"], rel=1e-3)
    # What the alias names now isn't what it named.
    client.set_registered_model_alias("flow-finetuned", "champion", uri.rpartition("/")[2])
    again, text = rerun.rerun(rerun.Rerun(run_id=run_id))
    assert again != uri
    # A seed gives the same weights bit for bit.
    assert load_model(fetch_model(again))[1].digest == load_model(fetch_model(uri))[1].digest
    assert text == "the same: 2 losses equal to the last bit"
    before, after = recorded.recorded(run_id), recorded.recorded(str(registry.run_of(again)))
    assert before.losses == after.losses
    assert before.data
    changed = replace(after, losses={**after.losses, 4: 2 * after.losses[4]})
    assert recorded.comparison(before, changed) == (
        "not the same: losses differ from step 4 on, by at most 1 of their value"
    )
    assert "other data (truth, validation)" in recorded.comparison(
        before, replace(after, data=dict.fromkeys(after.data, "-"))
    )
    fewer = replace(after, losses={2: after.losses[2]})
    assert recorded.comparison(before, fewer) == "not the same: losses of 2 steps then, and of 1 now"
    # What is registered isn't written over.
    with pytest.raises(ValueError, match=f"registered as {uri}; start a new run with --init {uri}"):
        finetune.finetune(replace(options(scenes, project), resume=run_id), "smoke")
    monkeypatch.setattr(revision.platform, "python_version", lambda: "3.9.0")
    with pytest.raises(ValueError, match=r"packages python==3\.\d+\.\d+: pip install.*--anyway"):
        rerun.rerun(rerun.Rerun(run_id=run_id))
