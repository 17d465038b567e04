"""How is a video read if its file may kill the process that decodes it, or take it over?

A child process decodes, so that a crash or a hang costs one video, and it is confined (`pipelines.sandbox`),
so that whoever takes it over has nothing but its pipes. What it answers is checked against what it was asked.

It is a plain subprocess and not one of multiprocessing's: those import the parent's main module again, which
under Ray is the worker's own start-up file, and they read pickles.
"""

import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from threading import Thread
from types import TracebackType
from typing import Self

from flowcore.chunks import VideoReport
from flowcore.frame_codec import FrameCodec
from flowcore.video import ClipOptions, VideoError
from pipelines.channel import Channel, Message, WrongMessageError
from pipelines.collection import VideoSource
from pipelines.decoding_answers import Answers, EncodedChunk, most_kept_pixels
from pipelines.decoding_child import BLOCK_GIVEN, BLOCK_WANTED, MISSING, READ, UNREADABLE
from pipelines.sandbox import LAYERS, bare_environment
from pipelines.video_files import VideoFiles

_READY_WITHIN = 120.0
"""Seconds in which a decoder process must start. No video prolongs that; a busy machine does."""
_FRAME_SECONDS, _VIDEO_SECONDS = 100, 86_400
"""CPU seconds allowed between two signs of life, and for one video. A day is enough for the two million
frames that are read by default, of 1080p."""
_WAITED_SECONDS = 3 * 86_400
"""Seconds in which one video must be done, whether or not the process computes."""
_STARTED_BYTES = 1 << 30
"""Address space of the process before it reads a video."""
_PICTURES = 24
"""Frames a decoder holds at once: 16 to refer to, and those on their way in and out."""
_PICTURE_BYTES = 6
"""Bytes of a pixel in a decoder: three channels of 16 bits."""
_WAITING = 64
"""Frames beyond a chunk that wait: up to 50 for the end of a fade, and some for a cut."""
_STDERR_BYTES = 1 << 16
"""Bytes the process may print about one video."""


def memory_for(options: ClipOptions) -> int:
    """Bytes of address space that a process may take to decode videos with these options."""
    decoder = _PICTURES * _PICTURE_BYTES * options.max_pixels
    return _STARTED_BYTES + decoder + (options.chunk_pairs + _WAITING) * 3 * most_kept_pixels(options)


