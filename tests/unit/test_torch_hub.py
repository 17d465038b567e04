"""What torch.hub gives: the network that the repository holds, or the one that is named."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from flowcore.networks import FlowNetwork, PWCNetConfig
from pipelines.checkpoints import load_model, save_model
from pipelines.models import fetch_model

REPOSITORY = Path(__file__).resolve().parents[2]


def loaded(**named: str) -> FlowNetwork:
    network: FlowNetwork = torch.hub.load(
        str(REPOSITORY), "distillflow", source="local", trust_repo=True, **named
    )
    return network


def test_torch_s_hub_gives_the_repository_s_network_ready_to_estimate_flow() -> None:
    network = loaded()
    coarse = torch.rand(1, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    image1 = functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    image2 = image1.roll(3, dims=-1)
    estimate = network.estimate(image1, image2)
    same, _ = load_model(fetch_model("distillflow:video"))
    torch.testing.assert_close(estimate, same.eval().estimate(image1, image2))
    # Right by three pixels and back.
    for flow, u in zip(estimate, (3, -3), strict=True):
        assert flow.shape == (1, 2, 104, 136)
        assert flow[0].flatten(1).median(dim=1).values.tolist() == pytest.approx([u, 0], abs=0.5)


def test_torch_s_hub_gives_the_network_that_a_path_names(tmp_path: Path) -> None:
    config = PWCNetConfig(encoder_widths=(4, 4, 8), decoder_widths=(8, 8), context_widths=(8,), radius=1)
    network = config.build()
    save_model(tmp_path, network, {})
    named = loaded(path=str(tmp_path))
    assert named.config == config
    assert not named.training
    assert all(torch.equal(value, named.state_dict()[name]) for name, value in network.state_dict().items())


def test_torch_s_hub_refuses_the_repository_where_a_package_that_it_needs_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # None is how Python says that there is no such module.
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(RuntimeError, match="Missing dependencies: safetensors"):
        loaded()
