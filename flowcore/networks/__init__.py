"""Which networks estimate optical flow?

All share one interface: each frame is encoded once, then flow is decoded in both directions. A network's
configuration is a frozen dataclass that builds it; as a plain dictionary it is stored beside the weights.
"""

import dataclasses
import reprlib
from typing import Any

import torch

from flowcore.networks import flownet, pwcnet, raft
from flowcore.networks.external import ExternalConfig, external_network
from flowcore.networks.flownet import FlowNetConfig
from flowcore.networks.interface import BidirectionalFlow, Estimator, FlowNetwork, NetworkConfig
from flowcore.networks.pwcnet import PWCNet, PWCNetConfig
from flowcore.networks.raft import RAFTConfig
from flowcore.records import record

__all__ = [
    "AnyNetworkConfig",
    "BidirectionalFlow",
    "Estimator",
    "ExternalConfig",
    "FlowNetConfig",
    "FlowNetwork",
    "NetworkConfig",
    "PWCNet",
    "PWCNetConfig",
    "RAFTConfig",
    "external_network",
    "from_dict",
    "full",
    "light",
    "require_affordable",
    "size_in_bytes",
    "small",
    "tiny",
    "to_dict",
]

AnyNetworkConfig = PWCNetConfig | FlowNetConfig | RAFTConfig
"""The networks that can be trained."""
_ARCHITECTURES: dict[str, type[NetworkConfig]] = {
    "pwcnet": PWCNetConfig,
    "flownet": FlowNetConfig,
    "raft": RAFTConfig,
    "external": ExternalConfig,
}
_MOST_CHANNELS = 2048
_MOST_PIXEL_CHANNELS = 64
"""Of an encoder level, for each pixel of the frames. A level has a quarter of the pixels of the last."""
_MOST_LEVELS = 8
"""Of an encoder. Frames are padded to multiples of 2 to the number of levels."""
_MOST_LAYERS = 16
"""In a list of widths."""
_MOST = {"iterations": 128, "radius": 20, "scales": 8}
"""Of other options. A radius of 20 makes 1681 similarities for each place."""
_MOST_OTHERS = 1024


def tiny() -> dict[str, AnyNetworkConfig]:
    """Every backbone at a size for tests, by name: pwcnet, flownets, flownetc, raft_small, raft."""
    return {**pwcnet.tiny(), **flownet.tiny(), **raft.tiny()}


def small() -> dict[str, AnyNetworkConfig]:
    """Every backbone at a size for frames of about 96x128 px on a CPU, by name."""
    return {**pwcnet.small(), **flownet.small(), **raft.small()}


def light() -> dict[str, AnyNetworkConfig]:
    """The backbones that have a size for frames of about 320x448 px on a CPU, by name."""
    return {**pwcnet.light()}


def full() -> dict[str, AnyNetworkConfig]:
    """Every backbone at the size of its paper, by name."""
    return {**pwcnet.full(), **flownet.full(), **raft.full()}


def to_dict(config: NetworkConfig) -> dict[str, Any]:
    """`config` as JSON-ready values, with the name of its architecture."""
    name = next(name for name, kind in _ARCHITECTURES.items() if type(config) is kind)
    return {"architecture": name, **dataclasses.asdict(config)}


def from_dict(values: dict[str, Any]) -> NetworkConfig:
    """The configuration that `to_dict` described; ValueError for an unknown architecture or option, and for a
    value that no network of ours has: it may come from a stranger."""
    values = dict(values)
    name = values.pop("architecture", None)
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise ValueError(
            f"network architecture {name!r:.100} is unknown; this version knows {', '.join(_ARCHITECTURES)}"
        )
    kind = _ARCHITECTURES[name]
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}; the checkpoint was made by another version: use "
            "that one, or train the network again"
        )
    try:
        config = record(kind, values)
    except ValueError as error:
        raise ValueError(f"the configuration of {name} is damaged: {error}") from error
    require_affordable(config)
    return config


def require_affordable(config: NetworkConfig) -> None:
    """ValueError for a network that would take more memory or time than any of ours needs. The networks of
    the papers have at most 16 channels for each pixel, 1024 in a layer, 32 iterations and a radius of 10."""
    values = to_dict(config)
    name = values.pop("architecture")
    for key, value in values.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if len(numbers) > _MOST_LAYERS:
            raise ValueError(f"{key} of {name} has {len(numbers)} entries; at most {_MOST_LAYERS} are taken")
        is_width = key.endswith(("width", "widths"))
        most = _MOST_CHANNELS if is_width else _MOST.get(key, _MOST_OTHERS)
        if not all(0 <= number <= most for number in numbers if isinstance(number, int)):
            raise ValueError(f"{key} of {name} is {reprlib.repr(value)}; it must lie in 0..{most}")
    widths = values.get("encoder_widths", ())
    if len(widths) > _MOST_LEVELS:
        raise ValueError(
            f"encoder_widths of {name} has {len(widths)} entries; at most {_MOST_LEVELS} are taken"
        )
    for level, width in enumerate(widths, start=1):
        if width > _MOST_PIXEL_CHANNELS * 4**level:
            raise ValueError(
                f"encoder_widths of {name} has {width} channels at level {level}; at most "
                f"{_MOST_PIXEL_CHANNELS * 4**level} are taken"
            )


def size_in_bytes(config: NetworkConfig) -> int | None:
    """Of the network's weights, without making them; None for another library's network, which that library
    makes. ValueError for a network that can't be."""
    if isinstance(config, ExternalConfig):
        return None
    try:
        with torch.device("meta"):
            weights = config.build().state_dict().values()
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"there is no network of the configuration {config!r:.500}: {error}") from error
    return sum(int(each.nbytes) for each in weights)
