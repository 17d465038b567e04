"""How do benchmarks and papers slice the errors of a flow: which pixels, which measure, averaged over what?

A slice is some of the pixels with truth: visible ones, fast ones, those on cars. Of each, sums and counts are
kept that add, over pixels and over images, so that both of the means that papers report can be taken at the
end. `docs/reference/metrics.md` says which benchmark reports which.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowcore.metrics import endpoint_error, is_outlier, require_finite
from flowcore.shapes import Flow, Mask

SLICES: Mapping[str, str] = {
    "all": "pixels with truth",
    "noc": "those that the second frame shows; Sintel and Spring call them matched",
    "occ": "those that it doesn't show: occluded or outside; unmatched",
    "s0-10": "those that move by less than 10 px",
    "s10-40": "those that move by 10 px or more, and less than 40",
    "s40": "those that move by 40 px or more; Sintel's s40+",
    "bg": "background, where KITTI 2015's `obj_map` is zero",
    "fg": "foreground, where it isn't: what moves by itself",
    "unmasked": "`all` and those that Sintel's or TartanAir's mask of invalid pixels leaves out",
    "nearest": "`all`, each pixel against the nearest of Spring's four vectors for it; Fl takes the longest "
    "of them",
}
"""What each slice holds."""
_WAUC_THRESHOLDS = torch.arange(1, 101, dtype=torch.float64) / 20
"""Pixels: 0.05, 0.1 and so on to 5."""
_WAUC_BEST = 100 * 101 // 2
"""Sum of the ranks 100, 99 and so on to 1, by which the thresholds are weighted."""


@dataclass(frozen=True, kw_only=True)
class SliceErrors:
    """Sums over the pixels of one slice, and over the images that have some of them. Adding two gives the
    errors of both sets together."""

    error: float = 0.0
    """Sum of endpoint errors, px."""
    pixels: int = 0
    outliers: int = 0
    off_by_1px: int = 0
    off_by_3px: int = 0
    inlier_ranks: int = 0
    """Of each pixel, the ranks of the thresholds that its error doesn't exceed."""
    image_epe: float = 0.0
    """Sum over images of an image's own EPE, px."""
    image_fl: float = 0.0
    """Sum over images of an image's own Fl."""
    image_off_by_3px: float = 0.0
    """Sum over images of an image's own 3px."""
    images: int = 0

    def __add__(self, other: "SliceErrors") -> "SliceErrors":
        return SliceErrors(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        )

    @property
    def epe(self) -> float | None:
        """Mean endpoint error over the pixels of the slice, px."""
        return _ratio(self.error, self.pixels)

    @property
    def fl(self) -> float | None:
        """KITTI 2015's Fl: the fraction of pixels whose error exceeds 3 px and 5 % of the true length."""
        return _ratio(self.outliers, self.pixels)

    @property
    def off_1px(self) -> float | None:
        """Spring's 1px: the fraction of pixels whose error exceeds 1 px."""
        return _ratio(self.off_by_1px, self.pixels)

    @property
    def off_3px(self) -> float | None:
        """The fraction of pixels whose error exceeds 3 px."""
        return _ratio(self.off_by_3px, self.pixels)

    @property
    def wauc(self) -> float | None:
        """VIPER's and Spring's weighted area under the curve, a fraction, more is better: over the thresholds
        0.05, 0.1, ... 5 px, the mean of the fraction of pixels whose error is at most the threshold, where
        the weights fall from 1 to 0.01 in equal steps."""
        return _ratio(self.inlier_ranks, _WAUC_BEST * self.pixels)

    @property
    def epe_per_image(self) -> float | None:
        """Mean over images of each image's EPE, px: KITTI 2012's Avg, and RAFT's EPE of KITTI."""
        return _ratio(self.image_epe, self.images)

    @property
    def fl_per_image(self) -> float | None:
        """Mean over images of each image's Fl."""
        return _ratio(self.image_fl, self.images)

    @property
    def off_3px_per_image(self) -> float | None:
        """Mean over images of each image's 3px: KITTI 2012's Out."""
        return _ratio(self.image_off_by_3px, self.images)

    @property
    def measures(self) -> dict[str, float | None]:
        """Every mean by the name that metrics and JSON have; None where the slice has no pixel."""
        return {
            "epe": self.epe,
            "fl": self.fl,
            "1px": self.off_1px,
            "3px": self.off_3px,
            "wauc": self.wauc,
            "epe_per_image": self.epe_per_image,
            "fl_per_image": self.fl_per_image,
            "3px_per_image": self.off_3px_per_image,
        }

    def summary(self) -> dict[str, Any]:
        """The means, with the numbers of pixels and of images, ready for JSON."""
        return {**self.measures, "pixels": self.pixels, "images": self.images}


