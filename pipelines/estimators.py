"""What can estimate the flow of two frames? Any model that can be named, or `zero`, the claim that nothing
moves."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from flowcore.drawing import Prediction
from flowcore.inference import InferenceOptions, estimate_frames
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.shapes import FlowArray, Frame
from pipelines.checkpoints import load_model
from pipelines.models import absolute_model, fetch_model

ZERO = "zero"
"""The name of the model that predicts no motion."""


class Estimator(Protocol):
    """Estimates flow from two frames; can be sent to another process."""

    run_id: str | None
    """The MLflow run that made it; None where no run is known."""

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        """The flow from image1 to image2 and back, in pixels."""

    def to(self, device: torch.device) -> None:
        """Computes on this device from now on, if it can."""


def absolute_estimator(model: str, option: str) -> str:
    """What `load_estimator` takes, with a path made absolute as `models.absolute_model` does."""
    return model if model == ZERO else absolute_model(model, option)


def load_estimator(model: str) -> Estimator:
    """The estimator that a model's URI for `fetch_model` names, or `zero`."""
    if model == ZERO:
        return NoMotion()
    network, info = load_model(fetch_model(model))
    return NetworkEstimator(network, info.run_id)


def predictions(
    image1: Frame, image2: Frame, estimators: Mapping[str, Estimator], check: OcclusionCheck
) -> dict[str, Prediction]:
    """The flow and occlusion that each model estimates, for a `comparison_panel`."""
    both = {name: estimator(image1, image2) for name, estimator in estimators.items()}
    return {
        name: Prediction(
            flow_fw, check(torch.from_numpy(flow_fw)[None], torch.from_numpy(flow_bw)[None])[0, 0].numpy()
        )
        for name, (flow_fw, flow_bw) in both.items()
    }


class NoMotion:
    """Estimates that nothing moves. Its EPE is the mean motion."""

    run_id: str | None = None

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        flow = np.zeros((2, *image1.shape[:2]), np.float32)
        return flow, flow

    def to(self, device: torch.device) -> None:
        pass


class NetworkEstimator:
    """Estimates with a network."""

    def __init__(self, network: FlowNetwork, run_id: str | None = None) -> None:
        self.run_id = run_id
        self._network = network.eval()
        self._device = torch.device("cpu")

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        ((flow_fw, flow_bw),) = estimate_frames(
            self._network, [image1, image2], self._device, InferenceOptions(), both=True
        )
        assert flow_bw is not None
        return flow_fw[0].cpu().numpy(), flow_bw[0].cpu().numpy()

    def to(self, device: torch.device) -> None:
        self._device = device
        self._network.to(device)
