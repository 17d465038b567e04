"""Which run made what from what? The only module that speaks to MLflow.

Runs are written through `MlflowClient`, not through MLflow's global active run, so that another process can
reopen one under the same id. A step of a metric is logged once: whoever opens a run reads each metric's last
step and ignores what lies at or below it, because a training that resumes replays the same steps to the same
values.
"""

import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from jaxtyping import UInt8
from pydantic import TypeAdapter

# MLflow reads these when imported: no usage reports from a user's cluster, no progress bars in a job's log.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipelines.locations import PROJECT_FOLDER, is_mlflow_uri, is_shipped_copy

EXPERIMENT = "distillflow"
_TRAINING_PAGES = "?workflowType=machine_learning"
"""Of MLflow's two faces that of training; without, a page has the menu for language models."""
CHAMPION = "champion"
"""The alias of a registered model's best version."""

_SYSTEM_SAMPLE_SECONDS = 10.0
"""Between two looks at CPUs, memory and disk of the machine that the driver runs on; each sixth is logged."""
_LONGEST_SUBJECT = 100
"""Characters in a run's name beside its stage and recipe."""
_LONGEST_TEXT = 5000
"""Characters of a parameter or tag that every MLflow store accepts."""
_PACKAGES = ("torch", "ray", "numpy", "pyarrow", "av", "mlflow")
_RUN_URI = re.compile(r"runs:/(?P<run>[^/]+)(?:/(?P<path>.+))?")
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")
_OPTIONS_FILE, _DIFF_FILE, _PACKAGES_FILE = (
    f"repeat/{name}" for name in ("options.json", "uncommitted.diff", "packages.txt")
)
"""Artifacts of a run: with its tags, all that is needed to do the same again."""
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's answers for a name that it doesn't know; an unknown alias is an invalid parameter to it."""


def tracking_uri(project_folder: Path = PROJECT_FOLDER) -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, or a SQLite file in the project folder.

    ValueError for what would be another place in another process: a relative file, or the project folder
    where it is the copy that Ray made for a job.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        if is_shipped_copy(project_folder):
            raise ValueError(
                f"MLFLOW_TRACKING_URI is not set, and in {project_folder}, Ray's copy of the working folder "
                "for this job, the runs would be lost; name a server: ray job submit --runtime-env-json "
                '\'{"env_vars": {"MLFLOW_TRACKING_URI": "http://host:5000"}}\' ...'
            )
        return f"sqlite:///{project_folder.resolve() / 'mlflow.db'}"
    if uri.startswith("file:") or (":/" not in uri and uri != "databricks"):
        raise ValueError(
            f"MLFLOW_TRACKING_URI {uri!r} is a folder of files, which MLflow no longer writes; "
            "use sqlite:////absolute/path/mlflow.db or the http:// address of a server"
        )
    if uri.startswith("sqlite:") and _sqlite_file(uri) is None:
        raise ValueError(
            f"MLFLOW_TRACKING_URI {uri!r} depends on the folder of each process; make it absolute, such as "
            f"sqlite:///{Path.cwd() / 'mlflow.db'}"
        )
    return uri


def ui_command(project_folder: Path = PROJECT_FOLDER) -> str:
    """The line to type to look at the runs; for a server, its address."""
    uri = tracking_uri(project_folder)
    if uri.startswith("http"):
        return _without_secrets(uri)
    program = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).parent / "mlflow")
    return shlex.join([program, "ui", "--backend-store-uri", uri])


class Run:
    """A run of one stage. One process logs to it at a time."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str) -> None:
        run = client.get_run(run_id)
        self.uri = uri
        """Where it is recorded: with the id, what another process needs to go on with it."""
        self.run_id = run_id
        self._client = client
        self._experiment_id = run.info.experiment_id
        self._artifact_uri = run.info.artifact_uri
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}

    @classmethod
    def reopen(cls, uri: str, run_id: str) -> "Run":
        """The run in this process; ConnectionError where its store is a file on another machine."""
        file = _sqlite_file(uri)
        # MLflow would make an empty database here, and then miss the run in it.
        if file is not None and not file.exists():
            raise ConnectionError(
                f"run {run_id} is recorded in {file}, which this machine doesn't have; for several "
                "machines start `mlflow server` and set MLFLOW_TRACKING_URI to its address"
            )
        return cls(_client(uri), uri, run_id)

    @property
    def url_hint(self) -> str:
        """The page of the run, on the server or on the one that `ui_command` starts."""
        server = self.uri if self.uri.startswith("http") else "http://127.0.0.1:5000"
        page = f"#/experiments/{self._experiment_id}/runs/{self.run_id}{_TRAINING_PAGES}"
        return f"{_without_secrets(server).rstrip('/')}/{page}"

    def has(self, metric: str) -> bool:
        """True where the metric was recorded, now or before the run was resumed."""
        return metric in self._last_step

    def last_step(self, metric: str) -> int:
        """The last step at which the metric was recorded, -1 where it wasn't."""
        return int(self._last_step.get(metric, -1))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records metrics at `step` in one request; ignores one that was recorded at this step or a later."""
        now = time.time_ns() // 1_000_000
        fresh = {key: float(value) for key, value in values.items() if step > self.last_step(key)}
        if fresh:
            metrics = [Metric(key, value, now, step) for key, value in fresh.items()]
            self._client.log_batch(self.run_id, metrics=metrics)
            self._last_step.update(dict.fromkeys(fresh, step))

    def summary(self, values: Mapping[str, float]) -> None:
        """Records final metrics, at the last step that was logged."""
        # MLflow counts the samples of its system metrics from 0, whatever the training's step is.
        steps = [step for key, step in self._last_step.items() if not key.startswith("system/")]
        self.log(max(steps, default=0), values)

    def log_params(self, parameters: object) -> None:
        """Records a dataclass or mapping, nested as it may be, under names like `outer.inner`.

        A value above 5000 characters is cut. A parameter can't change in MLflow: where a resumed run has
        another value than before, it is a tag, `resumed.outer.inner`.
        """
        values = {name: _shortened(text) for name, text in _flattened(parameters, "").items()}
        before = self._client.get_run(self.run_id).data.params
        fresh = [Param(name, text) for name, text in values.items() if name not in before]
        if fresh:
            self._client.log_batch(self.run_id, params=fresh)
        for name, text in values.items():
            if before.get(name, text) != text:
                self.tag(f"resumed.{name}", text)

    def tag(self, name: str, value: str) -> None:
        """Sets a tag, over its former value."""
        self._client.set_tag(self.run_id, name, _shortened(value))

    def link(self, name: str, run_id: str | None) -> None:
        """Records that this run was made from another one's result: tag `from.<name>`; None, if what it was
        made from doesn't say which run made it, records nothing."""
        if run_id is not None:
            self.tag(f"from.{name}", run_id)

    def dataset(self, name: str, uri: str, digest: str, context: str) -> None:
        """Records the data that the run read under its own digest, of at most 36 characters.

        `context` says what for: training, validation, labelling.
        """
        source = json.dumps({"uri": _without_secrets(uri)})
        data = Dataset(name=name, digest=digest, source_type="uri", source=source)
        self._client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def picture(self, name: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Shows an RGB image under `name` at `step`, once; MLflow's page has a slider over the steps."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"picture {name!r} is {image.dtype} {list(image.shape)} and must be uint8 [height, width, 3]"
            )
        # MLflow chooses the file's name; its older versions wrote "%" for "+".
        file = re.compile(rf"images/{re.escape(name.replace('/', '~'))}[+%]step[+%]{step}[+%].*")
        stored = self._client.list_artifacts(self.run_id, "images")
        if not any(file.fullmatch(entry.path) for entry in stored):
            self._client.log_image(self.run_id, image, key=name, step=step, synchronous=True)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Stores a file, or what a folder contains, in the run's artifact folder `folder`."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def document(self, path: str, values: Mapping[str, object]) -> None:
        """Stores JSON as the run's artifact `path`."""
        self._client.log_dict(self.run_id, dict(values), path)

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status)


