"""Locations that mean the same place in every process of a job."""

import resource
from pathlib import Path

import pytest

from pipelines import locations


def test_a_relative_path_is_made_absolute_and_uris_and_absolute_paths_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locations.absolute("videos", "--videos") == str(tmp_path / "videos")
    assert locations.absolute("~/videos", "--videos") == str(Path.home() / "videos")
    for location in ("s3://bucket/videos", "models:/teacher@champion", "/videos"):
        assert locations.absolute(location, "--videos") == location


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
    assert locations.join(location, "step") == joined


def test_a_relative_path_is_refused_in_the_working_folder_of_a_ray_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert locations.is_shipped_copy(copy)
    assert not locations.is_shipped_copy(tmp_path)
    with pytest.raises(ValueError, match="--videos 'videos' is a relative path"):
        locations.absolute("videos", "--videos")
    assert locations.absolute("/videos", "--videos") == "/videos"


def test_a_write_that_the_system_refuses_keeps_what_was_there_and_names_place_and_remedy(
    tmp_path: Path,
) -> None:
    path = tmp_path / "folder" / "file"
    locations.write_whole(path, b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # as on a full disk: a file may not grow beyond ten bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="free space there") as refused:
            locations.write_whole(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
