"""The jobs as a user submits them to a started head of Ray, with token authentication."""

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from clips import render
from mlflow.entities import Run
from ports import free_ports
from terminal import BIN, client_of, runs_by_stage, typed

from flowcore.scenes import SceneOptions, render_scene, write_truth
from pipelines.pair_set import PairSet

CLUSTERS = ("labelling", "training")
pytestmark = [
    pytest.mark.usefixtures("ray_address_file"),
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A started head with token authentication; the environment that reaches it."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text("a" * 64)
    port, dashboard, agent = free_ports(3)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    started = typed(
        str(BIN / "ray"),
        *("start", "--head", "--num-cpus", "4", "--port", str(port), "--dashboard-port", str(dashboard)),
        # the agent takes the jobs; on its usual port it would be in the way of another Ray's
        *("--dashboard-agent-listen-port", str(agent)),
        "--disable-usage-stats",
        folder=folder,
        **environment,
    )
    assert started.returncode == 0, started.stderr[-3000:]
    try:
        yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        stop_head(port)


def stop_head(port: int) -> None:
    """Ends this head's processes alone; `ray stop` would end every Ray of the machine."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if any(word.endswith((f":{port}", f"--gcs_server_port={port}")) for word in words):
            process.kill()


def submitted(head: dict[str, str], folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "DISTILLFLOW_REVISION": "abc123"}
    job = None
    deadline = time.monotonic() + 600
    # a head takes jobs some seconds after `ray start` returns
    while job is None or ("No available agent" in job.stderr and time.monotonic() < deadline):
        job = typed(
            str(BIN / "ray"),
            *("job", "submit", "--working-dir", "."),
            *("--runtime-env-json", json.dumps({"env_vars": variables})),
            *("--", *command),
            folder=folder,
            **head,
        )
    return job


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What a job of each kind left, one after the other."""

    folder: Path
    runs: dict[str, list[Run]]
    """By stage."""

    def run(self, stage: str) -> Run:
        """The only one of its stage."""
        (run,) = self.runs[stage]
        return run


STUDENT = "models:/flow-student@champion"


@pytest.fixture(scope="module")
def chain(head: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    for seed in range(2):
        render(folder / "videos" / f"scene{seed}.mp4", seed, num_frames=9, height=64, width=96)
    (folder / "videos" / "broken.mp4").write_bytes(b"not a video")
    truth = render_scene(9, SceneOptions(height=64, width=96, num_frames=3))
    write_truth(folder / "truth" / "scene9", truth)
    videos, run_root, labels, scenes, flow = (
        str(folder / name) for name in ("videos", "runs", "labels", "truth", "flow")
    )
    teacher = "models:/flow-teacher@champion"
    commands = (
        ("train_teacher", "smoke", "--videos", videos, "--run-root", run_root),
        ("pseudolabel", "smoke", "--videos", videos, "--teacher", teacher, "--labels", labels),
        ("distill", "smoke", "--labels", labels, "--run-root", run_root, "--validate-on", f"scenes:{scenes}"),
        ("evaluate", "--model", STUDENT, "zero", "--truth", f"scenes:{scenes}"),
        ("predict", "--model", STUDENT, "--videos", f"{videos}/s*.mp4", "--output", flow),
    )
    # In one submission, as each takes Ray ten seconds of a core.
    typed_after_each_other = " && ".join(
        shlex.join(["python", f"jobs/{job}.py", *options]) for job, *options in commands
    )
    job = submitted(head, folder, "bash", "-c", typed_after_each_other)
    assert job.returncode == 0, f"{job.stdout[-4000:]} {job.stderr[-2000:]}"
    return Chain(folder=folder, runs=runs_by_stage(folder))


def test_every_job_runs_on_a_started_head_and_is_a_run(chain: Chain) -> None:
    assert {stage: len(found) for stage, found in chain.runs.items()} == {
        "train_teacher": 1,
        "pseudolabel": 1,
        "distill": 1,
        "evaluate": 2,
        "predict": 1,
    }


def test_labels_of_a_head_have_every_pair_and_name_the_broken_video(chain: Chain) -> None:
    assert PairSet.open(str(chain.folder / "labels")).index().num_rows == 16
    ledger = json.loads((chain.folder / "labels" / "_ledger.json").read_text())
    assert [Path(entry["video"]).name for entry in ledger] == ["broken.mp4"]


def test_a_head_predicts_the_flow_of_every_pair(chain: Chain) -> None:
    assert len(list((chain.folder / "flow").rglob("*.flo"))) == 16
    assert chain.run("predict").data.metrics["predict/pairs"] == 16


def test_a_prediction_leads_back_to_its_student(chain: Chain) -> None:
    predicted, student = chain.run("predict"), chain.run("distill")
    assert predicted.data.tags["input.model.run"] == student.info.run_id
    # A search leaves out which models a run read.
    whole = client_of(chain.folder).get_run(predicted.info.run_id)
    read = {each.model_id for each in whole.inputs.model_inputs}
    assert len(read) == 1
    assert read <= {each.model_id for each in student.outputs.model_outputs}


def test_a_prediction_records_its_videos_as_data(chain: Chain) -> None:
    (videos,) = (each.dataset for each in chain.run("predict").inputs.dataset_inputs)
    assert videos.name == "videos"
    assert videos.source.endswith('/s*.mp4"}')


def test_what_a_student_was_validated_on_while_it_trained_is_what_evaluate_judges(chain: Chain) -> None:
    judged = {
        run.data.tags["model.name"]: value
        for run in chain.runs["evaluate"]
        for name, value in run.data.metrics.items()
        if name.endswith("/epe/all")
    }
    assert judged[STUDENT] == pytest.approx(chain.run("distill").data.metrics["final/epe"], rel=1e-2)


def test_without_truth_a_training_is_validated_without_its_error(chain: Chain) -> None:
    assert "validation/epe" not in chain.run("train_teacher").data.metrics


def test_a_job_s_runs_have_the_revision_that_it_was_submitted_with(chain: Chain) -> None:
    revisions = {run.data.tags["mlflow.source.git.commit"] for found in chain.runs.values() for run in found}
    assert revisions == {"abc123"}


def test_a_relative_path_under_a_job_is_refused_with_the_reason(head: dict[str, str], tmp_path: Path) -> None:
    job = submitted(
        head,
        tmp_path,
        *("python", "jobs/train_teacher.py", "smoke", "--videos", "videos", "--run-root", str(tmp_path)),
    )
    assert job.returncode != 0
    assert "--videos 'videos' is a relative path" in job.stdout
