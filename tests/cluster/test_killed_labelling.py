"""Labelling, its processes or a node killed with -9: after a rerun each pair is there once, byte for byte.

`benchmarks/endurance/chaos.py` kills at random moments, and longer.
"""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from cluster_settings import QUICK_TO_SEE
from object_storage import Bucket
from ray.cluster_utils import Cluster

from flowcore.networks import PWCNetConfig
from flowcore.scenes import SceneOptions, render_scene, write_video
from pipelines.checkpoints import save_model
from pipelines.pair_set import PairSet
from pipelines.storage import Folder

CLUSTERS = ("labelling",)
pytestmark = [pytest.mark.usefixtures("ray_address_file"), pytest.mark.cluster, pytest.mark.timeout(1800)]

DEADLY_WIDTH = 96
"""Frames of this width kill the process that labels them, as those do that need more memory than there is."""

MOST_DEATHS = 6
"""Of the one process that labels a deadly video of 18 shards: three for each of the two that Ray sends it at
once, for each that it has under way."""

# It can stop at steps, and what works for it at points: however busy the machine is, they wait there for what
# the test does to them.
DRIVER = """
import contextlib, dataclasses, os, signal, sys
import ray
from flowcore.occlusion import OcclusionCheck
from flowcore.video import ClipOptions
from pipelines.collection import Collection
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.labelling_stages import Reader, Writer
from pipelines.shards import RayGraph
from pipelines.teachers import Teachers
from pipelines.teaching import Teacher

def wait_to_be_killed(point):
    # Once for each file of the test's: who renames it is the one.
    with contextlib.suppress(FileNotFoundError):
        file = os.path.join(POINTS, point)
        os.rename(file, f"{file}-{os.getpid()}")
        os.kill(os.getpid(), signal.SIGSTOP)

class HaltingReader(Reader):
    def __call__(self, table):
        for each in super().__call__(table):
            wait_to_be_killed("reading")
            wait_to_be_killed("reading again")
            yield each

class HaltingTeacher(Teacher):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        wait_to_be_killed("just started")

class HaltingWriter(Writer):
    def __call__(self, table):
        for each in super().__call__(table):
            wait_to_be_killed("written")
            yield each

class Graph(RayGraph):
    reader, teacher, writer = HaltingReader, HaltingTeacher, HaltingWriter

    def room_for(self, **what):
        return dataclasses.replace(super().room_for(**what), shards_at_once=AT_ONCE)

class Deadly(OcclusionCheck):
    def __call__(self, flow_fw, flow_bw):
        wait_to_be_killed("labelling")
        if flow_fw.shape[-1] == WIDTH:
            with open(DEATHS, "a") as deaths:
                deaths.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(flow_fw, flow_bw)

if __name__ == "__main__":
    videos, teacher, labels, address, *stops = sys.argv[1:]
    steps = 0
    def report(_):
        global steps
        steps += 1
        if str(steps) in stops:
            os.kill(os.getpid(), signal.SIGSTOP)
    options, graph = LabellingOptions(shard_pairs=8), Graph(1, "auto")
    clips, check = ClipOptions(chunk_pairs=4), Deadly()
    ray.init(address=address, log_to_driver=False)
    collection, teachers = Collection.find(videos), Teachers.fetched([teacher])
    more = {"on_progress": report, "graph": graph}
    summary = write_labels(collection, teachers, labels, clips, check, options, **more)
    print("new_pairs", summary.new_pairs)
"""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short videos and one whose reading takes seconds."""
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(4):
        options = SceneOptions(height=48, width=64, num_frames=14, camera_speed=3.0, layer_speed=2.0)
        write_video(folder / f"{seed}.mp4", render_scene(seed, options).frames)
    texture = render_scene(9, SceneOptions(height=48, width=400, num_frames=2)).frames[0]
    left = [abs((2 * i + 300) % 600 - 300) for i in range(300)]
    write_video(folder / "long.mp4", np.stack([texture[:, x : x + 64] for x in left]))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    network = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,)).build()
    save_model(folder, network, {})
    return folder


class Driver:
    """The labelling command, in a process of its own."""

    def __init__(
        self,
        script: Path,
        address: str,
        collection: Path,
        teacher: Path,
        labels: Path | str,
        stops: Sequence[int],
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, (collection, teacher, labels, address, *stops))],
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for_stop(self) -> None:
        """Until it waits at its next step."""
        while psutil.Process(self.process.pid).status() != psutil.STATUS_STOPPED:
            assert self.process.poll() is None, "it ended before its step"
            time.sleep(0.02)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def finish(self) -> int:
        """The number of pairs that it made."""
        output, _ = self.process.communicate()
        assert self.process.returncode == 0
        return int(re.findall(r"new_pairs (\d+)", output)[-1])

    def kill(self) -> None:
        """With -9. What works for it ends by itself, but not at once."""
        self.process.kill()
        self.process.wait()


Start = Callable[..., Driver]
Kill = Callable[[str], int]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that nothing but drivers fits, so that all work dies with the node. All tests share it: starting
    Ray takes seconds."""
    ray = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_SEE},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Any:
    """The node that does the work."""
    return cluster.add_node(num_cpus=4)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file here, of a point's name, and the first process that comes there waits to be killed."""
    return tmp_path_factory.mktemp("points")


