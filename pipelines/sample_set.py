"""How do samples in files become a pair set? Tasks of Ray write its shards, or this process's threads.

Threads do for one machine: the work is decoding, arithmetic and compression outside Python's lock, and a few
dozen samples take less than Ray and the processes of its tasks do to start.

A shard holds some of the samples. Its name and content follow from the samples alone, it appears whole, and a
shard that is there is left as it is; so a rerun finishes what is missing.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import torch

from flowcore.frame_codec import FrameCodec
from flowcore.samples import Sample, Truth
from pipelines.labels import encode_shard, pair_columns, pair_id
from pipelines.ledger import MANIFEST_FILE, VideoRecord, write_manifest
from pipelines.pair_set import PairSet
from pipelines.progress import Progress
from pipelines.room import num_cores
from pipelines.set_description import SetDescription, describe_set
from pipelines.shard_files import shard_at, shard_name
from pipelines.storage import Folder

Result = TypeVar("Result")

SAMPLE_CODEC = FrameCodec(kind="png")
"""Lossless, so that a validation gives the errors that an evaluation gives."""
_SHARD_PAIRS = 16
_ROW_GROUP_PAIRS = 4


def sample_set(
    location: str,
    description: SetDescription,
    samples: Sequence[Sample],
    row: Callable[[Sample, str], pa.Table],
    title: str,
    *,
    on_cluster: bool,
) -> PairSet:
    """The pair set of these samples, written as `in_parts` works where it isn't there.

    row: what is stored of a sample, given the set's digest. Raises as `describe_set` and what `row` raises.
    """
    describe_set(location, description)
    if Folder(location).size(MANIFEST_FILE) is None:
        write = partial(_write_shard, location, description.digest, row)
        entries = in_parts(write, samples, title, on_cluster=on_cluster)
        write_manifest(location, description.digest, entries)
    return PairSet.open(location)


def in_parts(
    work: Callable[[int, Sequence[Sample]], Result],
    samples: Sequence[Sample],
    title: str,
    *,
    on_cluster: bool,
) -> list[Result]:
    """What tasks of Ray, which has to be running, or else threads make of the samples, some at a time, in
    their order; a bar shows how far they are.

    work: takes the number of a part and its samples.
    """
    parts = [samples[at : at + _SHARD_PAIRS] for at in range(0, len(samples), _SHARD_PAIRS)]
    results: dict[int, Result] = {}
    with Progress(title, "pair", len(samples)) as progress:
        for number, result in (_by_ray if on_cluster else _by_threads)(work, parts):
            results[number] = result
            progress.advance(len(parts[number]))
    return [results[number] for number in range(len(parts))]


def _by_ray(
    work: Callable[[int, Sequence[Sample]], Result], parts: Sequence[Sequence[Sample]]
) -> Iterator[tuple[int, Result]]:
    """The number of each part and what is made of it, as they are done."""
    import ray

    task: Any = ray.remote(lambda number, part: work(number, part))
    left = [task.remote(number, part) for number, part in enumerate(parts)]
    numbers = {each: number for number, each in enumerate(left)}
    while left:
        done, left = ray.wait(left)
        for each in done:
            yield numbers[each], ray.get(each)


def _by_threads(
    work: Callable[[int, Sequence[Sample]], Result], parts: Sequence[Sequence[Sample]]
) -> Iterator[tuple[int, Result]]:
    """As `_by_ray`."""
    # Each thread is one core's: torch's own threads would wait for each other on cores that are taken.
    threads_before = torch.get_num_threads()
    threads = ThreadPoolExecutor(num_cores(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        numbers: dict[Future[Result], int] = {
            threads.submit(work, number, part): number for number, part in enumerate(parts)
        }
        for done in as_completed(numbers):
            yield numbers[done], done.result()
    finally:
        # After an error or Ctrl-C what hasn't begun is left.
        threads.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)


def _write_shard(
    location: str,
    label_set: str,
    row: Callable[[Sample, str], pa.Table],
    number: int,
    samples: Sequence[Sample],
) -> VideoRecord:
    folder = f"{number:06d}"
    name = shard_name(folder, 0)
    size = shard_at(location, name)
    if size is None:
        rows = pa.concat_tables([row(sample, label_set) for sample in samples])
        Folder(location).write(name, encode_shard(rows, _ROW_GROUP_PAIRS))
        size = shard_at(location, name)
        assert size is not None
    return VideoRecord(
        video=samples[0].group,
        outcome="done",
        folder=folder,
        pairs=size.pairs,
        shards=1,
        bytes=size.bytes,
        label_set=label_set,
    )


def frame_pair(sample: Sample, truth: Truth, label_set: str, name: str | None = None) -> pa.Table:
    """The columns of PAIR_SCHEMA for a sample; its `pair_id` follows from its name if none is given."""
    height, width = truth.valid.shape
    digest = hashlib.blake2b(f"{sample.group} {sample.name}".encode(), digest_size=16).hexdigest()
    pair = {
        "pair_id": name or pair_id(digest, (0, 1), 1, height, width),
        "video": f"{sample.group} {sample.name}",
        "frame": 0,
        "stride": 1,
        "timestamp": float("nan"),
        "height": height,
        "width": width,
        "image1": SAMPLE_CODEC.encode(truth.image1),
        "image2": SAMPLE_CODEC.encode(truth.image2),
        "label_set": label_set,
    }
    return pair_columns([pair])
