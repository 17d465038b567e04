"""How far is a flow from the truth, and an occlusion map from the true one?

Results are float64 sums and counts, which add, so that splitting a data set over workers doesn't change a
number. Means are taken once, at the end, over all pixels of the set. Every pixel weighs the same, not every
frame; that matters where frames differ in size or in how much truth they have (KITTI). On Sintel and Chairs,
whose truth is dense and of one size, both conventions give the same EPE over all pixels. `slices.py` has
both, and the parts of the pixels that benchmarks report.

Whether an uncertainty tells the error is a matter of one image's pixels among each other, so its AUSE is
taken image by image and averaged over images.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowcore.shapes import Flow, Mask


class RegionMeans(TypedDict):
    """Means over all pixels with truth, over the non-occluded and over the occluded; None = no such pixel."""

    all: float | None
    noc: float | None
    occ: float | None


class FlowSummary(TypedDict):
    """EPE in pixels and the fraction of outliers, ready for JSON."""

    epe: RegionMeans
    fl: float | None


class OcclusionSummary(TypedDict):
    """Fractions in [0, 1], ready for JSON; None where no pixel was compared."""

    precision: float | None
    recall: float | None
    f1: float | None


def endpoint_error(flow: Flow, truth: Flow) -> Float[Tensor, "batch 1 height width"]:
    """Euclidean distance between the two flow vectors of each pixel, in pixels."""
    error: Tensor = torch.linalg.vector_norm(flow - truth, dim=1, keepdim=True)
    return error


@dataclass(frozen=True, kw_only=True)
class FlowErrors:
    """Sums of endpoint errors (px) and counts of pixels; adding two gives the errors of both sets together.

    `all` covers every pixel with truth. `noc` and `occ` need occlusion truth as well, so that frames without
    it count in `all` alone.
    """

    error_all: float = 0.0
    error_noc: float = 0.0
    error_occ: float = 0.0
    pixels_all: int = 0
    pixels_noc: int = 0
    pixels_occ: int = 0
    outliers: int = 0

    def __add__(self, other: "FlowErrors") -> "FlowErrors":
        return FlowErrors(**_field_sums(self, other))

    @property
    def epe(self) -> RegionMeans:
        """Mean endpoint error in pixels over the set's pixels."""
        return {
            "all": _ratio(self.error_all, self.pixels_all),
            "noc": _ratio(self.error_noc, self.pixels_noc),
            "occ": _ratio(self.error_occ, self.pixels_occ),
        }

    @property
    def fl(self) -> float | None:
        """KITTI's Fl-all: the fraction of pixels whose error exceeds both 3 px and 5 % of the true length."""
        return _ratio(self.outliers, self.pixels_all)

    def summary(self) -> FlowSummary:
        """EPE in pixels by region, and Fl as a fraction."""
        return {"epe": self.epe, "fl": self.fl}


def flow_errors(flow: Flow, truth: Flow, valid: Mask, occluded: Mask | None) -> FlowErrors:
    """The errors of a batch where truth exists (`valid`); `truth` is ignored elsewhere.

    Raises ValueError where the flow isn't finite on a pixel with truth: Fl would miss that pixel.
    """
    _check_sizes(flow=flow, truth=truth, valid=valid, occluded=valid if occluded is None else occluded)
    error = endpoint_error(flow.double(), truth.double())[valid]
    require_finite(error)
    length = torch.linalg.vector_norm(truth.double(), dim=1, keepdim=True)[valid]
    outlier = is_outlier(error, length)
    of_all = FlowErrors(error_all=float(error.sum()), pixels_all=error.numel(), outliers=int(outlier.sum()))
    if occluded is None:
        return of_all
    hidden = occluded[valid]
    return of_all + FlowErrors(
        error_noc=float(error[~hidden].sum()),
        error_occ=float(error[hidden].sum()),
        pixels_noc=int((~hidden).sum()),
        pixels_occ=int(hidden.sum()),
    )


def is_outlier(error: Float[Tensor, " pixels"], length: Float[Tensor, " pixels"]) -> Bool[Tensor, " pixels"]:
    """True = wrong by more than 3 px and by more than 5 % of the true flow's length. Both are in pixels."""
    outlier: Tensor = (error > 3.0) & (error > 0.05 * length)
    return outlier


