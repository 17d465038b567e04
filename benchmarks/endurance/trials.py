"""What becomes of a job that is given a damaged input? It accepts, it refuses, or it breaks.

    python -m benchmarks.endurance.trials PLAN FIRST

Jobs are started one after the other in a process of their own, which saves their imports. A process that
dies or hangs costs the trial that it was at.
"""

import contextlib
import io
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from jobs import export_labels, gallery, predict, pseudolabel
from jobs.command import run, run_recipe
from pipelines.storage import PROJECT_FOLDER

_MEMORY = 16 * 2**30
"""Bytes of address space, many times what any trial needs; who asks for more breaks."""
_PATIENCE = 120.0
"""Seconds after which a trial hangs."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a trial ended."""

    outcome: str
    """accepted, refused, traceback, hang, or the number of a signal."""
    told: str = ""
    """On stderr."""


def tried(folder: Path, trials: Sequence[Sequence[str]]) -> Iterator[Ended]:
    """How each job ended, in order. trials: the name of a job and its arguments.

    folder: where they run, and their runs are kept.
    """
    plan = folder / "trials.json"
    plan.write_text(json.dumps([list(trial) for trial in trials]))
    done = 0
    while done < len(trials):
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(plan), str(done)],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(PROJECT_FOLDER),
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for ended in _answers(process):
            yield ended
            done += 1
    plan.unlink()


class Watch:
    """Sees what appears in a folder beside what was announced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = self._names()

    def _names(self) -> set[str]:
        return {each.name for each in self._folder.iterdir()}

    def require_only(self, *names: str) -> None:
        """AssertionError where something else than these has appeared."""
        own = {"mlflow.db", "mlflow.db.lock", "mlartifacts", "mlruns", "trials.json"}
        found = self._names() - self._before - own - {*names}
        assert not found, f"{found} appeared in {self._folder}"


def command(folder: Path, job: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A job as a user types it."""
    return subprocess.run(
        [sys.executable, str(PROJECT_FOLDER / "jobs" / f"{job}.py"), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"},
        capture_output=True,
        text=True,
        check=False,
    )


def _answers(process: subprocess.Popen[str]) -> Iterator[Ended]:
    """What a process tells, and how it ended if it didn't come to its end."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout

    def listen() -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_PATIENCE)
        except queue.Empty:
            process.kill()
            process.wait()
            yield Ended(outcome="hang")
            return
        if not line:
            if process.wait() != 0:
                yield Ended(outcome=f"signal {-process.returncode}")
            return
        yield Ended(**json.loads(line))


def _try(job: str, arguments: Sequence[str]) -> None:
    if job == "export_labels":
        run(export_labels.main, export_labels.ExportLabels, arguments)
    elif job == "gallery":
        run(gallery.main, gallery.Gallery, arguments)
    elif job == "predict":
        run(predict.main, predict.Predict, arguments)
    else:
        run_recipe(pseudolabel.main, pseudolabel.recipes(), arguments)


def _one(job: str, arguments: Sequence[str]) -> Ended:
    told = io.StringIO()
    outcome = "accepted"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        try:
            _try(job, arguments)
        except SystemExit as end:
            outcome = "refused" if end.code == 1 else f"exit {end.code}"
        except BaseException:
            outcome = "traceback"
            told.write(traceback.format_exc())
    return Ended(outcome=outcome, told=told.getvalue()[-4000:])


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("plan", type=Path, metavar="PLAN", help="a JSON file of jobs with their arguments")
    parser.add_argument("first", type=int, metavar="FIRST", help="the first of them to start, from 0")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    for job, *arguments in json.loads(asked.plan.read_text())[asked.first :]:
        answers.write(json.dumps(vars(_one(job, arguments))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
