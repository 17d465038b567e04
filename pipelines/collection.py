"""Which videos does a collection hold?"""

import glob
import hashlib
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Self, cast
from urllib.parse import quote, unquote, urlsplit

from pyarrow.fs import FileInfo, FileType

from flowcore.datasets import SEQUENCES, find_sequences
from flowcore.video import (
    BinaryFile,
    VideoInput,
)
from pipelines.storage import Folder, absolute, patient, refuse_secrets, split, storage_of

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
    """What tells a changed video without reading it. size: bytes, of a sequence in all."""

    size: int
    text: str

    @classmethod
    def of(cls, infos: Sequence[FileInfo]) -> Self:
        """Of a video's files, in their order."""
        texts = [f"{info.size} {info.mtime_ns}" for info in infos]
        text = texts[0]
        if len(texts) > 1:
            text = hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()
        return cls(size=sum(info.size or 0 for info in infos), text=text)


@dataclass(frozen=True, slots=True)
class VideoSource:
    """One video of a collection.

    uri: absolute path or URI of a video file, or of the folder of an image sequence. frames: empty for a
    file; for a sequence its files' names within the folder, in order. scene: tells the sequences of one
    folder apart; empty where the folder is one sequence. listed: its stamp where the listing told it, which
    spares object storage a question a video; see `stamp_of`.
    """

    uri: str
    frames: tuple[str, ...] = ()
    scene: str = ""
    listed: Stamp | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Unique in a collection: `uri`, and `scene` within it."""
        return _within(self.uri, self.scene) if self.scene else self.uri


def split_collection(collection: str) -> tuple[str | None, str]:
    """(the data set, the place) of `chairs:/data/FlyingChairs`; (None, the collection) for any other."""
    name, mark, place = collection.partition(":")
    # What begins with // is a URI's.
    return (name, place) if mark and name in SEQUENCES and not place.startswith("//") else (None, collection)


def absolute_collection(collection: str, option: str) -> str:
    """`collection`, as `find_videos` takes it, for every process of a job; see `locations.absolute`."""
    benchmark, place = split_collection(collection)
    place = absolute(place, option)
    return place if benchmark is None else f"{benchmark}:{place}"


def find_videos(collection: str) -> list[VideoSource]:
    """The videos of a collection, sorted by name, each once.

    collection: a folder, a glob, a video file of any extension, a list file (.txt: one of these a line,
    relative to the list's own folder; # begins a comment), or the URI of a folder, a video file or a list
    file. A folder is searched through, symbolic links included, hidden names left out: every file with a
    video's extension is a video, and so is every folder that holds two or more images and no video, in
    natural order of their names. Lines that are URIs with a video's extension are believed without asking the
    storage for each.

    A folder or its URI after a data set's name, such as kitti2015:/data/kitti, gives the sequences that
    `flowcore.datasets.find_sequences` knows there, each a video.

    Raises FileNotFoundError if there is no such thing or no video in it.
    """
    benchmark, place = split_collection(collection)
    place = _absolute(place)
    if benchmark is None and _extension(place) == "txt":
        videos = [video for line in _lines(place) for video in _videos_of_line(place, line)]
    else:
        videos = _videos_at(benchmark, place)
    if not videos:
        raise FileNotFoundError(
            f"no video in {place}: looked for files that end in {', '.join(sorted(VIDEO_EXTENSIONS))} and "
            f"for folders of two or more images ({', '.join(sorted(IMAGE_EXTENSIONS))}); a video that ends "
            "otherwise must be named itself, alone or in a list file"
        )
    return sorted(set(videos), key=lambda video: (video.name, video.frames))


@patient
def stamp_of(source: VideoSource) -> Stamp:
    """The stamp of its files as they are now, or were when they were listed."""
    if source.listed is not None:
        return source.listed
    filesystem, path = storage_of(source.uri)
    return Stamp.of(filesystem.get_file_info([f"{path}/{name}" for name in source.frames] or [path]))


def _lines(list_file: str) -> list[str]:
    with closing(_open(list_file)) as file:
        lines = (line.strip() for line in file.read().decode("utf-8-sig").splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def _videos_of_line(list_file: str, line: str) -> list[VideoSource]:
    benchmark, line = split_collection(line)
    is_relative = "://" not in line and not os.path.isabs(line)
    place = _absolute(_within(split(list_file)[0], line) if is_relative else line)
    if benchmark is None and _is_remote(place) and _extension(place) in VIDEO_EXTENSIONS:
        return [VideoSource(place)]
    return _videos_at(benchmark, place)


def _videos_at(benchmark: str | None, place: str) -> list[VideoSource]:
    if benchmark is not None:
        return _sequences_at(benchmark, place)
    return _remote_videos_at(place) if _is_remote(place) else _local_videos_at(place)


def _sequences_at(benchmark: str, folder: str) -> list[VideoSource]:
    if _is_remote(folder):
        files = list(_remote_files_under(folder))
    else:
        files = [os.path.relpath(file, folder) for file in _files_under(folder)]

    def read(name: str) -> str:
        with closing(_open(_within(folder, name))) as file:
            return file.read().decode()

    try:
        sequences = find_sequences(benchmark, files, read)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: {error}") from None
    return [
        VideoSource(_within(folder, each.folder) if each.folder else folder, each.frames, each.name)
        for each in sequences
    ]


def _local_videos_at(path: str) -> list[VideoSource]:
    if os.path.isfile(path):
        return [VideoSource(path)]
    found = [path] if os.path.isdir(path) else glob.glob(path, recursive=True)
    if not found:
        raise FileNotFoundError(
            f"{path} is no file, no folder and no glob that matches one (of data sets, "
            f"{', '.join(f'{name}:<folder>' for name in SEQUENCES)} are known)"
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
        # A link to a folder above would otherwise go round in circles.
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        # Opening a pipe or a socket would wait for ever.
        yield from (file for name in names if os.path.isfile(file := os.path.join(folder, name)))


def _remote_videos_at(uri: str) -> list[VideoSource]:
    kind = _remote_kind(uri)
    if kind == FileType.File:
        return [VideoSource(uri)]
    if kind != FileType.Directory:
        raise FileNotFoundError(f"{uri} is no file and no folder (globs work on local paths only)")
    files = _remote_files_under(uri)
    videos = []
    for video in _videos_among(files):
        names = [f"{video.uri}/{name}".lstrip("/") for name in video.frames] or [video.uri]
        # Of a key with two slashes in a row the name isn't the listing's.
        stamp = Stamp.of([files[name] for name in names]) if files.keys() >= set(names) else None
        videos.append(VideoSource(_within(uri, video.uri), video.frames, listed=stamp))
    return videos


@patient
def _remote_kind(uri: str) -> FileType:
    filesystem, path = storage_of(uri)
    return filesystem.get_file_info(path).type


def _remote_files_under(uri: str) -> dict[str, FileInfo]:
    """By name within the folder; without those in hidden folders."""
    return {
        name: info
        for name, info in Folder(uri).infos().items()
        if not any(part.startswith(".") for part in name.split("/")[:-1])
    }


def _videos_among(files: Iterable[str]) -> list[VideoSource]:
    # Sets, as a glob like ** matches a folder and what is in it.
    folders: dict[str, set[str]] = defaultdict(set)
    for file in files:
        folder, name = posixpath.split(file)
        if not name.startswith("."):
            folders[folder].add(name)
    videos = []
    for folder, names in folders.items():
        films = [name for name in names if _extension(name) in VIDEO_EXTENSIONS]
        videos += [VideoSource(posixpath.join(folder, name)) for name in films]
        # Images beside videos are their covers and thumbnails.
        images = [name for name in names if _extension(name) in IMAGE_EXTENSIONS]
        if len(images) >= 2 and not films:
            videos.append(VideoSource(folder, tuple(sorted(images, key=_natural_order))))
    return videos


def _natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts frame 2 before frame 10; every second part is a number."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _extension(place: str) -> str:
    name = posixpath.basename(place.partition("?")[0] if _is_remote(place) else place)
    return posixpath.splitext(name)[1][1:].lower()


def _is_remote(place: str) -> bool:
    return "://" in place and not place.startswith("file://")


def _absolute(place: str) -> str:
    """An absolute local path, or the URI of what isn't local."""
    if _is_remote(place):
        refuse_secrets(place, "the video")
        return place
    if place.startswith("file://"):
        place = unquote(urlsplit(place, allow_fragments=False).path)
    return os.path.abspath(os.path.expanduser(place))


def _within(folder: str, name: str) -> str:
    if not _is_remote(folder):
        return os.path.join(folder, name)
    base, mark, query = folder.partition("?")
    return f"{base.rstrip('/')}/{quote(name)}".rstrip("/") + mark + query


def _open(place: str) -> BinaryFile:
    if not _is_remote(place):
        return open(place, "rb")
    return _RemoteFile(place)


class _RemoteFile:
    """A file on object storage, whose reading survives a dropped connection."""

    @patient
    def __init__(self, place: str) -> None:
        filesystem, path = storage_of(place)
        self._file = filesystem.open_input_file(path)
        self._size = self._file.size()
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        content = patient(self._file.read_at)(wanted, self._position) if wanted else b""
        self._position += len(content)
        return cast(bytes, content)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        # Beyond the end, too, where a damaged file sends FFmpeg: pyarrow's own refuses that.
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()


@contextmanager
def opened(source: VideoSource) -> Iterator[VideoInput]:
    place = _absolute(source.uri)
    if source.frames:
        yield [partial(_open, _within(place, name)) for name in source.frames]
    elif _is_remote(place):
        with closing(_open(place)) as file:
            yield file
    else:
        # FFmpeg reads a path faster than through Python.
        yield place
