"""SeaweedFS's S3 for the tests, behind a proxy that makes it behave as S3 does on a bad day."""

import contextlib
import http.client
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ports import first_answer, free_ports
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wsgi import get_input_stream

from pipelines.storage import Folder, storage_of

OF_A_CONNECTION = {"Connection", "Expect", "Keep-Alive", "Transfer-Encoding"}
"""Headers that each side has its own of."""


@contextlib.contextmanager
def seaweedfs() -> Iterator[int]:
    """A SeaweedFS of its own on this machine, whose keys are those of the environment; the port of its S3."""
    folder = Path(tempfile.mkdtemp(prefix="seaweedfs-"))
    master, volume, filer, s3, *inner = free_ports(8)
    ports = {
        **{"master.port": master, "volume.port": volume, "filer.port": filer, "s3.port": s3},
        **dict(zip(("master", "volume", "filer", "s3"), inner, strict=True)),
    }
    options = [
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-s3", f"-s3.localSocket={folder}/s3"),
        # Small objects lie in the filer's store: of two writers' a reader gets the one or the other.
        *(f"-filer.localSocket={folder}/filer", "-filer.saveToFilerLimit=1048576"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.volumeSizeLimitMB=64", "-volume.max=0", "-master.telemetry=false"),
        *(f"-{name if '.' in name else f'{name}.port.grpc'}={port}" for name, port in ports.items()),
    ]
    program = [Path(sys.executable).with_name("weed"), f"-logdir={folder}", "server"]
    with (folder / "log").open("w") as words:
        server = subprocess.Popen([*program, *options], cwd=folder, stdout=words, stderr=words)
        try:
            first_answer(f"http://127.0.0.1:{s3}/healthz", server, folder / "log")
            yield s3
        finally:
            # Asked to end, it takes half a minute.
            server.kill()
            server.wait()
            shutil.rmtree(folder)
            for socket in (each for port in inner for each in Path("/tmp").glob(f"seaweedfs-*{port}.sock")):
                socket.unlink()


class Server:
    """Passes requests on to S3, but refuses a share of them and cuts off a share of the answers, or a few;
    answers some with bytes of something else, sends slowly, lists what was there when it was first asked, and
    denies what has `denied` in its name."""

    def __init__(self, port: int) -> None:
        self.reset()
        self._port = port
        self._dice = random.Random(0)

    def reset(self) -> None:
        """A good day from now on."""
        self.refusal = "503 Slow Down"
        self.refused_share = self.cut_share = self.pause = 0.0
        self.lists_stale = False
        self._lists: dict[str, tuple[Any, list[bytes]]] = {}
        self.torn_next = self.cut_next = self.requests = self.refused = self.cut = 0
        self.denied = ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.requests += 1
        if self.denied and self.denied in environ["PATH_INFO"]:
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        dice = self._dice.random()
        if dice < self.refused_share:
            self.refused += 1
            get_input_stream(environ).read()
            code = self.refusal.partition(" ")[2].replace(" ", "")
            body = f"<Error><Code>{code}</Code><Message>Not now.</Message></Error>".encode()
            start_response(self.refusal, [("Content-Length", str(len(body)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        time.sleep(self.pause)
        if self.lists_stale and "list-type=2" in environ["QUERY_STRING"]:
            return self._listed(environ, start_response)
        answer = self._storage(environ, start_response)
        if self.torn_next > 0 and environ["REQUEST_METHOD"] == "GET":
            self.torn_next -= 1
            return [b"\xb1" * len(part) for part in answer]
        if self.cut_next > 0:
            self.cut_next -= 1
            return self._half(answer)
        return self._half(answer) if dice < self.refused_share + self.cut_share else answer

    def _storage(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """What S3 answers to the same request. Its signature holds, as the host's name is passed on too."""
        sent = {
            name[5:].replace("_", "-").title(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        headers = {name: value for name, value in sent.items() if name not in OF_A_CONNECTION}
        if kind := environ.get("CONTENT_TYPE"):
            headers["Content-Type"] = kind
        body = get_input_stream(environ).read()
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        with contextlib.closing(connection):
            connection.request(environ["REQUEST_METHOD"], environ["RAW_URI"], body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
            kept = [line for line in answer.getheaders() if line[0].title() not in OF_A_CONNECTION]
        if not any(name.title() == "Content-Length" for name, _ in kept):
            kept.append(("Content-Length", str(len(content))))
        start_response(f"{answer.status} {answer.reason}", kept)
        return [content]

    def _listed(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        query = environ["PATH_INFO"] + environ["QUERY_STRING"]
        if query not in self._lists:
            head: list[Any] = []
            answer = list(self._storage(environ, lambda *line: head.append(line)))
            self._lists[query] = head[0], answer
        line, body = self._lists[query]
        start_response(*line)
        return body

    def _half(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        self.cut += 1
        body = b"".join(answer)
        yield body[: len(body) // 2]
        raise ConnectionAbortedError


class Quiet(WSGIRequestHandler):
    # Keeps connections open, as S3 does.
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[tuple[Server, int]]:
    """A server on this machine, and its port."""
    with seaweedfs() as port:
        application = Server(port)
        server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield application, server.server_port
        server.shutdown()


class Bucket:
    """A new bucket; `server` has what it refused and cut off, and the shares to do so."""

    def __init__(self, name: str, server: Server, port: int) -> None:
        self.server = server
        self.name = name
        self.endpoint = f"http://127.0.0.1:{port}"
        self._query = f"?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"
        filesystem, _ = storage_of(f"s3://{name}/{self._query}&allow_bucket_creation=true")
        filesystem.create_dir(name)

    def uri(self, key: str = "") -> str:
        return f"s3://{self.name}/{key}".rstrip("/") + self._query

    def fill(self, folder: Path) -> None:
        """Puts what is in a local folder there."""
        for path in folder.rglob("*"):
            if path.is_file():
                filesystem, place = storage_of(self.uri(quote(path.relative_to(folder).as_posix())))
                with filesystem.open_output_stream(place) as stream:
                    stream.write(path.read_bytes())

    def remove(self, key: str) -> None:
        filesystem, place = storage_of(self.uri(key))
        filesystem.delete_file(place)

    def contents(self, key: str, ending: str) -> dict[str, bytes]:
        """By name in the folder `key`."""
        folder = Folder(self.uri(key))
        return {name: folder.read(name) for name in folder.infos() if name.endswith(ending)}
