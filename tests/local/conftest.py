"""An embedded Ray that the tests of this folder share: starting one takes seconds."""

from collections.abc import Iterator

import pytest
import ray

from pipelines.cluster import connect


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    connect()
    yield
    ray.shutdown()