class DecoderProcess:
    """Decodes one video after another in a child process.

    The process starts when it is first needed, and again after a crash. It ends when its parent does, even by
    kill -9.
    """

    report: VideoReport
    """On the video that was read last; if reading it failed, as far as is known."""

    def __init__(
        self,
        *,
        timeout: float = 120.0,
        frame_seconds: int = _FRAME_SECONDS,
        video_seconds: int = _VIDEO_SECONDS,
        waited_seconds: float = _WAITED_SECONDS,
    ) -> None:
        """timeout: seconds without a sign of life (a chunk or a frame) after which the process counts as
        hanging. frame_seconds, video_seconds: of computing, from one sign of life to the next and for a video
        altogether, that a video may take, however busy the machine is. waited_seconds: for which the process
        is waited for, for a video altogether; what is done with its chunks meanwhile doesn't count."""
        self.report = VideoReport()
        self._timeout = timeout
        self._seconds = frame_seconds, video_seconds, waited_seconds
        self._child: _Child | None = None
        self._files: VideoFiles | None = None
        self._is_busy = False

    @property
    def pid(self) -> int | None:
        """The process's number; None while there is no process."""
        return None if self._child is None else self._child.process.pid

    @property
    def layers(self) -> tuple[str, ...]:
        """Those of `pipelines.sandbox.confine` that confine the process; none while there is no process."""
        return () if self._child is None else self._child.layers

    def digest(self, source: VideoSource) -> str:
        """32 hexadecimal digits that identify the video's content, as `VideoFiles.digest` does and raises.

        Where the same video is read next, that is the content that is read, or an OSError.
        """
        self._require_idle()
        self._open(source)
        assert self._files is not None
        return self._files.digest()

    def read(
        self, source: VideoSource, options: ClipOptions, codec: FrameCodec
    ) -> Generator[EncodedChunk, None, None]:
        """The video's chunks. The process works about one chunk ahead; closing the iterator early ends it.

        Raises VideoError where ChunkReader does, and where the process crashes, or takes too much memory or
        time, after the chunks that came before. Raises OSError where the storage fails, the process hangs or
        something kills it, as the system does when memory runs out: trying again may help.
        """
        self._require_idle()
        self._is_busy = True
        self.report = VideoReport()
        try:
            if self._files is None or self._files.source != source:
                self._open(source)
            assert self._files is not None
            yield from self._chunks(self._files, options, codec)
        finally:
            self._is_busy = False
            self._close_files()

    def close(self) -> None:
        """Ends the process; the next request starts another."""
        self._close_files()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chunks(self, files: VideoFiles, options: ClipOptions, codec: FrameCodec) -> Iterator[EncodedChunk]:
        child = self._running(options)
        answers = Answers(options, codec)
        is_ended = is_idle = False
        failure = None
        try:
            child.ask(files, options, codec, *self._seconds)
            while not is_ended:
                message = child.answer(answers.most_bytes, self._timeout)
                answers.note(message)
                self.report = answers.report
                files.require_digested()
                match message.header.get("kind"):
                    case "chunk":
                        yield answers.chunk(message)
                    case "end":
                        failure = answers.end(message)
                        is_ended = True
                        is_idle = message.header.get("is_spent") is False
                    case "progress":
                        pass
                    case kind:
                        raise WrongMessageError(f"{kind!r:.20}")
        except WrongMessageError as error:
            raise VideoError(f"the decoder process sent what it wasn't asked for: {error}") from error
        except EOFError as error:
            raise files.failure or child.death() from error
        finally:
            # What is left unread of this answer must not be taken for the next one's, nor what is left of a
            # process that failed.
            if not is_idle:
                self._end()
        if files.failure is not None:
            raise files.failure
        if failure is not None:
            raise VideoError(failure)

    def _require_idle(self) -> None:
        if self._is_busy:
            raise RuntimeError("a decoder process reads one video at a time: finish or close its iterator")

    def _open(self, source: VideoSource) -> None:
        self._close_files()
        self._files = VideoFiles(source)

    def _close_files(self) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None

    def _running(self, options: ClipOptions) -> "_Child":
        limits = _Limits(memory=memory_for(options), pixels=options.max_pixels)
        if self._child is not None and (self._child.limits != limits or not self._child.is_alive):
            self._end()
        if self._child is None:
            self._child = _Child(limits)
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """Limits set when a process starts, which it can't lift."""

    memory: int
    """Bytes of address space."""
    pixels: int
    """Pixels of an image."""


