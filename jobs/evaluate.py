"""Evaluates models against a data set's truth: endpoint error, Fl, occlusion.

    python jobs/evaluate.py --truth sintel:/data/MPI-Sintel
        --model zero models:/flow-student@champion

Prints a table. Each model gets a run in MLflow with its metrics and with pictures of its median pair and its
worst pair, linked to the run that made the model.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flowcore.datasets import find_samples, samples_digest
from flowcore.occlusion import OcclusionCheck
from jobs.command import run
from jobs.stages import data_set_at
from pipelines.checkpoints import absolute_model, fetch_model, load_model
from pipelines.storage import Folder, absolute, is_mlflow_uri, join, split

if TYPE_CHECKING:
    from pipelines.evaluation import EvaluationResult


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Options of evaluate."""

    model: tuple[str, ...]
    """One or several models: checkpoint folders or URIs, runs:/<run id>/model, models:/<name>@<alias>,
    opencv:<name>, torchvision:<name>, ptlflow:<name>, or `zero`, which answers that nothing moves."""
    truth: str
    """The data set to judge by, such as sintel:/data/MPI-Sintel; all nodes must share the folder. `scenes:`
    takes rendered scenes. Of a stereo set disparity is judged: its EPE, and D1 under the name Fl."""
    json: str | None = None
    """File to write the numbers to, a path or a URI: those of the model, or of several models by name."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """Tells occluded pixels from the flow in both directions."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("--model is empty; name at least one, such as zero")
        data_set_at(self.truth, "--truth")


def evaluate_models(models: Mapping[str, str], stage: Evaluate) -> "dict[str, EvaluationResult]":
    """Runs the stage for models by name, whatever `stage.model` says; returns their results by name."""
    from pipelines.evaluation import ZERO, evaluate, example, load_estimator
    from pipelines.lineage import lineage

    data_set = data_set_at(stage.truth, "--truth")
    places = {name: uri if uri == ZERO else absolute_model(uri, "--model") for name, uri in models.items()}
    samples = find_samples(data_set.name, Path(data_set.root))
    recorded = {"truth": str(data_set), "pairs": len(samples), "check": stage.check}
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(
                lineage(
                    "evaluate",
                    data_set.name,
                    {**recorded, "model": place},
                    {"truth": str(data_set), "model": place},
                    subject=name,
                )
            )
            for name, place in places.items()
        }
        results = evaluate(places, data_set, check=stage.check)
        for name, place in places.items():
            tracked, result = runs[name], results[name]
            tracked.dataset(data_set.name, data_set.root, samples_digest(samples), "evaluation")
            tracked.tag("model.name", name)
            tracked.summary(result.metrics())
            estimators = {name: load_estimator(place)}
            for rank, at in {"median": len(result.ranked) // 2, "worst": -1}.items():
                sample = result.ranked[at]
                tracked.picture(f"evaluate/{rank}", example(sample, estimators, stage.check), step=0)
                tracked.tag(f"picture.{rank}", f"{sample.group} {sample.name}")
            if place != ZERO and not is_mlflow_uri(place):
                tracked.link("model", load_model(fetch_model(place))[1].run_id)
    return results


def main(stage: Evaluate) -> None:
    from pipelines.cluster import connect
    from pipelines.evaluation import table
    from pipelines.tracking import ui_command

    numbers = None if stage.json is None else split(absolute(stage.json, "--json"))
    connect()
    results = evaluate_models({model: model for model in stage.model}, stage)
    for group, errors in next(iter(results.values())).groups.items():
        rows = {name: result.groups[group] for name, result in results.items()}
        print(table(f"{group}, {errors.pairs} pairs", rows) + "\n")
    if numbers is not None:
        summaries = {name: result.summary() for name, result in results.items()}
        content = summaries if len(summaries) > 1 else next(iter(summaries.values()))
        folder, name = numbers
        Folder(folder).write(name, (json.dumps(content, indent=2) + "\n").encode())
        print(f"numbers: {join(folder, name)}")
    print(f"look at it: {ui_command()}")


if __name__ == "__main__":
    run(main, Evaluate)
