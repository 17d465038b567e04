"""Is each pair in the label set once, whatever is killed while it is made?

    python benchmarks/chaos.py [--kills 20] [--seed 0] [--videos 24] [--victims node driver]

Labels rendered videos on a cluster of two nodes on this machine, once undisturbed. Then the same command
runs into another folder while one of its processes, or a whole node, is killed with -9 at a random moment,
again and again; where the command ends by that, it is typed again. A set that is finished before all kills
are done is compared, and the next one is begun. Ends with an error if a set differs from the undisturbed one
in a pair or a byte, if a file was visible before it was whole, or if what was finished was done again.
"""

import argparse
import contextlib
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import torch
from ray.cluster_utils import Cluster

from flowcore.scenes import SceneOptions, render_scene, write_video
from jobs.recipes import RECIPES
from pipelines.checkpoints import save_model
from pipelines.ledger import MANIFEST_FILE
from pipelines.pair_set import PairSet
from pipelines.storage import PROJECT_FOLDER

VICTIMS = {
    "driver": None,
    "node": None,
    "decoder": "pipelines.decoding",
    "reader": "_Reader",
    "teacher": "_Teacher",
    "writer": "_Writer",
}
"""By kind, what its processes have in their titles."""
_SPAN = 20.0
"""Seconds from which the moment of a kill is drawn: a run takes half of them to get going."""
_PATIENCE = 30.0
"""Seconds to wait for a process of the kind that is to be killed."""
_FRAMES, _CHUNK_PAIRS, _SHARD_PAIRS = 65, 4, 8


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
        self._cluster.shutdown()


class Job:
    """A job with the recipe smoke on a cluster, typed again and again; its output is in `log.txt` in the
    folder, its run in `mlflow.db` there."""

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
        """Unless it runs."""
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
        """Types it, unless it runs, and waits for its end."""
        self.start()
        assert self._process is not None
        return self._process.wait() == 0

    def last_words(self) -> str:
        return (self._folder / "log.txt").read_text(errors="replace")[-4000:]


class Labelling(Job):
    def __init__(self, folder: Path, address: str, labels: Path) -> None:
        super().__init__("pseudolabel", folder, address)
        self.labels = labels
        self.first_seen: dict[Path, int] = {}

    def flags(self) -> Mapping[str, object]:
        return {
            "videos": self._folder / "videos",
            "teacher": self._folder / "teacher",
            "labels": self.labels,
            "labelling.num-teachers": 2,
            "labelling.clips.chunk-pairs": _CHUNK_PAIRS,
            "labelling.shard-pairs": _SHARD_PAIRS,
        }

    def finish(self) -> None:
        """Lets it end, and types it until it ends well without a kill: after one, a video may be unreadable
        until then. RuntimeError if it never does."""
        if self._process is not None:
            self._process.wait()
        for _ in range(5):
            if self.succeeds():
                return
        raise RuntimeError(f"the command failed five times over without a kill:\n{self.last_words()}")

    @property
    def is_finished(self) -> bool:
        return (self.labels / MANIFEST_FILE).exists()

    def look(self) -> None:
        """RuntimeError where a file isn't whole or was written again."""
        for path in self.labels.rglob("*.parquet"):
            written = path.stat().st_mtime_ns
            if self.first_seen.setdefault(path, written) != written:
                raise RuntimeError(f"{path} was finished and is written again")
            pq.read_metadata(path)

    def contents(self) -> dict[str, bytes]:
        self.look()
        if partial := list(self.labels.rglob("*.partial")):
            raise RuntimeError(f"{partial[0]} is left over")
        return {str(path.relative_to(self.labels)): path.read_bytes() for path in self.first_seen}

    def pair_ids(self) -> list[str]:
        return sorted(PairSet.open(str(self.labels)).index().column("pair_id").to_pylist())


def kill_one_titled(title: str, chance: random.Random) -> bool:
    """Kills one of this process's descendants with that in their titles; False if there was none."""
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


def killed(kind: str, labelling: Labelling, nodes: Nodes, chance: random.Random) -> bool:
    """Kills a process of the kind, or a node; False if there was none until the command ended."""
    if kind == "driver":
        labelling.kill()
        return True
    if kind == "node":
        nodes.kill_second()
        labelling.look()
        nodes.replace_second()
        return True
    title = VICTIMS[kind]
    assert title is not None
    deadline = time.monotonic() + _PATIENCE
    while labelling.is_running() and time.monotonic() < deadline:
        if kill_one_titled(title, chance):
            return True
        time.sleep(0.05)
    return False


def compare(labelling: Labelling, undisturbed: Labelling) -> None:
    """RuntimeError where the sets differ."""
    ids, expected = labelling.pair_ids(), undisturbed.pair_ids()
    if ids != expected:
        lost, doubled = set(expected) - set(ids), len(ids) - len(set(ids))
        raise RuntimeError(f"{len(lost)} pairs lost, {doubled} doubled of {len(expected)}")
    if labelling.contents() != undisturbed.contents():
        raise RuntimeError(f"{labelling.labels} and {undisturbed.labels} have the same pairs and other bytes")


def prepare(folder: Path, num_videos: int) -> None:
    """Videos and a teacher."""
    for seed in range(num_videos):
        scene = SceneOptions(height=64, width=96, num_frames=_FRAMES)
        write_video(folder / "videos" / f"{seed}.mp4", render_scene(seed, scene).frames)
    torch.manual_seed(0)
    save_model(folder / "teacher", RECIPES["smoke"].network.build(), {"stage": "benchmark"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--victims", nargs="+", default=list(VICTIMS), choices=VICTIMS)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    print(f"command: python {shlex.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments.videos)
        nodes = Nodes()
        try:
            undisturbed = Labelling(folder, nodes.address, folder / "undisturbed")
            started = time.monotonic()
            undisturbed.finish()
            pairs, seconds = len(undisturbed.pair_ids()), time.monotonic() - started
            files = len(undisturbed.contents())
            print(f"undisturbed: {pairs} pairs in {files} files, {seconds:.0f} s", flush=True)
            deaths: Counter[str] = Counter()
            deck: list[str] = []
            early = sets = 0
            while deaths.total() < arguments.kills:
                labelling = Labelling(folder, nodes.address, folder / f"set{sets}")
                sets += 1
                while not labelling.is_finished and deaths.total() < arguments.kills:
                    labelling.start()
                    time.sleep(chance.uniform(0.0, _SPAN))
                    labelling.look()
                    # Each kind once before any comes again.
                    deck = deck or chance.sample(arguments.victims, len(arguments.victims))
                    kind = deck.pop()
                    if not labelling.is_running() or not killed(kind, labelling, nodes, chance):
                        deck.append(kind)
                    else:
                        deaths[kind] += 1
                        labelling.look()
                        written = len(labelling.first_seen)
                        early += written == 0
                        print(f"killed a {kind} with {written} of {files} files there", flush=True)
                labelling.finish()
                compare(labelling, undisturbed)
                print(f"finished after {labelling.starts} start(s): the same pairs and bytes", flush=True)
        finally:
            nodes.stop()
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(deaths.items()))
    print(f"{deaths.total()} kills ({kinds}; {early} before a set's first file): ", end="")
    print("0 pairs lost, 0 doubled, no file half-written or written again, every byte the same")


if __name__ == "__main__":
    main()
