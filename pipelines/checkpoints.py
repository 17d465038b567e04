"""What is a model on disk? A folder with `model.safetensors` (weights) and `model.json` (network, origin).

Nothing here is ever unpickled: weights are safetensors, the training state beside them is read with
`weights_only`. A file is written under a temporary name and renamed, `model.json` last; it holds the digest
of weights and configuration, so that a folder whose replacement was interrupted between the two renames is
recognised instead of being loaded as a mixture.
"""

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from flowcore import networks
from flowcore.networks import FlowNetwork, NetworkConfig
from flowcore.records import RECORD_BYTES, parse, record
from pipelines.storage import write_whole

FORMAT = 2
"""Version of the folder's layout; another one is refused."""
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
STATE_FILE = "state.pt"
KEPT_FOLDER = "kept"
"""The folder, in a run's, of the checkpoints of `keep_every`."""
MOST_BYTES = 2**32
"""Of a model's weights."""
_HEADER_BYTES = 2**20
"""Of a file of weights beside them, at most."""

CONTENTS = f"a model is a folder with {WEIGHTS_FILE} and {CARD_FILE}"


class OtherVersionError(ValueError):
    """A model is whole, and of another version of this software; a damaged one is a mere ValueError."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model folder says about its weights."""

    config: NetworkConfig
    digest: str
    """See `model_digest`."""
    provenance: Mapping[str, str]
    """Free text by name, such as stage, recipe, run_id, digests of the data; not part of the digest."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9]{1,9}", self.provenance.get("generation", "0")):
            raise ValueError(f"the generation {self.provenance['generation'][:100]!r} must be a count")

    @property
    def run_id(self) -> str | None:
        """The MLflow run that made the model, if it says so."""
        return self.provenance.get("run_id")

    @property
    def generation(self) -> int:
        """0 for a network that learnt without a teacher, else one more than that of its teachers."""
        return int(self.provenance.get("generation", "0"))


@dataclass(frozen=True, kw_only=True)
class _Card:
    """What `model.json` says."""

    format: int
    config: Mapping[str, Any]
    digest: str
    provenance: Mapping[str, str]


def save_model(folder: Path, network: FlowNetwork, provenance: Mapping[str, str]) -> str:
    """Writes `network` into `folder`, over the model that was there, and returns its digest."""
    # safetensors takes neither the order of channels_last nor one tensor under two names, as ptlflow's RAFT
    # has some.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    weights = safetensors.torch.save(tensors)
    config = networks.to_dict(network.config)
    digest = _digest(weights, config)
    card = {"format": FORMAT, "config": config, "digest": digest, "provenance": dict(provenance)}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS_FILE, weights)
    write_whole(folder / CARD_FILE, (json.dumps(card, indent=2) + "\n").encode())
    return digest


def load_model(folder: Path) -> tuple[FlowNetwork, ModelInfo]:
    """The network with its weights, on the CPU, and what the folder says about it.

    Leaves torch's global generator as it was. FileNotFoundError if a file isn't there, ValueError if it is
    damaged, and of these OtherVersionError if another version of this software made the model.
    """
    info, weights = read_model(folder)
    with torch.random.fork_rng(devices=[]):
        network = info.config.build()
    load_weights(network, weights, folder / WEIGHTS_FILE)
    return network, info


def load_weights_into(network: FlowNetwork, folder: Path) -> ModelInfo:
    """Replaces the weights of `network` by those in a folder; ValueError if its network is configured
    otherwise."""
    info, weights = read_model(folder)
    require_same(network.config, info.config, str(folder))
    load_weights(network, weights, folder / WEIGHTS_FILE)
    return info


def require_same(here: NetworkConfig, there: NetworkConfig, place: str) -> None:
    """ValueError, with what differs, where the network of a checkpoint is configured otherwise."""
    ours, theirs = networks.to_dict(here), networks.to_dict(there)
    differing = [
        f"{name} is {theirs.get(name)!r} in the checkpoint and {ours.get(name)!r} here"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise ValueError(
            f"the weights in {place} are another network's: {'; '.join(differing)}; "
            "take the network's options from the checkpoint, or start without it"
        )


def model_digest(folder: Path) -> str:
    """What identifies a model: BLAKE2b of weights and configuration as 16 hexadecimal digits.

    Provenance doesn't count: the same weights made twice are the same teacher.
    """
    return read_model(folder)[0].digest


def save_training_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes what a resume needs beyond the weights; ValueError for what could not be read back."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    # torch saves anything and refuses it on loading, which is too late. Loading 40 MB here takes 20 ms.
    try:
        _parse_state(buffer.getvalue())
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"the training state ({', '.join(state)}) can't be read back without running code; keep to "
            "tensors, numbers, strings and their lists and dictionaries, and convert NumPy values"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / STATE_FILE, buffer.getvalue())


def load_training_state(folder: Path) -> dict[str, Any]:
    """What `save_training_state` wrote, tensors on the CPU; FileNotFoundError or ValueError without it."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no training state {path}; the model can start a training, not resume one")
    try:
        return _parse_state(path.read_bytes())
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no training state; resume from an earlier one") from error


