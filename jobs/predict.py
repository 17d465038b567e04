"""Predicts the optical flow of a video, of a folder of images, or of every video in a folder.

    python jobs/predict.py my_video.mp4
    python jobs/predict.py --model models:/flow-student@champion --videos my_videos --output flow

Writes a .flo file for every two consecutive frames, at their own size, named after the first frame: <image's
stem>.flo, or 000000.flo and so on for a video. The videos of a folder get a folder each. The same command
again finishes what is missing. The job is a run in MLflow, linked to the run that made the model.
"""

import re
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from jobs.command import run
from pipelines.cluster import connect, has_cluster
from pipelines.collection import absolute_collection
from pipelines.disclosure import plain, tell
from pipelines.flow_files import PredictionOptions
from pipelines.models import BEST, absolute_model, fetch_model
from pipelines.storage import absolute, split


@dataclass(frozen=True, kw_only=True)
class Predict(PredictionOptions):
    """Options of predict."""

    model: str = BEST
    """Checkpoint folder or its URI, runs:/<run id>/model, models:/<name>@<alias>, hf://<owner>/<name>,
    opencv:<name>, torchvision:<name>, ptlflow:<name>, or what comes with this software: distillflow:video, or
    distillflow:laptop, which is several times as fast on a CPU and less accurate."""
    videos: str
    """The videos: a video, folder of images, folder of videos, glob, list file or URI, a data set such as
    sintel:/data/MPI-Sintel, or the number of a camera such as 0, whose next frames are recorded beside
    --output. As the first word it needs no --videos."""
    output: str = ""
    """Folder or URI to write the flow to; without it <name of the videos>-flow, where you are. On a cluster
    all nodes must reach it."""

    common: ClassVar[tuple[str, ...]] = (
        *("model", "output", "format", "occlusion", "pictures", "video", "stride", "limit"),
        "inference.scale",
    )
    goes_on: ClassVar[bool] = True
    first_word: ClassVar[str] = "videos"

    @property
    def place(self) -> str:
        """Where the flow is written to."""
        (name,) = re.findall(r"^[\w -]*", Path(self.videos).name)
        return absolute(self.output or f"{name or 'my'}-flow", "--output")

    @property
    def is_of_camera(self) -> bool:
        """Whether the videos are the number of a camera."""
        is_number = self.videos.isascii() and self.videos.isdecimal() and len(self.videos) <= 3
        return is_number and not Path(self.videos).exists()

    @property
    def prediction(self) -> PredictionOptions:
        """What is estimated and written, of which video whatsoever."""
        return PredictionOptions(
            **{each.name: getattr(self, each.name) for each in fields(PredictionOptions)}
        )


def main(stage: Predict) -> None:
    model, output = absolute_model(stage.model, "--model"), stage.place
    videos = "" if stage.is_of_camera else absolute_collection(stage.videos, "--videos")
    folder = fetch_model(model)
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines.prediction import PredictionPlan, PredictionSummary

    if stage.is_of_camera:
        from pipelines.camera import film_of, recorded

        camera = int(stage.videos)
        # Whatever else is wrong has left no film.
        PredictionPlan.of_film(str(folder), film_of(camera, output), output, stage.prediction)
        videos = recorded(camera, output, stage.limit, stage.stride)
    plan = PredictionPlan.of(str(folder), videos, output, stage.prediction)
    # One video needs no Ray, which takes seconds to start.
    if has_cluster():
        connect()
    from pipelines.lineage import lineage

    made_from = {"videos": videos, "model": model}
    with lineage("predict", None, stage, made_from, subject=split(videos)[1]) as run:
        run.link("model", plan.card.run_id)
        run.dataset("videos", videos, plan.videos_digest, "prediction")
        started = time.monotonic()
        predicted = plan.predict(on_cluster=has_cluster())
        summary = PredictionSummary(videos=tuple(predicted), seconds=time.monotonic() - started)
        run.summary(summary.metrics())
        for video in summary.videos:
            was_there = "" if video.is_new else ", which was there already"
            name, place = plain(video.source.name), plain(video.folder)
            tell(f"{name}: flow of {video.num_pairs} pairs in {place}{was_there}")
        summary.require_complete()


if __name__ == "__main__":
    run(main, Predict)
