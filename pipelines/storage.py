"""Where things live: which locations mean the same place in every process of a job, on a disk or on object
storage, and how a file is written there whole or not at all.

Under `ray job submit` the working folder is a copy of the repository that vanishes with the job and lies
elsewhere on every node, so a relative path names nothing there: it is refused, not resolved against the copy.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from uuid import uuid4

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Result = TypeVar("Result")

STORAGE_THREADS = 32
"""How many questions to a storage are under way at once."""
_AHEAD = 1024
"""How many are handed to the threads together: each that waits takes a kilobyte or two."""
_RETRY_AFTER = (0.2, 1.0, 5.0)
"""Seconds to wait before each further attempt."""
PARTIAL = ".partial"
"""How the hidden name of a file ends that isn't whole yet."""
PROJECT_FOLDER = Path(__file__).resolve().parent.parent
"""The repository's root, or Ray's copy of it."""


def is_shipped_copy(folder: Path = PROJECT_FOLDER) -> bool:
    """True where `folder` is, or lies in, the copy of a working folder that Ray 2.60 unpacks for a job."""
    return "working_dir_files" in folder.parts


def absolute(location: str, option: str) -> str:
    """`location` as every process of the job can read it: a URI as it is, a local path made absolute.

    `option` is what the user wrote it under, for the error. ValueError for a relative path under a Ray job.
    """
    if is_uri(location):
        return location
    if re.match(r"[a-z][a-z0-9+.-]*:/", location):
        raise ValueError(
            f"{option} {location!r} is no URI: two slashes follow its scheme, as in file:///data"
        )
    path = Path(location).expanduser()
    if not path.is_absolute() and is_shipped_copy(Path.cwd()):
        raise ValueError(
            f"{option} {location!r} is a relative path, and under a Ray job the working folder is a copy "
            "that vanishes; give an absolute path that all nodes share, or a URI such as s3://bucket/folder"
        )
    return str(path.absolute())


def is_mlflow_uri(uri: str) -> bool:
    """True for runs:/... and models:/..."""
    return uri.startswith(("runs:/", "models:/"))


def is_uri(location: str) -> bool:
    """True for what isn't a path."""
    return "://" in location or is_mlflow_uri(location)


def shared_folder(location: str, option: str) -> Path:
    """As `absolute`, for what is read from or written into a folder alone; ValueError for a URI."""
    place = absolute(location, option)
    if is_uri(place):
        raise ValueError(
            f"{option} {place} is a URI, and must be a folder here: give one that all nodes share, and copy "
            "from or to the URI"
        )
    return Path(place)


def join(location: str, name: str) -> str:
    """`name` inside the folder or URI `location`, whose query stays at its end."""
    if "://" not in location:
        return f"{location.rstrip('/')}/{name}"
    place, mark, query = location.partition("?")
    return f"{place.rstrip('/')}/{quote(name)}{mark}{query}"


def split(location: str) -> tuple[str, str]:
    """(the folder or URI that a file lies in, its name there): what `join` puts together; ValueError where
    `location` names no file."""
    place, mark, query = location.partition("?") if "://" in location else (location, "", "")
    folder, _, name = place.rpartition("/")
    if not name or (folder.endswith("/") and not folder.startswith("file:")):
        raise ValueError(f"{location} names no file; add a file's name to it")
    if "://" not in location:
        return folder or "/", name
    return f"{folder}{mark}{query}", unquote(name)


