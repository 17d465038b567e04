"""How does a video become shards? In three stages: read encoded frames, ask the teachers, write the files.

The first and the last are here; the second, in `pipelines.teaching`, is the only one whose processes need
torch, which takes seconds to import.

A shard's name and content follow from the video and the options, it appears whole, and it is skipped where
it is there; so a rerun of the same command finishes what is missing.

The choice that isn't obvious is that a reader yields one row a shard even for shards that are there already,
and that each row is a block of Ray's. Ray runs a task anew when its process dies, and goes on behind the
blocks that were consumed before, by their number: a reader that left out what is written by then would lose
shards.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pyarrow as pa

from flowcore.video import VideoError
from pipelines.attempts import attempted
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess
from pipelines.decoding_answers import EncodedChunk
from pipelines.labelling_plan import Plan
from pipelines.labels import beside, encode_shard, pair_columns, pair_id
from pipelines.ledger import Outcome, VideoRecord, duplicate, video_record
from pipelines.messages import Message, Shard, VideoEnded, messages
from pipelines.shard_files import ForeignSetError, ShardSize, require_own, shard_at, shard_name
from pipelines.storage import Folder


@lru_cache(maxsize=1)
def _decoder() -> DecoderProcess:
    """One for each of Ray's processes, from task to task."""
    return DecoderProcess()


@dataclass(frozen=True)
class Reader:
    """Gives for each video its shards, with the frames of those that are missing, and its end."""

    plan: Plan

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for group in table["videos"].to_pylist():
            for message in self._read_group(group):
                yield message.to_arrow()

    def _read_group(self, group: Iterable[Mapping[str, Any]]) -> Iterator[Message]:
        first: dict[str, str] = {}
        for video in group:
            source = VideoSource(video["uri"], tuple(video["frames"]), video["scene"])
            # Whatever is wrong here, with the video or with what the set has of it, costs this video.
            try:
                folder = _decoder().digest(source)
                before = None if folder in first else video_record(self.plan.location, folder)
            except (VideoError, OSError, ValueError) as error:
                yield VideoEnded(record=_unread(source, video["stamp"], error))
                continue
            if folder in first:
                yield VideoEnded(record=duplicate(source.name, first[folder], video["stamp"]))
                continue
            first[folder] = source.name
            if before is not None:
                require_own(self.plan.location, self.plan.label_set, before.label_set)
            # Run anew by Ray, this must not see what this run wrote: it would yield other rows.
            if before is not None and before.run != self.plan.run:
                yield VideoEnded(record=replace(before, video=source.name, stamp=video["stamp"]))
            else:
                yield from self._read(source, video["stamp"], folder)

    def _read(self, source: VideoSource, stamp: str, folder: str) -> Iterator[Message]:
        decoder = _decoder()
        try:
            shards, reason = yield from self._shards(source, folder)
        except (OSError, ValueError) as error:
            record = _unread(source, stamp, error)
            yield VideoEnded(record=replace(record, frames_read=decoder.report.frames_read))
            return
        report = decoder.report
        reason = reason or report.truncated
        outcome: Outcome = "cut short"
        if shards == 0:
            outcome = "nothing"
        elif reason is None:
            outcome = "done"
        record = VideoRecord(
            video=source.name,
            outcome=outcome,
            reason=reason or "",
            stamp=stamp,
            folder=folder,
            frames_read=report.frames_read,
            cuts=report.cuts,
            static_pairs=report.static_pairs,
            faded_pairs=report.faded_pairs,
            shards=shards,
            label_set=self.plan.label_set,
            run=self.plan.run,
        )
        yield VideoEnded(record=record)

    def _shards(self, source: VideoSource, folder: str) -> Generator[Shard, None, tuple[int, str | None]]:
        """The shards of a video; returns how many they are, and why it was read no further.

        ValueError for one that is there and damaged.
        """
        waiting: list[EncodedChunk] = []
        shards = 0
        reason = None
        started = time.monotonic()
        try:
            with closing(_decoder().read(source, self.plan.clips, self.plan.codec)) as chunks:
                for chunk in chunks:
                    waiting.append(chunk)
                    if _num_pairs(waiting) >= self.plan.shard_pairs:
                        yield self._shard(source, folder, shards, waiting, time.monotonic() - started)
                        waiting, shards = [], shards + 1
                        started = time.monotonic()
        except VideoError as error:
            reason = str(error)
        if waiting:
            yield self._shard(source, folder, shards, waiting, time.monotonic() - started)
            shards += 1
        return shards, reason

    def _shard(
        self, source: VideoSource, folder: str, number: int, chunks: Sequence[EncodedChunk], seconds: float
    ) -> Shard:
        num_pairs = _num_pairs(chunks)
        there = shard_at(self.plan.location, shard_name(folder, number), self.plan.label_set)
        # A decoder that died once, and not again, left a shorter one.
        is_done = there is not None and there.pairs == num_pairs
        return Shard(
            video=source.name,
            folder=folder,
            number=number,
            pairs=num_pairs,
            share=_decoder().report.share,
            bytes=there.bytes if there is not None else 0,
            chunks=() if is_done else tuple(chunks),
            reading=seconds,
        )


def _num_pairs(chunks: Sequence[EncodedChunk]) -> int:
    return sum(len(chunk.frames) - 1 for chunk in chunks)


def _unread(source: VideoSource, stamp: str, error: VideoError | OSError | ValueError) -> VideoRecord:
    """The record of a video that couldn't be read, or whose part in the set is damaged; another run tries it
    again."""
    outcome: Outcome = "failed"
    if isinstance(error, VideoError):
        outcome = "nothing"
    elif isinstance(error, OSError):
        outcome = "unreadable now"
    return VideoRecord(video=source.name, outcome=outcome, reason=str(error), stamp=stamp)


@dataclass(frozen=True)
class Writer:
    """Writes the shards that aren't there, and passes them on without what is big."""

    plan: Plan

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for message in messages(table):
            match message:
                case Shard() if message.chunks:
                    yield self._attempted(message).to_arrow()
                case _:
                    yield message.to_arrow()

    def _attempted(self, shard: Shard) -> Shard:
        return attempted(self.plan.run, "writing", shard, self._written, ends_all=ForeignSetError)

    def _written(self, shard: Shard) -> Shard:
        started = time.monotonic()
        name = shard_name(shard.folder, shard.number)
        # Ray runs a task anew that was killed after it had written.
        there = shard_at(self.plan.location, name, self.plan.label_set)
        if there is None or there.pairs != shard.pairs:
            content = encode_shard(self._columns(shard), self.plan.row_group_pairs)
            Folder(self.plan.location).write(name, content)
            there = ShardSize(pairs=shard.pairs, bytes=len(content))
        return shard.lighter(bytes=there.bytes, is_new=True, writing=time.monotonic() - started)

    def _columns(self, shard: Shard) -> pa.Table:
        stride = self.plan.clips.stride
        frames = pair_columns(
            {
                "pair_id": pair_id(shard.folder, indices, stride, chunk.height, chunk.width),
                "video": shard.video,
                "frame": indices[0],
                "stride": stride,
                "timestamp": timestamp,
                "height": chunk.height,
                "width": chunk.width,
                "image1": images[0],
                "image2": images[1],
                "label_set": self.plan.label_set,
            }
            for chunk in shard.chunks
            for indices, timestamp, images in zip(
                pairwise(chunk.frame_indices), chunk.timestamps, pairwise(chunk.frames), strict=False
            )
        )
        return beside(frames, shard.labels) if self.plan.is_labelled else frames
