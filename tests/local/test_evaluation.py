"""The errors of models on rendered scenes, whose truth is exact, and on real data sets' own files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from numpy import ndarray

from flowcore.datasets import DataSet, find_samples
from flowcore.formats import write_flow, write_image
from flowcore.inference import InferenceOptions
from flowcore.metrics import FlowErrors, OcclusionCounts, Sparsification
from flowcore.networks import PWCNetConfig
from flowcore.refinement import refined
from flowcore.samples import Sample, Truth, Unmasked, load
from flowcore.scenes import SceneOptions, render_scene, write_truth
from flowcore.slices import SliceErrors
from pipelines.checkpoints import save_model
from pipelines.error_tables import error_table, slice_table, uncertainty_table
from pipelines.estimators import Estimated, NoMotion, Together, load_estimator
from pipelines.evaluation import (
    DEFAULT_CHECK,
    Errors,
    EvaluationResult,
    evaluate,
    example,
    pair_errors,
)

SCENES = SceneOptions(height=48, width=64, num_frames=4)
TINY = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,))

Flow = Float[ndarray, "2 height width"]


class Oracle:
    """Knows the answer."""

    run_id = None

    def __init__(self, flow_fw: Flow, flow_bw: Flow) -> None:
        self._flows = flow_fw, flow_bw

    def __call__(self, image1: ndarray, image2: ndarray) -> tuple[Flow, Flow]:
        return self._flows

    def estimated(self, image1: ndarray, image2: ndarray) -> Estimated:
        return Estimated(flow_fw=self._flows[0], flow_bw=self._flows[1])

    def to(self, device: torch.device) -> None:
        pass


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 pairs, more than fit one block."""
    root = tmp_path_factory.mktemp("scenes")
    for seed in range(6):
        write_truth(root / f"scene{seed}", render_scene(seed, SCENES))
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(folder, TINY.build(), {})
    return str(folder)


@pytest.fixture(scope="module")
def results(scenes: Path, model: str, ray_session: None) -> dict[str, EvaluationResult]:
    models = {"zero": "zero", "dis": "opencv:dis_medium", "net": model}
    estimators = {name: load_estimator(uri) for name, uri in models.items()}
    return evaluate(estimators, DataSet("scenes", str(scenes)))


def motions(scenes: Path) -> Float[ndarray, " pixels"]:
    truths = [load(sample) for sample in find_samples("scenes", scenes)]
    return np.concatenate([np.hypot(*truth.flow.astype(np.float64)).ravel() for truth in truths])


def test_the_error_of_no_motion_is_the_mean_motion(
    results: dict[str, EvaluationResult], scenes: Path
) -> None:
    motion = motions(scenes)
    errors = results["zero"].total
    assert errors.flow.epe["all"] == pytest.approx(motion.mean(), rel=1e-6)
    # a pixel is an outlier above 3 px; being wrong by all of its motion is more than 5 %
    assert errors.flow.fl == pytest.approx((motion > 3).mean(), abs=1e-12)
    assert errors.occlusion.recall == 0


def test_the_cluster_counts_what_one_process_counts(
    results: dict[str, EvaluationResult], scenes: Path, model: str
) -> None:
    samples = find_samples("scenes", scenes)
    assert len(samples) == 18
    for name, uri in {"zero": "zero", "dis": "opencv:dis_medium"}.items():
        estimator = load_estimator(uri)
        alone = [pair_errors(estimator, load(sample), DEFAULT_CHECK) for sample in samples]
        assert results[name].pairs == tuple(zip(samples, alone, strict=True))
    net = load_estimator(model)
    alone = [pair_errors(net, load(sample), DEFAULT_CHECK) for sample in samples]
    # another number of threads adds in another order
    epe = sum(alone, Errors()).flow.epe["all"]
    assert results["net"].total.flow.epe["all"] == pytest.approx(epe, rel=1e-4)


def test_the_whole_is_the_sum_of_its_groups(results: dict[str, EvaluationResult]) -> None:
    for result in results.values():
        groups = result.groups
        assert sum(groups.values(), Errors()) == result.total
        assert sum(errors.pairs for errors in groups.values()) == len(result.pairs) == 18


