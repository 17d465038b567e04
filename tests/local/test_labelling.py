"""Labelling small collections with a real Ray, a real network and real videos, good ones and bad."""

import fcntl
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ray.data.block import BlockStats
from torch import Tensor

from flowcore.formats import FrameCodec, write_image
from flowcore.networks import FlowNetwork, PWCNetConfig
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.shapes import to_images
from flowcore.video import ClipOptions
from pipelines import labelling
from pipelines.checkpoints import fetch_model, model_digest, save_model
from pipelines.cluster import labelling_room
from pipelines.collection import find_videos
from pipelines.labelling import (
    LabellingOptions,
    LabellingProgress,
    LabellingStatus,
    LabellingSummary,
    label_chunk,
    labelling_status,
    write_labels,
    write_pairs,
)
from pipelines.labels import PAIR_SCHEMA, decode_flow, decode_row, stored_pixels
from pipelines.ledger import LEDGER_FILE, MANIFEST_FILE, read_ledger
from pipelines.pair_set import DESCRIPTION_FILE, PairSet
from pipelines.progress import video_bar

pytestmark = pytest.mark.usefixtures("ray_session")

TINY = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,))
OPTIONS = LabellingOptions(clips=ClipOptions(chunk_pairs=3), shard_pairs=5, row_group_pairs=2)
HALF_A_UNIT = 1 / 128


def render(path: Path, seed: int, num_frames: int = 12, height: int = 48, width: int = 64) -> None:
    options = SceneOptions(
        height=height, width=width, num_frames=num_frames, camera_speed=3.0, layer_speed=2.0
    )
    write_video(path, render_scene(seed, options).frames)


def render_images(folder: Path, seed: int, num_frames: int, height: int, width: int) -> None:
    folder.mkdir(parents=True)
    options = SceneOptions(
        height=height, width=width, num_frames=num_frames, camera_speed=3.0, layer_speed=2.0
    )
    for number, frame in enumerate(render_scene(seed, options).frames):
        cv2.imwrite(str(folder / f"{number}.png"), frame[..., ::-1])


