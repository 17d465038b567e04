"""Labels as other tools' files, and such files as labels, by the jobs that a user types."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from clips import written
from object_storage import Bucket
from stored_pairs import shard, write_set

from flowcore.datasets import find_samples
from flowcore.formats import read_flow, read_mask, write_flow, write_image
from flowcore.occlusion import OcclusionCheck
from flowcore.samples import Sample, load
from jobs import command, distill, export_labels, import_labels
from pipelines import label_files
from pipelines.label_files import EXPORT_FILE, Layout
from pipelines.label_rows import quantized
from pipelines.labels import FLOW_UNITS
from pipelines.pair_set import PairSet

HALF_A_UNIT = 1 / (2 * FLOW_UNITS)


def exported(labels: Path, *arguments: str) -> None:
    command.run(export_labels.main, export_labels.ExportLabels, ["--labels", str(labels), *arguments])


def imported(files: Path, labels: Path) -> PairSet:
    arguments = ["--files", str(files), "--labels", str(labels)]
    command.run(import_labels.main, import_labels.ImportLabels, arguments)
    return PairSet.open(str(labels))


def refusal(capsys: pytest.CaptureFixture[str], job: Any, *arguments: Any) -> str:
    """What a job says that ends as it must not go on."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        job(*arguments)
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    """Of two sizes, and of more pairs than a file of an imported set takes."""
    location = tmp_path_factory.mktemp("labels")
    write_set(location, {"aa": [shard(15, 45, 62, 4)[0]], "bb": [shard(3, 48, 64, 1, video="w")[0]]})
    return PairSet.open(str(location))


@dataclass(frozen=True, kw_only=True)
class Export:
    layout: str
    files: Path

    @property
    def data_set(self) -> str:
        """Whose layout it is."""
        return self.layout.removesuffix("-flo5")

    @property
    def samples(self) -> list[Sample]:
        return find_samples(self.data_set, self.files)


@pytest.fixture(scope="module", params=get_args(Layout))
def export(
    request: pytest.FixtureRequest, labels: PairSet, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    files = tmp_path_factory.mktemp("files") / "files"
    exported(Path(labels.location), "--output", str(files), "--layout", request.param)
    return Export(layout=request.param, files=files)


def test_an_export_lists_the_pairs_in_the_order_of_its_files(labels: PairSet, export: Export) -> None:
    listed = json.loads((export.files / EXPORT_FILE).read_text())["pairs"]
    assert listed == labels.index()["pair_id"].to_pylist()


def test_an_export_is_read_back_as_the_data_set_whose_layout_it_has(labels: PairSet, export: Export) -> None:
    most = HALF_A_UNIT if export.data_set == "kitti2015" else 0.0
    for sample, place in zip(export.samples, labels.index().to_pylist(), strict=True):
        truth, row = load(sample), labels.read(place)
        label = labels.decode(row)
        assert label.flow_fw is not None
        np.testing.assert_array_equal(truth.image1, label.image1)
        np.testing.assert_array_equal(truth.image2, label.image2)
        assert np.abs(truth.flow - label.flow_fw).max() <= most
        assert truth.valid.all()
        assert truth.occluded is not None
        np.testing.assert_array_equal(truth.occluded.reshape(-1), row["occ_fw"])


@pytest.mark.parametrize("export", ["chairs2", "chairs2-flo5"], indirect=True)
def test_an_export_of_both_directions_has_the_backward_one_too(labels: PairSet, export: Export) -> None:
    for sample, place in zip(export.samples, labels.index().to_pylist(), strict=True):
        row = labels.read(place)
        backward, _ = read_flow(str(sample.flow).replace("flow_01", "flow_10"))
        np.testing.assert_array_equal(backward, labels.decode(row).flow_bw)
        occluded = read_mask(Path(str(sample.occlusion).replace("occ_01", "occ_10")))
        np.testing.assert_array_equal(occluded.reshape(-1), row["occ_bw"])


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, Path]:
    """(labels, the files of their export, which was killed once before it had a list of its pairs)."""
    labels, files = tmp_path / "labels", tmp_path / "files"
    write_set(labels, {"aa": [shard(6, 33, 40, 4)[0]]})
    files.mkdir()
    (files / f".{EXPORT_FILE}.0.partial").write_bytes(b"")
    exported(labels, "--output", str(files), "--where", "frame >= 2")
    return labels, files


def test_an_export_has_the_pairs_that_its_filter_keeps(begun: tuple[Path, Path]) -> None:
    assert len(find_samples("chairs2", begun[1])) == 4