def test_dis_is_better_than_no_motion(results: dict[str, EvaluationResult]) -> None:
    dis, zero = results["dis"].total.flow.epe["all"], results["zero"].total.flow.epe["all"]
    assert dis is not None
    assert zero is not None
    assert dis < 0.6 * zero


def test_the_truth_has_no_error_and_its_check_finds_most_of_the_occlusion(scenes: Path) -> None:
    scene = render_scene(3, SCENES)
    sample = next(s for s in find_samples("scenes", scenes) if s.name == "scene3/frame_0000")
    errors = pair_errors(Oracle(scene.flow_fw[0], scene.flow_bw[0]), load(sample), DEFAULT_CHECK)
    assert errors.flow.epe == {"all": 0, "noc": 0, "occ": 0}
    assert errors.flow.fl == 0
    assert errors.occlusion.f1 is not None
    assert errors.occlusion.f1 > 0.8


class Off(Oracle):
    """Is off by as many pixels to the right as it says."""

    def __init__(self, truth: Flow, pixels: Flow, told: Flow) -> None:
        flow = truth + np.stack([pixels, np.zeros_like(pixels)])
        super().__init__(flow, -flow)
        self._told = told

    def estimated(self, image1: ndarray, image2: ndarray) -> Estimated:
        flow_fw, flow_bw = self(image1, image2)
        return Estimated(flow_fw=flow_fw, flow_bw=flow_bw, uncertainty={"predicted": self._told})


def test_an_uncertainty_is_best_where_it_is_the_error_and_worst_where_it_is_the_reverse(scenes: Path) -> None:
    truth = load(find_samples("scenes", scenes)[0])
    wrong = np.linspace(0, 5, truth.flow[0].size, dtype=np.float32).reshape(truth.flow[0].shape)
    areas = [
        pair_errors(Off(truth.flow, wrong, told), truth, DEFAULT_CHECK).ause["predicted"]
        for told in (wrong, np.ones_like(wrong), -wrong)
    ]
    assert areas[0] == pytest.approx(0, abs=1e-3)
    # The mean of n errors that grow evenly is half of the worst, and so is that of a random share of them.
    assert areas[1] == pytest.approx(0.5, abs=1e-3)
    assert areas[2] == pytest.approx(1, abs=1e-3)


def test_models_together_have_their_mean_flow_and_how_far_they_are_from_it(scenes: Path) -> None:
    truth = load(find_samples("scenes", scenes)[0])
    far = np.full(truth.flow[0].shape, 4.0, np.float32)
    pair = [Off(truth.flow, each, each) for each in (far, -far)]
    together = Together(pair, "mean", DEFAULT_CHECK)
    both = together.estimated(truth.image1, truth.image2)
    np.testing.assert_allclose(both.flow_fw, truth.flow, atol=1e-4)
    np.testing.assert_allclose(both.uncertainty["spread"], far, atol=1e-4)
    errors = pair_errors(together, truth, DEFAULT_CHECK)
    assert errors.flow.epe["all"] == pytest.approx(0, abs=1e-4)
    assert "predicted" not in errors.ause


def test_models_that_take_turns_have_the_flow_of_the_first_one_that_agrees_there_and_back(
    scenes: Path,
) -> None:
    truth = load(find_samples("scenes", scenes)[0])
    still = np.zeros_like(truth.flow)
    # It leads out of the frame, from where nothing comes back.
    lost, sure = Off(truth.flow, still[0] + 90, still[0]), NoMotion()
    turns = Together([lost, sure], "first", DEFAULT_CHECK).estimated(truth.image1, truth.image2)
    np.testing.assert_array_equal(turns.flow_fw, still)
    assert not turns.uncertainty


def test_how_well_an_uncertainty_tells_the_error_is_a_metric_of_each_group() -> None:
    told = {"forward_backward": Sparsification(area=0.6, images=2)}
    result = result_of({"kitti15": replace(errors_of(2, 2.0), uncertainties=told)})
    assert result.metrics()["kitti15/ause/forward_backward"] == pytest.approx(0.3)
    assert json.loads(json.dumps(result.summary()))["ause"] == {"forward_backward": pytest.approx(0.3)}
    rows = {"zero": errors_of(1, 2.0), "a student": result.total}
    assert uncertainty_table("kitti15", rows).splitlines() == [
        "| kitti15   | AUSE predicted | AUSE forward_backward | AUSE spread |",
        "| --------- | -------------: | --------------------: | ----------: |",
        "| zero      |              - |                     - |           - |",
        "| a student |              - |                  0.30 |           - |",
    ]


