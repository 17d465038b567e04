"""Truth as a pair set, fine-tuning on it, and doing that again."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bare_graph import BareGraph
from clips import written

from flowcore.datasets import find_samples
from flowcore.formats import write_flow, write_image
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.samples import load
from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from flowcore.video import ClipOptions
from jobs import finetune, rerun
from jobs.recipes import RECIPES
from pipelines import recorded, registry, run_store, tracking
from pipelines.checkpoints import load_model, save_model
from pipelines.collection import Collection
from pipelines.estimators import NetworkEstimator
from pipelines.evaluation import Errors, pair_errors
from pipelines.held_back import HeldBack
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.ledger import MANIFEST_FILE
from pipelines.models import fetch_model
from pipelines.pair_set import PairSet
from pipelines.revision import PACKAGES_FILE
from pipelines.teachers import Teachers
from pipelines.truth import truth_set

pytestmark = pytest.mark.usefixtures("ray_session")

SCENE = SceneOptions(height=64, width=96, num_frames=9)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(2):
        write_truth(folder / f"scene{seed}", render_scene(seed, SCENE))
    return folder


@pytest.fixture(scope="module")
def truth(scenes: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PairSet:
    return truth_set("scenes", scenes, str(tmp_path_factory.mktemp("runs")), to_learn_from=True)


def test_a_truth_set_has_every_sample_once(truth: PairSet) -> None:
    assert truth.index().num_rows == len(set(truth.index().column("pair_id").to_pylist())) == 16


def test_a_truth_set_has_the_frames_and_the_flow_of_its_samples(truth: PairSet, scenes: Path) -> None:
    samples = {f"{sample.group} {sample.name}": load(sample) for sample in find_samples("scenes", scenes)}
    for row in truth.read_group(truth.files[0], 0):
        pair, expected = truth.decode(row), samples[row["video"]]
        assert pair.flow_fw is not None
        np.testing.assert_array_equal(pair.flow_fw, expected.flow)
        np.testing.assert_array_equal(pair.image1, expected.image1)
        np.testing.assert_array_equal(pair.image2, expected.image2)


def test_truth_is_of_one_direction_and_trusted_where_it_is_known(truth: PairSet) -> None:
    assert truth.has_truth
    assert not truth.has_labels
    pair = truth.decode(truth.read_group(truth.files[0], 0)[0])
    assert pair.flow_bw is None
    assert pair.confidence_fw is not None
    assert pair.confidence_fw.all()


def test_a_truth_set_that_is_there_is_not_written_again(truth: PairSet, scenes: Path) -> None:
    before, index = written(truth.location), truth.index()
    (Path(truth.location) / MANIFEST_FILE).unlink()
    again = truth_set("scenes", scenes, str(Path(truth.location).parent), to_learn_from=True)
    assert written(again.location) == before
    assert again.index() == index


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


def test_a_validation_on_truth_gives_the_error_that_an_evaluation_gives(scenes: Path, truth: PairSet) -> None:
    network = a_network()
    estimator = NetworkEstimator(network)
    errors = [
        pair_errors(estimator, load(sample), OcclusionCheck()) for sample in find_samples("scenes", scenes)
    ]
    expected = sum(errors, Errors()).flow.epe["all"]
    assert validated(network, truth)["epe"] == pytest.approx(expected, rel=1e-6)


def a_network() -> FlowNetwork:
    torch.manual_seed(3)
    return RECIPES["smoke"].network.build().eval()


def validated(network: FlowNetwork, truth: PairSet) -> dict[str, float]:
    """What a validation on all of a truth finds."""
    judge = HeldBack(pairs=truth, places=truth.index(), check=OcclusionCheck(), stage="test")
    numbers, _ = judge.judge(network, torch.device("cpu"))
    return numbers


def test_a_truth_that_names_no_data_set_is_refused(scenes: Path) -> None:
    _, stage = finetune.recipes()["smoke"]
    with pytest.raises(ValueError, match=r"--truth .* must be NAME:FOLDER"):
        replace(stage, truth=str(scenes))
    with pytest.raises(ValueError, match="nothing"):
        replace(stage, truth=f"nothing:{scenes}")


ALIAS = "models:/flow-finetuned@champion"


def client() -> tracking.MlflowClient:
    return tracking.MlflowClient(run_store.tracking_uri())


@pytest.fixture(scope="module")
def stage(
    scenes: Path, tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[finetune.Finetune]:
    """A fine-tuning of a champion on truth and on labels, as the job is asked for it."""
    project = tmp_path_factory.mktemp("project")
    write_video(project / "videos" / "scene.mp4", render_scene(5, SCENE).frames)
    write_labels(
        Collection.find(str(project / "videos")),
        Teachers.fetched(["opencv:dis_medium"]),
        str(project / "labels"),
        ClipOptions(),
        OcclusionCheck(),
        LabellingOptions(),
        graph=BareGraph(),
    )
    save_model(project / "start", a_network(), {"stage": "test", "generation": "2"})
    shutil.copy(empty_store, project)
    _, defaults = finetune.recipes()["smoke"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
        with tracking.start("finetune", parameters={}) as run:
            run.artifact(project / "start", "model")
        registry.register(
            run, "flow-finetuned", validation_loss=9.0, validation_digest="-", judge=lambda uri: 9.0
        )
        yield replace(
            defaults,
            truth=f"scenes:{scenes}",
            validate_on=f"scenes:{scenes}",
            run_root=str(project / "runs"),
            init=ALIAS,
            labels=str(project / "labels"),
            where="frame < 6",
            training=replace(defaults.training, steps=4, validate_every=2, log_every=2),
        )


@dataclass(frozen=True, kw_only=True)
class Tuned:
    uri: str
    run_id: str


def run_of(uri: str) -> str:
    run_id = registry.run_of(uri)
    assert run_id is not None
    return run_id


@pytest.fixture(scope="module")
def tuned(stage: finetune.Finetune, ray_session: None) -> Tuned:
    uri = finetune.finetune(stage, "smoke")
    return Tuned(uri=uri, run_id=run_of(uri))


@pytest.fixture(scope="module")
def repeated(tuned: Tuned) -> tuple[Tuned, str]:
    """The same done again once its alias names another model, and what is told of the two."""
    client().set_registered_model_alias("flow-finetuned", "champion", tuned.uri.rpartition("/")[2])
    uri, told = rerun.rerun(rerun.Rerun(run_id=tuned.run_id))
    return Tuned(uri=uri, run_id=run_of(uri)), told


def test_a_fine_tuning_is_judged_by_the_truth_from_the_weights_on_that_it_is_given(
    tuned: Tuned, truth: PairSet
) -> None:
    history = client().get_metric_history(tuned.run_id, "validation/epe")
    assert [metric.step for metric in history] == [0, 2, 4]
    assert history[0].value == pytest.approx(validated(a_network(), truth)["epe"], rel=1e-3)


def test_each_step_of_a_fine_tuning_learns_from_the_truth_and_from_the_labels(tuned: Tuned) -> None:
    for loss in ("supervised", "photometric", "distillation"):
        history = client().get_metric_history(tuned.run_id, f"train/loss/{loss}")
        assert [metric.step for metric in history] == [2, 4]


def test_a_fine_tuning_s_filter_chooses_among_the_labels(stage: finetune.Finetune, tuned: Tuned) -> None:
    metrics = client().get_run(tuned.run_id).data.metrics
    assert (metrics["labels/pairs"], metrics["labels/pairs_kept"]) == (8, 6)
    assert load_model(fetch_model(tuned.uri))[1].provenance["where"] == stage.where


def test_a_fine_tuned_network_stays_of_the_generation_that_it_began_as(tuned: Tuned) -> None:
    assert load_model(fetch_model(tuned.uri))[1].generation == 2


def test_a_run_records_the_digests_of_all_data_that_it_reads(tuned: Tuned) -> None:
    assert recorded.recorded(tuned.run_id).data.keys() == {"truth", "validation", "labels"}


def test_done_again_a_training_has_the_same_losses_whatever_its_alias_names_by_now(
    tuned: Tuned, repeated: tuple[Tuned, str]
) -> None:
    again, told = repeated
    assert again.run_id != tuned.run_id
    assert recorded.recorded(again.run_id).losses == recorded.recorded(tuned.run_id).losses
    assert told == "the same: 2 losses equal to the last bit"


def test_done_again_a_training_ends_in_the_same_weights_bit_for_bit(
    tuned: Tuned, repeated: tuple[Tuned, str]
) -> None:
    first, second = (load_model(fetch_model(each.uri))[1].digest for each in (tuned, repeated[0]))
    assert first == second


def test_what_is_registered_is_not_written_over(stage: finetune.Finetune, tuned: Tuned) -> None:
    with pytest.raises(ValueError, match=f"registered as {tuned.uri}; start a new run with --init"):
        finetune.finetune(replace(stage, resume=tuned.run_id), "smoke")


def test_a_run_of_other_packages_is_done_again_only_if_asked_for_it(stage: finetune.Finetune) -> None:
    with tracking.start("finetune", recipe="smoke", parameters=stage) as run:
        pass
    client().log_text(run.run_id, "python==3.9.0", PACKAGES_FILE)
    with pytest.raises(ValueError, match=r"packages python==3\.9\.0: pip install.*--anyway"):
        rerun.rerun(rerun.Rerun(run_id=run.run_id))
