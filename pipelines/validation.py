"""How good is a network while it trains? Judged on pairs that it doesn't learn from, beside the training.

Each checkpoint that is due is validated by a task of its own, while the workers go on; what it finds goes to
MLflow and, with the checkpoint, to Ray Train, which tells the workers. They wait for it before the next one
is due, so that where training ends depends on no clock.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch

from flowcore.drawing import Prediction, comparison_panel
from flowcore.metrics import endpoint_error
from flowcore.networks import FlowNetwork
from flowcore.objectives import validate_pair
from flowcore.occlusion import ForwardBackwardCheck
from pipelines.checkpoints import copy_model, load_model
from pipelines.feed import to_batch
from pipelines.labels import decode_occlusion
from pipelines.pair_set import PairSet

SCORE = "score"
"""Beside a validation's numbers: what Ray Train chooses the best checkpoint by, see `score_of`."""


class TrainingStopped(RuntimeError):  # noqa: N818 - not every stop is an error of the program
    """Training ended before its last step because going on is useless; the message names the remedy."""


@dataclass(frozen=True, kw_only=True)
class CollapseAlarm:
    """Stops a training that has settled on a useless answer. Watched at each validation, after the unmasked
    steps."""

    max_occluded: float = 0.95
    """The mean occluded share of frames above which nothing is left to learn from."""
    min_flow_variance: float = 1e-5
    """Squared pixels; below it the flow is the same everywhere."""
    must_improve: bool = True
    """Whether fresh weights that have not become better than they were are a reason to stop."""

    def check(self, validation: Mapping[str, float], first: Mapping[str, float] | None) -> None:
        """Raises TrainingStopped; `first` is the validation of the fresh weights, None where training went on
        from a trained network."""
        if validation["occluded"] > self.max_occluded:
            raise TrainingStopped(
                f"collapsed: the check finds {validation['occluded']:.0%} of the held-back frames occluded, "
                "so the masked loss is empty; "
                "train longer without the mask (unmasked_steps) or with a lower learning_rate"
            )
        if validation["flow_variance"] < self.min_flow_variance:
            raise TrainingStopped(
                "collapsed: the flow is the same everywhere "
                f"(variance {validation['flow_variance']:.1e} px^2); "
                "lower learning_rate, or check that the videos move"
            )
        # over all pixels: to fresh weights the check may leave none
        if self.must_improve and first is not None and validation["unmasked"] >= first["unmasked"]:
            raise TrainingStopped(
                f"not learning: the photometric error on held-back pairs is {validation['unmasked']:.3f}, "
                f"and was {first['unmasked']:.3f} with fresh weights; lower learning_rate or train longer "
                "without the mask (unmasked_steps)"
            )


def score_of(validation: Mapping[str, float]) -> float:
    """What models are compared by, lower is better: the error on the held-back pairs where those have truth,
    else the photometric error of all pixels, as that of the visible ones is 0 for a model that finds nothing
    visible."""
    return validation["epe"] if "epe" in validation else validation["unmasked"]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Of the checkpoints of one training; a task for Ray."""

    stage: str
    pairs: PairSet
    held_back: pa.Table
    """Rows of the set's index: the pairs to judge on, whole frames."""
    tracking_uri: str
    run_id: str

    @property
    def digest(self) -> str:
        """Of the held-back pairs: two models judged on the same ones can be compared."""
        pair_ids = "\n".join(sorted(self.held_back["pair_id"].to_pylist()))
        return hashlib.blake2b(pair_ids.encode(), digest_size=16).hexdigest()

    def score(self, model: Path) -> float:
        """`score_of` the model in a folder, judged in this process; raises as `load_model`."""
        score = score_of(self._judge(load_model(model)[0].eval(), torch.device("cpu"))[0])
        return score if math.isfinite(score) else math.inf

    def __call__(self, checkpoint: ray.train.Checkpoint, step: int) -> dict[str, float]:
        """Means over the held-back pairs, which also are logged, with a picture of the first pair, and
        SCORE but for fresh weights; nothing where the flow isn't finite."""
        # Half the node's cores, as others train and read there.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        with tempfile.TemporaryDirectory(prefix="distillflow-validation-") as folder:
            copy_model(checkpoint, Path(folder))
            network = load_model(Path(folder))[0].to(device).eval()
        means, picture = self._judge(network, device)
        if not all(math.isfinite(value) for value in means.values()):
            return {}
        # Brings MLflow, which would cost Ray's other processes a second each: they import this module.
        from pipelines.tracking import Run

        run = Run.reopen(self.tracking_uri, self.run_id)
        run.picture("validation", picture, step)
        run.log(step, {f"validation/{key}": value for key, value in means.items()})
        return means | ({SCORE: score_of(means)} if step else {})

    def _judge(self, network: FlowNetwork, device: torch.device) -> tuple[dict[str, float], np.ndarray]:
        sums: dict[str, float] = {}
        picture: np.ndarray | None = None
        check = ForwardBackwardCheck()
        for place in self.held_back.to_pylist():
            row = self.pairs.read(place)
            pair = self.pairs.decode(row)
            frames = to_batch({"image1": pair.image1[None], "image2": pair.image2[None]}, device)
            flow_fw, flow_bw = network.estimate(frames.image1, frames.image2)
            numbers = validate_pair(frames.image1, frames.image2, flow_fw, flow_bw, check)
            label: dict[str, Prediction] = {}
            if pair.flow_fw is not None and pair.confidence_fw is not None:
                known = pair.confidence_fw > 0
                if not self.pairs.has_truth:
                    label = {"pseudo-label": Prediction(pair.flow_fw, decode_occlusion(row), trusted=known)}
                else:
                    label = {"truth": Prediction(pair.flow_fw, trusted=known)}
                    errors = endpoint_error(flow_fw.cpu(), torch.from_numpy(pair.flow_fw)[None])[0, 0].numpy()
                    numbers["error"] = float(errors[known].sum(dtype=np.float64))
                    numbers["with_truth"] = float(known.sum())
            for key, value in numbers.items():
                sums[key] = sums.get(key, 0.0) + value
            if picture is None:
                occluded = check(flow_fw, flow_bw)[0, 0].cpu().numpy()
                mine = Prediction(flow_fw[0].cpu().numpy(), occluded)
                picture = comparison_panel(pair.image1, pair.image2, predictions={**label, self.stage: mine})
        assert picture is not None
        means = {key: sums[key] / sums["pairs"] for key in ("occluded", "motion", "flow_variance")}
        means["photometric"] = sums["photometric"] / max(sums["visible"], 1.0)
        means["unmasked"] = sums["unmasked"] / max(sums["pixels"], 1.0)
        if "error" in sums:
            means["epe"] = sums["error"] / max(sums["with_truth"], 1.0)
        return means, picture
