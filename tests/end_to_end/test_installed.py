"""The wheel in an environment of its own, from a folder where there is no checkout."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from mlflow.entities import Run
from terminal import REPOSITORY, client_of

from flowcore.formats import write_image
from flowcore.scenes import SceneOptions, render_scene
from jobs.commands import COMMANDS
from jobs.manual import WIDTH

VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which finds all other packages where this process does."""
    folder = tmp_path_factory.mktemp("installed")
    # Not in the repository, where a build of before would leave files for this one.
    source = folder / "source"
    for package in ("flowcore", "pipelines", "jobs"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    made = folder / "environment"
    venv.create(made, symlinks=True)
    python = made / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    (packages,) = made.glob("lib/python*/site-packages")
    # The links to the checkout that lie there aren't followed.
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return made


def ended(
    environment: Path, cwd: Path, *words: str, program: str = "distillflow", **variables: str
) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTHONPATH", "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "VIRTUAL_ENV")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [str(environment / "bin" / program), *words],
        cwd=cwd,
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_code_that_runs_is_the_wheel_s(environment: Path, tmp_path: Path) -> None:
    code = "import flowcore, pipelines, jobs; print(flowcore.__file__, pipelines.__file__, jobs.__file__)"
    places = ended(environment, tmp_path, "-c", code, program="python").stdout.split()
    assert len(places) == 3
    assert all(place.startswith(str(environment)) for place in places)


def test_the_version_is_that_of_the_project(environment: Path, tmp_path: Path) -> None:
    told = ended(environment, tmp_path, "--version")
    assert (told.returncode, told.stdout) == (0, f"distillflow-ray {VERSION}\n")


def test_help_has_a_sentence_for_each_command(environment: Path, tmp_path: Path) -> None:
    told = ended(environment, tmp_path, "--help").stdout
    assert re.findall(r"^  ([a-z-]+)  +[A-Z]", told, re.MULTILINE) == list(COMMANDS)
    assert max(map(len, told.splitlines())) <= WIDTH


def test_help_imports_nothing_that_takes_seconds(environment: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from jobs.console import main; sys.argv = ['distillflow', '--help']; main(); "
        "print([name for name in ('ray', 'mlflow', 'torch', 'numpy') if name in sys.modules])"
    )
    assert ended(environment, tmp_path, "-c", code, program="python").stdout.endswith("\n[]\n")


HELP = """
import sys
from jobs.commands import COMMANDS
from jobs.console import main

for command in COMMANDS:
    sys.argv = ["distillflow", command, "--help"]
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code)
"""


