"""What is the flow of somebody's video? One file for every two consecutive frames, at the frames' own size.

Nothing is left out, unlike in labelling: static pairs and pairs across a cut have a flow too. Each frame is
decoded and encoded once, its features wait for the next one, and memory holds a few frames however long the
video is.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import av
import numpy as np
import ray
import torch
from av.container import OutputContainer
from torch import Tensor
from tqdm import tqdm

from flowcore.datasets import DataSet
from flowcore.drawing import Picture, flow_colors
from flowcore.formats import FrameCodec, write_flow, write_image
from flowcore.geometry import pad_to_multiple, upsample_flow
from flowcore.networks import FlowNetwork
from flowcore.shapes import FlowArray, Frame, to_images
from flowcore.video import EVERY_PAIR, VideoError, VideoReport
from pipelines.checkpoints import fetch_model, load_model
from pipelines.cluster import num_gpus
from pipelines.collection import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    VideoSource,
    absolute_collection,
    find_videos,
)
from pipelines.decoding import DecoderProcess, EncodedChunk
from pipelines.storage import shared_folder

FILM_NAME = "flow.mp4"

_EVERY_PAIR = replace(EVERY_PAIR, chunk_pairs=4, min_size=(1, 1))
_LOSSLESS = FrameCodec("png")
_DEFAULT_RATE = Fraction(25)


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What is written beside the flow."""

    pictures: bool = False
    """Each flow as colours too, `<name>.png`."""
    video: bool = False
    """The frames beside the colours of their flow, `flow.mp4`."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What came of one video so far; `problem` says why pairs are missing, None if none are known to be."""

    source: VideoSource
    folder: Path
    num_pairs: int = 0
    problem: str | None = None


def predict(
    model: str, videos: str, output: str, options: PredictionOptions, *, on_cluster: bool = False
) -> list[Prediction]:
    """Writes a .flo for every two consecutive frames of a video, an image sequence, or all of a collection.

    `model` is what `fetch_model` takes, `videos` what `find_videos` takes. A file is named after the pair's
    first frame: the image's stem, or in a video its number in six digits. Files lie in the folder `output`;
    those of a collection, in a folder for each video there. With `on_cluster` Ray's nodes do the work, each
    video on a GPU where the cluster has any now; they must share the folders. Raises FileNotFoundError where
    there is nothing to predict, ValueError where files would be mixed up.
    """
    folders = _folders(videos, output)
    network, _ = load_model(fetch_model(model))
    is_counted = all(source.frames for source in folders)
    total = sum(len(source.frames) - 1 for source in folders) if is_counted else None
    results = []
    with tqdm(desc="predict", total=total, unit="pair", dynamic_ncols=True) as bar:
        for progress in _started(network, folders, options, on_cluster):
            latest = None
            for latest in progress:
                bar.update(1 if latest.problem is None else 0)
            assert latest is not None
            results.append(latest)
    return results


def predict_video(
    network: FlowNetwork, source: VideoSource, folder: Path, options: PredictionOptions
) -> Iterator[Prediction]:
    """Predicts one video; yields after each pair, and at the end once more if pairs are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    num_pairs, scale = 0, 0.0
    with DecoderProcess() as decoder, _Film(folder / FILM_NAME) as film:
        try:
            for pair in _pairs(decoder, source, _StreamedFlow(network)):
                write_flow(folder / f"{pair.name}.flo", pair.flow)
                if options.pictures or options.video:
                    # It only rises, so that neighbours can be compared and a film doesn't flicker.
                    scale = max(scale, float(np.percentile(np.hypot(*pair.flow), 99)))
                    colors = flow_colors(pair.flow, scale)
                    if options.pictures:
                        write_image(folder / f"{pair.name}.png", colors)
                    if options.video:
                        film.add(np.concatenate([pair.image1, colors], axis=1), pair.seconds)
                num_pairs += 1
                yield Prediction(source=source, folder=folder, num_pairs=num_pairs)
            problem = _problem(source, decoder.report, decoder.report.truncated)
        except VideoError as error:
            problem = _problem(source, decoder.report, str(error))
    if problem is not None:
        if num_pairs == 0:
            problem += "; flow needs two consecutive frames of one size"
        yield Prediction(source=source, folder=folder, num_pairs=num_pairs, problem=problem)


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
                yield _Pair(name=_name(source, last[0]), image1=last[2], flow=flow, seconds=time - last[1])
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


class _Film:
    """An H.264 video that is written picture by picture and appears when it is whole; without a picture,
    none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._container: OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def add(self, picture: Picture, seconds: float) -> None:
        """`seconds` from one picture to the next; the first one's counts."""
        # H.264 has even sides.
        even = np.pad(picture, [(0, side % 2) for side in picture.shape[:2]] + [(0, 0)], mode="edge")
        if self._container is None or self._stream is None:
            self._container = av.open(str(self._part), "w", format="mp4")
            rate = _rate(seconds)
            self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": "18"})
            self._stream.height, self._stream.width = even.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None or self._stream is None:
            return
        if error is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        if error is None:
            self._part.replace(self._path)
        else:
            self._part.unlink()


