"""Locations mean the same place in every process of a job, and files there are complete or absent."""

import os
import resource
from contextlib import suppress
from pathlib import Path

import pytest
from object_storage import Bucket

from pipelines import storage
from pipelines.installation import is_shipped_copy
from pipelines.set_files import read_record


def test_a_relative_path_becomes_absolute_and_everything_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("videos", "--videos") == str(tmp_path / "videos")
    assert storage.absolute("~/videos", "--videos") == str(Path.home() / "videos")
    for location in ("s3://bucket/videos", "models:/teacher@champion", "/videos"):
        assert storage.absolute(location, "--videos") == location


def test_a_relative_path_is_refused_in_the_working_folder_of_a_ray_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert is_shipped_copy(copy)
    assert not is_shipped_copy(tmp_path)
    with pytest.raises(ValueError, match="--videos 'videos' is a relative path"):
        storage.absolute("videos", "--videos")
    assert storage.absolute("/videos", "--videos") == "/videos"


def test_a_uri_with_one_slash_is_not_taken_for_a_path() -> None:
    with pytest.raises(ValueError, match="two slashes"):
        storage.absolute("file:/data/videos", "--videos")


def test_a_folder_on_a_disk_may_be_given_as_a_file_uri() -> None:
    assert storage.shared_folder("file:///data/my%20frames", "--truth") == Path("/data/my frames")


def test_a_folder_on_object_storage_is_none_on_a_disk() -> None:
    with pytest.raises(ValueError, match=r"--truth s3://bucket/frames is a URI, and .* needs a folder"):
        storage.shared_folder("s3://bucket/frames", "--truth")


@pytest.mark.parametrize(
    ("location", "joined"),
    [
        ("/data/runs/", "/data/runs/step"),
        ("/data/what?", "/data/what?/step"),
        ("s3://bucket/runs/", "s3://bucket/runs/step"),
        ("s3://bucket/runs?region=us-east-1", "s3://bucket/runs/step?region=us-east-1"),
    ],
)
def test_a_name_goes_inside_a_folder_and_before_the_query_of_a_uri(location: str, joined: str) -> None:
    assert storage.join(location, "step") == joined
    assert storage.join(location, "") == location


@pytest.mark.parametrize(
    ("location", "ending"),
    [
        ("/data/what?.MP4", "mp4"),
        ("/data.d/.hidden", ""),
        ("s3://bucket/a.tar.gz?endpoint_override=127.0.0.1:9000", "gz"),
        ("file:///data/walk%20.png", "png"),
    ],
)
def test_an_extension_is_of_the_name_and_not_of_a_folder_or_of_a_query(location: str, ending: str) -> None:
    assert storage.extension(location) == ending


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("/data/page.html", ("/data", "page.html")),
        ("/page.html", ("/", "page.html")),
        ("/data/a%20b.html", ("/data", "a%20b.html")),
        ("s3://bucket/page.html", ("s3://bucket", "page.html")),
        ("s3://bucket/in/a%20b.html?region=us-east-1", ("s3://bucket/in?region=us-east-1", "a b.html")),
        ("file:///data/page.html", ("file:///data", "page.html")),
    ],
)
def test_a_file_is_its_folder_and_its_name(location: str, parts: tuple[str, str]) -> None:
    assert storage.split(location) == parts
    assert storage.join(*parts) == location


@pytest.mark.parametrize(
    "location", ["s3://bucket", "s3://bucket?region=us-east-1", "s3://bucket/in/", "/data/"]
)
def test_what_names_no_file_is_refused(location: str) -> None:
    with pytest.raises(ValueError, match="names no file"):
        storage.split(location)


def test_reading_survives_more_dropped_connections_than_the_client_does(bucket: Bucket) -> None:
    folder = storage.Folder(bucket.uri("folder"))
    folder.write("file", b"content" * 1000)
    # pyarrow 25 gives up after 32.
    bucket.server.cut_next = 33
    assert folder.read("file") == b"content" * 1000
    assert bucket.server.cut_next == 0


def test_a_missing_file_is_asked_for_once(bucket: Bucket) -> None:
    folder = storage.Folder(bucket.uri("folder"))
    folder.write("file", b"")
    before = bucket.server.requests
    with pytest.raises(FileNotFoundError):
        folder.read("gone")
    assert bucket.server.requests - before == 1


def test_a_missing_file_of_ours_is_looked_for_once() -> None:
    attempts = 0

    @storage.patient
    def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise FileNotFoundError("one of ours, which has no number")

    with pytest.raises(FileNotFoundError):
        fail()
    assert attempts == 1


def test_removing_a_folder_that_is_gone_does_nothing(tmp_path: Path, bucket: Bucket) -> None:
    for location in (str(tmp_path), bucket.uri("set")):
        folder = storage.Folder(location)
        folder.write("a/file", b"")
        for _ in range(2):
            folder.remove_folder("a")
        assert folder.files() == []


def test_a_library_s_own_file_appears_complete_or_not_at_all(tmp_path: Path, bucket: Bucket) -> None:
    for location in (str(tmp_path / "films"), bucket.uri("films")):
        folder = storage.Folder(location)
        with folder.writing("in/a.mp4") as path:
            path.write_bytes(b"half")
            assert list(folder.files()) == []
            path.write_bytes(b"whole")
            assert path.name == "a.mp4"
        with suppress(KeyboardInterrupt), folder.writing("in/a.mp4") as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        with folder.writing("in/none.mp4"):
            pass
        assert list(folder.infos()) == ["in/a.mp4"]
        assert folder.read("in/a.mp4") == b"whole"


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    folder = storage.Folder(str(tmp_path))
    for name in ("in/file", f"in/.file.1{storage.PARTIAL}", f"in/.2{storage.PARTIAL}/film", ".hidden/file"):
        folder.write(name, b"")
    folder.sweep()
    assert sorted(folder.infos()) == [".hidden/file", "in/file"]


def test_a_refused_write_keeps_the_old_content_and_names_place_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    storage.write_whole(path, b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk: a file may not grow beyond ten bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="free space there") as refused:
            storage.write_whole(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_file_gets_its_name_once_its_content_is_on_the_disk_where_the_name_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, flushed = os.fsync, []

    def noted(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append((place.suffix, (tmp_path / "a").exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    storage.write_whole(tmp_path / "a", b"content")
    assert flushed == [(".partial", False), (tmp_path.suffix, True)]


def test_a_record_that_is_replaced_while_it_is_read_is_read_again(bucket: Bucket) -> None:
    storage.Folder(bucket.uri("set")).write("progress.json", b'{"videos": 1}')
    bucket.server.torn_next = 1
    assert read_record(bucket.uri("set"), "progress.json") == {"videos": 1}
    bucket.server.torn_next = 2
    with pytest.raises(ValueError, match=r"progress\.json in .* is damaged"):
        read_record(bucket.uri("set"), "progress.json")
