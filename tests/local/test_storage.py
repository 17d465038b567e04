"""Locations that mean the same place in every process of a job."""

import resource
from pathlib import Path

import pytest
from object_storage import Bucket

from pipelines import storage


def test_a_relative_path_is_made_absolute_and_uris_and_absolute_paths_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("videos", "--videos") == str(tmp_path / "videos")
    assert storage.absolute("~/videos", "--videos") == str(Path.home() / "videos")
    for location in ("s3://bucket/videos", "models:/teacher@champion", "/videos"):
        assert storage.absolute(location, "--videos") == location


@pytest.mark.parametrize(
    ("location", "joined"),
    [
        ("/data/runs/", "/data/runs/step"),
        ("/data/what?", "/data/what?/step"),
        ("s3://bucket/runs/", "s3://bucket/runs/step"),
        ("s3://bucket/runs?region=us-east-1", "s3://bucket/runs/step?region=us-east-1"),
    ],
)
def test_a_name_goes_inside_a_folder_and_before_a_uri_s_query(location: str, joined: str) -> None:
    assert storage.join(location, "step") == joined


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
def test_a_file_s_location_is_its_folder_and_its_name(location: str, parts: tuple[str, str]) -> None:
    assert storage.split(location) == parts
    assert storage.join(*parts) == location


@pytest.mark.parametrize(
    "location", ["s3://bucket", "s3://bucket?region=us-east-1", "s3://bucket/in/", "/data/"]
)
def test_what_names_no_file_is_refused(location: str) -> None:
    with pytest.raises(ValueError, match="names no file"):
        storage.split(location)


def test_a_uri_with_one_slash_is_refused_and_not_taken_for_a_path() -> None:
    with pytest.raises(ValueError, match="two slashes follow its scheme"):
        storage.absolute("file:/data/videos", "--videos")


def test_reading_outlasts_more_cut_off_answers_than_the_client_asks_for(bucket: Bucket) -> None:
    folder = storage.Folder(bucket.uri("folder"))
    folder.write("file", b"content" * 1000)
    bucket.server.cut_next = 40
    assert folder.read("file") == b"content" * 1000
    assert bucket.server.cut_next == 0


def test_what_is_missing_is_not_asked_for_again(bucket: Bucket) -> None:
    folder = storage.Folder(bucket.uri("folder"))
    folder.write("file", b"")
    before = bucket.server.requests
    with pytest.raises(FileNotFoundError):
        folder.read("gone")
    assert bucket.server.requests - before == 1
    attempts = 0

    @storage.patient
    def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise FileNotFoundError("of our own, without a number")

    with pytest.raises(FileNotFoundError):
        fail()
    assert attempts == 1


def test_a_folder_that_is_gone_is_removed(tmp_path: Path, bucket: Bucket) -> None:
    for location in (str(tmp_path), bucket.uri("set")):
        folder = storage.Folder(location)
        folder.write("a/file", b"")
        for _ in range(2):
            folder.remove_folder("a")
        assert folder.files() == []


def test_a_relative_path_is_refused_in_the_working_folder_of_a_ray_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert storage.is_shipped_copy(copy)
    assert not storage.is_shipped_copy(tmp_path)
    with pytest.raises(ValueError, match="--videos 'videos' is a relative path"):
        storage.absolute("videos", "--videos")
    assert storage.absolute("/videos", "--videos") == "/videos"


def test_a_write_that_the_system_refuses_keeps_what_was_there_and_names_place_and_remedy(
    tmp_path: Path,
) -> None:
    path = tmp_path / "folder" / "file"
    storage.write_whole(path, b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # as on a full disk: a file may not grow beyond ten bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="free space there") as refused:
            storage.write_whole(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
