"""Commands as a user types them, and the runs that they left."""

import os
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def typed(
    *command: str, folder: Path, cwd: Path = REPOSITORY, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What became of a command, typed in `cwd`, whose runs are recorded in the folder."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def expect_success(ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode == 0, f"{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_by_stage(folder: Path) -> dict[str, list[Run]]:
    client = client_of(folder)
    runs: dict[str, list[Run]] = {}
    for run in client.search_runs([client.get_experiment_by_name("distillflow").experiment_id]):
        runs.setdefault(run.data.tags["stage"], []).append(run)
    return runs
