"""What a decoder process that a video has taken over can't do to its parent by what it sends."""

import os
import pickle
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowcore.chunks import VideoReport
from flowcore.frame_codec import FrameCodec
from flowcore.video import ClipOptions
from pipelines.channel import Channel, Message, WrongMessageError
from pipelines.decoding_answers import Answers

HEIGHT, WIDTH = 40, 56
OPTIONS = ClipOptions(chunk_pairs=3, stride=2, max_pairs_per_video=5, max_pixels=10_000)
CODECS = FrameCodec("jpeg"), FrameCodec("png"), FrameCodec("raw")


def frame(codec: FrameCodec, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    return codec.encode(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def chunk(codec: FrameCodec, **changed: Any) -> Message:
    """A right first chunk, but for what is changed."""
    header = {
        "kind": "chunk",
        "report": asdict(VideoReport(frames_read=5, pairs=2)),
        "index": 0,
        "frame_indices": [0, 2, 4],
        "timestamps": [0.0, float("nan"), 0.16],
        "height": HEIGHT,
        "width": WIDTH,
    }
    bodies = changed.pop("frames", [frame(codec)] * 3)
    return Message({**header, **changed}, bodies)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 300), (257, 3), (64, 64)])
def test_a_frame_tells_its_size_without_being_decoded(codec: FrameCodec, size: tuple[int, int]) -> None:
    data = frame(codec, *size)
    assert codec.decode(data, size).shape[:2] == size
    for other in CODECS:
        assert other.holds(data, size) == (other == codec)
        assert not other.holds(data, (size[0] + 1, size[1]))


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.binary(max_size=300), cut=st.integers(0, 1000))
def test_what_is_no_frame_has_no_size(codec: FrameCodec, data: bytes, cut: int) -> None:
    assert not codec.holds(data, (HEIGHT, WIDTH))
    assert not codec.holds(frame(codec)[:cut], (HEIGHT, WIDTH + 1))


@pytest.mark.parametrize("codec", CODECS)
def test_right_answers_are_taken(codec: FrameCodec) -> None:
    answers = Answers(OPTIONS, codec)
    answers.note(chunk(codec))
    first = answers.chunk(chunk(codec))
    assert (first.index, first.frame_indices, first.height, first.width) == (0, [0, 2, 4], HEIGHT, WIDTH)
    second = answers.chunk(chunk(codec, index=1, frame_indices=[4, 6, 8]))
    assert second.frames == [frame(codec)] * 3
    answers.note(Message({"report": asdict(VideoReport(frames_read=9, pairs=4))}, []))
    assert answers.end(Message({"failure": None}, [])) is None
    assert answers.report.frames_read == 9


WRONG_CHUNKS: dict[str, dict[str, Any]] = {
    "another chunk": {"index": 1},
    "no number": {"index": None},
    "true is no number": {"frame_indices": [False, 2, 4]},
    "too many frames": {"frames": [b""] * 5, "frame_indices": [0, 2, 4, 6, 8], "timestamps": [0.0] * 5},
    "a lone frame": {"frames": [b""], "frame_indices": [0], "timestamps": [0.0]},
    "another stride": {"frame_indices": [0, 1, 2]},
    "backwards": {"frame_indices": [-2, 0, 2]},
    "beyond all numbers": {"frame_indices": [2**40, 2**40 + 2, 2**40 + 4]},
    "times that are missing": {"timestamps": [0.0]},
    "times without end": {"timestamps": [0.0, float("inf"), 0.0]},
    "a time beyond every number": {"timestamps": [0.0, 10**400, 0.0]},
    "a time before every number": {"timestamps": [0.0, -(10**400), 0.0]},
    "a time of ages": {"timestamps": [0.0, 1e300, 0.0]},
    "times that are none": {"timestamps": ["0", "1", "2"]},
    "another size": {"height": HEIGHT + 1},
    "no size": {"height": 0, "width": 0},
    "a size beyond the limit": {"height": 100, "width": 101},
    "frames that are none": {"frames": [b"GIF89a"] * 3},
    "frames of another codec": {"frames": [frame(FrameCodec("png")), frame(FrameCodec("jpeg"))] * 2},
    "a frame of another size": {"frames": [frame(FrameCodec("jpeg"), 64, 64)] * 3},
    "a frame with gigabytes behind it": {"frames": [frame(FrameCodec("jpeg")) + bytes(10**6)] * 3},
}


