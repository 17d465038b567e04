"""How does the truth of a data set become a pair set, to fine-tune or to validate on?"""

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from flowcore.datasets import find_samples
from flowcore.samples import Sample, load, samples_digest
from pipelines.labels import beside, truth_columns
from pipelines.pair_set import PairSet
from pipelines.sample_set import SAMPLE_CODEC, frame_pair, sample_set
from pipelines.set_description import SetDescription
from pipelines.storage import join


def truth_set(name: str, root: Path, run_root: str, *, to_learn_from: bool) -> PairSet:
    """The pair set of a data set's samples, those to learn from or all that are judged, in a folder of its
    own in `run_root`. It is written where it isn't there; Ray has to be running.

    Raises as `flowcore.datasets.find_samples`, and ValueError for a sample that can't be read.
    """
    samples = find_samples(name, root, to_learn_from=to_learn_from)
    description = SetDescription(
        kind="truth",
        made_of={"truth": name, "samples": samples_digest(samples), "codec": asdict(SAMPLE_CODEC)},
        provenance={"root": str(root)},
    )
    location = join(run_root, f"truth-{description.digest}")
    return sample_set(location, description, samples, _row, "truth", on_cluster=True)


def _row(sample: Sample, label_set: str) -> pa.Table:
    truth = load(sample)
    return beside(frame_pair(sample, truth, label_set), truth_columns(truth.flow, truth.valid))
