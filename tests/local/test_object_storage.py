"""The whole chain on a real S3 server that refuses requests and drops connections, as a busy one does.

Nothing is on a disk that another node could not see, but MLflow, which is a server there.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_storage import Bucket

from flowcore.scenes import SceneOptions, render_scene, write_truth, write_video
from jobs import distill, evaluate, gallery, pseudolabel, train_teacher
from pipelines.labelling_status import labelling_status
from pipelines.ledger import MANIFEST_FILE
from pipelines.pair_set import PairSet
from pipelines.storage import Folder

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1800)]

SCENE = SceneOptions(height=64, width=96, num_frames=9, camera_speed=3.0, layer_speed=2.0)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    for seed in range(3):
        write_video(tmp_path / "videos" / f"scene {seed}.mp4", render_scene(seed, SCENE).frames)
    return tmp_path / "videos"


def labelled(videos: str, teacher: str, labels: str) -> pseudolabel.LabellingSummary:
    _, options = pseudolabel.recipes()["smoke"]
    return pseudolabel.pseudolabel(
        replace(options, videos=videos, teacher=(teacher,), labels=labels), "smoke"
    )


def rows(labels: str) -> str:
    """Without the one column that tells where the set was made; as a text, in which nan equals nan."""
    pairs = PairSet.open(labels)
    content = [pq.read_table(pa.BufferReader(Folder(labels).read(file))) for file in pairs.files]
    return repr(pa.concat_tables(content).drop_columns("video").sort_by("pair_id").to_pylist())


def test_the_chain_runs_on_object_storage_and_gives_the_labels_that_a_disk_gets(
    tmp_path: Path, collection: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    bucket.fill(tmp_path)
    bucket.server.refused_share, bucket.server.cut_share = 0.1, 0.03
    videos, runs, labels = (bucket.uri(name) for name in ("videos", "runs", "labels"))

    _, options = train_teacher.recipes()["smoke"]
    teacher = train_teacher.train_teacher(replace(options, videos=videos, run_root=runs), "smoke")

    summary = labelled(videos, teacher, labels)
    assert (summary.new_pairs, summary.num_videos, summary.ledger) == (24, 3, ())
    on_disk = labelled(str(collection), teacher, str(tmp_path / "labels"))
    assert rows(labels) == rows(on_disk.location)
    before = bucket.contents("labels", ".parquet")
    bucket.remove(f"labels/{MANIFEST_FILE}")
    assert labelling_status(labels).state == "unfinished"
    assert labelled(videos, teacher, labels).new_pairs == 0
    assert bucket.contents("labels", ".parquet") == before
    assert labelling_status(labels).state == "finished"

    gallery.main(gallery.Gallery(labels=labels, output=bucket.uri("pages/gallery.html")))
    assert b"scene%202.mp4" in Folder(bucket.uri("pages")).read("gallery.html")

    _, distilling = distill.recipes()["smoke"]
    student = distill.distill(replace(distilling, labels=labels, run_root=runs), "smoke")
    write_truth(tmp_path / "truth" / "scene9", render_scene(9, replace(SCENE, num_frames=2)))
    judged = bucket.uri("numbers/scenes.json")
    evaluate.main(evaluate.Evaluate(model=(student,), truth=f"scenes:{tmp_path / 'truth'}", json=judged))
    assert b'"epe"' in Folder(bucket.uri("numbers")).read("scenes.json")
    assert bucket.server.refused > 0
    assert bucket.server.cut > 0
    # A URI that is taken for a path makes a folder here.
    assert not list(tmp_path.glob("s3:*"))
