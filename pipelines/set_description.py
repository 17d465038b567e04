"""What is a pair set made of?

A folder takes the pairs of one description alone: its digest is in every row, and labels of two makings never
mix.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from flowcore.records import record
from pipelines.disclosure import storable
from pipelines.labels import FORMAT
from pipelines.ledger import MANIFEST_FILE
from pipelines.set_files import read_record, require_plain, told_of
from pipelines.shard_files import FRAME_COLUMNS, TRUTH_COLUMNS, columns_of_labels
from pipelines.storage import Folder, json_bytes

SetKind = Literal["frames", "labels", "imported", "truth"]
"""frames: pairs alone. labels: with a teacher's pseudo-labels. imported: with labels that came as files.
truth: with the flow that a data set knows."""
DESCRIPTION_FILE = "_label_set.json"
"""What the set is made of; written first."""
_MOST_TEACHERS = 100


@dataclass(frozen=True, kw_only=True)
class SetDescription:
    """What a set is, which decides whether two runs may write into one folder."""

    kind: SetKind
    made_of: Mapping[str, Any]
    """JSON values: all that the rows depend on."""
    provenance: Mapping[str, str]
    """Texts that name where that came from, such as the teacher's URI; they may differ between runs."""
    num_teachers: int = 0
    """How many teachers made the labels that the rows hold."""
    has_spread: bool = False
    """Whether the rows tell by how much these teachers disagree."""
    is_of_three_frames: bool = False
    """Whether the rows tell where a label continues the motion from a third frame."""
    has_uncertainty: bool = False
    """Whether the rows tell how far the teachers expect their flow to be off."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_teachers <= _MOST_TEACHERS:
            raise ValueError(f"num_teachers {self.num_teachers} must lie in 0..{_MOST_TEACHERS}")
        if not re.fullmatch("[0-9]{1,9}", self.provenance.get("generation", "0")):
            raise ValueError(f"the generation {self.provenance['generation'][:100]!r} must be a count")
        # Those of a stranger's set are shown in a gallery, and stored with the run.
        masked = {name: storable(str(text)) for name, text in self.provenance.items()}
        object.__setattr__(self, "provenance", masked)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, the `label_set` of each row."""
        canonical = json.dumps({"format": FORMAT, **self.made_of}, sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()

    @property
    def columns(self) -> pa.Schema:
        """The columns of the set's files."""
        match self.kind:
            case "frames":
                return FRAME_COLUMNS
            case "truth":
                return TRUTH_COLUMNS
            case "labels" | "imported":
                return columns_of_labels(
                    has_spread=self.has_spread,
                    is_of_three_frames=self.is_of_three_frames,
                    has_uncertainty=self.has_uncertainty,
                )


def describe_set(location: str, description: SetDescription) -> None:
    """Makes the folder a set of this description; ValueError, with what differs, if it is another's.

    The provenance is that of the run that finished the set first, not of one that was killed before.
    """
    folder = Folder(location)
    require_plain(folder)
    before = description_at(folder)
    if before is None and folder.files():
        raise ValueError(f"{location} holds other files and is no pair set; give a new folder")
    if before is not None and before.digest != description.digest:
        ours, theirs = _leaves(description.made_of), _leaves(before.made_of)
        differing = [
            f"{name} is {theirs.get(name)} there and {ours.get(name)} here"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        raise ValueError(
            f"{location} is a set made with other options: {'; '.join(differing)}; labels of two makings "
            "never mix: give another folder, or the options that the set was made with"
        )
    if before is None or folder.size(MANIFEST_FILE) is None:
        values = {
            "format": FORMAT,
            "label_set": description.digest,
            "kind": description.kind,
            "num_teachers": description.num_teachers,
            "has_spread": description.has_spread,
            "is_of_three_frames": description.is_of_three_frames,
            "has_uncertainty": description.has_uncertainty,
            "made_of": dict(description.made_of),
            "provenance": dict(description.provenance),
        }
        folder.write(DESCRIPTION_FILE, json_bytes(values))


def description_at(folder: Folder) -> SetDescription | None:
    """What the folder's set is made of, None where none was begun; ValueError as `PairSet.open`."""
    try:
        values = read_record(folder.location, DESCRIPTION_FILE)
    except FileNotFoundError:
        return None
    with told_of(folder.location, DESCRIPTION_FILE):
        if not isinstance(values, dict) or not isinstance(version := values.pop("format", None), int):
            raise ValueError("it has no format")
        if version == FORMAT:
            digest = values.pop("label_set", None)
            description = record(SetDescription, values)
            if digest != description.digest:
                raise ValueError(f"it is of the set {digest!r:.100}, and what it is made of gives another")
            return description
    raise ValueError(
        f"{folder.location} has format {version}, and this version reads {FORMAT}; use the version that "
        "wrote it, or make the set anew in another folder"
    )


def _leaves(value: object, path: str = "") -> dict[str, object]:
    if isinstance(value, Mapping):
        inner = (_leaves(each, f"{path}.{key}" if path else str(key)) for key, each in value.items())
        return {name: leaf for leaves in inner for name, leaf in leaves.items()}
    # As it comes back from JSON.
    return {path: list(value) if isinstance(value, tuple) else value}