def _rate(seconds: float) -> Fraction:
    """Pictures a second."""
    if math.isnan(seconds) or seconds <= 0:
        return _DEFAULT_RATE
    return Fraction(1 / seconds).limit_denominator(1001)


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
    network: FlowNetwork, folders: dict[VideoSource, Path], options: PredictionOptions, on_cluster: bool
) -> Iterator[Iterator[Prediction]]:
    if not on_cluster:
        for source, folder in folders.items():
            yield predict_video(network, source, folder, options)
        return
    task: Any = ray.remote(num_cpus=1, num_gpus=min(1, num_gpus()))(predict_video)
    held = ray.put(network)
    # All at once: Ray starts as many as there is room for.
    running = [task.remote(held, source, folder, options) for source, folder in folders.items()]
    for references in running:
        yield (ray.get(reference) for reference in references)


def _folders(videos: str, output: str) -> dict[VideoSource, Path]:
    """Where each video's flow goes."""
    collection, target = absolute_collection(videos, "--input"), shared_folder(output, "--output")
    data_set = DataSet.parse(collection)
    place = collection if data_set is None else data_set.root
    if data_set is None:
        _refuse_ambiguous(place)
    sources = find_videos(collection)
    if len(sources) == 1 and sources[0].name == os.path.abspath(place):
        folders = {sources[0]: target}
    else:
        names = _folder_names(sources, place)
        folders = {source: target / name for source, name in zip(sources, names, strict=True)}
    for source, folder in folders.items():
        if source.frames and folder.resolve() == Path(source.uri).resolve():
            raise ValueError(f"--output {folder} holds the images that are read; write to another folder")
        stems = Counter(_name(source, index) for index in range(len(source.frames)))
        if twice := ", ".join(stem for stem, count in stems.items() if count > 1):
            raise ValueError(
                f"{source.name} has several images named {twice}, and flow is named after images; keep one "
                "kind of image in a folder"
            )
    return folders


def _refuse_ambiguous(place: str) -> None:
    """ValueError for one image, and for a folder that may be meant as a sequence or as a collection."""
    path = Path(place)
    if path.is_file() and _extension(path) in IMAGE_EXTENSIONS:
        raise ValueError(f"--input {place} is one image and flow needs two; give the folder of the sequence")
    if path.is_dir():
        kinds = Counter(_extension(file) for file in path.iterdir() if not file.name.startswith("."))
        num_images = sum(kinds[extension] for extension in IMAGE_EXTENSIONS)
        num_videos = sum(kinds[extension] for extension in VIDEO_EXTENSIONS)
        if num_images > 1 and num_videos:
            raise ValueError(
                f"--input {place} holds {num_images} images and {num_videos} videos; give a video itself, or "
                "a folder with only the images"
            )


def _folder_names(sources: list[VideoSource], place: str) -> list[str]:
    """For each video of a collection, its path inside it, without the extension where that suffices."""
    paths = [
        unquote(urlsplit(source.name).path) if "://" in source.name else source.name for source in sources
    ]
    base = os.path.abspath(place) if os.path.isdir(place) else os.path.commonpath(map(os.path.dirname, paths))
    whole = [os.path.relpath(path, base) for path in paths]
    short = [
        name if source.frames else os.path.splitext(name)[0]
        for name, source in zip(whole, sources, strict=True)
    ]
    counts = Counter(short)
    return [brief if counts[brief] == 1 else name for brief, name in zip(short, whole, strict=True)]


def _name(source: VideoSource, index: int) -> str:
    return Path(source.frames[index]).stem if source.frames else f"{index:06d}"


def _extension(path: Path) -> str:
    return path.suffix[1:].lower()
