"""Which of the things that the commands need don't work on this machine? Each comes with its remedy.

Each check answers within seconds, whatever is broken. Nothing of another package is imported into this
process but in a check, and what may crash or hang, such as a GPU's driver, is tried in a child process.
"""

import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from sysconfig import get_path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit

from flowcore.extras import PACKAGE, extras, installing, requirements
from pipelines.cluster import has_cluster, require_listener
from pipelines.disclosure import without_secrets
from pipelines.installation import home_of, installed_version, is_installed
from pipelines.room import num_cores

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_GIB = 1 << 30
_ANSWER_SECONDS = 5.0
_CHILD_SECONDS = 90.0
_DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg", "prores")
_CONTAINERS = ("avi", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpegts")
_ENCODERS = ("libx264",)
_EXTRAS_OF_A_CHECKOUT = {"dev", "docs"}
# Never by its name: it isn't on PyPI, so that whoever takes the name there would be installed.
_REINSTALL = "pip install --force-reinstall with the file of its wheel; or rm -r .venv; make install"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found of one part."""

    part: str
    found: str
    remedy: str = ""
    """What to do; empty where all is well."""
    is_needed: bool = True
    """False where the commands work without."""

    @property
    def state(self) -> Literal["ok", "note", "broken"]:
        if not self.remedy:
            return "ok"
        return "broken" if self.is_needed else "note"


def findings() -> Iterator[Finding]:
    """What each check finds, one after the other; a check that fails itself is a finding too."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "Python": _python,
        "packages": _packages,
        "extras": _extras,
        "PyTorch": _torch,
        "OpenCV": _opencv,
        "videos": _videos,
        "sandbox": _sandbox,
        "MLflow": _mlflow,
        "Ray": _ray,
        "disk": _disk,
        "memory": _memory,
    }
    for part, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            yield Finding(part=part, found=f"{type(error).__name__}: {error}", remedy=_REINSTALL)


def _python() -> Iterator[Finding]:
    place = "installed" if is_installed() else "a checkout"
    name = f"{PACKAGE} {installed_version()}, {place}; Python {platform.python_version()} in {sys.prefix}"
    remedy = "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer, and this project in it"
    yield Finding(part="Python", found=name, remedy=remedy)
    # Dozens of Ray's processes would each compile what they import, seconds of a core.
    origin = getattr(find_spec("ray"), "origin", None)
    is_compiled = origin is None or Path(cache_from_source(origin)).exists()
    if sys.dont_write_bytecode and not is_compiled:
        yield Finding(
            part="Python",
            found="PYTHONDONTWRITEBYTECODE is set and packages aren't compiled: each process starts slowly",
            remedy=f"{sys.executable} -m compileall -q -j 0 {get_path('purelib')}",
            is_needed=False,
        )


def _packages() -> Iterator[Finding]:
    try:
        needed = requirements()
    except PackageNotFoundError:
        yield Finding(part="packages", found=f"{PACKAGE} isn't installed", remedy=_REINSTALL)
        return
    fitting = []
    for each in needed:
        # OpenCV comes in any of four packages; what it can do has a check of its own.
        if each.name == "opencv-python":
            continue
        there = _version_of(each.name)
        if _fits(each):
            fitting.append(f"{each.name} {there}")
            continue
        found = f"{each.name} is missing" if there is None else f"{each.name} {there} is not {each.specifier}"
        yield Finding(part="packages", found=found, remedy=installing([each]))
    yield Finding(part="packages", found=", ".join(fitting))


def _extras() -> Iterator[Finding]:
    try:
        names = extras()
    except PackageNotFoundError:
        # Which there are isn't known; the check of packages says what is wrong.
        return
    texts = []
    for name in sorted({*names} - _EXTRAS_OF_A_CHECKOUT):
        missing = [each for each in requirements(name) if not _fits(each)]
        texts.append(f"no {name} ({installing(missing)})" if missing else name)
    yield Finding(part="extras", found=", ".join(texts))


