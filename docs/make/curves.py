"""What do the curves of docs/results/calibration.md look like? Draws them as docs/results/calibration.png.

    python -m docs.make.curves

They come from what `python -m benchmarks.experiments.calibration` recorded beside the page.
"""

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import report
from benchmarks.experiments.calibration import (
    AT_RANDOM,
    COLUMNS,
    ITSELF,
    RECORDS,
    TEACHERS,
    curves,
    recorded,
)


def main() -> None:
    report.parser(__doc__).parse_args()
    results = {key: curves(pairs) for key, pairs in recorded().items()}
    kinds = list(dict.fromkeys(kind for kind, _ in results))
    figure, axes = plt.subplots(
        len(kinds), len(TEACHERS), figsize=(4 * len(TEACHERS), 3.2 * len(kinds)), squeeze=False
    )
    colours = {name: f"C{number}" for number, name in enumerate(COLUMNS)}
    for axis, ((kind, teacher), found) in zip(axes.flat, results.items(), strict=True):
        for name, curve in found.items():
            coverage = np.arange(1, len(curve.errors) + 1) / len(curve.errors)
            axis.plot(
                coverage,
                curve.errors,
                label=name,
                color=colours.get(name, "black"),
                linestyle=":" if name == AT_RANDOM else "-",
                linewidth=2 if name == ITSELF else 1,
            )
        axis.set(title=f"{kind}: {teacher}", xlabel="share of the pairs kept", ylim=(0, None))
        axis.title.set_fontsize(9)
    for row in axes:
        row[0].set_ylabel("EPE of those kept, px")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), fontsize=8)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(RECORDS.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
