import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowcore.datasets import DATA_SETS, DataSet, find_samples


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_an_empty_or_missing_folder_is_an_error_that_names_it_and_the_layout(
    tmp_path: Path, data_set: str
) -> None:
    folder = re.escape(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=rf"no folder {folder}; {data_set} is expected as"):
        find_samples(data_set, tmp_path / "nowhere")
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"pair with truth in {folder}; {data_set} is expected as"):
        find_samples(data_set, tmp_path / "nowhere")


def test_an_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'things'; known are sintel, kitti2012"):
        find_samples("things", tmp_path)


@given(st.sampled_from(DATA_SETS), st.text().filter(lambda root: not root.startswith("//")))
def test_a_data_set_is_what_its_text_says(name: str, root: str) -> None:
    data_set = DataSet(name, root)
    assert DataSet.parse(str(data_set)) == data_set


@pytest.mark.parametrize(
    "text",
    [
        "videos",
        "/data/sintel",
        "./sintle:/data",
        "~/take:2",
        "take:[12].mp4",
        "take:*/**",
        "C:/videos",
        "s3://bucket/sintel:1",
        "file:///data",
        "sintel://bucket/x",
        "2026-01-01T12:30.mp4",
    ],
)
def test_paths_globs_and_uris_name_no_data_set(text: str) -> None:
    assert DataSet.parse(text) is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("sintle:/data", "perhaps you meant sintel"),
        ("Sintel:data", "perhaps you meant sintel"),
        ("kitti:s3://bucket/kitti", "perhaps you meant kitti20.. or kitti20.."),
        ("file:/data", "known are sintel, .*; a URI has two slashes"),
    ],
)
def test_an_unknown_prefix_is_refused_with_the_nearest_name_or_all(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"{text}: unknown data set '{text.partition(':')[0]}' \({hint}"):
        DataSet.parse(text)


def test_a_file_that_exists_is_no_data_set_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "take:2.mp4").touch()
    assert DataSet.parse("take:2.mp4") is None
