"""How does a model leave this project? As a graph, as a folder for the Hugging Face hub, or for ptlflow."""

from dataclasses import dataclass
from pathlib import Path

from flowcore.networks import ExternalConfig, FlowNetwork
from flowcore.networks.exported import disagreement, require_exportable, write_graph
from flowcore.networks.ptlflow_checkpoint import write_ptlflow_checkpoint
from pipelines.checkpoints import CARD_FILE, WEIGHTS_FILE, load_model
from pipelines.set_files import require_plain
from pipelines.storage import Folder, split

_TOLERANCE = 0.01
"""Pixels that a graph's flow may be from the network's own."""


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """A graph that was written and checked."""

    size: int
    """Bytes."""
    error: float
    """Pixels that its flow is at most from the network's own."""
    multiple: int
    """What both sides of a frame must be a multiple of."""


def export_graph(model: Path, output: str) -> ExportedGraph:
    """Writes a graph of the model in a folder to a path or URI.

    RuntimeError, and no file, where its flow isn't the network's; otherwise raises as `require_exportable`.
    """
    folder, name = split(output)
    network, info = load_model(model)
    require_exportable(network, Path(name))
    with Folder(folder).writing(name) as path:
        write_graph(network, path, {"digest": info.digest, "provenance": dict(info.provenance)})
        error = disagreement(network, path)
        if not error <= _TOLERANCE:
            raise RuntimeError(
                f"the flow of the exported network is up to {error:.2g} px from the network's own, so it was "
                "not kept; please report this with the model"
            )
        return ExportedGraph(size=path.stat().st_size, error=error, multiple=network.multiple)


def export_for_hub(model: Path, output: str, licence: str) -> bool:
    """Writes weights, card and, last, README of the model in a folder to a folder or URI. Returns whether
    anything but its card says what it was made from.

    ValueError for another library's network, and for an output that holds anything but an earlier export.
    """
    network, info = load_model(model)
    _require_ours(network, "that library's hub has it")
    # Brings MLflow.
    from pipelines.model_card import README_FILE, is_model_card, model_card, shipped_page
    from pipelines.recorded import model_record

    folder = Folder(output)
    require_plain(folder)
    visible = [name for name in folder.infos(recursive=False) if not name.startswith(".")]
    if visible and not (README_FILE in visible and is_model_card(folder.read(README_FILE))):
        raise ValueError(
            f"--output {output} holds {min(visible)}, which isn't of an export; give a new folder"
        )
    page = shipped_page(model)
    made = None if info.run_id is None else model_record(info.run_id)
    readme = model_card(network, info, made, licence, page)
    for name in (WEIGHTS_FILE, CARD_FILE):
        folder.write(name, (model / name).read_bytes())
    folder.write(README_FILE, readme.encode())
    return made is not None or page is not None


def export_for_ptlflow(model: Path, output: str) -> None:
    """Writes ptlflow's checkpoint of the model in a folder to a path or URI."""
    folder, name = split(output)
    network, _ = load_model(model)
    _require_ours(network, "only ours are written for ptlflow")
    with Folder(folder).writing(name) as path:
        write_ptlflow_checkpoint(network, path)


def _require_ours(network: FlowNetwork, remedy: str) -> None:
    if isinstance(network.config, ExternalConfig):
        raise ValueError(f"{network.config.uri} is another library's network; {remedy}")
