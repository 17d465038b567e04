"""Spring, HD1K, TartanAir, VIPER and Kubric, each as a tiny folder in its own layout."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_files import FLOW, HEIGHT, LEFT, TOP, WIDTH, put_flow, put_image

from flowcore.datasets import find_samples
from flowcore.formats import write_flow, write_image
from flowcore.samples import load
from flowcore.sequences import find_sequences


def put_array(path: Path, **arrays: np.ndarray) -> None:
    """A .npz, or a .npy of the only array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    else:
        np.save(path, *arrays.values())


def put_spring(scene: Path, fine: np.ndarray) -> None:
    """Three frames of both cameras, and the flow of the second frame in each of the four directions."""
    for camera in ("left", "right"):
        for frame in (1, 2, 3):
            put_image(scene / f"frame_{camera}" / f"frame_{camera}_{frame:04d}.png", frame)
        for direction in ("FW", "BW"):
            folder = scene / f"flow_{direction}_{camera}"
            folder.mkdir(parents=True)
            write_flow(folder / f"{folder.name}_0002.flo5", fine)


def test_spring_has_four_directions_and_the_upper_left_vector_of_each_pixel(tmp_path: Path) -> None:
    fine = np.arange(2 * 4 * HEIGHT * WIDTH, dtype=np.float32).reshape(2, 2 * HEIGHT, 2 * WIDTH)
    put_spring(tmp_path / "train" / "0041", fine)
    samples = find_samples("spring", tmp_path)
    assert [(sample.group, sample.name) for sample in samples] == [
        ("spring", f"0041/flow_{direction}_{camera}_0002")
        for direction in ("BW", "FW")
        for camera in ("left", "right")
    ]
    assert find_samples("spring", tmp_path / "train") == samples
    backward, forward = load(samples[0]), load(samples[2])
    assert (forward.image1[0, 0, 0], forward.image2[0, 0, 0]) == (2, 3)
    assert (backward.image1[0, 0, 0], backward.image2[0, 0, 0]) == (2, 1)
    assert forward.valid.all()
    assert forward.occluded is None
    np.testing.assert_array_equal(forward.flow, fine[:, ::2, ::2])
    assert forward.finer is not None
    np.testing.assert_array_equal(forward.finer[3], fine[:, 1::2, 1::2])


def test_a_pixel_of_spring_is_known_where_all_four_of_its_vectors_are(tmp_path: Path) -> None:
    known = np.ones((2 * HEIGHT, 2 * WIDTH), dtype=bool)
    known[3, 5] = False
    put_spring(tmp_path / "0041", np.ones((2, 2 * HEIGHT, 2 * WIDTH), np.float32))
    path = tmp_path / "0041" / "flow_FW_left" / "flow_FW_left_0002.flo5"
    write_flow(path, np.ones((2, 2 * HEIGHT, 2 * WIDTH), np.float32), known)
    truth = load(next(each for each in find_samples("spring", tmp_path) if each.flow == path))
    assert [tuple(place) for place in np.argwhere(~truth.valid)] == [(1, 2)]
    assert (truth.flow[:, 1, 2] == 0).all()


def test_spring_s_match_map_says_what_is_unmatched_in_red_and_green(tmp_path: Path) -> None:
    put_spring(tmp_path / "0041", np.ones((2, 2 * HEIGHT, 2 * WIDTH), np.float32))
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[LEFT, 0] = 255
    colours[TOP, 1] = 255
    colours[~LEFT & ~TOP, 2] = 255
    match_map = tmp_path / "0041" / "maps" / "matchmap_flow_FW_left" / "matchmap_flow_FW_left_0002.png"
    match_map.parent.mkdir(parents=True)
    write_image(match_map, colours)
    truths = {sample.name: load(sample) for sample in find_samples("spring", tmp_path)}
    occluded = truths["0041/flow_FW_left_0002"].occluded
    assert occluded is not None
    np.testing.assert_array_equal(occluded, LEFT | TOP)
    assert truths["0041/flow_BW_left_0002"].occluded is None


def test_a_flow_of_spring_as_large_as_its_frames_is_refused(tmp_path: Path) -> None:
    put_spring(tmp_path / "0041", FLOW)
    with pytest.raises(ValueError, match=r"0002\.flo5 is 4x6 px .* its frames are 8x12 px"):
        load(find_samples("spring", tmp_path)[0])


def test_hd1k_goes_from_a_frame_to_the_next_of_its_sequence(tmp_path: Path) -> None:
    for frame in (10, 11):
        put_image(tmp_path / "hd1k_input" / "image_2" / f"000003_{frame:04d}.png", frame)
        put_flow(tmp_path / "hd1k_flow_gt" / "flow_occ" / f"000003_{frame:04d}.png", ~TOP)
    (sample,) = find_samples("hd1k", tmp_path)
    assert (sample.group, sample.name) == ("hd1k", "000003_0010")
    truth = load(sample)
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (10, 11)
    np.testing.assert_array_equal(truth.valid, ~TOP)
    np.testing.assert_array_equal(truth.flow, np.where(TOP, 0, FLOW))


