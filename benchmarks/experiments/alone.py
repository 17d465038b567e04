"""How is a network trained and judged on rendered scenes in this process alone, without a cluster?

The steps are those of a worker, on pairs that are held in memory; on a GPU if there is one.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from benchmarks.experiments.cells import KINDS, TEST_SCENES, TRAINING_SCENES
from benchmarks.inputs import Lesson, true_pair
from flowcore.geometry import upsample_flow
from flowcore.hallucination import Challenge
from flowcore.metrics import FlowErrors, OcclusionCounts, flow_errors, occlusion_counts
from flowcore.networks import FlowNetwork
from flowcore.objectives import Objective, validate_pair
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch, FramePair
from flowcore.pseudolabels import PseudoLabels, pseudo_labels
from flowcore.scenes import Scene, SceneOptions, render_scene
from flowcore.shapes import Mask, to_images
from flowcore.uncertainty import trust
from pipelines.held_back import REFEREE
from pipelines.label_rows import DEFAULT_MAX_SPREAD
from pipelines.step import OptimiserStep
from pipelines.training_options import TrainingOptions

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TEST_PAIRS = 3
"""Of each test scene."""


@cache
def scene(seed: int, options: SceneOptions) -> Scene:
    return render_scene(seed, options)


def true_pairs(kind: str) -> list[FramePair]:
    """Of the training scenes, with their truth as a label."""
    scenes = [scene(seed, KINDS[kind]) for seed in TRAINING_SCENES]
    return [true_pair(each, frame) for each in scenes for frame in range(len(each.occ_fw))]


def unlabelled_pairs(kind: str) -> list[FramePair]:
    """Of the training scenes, without their truth."""
    return [FramePair(image1=each.image1, image2=each.image2) for each in true_pairs(kind)]


@torch.no_grad()
def labelled_pairs(
    kind: str,
    teachers: Sequence[FlowNetwork],
    check: OcclusionCheck | None = None,
    *,
    three_frames: bool = False,
    tolerance: float | None = None,
) -> list[FramePair]:
    """Of the training scenes, with the teachers' flow as a label, trusted where the check finds it visible,
    or where it continues the motion from a third frame, and where the teachers agree.

    tolerance: of the error that the teachers predict, px; None trusts all alike.
    """
    pairs = []
    for seed in TRAINING_SCENES:
        frames = scene(seed, KINDS[kind]).frames
        labels = pseudo_labels(
            teachers, to_images(frames, DEVICE), check or OcclusionCheck(), three_frames=three_frames
        )
        flow_fw, flow_bw = (
            upsample_flow(flow, labels.flow_stride, *frames.shape[1:3]).cpu().numpy()
            for flow in (labels.flow_fw, labels.flow_bw)
        )
        trusted_fw, trusted_bw = (_trusted(labels, way, tolerance) for way in ("fw", "bw"))
        pairs += [
            FramePair(
                image1=frames[at],
                image2=frames[at + 1],
                flow_fw=flow_fw[at],
                flow_bw=flow_bw[at],
                confidence_fw=trusted_fw[at],
                confidence_bw=trusted_bw[at],
            )
            for at in range(len(flow_fw))
        ]
    return pairs


def _trusted(labels: PseudoLabels, way: str, tolerance: float | None) -> Float[ndarray, "pairs height width"]:
    """As `pipelines.label_rows.decode_row` has it."""
    occluded = getattr(labels, f"occ_{way}")
    continued, spread, uncertainty = (
        _every_pixel(getattr(labels, f"{name}_{way}"), labels.flow_stride, *occluded.shape[-2:])
        for name in ("continued", "spread", "uncertainty")
    )
    trusted = ~occluded
    if continued is not None:
        trusted = trusted | continued
    if spread is not None:
        trusted = trusted & (spread < DEFAULT_MAX_SPREAD)
    confidence: ndarray = trusted[:, 0].float().cpu().numpy()
    if tolerance is None:
        return confidence
    assert uncertainty is not None
    weighed: ndarray = confidence * trust(uncertainty[:, 0].cpu().numpy(), tolerance)
    return weighed


def _every_pixel(cells: Tensor | None, stride: int, height: int, width: int) -> Tensor | None:
    if cells is None:
        return None
    pixels = cells.repeat_interleave(stride, dim=-2).repeat_interleave(stride, dim=-1)
    return pixels[..., :height, :width]


def batches(pairs: Sequence[FramePair], challenge: Challenge, options: TrainingOptions) -> Iterator[Batch]:
    """The batch of each step: each pair once an epoch, in a random order."""
    rng = np.random.default_rng(options.seed)
    epochs = (rng.permutation(len(pairs)) for _ in itertools.count())
    order = itertools.chain.from_iterable(epochs)
    for _ in range(options.steps):
        places = list(itertools.islice(order, options.global_batch))
        yield Batch.stack([challenge(pairs[place], rng) for place in places], DEVICE)


def trained(
    network: FlowNetwork,
    pairs: Sequence[FramePair],
    challenge: Challenge,
    objective: Objective,
    check: OcclusionCheck,
    options: TrainingOptions,
) -> FlowNetwork:
    """The network after so many steps, ready for inference."""
    lessons = [Lesson(objective=objective)]
    step = OptimiserStep(network, lessons, check, options, device=DEVICE)
    for batch in batches(pairs, challenge, options):
        step.take([batch])
    if step.skipped:
        raise FloatingPointError(f"{step.skipped} steps were skipped")
    return step.result.ready(DEVICE)


def judged(network: FlowNetwork, kind: str, check: OcclusionCheck) -> dict[str, float]:
    """On the test scenes: endpoint errors (px), outliers, how well the check finds occlusion, and, without
    truth, the errors by which models can be compared (`comparable`, `unmasked`, `photometric`)."""
    errors, counts, sums = FlowErrors(), OcclusionCounts(), dict.fromkeys(_SUMS, 0.0)
    for seed in TEST_SCENES:
        truth = test_scene(seed, kind)
        frames = to_images(truth.frames, DEVICE)
        forward, backward = network.estimate(frames[:-1], frames[1:])
        occluded = torch.from_numpy(truth.occ_fw)[:, None]
        valid = torch.ones_like(occluded)
        errors += flow_errors(forward.cpu(), torch.from_numpy(truth.flow_fw).float(), valid, occluded)
        counts += occlusion_counts(check(forward, backward).cpu(), occluded, valid)
        hidden_fw, hidden_bw = (mask.to(DEVICE) for mask in _hidden(seed, kind))
        pairs = Batch(image1=frames[:-1], image2=frames[1:])
        found = validate_pair(pairs, forward, backward, check, (hidden_fw, hidden_bw))
        sums = {name: total + found[name] for name, total in sums.items()}
    numbers = {name: sums[name] / max(1.0, sums[_COUNTS[name]]) for name in _COUNTS}
    known: dict[str, float | None] = {
        "all": errors.epe["all"],
        "noc": errors.epe["noc"],
        "occ": errors.epe["occ"],
    }
    known |= {"fl": errors.fl, "precision": counts.precision, "recall": counts.recall, "f1": counts.f1}
    return numbers | {key: value for key, value in known.items() if value is not None}


_COUNTS = {"comparable": "shown", "unmasked": "pixels", "photometric": "visible"}
_SUMS = (*_COUNTS, *_COUNTS.values())


def test_scene(seed: int, kind: str) -> Scene:
    return scene(seed, replace(KINDS[kind], num_frames=TEST_PAIRS + 1))


@cache
def _hidden(seed: int, kind: str) -> tuple[Mask, Mask]:
    """The pixels that the referee of validation finds hidden, for every model."""
    frames = to_images(test_scene(seed, kind).frames)
    return OcclusionCheck().both(*REFEREE.build().estimate(frames[:-1], frames[1:]))
