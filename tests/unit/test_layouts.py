import dataclasses
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_files import FLOW, HEIGHT, LEFT, TOP, WIDTH, put_flow, put_image, put_mask

from flowcore.chairs_split import CHAIRS_SPLIT
from flowcore.datasets import find_samples
from flowcore.formats import read_disparity, write_image
from flowcore.samples import Truth, load


def warping_gain(truth: Truth) -> float:
    """The mean photometric error without any flow over that with the true flow, on visible pixels."""
    height, width = truth.valid.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    warped = cv2.remap(truth.image2, x + truth.flow[0], y + truth.flow[1], cv2.INTER_LINEAR)
    visible = truth.valid if truth.occluded is None else truth.valid & ~truth.occluded
    errors = [np.abs(truth.image1.astype(float) - image)[visible].mean() for image in (truth.image2, warped)]
    return float(errors[0] / errors[1])


def test_sintel_has_a_sample_a_pass_where_flow_and_both_frames_exist(tmp_path: Path) -> None:
    training = tmp_path / "training"
    for frame in (1, 2, 3, 9, 10):
        put_image(training / "final" / "cave" / f"frame_{frame:04d}.png", frame)
    for frame in (1, 2):
        put_image(training / "clean" / "cave" / f"frame_{frame:04d}.png", 10 * frame)
    for frame in (1, 2, 3, 9):
        put_flow(training / "flow" / "cave" / f"frame_{frame:04d}.flo")
    put_mask(training / "occlusions" / "cave" / "frame_0001.png", LEFT)
    put_mask(training / "invalid" / "cave" / "frame_0001.png", TOP)

    samples = find_samples("sintel", tmp_path)
    assert [(sample.group, sample.name) for sample in samples] == [
        ("sintel/clean", "cave/frame_0001"),
        ("sintel/final", "cave/frame_0001"),
        ("sintel/final", "cave/frame_0002"),
        ("sintel/final", "cave/frame_0009"),
    ]
    assert find_samples("sintel", training) == samples

    truth = load(samples[0])
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (10, 20)
    np.testing.assert_array_equal(truth.valid, ~TOP)
    np.testing.assert_array_equal(truth.flow, np.where(TOP, 0, FLOW))
    assert truth.occluded is not None
    np.testing.assert_array_equal(truth.occluded, LEFT)
    assert truth.unmasked is not None
    assert truth.unmasked.valid.all()
    np.testing.assert_array_equal(truth.unmasked.flow, FLOW)
    assert load(samples[2]).occluded is None
    assert load(samples[2]).unmasked is None
    assert load(samples[2]).valid.all()


@pytest.mark.parametrize(
    ("data_set", "group", "images"),
    [
        ("kitti2012", "kitti12", "image_0"),
        ("kitti2012", "kitti12", "colored_0"),
        ("kitti2015", "kitti15", "image_2"),
    ],
)
def test_kitti_is_occluded_where_only_flow_occ_knows_the_flow(
    tmp_path: Path, data_set: str, group: str, images: str
) -> None:
    training = tmp_path / "training"
    put_image(training / images / "000007_10.png", 10)
    put_image(training / images / "000007_11.png", 11)
    put_image(training / images / "000008_10.png")  # its second frame is missing
    put_flow(training / "flow_occ" / "000007_10.png", ~TOP)
    put_flow(training / "flow_occ" / "000008_10.png")
    put_flow(training / "flow_noc" / "000007_10.png", ~TOP & ~LEFT)

    samples = find_samples(data_set, tmp_path)
    assert [(sample.group, sample.name) for sample in samples] == [(group, "000007_10")]
    assert find_samples(data_set, training) == samples
    truth = load(samples[0])
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (10, 11)
    np.testing.assert_array_equal(truth.valid, ~TOP)
    assert truth.occluded is not None
    np.testing.assert_array_equal(truth.occluded, ~TOP & LEFT)

    shutil.rmtree(training / "flow_noc")
    assert load(find_samples(data_set, tmp_path)[0]).occluded is None


@pytest.mark.parametrize("data_set", ["kitti2015", "kitti2015-stereo"])
def test_kitti_s_foreground_is_where_its_object_map_is_not_zero(tmp_path: Path, data_set: str) -> None:
    training = tmp_path / "training"
    for folder in ("image_2", "image_3"):
        for frame in (10, 11):
            put_image(training / folder / f"000007_{frame}.png")
    put_flow(training / "flow_occ" / "000007_10.png")
    put_disparity(training / "disp_occ_0" / "000007_10.png", np.full((HEIGHT, WIDTH), 256, np.uint16))
    assert load(find_samples(data_set, tmp_path)[0]).foreground is None
    put_disparity(training / "obj_map" / "000007_10.png", np.where(LEFT, 3, 0).astype(np.uint8))
    foreground = load(find_samples(data_set, tmp_path)[0]).foreground
    assert foreground is not None
    np.testing.assert_array_equal(foreground, LEFT)