def test_each_command_explains_itself_in_the_words_that_its_user_types(
    environment: Path, tmp_path: Path
) -> None:
    told = ended(environment, tmp_path, "-c", HELP, program="python").stdout
    assert re.findall(r"^usage: distillflow ([a-z-]+)", told, re.MULTILINE) == list(COMMANDS)
    assert told.count("ended with 0\n") == len(COMMANDS)
    assert re.findall(r"jobs/\w+|pseudolabel\b|(?:im|ex)port_labels", told) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lable"], "no command 'lable'; perhaps you meant label"),
        ([], "a command is missing"),
        (["--completion", "tcsh"], "--completion takes one of bash, zsh, fish"),
        (["predict", "--modle", "m"], "perhaps you meant --model"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_is_right(
    environment: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    told = ended(environment, tmp_path, *words)
    assert told.returncode == 2
    assert said in told.stderr


def test_a_message_names_the_next_command_as_its_user_types_it(environment: Path, tmp_path: Path) -> None:
    told = ended(environment, tmp_path, "distill", "smoke", "--labels", "none", "--run-root", "runs")
    assert "make it with `distillflow label`" in told.stderr


ALONE = """
import pathlib, sys
sys.path.append(str(next(pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages"))))
from jobs.console import main
sys.argv = ["distillflow", "status", "--labels", "labels"]
main()
"""


def test_a_package_that_is_missing_is_named_with_the_command_that_knows_more(
    environment: Path, tmp_path: Path
) -> None:
    # Without the line that leads to all other packages.
    told = ended(environment, tmp_path, "-S", "-c", ALONE, str(environment), program="python")
    assert told.returncode == 1
    assert "`distillflow doctor` says what to install" in told.stderr


def test_the_doctor_finds_nothing_broken_where_the_tests_run(environment: Path, tmp_path: Path) -> None:
    told = ended(environment, tmp_path, "doctor")
    assert told.returncode == 0, told.stdout
    assert f"distillflow-ray {VERSION}, installed" in told.stdout


def test_the_doctor_ends_with_1_and_a_remedy_where_nobody_answers(environment: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    addresses = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    told = ended(environment, tmp_path, "doctor", **addresses)
    assert told.returncode == 1
    broken = re.findall(r"^broken  (\w+)", told.stdout, re.MULTILINE)
    assert broken == ["MLflow", "Ray"]
    assert told.stdout.count("-> start") == 2


def test_the_doctor_ends_though_a_server_never_answers(environment: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = ended(environment, tmp_path, "doctor", MLFLOW_TRACKING_URI=silent)
    assert told.returncode == 1
    assert re.search("^broken  MLflow", told.stdout, re.MULTILINE)


COMPLETED = """
source ./script
COMP_WORDS=(distillflow "$@") COMP_CWORD=$#
_distillflow
echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completing(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script for bash."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "script").write_text(ended(environment, folder, "--completion", "bash").stdout)
    return folder


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["la"], "label"),
        (["distill", "lap"], "laptop"),
        (["distill", "laptop", "--lab"], "--labels"),
        (["predict", "--vide"], "--videos --video"),
        (["train-teacher", "video"], "video video:raft"),
        # bash splits words at a colon, and completes what is behind it.
        (["train-teacher", "video", ":"], "raft"),
        (["train-teacher", "video", ":", "ra"], "raft"),
        (["train-teacher", "video", ":", "raft", "--vide"], "--videos"),
    ],
)
def test_bash_completes_commands_recipes_and_options(
    completing: Path, typed: list[str], completed: str
) -> None:
    shell = ["bash", "-eu", "-c", COMPLETED, "bash", *typed]
    told = subprocess.run(shell, cwd=completing, capture_output=True, text=True, check=True).stdout
    assert set(completed.split()) <= set(told.split())
    assert all(word.startswith(typed[-1].removeprefix(":")) for word in told.split())


@pytest.mark.parametrize(("shell", "check"), [("zsh", "-n"), ("fish", "--no-execute")])
def test_the_script_of_another_shell_is_one_that_it_reads(
    environment: Path, tmp_path: Path, shell: str, check: str
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is absent: apt install {shell} to run this test")
    script = tmp_path / "script"
    script.write_text(ended(environment, tmp_path, "--completion", shell).stdout)
    read = subprocess.run([shell, check, script], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    assert "video:raft" in script.read_text()


@pytest.fixture(scope="module")
def labelled(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a user typed `distillflow label`."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "frames").mkdir()
    frames = render_scene(0, SceneOptions(height=72, width=96, num_frames=3)).frames
    for index, frame in enumerate(frames):
        write_image(folder / "frames" / f"{index}.png", frame)
    told = ended(
        *(environment, folder, "label", "smoke", "--videos", "frames"),
        *("--teacher", "opencv:dis_ultrafast", "--labels", "labels"),
    )
    assert told.returncode == 0, told.stderr
    return folder


def run_of_labelling(folder: Path) -> Run:
    client = client_of(folder)
    experiment = client.get_experiment_by_name("distillflow").experiment_id
    (run,) = client.search_runs([experiment], "tags.stage = 'pseudolabel'")
    return run


def test_predict_needs_no_model(labelled: Path, environment: Path) -> None:
    told = ended(environment, labelled, "predict", "--videos", "frames", "--output", "flow")
    assert told.returncode == 0, told.stderr
    assert sorted(path.name for path in (labelled / "flow").glob("*.flo")) == ["0.flo", "1.flo"]


def test_a_run_is_recorded_in_the_folder_where_its_command_was_typed(labelled: Path) -> None:
    run = run_of_labelling(labelled)
    assert run.info.status == "FINISHED"
    assert run.data.tags["command"].startswith("distillflow label smoke --videos frames ")


def test_a_labelling_run_is_named_after_its_teacher(labelled: Path) -> None:
    run = run_of_labelling(labelled)
    assert run.info.run_name == "pseudolabel smoke: opencv:dis_ultrafast"


def test_the_revision_of_installed_code_is_its_version_and_its_files(labelled: Path) -> None:
    revision = run_of_labelling(labelled).data.tags["mlflow.source.git.commit"]
    assert re.fullmatch(rf"distillflow-ray {re.escape(VERSION)}, files [0-9a-f]{{12}}", revision)


def test_status_counts_what_label_wrote(labelled: Path, environment: Path) -> None:
    told = ended(environment, labelled, "status", "--labels", "labels")
    assert told.returncode == 0, told.stderr
    assert re.search(r"^labels +\S+labels, finished$", told.stdout, re.MULTILINE)
