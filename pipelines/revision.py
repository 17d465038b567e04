"""Which code runs?"""

import difflib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import cv2

from pipelines.storage import is_shipped_copy

_PACKAGES = ("torch", "ray", "numpy", "pyarrow", "av", "mlflow")
DIFF_FILE = "repeat/uncommitted.diff"
PACKAGES_FILE = "repeat/packages.txt"
"""Artifacts of a run that tell its code: with its tags and options, what is needed to do the same again."""


def code_tags(project_folder: Path) -> dict[str, str]:
    """Which code runs: revision, command line, versions."""
    revision, is_dirty = revision_of(project_folder)
    return {
        "mlflow.source.name": sys.argv[0],
        "mlflow.source.type": "JOB" if is_shipped_copy(project_folder) else "LOCAL",
        "mlflow.source.git.commit": revision,
        "revision.dirty": is_dirty,
        "command": shlex.join(sys.argv),
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
    """(git revision, whether files differ from it); a copy without git repeats DISTILLFLOW_REVISION."""
    told = os.environ.get("DISTILLFLOW_REVISION", "unknown")
    revision, changes = (
        _git(project_folder, *command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    if revision is None or changes is None:
        return told, "unknown"
    return revision.strip(), str(changes.strip() != "").lower()


def _git(project_folder: Path, *arguments: str) -> str | None:
    """What a git command prints about the project; None without git or a repository of its own."""
    # Without a .git of its own, git would answer for a repository that the folder happens to lie in.
    if not (project_folder / ".git").exists():
        return None
    command = ["git", "-C", str(project_folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _environment() -> list[str]:
    """Where Python looks for what is installed, without folders inside a package. Ray's import adds one, of
    copies that it keeps for itself, and what a run has must not depend on what was imported."""
    installed = [Path(each) for each in sys.path if each.endswith(("site-packages", "dist-packages"))]
    return [each for each in sys.path if not any(place in Path(each).parents for place in installed)]


def code_files(project_folder: Path) -> dict[str, str]:
    """By artifact: how files differ from the revision, with code that it doesn't have, and every package
    installed."""
    installed = importlib.metadata.distributions(path=_environment())
    packages = {f"{each.metadata['Name']}=={each.version}" for each in installed}
    packages.add(f"python=={platform.python_version()}")
    # -z: without it git quotes names that aren't ASCII
    unknown = _git(project_folder, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py") or ""
    new = [
        line
        for name in unknown.split("\0")[:-1]
        for line in difflib.unified_diff(
            [],
            (project_folder / name).read_text(errors="replace").splitlines(keepends=True),
            "/dev/null",
            f"b/{name}",
        )
    ]
    return {
        DIFF_FILE: (_git(project_folder, "diff", "HEAD") or "") + "".join(new),
        PACKAGES_FILE: "\n".join(sorted(packages)),
    }