def test_an_evaluation_refuses_iterations_of_a_network_that_has_none() -> None:
    with pytest.raises(ValueError, match="iterations"):
        load_estimator("distillflow:laptop", InferenceOptions(iterations=3))


def test_an_evaluation_refines_flow_as_prediction_does(scenes: Path) -> None:
    truth = load(find_samples("scenes", scenes)[0])
    plain, sharper = (
        load_estimator("opencv:dis_fast", InferenceOptions(refinement=times))(truth.image1, truth.image2)
        for times in (0, 5)
    )
    for way, frames in enumerate(((truth.image1, truth.image2), (truth.image2, truth.image1))):
        expected = refined(torch.from_numpy(plain[way])[None], *([each] for each in frames), 5)
        np.testing.assert_allclose(sharper[way], expected[0], atol=1e-4)


def test_samples_are_ranked_by_their_error(results: dict[str, EvaluationResult]) -> None:
    error_of = {sample: errors.flow.epe["all"] or 0 for sample, errors in results["net"].pairs}
    ranked = [error_of[sample] for sample in results["net"].ranked]
    assert ranked == sorted(error_of.values())
    assert len(ranked) == 18


def errors_of(pairs: int, error: float) -> Errors:
    return Errors(
        flow=FlowErrors(error_all=error * 10 * pairs, pixels_all=10 * pairs, outliers=pairs),
        pairs=pairs,
    )


def result_of(errors_by_group: dict[str, Errors]) -> EvaluationResult:
    nowhere = Path("nowhere")
    return EvaluationResult(
        data_set="sintel",
        pairs=tuple(
            (Sample(name="a", group=group, image1=nowhere, image2=nowhere, flow=nowhere), errors)
            for group, errors in errors_by_group.items()
        ),
    )


def test_metrics_are_paths_and_what_is_unknown_is_left_out() -> None:
    result = result_of({"sintel/clean": errors_of(1, 2.0), "sintel/final": errors_of(3, 4.0)})
    assert result.metrics() == {
        "sintel/epe/all": 3.5,
        "sintel/fl/all": 0.1,
        "sintel/pairs": 4,
        "sintel/clean/epe/all": 2.0,
        "sintel/clean/fl/all": 0.1,
        "sintel/clean/pairs": 1,
        "sintel/final/epe/all": 4.0,
        "sintel/final/fl/all": 0.1,
        "sintel/final/pairs": 3,
        # Where MLflow's page of runs shows that of a training.
        "final/epe": 3.5,
    }
    one = result_of({"kitti15": errors_of(1, 2.0)})
    assert one.metrics() == {
        "kitti15/epe/all": 2.0,
        "kitti15/fl/all": 0.1,
        "kitti15/pairs": 1,
        "final/epe": 2.0,
    }


def test_the_summary_is_json_with_none_for_what_is_unknown() -> None:
    result = result_of({"sintel/clean": errors_of(1, 2.0), "sintel/final": errors_of(3, 4.0)})
    summary = json.loads(json.dumps(result.summary()))
    assert summary["epe"] == {"all": 3.5, "noc": None, "occ": None}
    assert summary["occlusion"] == {"precision": None, "recall": None, "f1": None}
    assert summary["pairs"] == 4
    assert summary["groups"]["sintel/clean"]["epe"]["all"] == 2.0
    assert set(summary["groups"]) == {"sintel/clean", "sintel/final"}


