"""What do the errors of models look like beside each other? As tables, both plain text and Markdown."""

from collections.abc import Mapping, Sequence

from flowcore.slices import SliceErrors
from pipelines.evaluation import UNCERTAINTIES, Errors


def error_table(title: str, rows: Mapping[str, Errors]) -> str:
    """The errors of several models on the same pairs, region by region."""
    head = [title, "EPE all", "EPE noc", "EPE occ", "Fl %", "occlusion F"]
    return _aligned([head, *([name, *_cells(errors)] for name, errors in rows.items())])


def slice_table(title: str, slices: Mapping[str, SliceErrors]) -> str:
    """A model's errors slice by slice, with the means over pixels and over images that papers report."""
    head = [
        title,
        "pixels",
        "EPE",
        "EPE/image",
        "Fl %",
        "Fl %/image",
        "3px %",
        "3px %/image",
        "1px %",
        "WAUC %",
    ]
    lines = []
    for name, errors in slices.items():
        shares = [
            errors.fl,
            errors.fl_per_image,
            errors.off_3px,
            errors.off_3px_per_image,
            errors.off_1px,
            errors.wauc,
        ]
        lengths = [_number(errors.epe), _number(errors.epe_per_image)]
        lines.append([name, str(errors.pixels), *lengths, *map(_percent, shares)])
    return _aligned([head, *lines])


def uncertainty_table(title: str, rows: Mapping[str, Errors]) -> str:
    """How well each model's uncertainties tell its error: AUSE, 0 is best."""
    lines = [
        [name, *(_number(errors.ause.get(each)) for each in UNCERTAINTIES)] for name, errors in rows.items()
    ]
    return _aligned([[title, *(f"AUSE {name}" for name in UNCERTAINTIES)], *lines])


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table of lines of cells, the head first; numbers to the right."""
    head, *rows = lines
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in [head, rule, *rows]
    )


def _cells(errors: Errors) -> list[str]:
    epe, fl, f1 = errors.flow.epe, errors.flow.fl, errors.occlusion.f1
    return [*map(_number, [epe["all"], epe["noc"], epe["occ"]]), _percent(fl), _number(f1)]


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share)