def test_an_export_that_was_cut_off_is_finished_and_nothing_in_it_written_again(
    begun: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    labels, files = begun
    kept = files / "0000001-flow_01.flo"
    before = kept.stat().st_mtime_ns
    (files / "0000003-flow_01.flo").unlink()
    exported(labels, "--output", str(files), "--where", "frame >= 2")
    assert "1 of them new" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("other", [(), ("--where", "frame >= 2", "--layout", "kitti2015")])
def test_an_export_never_mixes_with_another_one(
    begun: tuple[Path, Path], other: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    labels, files = begun
    told = refusal(capsys, exported, labels, "--output", str(files), *other)
    assert "holds the export of another label set, layout or filter" in told


def test_an_export_goes_into_no_folder_of_other_files(
    labels: PairSet, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(capsys, exported, labels.location, "--output", labels.location)
    assert "holds other files; give a new folder" in told


def test_an_export_writes_through_no_link(
    labels: PairSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("files", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "files" / "training").symlink_to(tmp_path / "outside")
    words = "--output", str(tmp_path / "files"), "--layout", "kitti2015"
    assert "is a link or a device" in refusal(capsys, exported, labels.location, *words)
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("layout", get_args(Layout))
def test_an_export_to_object_storage_has_the_files_of_one_to_a_disk(
    tmp_path: Path, bucket: Bucket, layout: str
) -> None:
    write_set(tmp_path / "labels", {"aa": [shard(2, 33, 40, 4)[0]]})
    here, there = tmp_path / "files", bucket.uri("files")
    for output in (str(here), there, there):
        exported(tmp_path / "labels", "--output", output, "--layout", layout)
    on_disk = {str(path.relative_to(here)): path.read_bytes() for path in here.rglob("*.*")}
    assert bucket.contents("files", "") == on_disk


def test_flow_too_long_for_kitti_is_unknown_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, _ = shard(1, 33, 40, 1)
    far = torch.zeros(1, 2, 33, 40)
    far[0, 0, 5, 6] = 600.0
    position = table.column_names.index("flow_fw")
    table = table.set_column(position, table.schema.field("flow_fw"), [quantized(far)])
    write_set(tmp_path / "labels", {"aa": [table]})
    exported(tmp_path / "labels", "--output", str(tmp_path / "files"), "--layout", "kitti2015")
    assert "1 pixels move too far" in capsys.readouterr().out
    (sample,) = find_samples("kitti2015", tmp_path / "files")
    assert [list(each) for each in np.nonzero(~load(sample).valid)] == [[5], [6]]


@pytest.fixture(scope="module")
def returned(export: Export) -> PairSet:
    """What was exported, imported."""
    return imported(export.files, export.files.parent / "back")


def shards(pairs: PairSet) -> dict[str, bytes]:
    return {file: (Path(pairs.location) / file).read_bytes() for file in pairs.files}


OF_BOTH_DIRECTIONS = pytest.mark.parametrize("export", ["chairs2", "chairs2-flo5"], indirect=True)


def rows(labels: PairSet, returned: PairSet) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each pair as it was stored and as it came back."""
    places = {place["pair_id"]: place for place in returned.index().to_pylist()}
    return [
        (labels.read(place), returned.read(places[place["pair_id"]])) for place in labels.index().to_pylist()
    ]


@OF_BOTH_DIRECTIONS
def test_what_was_exported_comes_back_as_a_label_set_of_the_same_pairs(
    labels: PairSet, returned: PairSet
) -> None:
    ids, expected = (sorted(each.index()["pair_id"].to_pylist()) for each in (returned, labels))
    assert ids == expected
    assert returned.ledger() == []


@OF_BOTH_DIRECTIONS
def test_frames_flow_and_masks_come_back_as_they_were(labels: PairSet, returned: PairSet) -> None:
    for row, other in rows(labels, returned):
        label, again = labels.decode(row), returned.decode(other)
        for frame, original in ((again.image1, label.image1), (again.image2, label.image2)):
            np.testing.assert_array_equal(frame, original)
        for flow, expected in ((again.flow_fw, label.flow_fw), (again.flow_bw, label.flow_bw)):
            assert flow is not None
            assert expected is not None
            assert np.abs(flow - expected).max() <= HALF_A_UNIT
        for mask in ("occ_fw", "occ_bw"):
            np.testing.assert_array_equal(other[mask], row[mask])


@OF_BOTH_DIRECTIONS
def test_the_quality_of_imported_labels_is_measured_anew(labels: PairSet, returned: PairSet) -> None:
    assert returned.quality_columns == labels.quality_columns
    for row, other in rows(labels, returned):
        label = labels.decode(row)
        lengths = np.hypot(*np.stack([label.flow_fw, label.flow_bw]).transpose(1, 0, 2, 3))
        assert other["flow_max"] == pytest.approx(lengths.max(), rel=1e-5)
        assert other["occluded"] == pytest.approx(np.mean([row["occ_fw"], row["occ_bw"]]))


@pytest.mark.parametrize("export", ["chairs2"], indirect=True)
def test_tasks_of_ray_import_what_threads_do(
    export: Export, returned: PairSet, tmp_path: Path, ray_session: None
) -> None:
    by_ray = label_files.import_labels(
        export.files, str(tmp_path / "labels"), OcclusionCheck(), on_cluster=True
    )
    assert by_ray.label_set == returned.label_set
    assert shards(by_ray) == shards(returned)


@OF_BOTH_DIRECTIONS
def test_files_that_are_imported_already_are_only_looked_at(export: Export, returned: PairSet) -> None:
    before = written(returned.location)
    again = imported(export.files, Path(returned.location))
    assert again.label_set == returned.label_set
    assert written(returned.location) == before


@pytest.mark.parametrize("export", ["chairs2"], indirect=True)
def test_other_files_are_imported_into_another_set(
    export: Export, returned: PairSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    shutil.copytree(export.files, files)
    shutil.copy(files / "0000004-occ_10.png", files / "0000003-occ_10.png")
    told = refusal(capsys, imported, files, Path(returned.location))
    assert "is a set made with other options: teacher.digest is" in told


@pytest.mark.parametrize("export", ["chairs2"], indirect=True)
def test_imported_labels_leave_a_student_no_model_to_start_from(returned: PairSet, tmp_path: Path) -> None:
    _, options = distill.recipes()["smoke"]
    options = replace(options, labels=returned.location, run_root=str(tmp_path / "runs"))
    with pytest.raises(ValueError, match=r"came as files, without the teacher .* --init fresh"):
        distill.distill(options, "smoke")


UNKNOWN = np.zeros((40, 64), bool)
UNKNOWN[20:24, 30:36] = True
"""Where the backward flow of other people's files isn't known."""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Two pairs as other people's files, which move eight pixels to the right; without masks."""
    files = tmp_path / "files"
    files.mkdir()
    flow = np.zeros((2, 40, 64), np.float32)
    flow[0] = 8.0
    for number in range(2):
        for frame in range(2):
            image = np.full((40, 64, 3), 50 * (number + frame), np.uint8)
            write_image(files / f"{number:07d}-img_{frame}.png", image)
        write_flow(files / f"{number:07d}-flow_01.flo", flow)
        write_flow(files / f"{number:07d}-flow_10.flo", -flow, ~UNKNOWN)
    return files


def test_files_of_one_direction_are_no_labels_but_truth(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for backward in theirs.glob("*-flow_10.flo"):
        backward.unlink()
    told = refusal(capsys, imported, theirs, tmp_path / "labels")
    assert "2 of 2 pairs in" in told
    assert "0000000-flow_10.flo; a label is of both directions" in told
    assert "jobs/finetune.py RECIPE --truth chairs2:" in told


def test_a_file_that_is_cut_short_is_named_and_nothing_imported(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = theirs / "0000001-flow_10.flo"
    cut.write_bytes(cut.read_bytes()[:-4])
    told = refusal(capsys, imported, theirs, tmp_path / "labels")
    assert "1 of 2 pairs in" in told
    assert "0000001-flow_10.flo is truncated" in told
    assert not (tmp_path / "labels").exists()


def test_without_masks_what_leaves_the_frame_or_is_not_known_is_occluded(
    theirs: Path, tmp_path: Path
) -> None:
    labels = imported(theirs, tmp_path / "labels")
    for place in labels.index().to_pylist():
        row = labels.read(place)
        backward = UNKNOWN.copy()
        backward[:, :8] = True
        np.testing.assert_array_equal(row["occ_bw"].reshape(40, 64), backward)
        assert row["occ_fw"].reshape(40, 64)[:, 56:].all()


def test_imported_flow_is_graded_where_it_is_known(theirs: Path, tmp_path: Path) -> None:
    labels = imported(theirs, tmp_path / "labels")
    assert [labels.read(place)["flow_p50"] for place in labels.index().to_pylist()] == [8.0, 8.0]
