"""Listing collections on a disk and on S3, and decoding in a process that is really killed."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import av
import cv2
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from object_storage import Bucket

from flowcore.chunks import ChunkReader, VideoReport
from flowcore.frame_codec import FrameCodec
from flowcore.video import EVERY_PAIR, ClipOptions, VideoError
from pipelines.collection import VideoSource, absolute_collection, find_videos, stamp_of
from pipelines.decoding import DecoderProcess
from pipelines.decoding_answers import EncodedChunk

JPEG = FrameCodec("jpeg")
OPTIONS = ClipOptions(chunk_pairs=4)


def moving_texture(num_frames: int, height: int = 64, width: int = 96) -> list[NDArray[np.uint8]]:
    noise = np.random.default_rng(0).uniform(0, 255, (12, 80, 3)).astype(np.float32)
    texture = (
        cv2.resize(noise, (80 * 12, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    )
    # Back and forth, so that a long video needs no wide texture.
    return [texture[:, 2 * j : 2 * j + width] for i in range(num_frames) for j in [abs((i + 40) % 80 - 40)]]


def write_video(path: Path, num_frames: int, codec: str = "libx264", container: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    container = container or ("avi" if path.suffix == ".avi" else "mp4")
    with av.open(str(path), "w", format=container) as written:
        stream = written.add_stream(codec, rate=25)
        stream.height, stream.width = 64, 96
        stream.pix_fmt, stream.options = ("yuv444p", {"qp": "4"}) if codec == "libx264" else ("yuv420p", {})
        for image in moving_texture(num_frames):
            written.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
            )
        written.mux(stream.encode(None))
    return path


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, moving_texture(len(names)), strict=True):
        cv2.imwrite(str(folder / name), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> VideoSource:
    """200 frames: chunks enough to fill the pipe several times over."""
    return VideoSource(str(write_video(tmp_path_factory.mktemp("video") / "a.mp4", 200)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "collection"
    for name in ("b.mp4", "sub/deep/a.MKV", "sub/c with space #1.avi", ".hidden.mp4", ".cache/d.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "notes.md").touch()
    write_images(root / "frames" / "walk", ["f10.png", "f9.png", "f1.png", "f100.PNG"])
    write_images(root / "frames" / "lone", ["only.png"])
    # The covers of b.mp4.
    write_images(root, ["b.png", "b_large.png"])
    return root


def expected_of(tree: str) -> list[VideoSource]:
    return [
        VideoSource(f"{tree}/b.mp4"),
        VideoSource(f"{tree}/frames/walk", ("f1.png", "f9.png", "f10.png", "f100.PNG")),
        VideoSource(f"{tree}/sub/c with space #1.avi"),
        VideoSource(f"{tree}/sub/deep/a.MKV"),
    ]


def test_a_folder_gives_its_videos_and_each_folder_of_images_sorted(tree: Path) -> None:
    assert find_videos(str(tree)) == expected_of(str(tree))
    assert find_videos(f"file://{quote(str(tree))}") == expected_of(str(tree))


def test_a_relative_path_gives_absolute_ones(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    for collection in ("collection", "collection/sub/..", f"{tree}/"):
        assert find_videos(collection) == expected_of(str(tree))


def test_globs_match_files_and_folders(tree: Path) -> None:
    b, _, c, a = expected_of(str(tree))
    assert find_videos(f"{tree}/**/*.[am]*") == [b, c]
    assert find_videos(f"{tree}/**/*.M*") == [a]
    assert find_videos(f"{tree}/s*") == [c, a]
    assert find_videos(f"{tree}/**") == expected_of(str(tree))
    assert find_videos(f"{tree}/frames/walk/f1*") == [
        VideoSource(f"{tree}/frames/walk", ("f1.png", "f10.png", "f100.PNG"))
    ]


def test_a_file_that_is_named_itself_may_end_in_anything(tree: Path) -> None:
    assert find_videos(str(tree / "notes.md")) == [VideoSource(str(tree / "notes.md"))]


def test_a_list_names_videos_folders_and_uris_each_taken_once(tree: Path) -> None:
    lists = tree.parent / "lists.txt"
    lists.write_text(
        f"# comment\n\ncollection/b.mp4\n  {tree}/b.mp4  \nfile://{quote(str(tree))}/b.mp4\n"
        "./collection/frames/\nlists/../collection/notes.md\n"
        "s3://bucket/never/asked.mp4\n"
    )
    assert find_videos(str(lists)) == [
        *expected_of(str(tree))[:2],
        VideoSource(str(tree / "notes.md")),
        VideoSource("s3://bucket/never/asked.mp4"),
    ]


def test_links_are_followed_but_not_in_circles_and_pipes_are_skipped(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.mp4").touch()
    (tree / "linked").symlink_to(elsewhere)
    (tree / "sub" / "up").symlink_to(tree)
    (tree / "gone.mp4").symlink_to(tree / "nowhere.mp4")
    os.mkfifo(tree / "pipe.mp4")
    assert find_videos(str(tree)) == sorted(
        [*expected_of(str(tree)), VideoSource(f"{tree}/linked/x.mp4")], key=lambda found: found.uri
    )


@pytest.mark.parametrize(
    ("collection", "error", "message"),
    [
        ("absent", FileNotFoundError, r"nothing is at /\S*/absent: it is neither a file"),
        ("*.absent", FileNotFoundError, r"nothing is at \S*/\*\.absent: it is neither a file"),
        ("frames/lone", FileNotFoundError, r"no video in /\S*/frames/lone: looked for .*mp4.*folders of two"),
        ("list.txt", FileNotFoundError, r"absent\.mp4: it is neither a file"),
        ("s3://key:secret@bucket/folder", ValueError, "secret"),
    ],
)
def test_a_collection_without_a_video_says_where_it_looked(
    tree: Path, monkeypatch: pytest.MonkeyPatch, collection: str, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tree)
    (tree / "list.txt").write_text("absent.mp4\n")
    with pytest.raises(error, match=message):
        find_videos(collection)


def write_kitti(root: Path, scenes: int) -> list[VideoSource]:
    """Scenes of frames 7 to 14, all in one folder; what they are as videos."""
    names = [f"{scene:06d}_{frame:02d}.png" for scene in range(scenes) for frame in range(7, 15)]
    write_images(root / "training" / "image_2", names)
    return [
        VideoSource(
            str(root / "training" / "image_2"),
            tuple(f"{scene:06d}_{frame:02d}.png" for frame in frames),
            f"{scene:06d}_{frames[0]:02d}",
        )
        for scene in range(scenes)
        for frames in ((7, 8), (13, 14))
    ]


def test_a_data_set_s_scenes_are_videos_of_names_of_their_own(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_kitti(tree / "kitti", 2)
    assert find_videos(f"kitti2015:{tree / 'kitti'}") == expected
    names = [video.name for video in expected]
    assert names[:2] == [f"{tree}/kitti/training/image_2/000000_{frame}" for frame in ("07", "13")]
    assert len(set(names)) == 4
    monkeypatch.chdir(tree)
    assert find_videos("kitti2015:kitti") == expected
    (tree / "list.txt").write_text("b.mp4\nkitti2015:kitti/training\n")
    assert find_videos("list.txt") == [VideoSource(f"{tree}/b.mp4"), *expected]
    for absent in ("absent", "kitti/training/image_2/000000_07.png"):
        with pytest.raises(FileNotFoundError, match=rf"/{absent}: no sequence .* expected as the multi-view"):
            find_videos(f"kitti2015:{absent}")


def test_a_prefix_that_is_no_data_set_s_is_refused_wherever_videos_are_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    (tree / "list.txt").write_text("b.mp4\nkitty:kitti\n")
    for collection in ("kitty:kitti", "list.txt"):
        with pytest.raises(ValueError, match=r"kitty:kitti: unknown data set 'kitty' \(known are sintel"):
            find_videos(collection)
    with pytest.raises(ValueError, match="--videos kitty:kitti: unknown data set 'kitty'"):
        absolute_collection("kitty:kitti", "--videos")


def test_a_data_set_without_frames_to_learn_from_names_no_videos() -> None:
    with pytest.raises(ValueError, match="--videos scenes:kitti: scenes has no frames to learn from"):
        absolute_collection("scenes:kitti", "--videos")


def test_a_video_may_have_a_colon_in_its_name(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "b.mp4").rename(tree / "take:2.mp4")
    (tree.parent / "list.txt").write_text("collection/take:2.mp4\n")
    (tree / "list.txt").write_text("take:2.mp4\n")
    expected = [VideoSource(f"{tree}/take:2.mp4")]
    assert find_videos(str(tree / "list.txt")) == find_videos(str(tree.parent / "list.txt")) == expected
    monkeypatch.chdir(tree)
    assert find_videos("take:2.mp4") == find_videos("take:?.mp4") == expected


def test_a_data_set_s_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_collection("chairs:data", "--videos") == f"chairs:{tmp_path}/data"
    for collection in (
        "chairs:/data",
        "sintel:s3://bucket/sintel",
        "s3://bucket/videos",
        "chairs://bucket/x",
    ):
        assert absolute_collection(collection, "--videos") == collection


def test_a_data_set_s_relative_folder_is_refused_under_a_ray_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ValueError, match="--videos 'data' is a relative path"):
        absolute_collection("chairs:data", "--videos")


def chunks_of(decoder: DecoderProcess, source: VideoSource) -> list[list[bytes]]:
    """The frames of each chunk, up to where the video breaks."""
    chunks = []
    with suppress(VideoError):
        for chunk in decoder.read(source, OPTIONS, JPEG):
            chunks.append(chunk.frames)
    return chunks


@pytest.fixture
def filled(tmp_path: Path, bucket: Bucket) -> Bucket:
    """A bucket with what lies in the folder: a video, a sequence, a list of both, and scenes of KITTI."""
    write_video(tmp_path / "in" / "a b#1.mp4", 12)
    write_images(tmp_path / "in" / "walk", ["f9.png", "f10.png"])
    (tmp_path / "in" / "list.txt").write_text("a b#1.mp4\nwalk\n")
    write_kitti(tmp_path / "kitti", 1)
    bucket.fill(tmp_path)
    return bucket


def found_in(bucket: Bucket) -> list[VideoSource]:
    return [
        VideoSource(bucket.uri("in/a%20b%231.mp4")),
        VideoSource(bucket.uri("in/walk"), ("f9.png", "f10.png")),
    ]


def test_a_bucket_is_listed_as_a_folder_is(filled: Bucket) -> None:
    found = found_in(filled)
    assert find_videos(filled.uri("in")) == find_videos(filled.uri("in/list.txt")) == found
    assert find_videos(found[0].uri) == found[:1]
    assert found[0] in find_videos(filled.uri())
    with pytest.raises(FileNotFoundError, match="is no file and no folder"):
        find_videos(filled.uri("absent"))


def test_a_data_set_on_a_bucket_is_found(filled: Bucket, tmp_path: Path) -> None:
    there = find_videos(f"kitti2015:{filled.uri('kitti')}")
    here = find_videos(f"kitti2015:{tmp_path / 'kitti'}")
    assert [video.frames for video in there] == [video.frames for video in here]
    assert there[0].name == filled.uri("kitti/training/image_2/000000_07")


def test_listing_a_bucket_gives_the_stamps_that_the_storage_gives(filled: Bucket, tmp_path: Path) -> None:
    listed = [video.listed for video in find_videos(filled.uri("in"))]
    assert listed == [stamp_of(video) for video in found_in(filled)]
    assert [stamp is not None and stamp.size for stamp in listed] == [
        (tmp_path / "in" / "a b#1.mp4").stat().st_size,
        sum(path.stat().st_size for path in (tmp_path / "in" / "walk").iterdir()),
    ]


def test_a_bucket_s_videos_are_read_as_a_folder_s_are(filled: Bucket, tmp_path: Path) -> None:
    with DecoderProcess() as decoder:
        for there, here in zip(found_in(filled), find_videos(str(tmp_path / "in")), strict=True):
            assert chunks_of(decoder, there) == chunks_of(decoder, here) != []
            assert decoder.digest(there) == decoder.digest(here)
        with pytest.raises(VideoError, match="does not exist"):
            list(decoder.read(VideoSource(filled.uri("in/gone.mp4")), OPTIONS, JPEG))


@pytest.mark.parametrize("num_frames", [40, 1200])
def test_an_object_that_changes_after_its_digest_gives_no_pair_of_what_it_became(
    tmp_path: Path, bucket: Bucket, num_frames: int
) -> None:
    path = write_video(tmp_path / "a.avi", num_frames, codec="rawvideo")
    bucket.fill(tmp_path)
    source = VideoSource(bucket.uri("a.avi"))
    content = path.read_bytes()
    with DecoderProcess() as decoder:
        complete = chunks_of(decoder, VideoSource(str(path)))
        decoder.digest(source)
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
        bucket.fill(tmp_path)
        if len(content) > 8 << 20:
            with pytest.raises(OSError, match="can't be read now: it was changed while it was read"):
                list(decoder.read(source, OPTIONS, JPEG))
        else:
            # All of it was kept since its digest.
            assert chunks_of(decoder, source) == complete
        assert chunks_of(decoder, source) != complete


def test_a_cut_off_video_on_a_bucket_gives_what_is_left(tmp_path: Path, bucket: Bucket) -> None:
    # Its index says that there is more, and FFmpeg looks for it behind the end.
    whole = write_video(tmp_path / "cut.avi", 40, codec="mpeg4").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 8 // 10])
    bucket.fill(tmp_path)
    with DecoderProcess() as decoder:
        remote = chunks_of(decoder, VideoSource(bucket.uri("cut.avi")))
        assert len(remote) > 2
        assert remote == chunks_of(decoder, VideoSource(str(tmp_path / "cut.avi")))


def test_the_process_gives_what_reading_here_gives(video: VideoSource) -> None:
    reader = ChunkReader(video.uri, OPTIONS)
    with DecoderProcess() as decoder:
        for there, here in zip(decoder.read(video, OPTIONS, FrameCodec("png")), reader, strict=True):
            assert (there.index, there.frame_indices, there.timestamps) == (
                here.index,
                here.frame_indices,
                here.timestamps,
            )
            assert (there.height, there.width) == here.frames[0].shape[:2]
            decoded = [FrameCodec("png").decode(frame) for frame in there.frames]
            np.testing.assert_array_equal(decoded, here.frames)
        assert decoder.report == reader.report == VideoReport(frames_read=200, pairs=199)
        assert (
            decoder.digest(video) == hashlib.blake2b(Path(video.uri).read_bytes(), digest_size=16).hexdigest()
        )


def test_one_process_reads_many_videos_the_unreadable_included(video: VideoSource, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with DecoderProcess() as decoder:
        assert len(list(decoder.read(video, OPTIONS, JPEG))) == 50
        pid = decoder.pid
        for name, reason in (("text.mp4", "can't be opened as a video"), ("gone.mp4", "No such file")):
            with pytest.raises(VideoError, match=reason):
                list(decoder.read(VideoSource(str(tmp_path / name)), OPTIONS, JPEG))
            assert decoder.report == VideoReport()
        with pytest.raises(VideoError, match="No such file"):
            decoder.digest(VideoSource(str(tmp_path / "gone.mp4")))
        assert len(list(decoder.read(video, OPTIONS, JPEG))) == 50
        assert decoder.pid == pid
    assert decoder.pid is None
    assert not psutil.pid_exists(pid or 0)


def test_the_digest_names_the_content_and_nothing_else(tmp_path: Path) -> None:
    names = "a.mp4", "b.mp4", "c.mp4"
    contents = b"some content" * 200_000, b"some content" * 200_000, b"some content" * 200_000 + b"!"
    for name, content in zip(names, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    with DecoderProcess() as decoder:
        a, b, c = (decoder.digest(VideoSource(str(tmp_path / name))) for name in names)
        frames = [("a.mp4",), ("b.mp4",), ("a.mp4", "c.mp4"), ("b.mp4", "c.mp4"), ("c.mp4", "a.mp4")]
        sequences = [decoder.digest(VideoSource(str(tmp_path), each)) for each in frames]
    assert a == b != c
    assert sequences[0] == sequences[1]
    assert sequences[2] == sequences[3]
    assert len({a, c, *sequences}) == 5
    assert {len(each) for each in (a, *sequences)} == {32}


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_video_that_changes_after_its_digest_gives_no_pair_of_what_it_became(
    video: VideoSource, tmp_path: Path, when: str
) -> None:
    path = tmp_path / "a.mp4"
    content = Path(video.uri).read_bytes()
    path.write_bytes(content)
    before = os.stat(path)
    source = VideoSource(str(path))
    with DecoderProcess() as decoder:
        decoder.digest(source)
        chunks = decoder.read(source, OPTIONS, JPEG)
        if when == "while":
            assert next(chunks).index == 0
        # Of the same size, and as old as before.
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(OSError, match=r"a.mp4 can't be read now: it was changed while it was read"):
            next(chunks)
        assert decoder.digest(source) != decoder.digest(video)
        assert len(list(decoder.read(source, OPTIONS, JPEG))) == 50


def test_a_video_that_is_replaced_after_its_digest_is_still_the_one_that_was_digested(
    video: VideoSource, tmp_path: Path
) -> None:
    source, other = VideoSource(str(tmp_path / "a.mp4")), write_video(tmp_path / "b.mp4", 9)
    Path(source.uri).write_bytes(Path(video.uri).read_bytes())
    with DecoderProcess() as decoder:
        complete = chunks_of(decoder, video)
        decoder.digest(source)
        os.replace(other, source.uri)
        assert chunks_of(decoder, source) == complete
        assert len(chunks_of(decoder, source)) == 2


def test_images_that_change_after_their_digest_give_no_pair_of_what_they_became(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(12)]
    write_images(tmp_path, names)
    source = VideoSource(str(tmp_path), tuple(names))
    with DecoderProcess() as decoder:
        decoder.digest(source)
        (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
        with pytest.raises(OSError, match="changed while it was read"):
            list(decoder.read(source, EVERY_PAIR, JPEG))
        # Nobody asked for a digest of it.
        assert len(list(decoder.read(source, EVERY_PAIR, JPEG))) == 1
        (tmp_path / "3.png").unlink()
        assert [chunk.frame_indices for chunk in decoder.read(source, EVERY_PAIR, JPEG)] == [[0, 1, 2]]
        assert decoder.report.truncated == "image number 3 can't be read: No such file"


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_costs_the_rest_of_one_video_and_no_other(video: VideoSource, sent: signal.Signals) -> None:
    with DecoderProcess() as decoder:
        complete = list(decoder.read(video, OPTIONS, JPEG))
        first = decoder.pid
        before: list[EncodedChunk] = []

        def read_and_kill() -> None:
            for chunk in decoder.read(video, OPTIONS, JPEG):
                before.append(chunk)
                if len(before) == 3:
                    os.kill(decoder.pid or 0, sent)

        # What the system kills may be read another time; what crashes by itself is the file's fault.
        kind = OSError if sent == signal.SIGKILL else VideoError
        with pytest.raises(kind, match=f"died with signal {sent.name}"):
            read_and_kill()
        # Some more may have been on their way.
        assert 3 <= len(before) < len(complete)
        assert [c.frames for c in before] == [c.frames for c in complete[: len(before)]]
        assert decoder.report.frames_read > 0
        assert decoder.pid is None
        assert [c.frames for c in decoder.read(video, OPTIONS, JPEG)] == [c.frames for c in complete]
        assert decoder.pid not in (None, first)


def test_a_process_that_died_between_two_videos_is_replaced(video: VideoSource) -> None:
    with DecoderProcess() as decoder:
        complete = chunks_of(decoder, video)
        os.kill(decoder.pid or 0, signal.SIGKILL)
        psutil.Process(decoder.pid).wait(timeout=120)
        assert chunks_of(decoder, video) == complete != []


def test_a_process_killed_before_it_is_ready_costs_a_video_for_now(
    video: VideoSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python runs it before everything else, here once.
    suicide = "import os, signal\nos.remove(__file__)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "sitecustomize.py").write_text(suicide)
    monkeypatch.syspath_prepend(tmp_path)
    with DecoderProcess() as decoder:
        with pytest.raises(OSError, match="SIGKILL, perhaps because memory ran out before it was ready"):
            list(decoder.read(video, OPTIONS, JPEG))
        assert len(list(decoder.read(video, OPTIONS, JPEG))) == 50


def test_a_process_without_a_sign_of_life_is_ended(video: VideoSource) -> None:
    with DecoderProcess(timeout=3) as decoder:
        chunks = decoder.read(video, OPTIONS, JPEG)
        next(chunks)
        stopped = decoder.pid
        os.kill(stopped or 0, signal.SIGSTOP)
        with pytest.raises(OSError, match="no sign of life for 3 s"):
            list(chunks)
        assert not psutil.pid_exists(stopped or 0)
        assert len(list(decoder.read(video, OPTIONS, JPEG))) == 50


def test_a_reading_that_is_broken_off_leaves_nothing_for_the_next(video: VideoSource) -> None:
    with DecoderProcess() as decoder:
        chunks = decoder.read(video, OPTIONS, JPEG)
        next(chunks)
        with pytest.raises(RuntimeError, match="one video at a time"):
            decoder.digest(video)
        chunks.close()
        assert [c.index for c in decoder.read(video, OPTIONS, JPEG)] == list(range(50))


def test_a_process_ends_with_its_parent_even_while_it_waits(video: VideoSource) -> None:
    # The script has no main guard and blocks, with the pipe full, until it is killed.
    script = f"""
