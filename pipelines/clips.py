"""Which videos does a collection hold, and how is one read if its file may kill the process that decodes it?

Decoding happens in a child process, which costs one video when it crashes or hangs. The child is a plain
subprocess and not one of multiprocessing's: those import the parent's main module again, which under Ray is
the worker's own start-up file and elsewhere a script that need not expect it.
"""

import glob
import hashlib
import os
import posixpath
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Literal, Self, cast
from urllib.parse import quote, unquote, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray
from pyarrow.fs import FileInfo, FileType

from flowcore.benchmarks import SEQUENCES, find_sequences
from flowcore.video import (
    BinaryFile,
    Chunk,
    ChunkReader,
    ClipOptions,
    VideoError,
    VideoInput,
    VideoReport,
    content_digest,
)
from pipelines.locations import Folder, absolute, patient, split, storage_of

# fmt: off
VIDEO_EXTENSIONS = frozenset({
    "3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "h265", "hevc", "ivf", "m1v",
    "m2ts", "m2v", "m4v", "mj2", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "nut",
    "obu", "ogm", "ogv", "qt", "rm", "rmvb", "ts", "vob", "webm", "wmv", "y4m",
})
# fmt: on
IMAGE_EXTENSIONS = frozenset({"bmp", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"})

_SIGN_OF_LIFE_SECONDS = 0.2
"""How often the process tells, at most, that it gets on without having a chunk."""


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


@dataclass(frozen=True)
class FrameCodec:
    """How frames are stored."""

    kind: Literal["jpeg", "png"] = "jpeg"
    """`png` is lossless and several times larger."""
    quality: int = 95
    """Of JPEG, 1 to 100."""

    def __post_init__(self) -> None:
        if self.kind not in ("jpeg", "png"):
            raise ValueError(f"frame codec {self.kind!r} must be 'jpeg' or 'png'")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"JPEG quality {self.quality} must be in [1, 100]")

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        """image: uint8 [H, W, 3] RGB."""
        extension, flags = {
            "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, self.quality]),
            "png": (".png", []),
        }[self.kind]
        written, data = cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
        assert written, "OpenCV refused to encode"
        return data.tobytes()

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] RGB; ValueError if data is no image."""
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise ValueError(f"{len(data)} bytes aren't an image: the frame's row is damaged, write it again")
        return cast(NDArray[np.uint8], image)


@dataclass(frozen=True, eq=False)
class EncodedChunk:
    """A flowcore.video.Chunk whose frames, all of height x width px, are encoded."""

    index: int
    frames: list[bytes]
    frame_indices: list[int]
    timestamps: list[float]
    height: int
    width: int


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
    `flowcore.benchmarks.find_sequences` knows there, each a video.

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
        if urlsplit(place).password is not None:
            raise ValueError(
                "a URI with a password in it would be stored with every label: leave the password out and "
                "set the storage's environment variables or role instead"
            )
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


_READY_WITHIN = 120.0
"""Seconds for a decoder process to start, which no video can prolong but a busy machine does."""


class DecoderProcess:
    """Decodes one video after another in a process of its own, which is started when needed and again after a
    crash.

    report tells about the video that was read last, as far as is known if its reading failed. timeout:
    seconds without a sign of life (a chunk, a frame, a block of a file) after which a started process
    counts as hanging. The process ends when its parent does, even by kill -9.
    """

    def __init__(self, *, timeout: float = 120.0) -> None:
        self.report = VideoReport()
        self._timeout = timeout
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._is_busy = False

    @property
    def pid(self) -> int | None:
        """The process's number, None while there is none."""
        return None if self._child is None else self._child[0].pid

    def read(
        self, source: VideoSource, options: ClipOptions, encode: FrameCodec
    ) -> Generator[EncodedChunk, None, None]:
        """The video's chunks; the process works about one ahead. Closing the iterator early ends the process.

        Raises VideoError as ChunkReader does, and if the process crashes, after the chunks that came before;
        OSError if the storage fails, the process hangs or something kills it (as the system does for want of
        memory), which may be gone another time.
        """
        self.report = VideoReport()
        for message in self._answers(_Read(source, options, encode)):
            assert isinstance(message, EncodedChunk), message
            yield message

    def digest(self, source: VideoSource) -> str:
        """flowcore.video.content_digest of the source; raises what read raises."""
        (digest,) = self._answers(_Digest(source))
        assert isinstance(digest, str), digest
        return digest

    def close(self) -> None:
        """Ends the process; the next request starts another."""
        if self._child is not None:
            process, connection = self._child
            self._child = None
            connection.close()
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self, request: "_Read | _Digest") -> Iterator[object]:
        """The answers to one request, without the signs of life between them."""
        if self._is_busy:
            raise RuntimeError("a decoder process reads one video at a time: finish or close its iterator")
        process, connection = self._running()
        self._is_busy = True
        is_idle = False
        failure = None
        try:
            connection.send(request)
            while True:
                message = self._receive(connection)
                if isinstance(message, _Progress):
                    self.report = message.report
                elif isinstance(message, _End):
                    self.report, failure = message.report, message.failure
                    is_idle = True
                    break
                else:
                    yield message
        except TimeoutError:
            raise
        except (EOFError, OSError) as error:
            fate = _fate(process)
            # A file can bring about any signal but this one.
            kind = OSError if process.returncode == -signal.SIGKILL else VideoError
            raise kind(f"the decoder process {fate}") from error
        finally:
            # What is left unread of one answer must not be taken for the next.
            if not is_idle:
                self.close()
            self._is_busy = False
        if failure is not None:
            raise failure

    def _receive(self, connection: Connection) -> object:
        if not connection.poll(self._timeout):
            raise TimeoutError(f"the decoder process hung: no sign of life for {self._timeout:g} s")
        return connection.recv()

    def _running(self) -> tuple[subprocess.Popen[bytes], Connection]:
        if self._child is not None and self._child[0].poll() is not None:
            self.close()
        if self._child is None:
            self._child = _start()
        return self._child


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    code = f"import {__name__} as module; module._serve({theirs.fileno()})"
    process = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-c", code],
        # The child finds what this process finds, wherever Ray has put the code.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)},
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    is_late = not ours.poll(_READY_WITHIN)
    try:
        if is_late:
            process.kill()
        ours.recv()
    except (EOFError, OSError) as error:
        fate = _fate(process)
        # Whoever sends this one may do so to any process; every other end comes again with the next video.
        kind = OSError if process.returncode == -signal.SIGKILL and not is_late else RuntimeError
        raise kind(
            f"the decoder process {fate} before it was ready, within {_READY_WITHIN:g} s: see its output"
        ) from error
    return process, ours


