"""Predicts the optical flow of a video, of a folder of images, or of every video in a folder.

    python jobs/predict.py --model models:/flow-student@champion --videos my_video.mp4 --output flow

Writes a .flo file for every two consecutive frames, at their own size, named after the first frame: <image's
stem>.flo, or 000000.flo and so on for a video. The videos of a folder get a folder each. The job is a run in
MLflow, linked to the run that made the model.
"""

import time
from dataclasses import dataclass

from jobs.command import run
from pipelines.checkpoints import absolute_model, fetch_model, load_model
from pipelines.cluster import connect, has_cluster
from pipelines.collection import absolute_collection
from pipelines.disclosure import plain, tell
from pipelines.storage import absolute


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Options of predict."""

    model: str
    """Checkpoint folder or its URI, runs:/<run id>/model, models:/<name>@<alias>, opencv:<name>,
    torchvision:<name> or ptlflow:<name>."""
    videos: str
    """The videos: a video, folder of images, folder of videos, glob, list file or URI, or a data set such as
    sintel:/data/MPI-Sintel."""
    output: str
    """Folder or URI to write the flow to. On a cluster all nodes must reach it."""
    pictures: bool = False
    """Also write each flow as a picture in colours, <name>.png."""
    video: bool = False
    """Also write a film of the frames beside the colours of their flow, flow.mp4."""


def main(stage: Predict) -> None:
    model, videos = absolute_model(stage.model, "--model"), absolute_collection(stage.videos, "--videos")
    output = absolute(stage.output, "--output")
    folder = fetch_model(model)
    # One video needs no Ray, which takes seconds to start.
    if has_cluster():
        connect()
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines.inference import PredictionOptions, predict
    from pipelines.lineage import lineage

    with lineage("predict", None, stage, {"videos": videos, "model": model}) as run:
        run.link("model", load_model(folder)[1].run_id)
        beside = PredictionOptions(pictures=stage.pictures, video=stage.video)
        started = time.monotonic()
        predictions = predict(str(folder), videos, output, beside, on_cluster=has_cluster())
        seconds = time.monotonic() - started
        num_pairs = sum(prediction.num_pairs for prediction in predictions)
        numbers = {"videos": len(predictions), "pairs": num_pairs, "seconds": seconds}
        numbers["pairs_per_second"] = num_pairs / seconds
        run.summary({f"predict/{name}": number for name, number in numbers.items()})
        for prediction in predictions:
            name, place = plain(prediction.source.name), plain(prediction.folder)
            tell(f"{name}: flow of {prediction.num_pairs} pairs in {place}")
        if problems := [prediction for prediction in predictions if prediction.problem is not None]:
            reasons = "\n".join(plain(f"{each.source.name}: {each.problem}") for each in problems)
            raise ValueError(
                f"the flow of {len(problems)} of {len(predictions)} videos is incomplete; repair or remove "
                f"these:\n{reasons}"
            )


if __name__ == "__main__":
    run(main, Predict)
