"""Evaluates models on a benchmark: endpoint error, Fl and occlusion against the truth.

    python jobs/evaluate.py --model zero models:/flow-student@champion --benchmark sintel --root my_sintel

Prints a table. Each model gets a run in MLflow, linked to the one that made it, with the metrics and with
pictures of its median and its worst pair.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

from flowcore.datasets import DataSet, find_samples, samples_digest
from flowcore.occlusion import ForwardBackwardCheck
from jobs.command import run
from pipelines import tracking
from pipelines.checkpoints import absolute_model, fetch_model, load_model
from pipelines.cluster import connect
from pipelines.evaluation import ZERO, EvaluationResult, evaluate, example, load_estimator, table
from pipelines.storage import Folder, absolute, is_mlflow_uri, join, shared_folder, split


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Options of evaluate."""

    model: tuple[str, ...]
    """Checkpoint folders or URIs, runs:/<run id>/model, models:/<name>@<alias>, opencv:<name>,
    torchvision:<name>, ptlflow:<name>; `zero` answers no motion."""
    benchmark: Literal[
        "sintel",
        "kitti2012",
        "kitti2015",
        "chairs",
        "chairs2",
        "middlebury",
        "kitti2015-stereo",
        "middlebury-stereo",
        "scenes",
    ]
    """In which layout the truth is; `scenes` are rendered ones. Of stereo pairs the left frame is the first,
    and what is measured is disparity, minus the flow's u: its EPE, and D1 under the name Fl."""
    root: str
    """The benchmark's unpacked folder, shared by all nodes."""
    json: str | None = None
    """File to write the numbers to: the model's, or those of several models by name."""
    check: ForwardBackwardCheck = field(default_factory=ForwardBackwardCheck)
    """What tells occluded pixels, from the flow in both directions."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("--model is empty; name at least one, such as zero")


def evaluate_models(models: Mapping[str, str], options: Evaluate) -> dict[str, EvaluationResult]:
    """Runs the stage for models by name, whatever `options.model` says; returns their results by name."""
    folder = shared_folder(options.root, "--root")
    root = str(folder)
    places = {
        name: model if model == ZERO else absolute_model(model, "--model") for name, model in models.items()
    }
    samples = find_samples(options.benchmark, folder)
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(
                tracking.start(
                    "evaluate",
                    recipe=options.benchmark,
                    parameters={"model": place, "root": root, "pairs": len(samples), "check": options.check},
                    inputs={"root": root, "model": place},
                    subject=name,
                )
            )
            for name, place in places.items()
        }
        results = evaluate(places, DataSet(options.benchmark, root), check=options.check)
        for name, tracked in runs.items():
            tracked.dataset(options.benchmark, root, samples_digest(samples), "evaluation")
            tracked.tag("model.name", name)
            _record(tracked, name, places[name], results[name], options.check)
    return results


def main(options: Evaluate) -> None:
    numbers = None if options.json is None else split(absolute(options.json, "--json"))
    connect()
    results = evaluate_models({model: model for model in options.model}, options)
    print(tables(results))
    if numbers is not None:
        summaries = {name: result.summary() for name, result in results.items()}
        content = summaries if len(summaries) > 1 else next(iter(summaries.values()))
        folder, name = numbers
        Folder(folder).write(name, (json.dumps(content, indent=2) + "\n").encode())
        print(f"numbers: {join(folder, name)}")
    print(f"look at it: {tracking.ui_command()}")


def tables(results: Mapping[str, EvaluationResult]) -> str:
    """A table for each group of the benchmark."""
    groups = {name: result.groups for name, result in results.items()}
    first = next(iter(groups.values()))
    return "\n\n".join(
        table(f"{group}, {errors.pairs} pairs", {name: by_group[group] for name, by_group in groups.items()})
        for group, errors in first.items()
    )


def _record(
    tracked: tracking.Run, name: str, place: str, result: EvaluationResult, check: ForwardBackwardCheck
) -> None:
    """The model's numbers, pictures and origin."""
    tracked.summary(result.metrics())
    ranked = result.ranked
    estimators = {name: load_estimator(place)}
    for rank, sample in {"median": ranked[len(ranked) // 2], "worst": ranked[-1]}.items():
        tracked.picture(f"evaluate/{rank}", example(sample, estimators, check), step=0)
        tracked.tag(f"picture.{rank}", f"{sample.group} {sample.name}")
    if place != ZERO and not is_mlflow_uri(place):
        _, info = load_model(fetch_model(place))
        tracked.link("model", info.run_id)


if __name__ == "__main__":
    run(main, Evaluate)