import sys
from flowcore.video import ClipOptions
from flowcore.frame_codec import FrameCodec
from pipelines.collection import VideoSource
from pipelines.decoding import DecoderProcess
decoder = DecoderProcess()
chunks = decoder.read(VideoSource({video.uri!r}), ClipOptions(chunk_pairs=4), FrameCodec("png"))
next(chunks)
print(decoder.pid, flush=True)
sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.ppid() == parent.pid
        parent.kill()
    child.wait(timeout=120)


@pytest.mark.parametrize("folder", ["odd", "clips", "frames"])
def test_every_real_file_gives_chunks_or_a_reason(shared_data: Path, folder: str) -> None:
    options = ClipOptions(size=(64, 64), max_pairs_per_video=4, chunk_pairs=3)
    reasons: dict[str, str] = {}
    with DecoderProcess() as decoder:
        first = None
        for source in find_videos(str(shared_data / folder)):
            try:
                chunks = list(decoder.read(source, options, JPEG))
            except VideoError as error:
                reasons[Path(source.uri).name] = str(error)
                assert decoder.report.pairs == 0
            else:
                num_pairs = sum(len(c.frames) - 1 for c in chunks)
                assert 1 <= num_pairs == decoder.report.pairs <= 4
                assert all(min(c.height, c.width) >= 48 for c in chunks)
                assert all(
                    JPEG.decode(frame).shape == (c.height, c.width, 3) for c in chunks for frame in c.frames
                )
            first = first or decoder.pid
            assert decoder.pid == first, "no file may need a new process"
    expected = {"odd": ODD_REASONS, "clips": {}, "frames": {}}[folder]
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert re.search(reason, reasons[name]), (name, reasons[name])