def require_finite(error: Float[Tensor, " pixels"]) -> None:
    """ValueError where an error isn't finite: every threshold would miss that pixel."""
    broken = ~error.isfinite()
    if broken.any():
        raise ValueError(
            f"{int(broken.sum())} of {error.numel()} pixels with truth have a non-finite error: "
            "the flow or its truth holds NaN or infinity there"
        )


@dataclass(frozen=True, kw_only=True)
class Sparsification:
    """Sums over images of how well an uncertainty tells the error; adding two gives those of both sets
    together."""

    area: float = 0.0
    """Sum of each image's `ause`."""
    images: int = 0

    def __add__(self, other: "Sparsification") -> "Sparsification":
        return Sparsification(area=self.area + other.area, images=self.images + other.images)

    @property
    def ause(self) -> float | None:
        """Mean over images of the area under the sparsification error curve: 0 where the uncertainty ranks
        the pixels as their true error does. Source: Ilg et al. (ECCV 2018)."""
        return _ratio(self.area, self.images)


def sparsification(error: Float[Tensor, " pixels"], uncertainty: Float[Tensor, " pixels"]) -> Sparsification:
    """How well an uncertainty, of any unit, tells the endpoint error of an image's pixels with truth.

    Of n pixels the k most uncertain ones are left out, for each k below n. The curve is the mean error of the
    others over that of all. The area is the mean over k of the curve minus the one whose uncertainty is the
    error itself. Pixels of one uncertainty count as their mean, as in a random order. An image without a
    pixel or an error has no area.
    """
    require_finite(error)
    error, uncertainty = error.double(), uncertainty.nan_to_num(nan=torch.inf)
    if not error.numel() or not error.any():
        return Sparsification()
    order = uncertainty.argsort()
    _, ties, counts = uncertainty[order].unique_consecutive(return_inverse=True, return_counts=True)
    sums = error.new_zeros(len(counts)).index_add_(0, ties, error[order])
    ranked = (sums / counts)[ties]
    kept = torch.arange(1, len(error) + 1, dtype=torch.float64, device=error.device)
    excess = (ranked.cumsum(0) - error.sort().values.cumsum(0)) / kept
    return Sparsification(area=float(excess.mean() / error.mean()), images=1)


@dataclass(frozen=True, kw_only=True)
class OcclusionCounts:
    """Pixels by predicted and true occlusion; adding two gives the counts of both sets together.

    Precision is 1 where nothing was predicted, and recall is 1 where nothing is occluded. So an empty
    prediction of an empty truth scores 1 in all three, and f1 is always the harmonic mean of the other two.
    Where no pixel was compared, all three are None.
    """

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    true_negatives: int = 0

    def __add__(self, other: "OcclusionCounts") -> "OcclusionCounts":
        return OcclusionCounts(**_field_sums(self, other))

    @property
    def pixels(self) -> int:
        """Number of pixels compared."""
        return self.true_positives + self.false_positives + self.false_negatives + self.true_negatives

    @property
    def precision(self) -> float | None:
        """The fraction of pixels predicted occluded that are."""
        return self._fraction(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """The fraction of occluded pixels that were found."""
        return self._fraction(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return self._fraction(
            2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives
        )

    def summary(self) -> OcclusionSummary:
        """All three, by name."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}

    def _fraction(self, hits: int, chances: int) -> float | None:
        if self.pixels == 0:
            return None
        return hits / chances if chances else 1.0


def occlusion_counts(predicted: Mask, occluded: Mask, valid: Mask) -> OcclusionCounts:
    """Counts over the pixels whose true occlusion is known (`valid`)."""
    _check_sizes(predicted=predicted, occluded=occluded, valid=valid)
    claimed, hidden = predicted[valid], occluded[valid]
    return OcclusionCounts(
        true_positives=int((claimed & hidden).sum()),
        false_positives=int((claimed & ~hidden).sum()),
        false_negatives=int((~claimed & hidden).sum()),
        true_negatives=int((~claimed & ~hidden).sum()),
    )


def _field_sums(first: FlowErrors | OcclusionCounts, second: FlowErrors | OcclusionCounts) -> dict[str, Any]:
    return {name: value + getattr(second, name) for name, value in vars(first).items()}


def _ratio(total: int | float, count: int) -> float | None:
    return total / count if count else None


def _check_sizes(**tensors: Tensor) -> None:
    # Broadcasting a [1, 1, H, W] mask over a batch would silently change what is averaged.
    sizes = {name: (tensor.shape[0], *tensor.shape[2:]) for name, tensor in tensors.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"(batch, height, width) must be equal: {sizes}")
