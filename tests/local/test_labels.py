"""What a pair set says to readers that know nothing of this project, and how its folder behaves."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stored_pairs import DESCRIPTION, shard, write_set

from flowcore.frame_codec import FrameCodec
from flowcore.geometry import upsample_flow
from pipelines.label_rows import decode_occlusion, decode_row, quantized, stored_pixels
from pipelines.labels import FLOW_UNITS, FORMAT, LABEL_SCHEMA, PAIR_SCHEMA, encode_shard, pair_id
from pipelines.ledger import MANIFEST_FILE, VideoRecord, write_manifest
from pipelines.pair_set import PairSet
from pipelines.set_description import SetDescription, SetKind, describe_set
from pipelines.shard_files import shard_name
from pipelines.storage import Folder

REPOSITORY = Path(__file__).resolve().parents[2]
HALF_A_UNIT = 1 / 128
FRAMES = SetDescription(kind="frames", made_of={"clips": {}}, provenance={})


def upsampled(grid: NDArray[np.float64], stride: int, height: int, width: int) -> NDArray[np.float64]:
    """Bilinear, half-pixel centres, the border repeated, cropped: as anybody would write it from the docs."""

    def weights(size: int, cells: int) -> NDArray[np.float64]:
        centres = ((np.arange(size) + 0.5) / stride - 0.5).clip(0, cells - 1)
        matrix = np.zeros((size, cells))
        for pixel, centre in enumerate(centres):
            low = int(centre)
            matrix[pixel, low] += 1 - (centre - low)
            matrix[pixel, min(low + 1, cells - 1)] += centre - low
        return matrix

    rows, columns = grid.shape[-2:]
    return weights(height, rows) @ grid @ weights(width, columns).T


@pytest.mark.parametrize("reader", ["pandas", "duckdb"])
@pytest.mark.parametrize(("height", "width", "stride"), [(48, 64, 4), (45, 62, 4), (33, 40, 1), (50, 34, 8)])
def test_other_readers_rebuild_flow_and_occlusion_alone(
    tmp_path: Path, reader: str, height: int, width: int, stride: int
) -> None:
    table, grids = shard(5, height, width, stride)
    write_set(tmp_path / "labels", {"aa": [table]})
    files = f"{tmp_path}/labels/*/*.parquet"
    query = f"select * from '{files}' order by frame"
    file = tmp_path / "labels/aa/00000.parquet"
    frame = duckdb.sql(query).df() if reader == "duckdb" else pd.read_parquet(file)
    for number, row in frame.iterrows():
        shape = (2, -(-row.height // row.flow_stride), -(-row.width // row.flow_stride))
        for column, grid in (("flow_fw", grids[0, number]), ("flow_bw", grids[1, number])):
            stored = np.asarray(row[column]).reshape(shape).cumsum(axis=1) / 64
            flow = upsampled(stored, row.flow_stride, row.height, row.width)
            teachers = upsample_flow(grid[None], stride, height, width)[0].numpy()
            assert np.abs(flow - teachers).max() <= HALF_A_UNIT + 1e-4
        for column in ("occ_fw", "occ_bw"):
            occluded = np.asarray(row[column]).reshape(row.height, row.width)
            assert occluded.dtype == bool
            assert (occluded.ravel() == table.column(column)[number].values.to_numpy(False)).all()


def test_a_pair_is_decoded_as_the_teacher_upsamples(tmp_path: Path) -> None:
    table, grids = shard(4, 45, 62, 4)
    write_set(tmp_path / "labels", {"aa": [table]})
    pairs = PairSet.open(str(tmp_path / "labels"))
    (row,) = pairs.read_group(pairs.files[0], 1)
    pair = decode_row(row)
    units = (grids[:, 3] * FLOW_UNITS).round() / FLOW_UNITS
    forward, backward = (upsample_flow(grid[None], 4, 45, 62)[0].numpy() for grid in units)
    assert pair.flow_fw is not None
    assert (pair.flow_fw == forward).all()
    assert (pair.flow_bw == backward).all()
    assert pair.flow_fw.dtype == np.float32
    assert pair.image1.shape == pair.image2.shape == (45, 62, 3)
    assert (pair.image1 == FrameCodec().decode(table.column("image1")[3].as_py())).all()
    assert pair.confidence_fw is not None
    assert pair.confidence_fw.shape == (45, 62)
    assert pair.confidence_fw.dtype == np.float32


@given(st.lists(st.floats(-2000, 2000, width=32), min_size=8, max_size=8))
def test_a_stored_flow_is_off_by_half_a_unit_at_most(values: list[float]) -> None:
    flow = torch.tensor(values).reshape(1, 2, 2, 2)
    stored = stored_pixels(quantized(flow)[0].values.to_numpy(), 2, 2)
    assert np.abs(stored - flow[0].numpy()).max() <= HALF_A_UNIT


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_flow_that_is_no_number_is_no_label(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        quantized(torch.full((1, 2, 2, 2), value))


def test_the_index_names_each_pair_once_and_where_it_is(tmp_path: Path) -> None:
    first, second, other = (
        shard(count, 16, 24, 4, video)[0] for count, video in ((7, "a"), (2, "a"), (4, "b"))
    )
    write_set(tmp_path / "set", {"b": [other], "a": [first, second]})
    pairs = PairSet.open(str(tmp_path / "set"))
    assert [*pairs.files] == ["a/00000.parquet", "a/00001.parquet", "b/00000.parquet"]
    index = pairs.index().to_pylist()
    where = [(entry["file"], entry["row_group"], entry["row"]) for entry in index]
    # Row groups of three.
    assert where == [
        *((0, group, row) for group, rows in enumerate((3, 3, 1)) for row in range(rows)),
        *((1, 0, row) for row in range(2)),
        *((2, group, row) for group, rows in enumerate((3, 1)) for row in range(rows)),
    ]
    for entry in index:
        rows = pairs.read_group(pairs.files[entry["file"]], entry["row_group"])
        assert rows[entry["row"]]["pair_id"] == entry["pair_id"]


def test_the_index_has_the_columns_that_were_asked_for_beside_each_pair(tmp_path: Path) -> None:
    table, _ = shard(5, 16, 24, 4)
    motion = pa.array(np.arange(5), pa.float32())
    table = table.set_column(table.column_names.index("flow_p50"), "flow_p50", motion)
    write_set(tmp_path / "set", {"aa": [table]})
    pairs = PairSet.open(str(tmp_path / "set"))
    index = pairs.index(["flow_p50", "occluded"])
    assert index.select(pairs.index().column_names) == pairs.index()
    assert index["flow_p50"].to_pylist() == [0, 1, 2, 3, 4]
    assert set(index["occluded"].to_pylist()) == {0.5}
    assert pairs.quality_columns == tuple(LABEL_SCHEMA.names[5:11])


def test_a_set_goes_to_another_process(tmp_path: Path) -> None:
    write_set(tmp_path / "set", {"aa": [shard(2, 16, 24, 4)[0]]})
    pairs = PairSet.open(str(tmp_path / "set"))
    assert pickle.loads(pickle.dumps(pairs)).index() == pairs.index()


def test_frames_alone_are_a_set_without_labels(tmp_path: Path) -> None:
    describe_set(str(tmp_path), FRAMES)
    table = shard(2, 16, 24, 4)[0].select(PAIR_SCHEMA.names)
    Folder(str(tmp_path)).write(shard_name("aa", 0), encode_shard(table, 8))
    video = VideoRecord(video="v", outcome="done", folder="aa", pairs=2, shards=1)
    write_manifest(str(tmp_path), FRAMES.digest, [video])
    pairs = PairSet.open(str(tmp_path))
    assert not pairs.has_labels
    assert pairs.teacher is None
    pair = decode_row(pairs.read_group(pairs.files[0], 0)[1])
    assert pair.image1.shape == (16, 24, 3)
    assert pair.flow_fw is pair.flow_bw is pair.confidence_fw is pair.confidence_bw is None


@pytest.mark.parametrize(
    ("kind", "has_labels", "has_truth", "has_teacher"),
    [
        ("frames", False, False, False),
        ("labels", True, False, True),
        ("imported", True, False, False),
        ("truth", False, True, False),
    ],
)
def test_a_sets_kind_is_what_was_stored_whatever_it_is_made_of(
    tmp_path: Path, kind: SetKind, has_labels: bool, has_truth: bool, has_teacher: bool
) -> None:
    # Nothing in it tells.
    description = SetDescription(kind=kind, made_of={"teacher": 1, "truth": 2, "files": 3}, provenance={})
    describe_set(str(tmp_path), description)
    write_manifest(str(tmp_path), description.digest, [])
    pairs = PairSet.open(str(tmp_path))
    assert pairs.kind == kind
    assert (pairs.has_labels, pairs.has_truth, pairs.teacher is not None) == (
        has_labels,
        has_truth,
        has_teacher,
    )


def test_a_shard_has_the_columns_of_its_sets_kind_and_no_others(tmp_path: Path) -> None:
    write_set(tmp_path, {"aa": [shard(2, 16, 24, 4)[0].select(PAIR_SCHEMA.names)]})
    with pytest.raises(ValueError, match=r"aa/00000\.parquet .* no column 'flow_fw'"):
        PairSet.open(str(tmp_path)).index()


def test_an_untrusted_pixel_is_no_occluded_one() -> None:
    (row,) = shard(1, 8, 12, 4)[0].to_pylist()
    occluded = np.arange(8 * 12) % 7 == 0
    spread = {"spread_fw": [64 * 9] * 6, "spread_bw": [0] * 6}
    assert (decode_occlusion({**row, **spread, "occ_fw": occluded}).ravel() == occluded).all()


def test_a_hidden_pixel_whose_motion_is_continued_is_trusted() -> None:
    (row,) = shard(1, 10, 14, 4)[0].to_pylist()
    occluded = np.ones(10 * 14, bool)
    grid = np.arange(3 * 4).reshape(3, 4) % 3 == 0
    pair = decode_row({**row, "occ_fw": occluded, "continued_fw": grid.ravel(), "continued_bw": grid.ravel()})
    assert pair.confidence_fw is not None
    assert np.array_equal(pair.confidence_fw > 0, np.kron(grid, np.ones((4, 4)))[:10, :14] > 0)


def test_a_label_on_which_teachers_disagree_is_not_trusted() -> None:
    (row,) = shard(1, 48, 64, 4)[0].to_pylist()
    occluded = np.arange(48 * 64) % 7 == 0
    grid = np.arange(12 * 16).reshape(12, 16)
    several = {**row, "occ_fw": occluded, "spread_fw": np.diff(grid, axis=0, prepend=0).ravel()}
    spread = np.kron(grid / FLOW_UNITS, np.ones((4, 4)))
    for tolerance in (1.0, 1.5, 1e9):
        confidence = decode_row({**several, "spread_bw": several["spread_fw"]}, tolerance).confidence_fw
        assert confidence is not None
        assert ((confidence > 0) == (~occluded.reshape(48, 64) & (spread < tolerance))).all()


def of_consecutive_frames(num_pairs: int) -> tuple[pa.Table, list[bytes]]:
    """Pairs of which each begins with the frame that the one before ends with, and all of their frames."""
    frames = [
        FrameCodec("png").encode(image)
        for image in np.random.default_rng(0).integers(0, 256, (num_pairs + 1, 16, 24, 3), np.uint8)
    ]
    table, _ = shard(num_pairs, 16, 24, 4)
    for name, images in (("image1", frames[:-1]), ("image2", frames[1:])):
        table = table.set_column(table.column_names.index(name), PAIR_SCHEMA.field(name), pa.array(images))
    return table, frames


def test_a_frame_that_two_neighbours_share_is_stored_once_and_read_with_both(tmp_path: Path) -> None:
    table, frames = of_consecutive_frames(7)
    write_set(tmp_path / "set", {"aa": [table]}, row_group_pairs=3)
    pairs = PairSet.open(str(tmp_path / "set"))
    rows = [row for group in range(3) for row in pairs.read_group(pairs.files[0], group)]
    assert [row["image1"] for row in rows] == frames[:-1]
    assert [row["image2"] for row in rows] == frames[1:]
    # The last pair of a row group has both, so that the group can be read alone.
    stored = pq.read_table(tmp_path / "set" / pairs.files[0])["image2"].to_pylist()
    assert stored == [None, None, frames[3], None, None, frames[6], frames[7]]


def test_another_second_frame_than_the_next_pairs_first_one_is_stored(tmp_path: Path) -> None:
    table, _ = shard(4, 16, 24, 4)
    write_set(tmp_path / "set", {"aa": [table]}, row_group_pairs=4)
    assert pq.read_table(tmp_path / "set" / "aa" / "00000.parquet").column("image2").null_count == 0


def test_sql_has_both_frames_of_each_pair(tmp_path: Path) -> None:
    """As the page on other tools says."""
    table, frames = of_consecutive_frames(7)
    write_set(tmp_path / "set", {"aa": [table]}, row_group_pairs=3)
    page = (REPOSITORY / "docs" / "how-to" / "exchange.md").read_text()
    (query,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    found = duckdb.sql(query.replace("runs/labels", str(tmp_path / "set"))).fetchall()
    assert found == list(zip(table["pair_id"].to_pylist(), frames[:-1], frames[1:], strict=True))


def test_a_pair_whose_second_frame_is_nowhere_is_refused(tmp_path: Path) -> None:
    table, _ = shard(1, 16, 24, 4)
    lost = pa.nulls(1, pa.binary())
    table = table.set_column(table.column_names.index("image2"), "image2", lost)
    write_set(tmp_path / "set", {"aa": [table]})
    pairs = PairSet.open(str(tmp_path / "set"))
    with pytest.raises(ValueError, match="lacks a frame, and none follows it"):
        pairs.read_group(pairs.files[0], 0)


def test_the_pair_to_look_at_moves_more_than_nine_tenths_of_them_do(tmp_path: Path) -> None:
    shards: dict[str, list[pa.Table]] = {}
    motion = np.random.default_rng(0).permutation(20)
    for number, video in enumerate(("a", "b", "c", "d")):
        table, _ = shard(5, 16, 24, 4, video)
        moved = pa.array(motion[5 * number : 5 * number + 5], pa.float32())
        shards[video] = [table.set_column(table.column_names.index("flow_p50"), "flow_p50", moved)]
    write_set(tmp_path / "set", shards, row_group_pairs=2)
    pairs = PairSet.open(str(tmp_path / "set"))
    video, row = divmod(int(np.flatnonzero(motion == 18)[0]), 5)
    shown = decode_row(pairs.read_group(pairs.files[video], row // 2)[row % 2])
    example = pairs.example()
    assert example.flow_fw is not None
    assert shown.flow_fw is not None
    assert np.array_equal(example.flow_fw, shown.flow_fw)
    assert np.array_equal(example.image1, shown.image1)


def test_few_files_all_over_a_set_are_looked_at(tmp_path: Path) -> None:
    table, _ = shard(2, 16, 24, 4)
    write_set(tmp_path / "set", {video: [table] for video in "abcdef012"})
    pairs = PairSet.open(str(tmp_path / "set"))
    looked_at = pairs.files_looked_at(4)
    assert list(looked_at) == [0, 3, 6]
    assert pairs.index_of(looked_at)["file"].to_pylist() == [0, 0, 3, 3, 6, 6]
    assert pairs.index_of(pairs.files_looked_at(9)) == pairs.index()


def test_a_pair_is_named_after_all_that_makes_it() -> None:
    names = {
        pair_id("aa", (0, 1), 1, 48, 64),
        pair_id("ab", (0, 1), 1, 48, 64),
        pair_id("aa", (1, 2), 1, 48, 64),
        pair_id("aa", (0, 2), 1, 48, 64),
        pair_id("aa", (0, 2), 2, 48, 64),
        pair_id("aa", (0, 1), 1, 64, 48),
    }
    assert len(names) == 6
    # Stored in every set that there is.
    assert pair_id("aa", (0, 1), 1, 48, 64) == "35a065421c73f018ef70a09182ec3e82"


def test_where_there_is_no_set_the_error_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pseudolabel"):
        PairSet.open(str(tmp_path / "nothing"))
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(FileNotFoundError, match="no pair set"):
        PairSet.open(str(tmp_path))


def test_an_unfinished_set_is_refused_with_the_command_that_finishes_it(tmp_path: Path) -> None:
    write_set(tmp_path / "set", {"aa": [shard(2, 16, 24, 4)[0]]})
    (tmp_path / "set" / MANIFEST_FILE).unlink()
    (tmp_path / "set" / "aa" / ".00001.parquet.ab.partial").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"jobs/pseudolabel\.py .* again"):
        PairSet.open(str(tmp_path / "set"))


def test_a_set_of_another_version_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, {"aa": [shard(2, 16, 24, 4)[0]]})
    path = tmp_path / "_label_set.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(ValueError, match=f"format {FORMAT + 1}"):
        PairSet.open(str(tmp_path))


def test_a_set_whose_description_is_damaged_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, {"aa": [shard(2, 16, 24, 4)[0]]})
    (tmp_path / "_label_set.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        PairSet.open(str(tmp_path))


def test_a_file_that_went_missing_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, {"aa": [shard(2, 16, 24, 4)[0]]})
    (tmp_path / "aa" / "00000.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"aa/00000\.parquet is missing"):
        PairSet.open(str(tmp_path)).index()


def test_two_makings_never_share_a_folder(tmp_path: Path) -> None:
    describe_set(str(tmp_path), DESCRIPTION)
    before = (tmp_path / "_label_set.json").read_bytes()
    other = replace(
        DESCRIPTION, made_of={"clips": {"size": (96, 64), "stride": 1}, "teacher": {"digest": "bb"}}
    )
    with pytest.raises(
        ValueError, match=r"clips\.size is \[48, 64\] there and \[96, 64\] here; teacher\.digest"
    ):
        describe_set(str(tmp_path), other)
    with pytest.raises(ValueError, match=r"teacher\.digest is aa there and None here"):
        describe_set(str(tmp_path), replace(FRAMES, made_of={"clips": {"size": (48, 64), "stride": 1}}))
    assert (tmp_path / "_label_set.json").read_bytes() == before


def test_the_run_that_finishes_a_set_is_its_provenance(tmp_path: Path) -> None:
    killed, finishing, later = (
        replace(DESCRIPTION, provenance={"run_id": run}) for run in ("killed", "finishing", "later")
    )
    for run in (killed, finishing):
        describe_set(str(tmp_path), run)
    write_manifest(str(tmp_path), DESCRIPTION.digest, [])
    describe_set(str(tmp_path), later)
    assert json.loads((tmp_path / "_label_set.json").read_text())["provenance"] == {"run_id": "finishing"}


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="other files"):
        describe_set(str(tmp_path), DESCRIPTION)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_sweeping_takes_only_what_killed_writers_left(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("aa/00000.parquet", b"whole")
    (tmp_path / "aa" / ".00001.parquet.ab.partial").write_bytes(b"half")
    (tmp_path / ".lock").touch()
    folder.sweep()
    assert folder.files() == ["aa/00000.parquet"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "00000.parquet", "aa"]
