"""What is a network trained for? An objective asks it for the flow of a batch, which gives loss terms."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from flowcore.geometry import backward_warp, squared_length, upsample_flow
from flowcore.losses import (
    Photometric,
    Term,
    graded_levels,
    label_terms,
    require_level_weights,
    weighted_term,
)
from flowcore.networks import BidirectionalFlow, Estimator
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch, directions
from flowcore.photometric import census_border, census_distance, robust
from flowcore.self_supervision import SelfSupervision
from flowcore.shapes import Flow, Mask
from flowcore.uncertainty import scale_terms


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The loss terms of a batch and numbers about it worth watching, as sums over the batch's pairs."""

    terms: list[Term]
    watched: dict[str, Float[Tensor, ""]]

    def __add__(self, other: "Outcome") -> "Outcome":
        """The outcome of both batches together, which were asked the same."""
        terms = [
            replace(one, total=one.total + two.total, count=one.count + two.count)
            for one, two in zip(self.terms, other.terms, strict=True)
        ]
        watched = {name: value + other.watched[name] for name, value in self.watched.items()}
        return Outcome(terms=terms, watched=watched)


@runtime_checkable
class Objective(Protocol):
    """What the training loop minimises."""

    @property
    def unmasked_steps(self) -> int:
        """How many steps come before the occlusion mask applies; 0 for an objective that has no mask."""

    def phase(self, step: int) -> Hashable:
        """What the loss is made of at an optimiser step: the same arithmetic as long as it stays the same."""

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        """The outcome at an optimiser step, counted from 0; `check` says which pixels are occluded."""


def _occlusions(
    flows: BidirectionalFlow, check: OcclusionCheck, height: int, width: int
) -> tuple[Mask, Mask]:
    """What the check finds in a network's own flow at full resolution, for both frames."""
    forward = upsample_flow(flows.forward[0].detach(), flows.strides[0], height, width)
    backward = upsample_flow(flows.backward[0].detach(), flows.strides[0], height, width)
    return check.both(forward, backward)


def _watched(flows: BidirectionalFlow, occlusions: tuple[Mask, Mask]) -> dict[str, Tensor]:
    """Per pair, summed over the batch: what tells a collapse from progress."""
    occ_fw, occ_bw = occlusions
    flow = flows.forward[0].detach()
    return {
        "occluded": (occ_fw.float().mean(dim=(1, 2, 3)) + occ_bw.float().mean(dim=(1, 2, 3))).sum() / 2,
        "motion": flow.norm(dim=1).mean(dim=(1, 2)).sum(),
        "flow_variance": flow.var(dim=(2, 3)).mean(dim=1).sum(),
    }


def _require_steps(unmasked_steps: int) -> None:
    if unmasked_steps < 0:
        raise ValueError(f"unmasked_steps {unmasked_steps} must not be below 0")


@dataclass(frozen=True, kw_only=True)
class TeacherObjective:
    """Stage 1: the photometric loss on non-occluded pixels alone, without labels.

    A predicted scale of the flow's error is learnt from how far the flow of a crop is from that of the scene
    around it; see `flowcore.self_supervision`. Source: DDFlow, "Photometric Loss".
    """

    photometric: Photometric = field(default_factory=Photometric)
    unmasked_steps: int = 0
    """Optimiser steps at the start that count occluded pixels too. From random weights the check can find
    every pixel occluded; the masked loss is then empty, and the network never leaves that state. Give fresh
    weights about a third of the steps."""
    self_supervision: SelfSupervision = field(default_factory=SelfSupervision)
    """The network as the teacher of its own crops."""

    def __post_init__(self) -> None:
        _require_steps(self.unmasked_steps)

    def phase(self, step: int) -> Hashable:
        teaching = self.self_supervision
        return step >= self.unmasked_steps, step >= teaching.begins, teaching.share(step)

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        flows = estimate(batch.image1, batch.image2)
        size = batch.image1.shape[-2:]
        graded = self.photometric.graded(flows, *size)
        occlusions = _occlusions(graded, check, *size)
        masked = step >= self.unmasked_steps
        terms = self.photometric.terms(batch, graded, occlusions if masked else None)
        terms += self.photometric.smoothness_terms(batch, flows)
        levels = self.photometric.levels(graded)
        terms += self.self_supervision.terms(estimate, batch, graded, levels, step)
        return Outcome(terms=terms, watched=_watched(flows, occlusions))


