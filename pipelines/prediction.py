"""How does a collection get its flow? Video by video, here or on Ray's nodes, each in a folder whose
record says what is there, so that a rerun of the same command does nothing twice.
"""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import ray
import torch
from ray.exceptions import NodeDiedError, OutOfMemoryError, RaySystemError, WorkerCrashedError

from flowcore.chunks import VideoReport
from flowcore.drawing import motion_scale
from flowcore.networks import FlowNetwork
from flowcore.networks.interface import no_scale
from flowcore.video import VideoError
from pipelines.checkpoints import ModelInfo, load_model
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess
from pipelines.destinations import destinations, flow_name
from pipelines.disclosure import plain
from pipelines.film import draw
from pipelines.flow_files import PredictionOptions, files_of_pair, write_pair, written_flow
from pipelines.flow_folder import RECORD_FILE, FlowRecord, FlowTask, flow_task, require_plain_folders
from pipelines.flow_table import flow_table
from pipelines.inference import EstimatedPair, SeenPair, VideoFlow
from pipelines.models import fetch_model
from pipelines.progress import Progress
from pipelines.room import predicting_room, resources
from pipelines.storage import Folder, absolute, concurrently, json_bytes, refuses_files

_FEWEST_BEGUN = 64
"""Videos that wait or run at once on a cluster, however small: it may grow with what waits."""


@dataclass(frozen=True, kw_only=True)
class PredictedVideo:
    """What has been written of a video's flow so far."""

    source: VideoSource
    folder: str
    """Path or URI."""
    num_pairs: int = 0
    share: float = 0.0
    """Of the video, as far as that is known, in [0, 1]."""
    num_drawn: int = 0
    """Of its pairs, once all flow is there."""
    is_new: bool = True
    """False where an earlier run had done it all."""
    problem: str | None = None
    """Why pairs are missing; None if none are known to be."""


@dataclass(frozen=True, kw_only=True)
class PredictionSummary:
    """What a prediction did."""

    videos: tuple[PredictedVideo, ...]
    seconds: float
    """How long it took."""

    def metrics(self) -> dict[str, float]:
        """What the run in MLflow logs."""
        new_pairs = sum(video.num_pairs for video in self.videos if video.is_new)
        numbers = {
            "videos": len(self.videos),
            "pairs": sum(video.num_pairs for video in self.videos),
            "new_pairs": new_pairs,
            "seconds": self.seconds,
            "pairs_per_second": new_pairs / self.seconds,
        }
        return {f"predict/{name}": float(number) for name, number in numbers.items()}

    def require_complete(self) -> None:
        """ValueError, with each reason, where pairs of a video are missing."""
        if problems := [video for video in self.videos if video.problem is not None]:
            reasons = "\n".join(plain(f"{video.source.name}: {video.problem}") for video in problems)
            raise ValueError(
                f"the flow of {len(problems)} of {len(self.videos)} videos is incomplete; repair or remove "
                f"these:\n{reasons}"
            )


