"""A server with the file layout of the Hugging Face hub, over folders on the disk."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The only one, to which `main` and `v1` lead."""


class HubServer(ThreadingHTTPServer):
    """The repositories in `root/models` and `root/datasets`, and which of their files were sent."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.root = root
        self.sent: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Requests(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            if self._repository(match[1], match[2], match[3] or "main") is not None:
                self._answer({"id": match[2], "sha": COMMIT, "siblings": [], "tags": []})
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            if (root := self._repository(match[1], match[2], match[3])) is not None:
                self._tree(root, root / match[4], is_recursive="recursive=true" in self.path.lower())
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if match[1] else "models"
            if (root := self._repository(kind, match[2], match[3])) is not None:
                self._file(root / match[4], match[4])
        else:
            self._refuse("")

    def _repository(self, kind: str, name: str, revision: str) -> Path | None:
        folder = self.server.root / kind / name
        if not folder.is_dir():
            self._refuse("RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self._refuse("RevisionNotFound")
        else:
            return folder
        return None

    def _tree(self, root: Path, folder: Path, *, is_recursive: bool) -> None:
        if not folder.is_dir():
            self._refuse("EntryNotFound")
            return
        self._answer(
            [
                {
                    "type": "file" if path.is_file() else "directory",
                    "oid": COMMIT,
                    "size": path.stat().st_size if path.is_file() else 0,
                    "path": str(path.relative_to(root)),
                }
                for path in sorted(folder.rglob("*") if is_recursive else folder.iterdir())
            ]
        )

    def _file(self, path: Path, name: str) -> None:
        if not path.is_file():
            self._refuse("EntryNotFound")
            return
        content = path.read_bytes()
        self.server.sent.add(name)
        headers = {"ETag": f'"{COMMIT}"', "X-Repo-Commit": COMMIT}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], headers)
        else:
            self._send(200, content, headers)

    def _answer(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
