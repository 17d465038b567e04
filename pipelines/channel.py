"""How does a process talk to its confined child?

In messages of JSON and bytes, which can't run code. A message is a header, which is a JSON object, and some
bodies, which are bytes. Its size comes first and is compared with what the receiver will take before any of
it is read.
"""

import json
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

Kind = TypeVar("Kind")

_PREFIX = struct.Struct(">IQ")
"""Bytes of the header, and of the bodies together."""
_MOST_HEADER = 1 << 24


class WrongMessageError(Exception):
    """What the other side sent is no message, or not one that was asked for."""


@dataclass(frozen=True)
class Message:
    header: dict[str, Any]
    bodies: list[bytes]
    descriptor: int | None = None
    """Of an open file that came with it, where one was asked for; whoever receives it has to close it."""


class Channel:
    """One end of a connected socket of this machine."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def send(
        self, header: dict[str, Any], bodies: Sequence[bytes] = (), *, descriptor: int | None = None
    ) -> None:
        text = json.dumps({**header, "sizes": [len(body) for body in bodies]}).encode()
        prefix = _PREFIX.pack(len(text), sum(map(len, bodies)))
        if descriptor is None:
            self._connection.sendall(prefix)
        else:
            socket.send_fds(self._connection, [prefix], [descriptor])
        self._connection.sendall(b"".join((text, *bodies)))

    def receive(
        self, *, most: int = 0, within: float | None = None, with_descriptor: bool = False
    ) -> Message:
        """The next message, with bodies of `most` bytes together at most, all of it within so many seconds.

        Raises TimeoutError after that, EOFError where the other side is gone, and WrongMessageError.
        Descriptors are let in only where they are asked for.
        """
        # Without a limit the socket is left as it is: a confined process can't change it.
        deadline = None if within is None else time.monotonic() + within
        try:
            return self._received(most, deadline, with_descriptor)
        finally:
            if deadline is not None:
                self._connection.settimeout(None)

    def _received(self, most: int, deadline: float | None, with_descriptor: bool) -> Message:
        descriptors: list[int] = []
        prefix = self._exactly(_PREFIX.size, deadline, descriptors if with_descriptor else None)
        header_size, size = _PREFIX.unpack(prefix)
        if header_size > _MOST_HEADER or size > most:
            raise WrongMessageError(f"a message of {header_size} and {size} bytes; {most} are taken")
        try:
            header = json.loads(self._exactly(header_size, deadline))
        except (ValueError, RecursionError) as error:
            raise WrongMessageError(f"a header that is no JSON: {error}") from error
        sizes = header.get("sizes") if isinstance(header, dict) else None
        if not is_list_of(sizes, int) or min(sizes, default=0) < 0 or sum(sizes) != size:
            raise WrongMessageError("a header that doesn't fit its bodies")
        bodies = [self._exactly(each, deadline) for each in sizes]
        return Message(header, bodies, descriptors[0] if descriptors else None)

    def _exactly(self, size: int, deadline: float | None, descriptors: list[int] | None = None) -> bytes:
        content = bytearray(size)
        view = memoryview(content)
        while view:
            if deadline is not None:
                self._wait(deadline)
            if descriptors is None:
                count = self._connection.recv_into(view)
            else:
                part, received, _, _ = socket.recv_fds(self._connection, len(view), 1)
                descriptors += received
                count = len(part)
                view[:count] = part
            if count == 0:
                raise EOFError("the other side is gone")
            view = view[count:]
        return bytes(content)

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)


def is_list_of(values: object, kind: type[Kind]) -> TypeGuard[list[Kind]]:
    """Whether `values` is a list of values of exactly this type; JSON's true is no number."""
    return isinstance(values, list) and all(type(each) is kind for each in values)
