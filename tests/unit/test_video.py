"""What holds for the pairs that are taken from a video, on videos whose every frame is known."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowcore.chunks import Chunk, ChunkReader, VideoReport
from flowcore.video import ClipOptions, VideoError
from pipelines.collection import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

HEIGHT, WIDTH = 64, 96


def scene(seed: int, num_frames: int, speed: int = 2) -> list[NDArray[np.uint8]]:
    """A texture of its own that moves by speed pixels a frame."""
    noise = np.random.default_rng(seed).uniform(0, 255, (12, 80, 3)).astype(np.float32)
    noise = noise * 0.5 + np.random.default_rng(seed + 1000).uniform(0, 128, 3).astype(np.float32)
    texture = (
        cv2.resize(noise, (80 * 12, HEIGHT), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    )
    return [texture[:, speed * i : speed * i + WIDTH] for i in range(num_frames)]


def write(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    pixels: str = "yuv444p",
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A nearly lossless video of 25 frames a second, or with the given times in units of 1/25 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.options = {"qp": "4"} if options is None else options
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_images(folder: Path, frames: Sequence[NDArray[np.uint8]]) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return paths


def read(source: object, **options: object) -> tuple[list[Chunk], VideoReport]:
    reader = ChunkReader(source, ClipOptions(**options))  # type: ignore[arg-type]
    return list(reader), reader.report


def pairs(chunks: Iterable[Chunk]) -> list[tuple[int, int]]:
    return [pair for c in chunks for pair in zip(c.frame_indices, c.frame_indices[1:], strict=False)]


def test_each_pair_of_neighbours_is_there_once(tmp_path: Path) -> None:
    chunks, report = read(write(tmp_path / "a.mp4", scene(0, 20)), chunk_pairs=8)
    assert [c.frame_indices for c in chunks] == [[*range(9)], [*range(8, 17)], [16, 17, 18, 19]]
    assert [c.index for c in chunks] == [0, 1, 2]
    assert pairs(chunks) == [(i, i + 1) for i in range(19)]
    assert report == VideoReport(frames_read=20, pairs=19)


@pytest.mark.parametrize("kind", ["mp4", "ts", "images"])
def test_the_report_tells_how_far_reading_is(tmp_path: Path, kind: str) -> None:
    frames = scene(0, 60)
    source = [*write_images(tmp_path, frames)] if kind == "images" else write(tmp_path / f"a.{kind}", frames)
    reader = ChunkReader(source, ClipOptions(chunk_pairs=10))
    seen = [reader.report.share for _ in reader]
    assert seen == sorted(seen)
    np.testing.assert_allclose(seen, np.arange(10, 61, 10) / 60, atol=0.04)
    limited = ChunkReader(source, ClipOptions(chunk_pairs=10, max_pairs_per_video=20))
    assert [limited.report.share for _ in limited] == [0.5, 1.0]


def test_frames_are_the_video_s_pixels_and_times(tmp_path: Path) -> None:
    frames = scene(0, 5)
    (chunk,), _ = read(write(tmp_path / "a.mp4", frames))
    for read_back, written in zip(chunk.frames, frames, strict=True):
        assert read_back.dtype == np.uint8
        assert read_back.flags.c_contiguous
        assert np.abs(read_back.astype(int) - written).mean() < 2
    assert chunk.timestamps == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])


def test_times_are_the_video_s_own_where_its_frame_rate_varies(tmp_path: Path) -> None:
    (chunk,), _ = read(write(tmp_path / "a.mkv", scene(0, 4), times=[0, 1, 25, 30]))
    assert chunk.timestamps == pytest.approx([0, 0.04, 1, 1.2])


def test_a_reader_can_be_read_again_with_the_same_outcome(tmp_path: Path) -> None:
    reader = ChunkReader(write(tmp_path / "a.mp4", scene(0, 12)), ClipOptions(chunk_pairs=4))
    first, report = [c.frame_indices for c in reader], reader.report
    assert [c.frame_indices for c in reader] == first
    assert reader.report == report


def test_of_interlaced_frames_one_moment_is_taken(tmp_path: Path) -> None:
    moments = scene(0, 24, speed=8)
    woven = [first.copy() for first in moments[::2]]
    for frame, second in zip(woven, moments[1::2], strict=True):
        frame[1::2] = second[1::2]
    path = write(tmp_path / "a.mp4", woven, options={"qp": "4", "x264-params": "tff=1"})
    chunks, report = read(path, cut_threshold=None)
    assert report.pairs == 11
    expected = [cv2.resize(first[::2], (WIDTH, HEIGHT)) for first in moments[::2]]
    for frame, right, comb in zip(chunks[0].frames, expected, woven, strict=True):
        error, of_comb = (np.abs(each.astype(float) - right).mean() for each in (frame, comb))
        assert error < 5
        assert error < of_comb / 3


CODECS = {
    ("mpeg4", None): ("3g2", "3gp", "avi", "m2ts", "m4v", "mkv", "mov", "mp4", "mts", "nut", "ts"),
    ("mpeg4", "avi"): ("divx",),
    ("mpeg4", "mov"): ("qt",),
    ("mpeg2video", None): ("m2v", "mpeg", "mpg", "mxf", "vob"),
    ("mpeg1video", None): ("m1v",),
    ("wmv2", "asf"): ("asf", "wmv"),
    ("flv", "flv"): ("flv",),
    ("libvpx", None): ("webm", "ivf", "ogv"),
    ("libvpx", "ogg"): ("ogm",),
    ("jpeg2000", "mov"): ("mj2",),
    ("mjpeg", "mjpeg"): ("mjpeg", "mjpg"),
    ("libx264", None): ("f4v", "h264"),
    ("libx265", "hevc"): ("h265", "hevc"),
    ("libsvtav1", "obu"): ("obu",),
    ("rv20", "rm"): ("rm", "rmvb"),
    ("dvvideo", "dv"): ("dv",),
    ("gif", "gif"): ("gif",),
    ("wrapped_avframe", "yuv4mpegpipe"): ("y4m",),
}
"""By codec and container, None for that of the name."""


def test_every_extension_of_a_video_stands_for_a_format_that_is_read(tmp_path: Path) -> None:
    assert {extension for each in CODECS.values() for extension in each} == VIDEO_EXTENSIONS
    for (codec, container), extensions in CODECS.items():
        for extension in extensions:
            path = tmp_path / f"a.{extension}"
            with av.open(str(path), "w", format=container) as written:
                stream = written.add_stream(codec, rate=25)
                stream.height, stream.width = (576, 720) if codec == "dvvideo" else (144, 176)
                stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
                for image in scene(0, 4):
                    image = cv2.resize(image, (stream.width, stream.height))
                    written.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                written.mux(stream.encode(None))
            for source in (path, io.BytesIO(path.read_bytes())):
                _, report = read(source, cut_threshold=None)
                assert report.pairs == 3, extension


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile real.ts\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.ts\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 0 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>real.ts</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>",
        '<svg xmlns="http://www.w3.org/2000/svg"><image href="real.ts"/></svg>',
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", None])
def test_what_only_names_other_files_is_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, name: str | None
) -> None:
    write(tmp_path / "real.ts", scene(0, 5))
    # Where a file object's names would be sought.
    monkeypatch.chdir(tmp_path)
    source: object = io.BytesIO(content.encode())
    if name is not None:
        source = tmp_path / name
        source.write_text(content)
    with pytest.raises(VideoError, match="can't be opened as a video"):
        read(source)


@pytest.mark.parametrize("place", ["concat:{0}|{0}", "subfile,,start,0,end,0,,:{0}", "async:{0}", "pipe:0"])
def test_a_path_names_a_file_and_no_protocol(tmp_path: Path, place: str) -> None:
    path = write(tmp_path / "a.ts", scene(0, 5))
    with pytest.raises(VideoError, match="can't be opened as a video"):
        read(place.format(path))


def strip(frames: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Frames of 32x288 px."""
    return [np.tile(frame, (1, 3, 1))[:32] for frame in frames]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "h264", "images"])
