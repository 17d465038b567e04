"""How far are models from a benchmark's truth?

Every pair gives sums and counts, which the driver adds in the samples' order: however the pairs were spread
over processes, the numbers are the same to the last bit. All models see a pair together: it is read once, and
a comparison is of equal pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import ray
import ray.data
import torch
from tqdm import tqdm

from flowcore import datasets
from flowcore.datasets import Sample, Truth
from flowcore.drawing import Picture, Prediction, comparison_panel
from flowcore.metrics import (
    FlowErrors,
    OcclusionCounts,
    OcclusionSummary,
    RegionMeans,
    flow_errors,
    occlusion_counts,
)
from flowcore.networks import FlowNetwork
from flowcore.occlusion import ForwardBackwardCheck
from flowcore.shapes import FlowArray, Frame, to_images
from pipelines.checkpoints import fetch_model, load_model
from pipelines.cluster import evaluating_processes
from pipelines.storage import shared_folder

DEFAULT_CHECK = ForwardBackwardCheck()
"""What says which pixels are occluded, with DDFlow's constants."""

ZERO = "zero"
"""The model that answers no motion."""
_PAIRS_PER_BLOCK = 16
"""A block costs Ray some 40 ms, a pair at least as much."""


class Estimator(Protocol):
    """What is evaluated: makes flow out of two frames, can be sent to another process."""

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        """Flow from image1 to image2 and back, in pixels."""

    def to(self, device: torch.device) -> None:
        """Computes there from now on, if it can."""


class ErrorSummary(TypedDict):
    """What is reported of a set of pairs; can be written as JSON. EPE in pixels, fl as a fraction."""

    epe: RegionMeans
    fl: float | None
    occlusion: OcclusionSummary
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Errors:
    """What a model got wrong on some pairs; two added are that of both sets together."""

    flow: FlowErrors = field(default_factory=FlowErrors)
    occlusion: OcclusionCounts = field(default_factory=OcclusionCounts)
    pairs: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            flow=self.flow + other.flow,
            occlusion=self.occlusion + other.occlusion,
            pairs=self.pairs + other.pairs,
        )

    def summary(self) -> ErrorSummary:
        return {**self.flow.summary(), "occlusion": self.occlusion.summary(), "pairs": self.pairs}

    def metrics(self, prefix: str) -> dict[str, float]:
        """What is known, by path: `<prefix>/epe/occ`, `<prefix>/fl/all`, `<prefix>/occlusion/f1`."""
        values = {
            **{f"epe/{region}": value for region, value in self.flow.epe.items()},
            "fl/all": self.flow.fl,
            **{f"occlusion/{name}": value for name, value in self.occlusion.summary().items()},
            "pairs": self.pairs,
        }
        return {f"{prefix}/{name}": float(value) for name, value in values.items() if value is not None}  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One model's errors on each pair of a benchmark."""

    benchmark: str
    pairs: tuple[tuple[Sample, Errors], ...]

    @property
    def total(self) -> Errors:
        """Over all pairs."""
        return sum((errors for _, errors in self.pairs), Errors())

    @property
    def groups(self) -> dict[str, Errors]:
        """By the samples' group, such as sintel/clean."""
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
        return {"benchmark": self.benchmark, **self.total.summary(), "groups": groups}

    def metrics(self) -> dict[str, float]:
        """The groups' metrics by path, as in training; where there are several groups, the total's too."""
        groups = self.groups
        values = {} if len(groups) == 1 else self.total.metrics(self.benchmark)
        for name, errors in groups.items():
            values.update(errors.metrics(name))
        return values


def evaluate(
    models: Mapping[str, str],
    benchmark: str,
    root: str | Path,
    *,
    check: ForwardBackwardCheck = DEFAULT_CHECK,
) -> dict[str, EvaluationResult]:
    """The errors of each of `models` (name -> what `load_estimator` takes) on a benchmark, on Ray's nodes.

    `root` is the benchmark's folder, which all nodes must share. Raises what `find_samples` and `fetch_model`
    raise, and ValueError where a model can't do a pair.
    """
    samples = datasets.find_samples(benchmark, shared_folder(str(root), "--root"))
    estimators = {name: load_estimator(model) for name, model in models.items()}
    errors: dict[tuple[str, int], Errors] = {}
    with tqdm(desc=f"evaluate {benchmark}", total=len(samples), unit="pair", dynamic_ncols=True) as bar:
        for row in _rows(samples, estimators, check):
            errors[row["model"], row["sample"]] = _from_row(row)
            bar.update(len(errors) // len(models) - bar.n)
    return {
        name: EvaluationResult(
            benchmark=benchmark,
            pairs=tuple((sample, errors[name, index]) for index, sample in enumerate(samples)),
        )
        for name in models
    }


def load_estimator(model: str) -> Estimator:
    """`zero` (no motion), or the network at a URI for `fetch_model`."""
    if model == ZERO:
        return NoMotion()
    network, _ = load_model(fetch_model(model))
    return NetworkEstimator(network)


def pair_errors(estimator: Estimator, truth: Truth, check: ForwardBackwardCheck) -> Errors:
    """One pair's errors; occlusion is what the check makes of the flow in both directions.

    Of stereo pairs: of disparity, which is -u. Then fl is D1, whose limits are the same, 3 px and 5 %.
    """
    flow_fw, flow_bw = (torch.from_numpy(flow)[None] for flow in estimator(truth.image1, truth.image2))
    true_flow, valid = torch.from_numpy(truth.flow)[None], torch.from_numpy(truth.valid)[None, None]
    asked = torch.stack([flow_fw[:, 0], true_flow[:, 1]], dim=1) if truth.is_stereo else flow_fw
    if truth.occluded is None:
        return Errors(flow=flow_errors(asked, true_flow, valid, None), pairs=1)
    occluded = torch.from_numpy(truth.occluded)[None, None]
    return Errors(
        flow=flow_errors(asked, true_flow, valid, occluded),
        occlusion=occlusion_counts(check(flow_fw, flow_bw), occluded, valid),
        pairs=1,
    )


def table(title: str, rows: Mapping[str, Errors]) -> str:
    """The errors of several models on the same pairs, readable as text and as Markdown."""
    head = [title, "EPE all", "EPE noc", "EPE occ", "Fl %", "occlusion F"]
    lines = [[name, *_cells(errors)] for name, errors in rows.items()]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in [head, rule, *lines]
    )