@pytest.mark.parametrize("name", WRONG_CHUNKS)
def test_a_chunk_that_was_not_asked_for_is_refused(name: str) -> None:
    codec = FrameCodec("jpeg")
    with pytest.raises(WrongMessageError):
        Answers(OPTIONS, codec).chunk(chunk(codec, **WRONG_CHUNKS[name]))


def test_pairs_are_counted_and_none_beyond_those_asked_for_are_taken() -> None:
    codec = FrameCodec("jpeg")
    answers = Answers(OPTIONS, codec)
    for index in range(2):
        answers.chunk(chunk(codec, index=index, frame_indices=[4 * index, 4 * index + 2, 4 * index + 4]))
    with pytest.raises(WrongMessageError, match="6 pairs"):
        answers.chunk(chunk(codec, index=2, frame_indices=[8, 10, 12]))
    with pytest.raises(WrongMessageError, match="pairs of 0"):
        answers.end(Message({"failure": None}, []))


@pytest.mark.parametrize(
    "report",
    [
        None,
        {},
        {**asdict(VideoReport()), "more": 1},
        {**asdict(VideoReport()), "pairs": -1},
        {**asdict(VideoReport()), "pairs": True},
        {**asdict(VideoReport()), "frames_read": 2**60},
        {**asdict(VideoReport()), "share": 1.5},
        {**asdict(VideoReport()), "share": float("nan")},
        {**asdict(VideoReport()), "share": 10**400},
        {**asdict(VideoReport()), "truncated": 3},
    ],
)
def test_a_report_has_counts_and_a_reason(report: object) -> None:
    with pytest.raises(WrongMessageError):
        Answers(OPTIONS, CODECS[0]).note(Message({"report": report}, []))


def test_a_reason_has_an_end() -> None:
    answers = Answers(OPTIONS, CODECS[0])
    answers.note(Message({"report": asdict(VideoReport(truncated="why " * 10_000))}, []))
    assert len(answers.report.truncated or "") == 2000
    assert len(answers.end(Message({"failure": "why " * 10_000}, [])) or "") == 2000


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        yield theirs, Channel(ours)


def test_messages_arrive_whole_with_what_came_with_them(ends: tuple[socket.socket, Channel]) -> None:
    theirs, ours = ends
    bodies = [b"", b"abc", bytes(3_000_000)]
    sending = Thread(target=Channel(theirs).send, args=({"a": [1, None]}, bodies))
    sending.start()
    message = ours.receive(most=3_000_003, within=60)
    sending.join()
    assert message.header == {"a": [1, None], "sizes": [0, 3, 3_000_000]}
    assert message.bodies == bodies
    with open(os.devnull) as file:
        for asked in (False, True):
            Channel(theirs).send({}, descriptor=file.fileno())
            received = ours.receive(within=60, with_descriptor=asked).descriptor
            assert (received is not None) == asked
    assert received is not None
    os.close(received)


def raw(header: bytes, size: int) -> bytes:
    return struct.pack(">IQ", len(header), size) + header


@pytest.mark.parametrize(
    "sent",
    [
        raw(b'{"sizes": [11]}', 11),
        raw(b'{"sizes": []}', 2**63),
        struct.pack(">IQ", 2**32 - 1, 0),
        raw(pickle.dumps(print), 0),
        raw(b"[" * 100_000, 0),
        raw(b"9" * 100_000, 0),
        raw(b"[]", 0),
        raw(b"{}", 0),
        raw(b'{"sizes": [-3, 8]}', 5),
        raw(b'{"sizes": [true]}', 1),
        raw(b'{"sizes": [3]}', 5),
    ],
)
def test_what_is_no_message_or_too_large_is_refused_before_it_is_read(
    ends: tuple[socket.socket, Channel], sent: bytes
) -> None:
    theirs, ours = ends
    theirs.sendall(sent)
    with pytest.raises(WrongMessageError):
        ours.receive(most=10, within=60)


def test_a_message_that_never_ends_is_not_waited_for(ends: tuple[socket.socket, Channel]) -> None:
    theirs, ours = ends
    theirs.sendall(raw(b'{"sizes": [9]}', 9) + b"some")
    with pytest.raises(TimeoutError):
        ours.receive(most=10, within=0.5)
    theirs.close()
    with pytest.raises(EOFError):
        ours.receive(most=10, within=60)
