"""Labels the frame pairs of videos with a teacher's flow, written to Parquet.

    python jobs/pseudolabel.py demo --videos my_videos --labels my_labels \\
        --teacher models:/flow-teacher@champion

--teacher takes several models: their mean is the label, and where they disagree it isn't trusted; or, with
--labelling.merge first, a label is of the first one whose flow agrees there and back. A student may be the
teacher of the next round. So may the network of another library, torchvision:raft_small or ptlflow:<name>, or
a classical method that needs no training, opencv:dis_fine.

If the job is killed, the same command again finishes the set: each pair is there once, and finished work is
not repeated. To see progress, now or later, without Ray and without labelling anything:

    python jobs/pseudolabel.py demo --labels my_labels --status
"""

from jobs.command import run_recipe
from jobs import status
from jobs.recipes import by_recipe
from jobs.report import appraisal_text, example_picture, summary_text
from jobs.stages import Pseudolabel
from pipelines.appraisal import Appraisal
from pipelines.cluster import connect
from pipelines.collection import Collection
from pipelines.disclosure import tell
from pipelines.labelling import LabellingSummary, write_labels
from pipelines.pair_set import PairSet
from pipelines.storage import absolute


def pseudolabel(stage: Pseudolabel, recipe: str) -> LabellingSummary:
    """Runs the stage; returns what was written. OSError, once it is recorded, where the storage couldn't
    deliver every video."""
    labels = absolute(stage.labels, "--labels")
    collection, teachers = Collection.find(stage.videos), stage.teachers()
    connect()
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines import progress
    from pipelines.lineage import lineage

    made_from = {"videos": collection.place, **teachers.places}
    with lineage("pseudolabel", recipe, stage, made_from, subject=", ".join(stage.teacher)) as run:
        with progress.of_labelling("pseudo-labels") as show:
            summary = write_labels(
                collection,
                teachers,
                labels,
                stage.clips,
                stage.check,
                stage.labelling,
                run_id=run.run_id,
                on_progress=show,
            )
        run.dataset("videos", collection.place, summary.digest, "labelling")
        pairs = PairSet.open(labels)
        run.wrote(summary, pairs)
        run.picture("pseudo-label", example_picture(pairs), step=0)
        summary.require_all_read()
        return summary


def main(stage: Pseudolabel, recipe: str) -> None:
    if stage.status:
        status.main(status.Status(labels=stage.labels, videos=stage.videos or None))
        return
    summary = pseudolabel(stage, recipe)
    tell(summary_text(summary))
    tell(appraisal_text(Appraisal.of(PairSet.open(summary.location))))
    from pipelines.run_store import ui_command

    tell(f"look at it: {ui_command()}")


def recipes() -> dict[str, tuple[str, Pseudolabel]]:
    """This job's options by recipe."""
    return by_recipe(Pseudolabel, clips="clips", check="check", labelling="labelling")


if __name__ == "__main__":
    run_recipe(main, recipes())