def patient(work: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`work` tried up to four times where object storage fails: for what is read, or written whole.

    pyarrow 25 asks again by itself where S3 refuses for being asked too much (none of 90 requests failed
    while three in ten were refused), but not each time that a connection drops in the midst of an answer.
    """

    @wraps(work)
    def tried(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for seconds in _RETRY_AFTER:
            try:
                return work(*args, **kwargs)
            except OSError as error:
                # The storage's client raises the plain kind without a number; a missing file and a full disk
                # differ.
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
    # One client a bucket: making one asks the storage for its region.
    filesystem, root = _storage_of_root(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
    return filesystem, (root.rstrip("/") + unquote(parts.path)).rstrip("/")


@lru_cache(maxsize=64)
def _storage_of_root(uri: str) -> tuple[FileSystem, str]:
    return cast(tuple[FileSystem, str], FileSystem.from_uri(uri))


def write_whole(path: str | Path, content: bytes) -> None:
    """Puts a local file in place of what has the name; after a kill at any moment one of the two is there.

    OSError, with the place and a remedy, where the system refuses, as it does on a full disk; what was there
    stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two writers of one file never share a partial one.
    partial = path.with_name(f".{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        remedy = "free space there or choose another place, then run the same command again"
        raise OSError(error.errno, f"{error.strerror} ({len(content)} bytes); {remedy}", str(path)) from error
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def concurrently(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What `work`, which waits for a storage, makes of each item, in their order and many at once."""
    with ThreadPoolExecutor(STORAGE_THREADS) as threads:
        for start in range(0, len(items), _AHEAD):
            yield from threads.map(work, items[start : start + _AHEAD])


@dataclass(frozen=True)
class Folder:
    """A folder, local or on object storage, whose files are there whole or not at all.

    location: absolute path or a URI that pyarrow knows. Names are relative to it, with slashes.
    """

    location: str

    @patient
    def exists(self) -> bool:
        """Object storage has no folders: there it exists when there is something in it."""
        filesystem, root = storage_of(self.location)
        return bool(filesystem.get_file_info(root).type == FileType.Directory)

    def files(self, ending: str = "", *, within: str = "") -> list[str]:
        """The names of the files in it, or in a folder of it, sorted, without those that `.` or `_` hides."""
        return sorted(
            name
            for name in self.infos(within=within)
            if name.endswith(ending) and not any(part.startswith((".", "_")) for part in name.split("/"))
        )

    @patient
    def infos(self, *, within: str = "") -> dict[str, FileInfo]:
        """Every file in it, or in a folder of it, by name, with its size and when it was written."""
        filesystem, root = storage_of(self.location)
        found = filesystem.get_file_info(
            FileSelector(f"{root}/{within}", allow_not_found=True, recursive=True)
        )
        return {info.path[len(root) :].strip("/"): info for info in found if info.type == FileType.File}

    @patient
    def folders(self) -> list[str]:
        """The names of the folders in it, sorted."""
        filesystem, root = storage_of(self.location)
        found = filesystem.get_file_info(FileSelector(root, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    @patient
    def size(self, name: str) -> int | None:
        """The bytes of a file, None if there is none of this name."""
        filesystem, root = storage_of(self.location)
        info = filesystem.get_file_info(f"{root}/{name}")
        return cast(int, info.size) if info.type == FileType.File else None

    @patient
    def read(self, name: str) -> bytes:
        """FileNotFoundError if there is no such file."""
        filesystem, root = storage_of(self.location)
        with filesystem.open_input_file(f"{root}/{name}") as file:
            return cast(bytes, file.read())

    @patient
    def write(self, name: str, content: bytes) -> None:
        """Puts a file in place of what has the name; after a kill at any moment one of the two is there."""
        filesystem, root = storage_of(self.location)
        path = f"{root}/{name}"
        if isinstance(filesystem, LocalFileSystem):
            write_whole(path, content)
        else:
            # An object is there when its upload is complete.
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)

    @patient
    def remove_folder(self, name: str) -> None:
        """Removes a folder with all that is in it; nothing if it is gone."""
        filesystem, root = storage_of(self.location)
        with suppress(FileNotFoundError):
            filesystem.delete_dir(f"{root}/{name}")

    def sweep(self) -> None:
        """Removes what killed writers left; to be called where no other can be writing."""
        filesystem, root = storage_of(self.location)
        if isinstance(filesystem, LocalFileSystem):
            for folder, _, names in os.walk(root):
                for name in names:
                    if name.startswith(".") and name.endswith(PARTIAL):
                        os.unlink(os.path.join(folder, name))


def json_bytes(values: object) -> bytes:
    """A JSON file's content."""
    return (json.dumps(values, indent=1) + "\n").encode()
