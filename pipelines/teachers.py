"""Which models label a collection? The set keeps a copy of each.

A copy, because the alias by which a teacher was named may mean another model tomorrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from flowcore import networks
from flowcore.networks import FlowNetwork, NetworkConfig
from pipelines import checkpoints
from pipelines.checkpoints import CARD_FILE, WEIGHTS_FILE, ModelInfo
from pipelines.models import fetch_model
from pipelines.storage import Folder

_FIRST_WITH_TF32 = (8, 0)


def teacher_names(count: int) -> list[str]:
    """teacher, teacher2 and so on: in provenance, among a run's inputs and, after `_`, of a set's folders."""
    return ["teacher", *(f"teacher{number}" for number in range(2, count + 1))][:count]


@dataclass(frozen=True)
class TeacherModel:
    """Which model a set's copy is."""

    digest: str
    config: NetworkConfig
    weights: str
    """The file in the set."""

    def load(self, location: str, device: torch.device) -> FlowNetwork:
        """The network, from the set's copy of it."""
        network = self.config.build()
        weights = Folder(location).read(self.weights)
        checkpoints.load_weights(network, weights, f"{self.weights} in {location}")
        return network.ready(device)


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The models that label a collection; none where frames alone are wanted."""

    uris: tuple[str, ...] = ()
    """As the user named them."""
    folders: tuple[Path, ...] = ()
    infos: tuple[ModelInfo, ...] = ()

    @classmethod
    def fetched(cls, uris: Sequence[str]) -> Self:
        """Those that `models.fetch_model` finds by these names."""
        folders = tuple(fetch_model(uri) for uri in uris)
        infos = tuple(checkpoints.load_model(folder)[1] for folder in folders)
        return cls(uris=tuple(uris), folders=folders, infos=infos)

    @property
    def places(self) -> dict[str, str]:
        """As the user named them, by what they are among a run's inputs."""
        return dict(zip(teacher_names(len(self.uris)), self.uris, strict=True))

    @property
    def models(self) -> tuple[TeacherModel, ...]:
        """The set's copies."""
        return tuple(
            TeacherModel(info.digest, info.config, f"_{name}/{WEIGHTS_FILE}")
            for name, info in zip(teacher_names(len(self.infos)), self.infos, strict=True)
        )

    @property
    def predict_scales(self) -> bool:
        """Whether each of them predicts how far its flow is off, so that their labels tell it."""
        return bool(self.infos) and all(info.config.predicts_scale for info in self.infos)

    @property
    def identity(self) -> dict[str, Any]:
        """What a set says of the models that it is made with."""
        each = [{"digest": info.digest, "network": networks.to_dict(info.config)} for info in self.infos]
        return each[0] if len(each) == 1 else {str(number): one for number, one in enumerate(each, start=1)}

    @property
    def provenance(self) -> dict[str, str]:
        """Where the models come from."""
        origin = {"teacher": " ".join(self.uris)}
        for name, info in zip(teacher_names(len(self.infos)), self.infos, strict=True):
            if info.run_id:
                origin[f"{name}_run_id"] = info.run_id
        return origin | {"generation": str(max(info.generation for info in self.infos))}

    def keep(self, location: str) -> None:
        """Puts the copies into the set, where they aren't there; ValueError where what is there is another
        model's, as in a set that a stranger has begun."""
        folder = Folder(location)
        names = teacher_names(len(self.folders))
        for name, uri, model in zip(names, self.uris, self.folders, strict=True):
            for file in (WEIGHTS_FILE, CARD_FILE):
                place, content = f"_{name}/{file}", (model / file).read_bytes()
                if folder.size(place) is None:
                    folder.write(place, content)
                elif file == WEIGHTS_FILE and (
                    folder.size(place) != len(content) or folder.read(place) != content
                ):
                    raise ValueError(
                        f"{place} in {location} isn't {uri}, the model that "
                        "is to label; remove it, and label in a folder that nobody else has written into"
                    )


def arithmetic(device: str) -> dict[str, str]:
    """What a set says of how its flow was computed, so that labels of a CPU and of a GPU never mix in it.
    They differ by up to a hundredth of a pixel where a GPU multiplies with TF32. Asked in a process that has
    the device, "cpu" or "cuda"."""
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    return {"device": device, "precision": precision(capability)}


def precision(capability: tuple[int, int] | None) -> str:
    """What a device of this CUDA capability multiplies with, as torch is set; None for a CPU. "tf32" if
    either convolutions, which torch lets by default, or products of matrices take it."""
    is_allowed = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return "tf32" if capability is not None and capability >= _FIRST_WITH_TF32 and is_allowed else "float32"