@pytest.mark.parametrize(
    ("frames", "most", "reason"),
    [
        (scene(0, 4), HEIGHT * WIDTH - 1, "too large: frames are 64x96 px .* at most 6143 pixels"),
        (strip(scene(0, 4)), 10**6, "too narrow: frames are 32x288 px .* longer than 8 times the other"),
        ([frame.transpose(1, 0, 2) for frame in strip(scene(0, 4))], 10**6, "too narrow: frames are 288x32"),
    ],
)
def test_frames_beyond_the_limits_are_refused_and_others_are_not(
    tmp_path: Path, kind: str, frames: list[NDArray[np.uint8]], most: int, reason: str
) -> None:
    for name, content, limit in (("bad", frames, most), ("good", scene(0, 4), HEIGHT * WIDTH)):
        (tmp_path / name).mkdir()
        source: object = [*write_images(tmp_path / name, content)]
        if kind != "images":
            source = write(tmp_path / f"{name}.{kind}", content)
        for each in (source, io.BytesIO(source.read_bytes()) if isinstance(source, Path) else source):
            if name == "good":
                assert read(each, max_pixels=limit)[1].pairs == 3
            else:
                with pytest.raises(VideoError, match=reason):
                    read(each, max_pixels=limit)


def test_8k_is_within_the_limits() -> None:
    assert max(4320 * 7680, 4320 * 8192) <= ClipOptions().max_pixels


