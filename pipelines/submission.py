"""How does a network's flow of a test split become what a benchmark's server takes?

One pair after the other, in this process: test splits are small, and a file that passes the check is done, so
the same command goes on after a kill.
"""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowcore.formats import read_image
from flowcore.inference import InferenceOptions, estimate_frames
from flowcore.networks import FlowNetwork
from flowcore.records import as_json
from flowcore.shapes import FlowArray, Frame
from flowcore.submissions import AskedPair, Server, problems
from pipelines.progress import Progress
from pipelines.set_files import read_record, require_plain
from pipelines.storage import Folder, json_bytes, write_whole

RECORD_FILE = "_submission.json"
"""What the files are of, so that no folder mixes two models."""
_MOST_TOLD = 20
"""Problems that an error tells one by one."""

Estimate = Callable[[Frame, Frame], FlowArray]
"""The flow from the first frame to the second, px."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a folder holds for a server."""

    pairs: int
    new_pairs: int
    """Of them, those that this call wrote."""
    archive: Path | None
    """What is uploaded, where no tool of the data set has to make it."""


def submit(
    server: Server,
    root: Path,
    folder: Path,
    estimate: Estimate,
    made_of: dict[str, Any],
    *,
    on_progress: Callable[[int, int], object] | None = None,
) -> Submission:
    """Writes the flow of the test split in `root` as the server asks for it, and checks every file.

    made_of: what decides the flow, such as the model's digest; a folder of anything else is refused.
    on_progress: gets the pairs that are done and all of them.

    Raises as `Server.pairs`, and ValueError for a folder of something else, for flow that isn't finite, and
    where the finished folder isn't what the server takes, naming each file.
    """
    pairs = server.pairs(root)
    _claim(folder, made_of)
    new_pairs = 0
    for done, pair in enumerate(pairs, start=1):
        if server.problem(pair, folder) is not None:
            image1 = read_image(pair.image1)
            flow = estimate(image1, read_image(pair.image2, image1.shape[:2]))
            write_whole(folder / pair.file, server.encoded(flow, pair.file))
            new_pairs += 1
        if on_progress is not None:
            on_progress(done, len(pairs))
    _require_accepted(server, pairs, folder)
    archive = None if server.archive is None else _zipped(server.archive, pairs, folder)
    return Submission(pairs=len(pairs), new_pairs=new_pairs, archive=archive)


def submit_network(
    network: FlowNetwork,
    digest: str,
    name: str,
    server: Server,
    root: Path,
    folder: Path,
    inference: InferenceOptions,
) -> Submission:
    """`submit` with a network's flow, on a GPU where there is one, with a bar of the pairs.

    name: of the data set. digest: of the network. Raises as `submit`, and ValueError, with nothing written,
    for options that the network doesn't have.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inference.ready(network, device)

    def estimate(image1: Frame, image2: Frame) -> FlowArray:
        ((flow, _),) = estimate_frames(network, [image1, image2], device, inference, both=False)
        return flow[0].cpu().numpy()

    made_of = {"data_set": name, "model": digest, "inference": as_json(inference)}
    with Progress(f"submit {name}", "pair") as progress:

        def show(done: int, total: int) -> None:
            progress.show(done, total=total)

        return submit(server, root, folder, estimate, made_of, on_progress=show)


def _claim(folder: Path, made_of: dict[str, Any]) -> None:
    """Notes what the folder's flow is made of; ValueError where it has flow of something else."""
    place = Folder(str(folder))
    if place.exists():
        require_plain(place)
        place.sweep()
    try:
        noted = read_record(str(folder), RECORD_FILE)
    except FileNotFoundError:
        if any(path.is_file() for path in folder.rglob("*")):
            raise ValueError(
                f"{folder} has files that no submission wrote; choose another folder, or empty it"
            ) from None
        write_whole(folder / RECORD_FILE, json_bytes(made_of))
        return
    if noted != made_of:
        raise ValueError(
            f"{folder} has the flow of another model, data set or inference; choose another folder, or "
            "remove it"
        )


def _require_accepted(server: Server, pairs: Sequence[AskedPair], folder: Path) -> None:
    beside = [RECORD_FILE] if server.archive is None else [RECORD_FILE, server.archive]
    found = problems(server, pairs, folder, beside)
    if found:
        more = [f"and {len(found) - _MOST_TOLD} more"] if len(found) > _MOST_TOLD else []
        told = "\n  ".join([*found[:_MOST_TOLD], *more])
        raise ValueError(f"the server would refuse {folder}; remove or repair these files:\n  {told}")


def _zipped(name: str, pairs: Sequence[AskedPair], folder: Path) -> Path:
    """The zip file of the pairs' files, which nothing makes smaller, written whole."""
    with Folder(str(folder)).writing(name) as partial, zipfile.ZipFile(partial, "w") as archive:
        for pair in pairs:
            archive.write(folder / pair.file, pair.file)
    return folder / name
