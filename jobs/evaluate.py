"""Evaluates models against a data set's truth: endpoint error, Fl, occlusion.

    python jobs/evaluate.py --truth sintel:/data/MPI-Sintel \\
        --model zero models:/flow-student@champion

Prints a table. Each model gets a run in MLflow with its metrics and with pictures of its median pair and its
worst pair, linked to the run that made the model.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.command import run
from flowcore.datasets import find_samples
from flowcore.inference import InferenceOptions
from flowcore.samples import samples_digest
from jobs.stages import Evaluate, data_set_at
from pipelines.cluster import connect
from pipelines.disclosure import tell
from pipelines.storage import Folder, absolute, is_mlflow_uri, join, split

if TYPE_CHECKING:
    from pipelines.evaluation import EvaluationResult


TOGETHER = "together"
"""The key of all models together in the results."""


def evaluate_models(models: Mapping[str, str], stage: Evaluate) -> "dict[str, EvaluationResult]":
    """Runs the stage for models by name, whatever `stage.model` says; returns their results by name, and
    those of all `TOGETHER` if the stage wants them."""
    from pipelines.estimators import Together, absolute_estimator, load_estimator
    from pipelines.evaluation import evaluate, example

    data_set = data_set_at(stage.truth, "--truth")
    samples = find_samples(data_set.name, Path(data_set.root))
    places = {name: absolute_estimator(uri, "--model") for name, uri in models.items()}
    estimators = {name: load_estimator(place, stage.inference) for name, place in places.items()}
    connect()
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines.lineage import lineage
    from pipelines.parameters import differing

    recorded = {
        "truth": str(data_set),
        "pairs": len(samples),
        "check": stage.check,
        "inference": stage.inference,
    }
    changed = differing(stage.inference, InferenceOptions(), set())
    with ExitStack() as stack:
        runs = {}
        for name, place in places.items():
            made_from = {"truth": str(data_set), "model": place}
            subject = f"{data_set.name}, {name} {changed}".rstrip()
            one = lineage("evaluate", None, {**recorded, "model": place}, made_from, subject=subject)
            runs[name] = stack.enter_context(one)
        judged = dict(estimators)
        if stage.together:
            judged[TOGETHER] = Together(list(estimators.values()), stage.together, stage.check)
        results = evaluate(judged, data_set, check=stage.check)
        for name, tracked in runs.items():
            tracked.dataset(data_set.name, data_set.root, samples_digest(samples), "evaluation")
            tracked.tag("model.name", name)
            if not is_mlflow_uri(places[name]):
                tracked.link("model", estimators[name].run_id)
            tracked.summary(results[name].metrics())
            ranked = results[name].ranked
            for rank, sample in {"median": ranked[len(ranked) // 2], "worst": ranked[-1]}.items():
                picture = example(sample, {name: estimators[name]}, stage.check)
                tracked.picture(f"evaluate/{rank}", picture, step=0)
                tracked.tag(f"picture.{rank}", f"{sample.group} {sample.name}")
    return results


def main(stage: Evaluate) -> None:
    numbers = None if stage.json is None else split(absolute(stage.json, "--json"))
    results = evaluate_models({model: model for model in stage.model}, stage)
    from jobs.report import errors_json, errors_text
    from pipelines.run_store import ui_command

    tell(errors_text(results))
    if numbers is not None:
        folder, name = numbers
        Folder(folder).write(name, errors_json(results))
        tell(f"numbers: {join(folder, name)}")
    tell(f"look at it: {ui_command()}")


if __name__ == "__main__":
    run(main, Evaluate)
