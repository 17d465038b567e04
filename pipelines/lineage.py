"""What was a run made from?

A stage says what it reads. From that follow the run's inputs, its links to the runs that made them, the
digests of the data, the provenance that every model carries, the registered version: once, for every stage.
"""

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints import KEPT_FOLDER, read_model
from pipelines.description import description
from pipelines.disclosure import tell
from pipelines.installation import PROJECT_FOLDER
from pipelines.invocation import running_job, typed, typed_again
from pipelines.model_card import SAID
from pipelines.models import StartingPoint, copied_model, fetch_model
from pipelines.pages import NOTE
from pipelines.pair_set import PairSet
from pipelines.parameters import shortened
from pipelines.registry import link_version, log_checkpoint, logged_model_of, register, run_of
from pipelines.storage import Folder, absolute, is_mlflow_uri, join
from pipelines.teachers import teacher_names
from pipelines.tracking import Run, start

if TYPE_CHECKING:
    from pipelines.labelling import LabellingSummary
    from pipelines.training import Trained

_DESCRIBED = "description"
"""The tag with the digest of the description that a process wrote last, which tells it from a user's."""

Made = str | PairSet | StartingPoint
"""What a stage may read: a place (a model's URI in MLflow among them), a pair set, or a model to start
from."""


class StageRun(Run):
    """The run of one stage; `pipelines.training.train` takes it as its run."""

    def __init__(self, run: Run, stage: str, root: str, provenance: Mapping[str, str]) -> None:
        super().__init__(run.client, run.uri, run.run_id)
        self.stage = stage
        self.root = root
        """Folder or URI where the stage keeps its checkpoints; empty for a stage without any."""
        self.provenance = dict(provenance)
        """What is written into every model of this run."""

    def reads(self, name: str, place: str, pairs: PairSet, context: str) -> None:
        """Records that the run reads a pair set, made at `place`, and which run made it.

        context: what for, such as training or validation.
        """
        self.dataset(name, place, pairs.label_set, context)
        if context == "training":
            self.provenance.setdefault("label_set", pairs.label_set)
        self.link(name, pairs.description.provenance.get("run_id"))

    def wrote(self, labels: "LabellingSummary", pairs: PairSet) -> None:
        """Records the label set that the run wrote, its ledger, and which runs made its teachers. pairs: the
        set, opened."""
        self.tag("label_set", labels.digest)
        self.tag("labels", labels.location)
        self.summary(labels.metrics("labels"))
        self.document("ledger.json", {"videos": [asdict(record) for record in labels.ledger]})
        self.has_generation(pairs.generation)
        for name in teacher_names(pairs.description.num_teachers):
            self.link(name, pairs.description.provenance.get(f"{name}_run_id"))

    def describe(self) -> None:
        """Writes what is known of the run as its description, unless somebody has written another."""
        run = self.client.get_run(self.run_id)
        tags = run.data.tags
        if NOTE not in tags or _digest(tags[NOTE]) == tags.get(_DESCRIBED):
            text = description(tags, run.info.experiment_id, self.run_id, self.last_picture())
            text = shortened(text)
            self.tag(NOTE, text)
            self.tag(_DESCRIBED, _digest(text))

    def has_generation(self, generation: int) -> None:
        """Records how many teachers stand between the result and the unlabelled videos."""
        self.tag("distillations", str(generation))
        self.provenance["generation"] = str(generation)

    def register(self, trained: "Trained", name: str) -> str:
        """Stores the trained model in the run, as one that MLflow serves, and registers it as a version of
        `name`; returns that version's URI."""
        # Brings what MLflow serves models with, which only this needs.
        from pipelines.serving import make_servable

        make_servable(trained.model, self.run_id)
        self.artifact(trained.model, "model")
        model_id = self._log_checkpoints(trained)
        final = {"step": trained.step, **trained.validation}
        self.summary({f"final/{key}": value for key, value in final.items()})
        if trained.step < trained.ended_at:
            tell(
                f"training ended at step {trained.ended_at} because validation got no better (patience); the "
                f"model is that of step {trained.step}"
            )
        version = register(
            self,
            name,
            validation_loss=trained.score,
            validation_digest=trained.judge.digest,
            judge=lambda uri: trained.judge.score(fetch_model(uri)),
        )
        link_version(self, model_id, version)
        self.tag("made", version.uri)
        if not version.is_champion:
            tell(
                f"models:/{name}@champion stays the earlier version, whose error on the held-back pairs is "
                "no higher"
            )
        return version.uri

    def _log_checkpoints(self, trained: "Trained") -> str:
        """Makes logged models of the result, whose id it returns, and of the checkpoints that are kept for
        ever."""
        from pipelines.serving import make_servable

        params = {SAID.get(name, name): value for name, value in self.provenance.items()}
        log = partial(log_checkpoint, self, params=params, judged_on=("held back", trained.judge.digest))
        model_id = log(trained.step, trained.model)
        for step, folder in self._kept_checkpoints():
            make_servable(folder, self.run_id)
            log(step, folder)
        return model_id

    def _kept_checkpoints(self) -> Iterator[tuple[int, Path]]:
        """(step, a copy of the model) of each; without those that a kill left in parts."""
        if not self.root:
            return
        place = join(self.root, f"{self.run_id}/{KEPT_FOLDER}")
        for name in Folder(place).folders():
            try:
                folder = copied_model(join(place, name))
                read_model(folder)
            except (FileNotFoundError, ValueError) as error:
                tell(f"{name} in {place} isn't whole, and stays out of MLflow: {error}")
                continue
            yield int(name.removeprefix("step-")), folder


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def lineage(
    stage: str,
    recipe: str | None,
    configuration: Any,
    made_from: Mapping[str, Made],
    *,
    generation: int | None = None,
    usual: object = None,
    subject: str | None = None,
    is_chain: bool = False,
    project_folder: Path = PROJECT_FOLDER,
) -> Iterator[StageRun]:
    """The run of a stage, from its inputs to its end; see `tracking.start`.

    configuration: the stage's dataclass, or a mapping of what is to be recorded. Its `run_root` is where the
    run keeps checkpoints, its `resume` the run to go on with. made_from: what the stage reads, by name.
    generation: see `StageRun.has_generation`. usual: the recipe's configuration; the run is named after what
    differs from it, or after `subject`. The pair sets among what it reads are read for training.
    """
    root = getattr(configuration, "run_root", "")
    root = absolute(root, "--run-root") if root else ""
    kept = {name: kept_pairs(made) for name, made in made_from.items() if isinstance(made, PairSet)}
    with start(
        stage,
        recipe=recipe,
        parameters=configuration,
        defaults=usual,
        inputs={name: place for name, made in made_from.items() if (place := _place(made)) is not None},
        subject=subject,
        is_chain=is_chain,
        resume_run_id=getattr(configuration, "resume", None),
        project_folder=project_folder,
    ) as run:
        provenance = {"stage": stage, "run_id": run.run_id} | ({} if recipe is None else {"recipe": recipe})
        stage_run = StageRun(run, stage, root, provenance)
        is_training = hasattr(configuration, "resume")
        goes_on = _goes_on(stage, run.run_id) if is_training else None
        if is_training:
            tell(f"run {run.run_id}\nlook at it: {run.how_to_look}")
        if goes_on is not None:
            tell(f"if it is killed: {goes_on}")
        for name, made in made_from.items():
            _record(stage_run, name, made, project_folder)
        for numbers in kept.values():
            stage_run.log(0, numbers)
        if generation is not None:
            stage_run.has_generation(generation)
        stage_run.describe()
        try:
            yield stage_run
        except KeyboardInterrupt as stop:
            if goes_on is not None:
                stop.add_note(f"to go on: {goes_on}")
            raise
        stage_run.describe()


