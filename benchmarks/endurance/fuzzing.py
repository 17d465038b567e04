"""Does a damaged video cost more than itself?

    python -m benchmarks.endurance.fuzzing [--videos FOLDER] [--files 500] [--seed 0]

Damages videos by flipped bits, overwritten headers, missing and repeated parts, and truncation, and labels
all with the network of `smoke`, by `jobs/pseudolabel.py`. The videos are those of FOLDER, or rendered ones in
six codecs and containers. Prints what became of the files. Fails unless each is in the set or in the ledger,
exactly once, and every pair of the set can be read.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from benchmarks import report
from benchmarks.inputs import fresh_teacher
from flowcore.scenes import SceneOptions, render_scene
from jobs.recipes import RECIPES
from pipelines.collection import find_videos
from pipelines.pair_set import PairSet
from pipelines.storage import PROJECT_FOLDER

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


def mutated(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """The kind of damage, and the damaged file."""
    data = np.frombuffer(content, np.uint8).copy()
    size = len(data)
    first, second = sorted(int(each) for each in rng.integers(0, size, 2))
    kind = str(
        rng.choice(["flipped bits", "overwritten header", "truncated", "part missing", "part repeated"])
    )
    if kind == "flipped bits":
        places = rng.integers(0, size, int(rng.choice([1, 10, 100, 1000])))
        data[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    elif kind == "overwritten header":
        length = min(size, int(rng.choice([4, 64, 1024])))
        data[:length] = rng.integers(0, 256, length, np.uint8)
    elif kind == "truncated":
        data = data[:first]
    elif kind == "part missing":
        data = np.concatenate([data[:first], data[second:]])
    else:
        data = np.concatenate([data[:second], data[first:]])
    return kind, data.tobytes()


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


def accounted_for(folder: Path, kinds: Mapping[str, str]) -> str:
    """Labels the videos in the folder's `videos` and tells what became of each; AssertionError where one of
    them, or a pair, is lost or doubled.

    kinds: the damage by the names of all the videos.
    """
    teacher = fresh_teacher(folder / "teacher", RECIPES["smoke"].network)
    started = time.monotonic()
    command = [
        *(sys.executable, str(PROJECT_FOLDER / "jobs/pseudolabel.py"), "smoke"),
        *("--videos", str(folder / "videos"), "--teacher", teacher),
        *("--labels", str(folder / "set"), "--labelling.max-bad-share", "1"),
    ]
    runs = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    subprocess.run(command, check=True, cwd=folder, env=os.environ | runs)
    seconds = time.monotonic() - started
    pairs = PairSet.open(str(folder / "set"))
    ledger, entries = pairs.ledger(), pairs.videos()
    kept = {entry.video for entry in entries}
    unread = [entry.video for entry in ledger if entry.video not in kept]
    index = pairs.index()
    ids = index.column("pair_id").to_pylist()
    for place in index.to_pylist():
        pairs.decode(pairs.read(place))
    accounted = [*kept, *unread]
    outcomes: Counter[tuple[str, str]] = Counter((kinds[entry.video], entry.outcome) for entry in ledger)
    done = Counter(kinds[video] for video in kept - {entry.video for entry in ledger})
    columns = ("done", "cut short", "nothing", "duplicate", "unreadable now", "failed")
    rows = [
        (kind, done[kind], *(outcomes[kind, column] for column in columns[1:]))
        for kind in sorted(set(kinds.values()))
    ]
    assert sorted(accounted) == sorted(kinds), "a file is lost, or accounted for twice"
    assert len(ids) == len(set(ids)) == sum(entry.pairs for entry in entries), "a pair is lost or doubled"
    table = report.table(["damage", *columns], rows)
    return f"{seconds:.0f} s, {len(ids)} pairs; every input accounted for once, every pair read\n\n{table}"


if __name__ == "__main__":
    main()
