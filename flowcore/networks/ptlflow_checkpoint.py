"""How is a network stored for ptlflow? As a checkpoint of its form, which it reads without running code.

It is torch's file of a dictionary: weights under `state_dict`, and which network they are of where ptlflow
keeps a model's own parameters. There `ptlflow_model` reads it.
"""

import json
from pathlib import Path

import torch

from flowcore.networks import FlowNetwork, to_dict

NETWORK_PARAMETER = "network"
"""The parameter that holds the network's configuration, and the attribute that holds the network."""


def write_ptlflow_checkpoint(network: FlowNetwork, path: Path) -> None:
    """Writes what `ptlflow.get_model("distillflow", ckpt_path=path)` takes."""
    weights = {f"{NETWORK_PARAMETER}.{name}": value.cpu() for name, value in network.state_dict().items()}
    config = json.loads(json.dumps(to_dict(network.config)))
    parameters = {"extra_params": {NETWORK_PARAMETER: config}}
    torch.save({"state_dict": weights, "hyper_parameters": parameters}, path)
