"""Writes the flow of a test split as its benchmark's server takes it.

    python jobs/submit.py --model models:/flow-student@champion --data-set sintel:/data/MPI-Sintel \\
        --output submission

Of sintel, kitti2012, kitti2015 and spring. Checks every file, and prints what to do with the folder: KITTI's
zip file is ready, the others are packed by the data set's own tool. The same command again finishes what is
missing.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jobs.command import run
from flowcore.inference import InferenceOptions
from flowcore.submissions import SERVERS
from jobs.stages import data_set_at
from pipelines.disclosure import tell
from pipelines.models import absolute_model, fetch_model
from pipelines.storage import shared_folder


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Options of submit."""

    model: str
    """Checkpoint folder or its URI, runs:/<run id>/model, models:/<name>@<alias>, hf://<owner>/<name>,
    distillflow:<name>, opencv:<name>, torchvision:<name> or ptlflow:<name>."""
    data_set: str
    """The data set whose test split is estimated, NAME:FOLDER with the name sintel, kitti2012, kitti2015 or
    spring, such as sintel:/data/MPI-Sintel."""
    output: str
    """Folder to write the submission to. It must be empty, or what this command left there."""
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    """How the network is run, and how its flow is refined."""

    common: ClassVar[tuple[str, ...]] = ("inference.scale",)
    goes_on: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = data_set_at(self.data_set, "--data-set").name
        if name not in SERVERS:
            raise ValueError(
                f"--data-set {self.data_set}: {name} has no server that takes flow; those that have are "
                f"{', '.join(SERVERS)}"
            )


def main(stage: Submit) -> None:
    data_set = data_set_at(stage.data_set, "--data-set")
    root, folder = shared_folder(data_set.root, "--data-set"), shared_folder(stage.output, "--output")
    server = SERVERS[data_set.name]
    server.pairs(root)
    model = fetch_model(absolute_model(stage.model, "--model"))
    # Slow imports come after the checks above, so that a wrong option fails at once.
    from pipelines.checkpoints import load_model
    from pipelines.submission import submit_network

    network, info = load_model(model)
    done = submit_network(network, info.digest, data_set.name, server, root, folder, stage.inference)
    tell(f"{data_set.name}: {done.pairs} files in {folder}, {done.new_pairs} of them new; each was checked")
    tell(f"next: {server.remedy.replace('FOLDER', str(folder))}")


if __name__ == "__main__":
    run(main, Submit)
