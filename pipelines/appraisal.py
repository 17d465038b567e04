"""Are the labels of a set worth learning from? The medians of its quality columns, beside what is usual.

Usual is what labels of one teacher have where the truth is known, in docs/results/calibration: DIS and a
network on real and on rendered pairs. Motion depends on the videos, and the spread on which teachers are
asked, so no range is usual there.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from numpy import ndarray

from pipelines.invocation import typed
from pipelines.pair_set import PairSet

USUAL = {
    "occluded": (0.014, 0.43),
    "forward_backward": (0.084, 0.92),
    "photometric": (4.1, 10.8),
}
"""From the lowest 10th to the highest 90th percentile of the four sets' pairs."""
_MOST_OCCLUDED = 0.5
"""Share of a pair's pixels. 5 % of the measured pairs have more."""
_LEAST_MOTION = 0.5
"""Pixels of `flow_p99`. Every measured pair has more, and networks with fresh weights give less."""
_MOST_DISAGREEMENT = 1.0
"""Pixels of `forward_backward`. 3 % of the measured pairs have more."""
_FILES_LOOKED_AT = 256
"""Of a set of a million files, not every one."""


@dataclass(frozen=True, kw_only=True)
class Median:
    """Of a quality column."""

    value: float
    """Over the pairs that have one; nan if none has."""
    unknown: int
    """Pairs without a value."""


@dataclass(frozen=True, kw_only=True)
class Appraisal:
    """What a label set is like."""

    location: str
    pairs: int
    """That were looked at."""
    files: int
    """That hold them."""
    all_files: int
    """Of the set."""
    medians: Mapping[str, Median]
    """By quality column, those alone that the set has."""

    @classmethod
    def of(cls, pairs: PairSet) -> "Appraisal":
        """Reads the small columns of a few hundred files at most, all over the set."""
        files = pairs.files_looked_at(_FILES_LOOKED_AT)
        index = pairs.index_of(files, pairs.quality_columns)
        return cls(
            location=pairs.location,
            pairs=len(index),
            files=len(files),
            all_files=len(pairs.files),
            medians=medians(index.select(pairs.quality_columns)),
        )

    def is_more_than_usual(self, column: str) -> bool:
        return column in USUAL and self.medians[column].value > USUAL[column][1]

    def warnings(self) -> list[str]:
        """What makes the labels of at least half of the pairs useless, each with a remedy."""
        labels = shlex.quote(self.location)
        look = f"look at them with `{typed('gallery')} --labels {labels} --output gallery.html`"
        found = []
        occluded = self.medians["occluded"].value
        if occluded > _MOST_OCCLUDED:
            found.append(
                f"half of the pairs have {occluded:.0%} or more of their pixels occluded, which teach a "
                f"student little: {look}, and label into a new folder by another teacher, such as "
                "opencv:dis_fine, or frames that are closer, by a smaller --clips.stride"
            )
        motion = self.medians["flow_p99"].value
        if motion < _LEAST_MOTION:
            found.append(
                f"hardly anything moves: in half of the pairs 99 % of the flow is at most {motion:.2f} px, "
                f"as from a teacher that has learnt nothing; {look}. If the videos do move, train the "
                "teacher for longer or take another one; if they are calm, raise --clips.stride"
            )
        disagreement = self.medians["forward_backward"].value
        if disagreement > _MOST_DISAGREEMENT:
            found.append(
                f"the flows disagree: in half of the pairs there and back miss each other by "
                f"{disagreement:.2f} px or more, even where the check finds nothing occluded; {look}, take "
                "another teacher, or learn from the better pairs alone (distill --where "
                f"'forward_backward < {_MOST_DISAGREEMENT:g}')"
            )
        return found


def medians(columns: pa.Table) -> dict[str, Median]:
    """Of each column of numbers, over the values that are finite."""
    return {name: _median(columns[name].to_numpy()) for name in columns.column_names}


def _median(values: Float[ndarray, "pairs"]) -> Median:
    known = values[np.isfinite(values)]
    value = float(np.median(known)) if known.size else float("nan")
    return Median(value=value, unknown=values.size - known.size)
