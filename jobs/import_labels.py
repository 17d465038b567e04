"""Imports flow files in FlyingChairs2's layout as a label set.

    python jobs/import_labels.py --files my_files --labels my_labels

A pair is 0000000-img_0.png, -img_1.png, -flow_01.flo (or .flo5) and -flow_10.flo, the flow back. Masks of
occluded pixels, -occ_01.png and -occ_10.png (255 = occluded), may be missing; the forward-backward check then
finds them. gallery, distill (with --init) and finetune take the set like any other, with every quality
column. What export_labels wrote keeps its pair ids. If the job is killed, the same command again finishes
what is missing.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jobs.command import run
from flowcore.occlusion import OcclusionCheck
from pipelines.cluster import connect, has_cluster
from pipelines.disclosure import tell
from pipelines.storage import absolute, shared_folder


@dataclass(frozen=True, kw_only=True)
class ImportLabels:
    """Options of import_labels."""

    files: str
    """Folder of the files. On a cluster all nodes must share it."""
    labels: str
    """Folder or URI of the label set to write, empty or begun by the same command."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """Finds occluded pixels where no mask file is given."""

    goes_on: ClassVar[bool] = True


def main(stage: ImportLabels) -> None:
    from pipelines.label_files import import_labels

    folder, labels = shared_folder(stage.files, "--files"), absolute(stage.labels, "--labels")
    # One machine needs no Ray, which takes longer to start than some hundred pairs take.
    if has_cluster():
        connect()
    pairs = import_labels(folder, labels, stage.check, on_cluster=has_cluster())
    tell(f"labels: {pairs.location}\n{pairs.num_pairs()} pairs of {folder}")


if __name__ == "__main__":
    run(main, ImportLabels)
