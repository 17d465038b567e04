"""What does someone see who has Python, the wheel and a clip? Types it, and prints the page about it.

    python -m docs.make.walk ../shared/data/clips/sam2__01_dog.mp4 > docs/how-to/walk.md

Everything happens in a new environment and a new folder: the wheel is built and installed, and each step is
what a reader would type there. It needs a package index, two gigabytes, the free ports 5000, 5001 and 8265,
and ten minutes. A step that fails ends it.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

from benchmarks import report
from pipelines.installation import PROJECT_FOLDER

LONGEST = 160
"""Characters of a line; a longer one is cut."""
SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is typed, and how much of the answer is worth a look."""

    typed: str
    says: str = ""
    last: int = 0
    """Lines of the answer that are shown, from its end."""
    answers: str = ""
    """The address that shows that it runs. With an & at its end it goes on in the background."""


PAIR = """
import av, json
frames = list(av.open("clip.mp4").decode(video=0))
pair = [frames[at].to_ndarray(width=256, height=144, format="rgb24").tolist() for at in (0, 3)]
json.dump({"inputs": [pair]}, open("pair.json", "w"))
"""
ANSWER = """
import json, numpy as np
flow = np.array(json.load(open("answer.json"))["predictions"]["flow"])
print(flow.shape, "moves by up to", round(float(np.hypot(*flow[0].T).max()), 1), "px")
"""
READ = """
from torch.utils.data import DataLoader
from pipelines.label_dataset import LabelDataset
labels = LabelDataset("labels")
batch = next(iter(DataLoader(labels, batch_size=4, shuffle=True)))
print(len(labels), "pairs")
for name, value in batch.items():
    print(name, tuple(value.shape))
"""
CURL = "curl --silent http://127.0.0.1:5001/invocations -H 'Content-Type: application/json'"

STEPS = (
    Step(
        says="The wheel, with what it needs. pip knows of a folder with torch for CPUs, which saves 3 GB:",
        typed="pip install --quiet *.whl torch==2.13.0+cpu",
    ),
    Step(says="What is installed, and what of this machine works:", typed="distillflow --version", last=1),
    Step(typed="distillflow doctor", last=24),
    Step(
        says="The whole chain in a minute; without `smoke` it is README's demo:",
        typed="distillflow demo smoke",
        last=12,
    ),
    Step(
        says="Flow of a clip, as files and as pictures:",
        typed="distillflow predict clip.mp4 --limit 8 --inference.scale 0.5 --pictures",
        last=4,
    ),
    Step(typed="ls clip-flow | head -4", last=4),
    Step(
        says="The same network over HTTP, asked for a pair:",
        typed="distillflow serve --port 5001 &",
        answers="http://127.0.0.1:5001/health",
    ),
    Step(typed=f"python - <<'END'{PAIR}END"),
    Step(typed=f"{CURL} -d @pair.json > answer.json"),
    Step(typed=f"python - <<'END'{ANSWER}END", last=1),
    Step(says="And for what is no pair:", typed=CURL + " -d '{\"inputs\": [[1, 2]]}'", last=1),
    Step(
        says="Labels of the clip, read with torch:",
        typed="distillflow label laptop --videos clip.mp4 --labels labels --teacher opencv:dis_fine "
        "--clips.max-pairs-per-video 24",
        last=8,
    ),
    Step(typed=f"python - <<'END'{READ}END", last=9),
    Step(
        says="A Ray that runs, and a job submitted to it:",
        typed="ray start --head --dashboard-host 127.0.0.1 > ray.log 2>&1",
        answers="http://127.0.0.1:8265/api/version",
    ),
    Step(
        typed="RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 "
        """--runtime-env-json '{"env_vars": {"MLFLOW_TRACKING_URI": "sqlite:///'$PWD'/mlflow.db"}}' """
        "-- distillflow label laptop --videos $PWD/clip.mp4 --labels $PWD/submitted "
        "--teacher distillflow:laptop --clips.max-pairs-per-video 8",
        last=6,
    ),
    Step(typed="ray stop > ray.log"),
    Step(
        says="Every run, in the browser:",
        typed='mlflow ui --backend-store-uri "sqlite:///$PWD/mlflow.db" 2> mlflow.log &',
        answers="http://127.0.0.1:5000/health",
    ),
    Step(
        typed="curl --silent http://127.0.0.1:5000 | grep --only-matching '<title>.*</title>'",
        last=1,
    ),
)


