"""The command line: what it accepts and explains, how a job ends, and jobs as a user types them."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import ray
import torch
from mlflow.entities import Run
from typed import JOBS

from jobs.command import run, run_recipe
from flowcore.datasets import DATA_SETS
from flowcore.formats import read_flow, write_image
from flowcore.networks import tiny
from flowcore.scenes import SceneOptions, render_scene, write_truth
from flowcore.video import VideoError
from jobs import (
    demo,
    distill,
    evaluate,
    finetune,
    predict,
    pseudolabel,
    train_teacher,
)
from jobs.manual import WIDTH, manual, recipe_list
from jobs.options import REQUIRED, Option, options_of
from jobs.parsing import HelpAsked, UsageError, parse, parse_recipe
from pipelines import run_store, tracking
from pipelines.checkpoints import save_model
from pipelines.cluster import connect, require_listener
from pipelines.invocation import command_name, typed_again

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a frame. Nobody reads this sentence at a terminal."""

    height: int = 64
    """Pixels."""
    sides: tuple[int, int] | None = None
    """Two numbers."""

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
    weights: tuple[float, ...] = ()
    """Of the levels."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions."""
    compiled: bool = False
    """Whether to compile."""

    common: ClassVar[tuple[str, ...]] = ("steps",)


RECIPES = {
    "smoke": ("Seconds. Learns nothing.", Options(videos=REQUIRED)),
    "demo": ("Ten minutes.", Options(videos=REQUIRED, window=Window(height=128), steps=800)),
    "demo:raft": ("As demo, with raft.", Options(videos=REQUIRED)),
}


def parsed(*arguments: str) -> tuple[str, Options]:
    calls: list[tuple[str, Options]] = []
    run_recipe(lambda options, recipe: calls.append((recipe, options)), RECIPES, arguments)
    (call,) = calls
    return call


def test_a_recipe_is_its_options_and_a_flag_changes_one() -> None:
    demo = Options(videos="a", window=Window(height=128), steps=800)
    assert parsed("demo", "--videos", "a") == ("demo", demo)
    recipe, options = parsed("demo", "--steps", "3", "--videos", "a", "--window.height", "192")
    assert (recipe, options) == ("demo", replace(demo, steps=3, window=Window(height=192)))


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--weights", "1", "0.5", "-2"], "weights", (1.0, 0.5, -2.0)),
        (["--weights"], "weights", ()),
        (["--window.sides", "3", "4"], "window", Window(sides=(3, 4))),
        (["--window.sides", "none"], "window", Window()),
        (["--compiled"], "compiled", True),
        (["--compiled", "--no-compiled"], "compiled", False),
        (["--steps=7"], "steps", 7),
        (["--precision", "bfloat16"], "precision", "bfloat16"),
    ],
)
def test_words_are_read_as_the_type_of_their_option(arguments: list[str], field: str, value: object) -> None:
    assert getattr(parsed("smoke", "--videos", "a", *arguments)[1], field) == value


@pytest.mark.parametrize(
    ("videos", "folder"),
    [
        ("clips/my clip.mp4", "my clip-flow"),
        ("s3://bucket/day.1/clip.mp4?endpoint_override=x", "clip-flow"),
        ("my_videos/", "my_videos-flow"),
        ("sintel:/data/MPI-Sintel", "MPI-Sintel-flow"),
        ("*.mp4", "my-flow"),
    ],
)
def test_predict_takes_videos_alone_and_names_the_folder_of_the_flow_after_them(
    videos: str, folder: str
) -> None:
    alone = parse(predict.Predict, [videos], program="predict", description="")
    assert alone == parse(predict.Predict, ["--videos", videos], program="predict", description="")
    assert alone.place == str(Path(folder).absolute())
    assert replace(alone, output="/there").place == "/there"


