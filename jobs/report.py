"""How does a job report what it did? In words, as JSON, and with a picture of one label."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from flowcore.drawing import Picture, Prediction, comparison_panel
from pipelines.appraisal import USUAL, Appraisal
from pipelines.disclosure import plain
from pipelines.error_tables import error_table, slice_table, uncertainty_table
from pipelines.evaluation import EvaluationResult
from pipelines.grades import QUALITIES
from pipelines.label_rows import decode_occlusion
from pipelines.labelling import LabellingSummary
from pipelines.labelling_status import LabellingStatus, LastRun
from pipelines.ledger import LEDGER_FILE
from pipelines.pair_set import PairSet

_MOST_REASONS = 10
_MOST_INPUTS = 20
"""That a summary names; the ledger has all."""


def status_text(labels: str, status: LabellingStatus, now: datetime) -> str:
    """What --status prints. now: a local time."""
    lines = [
        ("labels", f"{labels}, {status.state}"),
        ("videos found", status.videos),
        ("  finished", status.finished),
        ("  left", status.left),
        ("  skipped", sum(status.skipped.values())),
    ]
    reasons = Counter(status.skipped).most_common()
    lines += [(f"{count:>9}", plain(reason)) for reason, count in reasons[:_MOST_REASONS]]
    if others := sum(count for _, count in reasons[_MOST_REASONS:]):
        lines.append((f"{others:>9}", f"for other reasons, see {LEDGER_FILE}"))
    speed = status.pairs_per_second
    lines += [("pairs so far", status.pairs), ("pairs/s", "unknown" if speed is None else f"{speed:.1f}")]
    if status.last_written is not None:
        written = datetime.fromtimestamp(status.last_written)
        ago = _clock((now - written).total_seconds())
        lines.append(("last shard", f"{written:%Y-%m-%d %H:%M:%S}, {ago} ago"))
    if status.last_run is not None and status.last_report is not None:
        lines.append(("last run", _last_run(status, status.last_run, status.last_report, now)))
    if status.state != "finished":
        lines.append(("expected finish", _expected_finish(status, now)))
    return "\n".join(f"{name:<17}{value}" for name, value in lines)


def _last_run(status: LabellingStatus, run: LastRun, last_report: float, now: datetime) -> str:
    """What became of it, and since when that is known."""
    at = datetime.fromtimestamp(last_report)
    when = f"{at:%Y-%m-%d %H:%M:%S}, {_clock((now - at).total_seconds())} ago"
    match run:
        case "running":
            return f"goes on; its last report: {when}"
        case "killed":
            return f"was killed, or can't write its reports; the last one: {when}"
        case "failed":
            return f"failed {when}: {plain(status.failure)}"
        case "finished":
            return f"ended {when}"


def _expected_finish(status: LabellingStatus, now: datetime) -> str:
    if status.seconds_left is None:
        return "unknown before a run has finished a video and written two shards"
    finish = now + timedelta(seconds=status.seconds_left)
    return f"{finish:%Y-%m-%d %H:%M}, in {_clock(status.seconds_left)}, if a run goes on from now"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def summary_text(summary: LabellingSummary) -> str:
    """What a finished labelling prints."""
    left_out = summary.left_out
    lines = [
        f"labels: {summary.location}",
        f"{summary.num_pairs} pairs of {summary.num_videos} videos; {summary.new_pairs} of them are new",
        f"left out: {left_out['cuts']} pairs at cuts, {left_out['static_pairs']} static pairs, "
        f"{left_out['faded_pairs']} pairs in fades",
    ]
    if summary.verdict:
        busy = ", ".join(f"{name} {share:.0%}" for name, share in summary.busy.items())
        lines += [f"share of the time that each stage's processes worked: {busy}", summary.verdict]
    lines.append(f"{summary.pairs_per_second:.1f} pairs/s")
    if summary.ledger:
        lines.append(f"{len(summary.ledger)} inputs were skipped or cut short:")
    for entry in summary.ledger[:_MOST_INPUTS]:
        # Strangers choose these: a line end would begin a line that looks like one of ours.
        lines.append(f"  {plain(entry.video)}: {entry.outcome}, {plain(entry.reason)}")
    if len(summary.ledger) > _MOST_INPUTS:
        lines.append(f"  and {len(summary.ledger) - _MOST_INPUTS} others, see {LEDGER_FILE} in the labels")
    return "\n".join(lines)


def appraisal_text(appraisal: Appraisal) -> str:
    """The medians of a set's quality columns beside what is usual, and what is wrong with the labels."""
    looked_at = f"{appraisal.pairs} pairs"
    if appraisal.files < appraisal.all_files:
        looked_at += f" in {appraisal.files} of {appraisal.all_files} files"
    lines = [f"quality, medians of {looked_at} (usual: of pairs with truth)"]
    for column, median in appraisal.medians.items():
        text = QUALITIES[column].text
        notes = []
        if column in USUAL:
            least, most = USUAL[column]
            notes.append(f"usual {text(least)} to {text(most)}")
        if appraisal.is_more_than_usual(column):
            notes.append("more than usual")
        if median.unknown and column == "misfit":
            notes.append(f"{median.unknown} pairs have no third frame to compare with")
        elif median.unknown:
            notes.append(f"{median.unknown} pairs without a value, as nothing in them is visible")
        lines.append(f"  {column:<16} {text(median.value):>8}  {', '.join(notes)}".rstrip())
    lines += [f"warning: {warning}" for warning in appraisal.warnings()]
    return "\n".join(lines)


def errors_text(results: Mapping[str, EvaluationResult]) -> str:
    """For each group of pairs, a table of the models' errors, one of each model's errors by slice, and one of
    how well the models tell their errors."""
    tables = []
    for group, errors in next(iter(results.values())).groups.items():
        rows = {name: result.groups[group] for name, result in results.items()}
        tables.append(error_table(f"{group}, {errors.pairs} pairs", rows))
        tables += [slice_table(f"{group}, {name}", each.slices) for name, each in rows.items()]
        tables.append(uncertainty_table(group, rows))
    return "\n\n".join(tables) + "\n"


def errors_json(results: Mapping[str, EvaluationResult]) -> bytes:
    """The numbers of the model, or of several models by name."""
    summaries = {name: result.summary() for name, result in results.items()}
    content = summaries if len(summaries) > 1 else next(iter(summaries.values()))
    return (json.dumps(content, indent=2) + "\n").encode()


def example_picture(pairs: PairSet) -> Picture:
    """A pair of a label set beside its label."""
    row = pairs.example_row()
    pair = pairs.decode(row)
    assert pair.flow_fw is not None
    assert pair.confidence_fw is not None
    label = Prediction(pair.flow_fw, decode_occlusion(row), trusted=pair.confidence_fw > 0)
    return comparison_panel(pair.image1, pair.image2, predictions={"pseudo-label": label})
