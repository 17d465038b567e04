"""How is Ray Data kept from taking the cores that it feeds?

Its scheduling loop runs in a thread of the process that reads a dataset. Once blocks are ready and nobody has
taken them, which is how a feed should be, the loop goes round without waiting, as fast as Python can: beside
a training step on one core it took a quarter of the time.
"""

import time

import ray.data

_PAUSE = 0.01
"""Seconds. A step of the loop takes all blocks that are ready, so that this bounds no throughput of ours."""


class _Pause:
    """What Ray Data calls an execution callback."""

    def before_execution_starts(self, executor: object) -> None:
        pass

    def on_execution_step(self, executor: object) -> None:
        time.sleep(_PAUSE)

    def after_execution_succeeds(self, executor: object) -> None:
        pass

    def after_execution_fails(self, executor: object, error: Exception) -> None:
        pass


def let_ray_data_rest() -> None:
    """Datasets that this process reads from now on pause between the steps of their scheduling loop."""
    callbacks: list[type] = ray.data.DataContext.get_current().custom_execution_callback_classes
    if _Pause not in callbacks:
        callbacks.append(_Pause)
