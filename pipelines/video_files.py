"""Is what is decoded what the digest names?

The files of a video are opened once, here, and the process that decodes them is given what it reads: the
descriptor of a file on a disk, and block after block of everything else. So nothing that it is told, and
nothing in a video, can name another file. What was digested and changes before it is decoded is an error.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from flowcore.video import READ_BYTES, VideoError
from pipelines.collection import VideoSource
from pipelines.storage import is_remote, join, patient, storage_of

_KEPT_BLOCKS = 8
"""Of 1 MiB at most."""


class VideoFiles:
    """The files of one video, open for reading.

    Raises VideoError where a file is missing or is none, and OSError where the storage fails: trying again
    may help.
    """

    failure: OSError | None
    """Why the storage couldn't deliver a block that was asked for; None if it delivered all."""

    def __init__(self, source: VideoSource) -> None:
        self.source = source
        self.failure = None
        self._places = [join(source.uri, name) for name in source.frames] or [source.uri]
        self._open: tuple[int, _LocalFile | _RemoteFile] | None = None
        self._digests: dict[tuple[int, int], bytes] = {}
        self._kept: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._content: bytes | None = None
        self._stamp: tuple[int, ...] = ()
        self._is_closed = False
        self._lock = Lock()
        if not source.frames:
            with self._understood():
                self._file(0)

    @property
    def count(self) -> int:
        """How many files there are."""
        return len(self._places)

    @property
    def descriptor(self) -> int | None:
        """Of a video's own file on a disk; None for all others, which `block` reads."""
        own = self._own
        return None if own is None else own.descriptor

    def digest(self) -> str:
        """32 hexadecimal digits that identify the content: equal bytes give equal digits under any name.

        BLAKE2b of the file; for an image sequence, BLAKE2b of its files' digests in order, so that renaming
        changes nothing there either. From now on `block` gives only what was digested.
        """
        with self._understood():
            if self._own is not None:
                self._stamp = self._own.stamp()
            digests = [self._digest_of(number) for number in range(self.count)]
        self._content = digests[0]
        if not self.source.frames:
            return digests[0].hex()
        return _digest(b"".join(digests)).hexdigest()

    def block(self, number: int, offset: int) -> tuple[int, bytes]:
        """The size of a file, by its number, and its content from `offset` to the end of the block there, of
        1 MiB; nothing beyond the file's end."""
        with self._lock:
            try:
                with self._understood():
                    if self._is_closed:
                        raise OSError("it is closed")
                    start = offset - offset % READ_BYTES
                    size, content = self._kept.get((number, start)) or self._read(number, start)
                    return size, content[offset - start :]
            except OSError as error:
                self.failure = error
                raise
            finally:
                if self._is_closed:
                    self._close()

    def require_digested(self) -> None:
        """OSError if a video's own file on a disk was changed since it was digested. What `block` gives is
        what was digested in any case."""
        own = self._own
        if own is None or self._content is None:
            return
        with self._understood():
            stamp = own.stamp()
            # A file that is renamed or removed gets another stamp too, and its content stays.
            self._require(stamp == self._stamp or self._digest_of(0) == self._content)
            self._stamp = stamp

    def close(self) -> None:
        """Closes what is open, at the latest when the block that is being read is there."""
        self._is_closed = True
        if self._lock.acquire(blocking=False):
            self._close()
            self._lock.release()

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    @property
    def _own(self) -> "_LocalFile | None":
        file = None if self._open is None or self.source.frames else self._open[1]
        return file if isinstance(file, _LocalFile) else None

    def _file(self, number: int) -> "_LocalFile | _RemoteFile":
        """The file of this number, which stays open until another one is asked for."""
        if self._open is None or self._open[0] != number:
            self._close()
            place = self._places[number]
            self._open = number, _RemoteFile(place) if is_remote(place) else _LocalFile(place)
        return self._open[1]

    def _read(self, number: int, start: int) -> tuple[int, bytes]:
        file = self._file(number)
        content = file.read_at(start) if start < file.size else b""
        if content and self._content is not None:
            self._require(self._digests.get((number, start)) == _digest(content).digest())
        return self._keep(number, start, file.size, content)

    def _keep(self, number: int, start: int, size: int, content: bytes) -> tuple[int, bytes]:
        """Remembers the latest blocks: FFmpeg goes back and forth between a file's end and its beginning, and
        a short video is read from its storage once, for its digest."""
        self._kept[number, start] = size, content
        if len(self._kept) > _KEPT_BLOCKS:
            del self._kept[next(iter(self._kept))]
        return size, content

    def _digest_of(self, number: int) -> bytes:
        file = self._file(number)
        whole = _digest()
        offset = 0
        while content := file.read_at(offset):
            whole.update(content)
            if self._own is None:
                self._digests[number, offset] = _digest(content).digest()
                self._keep(number, offset, file.size, content)
            offset += len(content)
        return whole.digest()

    def _require(self, is_unchanged: bool) -> None:
        if not is_unchanged:
            raise OSError("it was changed while it was read; run again when it is complete")

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Says what an error of the storage means for the video."""
        try:
            yield
        except FileNotFoundError as error:
            raise VideoError(str(error)) from error
        except OSError as error:
            raise OSError(f"{self.source.name} can't be read now: {error}") from error


def _digest(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


class _LocalFile:
    """A file on a disk."""

    def __init__(self, path: str) -> None:
        # Opening a pipe must not wait for whoever writes into it.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(self.descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(self.descriptor)
            raise VideoError(f"{path} is no file")
        self.size = found.st_size

    def stamp(self) -> tuple[int, int, int]:
        """Changes whenever the content does: unlike its time of modification, nobody can set when a file was
        changed."""
        found = os.fstat(self.descriptor)
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def read_at(self, offset: int) -> bytes:
        """A block, or less at the end of the file, whoever else reads by the same descriptor."""
        return os.pread(self.descriptor, READ_BYTES, offset)

    def close(self) -> None:
        os.close(self.descriptor)


class _RemoteFile:
    """A file on object storage; reading survives a dropped connection."""

    @patient
    def __init__(self, place: str) -> None:
        filesystem, path = storage_of(place)
        self._file = filesystem.open_input_file(path)
        self.size: int = self._file.size()

    def read_at(self, offset: int) -> bytes:
        """A block, or less at the end of the file."""
        wanted = min(READ_BYTES, self.size - offset)
        if wanted <= 0:
            return b""
        content: bytes = patient(self._file.read_at)(wanted, offset)
        return content

    def close(self) -> None:
        self._file.close()
