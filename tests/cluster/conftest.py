"""A cluster that the tests of a file share: starting Ray takes seconds, and it outlives a killed driver."""

import contextlib
import os
from collections.abc import Callable, Iterator

import psutil
import pytest
from ray.cluster_utils import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that nothing but drivers fits, so that all work is on the nodes that a test adds and kills."""
    ray = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def processes_of_ray(cluster: Cluster) -> Callable[[str], list[psutil.Process]]:
    """Its processes whose title has a text in it."""

    def found(title: str) -> list[psutil.Process]:
        processes = []
        for process in psutil.Process(os.getpid()).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    processes.append(process)
        return processes

    return found
