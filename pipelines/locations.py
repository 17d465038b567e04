"""Where things live: which locations mean the same place in every process of a job, and how a local file is
written there whole or not at all.

Under `ray job submit` the working folder is a copy of the repository that vanishes with the job and lies
elsewhere on every node, so a relative path names nothing there: it is refused, not resolved against the copy.
"""

import os
from pathlib import Path
from uuid import uuid4

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
    if ":/" in location:
        return location
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


def shared_folder(location: str, option: str) -> Path:
    """As `absolute`, for what is read from a folder alone; ValueError for a URI."""
    place = absolute(location, option)
    if ":/" in place:
        raise ValueError(
            f"{option} {place} is a URI; benchmarks are read from a folder: copy it to one that all nodes "
            "share"
        )
    return Path(place)


def join(location: str, name: str) -> str:
    """`name` inside the folder or URI `location`, whose query stays at its end."""
    place, mark, query = location.partition("?") if "://" in location else (location, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


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
