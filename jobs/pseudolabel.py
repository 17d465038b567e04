"""Labels the frame pairs of videos with a teacher's flow, written to Parquet.

    python jobs/pseudolabel.py demo --videos my_videos --labels my_labels
        --teacher models:/flow-teacher@champion

--teacher takes several models: their mean is the label, and where they disagree it isn't trusted. A student
may be the teacher of the next round. So may the network of another library, torchvision:raft_small or
ptlflow:<name>, or a classical method that needs no training, opencv:dis_medium.

If the job is killed, the same command again finishes the set: each pair is there once, and finished work is
not repeated. To see progress, now or later, without Ray and without labelling anything:

    python jobs/pseudolabel.py demo --labels my_labels --status
"""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import ClassVar

from flowcore.occlusion import OcclusionCheck
from flowcore.video import ClipOptions
from jobs.command import run_recipe
from jobs.recipes import by_recipe
from jobs.report import example_picture, status_text, summary_text
from pipelines.checkpoints import absolute_model
from pipelines.collection import absolute_collection
from pipelines.labelling import (
    LabellingOptions,
    LabellingSummary,
    labelling_status,
    write_labels,
)
from pipelines.pair_set import PairSet
from pipelines.storage import absolute
from pipelines.teachers import teacher_names


@dataclass(frozen=True, kw_only=True)
class Pseudolabel:
    """Options of pseudolabel."""

    videos: str
    """The videos: a folder (searched through), glob, video, list file or URI, or a data set such as
    sintel:/data/MPI-Sintel. With --status, the collection that is counted; without it the one that is
    labelled in --labels."""
    teacher: tuple[str, ...]
    """One or several models: checkpoint folders, runs:/<run id>/model, models:/<name>@<alias>, opencv:<name>,
    torchvision:<name> or ptlflow:<name>."""
    labels: str
    """Folder or URI to write the labels to. All nodes of a cluster must share it."""
    clips: ClipOptions
    """How videos become frame pairs."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """Tells occluded pixels from the teacher's flow in both directions."""
    labelling: LabellingOptions = field(default_factory=LabellingOptions)
    """How the labels are written, and by how many processes."""
    status: bool = False
    """Label nothing: print how many videos are finished, left and skipped in --labels, and when it will be
    done. Needs --labels alone."""

    common: ClassVar[tuple[str, ...]] = (
        "status",
        "clips.size",
        "clips.stride",
        "clips.max_pairs_per_video",
        "labelling.num_teachers",
        "labelling.accelerator",
        "labelling.codec",
    )
    excused: ClassVar[dict[str, dict[str, object]]] = {"status": {"videos": "", "teacher": ()}}

    def __post_init__(self) -> None:
        if not self.teacher and not self.status:
            raise ValueError("--teacher is empty; name at least one, such as models:/flow-teacher@champion")


def pseudolabel(stage: Pseudolabel, recipe: str) -> LabellingSummary:
    """Runs the stage; returns what was written."""
    from pipelines.lineage import lineage
    from pipelines.progress import video_bar

    videos, labels = absolute_collection(stage.videos, "--videos"), absolute(stage.labels, "--labels")
    teachers = [absolute_model(teacher, "--teacher") for teacher in stage.teacher]
    names = teacher_names(len(teachers))
    made_from = {"videos": videos, **dict(zip(names, teachers, strict=True))}
    with lineage("pseudolabel", recipe, stage, made_from) as run:
        with video_bar("pseudo-labels") as draw:
            summary = write_labels(
                videos,
                teachers,
                labels,
                stage.clips,
                stage.check,
                stage.labelling,
                run_id=run.run_id,
                on_progress=draw,
            )
        run.dataset("videos", videos, summary.digest, "labelling")
        run.tag("label_set", summary.digest)
        run.tag("labels", labels)
        run.summary(summary.metrics("labels"))
        pairs = PairSet.open(summary.location)
        run.has_generation(pairs.generation)
        for name in names:
            run.link(name, pairs.description.provenance.get(f"{name}_run_id"))
        run.picture("pseudo-label", example_picture(pairs), step=0)
        run.document("ledger.json", {"videos": [asdict(record) for record in summary.ledger]})
        return summary


def main(stage: Pseudolabel, recipe: str) -> None:
    if stage.status:
        labels = absolute(stage.labels, "--labels")
        videos = absolute_collection(stage.videos, "--videos") if stage.videos else None
        print(status_text(labels, labelling_status(labels, videos), datetime.now()))
        return
    from pipelines.cluster import connect
    from pipelines.tracking import ui_command

    connect()
    summary = pseudolabel(stage, recipe)
    print(summary_text(summary))
    print(f"look at it: {ui_command()}")


def recipes() -> dict[str, tuple[str, Pseudolabel]]:
    """This job's options by recipe."""
    return by_recipe(Pseudolabel, clips="clips", check="check")


if __name__ == "__main__":
    run_recipe(main, recipes())
