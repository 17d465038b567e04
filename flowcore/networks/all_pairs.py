"""How similar are the features around where a flow points? RAFT's correlation of all pairs of pixels.

Each pixel of the first frame is compared with the pixels of the second in a window around where its flow
points, at several scales. A volume of all products is built once and looked up in each iteration. Its size
is the square of the frame's, so that for large frames the windows' products are computed when they are
looked up.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from flowcore.geometry import pixel_grid
from flowcore.networks.layers import in_full_precision

Features = Float[Tensor, "batch channels height width"]
Similarities = Float[Tensor, "batch _ height width"]

_MOST_PRODUCTS = 2**28
"""In the volume of one direction. Both directions of a pair take 2.9 GB then: frames of about 1024x1024 px at
stride 8."""
_AT_ONCE = 2**22
"""Numbers that the features of the windows looked up together hold: 17 MB."""


@runtime_checkable
class Correlation(Protocol):
    """The similarities of two frames' features, to be looked up.

    For features f1 and f2 of n channels, the similarity of p and q is f1(p) f2(q) / sqrt(n). Scale s averages
    it over blocks of 2^s x 2^s pixels q.
    """

    def around(self, flow: Float[Tensor, "batch 2 height width"]) -> Similarities:
        """The similarities of p with (p + flow(p)) / 2^s + d for each scale s and each displacement d of the
        window, bilinear; 0 outside the frame.

        Flow in pixels of the features. Channels are ordered by scale, then by d's x, then by its y, as in the
        weights that are published. Source: RAFT, "Correlation Lookup".
        """


def one_way(features1: Features, features2: Features, scales: int, radius: int) -> Correlation:
    """Of the first frame with the second."""
    if _is_large(features1):
        return OnDemand(features1, features2, scales, radius)
    return Volume(in_full_precision(_products, features1, features2), scales, radius)


def both_ways(features1: Features, features2: Features, scales: int, radius: int) -> Correlation:
    """Of the first frame with the second, then, further along the batch, of the second with the first. The
    second volume is the transpose of the first."""
    if _is_large(features1):
        return OnDemand(torch.cat([features1, features2]), torch.cat([features2, features1]), scales, radius)
    products = in_full_precision(_products, features1, features2)
    transposed = products.permute(0, 3, 4, 1, 2)
    return Volume(torch.cat([products, transposed]), scales, radius)


def _is_large(features: Features) -> bool:
    """Whether the volume isn't built. A graph for frames of any size is for volumes."""
    if torch.compiler.is_exporting():
        return False
    height, width = features.shape[-2:]
    return (height * width) ** 2 > _MOST_PRODUCTS


def _products(features1: Tensor, features2: Tensor) -> Tensor:
    batch, channels, height, width = features1.shape
    first = features1.flatten(2).transpose(1, 2) / channels**0.5
    return torch.bmm(first, features2.flatten(2)).view(batch, height, width, height, width)


class Volume:
    """A correlation whose products are all there, at every scale."""

    def __init__(
        self, products: Float[Tensor, "batch height width height width"], scales: int, radius: int
    ) -> None:
        batch, height, width = products.shape[:3]
        pyramid = [products.reshape(batch * height * width, 1, height, width)]
        while len(pyramid) < scales and min(pyramid[-1].shape[-2:]) > 1:
            pyramid.append(functional.avg_pool2d(pyramid[-1], 2))
        self._pyramid = pyramid
        self._pixels = pixel_grid(height, width, products.device)
        displacements = torch.arange(-radius, radius + 1, dtype=torch.float32, device=products.device)
        # In the coordinates of grid_sample, in which -1 and 1 are the edges of the frame.
        self._windows = [
            torch.stack(
                torch.meshgrid(
                    (2 * displacements + 1) / each.shape[-1] - 1,
                    (2 * displacements + 1) / each.shape[-2] - 1,
                    indexing="ij",
                ),
                dim=-1,
            )
            for each in pyramid
        ]
        # Frames too small for a scale have nothing to look up there.
        self._missing = (scales - len(pyramid)) * (2 * radius + 1) ** 2

    def around(self, flow: Float[Tensor, "batch 2 height width"]) -> Similarities:
        batch, _, height, width = flow.shape
        x, y = (self._pixels + flow).movedim(1, 0).flatten(1)
        found = []
        for scale, (products, window) in enumerate(zip(self._pyramid, self._windows, strict=True)):
            rows, columns = products.shape[-2:]
            target = torch.stack([x * (2 / 2**scale) / columns, y * (2 / 2**scale) / rows], dim=-1)
            grid = target.view(-1, 1, 1, 2) + window
            sampled = functional.grid_sample(products, grid, padding_mode="zeros", align_corners=False)
            found.append(sampled.view(batch, height, width, -1))
        similarities = torch.cat(found, dim=-1)
        return functional.pad(similarities, (0, self._missing)).movedim(-1, 1)


