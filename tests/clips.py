"""Short videos and a tiny teacher for the tests of labelling."""

from pathlib import Path

import torch
from bare_graph import BareGraph

from flowcore.formats import write_image
from flowcore.networks import FlowNetwork, PWCNetConfig
from flowcore.occlusion import OcclusionCheck
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import ClipOptions
from pipelines.checkpoints import save_model
from pipelines.collection import Collection
from pipelines.labelling import LabellingOptions, write_labels
from pipelines.teachers import Teachers

TINY = PWCNetConfig(encoder_widths=(8, 12, 16), decoder_widths=(16, 12), context_widths=(12,))


def moving(num_frames: int, height: int = 48, width: int = 64) -> SceneOptions:
    return SceneOptions(height=height, width=width, num_frames=num_frames, camera_speed=3.0, layer_speed=2.0)


def render(path: Path, seed: int, num_frames: int = 12, height: int = 48, width: int = 64) -> None:
    write_video(path, render_scene(seed, moving(num_frames, height, width)).frames)


def render_images(folder: Path, seed: int, num_frames: int, height: int = 48, width: int = 64) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(render_scene(seed, moving(num_frames, height, width)).frames):
        write_image(folder / f"{number}.png", frame)


def save_teacher(folder: Path, seed: int = 0, scale: float = 0.7) -> FlowNetwork:
    torch.manual_seed(seed)
    network = TINY.build().eval()
    # A fresh network's flow is so large that every pixel is occluded.
    network.load_state_dict({name: value * scale for name, value in network.state_dict().items()})
    save_model(folder, network, {"run_id": "0123"})
    return network


def contents(location: Path | str) -> dict[str, bytes]:
    """The Parquet files of a set, by name."""
    return {str(path.relative_to(location)): path.read_bytes() for path in Path(location).rglob("*.parquet")}


def written(location: Path | str) -> dict[Path, int]:
    """When each Parquet file of a set was written."""
    return {path: path.stat().st_mtime_ns for path in Path(location).rglob("*.parquet")}


def label(folder: Path) -> None:
    """Labels the folder's `videos` with its `teacher`, in its `labels`."""
    write_labels(
        Collection.find(str(folder / "videos")),
        Teachers.fetched([str(folder / "teacher")]),
        str(folder / "labels"),
        ClipOptions(),
        OcclusionCheck(),
        LabellingOptions(),
        graph=BareGraph(),
    )
