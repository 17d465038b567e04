"""What computes the two passes of a function of ours? Loops on a CPU, kernels of our own on a GPU."""

from types import ModuleType

from torch import Tensor

from flowcore import loops


def passes_for(*tensors: Tensor) -> tuple[ModuleType, tuple[Tensor, ...]]:
    """(`flowcore.loops` or `flowcore.kernels`, which have the same functions, and the tensors as it takes
    them)."""
    if not tensors[0].is_cuda:
        return loops, tensors
    # Triton comes with torch's builds for CUDA alone.
    from flowcore import kernels

    return kernels, tuple(each.contiguous() for each in tensors)