def test_the_table_has_a_row_for_each_model() -> None:
    known = replace(
        errors_of(1, 2.0),
        flow=FlowErrors(
            error_all=14.0,
            error_noc=4.0,
            error_occ=10.0,
            pixels_all=8,
            pixels_noc=4,
            pixels_occ=4,
            outliers=1,
        ),
        occlusion=OcclusionCounts(true_positives=1, false_positives=1, false_negatives=1),
    )
    assert error_table("scenes, 1 pairs", {"zero": errors_of(1, 2.0), "a student": known}).splitlines() == [
        "| scenes, 1 pairs | EPE all | EPE noc | EPE occ |  Fl % | occlusion F |",
        "| --------------- | ------: | ------: | ------: | ----: | ----------: |",
        "| zero            |    2.00 |       - |       - | 10.00 |           - |",
        "| a student       |    1.75 |    1.00 |    2.50 | 12.50 |        0.50 |",
    ]


def test_slices_are_metrics_beside_the_others_and_in_the_summary() -> None:
    slices = {
        "all": SliceErrors(error=20.0, pixels=10, outliers=1, image_epe=2.0, image_fl=0.1, images=1),
        "fg": SliceErrors(
            error=8.0,
            pixels=2,
            outliers=1,
            off_by_1px=2,
            off_by_3px=1,
            inlier_ranks=5050,
            image_epe=4.0,
            image_fl=0.5,
            image_off_by_3px=0.5,
            images=1,
        ),
    }
    result = result_of({"kitti15": replace(errors_of(1, 2.0), slices=slices)})
    metrics = result.metrics()
    assert {name: value for name, value in metrics.items() if name.endswith("/fg")} == {
        "kitti15/epe/fg": 4.0,
        "kitti15/fl/fg": 0.5,
        "kitti15/1px/fg": 1.0,
        "kitti15/3px/fg": 0.5,
        "kitti15/wauc/fg": 0.5,
        "kitti15/epe_per_image/fg": 4.0,
        "kitti15/fl_per_image/fg": 0.5,
        "kitti15/3px_per_image/fg": 0.5,
    }
    assert (metrics["kitti15/epe/all"], metrics["kitti15/fl/all"]) == (2.0, 0.1)
    summary = json.loads(json.dumps(result.summary()))
    assert list(summary["slices"]) == list(summary["groups"]["kitti15"]["slices"]) == ["all", "fg"]
    assert summary["slices"]["fg"]["pixels"] == 2
    assert slice_table("kitti", result.total.slices).splitlines() == [
        "| kitti | pixels |  EPE | EPE/image |  Fl % | Fl %/image | 3px % | 3px %/image |  1px % | WAUC % |",
        "| ----- | -----: | ---: | --------: | ----: | ---------: | ----: | ----------: | -----: | -----: |",
        "| all   |     10 | 2.00 |      2.00 | 10.00 |      10.00 |  0.00 |        0.00 |   0.00 |   0.00 |",
        "| fg    |      2 | 4.00 |      4.00 | 50.00 |      50.00 | 50.00 |       50.00 | 100.00 |  50.00 |",
    ]


def test_a_pair_s_slices_have_what_its_truth_tells() -> None:
    """No motion, judged where half of the frame moves by 12 px, and a third of that is masked."""
    flow = np.zeros((2, 4, 6), np.float32)
    flow[0, :, 3:] = 12
    valid = np.ones((4, 6), dtype=bool)
    valid[:, 5] = False
    truth = Truth(
        image1=np.zeros((4, 6, 3), np.uint8),
        image2=np.zeros((4, 6, 3), np.uint8),
        flow=flow * valid,
        valid=valid,
        occluded=None,
        foreground=flow[0] > 0,
        unmasked=Unmasked(flow=flow, valid=np.ones_like(valid)),
        finer=np.stack([flow * valid, flow / 2, flow, flow]),
    )
    slices = pair_errors(load_estimator("zero"), truth, DEFAULT_CHECK).slices
    assert {name: (errors.pixels, errors.epe) for name, errors in slices.items()} == {
        "all": (20, 12 * 8 / 20),
        "s0-10": (12, 0.0),
        "s10-40": (8, 12.0),
        "bg": (12, 0.0),
        "fg": (8, 12.0),
        "unmasked": (24, 6.0),
        "nearest": (20, 6 * 8 / 20),
    }


