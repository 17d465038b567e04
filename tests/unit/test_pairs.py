"""A pair, there and back: the laws that arrays and tensors share."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowcore.pairs import Batch, FramePair


def frame_pair(seed: int, height: int = 4, width: int = 6) -> FramePair:
    rng = np.random.default_rng(seed)
    image1, image2 = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    flow_fw, flow_bw = rng.normal(size=(2, 2, height, width)).astype(np.float32)
    confidence_fw, confidence_bw = rng.uniform(size=(2, height, width)).astype(np.float32)
    inside1, inside2 = rng.uniform(size=(2, height, width)) < 0.5
    return FramePair(
        image1=image1,
        image2=image2,
        flow_fw=flow_fw,
        flow_bw=flow_bw,
        confidence_fw=confidence_fw,
        confidence_bw=confidence_bw,
        inside1=inside1,
        inside2=inside2,
    )


def same(one: Batch, other: Batch) -> bool:
    ours, theirs = one.known(), other.known()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_pair_reversed_twice_is_the_pair_and_once_none_of_its_fields_stays() -> None:
    pair = frame_pair(0)
    there = pair.reversed()
    assert all(getattr(there, name) is not value for name, value in pair.known().items())
    assert all(getattr(there.reversed(), name) is value for name, value in pair.known().items())


def test_what_is_unknown_in_one_direction_is_unknown_in_the_other_after_reversing() -> None:
    truth = replace(frame_pair(0), flow_bw=None, confidence_bw=None)
    assert (truth.reversed().flow_fw, truth.reversed().confidence_fw) == (None, None)
    assert truth.reversed().flow_bw is truth.flow_fw


def test_reversing_and_stacking_exchange() -> None:
    pairs = [frame_pair(seed) for seed in range(3)]
    assert same(Batch.stack([pair.reversed() for pair in pairs]), Batch.stack(pairs).reversed())


def test_a_batch_has_each_pair_in_its_place_with_images_from_0_to_1() -> None:
    pairs = [frame_pair(seed) for seed in range(3)]
    batch = Batch.stack(pairs)
    for place, pair in enumerate(pairs):
        assert pair.flow_fw is not None
        assert batch.flow_fw is not None
        assert batch.confidence_bw is not None
        assert batch.inside2 is not None
        assert batch.image1[place, 2, 1, 5].item() == pytest.approx(pair.image1[1, 5, 2] / 255)
        assert np.array_equal(batch.flow_fw[place].numpy(), pair.flow_fw)
        assert np.array_equal(batch.confidence_bw[place, 0].numpy(), pair.confidence_bw)
        assert np.array_equal(batch.inside2[place, 0].numpy(), pair.inside2)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_parts_of_a_batch_are_the_batches_of_its_parts(parts: int) -> None:
    pairs = [replace(frame_pair(seed), inside1=None) for seed in range(5)]
    split = Batch.stack(pairs).split(parts)
    sizes = [len(part.image1) for part in split]
    assert sum(sizes) == 5
    assert max(sizes) - min(sizes) <= 1
    ends = np.cumsum([0, *sizes])
    for part, begin, end in zip(split, ends[:-1], ends[1:], strict=True):
        assert same(part, Batch.stack(pairs[begin:end]))


def test_each_known_field_is_mapped_by_the_function_of_its_kind() -> None:
    pair = replace(frame_pair(0), flow_bw=None)
    mapped = pair.map(
        image=lambda image: image[:1], flow=lambda flow: flow[:, :2], mask=lambda mask: mask[:3]
    )
    heights = {
        name: value.shape[1] if name == "flow_fw" else len(value) for name, value in mapped.known().items()
    }
    assert heights == {
        "image1": 1,
        "image2": 1,
        "flow_fw": 2,
        "confidence_fw": 3,
        "confidence_bw": 3,
        "inside1": 3,
        "inside2": 3,
    }
