"""Labels videos with a teacher: flow and occlusion of every frame pair, written to Parquet.

    python jobs/pseudolabel.py demo --videos my_videos --teacher models:/flow-teacher@champion --labels
    my_labels

--teacher takes several: their mean is the label, and where they disagree it isn't trusted. A student may be
the teacher of the next round, and so may another library's network, torchvision:raft_small or ptlflow:<name>,
or a classical method that needs no training: opencv:dis_medium.

Killed at any moment, the same command again finishes the set: each pair is there once, and what was finished
is not done again. How far it is tells, meanwhile or later,

    python jobs/pseudolabel.py demo --labels my_labels --status

from the files in the folder alone, without Ray and without labelling anything. --videos and --teacher may
stay in that line; --videos, if it isn't left out, is the collection that is counted.
"""

import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import tyro

from flowcore.drawing import Prediction, comparison_panel
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.video import ClipOptions
from jobs.command import run_recipe
from jobs.recipes import RECIPES
from pipelines import tracking
from pipelines.checkpoints import absolute_model
from pipelines.cluster import connect
from pipelines.collection import absolute_collection
from pipelines.labelling import (
    LabellingOptions,
    LabellingStatus,
    LabellingSummary,
    labelling_status,
    write_labels,
)
from pipelines.labels import decode_occlusion
from pipelines.ledger import LEDGER_FILE
from pipelines.pair_set import PairSet
from pipelines.progress import video_bar
from pipelines.storage import absolute
from pipelines.teachers import teacher_names

_MOST_REASONS = 10


@dataclass(frozen=True, kw_only=True)
class Pseudolabel:
    """Options of pseudolabel."""

    videos: str
    """Folder (searched through), glob, video, list file or URI; or a data set's unpacked folder, as
    chairs:<folder>, sintel:<folder>, kitti2012:<folder> or kitti2015:<folder>."""
    teacher: tuple[str, ...]
    """Checkpoint folder, runs:/<run id>/model, models:/<name>@<alias>, opencv:<name>, torchvision:<name> or
    ptlflow:<name>; one or several."""
    labels: str
    """Folder or URI, shared by all nodes, that the labels are written to."""
    clips: ClipOptions
    """How a video becomes frame pairs."""
    labelling: LabellingOptions
    check: ForwardBackwardCheck = field(default_factory=ForwardBackwardCheck)
    """Tells what is occluded by the teacher's flow."""
    status: bool = False
    """Label nothing and start no Ray: tell how many videos are done, left and skipped in --labels, and when
    it will be finished. Needs --labels alone; the collection is the one that is labelled there, or --videos.
    """

    def __post_init__(self) -> None:
        if not self.teacher and not self.status:
            raise ValueError("--teacher is empty; name at least one, such as models:/flow-teacher@champion")


def pseudolabel(recipe: str, options: Pseudolabel) -> LabellingSummary:
    """Runs the stage; returns what was written."""
    videos, labels = absolute_collection(options.videos, "--videos"), absolute(options.labels, "--labels")
    teachers = [absolute_model(teacher, "--teacher") for teacher in options.teacher]
    names = teacher_names(len(teachers))
    inputs = {"videos": videos, **dict(zip(names, teachers, strict=True))}
    with tracking.start("pseudolabel", recipe=recipe, parameters=options, inputs=inputs) as run:
        with video_bar("pseudo-labels") as draw:
            summary = write_labels(
                videos,
                teachers,
                labels,
                options.clips,
                options.check,
                options.labelling,
                run_id=run.run_id,
                on_progress=draw,
            )
        run.dataset("videos", videos, summary.digest, "labelling")
        run.tag("label_set", summary.digest)
        run.tag("labels", labels)
        run.summary(summary.metrics("labels"))
        pairs = PairSet.open(summary.location)
        run.tag("generation", pairs.description.provenance["generation"])
        for name in names:
            run.link(name, pairs.description.provenance.get(f"{name}_run_id"))
        row = pairs.example_row()
        pair = pairs.decode(row)
        assert pair.flow_fw is not None
        assert pair.confidence_fw is not None
        label = Prediction(pair.flow_fw, decode_occlusion(row), trusted=pair.confidence_fw > 0)
        picture = comparison_panel(pair.image1, pair.image2, predictions={"pseudo-label": label})
        run.picture("pseudo-label", picture, step=0)
        with tempfile.TemporaryDirectory() as folder:
            ledger = Path(folder) / "ledger.json"
            ledger.write_text(json.dumps([asdict(entry) for entry in summary.ledger], indent=1) + "\n")
            run.artifact(ledger)
        return summary


