"""Repeats a training with the options of its run, to see whether it comes out the same.

    python jobs/rerun.py RUN_ID [--anyway]

Code and packages must be those of the run: where they aren't, the message says what differs and how to get it
back. The second training is a run of its own. On CPUs, with as many workers, its losses are equal to the last
bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from jobs.command import run
from jobs.distill import distill
from jobs.finetune import finetune
from jobs.options import Positional
from jobs.stages import Distill, Finetune, TrainTeacher
from jobs.train_teacher import train_teacher
from pipelines.disclosure import tell

STAGES: Mapping[str, tuple[type, Callable[[Any, str], str]]] = {
    "train_teacher": (TrainTeacher, train_teacher),
    "distill": (Distill, distill),
    "finetune": (Finetune, finetune),
}
"""What can be done again: a stage's options and its function, by its name."""


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """Options of rerun."""

    run_id: Annotated[str, Positional()]
    """The id of the training's run in MLflow."""
    anyway: bool = False
    """Repeat it even with other code or packages than the run's. Take it to see what they change."""


def rerun(
    options: Rerun, stages: Mapping[str, tuple[type, Callable[[Any, str], str]]] = STAGES
) -> tuple[str, str]:
    """(the new model's URI, how its losses compare); ValueError for a run that isn't a training's, or not of
    this code."""
    from pydantic import TypeAdapter

    from pipelines.recorded import comparison, recorded
    from pipelines.registry import run_of

    before = recorded(options.run_id)
    if before.stage not in stages:
        raise ValueError(
            f"run {options.run_id} is of stage {before.stage!r}; only {', '.join(stages)} are done again. "
            "The others end in files, and the run's tag `command` says what was typed"
        )
    if before.differences and not options.anyway:
        raise ValueError(
            f"run {options.run_id} had {'; '.join(before.differences)} (or add --anyway to do it with what "
            "is here)"
        )
    kind, function = stages[before.stage]
    stage: Any = TypeAdapter(kind).validate_json(before.options)
    uri = function(replace(stage, resume=None, init=before.pinned(stage.init)), before.recipe)
    run_id = run_of(uri)
    assert run_id is not None
    return uri, comparison(before, recorded(run_id))


def main(options: Rerun) -> None:
    uri, text = rerun(options)
    from pipelines.run_store import ui_command

    tell(f"model: {uri}\n{text}\nlook at it: {ui_command()}")


if __name__ == "__main__":
    run(main, Rerun)
