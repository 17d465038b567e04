"""A submission from a test split to the folder that is uploaded, without Ray."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.command import run
from flowcore.formats import read_flow, write_image
from flowcore.inference import InferenceOptions
from flowcore.networks import tiny
from flowcore.scenes import SceneOptions, render_scene
from flowcore.shapes import FlowArray, Frame, to_images
from flowcore.submissions import SERVERS, Server
from jobs import submit as job
from pipelines.checkpoints import load_model, save_model
from pipelines.storage import PARTIAL
from pipelines.submission import RECORD_FILE, submit, submit_network

FRAMES = render_scene(0, SceneOptions(height=37, width=53, num_frames=3)).frames
MADE_OF = {"data_set": "kitti2015", "model": "0123"}


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    """Two pairs of a test split in KITTI 2015's layout."""
    frames = tmp_path / "kitti" / "testing" / "image_2"
    frames.mkdir(parents=True)
    for scene in (0, 1):
        for number, frame in ((10, FRAMES[scene]), (11, FRAMES[scene + 1])):
            write_image(frames / f"{scene:06d}_{number}.png", frame)
    return tmp_path / "kitti"


@pytest.fixture
def server() -> Server:
    return replace(SERVERS["kitti2015"], num_pairs=2)


def brightness(asked: list[Frame]) -> Callable[[Frame, Frame], FlowArray]:
    """A flow that tells which frames it is of; notes the first frames that it is asked about."""

    def estimate(image1: Frame, image2: Frame) -> FlowArray:
        asked.append(image1)
        height, width = image1.shape[:2]
        flow = np.empty((2, height, width), np.float32)
        flow[0], flow[1] = image1[0, 0, 0], image2[0, 0, 0]
        return flow

    return estimate


def test_every_pair_has_the_flow_of_its_two_frames_and_the_zip_holds_them(
    kitti: Path, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    done = submit(server, kitti, folder, brightness([]), MADE_OF)
    assert (done.pairs, done.new_pairs, done.archive) == (2, 2, folder / "submission.zip")
    for scene in (0, 1):
        flow, valid = read_flow(folder / "flow" / f"{scene:06d}_10.png", (37, 53))
        assert valid.all()
        assert (flow[0] == FRAMES[scene][0, 0, 0]).all()
        assert (flow[1] == FRAMES[scene + 1][0, 0, 0]).all()
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        assert sorted(archive.namelist()) == ["flow/000000_10.png", "flow/000001_10.png"]
        assert archive.read("flow/000000_10.png") == (folder / "flow" / "000000_10.png").read_bytes()


def test_the_same_again_does_what_is_missing_or_damaged_alone(
    kitti: Path, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    submit(server, kitti, folder, brightness([]), MADE_OF)
    whole = {path: path.read_bytes() for path in folder.rglob("*.png")}
    (folder / "flow" / "000001_10.png").write_bytes(b"cut off")
    (folder / "flow" / f".0{PARTIAL}").write_bytes(b"of a killed writer")
    asked: list[Frame] = []
    done = submit(server, kitti, folder, brightness(asked), MADE_OF)
    assert (done.pairs, done.new_pairs, len(asked)) == (2, 1, 1)
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == whole


def test_a_folder_of_another_model_or_of_other_files_is_refused(
    kitti: Path, server: Server, tmp_path: Path
) -> None:
    submit(server, kitti, tmp_path / "out", brightness([]), MADE_OF)
    with pytest.raises(ValueError, match="has the flow of another model, data set or inference"):
        submit(server, kitti, tmp_path / "out", brightness([]), {**MADE_OF, "model": "4567"})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="has files that no submission wrote"):
        submit(server, kitti, tmp_path / "mine", brightness([]), MADE_OF)


def test_a_file_that_no_server_asks_for_ends_it_before_the_zip_is_made(
    kitti: Path, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    submit(server, kitti, folder, brightness([]), MADE_OF)
    (folder / "submission.zip").unlink()
    (folder / "flow" / "000002_10.png").touch()
    with pytest.raises(ValueError, match=r"would refuse .*\n  flow/000002_10\.png isn't asked for"):
        submit(server, kitti, folder, brightness([]), MADE_OF)
    assert not (folder / "submission.zip").exists()


def test_flow_that_is_not_finite_ends_it_with_the_file_s_name(
    kitti: Path, server: Server, tmp_path: Path
) -> None:
    def broken(image1: Frame, image2: Frame) -> FlowArray:
        return np.full((2, *image1.shape[:2]), np.nan, np.float32)

    with pytest.raises(ValueError, match=r"flow for flow/000000_10\.png is not finite"):
        submit(server, kitti, tmp_path / "out", broken, MADE_OF)


def test_a_network_s_submission_is_its_own_flow(kitti: Path, server: Server, tmp_path: Path) -> None:
    torch.manual_seed(0)
    digest = save_model(tmp_path / "model", tiny()["pwcnet"].build(), {})
    network, _ = load_model(tmp_path / "model")
    folder = tmp_path / "out"
    submit_network(network, digest, "kitti2015", server, kitti, folder, InferenceOptions())
    flow, _ = read_flow(folder / "flow" / "000000_10.png")
    images = [to_images(frame[None]) for frame in FRAMES[:2]]
    expected, _ = network.estimate(*images)
    assert np.abs(flow - expected[0].numpy()).max() <= 1 / 128 + 1e-4
    assert digest in (folder / RECORD_FILE).read_text()


def test_a_raft_s_submission_is_refined_as_often_as_it_is_told(
    kitti: Path, server: Server, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = tiny()["raft"].build()
    inference = InferenceOptions(iterations=5)
    submit_network(network, "0123", "kitti2015", server, kitti, tmp_path / "out", inference)
    flow, _ = read_flow(tmp_path / "out" / "flow" / "000000_10.png")
    images = [to_images(frame[None]) for frame in FRAMES[:2]]
    for iterations, is_same in ((3, False), (5, True)):
        network.set_iterations(iterations)
        expected, _ = network.estimate(*images)
        assert (np.abs(flow - expected[0].numpy()).max() <= 1 / 128 + 1e-3) == is_same


def test_iterations_of_a_network_that_has_none_are_refused_before_a_folder_is_claimed(
    kitti: Path, server: Server, tmp_path: Path
) -> None:
    inference, network = InferenceOptions(iterations=5), tiny()["pwcnet"].build()
    with pytest.raises(ValueError, match="PWCNet has no iterations to set to 5; of our networks RAFT"):
        submit_network(network, "0123", "kitti2015", server, kitti, tmp_path / "out", inference)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["--data-set", "chairs:{folder}"],
            "chairs has no server that takes flow; those that have are sintel",
        ),
        (["--data-set", "kitti2015:{folder}"], "has 2 pairs of test frames, and the server asks for 200"),
        (["--data-set", "sintel:{folder}"], "no pair of test frames in"),
    ],
)
def test_the_job_refuses_what_no_server_takes(
    kitti: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    words = [word.format(folder=kitti) for word in words]
    words += ["--model", "opencv:dis_fast", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        run(job.main, job.Submit, words)
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