@pytest.fixture(scope="module")
def start(cluster: Cluster, node: Any, collection: Path, teacher: Path, points: Path) -> Start:
    """Starts a driver that labels into a folder, in the cluster, with so many shards at once in a teacher."""

    def started(labels: Path | str, *stops: int, videos: Path = collection, at_once: int = 1) -> Driver:
        # Once: while it were written anew for a second driver, the first could read an empty one, which ends
        # without a word and with status 0.
        script = teacher / f"driver-{at_once}.py"
        if not script.exists():
            content = DRIVER.replace("WIDTH", str(DEADLY_WIDTH)).replace("AT_ONCE", str(at_once))
            content = content.replace("POINTS", repr(str(points)))
            script.write_text(content.replace("DEATHS", repr(str(teacher / "deaths"))))
        return Driver(script, cluster.address, videos, teacher, labels, stops)

    return started


@pytest.fixture(scope="module")
def kill_workers(cluster: Cluster) -> Kill:
    """Kills the cluster's processes whose title has a text in it; returns how many they were."""

    def killed(title: str) -> int:
        count = 0
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    process.kill()
                    count += 1
        return count

    return killed


def contents(labels: Path) -> dict[str, bytes]:
    return {str(path.relative_to(labels)): path.read_bytes() for path in labels.rglob("*.parquet")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    labels = tmp_path_factory.mktemp("undisturbed") / "labels"
    start(labels).finish()
    return labels


def expect_the_same(labels: Path, undisturbed: Path) -> None:
    ids, expected = (
        PairSet.open(str(each)).index().column("pair_id").to_pylist() for each in (labels, undisturbed)
    )
    assert len(ids) == len(set(ids))
    assert sorted(ids) == sorted(expected)
    assert contents(labels) == contents(undisturbed)
    assert not list(labels.rglob("*.partial"))
    manifests = [json.loads((each / "_manifest.json").read_text()) for each in (labels, undisturbed)]
    assert manifests[0] == manifests[1]


def test_a_killed_driver_and_a_rerun_leave_each_pair_once(
    tmp_path: Path, start: Start, kill_workers: Kill, undisturbed: Path
) -> None:
    labels = tmp_path / "labels"
    driver = start(labels, 20)
    driver.wait_for_stop()
    driver.kill()
    assert not (labels / "_manifest.json").exists()
    # As if the machine had stopped.
    kill_workers("MapBatches")
    written = {path: path.stat().st_mtime_ns for path in labels.rglob("*.parquet")}
    new_pairs = start(labels).finish()
    expect_the_same(labels, undisturbed)
    # What was finished isn't done again.
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert 0 < new_pairs < PairSet.open(str(labels)).index().num_rows


def test_a_killed_driver_and_two_reruns_at_once_leave_each_pair_once_on_object_storage(
    bucket: Bucket, start: Start, undisturbed: Path
) -> None:
    labels = bucket.uri("labels")
    driver = start(labels, 12)
    driver.wait_for_stop()
    # What it had started goes on for a while, beside the others.
    driver.kill()
    before = bucket.contents("labels", ".parquet")
    bucket.server.refused_share, bucket.server.cut_share = 0.1, 0.03
    both = [start(labels) for _ in range(2)]
    for each in both:
        each.finish()
    bucket.server.refused_share = bucket.server.cut_share = 0.0
    after = bucket.contents("labels", ".parquet")
    assert after == contents(undisturbed)
    assert 0 < len(before) < len(after)
    manifests = [Folder(str(each)).read("_manifest.json") for each in (labels, undisturbed)]
    assert json.loads(manifests[0]) == json.loads(manifests[1])


def test_killed_decoders_cost_no_pair_after_a_rerun(
    tmp_path: Path, start: Start, kill_workers: Kill, undisturbed: Path
) -> None:
    labels = tmp_path / "labels"
    driver = start(labels)
    # All of them, as one that waits for its video is replaced and nobody is the wiser.
    while driver.process.poll() is None:
        kill_workers("pipelines.decoding")
        time.sleep(0.05)
    # The run fails, and the ledger says to try again.
    assert driver.process.returncode != 0
    outcomes = {entry["outcome"] for entry in json.loads((labels / "_ledger.json").read_text())}
    assert outcomes == {"unreadable now"}
    start(labels).finish()
    expect_the_same(labels, undisturbed)


@pytest.mark.parametrize("at_once", [1, 2], ids=["as on a CPU", "as on a GPU"])
def test_a_video_over_which_processes_die_is_left_out_and_named_however_many_shards_it_has(
    tmp_path: Path, start: Start, collection: Path, teacher: Path, undisturbed: Path, at_once: int
) -> None:
    videos, labels = tmp_path / "videos", tmp_path / "labels"
    (teacher / "deaths").unlink(missing_ok=True)
    shutil.copytree(collection, videos)
    deadly = SceneOptions(height=48, width=DEADLY_WIDTH, num_frames=9, camera_speed=3.0, layer_speed=2.0)
    write_video(videos / "deadly.mp4", np.tile(render_scene(7, deadly).frames, (16, 1, 1, 1)))
    start(labels, videos=videos, at_once=at_once).finish()
    (failed,) = PairSet.open(str(labels)).ledger()
    assert (Path(failed.video).name, failed.outcome) == ("deadly.mp4", "failed")
    assert "labelling ended its process 3 times" in failed.reason
    assert 3 <= len((teacher / "deaths").read_text()) <= at_once * MOST_DEATHS
    ids, expected = (PairSet.open(str(each)).index()["pair_id"].to_pylist() for each in (labels, undisturbed))
    assert sorted(ids) == sorted(expected)


def test_killed_workers_and_then_a_killed_node_cost_no_pair(
    tmp_path: Path,
    cluster: Cluster,
    node: Any,
    start: Start,
    kill_workers: Kill,
    points: Path,
    undisturbed: Path,
) -> None:
    labels = tmp_path / "labels"
    # Each comes before the driver's first step, as no shard gets there without passing them, and a video's
    # shards come before its end.
    waiting = {"just started", "reading", "reading again", "labelling", "written"}
    for point in waiting:
        (points / point).touch()
    driver = start(labels, 1, 6)
    while waiting:
        for file in points.glob("*-*"):
            point, _, process = file.name.rpartition("-")
            psutil.Process(int(process)).kill()
            file.unlink()
            waiting.remove(point)
        status = psutil.Process(driver.process.pid).status()
        assert status not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE), f"nothing was killed at {waiting}"
        time.sleep(0.02)
    # Once there is a file, whatever is at work.
    driver.wait_for_stop()
    kill_workers("MapBatches")
    driver.go_on()
    driver.wait_for_stop()
    written = contents(labels)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=4)
    driver.go_on()
    if driver.process.wait() != 0:
        start(labels).finish()
    assert 0 < len(written) < len(contents(labels))
    expect_the_same(labels, undisturbed)