@pytest.mark.parametrize(
    ("arguments", "complaints"),
    [
        ([], ["the recipe comes first", "smoke, demo"]),
        (["--videos", "a", "demo"], ["the recipe comes first", "smoke, demo"]),
        (["dem"], ["'dem'", "perhaps you meant demo"]),
        (["demo"], ["--videos must be given"]),
        (["demo", "--videoz", "a"], ["no option --videoz; perhaps you meant --videos"]),
        (["demo", "--videos", "a", "--stepps", "3"], ["--stepps; perhaps you meant --steps"]),
        (["demo", "--videos", "a", "--window.hight", "3"], ["perhaps you meant --window.height"]),
        (["demo", "--videos", "a", "--height", "3"], ["perhaps you meant --window.height"]),
        (
            ["demo", "--videos", "a", "--window.height", "100"],
            ["error: --window.height 100 must be a multiple of 64 px"],
        ),
        (["demo", "--videos", "a", "--steps", "many"], ["--steps many: 'many' must be a whole number"]),
        (["demo", "--videos", "a", "--steps"], ["--steps: a value is missing"]),
        (["demo", "--videos", "a", "--window.sides", "3"], ["2 values are needed, not 1"]),
        (["demo", "--videos", "a", "--precision", "float16"], ["must be one of float32, bfloat16"]),
        (["demo", "--videos", "a", "--compiled", "yes"], ["'yes' follows no option"]),
        (["demo", "videos", "--videos", "a"], ["'videos' follows no option"]),
        (["demo", "my film.mp4"], ["follows no option that takes a value; type --videos 'my film.mp4'"]),
        (["demo", "--videos", "a", "b"], ["one value is needed, not 2"]),
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


def test_an_error_names_the_options_as_they_are_typed() -> None:
    refused: dict[str, str] = {}
    for job, defaults in JOBS.items():
        required = [option.name for option in options_of(defaults) if option.default is REQUIRED]
        needed = [word for name in required for word in (name, "sintel:/data")]
        for option in options_of(defaults):
            if option.value_text.removesuffix("|none") not in ("INT", "NUMBER", "INT INT", "NUMBER NUMBER"):
                continue
            typed = [*needed, option.name, *["-7"] * len(option.value_text.removesuffix("|none").split())]
            try:
                parse(defaults, typed, program="job", description="")
            except UsageError as error:
                refused[f"{job} {option.name}"] = str(error)
    assert {typed for typed, error in refused.items() if typed.split()[-1] not in error} == set()
    assert {typed for typed, error in refused.items() if "_" in error} == set()
    training = ("steps", "keep-every", "min-workers", "global-batch", "held-back-share", "patience")
    assert refused.keys() >= {f"train_teacher --training.{name}" for name in training}
    assert refused.keys() >= {"finetune --label-share", "distill --challenge.flips.up-down"}


OLD = {
    "predict": [("--input", "--videos"), ("--files", "--format")],
    "evaluate": [("--benchmark", "--truth NAME:FOLDER"), ("--root", "--truth NAME:FOLDER")],
    "pseudolabel": [
        ("--labelling.clips.size", "--clips.size"),
        ("--labelling.check.alpha1", "--check.alpha1"),
    ],
    "train_teacher": [
        ("--training.schedule", "--training.warmup and --training.decay"),
        ("--training.unmasked-steps", "--objective.unmasked-steps"),
        ("--objective.photometric.check.alpha1", "--check.alpha1"),
    ],
    "finetune": [
        ("--objective.check.alpha2", "--check.alpha2"),
        ("--student.photometric.check.alpha2", "--check.alpha2"),
    ],
}


@pytest.mark.parametrize(
    ("job", "old", "new"), [(job, old, new) for job, pairs in OLD.items() for old, new in pairs]
)
def test_an_option_of_the_old_spelling_names_the_new_one(job: str, old: str, new: str) -> None:
    with pytest.raises(UsageError, match=f"there is no option {old}; it is now {new}"):
        parse_recipe(
            {"demo": ("", JOBS[job])}, ["demo", old, "1"], program="job", description="What it does."
        )


@pytest.mark.parametrize("job", JOBS)
def test_every_option_of_a_job_has_a_sentence_of_its_own(job: str) -> None:
    for option in options_of(JOBS[job]):
        assert option.help.endswith((".", "?")), f"{option.name} of {option.owner.__name__}: {option.help!r}"
        assert len(option.help.split()) > 2


def shown_by_help(job: str, *, is_whole: bool) -> tuple[str, list[Option]]:
    """(a job's help, those of its options that have a line there)."""
    options = options_of(JOBS[job])
    text = manual("job", "What it does.", options, getattr(JOBS[job], "common", ()), is_whole=is_whole)
    return text, [option for option in options if f"  {option.shown_name} " in text]


@pytest.mark.parametrize("job", JOBS)
def test_what_people_change_is_among_a_job_s_options(job: str) -> None:
    assert set(getattr(JOBS[job], "common", ())) <= {option.path for option in options_of(JOBS[job])}


@pytest.mark.parametrize("job", JOBS)
def test_help_shows_what_must_be_given_and_at_most_ten_options(job: str) -> None:
    _, shown = shown_by_help(job, is_whole=False)
    assert len(shown) <= 10
    required = {option for option in options_of(JOBS[job]) if option.default is REQUIRED}
    assert {option for option in required if not option.is_positional} <= set(shown)


@pytest.mark.parametrize("job", JOBS)
def test_help_all_shows_every_option(job: str) -> None:
    _, shown = shown_by_help(job, is_whole=True)
    assert shown == [option for option in options_of(JOBS[job]) if not option.is_positional]


@pytest.mark.parametrize("job", JOBS)
def test_help_names_help_all_where_that_shows_more(job: str) -> None:
    brief, shown = shown_by_help(job, is_whole=False)
    _, every = shown_by_help(job, is_whole=True)
    assert ("--help-all" in brief) == (len(every) > len(shown))


@pytest.mark.parametrize("job", JOBS)
def test_help_is_plain_text_of_a_fixed_width(job: str) -> None:
    module = sys.modules[getattr(JOBS[job], "__module__", "") or type(JOBS[job]).__module__]
    description = (module.__doc__ or "").strip()
    text = manual("job", description, options_of(JOBS[job]), (), is_whole=True)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("job", JOBS)
def test_help_names_no_paper_and_no_formula(job: str) -> None:
    text = manual("job", "What it does.", options_of(JOBS[job]), (), is_whole=True)
    learned = r"DDFlow|SelFlow|DistillFlow|SMURF|UFlow|ARFlow|UnFlow|Source:|et al|\bpapers?\b|\^|~_"
    assert re.findall(learned, text) == []


def test_help_explains_the_options_of_two_equal_parts_once() -> None:
    text = manual("job", "What it does.", options_of(JOBS["finetune"]), (), is_whole=True)
    assert "challenge.colour: The same options as augmentation.colour.\n" in text
    assert text.count("Largest relative change of brightness.") == 1


@pytest.mark.parametrize("job", ["evaluate", "finetune"])
def test_help_names_each_data_set_once(job: str) -> None:
    text = manual("job", "What it does.", options_of(JOBS[job]), (), is_whole=True)
    (names,) = re.findall(r"with one of the names (.*?)\(", " ".join(text.split()))
    assert sorted(re.findall(r"[\w-]{4,}", names)) == sorted(DATA_SETS)


@pytest.mark.parametrize("job", [train_teacher, pseudolabel, distill, finetune])
def test_a_list_of_recipes_has_a_line_for_each(job: Any) -> None:
    recipes = {name: text for name, (text, _) in job.recipes().items()}
    lines = recipe_list("job", job.__doc__, recipes).splitlines()
    assert max(map(len, lines)) <= WIDTH
    starts = [line.split()[0] for line in lines[lines.index("recipes:") + 1 :] if line.startswith("  ")]
    assert starts == [
        "smoke",
        "demo",
        "laptop",
        "chairs",
        "sintel",
        "kitti",
        "video",
        "ddflow-chairs",
        "ddflow-sintel",
        "ddflow-kitti",
        "chairs:raft",
        "sintel:raft",
        "kitti:raft",
        "video:raft",
    ]


@pytest.mark.parametrize(
    ("arguments", "told", "hidden"),
    [
        (["--help"], ["smoke", "Seconds.", "demo", "Ten minutes.", "raft"], ["Learns nothing"]),
        (
            ["demo", "--help"],
            ["Ten minutes.", "Where the videos are.", "Optimiser updates.", "800", "--help-all"],
            ["--window.height"],
        ),
        (["demo", "--help-all"], ["window: A part of a frame.", "default: 128"], ["Nobody reads"]),
    ],
)
def test_help_lists_the_recipes_and_a_recipe_s_options(
    arguments: list[str], told: list[str], hidden: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(*arguments)
    assert end.value.code == 0
    written = capsys.readouterr().out
    assert all(word in written for word in told)
    assert not any(word in written for word in hidden)


def test_an_option_takes_several_numbers() -> None:
    typed = ["--videos", "v", "--output", "o", "--inference.scale", "1.5", "1", "0.5"]
    options = parse(predict.Predict, typed, program="job", description="")
    assert options.inference.scale == (1.5, 1.0, 0.5)
    with pytest.raises(UsageError, match=r"--inference\.scale \(1\.0, 0\.0\) must be one or several numbers"):
        parse(predict.Predict, [*typed[:5], "1", "0"], program="job", description="")


def test_help_of_a_job_with_a_usual_recipe_has_its_options_too() -> None:
    with pytest.raises(HelpAsked) as asked:
        parse_recipe(demo.recipes(), ["--help"], program="demo", description="", usual="demo")
    told = str(asked.value)
    assert "usage: demo [RECIPE] [options]" in told
    assert "  smoke  Proves" in told
    assert "  --seed INT (default: 0)" in told


PARSER = """
import contextlib, io, runpy, sys
heavy = ("ray", "mlflow", "scipy", "skimage", "pandas", "pydantic")
root, *names = sys.argv[1:]
for name in names:
    path = f"{root}/jobs/{name}.py"
    recipe = ["demo"] if name in ("demo", "train_teacher", "pseudolabel", "distill", "finetune") else []
    for arguments, status in (["--help"], 0), ([*recipe, "--help-all"], 0), ([*recipe, "--modle", "x"], 2):
        sys.argv[:] = [path, *arguments]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as end:
                assert end.code == status, (name, arguments, end.code)
    print(name, [module for module in heavy if module in sys.modules])
"""


def test_help_and_a_parse_error_import_neither_ray_nor_mlflow(tmp_path: Path) -> None:
    names = [name for name in JOBS if "," not in name]
    ended = python("-c", PARSER, str(REPOSITORY), *names, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "".join(f"{name} []\n" for name in names)


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
        ray.exceptions.ActorDiedError(),
    ],
)
def test_what_the_user_can_mend_is_a_message_without_a_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        failing(error)
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_missing_package_of_an_extra_is_a_message_with_its_install_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        failing(ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2"))
    told = capsys.readouterr().err
    assert told.startswith("error: No module named 'psycopg2', which this needs: pip install 'boto3")
    assert "Traceback" not in told
    with pytest.raises(SystemExit):
        failing(ModuleNotFoundError("No module named 'a_bug'", name="a_bug"))
    assert "Traceback" in capsys.readouterr().err


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(lambda options: Path(options.videos).read_text() and None, Options, ["--videos", str(tmp_path)])
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


def test_a_bug_has_its_traceback_without_the_secrets_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        failing(KeyError("s3://key:hush@bucket\x1b[2J"))
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "KeyError" in told
    assert "hush" not in told
    assert "\x1b" not in told


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


@pytest.mark.parametrize("job", ["evaluate", "export_model", "import_labels", "serve", "train_teacher"])
def test_ctrl_c_while_a_job_is_imported_ends_it_in_the_same_way(tmp_path: Path, job: str) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    path = f"{tmp_path}:{REPOSITORY}"
    script = python(str(REPOSITORY / "jobs" / f"{job}.py"), cwd=tmp_path, PYTHONPATH=path)
    console = "from jobs.console import main; main()"
    command = python("-c", console, command_name(job), cwd=tmp_path, PYTHONPATH=path)
    for ended in (script, command):
        assert (ended.returncode, ended.stderr) == (130, "error: interrupted\n")


@dataclass(frozen=True, kw_only=True)
class Continued(Options):
    goes_on: ClassVar[bool] = True


def test_ctrl_c_repeats_the_command_that_does_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(options: Options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["jobs/pseudolabel.py", "smoke", "--labels", "my labels"])
    with pytest.raises(SystemExit):
        run(main, Continued, ["--videos", "a"])
    again = "to go on: python jobs/pseudolabel.py smoke --labels 'my labels'\n"
    assert capsys.readouterr().err.endswith(again)


def test_a_job_that_finishes_what_is_left_or_resumes_says_so_when_it_is_stopped() -> None:
    say_so = {name for name, job in JOBS.items() if getattr(job, "goes_on", False) or hasattr(job, "resume")}
    assert say_so == {
        *("pseudolabel", "predict", "submit", "export_labels", "import_labels"),
        *("train_teacher", "train_teacher, RAFT", "train_teacher, FlowNet", "distill", "finetune"),
    }


def test_a_console_command_is_repeated_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "/usr/bin/distillflow", "label", "smoke"])
    monkeypatch.setattr(sys, "argv", ["/usr/lib/jobs/pseudolabel.py", "smoke"])
    assert typed_again("--status") == "distillflow label smoke --status"


def in_a_task(options: Options) -> None:
    @ray.remote
    def task() -> None:
        raise ValueError("frames of (10, 10) are too small")

    ray.get(task.remote())


def in_a_dataset(options: Options) -> None:
    def refuse(row: dict[str, int]) -> dict[str, int]:
        raise ValueError("frames of (10, 10) are too small")

    ray.data.from_items([1]).map(refuse).take_all()


@pytest.mark.parametrize("main", [in_a_task, in_a_dataset])
def test_an_error_in_a_worker_reads_as_one_in_the_driver(
    main: Callable[[Options], None], ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(main, Options, ["--videos", "a"])
    assert end.value.code == 1
    assert capsys.readouterr().err.endswith("error: frames of (10, 10) are too small\n")


def test_a_job_server_is_no_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConnectionError, match="ray job submit"):
        connect()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n", b""])
def test_a_server_of_something_else_is_no_ray(answer: bytes) -> None:
    class Server(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConnectionError, match=r"no Ray answers at RAY_ADDRESS 127\.0\.0\.1"):
            require_listener(f"127.0.0.1:{server.server_address[1]}")
        server.shutdown()


def test_a_server_that_says_nothing_is_no_ray() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ConnectionError, match=r"no Ray answers .*timed out"),
    ):
        require_listener(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.fixture
def slow_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Makes Ray too slow to start so many times; what it was asked for then is in the list."""

    def slow(times: int) -> list[str]:
        asked: list[str] = []

        def init(**options: object) -> None:
            asked.append(str(options["address"]))
            if len(asked) <= times:
                raise Exception("The current node timed out during startup.")

        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        # It is put back as it was.
        monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        return asked

    return slow


def test_a_ray_that_is_slow_to_start_is_started_again(slow_ray: Callable[[int], list[str]]) -> None:
    asked = slow_ray(2)
    connect()
    assert asked == ["local"] * 3


def test_a_ray_that_never_starts_is_an_error_that_says_why(slow_ray: Callable[[int], list[str]]) -> None:
    slow_ray(100)
    with pytest.raises(TimeoutError, match="machine is too busy"):
        connect()


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_runs_answers() -> None:
    require_listener(ray.get_runtime_context().gcs_address)


def test_an_address_without_a_port_says_what_one_looks_like() -> None:
    with pytest.raises(ConnectionError, match="RAY_ADDRESS head has no port: set it to HOST:PORT"):
        require_listener("head")


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


COMMANDS = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        print(end.code)
print("ray" in sys.modules and sys.modules["ray"].is_initialized(), "mlflow" in sys.modules)
"""
"""Types commands in one process, so that what they import is imported once. Prints each exit status; last,
whether Ray was started and MLflow imported."""


def test_wrong_input_is_told_before_ray_and_mlflow_are_asked(model: str, tmp_path: Path) -> None:
    for folder in (
        "videos",
        "nothing",
        "images",
        "occupied",
        "truth/training/image_2",
        "truth/training/flow_noc",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "videos" / "a.mp4").touch()
    for image in ("0.png", "1.png"):
        write_image(tmp_path / "images" / image, np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "occupied" / "0.flo").touch()
    flow = ["predict", "--model", model, "--output"]
    label = ["pseudolabel", "smoke", "--labels", "labels", "--teacher"]
    dis = "opencv:dis_medium"
    wrong = {
        (*label, dis, "--videos", "vidoes"): f"nothing is at {tmp_path / 'vidoes'}",
        (*label, dis, "--videos", "nothing"): f"no video in {tmp_path / 'nothing'}",
        (*label, "model", "--videos", "videos"): f"there is no model folder {tmp_path / 'model'}",
        ("train_teacher", "smoke", "--run-root", "runs", "--videos", "nothing"): "no video in",
        ("distill", "smoke", "--run-root", "runs", "--labels", "labels"): "labels",
        ("finetune", "smoke", "--run-root", "runs", "--init", "fresh", "--truth", "kitti2015:truth"): "kitti",
        ("evaluate", "--model", "model", "--truth", "kitti2015:truth"): "kitti",
        (*flow, "flow", "--videos", "vidoes"): f"nothing is at {tmp_path / 'vidoes'}",
        (*flow, "flow", "--videos", "images/0.png"): "is one image and flow needs two",
        (*flow, "occupied", "--videos", "images"): "holds 0.flo but no _prediction.json",
        (*flow, "flow", "--videos", "images", "--uncertainty"): "--uncertainty can't be written",
        (*flow, "flow", "--videos", "images", "--inference.iterations", "9"): "PWCNet has no iterations",
        ("gallery", "--labels", "labels", "--output", "gallery.html"): f"{tmp_path / 'labels'}",
        (*label, dis, "--videos", "videos"): "no Ray answers at RAY_ADDRESS 127.0.0.1:1 ",
    }
    typed = [[str(REPOSITORY / "jobs" / f"{job}.py"), *arguments] for job, *arguments in wrong]
    ended = python("-c", COMMANDS, json.dumps(typed), cwd=tmp_path, RAY_ADDRESS="127.0.0.1:1")
    assert ended.stdout.split() == ["1"] * len(wrong) + ["False", "False"], ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    for line, message in zip(lines, wrong.values(), strict=True):
        assert message in line


POOL = """
from pipelines.cluster import connect
connect()
import ray.data
class Same:
    def __call__(self, batch):
        return batch
print(ray.data.range(8).map_batches(Same, concurrency=1).count())
"""
"""Has Ray Data start actors, as a labelling does."""


def test_an_embedded_ray_writes_no_lines_of_its_own(tmp_path: Path) -> None:
    ended = python("-c", POOL, cwd=tmp_path)
    assert ended.stdout.split()[-1] == "8", ended.stderr
    assert re.findall(r".*\w+\.cc:\d+.*", ended.stdout + ended.stderr) == []


@pytest.mark.usefixtures("ray_session")
def test_the_workers_of_an_embedded_ray_import_the_code_that_runs_here() -> None:
    @ray.remote
    def place() -> str:
        import pipelines

        return os.path.dirname(pipelines.__file__ or "")

    assert ray.get(place.remote()) == str(REPOSITORY / "pipelines")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(folder, tiny()["pwcnet"].build(), {"run_id": "the run that made it"})
    return str(folder)


@pytest.fixture
def predicting(
    model: str, empty_store: Path, tmp_path: Path
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Types predict for a sequence of images in the folder: `images`, or `broken` with a damaged one."""
    store = shutil.copy(empty_store, tmp_path)
    frames = render_scene(0, SceneOptions(height=37, width=53, num_frames=3)).frames
    for sequence in ("images", "broken"):
        (tmp_path / sequence).mkdir()
        for index, frame in enumerate(frames):
            write_image(tmp_path / sequence / f"{index}.png", frame)
    (tmp_path / "broken" / "1.png").write_bytes(b"")

    def predict(sequence: str) -> subprocess.CompletedProcess[str]:
        arguments = ["--model", model, "--output", "flow", "--pictures", "--videos", sequence]
        script = str(REPOSITORY / "jobs" / "predict.py")
        return python(script, *arguments, cwd=tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{store}")

    return predict


def test_predict_writes_the_flow_and_its_picture_of_each_pair_and_says_where(
    predicting: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    ended = predicting("images")
    assert ended.returncode == 0, ended.stderr
    found = {path.name for path in (tmp_path / "flow").iterdir()}
    assert found == {
        "_prediction.json",
        *(f"{number}{end}" for number in (0, 1) for end in (".flo", "_picture.png")),
    }
    assert read_flow(tmp_path / "flow" / "0.flo")[0].shape == (2, 37, 53)
    assert str(tmp_path / "flow") in ended.stdout


def test_predict_ends_with_an_error_where_a_video_breaks_off(
    predicting: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    ended = predicting("broken")
    assert ended.returncode == 1
    assert "error: the flow of 1 of 1 videos is incomplete" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Path]:
    """The current folder, with scenes in it."""
    folder = tmp_path_factory.mktemp("project")
    scene = render_scene(0, SceneOptions(height=48, width=64, num_frames=3))
    write_truth(folder / "scenes" / "a", scene)
    store = shutil.copy(empty_store, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        patch.chdir(folder)
        yield folder


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    told: str
    numbers: dict[str, Any]
    runs: dict[str, Run]
    """By the model that they judge."""


@pytest.fixture(scope="module")
def evaluation(model: str, project: Path, ray_session: None) -> Evaluation:
    """Of two models on the scenes."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        evaluate.main(
            evaluate.Evaluate(model=(model, "zero"), truth="scenes:scenes", json="numbers/all.json")
        )
    client = tracking.MlflowClient(run_store.tracking_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    return Evaluation(
        told=told.getvalue(),
        numbers=json.loads((project / "numbers" / "all.json").read_text()),
        runs={run.data.params["model"]: run for run in runs},
    )


def test_evaluate_prints_a_table_of_its_models(evaluation: Evaluation) -> None:
    assert "| scenes, 2 pairs " in evaluation.told


def test_evaluate_writes_the_numbers_of_several_models_by_their_names(
    model: str, evaluation: Evaluation
) -> None:
    assert evaluation.numbers.keys() == {model, "zero"}
    assert evaluation.numbers["zero"]["pairs"] == 2


def test_evaluate_writes_the_numbers_of_one_model_alone(evaluation: Evaluation, project: Path) -> None:
    evaluate.main(evaluate.Evaluate(model=("zero",), truth="scenes:scenes", json="numbers/one.json"))
    assert json.loads((project / "numbers" / "one.json").read_text()) == evaluation.numbers["zero"]


def test_evaluate_records_each_model_s_errors_in_a_run_of_its_own(model: str, evaluation: Evaluation) -> None:
    assert evaluation.runs.keys() == {model, "zero"}
    for name, judged in evaluation.runs.items():
        assert judged.info.status == "FINISHED"
        assert judged.data.tags["stage"] == "evaluate"
        # A data set is no recipe.
        assert "recipe" not in judged.data.tags
        assert judged.info.run_name == f"evaluate: scenes, {name}"
        assert judged.data.metrics["scenes/epe/occ"] == pytest.approx(evaluation.numbers[name]["epe"]["occ"])


def test_the_run_of_an_evaluation_leads_to_the_truth_and_to_the_run_of_its_model(
    model: str, project: Path, evaluation: Evaluation
) -> None:
    for judged in evaluation.runs.values():
        assert judged.data.tags["input.truth"] == f"scenes:{project / 'scenes'}"
    assert evaluation.runs[model].data.tags["input.model.run"] == "the run that made it"


def test_an_evaluation_shows_a_median_pair_and_the_worst_one(evaluation: Evaluation) -> None:
    client = tracking.MlflowClient(run_store.tracking_uri())
    for judged in evaluation.runs.values():
        pictures = [entry.path for entry in client.list_artifacts(judged.info.run_id, "images")]
        for kind in ("median", "worst"):
            assert any(kind in path for path in pictures)


def test_a_model_that_is_not_there_is_named_where_it_was_looked_for(project: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no model folder {project / 'nothing'}"):
        evaluate.main(evaluate.Evaluate(model=("nothing",), truth="scenes:scenes"))


@pytest.mark.parametrize(
    ("job", "arguments", "status"),
    [
        (evaluate, ["--model", "zero", "--truth", "sintle:/data"], 2),
        (predict, ["--model", "m", "--output", "flow", "--videos", "sintle:/data"], 1),
    ],
)
def test_an_unknown_data_set_is_an_error_that_names_the_option_and_the_nearest_one(
    job: Any, arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(job.main, JOBS[job.__name__.removeprefix("jobs.")], arguments)
    assert end.value.code == status
    written = capsys.readouterr().err
    assert f"{arguments[-2]} sintle:/data: unknown data set 'sintle' (perhaps you meant sintel)" in written
