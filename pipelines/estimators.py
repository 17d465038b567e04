"""What can estimate the flow of two frames? Any model that can be named, or `zero`, the claim that nothing
moves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from flowcore.drawing import Prediction
from flowcore.inference import InferenceOptions, estimate_frames, estimate_scaled
from flowcore.networks import FlowNetwork
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import Merge, merged
from flowcore.shapes import FlowArray, Frame
from pipelines.checkpoints import load_model
from pipelines.models import absolute_model, fetch_model

ZERO = "zero"
"""The name of the model that predicts no motion."""
_AS_IT_IS = InferenceOptions()


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimated:
    """The flow between two frames, in pixels, and what the model itself tells of its error."""

    flow_fw: FlowArray
    flow_bw: FlowArray
    uncertainty: Mapping[str, Float[ndarray, "height width"]] = field(default_factory=dict)
    """Of `flow_fw`, in pixels: `predicted` by the network, `spread` of several models."""


class Estimator(Protocol):
    """Estimates flow from two frames; can be sent to another process."""

    run_id: str | None
    """The MLflow run that made it; None where no run is known."""

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        """The flow from image1 to image2 and back, in pixels."""

    def estimated(self, image1: Frame, image2: Frame) -> Estimated:
        """The same, with what the model tells of its error."""

    def to(self, device: torch.device) -> None:
        """Computes on this device from now on, if it can."""


def absolute_estimator(model: str, option: str) -> str:
    """What `load_estimator` takes, with a path made absolute as `models.absolute_model` does."""
    return model if model == ZERO else absolute_model(model, option)


def load_estimator(model: str, options: InferenceOptions = _AS_IT_IS) -> Estimator:
    """The estimator that a model's URI for `fetch_model` names, or `zero`, which has no options; ValueError
    for options that the network doesn't have."""
    if model == ZERO:
        return NoMotion()
    network, info = load_model(fetch_model(model))
    options.apply(network)
    return NetworkEstimator(network, info.run_id, options)


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

    def estimated(self, image1: Frame, image2: Frame) -> Estimated:
        flow_fw, flow_bw = self(image1, image2)
        return Estimated(flow_fw=flow_fw, flow_bw=flow_bw)

    def to(self, device: torch.device) -> None:
        pass


class Together:
    """Estimates as several teachers label."""

    run_id: str | None = None

    def __init__(self, estimators: Sequence[Estimator], merge: Merge, check: OcclusionCheck) -> None:
        self._estimators = estimators
        self._merge: Merge = merge
        self._check = check

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        both = self.estimated(image1, image2)
        return both.flow_fw, both.flow_bw

    def estimated(self, image1: Frame, image2: Frame) -> Estimated:
        flows = [torch.from_numpy(np.stack(each(image1, image2))) for each in self._estimators]
        height, width = image1.shape[:2]
        label = merged(flows, 1, height, width, self._check, self._merge)
        flow_fw, flow_bw = label.flow.numpy()
        spread = {} if label.spread is None else {"spread": label.spread[0, 0].numpy()}
        return Estimated(flow_fw=flow_fw, flow_bw=flow_bw, uncertainty=spread)

    def to(self, device: torch.device) -> None:
        for estimator in self._estimators:
            estimator.to(device)


class NetworkEstimator:
    """Estimates with a network."""

    def __init__(
        self, network: FlowNetwork, run_id: str | None = None, options: InferenceOptions = _AS_IT_IS
    ) -> None:
        self.run_id = run_id
        self._network = network.eval()
        self._options = options
        self._device = torch.device("cpu")

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        ((flow_fw, flow_bw),) = estimate_frames(
            self._network, [image1, image2], self._device, self._options, both=True
        )
        assert flow_bw is not None
        return flow_fw[0].cpu().numpy(), flow_bw[0].cpu().numpy()

    def estimated(self, image1: Frame, image2: Frame) -> Estimated:
        if not self._network.predicts_scale:
            flow_fw, flow_bw = self(image1, image2)
            return Estimated(flow_fw=flow_fw, flow_bw=flow_bw)
        ((there, back, scale),) = estimate_scaled(
            self._network, [image1, image2], self._device, self._options, both=True
        )
        assert back is not None
        return Estimated(
            flow_fw=there[0].cpu().numpy(),
            flow_bw=back[0].cpu().numpy(),
            uncertainty={"predicted": scale[0, 0].cpu().numpy()},
        )

    def to(self, device: torch.device) -> None:
        self._device = device
        self._network.to(device)