_parent: ContextVar[str | None] = ContextVar("parent", default=None)
"""The run of the chain that runs now."""


@contextlib.contextmanager
def start(
    stage: str,
    *,
    recipe: str | None = None,
    parameters: object,
    inputs: Mapping[str, str] | None = None,
    resume_run_id: str | None = None,
    subject: str | None = None,
    defaults: object = None,
    is_chain: bool = False,
    project_folder: Path = PROJECT_FOLDER,
) -> Iterator[Run]:
    """The run of one stage, ended with the block: FAILED by an exception, KILLED by Ctrl-C, else FINISHED.

    `inputs` are locations by name; a model's URI in MLflow is also linked to the run that made it. `subject`,
    or the parameters that are not as in `defaults`, tell runs of one stage and recipe apart in their names.
    Of a chain the runs that start inside the block are children.
    `resume_run_id` goes on with an earlier run of the stage. ConnectionError within seconds where the MLflow
    server doesn't answer.
    """
    uri = tracking_uri(project_folder)
    client = _client(uri)
    experiment_id = _experiment_id(client, uri)
    code = _code_tags(project_folder)
    if dataclasses.is_dataclass(parameters):
        options = TypeAdapter(type(parameters)).dump_json(parameters, indent=1).decode()
        files = {_OPTIONS_FILE: _without_secrets(options), **_code_files(project_folder)}
    else:
        files = {}
    if resume_run_id is None:
        tags = {"stage": stage, **({} if recipe is None else {"recipe": recipe}), **code}
        if (parent := _parent.get()) is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        name = stage if recipe in (None, stage) else f"{stage} {recipe}"
        subject = subject or _differing(parameters, defaults, {"run_root", "resume", *(inputs or {})})
        name = f"{name}: {subject}" if subject else name
        run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    else:
        run_id = resume_run_id
        _resume(client, run_id, stage, uri)
        for name, value in code.items():
            client.set_tag(run_id, name, value)
    run = Run(client, uri, run_id)
    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run_id,
        sampling_interval=_SYSTEM_SAMPLE_SECONDS,
        samples_before_logging=6,
        resume_logging=True,
        tracking_uri=uri,
    )
    token = _parent.set(run_id if is_chain else _parent.get())
    try:
        monitor.start()  # type: ignore[no-untyped-call]
        run.log_params(parameters)
        for name, text in files.items():
            client.log_text(run_id, text, name)
        for name, location in (inputs or {}).items():
            run.tag(f"input.{name}", location)
            if is_mlflow_uri(location) and (maker := run_of(location, project_folder)) is not None:
                run.link(name, maker)
        yield run
    except BaseException as error:
        # If MLflow is what failed, its first error is the one to show, and soon.
        with _impatient(), contextlib.suppress(MlflowException):
            monitor.finish()  # type: ignore[no-untyped-call]
            run.tag("failure", f"{type(error).__name__}: {error}")
            run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    finally:
        _parent.reset(token)
    monitor.finish()  # type: ignore[no-untyped-call]
    run.finish()


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
    there is none. judge: the loss there of the model at a URI, for a champion that another set judged; may
    raise FileNotFoundError or ValueError where it can't be read, which ends its reign. ValueError for a loss
    that isn't finite or a run without that folder.
    """
    if not math.isfinite(validation_loss):
        raise ValueError(
            f"validation loss {validation_loss} of run {run.run_id} must be finite; the training diverged, "
            "and a diverged model is not registered"
        )
    client = run._client
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
    if version is None:
        source = f"{run._artifact_uri}/{folder}"
        version = client.create_model_version(name, source, run_id=run.run_id, tags=all_tags)
    champion = _champion(client, name)
    is_champion = (
        champion is None
        or str(champion.version) == str(version.version)
        or validation_loss < _loss_of(champion, validation_digest, judge)
    )
    if is_champion:
        client.set_registered_model_alias(name, CHAMPION, str(version.version))
    return RegisteredVersion(name=name, version=str(version.version), is_champion=is_champion)


def _loss_of(champion: ModelVersion, validation_digest: str, judge: Callable[[str], float]) -> float:
    """A champion's loss on a validation set; infinite where it can't be read any more."""
    if champion.tags.get("validation.digest") == validation_digest:
        return float(champion.tags["validation.loss"])
    uri = f"models:/{champion.name}/{champion.version}"
    print(f"{uri}, the champion, was judged on other pairs; judging it on these")
    try:
        return judge(uri)
    except (FileNotFoundError, ValueError) as error:
        print(f"it can't be read: {error}")
        return math.inf


def run_of(uri: str, project_folder: Path = PROJECT_FOLDER) -> str | None:
    """The id of the run that made the model at a runs:/ or models:/ URI; raises as `download` does."""
    return _resolved(uri, project_folder)[0]


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


def recorded(run_id: str, project_folder: Path = PROJECT_FOLDER) -> Recorded:
    """What is needed to do a run again, or to compare one with it; ValueError for a run that isn't there or
    was made by a version that recorded less."""
    uri = tracking_uri(project_folder)
    client = _client(uri)
    try:
        with _impatient():
            run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise _unreachable(uri, error) from error
        raise ValueError(f"no run {run_id} at {_without_secrets(uri)}") from error
    there = {each.path for each in client.list_artifacts(run_id, Path(_OPTIONS_FILE).parent.name)}
    if _OPTIONS_FILE not in there:
        raise ValueError(
            f"run {run_id} has no {_OPTIONS_FILE}: it is no job's, or an older version's; its command was "
            f"{run.data.tags.get('command')!r}"
        )
    texts = {
        name: mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}")
        for name in (_OPTIONS_FILE, _DIFF_FILE, _PACKAGES_FILE)
    }
    revision, now = _revision(project_folder)[0], _code_files(project_folder)
    differences = []
    if (was := run.data.tags["mlflow.source.git.commit"]) != revision:
        differences.append(f"code of revision {was}, not {revision}: git checkout {was}")
    if texts[_DIFF_FILE] != now[_DIFF_FILE]:
        differences.append(f"other uncommitted changes: the run's artifact {_DIFF_FILE} has them")
    missing = sorted(set(texts[_PACKAGES_FILE].split("\n")) - set(now[_PACKAGES_FILE].split("\n")))
    if missing:
        differences.append(f"packages {', '.join(missing)}: pip install them")
    return Recorded(
        stage=run.data.tags["stage"],
        recipe=run.data.tags.get("recipe", ""),
        options=texts[_OPTIONS_FILE],
        differences=differences,
        losses={each.step: each.value for each in client.get_metric_history(run_id, "train/loss")},
        data={each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs}
        if run.inputs
        else {},
        made_from={
            name.removeprefix("from."): maker
            for name, maker in run.data.tags.items()
            if name.startswith("from.")
        },
    )


def origin(run_id: str, project_folder: Path = PROJECT_FOLDER) -> dict[str, str]:
    """When a run began, in UTC, its command and its code's revision; empty where this MLflow doesn't have it,
    as of labels that were made elsewhere."""
    client = _client(tracking_uri(project_folder))
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        return {}
    began = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    tags = run.data.tags
    return {
        "began": f"{began:%Y-%m-%d %H:%M} UTC",
        "command": tags["command"],
        "revision": tags["mlflow.source.git.commit"],
    }


def download(uri: str, project_folder: Path = PROJECT_FOLDER) -> Path:
    """The local folder of a model in MLflow; read it only, since a local store answers with its own folder.

    `uri` is runs:/<run id>/<folder> (by default `model`), models:/<name>@<alias> or models:/<name>/<version>.
    ValueError for another form, FileNotFoundError where there is no such model, ConnectionError.
    """
    _, source, store = _resolved(uri, project_folder)
    # Given models:/, MLflow 3.17 would ask the process's own registry, which is ./mlflow.db by default.
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=store))
    except (MlflowException, OSError) as error:
        raise FileNotFoundError(
            f"MLflow knows {uri}, but its files can't be read at {_without_secrets(source)} ({error}); "
            "check the artifact store and its credentials"
        ) from error


def _resolved(uri: str, project_folder: Path) -> tuple[str | None, str, str]:
    """(run id, artifact URI, tracking URI) of a model's URI."""
    store = tracking_uri(project_folder)
    client = _client(store)
    try:
        with _impatient():
            if match := _RUN_URI.fullmatch(uri):
                run = client.get_run(match["run"])
                return run.info.run_id, f"{run.info.artifact_uri}/{match['path'] or 'model'}", store
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
        if error.error_code not in _ABSENT:
            raise _unreachable(store, error) from error
        raise FileNotFoundError(
            f"MLflow at {_without_secrets(store)} has no {uri} ({error}); train and register one, or set "
            "MLFLOW_TRACKING_URI to the server that has it"
        ) from error
    raise ValueError(
        f"{uri!r} is no model in MLflow; write runs:/<run id>/model, models:/<name>@<alias> or "
        "models:/<name>/<version number>"
    )


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        return None


