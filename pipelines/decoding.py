"""How is a video read if its file may kill the process that decodes it?

A child process decodes, so that a crash or a hang costs one video. It is a plain subprocess and not one of
multiprocessing's: those import the parent's main module again. Under Ray that is the worker's own start-up
file, and elsewhere a script that may not expect it.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

import cv2

from flowcore.formats import FrameCodec
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
from pipelines.collection import VideoSource
from pipelines.storage import is_remote, join, patient, storage_of

_SIGN_OF_LIFE_SECONDS = 0.2
"""Shortest time between two signs of life of a process that has no chunk to send."""
_READY_WITHIN = 120.0
"""Seconds that a decoder process may take to start. No video prolongs that; a busy machine does."""


@dataclass(frozen=True, eq=False)
class EncodedChunk:
    """A `flowcore.video.Chunk` with encoded frames."""

    index: int
    frames: list[bytes]
    frame_indices: list[int]
    timestamps: list[float]
    height: int
    """Of every frame, in pixels."""
    width: int


class DecoderProcess:
    """Decodes one video after another in a child process.

    The process starts when it is first needed, and again after a crash. It ends when its parent does, even by
    kill -9.
    """

    report: VideoReport
    """On the video that was read last; if reading it failed, as far as is known."""

    def __init__(self, *, timeout: float = 120.0) -> None:
        """timeout: seconds without a sign of life (a chunk, a frame, a block of a file) after which the
        process counts as hanging."""
        self.report = VideoReport()
        self._timeout = timeout
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._is_busy = False

    @property
    def pid(self) -> int | None:
        """The process's number; None while there is no process."""
        return None if self._child is None else self._child[0].pid

    def read(
        self, source: VideoSource, options: ClipOptions, encode: FrameCodec
    ) -> Generator[EncodedChunk, None, None]:
        """The video's chunks. The process works about one chunk ahead; closing the iterator early ends it.

        Raises VideoError where ChunkReader does, and where the process crashes, after the chunks that came
        before. Raises OSError where the storage fails, the process hangs or something kills it, as the system
        does when memory runs out: trying again may help.
        """
        self.report = VideoReport()
        for message in self._answers(_Read(source, options, encode)):
            assert isinstance(message, EncodedChunk), message
            yield message

    def digest(self, source: VideoSource) -> str:
        """`flowcore.video.content_digest` of the video; raises as `read` does."""
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
            # A file can cause any signal but this one.
            kind = OSError if process.returncode == -signal.SIGKILL else VideoError
            raise kind(f"the decoder process {fate}") from error
        finally:
            # What is left unread of this answer must not be taken for the next one.
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
    code = f"import {__name__} as module; module.serve({theirs.fileno()})"
    process = subprocess.Popen(
        [sys.executable, "-P", "-X", "faulthandler", "-c", code],
        # The child imports what this process imports, wherever Ray has put the code.
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
        # SIGKILL may hit any process; any other end would come again with the next video.
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
    cause = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
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


def serve(descriptor: int) -> None:
    """Answers requests until the parent is gone; what the child process runs."""
    # Ctrl-C in a terminal reaches the child too, but ending it is up to the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    connection = Connection(descriptor)
    requests: SimpleQueue[_Read | _Digest] = SimpleQueue()
    Thread(target=_listen, args=(connection, requests), daemon=True).start()
    connection.send("ready")
    while True:
        _answer(requests.get(), connection.send)


def _listen(connection: Connection, requests: "SimpleQueue[_Read | _Digest]") -> None:
    """Receives on a thread of its own, so that the parent's end is seen even while a decoder hangs."""
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
        with opened(request.source) as video:
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
        # Whatever a file causes must cost that file alone.
        traceback.print_exc()
        failure = VideoError(f"{type(error).__name__}: {error}")
    send(_End(report(), failure))


def _encoded(chunk: Chunk, codec: FrameCodec) -> EncodedChunk:
    height, width = chunk.frames[0].shape[:2]
    frames = [codec.encode(frame) for frame in chunk.frames]
    return EncodedChunk(chunk.index, frames, chunk.frame_indices, chunk.timestamps, height, width)


@contextmanager
def opened(source: VideoSource) -> Iterator[VideoInput]:
    """What `ChunkReader` and `content_digest` read a video from; remote files are closed at the end."""
    if source.frames:
        yield [partial(_open, join(source.uri, name)) for name in source.frames]
    elif is_remote(source.uri):
        with closing(_open(source.uri)) as file:
            yield file
    else:
        # FFmpeg reads a path faster than it reads through Python.
        yield source.uri


def _open(place: str) -> BinaryFile:
    return _RemoteFile(place) if is_remote(place) else open(place, "rb")


class _RemoteFile:
    """A file on object storage; reading survives a dropped connection."""

    @patient
    def __init__(self, place: str) -> None:
        filesystem, path = storage_of(place)
        self._file = filesystem.open_input_file(path)
        self._size: int = self._file.size()
        self._position = 0

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        if wanted == 0:
            return b""
        content: bytes = patient(self._file.read_at)(wanted, self._position)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = 0, /) -> int:
        # Beyond the end too, where a damaged file sends FFmpeg: pyarrow's own seek refuses that.
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()
