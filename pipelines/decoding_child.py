"""What does the process do that decodes videos?

It answers one request after another, of what it is given alone: an open file, or blocks of files that the
parent reads. It is confined before the first of them. It imports neither Ray nor what reads storages, and so
starts in a third of a second.
"""

import os
import signal
import socket
import struct
import time
import traceback
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pkgutil import walk_packages
from queue import SimpleQueue
from threading import Thread
from typing import Any

import av
import cv2

from flowcore.chunks import Chunk, ChunkReader, VideoReport
from flowcore.frame_codec import FrameCodec
from flowcore.video import ClipOptions, VideoError, VideoInput
from pipelines.channel import Channel, Message
from pipelines.sandbox import confine

_SIGN_OF_LIFE_SECONDS = 0.2
"""Shortest time between two signs of life of a process that has no chunk to send."""
BLOCK_WANTED = struct.Struct(">IQ")
"""A file's number and an offset in it."""
BLOCK_GIVEN = struct.Struct(">BQI")
"""One of the three below, the file's size, and how many bytes follow."""
READ, MISSING, UNREADABLE = range(3)


def serve(control: int, blocks: int, memory: int) -> None:
    """Answers requests until the parent is gone; what the child process runs.

    control, blocks: descriptors of sockets, for requests and answers and for the blocks of files. memory:
    bytes that the process may take.
    """
    # Ctrl-C in a terminal reaches the child too, but ending it is up to the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    channel = Channel(socket.socket(fileno=control))
    files = socket.socket(fileno=blocks)
    # PyAV imports some of its modules when a video has use for them, and then no file can be opened.
    for module in walk_packages(av.__path__, "av."):
        if module.name != "av.__main__":
            import_module(module.name)
    layers = confine(memory)
    requests: SimpleQueue[Message] = SimpleQueue()
    Thread(target=_listen, args=(channel, requests), daemon=True).start()
    channel.send({"kind": "ready", "layers": layers})
    while True:
        _answer(requests.get(), channel, files)


def _listen(channel: Channel, requests: "SimpleQueue[Message]") -> None:
    """Receives on a thread of its own, so that the parent's end is seen even while a decoder hangs."""
    while True:
        try:
            requests.put(channel.receive(with_descriptor=True))
        except (EOFError, OSError):
            os._exit(0)


def _answer(request: Message, channel: Channel, files: socket.socket) -> None:
    values, descriptor = request.header, request.descriptor
    options = ClipOptions(**{name: _tuple(value) for name, value in values["options"].items()})
    codec = FrameCodec(**values["codec"])
    reader: ChunkReader | None = None
    last_sign = time.monotonic()

    def report() -> dict[str, Any]:
        return asdict(VideoReport() if reader is None else reader.report)

    def show_life() -> None:
        nonlocal last_sign
        if time.monotonic() - last_sign > _SIGN_OF_LIFE_SECONDS:
            channel.send({"kind": "progress", "report": report()})
            last_sign = time.monotonic()

    failure, is_spent = None, False
    try:
        reader = ChunkReader(_video(files, values["images"], descriptor), options, on_frame=show_life)
        for chunk in reader:
            _send(channel, chunk, codec, reader.report)
    except VideoError as error:
        failure = str(error)
    except Exception as error:
        # Whatever a file causes must cost that file alone, so nothing goes on from here.
        is_spent = True
        failure = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError):
            failure = "decoding it takes more memory than it may; --clips.max-pixels sets how much that is"
        elif not isinstance(error, OSError):
            # The parent knows by itself what it couldn't read.
            traceback.print_exc()
    finally:
        if descriptor is not None:
            os.close(descriptor)
    channel.send({"kind": "end", "report": report(), "failure": failure, "is_spent": is_spent})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _send(channel: Channel, chunk: Chunk, codec: FrameCodec, report: VideoReport) -> None:
    height, width = chunk.frames[0].shape[:2]
    header = {
        "kind": "chunk",
        "report": asdict(report),
        "index": chunk.index,
        "frame_indices": chunk.frame_indices,
        "timestamps": chunk.timestamps,
        "height": height,
        "width": width,
    }
    channel.send(header, [codec.encode(frame) for frame in chunk.frames])


def _video(files: socket.socket, images: int, descriptor: int | None) -> VideoInput:
    if images:
        return [partial(_SentFile, files, number) for number in range(images)]
    return _SentFile(files, 0) if descriptor is None else descriptor


class _SentFile:
    """A file that the parent reads; FileNotFoundError where there is none, OSError where it can't be read."""

    def __init__(self, files: socket.socket, number: int) -> None:
        self._files = files
        self._number = number
        self._position = self._size = self._start = 0
        self._block = b""
        self._fetch(0)

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return b"".join(iter(self._some, b""))
        return self._some(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        # Beyond the end too, where a damaged file sends FFmpeg.
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._block = b""

    def _some(self, most: int | None = None) -> bytes:
        """What is left of the block at the position, at most so much of it; nothing at the file's end."""
        if self._position >= self._size:
            return b""
        if not self._start <= self._position < self._start + len(self._block):
            self._fetch(self._position)
        at = self._position - self._start
        content = self._block[at : None if most is None else at + most]
        self._position += len(content)
        return content

    def _fetch(self, offset: int) -> None:
        self._files.sendall(BLOCK_WANTED.pack(self._number, offset))
        outcome, self._size, length = BLOCK_GIVEN.unpack(self._exactly(BLOCK_GIVEN.size))
        if outcome == MISSING:
            raise FileNotFoundError("No such file")
        if outcome == UNREADABLE:
            raise OSError("the file can't be read")
        self._start, self._block = offset, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        content = self._files.recv(size, socket.MSG_WAITALL) if size else b""
        if len(content) < size:
            raise EOFError("the parent is gone")
        return content
