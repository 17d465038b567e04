"""What does flow cost? Terms of a loss: of the frames that it should match, of a label, of its own roughness.

A term is a sum over pixels with the number of pixels counted, not their quotient. The optimiser step adds up
the sums and counts of all workers before it divides, so that the loss and its gradient are those of the
global batch, however many workers share it. An empty set gives 0.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from flowcore.geometry import (
    backward_warp,
    centred,
    in_frame,
    resize_image,
    upsample_flow,
    upsample_values,
)
from flowcore.networks import BidirectionalFlow
from flowcore.pairs import Batch, Weights, directions
from flowcore.photometric import DISTANCES, distance_everywhere, robust, smoothness
from flowcore.shapes import Flow, Image, Mask


@dataclass(frozen=True, kw_only=True)
class Term:
    """`weight` times `total` / `count`, with total and count summed over all workers first."""

    name: str
    weight: float
    total: Float[Tensor, ""]
    count: Float[Tensor, ""]


def weighted_term(
    name: str,
    weight: float,
    error: Tensor,
    weights: Weights,
    penalty: Callable[[Tensor], Tensor] = robust,
) -> Term:
    """The sum of the penalty of the error, any channels, over the pixels, weighted, and the sum of their
    weights. The penalty is psi unless another is given.

    Pixels of weight 0 have no gradient, not even where the error is not finite: hence it is masked before the
    penalty too.
    """
    nothing = error.new_zeros(())
    counted = weights > 0
    penalties = penalty(torch.where(counted, error, nothing))
    total = (torch.where(counted, penalties, nothing) * weights).sum()
    return Term(name=name, weight=weight, total=total, count=weights.sum())


def graded_levels(
    flows: BidirectionalFlow, level_weights: Sequence[float], sequence_gamma: float
) -> list[tuple[str, float]]:
    """(name, weight) of each of a network's levels that has a loss, finest first.

    A pyramid's finest levels have `level_weights`; its further ones are on the way to these, and learn
    through them. A recurrent network's levels, all of one stride, are its iterations: the last one weighs 1,
    each earlier one `sequence_gamma` of the next. Source: RAFT, "Supervision"; without truth, SMURF (Stone et
    al., CVPR 2021), "Sequence loss".

    ValueError for levels that are neither: some would have no loss, and nothing would learn from them.
    """
    strides, count = flows.strides, len(flows.strides)
    if flows.is_sequence:
        return [(f"iteration{count - place}", sequence_gamma**place) for place in range(count)]
    if any(fine >= coarse for fine, coarse in pairwise(strides)):
        raise ValueError(
            f"a network's levels have strides {strides}, some of which no loss would reach; levels must "
            "all have one stride, as iterations do, or each a larger one than the level before"
        )
    return [(f"stride{stride}", weight) for stride, weight in zip(strides, level_weights, strict=False)]


def require_level_weights(level_weights: Sequence[float], sequence_gamma: float) -> None:
    """ValueError for what `graded_levels` can't weigh levels with."""
    if not level_weights or min(level_weights) < 0:
        raise ValueError(f"level_weights {level_weights} must be at least one number, none below 0")
    if not 0 < sequence_gamma <= 1:
        raise ValueError(
            f"sequence_gamma {sequence_gamma} must be at most 1, and above 0: at 0 only the last iteration "
            "would have a loss"
        )


def _area(values: Tensor, height: int, width: int) -> Tensor:
    """The mean of the pixels under each coarser one."""
    return functional.interpolate(values, (height, width), mode="area")


def _shrink_mask(mask: Mask, height: int, width: int) -> Bool[Tensor, "batch 1 {height} {width}"]:
    """True where at least half of the pixels under a coarser one are."""
    return _area(mask.float(), height, width) >= 0.5


def shrink_label(
    flow: Flow, weights: Weights, height: int, width: int
) -> tuple[Float[Tensor, "batch 2 {height} {width}"], Float[Tensor, "batch 1 {height} {width}"]]:
    """Flow and weights on a coarser grid: the weighted mean of the flow under each of its pixels, and the
    mean weight of those that have one, where at least half of them do; else 0."""
    share = _area(weights, height, width)
    kept = _area(torch.where(weights > 0, flow, flow.new_zeros(())) * weights, height, width)
    labelled = _area((weights > 0).to(weights.dtype), height, width)
    mean_weight = (share / labelled.clamp(min=1e-6)).masked_fill(labelled < 0.5, 0.0)
    return kept / share.clamp(min=1e-6), mean_weight


