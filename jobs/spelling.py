"""Which option was meant by a name that a job doesn't have?"""

import difflib
from collections.abc import Sequence

_RENAMED = (
    ("--input", "--videos"),
    ("--files", "--format"),
    ("--benchmark", "--truth"),
    ("--root", "--truth"),
    ("--labelling.clips.", "--clips."),
    ("--labelling.check.", "--check."),
    ("--objective.photometric.check.", "--check."),
    ("--objective.check.", "--check."),
    ("--student.photometric.check.", "--check."),
    ("--training.unmasked-steps", "--objective.unmasked-steps"),
    ("--labelling.codec.kind", "--labelling.codec"),
    ("--training.schedule", "--training.warmup and --training.decay"),
)
"""Old names, or how they begin, and the names that took their place."""
_TRUTH = " NAME:FOLDER, such as --truth sintel:/data/MPI-Sintel"
_ALIKE = 0.7
"""How much of a name must agree with one that is suggested."""


def remedy(given: str, known: Sequence[str]) -> str:
    """What to type in place of an unknown name; empty where no known one is near."""
    for old, new in _RENAMED:
        is_beginning = old.endswith(".")
        if given != old and not (is_beginning and given.startswith(old)):
            continue
        name = new + given.removeprefix(old) if is_beginning else new
        if all(each in known for each in name.split(" and ")):
            return f"it is now {name}{_TRUTH if new == '--truth' else ''}"
    names = nearest(given, known)
    return f"perhaps you meant {' or '.join(names)}" if names else ""


def nearest(given: str, known: Sequence[str]) -> list[str]:
    """The names that one may have meant: those that end as the given one, else the one that is most like
    it."""
    last = given.lstrip("-").rpartition(".")[2]
    if same_end := [name for name in known if name.lstrip("-").rpartition(".")[2] == last]:
        return same_end[:3]
    if alike := difflib.get_close_matches(given, known, n=1, cutoff=_ALIKE):
        return alike
    ends = {name.lstrip("-").rpartition(".")[2]: name for name in reversed(known)}
    return [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=_ALIKE)]
