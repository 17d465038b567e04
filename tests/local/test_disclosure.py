"""What no file, no run and no terminal gets to see: secrets, and what steers a terminal. Each attack is given
to a job, as a user would give it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bare_graph import BareGraph
from clips import render, render_images
from mlflow import MlflowClient
from mlflow.artifacts import load_text
from mlflow.entities import Run
from object_storage import Bucket
from typed import JOBS

from jobs.command import run, run_recipe
from flowcore.video import ClipOptions
from jobs import (
    export_labels,
    predict,
    pseudolabel,
    rerun,
)
from jobs.options import options_of
from pipelines import disclosure, run_store, tracking
from pipelines.collection import Collection
from pipelines.labelling import LabellingOptions, write_pairs
from pipelines.ledger import read_ledger
from pipelines.set_description import DESCRIPTION_FILE
from pipelines.storage import Folder, absolute

REPOSITORY = Path(__file__).resolve().parents[2]
DIS = "opencv:dis_ultrafast"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the runs of the jobs go."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('runs')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


SECRETS = [
    ("s3://key:hush@bucket/a", "s3://***@bucket/a"),
    ("s3://key:hush/hush@bucket/a", "s3://***@bucket/a"),
    ("s3://key:hush@hush/hush@bucket", "s3://***@bucket"),
    ("s3://key:8080hush@bucket", "s3://***@bucket"),
    ("s3://key:80/hush@bucket", "s3://***@bucket"),
    ("s3://key%3Ahush@bucket", "s3://***@bucket"),
    ("s3:/key:hush@bucket", "s3:/***@bucket"),
    ("s3://bucket/a?endpoint_override=key:hush@host", "s3://bucket/a?endpoint_override=***"),
    ("s3://bucket/a?region=us-east-1&X-Amz-Signature=hush", "?region=us-east-1&X-Amz-Signature=***"),
    ("s3://bucket/a?X-Amz-Security-Token=hush", "s3://bucket/a?X-Amz-Security-Token=***"),
    ("s3://bucket/a?hush", "s3://bucket/a?***"),
    (
        "s3://bucket/a?endpoint_override=http%3A%2F%2Fhost%2F%3Fsig%3Dhush",
        "s3://bucket/a?endpoint_override=***",
    ),
    ("s3://bucket/a?endpoint_override=host%252F%253Fsig%253Dhush", "?endpoint_override=***"),
    ("s3://bucket/a?endpoint_override=key%3Ahush", "s3://bucket/a?endpoint_override=***"),
    ("hdfs://host/a?user=me:hush", "hdfs://host/a?user=***"),
    ("hdfs://host/a?user=me%253Ahush", "hdfs://host/a?user=***"),
    ("s3://bucket/a?region=AKIAHUSHHUSHHUSHHUSH", "s3://bucket/a?region=***"),
    ("gs://bucket/a?access_token=hush", "gs://bucket/a?access_token=***"),
    ("abfs://account:hush%2Fhush@box/a?enable_tls=false", "abfs://***@box/a?enable_tls=false"),
    ("abfs://box/a?client_id=me&client_secret=hush", "abfs://box/a?client_id=me&client_secret=***"),
    ("abfs://box/a?%73ig=hush&sv=1", "abfs://box/a?%73ig=***&sv=***"),
    ("https://box.blob.core.windows.net/a?sv=1&sig=hush", "https://box.blob.core.windows.net/a?sv=***"),
    ("https://hush@host/a", "https://***@host/a"),
    ("https://host/a#access_token=hush", "https://host/a#access_token=***"),
    ("postgresql://me:p/hush@host/db", "postgresql://***@host/db"),
    ("postgresql+psycopg://me:hush@host/db?sslmode=require", "psycopg://***@host/db?sslmode=require"),
    ("mysql://me:hush?hush@host/db", "mysql://***@host/db"),
    ("sintel:s3://key:hush@bucket/a", "sintel:s3://***@bucket/a"),
]
PUBLIC = [
    "s3://bucket/a:b@c.mp4",
    "s3://bucket/a?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:9000",
    "s3://bucket/a?endpoint_override=http%3A%2F%2F[::1]:9000/&tls_ca_file_path=/etc/ssl/ca.pem",
    "hdfs://host:8020/a?user=me",
    "gs://anonymous@bucket/a",
    "abfss://container@account.dfs.core.windows.net/a",
    "hdfs://host:8020/a@b",
    "file:///data/me:you@home",
    "/data/me:you@home?sig=1",
    "models:/flow-student@champion",
]


def refusal(job: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a job says of words that it refuses before it runs."""

    def main(*_: object) -> None:
        raise AssertionError("it ran")

    main.__module__ = predict.__name__
    with pytest.raises(SystemExit) as end:
        run_recipe(main, {"smoke": ("", JOBS[job])}, ["smoke", *words])
    assert end.value.code == 2
    written = capsys.readouterr()
    assert written.out == ""
    return written.err


