"""Predicts the optical flow of a video, of a folder of images, or of every video in a folder.

    python jobs/predict.py --model models:/flow-student@champion --input my_video.mp4 --output my_flow

Writes a .flo for every two consecutive frames, at their own size, named after the first: <image's stem>.flo,
or for a video 000000.flo and so on by frame number. The videos of a folder get a folder each.
"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from jobs.command import connect, has_cluster, run
from pipelines.inference import PredictionOptions, predict
from pipelines.locations import absolute


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Options of predict."""

    model: str
    """Checkpoint folder or its URI, runs:/<run id>/model, or models:/<name>@<alias>."""
    input: str
    """Video, folder of images, folder of videos, glob, list file or URI, or a data set as train_teacher takes
    it."""
    output: str
    """Folder for the flow, made if it is missing; on a cluster, one that all nodes share."""
    beside: Annotated[PredictionOptions, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff] = field(
        default_factory=PredictionOptions
    )


def main(options: Predict) -> None:
    # One video needs no Ray, which takes seconds to start.
    if has_cluster():
        connect()
    model = absolute(options.model, "--model")
    predictions = predict(model, options.input, options.output, options.beside, on_cluster=has_cluster())
    for prediction in predictions:
        print(f"{prediction.source.name}: flow of {prediction.num_pairs} pairs in {prediction.folder}")
    if problems := [prediction for prediction in predictions if prediction.problem is not None]:
        reasons = "\n".join(f"{prediction.source.name}: {prediction.problem}" for prediction in problems)
        raise ValueError(
            f"the flow of {len(problems)} of {len(predictions)} videos is incomplete; repair or remove "
            f"these:\n{reasons}"
        )


if __name__ == "__main__":
    run(main, Predict)
