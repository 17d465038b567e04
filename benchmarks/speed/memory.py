"""What does each remedy save of the memory that a training step needs?

    python -m benchmarks.speed.memory

Prints the bytes that the forward pass of a teacher's step stores for the backward pass, of the network of the
recipe `video` and a pair of random frames, beside what they are without the remedy.
"""

import torch

from benchmarks import report
from benchmarks.cost import forward_pass
from flowcore.networks import full
from flowcore.objectives import TeacherObjective
from flowcore.pairs import Batch

HEIGHT, WIDTH = 192, 256


def stored_bytes(*, recomputes: bool, is_lower: bool, height: int = HEIGHT, width: int = WIDTH) -> int:
    """Of all tensors but the weights that autograd keeps between the passes."""
    torch.manual_seed(0)
    network = full()["pwcnet"].build()
    network.checkpoints_activations = recomputes
    image1, image2 = torch.rand(2, 1, 3, height, width)
    batch = Batch(image1=image1, image2=image2)
    _, kept = forward_pass(network, TeacherObjective(unmasked_steps=1), batch, is_lower=is_lower)
    return kept


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