def _experiment_id(client: MlflowClient, uri: str) -> str:
    """The experiment, made where it is missing; the first request, which finds a dead server."""
    try:
        with _impatient():
            experiment = client.get_experiment_by_name(EXPERIMENT)
    except MlflowException as error:
        raise _unreachable(uri, error) from error
    if experiment is not None:
        return str(experiment.experiment_id)
    file = _sqlite_file(uri)
    if file is None and not uri.startswith("http"):
        raise ValueError(
            f"MLflow at {_without_secrets(uri)} has no experiment {EXPERIMENT!r}, and a database doesn't say "
            f"where files go; once, type: mlflow experiments create --experiment-name {EXPERIMENT} "
            "--artifact-location s3://bucket/folder"
        )
    # Without a location MLflow writes into the current folder of each process; a server decides for itself.
    location = None if file is None else str(file.parent / "mlartifacts")
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))
    except MlflowException:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        # Another process was faster.
        return str(experiment.experiment_id)


def _unreachable(uri: str, error: MlflowException) -> ConnectionError:
    return ConnectionError(
        f"MLflow at {_without_secrets(uri)} doesn't answer as MLflow ({_without_secrets(str(error))}); "
        "start `mlflow server` there, correct MLFLOW_TRACKING_URI, or unset it to record in a local file"
    )


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Requests fail after one try of 5 s, not eight of 2 minutes; MLflow reads this at each request."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _resume(client: MlflowClient, run_id: str, stage: str, uri: str) -> None:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"no run {run_id} to resume at {_without_secrets(uri)} ({error})") from error
    was = run.data.tags.get("stage")
    if was != stage:
        raise ValueError(f"run {run_id} is of stage {was!r}, not {stage!r}; resume one of the same stage")
    # Its artifacts are the registered version's, which this run would write over.
    if versions := client.search_model_versions(f"run_id = '{run_id}'"):
        model = f"models:/{versions[0].name}/{versions[0].version}"
        raise ValueError(
            f"run {run_id} has ended, and its model is registered as {model}; start a new run with --init "
            f"{model}"
        )
    client.update_run(run_id, status="RUNNING")
    if "failure" in run.data.tags:
        client.delete_tag(run_id, "failure")


