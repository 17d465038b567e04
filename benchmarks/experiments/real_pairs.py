"""What are models worth on real pairs with truth?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.inputs import real_sets
from jobs import evaluate
from jobs.stages import Evaluate
from pipelines.evaluation import ErrorSummary
from pipelines.installation import PROJECT_FOLDER
from pipelines.models import SHIPPED_FOLDER

RESULTS = PROJECT_FOLDER / "docs" / "results" / "real-pixels"
STUDENT = SHIPPED_FOLDER / "laptop"
"""The network that was trained on real clips."""


def errors_on_real_pairs(data: Path, models: Mapping[str, str]) -> dict[str, dict[str, ErrorSummary]]:
    """The errors of models, by name, on each group of the real pairs with truth."""
    errors = {}
    for data_set in real_sets(data):
        stage = Evaluate(model=("zero",), truth=str(data_set))
        results = evaluate.evaluate_models(models, stage)
        for group, total in next(iter(results.values())).groups.items():
            errors[f"{group}, {total.pairs} pairs"] = {
                name: result.groups[group].summary() for name, result in results.items()
            }
    return errors


def beside_dis(errors: Mapping[str, Mapping[str, Any]], dis: str, network: str) -> str:
    """The errors of a network and of DIS, by their names there, as its card has them."""
    rows = []
    for group, models in errors.items():
        both = [models[dis], models[network]]
        epe = [each["epe"][region] for region in ("all", "occ") for each in both]
        shown = ["-" if value is None else f"{value:.2f}" for value in epe]
        rows.append([group, *shown, *(f"{100 * each['fl']:.2f}" for each in both)])
    measures = ("EPE", "EPE occluded", "Fl %")
    heads = [f"{measure}, {who}" for measure in measures for who in ("DIS", "network")]
    return report.table(["pairs", *heads], rows)
