"""Which run made what from what?

Runs are written through `MlflowClient`, not through MLflow's global active run, so that another process can
reopen one under the same id. A step of a metric is logged once: whoever opens a run reads each metric's last
step and ignores what lies at or below it, because a training that resumes replays the same steps to the same
values.
"""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, LoggedModelInput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from pydantic import TypeAdapter

from pipelines.disclosure import storable, without_secrets
from pipelines.installation import PROJECT_FOLDER
from pipelines.pages import VIEW_TAG, experiment_tags, run_page
from pipelines.parameters import LONGEST_SUBJECT, differing, flattened, shortened
from pipelines.revision import code_files, code_tags
from pipelines.run_inputs import place_tag, run_tag
from pipelines.run_store import client_of, impatient, sqlite_file, tracking_uri, unreachable, viewer
from pipelines.storage import json_bytes

EXPERIMENT = "distillflow"

OPTIONS_FILE = "repeat/options.json"
"""Artifact of a run: the stage's options."""
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's answers for a name that it doesn't know; an unknown alias is an invalid parameter to it."""


class Run:
    """A run of one stage. One process logs to it at a time."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str) -> None:
        run = client.get_run(run_id)
        self.uri = uri
        """Where it is recorded: with the id, what another process needs to go on with it."""
        self.run_id = run_id
        self.client = client
        self._experiment_id = run.info.experiment_id
        self.artifact_uri = run.info.artifact_uri
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}

    @classmethod
    def reopen(cls, uri: str, run_id: str) -> "Run":
        """The run in this process; ConnectionError where its store is a file on another machine."""
        file = sqlite_file(uri)
        # MLflow would make an empty database here, and then miss the run in it.
        if file is not None and not file.exists():
            raise ConnectionError(
                f"run {run_id} is recorded in {file}, which this machine doesn't have; for several "
                "machines start `mlflow server` and set MLFLOW_TRACKING_URI to its address"
            )
        return cls(client_of(uri), uri, run_id)

    @property
    def how_to_look(self) -> str:
        """The page of the run on its server. For a run in a database, first the line to type that starts a
        server, whose page is on the next line."""
        page = run_page(self._experiment_id, self.run_id)
        how = viewer(self.uri)
        if self.uri.startswith("http"):
            return f"{how.rstrip('/')}/{page}"
        return f"{how}\nand then open: http://127.0.0.1:5000/{page}"

    def last_picture(self) -> str | None:
        """The path of the artifact that is the picture which was logged last, None without any."""
        found = [each.path for each in self.client.list_artifacts(self.run_id, "images")]
        return max((path for path in found if path.endswith(".png")), key=_logged_at, default=None)

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
            self.client.log_batch(self.run_id, metrics=metrics)
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
        values = {name: shortened(text) for name, text in flattened(parameters, "").items()}
        before = self.client.get_run(self.run_id).data.params
        fresh = [Param(name, text) for name, text in values.items() if name not in before]
        if fresh:
            self.client.log_batch(self.run_id, params=fresh)
        for name, text in values.items():
            if before.get(name, text) != text:
                self.tag(f"resumed.{name}", text)

    def tag(self, name: str, value: str) -> None:
        """Sets a tag, over its former value."""
        self.client.set_tag(self.run_id, name, shortened(value))

    def link(self, name: str, run_id: str | None) -> None:
        """Records that this run was made from another one's result: tag `input.<name>.run`; None, if what it
        was made from doesn't say which run made it, records nothing."""
        if run_id is not None:
            self.tag(run_tag(name), run_id)

    def dataset(self, name: str, uri: str, digest: str, context: str) -> None:
        """Records the data that the run read under its own digest, of at most 36 characters.

        `context` says what for: training, validation, labelling.
        """
        source = json.dumps({"uri": without_secrets(uri)})
        data = Dataset(name=name, digest=digest, source_type="uri", source=source)
        self.client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def reads_model(self, model_id: str) -> None:
        """Records that the run reads one of MLflow's logged models."""
        self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])

    def picture(self, name: str, image: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """Shows an RGB image under `name` at `step`, once; MLflow's page has a slider over the steps."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"picture {name!r} is {image.dtype} {list(image.shape)} and must be uint8 [height, width, 3]"
            )
        # MLflow chooses the file's name; its older versions wrote "%" for "+".
        file = re.compile(rf"images/{re.escape(name.replace('/', '~'))}[+%]step[+%]{step}[+%].*")
        stored = self.client.list_artifacts(self.run_id, "images")
        if not any(file.fullmatch(entry.path) for entry in stored):
            self.client.log_image(self.run_id, image, key=name, step=step, synchronous=True)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Stores a file, or what a folder contains, in the run's artifact folder `folder`."""
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    def document(self, path: str, values: Mapping[str, object]) -> None:
        """Stores JSON as the run's artifact `path`."""
        self.client.log_text(self.run_id, json_bytes(dict(values)).decode(), path)

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


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
    sample_seconds: float = 10.0,
    project_folder: Path = PROJECT_FOLDER,
) -> Iterator[Run]:
    """The run of one stage, ended with the block: FAILED by an exception, KILLED by Ctrl-C, else FINISHED.

    `inputs` are locations by name. A run is named after its stage, its recipe, and its `subject` or else the
    parameters that differ from `defaults`. Runs that start inside the block of a chain become its children.
    `resume_run_id` goes on with an earlier run of the stage. Every `sample_seconds` the load of the driver's
    machine is measured, and the mean of six measurements is recorded. ConnectionError within seconds where
    the MLflow server doesn't answer.
    """
    uri = tracking_uri(project_folder)
    client = client_of(uri)
    experiment_id = _experiment_id(client, uri)
    code = {name: shortened(value) for name, value in code_tags(project_folder).items()}
    if dataclasses.is_dataclass(parameters):
        options = TypeAdapter(type(parameters)).dump_json(parameters, indent=1).decode()
        files = {OPTIONS_FILE: storable(options), **code_files(project_folder)}
    else:
        files = {}
    if resume_run_id is None:
        subject = subject or differing(parameters, defaults, {"run_root", "resume", *(inputs or {})})
        run_id = _create(client, experiment_id, stage, recipe, subject, code)
    else:
        run_id = resume_run_id
        _resume(client, run_id, stage, uri)
        for name, value in code.items():
            client.set_tag(run_id, name, value)
    run = Run(client, uri, run_id)
    with _ended(run, sample_seconds, is_chain=is_chain):
        run.log_params(parameters)
        for name, text in files.items():
            client.log_text(run_id, text, name)
        for name, location in (inputs or {}).items():
            run.tag(place_tag(name), location)
        yield run


