"""Writes a network as ONNX or for torch.export, which run without this project, or for a hub or ptlflow.

    python jobs/export_model.py --model models:/flow-student@champion --output student.onnx
    python jobs/export_model.py --model models:/flow-student@champion --format hub --output student
    python jobs/export_model.py --model models:/flow-student@champion --format ptlflow
        --output student.ckpt

For the Hugging Face hub it is a folder with weights, card and a README.md of what is recorded of the model;
`hf upload` takes it. Read it first: it names the places that the training read. For ptlflow it is a
checkpoint, which `flowcore.networks.ptlflow_model` reads there.

For a graph the ending decides: .onnx for ONNX Runtime, TensorRT and the like (pip install
onnx onnxruntime onnxscript), .pt2 for torch.export.load. The inputs image1 and image2 are float32 RGB in
[0, 1], (batch, 3, height, width). The outputs flow_fw and flow_bw are (batch, 2, height, width), in pixels.
Both sides must be multiples of a number that the job prints and the file has in its metadata; pad frames
whose sides aren't. The job runs the file on frames of another size and compares its flow with the network's.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.command import run
from flowcore.networks import ExternalConfig
from flowcore.networks.exported import SMALLEST_SIDE, disagreement, require_exportable, write_graph
from flowcore.networks.ptlflow_checkpoint import write_ptlflow_checkpoint
from pipelines.checkpoints import CARD_FILE, WEIGHTS_FILE, load_model
from pipelines.disclosure import tell
from pipelines.models import absolute_model, fetch_model
from pipelines.storage import Folder, absolute, split

_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class ExportModel:
    """Options of export_model."""

    model: str
    """The model to write: a checkpoint folder or its URI, runs:/<run id>/model or models:/<name>@<alias>."""
    output: str
    """File to write, a path or a URI. Take a name that ends with .onnx for other tools, with .pt2 for
    PyTorch. With --format hub a folder."""
    format: Literal["graph", "hub", "ptlflow"] = "graph"
    """graph: a file that runs without this project. hub: a folder to upload to the Hugging Face hub.
    ptlflow: a checkpoint for ptlflow.get_model."""
    license: str = "unknown"
    """Licence of the weights in the README of --format hub, as the hub spells it, such as apache-2.0. It
    depends on the videos that the network learnt from."""


def main(stage: ExportModel) -> None:
    output = absolute(stage.output, "--output")
    if stage.format == "hub":
        _write_for_hub(stage, output)
    elif stage.format == "ptlflow":
        _write_for_ptlflow(stage, output)
    else:
        _write_graph(stage, output)


def _write_for_hub(stage: ExportModel, output: str) -> None:
    source = fetch_model(absolute_model(stage.model, "--model"))
    network, info = load_model(source)
    if isinstance(network.config, ExternalConfig):
        raise ValueError(f"{network.config.uri} is another library's network; that library's hub has it")
    # Brings MLflow.
    from pipelines.model_card import README_FILE, model_card, shipped_page
    from pipelines.recorded import model_record

    page = shipped_page(source)
    made = None if info.run_id is None else model_record(info.run_id)
    if made is None and page is None:
        tell("MLflow here doesn't know the run that made it: the README has what its card says")
    readme = model_card(network, info, made, stage.license, page)
    folder = Folder(output)
    folder.write(README_FILE, readme.encode())
    for name in (WEIGHTS_FILE, CARD_FILE):
        folder.write(name, (source / name).read_bytes())
    tell(f"{output}: read {README_FILE} and {CARD_FILE}, which name the places that the training read; then")
    tell(f"hf upload OWNER/NAME {shlex.quote(output)}")


def _write_for_ptlflow(stage: ExportModel, output: str) -> None:
    folder, name = split(output)
    network, _ = load_model(fetch_model(absolute_model(stage.model, "--model")))
    if isinstance(network.config, ExternalConfig):
        raise ValueError(
            f"{network.config.uri} is another library's network; only ours are written for ptlflow"
        )
    with Folder(folder).writing(name) as path:
        write_ptlflow_checkpoint(network, path)
    tell(f"{output}: import flowcore.networks.ptlflow_model, then")
    tell(f'ptlflow.get_model("distillflow", ckpt_path={output!r})')


def _write_graph(stage: ExportModel, output: str) -> None:
    folder, name = split(output)
    network, info = load_model(fetch_model(absolute_model(stage.model, "--model")))
    require_exportable(network, Path(name))
    tell("tracing the network and checking the file, which takes up to two minutes")
    with Folder(folder).writing(name) as path:
        write_graph(network, path, {"digest": info.digest, "provenance": dict(info.provenance)})
        error = disagreement(network, path)
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"the flow of the exported network is up to {error:.2g} px from the network's own, so it was "
                "not kept; please report this with the model"
            )
        size = path.stat().st_size
    tell(f"{output}: {size / 1e6:.1f} MB, at most {error:.1e} px from the network's own flow")
    sides = f"both sides multiples of {network.multiple} px and at least {SMALLEST_SIDE} px"
    tell(f"frames: RGB in [0, 1], {sides}")


if __name__ == "__main__":
    run(main, ExportModel)
