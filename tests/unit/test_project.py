"""The project's own files: the architecture, the packages, and the cluster."""

import builtins
import json
import re
import subprocess
import symtable
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from importlinter.cli import lint_imports
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
CLUSTER_FILE = REPOSITORY / "ray_cluster.yaml"


def cluster() -> dict[str, Any]:
    """The cluster file as Ray reads it; a new copy each time, because Ray fills it in."""
    content: dict[str, Any] = yaml.safe_load(CLUSTER_FILE.read_text())
    return content


def test_every_import_points_down_from_jobs_over_pipelines_to_flowcore() -> None:
    # The report that names the offending import is in the captured output.
    assert lint_imports(config_filename=str(REPOSITORY / "pyproject.toml"), no_cache=True) == 0


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        # a decoder process
        ("pipelines.decoding", ("torch", "ray", "mlflow")),
        # the process that carries a progress bar's numbers
        ("pipelines.progress", ("torch", "mlflow")),
        # the driver, every reader and writer, every teacher, every training worker but the first
        ("pipelines.shards", ("mlflow", "scipy", "ray.train")),
        ("pipelines.labelling_stages", ("torch", "ray", "mlflow", "scipy")),
        ("pipelines.teaching", ("ray", "mlflow", "scipy")),
        # whoever asks for a status
        ("pipelines.labelling", ("ray", "mlflow", "scipy")),
        ("pipelines.feed", ("mlflow", "scipy")),
        # each worker of a DataLoader that is spawned
        ("pipelines.label_dataset", ("ray", "mlflow", "scipy")),
        ("pipelines.training", ("mlflow", "scipy")),
    ],
)
def test_a_cluster_s_processes_import_nothing_that_takes_seconds_and_that_they_do_not_need(
    module: str, heavy: tuple[str, ...]
) -> None:
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    imported = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True)
    assert imported.stdout.decode().strip() == "[]"


def test_no_script_hides_a_standard_module_or_a_dependency() -> None:
    # `python jobs/x.py` puts jobs/ first on sys.path: jobs/inspect.py would be everybody's `import inspect`.
    scripts = {path.stem for path in (REPOSITORY / "jobs").glob("*.py")} - {"__init__"}
    assert scripts.isdisjoint(sys.stdlib_module_names)
    assert scripts.isdisjoint(packages_distributions())


def test_every_package_folder_is_installed() -> None:
    folders = [
        path.parent.relative_to(REPOSITORY)
        for top in ("flowcore", "pipelines", "jobs")
        for path in (REPOSITORY / top).rglob("__init__.py")
    ]
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(".".join(f.parts) for f in folders)


def test_every_file_that_the_code_reads_is_installed_with_it() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "flowcore", "pipelines", "jobs"], cwd=REPOSITORY, capture_output=True, check=True
    )
    beside = [file for file in tracked.stdout.decode().splitlines() if not file.endswith(".py")]
    installed = PROJECT["tool"]["setuptools"]["package-data"]
    assert beside == [f"{package}/{name}" for package, names in installed.items() for name in names]


def test_the_cluster_file_is_one_that_ray_accepts() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster(), schema)
    validate_config(prepare_config(cluster()))


def test_a_node_of_the_cluster_runs_the_container_and_installs_nothing() -> None:
    images = {
        cluster()["docker"]["image"],
        cluster()["available_node_types"]["cpu_worker"]["docker"]["worker_image"],
    }
    targets = re.findall(r"COPY --from=packages-(\w+) ", (REPOSITORY / "deploy" / "Dockerfile").read_text())
    assert {image.rpartition("/")[2] for image in images} == {f"distillflow:{target}" for target in targets}
    assert not any(cluster()[f"{who}setup_commands"] for who in ("", "head_", "worker_"))


def test_the_cluster_scales_cpu_and_gpu_workers_down_to_nothing() -> None:
    node_types = cluster()["available_node_types"]
    workers = {name: node for name, node in node_types.items() if name != cluster()["head_node_type"]}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers.values())
    assert sum(node["max_workers"] for node in workers.values()) <= cluster()["max_workers"]
    assert any(node["resources"].get("GPU", 0) for node in workers.values())
    assert any(not node["resources"].get("GPU", 0) for node in workers.values())


def test_the_cluster_demands_the_token_and_hides_its_dashboard() -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster()["docker"]["run_options"]
    assert "~/.ray/auth_token" in cluster()["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in cluster()["head_start_ray_commands"][-1]


def test_make_demo_hands_the_users_videos_and_arguments_on() -> None:
    made = subprocess.run(
        [
            "make",
            "--dry-run",
            "demo",
            "VIDEOS=my videos",
            "SEED=3",
            "RECIPE=smoke",
            "ARGS=--run-root my_runs",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python jobs/demo.py smoke --videos 'my videos' --seed 3 --run-root my_runs" in made.stdout


def undefined_names(source: str, file: str) -> set[str]:
    """The names that functions take from their module, and that it doesn't have."""
    module = symtable.symtable(source, file, "exec")
    known = {each.get_name() for each in module.get_symbols() if each.is_assigned() or each.is_imported()}
    known |= {child.get_name() for child in module.get_children()} | set(dir(builtins))
    known |= {"__file__", "__name__", "__spec__", "__path__"}
    found, scopes = set(), list(module.get_children())
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        found |= {
            each.get_name() for each in scope.get_symbols() if each.is_global() and each.is_referenced()
        }
        # What a function declares global it may define there.
        known |= {
            each.get_name()
            for each in scope.get_symbols()
            if each.is_declared_global() and each.is_assigned()
        }
    return found - known


def test_no_function_uses_a_name_missing_from_its_module() -> None:
    # The linter's own rule is off, as the names of jaxtyping's axes look undefined to it.
    folders = ("flowcore", "pipelines", "jobs", "benchmarks", "docs", "tests")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 200
    undefined = {str(file): undefined_names(file.read_text(), str(file)) for file in files}
    assert {file: names for file, names in undefined.items() if names} == {}


def test_a_name_that_is_nowhere_is_found() -> None:
    assert undefined_names("import os\ndef f(x):\n    return [os.sep, len(x), nowhere]\n", "a.py") == {
        "nowhere"
    }
