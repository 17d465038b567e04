"""The commands, a file each: what `python jobs/x.py` runs, and `distillflow x`.

Whatever of a job is imported first brings this, so that Ctrl-C ends a job in the same way before it has read
its command line, while torch takes its seconds to import.
"""

import sys
from types import TracebackType
from typing import NoReturn

from pipelines.disclosure import tell


def end_interrupted(stop: KeyboardInterrupt) -> NoReturn:
    """Ends the process as Ctrl-C does, with the notes of the exception and without a traceback."""
    tell("\n".join(["error: interrupted", *getattr(stop, "__notes__", ())]), to=sys.stderr)
    raise SystemExit(130) from None


_show = sys.excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        end_interrupted(error)
    _show(kind, error, trace)


sys.excepthook = _excepthook
