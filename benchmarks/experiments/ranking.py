"""Does the score that needs no truth rank models as their endpoint error does?

    python -m benchmarks.experiments.ranking --model runs/a runs/b ... [--kinds mixed busy]

Prints, for each kind of rendered scenes, every model's endpoint error beside its errors without truth on the
same pairs, and Kendall's tau between the order by each of them and the order by the endpoint error: 1 for the
same order, -1 for the opposite one. `comparable` is the score by which models are compared.
"""

from pathlib import Path

import torch

from benchmarks import report
from benchmarks.experiments.cells import KINDS, TEST_SCENES, truth
from flowcore.occlusion import OcclusionCheck
from pipelines.checkpoints import load_model
from pipelines.cluster import connect
from pipelines.held_back import HeldBack
from pipelines.models import fetch_model
from pipelines.truth import truth_set

_SCORES = ("comparable", "unmasked", "photometric")


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", nargs="+", required=True, help="folders or URIs of two models or more")
    parser.add_argument("--kinds", nargs="+", default=["mixed"], choices=sorted(KINDS), help="of scenes")
    parser.add_argument("--run-root", default="runs/ranking", help="folder for the scenes' pairs")
    arguments = parser.parse_args()
    connect()
    print(report.command())
    for kind in arguments.kinds:
        root = Path(truth(kind, TEST_SCENES))
        pairs = truth_set("scenes", root, str(Path(arguments.run_root).resolve()), to_learn_from=False)
        judge = HeldBack(pairs=pairs, places=pairs.index(), check=OcclusionCheck(), stage="ranking")
        rows = []
        for model in arguments.model:
            network, _ = load_model(fetch_model(model))
            numbers, _ = judge.judge(network.eval(), torch.device("cpu"))
            rows.append((model, numbers["epe"], *(numbers[name] for name in _SCORES)))
        rows.sort(key=lambda row: row[1])
        print(f"\n{kind}\n")
        cells = [[Path(model).name, *(f"{value:.3f}" for value in values)] for model, *values in rows]
        errors = [row[1] for row in rows]
        taus = [report.tau([row[2 + at] for row in rows], errors) for at in range(len(_SCORES))]
        cells.append(["Kendall's tau", "", *(f"{each:.2f}" for each in taus)])
        print(report.table(["model", "EPE", *_SCORES], cells), flush=True)


if __name__ == "__main__":
    main()