def label_terms(
    name: str,
    weight: float,
    labels: Batch,
    graded: BidirectionalFlow,
    levels: Sequence[tuple[str, float]],
) -> list[Term]:
    """The distance of `graded` flows to the batch's labels, weighted by their confidence, in both directions.

    levels: (name, weight) of each. Of a coarser level the label is the mean over its labelled pixels alone.
    """
    ways = list(zip(directions(labels), directions(graded), strict=True))
    terms = []
    for level, (level_name, level_weight) in enumerate(levels):
        for (way, label), (_, mine) in ways:
            assert label.flow_fw is not None
            assert label.confidence_fw is not None
            flow = mine.forward[level]
            target, weights = shrink_label(label.flow_fw, label.confidence_fw, *flow.shape[-2:])
            terms.append(
                weighted_term(f"{name}/{level_name}/{way}", weight * level_weight, target - flow, weights)
            )
    return terms


@dataclass(frozen=True, kw_only=True)
class _Scenes:
    """What the loss looks at, of a resolution."""

    scene1: Float[Tensor, "batch 3 _ _"]
    scene2: Float[Tensor, "batch 3 _ _"]
    inside1: Bool[Tensor, "batch 1 _ _"] | None
    """True on the pixels of scene1 from inside the frame; None where all are."""
    inside2: Bool[Tensor, "batch 1 _ _"] | None
    occ_fw: Bool[Tensor, "batch 1 _ _"] | None
    """Which pixels of the network's first frame the check finds occluded; None where they count too."""
    occ_bw: Bool[Tensor, "batch 1 _ _"] | None
    margin: int
    """By how many pixels the scenes reach further than the network's frames, on every side."""

    @classmethod
    def of(cls, batch: Batch, occlusions: tuple[Mask, Mask] | None, *, is_clean: bool) -> "_Scenes":
        """Those of a batch; what the network sees itself where there are none, or where they aren't to be
        looked at."""
        occ_fw, occ_bw = (None, None) if occlusions is None else occlusions
        margin = 0
        if batch.scene1 is not None:
            margin = (batch.scene1.shape[-1] - batch.image1.shape[-1]) // 2
        inside1, inside2 = batch.inside1, batch.inside2
        scene1, scene2 = batch.scene1, batch.scene2
        if scene1 is None or scene2 is None or not is_clean:
            scene1, scene2 = batch.image1, batch.image2
            inside1, inside2, margin = centred(inside1, margin), centred(inside2, margin), 0
        return cls(
            scene1=scene1,
            scene2=scene2,
            inside1=inside1,
            inside2=inside2,
            occ_fw=occ_fw,
            occ_bw=occ_bw,
            margin=margin,
        )

    def reversed(self) -> "_Scenes":
        """With the frames exchanged."""
        return _Scenes(
            scene1=self.scene2,
            scene2=self.scene1,
            inside1=self.inside2,
            inside2=self.inside1,
            occ_fw=self.occ_bw,
            occ_bw=self.occ_fw,
            margin=self.margin,
        )

    def on_grid(self, height: int, width: int) -> "_Scenes":
        """What the network's frames show, on a coarser grid."""

        def shrunk(mask: Tensor | None, margin: int = 0) -> Tensor | None:
            return None if mask is None else _shrink_mask(centred(mask, margin), height, width)

        return _Scenes(
            scene1=resize_image(centred(self.scene1, self.margin), height, width),
            scene2=resize_image(centred(self.scene2, self.margin), height, width),
            inside1=shrunk(self.inside1, self.margin),
            inside2=shrunk(self.inside2, self.margin),
            occ_fw=shrunk(self.occ_fw),
            occ_bw=shrunk(self.occ_bw),
            margin=0,
        )


