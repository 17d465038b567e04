"""How is a network exported for programs that don't have this code?

As a graph for frames of any size. It takes `image1` and `image2`, float32 RGB in [0, 1] of shape (batch, 3,
height, width), and returns `flow_fw` and `flow_bw` of shape (batch, 2, height, width), in pixels. Batch,
height and width are free, but both sides must be multiples of the network's `multiple` and at least
`SMALLEST_SIDE`: the caller pads other frames, as `pad_to_multiple` does. What a network predicts of its error
isn't in it.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowcore.extras import install_line
from flowcore.geometry import upsample_flow
from flowcore.networks.external import ExternalConfig
from flowcore.networks.interface import FlowNetwork
from flowcore.shapes import Flow, Image

SMALLEST_SIDE = 128
"""Smallest side of a frame in pixels: the coarsest level of every backbone still has features to compare."""
SUFFIXES = (".onnx", ".pt2")
_INPUTS = ["image1", "image2"]
_OUTPUTS = ["flow_fw", "flow_bw"]
_FREE_AXES = {0: "batch", 2: "height", 3: "width"}
_CARD = "distillflow.json"


class _FullResolution(nn.Module):
    def __init__(self, network: FlowNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image1: Image, image2: Image) -> tuple[Flow, Flow]:
        flows = self.network(image1, image2)
        height, width = image1.shape[-2:]
        stride = self.network.strides[0]
        return (
            upsample_flow(flows.forward[0], stride, height, width),
            upsample_flow(flows.backward[0], stride, height, width),
        )


def require_exportable(network: FlowNetwork, path: Path) -> None:
    """Checks that `write_graph` can write this network to this file.

    Raises ValueError for another library's network and for an extension that isn't in `SUFFIXES`,
    RuntimeError if ONNX's packages aren't installed.
    """
    if isinstance(network.config, ExternalConfig):
        raise ValueError(f"{network.config.uri} is another library's network; export it with that library")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end with {' or '.join(SUFFIXES)}: ONNX or PyTorch's torch.export")
    if path.suffix == ".onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise RuntimeError(f"ONNX isn't installed; {install_line('onnx')}")


def _fewest_multiples(network: FlowNetwork) -> int:
    """How many times the network's `multiple` makes `SMALLEST_SIDE` or more."""
    return -(-SMALLEST_SIDE // network.multiple)


def write_graph(network: FlowNetwork, path: Path, card: Mapping[str, Any]) -> None:
    """Writes the network as a graph: `.onnx`, or `.pt2` for torch.export.load.

    card: JSON-ready values to store with it as `distillflow.json`, in ONNX's metadata or in an extra file of
    the .pt2.

    Raises as `require_exportable` does.
    """
    require_exportable(network, path)
    multiple = network.multiple
    batch = torch.export.Dim("batch", min=1)
    sides = {
        axis: multiple * torch.export.Dim(name, min=_fewest_multiples(network))
        for axis, name in ((2, "rows"), (3, "columns"))
    }
    side = multiple * (1 + _fewest_multiples(network))
    # Two tensors: one tensor given twice would become one input.
    frames = tuple(torch.zeros(2, 3, side, side + multiple) for _ in _INPUTS)
    shapes = {0: batch, **sides}
    graph = torch.export.export(
        _FullResolution(network.cpu().eval()), frames, dynamic_shapes=(shapes, shapes)
    )
    text = json.dumps({"multiple": multiple, "smallest_side": SMALLEST_SIDE, **card})
    if path.suffix == ".pt2":
        torch.export.save(graph, path, extra_files={_CARD: text})
        return
    # It warns of everything it skips, such as operators of libraries that aren't installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = torch.onnx.export(
            graph, frames, input_names=_INPUTS, output_names=_OUTPUTS, dynamo=True, verbose=False
        )
    assert made is not None
    made.model.metadata_props[_CARD] = text
    # torch names the axes after its symbols, such as s11.
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        assert value.shape is not None
        for axis, name in _FREE_AXES.items():
            value.shape[axis] = name
    made.save(path)


@torch.no_grad()
def run_graph(path: Path, image1: Image, image2: Image) -> tuple[Flow, Flow]:
    """(flow_fw, flow_bw) by a file that `write_graph` wrote, on the CPU."""
    if path.suffix == ".pt2":
        flow_fw, flow_bw = torch.export.load(path).module()(image1, image2)
        return flow_fw, flow_bw
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    frames = (image1.numpy(), image2.numpy())
    first, second = session.run(_OUTPUTS, dict(zip(_INPUTS, frames, strict=True)))
    return torch.from_numpy(first), torch.from_numpy(second)


@torch.no_grad()
def disagreement(network: FlowNetwork, path: Path) -> float:
    """Largest difference in pixels between the flow of a written graph and the network's own, on noise of
    another size than the graph was traced with."""
    generator = torch.Generator().manual_seed(0)
    side = network.multiple * (2 + _fewest_multiples(network))
    frames: tuple[Tensor, ...] = torch.rand(2, 1, 3, side, side, generator=generator).unbind()
    pairs = zip(run_graph(path, *frames), network.cpu().eval().estimate(*frames), strict=True)
    return max(float((one - two).abs().max()) for one, two in pairs)
