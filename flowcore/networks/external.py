"""How can what another library estimates label for a student? Behind the interface of our own networks.

Networks of torchvision and ptlflow, and OpenCV's classical methods, which need no training and no GPU. The
first two libraries are optional, so each is imported where a network is built. Such a network estimates and
is saved like any other, but isn't trained here. It sees two frames at a time: there is nothing to encode
once.
"""

import difflib
import importlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowcore.networks.interface import FlowLevel, FlowNetwork, NetworkConfig
from flowcore.shapes import Flow, Image

Library = Literal["opencv", "torchvision", "ptlflow"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
_MODULES = {"opencv": "cv2"}

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
    """Another library's network or method, for frames of any size."""

    multiple = 1
    strides = (1,)

    def __init__(self, config: ExternalConfig) -> None:
        super().__init__()
        self.config: ExternalConfig = config

    def encode(self, images: Image) -> list[Tensor]:
        """The frames themselves."""
        return [images]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[FlowLevel]:
        return [self._flow(features1[0], features2[0])]

    @property
    def version(self) -> str:
        """The library's."""
        return str(_imported(self.config.library).__version__)

    @abstractmethod
    def load_pretrained(self) -> str:
        """Takes the weights that the library publishes, and returns their address; "" where it needs none."""

    @abstractmethod
    def _flow(self, image1: Image, image2: Image) -> Flow:
        """What the library answers."""


class _PublishedNetwork(ExternalNetwork):
    """A torch module whose weights its library publishes. Frames are padded, and the flow cropped back."""

    def __init__(self, config: ExternalConfig) -> None:
        super().__init__(config)
        self.model = self._built(_imported(config.library))

    def _flow(self, image1: Image, image2: Image) -> Flow:
        height, width = image1.shape[-2:]
        return self._padded_flow(_padded(image1), _padded(image2))[..., :height, :width]

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
    def _padded_flow(self, image1: Image, image2: Image) -> Flow:
        """What the module answers for frames of a size that it takes."""

    @abstractmethod
    def _weights_url(self, library: Any) -> str:
        """Where the library says that the weights are."""


class TorchvisionNetwork(_PublishedNetwork):
    """torchvision.models.optical_flow, on frames in [-1, 1]."""

    def _built(self, library: Any) -> nn.Module:
        models = library.models
        _require_known(self.config, models.list_models(module=models.optical_flow))
        model: nn.Module = models.get_model(self.config.name, weights=None)
        return model

    def _padded_flow(self, image1: Image, image2: Image) -> Flow:
        # a flow after each of its iterations
        flow: Tensor = self.model(2 * image1 - 1, 2 * image2 - 1)[-1]
        return flow

    def _weights_url(self, library: Any) -> str:
        return str(library.models.get_model_weights(self.config.name).DEFAULT.url)


class PTLFlowNetwork(_PublishedNetwork):
    """ptlflow, on pairs of frames in [0, 1] whose channels are blue, green, red.

    The FlowFormers see whole frames here; ptlflow cuts them into tiles of the size that they were trained on,
    which is larger than many videos. Networks that ask for more than two frames aren't made for this.
    """

    def _built(self, library: Any) -> nn.Module:
        _require_known(self.config, library.get_model_names())
        model: nn.Module = library.get_model(self.config.name)
        return model

    def _padded_flow(self, image1: Image, image2: Image) -> Flow:
        pairs = torch.stack([image1, image2], dim=1).flip(2)
        # One by one, as ptlflow measures them: with some networks a pair's flow depends on its batch.
        return torch.cat([self.model({"images": pair})["flows"][:, 0] for pair in pairs.split(1)])

    def _weights_url(self, library: Any) -> str:
        checkpoints = getattr(self.model, "pretrained_checkpoints", None) or {}
        if not checkpoints:
            raise ValueError(f"ptlflow has no trained weights for {self.config.name}; take another network")
        return str(checkpoints.get(_GENERAL_CHECKPOINT) or next(iter(checkpoints.values())))


class OpenCVNetwork(ExternalNetwork):
    """OpenCV's DIS (Kroeger et al., ECCV 2016) and Farneback (SCIA 2003), on grey frames and on a CPU. It has
    no weights: as a teacher it is there at once, and it never saw truth."""

    def __init__(self, config: ExternalConfig) -> None:
        super().__init__(config)
        _require_known(config, list(_OPENCV))

    def _flow(self, image1: Image, image2: Image) -> Flow:
        """ValueError for frames that are too small for the method."""
        flows = [
            self._of_pair(_grey(first), _grey(second)) for first, second in zip(image1, image2, strict=True)
        ]
        return torch.from_numpy(np.stack(flows)).to(image1.device)

    def _of_pair(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        try:
            flow = _OPENCV[self.config.name](first, second)
        except cv2.error as error:
            raise ValueError(
                f"{self.config.uri} can't do frames of {first.shape} px ({error.err}): leave it out"
            ) from error
        return np.ascontiguousarray(flow.transpose(2, 0, 1))

    def load_pretrained(self) -> str:
        """Nothing to load."""
        return ""


def _grey(image: Float[Tensor, "3 height width"]) -> np.ndarray:
    """uint8, as OpenCV converts it."""
    frame = (image.movedim(0, -1) * 255).round().byte().cpu().numpy()
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _dis(preset: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # made anew for each pair, because it can't be sent to another process
    start = np.zeros((*first.shape, 2), np.float32)
    return cv2.DISOpticalFlow.create(preset).calc(first, second, start)


def _farneback(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # the numbers of OpenCV's own sample
    start = np.zeros((*first.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(first, second, start, 0.5, 3, 15, 3, 5, 1.2, 0)


_OPENCV: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "dis_ultrafast": partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST),
    "dis_fast": partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_FAST),
    "dis_medium": partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
    "farneback": _farneback,
}

_NETWORKS: dict[str, type[ExternalNetwork]] = {
    "opencv": OpenCVNetwork,
    "torchvision": TorchvisionNetwork,
    "ptlflow": PTLFlowNetwork,
}


def _imported(library: Library) -> Any:
    """The library; RuntimeError where it can't be imported."""
    try:
        return importlib.import_module(_MODULES.get(library, library))
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
