"""Makes a label set of files of flow and occlusion, from any tool that writes FlyingChairs2's layout.

    python jobs/import_labels.py --files my_files --labels my_labels

A pair is 0000000-img_0.png, -img_1.png, -flow_01.flo (or .flo5) and -flow_10.flo, the flow back;
-occ_01.png and -occ_10.png (255 = occluded) may be missing, then the forward-backward check tells. gallery,
distill (with --init) and finetune take the set like any other, with every quality column. What export_labels
wrote keeps its pair ids. Killed, the same command again does what is left.
"""

from dataclasses import dataclass, field

from flowcore.occlusion import ForwardBackwardCheck
from jobs.command import run
from pipelines.cluster import connect
from pipelines.label_files import import_labels
from pipelines.storage import absolute, shared_folder


@dataclass(frozen=True, kw_only=True)
class ImportLabels:
    """Options of import_labels."""

    files: str
    """Folder of the files, which every node sees."""
    labels: str
    """Folder or URI of the label set to write, empty or begun by the same command."""
    check: ForwardBackwardCheck = field(default_factory=ForwardBackwardCheck)
    """Tells what is occluded where the files don't."""


def main(options: ImportLabels) -> None:
    folder, labels = shared_folder(options.files, "--files"), absolute(options.labels, "--labels")
    connect()
    pairs = import_labels(folder, labels, options.check)
    print(f"labels: {pairs.location}\n{pairs.num_pairs()} pairs of {folder}")


if __name__ == "__main__":
    run(main, ImportLabels)
