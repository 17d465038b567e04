"""What an install brings: known by hashes, asked about at the audit, its licences listed."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any, ClassVar

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from docs.make.licences import bundled_libraries

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LICENCES = (REPOSITORY / "docs" / "reference" / "licences.md").read_text()
LOCKED: list[dict[str, Any]] = [
    package
    for package in tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
    if package["name"] != PROJECT["name"]
]


def locked_versions(name: str) -> set[str]:
    """More than one where an extra or an older Python wants another."""
    return {package["version"] for package in LOCKED if package["name"] == canonicalize_name(name)}


def uv(*arguments: str) -> str:
    """What uv prints; an error if it fails."""
    command = [find_uv_bin(), *arguments, "--project", str(REPOSITORY), "--offline"]
    environment = {**os.environ, "UV_DEFAULT_INDEX": "https://pypi.org/simple"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make in the environment of this test, as it is."""
    # Not the options of the make that runs this test, and no second try where nobody answers.
    environment = {**os.environ, "MAKEFLAGS": "", "UV_HTTP_RETRIES": "0"}
    here = [f"VENV={sys.prefix}", "--old-file", f"{sys.prefix}/.installed"]
    command = ["make", "--no-print-directory", *here, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def test_every_dependency_is_locked_within_its_bounds() -> None:
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for requirement in map(Requirement, lines):
            if requirement.name == PROJECT["name"]:
                continue
            versions = locked_versions(requirement.name)
            assert versions
            assert all(version in requirement.specifier for version in versions), requirement


def test_the_lock_is_that_of_pyproject() -> None:
    uv("lock", "--check")


def test_every_file_that_an_install_loads_is_pypi_s_and_known_by_its_hash() -> None:
    for package in LOCKED:
        assert package["source"] == {"registry": "https://pypi.org/simple"}, package["name"]
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        for file in files:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"]), file
            assert file["url"].startswith("https://files.pythonhosted.org/"), file


def test_no_package_is_built_while_it_is_installed() -> None:
    # A build runs code, and brings packages that no lock knows. ptlflow alone needs one that has no wheel.
    assert {package["name"] for package in LOCKED if "wheels" not in package} == {"antlr4-python3-runtime"}
    assert "antlr4" not in uv("export", "--frozen", "--extra", "dev", "--extra", "torchvision")


def test_pip_s_requirements_are_what_uv_locked() -> None:
    exported = uv("export", "--frozen", "--no-emit-project", "--extra", "server")
    written = (REPOSITORY / "requirements.txt").read_text()
    # The first lines are the command.
    assert [line for line in written.splitlines() if line[:1] != "#"] == [
        line for line in exported.splitlines() if line[:1] != "#"
    ]


def test_the_cpu_build_of_torch_is_of_the_locked_version() -> None:
    lines = (REPOSITORY / "torch-cpu.txt").read_text().splitlines()
    pin, *hashes = [line.removesuffix(" \\") for line in lines if not line.startswith("#")]
    assert {pin} == {f"torch=={version}+cpu" for version in locked_versions("torch")}
    assert hashes
    assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}", line) for line in hashes)


def test_only_torch_needs_what_make_leaves_out_with_its_cpu_build() -> None:
    printed = make("--eval", "print-cuda: ; @echo $(CUDA)", "print-cuda").stdout.split()
    left_out = set(printed) - {"--no-install-package"}
    assert {"triton", "cuda-toolkit", "nvidia-cudnn-cu13"} <= left_out
    who = {
        package["name"]
        for package in LOCKED
        for needed in package.get("dependencies", [])
        if needed["name"] in left_out
    }
    assert who - left_out == {"torch"}


class Advisories(http.server.BaseHTTPRequestHandler):
    """The service that uv asks, as osv.dev answers: of torch alone there is something to say."""

    found: ClassVar[dict[str, Any]] = {}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        self.answer({"results": [self.found if q["package"]["name"] == "torch" else {} for q in asked]})

    def do_GET(self) -> None:
        torch = {
            "package": {"name": "torch", "ecosystem": "PyPI"},
            "versions": sorted(locked_versions("torch")),
        }
        self.answer(ADVISORY | {"summary": "runs what it reads", "affected": [torch]})

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


ADVISORY = {"id": "TEST-1", "modified": "2026-01-01T00:00:00Z"}


class Vulnerable(Advisories):
    found: ClassVar[dict[str, Any]] = {"vulns": [ADVISORY]}


class Broken(Advisories):
    def do_POST(self) -> None:
        self.send_error(403)


@pytest.mark.parametrize(
    ("service", "succeeds", "said"),
    [
        (Advisories, True, "no known vulnerabilities"),
        (Vulnerable, False, "TEST-1"),
        (Broken, True, "audit skipped"),
    ],
)
def test_an_audit_fails_where_a_locked_package_is_vulnerable_and_skips_where_nobody_answers(
    service: type[Advisories], succeeds: bool, said: str
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        audit = make("audit", f"ARGS=--service-url http://127.0.0.1:{server.server_port}/")
        server.shutdown()
    assert (audit.returncode == 0) == succeeds, audit.stdout
    assert said in audit.stdout


def test_an_audit_skips_where_there_is_no_service() -> None:
    # A port that was free a moment ago.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    audit = make("audit", f"ARGS=--service-url http://127.0.0.1:{port}/")
    assert audit.returncode == 0, audit.stdout
    assert "audit skipped" in audit.stdout


def listed_licences() -> dict[tuple[str, str], str]:
    """(package, version) -> licence; the name of a direct dependency is bold."""
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| (.*?) \|", LICENCES.partition("## Packages")[2], re.MULTILINE)
    return {(name, version): licence for name, version, licence in rows}


def test_the_licence_of_every_locked_package_is_listed() -> None:
    listed = listed_licences()
    locked = {(package["name"], package["version"]) for package in LOCKED}
    assert {(name.strip("*"), version) for name, version in listed} == locked
    assert all(listed.values())


def test_every_installed_dependency_is_listed_and_the_direct_ones_are_marked() -> None:
    listed = {name for name, _ in listed_licences()}
    direct = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert {f"**{name}**" for name in direct} <= listed
    installed: set[str] = set()
    waiting = {*direct}
    while waiting:
        name = waiting.pop()
        try:
            brings = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            # An extra's, or another platform's.
            continue
        installed.add(name)
        always = [each for each in brings if each.marker is None or each.marker.evaluate({"extra": ""})]
        waiting |= {canonicalize_name(each.name) for each in always} - installed
    assert len(installed) > len(direct)
    assert installed <= {name.strip("*") for name in listed}


def test_every_library_inside_a_wheel_is_listed() -> None:
    section = LICENCES.partition("## Libraries")[2].partition("##")[0]
    listed = {
        name: set(libraries.split(", ")) for name, libraries in re.findall(r"\| (\S+) \| (.+) \|", section)
    }
    for name, libraries in bundled_libraries().items():
        assert set(libraries) <= listed[name], name
    assert {"libx264", "libx265", "libavcodec"} <= listed["av"]
