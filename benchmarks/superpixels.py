"""Which SLIC for superpixel noise: scikit-image's or our own?

    python benchmarks/superpixels.py

Our own is vectorised: every pixel chooses among the nine centres around its cell of a regular grid, all
pixels at once. Prints, for rendered frames of two sizes, the milliseconds of each, the number of superpixels
and of their pieces, and which share of the true motion boundaries lies within a pixel of a superpixel's
boundary (boundary recall).
"""

import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from numpy import ndarray
from skimage.measure import label
from skimage.segmentation import find_boundaries, slic

from flowcore.scenes import Scene, SceneOptions, render_scene

_ROUNDS = 5
_ITERATIONS = 4


def batched_slic(image: ndarray, segments: int = 200, compactness: float = 30.0) -> ndarray:
    """About `segments` clusters of pixels that are alike and near each other, numbered from 0.

    k-means in CIELAB colour and position, the latter weighed by `compactness` over the distance of the
    centres. Clusters need not be connected. Source: Achanta et al., "SLIC Superpixels", TPAMI 2012.
    """
    height, width = image.shape[:2]
    spacing = max(1.0, np.sqrt(height * width / segments))
    rows, columns = max(1, round(height / spacing)), max(1, round(width / spacing))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    weight = compactness / spacing
    features = np.stack([*np.moveaxis(lab, -1, 0), weight * y, weight * x]).reshape(5, -1)
    row, column = (y * rows / height).astype(np.int32).ravel(), (x * columns / width).astype(np.int32).ravel()
    # Candidates beyond the grid are those on its edge once more.
    candidates = [
        (row + dy).clip(0, rows - 1) * columns + (column + dx).clip(0, columns - 1)
        for dy in (0, -1, 1)
        for dx in (0, -1, 1)
    ]
    labels = candidates[0]
    for _ in range(_ITERATIONS):
        counts = np.bincount(labels, minlength=rows * columns).clip(min=1)
        centres = np.stack([np.bincount(labels, each, rows * columns) / counts for each in features])
        centres = centres.astype(np.float32)
        nearest = np.full(features.shape[1], np.inf, np.float32)
        for candidate in candidates:
            distance = np.zeros_like(nearest)
            for centre, feature in zip(centres, features, strict=True):
                distance += np.square(centre[candidate] - feature)
            closer = distance < nearest
            nearest = np.where(closer, distance, nearest)
            labels = np.where(closer, candidate, labels)
    return labels.reshape(height, width).astype(np.int32)


def boundary_recall(labels: ndarray, scene: Scene) -> float:
    u, v = scene.flow_fw[0]
    jumps = sum(
        np.abs(np.diff(each, axis=axis, prepend=each.take([0], axis))) for each in (u, v) for axis in (0, 1)
    )
    motion_boundary = np.asarray(jumps) > 1.0
    near = cv2.dilate(find_boundaries(labels).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return float(near[motion_boundary].mean())


def main() -> None:
    cv2.setNumThreads(1)
    for height, width in ((96, 128), (384, 640)):
        scenes = [
            render_scene(seed, SceneOptions(height=height, width=width, num_frames=2)) for seed in range(4)
        ]
        methods: dict[str, Callable[[ndarray], ndarray]] = {
            "our own": batched_slic,
            "scikit-image, not connected": partial(
                slic, n_segments=200, compactness=30, enforce_connectivity=False, start_label=0
            ),
            "scikit-image": partial(slic, n_segments=200, compactness=30, start_label=0),
            "scikit-image, compactness 10": partial(slic, n_segments=200, compactness=10, start_label=0),
        }
        for name, method in methods.items():
            labels = [method(scene.frames[0]) for scene in scenes]
            seconds = []
            for _ in range(_ROUNDS):
                started = time.perf_counter()
                for scene in scenes:
                    method(scene.frames[0])
                seconds.append((time.perf_counter() - started) / len(scenes))
            recall = np.mean(
                [boundary_recall(each, scene) for each, scene in zip(labels, scenes, strict=True)]
            )
            count = np.mean([len(np.unique(each)) for each in labels])
            pieces = np.mean([label(each, background=-1).max() / len(np.unique(each)) for each in labels])
            print(
                f"{height}x{width} {name:>29}: {1000 * min(seconds):6.1f} ms, {count:.0f} superpixels "
                f"of {pieces:.1f} pieces, boundary recall {recall:.2f}"
            )


if __name__ == "__main__":
    main()