class OnDemand:
    """A correlation whose products are computed where they are looked up: the same values, of sums in another
    order. Averages of products are products with averaged features."""

    def __init__(self, features1: Features, features2: Features, scales: int, radius: int) -> None:
        batch, channels, height, width = features1.shape
        self._radius = radius
        self._frames = torch.arange(batch, device=features1.device).repeat_interleave(height * width)
        self._first = (features1.float() / channels**0.5).movedim(1, -1).reshape(-1, channels, 1)
        self._pixels = pixel_grid(height, width, features1.device)
        # One more than the window on each axis, to interpolate; what lies further out is zero as well.
        side = 2 * radius + 2
        steps = torch.arange(side, device=features1.device)
        self._sizes: list[tuple[int, int]] = []
        self._rows: list[Tensor] = []
        self._windows: list[Tensor] = []
        averaged = features2.float()
        while len(self._rows) < scales:
            if self._rows:
                if min(averaged.shape[-2:]) <= 1:
                    break
                averaged = functional.avg_pool2d(averaged, 2)
            self._sizes.append((averaged.shape[-2], averaged.shape[-1]))
            padded = functional.pad(averaged, (side,) * 4)
            self._rows.append(padded.movedim(1, -1).reshape(-1, channels))
            self._windows.append((steps[:, None] * padded.shape[-1] + steps).flatten())
        self._missing = (scales - len(self._rows)) * (2 * radius + 1) ** 2

    def around(self, flow: Float[Tensor, "batch 2 height width"]) -> Similarities:
        batch, _, height, width = flow.shape
        target = (self._pixels + flow).movedim(1, -1).reshape(-1, 2)
        side = 2 * self._radius + 2
        at_once = max(1, _AT_ONCE // (side * side * self._first.shape[1]))
        parts = zip(
            target.split(at_once), self._frames.split(at_once), self._first.split(at_once), strict=True
        )
        if torch.is_grad_enabled():
            found = torch.cat([self._recomputed(*part) for part in parts])
        else:
            found = flow.new_empty(len(target), len(self._rows) * (side - 1) ** 2)
            # Parts that are kept between others that are freed would fragment the memory.
            for mine, part in zip(found.split(at_once), parts, strict=True):
                mine.copy_(self._windows_of(*part))
        similarities = found.view(batch, height, width, -1)
        return functional.pad(similarities, (0, self._missing)).movedim(-1, 1)

    def _recomputed(self, target: Tensor, frames: Tensor, first: Tensor) -> Tensor:
        # The windows' features, a hundred times the frame's, are gathered again in the backward pass.
        similarities: Tensor = checkpoint(
            self._windows_of, target, frames, first, use_reentrant=False, preserve_rng_state=False
        )
        return similarities

    def _windows_of(self, target: Tensor, frames: Tensor, first: Tensor) -> Tensor:
        side = 2 * self._radius + 2
        found = []
        levels = zip(self._rows, self._sizes, self._windows, strict=True)
        for scale, (rows, (height, width), window) in enumerate(levels):
            exact = target / 2**scale
            corner = exact.floor()
            right, down = (exact - corner).view(-1, 2, 1, 1).unbind(dim=1)
            # A diverged network's flow is NaN, and so are its similarities by `right` and `down`.
            x, y = (corner - self._radius).nan_to_num(nan=0.0).unbind(dim=1)
            x = x.clamp(-side, width).long() + side
            y = y.clamp(-side, height).long() + side
            begin = (frames * (height + 2 * side) + y) * (width + 2 * side) + x
            taken = rows.index_select(0, (begin[:, None] + window).flatten())
            products = torch.bmm(taken.view(len(first), side * side, -1), first).view(-1, side, side)
            products = torch.lerp(products[:, :-1], products[:, 1:], down)
            products = torch.lerp(products[..., :-1], products[..., 1:], right)
            found.append(products.transpose(1, 2).flatten(1))
        return torch.cat(found, dim=1)
