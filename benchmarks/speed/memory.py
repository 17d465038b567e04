"""What does each remedy save of the memory that a training step needs?

    python -m benchmarks.speed.memory

Prints the bytes that the forward pass of a teacher's step stores for the backward pass, of the network of the
recipe `video` and a pair of random frames, beside what they are without the remedy.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from benchmarks import report
from flowcore.networks import BidirectionalFlow, full
from flowcore.objectives import TeacherObjective
from flowcore.occlusion import OcclusionCheck
from flowcore.pairs import Batch
from flowcore.shapes import Image

HEIGHT, WIDTH = 192, 256


def stored_bytes(*, recomputes: bool, is_lower: bool, height: int = HEIGHT, width: int = WIDTH) -> int:
    """Of all tensors but the weights that autograd keeps between the passes."""
    torch.manual_seed(0)
    network = full()["pwcnet"].build()
    network.checkpoints_activations = recomputes
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def estimate(image1: Image, image2: Image) -> BidirectionalFlow:
        with torch.autocast("cpu", torch.bfloat16) if is_lower else nullcontext():
            flows: BidirectionalFlow = network(image1, image2)
            return flows

    image1, image2 = torch.rand(2, 1, 3, height, width)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outcome = TeacherObjective(unmasked_steps=1)(
            estimate, Batch(image1=image1, image2=image2), step=0, check=OcclusionCheck()
        )
    assert outcome.terms
    weights = {each.untyped_storage().data_ptr() for each in network.parameters()}
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
    return sum(size for place, size in storages.items() if place not in weights)


def main() -> None:
    report.parser(__doc__).parse_args()
    print(report.command())
    usual = stored_bytes(recomputes=False, is_lower=False)
    rows = {
        "as it is": usual,
        "--training.precision bfloat16": stored_bytes(recomputes=False, is_lower=True),
        "--training.checkpoint-activations": stored_bytes(recomputes=True, is_lower=False),
        "both": stored_bytes(recomputes=True, is_lower=True),
    }
    cells = [[name, f"{size / 1e6:.1f}", f"{1 - size / usual:.0%}"] for name, size in rows.items()]
    print(report.table(["remedy", "MB a pair", "saves"], cells))


if __name__ == "__main__":
    main()
