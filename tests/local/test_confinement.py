"""What a process that decodes videos can't do, whoever's its code is, and what no video can cost."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from test_decoding import JPEG, OPTIONS, write_images, write_video

from flowcore.video import ClipOptions, VideoError
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess, memory_for
from pipelines.sandbox import LAYERS

ATTEMPTS = """
import ctypes, fcntl, mmap, os, resource, signal, socket, sys, threading
from pipelines import sandbox

victim, layers, reading = int(sys.argv[1]), sys.argv[3].split(), os.open(sys.argv[2], os.O_RDONLY)
listening = socket.create_server(("127.0.0.1", 0))
waiting = socket.create_connection(listening.getsockname())
asked, asking = socket.socketpair()
system = ctypes.CDLL(None, use_errno=True)
if "landlock" not in layers:
    sandbox._forbid_files = lambda *_: False
if "seccomp" not in layers:
    sandbox._forbid_calls = lambda *_: False
print(*sandbox.confine(1 << 30))

def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")

def signal_by_a_socket():
    fcntl.fcntl(asked, fcntl.F_SETOWN, victim)
    fcntl.fcntl(asked, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(asked, fcntl.F_SETFL, fcntl.fcntl(asked, fcntl.F_GETFL) | os.O_ASYNC)
    asking.send(b"x")

FIOSETOWN, MADV_HWPOISON, CLONE_THREAD, CLONE_NEWNS = 0x8901, 100, 0x10D00, 0x20000
CLONE = 56 if os.uname().machine == "x86_64" else 220
attempts = {
    "read a file": lambda: open(sys.argv[2]),
    "read the environment of another process": lambda: open(f"/proc/{victim}/environ"),
    "read the memory of another process": lambda: open(f"/proc/{victim}/mem", "rb"),
    "list a folder": lambda: os.listdir("/"),
    "write a file": lambda: open("written", "w"),
    "make a folder": lambda: os.mkdir("made"),
    "remove a file": lambda: os.unlink(sys.argv[2]),
    "become a program": lambda: os.execv(sys.executable, [sys.executable, "--version"]),
    "take memory": lambda: bytearray(1 << 31),
    "open a socket": socket.socket,
    "open a datagram socket": lambda: socket.socket(type=socket.SOCK_DGRAM),
    "open a socket of this machine": lambda: socket.socket(socket.AF_UNIX),
    "connect": lambda: listening.connect(listening.getsockname()),
    "accept": listening.accept,
    "start a process": lambda: os.fork() or os._exit(0),
    "run what it wrote": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "lock a file": lambda: fcntl.fcntl(reading, fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "slow a process down": lambda: os.setpriority(os.PRIO_PROCESS, victim, 19),
    "limit a process": lambda: resource.prlimit(victim, resource.RLIMIT_CORE, (0, 0)),
    "hold a process": lambda: os.pidfd_open(victim),
    "choose who gets a socket's signals": lambda: fcntl.fcntl(asked, fcntl.F_SETOWN, victim),
    "choose a socket's signal": lambda: fcntl.fcntl(asked, fcntl.F_SETSIG, signal.SIGUSR1),
    "have a socket send signals": lambda: fcntl.fcntl(asked, fcntl.F_SETFL, os.O_ASYNC),
    "choose who gets a socket's signals by another call": lambda: fcntl.ioctl(
        asked, FIOSETOWN, victim.to_bytes(4, sys.byteorder)
    ),
    "signal a process by a socket": signal_by_a_socket,
    "signal a process": lambda: os.kill(victim, signal.SIGKILL),
}
if "seccomp" in layers:
    # Where they aren't refused, this process or memory of this machine is gone.
    attempts |= {
        "poison memory": lambda: called(
            system.madvise(ctypes.c_void_p(0), ctypes.c_size_t(0), MADV_HWPOISON)
        ),
        "start a thread with mounts of its own": lambda: called(
            system.syscall(CLONE, CLONE_THREAD | CLONE_NEWNS, 0, 0, 0, 0)
        ),
    }
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, MemoryError):
        continue
    print("it could", name)
worker = threading.Thread(target=lambda: print(os.pread(reading, 100, 0).decode()))
worker.start()
worker.join()
os.abort()
"""
OF_FILES = {
    "read a file",
    "read the environment of another process",
    "read the memory of another process",
    "list a folder",
    "write a file",
    "make a folder",
    "remove a file",
    "become a program",
    "take memory",
}
"""What Landlock and the limits refuse, whatever else there is."""


def attempted(tmp_path: Path, layers: Sequence[str]) -> tuple[set[str], bool]:
    """(what a process could that is confined by these layers, whether the process beside it lives on)."""
    (tmp_path / "file").write_text("what was open stays open")
    with subprocess.Popen(["sleep", "1000"], env={"SECRET": "key"}) as victim:
        try:
            ended = subprocess.run(
                [sys.executable, "-c", ATTEMPTS, str(victim.pid), str(tmp_path / "file"), " ".join(layers)],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                check=False,
            )
            lives = victim.poll() is None
        finally:
            victim.kill()
    there, *could, last = ended.stdout.splitlines()
    if there.split() != [*layers]:
        pytest.skip(f"this system has of {layers} only: {there}")
    assert last == "what was open stays open", ended.stderr
    # Death by its own hand is seen.
    assert ended.returncode == -6
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    return {each.removeprefix("it could ") for each in could}, lives


@pytest.mark.parametrize("layers", [LAYERS, ("seccomp",)])
def test_a_confined_process_computes_and_does_nothing_else(tmp_path: Path, layers: Sequence[str]) -> None:
    assert attempted(tmp_path, layers) == (set(), True)


def test_landlock_alone_keeps_files(tmp_path: Path) -> None:
    could, _ = attempted(tmp_path, ("landlock",))
    assert not could & OF_FILES


Decoding = tuple[DecoderProcess, VideoSource]


@pytest.fixture
def decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoding]:
    """A process in the middle of a video, started by one that has secrets and an open file."""
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "A_TOKEN_OF_TOMORROW"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("LD_PRELOAD", "")
    video = VideoSource(str(write_video(tmp_path / "a.mp4", 200)))
    with DecoderProcess() as decoder, open(os.devnull) as inherited:
        os.set_inheritable(inherited.fileno(), True)
        chunks = decoder.read(video, OPTIONS, JPEG)
        next(chunks)
        yield decoder, video
        assert len(list(chunks)) == 49


def test_the_process_that_decodes_has_no_credentials(decoding: Decoding) -> None:
    environment = Path(f"/proc/{decoding[0].pid}/environ").read_bytes()
    assert {each.partition(b"=")[0] for each in environment.split(b"\0") if each} <= {
        *(b"PYTHONPATH", b"PYTHONHOME", b"LANG", b"LC_ALL", b"LC_CTYPE", b"LD_LIBRARY_PATH", b"TZ"),
        *(b"OPENBLAS_NUM_THREADS", b"OMP_NUM_THREADS", b"OPENCV_IO_MAX_IMAGE_PIXELS"),
    }


def test_the_process_that_decodes_has_no_open_file_but_its_video(decoding: Decoding) -> None:
    decoder, video = decoding
    links = [os.readlink(each) for each in Path(f"/proc/{decoder.pid}/fd").iterdir()]
    names = {re.sub(r"\d+", "", link) for link in links}
    assert names == {"/dev/null", "pipe:[]", "socket:[]", re.sub(r"\d+", "", video.uri)}
    # FFmpeg opens the video once more by its descriptor.
    assert len(links) <= 7


def test_the_process_that_decodes_has_limits(decoding: Decoding) -> None:
    text = Path(f"/proc/{decoding[0].pid}/limits").read_text()
    limits = dict(re.findall(r"^Max (\S.*?) {2,}(\S+ +\S+)", text, re.MULTILINE))
    assert limits["address space"].split() == [str(memory_for(OPTIONS))] * 2
    assert limits["core file size"].split() == limits["file size"].split() == ["0", "0"]
    assert limits["open files"].split() == ["64", "64"]
    assert limits["cpu time"].split()[0] != "unlimited"


def test_the_process_that_decodes_gains_no_privilege(decoding: Decoding) -> None:
    decoder, _ = decoding
    status = dict(
        re.findall(r"^(\w+):\s+(.*)$", Path(f"/proc/{decoder.pid}/status").read_text(), re.MULTILINE)
    )
    assert status["NoNewPrivs"] == "1"
    assert (status["Seccomp"] == "2") == ("seccomp" in decoder.layers)


def test_what_is_larger_than_memory_costs_one_video(tmp_path: Path) -> None:
    options = ClipOptions(size=(64, 64), max_pixels=10_000)
    write_images(tmp_path, ["0.png", "1.png"])
    with (tmp_path / "2.png").open("wb") as file:
        file.write((tmp_path / "0.png").read_bytes()[:16])
        file.truncate(memory_for(options))
    good, bad = (VideoSource(str(tmp_path), ("0.png", "1.png", "2.png")[:count]) for count in (2, 3))
    with DecoderProcess() as decoder:
        with pytest.raises(VideoError, match="more memory than it may"):
            list(decoder.read(bad, options, JPEG))
        assert len(list(decoder.read(good, options, JPEG))) == 1


def test_an_image_that_unpacks_to_gigabytes_is_refused_by_its_header(tmp_path: Path) -> None:
    # Large enough to be killed for, small enough to be made.
    assert cv2.imwrite(str(tmp_path / "0.png"), np.zeros((30_000, 20_000), np.uint8))
    assert (tmp_path / "0.png").stat().st_size < 1_000_000
    write_images(tmp_path, ["1.png", "2.png"])
    with DecoderProcess() as decoder:
        with pytest.raises(VideoError, match=r"too large: image number 0 has more than 36000000 pixels"):
            list(decoder.read(VideoSource(str(tmp_path), ("0.png", "1.png")), OPTIONS, JPEG))
        assert decoder.pid is not None
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{decoder.pid}/status").read_text())
        assert peak is not None
        assert int(peak[1]) < 400_000
        assert len(list(decoder.read(VideoSource(str(tmp_path), ("1.png", "2.png")), OPTIONS, JPEG))) == 1


def test_a_video_that_takes_too_long_gives_what_came_before(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.h264", 40, container="h264").read_bytes()
    (tmp_path / "a.h264").write_bytes(whole * 1000)
    with DecoderProcess(video_seconds=1) as decoder:
        chunks = []
        with pytest.raises(VideoError, match=r"takes too long: .* computing time"):  # noqa: PT012
            for chunk in decoder.read(VideoSource(str(tmp_path / "a.h264")), OPTIONS, JPEG):
                chunks.append(chunk)
        assert 1 <= len(chunks) < 10_000
        assert decoder.report.frames_read < 40_000


def test_signs_of_life_without_an_end_are_not_waited_for(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.h264", 40, container="h264").read_bytes()
    (tmp_path / "a.h264").write_bytes(whole * 1000)
    nothing_moves = replace(OPTIONS, static_threshold=255.0)
    with DecoderProcess(timeout=60, waited_seconds=2) as decoder:
        with pytest.raises(VideoError, match="time to wait for frames is used up"):
            list(decoder.read(VideoSource(str(tmp_path / "a.h264")), nothing_moves, JPEG))
        assert 0 < decoder.report.frames_read < 40_000


def test_a_video_that_is_computed_on_without_a_frame_is_left(tmp_path: Path) -> None:
    # Without its key frame no picture is ever complete.
    with av.open(str(write_video(tmp_path / "a.h264", 40, container="h264"))) as whole:
        (stream,) = whole.streams.video
        others = b"".join(bytes(packet) for packet in whole.demux(stream) if not packet.is_keyframe)
        (tmp_path / "a.h264").write_bytes(bytes(stream.codec_context.extradata or b"") + others * 10_000)
    with DecoderProcess(frame_seconds=1) as decoder:
        with pytest.raises(VideoError, match="takes too long"):
            list(decoder.read(VideoSource(str(tmp_path / "a.h264")), OPTIONS, JPEG))
        assert decoder.report.frames_read == 0
