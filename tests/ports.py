"""Ports of this machine that nobody listens on, and servers that are waited for."""

import contextlib
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def first_answer(address: str, server: subprocess.Popen[Any], log: Path) -> bytes:
    """What a server that starts answers there, once it does; AssertionError, with its log, where it ends."""
    while True:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(URLError, ConnectionError), urlopen(address) as answer:
            return bytes(answer.read())
        time.sleep(0.1)
