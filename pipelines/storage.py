"""Where does data live? At a local path or at a URI such as s3://bucket/folder.

Every location that an option names goes through here.

Two choices aren't obvious. Under `ray job submit` the working folder is a copy of the repository that
vanishes with the job and lies elsewhere on every node, so a relative path is refused instead of resolved. And
a location is written into labels, models and MLflow, so one with a secret in it is refused.
"""

import errno
import json
import os
import posixpath
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, TypeVar, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from uuid import uuid4

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from pipelines import hub
from pipelines.disclosure import require_storable
from pipelines.installation import is_shipped_copy

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Result = TypeVar("Result")

STORAGE_THREADS = 32
"""How many requests to a storage are under way at once."""
_AHEAD = 1024
"""How many are handed to the threads together: each that waits takes a kilobyte or two."""
_RETRY_AFTER = (0.2, 1.0, 5.0)
"""Seconds to wait before each further attempt."""
PARTIAL = ".partial"
"""The ending of the hidden name that a file has until it is complete."""


def absolute(location: str, option: str) -> str:
    """`location` as every process of the job can read it: a URI as it is, a local path made absolute.

    `option` is the option that the user gave it under, for the error. ValueError for a relative path under a
    Ray job, and as `disclosure.require_storable`.
    """
    require_storable(location, option)
    if is_uri(location):
        return location
    if re.match(r"[a-z][a-z0-9+.-]*:/", location):
        raise ValueError(
            f"{option} {location!r} is not a URI: its scheme must be followed by two slashes, as in "
            "s3://bucket or file:///data"
        )
    path = Path(location).expanduser()
    if not path.is_absolute() and is_shipped_copy(Path.cwd()):
        raise ValueError(
            f"{option} {location!r} is a relative path, and under a Ray job the working folder is a copy "
            "that vanishes; give an absolute path that all nodes share, or a URI such as s3://bucket/folder"
        )
    place = str(path.absolute())
    require_storable(place, option)
    return place


def is_mlflow_uri(uri: str) -> bool:
    """True for runs:/... and models:/..."""
    return uri.startswith(("runs:/", "models:/"))


def is_uri(location: str) -> bool:
    """True for a URI, False for a path."""
    return "://" in location or is_mlflow_uri(location)


def is_remote(location: str) -> bool:
    """True for the URI of what isn't on a local disk."""
    return "://" in location and not location.startswith("file://")


def local(location: str) -> str:
    """The path that a file:// URI names; any other location as it is."""
    if not location.startswith("file://"):
        return location
    return unquote(urlsplit(location, allow_fragments=False).path)


def shared_folder(location: str, option: str) -> Path:
    """As `absolute`, for a folder whose files other libraries open by path; ValueError for a URI of object
    storage."""
    place = local(absolute(location, option))
    if is_uri(place):
        raise ValueError(
            f"{option} {place} is a URI, and this option needs a folder on a disk that all nodes share; copy "
            "the files there first"
        )
    return Path(place)


def join(location: str, name: str) -> str:
    """`name` inside the folder or URI `location`, whose query stays at its end; without a name the folder."""
    if not name:
        return location
    if "://" not in location:
        return f"{location.rstrip('/')}/{name}"
    place, mark, query = location.partition("?")
    return f"{place.rstrip('/')}/{quote(name)}{mark}{query}"


def split(location: str) -> tuple[str, str]:
    """(the folder or URI that a file lies in, its name there), which `join` puts together again; ValueError
    where `location` names no file."""
    place, mark, query = location.partition("?") if "://" in location else (location, "", "")
    folder, _, name = place.rpartition("/")
    if not name or (folder.endswith("/") and not folder.startswith("file:")):
        raise ValueError(f"{location} names no file; add a file's name to it")
    if "://" not in location:
        return folder or "/", name
    return f"{folder}{mark}{query}", unquote(name)


def extension(location: str) -> str:
    """What a file's name ends with after its last dot, in lower case, such as `mp4`; empty without one."""
    place = location.partition("?")[0] if is_remote(location) else location
    return posixpath.splitext(place)[1][1:].lower()


