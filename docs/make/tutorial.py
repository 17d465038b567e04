"""What does a reader of the tutorial see? Makes its pictures from a real clip, with its own commands.

    python -m docs.make.tutorial ../shared/data/clips/sam2__01_dog.mp4

docs/tutorial/flow.jpg is a picture that `predict` writes, docs/tutorial/gallery.jpg a pair of the page about
labels.
"""

import base64
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks import report
from flowcore.drawing import Picture, panel
from flowcore.formats import read_image
from pipelines.installation import PROJECT_FOLDER
from pipelines.storage import write_whole

PICTURES = PROJECT_FOLDER / "docs" / "tutorial"
WIDTH = 1200
"""Pixels of both pictures."""
PAIRS = 24
"""From the clip's beginning, three frames apart."""
_FIGURE = re.compile(
    r'<figure>(?:<span[^>]*>)?<img src="data:image/jpeg;base64,([^"]+)".*?<figcaption>([^<]*)</figcaption>'
)


def typed(job: str, *options: str | Path) -> None:
    """Runs a job as its reader does."""
    subprocess.run([sys.executable, PROJECT_FOLDER / "jobs" / f"{job}.py", *map(str, options)], check=True)


def predicted(clip: str, folder: Path) -> Picture:
    """The picture of the pair in the middle."""
    options = ("--model", "distillflow:laptop", "--pictures")
    typed("predict", "--videos", clip, "--output", folder / "flow", *options)
    pictures = sorted((folder / "flow").glob("*_picture.png"))
    return read_image(pictures[len(pictures) // 2])


def labelled(clip: str, folder: Path) -> Picture:
    """The first of the page's random pairs: its frame and its label."""
    labels, page = folder / "labels", folder / "gallery.html"
    sizes = ("--clips.size", "270", "480", "--clips.stride", "3", "--clips.max-pairs-per-video", str(PAIRS))
    typed(
        "pseudolabel",
        "laptop",
        "--videos",
        clip,
        "--teacher",
        "opencv:dis_fine",
        "--labels",
        labels,
        *sizes,
    )
    typed("gallery", "--labels", labels, "--output", page)
    figures = _FIGURE.findall(page.read_text().rpartition("Random, seed")[2])[:5]
    cells = [(caption.partition(",")[0], _decoded(picture)) for picture, caption in figures]
    return panel([cells[:3], cells[3:]])


def _decoded(picture: str) -> Picture:
    pixels = np.frombuffer(base64.b64decode(picture), np.uint8)
    shown = cv2.imdecode(pixels, cv2.IMREAD_COLOR)
    assert shown is not None
    return np.ascontiguousarray(shown[..., ::-1])


def _jpeg(picture: Picture) -> bytes:
    """The picture, not wider than `WIDTH`."""
    scale = min(1.0, WIDTH / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    is_encoded, content = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert is_encoded
    return content.tobytes()


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("clip", help="a video in which something moves")
    clip = parser.parse_args().clip
    for name, made in (("flow.jpg", predicted), ("gallery.jpg", labelled)):
        with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
            content = _jpeg(made(clip, Path(folder)))
        write_whole(PICTURES / name, content)
        print(f"docs/tutorial/{name}: {len(content) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