@dataclass(frozen=True, kw_only=True)
class _Level:
    """The network's flow on the grid of one level, with what the loss looks at there."""

    scenes: _Scenes
    flow_fw: Flow
    """In pixels of the level."""
    flow_bw: Flow
    stride: int

    def reversed(self) -> "_Level":
        """The level with its frames exchanged."""
        return _Level(
            scenes=self.scenes.reversed(), flow_fw=self.flow_bw, flow_bw=self.flow_fw, stride=self.stride
        )

    @property
    def image1(self) -> Image:
        """The pixels of the flow's own grid."""
        return centred(self.scenes.scene1, self.scenes.margin)

    def seen(self) -> Image:
        """Of the second frame, what the flow says the first one shows."""
        return backward_warp(self.scenes.scene2, self.flow_fw, self.scenes.margin)

    def counted(self) -> Mask:
        """The pixels that the frames teach something: not occluded, from inside the frame, and not landing on
        what comes from outside it. What leaves the grid and not the scene is not occluded, whatever the check
        says, which sees the grid alone."""
        scenes, flow = self.scenes, self.flow_fw.detach()
        counted = torch.ones_like(flow[:, :1], dtype=torch.bool)
        if scenes.inside1 is not None:
            counted &= centred(scenes.inside1, scenes.margin)
        if scenes.inside2 is not None:
            counted &= backward_warp(scenes.inside2.to(flow.dtype), flow, scenes.margin) > 0.999
        occluded = scenes.occ_fw
        if occluded is not None and scenes.margin > 0:
            occluded = torch.where(in_frame(flow), occluded, ~in_frame(flow, scenes.margin))
        return counted if occluded is None else counted & ~occluded


def _levels(
    batch: Batch, flows: BidirectionalFlow, occlusions: tuple[Mask, Mask] | None, *, is_clean: bool
) -> Iterator[_Level]:
    """The levels of the flow, finest first; occlusions None counts occluded pixels too.

    is_clean: look at the batch's scenes where it has some. What lies around the frames is looked at on a grid
    of full resolution alone.
    """
    grids = {1: _Scenes.of(batch, occlusions, is_clean=is_clean)}
    for flow_fw, flow_bw, stride in zip(flows.forward, flows.backward, flows.strides, strict=True):
        if stride not in grids:
            grids[stride] = grids[1].on_grid(*flow_fw.shape[-2:])
        yield _Level(
            scenes=grids[stride],
            flow_fw=flow_fw / stride,
            flow_bw=flow_bw / stride,
            stride=stride,
        )


