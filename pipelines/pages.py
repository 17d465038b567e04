"""How does MLflow show the runs?

Addresses are relative to the server's. The arrangement is a view of MLflow's own, as "Share" in its menu of
views makes one: a tag of the experiment, which an address names.
"""

import json
from urllib.parse import quote

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run or an experiment."""
_VIEW = "chain"
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_TRAINING_PAGES = "workflowType=machine_learning"
"""Opens MLflow's training view; without it the page shows the menu for language models."""
_COLUMNS = (
    *("attributes.`Models`", "attributes.`Dataset`", "tags.`recipe`", "tags.`distillations`"),
    *("metrics.`labels/pairs`", "metrics.`final/comparable`", "metrics.`final/epe`"),
)
"""What a chain is read by, beside a run's name and when it began; MLflow decides their order."""


def run_page(experiment: str, run: str) -> str:
    """The page of a run, whose id may come from a stranger's labels."""
    return f"#/experiments/{experiment}/runs/{quote(run, safe='')}?{_TRAINING_PAGES}"


def runs_page(experiment: str) -> str:
    """The page of all runs, in the order in which they were made."""
    return f"#/experiments/{experiment}/runs?{_TRAINING_PAGES}&viewStateShareKey={_VIEW}"


def picture_page(run: str, path: str) -> str:
    """The picture that is a run's artifact."""
    return f"get-artifact?path={quote(path, safe='')}&run_uuid={run}"


def experiment_tags(experiment: str) -> dict[str, str]:
    """The tags of the experiment that arrange its page."""
    view = {"orderByKey": "attributes.`Created`", "orderByAsc": True, "selectedColumns": _COLUMNS}
    return {
        "mlflow.experimentKind": "custom_model_development",
        NOTE: f"Each stage is a run. [All runs in order]({runs_page(experiment)}): videos make a teacher, "
        "the teacher makes labels, labels make a student, and true flow judges them.",
        VIEW_TAG: json.dumps(view),
    }
