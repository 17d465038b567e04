"""Does a training end with the same weights, whatever is killed while it runs?

    python -m benchmarks.endurance.chaos_training [--kills 50] [--steps 400] [--victims worker driver node]

Trains a teacher with two workers on a cluster of two nodes on this machine, once undisturbed. Then the same
training runs, again and again, while a worker, the command or a whole node is killed with -9 at random steps.
Where a kill ends the command, it is typed again with --resume. Ends with an error if a weight differs from
the undisturbed one, if there is more than one run, or if a step's loss is missing, differs or is logged
twice.

Each training that was ended well is noted in docs/results/kills, so that the same command goes on where it
was ended.
"""

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Run

from benchmarks import report
from benchmarks.endurance.victims import Job, Nodes, Record, add_options, kill_one_titled
from benchmarks.inputs import render_videos
from flowcore.scenes import SceneOptions
from pipelines import registry
from pipelines.checkpoints import model_digest
from pipelines.run_store import client_of

VICTIMS = ("worker", "driver", "node")
_VALIDATE_EVERY = 40
_KILLS_A_TRAINING = 10


class Command(Job):
    """A training."""

    def __init__(self, folder: Path, videos: Path, address: str, steps: int) -> None:
        super().__init__("train_teacher", folder, address)
        self.folder = folder
        self._videos = videos
        self._steps = steps
        # Its tables are made now, and not while the command makes them.
        self._client = client_of(self.uri)

    def run(self) -> Run | None:
        """The training's, None before it is there; SystemExit if there is another."""
        client = self._client
        runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
        if len(runs) > 1:
            raise SystemExit(f"there are {len(runs)} runs of one training")
        return runs[0] if runs else None

    def points(self, metric: str) -> dict[int, float]:
        """By step; SystemExit where one was logged twice."""
        run = self.run()
        if run is None:
            return {}
        points = self._client.get_metric_history(run.info.run_id, metric)
        if twice := [step for step, count in Counter(each.step for each in points).items() if count > 1]:
            raise SystemExit(f"{metric} of steps {twice} was logged more than once")
        return {each.step: each.value for each in points}

    def step(self) -> int:
        run = self.run()
        if run is None or "train/loss" not in run.data.metrics:
            return 0
        return max(self.points("train/loss"), default=0)

    def flags(self) -> Mapping[str, object]:
        run = self.run()
        return {
            "videos": self._videos,
            "run-root": self.folder / "runs",
            "training.steps": self._steps,
            "objective.unmasked-steps": self._steps,
            "training.validate-every": _VALIDATE_EVERY,
            "training.log-every": 1,
            "training.workers": 2,
            "training.max-failures": 100,
            **({} if run is None else {"resume": run.info.run_id}),
        }

    def finish(self) -> None:
        """Lets it end; SystemExit where it fails."""
        if not self.succeeds():
            raise SystemExit(f"the command failed:\n{self.last_words()}")

    def digest(self) -> str:
        """Of the weights."""
        run = self.run()
        assert run is not None
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        return model_digest(registry.download(f"runs:/{run.info.run_id}/model"))


def killed(kind: str, command: Command, nodes: Nodes, chance: random.Random) -> bool:
    """Whether there was one to kill."""
    if kind == "driver":
        command.kill()
        return True
    if kind == "node":
        nodes.kill_second()
        nodes.replace_second()
        return True
    return kill_one_titled("RayTrainWorker", chance)


def main() -> None:
    parser = report.parser(__doc__)
    add_options(parser, VICTIMS, kills=50)
    parser.add_argument("--steps", type=int, default=400, help="of the training; 400 by default")
    arguments = parser.parse_args()
    record = Record.of("training")
    print(report.command())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_videos(folder / "videos", 4, SceneOptions(height=64, width=96, num_frames=9))
        nodes = Nodes()
        try:
            undisturbed = Command(folder / "undisturbed", folder / "videos", nodes.address, arguments.steps)
            started = time.monotonic()
            undisturbed.finish()
            print(f"undisturbed: {arguments.steps} steps, {time.monotonic() - started:.0f} s", flush=True)
            while record.kills < arguments.kills:
                rounds = len(record.rounds)
                chance = random.Random(f"{arguments.seed} {rounds}")
                place = folder / f"disturbed{rounds}"
                disturbed = Command(place, folder / "videos", nodes.address, arguments.steps)
                deaths = disturb(disturbed, nodes, chance, arguments.victims, arguments.steps)
                disturbed.finish()
                again = compare(disturbed, undisturbed, arguments.steps)
                print(f"finished after {disturbed.starts} start(s): the same run", flush=True)
                record.add(deaths, steps=arguments.steps, starts=disturbed.starts, again=again)
        finally:
            nodes.stop()
    print(table())


def disturb(
    command: Command, nodes: Nodes, chance: random.Random, victims: Sequence[str], steps: int
) -> Counter[str]:
    """Kills at random steps; how many of each kind."""
    deaths: Counter[str] = Counter()
    # In order, so that each comes after the step at which the one before struck
    for at in sorted(chance.sample(range(1, steps - 5), _KILLS_A_TRAINING)):
        kind = chance.choice(victims)
        while True:
            command.start()
            if command.step() >= at and killed(kind, command, nodes, chance):
                break
            time.sleep(0.2)
        deaths[kind] += 1
        print(f"killed a {kind} at step {command.step()}", flush=True)
    return deaths


def compare(disturbed: Command, undisturbed: Command, steps: int) -> int:
    """SystemExit where the trainings differ; how many steps were done again."""
    losses = disturbed.points("train/loss")
    if sorted(losses) != list(range(1, steps + 1)):
        raise SystemExit(f"{steps - len(losses)} steps have no loss")
    run = disturbed.run()
    assert run is not None
    # That none has two points at a step
    for metric in run.data.metrics:
        disturbed.points(metric)
    for metric in ("train/loss", "validation/unmasked", "validation/occluded"):
        found, expected = disturbed.points(metric), undisturbed.points(metric)
        if found != expected:
            raise SystemExit(f"{metric} is other than undisturbed: {found}\n{expected}")
    if disturbed.digest() != undisturbed.digest():
        raise SystemExit("the weights are others than undisturbed")
    return int(sum(disturbed.points("train/steps_done_again").values()))


def table() -> str:
    """What is noted of all trainings, each of which had the undisturbed one's losses and weights."""
    rounds = Record.of("training").rounds
    row = [len(rounds), *(sum(each["kills"].get(kind, 0) for each in rounds) for kind in VICTIMS)]
    row += [Record.of("training").kills, *(sum(each[key] for each in rounds) for key in ("starts", "steps"))]
    row.append(sum(each["again"] for each in rounds))
    heads = ["trainings", *VICTIMS, "kills", "starts", "steps", "done again"]
    return report.table(heads, [row], texts=0)


if __name__ == "__main__":
    main()
