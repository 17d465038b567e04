"""Makes one HTML file to judge a label set by, before a student is trained on it.

    python jobs/gallery.py --labels labels --output gallery.html

It shows the worst, the best and some random pairs with their flow, occlusion, confidence and warp error,
histograms of every quality column, and what became of each video. With --other it compares two sets: the same
pairs, one label below the other. The file needs nothing else; it is also an artifact of a run in MLflow,
linked to the run that made the labels.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import run
from pipelines import tracking
from pipelines.gallery import gallery_page
from pipelines.grades import GalleryOptions, GradedSet
from pipelines.pair_set import PairSet
from pipelines.storage import Folder, absolute, split


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Options of gallery."""

    labels: str
    """Folder or URI of a finished label set."""
    output: str
    """HTML file to write; a path or a URI."""
    other: str | None = None
    """Folder or URI of a second label set, to compare with."""
    shown: Annotated[GalleryOptions, tyro.conf.arg(name="")] = field(default_factory=GalleryOptions)


def main(options: Gallery) -> None:
    output = absolute(options.output, "--output")
    folder, name = split(output)
    places = {"labels": absolute(options.labels, "--labels")}
    if options.other is not None:
        places["other"] = absolute(options.other, "--other")
    with tracking.start("gallery", parameters=options, inputs=places) as tracked:
        graded = {}
        for role, place in places.items():
            pairs = PairSet.open(place)
            maker = pairs.description.provenance.get("run_id")
            graded[role] = GradedSet.read(pairs, {} if maker is None else tracking.origin(maker))
            tracked.dataset(role, place, pairs.label_set, "gallery")
            tracked.link(role, maker)
        labels = graded["labels"]
        page = gallery_page(labels, graded.get("other"), options.shown)
        Folder(folder).write(name, page)
        tracked.summary({f"labels/{column}": mean for column, mean in labels.means().items()})
        with tempfile.TemporaryDirectory() as copies:
            copy = Path(copies) / name
            copy.write_bytes(page)
            tracked.artifact(copy)
    print(f"gallery: {output}")
    print(f"look at it: {tracking.ui_command()}")


if __name__ == "__main__":
    run(main, Gallery)
