"""How does another library's network or method become a teacher?

torchvision's and ptlflow's networks and OpenCV's classical methods get the interface of our own networks.
OpenCV's need no training and no GPU. torchvision and ptlflow are optional, so they are imported only where a
network is built. Such a network estimates flow and is saved like any other, but isn't trained here. It takes
two frames at a time, so no frame is encoded by itself.
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

from flowcore.extras import install_line
from flowcore.networks.interface import FlowLevel, FlowNetwork, NetworkConfig
from flowcore.shapes import Flow, Image

Library = Literal["opencv", "torchvision", "ptlflow"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
_MODULES = {"opencv": "cv2"}

# Pixels, as torchvision's RAFT requires; ptlflow's networks pad further by themselves.
_SIDE_MULTIPLE = 8
_SMALLEST_SIDE = 128
_GENERAL_CHECKPOINT = "things"
"""The ptlflow weights trained on FlyingThings, the last stage before a network is tuned to one data set."""


@dataclass(frozen=True, kw_only=True)
class ExternalConfig(NetworkConfig):
    """A network or method of another library."""

    library: Library
    name: str
    """The library's own name for it."""

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise ValueError(f"library {self.library!r} must be one of {', '.join(LIBRARIES)}")

    @property
    def uri(self) -> str:
        """As `external_network` takes it, such as opencv:dis_medium."""
        return f"{self.library}:{self.name}"

    def build(self) -> "ExternalNetwork":
        """The network with fresh weights.

        Raises RuntimeError if the library can't be imported, ValueError if it has no network of this name.
        """
        return _NETWORKS[self.library](self)


def external_network(uri: str) -> ExternalConfig | None:
    """The network that `<library>:<name>` names; None if `uri` doesn't begin with a library's name."""
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
        """The frames themselves: the library encodes them."""
        return [images]

    def decode(self, features1: list[Tensor], features2: list[Tensor]) -> list[FlowLevel]:
        return [self._flow(features1[0], features2[0])]

    @property
    def version(self) -> str:
        """The library's version."""
        return str(_imported(self.config.library).__version__)

    @abstractmethod
    def load_pretrained(self) -> str:
        """Loads the weights that the library publishes; returns their address, empty if there are none."""

    @abstractmethod
    def _flow(self, image1: Image, image2: Image) -> Flow:
        """The library's estimate."""


class _PublishedNetwork(ExternalNetwork):
    """A torch module whose weights its library publishes. Frames are padded and the flow is cropped."""

    def __init__(self, config: ExternalConfig) -> None:
        super().__init__(config)
        self.model = self._built(_imported(config.library))

    def _flow(self, image1: Image, image2: Image) -> Flow:
        height, width = image1.shape[-2:]
        return self._padded_flow(_padded(image1), _padded(image2))[..., :height, :width]

    def load_pretrained(self) -> str:
        """Loads the weights that the library publishes; returns their address.

        They are downloaded unless torch's hub folder has them; no code in them is run. Raises ValueError if
        this network has none, OSError if the download fails.
        """
        url = self._weights_url(_imported(self.config.library))
        try:
            weights = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"can't download the weights of {self.config.uri} from {url} ({error}); download them "
                f"elsewhere and put the file into {torch.hub.get_dir()}/checkpoints"
            ) from error
        self.model.load_state_dict(weights.get("state_dict", weights))
        return url

    @abstractmethod
    def _built(self, library: Any) -> nn.Module:
        """The library's module with fresh weights."""

    @abstractmethod
    def _padded_flow(self, image1: Image, image2: Image) -> Flow:
        """The module's estimate for frames of a size that it takes."""

    @abstractmethod
    def _weights_url(self, library: Any) -> str:
        """The address of the weights, by the library."""


class TorchvisionNetwork(_PublishedNetwork):
    """A network of torchvision.models.optical_flow; it takes frames in [-1, 1]."""

    def _built(self, library: Any) -> nn.Module:
        models = library.models
        _require_known(self.config, models.list_models(module=models.optical_flow))
        model: nn.Module = models.get_model(self.config.name, weights=None)
        return model

    def _padded_flow(self, image1: Image, image2: Image) -> Flow:
        # One flow an iteration; the last is the estimate.
        flow: Tensor = self.model(2 * image1 - 1, 2 * image2 - 1)[-1]
        return flow

    def _weights_url(self, library: Any) -> str:
        return str(library.models.get_model_weights(self.config.name).DEFAULT.url)