def test_what_tartanair_masks_is_ignored_and_kept_beside(tmp_path: Path) -> None:
    trajectory = tmp_path / "abandonedfactory" / "Easy" / "P001"
    for frame in (7, 8):
        put_image(trajectory / "image_left" / f"{frame:06d}_left.png", frame)
    put_array(trajectory / "flow" / "000007_000008_flow.npy", flow=FLOW.transpose(1, 2, 0))
    put_array(trajectory / "flow" / "000007_000008_mask.npy", mask=np.where(LEFT, 10, 0).astype(np.uint8))
    (sample,) = find_samples("tartanair", tmp_path)
    assert (sample.group, sample.name) == ("tartanair", "abandonedfactory/Easy/P001/000007")
    truth = load(sample)
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (7, 8)
    np.testing.assert_array_equal(truth.valid, ~LEFT)
    assert truth.unmasked is not None
    assert truth.unmasked.valid.all()
    np.testing.assert_array_equal(truth.unmasked.flow, FLOW)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_viper_is_judged_on_its_validation_part_and_learnt_from_on_the_other(
    tmp_path: Path, suffix: str
) -> None:
    u, v = FLOW.astype(np.float16)
    for part, scene in (("train", "001"), ("val", "002")):
        for frame in (1, 2):
            put_image(tmp_path / part / "img" / scene / f"{scene}_{frame:05d}{suffix}", 60 * frame)
        put_array(tmp_path / part / "flow" / scene / f"{scene}_00001.npz", u=np.where(TOP, np.nan, u), v=v)
    (judged,) = find_samples("viper", tmp_path)
    (learnt,) = find_samples("viper", tmp_path, to_learn_from=True)
    assert (judged.name, learnt.name) == ("002_00001", "001_00001")
    (asked,) = find_samples("viper", tmp_path / "train")
    assert asked.name == "001_00001"
    truth = load(judged)
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (60, 120)
    np.testing.assert_array_equal(truth.valid, ~TOP)
    np.testing.assert_array_equal(truth.flow, np.where(TOP, 0, FLOW))


def put_kubric(scene: Path, ranges: object) -> None:
    """Rows down by 3 px and columns left by 1 px, which range from -1 to 3."""
    for frame in (0, 1):
        put_image(scene / f"rgba_{frame:05d}.png", 10 + frame)
        rows, columns = np.full((HEIGHT, WIDTH), 65535, np.uint16), np.zeros((HEIGHT, WIDTH), np.uint16)
        blue_green_red = np.stack([np.zeros_like(rows), columns, rows], axis=-1)
        assert cv2.imwrite(str(scene / f"forward_flow_{frame:05d}.png"), blue_green_red)
    (scene / "data_ranges.json").write_text(json.dumps(ranges))


def test_kubric_s_red_is_rows_its_green_columns_and_its_range_beside_it(tmp_path: Path) -> None:
    put_kubric(tmp_path / "12", {"forward_flow": {"min": -1.0, "max": 3.0}, "depth": {"min": 0, "max": 9}})
    (sample,) = find_samples("kubric", tmp_path)
    assert (sample.group, sample.name) == ("kubric", "12/00000")
    truth = load(sample)
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (10, 11)
    assert truth.valid.all()
    assert (truth.flow[0] == -1).all()
    assert (truth.flow[1] == 3).all()


@pytest.mark.parametrize(
    ("ranges", "problem"),
    [
        ([], "it is None and not an object"),
        ({"flow": {"min": 0, "max": 1}}, "it is None and not an object"),
        ({"forward_flow": {"min": 0}}, "it has no max"),
        ({"forward_flow": {"min": 1.5, "max": 1.5}}, r"its min 1\.5 must be below its max 1\.5"),
        ({"forward_flow": {"min": "a", "max": 1}}, "its min is 'a'"),
        ("x" * 2**20, "it has more than 1048576 bytes"),
    ],
)
def test_ranges_that_kubric_did_not_write_are_an_error_that_names_the_file(
    tmp_path: Path, ranges: object, problem: str
) -> None:
    put_kubric(tmp_path / "12", ranges)
    (sample,) = find_samples("kubric", tmp_path)
    with pytest.raises(ValueError, match=rf"data_ranges\.json is no JSON with forward_flow's .*{problem}"):
        load(sample)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"u": np.zeros((HEIGHT, WIDTH))}, r"001_00001\.npz is truncated or is not .*'v\.npy'"),
        (
            {"u": np.zeros((HEIGHT, WIDTH + 1)), "v": np.zeros((HEIGHT, WIDTH))},
            r"001_00001\.npz is 4x7 px .* its frames are 4x6 px",
        ),
        (
            {"u": np.full((HEIGHT, WIDTH), None), "v": np.zeros((HEIGHT, WIDTH))},
            r"001_00001\.npz holds object \(4, 6\); it must be numbers",
        ),
    ],
)
def test_a_flow_of_viper_that_is_not_two_maps_of_the_frames_size_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], problem: str
) -> None:
    for frame in (1, 2):
        put_image(tmp_path / "img" / "001" / f"001_{frame:05d}.png")
    put_array(tmp_path / "flow" / "001" / "001_00001.npz", **arrays)
    with pytest.raises(ValueError, match=problem):
        load(find_samples("viper", tmp_path)[0])


@pytest.mark.parametrize(
    ("data_set", "folder", "names"),
    [
        ("spring", "test/0003/frame_left", ["frame_left_0001.png", "frame_left_0002.png"]),
        ("hd1k", "hd1k_challenge/image_2", ["000001_0010.png", "000001_0011.png"]),
        ("tartanair", "office/Hard/P000/image_right", ["000000_right.png", "000001_right.png"]),
        ("viper", "train/img/001", ["001_00001.jpg", "001_00002.jpg"]),
        ("kubric", "12", ["rgba_00000.png", "rgba_00001.png"]),
    ],
)
def test_the_frames_of_recent_sets_are_sequences_to_learn_from(
    data_set: str, folder: str, names: list[str]
) -> None:
    files = [f"{folder}/{name}" for name in names]
    (found,) = find_sequences(data_set, [*files, "maps/depth_0001.png"], lambda name, most: b"")
    assert (found.folder, found.frames) == (folder, tuple(names))