@dataclass(frozen=True, kw_only=True)
class StudentObjective:
    """Stage 2: what the student learns from the frames and from the teacher's confident flow.

    Occlusion view: non-occluded pixels learn from the frames, hallucinated ones from the teacher, and those
    that were already occluded for the teacher from neither. hallucinated M_f = clip(O~_f - T(O_f), 0, 1), for
    the student's own check O~ on the transformed frames; with C = 1 - T(O) that is O~ C.
    L_o = sum psi(T(w_f) - w~_f) M_f / sum M_f, plus backward, psi summed over u and v. Total = L_p masked by
    O~ + L_o, 1:1. Source: DDFlow, "Loss for Occluded Pixels"; DistillFlow's first variant.

    Confidence view: all confident pixels learn from the teacher, with C in place of M. Source: Flow2Stereo,
    whose student has no other loss; DistillFlow's second variant. Whether L_p stays is an option.

    A predicted scale of the student's error is learnt from its distance to every confident label, in both
    views; see `flowcore.uncertainty.scale_terms`.

    Taken level by level as the photometric loss is, the final flow at full resolution as in the papers; the
    label of a coarser level, a deviation, is the mean over its labelled pixels alone. A recurrent network has
    the sequence loss of both, over all its iterations.
    """

    view: Literal["occlusion", "confidence"] = "occlusion"
    """Which pixels learn from the teacher: those that the transformation hid (occlusion), or all that it is
    confident of (confidence). Take confidence if the teacher is better than the frames teach, as a classical
    one is."""
    photometric: Photometric = field(default_factory=Photometric)
    photometric_weight: float | None = None
    """Weight of the photometric loss. `none` means 1 in the occlusion view and 0 in the confidence view.
    Raise it if the student should correct its teacher on visible pixels."""
    distillation_weight: float = 1.0
    """Weight of the distance to the teacher's flow. 0 learns from the frames alone. Raise it if the teacher
    is good on occluded pixels."""
    unmasked_steps: int = 0
    """Optimiser steps at the start whose photometric loss also counts occluded pixels. Leave at 0 if the
    student starts from its teacher's weights; with --init fresh, give about a third of the steps."""

    def __post_init__(self) -> None:
        _require_steps(self.unmasked_steps)
        if (self.photometric_weight or 0) < 0 or self.distillation_weight < 0:
            raise ValueError(
                f"photometric_weight {self.photometric_weight} and distillation_weight "
                f"{self.distillation_weight} must not be below 0"
            )

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        if (
            batch.flow_fw is None
            or batch.flow_bw is None
            or batch.confidence_fw is None
            or batch.confidence_bw is None
        ):
            raise ValueError("the student's objective needs pseudo-labels; this batch has none")
        flows = estimate(batch.image1, batch.image2)
        size = batch.image1.shape[-2:]
        graded = self.photometric.graded(flows, *size)
        occ_fw, occ_bw = _occlusions(graded, check, *size)
        # With a weight of its own, and so in the confidence view too.
        terms = self.photometric.smoothness_terms(batch, flows)
        if weight := self._photometric_weight:
            masked = step >= self.unmasked_steps
            photometric = self.photometric.terms(batch, graded, (occ_fw, occ_bw) if masked else None)
            terms += [replace(term, weight=weight * term.weight) for term in photometric]
        terms += scale_terms(batch, flows)
        hallucinated_fw, hallucinated_bw = occ_fw * batch.confidence_fw, occ_bw * batch.confidence_bw
        if self.view == "occlusion":
            batch = replace(batch, confidence_fw=hallucinated_fw, confidence_bw=hallucinated_bw)
        weight, levels = self.distillation_weight, self.photometric.levels(graded)
        terms += label_terms("distillation", weight, batch, graded, levels)
        share = (hallucinated_fw.mean(dim=(1, 2, 3)) + hallucinated_bw.mean(dim=(1, 2, 3))).sum() / 2
        return Outcome(terms=terms, watched={**_watched(flows, (occ_fw, occ_bw)), "hallucinated": share})

    def phase(self, step: int) -> Hashable:
        return step >= self.unmasked_steps

    @property
    def learns_from_frames(self) -> bool:
        """Whether visible pixels teach, so that nothing is learnt where the check finds none."""
        return self._photometric_weight > 0

    @property
    def _photometric_weight(self) -> float:
        if self.photometric_weight is None:
            return 1.0 if self.view == "occlusion" else 0.0
        return self.photometric_weight


