"""Which files hold the flow of a video's pairs, and how are they drawn?

Pictures are drawn when all flow is there, so that one scale serves the whole video: in pictures with scales
of their own the same colour would be another speed.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from flowcore.drawing import (
    Cell,
    Picture,
    flow_colors,
    flow_legend,
    occlusion_image,
    panel,
    with_arrows,
)
from flowcore.formats import decode_flow, decode_mask, encode_flow, encode_image, encode_mask, encode_share
from flowcore.inference import InferenceOptions
from flowcore.occlusion import OcclusionCheck, agreement
from flowcore.shapes import FlowArray
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess
from pipelines.destinations import flow_name
from pipelines.film import film
from pipelines.inference import EstimatedPair, SeenPair, seen_pairs
from pipelines.storage import Folder

FlowFormat = Literal["flo", "flo5", "kitti", "npy"]
_SUFFIXES: Mapping[FlowFormat, str] = {"flo": ".flo", "flo5": ".flo5", "kitti": ".png", "npy": ".npy"}
_OCCLUSION, _PICTURE = "_occlusion.png", "_picture.png"
FLOW_ENDINGS = (".flo", ".flo5", ".npy", _PICTURE)
"""Of files that hold flow for certain."""
_KITTI_LIMIT = 511.0
"""Pixels; its 16 bits have no number for more."""


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What is estimated and written."""

    files: FlowFormat = "flo"
    """File format: flo (Middlebury), flo5 (Spring), kitti (16-bit PNG) or npy (float32 [height, width, 2],
    pixels). Take what your tools read."""
    occlusion: bool = False
    """Also write the flow back, <name>_back, the pixels that the next frame doesn't show,
    <name>_occlusion.png, and how well the flows there and back agree, <name>_confidence.png. Take it to know
    which flow to trust."""
    pictures: bool = False
    """Also write a picture of each pair, <name>_picture.png: the frame with arrows, the flow in colours with
    their scale, and what is occluded if --occlusion is given. Take it to look at single pairs."""
    video: bool = False
    """Also write the pictures as a film, flow.mp4. Take it to watch the motion."""
    stride: int = 1
    """Distance in frames between the two frames of a pair. Raise it where little moves."""
    limit: int | None = None
    """Maximum pairs of each video, from its start; `none` takes all. Lower it for a quick look."""
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    """What the network is shown."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride {self.stride} must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit {self.limit} must be at least 1")

    @property
    def is_drawn(self) -> bool:
        return self.pictures or self.video


def write_pair(folder: Folder, name: str, pair: EstimatedPair, options: PredictionOptions) -> None:
    """Writes the files of a pair that are numbers, the flow itself last."""
    suffix = _SUFFIXES[options.files]
    if pair.flow_bw is not None:
        there, back = (torch.from_numpy(flow)[None] for flow in (pair.flow_fw, pair.flow_bw))
        confidence = f"{name}_confidence.png"
        folder.write(f"{name}_back{suffix}", _encoded(pair.flow_bw, f"{name}_back{suffix}"))
        folder.write(name + _OCCLUSION, encode_mask(OcclusionCheck()(there, back)[0, 0].numpy(), _OCCLUSION))
        folder.write(confidence, encode_share(agreement(there, back)[0, 0].numpy(), confidence))
    folder.write(name + suffix, _encoded(pair.flow_fw, name + suffix))


def draw(source: VideoSource, folder: Folder, options: PredictionOptions, scale: float) -> None:
    """Draws the pairs whose flow lies in the folder; `scale` pixels are drawn in full colour."""
    with ExitStack() as stack:
        decoder = stack.enter_context(DecoderProcess())
        shown = stack.enter_context(film(folder)) if options.video else None
        for pair in seen_pairs(decoder, source, stride=options.stride, most=options.limit):
            picture = _picture(folder, flow_name(source, pair.index), pair, options, scale)
            if options.pictures:
                name = flow_name(source, pair.index) + _PICTURE
                folder.write(name, encode_image(picture, name))
            if shown is not None:
                shown.add(picture, pair.seconds)


def _picture(folder: Folder, name: str, pair: SeenPair, options: PredictionOptions, scale: float) -> Picture:
    file = name + _SUFFIXES[options.files]
    flow, _ = decode_flow(folder.read(file), file, pair.image1.shape[:2])
    row: list[Cell | None] = [
        ("frame", with_arrows(pair.image1, flow)),
        ("flow", flow_colors(flow, scale)),
    ]
    if options.occlusion:
        occluded = decode_mask(folder.read(name + _OCCLUSION), name + _OCCLUSION)
        row.append(("white: not seen in the next frame", occlusion_image(occluded)))
    side = min(128, *pair.image1.shape[:2])
    row.append((f"up to {scale:.1f} px, darker beyond", flow_legend(side, side)))
    return panel([row])


def _encoded(flow: FlowArray, name: str) -> bytes:
    is_limited = name.endswith(".png")
    return encode_flow(flow, name, (np.abs(flow) <= _KITTI_LIMIT).all(axis=0) if is_limited else None)
