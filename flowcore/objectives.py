"""What is a network trained for? Objectives take a network and a batch and give loss terms.

A term is a sum over pixels and the number of pixels counted, not their quotient: the training loop adds the
counts of all workers before it divides, so that the loss, and with it the gradient, is that of the global
batch however many workers share it. An empty set gives 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from flowcore.geometry import backward_warp, resize_image, upsample_flow
from flowcore.networks import BidirectionalFlow
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.photometric import census_border, census_distance, robust, smoothness
from flowcore.shapes import Flow, Image, Mask

Estimator = Callable[[Image, Image], BidirectionalFlow]
"""A flow network, or what wraps one for training on several workers."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Frame pairs as a network sees them in training, with the teacher's pseudo-label where there is one."""

    image1: Image
    image2: Image
    flow_fw: Flow | None = None
    """The teacher's flow on the untransformed frames, transformed as the frames were; pixels."""
    flow_bw: Flow | None = None
    occ_fw: Mask | None = None
    """The teacher's occlusion, transformed as the frames were."""
    occ_bw: Mask | None = None


@dataclass(frozen=True, kw_only=True)
class Term:
    """`weight` times `total` / `count`, with total and count summed over all workers first."""

    name: str
    weight: float
    total: Float[Tensor, ""]
    count: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The loss terms of a batch and numbers about it worth watching, as sums over the batch's pairs."""

    terms: list[Term]
    watched: dict[str, Float[Tensor, ""]]


@runtime_checkable
class Objective(Protocol):
    """What the training loop minimises. `masked` is False during the warm-up without the occlusion mask."""

    def __call__(self, estimate: Estimator, batch: Batch, *, masked: bool) -> Outcome: ...


def _masked_term(name: str, weight: float, error: Tensor, counted: Mask) -> Term:
    """The sum of psi(error), any channels, over the counted pixels.

    The others have no gradient, not even where the error is not finite: hence it is masked before psi too.
    """
    nothing = error.new_zeros(())
    penalty = robust(torch.where(counted, error, nothing))
    total = torch.where(counted, penalty, nothing).sum()
    return Term(name=name, weight=weight, total=total, count=counted.sum().to(error.dtype))


def _shrink_mask(mask: Mask, height: int, width: int) -> Bool[Tensor, "batch 1 {height} {width}"]:
    """True where at least half of the pixels under a coarser one are."""
    return functional.interpolate(mask.float(), (height, width), mode="area") >= 0.5


def _mean_where(flow: Flow, mask: Mask, height: int, width: int) -> Float[Tensor, "batch 2 {height} {width}"]:
    """The mean of `flow` over those pixels under a coarser one that are True in `mask`; 0 where none is."""
    share = functional.interpolate(mask.to(flow.dtype), (height, width), mode="area")
    kept = functional.interpolate(torch.where(mask, flow, flow.new_zeros(())), (height, width), mode="area")
    return kept / share.clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True)
