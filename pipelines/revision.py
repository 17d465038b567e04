"""Which code runs?"""

import contextlib
import difflib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import cv2

from flowcore.extras import PACKAGE
from pipelines.disclosure import code_without_secrets, storable
from pipelines.installation import home_of, installed_version, is_installed, is_shipped_copy
from pipelines.invocation import typed_again

_PACKAGES = ("torch", "ray", "numpy", "pyarrow", "av", "mlflow")
_CODE = ("*.py", "*.jinja", "pyproject.toml", "uv.lock")
_OURS = ("flowcore", "pipelines", "jobs")
_LONGEST_DIFF = 1_000_000
"""Characters."""
DIFF_FILE = "repeat/uncommitted.diff"
PACKAGES_FILE = "repeat/packages.txt"
"""Artifacts of a run that tell its code: with its tags and options, what is needed to do the same again."""


def code_tags(project_folder: Path) -> dict[str, str]:
    """Which code runs: revision, command line, versions."""
    revision, is_dirty = revision_of(project_folder)
    return {
        "mlflow.source.name": sys.argv[0],
        "mlflow.source.type": "JOB" if is_shipped_copy(home_of(project_folder)) else "LOCAL",
        "mlflow.source.git.commit": revision,
        "revision.dirty": is_dirty,
        "command": typed_again(),
        "version.python": platform.python_version(),
        **{f"version.{name}": _version(name) for name in _PACKAGES},
        # OpenCV comes in any of four packages, or with the system in none.
        "version.opencv": cv2.__version__,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def revision_of(project_folder: Path) -> tuple[str, str]:
    """(git revision, whether files differ from it); a copy without git repeats DISTILLFLOW_REVISION.

    An installed package has its version, and a digest of its files, which tells builds of one version apart.
    """
    told = os.environ.get("DISTILLFLOW_REVISION", "unknown")
    if told == "unknown" and is_installed(project_folder):
        return f"{PACKAGE} {installed_version()}, files {_files_digest(project_folder)}", "false"
    revision, changes = (
        _git(project_folder, *command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    if revision is None or changes is None:
        return told, "unknown"
    return revision.decode().strip(), str(changes.strip() != b"").lower()


def _files_digest(folder: Path) -> str:
    """12 hexadecimal digits of the code of our packages in the folder."""
    paths = (
        path for package in _OURS for kind in ("*.py", "*.jinja") for path in (folder / package).rglob(kind)
    )
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(paths):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(project_folder: Path, *arguments: str) -> bytes | None:
    """What a git command prints about the project, in the encodings of its files and of their names; None
    without git or a repository of its own."""
    # Without a .git of its own, git would answer for a repository that the folder happens to lie in.
    if not (project_folder / ".git").exists():
        return None
    command = ["git", "-C", str(project_folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _environment() -> list[str]:
    """Where Python looks for what is installed, without folders inside a package. Ray's import adds one, of
    copies that it keeps for itself, and what a run has must not depend on what was imported."""
    installed = [Path(each) for each in sys.path if each.endswith(("site-packages", "dist-packages"))]
    return [each for each in sys.path if not any(place in Path(each).parents for place in installed)]


def code_files(project_folder: Path) -> dict[str, str]:
    """By artifact: how the code differs from the revision, with code that it doesn't have, and every package
    installed.

    Of the project's files only those that are code, since the others may hold anything; without secrets, and
    cut where it is long.
    """
    changes = _git(project_folder, "diff", "--no-ext-diff", "--no-textconv", "HEAD", "--", *_CODE) or b""
    # -z: without it git quotes names that aren't ASCII
    unknown = _git(project_folder, "ls-files", "-z", "--others", "--exclude-standard", "--", *_CODE) or b""
    names = [os.fsdecode(name) for name in unknown.split(b"\0")[:-1]]
    diff = changes.decode(errors="replace") + "".join(_added(project_folder, name) for name in names)
    diff = storable(code_without_secrets(diff))
    if len(diff) > _LONGEST_DIFF:
        digest = hashlib.blake2b(diff.encode(), digest_size=8).hexdigest()
        diff = f"{diff[:_LONGEST_DIFF]}\n... {len(diff)} characters, of digest {digest}\n"
    return {DIFF_FILE: diff, PACKAGES_FILE: "\n".join(sorted(_packages()))}


def _added(project_folder: Path, name: str) -> str:
    """The diff that adds a file which git doesn't know."""
    path = project_folder / name
    # A link may lead to what is no code, and opening a pipe would block for ever.
    if path.is_symlink() or not path.is_file():
        return ""
    if path.stat().st_size > _LONGEST_DIFF:
        return f"+++ b/{name}, which is too long to be shown\n"
    content = path.read_text(errors="replace").splitlines(keepends=True)
    return "".join(difflib.unified_diff([], content, "/dev/null", f"b/{name}"))


def _packages() -> set[str]:
    """What is installed, as name==version."""
    packages = {f"python=={platform.python_version()}"}
    for each in importlib.metadata.distributions(path=_environment()):
        # What an interrupted install leaves has no readable metadata; which error that is, is the finder's
        # choice, of which a package may bring its own.
        with contextlib.suppress(ValueError, LookupError, OSError):
            if each.metadata["Name"]:
                packages.add(f"{each.metadata['Name']}=={each.version}")
    return packages
