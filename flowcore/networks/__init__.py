"""Which networks estimate optical flow?

All share one interface: each frame is encoded once, then flow is decoded in both directions. A network's
configuration is a frozen dataclass that builds it; as a plain dictionary it is stored beside the weights.
"""

import dataclasses
from typing import Any

from flowcore.networks import flownet, pwcnet, raft
from flowcore.networks.external import ExternalConfig, external_network
from flowcore.networks.flownet import FlowNetConfig
from flowcore.networks.interface import BidirectionalFlow, FlowNetwork, NetworkConfig
from flowcore.networks.pwcnet import PWCNet, PWCNetConfig
from flowcore.networks.raft import RAFTConfig

__all__ = [
    "AnyNetworkConfig",
    "BidirectionalFlow",
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
    """The configuration that `to_dict` described; ValueError for an unknown architecture or option."""
    values = dict(values)
    name = values.pop("architecture", None)
    if name not in _ARCHITECTURES:
        raise ValueError(
            f"network architecture {name!r} is unknown; this version knows {', '.join(_ARCHITECTURES)}"
        )
    kind = _ARCHITECTURES[name]
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}; the checkpoint was made by another version"
        )
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
