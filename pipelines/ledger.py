"""What became of each video of a collection?

A video has one record. Three files are views of it: `_video.json` in the video's folder is the record, the
ledger lists the videos that gave less than they hold, and the manifest lists those that gave pairs.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flowcore.records import LIST_BYTES, record
from pipelines.disclosure import storable
from pipelines.labels import FORMAT
from pipelines.set_files import read_record, told_of
from pipelines.storage import Folder, json_bytes

MANIFEST_FILE = "_manifest.json"
"""What the set holds; written last, so that a set without it is unfinished."""
LEDGER_FILE = "_ledger.json"
"""The inputs that gave nothing or less than they hold, and why."""
VIDEO_FILE = "_video.json"
"""In a video's folder: what became of it; written after its last shard."""

Outcome = Literal["done", "cut short", "nothing", "duplicate", "unreadable now", "failed"]
_LEDGER = (
    "video",
    "outcome",
    "reason",
    "stamp",
    "frames_read",
    "cuts",
    "static_pairs",
    "faded_pairs",
    "pairs",
)
"""What the ledger says of a video."""
_MANIFEST = ("video", "outcome", "stamp", "folder", "pairs", "shards", "bytes")
"""What the manifest says of a video."""

_HEX = re.compile(r"[0-9a-f]{0,64}")
_MOST_SHARDS = 2**23
"""In a set: of two billion pairs, as GPUs write them."""


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """What became of a video."""

    video: str
    """Its name: see `pipelines.collection.VideoSource`."""
    outcome: Outcome
    """`done` if it was read to its end. `unreadable now` is the storage's fault; a shard of a `failed` one
    couldn't be labelled or written. Another run tries both again, the failed ones last."""
    reason: str = ""
    """Why the outcome isn't `done`; empty if it is."""
    stamp: str = ""
    """Of its files when it was read; tells a changed video."""
    folder: str = ""
    """Its folder in the set, which is the digest of its content; empty where the content isn't known or is
    another video's."""
    frames_read: int = 0
    cuts: int = 0
    """Pairs left out because they lie across a cut."""
    static_pairs: int = 0
    """Pairs left out because nothing moves in them."""
    faded_pairs: int = 0
    """Pairs left out because they lie in a fade or have a blank frame."""
    pairs: int = 0
    shards: int = 0
    bytes: int = 0
    """Of its shards."""
    label_set: str = ""
    """The set that its shards belong to."""
    run: str = ""
    """The run that wrote the record."""

    def __post_init__(self) -> None:
        for name in ("folder", "label_set", "run"):
            if not _HEX.fullmatch(getattr(self, name)):
                raise ValueError(f"its {name} {getattr(self, name)[:100]!r} must be hexadecimal digits")
        for name in ("frames_read", "cuts", "static_pairs", "faded_pairs", "pairs", "shards", "bytes"):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(f"its {name} must be a count, and is {getattr(self, name)}")
        # A library's error may repeat a URI with the secrets that the environment gave it.
        object.__setattr__(self, "reason", storable(self.reason))


def duplicate(video: str, original: str, stamp: str) -> VideoRecord:
    """The record of a video that has the content of another."""
    reason = f"has the content of {original}"
    return VideoRecord(video=video, outcome="duplicate", reason=reason, stamp=stamp)


def short_reason(record: VideoRecord) -> str:
    """Why a video gave no pair, in words that many videos share."""
    return "has the content of another video" if record.outcome == "duplicate" else record.reason


def video_record(location: str, folder: str) -> VideoRecord | None:
    """The record in a video's folder of the set, None where no run came to its end; ValueError where it is
    damaged or another folder's."""
    name = f"{folder}/{VIDEO_FILE}"
    try:
        values = read_record(location, name)
    except FileNotFoundError:
        return None
    with told_of(location, name):
        found = record(VideoRecord, values)
        if found.folder != folder:
            raise ValueError(f"it is the record of the folder {found.folder!r}")
    return found


def write_video_record(location: str, record: VideoRecord) -> None:
    """Writes the record into the video's folder of the set."""
    Folder(location).write(f"{record.folder}/{VIDEO_FILE}", json_bytes(vars(record)))


def with_less(records: Iterable[VideoRecord]) -> list[VideoRecord]:
    """The records that the ledger lists: of the videos that gave less than they hold."""
    less = [record for record in records if record.outcome != "done"]
    return sorted(less, key=lambda record: (record.video, record.outcome))


def with_pairs(records: Iterable[VideoRecord]) -> list[VideoRecord]:
    """The records that the manifest lists: of the videos that gave pairs."""
    return sorted((each for each in records if each.pairs), key=lambda record: record.folder)


def failed_before(location: str) -> frozenset[str]:
    """The videos that failed in the last run that ended in a folder."""
    try:
        return frozenset(each.video for each in read_ledger(location) if each.outcome == "failed")
    except FileNotFoundError:
        return frozenset()


def read_ledger(location: str) -> list[VideoRecord]:
    """The ledger of a folder; FileNotFoundError where no run has ended, ValueError where it is damaged."""
    entries = read_record(location, LEDGER_FILE, LIST_BYTES)
    with told_of(location, LEDGER_FILE):
        return _records(entries)


def write_ledger(location: str, records: Iterable[VideoRecord]) -> None:
    """Writes the ledger over the one before. records: every video's."""
    Folder(location).write(LEDGER_FILE, json_bytes([_view(each, _LEDGER) for each in with_less(records)]))


def read_manifest(location: str) -> list[VideoRecord]:
    """The videos that the set has pairs of; FileNotFoundError of an unfinished set, ValueError where the
    manifest is damaged."""
    manifest = read_record(location, MANIFEST_FILE, LIST_BYTES)
    with told_of(location, MANIFEST_FILE):
        if not isinstance(manifest, dict) or "videos" not in manifest:
            raise ValueError("it has no videos")
        videos = _records(manifest["videos"])
        for video in videos:
            if not video.folder or not 1 <= video.shards <= video.pairs:
                raise ValueError(
                    f"of {video.video[:100]!r} it names the folder {video.folder!r} with {video.shards} "
                    f"shards of {video.pairs} pairs"
                )
        if len({video.folder for video in videos}) < len(videos):
            raise ValueError("it names a folder twice")
        if (shards := sum(video.shards for video in videos)) > _MOST_SHARDS:
            raise ValueError(f"it names {shards} shards, and at most {_MOST_SHARDS} are read")
    return videos


def _records(entries: object) -> list[VideoRecord]:
    if not isinstance(entries, list):
        raise ValueError("it has no list of videos")
    return [record(VideoRecord, entry) for entry in entries]


def write_manifest(location: str, label_set: str, records: Iterable[VideoRecord]) -> None:
    """Finishes the set, or brings the list of a finished one up to date. records: every video's."""
    videos = with_pairs(records)
    manifest = {
        "format": FORMAT,
        "label_set": label_set,
        "num_videos": len(videos),
        "num_pairs": sum(video.pairs for video in videos),
        "num_shards": sum(video.shards for video in videos),
        "bytes": sum(video.bytes for video in videos),
        "videos": [_view(video, _MANIFEST) for video in videos],
    }
    Folder(location).write(MANIFEST_FILE, json_bytes(manifest))


def _view(record: VideoRecord, names: Sequence[str]) -> dict[str, str | int]:
    return {name: getattr(record, name) for name in names}