def test_kitti2012_prefers_its_color_frames(tmp_path: Path) -> None:
    for folder in ("image_0", "colored_0"):
        for frame in (10, 11):
            put_image(tmp_path / folder / f"000000_{frame}.png")
    put_flow(tmp_path / "flow_occ" / "000000_10.png")
    assert find_samples("kitti2012", tmp_path)[0].image1.parent.name == "colored_0"


@pytest.mark.parametrize("folder", [".", "data"])
def test_chairs_are_the_validation_pairs_where_the_split_is_there(tmp_path: Path, folder: str) -> None:
    for pair in (1, 2, 4):
        put_image(tmp_path / folder / f"{pair:05d}_img1.ppm")
        put_image(tmp_path / folder / f"{pair:05d}_img2.ppm")
        put_flow(tmp_path / folder / f"{pair:05d}_flow.flo")
    samples = find_samples("chairs", tmp_path)
    assert [(sample.group, sample.name) for sample in samples] == [
        ("chairs", "00001"),
        ("chairs", "00002"),
        ("chairs", "00004"),
    ]
    assert load(samples[0]).occluded is None

    split = tmp_path / CHAIRS_SPLIT
    split.write_text("1\n2\n1\n2\n")
    assert [sample.name for sample in find_samples("chairs", tmp_path)] == ["00002", "00004"]
    assert [sample.name for sample in find_samples("chairs", tmp_path, to_learn_from=True)] == ["00001"]
    split.write_text("1\n2\n")
    with pytest.raises(ValueError, match="2 lines and none for pair 00004"):
        find_samples("chairs", tmp_path)


def test_middlebury_leaves_out_scenes_without_truth(tmp_path: Path) -> None:
    for scene in ("Urban", "Walking"):
        put_image(tmp_path / scene / "frame10.png")
        put_image(tmp_path / scene / "frame11.png")
    put_flow(tmp_path / "Urban" / "flow10.flo", ~LEFT)
    samples = find_samples("middlebury", tmp_path)
    assert [(sample.group, sample.name) for sample in samples] == [("middlebury", "Urban")]
    np.testing.assert_array_equal(load(samples[0]).valid, ~LEFT)


def test_chairs2_is_the_validation_pairs_where_the_set_is_divided(tmp_path: Path) -> None:
    for place in (tmp_path / "whole", tmp_path / "parts" / "val", tmp_path / "parts" / "train"):
        for number in (0, 12):
            put_image(place / f"{number:07d}-img_0.png", number)
            put_image(place / f"{number:07d}-img_1.png", number + 1)
            put_flow(place / f"{number:07d}-flow_01.flo")
            put_flow(place / f"{number:07d}-flow_10.flo")
            put_mask(place / f"{number:07d}-occ_01.png", LEFT)
    whole = find_samples("chairs2", tmp_path / "whole")
    assert [(each.group, each.name) for each in whole] == [("chairs2", "0000000"), ("chairs2", "0000012")]
    truth = load(whole[1])
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (12, 13)
    assert truth.occluded is not None
    np.testing.assert_array_equal(truth.occluded, LEFT)
    judged = find_samples("chairs2", tmp_path / "parts")
    learnt = find_samples("chairs2", tmp_path / "parts", to_learn_from=True)
    assert [each.name for each in judged] == ["val/0000000", "val/0000012"]
    assert [each.name for each in learnt] == ["train/0000000", "train/0000012"]
    # The folder that is asked about may have any name.
    asked = find_samples("chairs2", tmp_path / "parts" / "train")
    assert [each.name for each in asked] == ["0000000", "0000012"]


def test_scenes_have_a_sample_for_each_frame_with_flow_to_the_next(tmp_path: Path) -> None:
    for frame in range(3):
        put_image(tmp_path / "b" / f"frame_{frame:04d}.png", frame)
    for frame in range(2):
        put_flow(tmp_path / "b" / "flow" / f"frame_{frame:04d}.flo")
        put_mask(tmp_path / "b" / "occlusions" / f"frame_{frame:04d}.png", LEFT)
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    samples = find_samples("scenes", tmp_path)
    assert [sample.name for sample in samples] == [
        "a/frame_0000",
        "a/frame_0001",
        "b/frame_0000",
        "b/frame_0001",
    ]
    assert {sample.group for sample in samples} == {"scenes"}
    truth = load(samples[3])
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (1, 2)
    assert truth.occluded is not None
    np.testing.assert_array_equal(truth.occluded, LEFT)


