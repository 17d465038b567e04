"""How do samples in files become a pair set? Tasks of Ray write its shards.

A shard holds some of the samples. Its name and content follow from the samples alone, it appears whole, and a
shard that is there is left as it is; so a rerun finishes what is missing.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from flowcore.frame_codec import FrameCodec
from flowcore.samples import Sample, Truth
from pipelines.labels import encode_shard, pair_columns, pair_id
from pipelines.ledger import MANIFEST_FILE, VideoRecord, write_manifest
from pipelines.pair_set import PairSet
from pipelines.progress import bar
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
) -> PairSet:
    """The pair set of these samples, written by tasks of Ray where it isn't there.

    row: what is stored of a sample, given the set's digest. Raises as `describe_set` and what `row` raises.
    """
    describe_set(location, description)
    if Folder(location).size(MANIFEST_FILE) is None:
        entries = in_parts(partial(_write_shard, location, description.digest, row), samples, title)
        write_manifest(location, description.digest, entries)
    return PairSet.open(location)


def in_parts(
    work: Callable[[int, Sequence[Sample]], Result], samples: Sequence[Sample], title: str
) -> list[Result]:
    """What tasks of Ray make of the samples, some at a time, in their order; a bar shows how far they are.

    work: takes the number of a part and its samples.
    """
    import ray

    task: Any = ray.remote(lambda number, part: work(number, part))
    parts = [samples[at : at + _SHARD_PAIRS] for at in range(0, len(samples), _SHARD_PAIRS)]
    results = left = [task.remote(number, part) for number, part in enumerate(parts)]
    sizes = dict(zip(results, map(len, parts), strict=True))
    with bar(title, "pair", len(samples)) as drawn:
        while left:
            done, left = ray.wait(left)
            ray.get(done)
            drawn.update(sum(sizes[each] for each in done))
    return ray.get(results)


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
