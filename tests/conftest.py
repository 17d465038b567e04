"""What every test shares: where the third-party data is, if it is there at all."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How often, in seconds, Ray Train looks for what its workers report and wait to have taken; 2 by default.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# Two test processes share the cores, and tiny networks gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# It would cost each of the many short trainings a process that nothing here asks for.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

# No test asserts a time, and a busy machine is no failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real videos and frames with truth that lies beside the checkout."""
    folder = Path(os.environ.get("DISTILLFLOW_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder}; set DISTILLFLOW_DATA to run this test")
    return folder
