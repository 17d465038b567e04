"""How does a benchmark's truth become a pair set? To be learnt from in fine-tuning, which is fed like every
other training, and to validate on.

A shard holds some of the benchmark's samples; its name and content follow from the samples alone, it appears
whole, and it is left as it is where it is there, so that a rerun does what is left.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from tqdm import tqdm

from flowcore.benchmarks import Sample, find_samples, load, samples_digest
from pipelines.clips import FrameCodec
from pipelines.labels import (
    MANIFEST_FILE,
    PAIR_SCHEMA,
    TRUTH_SCHEMA,
    PairSet,
    SetDescription,
    VideoEntry,
    describe_set,
    encode_shard,
    masks,
    pair_id,
    quantized,
    shard_at,
    shard_name,
    write_manifest,
)
from pipelines.locations import Folder, join, shared_folder

_SHARD_PAIRS = 64
_ROW_GROUP_PAIRS = 4


def truth_location(text: str, option: str) -> tuple[str, Path]:
    """(benchmark, its folder) of `<benchmark>:<folder>`; ValueError, with the option's name, for anything
    else."""
    benchmark, mark, root = text.partition(":")
    if not mark:
        raise ValueError(f"{option} {text!r} must be <benchmark>:<folder>, such as kitti2015:/data/kitti2015")
    return benchmark, shared_folder(root, option)


def truth_set(benchmark: str, root: Path, run_root: str, *, to_learn_from: bool) -> PairSet:
    """The pair set of a benchmark's samples, those to learn from or all that are judged, in a folder of its
    own in `run_root`.

    It is written where it isn't there; Ray has to be running.

    Raises as `flowcore.benchmarks.find_samples`, and ValueError for a sample that can't be read.
    """
    samples = find_samples(benchmark, root, to_learn_from=to_learn_from)
    description = SetDescription(
        made_of={"truth": benchmark, "samples": samples_digest(samples)}, provenance={"root": str(root)}
    )
    location = join(run_root, f"truth-{description.digest}")
    if Folder(location).size(MANIFEST_FILE) is None:
        describe_set(location, description)
        parts = [samples[at : at + _SHARD_PAIRS] for at in range(0, len(samples), _SHARD_PAIRS)]
        write = ray.remote(_write_shard)
        left = [
            write.remote(location, f"{number:06d}", part, description.digest)
            for number, part in enumerate(parts)
        ]
        entries = []
        with tqdm(desc="truth", total=len(samples), unit="pair", dynamic_ncols=True) as bar:
            while left:
                done, left = ray.wait(left)
                entries += ray.get(done)
                bar.update(entries[-1].pairs)
        write_manifest(location, description.digest, entries)
    return PairSet.open(location)


def _write_shard(location: str, folder: str, samples: Sequence[Sample], label_set: str) -> VideoEntry:
    name = shard_name(folder, 0)
    size = shard_at(location, name)
    if size is None:
        rows = pa.concat_tables([_row(sample, label_set) for sample in samples])
        Folder(location).write(name, encode_shard(rows, _ROW_GROUP_PAIRS))
        size = shard_at(location, name)
        assert size is not None
    return VideoEntry(video=samples[0].group, folder=folder, pairs=size.pairs, shards=1, bytes=size.bytes)


def _row(sample: Sample, label_set: str) -> pa.Table:
    truth = load(sample)
    height, width = truth.valid.shape
    codec = FrameCodec()
    digest = hashlib.blake2b(f"{sample.group} {sample.name}".encode(), digest_size=16).hexdigest()
    pair = {
        "pair_id": pair_id(digest, (0, 1), 1, height, width),
        "video": f"{sample.group} {sample.name}",
        "frame": 0,
        "stride": 1,
        "timestamp": float("nan"),
        "height": height,
        "width": width,
        "image1": codec.encode(truth.image1),
        "image2": codec.encode(truth.image2),
        "label_set": label_set,
    }
    flow = torch.from_numpy(np.where(truth.valid, truth.flow, 0).astype(np.float32))
    known = torch.from_numpy(truth.valid)[None, None]
    columns = [quantized(flow[None]), pa.array([1], pa.int32()), masks(known)]
    table = pa.Table.from_pylist([pair], schema=PAIR_SCHEMA)
    for field, column in zip(TRUTH_SCHEMA, columns, strict=True):
        table = table.append_column(field, column)
    return table