@pytest.mark.parametrize(("scale", "reason"), [(10, "too large: frames are 640x960"), (None, "too narrow")])
def test_a_stream_that_grows_is_read_up_to_there(tmp_path: Path, scale: int | None, reason: str) -> None:
    grown = strip(scene(0, 4))
    if scale is not None:
        grown = [cv2.resize(frame, None, fx=scale, fy=scale) for frame in scene(0, 4)]
    content = [
        write(tmp_path / f"{i}.h264", each).read_bytes() for i, each in enumerate((scene(0, 9), grown))
    ]
    (tmp_path / "a.h264").write_bytes(b"".join(content))
    chunks, report = read(tmp_path / "a.h264", max_pixels=100_000)
    # FFmpeg keeps some frames back that it has decoded, and loses them.
    assert pairs(chunks) == [(i, i + 1) for i in range(len(pairs(chunks)))]
    assert 1 <= report.pairs <= 8
    assert report.truncated is not None
    assert reason in report.truncated
    assert read(tmp_path / "0.h264", max_pixels=100_000)[1].truncated is None


def test_a_header_that_names_small_frames_hides_no_large_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [cv2.resize(frame, None, fx=10, fy=10) for frame in scene(0, 4)])
    content = bytearray(path.read_bytes())
    at = content.index(b"avc1", content.index(b"stsd")) + 28
    assert content[at : at + 4] == (960).to_bytes(2, "big") + (640).to_bytes(2, "big")
    content[at : at + 4] = (96).to_bytes(2, "big") + (64).to_bytes(2, "big")
    path.write_bytes(content)
    with pytest.raises(VideoError, match="too large: frames are 640x960"):
        read(path, max_pixels=100_000)


@pytest.mark.parametrize("kind", ["mp4", "images"])
def test_only_so_many_frames_of_a_video_are_read(tmp_path: Path, kind: str) -> None:
    frames = scene(0, 12)
    source = [*write_images(tmp_path, frames)] if kind == "images" else write(tmp_path / "a.mp4", frames)
    chunks, report = read(source, max_frames_per_video=5)
    assert pairs(chunks) == [(i, i + 1) for i in range(4)]
    assert (report.frames_read, report.truncated) == (5, "read as far as 5 frames (max_frames_per_video)")
    for most in (12, None):
        assert read(source, max_frames_per_video=most)[1].truncated is None
    still = write(tmp_path / "still.mp4", [frames[0]] * 9)
    with pytest.raises(VideoError, match=r"4 static pairs .* read as far as 5 frames"):
        read(still, max_frames_per_video=5)


def test_an_image_is_of_a_format_of_images_whatever_its_name(tmp_path: Path) -> None:
    for path, frame in zip(write_images(tmp_path, scene(0, 2)), scene(0, 2), strict=True):
        path.write_bytes(cv2.imencode(".gif", frame)[1].tobytes())
        assert cv2.imread(str(path)) is not None
    with pytest.raises(VideoError, match=r"image 0.png can't be decoded: it is no BMP, JPEG, PNG"):
        read(sorted(tmp_path.iterdir()))
    for extension in IMAGE_EXTENSIONS:
        folder = tmp_path / extension
        folder.mkdir()
        for i, frame in enumerate(scene(0, 2)):
            cv2.imwrite(str(folder / f"{i}.{extension}"), frame)
        assert read(sorted(folder.iterdir()))[1].pairs == 1, extension