class PTLFlowNetwork(_PublishedNetwork):
    """A network of ptlflow; it takes frames in [0, 1] with channels in the order blue, green, red.

    The FlowFormers see whole frames here. ptlflow itself cuts frames into tiles of the size they were trained
    on, which is larger than many videos. Networks that need more than two frames don't work.
    """

    def _built(self, library: Any) -> nn.Module:
        _require_known(self.config, library.get_model_names())
        model: nn.Module = library.get_model(self.config.name)
        return model

    def _padded_flow(self, image1: Image, image2: Image) -> Flow:
        pairs = torch.stack([image1, image2], dim=1).flip(2)
        # One by one, as ptlflow evaluates them: in some networks a pair's flow depends on its batch.
        return torch.cat([self.model({"images": pair})["flows"][:, 0] for pair in pairs.split(1)])

    def _weights_url(self, library: Any) -> str:
        checkpoints = getattr(self.model, "pretrained_checkpoints", None) or {}
        if not checkpoints:
            raise ValueError(f"ptlflow has no trained weights for {self.config.name}; choose another network")
        return str(checkpoints.get(_GENERAL_CHECKPOINT) or next(iter(checkpoints.values())))


class OpenCVNetwork(ExternalNetwork):
    """OpenCV's DIS (Kroeger et al., ECCV 2016) or Farneback (SCIA 2003), on grey frames and a CPU.

    It has no weights: a teacher that needs no training and never saw truth.
    """

    def __init__(self, config: ExternalConfig) -> None:
        super().__init__(config)
        _require_known(config, list(_OPENCV))

    def _flow(self, image1: Image, image2: Image) -> Flow:
        """The method's estimate; ValueError for frames too small for it."""
        flows = [
            self._of_pair(_grey(first), _grey(second)) for first, second in zip(image1, image2, strict=True)
        ]
        return torch.from_numpy(np.stack(flows)).to(image1.device)

    def _of_pair(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        try:
            flow = _OPENCV[self.config.name](first, second)
        except cv2.error as error:
            raise ValueError(
                f"{self.config.uri} can't estimate flow for frames of {first.shape} px ({error.err}); leave "
                "out the small frames, or take another network"
            ) from error
        return np.ascontiguousarray(flow.transpose(2, 0, 1))

    def load_pretrained(self) -> str:
        """Nothing to load."""
        return ""


def _grey(image: Float[Tensor, "3 height width"]) -> np.ndarray:
    """The image as OpenCV's own conversion gives it, uint8."""
    frame = (image.movedim(0, -1) * 255).round().byte().cpu().numpy()
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _dis(preset: int, first: np.ndarray, second: np.ndarray, finest: int | None = None) -> np.ndarray:
    """finest: halvings of the frames at the finest scale; None: the preset's."""
    # Created for each pair, because it can't be sent to another process.
    method = cv2.DISOpticalFlow.create(preset)
    if finest is not None:
        method.setFinestScale(finest)
    return method.calc(first, second, np.zeros((*first.shape, 2), np.float32))


def _farneback(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # The parameters of OpenCV's own sample.
    start = np.zeros((*first.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(first, second, start, 0.5, 3, 15, 3, 5, 1.2, 0)


_OPENCV: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "dis_ultrafast": partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST),
    "dis_fast": partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_FAST),
    "dis_medium": partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
    # OpenCV's presets end at half or a quarter of the resolution. This one is ours.
    "dis_fine": partial(_dis, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM, finest=0),
    "farneback": _farneback,
}

_NETWORKS: dict[str, type[ExternalNetwork]] = {
    "opencv": OpenCVNetwork,
    "torchvision": TorchvisionNetwork,
    "ptlflow": PTLFlowNetwork,
}


def _imported(library: Library) -> Any:
    """The library; RuntimeError if it can't be imported."""
    try:
        return importlib.import_module(_MODULES.get(library, library))
    except (ImportError, RuntimeError, OSError) as error:
        raise RuntimeError(
            f"{library} can't be imported here ({error}); its networks need it on every node: "
            f"{install_line(library)}, with the torchvision that belongs to torch {torch.__version__}"
        ) from error


def _require_known(config: ExternalConfig, names: Sequence[str]) -> None:
    """ValueError, with the library's closest names, if it has no network of this name."""
    if config.name not in names:
        nearest = difflib.get_close_matches(config.name, names, n=8, cutoff=0.4) or names
        raise ValueError(
            f"{config.library} has no optical flow network {config.name!r}; it has {', '.join(nearest)}"
        )


def _padded(images: Image) -> Float[Tensor, "batch 3 _ _"]:
    """Images with the right and bottom border repeated up to sides that the libraries take."""
    bottom, right = (max(-side % _SIDE_MULTIPLE, _SMALLEST_SIDE - side) for side in images.shape[-2:])
    return functional.pad(images, (0, right, 0, bottom), mode="replicate")