def test_the_example_shows_every_model(scenes: Path, model: str) -> None:
    sample = find_samples("scenes", scenes)[0]
    both = {name: load_estimator(uri) for name, uri in {"dis": "opencv:dis_medium", "net": model}.items()}
    one = example(sample, {"dis": both["dis"]}, DEFAULT_CHECK)
    two = example(sample, both, DEFAULT_CHECK)
    assert one.dtype == two.dtype == np.uint8
    assert one.shape[1:] == two.shape[1:]
    assert one.shape[0] < two.shape[0]


def test_a_data_set_without_occlusion_truth_counts_no_occlusion(tmp_path: Path) -> None:
    scene = render_scene(0, SCENES)
    folder = tmp_path / "Grove"
    folder.mkdir()
    write_image(folder / "frame10.png", scene.frames[0])
    write_image(folder / "frame11.png", scene.frames[1])
    write_flow(folder / "flow10.flo", scene.flow_fw[0])
    (sample,) = find_samples("middlebury", tmp_path)
    errors = pair_errors(load_estimator("zero"), load(sample), DEFAULT_CHECK)
    assert errors.occlusion.pixels == 0
    assert errors.flow.epe["noc"] is None
    assert errors.flow.pixels_all == 48 * 64


def test_a_model_that_estimates_nan_is_named_with_the_pair(tmp_path: Path, ray_session: None) -> None:
    write_truth(tmp_path / "scenes" / "scene0", render_scene(0, replace(SCENES, num_frames=2)))
    broken = TINY.build()
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    save_model(tmp_path / "broken", broken, {})
    estimator = load_estimator(str(tmp_path / "broken"))
    # Ray wraps the error; jobs.command unwraps it.
    with pytest.raises(Exception, match=r"broken on scenes scene0/frame_0000.*NaN"):
        evaluate({"broken": estimator}, DataSet("scenes", str(tmp_path / "scenes")))


def test_a_folder_of_another_layout_is_refused_with_the_layout_that_is_expected(scenes: Path) -> None:
    with pytest.raises(FileNotFoundError, match="sintel is expected as training/"):
        evaluate({"zero": NoMotion()}, DataSet("sintel", str(scenes)))


def test_a_data_set_on_object_storage_is_refused() -> None:
    with pytest.raises(ValueError, match="--truth s3://bucket/scenes is a URI"):
        evaluate({"zero": NoMotion()}, DataSet("scenes", "s3://bucket/scenes"))


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_estimator(str(tmp_path / "nothing"))


def test_frames_that_are_too_small_for_a_method_are_an_error_that_names_it() -> None:
    tiny = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"opencv:dis_medium can't estimate flow for frames of \(8, 8\) px"):
        load_estimator("opencv:dis_medium")(tiny, tiny)


@pytest.mark.parametrize("name", ["sintel", "kitti2012"])
def test_dis_is_better_than_no_motion_on_real_data_sets(
    shared_data: Path, ray_session: None, name: str
) -> None:
    estimators = {"zero": NoMotion(), "dis": load_estimator("opencv:dis_medium")}
    results = evaluate(estimators, DataSet(name, str(shared_data / name)))
    assert results["zero"].groups.keys() == results["dis"].groups.keys()
    for group, zero in results["zero"].groups.items():
        dis = results["dis"].groups[group]
        assert dis.pairs == zero.pairs > 0
        assert dis.flow.pixels_all == zero.flow.pixels_all
        assert (dis.flow.epe["all"] or 0) < 0.5 * (zero.flow.epe["all"] or 0)


def test_of_a_stereo_pair_only_the_motion_along_the_row_counts(scenes: Path) -> None:
    truth = load(find_samples("scenes", scenes)[0])
    disparity = np.where(truth.flow[:1] < 0, truth.flow[:1], -5).astype(np.float32)
    stereo = replace(truth, flow=np.concatenate([disparity, 0 * disparity]), is_stereo=True)
    wrong = np.concatenate([disparity - 4, 0 * disparity + 100]).astype(np.float32)
    errors = pair_errors(Oracle(wrong, -wrong), stereo, DEFAULT_CHECK)
    assert errors.flow.epe["all"] == pytest.approx(4)
    # D1: by more than 3 px, and all are by more than 5 % of a disparity below 80 px
    assert errors.flow.fl == 1
