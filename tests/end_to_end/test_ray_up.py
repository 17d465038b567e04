"""`ray_cluster.yaml` on three machines of our own: a laptop brings up a head and a worker, submits a job and
takes them down.

What is Amazon's in the file and its container are replaced; its other settings and commands are run as they
are written.
"""

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from clips import render
from machines import Machine, network, require_machines
from terminal import REPOSITORY, expect_success

from pipelines.pair_set import PairSet

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

RAYLET, HEAD = "raylet/raylet", "gcs/gcs_server"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What was seen of one, from up to down."""

    labels: Path
    raylets: tuple[int, ...]
    """How many laptop, head and worker had while the cluster was up."""
    left: list[str]
    """What runs on the head after `ray down`."""
    job: subprocess.CompletedProcess[str]


def local(head: Machine, worker: Machine, key: Path) -> str:
    """The cluster's file for machines that are there already."""
    settings = yaml.safe_load((REPOSITORY / "ray_cluster.yaml").read_text())
    for name in ("docker", "available_node_types", "head_node_type"):
        del settings[name]
    settings["provider"] = {"type": "local", "head_ip": head.address, "worker_ips": [worker.address]}
    settings["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    settings["max_workers"] = 1
    return str(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    require_machines()
    shared = tmp_path_factory.mktemp("shared")
    for seed in range(2):
        render(shared / "videos" / f"scene{seed}.mp4", seed, num_frames=9, height=64, width=96)
    labels = shared / "labels"
    environment = {
        "RAY_AUTH_MODE": "token",
        # The autoscaler that Ray takes otherwise, as on Amazon, never starts a worker that is there already.
        "RAY_UP_enable_autoscaler_v2": "0",
        "MLFLOW_TRACKING_URI": f"sqlite:///{shared / 'mlflow.db'}",
    }
    with network(("laptop", "head", "worker"), environment) as there:
        laptop, head, worker = there.machines
        file = laptop.home / "cluster.yaml"
        file.write_text(local(head, worker, there.key))
        expect_success(laptop.typed("ray get-auth-token --generate"))
        expect_success(laptop.typed(f"ray up --yes --no-config-cache {file}"))
        # The head starts the worker.
        while not worker.processes(RAYLET):
            time.sleep(0.2)
        with laptop.running(f"ray dashboard --no-config-cache {file}"):
            submitted = laptop.typed(
                "until curl --silent --output /dev/null http://127.0.0.1:8265; do sleep 0.5; done; "
                "RAY_ADDRESS=http://127.0.0.1:8265 ray job submit --working-dir . -- "
                "python jobs/pseudolabel.py smoke --teacher opencv:dis_medium "
                f"--videos {shared / 'videos'} --labels {labels}"
            )
        raylets = tuple(len(machine.processes(RAYLET)) for machine in there.machines)
        expect_success(laptop.typed(f"ray down --yes {file}"))
        # The worker, which a cloud would take away, ends when it misses its head.
        left = [*head.processes(RAYLET), *head.processes(HEAD)]
    return Cluster(labels=labels, raylets=raylets, left=left, job=submitted)


def test_ray_up_starts_a_head_and_a_worker_and_nothing_on_the_laptop(cluster: Cluster) -> None:
    assert cluster.raylets == (0, 1, 1)


def test_a_job_from_the_laptop_labels_every_pair_there(cluster: Cluster) -> None:
    expect_success(cluster.job)
    assert re.search("succeeded", cluster.job.stdout)
    assert PairSet.open(str(cluster.labels)).index().num_rows == 16


def test_ray_down_leaves_no_head(cluster: Cluster) -> None:
    assert cluster.left == []
