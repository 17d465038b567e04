"""What every test shares: where the third-party data is, if it is there at all, an empty MLflow database to
copy, and an S3 server."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from object_storage import Bucket, Server, serving

# How often, in seconds, Ray Train looks for what its workers report and wait to have taken; 2 by default.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# Two test processes share the cores, and tiny networks gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# It would cost each of the many short trainings a process that nothing here asks for.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# As an embedded Ray has it; a process more in each cluster otherwise.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Whoever asks the S3 server needs some, Ray's workers too.
os.environ.update(AWS_ACCESS_KEY_ID="-", AWS_SECRET_ACCESS_KEY="-", AWS_EC2_METADATA_DISABLED="true")

# No test asserts a time, and a busy machine is no failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def ray_address_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Ray notes the cluster that was started last in a file of the machine, and a head's jobs find theirs
    there. A module that starts clusters therefore holds a lock for each name in its CLUSTERS, and the one
    that submits jobs waits for all of them."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with contextlib.ExitStack() as locks:
        for name in request.module.CLUSTERS:
            locks.enter_context(FileLock(folder / f"{name}.lock"))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real videos and frames with truth that lies beside the checkout."""
    folder = Path(os.environ.get("DISTILLFLOW_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder}; set DISTILLFLOW_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: MLflow needs seconds to make one and milliseconds to open it."""
    # Imported here, as most tests need no MLflow.
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[Server, int]]:
    with serving() as server:
        yield server


@pytest.fixture
def bucket(s3_server: tuple[Server, int], tmp_path: Path) -> Bucket:
    server, port = s3_server
    server.reset()
    name = "".join(each for each in tmp_path.name.lower() if each.isalnum())
    return Bucket(name, server, port)
