"""How does other people's training code read a label set? By number, as a data set of torch.

    loader = DataLoader(LabelDataset("runs/labels", where="occluded < 0.3"), num_workers=4, shuffle=True)

A pair is read alone, and its row group with it: Parquet has nothing smaller. The last row groups are kept, so
that neighbours, which share one, cost a read together. Training with our own stages goes through
`pipelines.feed`, which plans what is read.
"""

import operator
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy import ndarray
from torch import Tensor
from torch.utils.data import Dataset

from flowcore.hallucination import Transformation, pair_generator
from pipelines.filters import PairFilter
from pipelines.label_rows import decode_occlusion, decode_uncertainty
from pipelines.pair_set import PairSet
from pipelines.storage import absolute

_OCCLUSIONS = ("occ_fw", "occ_bw")
_UNCERTAINTIES = ("uncertainty_fw", "uncertainty_bw")


class LabelDataset(Dataset[dict[str, Tensor]]):
    """The pairs of a label set, in the order of its index.

    A pair is a dictionary of what is known of it, h and w being its own height and width:

    - `image1`, `image2`: [3, h, w], RGB in [0, 1], or bytes if `dtype` is torch.uint8
    - `flow_fw`, `flow_bw`: [2, h, w] float32, [u, v] in pixels
    - `occ_fw`, `occ_bw`: [1, h, w] bool, True = occluded
    - `confidence_fw`, `confidence_bw`: [1, h, w] float32, how far to trust the flow, in [0, 1]
    - `uncertainty_fw`, `uncertainty_bw`: [1, h, w] float32, by how many pixels the flow is expected to be
      off, of labels by teachers that predict it

    A challenge changes all of them, and adds the other fields of `flowcore.pairs.Pair` that it uses. It takes
    occlusion and uncertainty away: what is hidden in a crop isn't what the teacher found hidden in the frame.

    It can be sent to other processes, which read for themselves. Where the set is on object storage, give
    the DataLoader multiprocessing_context="spawn": the storage's client doesn't survive a fork.
    """

    def __init__(
        self,
        labels: str | Path | PairSet,
        *,
        where: str | None = None,
        challenge: Transformation | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        cached_groups: int = 4,
    ) -> None:
        """labels: a folder, a URI or a set that is open; sets of pairs without labels and of true flow are
        read too. where: which pairs to keep, as `--where` has it. challenge: what is done to each pair, such
        as `flowcore.hallucination.Challenge`; the same for the same seed, epoch and pair, whatever order the
        pairs are read in, and as in a training of that seed. cached_groups: row groups that each process
        keeps in memory.

        Raises as `PairSet.open` and `PairSet.index`. ValueError for another dtype, and for a `where` that is
        none.
        """
        if dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"dtype {dtype} of the images must be torch.float32 or torch.uint8")
        if cached_groups < 1:
            raise ValueError(f"cached_groups {cached_groups} must be at least 1")
        pairs = labels if isinstance(labels, PairSet) else PairSet.open(absolute(str(labels), "labels"))
        self.pairs = pairs if where is None else replace(pairs, where=PairFilter(where))
        self.challenge = challenge
        self.seed = seed
        self.dtype = dtype
        self.index: pa.Table = self.pairs.index().combine_chunks()
        """A row a pair, in their order: `pair_id`, `height` and `width`, and where it is."""
        self._cached_groups = cached_groups
        # Shared with the processes of a DataLoader, which may have begun before the epoch does.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._group = lru_cache(cached_groups)(self.pairs.read_group)

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        # As a list has it: from the end if it is negative, IndexError where there is none.
        (place,) = self.index.slice(range(len(self))[operator.index(index)], 1).to_pylist()
        row = self._group(self.pairs.files[place["file"]], place["row_group"])[place["row"]]
        pair = self.pairs.decode(row)
        if self.challenge is not None:
            pair = self.challenge(pair, pair_generator(self.seed, self.epoch, row["pair_id"]))
        found = {name: self._tensor(name, value) for name, value in pair.known().items()}
        return found if self.challenge is not None else found | _of_whole_frames(row)

    @property
    def epoch(self) -> int:
        """Of the challenge's randomness, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch, here and in the processes of every DataLoader over this data set: each pair gets
        another challenge. To be called before the loader is asked for its first batch."""
        self._epoch.fill_(epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_group"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._group = lru_cache(self._cached_groups)(self.pairs.read_group)

    def _tensor(self, name: str, value: ndarray) -> Tensor:
        if name.startswith(("image", "scene")):
            image = _copied(value.transpose(2, 0, 1))
            return image if self.dtype == torch.uint8 else image.float() / 255
        return _copied(value if name.startswith("flow") else value[None])


def _of_whole_frames(row: Mapping[str, Any]) -> dict[str, Tensor]:
    decoders = dict.fromkeys(_OCCLUSIONS, decode_occlusion) | dict.fromkeys(
        _UNCERTAINTIES, decode_uncertainty
    )
    return {name: _copied(decode(row, name)[None]) for name, decode in decoders.items() if name in row}


def _copied(values: ndarray) -> Tensor:
    """A tensor of its own: the row stays in memory for the next one."""
    return torch.from_numpy(np.array(values, order="C"))
