"""What are models worth on real pairs with truth?"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from benchmarks import report
from benchmarks.inputs import read_chunks, real_sets
from flowcore.inference import InferenceOptions, estimate_frames
from flowcore.objectives import validate_pair
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.pseudolabels import Merge, merged
from flowcore.shapes import to_images
from jobs import evaluate
from jobs.recipes import RECIPES
from jobs.stages import Evaluate
from pipelines.checkpoints import load_model
from pipelines.evaluation import ErrorSummary
from pipelines.held_back import REFEREE
from pipelines.installation import PROJECT_FOLDER
from pipelines.models import SHIPPED_FOLDER, fetch_model

RESULTS = PROJECT_FOLDER / "docs" / "results" / "real-pixels"
STUDENT = SHIPPED_FOLDER / "laptop"
"""The network that was trained on real clips."""
VIDEOS = PROJECT_FOLDER / "docs" / "results" / "minutes" / "videos.tsv"
_FOLDERS = ("clips", "clips_more")
_UNSEEN_VIDEOS = 40
_AS_IT_IS = InferenceOptions()


def errors_on_real_pairs(
    data: Path,
    models: Mapping[str, str],
    *,
    together: Merge | None = None,
    inference: InferenceOptions = _AS_IT_IS,
) -> dict[str, dict[str, ErrorSummary]]:
    """The errors of models, by name, on each group of the real pairs with truth; of all of them `together`,
    too."""
    errors = {}
    for data_set in real_sets(data):
        stage = Evaluate(
            model=tuple(models.values()),
            truth=str(data_set),
            together=together,
            inference=inference,
        )
        results = evaluate.evaluate_models(models, stage)
        for group, total in next(iter(results.values())).groups.items():
            errors[f"{group}, {total.pairs} pairs"] = {
                name: result.groups[group].summary() for name, result in results.items()
            }
    return errors


def beside_dis(errors: Mapping[str, Mapping[str, Any]], dis: str, network: str) -> str:
    """The errors of a network and of DIS, by their names there, as its card has them."""
    rows = []
    for group, models in errors.items():
        both = [models[dis], models[network]]
        epe = [each["epe"][region] for region in ("all", "occ") for each in both]
        shown = ["-" if value is None else f"{value:.2f}" for value in epe]
        rows.append([group, *shown, *(f"{100 * each['fl']:.2f}" for each in both)])
    measures = ("EPE", "EPE occluded", "Fl %")
    heads = [f"{measure}, {who}" for measure in measures for who in ("DIS", "network")]
    return report.table(["pairs", *heads], rows)


def videos_learnt_from() -> list[dict[str, str]]:
    """The file, licence and source of each video that the networks of the release learnt from."""
    with VIDEOS.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def videos_of_the_release(data: Path) -> list[Path]:
    """These videos in DATA, which has them in `clips` or `clips_more`."""
    places = [data.resolve() / folder / each["file"] for each in videos_learnt_from() for folder in _FOLDERS]
    return [place for place in places if place.exists()]


def _unseen(data: Path) -> Iterator[ndarray]:
    """The first frames, two at least, uint8 [frames, height, width, 3], of each video that isn't in the list
    of those learnt from."""
    learnt = {each["file"] for each in videos_learnt_from()}
    for folder in _FOLDERS:
        for uri, frames in read_chunks(str(data / folder), RECIPES["video"].clips, most=1):
            if Path(uri).name not in learnt and len(frames) > 1:
                yield frames


@torch.no_grad()
def without_truth(
    data: Path,
    models: Mapping[str, str],
    labels: Mapping[str, Sequence[str]] = MappingProxyType({}),
    otherwise: Mapping[str, tuple[str, InferenceOptions]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The mean photometric error of the pixels that DIS finds visible, the same for every model, on a pair of
    each of some videos that aren't in the list of those learnt from.

    labels: the teachers among these models, by the name of their labels, each vector of the first one that
    agrees. otherwise: a model and how else it is run, by the name of the result.
    """
    # On a CPU, as it is asked for below.
    networks = {
        name: load_model(fetch_model(place))[0].ready(torch.device("cpu")) for name, place in models.items()
    }
    referee, check = REFEREE.build(), OcclusionCheck()
    sums = {name: np.zeros(2) for name in (*models, *labels, *otherwise)}
    num_videos = 0
    for frames in islice(_unseen(data), _UNSEEN_VIDEOS):
        num_videos += 1
        images = to_images(frames[:2])
        pair = Batch(image1=images[:1], image2=images[1:])
        hidden = check.both(*referee.estimate(pair.image1, pair.image2))
        flows = {model: each.estimate(pair.image1, pair.image2) for model, each in networks.items()}
        for name_of_labels, teachers in labels.items():
            both = [torch.cat(flows[teacher]) for teacher in teachers]
            height, width = images.shape[-2:]
            label = merged(both, 1, height, width, check, "first").flow
            flows[name_of_labels] = label[:1], label[1:]
        for name_of_flow, (model, options) in otherwise.items():
            estimated = estimate_frames(networks[model], [*frames[:2]], images.device, options, both=True)
            ((there, back),) = estimated
            assert back is not None
            flows[name_of_flow] = there, back
        for model, flow in flows.items():
            found = validate_pair(pair, *flow, check, hidden)
            sums[model] += found["comparable"], found["shown"]
    scores = {model: float(total / count) for model, (total, count) in sums.items()}
    return {"videos": num_videos, "scores": scores}
