"""Which models does MLflow know?"""

import functools
import json
import math
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from pipelines.checkpoints import CARD_FILE, OtherVersionError
from pipelines.disclosure import tell, without_secrets
from pipelines.installation import PROJECT_FOLDER
from pipelines.parameters import shortened
from pipelines.run_store import client_of, impatient, tracking_uri, unreachable
from pipelines.tracking import ABSENT, Run

CHAMPION = "champion"
"""The alias of a registered model's best version."""
_RUN_URI = re.compile(r"runs:/(?P<run>[^/]+)(?:/(?P<path>.+))?")
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")
LOGGED_MODEL_URI = re.compile(r"models:/(?P<id>m-[0-9a-f]{32})")
"""Of a logged model, which stays the same for ever."""


class AbsentModelError(FileNotFoundError):
    """MLflow has no such model, or has lost its files for good: both were asked, and answered."""


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: str
    is_champion: bool

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def register(
    run: Run,
    name: str,
    *,
    validation_loss: float,
    validation_digest: str,
    judge: Callable[[str], float],
    folder: str = "model",
    tags: Mapping[str, str] | None = None,
) -> RegisteredVersion:
    """Makes the run's artifact folder the next version of model `name`; twice the same gives one version.

    It becomes the champion where its loss is lower than the champion's on the same validation set, and where
    there is none. judge: the loss there of the model at a URI, for a champion that another set judged. That
    it raises AbsentModelError or OtherVersionError ends the champion's reign. Whatever else it raises, as for
    files that can't be read now or are damaged, is passed on: the alias stays, and nothing is registered, so
    that the run can be resumed. ValueError for a loss that isn't finite or a run without that folder.
    """
    if not math.isfinite(validation_loss):
        raise ValueError(
            f"validation loss {validation_loss} of run {run.run_id} must be finite; the training diverged, "
            "and a diverged model is not registered"
        )
    client = run.client
    if not client.list_artifacts(run.run_id, folder):
        raise ValueError(f"run {run.run_id} has no artifact folder {folder!r}; store the model in it first")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    all_tags = {
        **(tags or {}),
        "artifact": folder,
        "validation.digest": validation_digest,
        "validation.loss": repr(float(validation_loss)),
    }
    earlier = client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
    version = next((each for each in earlier if each.tags == all_tags), None)
    losses: dict[str, float] = {}

    def loss_of(champion: ModelVersion) -> float:
        number = str(champion.version)
        if number not in losses:
            losses[number] = _loss_of(champion, validation_digest, judge)
        return losses[number]

    champion = _champion(client, name)
    if champion is not None and _number(champion) != _number(version):
        loss_of(champion)
    if version is None:
        source = f"{run.artifact_uri}/{folder}"
        version = client.create_model_version(name, source, run_id=run.run_id, tags=all_tags)
    is_champion = _is_crowned(client, version, loss_of)
    return RegisteredVersion(name=name, version=str(version.version), is_champion=is_champion)


def _is_crowned(
    client: MlflowClient, version: ModelVersion, loss_of: Callable[[ModelVersion], float]
) -> bool:
    """Makes a version the champion if it is better than the present one.

    MLflow has no way to set an alias only where it is still what was read. The alias is therefore read again
    after the comparison, which may have taken minutes, and what remains is the time of a request.
    """
    while True:
        champion = _champion(client, version.name)
        loss = math.inf
        if champion is not None and _number(champion) != _number(version):
            loss = loss_of(champion)
        if float(version.tags["validation.loss"]) >= loss:
            return False
        if _number(_champion(client, version.name)) == _number(champion):
            client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
            return True


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def _loss_of(champion: ModelVersion, validation_digest: str, judge: Callable[[str], float]) -> float:
    """A champion's loss on a validation set; infinite where there is no such model any more."""
    if champion.tags.get("validation.digest") == validation_digest:
        return float(champion.tags["validation.loss"])
    uri = f"models:/{champion.name}/{champion.version}"
    tell(f"{uri}, the champion, was judged on other pairs; judging it on these")
    try:
        return judge(uri)
    except (AbsentModelError, OtherVersionError) as error:
        tell(f"it is a model no longer: {error}")
        return math.inf
    except Exception:
        tell(
            "it can't be judged, so it stays the champion, and the new model isn't registered. Restore its "
            "files, or remove its alias on its page in MLflow if they are lost; then go on with this run"
        )
        raise


def log_checkpoint(
    run: Run, step: int, folder: Path, *, params: Mapping[str, str], judged_on: tuple[str, str]
) -> str:
    """Makes the run's checkpoint of a step, in a folder, a logged model of MLflow, once; returns its id.

    The model has the parameters, the step among them, and what the run's validation measured at that step.
    judged_on: name and digest, of at most 36 characters, of the data that this was measured on.
    """
    client = run.client
    recorded = client.get_run(run.run_id)
    logged = recorded.outputs.model_outputs if recorded.outputs is not None else []
    if (known := next((each.model_id for each in logged if each.step == step), None)) is not None:
        return str(known)
    model_id = client.create_logged_model(
        recorded.info.experiment_id,
        name=f"step-{step:08d}",
        source_run_id=run.run_id,
        params={name: shortened(text) for name, text in {**params, "step": str(step)}.items()},
        model_type="optical flow",
    ).model_id
    client.log_model_artifacts(model_id, str(folder))
    measured = [
        # With the time of the run's own value, of which this is no second one.
        Metric(each.key, each.value, each.timestamp, step, model_id, *judged_on, run.run_id)
        for key in recorded.data.metrics
        if key.startswith("validation/")
        for each in client.get_metric_history(run.run_id, key)
        if each.step == step
    ]
    if measured:
        client.log_batch(run.run_id, metrics=measured)
    client.finalize_logged_model(model_id, "READY")
    # Last, as it says that the model is whole.
    client.log_outputs(run.run_id, [LoggedModelOutput(model_id, step)])
    return str(model_id)