def with_alias(path: Path, target: Path) -> Path:
    """The same QuickTime file, whose frames are said to be in `target`."""
    volume, name, place = b"disk", target.name.encode(), str(target).replace("/", ":").encode()
    place += b"\0" * (len(place) % 2)
    alias = bytes(10) + bytes([len(volume)]) + volume.ljust(27, b"\0") + bytes(12)
    alias += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + (0).to_bytes(2, "big") * 2 + bytes(16)
    alias += (2).to_bytes(2, "big") + len(place).to_bytes(2, "big") + place + b"\xff\xff\0\0"
    entry = (12 + len(alias)).to_bytes(4, "big") + b"alis" + bytes(4) + alias
    data = bytearray(path.read_bytes())
    at = data.index(b"dref")
    old = int.from_bytes(data[at + 12 : at + 16], "big")
    data[at + 12 : at + 12 + old] = entry
    # The index comes after the frames, so only the boxes around it grow.
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = data.rindex(box, 0, at + 4) - 4
        size = int.from_bytes(data[at : at + 4], "big") + len(entry) - old
        data[at : at + 4] = size.to_bytes(4, "big")
    other = path.with_stem("alias")
    other.write_bytes(data)
    return other


def test_a_file_that_names_another_for_its_frames_gets_none_of_them(tmp_path: Path) -> None:
    # Of one size, so that the frames of both are at the same places.
    raw = {"codec": "rawvideo", "pixels": "rgb24"}
    own = write(tmp_path / "a.mov", scene(0, 5), **raw, options={})
    secret = write(tmp_path / "secret.mov", scene(7, 5), **raw, options={})
    path = with_alias(own, secret)
    with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as obeyed:
        shown = next(obeyed.decode(video=0)).to_ndarray(format="rgb24")
    np.testing.assert_array_equal(shown, scene(7, 1)[0])
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(VideoError):
            read(source)


def test_no_pair_crosses_a_cut_wherever_it_lies(tmp_path: Path) -> None:
    lengths = (1, 7, 3, 9, 4, 6, 1)
    frames = [frame for seed, length in enumerate(lengths) for frame in scene(seed * 7, length)]
    starts = np.cumsum(lengths)[:-1].tolist()
    chunks, report = read(write(tmp_path / "a.mp4", frames))
    assert report.cuts == len(starts)
    assert pairs(chunks) == [(i, i + 1) for i in range(len(frames) - 1) if i + 1 not in starts]


