"""Which videos does a collection hold?

A collection is a folder, a glob, a list, a data set, or the URI of one of these. A video is a file or a
sequence of images. Only lists are opened here: a video is what its name says until it is decoded.
"""

import glob
import hashlib
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import quote

from pyarrow.fs import FileInfo, FileType

from flowcore.datasets import DataSet
from flowcore.sequences import SEQUENCES, find_sequences
from pipelines.disclosure import is_text, refuse_secrets
from pipelines.storage import (
    Folder,
    absolute,
    concurrently,
    extension,
    is_remote,
    is_uri,
    join,
    local,
    patient,
    split,
    storage_of,
)

# fmt: off
VIDEO_EXTENSIONS = frozenset({
    "3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "h265", "hevc", "ivf", "m1v",
    "m2ts", "m2v", "m4v", "mj2", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "nut",
    "obu", "ogm", "ogv", "qt", "rm", "rmvb", "ts", "vob", "webm", "wmv", "y4m",
})
# fmt: on
IMAGE_EXTENSIONS = frozenset({"bmp", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"})


@dataclass(frozen=True, slots=True)
class Stamp:
    """Tells whether a video has changed, without reading it."""

    size: int
    """In bytes; of an image sequence, of all its files."""
    text: str
    """Equal as long as the files' sizes and modification times are."""

    @classmethod
    def of(cls, infos: Sequence[FileInfo]) -> Self:
        """The stamp of a video with these files, in order."""
        texts = [f"{info.size} {info.mtime_ns}" for info in infos]
        text = texts[0]
        if len(texts) > 1:
            text = hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()
        return cls(size=sum(info.size or 0 for info in infos), text=text)


@dataclass(frozen=True, slots=True)
class VideoSource:
    """One video of a collection."""

    uri: str
    """Absolute path or URI of the video file, or of the folder of an image sequence."""
    frames: tuple[str, ...] = ()
    """File names of an image sequence within the folder, in order; empty for a video file."""
    scene: str = ""
    """Tells apart the sequences of one folder; empty where the folder is one sequence."""
    listed: Stamp | None = field(default=None, compare=False)
    """The stamp, where listing the collection gave it: it saves object storage one request a video."""

    @property
    def name(self) -> str:
        """Unique within the collection: `uri`, with `scene` below it. Where that isn't UTF-8, as a URI with
        the bytes that aren't as %FF, which no other video is called."""
        place = join(self.uri, self.scene)
        if is_text(place):
            return place
        if is_remote(place):
            return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", place)
        return f"file://{quote(os.fsencode(place))}"

    @property
    def misnomer(self) -> str:
        """Why it isn't opened, whatever it holds; empty where it may be. Labels, ledgers and pages are texts,
        and they tell of a video by its name."""
        if not is_text(self.uri + self.scene):
            return "its name isn't UTF-8; rename it"
        return "" if all(map(is_text, self.frames)) else "the name of a frame isn't UTF-8; rename it"


def absolute_collection(collection: str, option: str) -> str:
    """`collection` with its path made absolute, so that it means the same in every process of a job.

    `option` is the command-line option, for errors. Raises ValueError as `storage.absolute` does, and for a
    data set that has no frames to learn from.
    """
    try:
        data_set = DataSet.parse(collection)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None
    if data_set is None:
        return absolute(collection, option)
    if data_set.name not in SEQUENCES:
        raise ValueError(
            f"{option} {collection}: {data_set.name} has no frames to learn from; those that have are "
            f"{', '.join(SEQUENCES)}"
        )
    return str(replace(data_set, root=absolute(data_set.root, option)))


@dataclass(frozen=True)
class Collection:
    """The videos of a collection, as they were when it was listed."""

    place: str
    """As the user named it, its path absolute."""
    videos: tuple[VideoSource, ...]

    @classmethod
    def find(cls, place: str, option: str = "--videos") -> Self:
        """Lists a collection; raises as `absolute_collection` and `find_videos` do."""
        place = absolute_collection(place, option)
        return cls(place, tuple(find_videos(place)))


def find_videos(collection: str) -> list[VideoSource]:
    """The videos of a collection, each once, sorted by name.

    A collection is one of these:
    - a folder, searched with its subfolders. Symbolic links are followed, hidden names left out. Every file
      with a video's extension is a video. So is every folder that holds two or more images and no video; its
      frames come in natural order of their names;
    - a glob;
    - a video file, whatever its extension;
    - a list file (.txt) that names one of these a line, relative to the list's folder; # begins a comment;
    - the URI of a folder, a video file or a list file;
    - a data set such as kitti2015:/data/kitti, whose videos are the sequences that
      `flowcore.sequences.find_sequences` finds in the folder or URI.

    A list's URIs with a video's extension are trusted: the storage isn't asked about each. What has a
    `misnomer` is among the videos, to be accounted for.

    Raises FileNotFoundError where there is no such collection or no video in it, ValueError for an unknown
    data set and for a URI with a secret in it.
    """
    data_set = DataSet.parse(collection)
    place = _place(collection if data_set is None else data_set.root)
    if data_set is not None:
        videos = _sequences_at(data_set.name, place)
    elif extension(place) == "txt":
        videos = [video for line in _lines(place) for video in _videos_of_line(place, line)]
    else:
        videos = _videos_at(place)
    if not videos:
        raise FileNotFoundError(
            f"no video in {place}: looked for files that end in {', '.join(sorted(VIDEO_EXTENSIONS))} and "
            f"for folders of two or more images ({', '.join(sorted(IMAGE_EXTENSIONS))}); name a video with "
            "another extension itself, alone or in a list file"
        )
    return sorted(set(videos), key=lambda video: (video.name, video.frames))


@patient
def stamp_of(source: VideoSource) -> Stamp:
    """The stamp of the video's files as they were when listed; if they weren't, as they are now."""
    if source.listed is not None:
        return source.listed
    if source.misnomer:
        # pyarrow takes no such names.
        return Stamp(size=0, text="")
    filesystem, path = storage_of(source.uri)
    return Stamp.of(filesystem.get_file_info([f"{path}/{name}" for name in source.frames] or [path]))


def stamps_of(sources: Sequence[VideoSource]) -> dict[str, Stamp]:
    """The stamps of videos by name, asked for concurrently."""
    return dict(zip((source.name for source in sources), concurrently(stamp_of, sources), strict=True))


def _lines(list_file: str) -> list[str]:
    lines = (line.strip() for line in _content(list_file).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _content(list_file: str) -> str:
    folder, name = split(list_file)
    # As Python has the names of files: what isn't UTF-8 in a line costs that line's video alone.
    return Folder(folder).read(name).decode("utf-8-sig", errors="surrogateescape")


def _videos_of_line(list_file: str, line: str) -> list[VideoSource]:
    base = split(list_file)[0]
    if not is_text(line):
        # It isn't opened: see `misnomer`.
        refuse_secrets(line, "the video")
        return [VideoSource(_within(base, line))]
    # A video's name may have a colon in it, and is relative to the list's folder, not to the working folder.
    is_video = extension(line) in VIDEO_EXTENSIONS or os.path.exists(_within(base, line))
    data_set = None if is_video else DataSet.parse(line)
    if data_set is not None:
        return _sequences_at(data_set.name, _place(_within(base, data_set.root)))
    place = _place(_within(base, line))
    if is_remote(place) and extension(place) in VIDEO_EXTENSIONS:
        return [VideoSource(place)]
    return _videos_at(place)


def _within(base: str, place: str) -> str:
    """What a line of a list names, relative to the list's folder if it is a relative path."""
    return place if is_uri(place) or os.path.isabs(place) else join(base, place.rstrip("/"))


def _place(location: str) -> str:
    """Where a collection lies, as the names of its videos begin: an absolute path without `..`, or a URI."""
    place = local(absolute(location, "--videos"))
    return place if is_remote(place) else os.path.normpath(place)


def _videos_at(place: str) -> list[VideoSource]:
    return _remote_videos_at(place) if is_remote(place) else _local_videos_at(place)


def _sequences_at(name: str, folder: str) -> list[VideoSource]:
    if is_remote(folder):
        files = list(_remote_files_under(folder))
    else:
        files = [os.path.relpath(file, folder) for file in _files_under(folder)]
    try:
        sequences = find_sequences(name, files, Folder(folder).read)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return [VideoSource(join(folder, each.folder), each.frames, each.name) for each in sequences]


def _local_videos_at(path: str) -> list[VideoSource]:
    if os.path.isfile(path):
        return [VideoSource(path)]
    found = [path] if os.path.isdir(path) else glob.glob(path, recursive=True)
    if not found:
        raise FileNotFoundError(
            f"nothing is at {path}: it is neither a file, a folder, a glob with matches nor a data set such "
            "as sintel:<folder>"
        )
    return _videos_among(file for match in found for file in _files_under(match))


def _files_under(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield from [path] if os.path.isfile(path) else []
        return

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for folder, subfolders, names in os.walk(path, followlinks=True, onerror=fail):
        # Without this a link to a parent folder would go round in circles.
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        # Opening a pipe or a socket would block for ever.
        yield from (file for name in names if os.path.isfile(file := os.path.join(folder, name)))


def _remote_videos_at(uri: str) -> list[VideoSource]:
    kind = _remote_kind(uri)
    if kind == FileType.File:
        return [VideoSource(uri)]
    if kind != FileType.Directory:
        raise FileNotFoundError(f"{uri} is no file and no folder (a glob must be a local path)")
    files = _remote_files_under(uri)
    videos = []
    for video in _videos_among(files):
        names = [f"{video.uri}/{name}".lstrip("/") for name in video.frames] or [video.uri]
        # A key with two slashes in a row is listed under another name than the one made here.
        stamp = Stamp.of([files[name] for name in names]) if files.keys() >= set(names) else None
        videos.append(VideoSource(join(uri, video.uri), video.frames, listed=stamp))
    return videos


@patient
def _remote_kind(uri: str) -> FileType:
    filesystem, path = storage_of(uri)
    return filesystem.get_file_info(path).type


def _remote_files_under(uri: str) -> dict[str, FileInfo]:
    """What is under the URI by relative name, without hidden folders."""
    return {
        name: info
        for name, info in Folder(uri).infos().items()
        if not any(part.startswith(".") for part in name.split("/")[:-1])
    }


def _videos_among(files: Iterable[str]) -> list[VideoSource]:
    # Sets, because a glob such as ** matches a folder and its files as well.
    folders: dict[str, set[str]] = defaultdict(set)
    for file in files:
        folder, name = posixpath.split(file)
        if not name.startswith("."):
            folders[folder].add(name)
    videos = []
    for folder, names in folders.items():
        films = [name for name in names if extension(name) in VIDEO_EXTENSIONS]
        videos += [VideoSource(posixpath.join(folder, name)) for name in films]
        # Images beside videos are covers and thumbnails.
        images = [name for name in names if extension(name) in IMAGE_EXTENSIONS]
        if len(images) >= 2 and not films:
            videos.append(VideoSource(folder, tuple(sorted(images, key=_natural_order))))
    return videos


def _natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts frame 2 before frame 10; every second part is a number."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
