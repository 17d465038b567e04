"""How far are models from the truth of a data set?

Each pair gives sums and counts, which the driver adds in the samples' order, so the numbers are the same to
the last bit however the pairs were spread over processes. All models see a pair together, so it is read once
and they are compared on the same pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool

from flowcore.datasets import DataSet, find_samples
from flowcore.drawing import Picture, comparison_panel
from flowcore.geometry import backward_warp, squared_length
from flowcore.metrics import (
    FlowErrors,
    OcclusionCounts,
    OcclusionSummary,
    RegionMeans,
    Sparsification,
    endpoint_error,
    flow_errors,
    occlusion_counts,
    sparsification,
)
from flowcore.occlusion import OcclusionCheck
from flowcore.samples import Sample, Truth, load, unreadable
from flowcore.shapes import Mask
from flowcore.slices import SLICES, SliceErrors, added, sliced_errors
from pipelines.estimators import Estimator, predictions
from pipelines.progress import Progress
from pipelines.room import evaluating_processes
from pipelines.storage import shared_folder

DEFAULT_CHECK = OcclusionCheck()
"""DDFlow's occlusion check."""

UNCERTAINTIES: Mapping[str, str] = {
    "predicted": "what the network predicts, if it was trained with `--network.uncertainty`",
    "forward_backward": "by how much the flow there and back disagree",
    "spread": "by how much several models disagree, with `--together mean`",
}
"""What may tell the error of a pixel's flow without its truth."""

_PAIRS_PER_BLOCK = 16
"""A block costs Ray some 40 ms, a pair at least as much."""


class ErrorSummary(TypedDict):
    """The errors on some pairs, ready to be written as JSON. EPE in pixels, fl as a fraction."""

    epe: RegionMeans
    fl: float | None
    occlusion: OcclusionSummary
    pairs: int
    slices: dict[str, dict[str, Any]]
    """Errors by slice, such as fg or s40."""
    ause: dict[str, float]
    """By `UNCERTAINTIES`, of those that the model has."""


@dataclass(frozen=True, kw_only=True)
class Errors:
    """A model's errors on some pairs. The sum of two is that of both sets of pairs together."""

    flow: FlowErrors = field(default_factory=FlowErrors)
    occlusion: OcclusionCounts = field(default_factory=OcclusionCounts)
    pairs: int = 0
    slices: Mapping[str, SliceErrors] = field(default_factory=dict)
    """By the names of `SLICES`; those without a pixel are missing."""
    uncertainties: Mapping[str, Sparsification] = field(default_factory=dict)
    """By the names of `UNCERTAINTIES`; those that the model hasn't are missing."""

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            flow=self.flow + other.flow,
            occlusion=self.occlusion + other.occlusion,
            pairs=self.pairs + other.pairs,
            slices=added(self.slices, other.slices),
            uncertainties={
                name: self.uncertainties.get(name, Sparsification())
                + other.uncertainties.get(name, Sparsification())
                for name in UNCERTAINTIES
                if name in self.uncertainties or name in other.uncertainties
            },
        )

    @property
    def ause(self) -> dict[str, float]:
        """How well each uncertainty tells the error, see `Sparsification.ause`."""
        areas = {name: each.ause for name, each in self.uncertainties.items()}
        return {name: area for name, area in areas.items() if area is not None}

    def summary(self) -> ErrorSummary:
        return {
            **self.flow.summary(),
            "occlusion": self.occlusion.summary(),
            "pairs": self.pairs,
            "slices": {name: errors.summary() for name, errors in self.slices.items()},
            "ause": self.ause,
        }

    def metrics(self, prefix: str) -> dict[str, float]:
        """Metrics by path: `<prefix>/epe/occ`, `<prefix>/fl/fg`, `<prefix>/occlusion/f1`. Unknown ones are
        left out."""
        values = {
            **{
                f"{measure}/{name}": value
                for name, errors in self.slices.items()
                for measure, value in errors.measures.items()
            },
            **{f"epe/{region}": value for region, value in self.flow.epe.items()},
            "fl/all": self.flow.fl,
            **{f"occlusion/{name}": value for name, value in self.occlusion.summary().items()},
            **{f"ause/{name}": area for name, area in self.ause.items()},
            "pairs": self.pairs,
        }
        return {f"{prefix}/{name}": float(value) for name, value in values.items() if value is not None}  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One model's errors on each pair of a data set."""

    data_set: str
    """Its name, the prefix of the total's metrics."""
    pairs: tuple[tuple[Sample, Errors], ...]

    @property
    def total(self) -> Errors:
        """Over all pairs."""
        return sum((errors for _, errors in self.pairs), Errors())

    @property
    def groups(self) -> dict[str, Errors]:
        """The errors of each group of samples, such as sintel/clean."""
        groups: dict[str, Errors] = {}
        for sample, errors in self.pairs:
            groups[sample.group] = groups.get(sample.group, Errors()) + errors
        return groups

    @property
    def ranked(self) -> list[Sample]:
        """The samples from the smallest EPE to the largest."""
        return [
            sample for sample, errors in sorted(self.pairs, key=lambda pair: pair[1].flow.epe["all"] or 0)
        ]

    def summary(self) -> dict[str, Any]:
        """The total's summary, with those of the groups under `groups`; can be written as JSON."""
        groups = {name: errors.summary() for name, errors in self.groups.items()}
        return {"data_set": self.data_set, **self.total.summary(), "groups": groups}

    def metrics(self) -> dict[str, float]:
        """The metrics of each group by path, as in training, of the total if there are several groups, and
        `final/epe`, the total's EPE of all pixels, as a training that validates against truth ends with."""
        groups = self.groups
        values = {} if len(groups) == 1 else self.total.metrics(self.data_set)
        for name, errors in groups.items():
            values.update(errors.metrics(name))
        if (epe := self.total.flow.epe["all"]) is not None:
            values["final/epe"] = epe
        return values


