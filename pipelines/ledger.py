"""What became of each video of a collection?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.labels import FORMAT
from pipelines.storage import Folder, json_bytes

MANIFEST_FILE = "_manifest.json"
"""What the set holds; written last, so that a set without it is unfinished."""
LEDGER_FILE = "_ledger.json"
"""The inputs that gave nothing or less than they hold, and why."""
VIDEO_FILE = "_video.json"
"""In a video's folder: what became of it; written after its last shard."""


Outcome = Literal["nothing", "cut short", "duplicate", "unreadable now"]


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """An input that gave no pair, or fewer than it holds, or that is another one's copy.

    "unreadable now" is the storage's fault: another run tries again. cuts, static_pairs, faded_pairs: how
    many of its pairs were left out for each, as in `flowcore.video.VideoReport`.
    """

    video: str
    outcome: Outcome
    reason: str
    frames_read: int
    pairs: int
    cuts: int = 0
    static_pairs: int = 0
    faded_pairs: int = 0


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """A video of a set. folder: its content's digest. bytes: of its shards."""

    video: str
    folder: str
    pairs: int
    shards: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """What became of a video whose content is known: its `_video.json`.

    stamp: tells a changed file. folder: its content's digest. run: the run that wrote it. outcome, reason: as
    in the ledger; "done" if it was read to its end. cuts, static_pairs, faded_pairs: as in
    `flowcore.video.VideoReport`. bytes: of its shards. label_set: of those.
    """

    video: str
    stamp: str
    folder: str
    label_set: str
    outcome: Literal["done", "nothing", "cut short"]
    reason: str
    frames_read: int
    cuts: int
    static_pairs: int
    faded_pairs: int
    pairs: int
    shards: int
    bytes: int
    run: str


def video_record(location: str, folder: str) -> VideoRecord | None:
    """The record in a video's folder of the set, None where no run came to its end."""
    try:
        return VideoRecord(**json.loads(Folder(location).read(f"{folder}/{VIDEO_FILE}")))
    except FileNotFoundError:
        return None


def read_ledger(location: str) -> list[LedgerEntry]:
    """The ledger of a folder; FileNotFoundError where no run has ended."""
    return [LedgerEntry(**entry) for entry in json.loads(Folder(location).read(LEDGER_FILE))]


def write_ledger(location: str, ledger: Sequence[LedgerEntry]) -> None:
    """Writes the ledger over the one before, sorted by video."""
    entries = sorted(ledger, key=lambda entry: (entry.video, entry.outcome))
    Folder(location).write(LEDGER_FILE, json_bytes([vars(entry) for entry in entries]))


def write_manifest(location: str, label_set: str, videos: Sequence[VideoEntry]) -> None:
    """Finishes the set, or brings the list of a finished one up to date."""
    manifest = {
        "format": FORMAT,
        "label_set": label_set,
        "num_videos": len(videos),
        "num_pairs": sum(video.pairs for video in videos),
        "num_shards": sum(video.shards for video in videos),
        "bytes": sum(video.bytes for video in videos),
        "videos": [vars(video) for video in sorted(videos, key=lambda video: video.folder)],
    }
    Folder(location).write(MANIFEST_FILE, json_bytes(manifest))
