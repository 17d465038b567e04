"""Writes a label set as flow files, for tools that don't read Parquet.

    python jobs/export_labels.py --labels my_labels --output my_files --layout chairs2

Each layout is that of a known data set: chairs2 (FlyingChairs2: .flo forward and backward, occlusion,
frames), chairs2-flo5 (the same with Spring's .flo5) and kitti2015 (16-bit PNG, to 1/64 px, forward; what
flow_noc/ lacks is occluded). evaluate and finetune read them as chairs2 and kitti2015, and import_labels
makes chairs2 a label set again. If the job is killed, the same command again writes what is missing.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from jobs.command import run
from pipelines.disclosure import tell
from pipelines.filters import PairFilter
from pipelines.label_files import Layout, export_labels
from pipelines.pair_set import PairSet
from pipelines.progress import Progress
from pipelines.storage import absolute


@dataclass(frozen=True, kw_only=True)
class ExportLabels:
    """Options of export_labels."""

    labels: str
    """Folder or URI of a finished label set."""
    output: str
    """Folder or URI to write into, empty or begun by the same command."""
    layout: Layout = "chairs2"
    """The layout of the files. Take chairs2 to keep both directions and full precision, kitti2015 for tools
    that read KITTI's PNG."""
    where: str | None = None
    """The pairs to take, by columns of the labels: "occluded < 0.6 and forward_backward < 2". Give it to
    leave out bad labels; without it all are written."""

    goes_on: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.where is not None:
            PairFilter(self.where)


def main(stage: ExportLabels) -> None:
    output = absolute(stage.output, "--output")
    where = None if stage.where is None else PairFilter(stage.where)
    pairs = replace(PairSet.open(absolute(stage.labels, "--labels")), where=where)
    with Progress("export", "pair") as progress:

        def show(done: int, total: int) -> None:
            progress.show(done, total=total)

        summary = export_labels(pairs, output, stage.layout, on_progress=show)
    tell(f"{summary.pairs} pairs in {output}, {summary.new_pairs} of them new")
    if summary.unknown_pixels:
        tell(f"{summary.unknown_pixels} pixels move too far for KITTI's PNG and count as unknown there")


if __name__ == "__main__":
    run(main, ExportLabels)
