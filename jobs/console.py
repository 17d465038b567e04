"""The console command: `distillflow label ...` does what `python jobs/pseudolabel.py ...` does in a checkout.

    distillflow --help
    distillflow COMMAND --help

It runs the file of the job, so that both are the same code. Nothing of a job is imported before one is asked
for: the list of commands must come at once, and a broken installation must still say what is broken.
"""

import runpy
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from flowcore.extras import PACKAGE
from jobs.commands import COMMANDS, purpose_of
from jobs.manual import WIDTH
from jobs.spelling import nearest
from pipelines.disclosure import tell
from pipelines.installation import installed_version
from pipelines.invocation import PROGRAM

_COMPLETION = "--completion"


def main() -> None:
    """What `distillflow` in a shell calls."""
    command, *words = sys.argv[1:] or [""]
    if command in ("--help", "-h", "help"):
        tell(_commands())
    elif command == "--version":
        tell(f"{PACKAGE} {installed_version()}")
    elif command == _COMPLETION:
        _print_completion(words)
    elif command in COMMANDS:
        _run(COMMANDS[command], words)
    else:
        _refuse(command)


def _run(job: str, words: Sequence[str]) -> None:
    # The job reads its words there; Python puts the path of its file before them.
    sys.argv[1:] = words
    try:
        runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
    except ImportError as error:
        tell(f"error: {error}; `{PROGRAM} doctor` says what to install", to=sys.stderr)
        raise SystemExit(1) from None


def _commands() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        textwrap.fill(
            purpose_of(job), WIDTH, initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4)
        )
        for name, job in COMMANDS.items()
    ]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND ...",
            "",
            "Learns optical flow from unlabelled videos: a teacher, its labels, a student.",
            "",
            "commands:",
            *lines,
            "",
            f"`{PROGRAM} COMMAND --help` explains a command, `{PROGRAM} --version` prints the version, and",
            f"`{PROGRAM} {_COMPLETION} bash` (or zsh, or fish) prints what makes the shell complete words.",
        ]
    )


def _print_completion(words: Sequence[str]) -> None:
    # It imports every job, which takes seconds.
    from jobs.completion import SHELLS

    if len(words) != 1 or words[0] not in SHELLS:
        tell(f"error: {_COMPLETION} takes one of {', '.join(SHELLS)}", to=sys.stderr)
        raise SystemExit(2)
    tell(SHELLS[words[0]]())


def _refuse(command: str) -> NoReturn:
    if command:
        hint = "".join(f"; perhaps you meant {each}" for each in nearest(command, list(COMMANDS))[:1])
        text = f"there is no command {command!r}{hint}"
    else:
        text = "a command is missing"
    tell(f"error: {text}; {PROGRAM} --help lists the commands", to=sys.stderr)
    raise SystemExit(2)