class _Child:
    """A decoder process, what it is given to read, and what it prints."""

    def __init__(self, limits: _Limits) -> None:
        """Waits until the process is ready. Raises OSError if something kills it before, RuntimeError if it
        ends otherwise."""
        self.limits = limits
        self._files: VideoFiles | None = None
        self._printable = _STDERR_BYTES
        control, theirs = socket.socketpair()
        self._blocks, their_blocks = socket.socketpair()
        self._channel = Channel(control)
        with theirs, their_blocks:
            arguments = f"{theirs.fileno()}, {their_blocks.fileno()}, {limits.memory}"
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-X", "faulthandler", "-c"),
                    f"from pipelines.decoding_child import serve; serve({arguments})",
                ],
                env=bare_environment() | {"OPENCV_IO_MAX_IMAGE_PIXELS": str(limits.pixels)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno(), their_blocks.fileno()],
            )
        for work in (self._give_blocks, self._print):
            Thread(target=work, daemon=True).start()
        self.layers = self._ready()
        lacking = [name for name in LAYERS if name not in self.layers]
        if lacking:
            warnings.warn(
                f"this system lacks {' and '.join(lacking)} to confine the process that decodes videos: see "
                "docs/explanation/trust.md in the repository before decoding what strangers made",
                RuntimeWarning,
                stacklevel=2,
            )

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def ask(
        self,
        files: VideoFiles,
        options: ClipOptions,
        codec: FrameCodec,
        frame_seconds: int,
        video_seconds: int,
        waited_seconds: float,
    ) -> None:
        """Sends the request to read a video; EOFError if the process is gone."""
        self._files = files
        self._printable = _STDERR_BYTES
        self._frame_seconds = frame_seconds
        self._computes_until = self._computed() + video_seconds
        self._wait_left = waited_seconds
        request = {
            "images": len(files.source.frames),
            "options": asdict(options),
            "codec": asdict(codec),
        }
        try:
            self._channel.send(request, descriptor=files.descriptor)
        except OSError as error:
            raise EOFError from error

    def answer(self, most_bytes: int, timeout: float) -> Message:
        """The next message; EOFError if the process is gone, TimeoutError if none comes in time, VideoError
        where the video has been waited for too long."""
        began = time.monotonic()
        limit = math.ceil(min(self._computed() + self._frame_seconds, self._computes_until))
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        try:
            if most == resource.RLIM_INFINITY or limit < most:
                resource.prlimit(self.process.pid, resource.RLIMIT_CPU, (max(1, limit), most))
            return self._channel.receive(most=most_bytes, within=min(timeout, self._wait_left))
        except TimeoutError as error:
            if self._wait_left <= timeout:
                raise VideoError(
                    "reading it takes too long: its time to wait for frames is used up"
                ) from error
            raise TimeoutError(f"the decoder process hung: no sign of life for {timeout:g} s") from error
        except OSError as error:
            raise EOFError from error
        finally:
            self._wait_left -= time.monotonic() - began

    def death(self) -> VideoError | OSError:
        """What the end of the process means for the video that it was reading."""
        fate = self._fate()
        if self.process.returncode == -signal.SIGXCPU:
            return VideoError("decoding it takes too long: the decoder process used up its computing time")
        # A file can cause any signal but SIGKILL.
        kind = OSError if self.process.returncode == -signal.SIGKILL else VideoError
        return kind(f"the decoder process {fate}")

    def kill(self) -> None:
        self._channel.close()
        self.process.kill()
        self.process.wait()

    def _ready(self) -> tuple[str, ...]:
        is_late = False
        try:
            layers = self._channel.receive(within=_READY_WITHIN).header["layers"]
        except (EOFError, OSError) as error:
            is_late = isinstance(error, TimeoutError)
            if is_late:
                self.process.kill()
            fate = self._fate()
            self.kill()
            # SIGKILL may hit any process; any other end would come again with the next video.
            is_killed = self.process.returncode == -signal.SIGKILL and not is_late
            raise (OSError if is_killed else RuntimeError)(
                f"the decoder process {fate} before it was ready, within {_READY_WITHIN:g} s: see its output"
            ) from error
        return tuple(layers)

    def _fate(self) -> str:
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code >= 0:
            return f"exited with code {code}"
        cause = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
        return f"died with signal {signal.Signals(-code).name}{cause}"

    def _computed(self) -> float:
        """Seconds of a processor that the process has used."""
        try:
            with open(f"/proc/{self.process.pid}/stat", "rb") as file:
                user, system = file.read().rpartition(b")")[2].split()[11:13]
        except (OSError, ValueError):
            return 0.0
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _give_blocks(self) -> None:
        with self._blocks as blocks:
            try:
                while len(wanted := blocks.recv(BLOCK_WANTED.size, socket.MSG_WAITALL)) == BLOCK_WANTED.size:
                    outcome, size, content = self._block(*BLOCK_WANTED.unpack(wanted))
                    blocks.sendall(BLOCK_GIVEN.pack(outcome, size, len(content)) + content)
            except OSError:
                # The process is gone, which the other socket tells.
                return

    def _block(self, number: int, offset: int) -> tuple[int, int, bytes]:
        files = self._files
        if files is None or number >= files.count:
            return UNREADABLE, 0, b""
        try:
            return READ, *files.block(number, offset)
        except VideoError:
            return MISSING, 0, b""
        except OSError:
            return UNREADABLE, 0, b""

    def _print(self) -> None:
        """Passes on what the process says, which may be a video's text, without what a terminal obeys."""
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            while said := os.read(stream.fileno(), 4096):
                text = said[: self._printable].decode(errors="replace")
                self._printable -= len(said[: self._printable])
                shown = (each if each.isprintable() or each == "\n" else "?" for each in text)
                sys.stderr.write("".join(shown))