BEGIN = """# From nothing but Python

`python -m docs.make.walk CLIP` typed this, on two cores, in an environment with nothing but Python and pip
and a folder with the wheel and a clip, and printed it. Of long answers the last lines are here; `~` is the
home that it had."""


STUMBLES = (
    (
        "pip took torch with 3 GB of CUDA libraries on a machine without a GPU",
        "README and [install](install.md) name the index of torch for CPUs",
    ),
    (
        "`predict clip.mp4` was refused, and then again for want of `--output`",
        "it is enough; the flow lands in `clip-flow`",
    ),
    (
        "a folder that may not be written into was refused after Ray had started",
        "it is refused before anything starts",
    ),
    (
        "Ray's red lines stood between those of the progress",
        "they are in its logs; `DISTILLFLOW_DEBUG=1` shows them",
    ),
    (
        "`predict` stood at 0 % for 40 s, expected minutes more, and ended 3 s later",
        "pairs count as they are computed",
    ),
    ("the bar stood at 100 % while pictures and a film were drawn", "it tells how many are drawn"),
    (
        "the refusal of a folder with other flow printed a dictionary of Python's",
        "it prints the options as one types them",
    ),
    (
        "a job submitted without a token was refused by Ray without a word on what to set",
        "[cluster](cluster.md) has the token before the first `ray start`",
    ),
    (
        "the runs of a submitted job went to another folder's database",
        "[cluster](cluster.md) says to name MLflow with the job, as above",
    ),
    ("MLflow's page takes seconds until it answers", "nothing; the script waits for it"),
)
"""What tripped us, and what became of it."""


@contextlib.contextmanager
def new_machine(clip: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """(a folder with the wheel and the clip, an environment of nothing but Python and pip)."""
    with tempfile.TemporaryDirectory(prefix="walk-") as made:
        home = Path(made)
        source = home / "source"
        ignored = shutil.ignore_patterns("__pycache__", ".*", "runs", "tests", "docs")
        shutil.copytree(PROJECT_FOLDER, source, ignore=ignored)
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        folder = home / "flow"
        folder.mkdir()
        wheel = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
        subprocess.run([str(home / "venv/bin/python"), "-m", *wheel], check=True)
        shutil.copy(clip, folder / "clip.mp4")
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        path = f"{home / 'venv/bin'}:/usr/local/bin:/usr/bin:/bin"
        yield folder, {**kept, "PATH": path, "HOME": str(home), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def type_(step: Step, folder: Path, environment: dict[str, str]) -> tuple[str, subprocess.Popen[str]]:
    """(its answer, the process, which runs on where it answers an address)."""
    process = subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", step.typed.removesuffix(" &")],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if step.answers and step.typed.endswith("&"):
        wait_for(step.answers)
        return "", process
    told, _ = process.communicate(timeout=SECONDS)
    if process.returncode:
        raise RuntimeError(f"{step.typed} ended with {process.returncode}:\n{told}")
    if step.answers:
        wait_for(step.answers)
    return told, process


def wait_for(address: str) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except HTTPError:
            # Ray's job server wants its token, and answers.
            return
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(f"nothing answers at {address}")


def shown(step: Step, told: str, home: Path) -> str:
    """The block of a step: what was typed, and the lines of the answer that are worth a look."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told).replace(str(home), "~")
    lines = [line if len(line) <= LONGEST else f"{line[:LONGEST]}..." for line in plain.splitlines() if line]
    kept = lines[-step.last :] if step.last else []
    left_out = ["..."] if 0 < len(kept) < len(lines) else []
    return "\n".join(["```text", f"$ {step.typed}", *left_out, *kept, "```"])


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("clip", type=Path, help="a video in which something moves")
    clip = parser.parse_args().clip
    parts = [BEGIN]
    running: list[subprocess.Popen[str]] = []
    try:
        with new_machine(clip) as (folder, environment):
            for step in STEPS:
                print(step.typed.splitlines()[0], file=sys.stderr, flush=True)
                told, process = type_(step, folder, environment)
                if process.poll() is None:
                    running.append(process)
                parts += ["", *([step.says, ""] if step.says else []), shown(step, told, folder.parent)]
            for process in running:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(timeout=60)
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    parts += ["", "## What we stumbled over", "", "On this walk, the first times that it was gone.", ""]
    print("\n".join([*parts, report.table(["what happened", "now"], STUMBLES, texts=2)]))


if __name__ == "__main__":
    main()
