"""What can be killed while a job runs? Its driver, one of Ray's processes, or a whole node.

The job runs on a cluster of two nodes on this machine, and is typed again wherever a kill ended it.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
from ray.cluster_utils import Cluster

from benchmarks.experiments.cells import RESULTS, revision
from pipelines.installation import PROJECT_FOLDER
from pipelines.storage import write_whole


class Nodes:
    """A cluster of two nodes, the second of which can be killed and replaced."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        self._second = self._cluster.add_node(num_cpus=2)
        self.address = self._cluster.address

    def kill_second(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)

    def replace_second(self) -> None:
        self._second = self._cluster.add_node(num_cpus=2)

    def stop(self) -> None:
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


class Job:
    """A job with the recipe smoke on a cluster, typed again and again. In its folder are its output,
    `log.txt`, and its runs, `mlflow.db`."""

    def __init__(self, name: str, folder: Path, address: str) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.starts = 0
        self._command = [sys.executable, str(PROJECT_FOLDER / "jobs" / f"{name}.py"), "smoke"]
        self._folder = folder
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None

    def flags(self) -> Mapping[str, object]:
        """What to type now."""
        raise NotImplementedError

    def start(self) -> None:
        """Types the command, unless it runs."""
        if self.is_running():
            return
        self.starts += 1
        self._folder.mkdir(exist_ok=True)
        flags = [part for name, value in self.flags().items() for part in (f"--{name}", str(value))]
        with open(self._folder / "log.txt", "ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *flags],
                cwd=self._folder,
                env={**os.environ, "MLFLOW_TRACKING_URI": self.uri, "RAY_ADDRESS": self._address},
                stdout=log,
                stderr=log,
            )

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kills the driver."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def succeeds(self) -> bool:
        """Types the command, unless it runs, and waits for its end."""
        self.start()
        assert self._process is not None
        return self._process.wait() == 0

    def last_words(self) -> str:
        return (self._folder / "log.txt").read_text(errors="replace")[-4000:]


def kill_one_titled(title: str, chance: random.Random) -> bool:
    """Kills one of this process's descendants whose title contains `title`; False if there is none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    with contextlib.suppress(psutil.Error):
        if found:
            chance.choice(found).kill()
            return True
    return False


@dataclass(frozen=True)
class Record:
    """What a script that kills has noted of its finished rounds, in docs/results/kills."""

    path: Path
    rounds: list[dict[str, Any]]

    @classmethod
    def of(cls, name: str) -> Self:
        path = RESULTS / "kills" / f"{name}.json"
        return cls(path, json.loads(path.read_text()) if path.exists() else [])

    @property
    def kills(self) -> int:
        """How many there were."""
        return sum(sum(each["kills"].values()) for each in self.rounds)

    def add(self, kills: Counter[str], **facts: object) -> None:
        """Notes a round."""
        self.rounds.append({"kills": dict(sorted(kills.items())), "revision": revision(), **facts})
        lines = ",\n ".join(json.dumps(each) for each in self.rounds)
        write_whole(self.path, f"[{lines}]\n".encode())


def add_options(parser: argparse.ArgumentParser, kinds: Collection[str], kills: int) -> None:
    """The options of a script that kills."""
    parser.add_argument(
        "--kills", type=int, default=kills, help=f"how many, with those noted before; {kills} by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument(
        "--victims",
        nargs="+",
        default=list(kinds),
        choices=list(kinds),
        metavar="KIND",
        help=f"what to kill: {', '.join(kinds)}; all by default",
    )
