"""A label set as a data set of torch: the pairs of the set, by number, in any process and any order."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import label, render, save_teacher
from torch.utils.data import DataLoader, default_collate

from flowcore.augmentation import Crop
from flowcore.colour import Colour
from flowcore.hallucination import Challenge, RectangleNoise
from flowcore.pairs import Batch, FramePair
from pipelines.filters import PairFilter
from pipelines.label_dataset import LabelDataset
from pipelines.label_rows import decode_occlusion
from pipelines.pair_set import PairSet

CHALLENGE = Challenge(
    crop=Crop(height=32, width=32),
    colour=Colour(chance=1.0),
    rectangles=RectangleNoise(chance=1.0),
)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 48x64 px, labelled: 18 pairs in several row groups."""
    folder = tmp_path_factory.mktemp("labelled")
    for seed in range(2):
        render(folder / "videos" / f"{seed}.mp4", seed, num_frames=10)
    save_teacher(folder / "teacher", scale=0.5)
    label(folder)
    return folder / "labels"


def rows(pairs: PairSet) -> Iterator[dict[str, Any]]:
    for place in pairs.index().to_pylist():
        yield pairs.read(place)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_pair_is_what_the_set_has_of_it(labels: Path) -> None:
    dataset = LabelDataset(labels)
    expected = list(rows(dataset.pairs))
    assert len(dataset) == len(expected) == 18
    for item, row in zip(dataset, expected, strict=True):
        pair = dataset.pairs.decode(row)
        batch = Batch.stack([pair])
        assert {name: value.shape for name, value in item.items()} == {
            **dict.fromkeys(("image1", "image2"), (3, 48, 64)),
            **dict.fromkeys(("flow_fw", "flow_bw"), (2, 48, 64)),
            **dict.fromkeys(("confidence_fw", "confidence_bw", "occ_fw", "occ_bw"), (1, 48, 64)),
        }
        for name, value in batch.known().items():
            assert torch.equal(item[name], value[0]), name
        for name in ("occ_fw", "occ_bw"):
            assert np.array_equal(item[name][0].numpy(), decode_occlusion(row, name))
            assert item[name].dtype == torch.bool


def test_frames_come_as_bytes_too(labels: Path) -> None:
    bytes_, floats = LabelDataset(labels, dtype=torch.uint8)[3], LabelDataset(labels)[3]
    for name in ("image1", "image2"):
        assert bytes_[name].dtype == torch.uint8
        assert torch.equal(bytes_[name].float() / 255, floats[name])
    assert torch.equal(bytes_["flow_fw"], floats["flow_fw"])


def test_items_collate_into_a_batch(labels: Path) -> None:
    dataset = LabelDataset(labels, challenge=CHALLENGE)
    collated = default_collate([dataset[index] for index in (0, 5, 7)])
    assert {name: len(value) for name, value in collated.items()} == dict.fromkeys(collated, 3)
    # What the objectives of a training take.
    assert Batch(**collated).image1.shape == (3, 3, 32, 32)


def test_a_number_means_what_it_means_to_a_list(labels: Path) -> None:
    dataset = LabelDataset(labels)
    numbers = list(range(len(dataset)))
    for number in (0, 5, -1, -18, np.int64(3), torch.tensor(4)):
        assert_equal(dataset[number], dataset[numbers[number]])
    for number in (18, -19):
        with pytest.raises(IndexError):
            dataset[number]
    for no_number in (1.0, "0", slice(2)):
        with pytest.raises(TypeError):
            dataset[no_number]  # type: ignore[index]


def test_where_keeps_the_pairs_that_it_keeps_everywhere(labels: Path) -> None:
    pairs = PairSet.open(str(labels))
    bound = float(np.median(pairs.index(["flow_p50"])["flow_p50"].to_numpy()))
    where = f"flow_p50 < {bound}"
    kept = replace(pairs, where=PairFilter(where))
    for dataset in (LabelDataset(labels, where=where), LabelDataset(kept)):
        assert 0 < len(dataset) < 18
        assert dataset.index["pair_id"].to_pylist() == kept.index()["pair_id"].to_pylist()
    with pytest.raises(ValueError, match="no column 'blur'"):
        LabelDataset(labels, where="blur < 1")


