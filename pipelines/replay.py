"""How does a GPU take step after step without waiting for Python? It replays one as a CUDA graph.

A step of PWC-Net is thousands of short kernels, and launching each of them takes longer than running it. A
graph of them is launched at once.
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from flowcore.pairs import Batch

_UNCAPTURED = 3
"""Calls before one is captured: in these, libraries choose their algorithms and allocate what they keep."""
_AHEAD = 2
"""Calls that may wait for the GPU. More would only hold the memory of their batches."""


class Replay:
    """A function of batches that always runs the same kernels, on the tensors of the batches and on others
    that stay where they are. It must not wait for the GPU, nor copy anything there."""

    def __init__(self, function: Callable[[Sequence[Batch]], Tensor], device: torch.device) -> None:
        self._function = function
        self._stream = torch.cuda.Stream(device)
        self._phase: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Batch] = []
        self._result: Tensor | None = None
        self._under_way: deque[torch.cuda.Event] = deque()

    @property
    def is_at_work(self) -> bool:
        """Whether the last call is waiting for the GPU, or being worked on."""
        return bool(self._under_way) and not self._under_way[-1].query()

    def __call__(self, batches: Sequence[Batch], phase: Hashable) -> Tensor:
        """The function's result. phase: what else decides the kernels; another one is captured anew, and so
        are batches of another size."""
        while len(self._under_way) >= _AHEAD:
            self._under_way.popleft().synchronize()
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._run(batches, phase)
        current.wait_stream(self._stream)
        self._under_way.append(current.record_event())
        return result

    def _run(self, batches: Sequence[Batch], phase: Hashable) -> Tensor:
        shapes = [{name: value.shape for name, value in batch.known().items()} for batch in batches]
        phase = (phase, repr(shapes))
        if phase != self._phase:
            self._phase, self._calls, self._graph, self._result = phase, 0, None, None
        self._calls += 1
        if self._calls <= _UNCAPTURED:
            return self._function(batches)
        if self._graph is None:
            self._inputs = [
                Batch(**{name: value.clone() for name, value in batch.known().items()}) for batch in batches
            ]
            self._graph = torch.cuda.CUDAGraph()
            # Other threads, such as the feed's, may go on using the GPU meanwhile.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._result = self._function(self._inputs)
        for mine, its in zip(self._inputs, batches, strict=True):
            for name, value in its.known().items():
                getattr(mine, name).copy_(value)
        self._graph.replay()
        assert self._result is not None
        return self._result.clone()
