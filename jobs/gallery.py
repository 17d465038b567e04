"""Makes one HTML file to judge a label set by, before a student is trained on it.

    python jobs/gallery.py --labels labels --output gallery.html

It shows the worst, the best and some random pairs with their flow, occlusion, confidence and warp error,
histograms of every quality column, and what became of each video. With --other it compares two sets: the same
pairs, one label below the other. The file needs nothing else. It is also an artifact of a run in MLflow,
linked to the run that made the labels.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobs.command import run
from pipelines.disclosure import tell
from pipelines.gallery import gallery_page
from pipelines.grades import GalleryOptions, GradedSet
from pipelines.pair_set import PairSet
from pipelines.storage import Folder, absolute, split


@dataclass(frozen=True, kw_only=True)
class Gallery(GalleryOptions):
    """Options of gallery."""

    labels: str
    """Folder or URI of a finished label set."""
    output: str
    """HTML file to write; a path or a URI."""
    other: str | None = None
    """Folder or URI of a second label set, to compare the same pairs."""


def main(stage: Gallery) -> None:
    output = absolute(stage.output, "--output")
    folder, name = split(output)
    places = {"labels": absolute(stage.labels, "--labels")}
    if stage.other is not None:
        places["other"] = absolute(stage.other, "--other")
    sets = {role: PairSet.open(place) for role, place in places.items()}
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines import run_store, tracking
    from pipelines.lineage import lineage

    with lineage("gallery", None, stage, places) as run:
        graded = {}
        for role, pairs in sets.items():
            maker = pairs.description.provenance.get("run_id")
            graded[role] = GradedSet.read(pairs, {} if maker is None else tracking.origin(maker))
            run.reads(role, places[role], pairs, "gallery")
        page = gallery_page(graded["labels"], graded.get("other"), stage)
        Folder(folder).write(name, page)
        run.summary({f"labels/{column}": mean for column, mean in graded["labels"].means().items()})
        with tempfile.TemporaryDirectory() as copies:
            copy = Path(copies) / name
            copy.write_bytes(page)
            run.artifact(copy)
    tell(f"gallery: {output}\nlook at it: {run_store.ui_command()}")


if __name__ == "__main__":
    run(main, Gallery)
