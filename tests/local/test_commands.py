"""The command line: what a parser accepts, how a job ends, evaluate and predict as a user types them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import ray
import torch
import tyro

from flowcore.datasets import DATA_SETS
from flowcore.formats import read_flow, write_image
from flowcore.networks import PWCNetConfig
from flowcore.scenes import SceneOptions, render_scene, write_truth
from flowcore.video import VideoError
from jobs import evaluate
from jobs.command import run, run_recipe
from pipelines import tracking
from pipelines.checkpoints import save_model
from pipelines.cluster import connect

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Window:
    height: int = 64
    """Pixels."""

    def __post_init__(self) -> None:
        if self.height % 64:
            raise ValueError(f"height {self.height} must be a multiple of 64 px")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the job."""

    videos: str
    """Where the videos are."""
    window: Window = field(default_factory=Window)
    steps: int = 10
    """Optimiser updates."""


RECIPES = {
    "smoke": ("Seconds.", Options(videos=tyro.MISSING)),
    "demo": ("Ten minutes.", Options(videos=tyro.MISSING, window=Window(height=128), steps=800)),
}


def parsed(*arguments: str) -> tuple[str, Options]:
    calls: list[tuple[str, Options]] = []
    run_recipe(lambda recipe, options: calls.append((recipe, options)), RECIPES, arguments)
    (call,) = calls
    return call


def test_a_recipe_is_its_options_and_a_flag_changes_one() -> None:
    assert parsed("demo", "--videos", "a") == (
        "demo",
        Options(videos="a", window=Window(height=128), steps=800),
    )
    recipe, options = parsed("demo", "--steps", "3", "--videos", "a", "--window.height", "192")
    assert (recipe, options) == ("demo", Options(videos="a", window=Window(height=192), steps=3))


@pytest.mark.parametrize(
    ("arguments", "complaints"),
    [
        ([], ["smoke", "demo"]),
        (["dem"], ["'dem'", "perhaps you meant demo"]),
        (["demo"], ["--videos"]),
        (["demo", "--videoz", "a"], ["no option --videoz; perhaps you meant --videos"]),
        (["demo", "--videos", "a", "--stepps", "3"], ["--stepps", "Perhaps you meant", "--steps"]),
        (["demo", "--videos", "a", "--window.hight", "3"], ["--window.height"]),
        (["demo", "--videos", "a", "--window.height", "100"], ["height 100 must be a multiple of 64 px"]),
        (["demo", "--videos", "a", "--steps", "many"], ["--steps", "many"]),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_is_right(
    arguments: list[str], complaints: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(*arguments)
    assert end.value.code == 2
    written = capsys.readouterr().err
    for complaint in complaints:
        assert complaint in written


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--help"], ["smoke", "Seconds.", "demo", "Ten minutes."]),
        (["demo", "--help"], ["Ten minutes.", "Where the videos are.", "Optimiser updates.", "800", "128"]),
    ],
)
def test_help_lists_the_recipes_and_a_recipe_s_options(
    arguments: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(*arguments)
    assert end.value.code == 0
    written = capsys.readouterr().out
    for word in told:
        assert word in written


def failing(error: BaseException) -> None:
    def main(options: Options) -> None:
        raise error

    run(main, Options, ["--videos", "a"])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("crop 100 must be a multiple of 64"),
        FileNotFoundError("no video in /videos"),
        ConnectionError("MLflow doesn't answer"),
        VideoError("no video stream"),
        RuntimeError("labels cover none of the videos"),
    ],
)
def test_what_the_user_can_mend_is_a_message_without_a_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        failing(error)
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(lambda options: Path(options.videos).read_text() and None, Options, ["--videos", str(tmp_path)])
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        failing(KeyError("learning_rate"))


def test_the_traceback_is_there_for_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILLFLOW_DEBUG", "1")
    with pytest.raises(SystemExit):
        failing(ValueError("crop 100"))
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_the_job_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        failing(KeyboardInterrupt())
    assert end.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_in_a_worker_reads_as_one_in_the_driver(
    ray_session: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @ray.remote
    def task() -> None:
        raise ValueError("frames of (10, 10) are too small")

    def in_a_task(options: Options) -> None:
        ray.get(task.remote())

    def refuse(row: dict[str, int]) -> dict[str, int]:
        raise ValueError("frames of (10, 10) are too small")

    def in_a_dataset(options: Options) -> None:
        monkeypatch.setattr(ray.data.DataContext.get_current(), "raise_original_map_exception", True)
        ray.data.from_items([1]).map(refuse).take_all()

    for main in (in_a_task, in_a_dataset):
        with pytest.raises(SystemExit) as end:
            run(main, Options, ["--videos", "a"])
        assert end.value.code == 1
        assert capsys.readouterr().err.endswith("error: frames of (10, 10) are too small\n")


def test_a_job_server_is_no_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConnectionError, match="ray job submit"):
        connect()


