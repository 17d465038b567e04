"""A stage that isn't there yet: forty lines add one, which trains on Ray and which rerun can do again."""

import inspect
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import label
from ray import cloudpickle

from flowcore.networks import tiny
from flowcore.objectives import StudentObjective
from flowcore.scenes import SceneOptions, render_scene, write_video
from jobs import distill, rerun
from jobs.stages import LabelledStage
from pipelines import registry, run_store, tracking
from pipelines.checkpoints import load_model, save_model
from pipelines.models import fetch_model
from pipelines.training import Source

# Ray's workers have no test module to import it from.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


# The diff that adds a stage: a student that is asked for brighter frames than its teacher saw.
@dataclass(frozen=True)
class Brighter:
    """Makes the first frame brighter by a factor."""

    factor: float = 1.5

    def __call__(self, pair: Any, generator: np.random.Generator) -> Any:
        image1 = np.clip(pair.image1 * self.factor, 0, 255).astype(np.uint8)
        return replace(pair, image1=image1)


@dataclass(frozen=True, kw_only=True)
class Brighten(LabelledStage):
    """Options of brighten."""

    labels: str
    """Folder or URI of the labels."""
    brighter: Brighter = Brighter()
    """What makes the frames brighter."""


def brighten(stage: Brighten, recipe: str) -> str:
    from pipelines.lineage import lineage
    from pipelines.training import train
    from pipelines.validation import CollapseAlarm

    labels = stage.open(stage.labels)
    start = stage.starting_point(default=labels.teacher)
    made_from: Any = {"labels": labels, "init": start}
    with lineage("brighten", recipe, stage, made_from, generation=labels.generation + 1) as run:
        source = Source(pairs=labels, transformation=stage.brighter, objective=StudentObjective())
        judge = stage.judge(run, CollapseAlarm(max_occluded=1.0))
        return run.register(train(start, [source], stage.training, judge=judge, run=run), "flow-brighter")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Brighten:
    """On labels of a RAFT that was itself a student."""
    folder = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    save_model(folder / "teacher", tiny()["raft"].build(), {"generation": "1", "run_id": "of-teacher"})
    scene = render_scene(0, SceneOptions(height=64, width=96, num_frames=7))
    write_video(folder / "videos" / "scene.mp4", scene.frames)
    label(folder)
    training = replace(distill.recipes()["smoke"][1].training, steps=2, validate_every=2)
    return Brighten(
        labels=str(folder / "labels"),
        run_root=str(folder / "runs"),
        network=tiny()["pwcnet"],
        brighter=Brighter(factor=1.25),
        training=training,
    )


@pytest.fixture(scope="module")
def brightened(stage: Brighten, empty_store: Path, ray_session: None) -> Iterator[str]:
    """The URI of the model that the stage makes."""
    store = shutil.copy(empty_store, Path(stage.run_root).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        yield brighten(stage, "laptop")


def test_a_new_stage_is_written_in_forty_lines() -> None:
    added = [inspect.getsource(each) for each in (Brighter, Brighten, brighten)]
    assert sum(len(source.splitlines()) for source in added) <= 40


def test_a_new_stage_ends_in_a_model_of_the_generation_after_its_teacher_s(brightened: str) -> None:
    assert brightened == "models:/flow-brighter/1"
    network, info = load_model(fetch_model(brightened))
    assert info.config == tiny()["raft"]
    assert info.generation == 2
    assert all(torch.isfinite(weight).all() for weight in network.parameters())


def test_the_run_of_a_new_stage_leads_back_to_the_run_of_its_teacher(brightened: str) -> None:
    run = tracking.MlflowClient(run_store.tracking_uri()).get_run(str(registry.run_of(brightened)))
    assert run.data.tags["input.init.run"] == "of-teacher"


def test_rerun_does_a_new_stage_again_with_the_options_that_it_had(stage: Brighten, brightened: str) -> None:
    begun: list[Brighten] = []
    stages: Any = {"brighten": (Brighten, lambda again, _: begun.append(again) or brightened)}
    uri, told = rerun.rerun(rerun.Rerun(run_id=str(registry.run_of(brightened))), stages)
    assert begun == [stage]
    assert (uri, told) == (brightened, "the same: 1 losses equal to the last bit")
