"""Are pairs across cuts and pairs of fades left out, and no others?

    python -m benchmarks.experiments.cuts [--count 10] [--shots 6] [--seed 0] [--videos CLIPS]

Joins shots of 16 to 48 frames to videos whose transitions are known, and reads them as labelling does. A pair
that is left out is found: precision is the share of the found pairs that belong to a transition, recall the
share of a transition's pairs that are found. PySceneDetect's detectors read the same files with their default
settings; they know cuts alone, and no shot of under 15 frames. Shots are rendered scenes, of constant light,
of changing light and of fast motion, and with --videos also parts of a folder's videos.
"""

import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy import ndarray
from scenedetect import AdaptiveDetector, ContentDetector, detect

from benchmarks import report
from benchmarks.inputs import read_chunks
from flowcore.chunks import ChunkReader
from flowcore.scenes import SceneOptions, render_scene, write_video
from flowcore.video import EVERY_PAIR, ClipOptions

_HEIGHT, _WIDTH = 96, 128
_SHORTEST, _LONGEST = 16, 48
_FADE, _BLANK, _DISSOLVE = 12, 4, 6
_SCENES = SceneOptions(height=_HEIGHT, width=_WIDTH)
_RENDERED = {
    "rendered": _SCENES,
    "rendered, changing light": replace(_SCENES, lighting=0.2),
    "rendered, fast": replace(_SCENES, camera_speed=12.0, layer_speed=12.0),
}
# Static pairs would count as found.
_READ = ClipOptions(static_threshold=0.0)


def cut(before: ndarray, after: ndarray) -> tuple[ndarray, range]:
    """The frames of both, and which are the first frames of a transition's pairs."""
    return np.concatenate([before, after]), range(len(before) - 1, len(before))


def fade(before: ndarray, after: ndarray) -> tuple[ndarray, range]:
    """Through black; as `cut`."""
    shares = np.linspace(1.0, 0.0, min(_FADE, len(before), len(after)))[:, None, None, None]
    length = len(shares)
    black = np.zeros((_BLANK, *before.shape[1:]), np.uint8)
    away = np.rint(before[-length:] * shares).astype(np.uint8)
    back = np.rint(after[:length] * shares[::-1]).astype(np.uint8)
    frames = np.concatenate([before[:-length], away, black, back, after[length:]])
    return frames, range(len(before) - length, len(before) + _BLANK + length - 1)


def dissolve(before: ndarray, after: ndarray) -> tuple[ndarray, range]:
    """From one into the other; as `cut`."""
    shares = np.linspace(1.0, 0.0, _DISSOLVE + 2)[1:-1, None, None, None]
    mixed = np.rint(before[-_DISSOLVE:] * shares + after[:_DISSOLVE] * (1 - shares)).astype(np.uint8)
    frames = np.concatenate([before[:-_DISSOLVE], mixed, after[_DISSOLVE:]])
    return frames, range(len(before) - _DISSOLVE - 1, len(before))


Join = Callable[[ndarray, ndarray], tuple[ndarray, range]]
JOINS: dict[str, Join] = {"cuts": cut, "fades": fade, "dissolves": dissolve}


def joined(shots: Sequence[ndarray], join: Join) -> tuple[ndarray, set[int]]:
    """The video of the shots, and its pairs of a transition, each named after its first frame."""
    frames = shots[0]
    found: set[int] = set()
    for shot in shots[1:]:
        # The last shot alone, or a later join could reach what an earlier one made.
        start = max(found, default=-1) + 1
        both, pairs = join(frames[start:], shot)
        frames = np.concatenate([frames[:start], both])
        found |= {start + pair for pair in pairs}
    return frames, found


def rendered_shots(options: SceneOptions, count: int, chance: random.Random) -> list[ndarray]:
    return [
        render_scene(
            chance.randrange(1_000_000), replace(options, num_frames=chance.randint(_SHORTEST, _LONGEST))
        ).frames
        for _ in range(count)
    ]


def real_frames(folder: str) -> list[ndarray]:
    """The first hundred frames of each video, scaled and cut to one size."""
    size = (_HEIGHT, _WIDTH)
    options = replace(EVERY_PAIR, size=size, min_size=size, chunk_pairs=100)
    found = (frames[:, :_HEIGHT, :_WIDTH] for _, frames in read_chunks(folder, options, most=1))
    return [frames for frames in found if len(frames) > _LONGEST]


def real_shots(videos: Sequence[ndarray], count: int, chance: random.Random) -> list[ndarray]:
    shots = []
    for number in chance.sample(range(len(videos)), count):
        length = chance.randint(_SHORTEST, _LONGEST)
        start = chance.randrange(len(videos[number]) - length)
        shots.append(videos[number][start : start + length])
    return shots


def left_out(path: Path, num_frames: int) -> set[int]:
    """The pairs that labelling doesn't take."""
    taken = {first for chunk in ChunkReader(path, _READ) for first, _ in pairwise(chunk.frame_indices)}
    return set(range(num_frames - 1)) - taken


def detected(path: Path, detector: type) -> set[int]:
    """The pairs that PySceneDetect's detector, as it comes, finds a cut in."""
    return {start.frame_num - 1 for start, _ in detect(str(path), detector())[1:]}


def score(found: Iterable[tuple[set[int], set[int]]]) -> str:
    """Precision and recall of all (found, true) together."""
    right = sum(len(ours & true) for ours, true in found)
    ours, true = (sum(len(each[side]) for each in found) for side in (0, 1))
    return f"{f'{right / ours:.3f}' if ours else '-'} / {right / true:.3f}"


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--count", type=int, default=10, help="videos of each kind; 10 by default")
    parser.add_argument("--shots", type=int, default=6, help="of each video; 6 by default")
    parser.add_argument("--seed", type=int, default=0, help="of the shots")
    parser.add_argument("--videos", help="a folder of videos without cuts, to take shots from")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    shots = {
        name: [rendered_shots(options, arguments.shots, chance) for _ in range(arguments.count)]
        for name, options in _RENDERED.items()
    }
    if arguments.videos:
        videos = real_frames(arguments.videos)
        shots["real"] = [real_shots(videos, arguments.shots, chance) for _ in range(arguments.count)]
    print(report.command())
    print(
        f"{arguments.count} videos of {arguments.shots} shots each; a cut is one pair, a fade {_FADE} frames "
        f"away, {_BLANK} black, and {_FADE} back, a dissolve {_DISSOLVE} frames"
    )
    detectors = ("precision / recall", "AdaptiveDetector", "ContentDetector")
    print(report.head(["transitions", "shots", "pairs of them", *detectors], texts=2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        for transition, join in JOINS.items():
            for name, videos_of in shots.items():
                ours, adaptive, content = [], [], []
                for each in videos_of:
                    frames, true = joined(each, join)
                    write_video(path, frames)
                    ours.append((left_out(path, len(frames)), true))
                    adaptive.append((detected(path, AdaptiveDetector), true))
                    content.append((detected(path, ContentDetector), true))
                pairs = sum(len(true) for _, true in ours)
                scores = map(score, (ours, adaptive, content))
                print(report.row([transition, name, pairs, *scores]), flush=True)


if __name__ == "__main__":
    main()