def model_folder(folder: Path, name: object) -> Path:
    """`folder`, if there is a model in it; FileNotFoundError or ValueError otherwise."""
    if folder.is_file():
        raise ValueError(
            f"{name} is a file, and {CONTENTS}; pickled checkpoints (.pt, .pth, .ckpt, .tar) are never "
            "read, because reading one runs the code in it"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {name}; train one, or check the path")
    missing = [file for file in (WEIGHTS_FILE, CARD_FILE) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"there is no {' and no '.join(missing)} in {name}; {CONTENTS}")
    return folder


def read_model(folder: Path) -> tuple[ModelInfo, bytes]:
    """(what the folder's card says, the bytes of its weights), checked to belong together."""
    model_folder(folder, folder)
    path = folder / CARD_FILE
    try:
        if (found := path.stat().st_size) > RECORD_BYTES:
            raise ValueError(f"it has {found} bytes")
        values = parse(path.read_bytes())
        version = values.get("format") if isinstance(values, dict) else None
        card = record(_Card, values) if version == FORMAT else None
    except ValueError as error:
        raise ValueError(f"{path} doesn't describe a model ({error}); save the model again") from error
    if card is None:
        told = (
            f"{path} has format {version!r:.100}, and this version reads {FORMAT}; use the one that wrote it"
        )
        raise OtherVersionError(told) if isinstance(version, int) else ValueError(told)
    try:
        config = networks.from_dict(dict(card.config))
        info = ModelInfo(config=config, digest=card.digest, provenance=card.provenance)
        wanted = networks.size_in_bytes(config)
    except ValueError as error:
        # A JSON file that is whole was written so.
        raise OtherVersionError(f"{path} describes no model that can be read: {error}") from error
    weights = _weights(folder / WEIGHTS_FILE, wanted)
    _require_digest(weights, card.config, card.digest, f"{WEIGHTS_FILE} in {folder}")
    return info, weights


def _weights(path: Path, wanted: int | None) -> bytes:
    """The content of a file of weights; ValueError where it has other sizes than a network of so many bytes,
    which would be made next, or than any has."""
    found = path.stat().st_size
    least, most = (0, MOST_BYTES) if wanted is None else (wanted, min(wanted + _HEADER_BYTES, MOST_BYTES))
    if least <= found <= most:
        return path.read_bytes()
    with path.open("rb") as file:
        _refuse_pickle(file.read(8), path)
    raise ValueError(
        f"{path} has {found} bytes, and the weights of the network that {CARD_FILE} describes take {least}: "
        "it is damaged, or another model's; save or download it again"
    )


def _refuse_pickle(content: bytes, place: object) -> None:
    # A sound safetensors file may begin with these bytes too: they are its header's length.
    if content.startswith((b"PK", b"\x80")):
        raise ValueError(f"{place} is a pickle, never read because reading one runs its code")


def _require_digest(weights: bytes, config: Mapping[str, Any], digest: str, place: str) -> None:
    """ValueError where weights and configuration aren't those of this digest."""
    if _digest(weights, config) == digest:
        return
    _refuse_pickle(weights[:8], place)
    raise ValueError(
        f"{place} is not the file that {CARD_FILE} describes (digest {digest[:100]}): it is damaged, or "
        "replacing the model was interrupted; save or download it again"
    )


def load_weights(network: FlowNetwork, weights: bytes, place: object) -> None:
    """Puts the content of a file of weights into the network; OtherVersionError where they are another's,
    ValueError where they are no weights."""
    try:
        tensors = safetensors.torch.load(weights)
    except SafetensorError as error:
        raise ValueError(f"{place} isn't safetensors ({error}); save or download it again") from error
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise OtherVersionError(
            f"{place} doesn't hold the weights of the network that {CARD_FILE} describes ({error}); use the "
            "version that wrote it"
        ) from error


def _digest(weights: bytes, config: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(weights, digest_size=8)
    digest.update(json.dumps(config, sort_keys=True).encode())
    return digest.hexdigest()


def _parse_state(state: bytes) -> dict[str, Any]:
    values = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    assert isinstance(values, dict)
    return values
