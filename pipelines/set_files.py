"""How is a file of a set opened that somebody else may have made?

A set is a folder that people take from each other. So a file of it is read only where it lies in the set, as
a file: a link that leads out of it would put what lies there into labels and errors, and a pipe would never
end.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa
from pyarrow.fs import LocalFileSystem

from flowcore import records
from pipelines.storage import Folder, patient, storage_of


@contextmanager
def opened(location: str, name: str) -> Iterator[pa.NativeFile]:
    """The file of this name in the set; FileNotFoundError if it isn't there, ValueError where it is a link
    that leads out of the set, or no file."""
    filesystem, root = storage_of(location)
    path = f"{root}/{name}"
    if ".." in PurePosixPath(name).parts or name.startswith("/"):
        raise ValueError(f"{name} doesn't lie in {location}; nothing outside of a set is read")
    if isinstance(filesystem, LocalFileSystem):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{name} in {location} is no file; remove it")
        if not os.path.realpath(path).startswith(f"{os.path.realpath(root)}/"):
            raise ValueError(
                f"{name} in {location} is a link out of it; nothing outside of a set is read: put the file "
                "itself there, or remove it"
            )
    with filesystem.open_input_file(path) as file:
        yield file


def read_record(location: str, name: str, most_bytes: int = records.RECORD_BYTES) -> Any:
    """The values of a JSON file of the set; ValueError, with a remedy, as `records.parse` and `opened`, and
    for more bytes; FileNotFoundError where there is none."""
    try:
        return records.parse(_content(location, name, most_bytes))
    except ValueError:
        # Where another run replaces an object while it is read, its bytes may be of two versions.
        content = _content(location, name, most_bytes)
    with told_of(location, name):
        return records.parse(content)


@patient
def _content(location: str, name: str, most_bytes: int) -> bytes:
    with opened(location, name) as file:
        with told_of(location, name):
            if file.size() > most_bytes:
                raise ValueError(f"it has {file.size()} bytes, and at most {most_bytes} are read")
        return cast(bytes, file.read())


@contextmanager
def told_of(location: str, name: str) -> Iterator[None]:
    """Adds to a ValueError about a record where it lies, and what to do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{name} in {location} is damaged: {error}; restore it, or delete it and run the command that "
            "made the set again"
        ) from error


def require_plain(folder: Folder) -> None:
    """ValueError where a folder that is to be written into has anything in it but files and folders: what is
    written through a link lies elsewhere, and a pipe waits for ever."""
    filesystem, root = storage_of(folder.location)
    if not isinstance(filesystem, LocalFileSystem) or not os.path.isdir(root):
        return
    with os.scandir(root) as entries:
        others = [
            entry.name
            for entry in entries
            if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False)
        ]
    if others:
        raise ValueError(
            f"{others[0]} in {folder.location} is a link or a device; what a run writes stays in its folder: "
            "put what it leads to there, or give another folder"
        )