@pytest.mark.parametrize("job", JOBS)
def test_no_option_of_any_job_takes_a_secret(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [option for option in options_of(JOBS[job]) if not option.is_flag]
    names = [[] if option.is_positional else [option.name] for option in options]
    for name in names:
        told = refusal(job, [*name, "s3://key:hush@bucket"], capsys)
        assert "s3://***@bucket holds what may be a secret" in told, name
        assert "AWS_SECRET_ACCESS_KEY, or the file ~/.aws/credentials" in told
        assert "hush" not in told


@pytest.mark.parametrize(("location", "shown"), SECRETS)
def test_a_secret_is_refused_by_a_job_and_by_python_and_masked_in_a_text(
    location: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal("predict", ["--videos", location], capsys)
    with pytest.raises(ValueError, match="holds what may be a secret") as refused:
        absolute(location, "--videos")
    masked = disclosure.storable(f'{{"a": "{location}", "b": "x@y"}}')
    for text in (told, str(refused.value), masked):
        assert shown in text
        assert "hush" not in text
    assert masked.endswith('", "b": "x@y"}')


@pytest.mark.parametrize("location", PUBLIC)
def test_a_location_without_a_secret_is_neither_refused_nor_masked(location: str) -> None:
    assert absolute(location, "--labels") == location
    assert disclosure.storable(f"made of {location}, x@y") == f"made of {location}, x@y"


@pytest.mark.parametrize(
    "words", [["--vidoes", "s3://key:hush@bucket"], ["s3://key:hush@bucket"], ["--vidoes=s3://key:hush@b"]]
)
def test_a_secret_isn_t_repeated_where_the_command_line_is_wrong(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "hush" not in refusal("predict", words, capsys)


def test_a_list_s_secret_is_refused_too(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("https://host/a.mp4?sig=hush\n")
    words = ["--model", DIS, "--videos", str(tmp_path / "list.txt"), "--output", str(tmp_path / "flow")]
    with pytest.raises(SystemExit) as end:
        run(predict.main, predict.Predict, words)
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "no file is read over HTTP" in told
    assert "hush" not in told
    # Nothing else has asked MLflow by then.
    assert MlflowClient(store).get_experiment_by_name(tracking.EXPERIMENT) is None


def test_a_run_records_why_it_failed_without_the_secret_in_it(store: str) -> None:
    with (
        pytest.raises(ValueError, match="hush"),
        tracking.start("predict", parameters={}),
    ):
        raise ValueError("no file is read over HTTP: https://host/a.mp4?sig=hush")
    assert "no file is read over HTTP" in last_run(store).data.tags["failure"]
    assert "hush" not in str(last_run(store).to_dictionary())


@pytest.mark.parametrize(
    "uri", ["postgresql://me:hu/sh@127.0.0.1/db", "http://me:hu/sh@127.0.0.1:1", "mysql://me:hu@sh@host/db"]
)
def test_a_password_of_mlflow_that_libraries_would_take_apart_is_refused(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SystemExit) as end:
        run(rerun.main, rerun.Rerun, ["0" * 32])
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "write it as %2F or %40" in told
    assert "hu" not in told.replace("such as", "")


def test_the_line_that_shows_the_runs_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hush@host/db")
    assert run_store.ui_command().endswith(' --backend-store-uri "$MLFLOW_TRACKING_URI"')


def job(
    name: str, *words: str, project: Path = REPOSITORY, **more: Any
) -> subprocess.CompletedProcess[bytes]:
    """A job that ended, as typed in a project's folder."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, str(project / "jobs" / f"{name}.py"), *words],
        env={**inherited, "PYTHONPATH": str(project)},
        check=False,
        **{"capture_output": True, **more},
    )


def last_run(store: str) -> Run:
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])[0]


CODE = r"""
password = "abc\"hush"
passphrase = 'hush'
DB_PASS = "hush"
password = (
    "hush"  # (
    "hush"
)
after = 'seen'
settings = {"password":
    "hush"}
token = \
    "hush"
ask("what password?", "hush")
connect("User=me;Password=hush")
text = '{"password": "hush"}'
headers = {"the token of the day": "hush"}
login("me", secret=dict(
    value=[
        'hush',
    ]))
password = '''
hush
hush '''
api_key = get(
    '''hush
hush''', "hush")
key = ["glpat-hushhushhushhushhush", "sk-proj-hushhushhushhushhush", "npm_hushhushhushhushhush"]
def passes(text='seen'):
    '''What a token is.'''
    return 'seen too'
"""
"""Secrets, each of which is `hush`, in the ways that Python has to write them."""


def test_what_a_run_keeps_of_its_code_is_code_alone_bounded_and_without_secrets(
    tmp_path: Path, store: str
) -> None:
    project = tmp_path / "project"
    for folder in ("flowcore", "pipelines", "jobs"):
        shutil.copytree(REPOSITORY / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "settings.yaml").write_text("password: none\n")
    (project / "old.py").write_bytes(b"name = 'J\xf6rg'\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(project), *words], check=True)
    (tmp_path / "credentials").write_text("aws_secret_access_key = hush\n")
    (project / "settings.yaml").write_text("password: hush\n")
    (project / "linked.py").symlink_to(tmp_path / "credentials")
    (project / "long.py").write_text("hush = 1\n" * 1_000_000)
    (project / "old.py").write_bytes(
        b"name = 'J\xf6rg W\xfcst'\nPASSWORD: str = 'hush'\nlogin(token=\"hush\")\n"
        b"url = 's3://key:hush@bucket'\nkey = '''-----BEGIN RSA PRIVATE KEY-----\nhush\n"
        b"-----END RSA PRIVATE KEY-----'''\n" + CODE.encode()
    )
    Path(os.fsdecode(os.fsencode(project) + b"/new\xff.py")).write_text("steps = 3\n")
    render(tmp_path / "a.mp4", 0, num_frames=3)
    words = ["--model", DIS, "--videos", str(tmp_path / "a.mp4"), "--output", str(tmp_path / "flow")]
    ended = job("predict", *words, project=project)
    assert ended.returncode == 0, ended.stderr.decode()
    diff = load_text(f"{last_run(store).info.artifact_uri}/repeat/uncommitted.diff")
    assert "hush" not in diff
    assert "+PASSWORD: str = '***'" in diff
    assert 'login(token="***")' in diff
    assert "+steps = 3" in diff
    for kept in ("after = 'seen'", "def passes(text='seen'):", "    return 'seen too'"):
        assert f"+{kept}" in diff
    assert "name = 'J\ufffdrg W\ufffdst'" in diff
    assert "long.py, which is too long" in diff
    assert "settings.yaml" not in diff


def test_a_secret_that_a_diff_takes_away_doesn_t_show_the_one_that_it_adds() -> None:
    diff = " password = (\n-    'hush')\n+    'hush')\n after = 'seen'\n@@ -9 +9 @@\n x = 'seen'"
    assert disclosure.code_without_secrets(diff) == diff.replace("hush", "***")


def test_a_status_asks_no_host_that_the_set_names(
    tmp_path: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    render(tmp_path / "videos" / "a.mp4", 0, num_frames=3)
    videos, labels = str(tmp_path / "videos"), tmp_path / "labels"
    write_pairs(Collection.find(videos), str(labels), ClipOptions(), LabellingOptions(), graph=BareGraph())
    bucket.fill(tmp_path / "videos")
    named = labels / DESCRIPTION_FILE
    named.write_text(named.read_text().replace(videos, bucket.uri()))
    before = bucket.server.requests
    run_recipe(pseudolabel.main, pseudolabel.recipes(), ["smoke", "--labels", str(labels), "--status"])
    told = capsys.readouterr().out.split()
    assert "finished" in told
    assert bucket.server.requests == before


ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e\r\nerror: x"
"""Names the terminal's window, clears it, turns the direction of writing, begins a line."""


def path(folder: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.fsencode(folder) + b"/" + name))


@pytest.fixture
def misnamed(tmp_path: Path) -> Path:
    """A collection with a good video, and names that are no UTF-8: of a file, a folder, and a frame."""
    folder = tmp_path / "videos"
    for seed, name in enumerate((b"good.mp4", b"a\xff.mp4", b"in\xfe/b.mp4")):
        render(path(folder, name), seed, num_frames=3)
    render_images(folder / "frames", 3, 3)
    (folder / "frames" / "2.png").rename(path(folder, b"frames/2\xfd.png"))
    return folder


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a prediction of misnamed videos left at the terminal and in its folder."""

    videos: Path
    flow: Path
    out: str
    err: str


LONG = "x" * 250


@pytest.fixture
def seen(misnamed: Path, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]) -> Seen:
    render(misnamed / f"seen{ESCAPES}.mp4", 4, num_frames=3)
    (misnamed / f"bad{ESCAPES}.mp4").write_bytes(b"nothing")
    render_images(misnamed / "long", 5, 2)
    for number in range(2):
        (misnamed / "long" / f"{number}.png").rename(misnamed / "long" / f"{number}{LONG}.png")
    words = ["--model", DIS, "--videos", str(misnamed), "--output", str(tmp_path / "flow")]
    with pytest.raises(SystemExit) as end:
        run(predict.main, predict.Predict, words)
    assert end.value.code == 1
    out, err = capsys.readouterr()
    return Seen(videos=misnamed, flow=tmp_path / "flow", out=out, err=err)


def test_a_name_that_is_no_text_is_refused_with_a_remedy(seen: Seen) -> None:
    assert "error: the flow of 4 of 7 videos is incomplete" in seen.err
    assert f"file://{seen.videos}/a%FF.mp4: its name isn't UTF-8; rename it" in seen.err
    assert f"file://{seen.videos}/in%FE/b.mp4: its name isn't UTF-8; rename it" in seen.err
    assert f"{seen.videos}/frames: the name of a frame isn't UTF-8; rename it" in seen.err


def test_a_name_with_escapes_is_printed_without_steering_the_terminal(seen: Seen) -> None:
    shown = r"\x1b]0;owned\x07\x1b[2J\u202e\r\nerror: x.mp4"
    assert f"seen{shown}: flow of 2 pairs" in seen.out
    assert f"bad{shown}: " in seen.err
    for text in (seen.out, seen.err):
        assert all(each.isprintable() or each == "\n" for each in text)
        assert "\nerror: x" not in text


def test_no_name_of_a_file_costs_another_file_s_flow(seen: Seen) -> None:
    assert len(list((seen.flow / "good").glob("*.flo"))) == 2
    assert [file.name for file in (seen.flow / "long").glob("*.flo")] == [f"0{LONG}.flo"]


def test_a_name_that_is_no_text_is_in_the_ledger_and_the_others_are_labelled(
    misnamed: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_bytes(
        b"videos\nvideos/a\xff.mp4\ns3://bucket/c\xe9.mp4\n".replace(b"videos", os.fsencode(misnamed))
    )
    options = LabellingOptions(max_bad_share=0.9)
    location = str(tmp_path / "set")
    for new_pairs in (2, 0):
        collection = Collection.find(str(tmp_path / "list.txt"))
        summary = write_pairs(collection, location, ClipOptions(), options, graph=BareGraph())
        assert summary.new_pairs == new_pairs
        assert {record.video: record.outcome for record in read_ledger(location)} == {
            f"file://{misnamed}/a%FF.mp4": "nothing",
            f"file://{misnamed}/in%FE/b.mp4": "nothing",
            f"{misnamed}/frames": "nothing",
            "s3://bucket/c%E9.mp4": "nothing",
        }


def test_an_option_that_is_no_text_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal("predict", ["--videos", os.fsdecode(b"/videos/a\xff.mp4")], capsys)
    assert r"/videos/a\udcff.mp4 isn't UTF-8" in told


def test_a_model_s_card_and_a_set_s_description_don_t_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").touch()
    (model / "model.json").write_text('{"format": "\\u001b[31m"}')
    words = ["--model", str(model), "--videos", str(tmp_path), "--output", str(tmp_path / "flow")]
    labels = tmp_path / "labels"
    Folder(str(labels)).write(DESCRIPTION_FILE, b'{"format": "\\u001b[31m"}')
    for main, options, arguments in (
        (predict.main, predict.Predict, words),
        (export_labels.main, export_labels.ExportLabels, ["--labels", str(labels), "--output", "x"]),
    ):
        with pytest.raises(SystemExit) as end:
            run(main, options, arguments)  # type: ignore[arg-type]
        assert end.value.code == 1
        assert "\x1b" not in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_no_job_and_no_help(tmp_path: Path, store: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    render(tmp_path / "a.mp4", 0, num_frames=3)
    words = ["--model", DIS, "--videos", str(tmp_path / "a.mp4"), "--output", str(tmp_path / "flow")]
    streams = {"capture_output": False, "stdout": writing, "stderr": writing}
    assert job("predict", *words, **streams).returncode == 0
    assert len(list((tmp_path / "flow").glob("*.flo"))) == 2
    told = job("predict", "--help", **{**streams, "stderr": subprocess.PIPE})
    assert (told.returncode, told.stderr) == (0, b"")
    os.close(writing)


@pytest.mark.parametrize(
    "text",
    [
        " and ".join(["occluded < 0.6"] * 1500),
        "not " * 5000 + "occluded < 0.6",
        "not " * 900 + "occluded < 0.6",
        "(" * 150 + "occluded < 0.6" + ")" * 150,
        "occluded < " + "-" * 3900 + "1",
        "(" * 3900,
    ],
    ids=["long", "nots", "fewer nots", "parentheses", "minus", "open"],
)
def test_a_filter_that_is_too_long_or_too_deep_is_refused_before_it_is_parsed(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal("export_labels", ["--labels", "l", "--output", "o", "--where", text], capsys)
    assert "characters, and at most" in told or "conditions within each other" in told


def test_a_filter_of_many_conditions_is_taken() -> None:
    where = " or ".join(f"(not video == 'a-(b)-not-{number}.mp4' and flow_p50 > -1)" for number in range(60))
    stage = export_labels.ExportLabels(labels="l", output="o", where=where)
    assert stage.where == where
