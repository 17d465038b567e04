"""What is the flow of a video? One file for every two consecutive frames, at the frames' own size.

Unlike labelling, prediction leaves nothing out: static pairs and pairs across a cut have a flow too. Each
frame is decoded and encoded once, and memory holds a few frames however long the video is.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from flowcore.chunks import VideoReport
from flowcore.drawing import flow_colors
from flowcore.formats import FrameCodec, encode_flow, encode_image
from flowcore.geometry import pad_to_multiple, upsample_flow
from flowcore.networks import FlowNetwork
from flowcore.shapes import FlowArray, Frame, to_images
from flowcore.video import EVERY_PAIR, VideoError
from pipelines.checkpoints import fetch_model, load_model
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess
from pipelines.decoding_answers import EncodedChunk
from pipelines.destinations import destinations, flow_name
from pipelines.film import film
from pipelines.progress import bar
from pipelines.room import predicting_room
from pipelines.storage import Folder

_EVERY_PAIR = replace(EVERY_PAIR, chunk_pairs=4, min_size=(1, 1))
_LOSSLESS = FrameCodec("png")


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What is written beside the flow."""

    pictures: bool = False
    """Also write each flow as colours, `<name>.png`."""
    video: bool = False
    """Also write a film, `flow.mp4`: the frames beside the colours of their flow."""


@dataclass(frozen=True, kw_only=True)
class PredictedVideo:
    """What has been written of a video's flow so far."""

    source: VideoSource
    folder: str
    """Path or URI."""
    num_pairs: int = 0
    problem: str | None = None
    """Why pairs are missing; None if none are known to be."""


def predict(
    model: str, videos: str, output: str, options: PredictionOptions, *, on_cluster: bool = False
) -> list[PredictedVideo]:
    """Writes a .flo for every two consecutive frames of a video, an image sequence, or a whole collection.

    `model` is what `fetch_model` takes, `videos` what `find_videos` takes, and `output` a folder or its URI.
    A file is named after the first frame of its pair: the image's stem, or in a video the frame's number in
    six digits. The files of one video lie in `output` itself, those of a collection in a folder for each
    video.

    With `on_cluster` Ray's nodes do the work, each video on a GPU if the cluster has any now; all nodes must
    be able to read the videos and write the output. Raises FileNotFoundError where there is nothing to
    predict, ValueError where files would overwrite each other.
    """
    folders = destinations(videos, output)
    network, _ = load_model(fetch_model(model))
    is_counted = all(source.frames for source in folders)
    total = sum(len(source.frames) - 1 for source in folders) if is_counted else None
    results = []
    with bar("predict", "pair", total) as drawn:
        for progress in _started(network, folders, options, on_cluster):
            latest = None
            for latest in progress:
                drawn.update(1 if latest.problem is None else 0)
            assert latest is not None
            results.append(latest)
    return results


def predict_video(
    network: FlowNetwork, source: VideoSource, location: str, options: PredictionOptions
) -> Iterator[PredictedVideo]:
    """Predicts one video; yields after each pair, and once more at the end if pairs are missing."""
    if source.misnomer:
        yield PredictedVideo(source=source, folder=location, problem=source.misnomer)
        return
    folder = Folder(location)
    num_pairs, scale = 0, 0.0
    with DecoderProcess() as decoder, film(folder) as shown, _OneAhead() as writer:
        try:
            for pair in _pairs(decoder, source, _StreamedFlow(network)):
                files = {f"{pair.name}.flo": encode_flow(pair.flow, f"{pair.name}.flo")}
                if options.pictures or options.video:
                    # The scale only rises, so that neighbours can be compared and a film doesn't flicker.
                    scale = max(scale, float(np.percentile(np.hypot(*pair.flow), 99)))
                    colors = flow_colors(pair.flow, scale)
                    if options.pictures:
                        files[f"{pair.name}.png"] = encode_image(colors, f"{pair.name}.png")
                    if options.video:
                        shown.add(np.concatenate([pair.image1, colors], axis=1), pair.seconds)
                writer.write(folder, files)
                num_pairs += 1
                yield PredictedVideo(source=source, folder=location, num_pairs=num_pairs)
            problem = _problem(source, decoder.report, decoder.report.truncated)
        except VideoError as error:
            problem = _problem(source, decoder.report, str(error))
    if problem is not None:
        if num_pairs == 0:
            problem += "; flow needs two consecutive frames of one size"
        yield PredictedVideo(source=source, folder=location, num_pairs=num_pairs, problem=problem)


