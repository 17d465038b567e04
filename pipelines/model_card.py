"""What does a model say about itself on the Hugging Face hub? A README of what is recorded of it, no more.

Its card tells which stage made it from what. MLflow, where it is at hand, tells the places that the run read,
how it ended, and the errors that evaluations found. A network that comes with this package has a page of its
own.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from flowcore.networks import FlowNetwork, to_dict
from pipelines.checkpoints import ModelInfo
from pipelines.disclosure import plain
from pipelines.models import SHIPPED_FOLDER
from pipelines.recorded import ModelRecord

SAID = {"generation": "distillations", "init": "model to start from"}
"""What a page about a model calls a part of its provenance."""

README_FILE = "README.md"
_LIBRARY = "library_name: distillflow"
"""The line of the header that says whose model it is."""
_USE = """## Use

With DistillFlow on Ray and its extra `hub`, `--model hf://OWNER/NAME` takes it in every job. From Python:

```python
import torch

from pipelines.checkpoints import load_model
from pipelines.models import fetch_model

network, info = load_model(fetch_model("hf://OWNER/NAME"))
image1 = image2 = torch.rand(1, 3, 192, 256)  # RGB in [0, 1]
flow_fw, flow_bw = network.eval().estimate(image1, image2)  # (batch, 2, height, width), pixels
```
"""


def shipped_page(folder: Path) -> str | None:
    """What the model in a folder says about itself; None where it doesn't come with this package. A file of
    that name beside another model may be a stranger's, and isn't repeated."""
    return (folder / README_FILE).read_text() if folder.parent == SHIPPED_FOLDER else None


def model_card(
    network: FlowNetwork,
    info: ModelInfo,
    made: ModelRecord | None,
    licence: str,
    page: str | None = None,
) -> str:
    """The README, with the header that the hub reads. made: None where MLflow doesn't know the model's run.
    page: of a shipped network, which stands in place of what is recorded of errors.

    licence: the hub's identifier of the weights' licence; ValueError for what can't be one.
    """
    if not re.fullmatch("[a-z0-9][a-z0-9.-]*", licence):
        raise ValueError(f"license {licence!r} must be an identifier of the hub's, such as apache-2.0 or mit")
    header = [
        "---",
        f"license: {licence}",
        _LIBRARY,
        "tags:",
        "- optical-flow",
        "- distillflow",
        *_base_models(made),
        "---",
    ]
    size = sum(each.numel() for each in network.parameters()) / 1e6
    intro = (
        f"A network for optical flow of the architecture {to_dict(info.config)['architecture']}, with "
        f"{size:.2f} million weights, trained with DistillFlow on Ray. Its digest is `{info.digest}`."
    )
    facts = dict(info.provenance)
    if made is not None:
        facts |= {f"{name}, read from": place for name, place in made.inputs.items()}
    parts = ["\n".join(header), page.strip() if page is not None else "# Optical flow", intro]
    facts = {SAID.get(name, name): value for name, value in facts.items()}
    parts += ["## What it was made from", _table(("recorded", "value"), facts)]
    if made is not None and made.final:
        numbers = {name: f"{value:.6g}" for name, value in made.final.items()}
        parts += ["## How its training ended", _table(("measure", "value"), numbers)]
    if page is not None:
        return "\n\n".join([*parts, _USE])
    parts.append("## Errors against truth")
    if made is not None and made.errors:
        parts.append(
            "EPE in pixels and Fl as a fraction, by `evaluate`, of the model that the run ended with."
        )
        parts.append(
            _table(("measure", "value"), {name: f"{value:.4g}" for name, value in made.errors.items()})
        )
    else:
        parts.append("None is recorded.")
    return "\n\n".join([*parts, _USE])


def is_model_card(readme: bytes) -> bool:
    """Whether `model_card` wrote it, whatever was added since."""
    return _LIBRARY.encode() in readme.splitlines()


def _base_models(made: ModelRecord | None) -> list[str]:
    """The header's lines for the models of the hub that it was made from."""
    inputs = () if made is None else made.inputs.values()
    places = (re.match(r"hf://(?!datasets/)([\w.-]+/[\w.-]+)", place) for place in inputs)
    names = sorted({place[1] for place in places if place})
    return ["base_model:", *(f"- {name}" for name in names)] if names else []


def _table(heads: tuple[str, str], values: Mapping[str, str]) -> str:
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join([f"| {heads[0]} | {heads[1]} |", "|---|---|", *rows])


def _cell(text: str) -> str:
    """Text as it is: a place may hold what Markdown takes for more than that."""
    return f"`{re.sub('[`|]', '?', plain(text))}`"