def example(sample: Sample, estimators: Mapping[str, Estimator], check: ForwardBackwardCheck) -> Picture:
    """A sample with its truth and what each model makes of it."""
    truth = datasets.load(sample)
    return comparison_panel(
        truth.image1,
        truth.image2,
        truth=truth.flow,
        valid=truth.valid,
        occlusion=truth.occluded,
        predictions=predictions(truth.image1, truth.image2, estimators, check),
    )


def predictions(
    image1: Frame, image2: Frame, estimators: Mapping[str, Estimator], check: ForwardBackwardCheck
) -> dict[str, Prediction]:
    """Flow and occlusion by model, for a `comparison_panel`."""
    both = {name: estimator(image1, image2) for name, estimator in estimators.items()}
    return {
        name: Prediction(
            flow_fw, check(torch.from_numpy(flow_fw)[None], torch.from_numpy(flow_bw)[None])[0, 0].numpy()
        )
        for name, (flow_fw, flow_bw) in both.items()
    }


class NoMotion:
    """The estimator that says that nothing moves: its EPE is the mean motion."""

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        flow = np.zeros((2, *image1.shape[:2]), np.float32)
        return flow, flow

    def to(self, device: torch.device) -> None:
        pass


class NetworkEstimator:
    """A network of ours."""

    def __init__(self, network: FlowNetwork) -> None:
        self._network = network.eval()
        self._device = torch.device("cpu")

    def __call__(self, image1: Frame, image2: Frame) -> tuple[FlowArray, FlowArray]:
        flow_fw, flow_bw = self._network.estimate(
            *(to_images(image[None], self._device) for image in (image1, image2))
        )
        return flow_fw[0].cpu().numpy(), flow_bw[0].cpu().numpy()

    def to(self, device: torch.device) -> None:
        self._device = device
        self._network.to(device)


class _Evaluator:
    """Holds the models in one process and does one sample after another."""

    def __init__(
        self,
        samples: Sequence[Sample],
        estimators: Mapping[str, Estimator],
        check: ForwardBackwardCheck,
        device: torch.device,
    ) -> None:
        self._samples = samples
        self._estimators = estimators
        self._check = check
        for estimator in estimators.values():
            estimator.to(device)

    def __call__(self, row: dict[str, int]) -> Iterator[dict[str, Any]]:
        sample = self._samples[row["sample"]]
        truth = datasets.load(sample)
        for name, estimator in self._estimators.items():
            try:
                errors = pair_errors(estimator, truth, self._check)
            except ValueError as error:
                raise ValueError(f"{name} on {sample.group} {sample.name}: {error}") from error
            yield {**row, "model": name, **vars(errors.flow), **vars(errors.occlusion)}


def _rows(
    samples: Sequence[Sample], estimators: Mapping[str, Estimator], check: ForwardBackwardCheck
) -> Iterator[dict[str, Any]]:
    """One row a sample and model, in any order."""
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


def _from_row(row: Mapping[str, Any]) -> Errors:
    flow = FlowErrors(**{name: row[name] for name in vars(FlowErrors())})
    occlusion = OcclusionCounts(**{name: row[name] for name in vars(OcclusionCounts())})
    return Errors(flow=flow, occlusion=occlusion, pairs=1)


def _cells(errors: Errors) -> list[str]:
    epe, fl, f1 = errors.flow.epe, errors.flow.fl, errors.occlusion.f1
    numbers = [epe["all"], epe["noc"], epe["occ"], None if fl is None else 100 * fl, f1]
    return ["-" if number is None else f"{number:.2f}" for number in numbers]
