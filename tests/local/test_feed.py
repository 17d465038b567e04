"""The planned order: a function of seed and epoch, shared by any number of workers, resumable at any step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from bare_graph import BareGraph

from flowcore.augmentation import Crop, Geometric
from flowcore.colour import Colour
from flowcore.hallucination import Challenge, CopyPaste, RectangleNoise, SuperpixelNoise, Transformation
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from jobs.recipes import RECIPES
from pipelines.checkpoints import save_model
from pipelines.collection import Collection
from pipelines.feed import Plan, batches
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.pair_set import PairSet
from pipelines.split import hold_back, part_of
from pipelines.teachers import Teachers


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    folder: Path = tmp_path_factory.mktemp("labelled")
    write_video(
        folder / "videos" / "scene.mp4",
        render_scene(1, SceneOptions(height=48, width=64, num_frames=13)).frames,
    )
    torch.manual_seed(0)
    save_model(folder / "teacher", RECIPES["smoke"].network.build(), {})
    write_labels(
        Collection.find(str(folder / "videos")),
        Teachers.fetched([str(folder / "teacher")]),
        str(folder / "labels"),
        ClipOptions(chunk_pairs=3),
        OcclusionCheck(),
        LabellingOptions(row_group_pairs=2),
        graph=BareGraph(),
    )
    return PairSet.open(str(folder / "labels"))


def an_index(files: int = 5, groups: int = 3, rows: int = 4, lengths: Sequence[int] = ()) -> pa.Table:
    """lengths: the pairs of each file, in row groups of eight, in place of the rest."""
    places = [
        (file, group, row)
        for file in range(files)
        for group in range(groups)
        for row in range(rows - file % 2)
    ]
    if lengths:
        places = [(file, row // 8, row % 8) for file, length in enumerate(lengths) for row in range(length)]
    return pa.table(
        {
            "pair_id": [f"{number * 7919 % 104729:032x}" for number in range(len(places))],
            "file": pa.array([file for file, _, _ in places], pa.int32()),
            "row_group": pa.array([group for _, group, _ in places], pa.int32()),
            "row": pa.array([row for _, _, row in places], pa.int32()),
        }
    )


def taken(
    plan: Plan, start: int, stop: int, rank: int = 0, world_size: int = 1
) -> list[tuple[int, int, int, int]]:
    return [
        place
        for window in plan.windows(start, stop, rank, world_size)
        for place in zip(window["epoch"], window["file"], window["row_group"], window["row"], strict=True)
    ]


@pytest.mark.parametrize("global_batch", [1, 4, 7, 54])
def test_each_pair_is_seen_exactly_once_an_epoch(global_batch: int) -> None:
    index = an_index()
    pairs = index.num_rows
    assert pairs == 54
    plan = Plan(index=index, global_batch=global_batch, seed=3)
    places = taken(plan, 0, -(-3 * pairs // global_batch))
    for epoch in range(3):
        of_epoch = places[epoch * pairs : (epoch + 1) * pairs]
        assert len(set(of_epoch)) == pairs
        assert {place[0] for place in of_epoch} == {epoch}


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_workers_together_take_the_batches_of_one_worker(world_size: int) -> None:
    plan = Plan(index=an_index(), global_batch=4, seed=0)
    steps = 30
    alone = np.array(taken(plan, 0, steps)).reshape(steps, 4, 4)
    shares = [
        np.array(taken(plan, 0, steps, rank, world_size)).reshape(steps, -1, 4) for rank in range(world_size)
    ]
    assert {share.shape[1] for share in shares} <= {4 // world_size, 4 // world_size + 1}
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), alone)


@pytest.mark.parametrize("start", [0, 1, 11, 17, 30])
def test_starting_at_a_step_gives_the_tail_of_the_whole(start: int) -> None:
    plan = Plan(index=an_index(), global_batch=4, seed=0)
    assert taken(plan, start, 40) == taken(plan, 0, 40)[4 * start :]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    index = an_index()
    plan = Plan(index=index, global_batch=4, seed=0)
    first, second = plan.epoch(0), plan.epoch(1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Plan(index=index, global_batch=4, seed=1).epoch(0))
    np.testing.assert_array_equal(first, Plan(index=index, global_batch=4, seed=0).epoch(0))


def test_pairs_in_a_row_are_mixed_as_well_as_an_independent_sampling_mixes_them() -> None:
    rng = np.random.default_rng(0)
    index = an_index(lengths=rng.integers(40, 160, 103).tolist())
    video = index["file"].to_numpy()

    def videos_in_32(order: np.ndarray) -> float:
        return float(np.mean([len(set(video[order[at : at + 32]])) for at in range(0, len(order) - 32, 7)]))

    planned = [videos_in_32(Plan(index=index, global_batch=4, seed=seed).epoch(0)) for seed in range(3)]
    independent = videos_in_32(rng.permutation(len(video)))
    assert independent > 25
    assert min(planned) >= 0.8 * independent


def test_a_window_reads_each_row_group_once_and_little_of_it_in_vain() -> None:
    index = an_index(lengths=[64] * 100)
    windows = Plan(index=index, global_batch=4, seed=0).windows(0, 1000, 0, 1)
    groups = [
        len(set(zip(window["file"], window["row_group"], strict=True))) / len(window["row"])
        for window in windows
    ]
    # Of the eight rows of a group a window takes half of them or more.
    assert np.mean(groups) < 1 / 4


def test_fewer_pairs_than_a_batch_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"add videos or lower --training\.global-batch"):
        Plan(index=an_index(files=1, groups=1, rows=3), global_batch=4, seed=0)


def test_a_batch_of_fewer_pairs_than_workers_is_refused() -> None:
    plan = Plan(index=an_index(), global_batch=4, seed=0)
    remedy = r"raise --training\.global-batch or lower --training\.workers"
    with pytest.raises(ValueError, match=f"no pair for some of 5 workers; {remedy}"):
        next(plan.windows(0, 1, 0, 5))


def test_whole_videos_are_held_back_whatever_the_order_of_the_index() -> None:
    index = an_index(lengths=[10] * 40)
    # Two files a video.
    videos = [f"video{file // 2}" for file in range(40)]
    training, validation = hold_back(index, videos, share=0.1, most=30)

    def seen(table: pa.Table) -> set[str]:
        return {videos[file] for file in table["file"].to_pylist()}

    assert validation.num_rows == 30
    assert len(seen(validation)) == 2
    assert not seen(validation) & seen(training)
    # What isn't validated on isn't trained on either.
    assert training.num_rows == 400 - 40
    shuffled = index.take(np.random.default_rng(0).permutation(index.num_rows))
    held = hold_back(shuffled, videos, share=0.1, most=30)[1]
    assert set(held["pair_id"].to_pylist()) == set(validation["pair_id"].to_pylist())


@pytest.mark.parametrize("lengths", [[200], [200, 200]])
def test_of_few_long_videos_the_end_of_one_is_held_back_with_no_frame_in_both_parts(
    lengths: list[int],
) -> None:
    index = an_index(lengths=lengths)
    training, validation = hold_back(index, [str(file) for file in range(len(lengths))], share=0.05, most=64)
    held, (file,) = round(0.05 * sum(lengths)), set(validation["file"].to_pylist())
    at = [
        8 * group + row
        for group, row in zip(validation["row_group"].to_pylist(), validation["row"].to_pylist(), strict=True)
    ]
    assert sorted(at) == list(range(200 - held, 200))
    # The pair before ends with the frame that the first held-back one begins with.
    assert training.num_rows == index.num_rows - held - 1
    last = max(
        8 * g + r
        for f, g, r in zip(*(training[c].to_pylist() for c in ("file", "row_group", "row")), strict=True)
        if f == file
    )
    assert last == 200 - held - 2


def test_of_few_pairs_that_share_no_frame_none_is_left_out() -> None:
    training, validation = hold_back(an_index(lengths=[3]), ["0"], share=0.05, most=64, share_frames=False)
    assert (training.num_rows, validation.num_rows) == (2, 1)


def test_all_pairs_with_truth_judge_where_all_are_asked_for() -> None:
    index = an_index()
    training, validation = hold_back(index, [str(file) for file in range(5)], share=1.0, most=1000)
    assert (training.num_rows, validation.num_rows) == (0, index.num_rows)


@pytest.mark.parametrize(
    "transformation",
    [
        Challenge(crop=Crop(height=32, width=48)),
        Geometric(chance=1.0, soft=True),
        Colour(chance=1.0),
        SuperpixelNoise(chance=1.0),
        RectangleNoise(chance=1.0),
        CopyPaste(chance=1.0),
    ],
)
def test_a_transformation_gives_the_same_pairs_inside_ray_data_as_bare(
    transformation: Transformation, labelled: PairSet, ray_session: None
) -> None:
    plan = Plan(index=labelled.index(), global_batch=4, seed=5)
    feed = list(batches(labelled, plan, transformation, start=0, stop=2))
    assert len(feed) == 2
    for window in plan.windows(0, 2, 0, 1):
        places = list(zip(window["file"], window["row_group"], window["row"], strict=True))
    for step, batch in enumerate(feed):
        for place, (file, group, row) in enumerate(places[4 * step : 4 * step + 4]):
            stored = labelled.read_group(labelled.files[file], group)[row]
            rng = np.random.default_rng([5, 0, int(stored["pair_id"][:16], 16)])
            bare = transformation(labelled.decode(stored), rng)
            expected = Batch.stack([bare]).known()
            assert batch.known().keys() == expected.keys()
            for name, value in expected.items():
                got = batch.known()[name][place : place + 1]
                torch.testing.assert_close(got, value, rtol=0, atol=0)


def test_a_larger_part_of_the_pairs_has_the_smaller_one_and_more() -> None:
    index = an_index()
    parts = [set(part_of(index, share).column("pair_id").to_pylist()) for share in (0.001, 0.1, 0.5, 1.0)]
    assert [len(part) for part in parts] == [1, *(round(share * index.num_rows) for share in (0.1, 0.5, 1.0))]
    assert parts[0] < parts[1] < parts[2] < parts[3]
