"""How do stored pairs become training batches? In a planned order, the same on any cluster.

The order is a function of (seed, epoch) alone. An epoch is a permutation of the row groups, flattened into
rows and cut into 32 streams or more, from which it takes a row in turn; epoch follows epoch, and batches are
cut from that. So each pair is seen once an epoch, and pairs in a row are of 32 row groups from anywhere in
the set. A row group is read in one piece or two. Any number of workers share the same global batches: each
takes its share of the places. The position of a training is one number, its step: to resume inside an epoch,
start the plan at that step with as many workers as there are then.

Ray Data reads, decodes and transforms windows of many batches as tasks on any node's CPUs, in order, ahead of
the training step. A task hands over a few batches at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data
import torch
from jaxtyping import Int
from numpy import ndarray

from flowcore.hallucination import Transformation, pair_generator
from flowcore.pairs import Batch, stacked_arrays
from pipelines.cluster import feed_in_order
from pipelines.pair_set import PairSet

_STREAMS = 32
"""Row groups that pairs in a row come from, at least."""
_BLOCK_STEPS = 16
"""Steps in a block: enough work to make Ray's cost of a block, about 40 ms, negligible."""
_WINDOW_BLOCKS = 4
"""Blocks in a window: of each stream enough rows to make reading its row groups worth it."""
_ROUND_WINDOWS = 128
"""Windows in one execution of Ray Data. Starting one costs about a second; memory holds its plan."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which pair has which place in which batch.

    `index` is that of a PairSet, in any fixed order, without the pairs that are held back.
    """

    index: pa.Table
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.index.num_rows < self.global_batch:
            raise ValueError(
                f"{self.index.num_rows} pairs don't fill one global batch of {self.global_batch}; "
                "add videos or lower --training.global-batch"
            )

    def digest(self) -> str:
        """Digest of what decides which pair has which place."""
        digest = hashlib.blake2b(f"{self.global_batch} {self.seed}".encode(), digest_size=16)
        for part in self.index.select(["pair_id"]).to_batches(max_chunksize=65_536):
            digest.update("".join(part.column(0).to_pylist()).encode())
        return digest.hexdigest()

    def epoch(self, epoch: int) -> Int[ndarray, "pairs"]:
        """The rows of the index in the order of the epoch, each once."""
        rng = np.random.default_rng([self.seed, epoch])
        # a row group is named by its file and its number; its rows stay neighbours, in a random order
        file, row_group = (self.index[name].to_numpy().astype(np.int64) for name in ("file", "row_group"))
        _, group = np.unique(file * (int(row_group.max()) + 1) + row_group, return_inverse=True)
        rank_of_group = rng.permutation(int(group.max()) + 1)
        order = np.lexsort((rng.random(len(group)), rank_of_group[group]))
        # the streams side by side; the last ones may end a row earlier
        streams = max(_STREAMS, self.global_batch)
        lengths = [len(stream) for stream in np.array_split(order, streams)]
        turn = np.concatenate([np.arange(length) for length in lengths])
        return order[np.lexsort((np.repeat(np.arange(streams), lengths), turn))]

    def pair_ids(self, step: int) -> list[str]:
        """The pairs of a step's global batch."""
        rows = next(self._batches(step, step + 1))[1]
        return cast(list[str], self.index["pair_id"].take(rows[0]).to_pylist())

    def places(self, rank: int, world_size: int) -> range:
        """The places of worker `rank` in a global batch; workers differ by at most one place. ValueError if
        a worker has none."""
        if self.global_batch < world_size:
            raise ValueError(
                f"global batch {self.global_batch} has no pair for some of {world_size} workers; raise "
                "--training.global-batch or lower --training.workers"
            )
        begin, end = (self.global_batch * each // world_size for each in (rank, rank + 1))
        return range(begin, end)

    def windows(self, start: int, stop: int, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
        """What worker `rank` reads for the steps from `start` to before `stop`, in windows of many steps;
        raises as `places`."""
        mine = self.places(rank, world_size)
        for epochs, rows in self._batches(start, stop):
            taken = self.index.take(rows[:, mine.start : mine.stop].reshape(-1))
            yield {
                "epoch": epochs[:, mine.start : mine.stop].reshape(-1).tolist(),
                "seed": self.seed,
                "file": taken["file"].to_pylist(),
                "row_group": taken["row_group"].to_pylist(),
                "row": taken["row"].to_pylist(),
            }

    def _batches(
        self, start: int, stop: int
    ) -> Iterator[tuple[Int[ndarray, "steps places"], Int[ndarray, "steps places"]]]:
        """(the epoch, the row of the index) of each place, for a window of steps at a time."""
        pairs = self.index.num_rows
        orders: dict[int, ndarray] = {}
        for first in range(start, stop, _WINDOW_BLOCKS * _BLOCK_STEPS):
            last = min(first + _WINDOW_BLOCKS * _BLOCK_STEPS, stop)
            epochs, at = np.divmod(np.arange(first * self.global_batch, last * self.global_batch), pairs)
            needed = range(int(epochs[0]), int(epochs[-1]) + 1)
            orders = {epoch: orders[epoch] if epoch in orders else self.epoch(epoch) for epoch in needed}
            rows = np.concatenate([orders[epoch][at[epochs == epoch]] for epoch in needed])
            yield epochs.reshape(-1, self.global_batch), rows.reshape(-1, self.global_batch)


@dataclass(frozen=True, kw_only=True)
class _WindowReader:
    """Reads a window's rows, each row group once, and transforms each pair with randomness of its own."""

    pairs: PairSet
    transformation: Transformation
    block: int
    """Pairs that are handed over at once."""

    def __call__(self, window: dict[str, ndarray]) -> Iterator[dict[str, ndarray]]:
        # Ray Data hands over a batch of one window
        parts = {key: value[0] for key, value in window.items()}
        places = list(zip(parts["epoch"], parts["file"], parts["row_group"], parts["row"], strict=True))
        left = Counter((file, group) for _, file, group, _ in places)
        groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for first in range(0, len(places), self.block):
            pairs = []
            for epoch, file, group, row in places[first : first + self.block]:
                if (file, group) not in groups:
                    groups[file, group] = self.pairs.read_group(self.pairs.files[int(file)], int(group))
                stored = groups[file, group][int(row)]
                left[file, group] -= 1
                if not left[file, group]:
                    del groups[file, group]
                rng = pair_generator(int(parts["seed"]), int(epoch), stored["pair_id"])
                pairs.append(self.transformation(self.pairs.decode(stored), rng))
            yield stacked_arrays(pairs)


def batches(
    pairs: PairSet,
    plan: Plan,
    transformation: Transformation,
    *,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    readers: int = 2,
    reader_cpus: float = 1.0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """This worker's share of the global batches of the steps from `start` to before `stop`, one Batch a
    step. reader_cpus: what each reading task asks of Ray."""
    share = len(plan.places(rank, world_size))
    windows = plan.windows(start, stop, rank, world_size)
    feed_in_order()
    while round_ := list(islice(windows, _ROUND_WINDOWS)):
        dataset = ray.data.from_items(round_, override_num_blocks=len(round_)).map_batches(
            _WindowReader(pairs=pairs, transformation=transformation, block=_BLOCK_STEPS * share),
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(size=readers),
            num_cpus=reader_cpus,
        )
        yield from _on_device(
            dataset.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2), device
        )


def _on_device(arrays: Iterable[Mapping[str, ndarray]], device: torch.device | None) -> Iterator[Batch]:
    """The batches of `stacked_arrays`; to a GPU each is copied while the one before is worked on."""
    if device is None or device.type != "cuda":
        yield from (Batch.of_arrays(each, device) for each in arrays)
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for each in chain(arrays, [None]):
        arriving = None
        if each is not None:
            with torch.cuda.stream(stream):
                arriving = Batch.of_arrays(each, device), stream.record_event()
        if ahead is not None:
            batch, has_arrived = ahead
            current = torch.cuda.current_stream(device)
            current.wait_event(has_arrived)
            for value in batch.known().values():
                value.record_stream(current)
            yield batch
        ahead = arriving