def test_evaluate_offers_every_benchmark() -> None:
    assert get_args(get_type_hints(evaluate.Evaluate)["benchmark"]) == DATA_SETS


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process that ended; it was told where the repository is, as an installation tells it."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": str(REPOSITORY), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_embedded_ray_has_room_beside_its_workers_and_finds_the_code(tmp_path: Path) -> None:
    script = """
import json, os
import ray
from jobs.command import connect

@ray.remote
def place():
    import pipelines
    return os.path.dirname(pipelines.__file__)

connect()
print(json.dumps([ray.cluster_resources()["CPU"], ray.get(place.remote())]))
"""
    ended = python("-c", script, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    num_cpus, place = json.loads(ended.stdout)
    assert num_cpus >= max(4, len(os.sched_getaffinity(0)) + 2)
    assert place == str(REPOSITORY / "pipelines")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,))
    save_model(folder, config.build(), {"run_id": "the run that made it"})
    return str(folder)


def test_predict_as_a_command(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    frames = render_scene(0, SceneOptions(height=37, width=53, num_frames=3)).frames
    (tmp_path / "images").mkdir()
    for index, frame in enumerate(frames):
        write_image(tmp_path / "images" / f"{index}.png", frame)
    script = str(REPOSITORY / "jobs" / "predict.py")
    arguments = ["--model", model, "--videos", "images", "--output", "flow", "--pictures"]
    ended = python(script, *arguments, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in (tmp_path / "flow").iterdir()) == ["0.flo", "0.png", "1.flo", "1.png"]
    assert read_flow(tmp_path / "flow" / "0.flo")[0].shape == (2, 37, 53)
    assert str(tmp_path / "flow") in ended.stdout

    (tmp_path / "images" / "1.png").write_bytes(b"")
    ended = python(script, *arguments, cwd=tmp_path)
    assert ended.returncode == 1
    assert "error: the flow of 1 of 1 videos is incomplete" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_evaluate_as_a_command(model: str, tmp_path: Path) -> None:
    write_truth(tmp_path / "scenes" / "a", render_scene(0, SceneOptions(height=48, width=64, num_frames=3)))
    script = str(REPOSITORY / "jobs" / "evaluate.py")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    arguments = ["--benchmark", "scenes", "--root", "scenes", "--json", "numbers/all.json"]
    ended = python(script, "--model", model, "zero", *arguments, cwd=tmp_path, MLFLOW_TRACKING_URI=store)
    assert ended.returncode == 0, ended.stderr
    assert "| scenes, 2 pairs " in ended.stdout
    numbers = json.loads((tmp_path / "numbers" / "all.json").read_text())
    assert set(numbers) == {model, "zero"}
    assert numbers["zero"]["pairs"] == 2

    client = tracking.MlflowClient(store)
    (experiment,) = (e for e in client.search_experiments() if e.name == tracking.EXPERIMENT)
    runs = {run.data.params["model"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {model, "zero"}
    for name, run_ in runs.items():
        assert run_.info.status == "FINISHED"
        assert run_.data.tags["stage"] == "evaluate"
        assert run_.data.metrics["scenes/epe/occ"] == pytest.approx(numbers[name]["epe"]["occ"])
        pictures = [entry.path for entry in client.list_artifacts(run_.info.run_id, "images")]
        assert any("median" in path for path in pictures)
        assert any("worst" in path for path in pictures)
    assert runs[model].data.tags["from.model"] == "the run that made it"


@pytest.mark.usefixtures("ray_session")
def test_evaluating_one_model_writes_its_numbers_alone_and_none_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    write_truth(tmp_path / "scenes" / "a", render_scene(0, SceneOptions(height=48, width=64, num_frames=3)))
    options = evaluate.Evaluate(model=("zero",), benchmark="scenes", root="scenes", json="zero.json")
    evaluate.main(options)
    numbers = json.loads((tmp_path / "zero.json").read_text())
    assert numbers["pairs"] == 2
    assert numbers["epe"]["all"] > 0
    with pytest.raises(FileNotFoundError, match=f"there is no model folder {tmp_path / 'nothing'}"):
        evaluate.main(replace(options, model=("nothing",)))