class Photometric:
    """The census loss on the pixels that are visible in the other frame, in both directions.

    L_p = sum psi(d(I1, I2 warped by w_f)) (1 - O_f) / sum (1 - O_f), plus the same with the frames' roles
    swapped. Source: DDFlow, "Photometric Loss"; the sum of both directions is not halved.

    Deviation from the paper, which takes the loss on the final full-resolution flow: here each of the
    network's finest levels has its own loss at its own resolution, with frames averaged down to it. From
    random weights the loss on the final flow alone did not learn in 600 steps of a small trial, and full
    resolution costs 16 times the pixels.
    """

    level_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Weight of each level's loss, finest level first; a network's further levels have none."""
    smoothness_weight: float = 0.0
    """Weight of the edge-aware smoothness of the finest level's flow, in that level's pixels; 0 leaves it
    out, as DDFlow and SelFlow do. UFlow has 4.0."""
    smoothness_edge: float = 10.0
    """How much an edge of the frame excuses a change of the flow: 10 in ARFlow, 150 in UFlow."""
    check: ForwardBackwardCheck = field(default_factory=ForwardBackwardCheck)

    def __post_init__(self) -> None:
        if not self.level_weights or min(self.level_weights) < 0:
            raise ValueError(f"level_weights {self.level_weights} must be at least one number, none below 0")
        if self.smoothness_weight < 0:
            raise ValueError(f"smoothness_weight {self.smoothness_weight} must not be below 0")

    def occlusions(self, flows: BidirectionalFlow, height: int, width: int) -> tuple[Mask, Mask]:
        """The network's own check at full resolution, for both frames."""
        forward = upsample_flow(flows.forward[0].detach(), flows.strides[0], height, width)
        backward = upsample_flow(flows.backward[0].detach(), flows.strides[0], height, width)
        return self.check(forward, backward), self.check(backward, forward)

    def terms(
        self,
        batch: Batch,
        flows: BidirectionalFlow,
        occlusions: tuple[Mask, Mask] | None,
    ) -> list[Term]:
        """The loss terms; occlusions None counts every pixel (the warm-up)."""
        terms = []
        for weight, flow_fw, flow_bw, stride in zip(
            self.level_weights, flows.forward, flows.backward, flows.strides, strict=False
        ):
            height, width = flow_fw.shape[-2:]
            image1, image2 = (
                resize_image(batch.image1, height, width),
                resize_image(batch.image2, height, width),
            )
            border = census_border(image1)
            for name, here, there, flow, occluded in (
                ("fw", image1, image2, flow_fw, occlusions and occlusions[0]),
                ("bw", image2, image1, flow_bw, occlusions and occlusions[1]),
            ):
                counted = ~border if occluded is None else ~border & ~_shrink_mask(occluded, height, width)
                distance = census_distance(here, backward_warp(there, flow / stride))
                terms.append(_masked_term(f"photometric/stride{stride}/{name}", weight, distance, counted))
        return terms + self._smoothness_terms(batch, flows)

    def _smoothness_terms(self, batch: Batch, flows: BidirectionalFlow) -> list[Term]:
        """Means over the batch's pairs, of both directions."""
        if self.smoothness_weight == 0:
            return []
        terms = []
        for name, image, flow in (
            ("fw", batch.image1, flows.forward[0]),
            ("bw", batch.image2, flows.backward[0]),
        ):
            value = smoothness(
                flow / flows.strides[0], resize_image(image, *flow.shape[-2:]), self.smoothness_edge
            )
            pairs = value.new_tensor(float(len(flow)))
            terms.append(
                Term(
                    name=f"smoothness/{name}",
                    weight=self.smoothness_weight,
                    total=value * pairs,
                    count=pairs,
                )
            )
        return terms


def _watched(flows: BidirectionalFlow, occlusions: tuple[Mask, Mask]) -> dict[str, Tensor]:
    """Per pair, summed over the batch: what tells a collapse from progress."""
    occ_fw, occ_bw = occlusions
    flow = flows.forward[0].detach()
    return {
        "occluded": (occ_fw.float().mean(dim=(1, 2, 3)) + occ_bw.float().mean(dim=(1, 2, 3))).sum() / 2,
        "motion": flow.norm(dim=1).mean(dim=(1, 2)).sum(),
        "flow_variance": flow.var(dim=(2, 3)).mean(dim=1).sum(),
    }


@dataclass(frozen=True, kw_only=True)
class TeacherObjective:
    """Stage 1: the photometric loss on non-occluded pixels alone, without labels.

    Source: DDFlow, "Photometric Loss".
    """

    photometric: Photometric = field(default_factory=Photometric)

    def __call__(self, estimate: Estimator, batch: Batch, *, masked: bool) -> Outcome:
        flows = estimate(batch.image1, batch.image2)
        occlusions = self.photometric.occlusions(flows, *batch.image1.shape[-2:])
        terms = self.photometric.terms(batch, flows, occlusions if masked else None)
        return Outcome(terms=terms, watched=_watched(flows, occlusions))


