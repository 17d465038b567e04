"""Networks exported as graphs give the same flow on frames of any size."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import jaxtyping
import onnxruntime
import pytest
import torch

from flowcore.geometry import pad_to_multiple
from flowcore.networks import (
    FlowNetConfig,
    FlowNetwork,
    NetworkConfig,
    PWCNetConfig,
    RAFTConfig,
    external_network,
)
from flowcore.networks.exported import SMALLEST_SIDE, disagreement, run_graph, write_graph
from jobs import export_model
from jobs.export_model import ExportModel
from pipelines.checkpoints import save_model


@pytest.fixture(autouse=True)
def unchecked_shapes() -> Iterator[None]:
    """In a graph height and width are symbols, which the tests' shape assertions take for a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


RAFT = RAFTConfig(
    encoder_widths=(4, 8, 8),
    feature_width=8,
    hidden_width=8,
    context_width=8,
    similarity_widths=(8, 8),
    flow_widths=(4, 4),
    motion_width=8,
    head_width=8,
    iterations=2,
)
BACKBONES: dict[str, NetworkConfig] = {
    # Its graph leaves out what it predicts of its error.
    "pwcnet": PWCNetConfig(
        encoder_widths=(4, 6, 8), decoder_widths=(8, 6), context_widths=(8,), radius=1, uncertainty=True
    ),
    "flownets": FlowNetConfig(encoder_widths=(4, 6, 8, 8), decoder_widths=(6, 8)),
    "flownetc": FlowNetConfig(
        variant="correlated", encoder_widths=(4, 6, 8, 8), decoder_widths=(6, 8), radius=2
    ),
    "raft": replace(RAFT, iterations=1),
    "raft_small": replace(RAFT, variant="small", stride=4, similarity_widths=(8,), scales=2, radius=2),
}


Graphs = Callable[[str, str], tuple[FlowNetwork, Path]]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """A network and its graph, by backbone and suffix. An ONNX file takes half a minute."""
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def graph(backbone: str, suffix: str) -> tuple[FlowNetwork, Path]:
        torch.manual_seed(0)
        network = BACKBONES[backbone].build()
        path = folder / f"{backbone}{suffix}"
        write_graph(network, path, {"digest": "abc"})
        return network, path

    return graph


@pytest.mark.parametrize(
    ("backbone", "suffix"),
    # ONNX is made from the graph that a .pt2 file holds. FlowNetC has what PWC-Net has, and FlowNetS.
    [
        ("pwcnet", ".onnx"),
        ("raft", ".onnx"),
        ("flownetc", ".pt2"),
        ("flownets", ".pt2"),
        ("raft_small", ".pt2"),
    ],
)
def test_an_exported_network_gives_its_flow_at_any_batch_height_and_width(
    graphs: Graphs, backbone: str, suffix: str
) -> None:
    network, path = graphs(backbone, suffix)
    for batch, height, width in ((1, SMALLEST_SIDE, 240), (3, 160, SMALLEST_SIDE)):
        frames = torch.rand(2, batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
        image1, image2 = (pad_to_multiple(each, network.multiple) for each in frames)
        expected = network.estimate(image1, image2)
        assert expected[0].std() > 0
        for one, two in zip(run_graph(path, image1, image2), expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert disagreement(network, path) < 1e-4


def test_an_exported_network_says_what_it_is_and_what_it_takes(graphs: Graphs) -> None:
    session = onnxruntime.InferenceSession(graphs("pwcnet", ".onnx")[1], providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["image1", "image2"]
    assert [each.name for each in session.get_outputs()] == ["flow_fw", "flow_bw"]
    for each in (*session.get_inputs(), *session.get_outputs()):
        channels = 3 if each.name.startswith("image") else 2
        assert each.shape == ["batch", channels, "height", "width"]
    stored = {"distillflow.json": ""}
    torch.export.load(graphs("flownets", ".pt2")[1], extra_files=stored)
    cards = session.get_modelmeta().custom_metadata_map["distillflow.json"], stored["distillflow.json"]
    for card, multiple in zip(cards, (8, 16), strict=True):
        assert json.loads(card) == {"digest": "abc", "multiple": multiple, "smallest_side": SMALLEST_SIDE}


def test_a_network_that_was_changed_after_its_export_disagrees_with_it(graphs: Graphs) -> None:
    network, path = graphs("flownets", ".pt2")
    changed = copy.deepcopy(network)
    for parameter in changed.parameters():
        parameter.data *= 2
    assert disagreement(changed, path) > 0.01


def test_what_cannot_be_exported_says_what_can(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end with \.onnx or \.pt2"):
        write_graph(BACKBONES["raft"].build(), tmp_path / "network.pth", {})
    classical = external_network("opencv:farneback")
    assert classical is not None
    with pytest.raises(ValueError, match="opencv:farneback is another library's"):
        write_graph(classical.build(), tmp_path / "network.onnx", {})


def exported(tmp_path: Path, network: FlowNetwork) -> list[str]:
    """The files in the folder that the job exported the network to."""
    save_model(tmp_path / "model", network, {"stage": "test"})
    export_model.main(
        ExportModel(model=str(tmp_path / "model"), output=str(tmp_path / "new" / "network.pt2"))
    )
    return [path.name for path in (tmp_path / "new").iterdir()]


def test_the_job_writes_one_file_into_a_new_folder(tmp_path: Path) -> None:
    assert exported(tmp_path, BACKBONES["flownets"].build()) == ["network.pt2"]


def test_the_job_keeps_no_file_whose_flow_is_not_the_network_s(tmp_path: Path) -> None:
    diverged = BACKBONES["flownets"].build()
    next(diverged.parameters()).data[:] = torch.nan
    with pytest.raises(RuntimeError, match="px from the network's own"):
        exported(tmp_path, diverged)
    assert not list((tmp_path / "new").iterdir())