@dataclass(frozen=True, kw_only=True)
class Photometric:
    """The photometric loss on the pixels that are visible in the other frame, in both directions.

    L_p = sum psi(d(I1, I2 warped by w_f)) (1 - O_f) / sum (1 - O_f), plus the same with the frames' roles
    swapped; psi of three channels is their mean. Pixels that a transformation brought in from outside the
    frame don't count, nor those that land on such. Source: DDFlow, "Photometric Loss"; the sum of both
    directions is not halved.

    The network's final flow, upsampled to full resolution, has the loss of the papers there, without the
    border on which the distance is not defined: there its minimum over 16 px windows of rendered scenes
    lies 0.01 px beside the truth, at stride 4 0.34 px (`python -m benchmarks.experiments.minimum --scenes
    8`). The network's next levels, which the papers leave alone, have a loss of their own on their own
    grids, with frames averaged down to them: fresh weights begin there. On these the pixels at the frame's
    sides count too, their patches filled by repetition: 3 px of a level left out are most of a small frame
    at stride 16, where nothing would teach the flow to point outwards.

    A recurrent network's flow of every iteration has the whole loss, smoothness too, as a final flow has it:
    the sequence loss, see `graded_levels`.

    Clean frames: SMURF (Stone et al., CVPR 2021); DDFlow looks at what the network sees. Smoothness, of which
    `smoothness` names the sources: UFlow weighs order 1 by 4.0 and order 2 by 2.0.
    """

    distance: Literal["census", "rgb", "ssim"] = "census"
    """How two frames are compared: census by the order of neighbouring pixels, which changing light leaves
    as it is; rgb by colours, for constant light; ssim by local statistics."""
    level_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Weight of each level's loss, finest level first; a network's further levels have none. RAFT has
    `sequence_gamma` instead."""
    sequence_gamma: float = 0.8
    """Weight of the loss of each of RAFT's iterations, as a share of the next one's; the last weighs 1."""
    full_resolution: bool = True
    """Take the finest level's loss on full-resolution frames. Off takes it on the level's own grid, which
    saves a tenth of a step's time and hides errors below a pixel or two."""
    clean: bool = True
    """Compare the frames without noise and changed colours, and with what lies around the crop. Off compares
    what the network sees."""
    smoothness_weight: float = 1.0
    """Weight of the smoothness of the finest level's flow, in that level's pixels; 0 leaves it out. Raise it
    if the flow is noisy in smooth places."""
    smoothness_order: Literal[1, 2] = 1
    """1 penalises any change of the flow, 2 only uneven change; take 2 for roads."""
    smoothness_edge: float = 10.0
    """How much an edge of the frame excuses a change of the flow. Raise it if the flow is blurred
    across the edges of things."""

    def __post_init__(self) -> None:
        require_level_weights(self.level_weights, self.sequence_gamma)
        if self.smoothness_weight < 0:
            raise ValueError(f"smoothness_weight {self.smoothness_weight} must not be below 0")

    def graded(self, flows: BidirectionalFlow, height: int, width: int) -> BidirectionalFlow:
        """The levels that have a loss of their own, on the grid on which they have it, for frames of this
        size."""
        kept = len(self.levels(flows))
        forward, backward, strides = flows.forward[:kept], flows.backward[:kept], flows.strides[:kept]
        scales = [flows.log_scale_fw, flows.log_scale_bw]
        if self.full_resolution and strides[0] > 1:
            final = len(strides) if flows.is_sequence else 1
            forward, backward = (
                [upsample_flow(flow, strides[0], height, width) for flow in each[:final]] + each[final:]
                for each in (forward, backward)
            )
            scales = [
                None if scale is None else upsample_values(scale, strides[0], height, width)
                for scale in scales
            ]
            strides = (1,) * final + strides[final:]
        return BidirectionalFlow(
            forward=forward,
            backward=backward,
            strides=strides,
            log_scale_fw=scales[0],
            log_scale_bw=scales[1],
        )

    def levels(self, flows: BidirectionalFlow) -> list[tuple[str, float]]:
        """(name, weight) of each level that has a loss; see `graded_levels`."""
        return graded_levels(flows, self.level_weights, self.sequence_gamma)

    def terms(
        self,
        batch: Batch,
        graded: BidirectionalFlow,
        occlusions: tuple[Mask, Mask] | None,
    ) -> list[Term]:
        """The terms of L_p for `graded` flows; occlusions None counts every pixel (the warm-up). ValueError
        for frames that are all border."""
        terms = []
        levels = _levels(batch, graded, occlusions, is_clean=self.clean)
        for (level_name, weight), level in zip(self.levels(graded), levels, strict=True):
            ways = directions(level)
            # Both directions in one call: on small frames calls cost more than what they compute.
            both = distance_everywhere(
                self.distance,
                torch.cat([way.image1 for _, way in ways]),
                torch.cat([way.seen() for _, way in ways]),
            )
            for (name, way), distance in zip(ways, both.chunk(2), strict=True):
                counted = way.counted()
                if way.stride == 1 and self.full_resolution:
                    counted &= self._within(distance)
                name = f"photometric/{level_name}/{name}"
                term = weighted_term(name, weight, distance, counted.to(distance.dtype))
                terms.append(replace(term, total=term.total / distance.shape[1]))
        return terms

    def _within(self, distance: Tensor) -> Mask:
        """False on the border on which the distance is not defined."""
        _, radius = DISTANCES[self.distance]
        height, width = distance.shape[-2:]
        if min(height, width) <= 2 * radius:
            raise ValueError(
                f"frames of ({height}, {width}) px are all border for the {self.distance} distance, whose "
                f"border is {radius} px wide; raise --augmentation.crop.height and .width, a student's "
                "--challenge.crop.height and .width, or give --objective.photometric.no-full-resolution"
            )
        within = torch.zeros_like(distance[:, :1], dtype=torch.bool)
        within[..., radius : height - radius, radius : width - radius].fill_(True)
        return within

    def smoothness_terms(self, batch: Batch, flows: BidirectionalFlow) -> list[Term]:
        """Means over the batch's pairs, of both directions, of the network's own finest flow, or of the flow
        of each of its iterations."""
        if self.smoothness_weight == 0:
            return []
        finest = [(f"stride{flows.strides[0]}", 1.0)]
        weights = self.levels(flows) if flows.is_sequence else finest
        terms = []
        levels = _levels(batch, flows, None, is_clean=self.clean)
        for (level_name, weight), level in zip(weights, levels, strict=False):
            for name, way in directions(level):
                value = smoothness(way.flow_fw, way.image1, self.smoothness_edge, self.smoothness_order)
                pairs = torch.full_like(value, len(way.flow_fw))
                name = f"smoothness/{level_name}/{name}"
                weighed = weight * self.smoothness_weight
                terms.append(Term(name=name, weight=weighed, total=value * pairs, count=pairs))
        return terms
