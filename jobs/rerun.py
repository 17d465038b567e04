"""Does a training again, with the options that its run recorded, and says whether it came out the same.

    python jobs/rerun.py RUN_ID [--anyway]

Code and packages must be the run's: where they aren't, the message says what differs and how to get it back.
It makes a run of its own. On CPUs, with as many workers, its losses are equal to the last bit.
"""

from dataclasses import dataclass, replace
from typing import Any

import tyro
from pydantic import TypeAdapter

from jobs import distill, finetune, train_teacher
from jobs.command import run
from pipelines import registry, tracking
from pipelines.cluster import connect
from pipelines.storage import is_mlflow_uri

_STAGES: dict[str, Any] = {"train_teacher": train_teacher, "distill": distill, "finetune": finetune}


@dataclass(frozen=True, kw_only=True)
class Rerun:
    run_id: tyro.conf.Positional[str]
    """Of the training in MLflow."""
    anyway: bool = False
    """Also with other code or packages than the run's."""


def rerun(options: Rerun) -> tuple[str, str]:
    """(the new model's URI, how its losses compare); ValueError for a run that isn't a training's, or not of
    this code."""
    before = tracking.recorded(options.run_id)
    if before.stage not in _STAGES:
        raise ValueError(
            f"run {options.run_id} is of stage {before.stage!r}; only {', '.join(_STAGES)} are done again: "
            "others end in files, and the run's tag `command` says what was typed"
        )
    if before.differences and not options.anyway:
        raise ValueError(
            f"run {options.run_id} had {'; '.join(before.differences)} (or add --anyway to do it with what "
            "is here)"
        )
    job = _STAGES[before.stage]
    kind = type(job.recipes()[before.recipe][1])
    training = TypeAdapter(kind).validate_json(before.options)
    if "init" in before.made_from and is_mlflow_uri(training.init or ""):
        # What an alias named then, not what it names now.
        training = replace(training, init=f"runs:/{before.made_from['init']}/model")
    uri: str = getattr(job, before.stage)(before.recipe, replace(training, resume=None))
    run_id = registry.run_of(uri)
    assert run_id is not None
    return uri, comparison(before, tracking.recorded(run_id))


def comparison(before: tracking.Recorded, after: tracking.Recorded) -> str:
    """Whether two runs read the same data and had the same losses."""
    if changed := [name for name, digest in before.data.items() if after.data.get(name) != digest]:
        return f"not the same: other {', '.join(changed)} than then"
    steps = sorted(before.losses)
    if steps != sorted(after.losses):
        return f"not the same: losses of {len(steps)} steps then, and of {len(after.losses)} now"
    other = [step for step in steps if before.losses[step] != after.losses[step]]
    if not other:
        return f"the same: {len(steps)} losses equal to the last bit"
    most = max(abs(after.losses[step] / before.losses[step] - 1) for step in other)
    return f"not the same: losses differ from step {other[0]} on, by {most:.2g} of theirs at most"


def main(options: Rerun) -> None:
    connect()
    uri, text = rerun(options)
    print(f"model: {uri}\n{text}\nlook at it: {tracking.ui_command()}")


if __name__ == "__main__":
    run(main, Rerun)
