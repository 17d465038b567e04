"""Writes a network as ONNX or for torch.export, which run without this project, or for a hub or ptlflow.

    python jobs/export_model.py --model models:/flow-student@champion --output student.onnx
    python jobs/export_model.py --model models:/flow-student@champion --format hub --output student
    python jobs/export_model.py --model models:/flow-student@champion --format ptlflow \\
        --output student.ckpt

For the Hugging Face hub it is a folder with weights, card and a README.md of what is recorded of the model;
`hf upload` takes it. Read it first: it names the places that the training read. For ptlflow it is a
checkpoint, which `flowcore.networks.ptlflow_model` reads there.

For a graph the ending decides: .onnx for ONNX Runtime, TensorRT and the like (pip install
-e '.[onnx]'), .pt2 for torch.export.load. The inputs image1 and image2 are float32 RGB in
[0, 1], (batch, 3, height, width). The outputs flow_fw and flow_bw are (batch, 2, height, width), in pixels.
Both sides must be multiples of a number that the job prints and the file has in its metadata; pad frames
whose sides aren't. The job runs the file on frames of another size and compares its flow with the network's.
"""

import shlex
from dataclasses import dataclass
from typing import Literal

from jobs.command import run
from flowcore.networks.exported import SMALLEST_SIDE
from pipelines.disclosure import tell
from pipelines.model_export import export_for_hub, export_for_ptlflow, export_graph
from pipelines.models import absolute_model, fetch_model
from pipelines.storage import absolute


@dataclass(frozen=True, kw_only=True)
class ExportModel:
    """Options of export_model."""

    model: str
    """The model to write: a checkpoint folder or its URI, runs:/<run id>/model, models:/<name>@<alias>,
    hf://<owner>/<name> or distillflow:<name>."""
    output: str
    """File to write, a path or a URI. Take a name that ends with .onnx for other tools, with .pt2 for
    PyTorch. With --format hub a folder."""
    format: Literal["graph", "hub", "ptlflow"] = "graph"
    """graph: a file that runs without this project. hub: a folder to upload to the Hugging Face hub.
    ptlflow: a checkpoint for ptlflow.get_model."""
    license: str = "unknown"
    """Licence of the weights in the README of --format hub, as the hub spells it, such as apache-2.0. It
    depends on the videos that the network learnt from."""

    def __post_init__(self) -> None:
        if self.license != "unknown" and self.format != "hub":
            raise ValueError(f"license {self.license} is for the README of --format hub; add --format hub")


def main(stage: ExportModel) -> None:
    output = absolute(stage.output, "--output")
    model = fetch_model(absolute_model(stage.model, "--model"))
    if stage.format == "hub":
        if not export_for_hub(model, output, stage.license):
            tell("MLflow here doesn't know the run that made it: the README has what its card says")
        tell(f"{output}: read README.md and model.json, which name the places that the training read; then")
        tell(f"hf upload OWNER/NAME {shlex.quote(output)}")
    elif stage.format == "ptlflow":
        export_for_ptlflow(model, output)
        tell(f'ptlflow.get_model("distillflow", ckpt_path={output!r})')
    else:
        tell("tracing the network and checking the file, which takes up to two minutes")
        graph = export_graph(model, output)
        tell(f"{output}: {graph.size / 1e6:.1f} MB, at most {graph.error:.1e} px from the network's own flow")
        sides = f"both sides multiples of {graph.multiple} px and at least {SMALLEST_SIDE} px"
        tell(f"frames: RGB in [0, 1], {sides}")


if __name__ == "__main__":
    run(main, ExportModel)
