"""Which pairs of a set are trained on, which are validated on?"""

import hashlib
from collections.abc import Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from numpy import ndarray


def by_pair_id(index: pa.Table) -> Int[ndarray, "pairs"]:
    """The index's rows in an order that depends on nothing but the pairs."""
    return cast(ndarray, pc.sort_indices(index["pair_id"]).to_numpy().astype(np.int64))


def hold_back(
    index: pa.Table, videos: Sequence[str], share: float, most: int, *, share_frames: bool = True
) -> tuple[pa.Table, pa.Table]:
    """(pairs to train on, pairs to validate on): whole videos are held back, so that no frame is in both.

    videos: the video of each file of the index. They are taken in the order of a digest until they have the
    share of the pairs; of theirs the `most` lowest pair ids, which are digests, are validated on. A video
    with more than three times the share is not held back whole. Where all are that long, the last pairs of
    one are held back, and the pair before them is left out where neighbours `share_frames`. At least one pair
    is held back.
    """
    wanted = max(1, int(share * index.num_rows))
    of_file = np.array(
        [int(hashlib.blake2b(each.encode(), digest_size=7).hexdigest(), 16) for each in videos]
    )
    video = of_file[index["file"].to_numpy()]
    names, sizes = np.unique(video, return_counts=True)
    is_held = np.zeros(index.num_rows, bool)
    if len(names) > 1:
        for name, size in zip(names, sizes, strict=True):
            if size <= max(1, 3 * wanted) and is_held.sum() < wanted:
                is_held |= video == name
    is_left_out = np.zeros(index.num_rows, bool)
    if not is_held.any():
        (rows,) = np.nonzero(video == names[0])
        last = rows[-min(wanted, len(rows)) :]
        is_held[last] = True
        is_left_out[rows[: -len(last)][-1:]] = share_frames
    order = by_pair_id(index)
    validation = np.sort(order[is_held[order]][:most])
    return index.filter(pa.array(~is_held & ~is_left_out)), index.take(validation)


def part_of(index: pa.Table, share: float) -> pa.Table:
    """A share of the pairs, at least one: those of the highest pair ids, so that a larger share has the
    smaller one's pairs and more."""
    kept = max(1, round(share * index.num_rows))
    if kept == index.num_rows:
        return index
    order = by_pair_id(index)
    return index.take(np.sort(order[len(order) - kept :]))