def save_teacher(folder: Path, seed: int, scale: float = 0.7) -> FlowNetwork:
    torch.manual_seed(seed)
    network = TINY.build().eval()
    # A fresh network's flow is so large that every pixel is occluded.
    network.load_state_dict({name: value * scale for name, value in network.state_dict().items()})
    save_model(folder, network, {"run_id": "0123"})
    return network


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, FlowNetwork]:
    folder = tmp_path_factory.mktemp("teacher")
    return str(folder), save_teacher(folder, 0)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos, an image sequence of odd size, one video's copy, and three bad ones."""
    folder = tmp_path_factory.mktemp("collection")
    render(folder / "first.mp4", 1)
    render(folder / "second.mp4", 2, num_frames=7)
    render_images(folder / "sequence", 3, 6, height=43, width=59)
    shutil.copy(folder / "second.mp4", folder / "zcopy.mp4")
    (folder / "broken.mp4").write_bytes(b"no video" * 99)
    render(folder / "tiny.mp4", 4, height=16, width=16)
    content = (folder / "first.mp4").read_bytes()
    (folder / "headless.mp4").write_bytes(content[: len(content) // 2])
    return folder


@pytest.fixture(scope="module")
def labels(
    tmp_path_factory: pytest.TempPathFactory,
    collection: Path,
    teacher: tuple[str, FlowNetwork],
    ray_session: None,
) -> PairSet:
    location = tmp_path_factory.mktemp("labels") / "set"
    write_labels(str(collection), [teacher[0]], str(location), OPTIONS, run_id="abcd")
    return PairSet.open(str(location))


def contents(location: Path | str) -> dict[str, bytes]:
    return {str(path.relative_to(location)): path.read_bytes() for path in Path(location).rglob("*.parquet")}


def pair_ids(location: Path | str) -> list[str]:
    return sorted(PairSet.open(str(location)).index().column("pair_id").to_pylist())


def ledger(location: Path | str) -> dict[str, str]:
    entries = json.loads((Path(location) / LEDGER_FILE).read_text())
    return {Path(entry["video"]).name: entry["outcome"] for entry in entries}


def test_every_pair_of_every_readable_video_is_there_once(labels: PairSet) -> None:
    ids = pair_ids(labels.location)
    assert len(ids) == len(set(ids)) == 11 + 6 + 5
    names = duckdb.sql(f"select video, frame from '{labels.location}/*/*.parquet' order by all").fetchall()
    assert [(Path(video).name, frame) for video, frame in names] == [
        *(("first.mp4", frame) for frame in range(11)),
        *(("second.mp4", frame) for frame in range(6)),
        *(("sequence", frame) for frame in range(5)),
    ]


def test_whatever_gave_nothing_is_in_the_ledger(labels: PairSet) -> None:
    assert ledger(labels.location) == {
        "broken.mp4": "nothing",
        "headless.mp4": "nothing",
        "tiny.mp4": "nothing",
        "zcopy.mp4": "duplicate",
    }
    reasons = {entry["reason"] for entry in json.loads((Path(labels.location) / LEDGER_FILE).read_text())}
    assert any("too small: frames are 16x16 px" in reason for reason in reasons)


def test_a_bad_video_of_any_kind_costs_no_good_one(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    render(folder / "good.mp4", 1, num_frames=5)
    render(folder / "whole.mkv", 2, num_frames=40)
    content = (folder / "whole.mkv").read_bytes()
    (folder / "truncated.mkv").write_bytes(content[: len(content) // 2])
    (folder / "whole.mkv").unlink()
    (folder / "unknown.mp4").write_bytes((folder / "good.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    write_video(folder / "one.mp4", np.zeros((1, 48, 64, 3), np.uint8))
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    write_pairs(str(folder), str(tmp_path / "set"), replace(OPTIONS, max_bad_share=0.8))
    assert ledger(tmp_path / "set") == {
        "audio.mp4": "nothing",
        "one.mp4": "nothing",
        "truncated.mkv": "cut short",
        "unknown.mp4": "nothing",
    }
    videos = duckdb.sql(f"select video, count(*) from '{tmp_path}/set/*/*.parquet' group by all").fetchall()
    pairs = {Path(video).name: count for video, count in videos}
    assert pairs["good.mp4"] == 4
    assert 0 < pairs["truncated.mkv"] < 39
    assert len(pairs) == 2


def test_labels_are_the_teachers_output_on_the_stored_frames(
    labels: PairSet, teacher: tuple[str, FlowNetwork]
) -> None:
    network, check = teacher[1], OPTIONS.check
    sizes = set()
    for entry in labels.index().to_pylist():
        row = labels.read_group(labels.files[entry["file"]], entry["row_group"])[entry["row"]]
        pair = decode_row(row)
        sizes.add(pair.image1.shape)
        forward, backward = network.estimate(to_images(pair.image1[None]), to_images(pair.image2[None]))
        assert pair.flow_fw is not None
        assert pair.flow_bw is not None
        # Its own rounding differs with the number of pairs that it sees at once.
        assert np.abs(pair.flow_fw - forward[0].numpy()).max() <= HALF_A_UNIT + 1e-4
        assert np.abs(pair.flow_bw - backward[0].numpy()).max() <= HALF_A_UNIT + 1e-4
        assert pair.confidence_fw is not None
        assert pair.confidence_bw is not None
        assert ((pair.confidence_fw == 0) == check(forward, backward)[0, 0].numpy()).all()
        assert ((pair.confidence_bw == 0) == check(backward, forward)[0, 0].numpy()).all()
    assert sizes == {(48, 64, 3), (43, 59, 3)}


def test_a_set_says_what_it_is_made_of(labels: PairSet, teacher: tuple[str, FlowNetwork]) -> None:
    assert labels.has_labels
    assert labels.description.provenance["teacher"] == teacher[0]
    assert labels.description.provenance["run_id"] == "abcd"
    assert labels.description.provenance["teacher_run_id"] == "0123"
    assert labels.teacher is not None
    digest = model_digest(fetch_model(labels.teacher))
    assert digest == model_digest(Path(teacher[0]))
    table = pq.read_table(Path(labels.location) / labels.files[0])
    assert set(table.column("teacher").to_pylist()) == {digest}
    assert set(table.column("label_set").to_pylist()) == {labels.label_set}


def test_row_groups_and_shards_have_the_sizes_that_were_asked_for(labels: PairSet) -> None:
    files = [pq.read_metadata(path) for path in Path(labels.location).rglob("*.parquet")]
    groups = [[file.row_group(group).num_rows for group in range(file.num_row_groups)] for file in files]
    # Of 11, 6 and 5 pairs in chunks of three: whole chunks until there are five.
    assert sorted(groups) == sorted([[2, 2, 2], [2, 2, 1], [2, 2, 2], [2, 2, 1]])


def test_a_rerun_touches_nothing(labels: PairSet, collection: Path, teacher: tuple[str, FlowNetwork]) -> None:
    shards = list(Path(labels.location).rglob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in shards}
    summary = write_labels(str(collection), [teacher[0]], labels.location, OPTIONS)
    assert summary.new_pairs == 0
    assert summary.num_pairs == 22
    assert {path: path.stat().st_mtime_ns for path in Path(labels.location).rglob("*.parquet")} == before
    assert len(summary.ledger) == 4
    assert summary.metrics("labels")["labels/ledger/duplicate"] == 1
    assert summary.verdict == ""


@pytest.mark.parametrize("num_teachers", [1, 3])
def test_labels_dont_depend_on_the_number_of_teachers_on_the_order_or_on_who_reads_what(
    tmp_path: Path,
    labels: PairSet,
    collection: Path,
    teacher: tuple[str, FlowNetwork],
    num_teachers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if num_teachers == 1:
        # one block, read by one task, from the end of the collection
        groups = labelling._groups
        monkeypatch.setattr(labelling, "_groups", lambda *some: groups(*some)[::-1])
        monkeypatch.setattr(labelling, "_MOST_TASKS", 1)
    options = replace(OPTIONS, num_teachers=num_teachers)
    summary = write_labels(str(collection), [teacher[0]], str(tmp_path / "set"), options)
    assert contents(tmp_path / "set") == contents(labels.location)
    assert summary.processes["labelling"] == num_teachers
    assert summary.busy.keys() == {"reading", "labelling", "writing"}
    assert all(0 < share <= 1 for share in summary.busy.values())


@pytest.mark.parametrize(
    ("busy", "begins"),
    [
        ((9.0, 10.0, 0.1), "decode-bound"),
        ((1.0, 36.0, 0.1), "teacher-bound"),
        ((1.0, 10.0, 9.9), "write-bound"),
        ((1.0, 3.0, 0.2), "no stage was busy"),
    ],
)
def test_the_verdict_names_the_stage_that_the_others_waited_for(
    busy: tuple[float, float, float], begins: str
) -> None:
    stages = ("reading", "labelling", "writing")
    summary = LabellingSummary(
        location="labels",
        digest="0",
        num_videos=1,
        num_pairs=100,
        num_shards=2,
        bytes=1,
        new_pairs=100,
        seconds=10.0,
        stage_seconds=dict(zip(stages, busy, strict=True)),
        processes=dict(zip(stages, (1, 4, 1), strict=True)),
        ledger=(),
        left_out={},
    )
    assert summary.verdict.startswith(begins)


def test_a_lost_shard_comes_back_the_same(
    tmp_path: Path, labels: PairSet, collection: Path, teacher: tuple[str, FlowNetwork]
) -> None:
    location = tmp_path / "set"
    shutil.copytree(labels.location, location)
    lost = max(location.rglob("*.parquet"), key=lambda path: path.stat().st_size)
    kept = {path: path.stat().st_mtime_ns for path in lost.parent.glob("*.parquet") if path != lost}
    lost.unlink()
    (lost.parent / "_video.json").unlink()
    summary = write_labels(str(collection), [teacher[0]], str(location), OPTIONS)
    assert contents(location) == contents(labels.location)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert 0 < summary.new_pairs < 11


def test_a_shard_that_a_dying_decoder_cut_short_is_replaced(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "a.mp4", 0)
    location = tmp_path / "set"
    write_pairs(str(tmp_path / "videos"), str(location), OPTIONS)
    whole = contents(location)
    shard = min(location.rglob("*.parquet"))
    pq.write_table(pq.read_table(shard).slice(0, 2), shard)
    (shard.parent / "_video.json").unlink()
    write_pairs(str(tmp_path / "videos"), str(location), OPTIONS)
    assert contents(location) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda options: replace(options, shard_pairs=6), "shard_pairs is 5 there and 6 here"),
        (
            lambda options: replace(options, clips=replace(options.clips, stride=2)),
            r"clips\.stride is 1 there and 2 here",
        ),
        (
            lambda options: replace(options, check=ForwardBackwardCheck(alpha2=1.0)),
            r"check\.alpha2 is 0\.5 there and 1\.0 here",
        ),
    ],
)
def test_other_options_never_mix_into_a_set(
    labels: PairSet,
    collection: Path,
    teacher: tuple[str, FlowNetwork],
    change: Callable[[LabellingOptions], LabellingOptions],
    message: str,
) -> None:
    before = contents(labels.location)
    with pytest.raises(ValueError, match=message):
        write_labels(str(collection), [teacher[0]], labels.location, change(OPTIONS))
    assert contents(labels.location) == before


def test_two_makings_that_begin_at_once_where_nothing_is_locked_stop_and_give_no_set(
    tmp_path: Path, labels: PairSet, collection: Path, teacher: tuple[str, FlowNetwork]
) -> None:
    other = replace(OPTIONS, check=ForwardBackwardCheck(alpha2=1.0))
    write_labels(str(collection), [teacher[0]], str(tmp_path / "other"), other)
    # As if this run had described the folder before the other one's first file was seen.
    shared = shutil.copytree(labels.location, tmp_path / "set")
    (shared / MANIFEST_FILE).unlink()
    shutil.copy(tmp_path / "other" / DESCRIPTION_FILE, shared)
    with pytest.raises(RuntimeError, match=r"holds labels of the set .* a folder of its own"):
        write_labels(str(collection), [teacher[0]], str(shared), other)
    # A video of the other's that isn't finished: its files alone tell.
    for record in shared.rglob("_video.json"):
        record.unlink()
    with pytest.raises(RuntimeError, match=r"holds labels of the set .* a folder of its own"):
        write_labels(str(collection), [teacher[0]], str(shared), other)
    assert not (shared / MANIFEST_FILE).exists()


def test_what_was_left_out_is_counted_by_reason(tmp_path: Path, teacher: tuple[str, FlowNetwork]) -> None:
    dark = render_scene(0, SceneOptions(height=48, width=64, num_frames=8)).frames // 4
    still = np.repeat(dark[:1], 3, axis=0)
    write_video(tmp_path / "videos" / "good.mp4", np.concatenate([dark, 255 - dark, dark]))
    write_video(tmp_path / "videos" / "still.mp4", still)
    summary = write_labels(str(tmp_path / "videos"), [teacher[0]], str(tmp_path / "set"), OPTIONS)
    (entry,) = read_ledger(summary.location)
    assert (Path(entry.video).name, entry.outcome, entry.static_pairs) == ("still.mp4", "nothing", 2)
    assert summary.num_pairs == 21
    assert summary.left_out == {"cuts": 2, "static_pairs": 2, "faded_pairs": 0}
    assert summary.metrics("labels")["labels/left_out/cuts"] == 2


def test_the_expected_finish_does_not_count_what_an_earlier_run_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = LabellingProgress(
        videos_done=91, videos_before=90, num_videos=100, new_pairs=8, pairs_per_second=9.0, stage_shares={}
    )
    with video_bar("labels") as draw:
        # All that this run did so far counts, the first of it too.
        time.sleep(0.2)
        draw(progress)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "91/100" in last
    speed = re.search(r"([0-9.]+)(video/s|s/video)", last)
    assert speed is not None
    seconds = float(speed[1]) if speed[2] == "s/video" else 1 / float(speed[1])
    # Of one video: neither a ninetieth of it nor many times as much.
    (elapsed,) = re.findall(r"\[(\d\d):(\d\d)<", last)
    assert 0.1 < seconds < 60 * int(elapsed[0]) + int(elapsed[1]) + 1


def test_another_teacher_never_mixes_into_a_set(tmp_path: Path, labels: PairSet, collection: Path) -> None:
    save_teacher(tmp_path / "other", 1)
    with pytest.raises(ValueError, match=r"teacher\.digest is \w+ there and \w+ here"):
        write_labels(str(collection), [str(tmp_path / "other")], labels.location, OPTIONS)
    with pytest.raises(ValueError, match=r"teacher\.digest is \w+ there and None here"):
        write_pairs(str(collection), labels.location, OPTIONS)


def test_frames_alone_have_the_same_pairs(tmp_path: Path, labels: PairSet, collection: Path) -> None:
    seen: list[LabellingProgress] = []
    write_pairs(str(collection), str(tmp_path / "set"), OPTIONS, on_progress=seen.append)
    pairs = PairSet.open(str(tmp_path / "set"))
    assert not pairs.has_labels
    assert pair_ids(pairs.location) == pair_ids(labels.location)
    table = pq.read_table(tmp_path / "set" / pairs.files[0])
    assert table.column_names == PAIR_SCHEMA.names
    assert table.column("image1").equals(
        pq.read_table(Path(labels.location) / pairs.files[0]).column("image1")
    )
    assert (seen[-1].videos_done, seen[-1].num_videos, seen[-1].new_pairs) == (7, 7, 22)
    assert {progress.videos_before for progress in seen} == {0}
    assert sum(seen[-1].stage_shares.values()) == pytest.approx(1)
    assert seen[-1].stage_shares["reading"] > 0
    assert seen[-1].stage_shares["labelling"] == 0


def test_changed_renamed_and_added_videos_leave_each_pair_once(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    for number, name in enumerate(("changed", "renamed", "kept")):
        render(videos / f"{name}.mp4", number, num_frames=5 + number)
    write_pairs(str(videos), str(location), OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in location.rglob("*.parquet")}

    render(videos / "changed.mp4", 7, num_frames=9)
    (videos / "renamed.mp4").rename(videos / "anew.mp4")
    render(videos / "added.mp4", 8, num_frames=3)
    os.utime(videos / "kept.mp4", (0, 0))
    summary = write_pairs(str(videos), str(location), OPTIONS)
    assert summary.new_pairs == 8 + 2
    fresh = tmp_path / "fresh"
    write_pairs(str(videos), str(fresh), OPTIONS)
    assert pair_ids(location) == pair_ids(fresh)
    assert sorted(contents(location)) == sorted(contents(fresh))
    # Of those that were there before, two weren't written again and one is gone.
    after = {path: path.stat().st_mtime_ns for path in location.rglob("*.parquet")}
    assert len(before.items() & after.items()) == len(before) - 1
    assert write_pairs(str(videos), str(location), OPTIONS).new_pairs == 0
    render(videos / "late.mp4", 9, num_frames=3)
    seen: list[LabellingProgress] = []
    write_pairs(str(videos), str(location), OPTIONS, on_progress=seen.append)
    assert {progress.videos_before for progress in seen} == {4}
    assert seen[-1].videos_done == 5


def test_of_many_videos_of_one_size_only_a_copy_is_left_out(tmp_path: Path) -> None:
    """Uncompressed images have one size whatever they show."""
    for number in range(18):
        scene = render_scene(min(number, 16), SceneOptions(height=48, width=64, num_frames=2))
        folder = tmp_path / "collection" / f"{number:02d}"
        folder.mkdir(parents=True)
        for frame, image in enumerate(scene.frames):
            write_image(folder / f"{frame}.bmp", image)
    write_pairs(str(tmp_path / "collection"), str(tmp_path / "set"), OPTIONS)
    assert len(pair_ids(tmp_path / "set")) == 17
    assert ledger(tmp_path / "set") == {"17": "duplicate"}


def test_what_an_unfinished_run_left_of_a_changed_video_goes(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    render(videos / "a.mp4", 0, num_frames=5)
    write_pairs(str(videos), str(location), OPTIONS)
    (shard,) = location.rglob("*.parquet")
    (shard.parent / "_video.json").unlink()
    (shard.parent / ".00001.parquet.ab.partial").write_bytes(b"half")
    render(videos / "a.mp4", 1, num_frames=4)
    write_pairs(str(videos), str(location), OPTIONS)
    assert not shard.parent.exists()
    assert duckdb.sql(f"select count(*) from '{location}/*/*.parquet'").fetchall() == [(3,)]


def test_another_collection_adds_to_a_set(tmp_path: Path) -> None:
    render(tmp_path / "one" / "a.mp4", 0, num_frames=5)
    render(tmp_path / "two" / "b.mp4", 1, num_frames=4)
    write_pairs(str(tmp_path / "one"), str(tmp_path / "set"), OPTIONS)
    summary = write_pairs(str(tmp_path / "two"), str(tmp_path / "set"), OPTIONS)
    assert (summary.num_videos, summary.num_pairs, summary.new_pairs) == (2, 7, 3)
    assert len(pair_ids(tmp_path / "set")) == 7


def test_a_collection_without_a_readable_video_fails_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"1 of 1 videos gave no pair, and there is none at all .*a\.mp4"):
        write_pairs(str(tmp_path / "videos"), str(tmp_path / "set"), OPTIONS)
    assert ledger(tmp_path / "set") == {"a.mp4": "nothing"}
    assert not (tmp_path / "set" / MANIFEST_FILE).exists()


def test_too_many_bad_inputs_fail_the_run_but_lose_nothing(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "good.mp4", 0, num_frames=5)
    for name in "ab":
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(name.encode())
    location = str(tmp_path / "set")
    with pytest.raises(RuntimeError, match=r"2 of 3 videos gave no pair, above max_bad_share 0\.5"):
        write_pairs(str(tmp_path / "videos"), location, OPTIONS)
    summary = write_pairs(str(tmp_path / "videos"), location, replace(OPTIONS, max_bad_share=0.7))
    assert summary.num_pairs == 4
    assert summary.new_pairs == 0


def test_no_video_at_all_is_an_error_that_makes_no_folder(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(FileNotFoundError, match="no video"):
        write_pairs(str(tmp_path / "videos"), str(tmp_path / "set"), OPTIONS)
    assert not (tmp_path / "set").exists()


def test_a_second_run_into_a_folder_waits_its_turn(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "a.mp4", 0, num_frames=3)
    location = tmp_path / "set"
    location.mkdir()
    with (location / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another run"):
            write_pairs(str(tmp_path / "videos"), str(location), OPTIONS)
    assert write_pairs(str(tmp_path / "videos"), str(location), OPTIONS).num_pairs == 2


def test_a_diverged_teacher_labels_nothing(tmp_path: Path) -> None:
    network = TINY.build()
    network.load_state_dict({name: value * float("nan") for name, value in network.state_dict().items()})
    save_model(tmp_path / "teacher", network, {})
    render(tmp_path / "videos" / "a.mp4", 0, num_frames=3)
    with pytest.raises(ValueError, match="diverged"):
        write_labels(str(tmp_path / "videos"), [str(tmp_path / "teacher")], str(tmp_path / "set"), OPTIONS)
    assert contents(tmp_path / "set") == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_pairs": 0}, "shard_pairs 0"),
        ({"row_group_pairs": 0}, "row_group_pairs 0"),
        ({"num_teachers": 0}, "num_teachers 0"),
        ({"max_bad_share": 1.5}, "max_bad_share 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabellingOptions(**options)


class Shift(FlowNetwork):
    """Answers that everything moves `pixels` to the right, and back."""

    multiple = 8
    strides = (4, 8)

    def __init__(self, pixels: float) -> None:
        super().__init__()
        self.pixels = pixels

    def encode(self, images: Tensor) -> list[Tensor]:
        return [images]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[Tensor]:
        flow = torch.zeros(len(features1[0]), 2, *(side // 4 for side in features1[0].shape[-2:]))
        half = len(flow) // 2
        flow[:half, 0], flow[half:, 0] = self.pixels, -self.pixels
        return [flow]


def test_the_quality_of_a_known_motion_is_as_on_paper() -> None:
    texture = torch.rand(1, 3, 40, 200, generator=torch.Generator().manual_seed(0))
    # Two columns of the flow's grid, so that averaging down to it keeps the motion exact.
    frames = torch.cat([texture[..., 100 - 8 * i : 180 - 8 * i] for i in range(3)])
    right = label_chunk([Shift(8.0)], frames, ForwardBackwardCheck()).to_pylist()
    assert len(right) == 2
    for row in right:
        # Eight of eighty columns leave the frame.
        assert row["occluded"] == pytest.approx(0.1)
        assert row["forward_backward"] == 0
        assert row["flow_p50"] == row["flow_p99"] == row["flow_max"] == 8
        assert row["flow_stride"] == 4
    wrong = label_chunk([Shift(4.0)], frames, ForwardBackwardCheck()).to_pylist()
    # Only where a patch reaches over the edge of what is visible does the right motion look wrong.
    assert all(bad["photometric"] > 10 * good["photometric"] for bad, good in zip(wrong, right, strict=True))
    # Where nothing is visible there is nothing to average.
    (away, _) = label_chunk([Shift(500.0)], frames, ForwardBackwardCheck()).to_pylist()
    assert away["occluded"] == 1
    assert np.isnan(away["photometric"])
    assert np.isnan(away["forward_backward"])


def test_odd_videos_end_in_the_set_or_in_the_ledger(
    tmp_path: Path, shared_data: Path, teacher: tuple[str, FlowNetwork]
) -> None:
    options = replace(OPTIONS, clips=ClipOptions(size=(64, 64), max_pairs_per_video=6), max_bad_share=1.0)
    summary = write_labels(str(shared_data / "odd"), [teacher[0]], str(tmp_path / "set"), options)
    manifest = json.loads((tmp_path / "set" / MANIFEST_FILE).read_text())
    labelled = {video["video"] for video in manifest["videos"]}
    without = {entry.video for entry in summary.ledger if entry.outcome != "cut short"}
    assert labelled | without == {video.uri for video in find_videos(str(shared_data / "odd"))}
    assert not labelled & without
    ids = pair_ids(tmp_path / "set")
    assert len(ids) == len(set(ids)) == summary.num_pairs > 100


def test_two_teachers_by_hand() -> None:
    frames = torch.rand(2, 3, 40, 80, generator=torch.Generator().manual_seed(0))
    (row,) = label_chunk([Shift(8.0), Shift(20.0)], frames, ForwardBackwardCheck()).to_pylist()
    # the mean of 8 and 20 is 14, and both are 6 away from it
    assert (decode_flow(row["flow_fw"], row["flow_stride"], 40, 80) == [[[14]], [[0]]]).all()
    spreads = [stored_pixels(row[name], 10, 20) for name in ("spread_fw", "spread_bw")]
    assert (np.stack(spreads) == 6).all()
    assert row["spread"] == 6
    # what leaves the frame by their mean: the last 14 of 80 columns
    assert np.reshape(row["occ_fw"], (40, 80)).sum(axis=0).tolist() == [0] * 66 + [40] * 14


def test_two_equal_teachers_label_as_one_does_and_do_not_disagree() -> None:
    frames = torch.rand(3, 3, 40, 80, generator=torch.Generator().manual_seed(0))
    one = label_chunk([Shift(8.0)], frames, ForwardBackwardCheck())
    both = label_chunk([Shift(8.0), Shift(8.0)], frames, ForwardBackwardCheck())
    assert both.select(one.column_names).equals(one)
    assert both.column("spread").to_pylist() == [0, 0]


def test_a_chunk_is_labelled_in_steps_as_at_once() -> None:
    frames = torch.rand(6, 3, 40, 80, generator=torch.Generator().manual_seed(0))
    at_once = label_chunk([Shift(8.0)], frames, ForwardBackwardCheck())
    in_steps = label_chunk([Shift(8.0)], frames, ForwardBackwardCheck(), 2)
    assert in_steps.num_rows == 5
    assert in_steps.combine_chunks().equals(at_once)


class FineShift(Shift):
    """The same on a grid of every second pixel."""

    strides = (2,)

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[Tensor]:
        (coarse,) = super().decode(features1, features2)
        return [coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)]


def test_teachers_of_different_strides_meet_at_full_resolution() -> None:
    frames = torch.rand(2, 3, 40, 80, generator=torch.Generator().manual_seed(0))
    (row,) = label_chunk([Shift(8.0), FineShift(9.0)], frames, ForwardBackwardCheck()).to_pylist()
    assert row["flow_stride"] == 1
    assert (stored_pixels(row["flow_fw"], 40, 80)[0] == 8.5).all()
    assert (stored_pixels(row["spread_fw"], 40, 80) == 0.5).all()


def test_a_label_on_which_teachers_disagree_is_not_trusted(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "only.mp4", 1, num_frames=4)
    teachers = [str(tmp_path / "first"), str(tmp_path / "second")]
    # the first one doesn't say which run made it
    save_model(Path(teachers[0]), save_teacher(Path(teachers[0]), 0, 0.7), {})
    save_teacher(Path(teachers[1]), 0, 0.65)
    write_labels(str(tmp_path / "videos"), teachers, str(tmp_path / "set"), OPTIONS)
    labels = PairSet.open(str(tmp_path / "set"))
    row = labels.read_group(labels.files[0], 0)[0]
    assert "teacher_run_id" not in labels.description.provenance
    assert labels.description.provenance["teacher2_run_id"] == "0123"
    assert row["spread_fw"].shape == (12 * 16,)
    # fresh networks find everything occluded: what they answer for is made up here
    occluded = np.arange(48 * 64) % 7 == 0
    grid = np.arange(12 * 16).reshape(12, 16)
    made_up = {**row, "occ_fw": occluded, "spread_fw": np.diff(grid, axis=0, prepend=0).ravel()}
    spread = np.kron(grid / 64, np.ones((4, 4)))
    for tolerance in (1.0, 1.5, 1e9):
        confidence = replace(labels, max_spread=tolerance).decode(made_up).confidence_fw
        assert confidence is not None
        assert ((confidence > 0) == (~occluded.reshape(48, 64) & (spread < tolerance))).all()
    # the first teacher is where a student starts
    assert labels.teacher is not None
    assert model_digest(fetch_model(labels.teacher)) == model_digest(Path(teachers[0]))
    assert row["teacher"] == "+".join(model_digest(Path(each)) for each in teachers)
    again = write_labels(str(tmp_path / "videos"), teachers, str(tmp_path / "set"), OPTIONS)
    assert again.new_pairs == 0
    with pytest.raises(ValueError, match="teacher"):
        write_labels(str(tmp_path / "videos"), teachers[:1], str(tmp_path / "set"), OPTIONS)


def test_scenes_that_share_a_folder_are_kept_apart_and_one_that_changed_is_written_anew(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "kitti" / "training" / "image_2"
    for scene in range(3):
        render_images(tmp_path / str(scene), scene, 4, height=48, width=64)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(4):
            shutil.copy(tmp_path / str(scene) / f"{number}.png", folder / f"{scene:06d}_{number:02d}.png")
    collection, location = f"kitti2015:{tmp_path / 'kitti'}", str(tmp_path / "set")

    def pairs() -> list[tuple[str, int]]:
        found = duckdb.sql(f"select video, frame from '{location}/*/*.parquet' order by all").fetchall()
        return [(Path(video).name, frame) for video, frame in found]

    expected = [(f"{scene:06d}_00", frame) for scene in range(3) for frame in range(3)]
    assert write_pairs(collection, location, OPTIONS).new_pairs == 9
    assert pairs() == expected
    render_images(tmp_path / "new", 9, 4, height=48, width=64)
    for number in range(4):
        shutil.copy(tmp_path / "new" / f"{number}.png", folder / f"000001_{number:02d}.png")
    assert write_pairs(collection, location, OPTIONS).new_pairs == 3
    assert pairs() == expected


def test_the_status_of_a_finished_set_accounts_for_every_video(labels: PairSet, collection: Path) -> None:
    status = labelling_status(labels.location)
    assert status == labelling_status(labels.location, str(collection))
    assert (status.state, status.videos, status.finished, status.left, status.pairs) == (
        *("finished", 7, 3, 0),
        *(22,),
    )
    entries = json.loads((Path(labels.location) / LEDGER_FILE).read_text())
    assert sum(status.skipped.values()) == len(entries) == 4
    assert status.skipped["has the content of another video"] == 1
    reasons = Counter(entry["reason"] for entry in entries if entry["outcome"] == "nothing")
    assert reasons.items() <= status.skipped.items()
    assert status.seconds_left == 0


def test_the_status_of_a_killed_run_by_hand(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    for name, num_frames in (("a", 12), ("b", 7), ("c", 9)):
        render(videos / f"{name}.mp4", num_frames, num_frames)
    write_pairs(str(videos), str(location), OPTIONS)
    folders = {
        Path(video).stem: folder
        for video, folder in (
            (json.loads(path.read_text())["video"], path.parent) for path in location.glob("*/_video.json")
        )
    }
    # Of a, the second of two shards is missing; nobody has looked at c.
    for name in (MANIFEST_FILE, LEDGER_FILE):
        (location / name).unlink()
    (folders["a"] / "_video.json").unlink()
    (folders["a"] / "00001.parquet").unlink()
    shutil.rmtree(folders["c"])
    os.utime(location / "_label_set.json", (1000, 1000))
    for path, seconds in ((folders["a"] / "00000.parquet", 1010), (folders["b"] / "00000.parquet", 1030)):
        os.utime(path, (seconds, seconds))
    status = labelling_status(str(location))
    # Six pairs each; of two shards in twenty seconds, one was made between them.
    assert (status.state, status.finished, status.left, status.pairs) == ("unfinished", 1, 2, 12)
    assert status.skipped == {}
    assert status.last_written == 1030
    assert status.pairs_per_second == pytest.approx(6 / 20)
    size = {name: (videos / f"{name}.mp4").stat().st_size for name in "abc"}
    assert status.seconds_left == pytest.approx((6 * (size["a"] + size["c"]) / size["b"] - 6) / (6 / 20))
    # The first shard was an earlier run's, which a later one began long after.
    os.utime(location / "_label_set.json", (1020, 1020))
    status = labelling_status(str(location))
    assert (status.pairs, status.pairs_per_second, status.seconds_left) == (12, None, None)
    # A changed video is to be done again.
    render(videos / "b.mp4", 3, 7)
    status = labelling_status(str(location))
    assert (status.finished, status.left) == (0, 3)


def test_runs_that_finished_a_set_one_after_the_other_have_their_own_speeds(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    render(videos / "a.mp4", 0)
    write_pairs(str(videos), str(location), OPTIONS)
    for number, path in enumerate(sorted(location.glob("*/*.parquet"))):
        os.utime(path, (2000 + number, 2000 + number))
    os.utime(location / "_label_set.json", (1999, 1999))
    os.utime(location / MANIFEST_FILE, (2002, 2002))
    assert labelling_status(str(location)).pairs_per_second == pytest.approx(5.5)
    before = set(location.glob("*/*.parquet"))
    render(videos / "b.mp4", 1)
    write_pairs(str(videos), str(location), OPTIONS)
    for number, path in enumerate(sorted(set(location.glob("*/*.parquet")) - before)):
        os.utime(path, (9000 + 10 * number, 9000 + 10 * number))
    assert labelling_status(str(location)).pairs_per_second == pytest.approx(0.55)


def test_a_video_that_was_mended_is_left_and_not_skipped(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", tmp_path / "set"
    render(videos / "good.mp4", 0)
    render(videos / "mended.mp4", 1, height=16, width=16)
    write_pairs(str(videos), str(location), OPTIONS)
    status = labelling_status(str(location))
    assert (status.finished, status.left, sum(status.skipped.values())) == (1, 0, 1)
    render(videos / "mended.mp4", 1)
    status = labelling_status(str(location))
    assert (status.state, status.finished, status.left, status.skipped) == ("unfinished", 1, 1, {})


def test_while_a_run_goes_on_its_status_only_rises(tmp_path: Path) -> None:
    videos, location = tmp_path / "videos", str(tmp_path / "set")
    for seed in range(3):
        render(videos / f"{seed}.mp4", seed)
    seen: list[LabellingStatus] = []
    write_pairs(str(videos), location, OPTIONS, on_progress=lambda _: seen.append(labelling_status(location)))
    assert {status.state for status in seen} == {"unfinished"}
    seen.append(labelling_status(location))
    assert (seen[-1].state, seen[-1].finished, seen[-1].left, seen[-1].pairs) == ("finished", 3, 0, 33)
    for name in ("finished", "pairs"):
        values = [getattr(status, name) for status in seen]
        assert values == sorted(values)
    assert seen[0].pairs > 0


def test_before_labelling_has_begun_everything_is_left(tmp_path: Path, collection: Path) -> None:
    location = str(tmp_path / "set")
    with pytest.raises(ValueError, match="nothing was labelled there yet; add --videos"):
        labelling_status(location)
    status = labelling_status(location, str(collection))
    assert (status.state, status.videos, status.left, status.pairs) == ("not begun", 7, 7, 0)
    assert status.pairs_per_second is status.seconds_left is status.last_written is None
    assert not Path(location).exists()


def test_the_command_tells_the_status_without_ray_and_leaves_no_trace(labels: PairSet) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(labels.location).rglob("*")}
    script = """
import runpy, sys
import ray
sys.argv = ["jobs/pseudolabel.py", "smoke", *sys.argv[1:]]
runpy.run_path("jobs/pseudolabel.py", run_name="__main__")
assert not ray.is_initialized()
"""
    repository = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", script, "--labels", labels.location, "--status"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    rows = [line.split(maxsplit=1) for line in ended.stdout.splitlines()]
    assert ["labels", f"{labels.location}, finished"] in rows
    for row in (
        ["finished", "3"],
        ["left", "0"],
        ["skipped", "4"],
        ["1", "has the content of another video"],
    ):
        assert row in rows
    assert {path: path.stat().st_mtime_ns for path in Path(labels.location).rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "have", "expected"),
    [
        # an embedded Ray on two cores
        ({}, {"CPU": 4.0}, (2, 2, 1, 0)),
        ({}, {"CPU": 16.0, "GPU": 4.0}, (None, 4, 4, 1)),
        # nodes that an autoscaler has yet to bring are not left out
        ({"accelerator": "gpu"}, {}, (None, None, 8, 1)),
        ({"accelerator": "gpu"}, {"CPU": 16.0, "GPU": 1.0}, (None, None, 8, 1)),
        ({}, {}, (None, None, 8, 0)),
        ({"accelerator": "gpu", "num_teachers": 3}, {}, (None, 3, 3, 1)),
    ],
)
def test_there_are_as_many_teachers_as_the_cluster_has_room_for_now_or_later(
    options: dict[str, Any],
    have: dict[str, float],
    expected: tuple[int | None, int | None, int, int],
) -> None:
    room = labelling_room(
        have, has_teachers=True, **({"num_teachers": None, "accelerator": "auto"} | options)
    )
    assert (room.readers, room.teachers, room.writers, room.gpus) == expected
    grown = {"CPU": 64.0, "GPU": 8.0}
    assert room.processes(grown)["labelling"] == (expected[1] or (8 if room.gpus else 64))


def test_a_file_that_vanishes_among_many_of_its_size_costs_itself_alone(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.y4m").write_bytes(bytes([number]) * 1000)
    sources = find_videos(str(tmp_path))
    stamps = labelling._stamps(sources)
    (tmp_path / "07.y4m").unlink()
    groups = labelling._groups(sources, stamps)
    assert sorted(source.name for group in groups for source in group) == [each.name for each in sources]


def test_what_another_run_finishes_in_object_storage_meanwhile_is_neither_lost_nor_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("first", "second", "elsewhere")):
        render(tmp_path / "all" / f"{name}.mp4", number, num_frames=5)
    (tmp_path / "ours").mkdir()
    for name in ("first", "second"):
        shutil.copy2(tmp_path / "all" / f"{name}.mp4", tmp_path / "ours")
    write_pairs(str(tmp_path / "all"), str(tmp_path / "other"), OPTIONS)
    others = {Path(each.video).stem: each.folder for each in PairSet.open(str(tmp_path / "other")).videos()}
    begun = labelling._rows

    def rows(*arguments: Any) -> Any:
        # the other run, just after this one has looked what is there
        for name in ("second", "elsewhere"):
            shutil.copytree(tmp_path / "other" / others[name], tmp_path / "set" / others[name])
        yield from begun(*arguments)

    monkeypatch.setattr(labelling, "_rows", rows)
    summary = write_pairs(str(tmp_path / "ours"), str(tmp_path / "set"), OPTIONS)
    assert summary.new_pairs == 4
    assert pair_ids(tmp_path / "set") == pair_ids(tmp_path / "other")


def test_the_driver_keeps_no_statistics_of_what_is_written(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "a.mp4", 1, num_frames=61)
    kept: list[int] = []

    def count(progress: LabellingProgress) -> None:
        if progress.new_pairs in (30, 60):
            # a list of it grows in Ray's driver with every block of every stage
            kept.append(sum(type(each) is BlockStats for each in gc.get_objects()))

    options = replace(OPTIONS, clips=ClipOptions(chunk_pairs=1), shard_pairs=1)
    write_pairs(str(tmp_path / "videos"), str(tmp_path / "set"), options, on_progress=count)
    assert max(kept) < 20


def test_progress_counts_the_written_share_of_a_long_video(tmp_path: Path) -> None:
    render(tmp_path / "videos" / "a.mp4", 1, num_frames=41)
    seen: list[float] = []
    options = replace(OPTIONS, clips=ClipOptions(chunk_pairs=4), shard_pairs=8)
    write_pairs(
        str(tmp_path / "videos"),
        str(tmp_path / "set"),
        options,
        on_progress=lambda progress: seen.append(progress.videos_done),
    )
    *begun, last = seen
    assert last == 1
    np.testing.assert_allclose(begun[:4], [0.2, 0.4, 0.6, 0.8], atol=0.05)


def test_readers_run_ahead_by_a_few_shards_where_their_number_is_known() -> None:
    options = LabellingOptions(clips=ClipOptions(size=(500, 1000)), shard_pairs=64)
    room = labelling_room(
        {"CPU": 4.0}, has_teachers=True, num_teachers=options.num_teachers, accelerator="auto"
    )
    few = room.ahead(options.shard_bytes).object_store_memory
    png = room.ahead(replace(options, codec=FrameCodec(kind="png")).shard_bytes).object_store_memory
    small = room.ahead(replace(options, clips=ClipOptions(size=(48, 64))).shard_bytes).object_store_memory
    # two readers, two teachers, one writer; a shard is of some 32 MB
    assert 20 * 32e6 <= few <= 100 * 32e6
    assert png > few > small > 0
    grown = labelling_room({}, has_teachers=True, num_teachers=options.num_teachers, accelerator="gpu")
    assert grown.ahead(options.shard_bytes).object_store_memory == float("inf")