def evaluate(
    estimators: Mapping[str, Estimator], data_set: DataSet, *, check: OcclusionCheck = DEFAULT_CHECK
) -> dict[str, EvaluationResult]:
    """The errors of each estimator, by name, on a data set, computed on Ray's nodes, which must share its
    folder.

    Raises what `find_samples` raises, and ValueError where a model can't estimate a pair, and where pairs
    can't be read, which it names all.
    """
    samples = find_samples(data_set.name, shared_folder(data_set.root, "--truth"))
    errors: dict[tuple[str, int], Errors] = {}
    problems: dict[int, str] = {}
    with Progress(f"evaluate {data_set.name}", "pair", len(samples)) as progress:
        for row in _rows(samples, estimators, check):
            errors[row["model"], row["sample"]] = _from_row(row)
            if row["problem"]:
                problems[row["sample"]] = f"{samples[row['sample']].name}: {row['problem']}"
            progress.show(len(errors) // len(estimators))
    if problems:
        raise unreadable([problems[each] for each in sorted(problems)], len(samples), data_set.root)
    return {
        name: EvaluationResult(
            data_set=data_set.name,
            pairs=tuple((sample, errors[name, index]) for index, sample in enumerate(samples)),
        )
        for name in estimators
    }


def pair_errors(estimator: Estimator, truth: Truth, check: OcclusionCheck) -> Errors:
    """The errors on one pair. The check finds the occluded pixels from the flow in both directions.

    On a stereo pair only the disparity, -u, counts. Then fl is D1, which has the same limits, 3 px and 5 %.
    """
    estimated = estimator.estimated(truth.image1, truth.image2)
    flow_fw, flow_bw = (torch.from_numpy(flow)[None] for flow in (estimated.flow_fw, estimated.flow_bw))
    true_flow, valid = torch.from_numpy(truth.flow)[None], _mask(truth.valid)
    asked = torch.stack([flow_fw[:, 0], true_flow[:, 1]], dim=1) if truth.is_stereo else flow_fw
    occluded = None if truth.occluded is None else _mask(truth.occluded)
    unmasked = truth.unmasked
    slices = sliced_errors(
        asked,
        true_flow,
        valid,
        occluded=occluded,
        foreground=None if truth.foreground is None else _mask(truth.foreground),
        unmasked=None if unmasked is None else (torch.from_numpy(unmasked.flow)[None], _mask(unmasked.valid)),
        finer=None if truth.finer is None else torch.from_numpy(truth.finer)[None],
    )
    flow = flow_errors(asked, true_flow, valid, occluded)
    error = endpoint_error(asked.double(), true_flow.double())[valid]
    mismatch = squared_length(flow_fw + backward_warp(flow_bw, flow_fw)).sqrt()
    told = {name: torch.from_numpy(each)[None, None] for name, each in estimated.uncertainty.items()}
    uncertainties = {
        name: sparsification(error, each[valid])
        for name, each in {**told, "forward_backward": mismatch}.items()
    }
    errors = Errors(flow=flow, pairs=1, slices=slices, uncertainties=uncertainties)
    if occluded is None:
        return errors
    return replace(errors, occlusion=occlusion_counts(check(flow_fw, flow_bw), occluded, valid))


def _mask(mask: Bool[np.ndarray, "height width"]) -> Mask:
    return torch.from_numpy(mask)[None, None]


def example(sample: Sample, estimators: Mapping[str, Estimator], check: OcclusionCheck) -> Picture:
    """A picture of a sample with its truth and each model's estimate."""
    truth = load(sample)
    return comparison_panel(
        truth.image1,
        truth.image2,
        truth=truth.flow,
        valid=truth.valid,
        occlusion=truth.occluded,
        predictions=predictions(truth.image1, truth.image2, estimators, check),
    )


class _Evaluator:
    """Evaluates the models on one sample after another in one of Ray's processes."""

    def __init__(
        self,
        samples: Sequence[Sample],
        estimators: Mapping[str, Estimator],
        check: OcclusionCheck,
        device: torch.device,
    ) -> None:
        self._samples = samples
        self._estimators = estimators
        self._check = check
        for estimator in estimators.values():
            estimator.to(device)

    def __call__(self, row: dict[str, int]) -> Iterator[dict[str, Any]]:
        sample = self._samples[row["sample"]]
        problem, errors = "", Errors(pairs=1)
        try:
            truth = load(sample)
        except (ValueError, OSError) as error:
            problem = str(error)
        for name, estimator in self._estimators.items():
            try:
                if not problem:
                    errors = pair_errors(estimator, truth, self._check)
            except ValueError as error:
                raise ValueError(f"{name} on {sample.group} {sample.name}: {error}") from error
            yield {**row, "model": name, "problem": problem, **_to_row(errors)}


def _rows(
    samples: Sequence[Sample], estimators: Mapping[str, Estimator], check: OcclusionCheck
) -> Iterator[dict[str, Any]]:
    """A row for each sample and model, in any order."""
    # Its import takes seconds, which a wrong model's message shouldn't wait for.
    import ray.data

    num_actors, gpus = evaluating_processes(-(-len(samples) // _PAIRS_PER_BLOCK))
    num_blocks = min(len(samples), max(num_actors, len(samples) // _PAIRS_PER_BLOCK))
    rows = [{"sample": index} for index in range(len(samples))]
    device = torch.device("cuda" if gpus else "cpu")
    dataset = ray.data.from_items(rows, override_num_blocks=num_blocks).flat_map(
        _Evaluator,
        fn_constructor_args=(samples, estimators, check, device),
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=1,
        num_gpus=gpus,
    )
    yield from dataset.iter_rows()


def _to_row(errors: Errors) -> dict[str, int | float]:
    """One pair's errors as columns, of which every pair has the same: a slice without pixels is zeros."""
    slices = {name: errors.slices.get(name, SliceErrors()) for name in SLICES}
    columns = {
        f"{name} {field}": number for name, each in slices.items() for field, number in vars(each).items()
    }
    for name in UNCERTAINTIES:
        told = errors.uncertainties.get(name, Sparsification())
        columns |= {f"ause {name} {field}": number for field, number in vars(told).items()}
    return {**vars(errors.flow), **vars(errors.occlusion), **columns}


def _from_row(row: Mapping[str, Any]) -> Errors:
    flow = FlowErrors(**{name: row[name] for name in vars(FlowErrors())})
    occlusion = OcclusionCounts(**{name: row[name] for name in vars(OcclusionCounts())})
    slices = {
        # Counts that a block gives back as NumPy's integers wouldn't be JSON.
        name: SliceErrors(
            **{field: type(zero)(row[f"{name} {field}"]) for field, zero in vars(SliceErrors()).items()}
        )
        for name in SLICES
    }
    known = {name: errors for name, errors in slices.items() if errors.pixels}
    told = {
        name: Sparsification(area=float(row[f"ause {name} area"]), images=int(row[f"ause {name} images"]))
        for name in UNCERTAINTIES
    }
    return Errors(
        flow=flow,
        occlusion=occlusion,
        pairs=1,
        slices=known,
        uncertainties={name: each for name, each in told.items() if each.images},
    )
