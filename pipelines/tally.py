"""What has become of each video in a labelling run? A few numbers a video tell."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from pipelines.collection import Stamp
from pipelines.labelling_progress import LabellingProgress
from pipelines.ledger import (
    LEDGER_FILE,
    VideoRecord,
    duplicate,
    short_reason,
    video_record,
    write_ledger,
    write_manifest,
    write_video_record,
)
from pipelines.messages import STAGES, Message, Shard, VideoEnded
from pipelines.pair_set import TEACHER_FOLDER
from pipelines.set_description import description_at
from pipelines.shard_files import require_own, video_of_shards
from pipelines.storage import STORAGE_THREADS, Folder, concurrently


@dataclass
class _Begun:
    """The shards of a video that this run has seen written or found."""

    video: str
    shards: int = 0
    pairs: int = 0
    bytes: int = 0
    share: float = 0.0
    failure: str = ""


class Tally:
    """What has become of each video of a collection, by the messages of the last stage.

    stamps: of the collection's videos, by name. earlier: the last report of the run before.
    """

    def __init__(
        self,
        location: str,
        run: str,
        label_set: str,
        stamps: Mapping[str, Stamp],
        earlier: LabellingProgress | None,
    ) -> None:
        self._location = location
        self._run = run
        self._label_set = label_set
        self._stamps = stamps
        self._bytes = float(sum(stamp.size for stamp in stamps.values()))
        self._earlier = earlier or LabellingProgress()
        self._started = time.monotonic()
        self._threads = ThreadPoolExecutor(STORAGE_THREADS)
        self._damaged: dict[str, str] = {}
        self._folders = self._listed()
        self._before = self._records_in(self._folders)
        self._accounted: dict[str, VideoRecord] = {}
        self._ends: dict[str, VideoRecord] = {}
        self._begun: dict[str, _Begun] = {}
        self._writes: deque[Future[None]] = deque()
        self._finished = 0
        self._skipped: Counter[str] = Counter()
        self._bytes_done = 0.0
        self._pairs = 0
        self._last_shard = self._earlier.last_shard
        self.new_pairs = 0
        self.stage_seconds = dict.fromkeys(STAGES, 0.0)
        for record in self._before.values():
            self._pairs += record.pairs
            # Of the content that the collection has now.
            if record.video in stamps and stamps[record.video].text == record.stamp:
                self._account(record)
        self._videos_before = len(self._accounted)
        self._bytes_before = self._bytes_done

    def _listed(self) -> list[str]:
        """The folders of videos that are there now."""
        return [name for name in Folder(self._location).folders() if not name.startswith(TEACHER_FOLDER)]

    def _records_in(self, folders: Sequence[str]) -> dict[str, VideoRecord]:
        """By folder, of those that have one; notes what is wrong with a damaged one."""
        found = concurrently(self._record_in, folders)
        return {record.folder: record for record in found if record is not None}

    def _record_in(self, folder: str) -> VideoRecord | None:
        try:
            return video_record(self._location, folder)
        except ValueError as error:
            self._damaged[folder] = str(error)
            return None

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    def is_done(self, video: str) -> bool:
        """True if an earlier run finished it."""
        return video in self._accounted

    def add(self, message: Message) -> None:
        """Takes note of a message that came out of the last stage."""
        match message:
            case Shard():
                self._add_shard(message)
            case VideoEnded(record=record) if record.folder:
                self._end(record)
            case VideoEnded(record=record):
                self._account(record)

    def _add_shard(self, shard: Shard) -> None:
        for stage in STAGES:
            self.stage_seconds[stage] += getattr(shard, stage)
        begun = self._begun.setdefault(shard.folder, _Begun(shard.video))
        begun.shards += 1
        begun.share = max(begun.share, shard.share)
        if shard.failure:
            begun.failure = begun.failure or shard.failure
            self._close(shard.folder)
            return
        begun.pairs += shard.pairs
        begun.bytes += shard.bytes
        self._pairs += shard.pairs
        if shard.is_new:
            self.new_pairs += shard.pairs
            self._last_shard = time.time()
        self._close(shard.folder)

    def _end(self, record: VideoRecord) -> None:
        before = self._before.get(record.folder)
        if before is None and record.run == self._run:
            self._ends[record.folder] = record
            self._close(record.folder)
        elif before is None:
            # Another run has finished it meanwhile.
            self._pairs += record.pairs
            self._keep(record)
        elif self._folder_of(before.video) == record.folder:
            self._account(duplicate(record.video, before.video, record.stamp))
        else:
            # It was renamed.
            self._keep(record)

    def _close(self, folder: str) -> None:
        """Keeps the record of a video whose shards are all there."""
        end, begun = self._ends.get(folder), self._begun.get(folder, _Begun(""))
        if end is not None and begun.shards == end.shards:
            del self._ends[folder]
            self._begun.pop(folder, None)
            if begun.failure:
                # It has no record of its own in the set, so that another run does what is missing.
                self._account(
                    VideoRecord(video=end.video, outcome="failed", reason=begun.failure, stamp=end.stamp)
                )
            else:
                self._keep(replace(end, pairs=begun.pairs, bytes=begun.bytes))

    def _keep(self, record: VideoRecord) -> None:
        self._account(record)
        self._writes.append(self._threads.submit(write_video_record, self._location, record))
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()

    def _account(self, record: VideoRecord) -> None:
        self._accounted[record.video] = record
        self._bytes_done += self._stamps[record.video].size
        if record.pairs:
            self._finished += 1
        elif record.outcome != "unreadable now":
            self._skipped[short_reason(record)] += 1

    @property
    def progress(self) -> LabellingProgress:
        """How far the run is."""
        # Lists of them, as another thread may ask meanwhile.
        begun = list(self._begun.values())
        work = sum(self.stage_seconds.values()) or 1.0
        bytes_done = self._bytes_done + sum(each.share * self._stamps[each.video].size for each in begun)
        earlier = self._earlier
        pairs_per_second, bytes_per_second = earlier.pairs_per_second, earlier.bytes_per_second
        if self.new_pairs:
            pairs_per_second = self.new_pairs / self.seconds
            bytes_per_second = (bytes_done - self._bytes_before) / self.seconds
        return LabellingProgress(
            num_videos=len(self._stamps),
            videos_before=self._videos_before,
            # A video that became unreadable midway is both.
            videos_done=min(len(self._accounted) + sum(each.share for each in begun), len(self._stamps)),
            finished=self._finished,
            skipped=dict(self._skipped),
            pairs=self._pairs,
            new_pairs=self.new_pairs,
            pairs_per_second=pairs_per_second,
            bytes=self._bytes,
            bytes_done=bytes_done,
            bytes_per_second=bytes_per_second,
            last_shard=self._last_shard,
            stage_shares={stage: seconds / work for stage, seconds in self.stage_seconds.items()},
        )

    def finish(self, max_bad_share: float) -> list[VideoRecord]:
        """Every video's record, once ledger and manifest are written; clears away what changed videos left.

        RuntimeError as `write_pairs`, with the ledger written.
        """
        for write in self._writes:
            write.result()
        if lost := sorted(self._stamps.keys() - self._accounted.keys()):
            raise RuntimeError(
                f"shards of {len(lost)} video(s), {lost[0]} the first, were lost on the way, as may happen "
                "with a node; run the same command again"
            )
        stale = self._stale()
        kept = self._before | {each.folder: each for each in self._accounted.values() if each.folder}
        kept = {folder: record for folder, record in kept.items() if folder not in stale}
        kept |= self._meanwhile(kept)
        self._require_own_set(kept.values())
        records = [*(each for each in self._accounted.values() if not each.folder), *kept.values()]
        records += self._unknown(self._damaged.keys() - stale)
        write_ledger(self._location, records)
        self._require_enough(records, max_bad_share)
        # A reader that has the new manifest doesn't miss what is removed then.
        write_manifest(self._location, self._label_set, records)
        for folder in stale:
            Folder(self._location).remove_folder(folder)
        self._pairs = sum(record.pairs for record in records)
        return records

    def _meanwhile(self, records: Mapping[str, VideoRecord]) -> dict[str, VideoRecord]:
        """By folder, what another run has finished beside this one, as object storage can't keep it from."""
        known = records.keys() | set(self._folders)
        return self._records_in([name for name in self._listed() if name not in known])

    def _unknown(self, folders: Iterable[str]) -> list[VideoRecord]:
        """What the ledger says of folders with damaged records, where it hasn't their videos anyway."""
        named = ((folder, self._video_of(folder) or folder) for folder in sorted(folders))
        return [
            VideoRecord(video=video, outcome="failed", reason=self._damaged[folder])
            for folder, video in named
            if video not in self._accounted
        ]

    def _stale(self) -> set[str]:
        """The folders of content that a video of the collection no longer has."""
        kept = {record.folder for record in self._accounted.values()}
        others = [folder for folder in self._folders if folder not in kept]
        videos = concurrently(self._video_of, others)
        return {folder for folder, video in zip(others, videos, strict=True) if self._folder_of(video)}

    def _folder_of(self, video: str | None) -> str:
        """Of the content that a video has now; empty where it has none or nobody has looked yet."""
        record = self._accounted.get(video or "")
        return "" if record is None else record.folder

    def _video_of(self, folder: str) -> str | None:
        """The video that a folder was made from, as its record or, of an unfinished one, its shard says; None
        where that can't be told."""
        if folder in self._before:
            return self._before[folder].video
        try:
            return video_of_shards(self._location, folder)
        except (OSError, ValueError):
            # A folder that stays costs space; its video may be one that the ledger has to name.
            return None

    def _require_own_set(self, records: Iterable[VideoRecord]) -> None:
        description = description_at(Folder(self._location))
        found = {record.label_set for record in records}
        if description is not None:
            found.add(description.digest)
        for label_set in found:
            require_own(self._location, self._label_set, label_set)

    def _require_enough(self, records: Sequence[VideoRecord], max_bad_share: float) -> None:
        ours = [record for record in records if record.video in self._stamps]
        unread = [record for record in ours if record.outcome == "unreadable now"]
        bad = [record for record in ours if record.outcome in ("nothing", "failed")]
        has_pairs = any(record.pairs for record in records)
        if has_pairs and len(bad) <= max_bad_share * len(self._stamps):
            return
        allowed = f"more than the allowed share of {max_bad_share:g}"
        why = allowed if has_pairs else "so the set would be empty"
        without = bad if has_pairs else [*unread, *bad]
        examples = "; ".join(f"{record.video}: {record.reason}" for record in without[:3])
        raise RuntimeError(
            f"{len(without)} of {len(self._stamps)} videos gave no pair, {why} ({examples}). Repair "
            f"or remove them; {self._location}/{LEDGER_FILE} lists all."
            + (f" {len(unread)} can't be read now: the same command tries again." if unread else "")
        )
