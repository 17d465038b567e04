"""What is recorded of an earlier run?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow.exceptions import MlflowException

from flowcore.extras import PACKAGE
from flowcore.inference import InferenceOptions
from pipelines.disclosure import without_secrets
from pipelines.installation import PROJECT_FOLDER
from pipelines.parameters import flattened
from pipelines.registry import LOGGED_MODEL_URI
from pipelines.revision import DIFF_FILE, PACKAGES_FILE, code_files, revision_of
from pipelines.run_inputs import inputs_of, run_tag
from pipelines.run_store import client_of, impatient, tracking_uri, unreachable
from pipelines.storage import is_mlflow_uri
from pipelines.tracking import ABSENT, OPTIONS_FILE, Run


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a run left for doing the same again."""

    stage: str
    recipe: str
    options: str
    """The stage's dataclass of options as JSON, to be read with pydantic's TypeAdapter."""
    differences: list[str]
    """What its code and packages had that those of this process haven't, a line each."""
    losses: dict[int, float]
    """`train/loss` by step."""
    data: dict[str, str]
    """The digests of the data that it read, by what the data are."""
    made_from: dict[str, str]
    """The runs that made what it was made from, by what that is."""

    def pinned(self, init: str | None) -> str | None:
        """The model that `init` named when the run began: an alias may name another one by now."""
        is_pinned = LOGGED_MODEL_URI.fullmatch(init or "") is not None
        if "init" in self.made_from and is_mlflow_uri(init or "") and not is_pinned:
            return f"runs:/{self.made_from['init']}/model"
        return init


def recorded(run_id: str, project_folder: Path = PROJECT_FOLDER) -> Recorded:
    """What is needed to do a run again, or to compare one with it; ValueError for a run that isn't there or
    was made by a version that recorded less."""
    uri = tracking_uri(project_folder)
    client = client_of(uri)
    try:
        with impatient():
            run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise unreachable(uri, error) from error
        raise ValueError(f"no run {run_id} at {without_secrets(uri)}") from error
    there = {each.path for each in client.list_artifacts(run_id, Path(OPTIONS_FILE).parent.name)}
    if OPTIONS_FILE not in there:
        raise ValueError(
            f"run {run_id} has no {OPTIONS_FILE}: it is no job's, or an older version's; its command was "
            f"{run.data.tags.get('command')!r}"
        )
    texts = {
        name: mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}")
        for name in (OPTIONS_FILE, DIFF_FILE, PACKAGES_FILE)
    }
    revision, now = revision_of(project_folder)[0], code_files(project_folder)
    differences = []
    if (was := run.data.tags["mlflow.source.git.commit"]) != revision:
        remedy = "install that one" if was.startswith(PACKAGE) else f"git checkout {was}"
        differences.append(f"code of revision {was}, not {revision}: {remedy}")
    if texts[DIFF_FILE] != now[DIFF_FILE]:
        differences.append(f"other uncommitted changes: the run's artifact {DIFF_FILE} has them")
    missing = sorted(set(texts[PACKAGES_FILE].split("\n")) - set(now[PACKAGES_FILE].split("\n")))
    if missing:
        differences.append(f"packages {', '.join(missing)}: pip install them")
    return Recorded(
        stage=run.data.tags["stage"],
        recipe=run.data.tags.get("recipe", ""),
        options=texts[OPTIONS_FILE],
        differences=differences,
        losses={each.step: each.value for each in client.get_metric_history(run_id, "train/loss")},
        data={each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs}
        if run.inputs
        else {},
        made_from={name: read.run for name, read in inputs_of(run.data.tags).items() if read.run},
    )


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What MLflow knows of the model that a run ended with."""

    inputs: dict[str, str]
    """The places that the run read, by what they are."""
    final: dict[str, float]
    """How the training ended: its step, and its validation."""
    errors: dict[str, float]
    """What evaluations found: EPE and Fl, by the metric's path."""


def model_record(run_id: str, project_folder: Path = PROJECT_FOLDER) -> ModelRecord | None:
    """None where MLflow doesn't know the run or isn't there."""
    try:
        with impatient():
            client = Run.reopen(tracking_uri(project_folder), run_id).client
            made = client.get_run(run_id)
            judged = client.search_runs(
                [made.info.experiment_id],
                f"tags.`{run_tag('model')}` = '{run_id}' and tags.stage = 'evaluate'",
            )
    except (ConnectionError, MlflowException):
        return None
    return ModelRecord(
        inputs={name: read.place for name, read in inputs_of(made.data.tags).items() if read.place},
        final={
            name.removeprefix("final/"): value
            for name, value in sorted(made.data.metrics.items())
            if name.startswith("final/")
        },
        errors={
            name: value
            # The latest comes first, and counts.
            for run in reversed(judged)
            if _is_as_it_is(run.data.params)
            for name, value in sorted(run.data.metrics.items())
            if {"epe", "fl"} & {*name.split("/")} and name != "final/epe"
        },
    )


def _is_as_it_is(parameters: Mapping[str, str]) -> bool:
    """Whether an evaluation ran the network as it is: otherwise its errors aren't the network's."""
    usual = flattened(InferenceOptions(), "inference")
    return all(parameters.get(name, value) == value for name, value in usual.items())


def comparison(before: Recorded, after: Recorded) -> str:
    """Whether two runs read the same data and had the same losses."""
    if changed := [name for name, digest in before.data.items() if after.data.get(name) != digest]:
        return f"not the same: it read other data ({', '.join(changed)})"
    steps = sorted(before.losses)
    if steps != sorted(after.losses):
        return f"not the same: losses of {len(steps)} steps then, and of {len(after.losses)} now"
    other = [step for step in steps if before.losses[step] != after.losses[step]]
    if not other:
        return f"the same: {len(steps)} losses equal to the last bit"
    most = max(abs(after.losses[step] / before.losses[step] - 1) for step in other)
    return f"not the same: losses differ from step {other[0]} on, by at most {most:.2g} of their value"
