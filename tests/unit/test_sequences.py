import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowcore.chairs_split import CHAIRS_SPLIT
from flowcore.datasets import DATA_SETS
from flowcore.sequences import SEQUENCES, FrameSequence, find_sequences


def unread(name: str, most: int) -> bytes:
    raise AssertionError(f"{name} need not be read")


def kitti_files(folder: str, scenes: int = 2) -> list[str]:
    return [f"{folder}/{scene:06d}_{frame:02d}.png" for scene in range(scenes) for frame in range(21)]


@given(st.sets(st.sampled_from(kitti_files("training/image_2", 3))))
def test_sequences_hold_every_pair_of_neighbours_of_one_scene(there: set[str]) -> None:
    scene_and_frame = {name: name.rpartition("/")[2].split(".")[0].split("_") for name in there}
    places = {
        (scene, int(frame)) for scene, frame in scene_and_frame.values() if int(frame) not in range(9, 13)
    }
    expected = sorted(place for place in places if (place[0], place[1] + 1) in places)
    if not expected:
        with pytest.raises(FileNotFoundError, match=f"among {len(there)} files; kitti2015 is expected as"):
            find_sequences("kitti2015", there, unread)
        return
    found = []
    for sequence in find_sequences("kitti2015", there, unread):
        assert sequence.folder == "training/image_2"
        frames = [name.removesuffix(".png").split("_") for name in sequence.frames]
        for (scene1, first), (scene2, second) in itertools.pairwise(frames):
            assert (scene1, int(first) + 1) == (scene2, int(second))
            found.append((scene1, int(first)))
    assert found == expected


@pytest.mark.parametrize(
    ("data_set", "folder"),
    [("kitti2015", "image_2"), ("kitti2012", "colored_0"), ("kitti2012", "image_0")],
)
def test_kitti_scenes_lose_the_pair_with_truth_and_its_neighbours(data_set: str, folder: str) -> None:
    files = [*kitti_files(f"training/{folder}", 1), *kitti_files(f"testing/{folder}", 1)]
    files += [*kitti_files("training/image_3", 1), "training/flow_occ/000000_10.png"]
    assert find_sequences(data_set, files, unread) == [
        FrameSequence(folder=f"{part}/{folder}", frames=tuple(f"000000_{frame:02d}.png" for frame in frames))
        for part in ("testing", "training")
        for frames in (range(9), range(13, 21))
    ]


def test_kitti2012_is_learnt_from_in_colour_where_there_is_colour() -> None:
    files = [*kitti_files("training/image_0"), *kitti_files("training/colored_0")]
    folders = {sequence.folder for sequence in find_sequences("kitti2012", files, unread)}
    assert folders == {"training/colored_0"}


@pytest.mark.parametrize("folder", ["", "data/"])
def test_each_training_pair_of_chairs_is_a_sequence(folder: str) -> None:
    files = [
        f"{folder}{pair:05d}_{end}" for pair in (4, 1, 2) for end in ("img2.ppm", "img1.ppm", "flow.flo")
    ]

    def names(*more: str) -> list[str]:
        def read(_: str, most: int) -> bytes:
            return split.encode()[:most]

        return [each.name for each in find_sequences("chairs", [*files, *more], read)]

    split = "1\n2\n1\n1\n"
    assert names() == ["00001_img1", "00002_img1", "00004_img1"]
    assert names(CHAIRS_SPLIT) == ["00001_img1", "00004_img1"]
    split = "1\n2\n"
    with pytest.raises(ValueError, match="2 lines and none for pair 00004"):
        names(CHAIRS_SPLIT)


def test_sintel_s_sequences_are_of_both_passes_and_end_at_a_missing_frame() -> None:
    files = [f"{part}/cave/frame_{frame:04d}.png" for part in PARTS for frame in (1, 2, 4, 9, 10, 11)]
    files += [
        f"training/{other}/cave/frame_{frame:04d}.png" for other in ("albedo", "invalid") for frame in (1, 2)
    ]
    runs = (("frame_0001.png", "frame_0002.png"), ("frame_0009.png", "frame_0010.png", "frame_0011.png"))
    assert find_sequences("sintel", files, unread) == [
        FrameSequence(folder=f"{part}/cave", frames=run) for part in PARTS for run in runs
    ]


PARTS = ("test/clean", "test/final", "training/clean", "training/final")


def test_a_data_set_without_frames_to_learn_from_says_so() -> None:
    with pytest.raises(ValueError, match=r"'middlebury' has no layout of frames .* are chairs"):
        find_sequences("middlebury", [], unread)


def test_whatever_has_frames_to_learn_from_has_truth_too() -> None:
    assert set(SEQUENCES) < set(DATA_SETS)
