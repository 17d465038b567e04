"""Which model does a name mean?

A folder, a URI, MLflow's names, what comes with this package and other libraries' networks all come down to
a folder here. A training
begins with the model in one, or with fresh weights.
"""

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from pyarrow import ArrowInvalid
from pyarrow.fs import FileSystem
from torch import Tensor

from flowcore import networks
from flowcore.networks import ExternalConfig, NetworkConfig
from flowcore.records import RECORD_BYTES
from pipelines import hub
from pipelines.checkpoints import (
    CARD_FILE,
    CONTENTS,
    MOST_BYTES,
    WEIGHTS_FILE,
    ModelInfo,
    load_model,
    model_folder,
    read_model,
    require_same,
    save_model,
)
from pipelines.storage import Folder, absolute, is_mlflow_uri, patient

if TYPE_CHECKING:
    # Only its type is needed: this module is imported by many processes that don't train.
    import ray.train


SHIPPED = "distillflow:"
"""Stands before the name of a network that comes with this package, which is that of its recipe."""
BEST = f"{SHIPPED}video"
"""The best of them."""
SHIPPED_FOLDER = Path(__file__).parent / "shipped"
"""A folder a network."""


def absolute_model(uri: str, option: str) -> str:
    """What `fetch_model` takes, with a path made absolute as `storage.absolute` does; URIs and the names of
    shipped and of other libraries' networks stay. On the Hugging Face hub it is that at the commit of now:
    see `hub.pinned`."""
    if uri.startswith(SHIPPED) or networks.external_network(uri) is not None:
        return uri
    place = absolute(uri, option)
    return hub.pinned(place, option) if place.startswith(hub.SCHEME) else place


def fetch_model(uri: str) -> Path:
    """The local folder of the model at `uri`; a remote one is copied to where it vanishes with the process.

    `uri` is a local path, a URI that pyarrow reads (s3://, gs://, file://), `hf://<owner>/<name>` with
    `@<revision>` or `/<folder>` behind it, `runs:/<run id>/model`,
    `models:/<name>@<alias>` or `models:/<name>/<version>`; FileNotFoundError where there is no model, and
    ConnectionError where the storage doesn't answer. `distillflow:<name>` comes with this
    package. Or it is `opencv:<name>`, a classical method, or `torchvision:<name>` or `ptlflow:<name>`, that
    library's network with the weights that it publishes; raises what `ExternalConfig.build` and
    `ExternalNetwork.load_pretrained` raise.
    """
    if (external := networks.external_network(uri)) is not None:
        return _fetch_external(external)
    if uri.startswith(SHIPPED):
        return _shipped(uri)
    if is_mlflow_uri(uri):
        # Brings MLflow, which would cost each of Ray's workers a second: they import this module.
        from pipelines import registry

        return model_folder(registry.download(uri), uri)
    if "://" not in uri:
        return model_folder(Path(absolute(uri, "model")), uri)
    return copied_model(uri)


def _shipped(uri: str) -> Path:
    names = sorted(folder.name for folder in SHIPPED_FOLDER.iterdir())
    if (name := uri.removeprefix(SHIPPED)) not in names:
        known = ", ".join(SHIPPED + each for each in names)
        raise FileNotFoundError(f"no network {uri} comes with this version; those that do are {known}")
    return SHIPPED_FOLDER / name


def copied_model(location: str) -> Path:
    """A copy of the model in a folder or at a URI, without what else is there; it vanishes with the process.
    Raises as `fetch_model`."""
    folder = vanishing_folder()
    try:
        for name, most in ((WEIGHTS_FILE, MOST_BYTES), (CARD_FILE, RECORD_BYTES)):
            if (found := Folder(location).size(name) or 0) > most:
                raise ValueError(f"{name} at {location} has {found} bytes, and at most {most} are read")
            (folder / name).write_bytes(Folder(location).read(name))
    # Arrow's other errors, such as that memory ran out, say nothing of the model.
    except (ArrowInvalid, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"there is no model at {location} ({error}); {CONTENTS}; check the address"
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"the model at {location} can't be read now ({error}); check the storage and its credentials"
        ) from error
    return folder


@patient
def copy_model(checkpoint: "ray.train.Checkpoint", folder: Path) -> None:
    """Copies the model out of Ray Train's checkpoint, without the optimiser's state, which is twice as
    large."""
    filesystem = cast(FileSystem, checkpoint.filesystem)
    for name in (WEIGHTS_FILE, CARD_FILE):
        with filesystem.open_input_file(f"{checkpoint.path}/{name}") as file:
            (folder / name).write_bytes(file.read())


def _fetch_external(config: ExternalConfig) -> Path:
    with torch.random.fork_rng(devices=[]):
        network = config.build()
    provenance = {
        "stage": "external",
        "network": config.uri,
        "weights": network.load_pretrained(),
        "version": network.version,
    }
    folder = vanishing_folder()
    save_model(folder, network, provenance)
    return folder


def vanishing_folder() -> Path:
    """A new empty folder, deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="distillflow-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """What a training begins with."""

    network: NetworkConfig
    weights: Mapping[str, Tensor] | None = None
    """By the names of the network's parameters; None for fresh ones."""
    info: ModelInfo | None = None
    """What the model says that the weights come from; None for fresh ones."""
    uri: str | None = None
    """Where the model lies; None for fresh weights."""

    @property
    def generation(self) -> int:
        """See `ModelInfo.generation`; 0 for fresh weights."""
        return 0 if self.info is None else self.info.generation

    def require(self, network: NetworkConfig) -> None:
        """ValueError where the model's network is another one."""
        require_same(network, self.network, self.uri or "fresh weights")


def starting_point(init: str | None, network: NetworkConfig) -> StartingPoint:
    """The model at `init`, see `fetch_model`; without one, `network` with fresh weights.

    ValueError for another library's network: those make labels, and can't be trained here.
    """
    if init is None:
        return StartingPoint(network=network)
    config: NetworkConfig | None = networks.external_network(init)
    if config is None:
        folder = fetch_model(init)
        # Not built before it is known to be ours: its library may be missing where a student is trained.
        config = read_model(folder)[0].config
    if isinstance(config, ExternalConfig):
        raise ValueError(
            f"{init} is {config.uri}, which makes labels and can't be trained here; give --init fresh to "
            "train the recipe's network from fresh weights, or another model"
        )
    loaded, info = load_model(folder)
    return StartingPoint(network=config, weights=loaded.state_dict(), info=info, uri=init)
