"""Which videos does a collection hold, and how is one read if its file may kill the process that decodes it?

Decoding happens in a child process, which costs one video when it crashes or hangs. The child is a plain
subprocess and not one of multiprocessing's: those import the parent's main module again, which under Ray is
the worker's own start-up file and elsewhere a script that need not expect it.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

import cv2

from flowcore.formats import FrameCodec
from flowcore.video import Chunk, ChunkReader, ClipOptions, VideoError, VideoReport, content_digest
from pipelines.collection import VideoSource, opened

_SIGN_OF_LIFE_SECONDS = 0.2
"""How often the process tells, at most, that it gets on without having a chunk."""


@dataclass(frozen=True, eq=False)
class EncodedChunk:
    """A flowcore.video.Chunk whose frames, all of height x width px, are encoded."""

    index: int
    frames: list[bytes]
    frame_indices: list[int]
    timestamps: list[float]
    height: int
    width: int


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
        # Nothing that a file can bring about may cost more than that file.
        traceback.print_exc()
        failure = VideoError(f"{type(error).__name__}: {error}")
    send(_End(report(), failure))


def _encoded(chunk: Chunk, codec: FrameCodec) -> EncodedChunk:
    height, width = chunk.frames[0].shape[:2]
    frames = [codec.encode(frame) for frame in chunk.frames]
    return EncodedChunk(chunk.index, frames, chunk.frame_indices, chunk.timestamps, height, width)
