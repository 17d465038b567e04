"""Frames, flow and masks of 4x6 px in files, as the data sets' layouts in tests hold them."""

from pathlib import Path

import numpy as np

from flowcore.formats import write_flow, write_image, write_mask

HEIGHT, WIDTH = 4, 6
FLOW = np.stack([np.full((HEIGHT, WIDTH), 1.0), np.full((HEIGHT, WIDTH), -2.0)]).astype(np.float32)
LEFT = np.arange(WIDTH)[None].repeat(HEIGHT, axis=0) < 2
TOP = np.arange(HEIGHT)[:, None].repeat(WIDTH, axis=1) < 1


def put_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((HEIGHT, WIDTH, 3), value, np.uint8))


def put_flow(path: Path, valid: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_flow(path, FLOW, valid)


def put_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, mask)
