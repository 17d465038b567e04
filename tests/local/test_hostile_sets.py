"""Label sets that strangers made: whatever their records, columns and rows say, a job ends with an error that
names the file, before it asks for the memory and the files that they name."""

import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.data.extensions import ArrowPythonObjectArray, ArrowTensorArray
from typed import error_of

from jobs.command import run, run_recipe
from flowcore.frame_codec import FrameCodec
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import labels_of
from flowcore.uncertainty import scale_codes
from jobs import distill, export_labels, finetune, gallery, pseudolabel
from pipelines.label_rows import label_columns
from pipelines.labels import beside, encode_shard, pair_columns, pair_id
from pipelines.ledger import VideoRecord, write_ledger, write_manifest
from pipelines.pair_set import PairSet
from pipelines.set_description import SetDescription, describe_set
from pipelines.storage import Folder

HEIGHT, WIDTH, PAIRS = 40, 64, 4
VIDEO = "0123456789abcdef0123456789abcdef"
SHARD = f"{VIDEO}/00000.parquet"
DESCRIPTION = SetDescription(
    kind="labels", made_of={"clips": {}}, provenance={"videos": "/v"}, num_teachers=1
)


def honest_table() -> pa.Table:
    frames = np.random.default_rng(0).integers(0, 256, (PAIRS + 1, HEIGHT, WIDTH, 3), np.uint8)
    images = [FrameCodec("png").encode(frame) for frame in frames]
    rows = [
        {
            "pair_id": pair_id(VIDEO, (number, number + 1), 1, HEIGHT, WIDTH),
            "video": "/v/a.mp4",
            "frame": number,
            "stride": 1,
            "timestamp": number / 25,
            "height": HEIGHT,
            "width": WIDTH,
            "image1": images[number],
            "image2": images[number + 1],
            "label_set": DESCRIPTION.digest,
        }
        for number in range(PAIRS)
    ]
    flow = torch.ones(2 * PAIRS, 2, HEIGHT // 4, WIDTH // 4)
    tensors = torch.from_numpy(frames).movedim(-1, 1).float() / 255
    return beside(pair_columns(rows), label_columns(labels_of([flow], 4, tensors, OcclusionCheck()), "aa"))


@pytest.fixture(scope="module")
def honest_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    location = tmp_path_factory.mktemp("honest") / "labels"
    describe_set(str(location), DESCRIPTION)
    Folder(str(location)).write(SHARD, encode_shard(honest_table(), 2))
    video = VideoRecord(
        video="/v/a.mp4", outcome="done", folder=VIDEO, pairs=PAIRS, shards=1, label_set=DESCRIPTION.digest
    )
    write_ledger(str(location), [])
    write_manifest(str(location), DESCRIPTION.digest, [video])
    return location


@pytest.fixture
def labels(honest_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the honest set, to be tampered with."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    shutil.copytree(honest_set, tmp_path / "labels")
    return tmp_path / "labels"


def export(labels: Path) -> None:
    arguments = ["--labels", str(labels), "--output", str(labels.parent / "files")]
    run(export_labels.main, export_labels.ExportLabels, arguments)


def jobs(labels: Path) -> Mapping[str, Callable[[], object]]:
    """What reads a label set, as a user starts it."""
    base, truth = str(labels.parent), labels.parent / "truth"
    truth.mkdir()
    for name in ("0000000-img_0.png", "0000000-img_1.png", "0000000-flow_01.flo"):
        (truth / name).touch()
    page = ["--labels", str(labels), "--output", f"{base}/page.html"]
    learn = ["smoke", "--labels", str(labels), "--run-root", f"{base}/runs", "--init", "fresh"]
    return {
        "export_labels": lambda: export(labels),
        "gallery": lambda: run(gallery.main, gallery.Gallery, page),
        "distill": lambda: run_recipe(
            lambda stage, name: print(distill.distill(stage, name)), distill.recipes(), learn
        ),
        "finetune": lambda: run_recipe(
            lambda stage, name: print(finetune.finetune(stage, name)),
            finetune.recipes(),
            [*learn, "--truth", f"chairs2:{truth}"],
        ),
    }


def test_the_honest_set_is_exported(labels: Path) -> None:
    export(labels)
    assert len(list((labels.parent / "files").glob("*-flow_01.flo"))) == PAIRS


def edited(name: str, **changes: object) -> Callable[[Path], None]:
    """Changes entries of a record, of the manifest's only video if it has them."""

    def edit(labels: Path) -> None:
        values = json.loads((labels / name).read_text())
        for key, value in changes.items():
            owner = values["videos"][0] if name == "_manifest.json" and key != "videos" else values
            owner[key] = value
        (labels / name).write_text(json.dumps(values))

    return edit


def replaced(name: str, content: str) -> Callable[[Path], None]:
    return lambda labels: (labels / name).write_text(content) and None


def sparse(name: str, size: int) -> Callable[[Path], None]:
    return lambda labels: os.truncate(labels / name, size)


def linked(name: str, *, to_pipe: bool = False) -> Callable[[Path], None]:
    """Moves a file out of the set and leaves a link to it, or a pipe."""

    def link(labels: Path) -> None:
        (labels / name).rename(labels.parent / "outside")
        if to_pipe:
            os.mkfifo(labels / name)
        else:
            (labels / name).symlink_to(labels.parent / "outside")

    return link


MANIFEST, ABOUT = "_manifest.json", "_label_set.json"
RECORDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder outside": (edited(MANIFEST, folder="../../X"), "folder '../../X' must be hexadecimal"),
    "an absolute folder": (edited(MANIFEST, folder="/etc"), "folder '/etc' must be hexadecimal"),
    "no folder": (edited(MANIFEST, folder=""), "names the folder ''"),
    "a billion shards": (edited(MANIFEST, shards=10**9, pairs=10**10), "1000000000 shards, and at most"),
    "millions of shards": (edited(MANIFEST, shards=2**23, pairs=2**23), "00001.parquet"),
    "more shards than pairs": (edited(MANIFEST, shards=5), "5 shards of 4 pairs"),
    "fewer than no pairs": (edited(MANIFEST, pairs=-1), "its pairs must be a count, and is -1"),
    "pairs that are a text": (edited(MANIFEST, pairs="4"), "its pairs is '4'"),
    "pairs that are true": (edited(MANIFEST, pairs=True), "its pairs is True"),
    "pairs that are a share": (edited(MANIFEST, pairs=4.0), "its pairs is 4.0"),
    "no number": (edited(MANIFEST, bytes=float("nan")), "'NaN' is no number"),
    "an endless number": (
        replaced(MANIFEST, '{"videos": [{"bytes": 1e999}]}'),
        "'1e999' is no number",
    ),
    "an unknown outcome": (edited(MANIFEST, outcome="stolen"), "its outcome is 'stolen'"),
    "an unknown entry": (edited(MANIFEST, owner="me"), "an unknown entry 'owner'"),
    "no list of videos": (edited(MANIFEST, videos={"a": 1}), "has no list of videos"),
    "a list of texts": (edited(MANIFEST, videos=["a"]), "it is 'a' and not an object"),
    "no video": (replaced(MANIFEST, "{}"), "it has no videos"),
    "a name twice": (replaced(MANIFEST, '{"videos": [], "videos": []}'), "a name twice"),
    "nested lists": (replaced(MANIFEST, "[" * 100_000 + "]" * 100_000), "little but brackets"),
    "deeply nested lists": (
        replaced(MANIFEST, "[                " * 100_000 + "]" * 100_000),
        "nested too deeply",
    ),
    "many empty lists": (replaced(MANIFEST, '{"videos": [' + "[]," * 10**6 + "[]]}"), "brackets"),
    "no JSON": (replaced(MANIFEST, "\x00"), "_manifest.json"),
    "a gigabyte": (sparse(MANIFEST, 2**30), "1073741824 bytes, and at most"),
    "a link": (linked(MANIFEST), "_manifest.json in .* is a link out of it"),
    "a pipe": (linked(MANIFEST, to_pipe=True), "_manifest.json in .* is no file"),
    "a link to a shard": (linked(SHARD), "00000.parquet in .* is a link out of it"),
    "a shard that is a pipe": (linked(SHARD, to_pipe=True), "00000.parquet in .* is no file"),
    "a billion teachers": (edited(ABOUT, num_teachers=10**9), r"num_teachers 1000000000 must lie in"),
    "another kind": (edited(ABOUT, kind="code"), "its kind is 'code'"),
    "another making": (edited(ABOUT, made_of={"clips": 2}), "what it is made of gives another"),
    "a generation that is none": (
        edited(ABOUT, provenance={"generation": "9" * 9999}),
        "must be a count",
    ),
    "an origin of numbers": (edited(ABOUT, provenance={"videos": 3}), "its provenance is"),
    "a description of 2 MB": (sparse(ABOUT, 2**21), "2097152 bytes, and at most"),
}


@pytest.mark.parametrize("attack", RECORDS)
def test_a_tampered_record_is_refused(attack: str, labels: Path) -> None:
    tamper, told = RECORDS[attack]
    before = snapshot(labels.parent)
    tamper(labels)
    error = error_of(lambda: export(labels))
    assert re.search(told, error), error
    assert snapshot(labels.parent).keys() - before.keys() <= {"outside"}


def snapshot(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_size for entry in folder.iterdir()}


def test_a_manifest_of_millions_of_shards_takes_no_memory_for_their_names(labels: Path) -> None:
    edited(MANIFEST, shards=2**23, pairs=2**23)(labels)
    tracemalloc.start()
    try:
        files = PairSet.open(str(labels)).files
        assert len(files) == 2**23
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert [files[0], files[-1]] == [SHARD, f"{VIDEO}/8388607.parquet"]
    with pytest.raises(IndexError):
        files[2**23]


def test_every_job_refuses_them(labels: Path) -> None:
    edited(MANIFEST, folder="../../X")(labels)
    for name, job in jobs(labels).items():
        assert "'../../X' must be hexadecimal" in error_of(job), name


def test_a_status_of_tampered_numbers_is_refused(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "videos" / "a.mp4"
    video.parent.mkdir()
    video.touch()
    arguments = ["smoke", "--status", "--labels", str(labels), "--videos", str(video.parent)]
    for progress, told in (
        ('{"last_shard": 1e300}', "a number that is no count"),
        ('{"reported": 1e15}', "a time that no calendar has"),
        ('{"pairs": -1}', "a number that is no count"),
        ('{"skipped": {"a": "b"}}', "its skipped is"),
        ('{"state": "eaten"}', "its state is 'eaten'"),
    ):
        (labels / "_progress.json").write_text(progress)
        error = error_of(lambda: run_recipe(pseudolabel.main, pseudolabel.recipes(), arguments))
        assert told in error
    (labels / "_progress.json").write_text('{"bytes_per_second": 1e-300}')
    video.write_bytes(b"1")
    run_recipe(pseudolabel.main, pseudolabel.recipes(), arguments)
    assert "expected finish" in capsys.readouterr().out


def column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """The table with other values in a column, whose type stays."""
    field = table.schema.field(name)
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def png(height: int, width: int) -> bytes:
    return bytes(cv2.imencode(".png", np.zeros((height, width), np.uint8))[1])


def claims(height: int, width: int) -> bytes:
    """A PNG that says it is of this size."""
    content = bytearray(png(8, 8))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(content)


def commented(height: int, width: int) -> bytes:
    """A black PBM of this size whose comments, read with one line end alone, say 40x64 px."""
    rows = bytes(height * -(-width // 8))
    return b"P4\n#\r%d %d\n#\n64 40\n" % (width, height) + rows


ROWS: dict[str, tuple[dict[str, list[Any]], str]] = {
    "80 GB of pixels": ({"height": [100_000] * 4, "width": [100_000] * 4}, "is of 100000x100000 px"),
    "no height": ({"height": [0] * 4}, "frames of 0x64 px"),
    "a negative width": ({"width": [-64] * 4}, "frames of 40x-64 px"),
    "a height that is missing": ({"height": [None] * 4}, "pairs without height"),
    "another height": ({"height": [44] * 4}, "has 320 values in flow_fw, and its size takes 352"),
    "both sides swapped": ({"height": [64] * 4, "width": [40] * 4}, "are an image of"),
    "no stride": ({"stride": [0] * 4}, "has the stride 0"),
    "no stride of the flow": ({"flow_stride": [0] * 4}, "a flow of stride 0"),
    "a huge stride of the flow": ({"flow_stride": [2**31 - 1] * 4}, "a flow of stride 2147483647"),
    "a negative stride of the flow": ({"flow_stride": [-4] * 4}, "a flow of stride -4"),
    "a stride that is missing": ({"flow_stride": [None] * 4}, "has no flow_stride"),
    "a video that is missing": ({"video": [None] * 4}, "has no video"),
    "a name that leads out": ({"pair_id": ["../../etc"] * 4}, "aren't 32 hexadecimal digits"),
    "a name that is missing": ({"pair_id": [None] * 4}, "pairs without pair_id"),
    "an image that is missing": ({"image1": [None] * 4}, "lacks a frame"),
    "an image larger than its row": ({"image1": [png(9000, 9000)] * 4}, r"an image of \(9000, 9000\) px"),
    "an image that says it is larger": ({"image1": [claims(30_000, 30_000)] * 4}, r"\(30000, 30000\) px"),
    "an image larger than its comments say": (
        {"image1": [commented(8000, 8000)] * 4},
        r"\(8000, 8000\) px",
    ),
    "an image that is a script": ({"image1": [b"#!/bin/sh"] * 4}, "aren't an image"),
    "an image without an end": ({"image1": [png(40, 64)[:40]] * 4}, "aren't an image"),
    "no occlusion": ({"occ_fw": [[]] * 4}, "0 values in occ_fw"),
    "a short flow": ({"flow_bw": [[1, 2]] * 4}, "2 values in flow_bw"),
}


@pytest.mark.parametrize("attack", ROWS)
def test_a_row_that_holds_something_else_than_its_size_is_refused(attack: str, labels: Path) -> None:
    changes, told = ROWS[attack]
    table = honest_table()
    for name, values in changes.items():
        table = column(table, name, values)
    (labels / SHARD).write_bytes(encode_shard(table, 2))
    error = error_of(lambda: export(labels))
    assert re.search(told, error), error


def test_a_damaged_frame_is_named_by_its_pair_and_its_set(labels: Path) -> None:
    table = column(honest_table(), "image1", [b"#!/bin/sh"] * PAIRS)
    (labels / SHARD).write_bytes(encode_shard(table, 2))
    assert re.search(
        f"pair [0-9a-f]{{32}} in {labels}, of /v/a.mp4, can't be read", error_of(lambda: export(labels))
    )


def written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue().to_pybytes())


def long_lists() -> bytes:
    """Two hundred megabytes of flow in some kilobytes."""
    table = honest_table().slice(0, 1)
    return encode_shard(column(table, "flow_fw", [np.zeros(50_000_000, np.int32)]), 1)


def long_texts() -> bytes:
    return encode_shard(column(honest_table(), "pair_id", ["0" * 20_000_000] * 4), 4)


def packed_frames() -> bytes:
    return written(column(honest_table(), "image1", [bytes(50_000_000)] * 4), compression="zstd")


def frames_once() -> bytes:
    return written(column(honest_table(), "image1", [bytes(500_000)] * 4), compression="none")


def many_rows() -> bytes:
    names = honest_table().schema
    lists = {name for name in names.names if pa.types.is_list(names.field(name).type)}
    rows = 2_000_000
    columns = [
        pa.array([[]] * rows if name in lists else [None] * rows, names.field(name).type)
        for name in names.names
    ]
    return written(pa.table(columns, schema=names))


def lying_page() -> bytes:
    """A page of `height` whose header says that it holds two billion values."""
    content = bytearray(encode_shard(honest_table(), 4))
    chunk = pq.ParquetFile(pa.BufferReader(bytes(content))).metadata.row_group(0).column(5)
    assert chunk.path_in_schema == "height"
    header = content.index(bytes([0x15, 8, 0x15]), chunk.data_page_offset)
    content[header + 1] = 0x7E
    return bytes(content)


def footer_cut_short() -> bytes:
    content = encode_shard(honest_table(), 4)
    length = int.from_bytes(content[-8:-4], "little")
    return content[: -length // 2] + (length // 2).to_bytes(4, "little") + b"PAR1"


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "lists": (long_lists, "50000000 values in flow_fw, and there can be"),
    "texts": (long_texts, "values in pair_id that unpack to 80000"),
    "packed frames": (packed_frames, "image1 packed once more"),
    "a dictionary of frames": (frames_once, "image1 in a dictionary"),
    "rows": (many_rows, "row groups of"),
    "a page that lies": (lying_page, "values in height"),
    "a footer without an end": (footer_cut_short, "is damaged (Couldn't deserialize thrift"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_holds_something_else_than_it_says_is_refused(bomb: str, labels: Path) -> None:
    make, told = BOMBS[bomb]
    (labels / SHARD).write_bytes(make())
    error = error_of(lambda: export(labels))
    assert told in error
    assert "00000.parquet" in error
    assert "restore it, or delete it" in error


def other_type(name: str, values: pa.Array) -> pa.Table:
    table = honest_table()
    return table.set_column(table.column_names.index(name), name, values)


def nested_objects() -> pa.Table:
    objects = ArrowPythonObjectArray.from_objects([1] * PAIRS)
    return other_type("flow_fw", pa.ListArray.from_arrays(pa.array(range(PAIRS + 1), pa.int32()), objects))


def tensors() -> pa.Table:
    return other_type("flow_fw", ArrowTensorArray.from_numpy(np.zeros((PAIRS, 2, 10, 16), np.int32)))


def dictionary() -> pa.Table:
    return other_type("video", pa.array(["a"] * PAIRS).dictionary_encode())


def lists_of_large() -> pa.Table:
    return other_type("image1", pa.array([b"a"] * PAIRS, pa.large_binary()))


def structs() -> pa.Table:
    return other_type("height", pa.array([{"a": 1}] * PAIRS))


@pytest.mark.parametrize("make", [nested_objects, tensors, dictionary, lists_of_large, structs])
def test_a_column_of_another_type_is_refused_wherever_the_type_is_told(
    make: Callable[[], pa.Table], labels: Path
) -> None:
    (labels / SHARD).write_bytes(written(make()))
    assert "column '" in error_of(lambda: export(labels))


def uncertain(codes: pa.Array) -> pa.Table:
    """The honest table with predicted uncertainties in both directions."""
    table = honest_table()
    place = table.column_names.index("teacher") + 1
    for name, values in (
        ("uncertainty", pa.array([1.0] * PAIRS, pa.float32())),
        ("uncertainty_bw", codes),
        ("uncertainty_fw", codes),
    ):
        nullable = name == "uncertainty"
        kind = (
            values.type if nullable else pa.list_(pa.field("element", values.type.value_type, nullable=False))
        )
        field = pa.field(name, kind, nullable=nullable)
        table = table.add_column(place, field, values.cast(kind))
    return table


CODES = scale_codes(torch.ones(HEIGHT // 4 * WIDTH // 4)).tolist()
UNCERTAINTIES: dict[str, tuple[pa.Array, str]] = {
    "another type": (pa.array([CODES] * PAIRS, pa.list_(pa.int32())), "column 'uncertainty_fw'"),
    "too few": (pa.array([CODES[1:]] * PAIRS, pa.list_(pa.uint8())), "159 values in uncertainty_fw, and"),
}


@pytest.fixture
def uncertain_labels(labels: Path) -> Path:
    values = json.loads((labels / ABOUT).read_text())
    (labels / ABOUT).write_text(json.dumps({**values, "has_uncertainty": True}))
    return labels


def test_an_honest_set_with_uncertainty_is_exported(uncertain_labels: Path) -> None:
    table = uncertain(pa.array([CODES] * PAIRS, pa.list_(pa.uint8())))
    (uncertain_labels / SHARD).write_bytes(encode_shard(table, 2))
    export(uncertain_labels)
    assert len(list((uncertain_labels.parent / "files").glob("*-flow_01.flo"))) == PAIRS


@pytest.mark.parametrize("attack", UNCERTAINTIES)
def test_an_uncertainty_of_another_type_or_size_is_refused(attack: str, uncertain_labels: Path) -> None:
    codes, told = UNCERTAINTIES[attack]
    (uncertain_labels / SHARD).write_bytes(encode_shard(uncertain(codes), 2))
    error = error_of(lambda: export(uncertain_labels))
    assert re.search(told, error), error


def test_what_tools_note_in_a_schema_changes_nothing(labels: Path) -> None:
    """Pandas keeps notes there, and so does any other writer."""
    notes = {b"pandas": b'{"columns": [{"name": "video", "pandas_type": "object"}]}', b"a": b"\xff"}
    table = honest_table().replace_schema_metadata(notes)
    (labels / SHARD).write_bytes(encode_shard(table, 2))
    export(labels)
    assert len(list((labels.parent / "files").glob("*-flow_01.flo"))) == PAIRS


def test_an_arrow_stream_in_place_of_a_parquet_file_is_refused(labels: Path) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, honest_table().schema) as stream:
        stream.write_table(honest_table())
    (labels / SHARD).write_bytes(sink.getvalue().to_pybytes())
    assert "00000.parquet" in error_of(lambda: export(labels))
