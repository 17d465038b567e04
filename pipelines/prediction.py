"""What does a prediction leave in a folder? Files a pair, and a record of what they are of.

The record keeps the flow of another video or model out of the folder, and a rerun of the same command from
doing anything twice.
"""

import dataclasses
import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import ray
import torch
from ray.exceptions import NodeDiedError, OutOfMemoryError, RaySystemError, WorkerCrashedError

from flowcore.chunks import VideoReport
from flowcore.drawing import motion_scale
from flowcore.networks import FlowNetwork
from flowcore.networks.interface import no_scale
from flowcore.records import record
from flowcore.video import VideoError
from pipelines.checkpoints import ModelInfo, load_model
from pipelines.collection import VideoSource, stamp_of
from pipelines.decoding import DecoderProcess
from pipelines.destinations import destinations, flow_name
from pipelines.disclosure import plain
from pipelines.film import draw
from pipelines.flow_files import PredictionOptions, endings_of, write_pair
from pipelines.flow_table import flow_table
from pipelines.inference import VideoFlow
from pipelines.models import fetch_model
from pipelines.progress import Progress
from pipelines.room import predicting_room, resources
from pipelines.set_files import read_record, require_plain
from pipelines.storage import Folder, absolute, concurrently, json_bytes, refuses_files, split

RECORD_FILE = "_prediction.json"
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
class _Record:
    """What the files of a folder are of."""

    video: str
    stamp: str
    """Of the video's files, `Stamp.text`."""
    model: str
    """Its digest."""
    options: dict[str, Any]
    pairs: int = 0
    is_done: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.pairs < 2**31:
            raise ValueError(f"its pairs must be a count, and are {reprlib.repr(self.pairs)}")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A video, where its flow goes, and what is there already."""

    source: VideoSource
    location: str
    wanted: _Record | None = None
    """What will be there; None where a problem keeps it from being known."""
    is_done: bool = False
    pairs: int = 0
    outdated: tuple[str, ...] = ()
    """How the names of files end that are there of a video that has changed since, and go."""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class PredictionPlan:
    """What a prediction will do: its input was checked, and nothing is written yet."""

    network: FlowNetwork
    card: ModelInfo
    """Of the network."""
    tasks: tuple[_Task, ...]
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
        _require_plain(absolute(output, "--output"), folders.values())
        tasks = concurrently(lambda each: _task(*each, card.digest, options), list(folders.items()))
        return cls(network=network, card=card, tasks=tuple(tasks), options=options)

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


def predict_video(network: FlowNetwork, task: _Task, options: PredictionOptions) -> Iterator[PredictedVideo]:
    """Predicts one video; yields after each pair, and once more at the end. Whatever goes wrong is that
    video's problem, except for a broken device and a disk that takes nothing."""
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
    network: FlowNetwork, task: _Task, wanted: _Record, options: PredictionOptions
) -> Iterator[PredictedVideo]:
    source, folder = task.source, Folder(task.location)
    state = PredictedVideo(source=source, folder=task.location)
    if task.outdated:
        # Before the record says that what is there is of the video as it is now.
        names = [name for name in folder.infos(recursive=False) if name.endswith(task.outdated)]
        list(concurrently(folder.remove, names))
    folder.write(RECORD_FILE, json_bytes(dataclasses.asdict(wanted)))
    scale = 0.0
    with DecoderProcess() as decoder, ExitStack() as stack:
        table = stack.enter_context(flow_table(folder, options)) if options.format == "parquet" else None
        writer = stack.enter_context(_OneAhead())
        try:
            flow = VideoFlow(network, options.inference, both=options.occlusion, scaled=options.uncertainty)
            for pair in flow.pairs(decoder, source, stride=options.stride, most=options.limit):
                name = flow_name(source, pair.index)
                if table is None:
                    writer.submit(write_pair, folder, name, pair, options)
                else:
                    writer.submit(table.add, name, pair)
                if options.is_drawn:
                    scale = max(scale, motion_scale([pair.flow_fw]))
                state = replace(state, num_pairs=state.num_pairs + 1, share=pair.share)
                yield state
            problem = _problem(source, decoder.report, decoder.report.truncated)
        except VideoError as error:
            problem = _problem(source, decoder.report, str(error))
    if problem is not None and state.num_pairs == 0:
        problem += "; flow needs two consecutive frames of one size"
    if options.is_drawn and state.num_pairs:
        draw(source, folder, options, scale)
    done = replace(wanted, pairs=state.num_pairs, is_done=problem is None)
    folder.write(RECORD_FILE, json_bytes(dataclasses.asdict(done)))
    yield replace(state, share=1.0, problem=problem)


