"""Says how far the labelling of videos is, without Ray and without labelling anything.

    python jobs/status.py --labels my_labels

Prints how many videos are finished, left and skipped, and when a run that goes on will be done. It is
pseudolabel's --status, without a recipe.
"""

from dataclasses import dataclass
from datetime import datetime

from jobs.command import run
from jobs.report import status_text
from pipelines.collection import absolute_collection
from pipelines.disclosure import tell
from pipelines.labelling_status import labelling_status
from pipelines.storage import absolute


@dataclass(frozen=True, kw_only=True)
class Status:
    """Options of status."""

    labels: str
    """Folder or URI that pseudolabel writes to."""
    videos: str | None = None
    """The videos to count against; by default, what the last run into --labels found."""


def main(stage: Status) -> None:
    labels = absolute(stage.labels, "--labels")
    videos = absolute_collection(stage.videos, "--videos") if stage.videos else None
    tell(status_text(labels, labelling_status(labels, videos), datetime.now()))


if __name__ == "__main__":
    run(main, Status)
