"""`deploy/slurm.sbatch` on two machines of our own, with a stand-in for SLURM that starts commands on them.

Ray starts on both, the command runs on the first, and Ray ends with it.
"""

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from clips import render
from machines import Network, network, require_machines
from terminal import REPOSITORY, expect_success

from pipelines.pair_set import PairSet

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

# As SLURM's, it hands its environment on.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
command="cd {repository} && RAY_AUTH_MODE=$RAY_AUTH_MODE RAY_AUTH_TOKEN=$RAY_AUTH_TOKEN $(printf '%q ' "$@")"
for node in {nodes}; do
    ssh -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@$node \
        bash --login -c "$(printf '%q' "$command")" &
    started+=($!)
done
for each in "${{started[@]}}"; do wait "$each" || failed=1; done
exit "${{failed:-0}}"
"""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a job left."""

    labels: Path
    ended: subprocess.CompletedProcess[str]
    head: str
    """The address of the first node."""


def pretend_slurm(there: Network, folder: Path) -> None:
    """The programs of SLURM that the script calls."""
    nodes = [machine.address for machine in there.machines[1:]]
    (folder / "srun").write_text(
        SRUN.format(repository=shlex.quote(str(REPOSITORY)), nodes=" ".join(nodes), key=there.key)
    )
    (folder / "scontrol").write_text(f"#!/bin/sh\nprintf '%s\\n' {' '.join(nodes)}\n")
    for program in ("srun", "scontrol"):
        (folder / program).chmod(0o755)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    require_machines()
    shared = tmp_path_factory.mktemp("shared")
    for seed in range(2):
        render(shared / "videos" / f"scene{seed}.mp4", seed, num_frames=9, height=64, width=96)
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{shared / 'mlflow.db'}"}
    with network(("submitting", "node1", "node2"), environment) as there:
        submitting = there.machines[0]
        pretend_slurm(there, submitting.home)
        ended = submitting.typed(
            f"export PATH={submitting.home}:$PATH SLURM_SUBMIT_DIR={shlex.quote(str(REPOSITORY))} "
            "SLURM_JOB_NODELIST=node[1-2] SLURM_NNODES=2 SLURM_JOB_ID=7; "
            "bash deploy/slurm.sbatch label smoke --teacher opencv:dis_medium "
            f"--videos {shared / 'videos'} --labels {shared / 'labels'}"
        )
    return Done(labels=shared / "labels", ended=ended, head=there.machines[1].address)


def test_a_slurm_job_labels_every_pair_on_nodes_that_found_each_other(done: Done) -> None:
    expect_success(done.ended)
    assert PairSet.open(str(done.labels)).index().num_rows == 16


def test_a_slurm_job_s_command_works_on_the_nodes_and_starts_no_ray_of_its_own(done: Done) -> None:
    assert f"joining Ray at {done.head}" in done.ended.stderr
    assert "starting Ray" not in done.ended.stderr
