"""What is in deploy/ is what its readers accept: KubeRay, Compose, a container's builder and SLURM."""

import gzip
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ports import first_answer, free_ports

from jobs.commands import COMMANDS, options_of_job

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
RAY_JOBS = ("kuberay-label.yaml", "kuberay-train.yaml")
SCHEMA = REPOSITORY / "tests" / "data" / "kuberay-1.7.0-rayjob.json.gz"
COMPOSE_SCHEMA = REPOSITORY / "tests" / "data" / "compose-spec-2025-10-28.json.gz"
"""Of the Compose Specification's repository at commit a08f8d5."""
LOCKED = {
    package["name"]: package["version"]
    for package in tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
}
INSTRUCTION = re.compile(r"(?m)^([A-Z]+) ((?:.*\\\n)*.*)$")


def ray_job(name: str) -> dict[str, Any]:
    documents = list(yaml.safe_load_all((DEPLOY / name).read_text()))
    (job,) = (each for each in documents if each["kind"] == "RayJob")
    return dict(job)


def refused_unknown(schema: Any) -> Any:
    """The schema as the API server reads it, which drops what it doesn't know, with an error instead."""
    if isinstance(schema, list):
        return [refused_unknown(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: refused_unknown(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.mark.parametrize("name", RAY_JOBS)
def test_kuberay_accepts_the_job_and_knows_all_of_its_fields(name: str) -> None:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))["schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(ray_job(name), refused_unknown(schema))


def test_a_misspelt_field_is_none_that_kuberay_knows() -> None:
    schema = refused_unknown(json.loads(gzip.decompress(SCHEMA.read_bytes()))["schema"])
    job = ray_job("kuberay-label.yaml")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(job["spec"], schema["properties"]["spec"])


@pytest.mark.parametrize("name", RAY_JOBS)
def test_a_kuberay_job_runs_the_locked_ray_behind_a_token(name: str) -> None:
    cluster = ray_job(name)["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == LOCKED["ray"]
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", RAY_JOBS)
def test_a_kuberay_job_scales_gpus_down_to_nothing_and_keeps_tasks_off_the_head(name: str) -> None:
    cluster = ray_job(name)["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert cluster["enableInTreeAutoscaling"]
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in groups.values())
    (gpu,) = groups["gpu"]["template"]["spec"]["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", RAY_JOBS)
def test_no_secret_is_written_into_a_kuberay_job(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert "secretRef: {name: distillflow-storage}" in text
    values = re.findall(r"value: \"([^\"]*)\"", text)
    assert all(value.startswith("http://") for value in values)


@pytest.mark.parametrize("name", RAY_JOBS)
def test_a_kuberay_job_is_a_command_with_options_that_there_are(name: str) -> None:
    program, command, recipe, *words = shlex.split(ray_job(name)["spec"]["entrypoint"])
    assert program == "distillflow"
    known = {option.path.replace("_", "-") for option in options_of_job(COMMANDS[command])[recipe]}
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert given
    assert given <= known


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text())
    return INSTRUCTION.findall(text)


def of_targets() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each target: of the stages that start something."""
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text())
    stages = [INSTRUCTION.findall(f"FROM {stage}") for stage in re.split(r"(?m)^FROM ", text)[1:]]
    return {stage[0][1].split()[-1]: stage for stage in stages if "CMD" in dict(stage)}


def test_a_container_installs_by_hash_all_but_the_project_itself() -> None:
    installs = [line for name, run in instructions() if name == "RUN" for line in run.split("&&")]
    installs = [" ".join(line.replace("\\\n", " ").split()) for line in installs if "pip install" in line]
    *packages, project = installs
    assert len(packages) == 4
    assert all("--require-hashes --only-binary :all: --no-deps" in line for line in packages)
    assert "--no-index --no-deps --no-build-isolation" in project
    assert project.endswith(" .")


def test_a_container_runs_as_nobody_special_whom_kubernetes_knows_by_number() -> None:
    targets = of_targets()
    assert targets.keys() == {"cpu", "cuda"}
    made = re.search(r"useradd .*--uid (\d+) ray", (DEPLOY / "Dockerfile").read_text())
    assert made is not None
    for target in targets.values():
        assert [words for name, words in target if name == "USER"] == [made[1]]


def test_a_login_shell_in_a_container_finds_the_commands_that_any_other_finds() -> None:
    (setup,) = (run for name, run in instructions() if name == "RUN" and "/etc/profile.d/" in run)
    echo, place = setup.split(" > ")
    # Debian's profile reads no other names.
    assert re.fullmatch(r"/etc/profile\.d/\w+\.sh", place)
    (path,) = (words.split()[0] for name, words in instructions() if name == "ENV" and "PATH=" in words)
    for line in (f'eval "$({echo})"', path):
        shown = subprocess.run(
            ["/bin/sh", "-c", f"{line}; echo $PATH"],
            env={"PATH": "/usr/bin"},
            capture_output=True,
            check=True,
        )
        assert shown.stdout.decode().strip() == "/opt/distillflow/bin:/usr/bin"


def test_a_container_has_its_code_as_a_package_alone_and_starts_in_a_folder_of_its_user() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert "PYTHONPATH" not in text
    assert re.search(r"install --directory --owner ray --group ray /work$", text, re.MULTILINE)
    for target in of_targets().values():
        assert {words.split()[-1] for name, words in target if name == "COPY"} == {"/opt/distillflow"}
        assert dict(target)["WORKDIR"] == "/work"


def test_a_container_s_networks_lie_in_a_layer_before_its_code() -> None:
    (split,) = (run for name, run in instructions() if name == "RUN" and "--root /code" in run)
    assert re.search(r'mv "/code\$pipelines/shipped" "/networks\$pipelines"$', split)
    for name, target in of_targets().items():
        sources = [words.rsplit(maxsplit=1)[0] for kind, words in target if kind == "COPY"]
        assert sources == [
            f"--from=packages-{name} /opt/distillflow",
            "--from=project /networks/opt/distillflow",
            "--from=project /code/opt/distillflow",
        ]


@pytest.mark.parametrize("name", RAY_JOBS)
def test_kubernetes_starts_no_container_of_a_job_as_root(name: str) -> None:
    cluster = ray_job(name)["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for container in (each for group in groups for each in group["template"]["spec"]["containers"]):
        assert container["securityContext"]["runAsNonRoot"]


def test_a_container_gets_only_files_that_are_there_and_not_ignored() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        source
        for name, words in instructions()
        if name == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    }
    assert copied == kept
    assert all((REPOSITORY / each).exists() for each in copied)


def test_what_a_cpu_container_leaves_out_is_what_only_cuda_needs() -> None:
    without_cuda = runpy.run_path(str(DEPLOY / "without_cuda.py"))["without_cuda"]
    requirements = (REPOSITORY / "requirements.txt").read_text()
    names = re.compile(r"(?m)^([A-Za-z0-9._-]+)==")
    left_out = {*names.findall(requirements)} - {*names.findall(without_cuda(requirements))}
    assert {"torch", "triton", "nvidia-cudnn-cu13", "cuda-bindings"} <= left_out
    assert all(re.match("torch$|triton$|nvidia-|cuda-", name) for name in left_out)


def test_a_container_s_requirements_keep_their_hashes() -> None:
    without_cuda = runpy.run_path(str(DEPLOY / "without_cuda.py"))["without_cuda"]
    text = without_cuda(
        "a==1 ; x \\\n    --hash=sha256:1\ntorch==2 \\\n    --hash=sha256:2\nb==3 \\\n    --hash=sha256:3\n"
    )
    assert text == "a==1 ; x \\\n    --hash=sha256:1\nb==3 \\\n    --hash=sha256:3\n"


@pytest.fixture
def composed() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


@pytest.fixture
def services(composed: dict[str, Any]) -> dict[str, Any]:
    return dict(composed["services"])


def compose_specification() -> Any:
    return jsonschema.Draft7Validator(json.loads(gzip.decompress(COMPOSE_SCHEMA.read_bytes())))


def test_compose_accepts_the_services(composed: dict[str, Any]) -> None:
    compose_specification().validate(composed)


def test_a_misspelt_field_is_none_that_compose_knows(composed: dict[str, Any]) -> None:
    composed["services"]["mlflow"]["depend_on"] = ["database"]
    with pytest.raises(jsonschema.ValidationError, match="depend_on"):
        compose_specification().validate(composed)


def test_composed_services_wait_for_what_they_need(services: dict[str, Any]) -> None:
    needed = {each for service in services.values() for each in service.get("depends_on", {})}
    assert needed <= services.keys()
    assert {"database", "buckets"} <= services["mlflow"]["depends_on"].keys()


def test_composed_services_are_reached_from_this_machine_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_composed_services_have_no_password_of_their_own(services: dict[str, Any]) -> None:
    secrets = {
        name: value
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if re.search("PASSWORD|SECRET|ACCESS_KEY|AUTH_TOKEN", name)
    }
    assert secrets
    assert all(re.fullmatch(r"\$\{\w+:\?.*\}", value) for value in secrets.values())


def test_the_composed_store_starts_and_has_the_buckets_for_who_knows_its_keys(
    services: dict[str, Any], tmp_path: Path
) -> None:
    kind, *options = shlex.split(services["store"]["command"])
    parts = ("master.port", "volume.port", "filer.port", "s3.port", "admin.port")
    ports = dict(zip((*parts, *(f"{part}.grpc" for part in parts)), free_ports(2 * len(parts)), strict=True))
    s3 = ports["s3.port"]
    # As it is composed but for its folder and address, and for ports that nobody else has here.
    options = [option.replace("=store", "=127.0.0.1").replace("=/data", f"={tmp_path}") for option in options]
    options += [f"-{part}={port}" for part, port in ports.items()]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    program = [str(Path(sys.executable).with_name("weed")), f"-logdir={tmp_path}", kind]
    log = tmp_path / "log"
    there = {**os.environ, "AWS_ACCESS_KEY_ID": "composed", "AWS_SECRET_ACCESS_KEY": "of-this-test"}
    there |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}", "AWS_REGION": "us-east-1"}
    buckets = [sys.executable, "-c", services["buckets"]["command"][-1] + "print(*sorted(there))"]
    with log.open("w") as words:
        store = subprocess.Popen([*program, *options], cwd=tmp_path, env=there, stdout=words, stderr=words)
        try:
            first_answer(f"{there['AWS_ENDPOINT_URL']}/healthz", store, log)
            told = [
                subprocess.run(buckets, env=there, capture_output=True, text=True, check=True).stdout.split()
                for _ in range(2)
            ]
            assert told == [[], ["labels", "mlflow", "runs", "videos"]]
            stranger = there | {"AWS_ACCESS_KEY_ID": "another"}
            refused = subprocess.run(buckets, env=stranger, capture_output=True, text=True, check=False)
            assert "InvalidAccessKeyId" in refused.stderr
        finally:
            store.terminate()
            store.wait()


def test_the_slurm_script_is_bash_that_runs_any_command() -> None:
    script = DEPLOY / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert 'distillflow "$@"' in script.read_text()
    # bash passes none on: a warning of the end would only bring it forward.
    assert "--signal" not in script.read_text()
    if shutil.which("shellcheck") is not None:
        subprocess.run(["shellcheck", "--exclude", "SC1091,SC2155", str(script)], check=True)
