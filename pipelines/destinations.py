"""Where does the flow of each video go?"""

import os
from collections import Counter
from pathlib import PurePosixPath

from pyarrow.fs import FileType, LocalFileSystem

from flowcore.datasets import DataSet
from pipelines.collection import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    VideoSource,
    absolute_collection,
    find_videos,
)
from pipelines.storage import Folder, absolute, extension, join, patient, split, storage_of


def destinations(videos: str, output: str) -> dict[VideoSource, str]:
    """The folder or URI of each video's flow: `output` itself for one video, else a folder below it for each.

    FileNotFoundError where there is no video, ValueError where files would overwrite each other or what is
    read, or would lie among the videos.
    """
    collection, target = absolute_collection(videos, "--videos"), absolute(output, "--output")
    data_set = DataSet.parse(collection)
    place = collection if data_set is None else data_set.root
    if data_set is None:
        _refuse_ambiguous(place)
    sources = find_videos(collection)
    if _is_within(target, place):
        raise ValueError(
            f"--output {target} lies in --videos {place}, where the next run would take pictures and films "
            "of the flow for videos; give a folder outside of it"
        )
    if len(sources) == 1 and _rooted(sources[0].name) == _rooted(place):
        folders = {sources[0]: target}
    else:
        names = _folder_names(sources, place)
        folders = {source: join(target, name) for source, name in zip(sources, names, strict=True)}
    read = {source.uri if source.frames else split(source.uri)[0] for source in sources}
    really_read = set(map(_real, read))
    for source, folder in folders.items():
        if ".." in folder.split("/"):
            raise ValueError(f"{source.name} has .. in its path, and its flow would leave --output {target}")
        if _real(folder) in really_read:
            raise ValueError(f"--output {folder} holds a video that is read; write to another folder")
        stems = Counter(flow_name(source, index) for index in range(len(source.frames)))
        if twice := ", ".join(stem for stem, count in stems.items() if count > 1):
            raise ValueError(
                f"{source.name} has several images named {twice}, and flow is named after images; keep one "
                "kind of image in a folder"
            )
    return folders


def _refuse_ambiguous(place: str) -> None:
    """ValueError for one image, and for a folder that may be meant as a sequence or as a collection."""
    filesystem, path = storage_of(place)
    kind = patient(filesystem.get_file_info)(path).type
    if kind == FileType.File and extension(path) in IMAGE_EXTENSIONS:
        raise ValueError(f"--videos {place} is one image and flow needs two; give the folder of the sequence")
    if kind == FileType.Directory:
        names = Folder(place).infos(recursive=False)
        kinds = Counter(extension(name) for name in names if not name.startswith("."))
        num_images = sum(kinds[each] for each in IMAGE_EXTENSIONS)
        num_videos = sum(kinds[each] for each in VIDEO_EXTENSIONS)
        if num_images > 1 and num_videos:
            raise ValueError(
                f"--videos {place} holds {num_images} images and {num_videos} videos; give a video itself, "
                "or a folder with only the images"
            )


def _rooted(location: str) -> str:
    """The absolute path, on object storage from the bucket on."""
    return "/" + storage_of(location)[1].lstrip("/")


def _is_within(location: str, place: str) -> bool:
    """Whether it is the place, or lies somewhere in it."""
    (kind, path), (kind_of_place, top) = _real(location), _real(place)
    return kind == kind_of_place and (path == top or path.startswith(os.path.join(top, "")))


def _real(location: str) -> tuple[str, str]:
    """The same for all paths of one folder."""
    filesystem, path = storage_of(location)
    is_local = isinstance(filesystem, LocalFileSystem)
    return filesystem.type_name, os.path.realpath(path) if is_local else path


def _folder_names(sources: list[VideoSource], place: str) -> list[str]:
    """For each video of a collection, its path inside it, without the extension where that suffices."""
    paths = [_rooted(source.name) for source in sources]
    top = _rooted(place)
    if not all(path.startswith(os.path.join(top, "")) for path in paths):
        # Of a glob or a list file.
        top = os.path.commonpath([os.path.dirname(path) for path in paths])
    whole = [os.path.relpath(path, top) for path in paths]
    short = [
        name if source.frames else os.path.splitext(name)[0]
        for name, source in zip(whole, sources, strict=True)
    ]
    counts = Counter(short)
    return [brief if counts[brief] == 1 else name for brief, name in zip(short, whole, strict=True)]


def flow_name(source: VideoSource, index: int) -> str:
    """What the flow of a pair is named after: its first frame, by an image's stem or by its number."""
    return PurePosixPath(source.frames[index]).stem if source.frames else f"{index:06d}"