class _OneAhead:
    """Writes the files of a pair while the next pair is computed: a disk takes 10 ms to make a file durable,
    object storage more."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def write(self, folder: Folder, files: dict[str, bytes]) -> None:
        """Waits for the files before; raises what writing them raised."""
        self._finish()
        self._last = self._thread.submit(_write_all, folder, files)

    def _finish(self) -> None:
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> "_OneAhead":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._finish()


def _write_all(folder: Folder, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        folder.write(name, content)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    name: str
    """Of the first frame."""
    image1: Frame
    flow: FlowArray
    seconds: float
    """From the first frame to the second; nan if unknown."""


def _pairs(decoder: DecoderProcess, source: VideoSource, estimate: "_StreamedFlow") -> Iterator[_Pair]:
    last: tuple[int, float, Frame] | None = None
    for chunk in _chunks(decoder, source):
        # A chunk that goes on begins with the frame that the one before ended with.
        if last is None or chunk.frame_indices[0] != last[0]:
            last = None
            estimate.forget()
        frames = zip(chunk.frame_indices, chunk.timestamps, chunk.frames, strict=True)
        for index, time, data in list(frames)[0 if last is None else 1 :]:
            image = _LOSSLESS.decode(data)
            flow = estimate(image)
            if last is not None and flow is not None:
                yield _Pair(
                    name=flow_name(source, last[0]), image1=last[2], flow=flow, seconds=time - last[1]
                )
            last = index, time, image


def _chunks(decoder: DecoderProcess, source: VideoSource) -> Iterator[EncodedChunk]:
    """VideoError for whatever keeps a video from being read: here no other run will try again."""
    try:
        yield from decoder.read(source, _EVERY_PAIR, _LOSSLESS)
    except OSError as error:
        raise VideoError(str(error)) from error


class _StreamedFlow:
    """Flow from each frame to the next; the frames come one by one."""

    def __init__(self, network: FlowNetwork) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.ready(self._device)
        self._features: list[Tensor] | None = None

    def forget(self) -> None:
        """The next frame follows none."""
        self._features = None

    @torch.inference_mode()
    def __call__(self, image: Frame) -> FlowArray | None:
        """The flow from the frame before to `image`, None for a first frame."""
        height, width = image.shape[:2]
        frame = to_images(image[None], self._device)
        before, self._features = (
            self._features,
            self._network.encode(pad_to_multiple(frame, self._network.multiple)),
        )
        if before is None:
            return None
        finest = self._network.decode(before, self._features)[0]
        flow: FlowArray = upsample_flow(finest, self._network.strides[0], height, width)[0].cpu().numpy()
        return flow


def _problem(source: VideoSource, report: VideoReport, failure: str | None) -> str | None:
    """Why pairs are missing, if any are."""
    reasons = []
    if failure is not None:
        last = source.frames[: report.frames_read][-1:]
        reasons.append(f"{failure} (read as far as {last[0]})" if last else failure)
    if report.cuts:
        reasons.append(
            f"{report.cuts} pair(s) have no flow, because the frames' size changes or a damaged frame is "
            "missing there; give each size its own folder or video"
        )
    return "; ".join(reasons) or None


def _started(
    network: FlowNetwork, folders: dict[VideoSource, str], options: PredictionOptions, on_cluster: bool
) -> Iterator[Iterator[PredictedVideo]]:
    if not on_cluster:
        for source, folder in folders.items():
            yield predict_video(network, source, folder, options)
        return
    task: Any = ray.remote(**predicting_room())(predict_video)
    held = ray.put(network)
    # All at once: Ray starts as many as there is room for.
    running = [task.remote(held, source, folder, options) for source, folder in folders.items()]
    for references in running:
        yield (ray.get(reference) for reference in references)
