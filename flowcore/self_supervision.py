"""How is a network its own teacher, in the same training? It sees the whole scene where it learns of a crop.

Its flow of the clean frames, with what lies around the crop, is the label of the crop: what leaves the crop
is hidden there and was seen here. Distillation, without a set of labels between. A network that predicts how
far its flow is off learns that from the same distance.

Source: UFlow (Jonschkowski et al., ECCV 2020) and SMURF (Stone et al., CVPR 2021), "Self-supervision".
Deviations: the label keeps the crop's resolution, where SMURF resizes it, and the ramp has ten stairs.
"""

from dataclasses import dataclass, replace

import torch

from flowcore.geometry import centred, pad_to_multiple, upsample_flow
from flowcore.losses import Term, label_terms
from flowcore.networks import BidirectionalFlow, Estimator
from flowcore.occlusion import agreement
from flowcore.pairs import Batch
from flowcore.uncertainty import scale_terms, without_labels

_STAIRS = 10
"""Of the ramp. Each is a phase of its own, which a GPU's steps are recorded anew for."""
_TEACHER_SIGMA, _STUDENT_SIGMA = 0.003, 0.03
"""SMURF's: how strict the masks are; see `agreement`."""
_MULTIPLE = 64
"""Of the sides that every network takes, in pixels."""


@dataclass(frozen=True, kw_only=True)
class SelfSupervision:
    """The distance of the network's flow of a crop to its own flow of the frames around the crop.

    L_s = sum psi(w_whole - w) M / sum M with M = M_whole (1 - M_crop): where the whole frames' flow agrees
    with itself there and back and the crop's doesn't. M is soft, and neither it nor w_whole has a gradient.
    """

    weight: float = 0.0
    """Weight of the distance to the network's own flow of what lies around the crop; 0 leaves it out. It
    needs `--augmentation.surroundings`. Published: 0.3."""
    begins: int = 0
    """Optimiser step at which it starts, and at which a network with --network.uncertainty starts to learn
    how far its flow is off: an untrained network is no teacher. Published: 0.4 of all steps."""
    ramp: int = 0
    """Optimiser steps over which it comes to its weight, in ten stairs. Published: 0.08 of all."""

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("begins", self.begins), ("ramp", self.ramp)):
            if value < 0:
                raise ValueError(f"{name} {value} must not be below 0")

    def share(self, step: int) -> float:
        """The share of its weight that it has at an optimiser step, counted from 0."""
        if step < self.begins or self.weight == 0:
            return 0.0
        stairs = _STAIRS if self.ramp == 0 else (step - self.begins) * _STAIRS // self.ramp + 1
        return min(stairs, _STAIRS) / _STAIRS

    def terms(
        self,
        estimate: Estimator,
        batch: Batch,
        graded: BidirectionalFlow,
        levels: list[tuple[str, float]],
        step: int,
    ) -> list[Term]:
        """Its terms for the `graded` flows of the crops, of which `levels` has names and weights, and what
        their predicted scale learns, if they have one: see `flowcore.uncertainty.scale_terms`. There every
        pixel counts.

        To be asked for before the gradient of `graded` is taken. ValueError for crops without surroundings.
        """
        share = self.share(step)
        if share == 0 and graded.log_scale_fw is None:
            return []
        if step < self.begins:
            # Several workers need a gradient of every weight.
            return scale_terms(without_labels(batch), graded)
        labels, unknown = self._labels(estimate, batch, graded)
        terms = scale_terms(labels, graded)
        if share > 0:
            terms += label_terms("self_supervision", self.weight * share, unknown, graded, levels)
        return terms

    @torch.no_grad()
    def _labels(self, estimate: Estimator, batch: Batch, graded: BidirectionalFlow) -> tuple[Batch, Batch]:
        """The batch, labelled by its scenes: trusted everywhere, and with what the network doesn't know of
        its crops as weights."""
        height, width = batch.image1.shape[-2:]
        if batch.scene1 is None or batch.scene2 is None or batch.scene1.shape[-1] == width:
            raise ValueError(
                "self-supervision and --network.uncertainty need what lies around the crop; set "
                "--augmentation.surroundings, 16 px say, or leave both out"
            )
        size = batch.scene1.shape[-2:]
        whole = estimate(pad_to_multiple(batch.scene1, _MULTIPLE), pad_to_multiple(batch.scene2, _MULTIPLE))
        fw, bw = (upsample_flow(each[0], whole.strides[0], *size) for each in (whole.forward, whole.backward))
        crop_fw, crop_bw = (
            upsample_flow(each[0], graded.strides[0], height, width)
            for each in (graded.forward, graded.backward)
        )
        margin = (size[-1] - width) // 2
        weights = [
            centred(agreement(*scene, _TEACHER_SIGMA), margin) * (1 - agreement(*crop, _STUDENT_SIGMA))
            for scene, crop in (((fw, bw), (crop_fw, crop_bw)), ((bw, fw), (crop_bw, crop_fw)))
        ]
        every = [torch.ones_like(each) for each in weights]
        for place, inside in enumerate((batch.inside1, batch.inside2)):
            if inside is not None:
                every[place] = every[place] * centred(inside, margin)
        labels = replace(
            batch,
            flow_fw=centred(fw, margin),
            flow_bw=centred(bw, margin),
            confidence_fw=every[0],
            confidence_bw=every[1],
        )
        unknown = replace(labels, confidence_fw=weights[0] * every[0], confidence_bw=weights[1] * every[1])
        return labels, unknown
