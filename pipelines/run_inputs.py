"""Which tags of a run say what it read, and which run made that?"""

from collections.abc import Mapping
from dataclasses import dataclass

_PREFIX, _RUN = "input.", ".run"


@dataclass(frozen=True, kw_only=True)
class RunInput:
    """Something that a run read."""

    place: str | None
    """Path, URI or model; None for what has no place of its own."""
    run: str | None
    """The run that made it; None if it doesn't say."""


def place_tag(name: str) -> str:
    """The tag with the place of an input, such as `input.labels`."""
    return f"{_PREFIX}{name}"


def run_tag(name: str) -> str:
    """The tag with the id of the run that made an input, such as `input.labels.run`."""
    return f"{place_tag(name)}{_RUN}"


def inputs_of(tags: Mapping[str, str]) -> dict[str, RunInput]:
    """What a run with these tags read, by name and in the names' order."""
    read = {tag.removeprefix(_PREFIX).removesuffix(_RUN) for tag in tags if tag.startswith(_PREFIX)}
    return {
        name: RunInput(place=tags.get(place_tag(name)), run=tags.get(run_tag(name))) for name in sorted(read)
    }
