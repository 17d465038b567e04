"""How good is a checkpoint on the pairs that were held back from training?

A task of its own validates each checkpoint that is due while the workers go on. Where the workers have every
GPU, the first of them validates it between two steps: on CPUs a task would take the cores that feed. The
numbers go to MLflow, and with the checkpoint to Ray Train, which passes them to the workers. These wait for
them before the next checkpoint is due, so that no clock decides where training ends.
"""

import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch

from flowcore.drawing import Prediction, comparison_panel
from flowcore.metrics import endpoint_error
from flowcore.networks import ExternalConfig, FlowNetwork
from flowcore.objectives import validate_pair
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch, FramePair
from flowcore.shapes import Mask
from pipelines.checkpoints import load_model
from pipelines.label_rows import decode_occlusion
from pipelines.models import copy_model
from pipelines.pair_set import PairSet
from pipelines.room import num_cores
from pipelines.validation import score_of

REFEREE = ExternalConfig(library="opencv", name="dis_medium")
"""Says which pixels are shown in both frames, the same ones for every model: a network's own check would
decide what it is judged on, and behind an occluder wrong flow may look better than right flow."""
SCORE = "score"
"""The key, beside a validation's numbers, by which Ray Train finds the best checkpoint: `score_of` them."""


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """The pairs that the networks of a training are judged on, as whole frames."""

    pairs: PairSet
    places: pa.Table
    """Rows of the set's index."""
    check: OcclusionCheck
    stage: str
    """The name of the network's flow in pictures."""
    _hidden: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By the number of a pair, the bits of what the referee finds hidden: it takes longer than a GPU for the
    rest, and a worker that validates itself asks for the same pairs again and again."""

    @property
    def digest(self) -> str:
        """Digest of the pairs, and of what is measured on them: two models with the same one can be
        compared."""
        judged = [REFEREE.uri, *sorted(self.places["pair_id"].to_pylist())]
        return hashlib.blake2b("\n".join(judged).encode(), digest_size=16).hexdigest()

    def score(self, model: Path) -> float:
        """`score_of` the model in a folder, on this process's CPU; raises as `load_model`."""
        numbers, _ = self.judge(load_model(model)[0].eval(), torch.device("cpu"))
        score = score_of(numbers)
        return score if math.isfinite(score) else math.inf

    def judge(self, network: FlowNetwork, device: torch.device) -> tuple[dict[str, float], np.ndarray]:
        """(the network's numbers, as means over the pairs; a picture of the first pair)."""
        sums: dict[str, float] = {}
        picture: np.ndarray | None = None
        for number, place in enumerate(self.places.to_pylist()):
            row = self.pairs.read(place)
            pair = self.pairs.decode(row)
            frames = Batch.stack([FramePair(image1=pair.image1, image2=pair.image2)], device)
            flow_fw, flow_bw = network.estimate(frames.image1, frames.image2)
            numbers = validate_pair(frames, flow_fw, flow_bw, self.check, self._hidden_in(number, frames))
            if self.pairs.has_truth:
                numbers |= _errors(pair, flow_fw.cpu())
            for key, value in numbers.items():
                sums[key] = sums.get(key, 0.0) + value
            if picture is None:
                occluded = self.check(flow_fw, flow_bw)[0, 0].cpu().numpy()
                own = Prediction(flow_fw[0].cpu().numpy(), occluded)
                picture = self._picture(row, pair, own)
        assert picture is not None
        means = {key: sums[key] / sums["pairs"] for key in ("occluded", "motion", "flow_variance")}
        means["photometric"] = sums["photometric"] / max(sums["visible"], 1.0)
        means["unmasked"] = sums["unmasked"] / max(sums["pixels"], 1.0)
        means["comparable"] = sums["comparable"] / max(sums["shown"], 1.0)
        if "error" in sums:
            means["epe"] = sums["error"] / max(sums["with_truth"], 1.0)
        return means, picture

    def _hidden_in(self, number: int, frames: Batch) -> tuple[Mask, Mask]:
        """What the referee finds hidden in both frames of a pair."""
        if number not in self._hidden:
            flows = REFEREE.build().estimate(frames.image1, frames.image2)
            masks = torch.stack(OcclusionCheck().both(*flows))
            self._hidden[number] = np.packbits(masks.cpu().numpy())
        shape = (2, 1, 1, *frames.image1.shape[-2:])
        bits = np.unpackbits(self._hidden[number], count=math.prod(shape))
        first, second = torch.from_numpy(bits).view(shape).bool().to(frames.image1.device)
        return first, second

    def _picture(self, row: Mapping[str, Any], pair: FramePair, own: Prediction) -> np.ndarray:
        """The pair with the network's own flow, beside the label or the truth if there is one."""
        predictions: dict[str, Prediction] = {}
        if pair.flow_fw is not None and pair.confidence_fw is not None:
            trusted = pair.confidence_fw > 0
            if self.pairs.has_truth:
                predictions["truth"] = Prediction(pair.flow_fw, trusted=trusted)
            else:
                occluded = decode_occlusion(row)
                predictions["pseudo-label"] = Prediction(pair.flow_fw, occluded, trusted=trusted)
        predictions[self.stage] = own
        return comparison_panel(pair.image1, pair.image2, predictions=predictions)


def _errors(pair: FramePair, flow: torch.Tensor) -> dict[str, float]:
    """The endpoint errors where there is a truth, as a sum and its number of pixels."""
    if pair.flow_fw is None or pair.confidence_fw is None:
        return {}
    known = pair.confidence_fw > 0
    errors = endpoint_error(flow, torch.from_numpy(pair.flow_fw)[None])[0, 0].numpy()
    return {"error": float(errors[known].sum(dtype=np.float64)), "with_truth": float(known.sum())}


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Ray Train's task for a checkpoint of a run."""

    held_back: HeldBack
    tracking_uri: str
    run_id: str

    def __call__(self, checkpoint: ray.train.Checkpoint, step: int) -> dict[str, float]:
        """What `of` gives, of the network in a checkpoint."""
        # Half the node's cores, because others train and read there.
        torch.set_num_threads(max(1, num_cores() // 2))
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        with tempfile.TemporaryDirectory(prefix="distillflow-validation-") as folder:
            copy_model(checkpoint, Path(folder))
            network = load_model(Path(folder))[0]
        return self.of(network.to(device).eval(), device, step)

    def of(self, network: FlowNetwork, device: torch.device, step: int) -> dict[str, float]:
        """The numbers of `HeldBack.judge`, which are also logged with the picture, and SCORE except for fresh
        weights; nothing if the flow isn't finite."""
        numbers, picture = self.held_back.judge(network, device)
        if not all(math.isfinite(value) for value in numbers.values()):
            return {}
        # Imports MLflow, which would cost Ray's other processes a second each: they import this module.
        from pipelines.tracking import Run

        run = Run.reopen(self.tracking_uri, self.run_id)
        run.picture("validation", picture, step)
        run.log(step, {f"validation/{key}": value for key, value in numbers.items()})
        return numbers | ({SCORE: score_of(numbers)} if step else {})