def _fate(process: "subprocess.Popen[bytes]") -> str:
    try:
        code = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if code >= 0:
        return f"exited with code {code}"
    cause = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"died with signal {signal.Signals(-code).name}{cause}"


@dataclass(frozen=True)
class _Read:
    source: VideoSource
    options: ClipOptions
    codec: FrameCodec


@dataclass(frozen=True)
class _Digest:
    source: VideoSource


@dataclass(frozen=True)
class _Progress:
    report: VideoReport


@dataclass(frozen=True)
class _End:
    report: VideoReport
    failure: VideoError | OSError | None


def _serve(descriptor: int) -> None:
    """The child's life: answers requests until the parent is gone."""
    # Ctrl-C in a terminal reaches the child too; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    connection = Connection(descriptor)
    requests: SimpleQueue[_Read | _Digest] = SimpleQueue()
    Thread(target=_listen, args=(connection, requests), daemon=True).start()
    connection.send("ready")
    while True:
        _answer(requests.get(), connection.send)


def _listen(connection: Connection, requests: "SimpleQueue[_Read | _Digest]") -> None:
    """Receives on a thread of its own, which sees the parent's end even while a decoder hangs."""
    while True:
        try:
            requests.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


def _answer(request: _Read | _Digest, send: Callable[[object], None]) -> None:
    reader: ChunkReader | None = None
    last_sign = time.monotonic()

    def report() -> VideoReport:
        return VideoReport() if reader is None else reader.report

    def show_life() -> None:
        nonlocal last_sign
        if time.monotonic() - last_sign > _SIGN_OF_LIFE_SECONDS:
            send(_Progress(report()))
            last_sign = time.monotonic()

    failure: VideoError | OSError | None = None
    try:
        with _opened(request.source) as video:
            if isinstance(request, _Digest):
                send(content_digest(video, on_block=show_life))
            else:
                reader = ChunkReader(video, request.options, on_frame=show_life)
                for chunk in reader:
                    send(_Progress(reader.report))
                    send(_encoded(chunk, request.codec))
    except (VideoError, FileNotFoundError) as error:
        failure = VideoError(str(error))
    except OSError as error:
        failure = OSError(f"{request.source.name} can't be read now: {error}")
    except Exception as error:
        # Nothing that a file can bring about may cost more than that file.
        traceback.print_exc()
        failure = VideoError(f"{type(error).__name__}: {error}")
    send(_End(report(), failure))


@contextmanager
def _opened(source: VideoSource) -> Iterator[VideoInput]:
    place = _absolute(source.uri)
    if source.frames:
        yield [partial(_open, _within(place, name)) for name in source.frames]
    elif _is_remote(place):
        with closing(_open(place)) as file:
            yield file
    else:
        # FFmpeg reads a path faster than through Python.
        yield place


def _encoded(chunk: Chunk, codec: FrameCodec) -> EncodedChunk:
    height, width = chunk.frames[0].shape[:2]
    frames = [codec.encode(frame) for frame in chunk.frames]
    return EncodedChunk(chunk.index, frames, chunk.frame_indices, chunk.timestamps, height, width)
