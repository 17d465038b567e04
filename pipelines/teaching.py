"""How do the teachers label a shard? The second of the stages of `pipelines.labelling_stages`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock, Semaphore

import numpy as np
import pyarrow as pa
import torch

from flowcore.inference import pairs_at_once
from flowcore.occlusion import OcclusionCheck
from flowcore.pseudolabels import Merge, pseudo_labels
from flowcore.shapes import to_images
from pipelines.attempts import attempted
from pipelines.cluster import times_begun
from pipelines.decoding_answers import EncodedChunk
from pipelines.label_rows import label_columns
from pipelines.labelling_plan import Plan
from pipelines.messages import Shard, messages
from pipelines.teachers import TeacherModel


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Who labels, and how: what only the teachers' processes know."""

    teachers: tuple[TeacherModel, ...]
    check: OcclusionCheck
    """Tells what is occluded by the teachers' flow."""
    merge: Merge = "mean"
    three_frames: bool = False
    """Whether labels continue the motion from a third frame."""


class Teacher:
    """Adds the labels to a shard; lives in an actor with the networks.

    Several threads may call it. The device is one's at a time, while the others decode frames or make
    columns. A shard that Ray sends again is worked on alone: a death over it then is no neighbour's doing.
    """

    def __init__(self, plan: Plan, teaching: Teaching, device: str, shards_at_once: int = 1) -> None:
        # On more threads sums come in another order, and labels would depend on the machine.
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        self._plan, self._teaching = plan, teaching
        self._device = torch.device(device)
        self._digest = "+".join(model.digest for model in teaching.teachers)
        self._networks = [model.load(plan.location, self._device) for model in teaching.teachers]
        self._turn, self._entry = Lock(), Lock()
        self._shards_at_once = shards_at_once
        self._places = Semaphore(shards_at_once)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for message in messages(table):
            match message:
                case Shard() if message.chunks:
                    with self._under_way():
                        labelled = self._attempted(message)
                    yield labelled.to_arrow()
                case _:
                    yield message.to_arrow()

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        taken = self._shards_at_once if times_begun() else 1
        # One at a time takes its places, as two would wait for each other's.
        with self._entry:
            for _ in range(taken):
                self._places.acquire()
        try:
            yield
        finally:
            self._places.release(taken)

    def _attempted(self, shard: Shard) -> Shard:
        # On a broken device every other video would fail as well.
        return attempted(self._plan.run, "labelling", shard, self._labelled, ends_all=torch.AcceleratorError)

    def _labelled(self, shard: Shard) -> Shard:
        started = time.monotonic()
        labels = pa.concat_tables([self._labels(chunk) for chunk in shard.chunks])
        return replace(shard, labels=labels, labelling=time.monotonic() - started)

    def _labels(self, chunk: EncodedChunk) -> pa.Table:
        codec = self._plan.codec
        decoded = np.stack([codec.decode(frame) for frame in chunk.frames])
        at_once = pairs_at_once(chunk.height, chunk.width, self._device)
        with self._turn:
            labels = pseudo_labels(
                self._networks,
                to_images(decoded, self._device),
                self._teaching.check,
                at_once,
                merge=self._teaching.merge,
                three_frames=self._teaching.three_frames,
            ).cpu()
        return label_columns(labels, self._digest)
