"""What do the ablation's challenges hide from a student, and is it what is occluded in the scenes?

    python benchmarks/hidden.py

Renders the ablation's test scenes and puts their pairs, with the true flow, through each challenge. A pixel
that is visible in the other frame is hidden where the challenge moves its counterpart out of the frame, or
replaces it. Prints which share of the pixels that is, near the frame's border and elsewhere, beside what is
occluded in the scenes for the same two reasons: because it leaves the frame, or because something covers it.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from ablation import CHALLENGES, KINDS, TEST_SCENES
from jaxtyping import Bool, Float

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
    return found & ~leaves(flow)


def pairs() -> Iterator[FramePair]:
    for seed in TEST_SCENES:
        scene = render_scene(seed, KINDS["mixed"])
        yield FramePair(
            image1=scene.frames[0],
            image2=scene.frames[1],
            flow_fw=scene.flow_fw[0].astype(np.float32),
            confidence_fw=1.0 - scene.occ_fw[0].astype(np.float32),
        )


def hidden(challenge: Challenge, pair: FramePair, seed: int) -> Counter[str]:
    """Numbers of pixels: those that the student sees, and of them the hidden ones by reason."""
    # Noise replaces: what it replaced doesn't depend on the frame's values.
    darker = FramePair(**{**vars(pair), "image2": pair.image2 // 2})
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
    scenes: Counter[str] = Counter()
    sums = {name: Counter[str]() for name in CHALLENGES}
    for seed, pair in enumerate(pairs()):
        assert pair.flow_fw is not None
        assert pair.confidence_fw is not None
        occluded, out = pair.confidence_fw < 0.5, leaves(pair.flow_fw)
        scenes += Counter(
            pixels=occluded.size, leaving=int((occluded & out).sum()), replaced=int((occluded & ~out).sum())
        )
        for name, challenge in CHALLENGES.items():
            sums[name] += hidden(challenge, pair, seed)
    print("| | leaves the frame | is covered or replaced |\n|---|---:|---:|")
    for name, counts in {"occluded in the scenes": scenes, **sums}.items():
        leaving, replaced = (counts[each] / counts["pixels"] for each in ("leaving", "replaced"))
        print(f"| {name} | {leaving:.1%} | {replaced:.1%} |")


if __name__ == "__main__":
    main()
