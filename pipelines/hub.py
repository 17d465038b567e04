"""Where does hf://owner/name lie? In a repository of the Hugging Face hub, which is read and never written.

Its repositories of models and of data sets are a file system, so that whatever takes a URI takes them: of a
model two files are read, and no code of a repository is ever run. huggingface_hub is optional, so it is
imported only here. Its credentials are its own: HF_TOKEN, or what `hf auth login` kept.
"""

import os
import re
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from flowcore.extras import install_line

SCHEME = "hf://"
_PLACE = re.compile(
    r"hf://(?P<kind>datasets/)?(?P<repository>(?!(?:datasets|spaces|buckets)/)[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>[^/]+))?(?P<folder>/.*)?"
)
_COMMIT = re.compile("[0-9a-f]{40}")
_ONLY_READ = "is on the Hugging Face hub, which is only read; write to a folder, then `hf upload` it"


def hub_storage() -> FileSystem:
    """The hub as a file system, whose paths are URIs without their scheme; RuntimeError where huggingface_hub
    isn't installed."""
    # Asked here, as the library asks only when it is imported.
    files = _library().HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"))
    return PyFileSystem(_ReadOnly(files))


def pinned(uri: str, option: str) -> str:
    """`uri` at the commit that its revision, `main` by default, is now: what is made from it names that.

    A URI that names a commit stays, and the hub isn't asked. option: where it was given, for the error.
    ValueError for what isn't hf://owner/name[@revision][/folder], FileNotFoundError where the hub has no such
    repository or revision, ConnectionError where it doesn't answer, RuntimeError as `hub_storage`.
    """
    place = _PLACE.fullmatch(uri)
    if place is None:
        raise ValueError(f"{option} {uri!r} must be hf://owner/name, with @revision or /folder behind it")
    kind, repository, revision, folder = place.groups("")
    if _COMMIT.fullmatch(revision):
        return uri
    hub = _library()
    try:
        found = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT")).repo_info(
            repository, repo_type="dataset" if kind else "model", revision=unquote(revision) or None
        )
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"the hub has no {uri} that may be read here; check its name and revision, and HF_TOKEN if it is "
            "private"
        ) from error
    # It has exceptions of its own and of its HTTP library.
    except Exception as error:
        raise ConnectionError(
            f"the hub can't be asked for {uri} now ({error}); check the network, or copy the folder here"
        ) from error
    return f"{SCHEME}{kind}{repository}@{found.sha}{folder}"


class _ReadOnly(FSSpecHandler):  # type: ignore[misc]
    """A file system that changes nothing, though a token may allow it."""

    def _refuse(self, path: str = "", *_: object, **__: object) -> Any:
        raise PermissionError(f"{SCHEME}{path} {_ONLY_READ}")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise RuntimeError(
            f"{SCHEME} needs huggingface_hub ({error}), on every node: {install_line('hub')}"
        ) from error
    return huggingface_hub
