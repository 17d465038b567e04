"""Which of the processes that a labelling run starts does what?

Ray names a process after the class or task that it runs; a decoder is named by the module that it runs.
"""

import psutil

TITLES = {
    "decoder": "pipelines.decoding",
    "reader": "(Reader)",
    "teacher": "(Teacher)",
    "writer": "(Writer)",
}
"""What the title of a process contains, by what the process does."""
_IDLE = "ray::IDLE"
"""Readers and writers between two tasks."""


def kind_of(process: psutil.Process) -> str:
    """What a process works on: `teachers`, `decoders`, `reading and writing` or `Ray's own`. psutil.Error if
    it ended."""
    title = " ".join(process.cmdline())
    if TITLES["teacher"] in title:
        return "teachers"
    if TITLES["decoder"] in title:
        return "decoders"
    if any(mark in title for mark in (TITLES["reader"], TITLES["writer"], _IDLE)):
        return "reading and writing"
    return "Ray's own"
