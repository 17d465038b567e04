"""What servers ask for, on tiny test splits in the data sets' own layouts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_files import FLOW, HEIGHT, WIDTH, put_image

from flowcore.formats import encode_flow, read_flow
from flowcore.submissions import SERVERS, AskedPair, Server, problems

SIDES = ("left", "right")


def sintel(root: Path) -> None:
    for part, scene in (("test", "cave_3"), ("training", "alley_1")):
        for render_pass in ("clean", "final"):
            for frame in (1, 2, 3):
                put_image(root / part / render_pass / scene / f"frame_{frame:04d}.png", frame)


def kitti2012(root: Path) -> None:
    for folder in ("image_0", "colored_0"):
        for frame in (9, 10, 11):
            put_image(root / "testing" / folder / f"000000_{frame:02d}.png", frame)


def kitti2015(root: Path) -> None:
    for part in ("training", "testing"):
        for folder in ("image_2", "image_3"):
            for frame in (10, 11):
                put_image(root / part / folder / f"000000_{frame:02d}.png", frame)


def spring(root: Path) -> None:
    for side in SIDES:
        for frame in (1, 2):
            put_image(root / "test" / "0003" / f"frame_{side}" / f"frame_{side}_{frame:04d}.png", frame)


SPLITS: dict[str, tuple[Callable[[Path], None], dict[str, tuple[int, int]]]] = {
    "sintel": (
        sintel,
        {
            f"{render_pass}/cave_3/frame_{frame:04d}.flo": (frame, frame + 1)
            for render_pass in ("clean", "final")
            for frame in (1, 2)
        },
    ),
    "kitti2012": (kitti2012, {"000000_10.png": (10, 11)}),
    "kitti2015": (kitti2015, {"flow/000000_10.png": (10, 11)}),
    "spring": (
        spring,
        {f"0003/flow_FW_{side}/flow_FW_{side}_0001.flo5": (1, 2) for side in SIDES}
        | {f"0003/flow_BW_{side}/flow_BW_{side}_0002.flo5": (2, 1) for side in SIDES},
    ),
}
"""What makes a tiny test split, and the files that are asked for with the numbers of their frames."""


def asked(name: str, root: Path) -> tuple[Server, list[AskedPair]]:
    """A server that asks for a tiny test split, and its pairs."""
    put, files = SPLITS[name]
    put(root)
    server = replace(SERVERS[name], num_pairs=len(files))
    return server, server.pairs(root)


def put_submission(server: Server, pairs: list[AskedPair], folder: Path) -> None:
    for pair in pairs:
        (folder / pair.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / pair.file).write_bytes(server.encoded(FLOW, pair.file))


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_asks_for_these_files_of_these_frames(tmp_path: Path, name: str) -> None:
    _, pairs = asked(name, tmp_path)
    frame_of = {pair.file: (pair.image1.stem, pair.image2.stem) for pair in pairs}
    assert {
        file: tuple(int(stem.rpartition("_")[2]) for stem in stems) for file, stems in frame_of.items()
    } == SPLITS[name][1]
    part = "test" if (tmp_path / "test").is_dir() else "testing"
    inside = replace(SERVERS[name], num_pairs=len(pairs)).pairs(tmp_path / part)
    assert inside == pairs
    assert all((tmp_path / part) in pair.image1.parents for pair in pairs)


def test_kitti2012_is_estimated_in_colour_where_there_is_colour(tmp_path: Path) -> None:
    _, pairs = asked("kitti2012", tmp_path)
    assert pairs[0].image1.parent.name == "colored_0"


@pytest.mark.parametrize("name", SERVERS)
def test_a_submission_that_is_whole_has_no_problem(tmp_path: Path, name: str) -> None:
    server, pairs = asked(name, tmp_path / "data")
    put_submission(server, pairs, tmp_path / "out")
    assert problems(server, pairs, tmp_path / "out") == []
    for pair in pairs:
        flow, valid = read_flow(tmp_path / "out" / pair.file)
        assert valid.all()
        np.testing.assert_array_equal(flow, FLOW)


@pytest.mark.parametrize("name", SERVERS)
def test_a_missing_a_misnamed_and_an_additional_file_are_refused(tmp_path: Path, name: str) -> None:
    server, pairs = asked(name, tmp_path / "data")
    folder = tmp_path / "out"
    put_submission(server, pairs, folder)
    file = folder / pairs[0].file
    wrong = file.with_stem(file.stem + "0")
    file.rename(wrong)
    named = wrong.relative_to(folder).as_posix()
    assert problems(server, pairs, folder) == [
        f"{pairs[0].file} is missing",
        f"{named} isn't asked for",
    ]
    wrong.rename(file)
    (folder / "notes.txt").touch()
    assert problems(server, pairs, folder) == ["notes.txt isn't asked for"]
    assert problems(server, pairs, folder, ["notes.txt"]) == []


@pytest.mark.parametrize("name", SERVERS)
def test_a_file_of_another_size_than_its_frame_is_refused(tmp_path: Path, name: str) -> None:
    server, pairs = asked(name, tmp_path / "data")
    put_submission(server, pairs, tmp_path)
    (tmp_path / pairs[0].file).write_bytes(server.encoded(FLOW[:, :, 1:], pairs[0].file))
    problem = server.problem(pairs[0], tmp_path)
    assert problem is not None
    assert f"is {HEIGHT}x{WIDTH - 1} px" in problem
    assert str(tmp_path / pairs[0].file) in problem


@pytest.mark.parametrize("name", SERVERS)
def test_a_pixel_without_a_finite_flow_is_refused(tmp_path: Path, name: str) -> None:
    server, pairs = asked(name, tmp_path / "data")
    put_submission(server, pairs, tmp_path)
    known = np.ones((HEIGHT, WIDTH), dtype=bool)
    known[2, 3] = False
    (tmp_path / pairs[0].file).write_bytes(encode_flow(FLOW, pairs[0].file, known))
    problem = server.problem(pairs[0], tmp_path)
    assert problem is not None
    assert "has no finite flow at 1 pixels" in problem


@pytest.mark.parametrize("name", ["sintel", "spring"])
def test_a_flow_that_the_server_can_t_keep_is_refused(tmp_path: Path, name: str) -> None:
    server, pairs = asked(name, tmp_path / "data")
    put_submission(server, pairs, tmp_path)
    far = np.full_like(FLOW, 2 * server.most_flow)
    (tmp_path / pairs[0].file).write_bytes(encode_flow(far, pairs[0].file))
    problem = server.problem(pairs[0], tmp_path)
    assert problem is not None
    assert f"at most {server.most_flow:g} is taken" in problem


@pytest.mark.parametrize("name", SERVERS)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    server, pairs = asked(name, tmp_path / "data")
    put_submission(server, pairs, tmp_path)
    file = tmp_path / pairs[0].file
    file.write_bytes(file.read_bytes()[:20])
    problem = server.problem(pairs[0], tmp_path)
    assert problem is not None
    assert str(file) in problem


@pytest.mark.parametrize("name", SERVERS)
def test_what_is_written_has_an_answer_for_every_pixel_however_long(tmp_path: Path, name: str) -> None:
    server, pairs = asked(name, tmp_path / "data")
    far = FLOW * np.float32(1e8)
    for pair in pairs:
        (tmp_path / pair.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / pair.file).write_bytes(server.encoded(far, pair.file))
        assert server.problem(pair, tmp_path) is None
    with pytest.raises(ValueError, match="not finite"):
        server.encoded(np.full_like(FLOW, np.nan), pairs[0].file)


@pytest.mark.parametrize("name", SERVERS)
def test_a_part_of_a_test_split_is_refused_with_the_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pair of test frames in .*; expected is test"):
        SERVERS[name].pairs(tmp_path)
    _, pairs = asked(name, tmp_path)
    number = SERVERS[name].num_pairs
    with pytest.raises(ValueError, match=rf"has {len(pairs)} pairs .* asks for {number}; unpack the whole"):
        SERVERS[name].pairs(tmp_path)
