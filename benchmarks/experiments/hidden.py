"""What do the ablation's challenges hide from a student, and is it what is occluded in the scenes?

    python -m benchmarks.experiments.hidden

Renders the ablation's test scenes and puts their pairs, with the true flow, through each challenge. A visible
pixel is hidden where the challenge moves its counterpart out of the frame or replaces it. Prints the shares
of the pixels that are hidden in these two ways, beside the shares that are occluded in the scenes because
they leave the frame or because something covers them.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float

from benchmarks import report
from benchmarks.experiments.cells import CHALLENGES, KINDS, TEST_SCENES
from benchmarks.inputs import true_pair
from flowcore.geometry import backward_warp, in_frame
from flowcore.hallucination import Challenge
from flowcore.pairs import FramePair
from flowcore.scenes import render_scene


def leaves(flow: Float[np.ndarray, "2 height width"]) -> Bool[np.ndarray, "height width"]:
    """True where the flow leads out of the frame."""
    return ~in_frame(torch.from_numpy(flow)[None])[0, 0].numpy()


def at_target(
    mask: Bool[np.ndarray, "height width"], flow: Float[np.ndarray, "2 height width"]
) -> Bool[np.ndarray, "height width"]:
    """The mask where the flow leads to; False where it leaves the frame."""
    values = torch.from_numpy(mask.astype(np.float32))[None, None]
    found: np.ndarray = backward_warp(values, torch.from_numpy(flow)[None])[0, 0].numpy() >= 0.5
    inside: np.ndarray = found & ~leaves(flow)
    return inside


def hidden(challenge: Challenge, pair: FramePair, seed: int) -> Counter[str]:
    """Counts of pixels: those that the student sees, and the hidden ones among them, by reason."""
    # Noise replaces: what it replaced doesn't depend on the frame's values.
    darker = replace(pair, image2=pair.image2 // 2)
    seen, other = (challenge(each, np.random.default_rng(seed)) for each in (pair, darker))
    assert seen.flow_fw is not None
    assert seen.confidence_fw is not None
    replaced = (seen.image2 == other.image2).all(axis=2) & (seen.image2 > 0).any(axis=2)
    visible = seen.confidence_fw > 0.5
    return Counter(
        pixels=visible.size,
        leaving=int((visible & leaves(seen.flow_fw)).sum()),
        replaced=int((visible & at_target(replaced, seen.flow_fw)).sum()),
    )


def main() -> None:
    report.parser(__doc__).parse_args()
    scenes: Counter[str] = Counter()
    sums = {name: Counter[str]() for name in CHALLENGES}
    for seed, scene in enumerate(TEST_SCENES):
        pair = true_pair(render_scene(scene, KINDS["mixed"]))
        assert pair.flow_fw is not None
        assert pair.confidence_fw is not None
        occluded, out = pair.confidence_fw < 0.5, leaves(pair.flow_fw)
        scenes += Counter(
            pixels=occluded.size, leaving=int((occluded & out).sum()), replaced=int((occluded & ~out).sum())
        )
        for name, challenge in CHALLENGES.items():
            sums[name] += hidden(challenge, pair, seed)
    rows = [
        (name, *(f"{counts[reason] / counts['pixels']:.1%}" for reason in ("leaving", "replaced")))
        for name, counts in {"occluded in the scenes": scenes, **sums}.items()
    ]
    print(report.table(["", "leaves the frame", "is covered or replaced"], rows))


if __name__ == "__main__":
    main()
