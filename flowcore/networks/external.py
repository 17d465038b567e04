"""How can a network of torchvision or ptlflow label for a student? Behind the interface of our own ones.

The libraries are optional, so each is imported where a network is built. Such a network estimates and is
saved like any other, but isn't trained here. It sees two frames at a time: there is nothing to encode once.
"""

import difflib
import importlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowcore.networks.interface import FlowLevel, FlowNetwork, NetworkConfig
from flowcore.shapes import Flow, Image

Library = Literal["torchvision", "ptlflow"]
LIBRARIES: tuple[Library, ...] = get_args(Library)

_SIDE_MULTIPLE, _SMALLEST_SIDE = 8, 128
"""Pixels. What torchvision's RAFT asks for; ptlflow's networks pad further by themselves."""
_GENERAL_CHECKPOINT = "things"
"""Of ptlflow's: trained on FlyingThings, the last stage before a network is tuned to one benchmark."""


@dataclass(frozen=True, kw_only=True)
class ExternalConfig(NetworkConfig):
    """A network by the name that its library gives it."""

    library: Library
    name: str

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise ValueError(f"library {self.library!r} must be one of {', '.join(LIBRARIES)}")

    @property
    def uri(self) -> str:
        """See `external_network`."""
        return f"{self.library}:{self.name}"

    def build(self) -> "ExternalNetwork":
        """The network with fresh weights. RuntimeError where the library can't be imported, ValueError where
        it has no network of this name."""
        return _NETWORKS[self.library](self)


def external_network(uri: str) -> ExternalConfig | None:
    """The network that `<library>:<name>` stands for, None for what doesn't begin with a library."""
    library, mark, name = uri.partition(":")
    return ExternalConfig(library=library, name=name) if mark and library in LIBRARIES else None


class ExternalNetwork(FlowNetwork):
    """Another library's network, for frames of any size: padded inside, and the flow cropped back."""

    multiple = 1
    strides = (1,)

    def __init__(self, config: ExternalConfig) -> None:
        super().__init__()
        self.config: ExternalConfig = config
        self.model = self._built(_imported(config.library))

    def encode(self, images: Image) -> list[Tensor]:
        """The frames themselves."""
        return [images]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[FlowLevel]:
        height, width = features1[0].shape[-2:]
        flow = self._flow(_padded(features1[0]), _padded(features2[0]))
        return [flow[..., :height, :width]]

    def load_pretrained(self) -> str:
        """Takes the weights that the library publishes, and returns their address.

        They are downloaded unless torch's hub folder has them, and nothing in them is run. ValueError where
        there are none for this network, OSError where they can't be had.
        """
        url = self._weights_url(_imported(self.config.library))
        try:
            weights = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"the weights of {self.config.uri} can't be had from {url} ({error}); download them "
                f"elsewhere, and put the file into {torch.hub.get_dir()}/checkpoints"
            ) from error
        self.model.load_state_dict(weights.get("state_dict", weights))
        return url

    @abstractmethod
    def _built(self, library: Any) -> nn.Module:
        """The library's module with fresh weights."""

    @abstractmethod
    def _flow(self, image1: Image, image2: Image) -> Flow:
        """What the library's network answers for frames of a size that it takes."""

    @abstractmethod
    def _weights_url(self, library: Any) -> str:
        """Where the library says that the weights are."""


class TorchvisionNetwork(ExternalNetwork):
    """torchvision.models.optical_flow, on frames in [-1, 1]."""

    def _built(self, library: Any) -> nn.Module:
        models = library.models
        _require_known(self.config, models.list_models(module=models.optical_flow))
        model: nn.Module = models.get_model(self.config.name, weights=None)
        return model

    def _flow(self, image1: Image, image2: Image) -> Flow:
        # a flow after each of its iterations
        flow: Tensor = self.model(2 * image1 - 1, 2 * image2 - 1)[-1]
        return flow

    def _weights_url(self, library: Any) -> str:
        return str(library.models.get_model_weights(self.config.name).DEFAULT.url)


class PTLFlowNetwork(ExternalNetwork):
    """ptlflow, on pairs of frames in [0, 1] whose channels are blue, green, red.

    The FlowFormers see whole frames here; ptlflow cuts them into tiles of the size that they were trained on,
    which is larger than many videos. Networks that ask for more than two frames aren't made for this.
    """

    def _built(self, library: Any) -> nn.Module:
        _require_known(self.config, library.get_model_names())
        model: nn.Module = library.get_model(self.config.name)
        return model

    def _flow(self, image1: Image, image2: Image) -> Flow:
        pairs = torch.stack([image1, image2], dim=1).flip(2)
        # One by one, as ptlflow measures them: with some networks a pair's flow depends on its batch.
        return torch.cat([self.model({"images": pair})["flows"][:, 0] for pair in pairs.split(1)])

    def _weights_url(self, library: Any) -> str:
        checkpoints = getattr(self.model, "pretrained_checkpoints", None) or {}
        if not checkpoints:
            raise ValueError(f"ptlflow has no trained weights for {self.config.name}; take another network")
        return str(checkpoints.get(_GENERAL_CHECKPOINT) or next(iter(checkpoints.values())))


_NETWORKS: dict[str, type[ExternalNetwork]] = {"torchvision": TorchvisionNetwork, "ptlflow": PTLFlowNetwork}


def _imported(library: Library) -> Any:
    """The library; RuntimeError where it can't be imported."""
    try:
        return importlib.import_module(library)
    except (ImportError, RuntimeError, OSError) as error:
        raise RuntimeError(
            f"{library} can't be imported here ({error}); networks of {library} need it on every node: "
            f"pip install -e '.[{library}]', with the torchvision that belongs to torch {torch.__version__}"
        ) from error


def _require_known(config: ExternalConfig, names: Sequence[str]) -> None:
    """ValueError, with the nearest of the library's names, for a name that isn't among them."""
    if config.name not in names:
        nearest = difflib.get_close_matches(config.name, names, n=8, cutoff=0.4) or names
        raise ValueError(
            f"{config.library} has no optical flow network {config.name!r}; it has {', '.join(nearest)}"
        )


def _padded(images: Image) -> Float[Tensor, "batch 3 _ _"]:
    """Right and bottom border repeated, as `pad_to_multiple` does, to sides that the libraries take."""
    bottom, right = (max(-side % _SIDE_MULTIPLE, _SMALLEST_SIDE - side) for side in images.shape[-2:])
    return functional.pad(images, (0, right, 0, bottom), mode="replicate")