def _fits(requirement: "Requirement") -> bool:
    there = _version_of(requirement.name)
    return there is not None and requirement.specifier.contains(there, prereleases=True)


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    try:
        told = _in_child(
            "import torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
            "gpus = [torch.cuda.get_device_properties(i) for i in range(n)]; "
            "tell({'version': torch.__version__, 'cuda': torch.version.cuda, "
            "'gpus': [[gpu.name, gpu.total_memory] for gpu in gpus]})"
        )
    except ChildProcessError as error:
        remedy = "pip install --force-reinstall 'torch>=2.13,<2.14'"
        yield Finding(part="PyTorch", found=f"doesn't load: {error}", remedy=remedy)
        return
    if told["gpus"]:
        gpus = ", ".join(f"{name} ({size / _GIB:.0f} GiB)" for name, size in told["gpus"])
        yield Finding(part="GPUs", found=f"{gpus}; torch {told['version']}")
        return
    remedy = ""
    if Path("/proc/driver/nvidia").exists():
        remedy = "pass the machine's GPU on to this container, or update NVIDIA's driver"
        if told["cuda"] is None:
            remedy = (
                "this torch has no CUDA: pip install --force-reinstall "
                f"'torch=={told['version'].partition('+')[0]}', from PyPI"
            )
    found = f"none that torch {told['version']} can use; everything runs on the CPU"
    yield Finding(part="GPUs", found=found, remedy=remedy, is_needed=False)


def _opencv() -> Iterator[Finding]:
    try:
        told = _in_child("import cv2; cv2.DISOpticalFlow_create(1); tell(cv2.__version__)")
    except ChildProcessError as error:
        remedy = "pip install --force-reinstall opencv-python"
        if ".so" in str(error):
            remedy = "apt install libgl1 libglib2.0-0, or pip install opencv-python-headless in its place"
        yield Finding(part="OpenCV", found=f"doesn't load: {error}", remedy=remedy)
        return
    yield Finding(part="OpenCV", found=f"{told}, with DIS")


def _videos() -> Iterator[Finding]:
    try:
        told = _in_child(
            "import av; from av.codec import Codec, codecs_available\n"
            "def has(name, mode):\n"
            "    try:\n        return bool(Codec(name, mode))\n"
            "    except Exception:\n        return False\n"
            "tell({'version': av.__version__, 'ffmpeg': av.ffmpeg_version_info, "
            f"'formats': sorted(av.formats_available), 'r': [c for c in {_DECODERS} if has(c, 'r')], "
            f"'w': [c for c in {_ENCODERS} if has(c, 'w')]}})"
        )
    except ChildProcessError as error:
        remedy = "pip install --force-reinstall --only-binary :all: av"
        yield Finding(part="videos", found=f"PyAV doesn't load: {error}", remedy=remedy)
        return
    lacking = [name for name in _DECODERS if name not in told["r"]]
    lacking += [name for name in _CONTAINERS if name not in told["formats"]]
    lacking += [f"writing {name}" for name in _ENCODERS if name not in told["w"]]
    found = f"PyAV {told['version']} with FFmpeg {told['ffmpeg']} reads {', '.join(told['r'])}"
    if not lacking:
        yield Finding(part="videos", found=found)
        return
    remedy = "take PyAV's own FFmpeg: pip install --force-reinstall --only-binary :all: av"
    is_needed = "h264" in lacking or "writing libx264" in lacking
    found = f"{found}; it lacks {', '.join(lacking)}"
    yield Finding(part="videos", found=found, remedy=remedy, is_needed=is_needed)


def _sandbox() -> Iterator[Finding]:
    try:
        layers = _in_child(
            "from pipelines.sandbox import LAYERS, confine; there = confine(1 << 40); "
            "tell({name: name in there for name in LAYERS})"
        )
    except ChildProcessError as error:
        found = f"a process can't be confined: {error}"
        yield Finding(part="sandbox", found=found, remedy="decode no videos of strangers", is_needed=False)
        return
    there = [name for name, holds in layers.items() if holds]
    lacking = [name for name, holds in layers.items() if not holds]
    found = f"videos are decoded behind limits{''.join(f', {name}' for name in there)}"
    remedies = {
        "landlock": "landlock needs Linux 5.13 or newer, and a container that lets it through",
        "seccomp": "seccomp needs its library: apt install libseccomp2",
    }
    remedy = "; ".join(remedies[name] for name in lacking)
    yield Finding(part="sandbox", found=found, remedy=remedy, is_needed=False)


def _mlflow() -> Iterator[Finding]:
    from pipelines.run_store import tracking_uri

    try:
        uri = tracking_uri()
        shown = without_secrets(uri)
        if uri.startswith("http"):
            _within(_ANSWER_SECONDS, lambda: _require_mlflow(uri))
            yield Finding(part="MLflow", found=f"answers at {shown}")
        elif uri.startswith("sqlite:"):
            yield Finding(part="MLflow", found=_sqlite_state(Path("/" + uri.partition(":////")[2])))
        else:
            yield Finding(part="MLflow", found=f"records in {shown}, which was not asked")
    except (ValueError, OSError, sqlite3.Error) as error:
        remedy = "start `mlflow server` there, correct MLFLOW_TRACKING_URI, or unset it for a local file"
        yield Finding(part="MLflow", found=str(error), remedy=remedy)