def status_table(labels: str, status: LabellingStatus, now: datetime) -> str:
    """What --status prints. now: a local time."""
    lines = [
        ("labels", f"{labels}, {status.state}"),
        ("videos found", status.videos),
        ("  finished", status.finished),
        ("  left", status.left),
        ("  skipped", sum(status.skipped.values())),
    ]
    reasons = Counter(status.skipped).most_common()
    lines += [(f"{count:>9}", reason) for reason, count in reasons[:_MOST_REASONS]]
    if others := sum(count for _, count in reasons[_MOST_REASONS:]):
        lines.append((f"{others:>9}", f"for other reasons, see {LEDGER_FILE}"))
    speed = status.pairs_per_second
    lines += [("pairs so far", status.pairs), ("pairs/s", "unknown" if speed is None else f"{speed:.1f}")]
    if status.last_written is not None:
        written = datetime.fromtimestamp(status.last_written)
        lines.append(
            ("last shard", f"{written:%Y-%m-%d %H:%M:%S}, {_clock((now - written).total_seconds())} ago")
        )
    if status.last_report is not None and status.state != "finished":
        age = _clock((now - datetime.fromtimestamp(status.last_report)).total_seconds())
        lines.append(
            ("run", f"at work, told {age} ago" if status.is_running else f"none, the last told {age} ago")
        )
        if status.failure:
            lines.append(("", status.failure))
        lines.append(("expected finish", _expected_finish(status, now)))
    return "\n".join(f"{name:<17}{value}" for name, value in lines)


def _expected_finish(status: LabellingStatus, now: datetime) -> str:
    if status.seconds_left is None:
        return "unknown before a run has made pairs"
    finish = now + timedelta(seconds=status.seconds_left)
    return f"{finish:%Y-%m-%d %H:%M}, in {_clock(status.seconds_left)}, if a run goes on from now"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def main(recipe: str, options: Pseudolabel) -> None:
    if options.status:
        labels = absolute(options.labels, "--labels")
        videos = absolute_collection(options.videos, "--videos") if options.videos else None
        print(status_table(labels, labelling_status(labels, videos), datetime.now()))
        return
    connect()
    summary = pseudolabel(recipe, options)
    print(f"labels: {summary.location}")
    print(f"{summary.num_pairs} pairs of {summary.num_videos} videos; {summary.new_pairs} of them are new")
    cuts, static, faded = (summary.left_out[reason] for reason in ("cuts", "static_pairs", "faded_pairs"))
    print(f"left out: {cuts} pairs at cuts, {static} static ones, {faded} in fades")
    if summary.verdict:
        busy = ", ".join(f"{stage} {share:.0%}" for stage, share in summary.busy.items())
        print(f"how long each stage's processes worked: {busy}\n{summary.verdict}")
    print(f"{summary.pairs_per_second:.1f} pairs/s; {len(summary.ledger)} inputs gave less than they might:")
    for entry in summary.ledger:
        print(f"  {entry.video}: {entry.outcome}, {entry.reason}")
    print(f"look at it: {tracking.ui_command()}")


def recipes(*, for_status: bool = False) -> dict[str, tuple[str, Pseudolabel]]:
    """This job's options by recipe; of the status, --labels alone must be given."""
    videos, teacher = ("", ()) if for_status else (tyro.MISSING, tyro.MISSING)
    return {
        name: (
            recipe.description,
            Pseudolabel(
                videos=videos,
                teacher=teacher,
                labels=tyro.MISSING,
                clips=recipe.clips,
                labelling=recipe.labelling,
                status=for_status,
            ),
        )
        for name, recipe in RECIPES.items()
    }


if __name__ == "__main__":
    run_recipe(main, recipes(for_status="--status" in sys.argv))
