"""How do the pairs of a label set rank?

Every pair of a label set has quality columns, numbers that grade its label. They are small, so all pairs can
be graded without reading a flow or a picture.
"""

import hashlib
import heapq
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int
from numpy import ndarray

from pipelines.invocation import typed
from pipelines.pair_set import PairSet


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A quality column."""

    meaning: str
    unit: str
    """% stands for a column that holds fractions."""

    def text(self, value: float) -> str:
        """The value with its unit; - for a value that isn't known."""
        if not np.isfinite(value):
            return "-"
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{round(value, 3):.3g} {self.unit}".rstrip()


QUALITIES = {
    "occluded": Quality(meaning="share of pixels that are occluded", unit="%"),
    "forward_backward": Quality(
        meaning="by how much the two flows disagree, over the visible pixels", unit="px"
    ),
    "photometric": Quality(
        meaning="census distance (0 to 48) after warping, over the visible pixels", unit=""
    ),
    "flow_p50": Quality(meaning="length of the flow, median of the pixels", unit="px"),
    "flow_p99": Quality(meaning="length of the flow, 99th percentile of the pixels", unit="px"),
    "flow_max": Quality(meaning="length of the flow, fastest pixel", unit="px"),
    "spread": Quality(meaning="by how much the teachers disagree", unit="px"),
    "uncertainty": Quality(meaning="by how much the teachers expect the flow to be off", unit="px"),
    "continued": Quality(meaning="share of the flow that continues the motion from a third frame", unit="%"),
    "misfit": Quality(meaning="by how much continued motion misses the flow that was found", unit="px"),
}


@dataclass(frozen=True, kw_only=True)
class GalleryOptions:
    """Which pairs are shown."""

    count: int = 12
    """Pairs of each kind: worst, best and random. Raise it to see more of a large set; the page grows with
    it."""
    order_by: str = "forward_backward"
    """Quality column that ranks the pairs; large values are bad. Take the column that you mean to filter by.
    All labels have occluded, forward_backward, photometric, flow_p50, flow_p99 and flow_max. A mean of
    several teachers has spread; labels of teachers that predict it have uncertainty; labels from three frames
    have continued and misfit."""
    seed: int = 0
    """Chooses the random pairs. The same seed chooses the same pairs in every set that has them. Change it to
    see others."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count {self.count} must be at least 1 pair of each kind")


@dataclass(frozen=True, kw_only=True, eq=False)
class GradedSet:
    """A finished label set and the quality of each of its pairs."""

    pairs: PairSet
    index: pa.Table
    """As `PairSet.index`, with the quality columns."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What is known of the run that made the set."""

    @classmethod
    def read(cls, pairs: PairSet, origin: Mapping[str, str] | None = None) -> Self:
        """Reads the small columns of all files; ValueError where there are no labels or no pairs."""
        if not pairs.has_labels:
            raise ValueError(
                f"{pairs.location} holds frame pairs without pseudo-labels; label these videos with "
                f"`{typed('pseudolabel')}` and give the folder of its --labels"
            )
        index = pairs.index(pairs.quality_columns)
        if len(index) == 0:
            raise ValueError(
                f"{pairs.location} holds no pair; label other videos with `{typed('pseudolabel')}`"
            )
        return cls(pairs=pairs, index=index, origin=origin or {})

    def quality(self, column: str) -> Float[ndarray, "pairs"]:
        """A quality column by position in the index; nan where no pixel could be judged. ValueError for an
        unknown one."""
        if column not in self.pairs.quality_columns:
            raise ValueError(
                f"order_by {column!r} is no quality column of {self.pairs.location}; it has "
                f"{', '.join(self.pairs.quality_columns)}"
            )
        return cast(ndarray, self.index[column].to_numpy().astype(np.float64))

    def means(self) -> dict[str, float]:
        """The mean of each quality column, over the pairs that have a value; nan if none has."""
        return {column: finite_mean(self.quality(column)) for column in self.pairs.quality_columns}

    def means_by_folder(self, column: str) -> dict[str, float]:
        """The mean of a quality column for each video folder with a pair that has a value."""
        values = self.quality(column)
        known = np.isfinite(values)
        folders, which = np.unique(np.asarray(self.folders())[known], return_inverse=True)
        means = np.bincount(which, values[known]) / np.bincount(which)
        return dict(zip(folders.tolist(), means.tolist(), strict=True))

    def row(self, position: int) -> dict[str, Any]:
        """All columns of the pair at a position of the index."""
        return self.pairs.read(self.index.slice(position, 1).to_pylist()[0])

    def positions_of(self, pair_ids: pa.ChunkedArray) -> Int[ndarray, "pairs"]:
        """Where in the index these pairs are; -1 where they aren't."""
        found = pc.index_in(pair_ids, value_set=self.index["pair_id"].combine_chunks())
        return cast(ndarray, found.fill_null(-1).to_numpy())

    def folders(self) -> list[str]:
        """The folder of each pair's video."""
        by_file = [posixpath.dirname(file) for file in self.pairs.files]
        return [by_file[file] for file in self.index["file"].to_numpy()]

    def short_name(self, video: str) -> str:
        """The video's name within the collection that was labelled."""
        collection = self.pairs.description.provenance.get("videos", "")
        return video.removeprefix(collection).lstrip("/") or video


def finite_mean(values: Float[ndarray, "pairs"]) -> float:
    """The mean of the finite values; nan if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Positions in the index of the pairs to show, each list in the order of showing."""

    worst: Sequence[int]
    best: Sequence[int]
    random: Sequence[int]


def choose(graded: GradedSet, options: GalleryOptions) -> Choice:
    """The pairs with the largest and the smallest values of a quality column, and some at random.

    A pair without a value can only be among the random ones. Those are the pairs whose hashes with the seed
    are smallest, so that other pairs in the set don't change which are chosen.
    """
    values = graded.quality(options.order_by)
    known = np.flatnonzero(np.isfinite(values))
    ranked = known[np.argsort(values[known], kind="stable")]
    ids = graded.index["pair_id"].to_pylist()

    def drawn(position: int) -> bytes:
        return hashlib.blake2b(f"{options.seed} {ids[position]}".encode(), digest_size=8).digest()

    return Choice(
        worst=ranked[::-1][: options.count].tolist(),
        best=ranked[: options.count].tolist(),
        random=heapq.nsmallest(options.count, range(len(ids)), key=drawn),
    )