def _require_mlflow(uri: str) -> None:
    """ConnectionError where no MLflow server answers at the address."""
    parts = urlsplit(uri)
    # Credentials don't matter to this page, and urllib takes them for a part of the host.
    health = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(health, timeout=_ANSWER_SECONDS) as answer:
            answer.read(1)
    except HTTPError as error:
        raise ConnectionError(f"what answers at {without_secrets(uri)} is no MLflow ({error})") from error
    except OSError as error:
        raise ConnectionError(f"nobody answers at {without_secrets(uri)} ({error})") from error


def _sqlite_state(file: Path) -> str:
    """What there is of a database; OSError where none can be made, sqlite3.Error where it is none."""
    if not file.exists():
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(f"{file} can't be made: {file.parent} can't be written to")
        return f"records in {file}, which the first run makes"
    with sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=2.0) as database:
        try:
            database.execute("select count(*) from experiments").fetchone()
        except sqlite3.Error as error:
            raise sqlite3.DatabaseError(f"{file} is no database of MLflow ({error})") from error
    return f"records in {file}"


def _ray() -> Iterator[Finding]:
    if not has_cluster():
        yield Finding(part="Ray", found="RAY_ADDRESS names no cluster; a command starts its own")
        return
    address = os.environ["RAY_ADDRESS"]
    try:
        _within(_ANSWER_SECONDS, lambda: require_listener(address))
    except OSError as error:
        remedy = "start it (`ray start --head`), correct RAY_ADDRESS, or unset it to run without a cluster"
        yield Finding(part="Ray", found=str(error).partition("; ")[0], remedy=remedy)
        return
    yield Finding(part="Ray", found=f"RAY_ADDRESS is {without_secrets(address)}, where something listens")


def _disk() -> Iterator[Finding]:
    for folder, what in ((home_of(), "runs"), (Path(tempfile.gettempdir()), "temporary files")):
        free = shutil.disk_usage(folder).free
        found = f"{free / _GIB:.1f} GiB free in {folder}, for {what}"
        remedy, is_needed = "", True
        if not os.access(folder, os.W_OK):
            remedy = "choose a folder that you may write to"
        elif free < 5 * _GIB:
            remedy, is_needed = "make room: labels of an hour of video take gigabytes", free < _GIB // 2
        yield Finding(part="disk", found=found, remedy=remedy, is_needed=is_needed)


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        total = min(total, int(text))
    remedy = "" if total >= 4 * _GIB else "add memory; Ray and a small training take 4 GiB"
    found = f"{total / _GIB:.1f} GiB, {num_cores()} CPU cores"
    yield Finding(part="memory", found=found, remedy=remedy, is_needed=False)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        found = f"{size / _GIB:.1f} GiB of shared memory, where Ray keeps objects"
        remedy = (
            "" if size >= _GIB else "give the container more (docker run --shm-size=4g); Ray is slow without"
        )
        yield Finding(part="memory", found=found, remedy=remedy, is_needed=False)


def _in_child(code: str) -> Any:
    """What the code, run by another Python, gives to `tell`, through JSON.

    ChildProcessError with its last line where it fails, crashes or doesn't end.
    """
    prelude = "import json, os\ndef tell(what): print('told', json.dumps(what), flush=True); os._exit(0)\n"
    path = os.pathsep.join(os.path.abspath(each) for each in sys.path)
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", prelude + code],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildProcessError(f"no answer within {_CHILD_SECONDS:.0f} s") from None
    for line in ended.stdout.splitlines():
        if line.startswith("told "):
            return json.loads(line.removeprefix("told "))
    said = ended.stderr.strip().splitlines()
    raise ChildProcessError(said[-1] if said else f"the process ended with {ended.returncode}")


def _within(seconds: float, ask: Callable[[], None]) -> None:
    """Calls `ask`; TimeoutError where it takes longer, as the search for a host's address may. What hangs is
    left behind and ends with the process."""
    asked: Future[None] = Future()

    def work() -> None:
        try:
            ask()
            asked.set_result(None)
        except Exception as error:
            asked.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        asked.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