def test_odd_videos_look_as_another_reader_shows_them(shared_data: Path) -> None:
    options = replace(EVERY_PAIR, max_pairs_per_video=3, chunk_pairs=3)
    compared = 0
    for source in find_videos(str(shared_data / "odd")):
        if Path(source.uri).name in OPENCV_FAILS:
            continue
        try:
            (chunk,) = ChunkReader(source.uri, options)
        except VideoError:
            continue
        capture = cv2.VideoCapture(source.uri)
        for index, frame in enumerate(chunk.frames):
            _, image = capture.read()
            assert chunk.frame_indices[index] == index
            # In three bytes a pixel, rounded otherwise and with chroma of another filter.
            difference = np.abs(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(int) - frame).mean()
            assert difference < 4, (source.uri, index)
        compared += 1
    assert compared > 25


OPENCV_FAILS = {
    "bgslibrary__demo.avi": "crashes",
    "libopenshot__test1.mp4": "interlaced, which it shows as stripes",
    "media__hdr10-av1.mp4": "no AV1",
    "media__sample_av1.mp4": "no AV1",
    "media__sample_rotate_and_reflect.mp4": "turned, not reflected",
    "mmagic__test_inference.mp4": "noise, of which chroma's filter decides",
    "torchcodec__av1_video.mkv": "no AV1",
}
"""Of the same folder, what OpenCV can't show right."""

ODD_REASONS = {
    "decord__unordered.mov": "3 of fades or blank frames",
    "media__sample_audio_only.mp4": "no video stream",
    "media__sample_av1.mp4": "29 static pairs",
    "mediabunny__edts.mp4": "224 of fades or blank frames",
    "mmagic__test_inference.mp4": "4 cuts",
    "moviepy__bitmap.mp4": "too small: frames are 1x1",
    "mp4parse-rust__bbb_sunflower_QCIF_30fps_h263_noaudio_1f.3gp": "no pair in 1 frame",
    "mp4parse-rust__h264_white_frame_sar_16_9.mp4": "no pair in 1 frame",
    "mp4parse-rust__invalid_userdata.mp4": "no intact frame",
    "mp4parse-rust__minimal.mp4": "no pair in 1 frame",
    "mp4parse-rust__white.mp4": "299 of fades or blank frames",
    "mp4parse-rust__zero_empty_stsc.mp4": "no intact frame",
    "small__Mpeg4.mp4": "no video stream",
    "small__webm.webm": "too small: frames are 8x8",
}
"""What the folder of awkward videos holds that no pair can be had from."""