def link_version(run: Run, model_id: str, version: RegisteredVersion) -> None:
    """Records which version of a registered model a logged model is, so that MLflow's pages link the two."""
    versions = json.dumps([{"name": version.name, "version": version.version}])
    run.client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: versions})


def run_of(uri: str, project_folder: Path = PROJECT_FOLDER) -> str | None:
    """The id of the run that made the model at a runs:/ or models:/ URI; raises as `download` does."""
    return _resolved(uri, project_folder)[0]


def logged_model_of(uri: str, run_id: str | None, project_folder: Path = PROJECT_FOLDER) -> str | None:
    """The id of the logged model at a runs:/ or models:/ URI, of a run that of its result; None where MLflow
    has none, or none any more. run_id: what `run_of` says of the URI. ConnectionError as of `download`."""
    if match := LOGGED_MODEL_URI.fullmatch(uri):
        return match["id"]
    # A version that somebody else registered has no run.
    if not run_id:
        return None
    store = tracking_uri(project_folder)
    client = client_of(store)
    try:
        with impatient():
            experiment = client.get_run(run_id).info.experiment_id
            logged = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise unreachable(store, error) from error
        return None
    return next((each.model_id for each in logged if MLFLOW_MODEL_VERSIONS in each.tags), None)


def download(uri: str, project_folder: Path = PROJECT_FOLDER) -> Path:
    """The local folder of a model in MLflow; read it only, since a local store answers with its own folder.

    `uri` is runs:/<run id>/<folder> (by default `model`), models:/<name>@<alias>, models:/<name>/<version> or
    models:/<id of a logged model>.
    ValueError for another form, AbsentModelError where there is no such model, ConnectionError where that
    can't be told, as MLflow or the store of its files doesn't answer or isn't mounted.
    """
    _, source, store = _resolved(uri, project_folder)
    # Given models:/, MLflow 3.17 would ask the process's own registry, which is ./mlflow.db by default.
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=store))
    # Each kind of store has its own exceptions.
    except Exception as error:
        place = without_secrets(source)
        if _is_gone(source, store):
            raise AbsentModelError(
                f"MLflow knows {uri}, but there are no files at {place}; train and register it again, or "
                "restore them"
            ) from error
        raise ConnectionError(
            f"MLflow knows {uri}, but its files can't be read at {place} now "
            f"({without_secrets(str(error))}); check that the artifact store is there and mounted, and its "
            "credentials, then run the same command again"
        ) from error


def _is_gone(source: str, store: str) -> bool:
    """True where the run's other artifacts are there and its model isn't.

    Of what isn't mounted MLflow says, without an error, that it is empty. A listing may also be stale, so
    that the model's card is asked for by its name as well.
    """
    try:
        listed = functools.partial(mlflow.artifacts.list_artifacts, tracking_uri=store)
        others = {posixpath.basename(each.path) for each in listed(artifact_uri=posixpath.dirname(source))}
        if not others or posixpath.basename(source) in others or listed(artifact_uri=source):
            return False
    except Exception:
        return False
    try:
        mlflow.artifacts.download_artifacts(artifact_uri=f"{source}/{CARD_FILE}", tracking_uri=store)
    except Exception:
        return True
    return False


def _resolved(uri: str, project_folder: Path) -> tuple[str | None, str, str]:
    """(run id, artifact URI, tracking URI) of a model's URI."""
    store = tracking_uri(project_folder)
    client = client_of(store)
    try:
        with impatient():
            if match := _RUN_URI.fullmatch(uri):
                run = client.get_run(match["run"])
                return run.info.run_id, f"{run.info.artifact_uri}/{match['path'] or 'model'}", store
            if match := LOGGED_MODEL_URI.fullmatch(uri):
                model = client.get_logged_model(match["id"])
                return model.source_run_id, model.artifact_location, store
            if match := _MODEL_URI.fullmatch(uri):
                name, alias, number = match["name"], match["alias"], match["version"]
                version = (
                    client.get_model_version_by_alias(name, alias)
                    if alias
                    else client.get_model_version(name, number)
                )
                source = client.get_model_version_download_uri(name, str(version.version))
                return version.run_id, source, store
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise unreachable(store, error) from error
        raise AbsentModelError(
            f"MLflow at {without_secrets(store)} has no {uri} ({error}); train and register one, or set "
            "MLFLOW_TRACKING_URI to the server that has it"
        ) from error
    raise ValueError(
        f"{uri!r} is no model in MLflow; write runs:/<run id>/model, models:/<name>@<alias>, "
        "models:/<name>/<version number> or models:/<id of a logged model>"
    )


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None