@dataclass(frozen=True, kw_only=True)
class SupervisedObjective:
    """Fine-tuning: the network's flow against the truth, at full resolution, on the pixels that have one.

    sum psi(w_gt - w) V / sum V, psi summed over u and v; of each level, upsampled, or of each iteration: the
    sequence loss. Source: SelFlow, "Supervised Fine-tuning", which takes the final flow alone:
    `level_weights` of (1,) do so. RAFT (Teed and Deng, ECCV 2020) has |.| in place of psi and leaves out
    motion of 400 px and more: `penalty`, `max_flow`. A deviation: RAFT's code takes the mean over all pixels,
    u and v, so that its loss of a sparse truth is smaller; here V is all that counts.
    """

    penalty: Literal["robust", "l1"] = "robust"
    """How an error in u or v counts: robust counts a large one less than many small ones, l1 by its length.
    Take l1 if the truth has no mistakes."""
    max_flow: float | None = None
    """Leave out pixels whose true motion is this many pixels or longer. `none` leaves out none. Published:
    400."""

    level_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Weight of each level's loss, finest level first; a network's further levels have none. RAFT has
    `sequence_gamma` instead."""
    sequence_gamma: float = 0.8
    """Weight of the loss of each of RAFT's iterations, as a share of the next one's; the last weighs 1."""
    unmasked_steps: ClassVar[int] = 0
    """No pixel is masked: an occluded pixel has a true flow too."""

    def __post_init__(self) -> None:
        require_level_weights(self.level_weights, self.sequence_gamma)
        if self.max_flow is not None and not self.max_flow > 0:
            raise ValueError(f"max_flow {self.max_flow} must be above 0 px, or none")

    def phase(self, step: int) -> Hashable:
        return None

    def __call__(self, estimate: Estimator, batch: Batch, *, step: int, check: OcclusionCheck) -> Outcome:
        if batch.flow_fw is None or batch.confidence_fw is None:
            raise ValueError("the supervised objective needs true flow; this batch has none")
        flows = estimate(batch.image1, batch.image2)
        height, width = batch.image1.shape[-2:]
        levels = graded_levels(flows, self.level_weights, self.sequence_gamma)
        penalty = robust if self.penalty == "robust" else torch.abs
        terms = []
        for (name, truth), (_, mine) in zip(directions(batch), directions(flows), strict=True):
            if truth.flow_fw is None or truth.confidence_fw is None:
                continue
            weights = truth.confidence_fw
            if self.max_flow is not None:
                weights = weights * (squared_length(truth.flow_fw) < self.max_flow**2)
            for (level_name, weight), flow, stride in zip(levels, mine.forward, mine.strides, strict=False):
                error = truth.flow_fw - upsample_flow(flow, stride, height, width)
                term_name = f"supervised/{level_name}/{name}"
                terms.append(weighted_term(term_name, weight, error, weights, penalty))
        terms += scale_terms(batch, flows)
        return Outcome(terms=terms, watched=_watched(flows, _occlusions(flows, check, height, width)))


@torch.no_grad()
def validate_pair(
    frames: Batch,
    flow_fw: Flow,
    flow_bw: Flow,
    check: OcclusionCheck,
    hidden: tuple[Mask, Mask] | None = None,
) -> dict[str, float]:
    """Numbers about full-resolution flow that need no truth, as sums: divide by `visible`, `pixels`, `shown`
    and `pairs`.

    photometric: psi of the census distance over the visible pixels of both directions; visible: how many.
    unmasked: the same over all pixels but the border; pixels: how many. A flow that the check finds occluded
    everywhere has no visible pixel to be wrong on.
    comparable: the same over the pixels that aren't `hidden`, which doesn't depend on the flow; shown: how
    many. None hides nothing.
    occluded, motion, flow_variance: per pair, of the forward flow, the share of occluded pixels, the mean
    length in pixels, and the variance.
    """
    sums = dict.fromkeys(("photometric", "visible", "unmasked", "pixels", "comparable", "shown"), 0.0)
    border = census_border(frames.image1)
    occ_fw, occ_bw = check.both(flow_fw, flow_bw)
    hidden_fw, hidden_bw = (border, border) if hidden is None else hidden
    for way, flow, occluded, never in (
        (frames, flow_fw, occ_fw, hidden_fw),
        (frames.reversed(), flow_bw, occ_bw, hidden_bw),
    ):
        error = robust(census_distance(way.image1, backward_warp(way.image2, flow)))
        for error_name, count_name, counted in (
            ("photometric", "visible", ~border & ~occluded),
            ("unmasked", "pixels", ~border),
            ("comparable", "shown", ~border & ~never),
        ):
            sums[error_name] += float(error[counted].sum(dtype=torch.float64))
            sums[count_name] += float(counted.sum())
    return {
        **sums,
        "pairs": float(len(frames.image1)),
        "occluded": float(occ_fw.float().mean(dim=(1, 2, 3)).sum()),
        "motion": float(flow_fw.norm(dim=1).mean(dim=(1, 2)).sum()),
        "flow_variance": float(flow_fw.var(dim=(2, 3)).mean(dim=1).sum()),
    }
