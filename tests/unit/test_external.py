"""Other libraries' networks and methods as our own; what needs a library skips where it isn't installed."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from flowcore.extras import install_line
from flowcore.geometry import upsample_flow
from flowcore.networks import ExternalConfig, FlowNetwork, external_network, from_dict, to_dict
from flowcore.networks.external import ExternalNetwork
from flowcore.scenes import SceneOptions, render_scene

TORCHVISION = ExternalConfig(library="torchvision", name="raft_small")
DIS = ExternalConfig(library="opencv", name="dis_medium")
NETWORKS = [
    DIS,
    ExternalConfig(library="opencv", name="farneback"),
    TORCHVISION,
    ExternalConfig(library="ptlflow", name="raft_small"),
    ExternalConfig(library="ptlflow", name="irr_pwc"),
]
each_network = pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.uri)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def library(name: str) -> Any:
    if name == "opencv":
        return cv2
    return pytest.importorskip(name, reason=f"{name} isn't installed: pip install -e '.[{name}]'")


def fresh(config: ExternalConfig) -> FlowNetwork:
    library(config.library)
    torch.manual_seed(0)
    return config.build().eval()


def test_a_library_and_a_name_mean_its_network_and_nothing_else_does() -> None:
    assert external_network("torchvision:raft_small") == TORCHVISION
    assert external_network("ptlflow:raft") == ExternalConfig(library="ptlflow", name="raft")
    assert external_network(TORCHVISION.uri) == TORCHVISION
    for place in ("torchvision", "torch:raft", "/a/torchvision:raft", "s3://torchvision/raft", "models:/a@b"):
        assert external_network(place) is None


def test_an_external_configuration_survives_json_without_its_library() -> None:
    stored = json.loads(json.dumps(to_dict(TORCHVISION)))
    assert stored == {"architecture": "external", "library": "torchvision", "name": "raft_small"}
    assert from_dict(stored) == TORCHVISION


@pytest.mark.parametrize("name", ["torchvision", "ptlflow"])
def test_a_library_that_is_not_installed_is_an_error_that_names_the_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None is how Python says that there is no such module.
    monkeypatch.setitem(sys.modules, name, None)
    network = external_network(f"{name}:raft")
    assert network is not None
    with pytest.raises(RuntimeError, match=re.escape(install_line(name))):
        network.build()


def test_a_library_made_for_another_torch_is_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision.py").write_text(f"raise RuntimeError({reason!r})\n")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=f"{reason}.* torch {re.escape(torch.__version__)}"):
        TORCHVISION.build()


@pytest.mark.parametrize(("name", "wrong"), [("torchvision", "raft_smal"), ("ptlflow", "raftsmall")])
def test_an_unknown_name_is_answered_with_the_nearest_ones(name: str, wrong: str) -> None:
    library(name)
    network = external_network(f"{name}:{wrong}")
    assert network is not None
    with pytest.raises(ValueError, match=f"no optical flow network '{wrong}'; it has .*raft_small"):
        network.build()


@each_network
@pytest.mark.parametrize(("height", "width"), [(48, 80), (130, 200)])
def test_an_external_network_estimates_frames_of_any_size_at_stride_1(
    config: ExternalConfig, height: int, width: int
) -> None:
    network = fresh(config)
    frames = random(0, 3, 3, height, width)
    chunk_fw, chunk_bw = network.estimate_chunk(frames)
    assert chunk_fw.shape == chunk_bw.shape == (2, 2, height, width)
    for pair in range(2):
        flow_fw, flow_bw = network.estimate(frames[pair : pair + 1], frames[pair + 1 : pair + 2])
        for chunk, flow in ((chunk_fw, flow_fw), (chunk_bw, flow_bw)):
            assert flow.isfinite().all()
            full = upsample_flow(chunk[pair : pair + 1], network.strides[0], height, width)
            torch.testing.assert_close(full, flow, rtol=1e-3, atol=1e-3)


@each_network
def test_an_external_network_swaps_its_flows_when_the_frames_are_swapped(config: ExternalConfig) -> None:
    network = fresh(config)
    image1, image2 = random(0, 2, 1, 3, 128, 192)
    (there_fw, there_bw), (back_fw, back_bw) = (
        network.estimate(image1, image2),
        network.estimate(image2, image1),
    )
    torch.testing.assert_close(there_fw, back_bw, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there_bw, back_fw, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(there_fw, there_bw, atol=1e-2)


def test_torchvision_s_network_estimates_what_it_does_under_torchvision() -> None:
    network = fresh(TORCHVISION)
    weights = library("torchvision").models.get_model_weights("raft_small").DEFAULT
    image1, image2 = random(0, 2, 1, 3, 128, 192)
    flow, _ = network.estimate(image1, image2)
    with torch.no_grad():
        theirs = network.model(*weights.transforms()(image1, image2))[-1]
    torch.testing.assert_close(flow, theirs, rtol=1e-3, atol=1e-3)


def test_ptlflows_network_answers_as_it_does_to_frames_prepared_by_ptlflow() -> None:
    network = fresh(ExternalConfig(library="ptlflow", name="raft_small"))
    frames = (random(0, 2, 3, 128, 192) * 255).byte()
    adapter = importlib.import_module("ptlflow.utils.io_adapter").IOAdapter(8, (128, 192))
    flow, _ = network.estimate(*(frame[None].float() / 255 for frame in frames))
    # as OpenCV reads them: height, width and then blue, green, red
    inputs = adapter.prepare_inputs([frame.flip(0).movedim(0, -1).numpy() for frame in frames])
    with torch.no_grad():
        theirs = network.model(inputs)["flows"][:, 0]
    torch.testing.assert_close(flow, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["dis_ultrafast", "dis_fast", "dis_medium", "dis_fine", "farneback"])
def test_a_classical_method_finds_the_motion_of_a_scene(name: str) -> None:
    scene = render_scene(0, SceneOptions(num_frames=2))
    network = ExternalConfig(library="opencv", name=name).build()
    assert isinstance(network, ExternalNetwork)
    assert network.load_pretrained() == ""
    assert network.version == cv2.__version__
    assert not network.state_dict()
    image1, image2 = (torch.from_numpy(frame).movedim(-1, 0)[None] / 255 for frame in scene.frames)
    for flow, truth in zip(network.estimate(image1, image2), (scene.flow_fw, scene.flow_bw), strict=True):
        error = np.linalg.norm(flow[0].numpy() - truth[0], axis=0)
        assert error.mean() < 0.6 * np.linalg.norm(truth[0], axis=0).mean()


def test_dis_answers_as_opencv_does_to_the_frames_in_grey() -> None:
    frames = render_scene(1, SceneOptions(num_frames=2)).frames
    flow, _ = DIS.build().estimate(*(torch.from_numpy(frame).movedim(-1, 0)[None] / 255 for frame in frames))
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey1, grey2 = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    theirs = search.calc(grey1, grey2, np.zeros((*grey1.shape, 2), np.float32))
    assert np.array_equal(flow[0].movedim(0, -1).numpy(), theirs)


def test_fine_dis_is_nearer_to_the_truth_of_a_textured_shift_by_a_fraction_of_a_pixel() -> None:
    shift = 0.4
    texture = cv2.GaussianBlur(np.random.default_rng(0).uniform(size=(96, 128, 3)), (0, 0), 1.5)
    texture = (texture - texture.min()) / np.ptp(texture)
    moved = cv2.warpAffine(texture, np.array([[1, 0, shift], [0, 1, 0]]), (128, 96), flags=cv2.INTER_CUBIC)
    frames = [torch.from_numpy(each.clip(0, 1)).float().movedim(-1, 0)[None] for each in (texture, moved)]

    def error(name: str) -> float:
        flow, _ = ExternalConfig(library="opencv", name=name).build().estimate(*frames)
        inner = flow[0, :, 8:-8, 8:-8] - torch.tensor([shift, 0.0]).view(2, 1, 1)
        return float(inner.norm(dim=0).mean())

    assert error("dis_fine") < 0.7 * error("dis_medium")


def test_opencv_names_its_methods_to_who_asks_for_another() -> None:
    network = external_network("opencv:tvl1")
    assert network is not None
    with pytest.raises(ValueError, match=r"opencv has no optical flow network 'tvl1'; it has .*dis_medium"):
        network.build()