@dataclass(frozen=True, kw_only=True)
class OcclusionViewObjective:
    """Stage 2, occlusion view: non-occluded pixels learn from the frames, hallucinated ones from the teacher.

    hallucinated M_f = O~_f and not T(O_f): occluded for the student, whose check O~ sees only the transformed
    frames, and visible for the teacher. L_o = sum psi(T(w_f) - w~_f) M_f / sum M_f, plus backward, psi summed
    over u and v. Total = L_p masked by O~ + L_o, 1:1.
    Source: DDFlow, "Loss for Occluded Pixels"; DistillFlow's first variant. Taken level by level as the
    photometric loss is; a level's label is the mean over its hallucinated pixels alone.
    """

    photometric: Photometric = field(default_factory=Photometric)
    distillation_weight: float = 1.0

    def __call__(self, estimate: Estimator, batch: Batch, *, masked: bool = True) -> Outcome:
        if batch.flow_fw is None or batch.flow_bw is None or batch.occ_fw is None or batch.occ_bw is None:
            raise ValueError("the student's objective needs pseudo-labels; this batch has none")
        flows = estimate(batch.image1, batch.image2)
        occlusions = self.photometric.occlusions(flows, *batch.image1.shape[-2:])
        terms = self.photometric.terms(batch, flows, occlusions if masked else None)
        hallucinated_fw = occlusions[0] & ~batch.occ_fw
        hallucinated_bw = occlusions[1] & ~batch.occ_bw
        for level_weight, flow_fw, flow_bw, stride in zip(
            self.photometric.level_weights, flows.forward, flows.backward, flows.strides, strict=False
        ):
            height, width = flow_fw.shape[-2:]
            weight = level_weight * self.distillation_weight
            for name, flow, label, hallucinated in (
                ("fw", flow_fw, batch.flow_fw, hallucinated_fw),
                ("bw", flow_bw, batch.flow_bw, hallucinated_bw),
            ):
                difference = _mean_where(label, hallucinated, height, width) - flow
                counted = _shrink_mask(hallucinated, height, width)
                terms.append(_masked_term(f"distillation/stride{stride}/{name}", weight, difference, counted))
        share = (
            hallucinated_fw.float().mean(dim=(1, 2, 3)) + hallucinated_bw.float().mean(dim=(1, 2, 3))
        ).sum() / 2
        return Outcome(terms=terms, watched={**_watched(flows, occlusions), "hallucinated": share})


@torch.no_grad()
def validate_pair(
    image1: Image, image2: Image, flow_fw: Flow, flow_bw: Flow, check: ForwardBackwardCheck
) -> dict[str, float]:
    """Numbers about full-resolution flow that need no truth, as sums: divide by `visible` and `pairs`.

    photometric: psi of the census distance over visible pixels of both directions, and visible their number.
    occluded, motion and flow_variance: per pair, of the forward flow's share of occluded pixels, mean length
    in pixels and variance.
    """
    sums = {"photometric": 0.0, "visible": 0.0}
    border = census_border(image1)
    occ_fw, occ_bw = check(flow_fw, flow_bw), check(flow_bw, flow_fw)
    for here, there, flow, occluded in (
        (image1, image2, flow_fw, occ_fw),
        (image2, image1, flow_bw, occ_bw),
    ):
        visible = ~border & ~occluded
        error = robust(census_distance(here, backward_warp(there, flow)))
        sums["photometric"] += float(error[visible].sum(dtype=torch.float64))
        sums["visible"] += float(visible.sum())
    return {
        **sums,
        "pairs": float(len(image1)),
        "occluded": float(occ_fw.float().mean(dim=(1, 2, 3)).sum()),
        "motion": float(flow_fw.norm(dim=1).mean(dim=(1, 2)).sum()),
        "flow_variance": float(flow_fw.var(dim=(2, 3)).mean(dim=1).sum()),
    }