def _goes_on(stage: str, run_id: str) -> str | None:
    """What to type to go on with a training that ended too early; None in a job that trains among other
    things, whose options aren't those of the training and which begins anew."""
    job = running_job()
    if job is None:
        return f"{typed(stage)} with the same options and --resume {run_id}"
    if job != stage:
        return None
    return typed_again() if "--resume" in sys.argv else typed_again("--resume", run_id)


def kept_pairs(pairs: PairSet) -> dict[str, float]:
    """How many pairs of a set there are and how many its filter keeps: printed, and returned as metrics.

    Empty without a filter. Raises as `PairSet.index`.
    """
    if pairs.where is None:
        return {}
    kept, found = pairs.index().num_rows, pairs.num_pairs()
    tell(f"--where {pairs.where.text!r} keeps {kept} of {found} pairs")
    return {"labels/pairs": found, "labels/pairs_kept": kept}


def _place(made: Made) -> str | None:
    """Where it lies; None for fresh weights."""
    match made:
        case PairSet():
            return made.location
        case StartingPoint():
            return made.uri
        case str():
            return made


def _record(run: StageRun, name: str, made: Made, project_folder: Path) -> None:
    match made:
        case PairSet():
            run.reads(name, made.location, made, "training")
            run.tag("label_set", made.label_set)
            run.provenance[name] = made.location
            if made.where is not None:
                run.provenance["where"] = made.where.text
        case StartingPoint() if made.info is not None and made.uri is not None:
            run.provenance[name] = made.info.digest
            # A model that MLflow didn't train has no run in its card.
            if is_mlflow_uri(made.uri):
                _reads_model(run, name, made.uri, project_folder)
            else:
                run.link(name, made.info.run_id)
        case str():
            run.provenance[name] = made
            if is_mlflow_uri(made):
                _reads_model(run, name, made, project_folder)


def _reads_model(run: StageRun, name: str, uri: str, project_folder: Path) -> None:
    run_id = run_of(uri, project_folder)
    run.link(name, run_id)
    if (model_id := logged_model_of(uri, run_id, project_folder)) is not None:
        run.reads_model(model_id)