def _code_tags(project_folder: Path) -> dict[str, str]:
    """Which code runs: revision, command line, versions."""
    revision, is_dirty = _revision(project_folder)
    return {
        "mlflow.source.name": sys.argv[0],
        "mlflow.source.type": "JOB" if is_shipped_copy(project_folder) else "LOCAL",
        "mlflow.source.git.commit": revision,
        "revision.dirty": is_dirty,
        "command": _shortened(shlex.join(sys.argv)),
        "version.python": platform.python_version(),
        **{f"version.{name}": _version(name) for name in _PACKAGES},
        # It comes as four packages, or with the system as none.
        "version.opencv": cv2.__version__,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _revision(project_folder: Path) -> tuple[str, str]:
    """(git revision, whether files differ from it); a copy without git repeats DISTILLFLOW_REVISION."""
    told = os.environ.get("DISTILLFLOW_REVISION", "unknown")
    revision, changes = (
        _git(project_folder, *command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    if revision is None or changes is None:
        return told, "unknown"
    return revision.strip(), str(changes.strip() != "").lower()


def _git(project_folder: Path, *arguments: str) -> str | None:
    """What a git command prints about the project; None without git or a repository of its own."""
    # Without a .git of its own, git would answer for a repository that the folder happens to lie in.
    if not (project_folder / ".git").exists():
        return None
    command = ["git", "-C", str(project_folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _code_files(project_folder: Path) -> dict[str, str]:
    """By artifact: how files differ from the revision, with code that it doesn't have, and every package
    installed."""
    packages = {f"{each.metadata['Name']}=={each.version}" for each in importlib.metadata.distributions()} | {
        f"python=={platform.python_version()}"
    }
    # -z: without it git quotes names that aren't ASCII
    unknown = _git(project_folder, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py") or ""
    new = [
        line
        for name in unknown.split("\0")[:-1]
        for line in difflib.unified_diff(
            [],
            (project_folder / name).read_text(errors="replace").splitlines(keepends=True),
            "/dev/null",
            f"b/{name}",
        )
    ]
    return {
        _DIFF_FILE: (_git(project_folder, "diff", "HEAD") or "") + "".join(new),
        _PACKAGES_FILE: "\n".join(sorted(packages)),
    }


def _flattened(value: object, name: str) -> dict[str, str]:
    """Leaves by path; a nested dataclass also says its type, because an option may be of several."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return ({name: type(value).__name__} if name else {}) | _flattened(fields, name)
    if isinstance(value, Mapping):
        inner = [_flattened(each, f"{name}.{key}" if name else str(key)) for key, each in value.items()]
        return {path: text for leaves in inner for path, text in leaves.items()}
    if isinstance(value, (list, tuple)) and any(dataclasses.is_dataclass(each) for each in value):
        return _flattened(dict(enumerate(value)), name)
    return {name: str(value)}


def _differing(parameters: object, defaults: object, without: Set[str]) -> str:
    """The parameters that have other values than the defaults, by the ends of their names."""
    if defaults is None:
        return ""
    usual = _flattened(defaults, "")
    changed = [
        f"{'.'.join(name.split('.')[-2:]).removeprefix('training.')} {value}"
        for name, value in _flattened(parameters, "").items()
        if name not in without and value != usual.get(name)
    ]
    return _shortened(", ".join(changed), _LONGEST_SUBJECT)


def _shortened(text: str, longest: int = _LONGEST_TEXT) -> str:
    text = _without_secrets(text)
    note = f"... ({len(text)} characters)"
    return text if len(text) <= longest else text[: longest - len(note)] + note


def _without_secrets(text: str) -> str:
    """`text` without the user and password of a URI in it."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _client(uri: str) -> MlflowClient:
    """Speaks to the store; a SQLite file's tables are made by the first one who opens it, while others
    wait."""
    file = _sqlite_file(uri)
    if file is None:
        return MlflowClient(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f"{file.name}.lock")):
        return MlflowClient(uri)


def _sqlite_file(uri: str) -> Path | None:
    """The file of an absolute SQLite URI."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///(/[^?]+)(?:\?.*)?", uri)
    return Path(match[1]) if match else None
