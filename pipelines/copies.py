"""Which videos of a collection may be copies of each other? Those that one task must read to see it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

from pipelines.collection import Stamp, VideoSource
from pipelines.storage import concurrently, patient, storage_of

_MOST_ALIKE = 16
"""Videos of one size that one task reads for the sake of the few that may be copies."""
_SAMPLE_BYTES = 4096


def possible_copies(sources: Sequence[VideoSource], stamps: Mapping[str, Stamp]) -> list[list[VideoSource]]:
    """Every video in a group with those that may be its copies, by the order of names.

    The largest videos come first, as teachers would otherwise wait at the end for one that came last. A
    sample of the content is looked at only where many are of one size, as uncompressed ones are.
    """
    alike = defaultdict(list)
    for source in sources:
        alike[len(source.frames), stamps[source.name].size].append(source)
    groups: list[list[VideoSource]] = []
    for _, group in sorted(alike.items(), key=lambda item: -item[0][1]):
        if len(group) <= _MOST_ALIKE:
            groups.append(group)
            continue
        by_sample = defaultdict(list)
        for source, sample in zip(group, concurrently(_sample, group), strict=True):
            by_sample[sample].append(source)
        groups += by_sample.values()
    return groups


def _sample(source: VideoSource) -> bytes:
    """Some bytes from the middle of its first file; equal for equal content. No bytes where it can't be read,
    which is for the task to say that reads it."""
    try:
        return _middle_of(source)
    except OSError:
        return b""


@patient
def _middle_of(source: VideoSource) -> bytes:
    filesystem, path = storage_of(source.uri)
    with filesystem.open_input_file(f"{path}/{source.frames[0]}" if source.frames else path) as file:
        return cast(bytes, file.read_at(_SAMPLE_BYTES, file.size() // 2))
