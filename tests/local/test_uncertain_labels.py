"""Labels of a teacher that predicts how far its flow is off: what is in a set of them, and who heeds it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bare_graph import BareGraph
from clips import TINY, render, save_teacher
from typed import error_of

from jobs.command import run_recipe
from flowcore.occlusion import OcclusionCheck
from flowcore.video import ClipOptions
from jobs import distill
from pipelines.checkpoints import save_model
from pipelines.collection import Collection
from pipelines.grades import GradedSet
from pipelines.label_dataset import LabelDataset
from pipelines.label_rows import decode_uncertainty
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.pair_set import PairSet
from pipelines.teachers import Teachers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, a teacher with uncertainty and one without, and the labels of each and of both together."""
    folder = tmp_path_factory.mktemp("uncertain")
    render(folder / "videos" / "a.mp4", 1, num_frames=6)
    save_teacher(folder / "plain")
    torch.manual_seed(0)
    network = replace(TINY, uncertainty=True).build()
    network.load_state_dict({name: 0.7 * value for name, value in network.state_dict().items()})
    save_model(folder / "uncertain", network, {})
    for name, teachers in (
        ("plain", ["plain"]),
        ("uncertain", ["uncertain"]),
        ("both", ["uncertain", "plain"]),
    ):
        write_labels(
            Collection.find(str(folder / "videos")),
            Teachers.fetched([str(folder / each) for each in teachers]),
            str(folder / f"{name}-labels"),
            ClipOptions(),
            OcclusionCheck(),
            LabellingOptions(),
            graph=BareGraph(),
        )
    return folder


def test_each_vector_of_a_label_has_a_byte_of_uncertainty(folder: Path) -> None:
    labels = PairSet.open(str(folder / "uncertain-labels"))
    means = GradedSet.read(labels).quality("uncertainty")
    for place, mean in zip(labels.index().to_pylist(), means, strict=True):
        row = labels.read(place)
        assert row["uncertainty_fw"].dtype == np.uint8
        assert 2 * len(row["uncertainty_fw"]) == len(row["flow_fw"])
        both = [decode_uncertainty(row, name).mean() for name in ("uncertainty_fw", "uncertainty_bw")]
        # A code is within 4.5 %.
        assert np.mean(both) == pytest.approx(mean, rel=0.045)


@pytest.mark.parametrize("name", ["plain", "both"])
def test_labels_of_a_teacher_without_uncertainty_have_no_column_for_it(folder: Path, name: str) -> None:
    labels = PairSet.open(str(folder / f"{name}-labels"))
    assert "uncertainty" not in labels.quality_columns
    assert "uncertainty_fw" not in labels.description.columns.names


def test_other_training_code_gets_the_uncertainty_in_pixels(folder: Path) -> None:
    pair = LabelDataset(folder / "uncertain-labels")[0]
    assert pair["uncertainty_bw"].shape == pair["confidence_bw"].shape
    assert (pair["uncertainty_bw"] > 0).all()
    assert "uncertainty_bw" not in LabelDataset(folder / "plain-labels")[0]


def test_a_student_that_is_to_heed_what_labels_do_not_tell_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    arguments = ["smoke", "--labels", str(folder / "plain-labels"), "--run-root", str(tmp_path / "runs")]
    error = error_of(
        lambda: run_recipe(
            lambda stage, name: print(distill.distill(stage, name)),
            distill.recipes(),
            [*arguments, "--uncertainty-tolerance", "1"],
        )
    )
    assert "--uncertainty-tolerance 1.0 needs labels" in error
    assert "--network.uncertainty" in error
