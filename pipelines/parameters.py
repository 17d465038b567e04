"""How is a configuration written down in a run?"""

import dataclasses
from collections.abc import Mapping, Set

from pipelines.disclosure import storable

LONGEST_SUBJECT = 100
"""Characters in a run's name beside its stage and recipe."""
_LONGEST_TEXT = 5000
"""Characters of a parameter or tag that every MLflow store accepts."""


def flattened(value: object, name: str) -> dict[str, str]:
    """Leaves by path; a nested dataclass also says its type, because an option may be of several."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return ({name: type(value).__name__} if name else {}) | flattened(fields, name)
    if isinstance(value, Mapping):
        inner = [flattened(each, f"{name}.{key}" if name else str(key)) for key, each in value.items()]
        return {path: text for leaves in inner for path, text in leaves.items()}
    if isinstance(value, (list, tuple)) and any(dataclasses.is_dataclass(each) for each in value):
        return flattened(dict(enumerate(value)), name)
    return {name: str(value)}


def differing(parameters: object, defaults: object, without: Set[str]) -> str:
    """The parameters that have other values than the defaults, by the ends of their names."""
    if defaults is None:
        return ""
    usual = flattened(defaults, "")
    changed = [
        f"{'.'.join(name.split('.')[-2:]).removeprefix('training.')} {value}"
        for name, value in flattened(parameters, "").items()
        if name not in without and value != usual.get(name)
    ]
    return shortened(", ".join(changed), LONGEST_SUBJECT)


def shortened(text: str, longest: int = _LONGEST_TEXT) -> str:
    text = storable(text)
    note = f"... ({len(text)} characters)"
    return text if len(text) <= longest else text[: longest - len(note)] + note