def patient(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`work`, tried up to four times where object storage fails. It must be harmless to repeat.

    pyarrow 25 itself retries when S3 asks for fewer requests (none of 90 failed while three in ten were
    refused), but not always when a connection drops in the middle of an answer.
    """

    @wraps(work)
    def tried(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for seconds in _RETRY_AFTER:
            try:
                return work(*args, **kwargs)
            except OSError as error:
                # The storage's client raises a plain OSError without a number; a missing file is a subclass,
                # and a full disk has a number.
                if type(error) is not OSError or error.errno is not None:
                    raise
                time.sleep(seconds)
        return work(*args, **kwargs)

    return tried


def storage_of(location: str) -> tuple[FileSystem, str]:
    """The file system of a path or a URI, and the absolute path on it."""
    if "://" not in location:
        return LocalFileSystem(), os.path.abspath(location).rstrip("/")
    parts = urlsplit(location, allow_fragments=False)
    if location.startswith(hub.SCHEME):
        return hub.hub_storage(), unquote(f"{parts.netloc}{parts.path}").rstrip("/")
    # One client a bucket: making one asks the storage for its region.
    filesystem, root = _storage_of_root(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
    return filesystem, (root.rstrip("/") + unquote(parts.path)).rstrip("/")


@lru_cache(maxsize=64)
def _storage_of_root(uri: str) -> tuple[FileSystem, str]:
    return cast(tuple[FileSystem, str], FileSystem.from_uri(uri))


_REFUSALS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Why a disk takes no file."""


def refuses_files(error: Exception) -> bool:
    """Whether an error says that a disk takes no file of anybody."""
    return getattr(error, "errno", None) in _REFUSALS


def write_whole(path: str | Path, content: bytes) -> None:
    """Replaces a local file; after a kill at any moment either the old or the new content is there.

    OSError, with the place and a remedy, where the system refuses, as on a full disk; the old content stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two writers of one file never share a partial one. With the file's own name in it, it could be too long.
    partial = path.with_name(f".{uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
        _replace_durably(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        remedy = "free space there or choose another place, then run the same command again"
        raise OSError(error.errno, f"{error.strerror} ({len(content)} bytes); {remedy}", str(path)) from error


def _replace_durably(written: Path, target: Path) -> None:
    """Gives a file its name once it is on the disk, so that a power cut leaves no name without content."""
    _flush(written)
    written.replace(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def concurrently(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The result of `work` for each item, in their order. `work` waits for a storage, so many run at once."""
    with ThreadPoolExecutor(STORAGE_THREADS) as threads:
        for start in range(0, len(items), _AHEAD):
            yield from threads.map(work, items[start : start + _AHEAD])


@dataclass(frozen=True)
class Folder:
    """A folder, local or on object storage, in which each file is complete or absent."""

    location: str
    """Absolute path, or a URI that pyarrow knows. Names of files are relative to it, with slashes."""

    @patient
    def exists(self) -> bool:
        """On object storage, which has no folders, True when there is something in it."""
        filesystem, root = storage_of(self.location)
        return bool(filesystem.get_file_info(root).type == FileType.Directory)

    def files(self, ending: str = "", *, within: str = "") -> list[str]:
        """The names of the files in it, or in a folder of it, sorted; without those that a leading `.` or `_`
        hides."""
        return sorted(
            name
            for name in self.infos(within=within)
            if name.endswith(ending) and not any(part.startswith((".", "_")) for part in name.split("/"))
        )

    @patient
    def infos(self, *, within: str = "", recursive: bool = True) -> dict[str, FileInfo]:
        """Every file in it, or in a folder of it, by name, with its size and when it was written."""
        filesystem, root = storage_of(self.location)
        found = _entries(filesystem, f"{root}/{within}", recursive=recursive)
        return {path[len(root) :].strip("/"): info for path, info in found if info.type == FileType.File}

    @patient
    def folders(self) -> list[str]:
        """The names of the folders in it, sorted."""
        filesystem, root = storage_of(self.location)
        found = _entries(filesystem, root, recursive=False)
        return sorted(info.base_name for _, info in found if info.type == FileType.Directory)

    @patient
    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None if there is no such file."""
        filesystem, root = storage_of(self.location)
        info = filesystem.get_file_info(f"{root}/{name}")
        return cast(int, info.size) if info.type == FileType.File else None

    @patient
    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a file, or its first `most` bytes; FileNotFoundError if there is no such file."""
        filesystem, root = storage_of(self.location)
        with filesystem.open_input_file(f"{root}/{name}") as file:
            return cast(bytes, file.read(most))

    @patient
    def write(self, name: str, content: bytes) -> None:
        """Replaces a file; after a kill at any moment either the old or the new content is there."""
        filesystem, root = storage_of(self.location)
        path = f"{root}/{name}"
        if isinstance(filesystem, LocalFileSystem):
            write_whole(path, content)
        else:
            # An object appears when its upload is complete.
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path of this name, for a library that writes its file itself.

        The file replaces the one in the folder when the block ends. After an error or a kill, or where
        nothing was written, the folder is as it was.
        """
        filesystem, root = storage_of(self.location)
        is_local = isinstance(filesystem, LocalFileSystem)
        target = Path(root) / name
        if is_local:
            target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target a rename suffices.
        beside = target.parent if is_local else None
        with TemporaryDirectory(prefix=".", suffix=PARTIAL, dir=beside) as temporary:
            written = Path(temporary) / target.name
            yield written
            if not written.exists():
                return
            if is_local:
                _replace_durably(written, target)
            else:
                patient(copy_files)(str(written), f"{root}/{name}", LocalFileSystem(), filesystem)

    @patient
    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        filesystem, root = storage_of(self.location)
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{root}/{name}")

    @patient
    def remove_folder(self, name: str) -> None:
        """Removes a folder with everything in it, if it is there."""
        filesystem, root = storage_of(self.location)
        with suppress(FileNotFoundError):
            filesystem.delete_dir(f"{root}/{name}")

    def sweep(self) -> None:
        """Removes what killed writers left. To be called only while nobody else is writing."""
        filesystem, root = storage_of(self.location)
        if not isinstance(filesystem, LocalFileSystem):
            return
        for folder, subfolders, names in os.walk(root):
            for name in filter(_is_partial, subfolders):
                shutil.rmtree(os.path.join(folder, name))
            subfolders[:] = [name for name in subfolders if not _is_partial(name)]
            for name in filter(_is_partial, names):
                os.unlink(os.path.join(folder, name))


def _entries(filesystem: FileSystem, root: str, *, recursive: bool) -> Iterator[tuple[str, FileInfo]]:
    """What is in a folder, by path; without names that aren't UTF-8, of which nothing is written here."""
    for info in filesystem.get_file_info(FileSelector(root, allow_not_found=True, recursive=recursive)):
        try:
            path = info.path
        except UnicodeDecodeError:
            continue
        yield path, info


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(PARTIAL)


def json_bytes(values: object) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(values, indent=1) + "\n").encode()
