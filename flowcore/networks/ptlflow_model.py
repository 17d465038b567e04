"""How does ptlflow take one of our networks? As the model `distillflow`, once this module is imported.

    import ptlflow
    import flowcore.networks.ptlflow_model

    model = ptlflow.get_model("distillflow", ckpt_path="student.ckpt")
    flow = model({"images": images})["flows"]

`export_model --format ptlflow` writes such a checkpoint, which says which network it has. Images are (batch,
frames, 3, height, width) in [0, 1] of any size, with channels in the order blue, green, red, as everywhere in
ptlflow. The flow from each frame to the next is (batch, frames - 1, 2, height, width), in pixels. ptlflow
can't train this model.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowcore.extras import install_line
from flowcore.geometry import upsample_flow
from flowcore.networks import FlowNetwork, PWCNetConfig, from_dict
from flowcore.networks.ptlflow_checkpoint import NETWORK_PARAMETER

try:
    from ptlflow.models.base_model.base_model import BaseModel
    from ptlflow.utils.registry import register_model
except (ImportError, RuntimeError, OSError) as error:
    raise RuntimeError(
        f"ptlflow can't be imported here ({error}); {install_line('ptlflow')}, with the torchvision that "
        f"belongs to torch {torch.__version__}"
    ) from error


# ptlflow's name for a model is that of its class.
class distillflow(BaseModel):  # type: ignore[misc]  # noqa: N801
    """The network of a checkpoint; without one, PWC-Net with fresh weights."""

    network: FlowNetwork

    def __init__(self, **options: Any) -> None:
        network = PWCNetConfig().build()
        super().__init__(output_stride=network.multiple, **options)
        self._take(network)

    def add_extra_param(self, name: str, value: Any) -> None:
        """What ptlflow reads in a checkpoint before its weights: here, which network they are of."""
        super().add_extra_param(name, value)
        if name == NETWORK_PARAMETER:
            self._take(from_dict(value).build())

    def forward(self, inputs: dict[str, Any]) -> dict[str, Float[Tensor, "batch pairs 2 height width"]]:
        images = inputs["images"].flip(2)
        height, width = images.shape[-2:]
        flows = [self.network.estimate_forward(frames) for frames in images]
        stride = self.network.strides[0]
        return {"flows": torch.stack([upsample_flow(flow, stride, height, width) for flow in flows])}

    def _take(self, network: FlowNetwork) -> None:
        self.network = network
        self.output_stride = network.multiple


register_model(distillflow)
