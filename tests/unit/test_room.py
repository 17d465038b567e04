"""How many processes each stage has room for in a cluster, and how far those of labelling may run ahead."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowcore.frame_codec import FrameCodec
from flowcore.video import ClipOptions
from pipelines.labelling_plan import Plan
from pipelines.room import (
    READ_CPUS,
    TEACHER_CPUS,
    WRITE_CPUS,
    LabellingRoom,
    TrainingRoom,
    labelling_room,
    num_nodes,
)

LATER = {"CPU": 64.0, "GPU": 8.0}
GPUS_OF_NOW_OR_LATER = pytest.mark.parametrize(
    ("accelerator", "have"), [("gpu", {}), ("gpu", {"CPU": 16.0, "GPU": 1.0}), ("auto", LATER)]
)
PLAN = Plan(
    run="",
    location="",
    label_set="",
    clips=ClipOptions(size=(500, 1000)),
    codec=FrameCodec(),
    shard_pairs=64,
    row_group_pairs=8,
    is_labelled=True,
)


def room_of(
    have: dict[str, float], *, num_teachers: int | None = None, accelerator: Any = "auto"
) -> LabellingRoom:
    return labelling_room(have, has_teachers=True, num_teachers=num_teachers, accelerator=accelerator)


@given(cpus=st.integers(2, 256), most=st.none() | st.integers(1, 64))
def test_each_stage_has_a_process_and_one_of_each_fits_at_once(cpus: int, most: int | None) -> None:
    have = {"CPU": float(cpus)}
    room = room_of(have, num_teachers=most)
    assert min(room.processes(have).values()) >= 1
    assert READ_CPUS + room.least_teachers * TEACHER_CPUS + WRITE_CPUS <= cpus


@given(cpus=st.integers(2, 256), most=st.integers(1, 64))
def test_there_are_never_more_teachers_than_were_asked_for(cpus: int, most: int) -> None:
    have = {"CPU": float(cpus)}
    assert room_of(have, num_teachers=most).processes(have)["labelling"] <= most


@GPUS_OF_NOW_OR_LATER
def test_fewer_teachers_than_gpus_are_a_limit_too(accelerator: Any, have: dict[str, float]) -> None:
    room = room_of(have, num_teachers=3, accelerator=accelerator)
    assert room.processes(LATER)["labelling"] <= 3 * room.shards_at_once


@GPUS_OF_NOW_OR_LATER
def test_each_gpu_of_now_or_later_has_a_teacher(accelerator: Any, have: dict[str, float]) -> None:
    room = room_of(have, accelerator=accelerator)
    assert room.processes(LATER)["labelling"] >= LATER["GPU"] * room.shards_at_once


@given(cpus=st.integers(2, 256))
def test_a_teacher_on_a_gpu_has_more_shards_under_way_than_one_on_a_cpu(cpus: int) -> None:
    have = {"CPU": float(cpus)}
    assert room_of({**have, "GPU": 1.0}).shards_at_once > room_of(have).shards_at_once


@given(gpus=st.integers(1, 16), most=st.integers(1, 64))
def test_teachers_beyond_the_gpus_share_them_and_all_find_room(gpus: int, most: int) -> None:
    have = {"CPU": 128.0, "GPU": float(gpus)}
    room = room_of(have, num_teachers=most)
    assert room.processes(have)["labelling"] >= most * room.shards_at_once
    # Ray counts in ten-thousandths, and puts a process on one card.
    share = round(10_000 * room.gpus)
    assert gpus * (10_000 // share) >= most
    assert share == 10_000 or most > gpus


@given(cpus=st.integers(2, 32), gpus=st.integers(1, 4), most=st.integers(1, 64))
def test_teachers_that_share_gpus_leave_a_reader_and_a_writer_their_cores(
    cpus: int, gpus: int, most: int
) -> None:
    teachers = room_of({"CPU": float(cpus), "GPU": float(gpus)}, num_teachers=most).teachers or 0
    assert teachers <= gpus or teachers * TEACHER_CPUS + READ_CPUS + WRITE_CPUS <= cpus


def test_cpus_that_an_autoscaler_has_yet_to_bring_are_not_left_out() -> None:
    room = room_of({})
    assert room.processes({"CPU": 64.0})["labelling"] > room.processes({"CPU": 8.0})["labelling"]


def ahead(plan: Plan, have: dict[str, float], accelerator: Any = "auto") -> float | None:
    """The bytes that may wait between the stages."""
    return room_of(have, accelerator=accelerator).ahead(plan.shard_bytes).object_store_memory


def test_a_few_shards_for_each_process_may_wait_where_their_number_is_known() -> None:
    have = {"CPU": 4.0}
    processes = sum(room_of(have).processes(have).values())
    # A shard is of some 32 MB.
    assert 4 * 32e6 <= (ahead(PLAN, have) or 0) / processes <= 20 * 32e6


def test_what_may_wait_grows_with_the_size_of_a_shard() -> None:
    plans = (
        replace(PLAN, clips=ClipOptions(size=(48, 64))),
        PLAN,
        replace(PLAN, codec=FrameCodec(kind="png")),
    )
    small, large, lossless = (ahead(plan, {"CPU": 4.0}) or 0 for plan in plans)
    assert 0 < small < large < lossless


def test_where_nobody_knows_how_many_readers_there_will_be_ray_s_own_limit_holds() -> None:
    assert ahead(PLAN, {}, "gpu") == float("inf")


def training_room_of(workers: int, *, uses_gpus: bool = True) -> TrainingRoom:
    return TrainingRoom(workers=workers, min_workers=None, uses_gpus=uses_gpus, resize_seconds=60.0)


@given(workers=st.integers(1, 64), spare=st.integers(1, 64), nodes=st.integers(1, 9))
def test_a_worker_leaves_validation_to_a_spare_gpu(workers: int, spare: int, nodes: int) -> None:
    assert not training_room_of(workers).validates_itself(gpus=workers + spare, nodes=nodes)


@given(workers=st.integers(1, 64), nodes=st.integers(1, 9), data=st.data())
def test_a_worker_validates_itself_where_the_workers_have_every_gpu(
    workers: int, nodes: int, data: st.DataObject
) -> None:
    gpus = data.draw(st.integers(0, workers))
    assert training_room_of(workers).validates_itself(gpus=gpus, nodes=nodes)


@given(workers=st.integers(1, 64), gpus=st.integers(0, 64), nodes=st.integers(0, 9))
def test_on_cpus_a_task_validates_where_another_machine_may_have_a_core(
    workers: int, gpus: int, nodes: int
) -> None:
    room = training_room_of(workers, uses_gpus=False)
    assert room.validates_itself(gpus=gpus, nodes=nodes) == (nodes == 1)


def test_a_machine_counts_as_one_node_whether_it_is_the_head_or_not() -> None:
    have = {"CPU": 8.0, "node:10.0.0.1": 1.0, "node:__internal_head__": 1.0, "memory": 1e9}
    assert num_nodes(have) == 1
    assert num_nodes({**have, "node:10.0.0.2": 1.0}) == 2
