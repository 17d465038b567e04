"""What does a run say about itself? Markdown that MLflow's page shows above a run's numbers.

It puts into words what the run's tags record: what it was made from, who made that, and what came of it.
"""

from collections.abc import Mapping

from pipelines.pages import picture_page, run_page
from pipelines.run_inputs import RunInput, inputs_of

_STAGES = {
    "train_teacher": "Trains a teacher: a network that learns optical flow from unlabelled videos.",
    "pseudolabel": "Labels frame pairs with the flow of one or several teachers.",
    "distill": "Trains a student on harder crops of pairs that a teacher labelled.",
    "finetune": "Trains a network with true flow.",
    "evaluate": "Compares a model with true flow.",
    "predict": "Computes the flow of videos.",
    "demo": "The whole chain, from videos to a student; of rendered videos, what the models are worth.",
    "gallery": "Shows a label set, to judge it by.",
}
_INPUTS = {
    "init": "model to start from",
    "labels": "pseudo-labels",
    "other": "second label set",
    "truth": "true flow",
    "validation": "true flow to judge by",
}
"""Names of inputs that don't say what they are."""


def description(tags: Mapping[str, str], experiment: str, run: str = "", picture: str | None = None) -> str:
    """The Markdown of a run with these tags. experiment: the id, for links to other runs. picture: the path
    of an artifact of the run of the id `run`."""
    parts = [_STAGES.get(tags.get("stage", ""), "")]
    lines = [_made_from(name, read, experiment) for name, read in inputs_of(tags).items()]
    if lines:
        parts.append("\n".join(["Made from:", "", *lines]))
    if "distillations" in tags:
        count = int(tags["distillations"])
        parts.append(
            f"Distillations: {count} ({_teachers(count)} between the unlabelled videos and this result)."
        )
    parts += [
        f"{what}: {_code(tags[name])}"
        for name, what in (("labels", "Labels"), ("made", "Model"))
        if name in tags
    ]
    if picture is not None:
        parts.append(f"![the picture that was logged last]({picture_page(run, picture)})")
    return "\n\n".join(part for part in parts if part)


def _made_from(name: str, read: RunInput, experiment: str) -> str:
    line = f"- {_INPUTS.get(name, name)}"
    if read.place:
        line += f": {_code(read.place)}"
    if read.run:
        line += f", made by [run {read.run[:8]}]({run_page(experiment, read.run)})"
    return line


def _teachers(count: int) -> str:
    if count == 0:
        return "no teacher stands"
    return "one teacher stands" if count == 1 else f"{count} teachers stand"


def _code(text: str) -> str:
    """Text as it is: a name may hold what Markdown takes for more than that."""
    return f"`{text.replace('`', '?')}`"
