"""How long does a job take to its first answer? With the embedded Ray, on this machine.

    python -m benchmarks.speed.start [--rounds 3]

Prints the median of the seconds, with their range, from typing a job: `pseudolabel` with a wrong path to its
error, `pseudolabel smoke` to the first label on the disk, and `train_teacher smoke` to the first loss in
MLflow, which a step has before it. Videos are rendered. MLflow's file is there already, as after any job.
"""

import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks import report
from benchmarks.inputs import render_videos
from pipelines.installation import PROJECT_FOLDER

VIDEOS = 2


def typed(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    job, *options = words
    return subprocess.Popen(
        [sys.executable, str(PROJECT_FOLDER / "jobs" / f"{job}.py"), *options],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def seconds_to(is_there: Callable[[], bool], job: Callable[[], subprocess.Popen[bytes]]) -> float:
    """From typing the job until something is there; the job then goes on to its end."""
    began = time.monotonic()
    process = job()
    while not is_there():
        if process.poll() not in (None, 0):
            raise RuntimeError(f"the job ended with {process.returncode}")
        time.sleep(0.02)
    seconds = time.monotonic() - began
    process.wait()
    return seconds


def to_the_error(folder: Path) -> float:
    began = time.monotonic()
    options = ("--videos", "nowhere", "--teacher", "opencv:dis_fast", "--labels", "labels")
    typed(folder, "pseudolabel", "smoke", *options).wait()
    return time.monotonic() - began


def to_the_first_label(folder: Path, number: int) -> float:
    labels = folder / f"labels-{number}"
    options = ("--videos", "videos", "--teacher", "opencv:dis_fast", "--labels", str(labels))
    return seconds_to(
        lambda: any(labels.glob("*/*.parquet")), lambda: typed(folder, "pseudolabel", "smoke", *options)
    )


def _losses(folder: Path) -> int:
    with closing(sqlite3.connect(f"file:{folder / 'mlflow.db'}?mode=ro", uri=True)) as store:
        (count,) = store.execute("select count(*) from metrics where key = 'train/loss'").fetchone()
    return int(count)


def to_the_first_step(folder: Path) -> float:
    before = _losses(folder)
    options = ("--videos", "videos", "--run-root", "runs", "--training.log-every", "1")
    return seconds_to(
        lambda: _losses(folder) > before, lambda: typed(folder, "train_teacher", "smoke", *options)
    )


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="3 by default")
    rounds = parser.parse_args().rounds
    print(report.command())
    with tempfile.TemporaryDirectory(prefix="start-") as made:
        folder = Path(made)
        render_videos(folder / "videos", VIDEOS)
        # Makes MLflow's file, and is not counted.
        to_the_first_label(folder, -1)
        found = {
            "a wrong path, to the error": [to_the_error(folder) for _ in range(rounds)],
            "`pseudolabel smoke`, to the first label": [
                to_the_first_label(folder, number) for number in range(rounds)
            ],
            "`train_teacher smoke`, to the first step": [to_the_first_step(folder) for _ in range(rounds)],
        }
    rows = [
        [name, f"{statistics.median(each):.1f} ({min(each):.1f}-{max(each):.1f})"]
        for name, each in found.items()
    ]
    print(report.table(["from typing", "s"], rows))


if __name__ == "__main__":
    main()
