"""Which commands are there? The jobs by the names that `distillflow` gives them, and what each takes.

What a job is for is read from its file, without running it: a list of commands imports nothing.
"""

import ast
import importlib
from pathlib import Path

from jobs.options import Option, first_sentence, options_of
from pipelines.invocation import command_name

_ORDER = (
    "train_teacher",
    "pseudolabel",
    "status",
    "distill",
    "finetune",
    "evaluate",
    "predict",
    "serve",
    "submit",
    "gallery",
    "export_labels",
    "import_labels",
    "export_model",
    "rerun",
    "demo",
    "doctor",
)
"""The jobs, in the order in which one meets them."""
COMMANDS = {command_name(job): job for job in _ORDER}
"""By the name of the command, the job's module."""


def purpose_of(job: str) -> str:
    """What a job does, in one sentence."""
    tree = ast.parse((Path(__file__).parent / f"{job}.py").read_text(encoding="utf-8"))
    return first_sentence(ast.get_docstring(tree) or "")


def options_of_job(job: str) -> dict[str, list[Option]]:
    """A job's options by recipe, and recipe:backbone; under "" those of a job without recipes."""
    module = importlib.import_module(f"jobs.{job}")
    if callable(recipes := getattr(module, "recipes", None)):
        return {name: options_of(stage) for name, (_, stage) in recipes().items()}
    return {"": options_of(getattr(module, job.title().replace("_", "")))}
