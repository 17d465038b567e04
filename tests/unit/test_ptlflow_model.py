"""Our networks in ptlflow; what needs it skips where it isn't installed."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowcore.networks import FlowNetConfig, FlowNetwork, NetworkConfig, PWCNetConfig, to_dict
from flowcore.networks.ptlflow_checkpoint import write_ptlflow_checkpoint
from jobs import export_model
from jobs.export_model import ExportModel
from pipelines.checkpoints import save_model

CONFIGS: dict[str, NetworkConfig] = {
    "pwcnet": PWCNetConfig(encoder_widths=(4, 4, 8), decoder_widths=(8, 8), context_widths=(8,), radius=1),
    "flownets": FlowNetConfig(encoder_widths=(4, 6, 8, 8), decoder_widths=(6, 8)),
}


def ptlflow_with_ours() -> Any:
    ptlflow = pytest.importorskip("ptlflow", reason="ptlflow isn't installed: pip install -e '.[ptlflow]'")
    importlib.import_module("flowcore.networks.ptlflow_model")
    return ptlflow


def stored(backbone: str, folder: Path) -> tuple[FlowNetwork, str]:
    torch.manual_seed(3)
    network = CONFIGS[backbone].build().eval()
    write_ptlflow_checkpoint(network, folder / "student.ckpt")
    return network, str(folder / "student.ckpt")


def assert_same_flow(one: Tensor, other: Tensor) -> None:
    """To a thousandth of a pixel: two directions together are rounded otherwise than one."""
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_the_job_writes_the_checkpoint_of_a_model(tmp_path: Path) -> None:
    network = CONFIGS["flownets"].build()
    save_model(tmp_path / "model", network, {})
    path = tmp_path / "new" / "student.ckpt"
    export_model.main(ExportModel(model=str(tmp_path / "model"), output=str(path), format="ptlflow"))
    written = torch.load(path, weights_only=True)["state_dict"]
    for name, value in network.state_dict().items():
        assert torch.equal(written[f"network.{name}"], value)


def test_a_checkpoint_for_ptlflow_has_its_form_and_is_read_without_running_code(tmp_path: Path) -> None:
    network, path = stored("pwcnet", tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"].keys() == {f"network.{name}" for name in network.state_dict()}
    parameters = checkpoint["hyper_parameters"]["extra_params"]
    assert parameters["network"]["architecture"] == "pwcnet"


def test_without_ptlflow_its_model_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # None is how Python says that there is no such module.
    monkeypatch.setitem(sys.modules, "ptlflow.models.base_model.base_model", None)
    monkeypatch.setitem(sys.modules, "ptlflow", None)
    monkeypatch.delitem(sys.modules, "flowcore.networks.ptlflow_model", raising=False)
    with pytest.raises(RuntimeError, match="pip install 'ptlflow"):
        importlib.import_module("flowcore.networks.ptlflow_model")


@pytest.mark.parametrize("backbone", list(CONFIGS))
def test_ptlflow_gives_the_network_of_a_checkpoint_whose_flow_is_its_own(
    tmp_path: Path, backbone: str
) -> None:
    ptlflow = ptlflow_with_ours()
    network, path = stored(backbone, tmp_path)
    model = ptlflow.get_model("distillflow", ckpt_path=path).eval()
    assert to_dict(model.network.config) == to_dict(network.config)
    rgb = torch.rand(2, 3, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    flows = model({"images": rgb.flip(2)})["flows"]
    assert flows.shape == (2, 2, 2, 70, 90)
    for frames, estimates in zip(rgb, flows, strict=True):
        assert_same_flow(estimates, network.estimate(frames[:-1], frames[1:])[0])


def test_ptlflow_s_own_adapter_hands_its_frames_to_the_model(tmp_path: Path) -> None:
    ptlflow = ptlflow_with_ours()
    adapter = importlib.import_module("ptlflow.utils.io_adapter").IOAdapter
    network, path = stored("pwcnet", tmp_path)
    model = ptlflow.get_model("distillflow", ckpt_path=path).eval()
    frames = np.random.default_rng(0).integers(0, 256, (2, 70, 90, 3), np.uint8)
    flows = model(adapter(output_stride=model.output_stride, input_size=(70, 90)).prepare_inputs(frames))
    image1, image2 = torch.from_numpy(frames[..., ::-1].copy()).movedim(-1, 1)[:, None] / 255
    assert_same_flow(flows["flows"][:, 0], network.estimate(image1, image2)[0])


def test_ptlflow_knows_the_model_by_its_name_without_a_checkpoint() -> None:
    ptlflow = ptlflow_with_ours()
    assert "distillflow" in ptlflow.get_model_names()
    model = ptlflow.get_model("distillflow")
    assert to_dict(model.network.config) == to_dict(PWCNetConfig())
    assert model.output_stride == model.network.multiple