def test_the_challenge_of_a_pair_is_that_of_a_training_with_the_same_seed(labels: Path) -> None:
    dataset = LabelDataset(labels, challenge=CHALLENGE, seed=3)
    dataset.set_epoch(2)
    # As `pipelines.feed` has it.
    for number, row in enumerate(rows(dataset.pairs)):
        rng = np.random.default_rng([3, 2, int(row["pair_id"][:16], 16)])
        expected = Batch.stack([CHALLENGE(dataset.pairs.decode(row), rng)])
        assert_equal(dataset[number], {name: value[0] for name, value in expected.known().items()})


def test_the_challenge_depends_on_the_epoch_and_not_on_the_order(labels: Path) -> None:
    dataset = LabelDataset(labels, challenge=CHALLENGE)
    first = [dataset[number] for number in range(18)]
    for number in np.random.default_rng(0).permutation(18):
        assert_equal(dataset[number], first[number])
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0]["image1"], first[0]["image1"])


def test_what_a_user_writes_into_a_pair_stays_with_him(labels: Path) -> None:
    dataset = LabelDataset(labels, dtype=torch.uint8)
    before = {name: value.clone() for name, value in dataset[2].items()}
    for value in dataset[2].values():
        value.zero_()
    assert_equal(dataset[2], before)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_one_process_reads(labels: Path, start: str) -> None:
    dataset = LabelDataset(labels, challenge=CHALLENGE, dtype=torch.uint8)
    expected = [dataset[number] for number in range(18)]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start)
    for item, one in zip(loader, expected, strict=True):
        assert_equal(item, one)


def test_workers_that_persist_hear_of_the_epoch(labels: Path) -> None:
    dataset = LabelDataset(labels, challenge=CHALLENGE)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for item, number in zip(loader, range(18), strict=True):
            assert_equal(item, dataset[number])


@dataclass(frozen=True, kw_only=True)
class Counted(PairSet):
    """A set that notes what is read of it."""

    read_groups: list[tuple[str, int]] = field(default_factory=list)

    def read_group(self, file: str, row_group: int) -> list[dict[str, Any]]:
        self.read_groups.append((file, row_group))
        return super().read_group(file, row_group)


def counted(labels: Path) -> Counted:
    return Counted(**vars(PairSet.open(str(labels))))


def test_neighbours_cost_one_reading_of_their_row_group(labels: Path) -> None:
    pairs = counted(labels)
    assert len(list(LabelDataset(pairs, cached_groups=1))) == 18
    assert len(pairs.read_groups) == len(set(pairs.read_groups)) < 18


def test_no_more_row_groups_are_kept_than_are_asked_for(labels: Path) -> None:
    pairs = counted(labels)
    few, many = LabelDataset(pairs, cached_groups=1), LabelDataset(pairs, cached_groups=2)
    for dataset, readings in ((few, 4), (many, 2)):
        pairs.read_groups.clear()
        for number in (0, -1, 0, -1):
            dataset[number]
        assert len(pairs.read_groups) == readings


def test_a_data_set_is_sent_without_what_it_has_read(labels: Path) -> None:
    dataset = LabelDataset(labels)
    before = pickle.dumps(dataset)
    expected = list(dataset)
    assert len(pickle.dumps(dataset)) == len(before)
    for item, one in zip(pickle.loads(before), expected, strict=True):
        assert_equal(item, one)


def test_a_field_that_a_challenge_adds_is_an_image_or_a_mask_too(labels: Path) -> None:
    item = LabelDataset(labels, challenge=replace(CHALLENGE, surroundings=4), dtype=torch.uint8)[0]
    assert (item["scene1"].dtype, item["scene1"].shape) == (torch.uint8, (3, 40, 40))
    assert (item["inside1"].dtype, item["inside1"].shape) == (torch.bool, (1, 40, 40))


def test_a_transformation_of_one_s_own_is_taken(labels: Path) -> None:
    def exchanged(pair: FramePair, rng: np.random.Generator) -> FramePair:
        return pair.reversed()

    there, back = LabelDataset(labels)[0], LabelDataset(labels, challenge=exchanged)[0]
    assert torch.equal(back["flow_fw"], there["flow_bw"])


@pytest.mark.parametrize(
    ("options", "told"), [({"dtype": torch.float64}, "dtype"), ({"cached_groups": 0}, "cached_groups 0")]
)
def test_options_that_cannot_be_are_refused(labels: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LabelDataset(labels, **options)
