"""Is each pair in the label set exactly once, whatever is killed while it is made?

    python -m benchmarks.endurance.chaos [--kills 200] [--seed 0] [--videos 12] [--victims node driver]

Labels rendered videos on a cluster of two nodes on this machine, once undisturbed. Then the same command
labels into another folder while one of its processes or a whole node is killed with -9 at random moments.
Where a kill ends the command, it is typed again. A set that is finished is compared with the undisturbed
one, and the next set is begun, until so many processes were killed over finished sets. Ends with an error if
a set differs from the undisturbed one in a pair or a byte, if a file was visible before it was whole, or if
finished work was done again.

Each finished set is noted in docs/results/kills, so that the same command goes on where it was ended.
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks import report
from benchmarks.endurance.victims import Job, Nodes, Record, add_options, kill_one_titled
from benchmarks.inputs import fresh_teacher, render_videos
from benchmarks.processes import TITLES
from flowcore.scenes import SceneOptions
from jobs.recipes import RECIPES
from pipelines.ledger import MANIFEST_FILE
from pipelines.pair_set import PairSet

VICTIMS = ("driver", "node", *TITLES)
_SPAN = 20.0
"""Seconds from which the moment of a kill is drawn: a run takes half of them to get going."""
_PATIENCE = 30.0
"""Seconds to wait for a process of the kind that is to be killed."""
_FRAMES, _CHUNK_PAIRS, _SHARD_PAIRS = 65, 4, 8


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
            "clips.chunk-pairs": _CHUNK_PAIRS,
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
    deadline = time.monotonic() + _PATIENCE
    while labelling.is_running() and time.monotonic() < deadline:
        if kill_one_titled(TITLES[kind], chance):
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


def main() -> None:
    parser = report.parser(__doc__)
    add_options(parser, VICTIMS, kills=200)
    parser.add_argument("--videos", type=int, default=12, help="to label; 12 by default")
    arguments = parser.parse_args()
    record = Record.of("labelling")
    print(report.command())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = SceneOptions(height=64, width=96, num_frames=_FRAMES)
        render_videos(folder / "videos", arguments.videos, scene)
        fresh_teacher(folder / "teacher", RECIPES["smoke"].network)
        nodes = Nodes()
        try:
            undisturbed = Labelling(folder, nodes.address, folder / "undisturbed")
            started = time.monotonic()
            undisturbed.finish()
            pairs, seconds = len(undisturbed.pair_ids()), time.monotonic() - started
            files = len(undisturbed.contents())
            print(f"undisturbed: {pairs} pairs in {files} files, {seconds:.0f} s", flush=True)
            while record.kills < arguments.kills:
                rounds = len(record.rounds)
                chance = random.Random(f"{arguments.seed} {rounds}")
                labelling = Labelling(folder, nodes.address, folder / f"set{rounds}")
                deaths, early = disturb(labelling, nodes, chance, arguments.victims, files)
                labelling.finish()
                compare(labelling, undisturbed)
                print(f"finished after {labelling.starts} start(s): the same pairs and bytes", flush=True)
                record.add(deaths, pairs=pairs, files=files, starts=labelling.starts, early=early)
        finally:
            nodes.stop()
    print(table())


def disturb(
    labelling: Labelling, nodes: Nodes, chance: random.Random, victims: Sequence[str], files: int
) -> tuple[Counter[str], int]:
    """Kills until the set is finished; how many of each kind, and how many before there was a file."""
    deaths: Counter[str] = Counter()
    deck: list[str] = []
    early = 0
    while not labelling.is_finished:
        labelling.start()
        time.sleep(chance.uniform(0.0, _SPAN))
        labelling.look()
        # Each kind once before any comes again.
        deck = deck or chance.sample(victims, len(victims))
        kind = deck.pop()
        if not labelling.is_running() or not killed(kind, labelling, nodes, chance):
            deck.append(kind)
            continue
        deaths[kind] += 1
        labelling.look()
        written = len(labelling.first_seen)
        early += written == 0
        print(f"killed a {kind} with {written} of {files} files there", flush=True)
    return deaths, early


def table() -> str:
    """What is noted of all sets, each of which had the undisturbed one's pairs, byte for byte."""
    rounds = Record.of("labelling").rounds
    row = [len(rounds), *(sum(each["kills"].get(kind, 0) for each in rounds) for kind in VICTIMS)]
    row += [Record.of("labelling").kills, sum(each["early"] for each in rounds)]
    row.append(sum(each["pairs"] for each in rounds))
    heads = ["sets", *VICTIMS, "kills", "before the first file", "pairs"]
    return report.table(heads, [row], texts=0)


if __name__ == "__main__":
    main()