def test_shots_of_one_frame_are_told_apart_by_a_change_beyond_motion(tmp_path: Path) -> None:
    dark, bright = [frame // 4 for frame in scene(0, 4)], [255 - frame // 4 for frame in scene(7, 4)]
    flashes = [frame for both in zip(dark, bright, strict=True) for frame in both]
    with pytest.raises(VideoError, match="7 cuts"):
        read(write(tmp_path / "a.mp4", flashes))


def test_without_a_cut_threshold_cuts_are_not_sought(tmp_path: Path) -> None:
    chunks, report = read(write(tmp_path / "a.mp4", scene(0, 5) + scene(7, 5)), cut_threshold=None)
    assert len(pairs(chunks)) == 9
    assert report.cuts == 0


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
def test_fast_motion_is_no_cut_even_between_duplicates(tmp_path: Path, repeats: int) -> None:
    frames = [frame for frame in scene(0, 12, speed=40) for _ in range(repeats)]
    chunks, report = read(write(tmp_path / "a.mp4", frames))
    assert (report.cuts, report.pairs, report.static_pairs) == (0, 11, len(frames) - 12)
    assert all(second % repeats == 0 and first == second - 1 for first, second in pairs(chunks))


def faded(frames: Sequence[NDArray[np.uint8]], colour: int, *, away: bool) -> list[NDArray[np.uint8]]:
    """The frames, ever nearer to a colour, or from it; the last or first one is of the colour alone."""
    shares = np.linspace(1, 0, len(frames)) if away else np.linspace(0, 1, len(frames))
    return [
        np.rint(colour + share * (frame.astype(float) - colour)).astype(np.uint8)
        for share, frame in zip(shares, frames, strict=True)
    ]


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("stride", [1, 2])
def test_fades_and_blank_frames_leave_no_pair(tmp_path: Path, colour: int, stride: int) -> None:
    first, second = scene(0, 24), scene(7, 24)
    blank = [np.full_like(first[0], colour)] * 6
    frames = [*first[:12], *faded(first[12:], colour, away=True), *blank]
    frames += [*faded(second[:12], colour, away=False), *second[12:]]
    chunks, report = read(write(tmp_path / "a.mp4", frames), stride=stride, chunk_pairs=64)
    # A fade begins and ends with a frame that is as it was.
    left = {frame for pair in pairs(chunks) for frame in pair}
    assert left <= {*range(13), *range(40, 54)}
    assert {*range(0, 12, stride)} <= left
    assert report.faded_pairs >= 26 // stride
    whole, _ = read(tmp_path / "a.mp4", stride=stride, fade_contrast=0.0, static_threshold=0.0)
    assert len(pairs(whole)) > len(pairs(chunks)) + 20 // stride


def test_a_fade_takes_nothing_of_the_steady_shot_that_follows(tmp_path: Path) -> None:
    # The contrast of a texture that comes round again and again hardly changes.
    steady = [np.roll(scene(0, 1)[0], 3 * i, axis=1) for i in range(40)]
    black = [np.zeros_like(steady[0])] * 3
    frames = [*black, *faded(steady[:10], 0, away=False), *steady[10:]]
    chunks, report = read(write(tmp_path / "a.mp4", frames))
    assert set(pairs(chunks)) >= {(i, i + 1) for i in range(13, len(frames) - 1)}
    assert report.faded_pairs + report.static_pairs + report.cuts >= 10
    chunks, _ = read(write(tmp_path / "cut.mp4", [*black, *steady]))
    assert pairs(chunks) == [(i, i + 1) for i in range(3, 42)]


def test_of_a_fade_longer_than_frames_can_wait_the_last_ones_leave_no_pair(tmp_path: Path) -> None:
    frames = faded(scene(0, 70, speed=1), 0, away=True)
    chunks, _ = read(write(tmp_path / "a.mp4", frames), chunk_pairs=64)
    assert pairs(chunks) == [(i, i + 1) for i in range(len(pairs(chunks)))]
    assert len(pairs(chunks)) < 30


def test_a_cut_to_a_blank_frame_is_no_fade(tmp_path: Path) -> None:
    frames = [*scene(0, 12), *[np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 6, *scene(7, 12)]
    chunks, report = read(write(tmp_path / "a.mp4", frames))
    assert pairs(chunks) == [(i, i + 1) for i in (*range(11), *range(18, 29))]
    assert report.cuts == 2


def test_darker_and_brighter_is_no_fade_before_all_is_blank(tmp_path: Path) -> None:
    moving = scene(0, 25)
    frames = [*faded(moving[:12], 0, away=True)[:10], *faded(moving[12:], 0, away=False)[2:]]
    _, report = read(write(tmp_path / "a.mp4", frames))
    assert report.faded_pairs == 0


def test_in_two_or_three_frames_fast_motion_is_no_cut_either(tmp_path: Path) -> None:
    for num_frames in (2, 3):
        chunks, _ = read(write(tmp_path / f"{num_frames}.mp4", scene(0, num_frames, speed=40)))
        assert len(pairs(chunks)) == num_frames - 1


def test_duplicates_and_still_stretches_are_left_out(tmp_path: Path) -> None:
    frames = scene(0, 10)
    frames = [*frames[:4], frames[3], *frames[4:], *[frames[-1]] * 30]
    chunks, report = read(write(tmp_path / "a.mp4", frames))
    assert [c.frame_indices for c in chunks] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]
    assert report.static_pairs == 1 + 30
    assert len(pairs(read(tmp_path / "a.mp4", static_threshold=0.0)[0])) == len(frames) - 1


@settings(max_examples=20)
@given(stride=st.integers(1, 5), chunk_pairs=st.integers(1, 6), first_shot=st.integers(1, 20))
def test_stride_and_chunk_length_only_select_and_group(
    tmp_path_factory: pytest.TempPathFactory, stride: int, chunk_pairs: int, first_shot: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"two_shots_{first_shot}.mkv"
    if not path.exists():
        write(path, scene(0, first_shot) + scene(7, 24 - first_shot))
    shots = (range(first_shot), range(first_shot, 24))
    expected = [(i, i + stride) for shot in shots for i in shot[::stride] if i + stride in shot]
    chunks, _ = read(path, stride=stride, chunk_pairs=chunk_pairs)
    assert pairs(chunks) == expected
    assert all(2 <= len(c.frames) <= chunk_pairs + 1 for c in chunks)


@pytest.mark.parametrize("limit", [1, 4, 7, 8, 100])
def test_a_limit_takes_the_first_pairs(tmp_path: Path, limit: int) -> None:
    path = write(tmp_path / "a.mp4", scene(0, 20))
    chunks, report = read(path, chunk_pairs=4, max_pairs_per_video=limit)
    assert pairs(chunks) == pairs(read(path, chunk_pairs=4)[0])[:limit]
    assert report.pairs == min(limit, 19)
    assert report.frames_read <= limit + 4 + 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, (64, 96)),
        ((64, 96), (64, 96)),
        ((32, 32), (32, 48)),
        ((32, 60), (40, 60)),
        ((33, 32), (33, 50)),
        ((640, 960), (64, 96)),
    ],
)
def test_frames_are_the_smallest_that_cover_the_size_and_never_enlarged(
    tmp_path: Path, size: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    frames = scene(0, 3)
    for source in (write(tmp_path / "a.mp4", frames), write_images(tmp_path, frames)):
        (chunk,), _ = read(source, size=size)
        assert chunk.frames[0].shape == (*expected, 3)
        by_area = cv2.resize(frames[0], expected[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(chunk.frames[0].astype(int) - by_area).mean() < 3


def test_scaling_keeps_the_mean_colour(tmp_path: Path) -> None:
    frames = scene(3, 2)
    (chunk,), _ = read(write(tmp_path / "a.mp4", frames, pixels="yuv420p"), size=(40, 40))
    assert chunk.frames[0].mean((0, 1)) == pytest.approx(frames[0].mean((0, 1)), abs=1)


def with_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The same MP4 with (a, b, c, d) as its video track's matrix."""
    a, b, c, d = matrix

    def stored(a: int, b: int, c: int, d: int) -> bytes:
        return np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()

    data = path.read_bytes()
    header = data.index(b"tkhd")
    at = data.index(stored(1, 0, 0, 1), header)
    turned = path.with_stem(f"turned_{a}_{b}_{c}_{d}")
    turned.write_bytes(data[:at] + stored(a, b, c, d) + data[at + 36 :])
    return turned


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)],
)
def test_frames_are_upright(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    frames = scene(0, 3)
    (chunk,), _ = read(with_display_matrix(write(tmp_path / "a.mp4", frames), matrix))
    a, b, c, d = matrix
    shown = np.zeros_like(frames[0] if b == 0 else frames[0].transpose(1, 0, 2))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            # Negative positions count from the far side, where the shift of a turned picture puts them.
            new_x, new_y = a * x + c * y, b * x + d * y
            new_x, new_y = new_x - (a + c < 0), new_y - (b + d < 0)
            shown[new_y, new_x] = frames[0][y, x]
    assert chunk.frames[0].shape == shown.shape
    assert np.abs(chunk.frames[0].astype(int) - shown).mean() < 2


def test_a_turned_frame_covers_the_size_as_it_is_shown(tmp_path: Path) -> None:
    turned = with_display_matrix(write(tmp_path / "a.mp4", scene(0, 3)), (0, 1, -1, 0))
    (chunk,), _ = read(turned, size=(48, 32))
    assert chunk.frames[0].shape == (48, 32, 3)


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels", "options"),
    [
        (".mkv", "libx264", "yuv420p10le", None),
        (".mkv", "ffv1", "gray", {}),
        (".mkv", "ffv1", "gray16le", {}),
        (".mkv", "ffv1", "yuva420p", {}),
        (".mkv", "ffv1", "bgr0", {}),
        (".webm", "libvpx-vp9", "yuv420p", {"lossless": "1"}),
        (".webm", "libsvtav1", "yuv420p", {"crf": "10"}),
        (".mp4", "libx265", "yuv420p", {"x265-params": "log-level=none"}),
        (".avi", "mjpeg", "yuvj420p", {}),
        (".ts", "mpeg2video", "yuv420p", {"b": "4M"}),
    ],
)
def test_pixel_formats_and_codecs_give_rgb(
    tmp_path: Path, suffix: str, codec: str, pixels: str, options: dict[str, str] | None
) -> None:
    frames = scene(0, 5)
    (chunk,), _ = read(write(tmp_path / f"a{suffix}", frames, codec=codec, pixels=pixels, options=options))
    assert chunk.frame_indices == [0, 1, 2, 3, 4]
    expected = frames[2]
    if pixels.startswith("gray"):
        expected = cv2.cvtColor(cv2.cvtColor(expected, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    assert np.abs(chunk.frames[2].astype(int) - expected).mean() < 8


def test_odd_sizes_stay_odd(tmp_path: Path) -> None:
    frames = [frame[:61, :95] for frame in scene(0, 3)]
    (chunk,), _ = read(write(tmp_path / "a.mkv", frames, codec="ffv1", pixels="yuv420p", options={}))
    assert chunk.frames[0].shape == (61, 95, 3)


def test_a_change_of_size_begins_a_new_shot(tmp_path: Path) -> None:
    frames = scene(0, 6)
    images = write_images(tmp_path, [*frames[:3], *(frame[:, :80] for frame in frames[3:])])
    chunks, report = read(images)
    assert [c.frame_indices for c in chunks] == [[0, 1, 2], [3, 4, 5]]
    assert [c.frames[0].shape for c in chunks] == [(64, 96, 3), (64, 80, 3)]
    assert report.cuts == 1


def test_a_path_a_file_object_and_its_images_give_the_same_pairs(tmp_path: Path) -> None:
    frames = scene(0, 6) + scene(7, 6)
    video = write(tmp_path / "a.mkv", frames, codec="ffv1", pixels="bgr0", options={})
    images = write_images(tmp_path, frames)
    from_path, _ = read(str(video))
    with video.open("rb") as file:
        file.seek(17)
        from_file, _ = read(file)
    from_images, _ = read(images)
    from_openers, _ = read([lambda path=path: path.open("rb") for path in images])
    for chunks in (from_file, from_images, from_openers):
        assert pairs(chunks) == pairs(from_path)
        for one, other in zip(chunks, from_path, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
    assert all(math.isnan(time) for c in from_images for time in c.timestamps)


def test_sixteen_bit_and_grey_images_are_read_as_eight_bit_rgb(tmp_path: Path) -> None:
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in scene(0, 3)]
    for i, image in enumerate(grey):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image.astype(np.uint16) * 257)
    (chunk,), _ = read(sorted(tmp_path.iterdir()))
    np.testing.assert_array_equal(chunk.frames[0], np.repeat(grey[0][:, :, None], 3, axis=2))


def test_a_video_cut_short_yields_what_came_before_and_says_so(tmp_path: Path) -> None:
    images = write_images(tmp_path, scene(0, 8))
    images[5].write_bytes(b"not an image")
    chunks, report = read(images)
    assert pairs(chunks) == [(i, i + 1) for i in range(4)]
    assert report.truncated == "image 5.png can't be decoded: it is no BMP, JPEG, PNG, PPM, TIFF or WebP"


def test_a_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mkv", scene(0, 40), pixels="yuv420p", options={"qp": "20", "g": "10"})
    content = whole.read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[: len(content) // 2])
    assert read(whole)[1].truncated is None
    chunks, report = read(tmp_path / "half.mkv")
    assert 2 <= report.frames_read < 36
    assert pairs(chunks)[0] == (0, 1)
    assert report.truncated is not None
    assert "header says 1.6 s" in report.truncated


def test_damaged_frames_are_in_no_pair_and_no_pair_spans_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", scene(0, 40), pixels="yuv420p", options={"qp": "20"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        where = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 0]
    start, size = where[20]
    data[start + size // 2 : start + size] = b"\xaa" * (size - size // 2)
    (tmp_path / "damaged.mp4").write_bytes(data)
    with av.open(str(tmp_path / "damaged.mp4")) as container:
        is_damaged = [frame.is_corrupt for frame in container.decode(video=0)]
    assert any(is_damaged), "the damage must show for this test to say anything"
    chunks, report = read(tmp_path / "damaged.mp4", cut_threshold=None)
    assert report.frames_read == is_damaged.count(False)
    assert pairs(chunks) == [
        (i, i + 1) for i in range(len(is_damaged) - 1) if not is_damaged[i] and not is_damaged[i + 1]
    ]


def test_a_recording_that_begins_between_key_frames_is_read_from_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ts", scene(0, 40), pixels="yuv420p", options={"g": "10", "qp": "20"})
    data = path.read_bytes()
    packet = 188
    path.write_bytes(data[len(data) // packet // 3 * packet :])
    chunks, report = read(path)
    assert 10 <= report.frames_read < 40
    assert report.pairs == report.frames_read - 1
    assert report.truncated is None
    assert pairs(chunks)[0] == (0, 1)


def audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def unknown_codec(path: Path) -> Path:
    write(path, scene(0, 3))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    return path


def text(path: Path) -> Path:
    path.write_text("Once upon a time there was no video.\n" * 100)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (audio, "no video stream"),
        (unknown_codec, "no decoder for its video stream"),
        (text, "can't be opened as a video: Invalid data"),
        (lambda path: path, "can't be opened as a video: No such file"),
        (lambda path: write(path, scene(0, 1)), r"no pair in 1 frame\(s\)"),
        (lambda path: write(path, scene(0, 1) * 5), "0 cuts, 4 static pairs"),
        (
            lambda path: write(path, [frame[:16, :16] for frame in scene(0, 3)]),
            r"too small: frames are 16x16 px \(height x width\) and must have at least 32x32",
        ),
        (lambda path: write_images(path.parent, scene(0, 1)), r"no pair in 1 frame\(s\)"),
        (lambda path: [path.with_name("absent.png")], "absent.png can't be read: No such file"),
        (lambda path: [], "no frame"),
    ],
)
def test_what_yields_no_pair_says_why(tmp_path: Path, make: object, reason: str) -> None:
    with pytest.raises(VideoError, match=reason):
        read(make(tmp_path / "a.mp4"))  # type: ignore[operator]


class Failing(io.BytesIO):
    """A file on a storage that goes away after some reads."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > 2:
            raise OSError("connection lost")
        return super().read(size)


def test_a_storage_that_fails_is_not_the_end_of_the_video(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 255, (256, 256, 3), np.uint8) for i in range(30)]
    path = write(tmp_path / "a.mkv", noise, codec="ffv1", pixels="bgr0", options={})
    with pytest.raises(OSError, match="connection lost"):
        read(Failing(path.read_bytes()), cut_threshold=None)


def test_memory_holds_about_one_chunk(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", scene(0, 60))
    reader = ChunkReader(path, ClipOptions(chunk_pairs=4))
    for chunk in reader:
        assert reader.report.frames_read <= chunk.frame_indices[-1] + 1 + 2


def test_every_frame_is_a_sign_of_life_even_where_no_pair_comes(tmp_path: Path) -> None:
    seen: list[int] = []
    path = write(tmp_path / "a.mp4", scene(0, 3) + scene(0, 1) * 20)
    reader = ChunkReader(path, ClipOptions(), on_frame=lambda: seen.append(reader.report.frames_read))
    list(reader)
    assert seen == [*range(1, 24)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride 0 must be at least 1"),
        ({"chunk_pairs": 0}, "chunk_pairs 0"),
        ({"max_pairs_per_video": 0}, "max_pairs_per_video 0"),
        ({"max_frames_per_video": 0}, "max_frames_per_video 0"),
        ({"max_pixels": 0}, "max_pixels 0 must be at least 1"),
        ({"min_size": (0, 8)}, r"min_size \(0, 8\)"),
        ({"size": (64, 16)}, r"size \(64, 16\) must not be below min_size \(32, 32\)"),
        ({"cut_threshold": 1.0}, "cut_threshold 1.0 must be above 1"),
        ({"static_threshold": -1.0}, "static_threshold -1.0"),
        ({"fade_contrast": -1.0}, "fade_contrast -1.0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipOptions(**options)  # type: ignore[arg-type]


def joined(clips: Sequence[Path], length: int) -> Iterator[tuple[NDArray[np.uint8], bool]]:
    """The beginnings of clips one after another, each frame with whether it begins one."""
    for clip in clips:
        with av.open(str(clip)) as container:
            for i, frame in zip(range(length), container.decode(video=0), strict=False):
                yield frame.to_ndarray(format="rgb24", width=128, height=96), i == 0


def test_cuts_between_real_clips_are_found(shared_data: Path, tmp_path: Path) -> None:
    clips = sorted((shared_data / "clips").glob("*.mp4"))
    frames, begins = zip(*joined(clips, 12), strict=True)
    chunks, report = read(write(tmp_path / "a.mp4", frames, pixels="yuv420p", options={"qp": "20"}))
    crossing = [second for _, second in pairs(chunks) if begins[second]]
    assert len(crossing) <= 1, crossing
    within = report.pairs - len(crossing) + report.static_pairs
    assert within >= 0.95 * begins.count(False)


def test_real_motion_however_fast_is_no_cut(shared_data: Path) -> None:
    frames = sorted((shared_data / "frames" / "davis_bmx-trees").glob("*.jpg"))
    for stride in (1, 2):
        _, report = read(frames[::stride], size=(96, 128))
        assert report.cuts == 0