def test_files_of_one_sample_that_differ_in_size_are_an_error(tmp_path: Path) -> None:
    put_image(tmp_path / "Urban" / "frame10.png")
    write_image(tmp_path / "Urban" / "frame11.png", np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    put_flow(tmp_path / "Urban" / "flow10.flo")
    with pytest.raises(ValueError, match=r"frame11.png is 4x7 px .* its frames are 4x6 px"):
        load(find_samples("middlebury", tmp_path)[0])


@pytest.mark.parametrize(
    ("data_set", "folder", "names", "occlusion_known"),
    [
        (
            "sintel",
            "sintel",
            [
                "sintel/clean alley_1/frame_0002",
                "sintel/clean cave_2/frame_0002",
                "sintel/final alley_1/frame_0002",
                "sintel/final bandage_1/frame_0035",
                "sintel/final cave_2/frame_0002",
                "sintel/final cave_2/frame_0011",
                "sintel/final temple_3/frame_0022",
            ],
            True,
        ),
        ("kitti2012", "kitti2012", ["kitti12 000157_10"], True),
        ("chairs", "flyingchairs", [f"chairs {pair:05d}" for pair in range(5)], False),
        (
            "middlebury",
            "middlebury_flow",
            [f"middlebury {scene}" for scene in ("Grove2", "Hydrangea", "RubberWhale", "Urban2")],
            False,
        ),
    ],
)
def test_real_truth_explains_the_second_frame(
    shared_data: Path, data_set: str, folder: str, names: list[str], occlusion_known: bool
) -> None:
    samples = find_samples(data_set, shared_data / folder)
    assert [f"{sample.group} {sample.name}" for sample in samples] == names
    for sample in samples:
        truth = load(sample)
        assert (truth.occluded is not None) == occlusion_known
        assert warping_gain(truth) > 1.3, sample.name
        wrong_way = dataclasses.replace(truth, flow=-truth.flow)
        assert warping_gain(wrong_way) < warping_gain(truth), sample.name


def put_disparity(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)


def test_kitti_stereo_is_flow_to_the_left_by_the_disparity(
    tmp_path: Path,
) -> None:
    training = tmp_path / "training"
    put_image(training / "image_2" / "000003_10.png", 1)
    put_image(training / "image_3" / "000003_10.png", 2)
    stored = np.full((HEIGHT, WIDTH), 3 * 256 + 128, np.uint16)
    stored[TOP] = 0
    put_disparity(training / "disp_occ_0" / "000003_10.png", stored)
    put_disparity(training / "disp_noc_0" / "000003_10.png", np.where(LEFT, 0, stored).astype(np.uint16))
    (sample,) = find_samples("kitti2015-stereo", tmp_path)
    truth = load(sample)
    assert truth.is_stereo
    assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (1, 2)
    assert (truth.valid == ~TOP).all()
    assert (truth.flow[0][~TOP] == -3.5).all()
    assert (truth.flow[1] == 0).all()
    assert truth.occluded is not None
    assert (truth.occluded == (LEFT & ~TOP)).all()


def put_stereo(
    folder: Path, truth: str, disparity: np.ndarray, left: str = "im0.png", right: str = "im1.png"
) -> None:
    put_image(folder / left, 1)
    put_image(folder / right, 2)
    put_disparity(folder / truth, disparity)


def test_middlebury_stereo_is_found_in_the_layout_of_each_edition(tmp_path: Path) -> None:
    stored = np.where(LEFT, 0, 10).astype(np.uint8)
    put_stereo(tmp_path / "cones", "disp2.pgm", stored, "im2.png", "im6.png")
    put_stereo(tmp_path / "teddy", "disp2.png", stored, "im2.png", "im6.png")
    disparity = np.where(LEFT, np.inf, 2.5).astype(np.float32)
    put_stereo(tmp_path / "piano", "disp0.pfm", disparity)
    put_stereo(tmp_path / "vintage", "disp0GT.pfm", disparity)
    put_image(tmp_path / "motorcycle_left.png", 1)
    put_image(tmp_path / "motorcycle_right.png", 2)
    np.savez_compressed(tmp_path / "motorcycle_disp.npz", disparity)
    samples = find_samples("middlebury-stereo", tmp_path)
    assert [sample.name for sample in samples] == ["cones", "motorcycle", "piano", "teddy", "vintage"]
    for truth in map(load, samples):
        assert truth.is_stereo
        assert (truth.image1[0, 0, 0], truth.image2[0, 0, 0]) == (1, 2)
        np.testing.assert_array_equal(truth.valid, ~LEFT)
        np.testing.assert_array_equal(truth.flow, np.where(LEFT, 0, [[[-2.5]], [[0]]]))
        assert truth.occluded is None


@pytest.mark.parametrize("name", ["mask0nocc.png", "occlusion.png"])
def test_middleburys_own_mask_says_255_where_a_pixel_is_visible(tmp_path: Path, name: str) -> None:
    disparity = np.where(TOP, np.inf, 1).astype(np.float32)
    put_stereo(tmp_path / "piano", "disp0GT.pfm", disparity)
    put_disparity(tmp_path / "piano" / "disp1GT.pfm", disparity)
    put_disparity(tmp_path / "piano" / name, np.where(TOP, 0, np.where(LEFT, 128, 255)).astype(np.uint8))
    (sample,) = find_samples("middlebury-stereo", tmp_path)
    truth = load(sample)
    assert truth.occluded is not None
    np.testing.assert_array_equal(truth.occluded[truth.valid], LEFT[truth.valid])


@pytest.mark.parametrize(
    ("truth", "of_right", "scale"),
    [("disp2.pgm", "disp6.pgm", 4), ("disp2.png", "disp6.png", 4), ("disp0.pfm", "disp1.pfm", 1)],
)
def test_two_disparities_tell_what_is_behind_something_nearer(
    tmp_path: Path, truth: str, of_right: str, scale: int
) -> None:
    # A bar two wide, 3 px nearer than the wall behind it, goes from columns 6 and 7 to 2 and 3. What is not
    # known in column 7 of the right frame hides nothing.
    left = np.array([1, 1, 1, 1, 1, 1, 4, 4, 1, 1])
    right = np.array([1, 1, 4, 4, 1, 1, 1, 0, 1, 1])
    occluded = np.array([1, 0, 0, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    scene = tmp_path / "bar"
    scene.mkdir()
    for name in ("im2.png", "im6.png") if scale == 4 else ("im0.png", "im1.png"):
        write_image(scene / name, np.zeros((HEIGHT, len(left), 3), np.uint8))
    dtype = np.uint8 if scale == 4 else np.float32
    put_disparity(scene / truth, (left * scale)[None].repeat(HEIGHT, axis=0).astype(dtype))
    put_disparity(scene / of_right, (right * scale)[None].repeat(HEIGHT, axis=0).astype(dtype))
    (sample,) = find_samples("middlebury-stereo", tmp_path)
    found = load(sample)
    assert found.valid.all()
    assert found.occluded is not None
    np.testing.assert_array_equal(found.occluded, occluded[None].repeat(HEIGHT, axis=0))

    put_disparity(scene / of_right, np.ones((HEIGHT, 9), dtype))
    with pytest.raises(ValueError, match=r"4x9 px .* its frames are 4x10 px; they must be of one size"):
        load(sample)


def test_an_npz_file_without_a_single_disparity_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a_disp.npz"
    np.savez(path, np.ones((HEIGHT, WIDTH), np.float32))
    whole = path.read_bytes()
    one, two = (np.float32(value).tobytes() for value in (1, 2))
    for content in (b"", b"no archive", whole[:-30], whole.replace(one, two, 1)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a_disp\.npz is truncated or is not an \.npz file"):
            read_disparity(path)
    np.savez(path, np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"a_disp\.npz .* with one array"):
        read_disparity(path)
    np.savez(path, np.ones(3))
    with pytest.raises(ValueError, match=r"a_disp\.npz holds float64 \(3,\); it must be numbers"):
        read_disparity(path)


@pytest.mark.parametrize(
    ("folder", "name", "occlusion_known"),
    [("stereo_middlebury2003", "cones", True), ("stereo_motorcycle", "motorcycle", False)],
)
def test_the_true_disparity_of_a_real_pair_explains_the_right_frame(
    shared_data: Path, folder: str, name: str, occlusion_known: bool
) -> None:
    (sample,) = find_samples("middlebury-stereo", shared_data / folder)
    truth = load(sample)
    assert sample.name == name
    assert (truth.occluded is not None) == occlusion_known
    assert warping_gain(truth) > 2


def test_the_occlusion_of_two_real_disparities_is_nearly_an_independent_map_s(
    shared_data: Path, tmp_path: Path
) -> None:
    scene = tmp_path / "cones"
    scene.mkdir()
    for file in (shared_data / "stereo_middlebury2003" / "cones").iterdir():
        (scene / file.name).symlink_to(file)
    (sample,) = find_samples("middlebury-stereo", tmp_path)
    derived = load(sample)
    (scene / "occlusion.png").symlink_to(shared_data / "stereo_pandora_cones" / "occlusion.png")
    (sample,) = find_samples("middlebury-stereo", tmp_path)
    given_map = load(sample)
    assert derived.occluded is not None
    assert given_map.occluded is not None
    # By the map 11.9 % of what has truth is occluded; the two differ at the edges of things.
    assert 0.11 < given_map.occluded[given_map.valid].mean() < 0.13
    assert (derived.occluded == given_map.occluded)[derived.valid].mean() > 0.98
