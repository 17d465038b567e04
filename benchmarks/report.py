"""How does a measurement take its options, and how does it print its results?

Every script's help is its docstring, and every result is a Markdown table, ready for a page of docs/results.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np


def parser(docstring: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the script's docstring, as it stands there."""
    return argparse.ArgumentParser(
        prog=_program(), description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def command() -> str:
    """The command that started this process, to print above its results."""
    return f"command: {_program()} {shlex.join(sys.argv[1:])}".rstrip()


def _program() -> str:
    """With `python -m` the path in sys.argv isn't what was typed."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec is not None else f"python {sys.argv[0]}"


def head(titles: Sequence[str], *, texts: int = 1) -> str:
    """The two lines that begin a table. texts: how many of the columns, from the left, aren't numbers."""
    return "\n".join([row(titles), f"|{'---|' * texts}{'---:|' * (len(titles) - texts)}"])


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(titles: Sequence[str], rows: Iterable[Iterable[object]], *, texts: int = 1) -> str:
    """A whole table; `head` and `row` print one line by line, while a measurement runs."""
    return "\n".join([head(titles, texts=texts), *map(row, rows)])


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean and, of several values, their standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def median_and_range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def tau(scores: Sequence[float], errors: Sequence[float]) -> float:
    """Kendall's, of two orders of the same models."""
    signs = [
        float(np.sign((scores[one] - scores[two]) * (errors[one] - errors[two])))
        for one, two in combinations(range(len(scores)), 2)
    ]
    return statistics.mean(signs)
