"""How far does a network expect its flow to be off, how is that learnt, and how is it stored?

A network with `uncertainty` gives each vector a scale b, in pixels: its error is taken to be as probable as
exp(-error / b) / b says (Laplace), so that b is the error that is expected. It learns b from a distance that
needs no truth: of its flow to that of the same scene seen whole, to a label, or to the truth where there is
one.

Source: U2Flow (CVPR 2026), which learns a Laplace scale beside the flow from how far it moves under
augmentation. Deviations: the flow learns nothing from the likelihood, so that being unsure is no way out of
being right; b is of the vector's length and not of u and v each, so that it compares with the EPE.
"""

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from flowcore.geometry import squared_length, upsample_flow, upsample_values
from flowcore.losses import Term
from flowcore.networks import BidirectionalFlow
from flowcore.networks.interface import LogScale
from flowcore.pairs import Batch, directions

LEAST = 1 / 64
"""Pixels: a smaller error counts as this, so that no scale is worth being smaller. A label is stored to
within half of it."""
_STEPS = 8
"""Codes to a factor of 2, so that they stand for any length within 4.5 %, up to more than a frame has."""
_LAST = 255


def scale_terms(labels: Batch, flows: BidirectionalFlow) -> list[Term]:
    """How unlikely the distance of the finest flow to the batch's labels is under the predicted scale,
    weighted by their confidence, in each direction that has labels; nothing of a network that predicts none.

    L_b = sum (d / b + log b) C / sum C, with d = max(|w_label - w|, 1/64 px), at full resolution. It is
    smallest where b is the mean of d. The flow w has no gradient. The term's weight is always 1, as nothing
    else learns from it.
    """
    if flows.log_scale_fw is None:
        return []
    terms = []
    for (name, label), (_, mine) in zip(directions(labels), directions(flows), strict=True):
        if label.flow_fw is None or label.confidence_fw is None:
            continue
        assert mine.log_scale_fw is not None
        height, width = label.flow_fw.shape[-2:]
        flow = upsample_flow(mine.forward[0].detach().float(), mine.strides[0], height, width)
        log_scale = upsample_values(mine.log_scale_fw, mine.strides[0], height, width)
        weights = label.confidence_fw
        # Pixels of weight 0 have no gradient, not even where the label is not finite.
        counted = weights > 0
        missed = torch.where(counted, label.flow_fw - flow, flow.new_zeros(()))
        distance = squared_length(missed).sqrt().clamp(min=LEAST)
        cost = distance * torch.exp(-log_scale) + log_scale
        total = (torch.where(counted, cost, cost.new_zeros(())) * weights).sum()
        terms.append(Term(name=f"uncertainty/{name}", weight=1.0, total=total, count=weights.sum()))
    return terms


def without_labels(batch: Batch) -> Batch:
    """The batch with labels that count nowhere: what a scale head has to learn nothing from, yet."""
    flow, weights = torch.zeros_like(batch.image1[:, :2]), torch.zeros_like(batch.image1[:, :1])
    return Batch(
        image1=batch.image1,
        image2=batch.image2,
        flow_fw=flow,
        flow_bw=flow,
        confidence_fw=weights,
        confidence_bw=weights,
    )


def scales_of(flows: BidirectionalFlow) -> list[LogScale]:
    """The scales of both directions on the flow's grid, in pixels; none of a network that doesn't predict
    them."""
    known = (each for each in (flows.log_scale_fw, flows.log_scale_bw) if each is not None)
    return [each.float().exp() for each in known]


def scale_codes(scale: Float[Tensor, "*shape"]) -> UInt8[ndarray, "*shape"]:
    """Scales in pixels as bytes: code c stands for 2^(c / 8) / 64 px, code 0 for smaller ones too. ValueError
    for one that isn't a number."""
    if scale.isnan().any():
        raise ValueError("a predicted scale must be a number: the network that gave it has diverged")
    codes = (_STEPS * torch.log2(scale / LEAST)).round().clamp(0, _LAST)
    found: ndarray = codes.to(torch.uint8).cpu().numpy()
    return found


def scales_of_codes(codes: UInt8[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """What `scale_codes` stored, in pixels."""
    scale: ndarray = (torch.exp2(torch.tensor(codes).float() / _STEPS) * LEAST).numpy()
    return scale


def trust(scale: Float[ndarray, "*shape"], tolerance: float) -> Float[ndarray, "*shape"]:
    """How much a label counts whose error is expected to be `scale`: exp(-b / tolerance), both in pixels.
    0 where the scale is infinite."""
    weights: ndarray = torch.exp(-torch.from_numpy(scale) / tolerance).numpy()
    return weights
