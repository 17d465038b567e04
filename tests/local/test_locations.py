"""Locations that mean the same place in every process of a job."""

from pathlib import Path

import pytest

from pipelines import locations


def test_a_relative_path_is_made_absolute_and_uris_and_absolute_paths_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locations.absolute("videos", "--videos") == str(tmp_path / "videos")
    assert locations.absolute("~/videos", "--videos") == str(Path.home() / "videos")
    for location in ("s3://bucket/videos", "models:/teacher@champion", "/videos", "torchvision:raft_small"):
        assert locations.absolute(location, "--videos") == location


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
