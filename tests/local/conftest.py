"""An embedded Ray that the tests of this folder share: starting one takes seconds."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Four logical CPUs, however many there are, so that a feed has room beside its workers."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
