"""How does the user type a command? As `distillflow label`, or as `python jobs/pseudolabel.py` in a checkout.

A message that says what to type next uses the form in which the user started this process.
"""

import re
import shlex
import sys
from pathlib import Path

from pipelines.installation import is_installed

PROGRAM = "distillflow"
"""The console command."""
_SHORT = {"pseudolabel": "label", "export_labels": "export", "import_labels": "import"}
"""Commands whose names aren't their jobs'."""
_SCRIPT = re.compile(r"python jobs/(\w+)\.py")
_JOB = re.compile(r"\b(pseudolabel|train_teacher|(?:export|import)_labels|export_model)\b")
"""Names of jobs that are no English words."""


def command_name(job: str) -> str:
    """The command that runs a job: `label` for `pseudolabel`."""
    return _SHORT.get(job, job.replace("_", "-"))


def typed(job: str) -> str:
    """What to type to run a job, before its options."""
    return f"{PROGRAM} {command_name(job)}" if _has_console() else f"python jobs/{job}.py"


def typed_again(*more: str) -> str:
    """The command line of this process as it was typed, with more words behind it."""
    words = [*sys.argv[1:], *more]
    if running_job() is None:
        return shlex.join([sys.argv[0], *words])
    return f"{program()} {shlex.join(words)}".rstrip()


def program() -> str:
    """What was typed to start this process, before its options."""
    job = running_job()
    return typed(job) if job is not None and _has_console() else f"python {sys.argv[0]}"


def as_typed(text: str) -> str:
    """A job's own words about itself and other jobs, with the commands that this user types."""
    if not _has_console():
        return text
    text = _SCRIPT.sub(lambda found: typed(found[1]), text)
    return _JOB.sub(lambda found: typed(found[1]), text)


def running_job() -> str | None:
    """The job that this process runs; None in another program."""
    script = Path(sys.argv[0])
    return script.stem if script.parent.name == "jobs" and script.suffix == ".py" else None


def _has_console() -> bool:
    """True where the console command started this process, and where there are no scripts to start."""
    started = [Path(word).name for word in sys.orig_argv[1:2]]
    return started == [PROGRAM] or is_installed()
