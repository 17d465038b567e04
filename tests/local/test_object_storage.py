"""The whole chain on SeaweedFS, which refuses requests and drops connections, as a busy storage does, with a
real MLflow server, whose runs are in PostgreSQL and whose models are on a SeaweedFS of its own.

Nothing is on a disk that another node could not see.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy
from object_storage import Bucket, Server, serving
from tracking_server import database, postgresql, tracking_server

from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, evaluate, gallery, pseudolabel, train_teacher
from pipelines.labelling_status import labelling_status
from pipelines.ledger import MANIFEST_FILE
from pipelines.pair_set import PairSet
from pipelines.storage import Folder

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1800)]

SCENE = SceneOptions(height=64, width=96, num_frames=9, camera_speed=3.0, layer_speed=2.0)


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """MLflow's server."""

    address: str
    store: str
    """The URI of its database."""
    models: Bucket


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Tracking]:
    """Over SQLite where PostgreSQL isn't installed."""
    folder = tmp_path_factory.mktemp("tracking")
    with contextlib.ExitStack() as started:
        if (programs := postgresql()) is None:
            store = f"sqlite:///{shutil.copy(empty_store, folder)}"
        else:
            store = started.enter_context(database(programs))
        models = Bucket("models", *started.enter_context(serving()))
        server = tracking_server(store, "s3://models/mlflow", models.endpoint, folder / "log")
        yield Tracking(address=started.enter_context(server), store=store, models=models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tracking: Tracking) -> Iterator[Path]:
    """The current folder, with videos."""
    folder = tmp_path_factory.mktemp("folder")
    for seed in range(3):
        write_video(folder / "videos" / f"scene {seed}.mp4", render_scene(seed, SCENE).frames)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking.address)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def bucket(s3_server: tuple[Server, int], folder: Path) -> Iterator[Bucket]:
    """With the videos, on a bad day."""
    server, port = s3_server
    server.reset()
    bucket = Bucket("chain", server, port)
    bucket.fill(folder)
    server.refused_share, server.cut_share = 0.1, 0.03
    yield bucket
    server.reset()


@pytest.fixture(scope="module")
def teacher(bucket: Bucket, ray_session: None) -> str:
    _, options = train_teacher.recipes()["smoke"]
    options = replace(options, videos=bucket.uri("videos"), run_root=bucket.uri("runs"))
    return train_teacher.train_teacher(options, "smoke")


def labelled(videos: str, teacher: str, labels: str) -> pseudolabel.LabellingSummary:
    _, options = pseudolabel.recipes()["smoke"]
    return pseudolabel.pseudolabel(
        replace(options, videos=videos, teacher=(teacher,), labels=labels), "smoke"
    )


@dataclass(frozen=True, kw_only=True)
class Labels:
    location: str
    summary: pseudolabel.LabellingSummary


@pytest.fixture(scope="module")
def labels(bucket: Bucket, teacher: str) -> Labels:
    location = bucket.uri("labels")
    return Labels(location=location, summary=labelled(bucket.uri("videos"), teacher, location))


def rows(labels: str) -> str:
    """Without the one column that tells where the set was made; as a text, in which nan equals nan."""
    pairs = PairSet.open(labels)
    content = [pq.read_table(pa.BufferReader(Folder(labels).read(file))) for file in pairs.files]
    return repr(pa.concat_tables(content).drop_columns("video").sort_by("pair_id").to_pylist())


def test_what_the_storage_does_not_give_fails_the_run_and_is_asked_for_again(
    bucket: Bucket, teacher: str
) -> None:
    videos, location = bucket.uri("videos"), bucket.uri("labels of most")
    # It is no bad input: the run fails, with the others done, and is run again.
    bucket.server.denied = "scene 2"
    with pytest.raises(OSError, match=r"1 videos can't be read now \(.*scene%202.*\)"):
        labelled(videos, teacher, location)
    status = labelling_status(location)
    assert (status.state, status.finished, status.left, status.pairs) == ("unfinished", 2, 1, 16)
    assert PairSet.open(location).num_pairs() == 16
    bucket.server.denied = ""
    assert labelled(videos, teacher, location).new_pairs == 8


def test_a_busy_object_storage_costs_no_pair(labels: Labels) -> None:
    summary = labels.summary
    assert (summary.new_pairs, summary.num_videos, summary.ledger) == (24, 3, ())


def test_object_storage_gets_the_labels_that_a_disk_gets(folder: Path, teacher: str, labels: Labels) -> None:
    on_disk = labelled(str(folder / "videos"), teacher, str(folder / "labels"))
    assert rows(labels.location) == rows(on_disk.location)


def test_a_rerun_on_object_storage_finishes_a_set_and_writes_nothing_again(
    bucket: Bucket, teacher: str, labels: Labels
) -> None:
    before = bucket.contents("labels", ".parquet")
    bucket.remove(f"labels/{MANIFEST_FILE}")
    assert labelling_status(labels.location).state == "unfinished"
    assert labelled(bucket.uri("videos"), teacher, labels.location).new_pairs == 0
    assert bucket.contents("labels", ".parquet") == before
    assert labelling_status(labels.location).state == "finished"


def test_a_page_about_labels_on_object_storage_is_written_there(bucket: Bucket, labels: Labels) -> None:
    gallery.main(gallery.Gallery(labels=labels.location, output=bucket.uri("pages/gallery.html")))
    assert b"scene%202.mp4" in Folder(bucket.uri("pages")).read("gallery.html")


@pytest.fixture(scope="module")
def judged(bucket: Bucket, folder: Path, labels: Labels) -> bytes:
    """The errors of a student of the labels, as they lie on the object storage."""
    _, options = distill.recipes()["smoke"]
    student = distill.distill(replace(options, labels=labels.location, run_root=bucket.uri("runs")), "smoke")
    write_truth(folder / "truth" / "scene9", render_scene(9, replace(SCENE, num_frames=2)))
    numbers = bucket.uri("numbers/scenes.json")
    evaluate.main(evaluate.Evaluate(model=(student,), truth=f"scenes:{folder / 'truth'}", json=numbers))
    return Folder(bucket.uri("numbers")).read("scenes.json")


def test_a_student_of_labels_on_object_storage_is_judged(judged: bytes) -> None:
    assert b'"epe"' in judged


def test_the_storage_was_busy_while_the_chain_ran(bucket: Bucket, judged: bytes) -> None:
    assert bucket.server.refused > 0
    assert bucket.server.cut > 0


def test_the_runs_are_in_postgresql(tracking: Tracking, judged: bytes) -> None:
    if tracking.store.startswith("sqlite"):
        pytest.skip("PostgreSQL is absent: apt install postgresql to run this test")
    with sqlalchemy.create_engine(tracking.store).connect() as connection:
        found = connection.execute(sqlalchemy.text("SELECT value FROM tags WHERE key = 'stage'"))
        assert {"train_teacher", "pseudolabel", "distill", "evaluate"} <= set(found.scalars())


def test_the_models_are_where_mlflow_s_server_puts_them(tracking: Tracking, judged: bytes) -> None:
    assert len(tracking.models.contents("mlflow", "model.safetensors")) >= 2


def test_no_uri_is_taken_for_a_path(folder: Path, judged: bytes) -> None:
    # It would make a folder here.
    assert not list(folder.glob("s3:*"))