@dataclass(frozen=True, kw_only=True)
class PredictionPlan:
    """What a prediction will do: its input was checked, and nothing is written yet."""

    network: FlowNetwork
    card: ModelInfo
    """Of the network."""
    tasks: tuple[FlowTask, ...]
    """One a video."""
    options: PredictionOptions

    @classmethod
    def of(cls, model: str, videos: str, output: str, options: PredictionOptions) -> Self:
        """The plan for a video, an image sequence, or a whole collection.

        `model` is what `fetch_model` takes, `videos` what `find_videos` takes, and `output` a folder or its
        URI. A file is named after the first frame of its pair: the image's stem, or in a video the frame's
        number in six digits. The files of one video lie in `output` itself, those of a collection in a folder
        for each video.

        Raises FileNotFoundError where there is nothing to predict, ValueError where files would overwrite
        each other, what is read, or anything but the flow of the same video and model, and where the model
        can't give what is asked for.
        """
        return cls._of(model, destinations(videos, output), output, options)

    @classmethod
    def of_film(cls, model: str, film: str, output: str, options: PredictionOptions) -> Self:
        """As `of`, for one video that needn't be there yet, to check all else before it is made."""
        return cls._of(model, {VideoSource(film): absolute(output, "--output")}, output, options)

    @classmethod
    def _of(
        cls, model: str, folders: Mapping[VideoSource, str], output: str, options: PredictionOptions
    ) -> Self:
        network, card = load_model(fetch_model(model))
        if options.uncertainty and not network.predicts_scale:
            raise ValueError(
                f"--uncertainty can't be written: {no_scale(f'--model {model}')}; take --occlusion for "
                "another network, whose <name>_confidence.png tells how well the flows there and back agree"
            )
        options.inference.apply(network)
        require_plain_folders(absolute(output, "--output"), folders.values())
        tasks = concurrently(lambda each: flow_task(*each, card.digest, options), list(folders.items()))
        return cls(network=network, card=card, tasks=tuple(tasks), options=options)

    @property
    def videos_digest(self) -> str:
        """Of the names of the videos that can be read, and of their files as these are now."""
        stamps = {task.source.name: task.wanted.stamp for task in self.tasks if task.wanted is not None}
        return hashlib.blake2b(repr(sorted(stamps.items())).encode(), digest_size=16).hexdigest()

    def predict(self, *, on_cluster: bool = False) -> list[PredictedVideo]:
        """Writes the flow of every two consecutive frames of each video; what an earlier run of the same
        options has done is left as it is.

        With `on_cluster` Ray's nodes do the work, each video on a GPU if the cluster has any now; all nodes
        must be able to read the videos and write the output.
        """
        results = []
        with Progress("predict", "video", len(self.tasks)) as progress:
            pairs = new = before = 0
            for number, states in enumerate(self._started(on_cluster)):
                latest = None
                for latest in states:
                    made = new + latest.num_pairs * latest.is_new
                    facts = (
                        f"{pairs + latest.num_pairs} pairs",
                        f"{made / max(progress.seconds, 1e-3):.3g} pairs/s",
                        *([f"{latest.num_drawn} drawn"] if latest.num_drawn else []),
                    )
                    # What an earlier run did says nothing of the speed.
                    earlier = before + (not latest.is_new)
                    progress.show(round(number + latest.share, 2), *facts, before=earlier)
                assert latest is not None
                pairs, new, before = pairs + latest.num_pairs, made, earlier
                results.append(latest)
        return results

    def _started(self, on_cluster: bool) -> Iterator[Iterator[PredictedVideo]]:
        if not on_cluster:
            for task in self.tasks:
                yield predict_video(self.network, task, self.options)
            return
        remote: Any = ray.remote(**predicting_room())(predict_video)
        held = ray.put(self.network)
        yield from begun_ahead(lambda task: remote.remote(held, task, self.options), self.tasks, _most_begun)


def predict_video(
    network: FlowNetwork, task: FlowTask, options: PredictionOptions
) -> Iterator[PredictedVideo]:
    """Predicts one video; yields after each pair, after each that is drawn, and once more at the end.
    Whatever goes wrong is that video's problem, except for a broken device and a disk that takes nothing."""
    state = PredictedVideo(source=task.source, folder=task.location, is_new=not task.is_done)
    if task.is_done or task.wanted is None:
        yield replace(state, num_pairs=task.pairs, share=1.0, problem=task.problem or None)
        return
    try:
        for state in _predicted(network, task, task.wanted, options):
            yield state
    except Exception as error:
        if isinstance(error, torch.AcceleratorError) or refuses_files(error):
            raise
        yield replace(state, share=1.0, problem=f"{type(error).__name__}: {error}")


