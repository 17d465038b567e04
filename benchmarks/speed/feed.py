"""What share of a student's training is spent waiting for data?

    python -m benchmarks.speed.feed [--steps 300] [--workers 1] [--global-batch 4]

Renders videos, labels them with a teacher of fresh weights, and trains the demo recipe's student on them.
Prints the share of the time that the loop waited for its next batch, without the first tenth of the steps.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from benchmarks.inputs import fresh_teacher, label, render_videos
from flowcore.objectives import StudentObjective
from jobs.recipes import RECIPES
from pipelines import tracking
from pipelines.cluster import connect
from pipelines.lineage import StageRun
from pipelines.models import starting_point
from pipelines.pair_set import PairSet
from pipelines.training import Source, train
from pipelines.validation import CollapseAlarm, Judge


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of the training; 300 by default")
    parser.add_argument("--workers", type=int, default=1, help="training processes; 1 by default")
    parser.add_argument("--global-batch", type=int, default=4, help="pairs a step; 4 by default")
    arguments = parser.parse_args()
    recipe = RECIPES["demo"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = render_videos(folder / "videos", 8)
        teacher = fresh_teacher(folder / "teacher", recipe.network)
        connect()
        labels = str(folder / "labels")
        label(videos, teacher, labels, recipe.clips)
        source = Source(
            pairs=PairSet.open(labels), transformation=recipe.challenge, objective=StudentObjective()
        )
        silent = CollapseAlarm(max_occluded=2.0, min_flow_variance=-1.0, must_improve=False)
        options = replace(
            recipe.student,
            steps=arguments.steps,
            workers=arguments.workers,
            global_batch=arguments.global_batch,
            log_every=max(1, arguments.steps // 10),
            validate_every=arguments.steps,
        )
        with tracking.start("benchmark", recipe="demo", parameters=options, project_folder=folder) as run:
            train(
                starting_point(teacher, recipe.network),
                [source],
                options,
                judge=Judge(check=recipe.check, alarm=silent),
                run=StageRun(run, "distill", str(folder / "runs"), {}),
            )
        shares, speeds = (
            [point.value for point in run.client.get_metric_history(run.run_id, f"train/{name}")]
            for name in ("waiting_for_data", "pairs_per_second")
        )
    print(f"share of a student step spent waiting for data: {sum(shares[1:]) / len(shares[1:]):.1%}")
    print(f"by tenth of the {arguments.steps} steps: {', '.join(f'{share:.1%}' for share in shares)}")
    print(f"pairs per second: {sum(speeds[1:]) / len(speeds[1:]):.1f}")


if __name__ == "__main__":
    main()
