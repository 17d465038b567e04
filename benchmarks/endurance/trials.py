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
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.command import run, run_recipe
from benchmarks import report
from benchmarks.inputs import fresh_teacher
from jobs import export_labels, gallery, predict, pseudolabel
from jobs.recipes import RECIPES
from pipelines.installation import PROJECT_FOLDER
from pipelines.pair_set import PairSet

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


def mutated(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """The kind of damage, and the damaged file."""
    data = np.frombuffer(content, np.uint8).copy()
    size = len(data)
    first, second = sorted(int(each) for each in rng.integers(0, size, 2))
    kind = str(
        rng.choice(["flipped bits", "overwritten header", "truncated", "part missing", "part repeated"])
    )
    if kind == "flipped bits":
        places = rng.integers(0, size, int(rng.choice([1, 10, 100, 1000])))
        data[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    elif kind == "overwritten header":
        length = min(size, int(rng.choice([4, 64, 1024])))
        data[:length] = rng.integers(0, 256, length, np.uint8)
    elif kind == "truncated":
        data = data[:first]
    elif kind == "part missing":
        data = np.concatenate([data[:first], data[second:]])
    else:
        data = np.concatenate([data[:second], data[first:]])
    return kind, data.tobytes()


def accounted_for(folder: Path, kinds: Mapping[str, str]) -> str:
    """Labels the videos in the folder's `videos` and tells what became of each; AssertionError where one of
    them, or a pair, is lost or doubled.

    kinds: the damage by the names of all the videos.
    """
    teacher = fresh_teacher(folder / "teacher", RECIPES["smoke"].network)
    started = time.monotonic()
    words = [
        *(sys.executable, str(PROJECT_FOLDER / "jobs/pseudolabel.py"), "smoke"),
        *("--videos", str(folder / "videos"), "--teacher", teacher),
        *("--labels", str(folder / "set"), "--labelling.max-bad-share", "1"),
    ]
    runs = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    subprocess.run(words, check=True, cwd=folder, env=os.environ | runs)
    seconds = time.monotonic() - started
    pairs = PairSet.open(str(folder / "set"))
    ledger, entries = pairs.ledger(), pairs.videos()
    kept = {entry.video for entry in entries}
    unread = [entry.video for entry in ledger if entry.video not in kept]
    index = pairs.index()
    ids = index.column("pair_id").to_pylist()
    for place in index.to_pylist():
        pairs.decode(pairs.read(place))
    accounted = [*kept, *unread]
    outcomes: Counter[tuple[str, str]] = Counter((kinds[entry.video], entry.outcome) for entry in ledger)
    done = Counter(kinds[video] for video in kept - {entry.video for entry in ledger})
    columns = ("done", "cut short", "nothing", "duplicate", "unreadable now", "failed")
    rows = [
        (kind, done[kind], *(outcomes[kind, column] for column in columns[1:]))
        for kind in sorted(set(kinds.values()))
    ]
    assert sorted(accounted) == sorted(kinds), "a file is lost, or accounted for twice"
    assert len(ids) == len(set(ids)) == sum(entry.pairs for entry in entries), "a pair is lost or doubled"
    table = report.table(["damage", *columns], rows)
    return f"{seconds:.0f} s, {len(ids)} pairs; every input accounted for once, every pair read\n\n{table}"


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
