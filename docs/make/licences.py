"""Under which licences is what an install brings? Prints docs/reference/licences.md.

    python -m docs.make.licences > docs/reference/licences.md

Lists what uv.lock has, for every Python and every extra, and what each package says of itself. Packages that
aren't installed here, such as torch's CUDA libraries (3 GB), are loaded into a throwaway folder.
"""

import ctypes
import re
import subprocess
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from email.message import Message
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from benchmarks import report

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

# (name, version) of a package.
Package = tuple[str, str]

READ = {
    "cuda-toolkit": "none; it has no files",
    "huey": "MIT",
    "kaleido": "MIT",
    "logistro": "MIT",
    "skops": "MIT",
}
"""What the files of packages say whose metadata doesn't."""

PREFACE = """\
# Licences

Printed by `python -m docs.make.licences` from uv.lock and what the packages say of themselves. It is a list
to start from, not legal advice. Our code is under Apache-2.0, and has no code of others in it: an install
gets that from PyPI. The videos that our trained networks learnt from are listed with their licences in
[minutes](../results/minutes.md).

## Before you pass an environment on

Whoever passes on an environment, as a container image say, passes on all that is in it, under all of these
licences. Using it on your own machines is another matter. Look at these first:

- **PyAV** (`av`) is under BSD-3-Clause, but its wheel brings FFmpeg, which calls itself "{av}", and
  **x264 and x265: GPL-2.0-or-later**. Pass on the licence texts, which the wheel lacks, and the source or an
  offer of it. To do without, build PyAV against an FFmpeg of your own: `pip install --no-binary av av`. But
  `predict --pictures` and the rendered videos of the demo are encoded with x264. In some countries H.264 and
  H.265 are patented too.
- **OpenCV** (`opencv-python`) is under Apache-2.0, but its wheel brings FFmpeg, "{cv2}", and **Qt 5:
  LGPL-3.0**. Pass on the texts (`LICENSE-3RD-PARTY.txt` in its `dist-info`) and the source or an offer of
  it, and let users replace these libraries. `opencv-python-headless` has no Qt.
- **NVIDIA's libraries** (`nvidia-*`) come with PyPI's torch and not with its CPU build. They are
  proprietary; NVIDIA's licence says which files may be passed on, and how.
- **MPL-2.0** (`certifi`, `tqdm`; for tests and documentation `hypothesis`, `pathspec`): pass on the source
  of these files, changed or not. They are Python: an environment has it.

## Libraries inside the wheels

Of what the extra `dev` installs on x86_64: other projects' libraries, with licences of their own.

| package | libraries |
|---|---|
"""

TABLE = """
## Packages

Bold: named in pyproject.toml; these bring the others. The last column says which extras bring a package that
not every install has. Two versions: an extra, or an older Python, wants another one.

| package | version | licence | extras |
|---|---|---|---|
"""


def main() -> None:
    report.parser(__doc__).parse_args()
    print(PREFACE.format(av=_ffmpeg_licence("av"), cv2=_ffmpeg_licence("opencv-python")), end="")
    for name, libraries in bundled_libraries().items():
        print(f"| {name} | {', '.join(libraries)} |")
    print(TABLE, end="")
    brought_by = extras()
    licences = _licences(brought_by)
    named = _named_packages()
    for (name, version), of_extras in sorted(brought_by.items()):
        shown = f"**{name}**" if name in named else name
        print(f"| {shown} | {version} | {licences[name, version]} | {', '.join(of_extras)} |")


def extras() -> dict[Package, list[str]]:
    """Every package that uv.lock has, with the extras that bring it; none, if every install does."""
    always = _locked()
    brought_by: dict[Package, list[str]] = {package: [] for package in always}
    for extra in PROJECT["optional-dependencies"]:
        for package in _locked(extra) - always:
            brought_by.setdefault(package, []).append(extra)
    return brought_by


def bundled_libraries() -> dict[str, list[str]]:
    """Package -> shared libraries of others in its wheel, of what is installed here as uv.lock has it."""
    found = {}
    for package in tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]:
        try:
            installed = distribution(package["name"])
        except PackageNotFoundError:
            continue
        # auditwheel puts them there, with a hash in their names.
        files = [file.name for file in installed.files or [] if file.parts[0].endswith(".libs")]
        libraries = {
            re.sub(r"(-[0-9a-f]{8})*(\.[0-9.]+)?\.so.*", "", file) for file in files if ".so" in file
        }
        if libraries and installed.version == package["version"]:
            found[package["name"]] = sorted(libraries)
    return found


def _locked(*of_extras: str) -> set[Package]:
    chosen = [word for extra in of_extras for word in ("--extra", extra)]
    command = [
        find_uv_bin(),
        "export",
        "--frozen",
        "--quiet",
        "--no-emit-project",
        "--no-hashes",
        "--no-annotate",
    ]
    listed = subprocess.run([*command, *chosen], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    pins = re.findall(r"^([^#\s=]+)==(\S+)", listed.stdout, re.MULTILINE)
    return {(canonicalize_name(name), version) for name, version in pins}


def _named_packages() -> set[str]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return {canonicalize_name(Requirement(line).name) for each in lists for line in each}


def _licences(packages: Iterable[Package]) -> dict[Package, str]:
    found = {}
    missing: dict[str, list[str]] = defaultdict(list)
    for name, version in sorted(packages):
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            missing[name].append(version)
            continue
        # torch's CPU build is 2.13.0+cpu.
        if installed.version.partition("+")[0] == version:
            found[name, version] = _licence(installed)
        else:
            missing[name].append(version)
    # One version of a package at a time.
    while pins := {name: versions.pop() for name, versions in missing.items() if versions}:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                find_uv_bin(),
                "pip",
                "install",
                "--quiet",
                "--no-cache",
                "--no-deps",
                "--target",
                folder,
            ]
            subprocess.run([*command, *(f"{name}=={version}" for name, version in pins.items())], check=True)
            for each in distributions(path=[folder]):
                name = canonicalize_name(each.name)
                found[name, pins[name]] = _licence(each)
    return found


def _licence(package: Distribution) -> str:
    name = canonicalize_name(package.name)
    if name in READ:
        return READ[name]
    metadata = cast(Message, package.metadata)
    if expression := metadata.get("License-Expression"):
        return str(expression)
    # Some put the whole text here.
    field = str(metadata.get("License", ""))
    if field not in ("", "Dual License") and len(field) < 60 and "\n" not in field:
        return field
    classifiers = package.metadata.get_all("Classifier") or []
    classified = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License :: ")]
    if not classified:
        raise ValueError(f"the metadata of {name} has no licence; read its files, and add it to READ")
    return " or ".join(classified)


def _ffmpeg_licence(wheel: str) -> str:
    """What the FFmpeg inside a wheel says of itself."""
    [library] = [file for file in distribution(wheel).files or [] if file.name.startswith("libavutil-")]
    says = ctypes.CDLL(str(library.locate())).avutil_license
    says.restype = ctypes.c_char_p
    return str(says().decode())


if __name__ == "__main__":
    main()