def sliced_errors(
    flow: Flow,
    truth: Flow,
    valid: Mask,
    *,
    occluded: Mask | None = None,
    foreground: Mask | None = None,
    unmasked: tuple[Flow, Mask] | None = None,
    finer: Float[Tensor, "batch 4 2 height width"] | None = None,
) -> dict[str, SliceErrors]:
    """The errors of a batch by slice, of those slices that have pixels in it and that are known.

    unmasked: true flow in pixels, and where it is, with the pixels that a mask leaves out of `valid`.
    finer: four true vectors of each pixel, where the truth is finer than the frames.

    Raises ValueError where the flow isn't finite on a pixel with truth.
    """
    error, length = endpoint_error(flow.double(), truth.double()), _length(truth)
    found = {
        name: _errors(error, length, inside) for name, inside in _slices(length, valid, occluded, foreground)
    }
    if unmasked is not None:
        everywhere, known = unmasked
        found["unmasked"] = _errors(
            endpoint_error(flow.double(), everywhere.double()), _length(everywhere), known
        )
    if finer is not None:
        errors = torch.stack([endpoint_error(flow.double(), each.double()) for each in finer.unbind(1)])
        lengths = torch.stack([_length(each) for each in finer.unbind(1)])
        found["nearest"] = _errors(errors.amin(0), lengths.amax(0), valid)
    return {name: errors for name, errors in found.items() if errors.pixels}


def added(first: Mapping[str, SliceErrors], second: Mapping[str, SliceErrors]) -> dict[str, SliceErrors]:
    """The errors of both sets together, slice by slice. A set without a slice adds nothing to it."""
    return {
        name: first.get(name, SliceErrors()) + second.get(name, SliceErrors())
        for name in SLICES
        if name in first or name in second
    }


def _slices(
    length: Float[Tensor, "batch 1 height width"],
    valid: Mask,
    occluded: Mask | None,
    foreground: Mask | None,
) -> Iterator[tuple[str, Mask]]:
    yield "all", valid
    if occluded is not None:
        yield "noc", valid & ~occluded
        yield "occ", valid & occluded
    yield "s0-10", valid & (length < 10)
    yield "s10-40", valid & (length >= 10) & (length < 40)
    yield "s40", valid & (length >= 40)
    if foreground is not None:
        yield "bg", valid & ~foreground
        yield "fg", valid & foreground


def _errors(
    error: Float[Tensor, "batch 1 height width"],
    length: Float[Tensor, "batch 1 height width"],
    inside: Bool[Tensor, "batch 1 height width"],
) -> SliceErrors:
    """error, length: of the true flow, px."""
    total = SliceErrors()
    for each_error, each_length, each_inside in zip(error, length, inside, strict=True):
        total += _image_errors(each_error[each_inside], each_length[each_inside])
    return total


def _image_errors(error: Float[Tensor, " pixels"], length: Float[Tensor, " pixels"]) -> SliceErrors:
    require_finite(error)
    if not error.numel():
        return SliceErrors()
    pixels = error.numel()
    outliers, off_by_3px = int(is_outlier(error, length).sum()), int((error > 3.0).sum())
    # A pixel's error is at most so many of the thresholds, the largest ones, which have the smallest ranks.
    passed = len(_WAUC_THRESHOLDS) - torch.bucketize(error, _WAUC_THRESHOLDS.to(error.device))
    return SliceErrors(
        error=float(error.sum()),
        pixels=pixels,
        outliers=outliers,
        off_by_1px=int((error > 1.0).sum()),
        off_by_3px=off_by_3px,
        inlier_ranks=int((passed * (passed + 1) // 2).sum()),
        image_epe=float(error.mean()),
        image_fl=outliers / pixels,
        image_off_by_3px=off_by_3px / pixels,
        images=1,
    )


def _length(flow: Flow) -> Float[Tensor, "batch 1 height width"]:
    length: Tensor = torch.linalg.vector_norm(flow.double(), dim=1, keepdim=True)
    return length


def _ratio(total: int | float, count: int) -> float | None:
    return total / count if count else None
