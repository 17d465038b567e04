"""What does flow look like? Makes the film at the top of README.md: a clip, its flow and what is occluded.

    python -m docs.make.film ../shared/data/clips/sam2__01_dog.mp4

The network is distillflow:video, the film docs/flow.gif. It is a GIF because code hosts show one
in a page. The whole film has one palette, and pairs are three frames apart, which is ten pictures a second.
"""

import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np
import torch
from jaxtyping import Bool

from benchmarks import report
from flowcore.drawing import Picture, flow_colors, flow_legend, motion_scale, occlusion_image
from flowcore.inference import InferenceOptions
from flowcore.occlusion import OcclusionCheck
from pipelines.checkpoints import load_model
from pipelines.collection import Collection
from pipelines.decoding import DecoderProcess
from pipelines.inference import EstimatedPair, VideoFlow
from pipelines.installation import PROJECT_FOLDER
from pipelines.models import BEST, fetch_model
from pipelines.storage import write_whole

FILM = PROJECT_FOLDER / "docs" / "flow.gif"
STRIDE = 3
"""Frames from one picture of the film to the next."""
RATE = 10
"""Pictures a second, of a clip of 30."""
WIDTH = 240
"""Pixels of each of the four parts."""
SCALE = 0.375
"""Of the frames that the network sees: 270x480 px of 720x1280."""
COLOURS = 96


def pairs(clip: str) -> Iterator[EstimatedPair]:
    """The clip's pairs with their flow in both directions."""
    (source,) = Collection.find(clip).videos
    flow = VideoFlow(load_model(fetch_model(BEST))[0], InferenceOptions(scale=(SCALE,)), both=True)
    with DecoderProcess() as decoder:
        yield from flow.pairs(decoder, source, stride=STRIDE)


def small(picture: Picture) -> Picture:
    height = round(WIDTH * picture.shape[0] / picture.shape[1])
    return cv2.resize(np.ascontiguousarray(picture), (WIDTH, height), interpolation=cv2.INTER_AREA)


def occluded(pair: EstimatedPair) -> Picture:
    assert pair.flow_bw is not None
    there, back = (torch.from_numpy(flow)[None] for flow in (pair.flow_fw, pair.flow_bw))
    return occlusion_image(OcclusionCheck()(there, back)[0, 0].numpy())


def legend(height: int, scale: float) -> Picture:
    """The colours of motion, and what white is in the part beside it."""
    picture = np.zeros((height, WIDTH, 3), np.uint8)
    side = height - 40
    disc = flow_legend(side, side)
    top, left = 8, (WIDTH - side) // 2
    picture[top : top + side, left : left + side][_disc(side)] = disc[_disc(side)]
    for line, text in enumerate((f"up to {scale:.0f} px, darker beyond", "white on the left: occluded")):
        place = (8, height - 18 + 13 * line)
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255,) * 3, 1, cv2.LINE_AA)
    return picture


def _disc(side: int) -> Bool[np.ndarray, "side side"]:
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    return np.asarray(np.hypot(rows, columns) <= side / 2)


def pictures(clip: str) -> list[Picture]:
    """Frame beside flow, above occlusion beside the legend; one scale for the whole film."""
    parts = [(small(pair.image1), pair.flow_fw, small(occluded(pair))) for pair in pairs(clip)]
    # Faster than nine tenths of the pairs: by the fastest one's all others would be pale.
    scale = float(np.quantile([motion_scale([flow]) for _, flow, _ in parts], 0.9))
    key = legend(parts[0][0].shape[0], scale)
    return [
        np.vstack([np.hstack([frame, small(flow_colors(flow, scale))]), np.hstack([hidden, key])])
        for frame, flow, hidden in parts
    ]


def gif(shown: Sequence[Picture]) -> bytes:
    """The pictures as a GIF that runs for ever, in the colours that serve the whole of it best."""
    height, width = shown[0].shape[:2]
    graph = av.filter.Graph()
    colours = av.VideoFormat("rgb24", width, height)
    source = graph.add_buffer(width=width, height=height, format=colours, time_base=Fraction(1, RATE))
    split, palette = graph.add("split"), graph.add("palettegen", f"max_colors={COLOURS}")
    painter, sink = graph.add("paletteuse", "dither=none:diff_mode=rectangle"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(painter, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(painter, 0, 1)
    painter.link_to(sink)
    graph.configure()
    for number, picture in enumerate(shown):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, RATE)
        graph.push(frame)
    graph.push(None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILM.name
        with av.open(str(path), "w", options={"loop": "0"}) as container:
            stream = container.add_stream("gif", rate=RATE)
            stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
            for _ in shown:
                drawn = graph.pull()
                assert isinstance(drawn, av.VideoFrame)
                container.mux(stream.encode(drawn))
            container.mux(stream.encode(None))
        return path.read_bytes()


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("clip", help="a video of about ten seconds and 30 frames a second")
    content = gif(pictures(parser.parse_args().clip))
    write_whole(FILM, content)
    print(f"{FILM.relative_to(PROJECT_FOLDER)}: {len(content) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
