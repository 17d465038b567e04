"""What has an experiment found so far? A file for each thing measured and seed, so that the same command does
what is missing."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiments import alone
from benchmarks.experiments.cells import SEEDS, file_name, revision
from benchmarks.report import mean_and_spread
from pipelines.storage import write_whole


@dataclass(frozen=True)
class Records:
    """The files in a folder."""

    folder: Path

    def file(self, name: str, seed: int) -> Path:
        return self.folder / f"{file_name(name)}.seed{seed}.json"

    def measure(self, name: str, seed: int, make: Callable[[], Mapping[str, float]], /, **facts: str) -> None:
        """Records what `make` finds, with these facts, unless the record is there."""
        path = self.file(name, seed)
        if path.exists():
            return
        started = time.monotonic()
        record: dict[str, Any] = {
            **facts,
            "seed": seed,
            "revision": revision(),
            "device": alone.DEVICE.type,
            **make(),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
        print(record, flush=True)

    def of(self, name: str) -> dict[int, dict[str, float]]:
        """By seed."""
        paths = ((seed, self.file(name, seed)) for seed in SEEDS)
        return {seed: json.loads(path.read_text()) for seed, path in paths if path.exists()}

    def mean(self, name: str, key: str, digits: int = 2) -> str:
        """Over seeds; empty where nothing was measured."""
        found = [each[key] for each in self.of(name).values() if key in each]
        return mean_and_spread(found, digits) if found else ""

    def change(self, name: str, against: str, key: str) -> str:
        """In percent, seed by seed; empty where nothing was measured."""
        found, control = self.of(name), self.of(against)
        changes = [100 * (found[seed][key] / control[seed][key] - 1) for seed in found if seed in control]
        return f"{mean_and_spread(changes, 1)} %" if changes else ""
