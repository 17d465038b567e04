"""What does a folder of flow hold already, and what is left to do there?

Its record names the video, as it was, the model and the options, so that no folder mixes the flow of two, and
a run that was killed goes on.
"""

import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from flowcore.records import as_json, record
from pipelines.collection import VideoSource, stamp_of
from pipelines.flow_files import PredictionOptions, endings_of
from pipelines.set_files import read_record, require_plain
from pipelines.storage import Folder, split

RECORD_FILE = "_prediction.json"


@dataclass(frozen=True, kw_only=True)
class FlowRecord:
    """What the files of a folder are of."""

    video: str
    stamp: str
    """Of the video's files, `Stamp.text`."""
    model: str
    """Its digest."""
    options: dict[str, Any]
    pairs: int = 0
    is_done: bool = False
    is_of_one_kind: bool = False
    """Whether every run that wrote here wrote the same files of a pair."""

    def makes_the_files_of(self, other: "FlowRecord") -> bool:
        """Whether a pair has the same files with the options of both."""
        kinds = ("format", "occlusion", "uncertainty", "check")
        return all(self.options.get(each) == other.options.get(each) for each in kinds)

    def __post_init__(self) -> None:
        if not 0 <= self.pairs < 2**31:
            raise ValueError(f"its pairs must be a count, and are {reprlib.repr(self.pairs)}")


@dataclass(frozen=True, kw_only=True)
class FlowTask:
    """A video, where its flow goes, and what is there already."""

    source: VideoSource
    location: str
    wanted: FlowRecord | None = None
    """What will be there; None where a problem keeps it from being known."""
    is_done: bool = False
    pairs: int = 0
    outdated: tuple[str, ...] = ()
    """Endings of the files to remove: they are of the video as it was before it changed."""
    problem: str = ""


def flow_task(source: VideoSource, location: str, model: str, options: PredictionOptions) -> FlowTask:
    """ValueError where the folder has the flow of another video, or of the same one by other means."""
    if source.misnomer:
        return FlowTask(source=source, location=location, problem=source.misnomer)
    try:
        stamp, found = stamp_of(source).text, _found(location)
    except OSError as error:
        return FlowTask(source=source, location=location, problem=str(error))
    wanted = FlowRecord(video=source.name, stamp=stamp, model=model, options=as_json(options))
    if found is None or (found.is_of_one_kind and found.makes_the_files_of(wanted)):
        wanted = replace(wanted, is_of_one_kind=True)
    task = FlowTask(source=source, location=location, wanted=wanted)
    if found is None:
        return task
    compared = [
        ("the video", found.video, wanted.video),
        ("the model with the digest", found.model, wanted.model),
        ("--stride", found.options.get("stride"), options.stride),
        *_each_option("inference", found, wanted),
    ]
    if options.occlusion and found.options.get("occlusion"):
        compared += _each_option("check", found, wanted)
    if differing := [f"{what} {_typed(there)[:300]}" for what, there, here in compared if there != here]:
        raise ValueError(
            f"--output {location} holds the flow of {' and '.join(differing)}; remove it, or give another "
            "folder"
        )
    if found.stamp != stamp:
        return replace(task, outdated=endings_of(found.options.get("format")))
    is_same = replace(found, pairs=0, is_done=False, is_of_one_kind=wanted.is_of_one_kind) == wanted
    return replace(task, is_done=is_same and found.is_done, pairs=found.pairs)


def _each_option(part: str, found: FlowRecord, wanted: FlowRecord) -> Iterator[tuple[str, object, object]]:
    """Each option of a part as it is typed, what it was, and what it is to be."""
    there, here = found.options.get(part), wanted.options[part]
    before = there if isinstance(there, dict) else {}
    for name in {**here, **before}:
        yield f"--{part}.{name.replace('_', '-')}", before.get(name), here.get(name)


def _typed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def require_plain_folders(output: str, folders: Iterable[str]) -> None:
    """ValueError where a link leads out of the folders that are to be written into."""
    whole = {output}
    for folder in folders:
        while len(folder) > len(output):
            whole.add(folder)
            folder = split(folder)[0]
    for each in sorted(whole):
        require_plain(Folder(each))


def _found(location: str) -> FlowRecord | None:
    """What a folder says that it holds; None where it holds no files. ValueError where it doesn't say."""
    try:
        return record(FlowRecord, read_record(location, RECORD_FILE))
    except FileNotFoundError:
        # Hidden files are what a killed run left.
        others = [name for name in Folder(location).infos(recursive=False) if not name.startswith(".")]
        if not others:
            return None
        problem = f"holds {min(others)} but no {RECORD_FILE}, so its files may be anybody's"
    except ValueError as error:
        problem = f"has a damaged {RECORD_FILE} ({error}), so its files may be of any video"
    raise ValueError(f"--output {location} {problem}; give another folder")