def _logged_at(picture: str) -> int:
    """When MLflow was given the picture, in milliseconds, which is in its file's name."""
    found = re.search(r"timestamp\+(\d+)", picture)
    return int(found[1]) if found else 0


def _create(
    client: MlflowClient,
    experiment_id: str,
    stage: str,
    recipe: str | None,
    subject: str | None,
    code: Mapping[str, str],
) -> str:
    """The id of a new run, a child of the chain's if one runs now."""
    tags = {"stage": stage, **({} if recipe is None else {"recipe": recipe}), **code}
    if (parent := _parent.get()) is not None:
        tags[MLFLOW_PARENT_RUN_ID] = parent
    name = stage if recipe in (None, stage) else f"{stage} {recipe}"
    name = f"{name}: {shortened(subject, LONGEST_SUBJECT)}" if subject else name
    return str(client.create_run(experiment_id, tags=tags, run_name=storable(name)).info.run_id)


@contextlib.contextmanager
def _ended(run: Run, sample_seconds: float, *, is_chain: bool) -> Iterator[None]:
    """Measures the machine's load during the block, and gives the run the status with which it ends."""
    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run.run_id,
        sampling_interval=sample_seconds,
        samples_before_logging=6,
        resume_logging=True,
        tracking_uri=run.uri,
    )
    token = _parent.set(run.run_id if is_chain else _parent.get())
    try:
        monitor.start()  # type: ignore[no-untyped-call]
        yield
    except BaseException as error:
        # If MLflow is what failed, its first error is the one to show, and soon.
        with impatient(), contextlib.suppress(MlflowException):
            monitor.finish()  # type: ignore[no-untyped-call]
            run.tag("failure", f"{type(error).__name__}: {error}")
            run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    finally:
        _parent.reset(token)
    monitor.finish()  # type: ignore[no-untyped-call]
    run.finish()


def origin(run_id: str, project_folder: Path = PROJECT_FOLDER) -> dict[str, str]:
    """When a run began, in UTC, its command and its code's revision; empty where this MLflow doesn't have it,
    as of labels that were made elsewhere."""
    client = client_of(tracking_uri(project_folder))
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return {}
    began = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    tags = run.data.tags
    return {
        "began": f"{began:%Y-%m-%d %H:%M} UTC",
        "command": tags["command"],
        "revision": tags["mlflow.source.git.commit"],
    }


def _experiment_id(client: MlflowClient, uri: str) -> str:
    """The experiment, made where it is missing; the first request, which finds a dead server."""
    try:
        with impatient():
            experiment = client.get_experiment_by_name(EXPERIMENT)
    except MlflowException as error:
        raise unreachable(uri, error) from error
    if experiment is not None:
        return _arranged(client, experiment)
    file = sqlite_file(uri)
    if file is None and not uri.startswith("http"):
        raise ValueError(
            f"MLflow at {without_secrets(uri)} has no experiment {EXPERIMENT!r}, and a database doesn't say "
            f"where files go; once, type: mlflow experiments create --experiment-name {EXPERIMENT} "
            "--artifact-location s3://bucket/folder"
        )
    # Without a location MLflow writes into the current folder of each process; a server decides for itself.
    location = None if file is None else str(file.parent / "mlartifacts")
    try:
        made = client.create_experiment(EXPERIMENT, artifact_location=location)
    except MlflowException:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        # Another process was faster.
        return _arranged(client, experiment)
    return _arranged(client, client.get_experiment(made))


def _arranged(client: MlflowClient, experiment: Experiment) -> str:
    """The id of the experiment, whose page is arranged unless it was before; what a user wrote stays."""
    number = str(experiment.experiment_id)
    if VIEW_TAG not in experiment.tags:
        for name, value in experiment_tags(number).items():
            if name not in experiment.tags:
                client.set_experiment_tag(number, name, value)
    return number


def _resume(client: MlflowClient, run_id: str, stage: str, uri: str) -> None:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise unreachable(uri, error) from error
        raise ValueError(f"no run {run_id} to resume at {without_secrets(uri)} ({error})") from error
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
