"""Predicts the optical flow of a video, of a folder of images, or of every video in a folder.

    python jobs/predict.py --model models:/flow-student@champion --videos my_video.mp4 --output my_flow

Writes a .flo for every two consecutive frames, at their own size, named after the first: <image's stem>.flo,
or for a video 000000.flo and so on by frame number. The videos of a folder get a folder each. It is a
run in MLflow, linked to the one that made the model.
"""

import time
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from jobs.command import run
from pipelines import tracking
from pipelines.checkpoints import absolute_model, fetch_model, load_model
from pipelines.cluster import connect, has_cluster
from pipelines.collection import absolute_collection
from pipelines.inference import PredictionOptions, predict
from pipelines.storage import absolute


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Options of predict."""

    model: str
    """Checkpoint folder or its URI, runs:/<run id>/model, models:/<name>@<alias>, opencv:<name>,
    torchvision:<name> or ptlflow:<name>."""
    videos: str
    """Video, folder of images, folder of videos, glob, list file or URI, or a data set as train_teacher takes
    it."""
    output: str
    """Folder or URI to write the flow to; on a cluster, one that all nodes share."""
    beside: Annotated[PredictionOptions, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff] = field(
        default_factory=PredictionOptions
    )


def main(options: Predict) -> None:
    # One video needs no Ray, which takes seconds to start.
    if has_cluster():
        connect()
    model, videos = absolute_model(options.model, "--model"), absolute_collection(options.videos, "--videos")
    output = absolute(options.output, "--output")
    inputs = {"videos": videos, "model": model}
    with tracking.start("predict", parameters=options, inputs=inputs) as run:
        folder = fetch_model(model)
        run.link("model", load_model(folder)[1].run_id)
        started = time.monotonic()
        predictions = predict(str(folder), videos, output, options.beside, on_cluster=has_cluster())
        seconds = time.monotonic() - started
        num_pairs = sum(prediction.num_pairs for prediction in predictions)
        run.summary(
            {
                "predict/videos": len(predictions),
                "predict/pairs": num_pairs,
                "predict/seconds": seconds,
                "predict/pairs_per_second": num_pairs / seconds,
            }
        )
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
