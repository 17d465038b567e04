"""Does a damaged video cost more than itself?

    python -m benchmarks.endurance.fuzzing [--videos FOLDER] [--files 500] [--seed 0]

Damages videos by flipped bits, overwritten headers, missing and repeated parts, and truncation, and labels
all with the network of `smoke`, by `jobs/pseudolabel.py`. The videos are those of FOLDER, or rendered ones in
six codecs and containers. Prints what became of the files. Fails unless each is in the set or in the ledger,
exactly once, and every pair of the set can be read.
"""

import tempfile
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from benchmarks import report
from benchmarks.endurance.trials import accounted_for, mutated
from flowcore.scenes import SceneOptions, render_scene
from pipelines.collection import find_videos

_CODECS = {
    "mp4": "libx264",
    "mkv": "libx265",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "ts": "mpeg2video",
    "mov": "mjpeg",
}
_PIXELS = {"mjpeg": "yuvj420p"}


def render(folder: Path) -> list[Path]:
    """One video a codec."""
    folder.mkdir(parents=True)
    scene = SceneOptions(height=96, width=128, num_frames=17, camera_speed=3.0, layer_speed=2.0)
    for seed, (extension, codec) in enumerate(_CODECS.items()):
        with av.open(str(folder / f"{codec}.{extension}"), "w") as container:
            stream = cast(VideoStream, container.add_stream(codec, rate=25))
            stream.height, stream.width = scene.height, scene.width
            stream.pix_fmt = _PIXELS.get(codec, "yuv420p")
            for image in render_scene(seed, scene).frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    return sorted(folder.iterdir())


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--videos", type=Path, help="a folder of videos to damage; rendered ones without it")
    parser.add_argument("--files", type=int, default=500, help="damaged files to make; 500 by default")
    parser.add_argument(
        "--most-bytes", type=int, default=2_000_000, help="larger videos are left out; 2000000 by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.videos is None:
            whole = render(folder / "whole")
        else:
            found = [Path(source.uri) for source in find_videos(str(arguments.videos)) if not source.frames]
            whole = [path for path in found if path.stat().st_size <= arguments.most_bytes]
        (folder / "videos").mkdir()
        kinds = {}
        for number in range(arguments.files):
            source = whole[number % len(whole)]
            kind, content = mutated(source.read_bytes(), rng)
            path = folder / "videos" / f"{number:04d}{source.suffix}"
            path.write_bytes(content)
            kinds[str(path)] = kind
        told = accounted_for(folder, kinds)
    print(report.command())
    print(f"{arguments.files} damaged files of {len(whole)} videos, {told}")


if __name__ == "__main__":
    main()
