"""Which pairs of Flying Chairs are for training, and which for validation? Its split file says so."""

from typing import Literal

CHAIRS_SPLIT = "FlyingChairs_train_val.txt"
SPLIT_BYTES = 2**20
"""Of such a file, at most: half a million lines. Flying Chairs has 22,872."""


def split_parts(content: bytes, file: object) -> list[str]:
    """The lines of a split file, of which the beginning was read; ValueError for one of another kind."""
    if len(content) > SPLIT_BYTES:
        raise ValueError(
            f"{file} has more than {SPLIT_BYTES} bytes; a split file has a line, 1 or 2, for a pair"
        )
    parts = content.split()
    if other := next((part for part in parts if part not in (b"1", b"2")), None):
        raise ValueError(f"{file} has a line {other[:20]!r}; each line of a split file is 1 or 2")
    return [part.decode() for part in parts]


def split_of(name: str, parts: list[str]) -> Literal["training", "validation"]:
    """Line n of the split file is about pair n, counted from 1, whichever pairs exist: 1 training, 2
    validation."""
    line = int(name)
    if not 1 <= line <= len(parts):
        raise ValueError(
            f"{CHAIRS_SPLIT} has {len(parts)} lines and none for pair {name} (line n is pair n, from 1); "
            "it belongs to another set: remove one of them"
        )
    return "validation" if parts[line - 1] == "2" else "training"
