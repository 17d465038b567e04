"""What the tests of this folder share because starting or making it takes seconds: an embedded Ray, and an
empty MLflow database to copy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient

from pipelines.cluster import connect


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database: MLflow needs seconds to make one and milliseconds to open it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
