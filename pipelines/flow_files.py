"""Which files hold the flow of a pair?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from flowcore.formats import decode_flow, encode_flow, encode_grey, encode_mask, encode_share
from flowcore.inference import InferenceOptions
from flowcore.occlusion import OcclusionCheck, agreement
from flowcore.shapes import FlowArray
from flowcore.uncertainty import scale_codes
from pipelines.inference import EstimatedPair, SeenPair
from pipelines.storage import Folder

FlowFormat = Literal["flo", "flo5", "kitti", "npy", "parquet"]
FLOW_TABLE = "flow.parquet"
"""The one file of `parquet`."""
FILM_NAME = "flow.mp4"
SUFFIXES: Mapping[FlowFormat, str] = {"flo": ".flo", "flo5": ".flo5", "kitti": ".png", "npy": ".npy"}
BACK, OCCLUSION, PICTURE = "_back", "_occlusion.png", "_picture.png"
CONFIDENCE, UNCERTAINTY = "_confidence.png", "_uncertainty.png"
_KITTI_LIMIT = 511.0
"""Pixels; its 16 bits have no number for more."""


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What is estimated and written."""

    format: FlowFormat = "flo"
    """File format: flo (Middlebury), flo5 (Spring), kitti (16-bit PNG) or npy (float32 [height, width, 2],
    pixels), a file a pair; or parquet, all of a video in flow.parquet. Take what your tools read."""
    occlusion: bool = False
    """Also write the flow back, <name>_back, the pixels that the next frame doesn't show,
    <name>_occlusion.png, and how well the flows there and back agree, <name>_confidence.png. Take it to know
    which flow to trust."""
    uncertainty: bool = False
    """Also write by how many pixels the network expects each vector to be off, <name>_uncertainty.png: grey 0
    is 1/64 px, and each 8 more are twice as many. Only networks trained with --network.uncertainty have it;
    take --occlusion for others. It takes as long as --occlusion does."""
    pictures: bool = False
    """Also write a picture of each pair, <name>_picture.png: the frame with arrows, the flow in colours with
    their scale, and what is occluded if --occlusion is given. Take it to look at single pairs."""
    video: bool = False
    """Also write the pictures as a film, flow.mp4. Take it to watch the motion."""
    warped: bool = False
    """In the pictures and the film, also show the next frame brought back by the flow; grey is outside it.
    Take it to judge by eye: where the flow is right, it looks like the frame itself."""
    stride: int = 1
    """Distance in frames between the two frames of a pair. Raise it where little moves."""
    limit: int | None = None
    """Maximum pairs of each video, from its start; `none` takes all. Lower it for a quick look."""
    check: OcclusionCheck = field(default_factory=OcclusionCheck)
    """Tells, for --occlusion, the pixels that the next frame doesn't show."""
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    """How the network is run, and how its flow is refined."""

    def __post_init__(self) -> None:
        if self.format == "parquet" and self.is_drawn:
            raise ValueError(
                "format parquet has no file of each pair, from which pictures and video are drawn; give "
                "another format, or leave these out"
            )
        if self.warped and not self.is_drawn:
            raise ValueError("warped is a part of pictures and of the film; add --pictures or --video")
        if self.stride < 1:
            raise ValueError(f"stride {self.stride} must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit {self.limit} must be at least 1")

    @property
    def is_drawn(self) -> bool:
        return self.pictures or self.video


def endings_of(format: FlowFormat | None) -> tuple[str, ...]:
    """How files end that predictions may have written into a folder. Any picture ends as KITTI's flow
    does, so that ending counts only if the last prediction had its format."""
    pictures = (".png",) if format == "kitti" else (OCCLUSION, CONFIDENCE, UNCERTAINTY, PICTURE)
    return (".flo", ".flo5", ".npy", *pictures, FLOW_TABLE, FILM_NAME)


def files_of_pair(name: str, options: PredictionOptions) -> list[str]:
    """Their names, the flow itself last: where that is, the others are."""
    suffix = SUFFIXES[options.format]
    kinds = [BACK + suffix, OCCLUSION, CONFIDENCE] if options.occlusion else []
    kinds += [UNCERTAINTY] if options.uncertainty else []
    return [name + kind for kind in (*kinds, suffix)]


def written_flow(folder: Folder, options: PredictionOptions, name: str, pair: SeenPair) -> FlowArray:
    """The flow of a pair whose files are there."""
    file = name + SUFFIXES[options.format]
    flow, _ = decode_flow(folder.read(file), file, pair.image1.shape[:2])
    return flow


def write_pair(folder: Folder, options: PredictionOptions, name: str, pair: EstimatedPair) -> None:
    """Writes the files of a pair that are numbers, in the order of `files_of_pair`."""
    suffix = SUFFIXES[options.format]
    contents = {name + suffix: _encoded(pair.flow_fw, name + suffix)}
    if pair.flow_bw is not None:
        there, back = (torch.from_numpy(flow)[None] for flow in (pair.flow_fw, pair.flow_bw))
        occluded, agreed = options.check(there, back)[0, 0].numpy(), agreement(there, back)[0, 0].numpy()
        contents[name + BACK + suffix] = _encoded(pair.flow_bw, name + BACK + suffix)
        contents[name + OCCLUSION] = encode_mask(occluded, OCCLUSION)
        contents[name + CONFIDENCE] = encode_share(agreed, name + CONFIDENCE)
    if pair.scale_fw is not None:
        codes = scale_codes(torch.from_numpy(pair.scale_fw))
        contents[name + UNCERTAINTY] = encode_grey(codes, name + UNCERTAINTY)
    for file in files_of_pair(name, options):
        folder.write(file, contents.pop(file))
    assert not contents


def _encoded(flow: FlowArray, name: str) -> bytes:
    is_limited = name.endswith(".png")
    return encode_flow(flow, name, (np.abs(flow) <= _KITTI_LIMIT).all(axis=0) if is_limited else None)