def _predicted(
    network: FlowNetwork, task: FlowTask, wanted: FlowRecord, options: PredictionOptions
) -> Iterator[PredictedVideo]:
    source, folder = task.source, Folder(task.location)
    state = PredictedVideo(source=source, folder=task.location)
    if task.outdated:
        # Before the record says that what is there is of the video as it is now.
        names = [name for name in folder.infos(recursive=False) if name.endswith(task.outdated)]
        list(concurrently(folder.remove, names))
    # Any PNG might be a picture of somebody's, and a table is written as a whole.
    goes_on = wanted.is_of_one_kind and options.format not in ("kitti", "parquet")
    there = set(folder.infos(recursive=False)) if goes_on else set()

    def is_there(pair: SeenPair) -> bool:
        return goes_on and there.issuperset(files_of_pair(flow_name(source, pair.index), options))

    folder.write(RECORD_FILE, json_bytes(dataclasses.asdict(wanted)))
    scale = 0.0
    with DecoderProcess() as decoder, ExitStack() as stack:
        write: Callable[[str, EstimatedPair], None] = partial(write_pair, folder, options)
        if options.format == "parquet":
            write = stack.enter_context(flow_table(folder, options)).add
        writer = stack.enter_context(_OneAhead())
        try:
            flow = VideoFlow(network, options.inference, both=options.occlusion, scaled=options.uncertainty)
            for pair in flow.missing_pairs(
                decoder, source, is_there, stride=options.stride, most=options.limit
            ):
                name = flow_name(source, pair.index)
                if isinstance(pair, EstimatedPair):
                    writer.submit(write, name, pair)
                if options.is_drawn:
                    if isinstance(pair, EstimatedPair):
                        flow_fw = pair.flow_fw
                    else:
                        flow_fw = written_flow(folder, options, name, pair)
                    scale = max(scale, motion_scale([flow_fw]))
                state = replace(state, num_pairs=state.num_pairs + 1, share=pair.share)
                yield state
            problem = _problem(source, decoder.report, decoder.report.truncated)
        except VideoError as error:
            problem = _problem(source, decoder.report, str(error))
    if problem is not None and state.num_pairs == 0:
        problem += "; flow needs two consecutive frames of one size"
    if options.is_drawn and state.num_pairs:
        for number, _ in enumerate(draw(source, folder, options, scale), start=1):
            state = replace(state, num_drawn=number)
            yield state
    done = replace(wanted, pairs=state.num_pairs, is_done=problem is None)
    folder.write(RECORD_FILE, json_bytes(dataclasses.asdict(done)))
    yield replace(state, share=1.0, problem=problem)


def _most_begun() -> int:
    return max(_FEWEST_BEGUN, 2 * int(resources().get("CPU", 0)))


def begun_ahead(
    begin: Callable[[FlowTask], Any], tasks: Sequence[FlowTask], most: Callable[[], int]
) -> Iterator[Iterator[PredictedVideo]]:
    """What each task yields, in their order, while those behind it are begun: `most` at a time wait or run.

    Ray starts as many of them as there is room for. All at once, a million videos would be as many generators
    in this process. begin: gives a streaming generator of Ray's.
    """
    waiting, begun = deque(tasks), deque[Any]()
    unfinished: list[Any] = []

    def fill() -> None:
        nonlocal unfinished
        if unfinished:
            unfinished = ray.wait(unfinished, num_returns=len(unfinished), timeout=0)[1]
        while waiting and (not begun or len(unfinished) < most()):
            begun.append(begin(waiting.popleft()))
            unfinished.append(begun[-1].completed())

    def heard(task: FlowTask) -> Iterator[PredictedVideo]:
        for state in _heard(task, begun[0]):
            fill()
            yield state
        begun.popleft()

    for task in tasks:
        fill()
        yield heard(task)


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


class _OneAhead:
    """Does one thing while the next is prepared: a disk takes 10 ms to make a file durable, object storage
    more."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Waits for what was submitted before; raises what that raised."""
        self._finish()
        self._last = self._thread.submit(work, *arguments)

    def _finish(self) -> None:
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> "_OneAhead":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self._finish()


def _heard(task: FlowTask, references: Iterable[Any]) -> Iterator[PredictedVideo]:
    """What a task on the cluster yields; its death is its video's problem."""
    latest = PredictedVideo(source=task.source, folder=task.location)
    try:
        for reference in references:
            latest = ray.get(reference)
            yield latest
    except (RaySystemError, WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
        yield replace(latest, share=1.0, problem=f"its process ended: {error}")