def _most_begun() -> int:
    return max(_FEWEST_BEGUN, 2 * int(resources().get("CPU", 0)))


def begun_ahead(
    begin: Callable[[_Task], Any], tasks: Sequence[_Task], most: Callable[[], int]
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

    def heard(task: _Task) -> Iterator[PredictedVideo]:
        for state in _heard(task, begun[0]):
            fill()
            yield state
        begun.popleft()

    for task in tasks:
        fill()
        yield heard(task)


def _task(source: VideoSource, location: str, model: str, options: PredictionOptions) -> _Task:
    """ValueError where the folder has the flow of another video, or of the same one by other means."""
    if source.misnomer:
        return _Task(source=source, location=location, problem=source.misnomer)
    try:
        stamp, found = stamp_of(source).text, _found(location)
    except OSError as error:
        return _Task(source=source, location=location, problem=str(error))
    wanted = _Record(video=source.name, stamp=stamp, model=model, options=dataclasses.asdict(options))
    task = _Task(source=source, location=location, wanted=wanted)
    if found is None:
        return task
    compared = [
        ("the video", found.video, wanted.video),
        ("the model with the digest", found.model, wanted.model),
        ("--stride", found.options.get("stride"), options.stride),
        ("--inference", found.options.get("inference"), wanted.options["inference"]),
    ]
    if options.occlusion and found.options.get("occlusion"):
        compared.append(("--check", found.options.get("check"), wanted.options["check"]))
    if differing := [f"{what} {str(there)[:300]}" for what, there, here in compared if there != here]:
        raise ValueError(
            f"--output {location} holds the flow of {' and '.join(differing)}; remove it, or give another "
            "folder"
        )
    if found.stamp != stamp:
        return replace(task, outdated=endings_of(found.options.get("format")))
    is_same = replace(found, pairs=0, is_done=False) == wanted
    return replace(task, is_done=is_same and found.is_done, pairs=found.pairs)


def _require_plain(output: str, folders: Iterable[str]) -> None:
    """ValueError where a link leads out of the folders that are to be written into."""
    whole = {output}
    for folder in folders:
        while len(folder) > len(output):
            whole.add(folder)
            folder = split(folder)[0]
    for each in sorted(whole):
        require_plain(Folder(each))


def _found(location: str) -> _Record | None:
    """What a folder says that it holds; None where it holds no files. ValueError where it doesn't say."""
    try:
        return record(_Record, read_record(location, RECORD_FILE))
    except FileNotFoundError:
        # Hidden files are what a killed run left.
        others = [name for name in Folder(location).infos(recursive=False) if not name.startswith(".")]
        if not others:
            return None
        problem = f"holds {min(others)} but no {RECORD_FILE}, so its files may be anybody's"
    except ValueError as error:
        problem = f"has a damaged {RECORD_FILE} ({error}), so its files may be of any video"
    raise ValueError(f"--output {location} {problem}; give another folder")


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


def _heard(task: _Task, references: Iterable[Any]) -> Iterator[PredictedVideo]:
    """What a task on the cluster yields; its death is its video's problem."""
    latest = PredictedVideo(source=task.source, folder=task.location)
    try:
        for reference in references:
            latest = ray.get(reference)
            yield latest
    except (RaySystemError, WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
        yield replace(latest, share=1.0, problem=f"its process ended: {error}")
