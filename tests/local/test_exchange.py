"""The Python lines of the page on using labels elsewhere, run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from clips import contents, label, render, save_teacher

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "exchange.md"
# For each library that a block imports: lines after it that fail unless the labels came over.
CHECKS = {
    "duckdb": "assert grid.shape == (2, 96 // s, 128 // s) and occluded.shape == (96, 128)",
    # On one thread: its others may outlive the interpreter, which then ends with a signal.
    "deltalake": """
        found = DeltaTable("runs/labels").to_pyarrow_dataset().to_table(use_threads=False)
        assert found.num_rows == 10 and found["image1"].null_count == 0
        """,
    "pyiceberg": """
        found = table.scan(row_filter="frame < 3").to_arrow()
        assert found.num_rows == 6 and len(found["flow_fw"][0]) > 0
        """,
    "lance": 'assert lance.dataset("runs/labels.lance").take([9]).num_rows == 1',
    "datasets": 'assert len(pairs) == 10 and pairs[0]["image1"][:1] in (b"\\xff", b"\\x89")',
    "webdataset": """
        read = list(webdataset.WebDataset("runs/labels-000000.tar", shardshuffle=False).decode())
        assert len(read) == 10 and read[0]["flow_fw.npy"].shape == (2, 96, 128)
        """,
    # Last, as other blocks import it too.
    "torch": "assert images[0].shape[1:] == (3, 64, 96) and len(dataset) > 0",
}


def blocks() -> dict[str, str]:
    """The page's blocks of Python, by the library of CHECKS that each imports, or is from."""
    found = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        imported = re.findall(r"^(?:from|import) (\w+)", block, re.MULTILINE)
        found[next(name for name in CHECKS if name in imported)] = block
    return found


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `runs/labels` has the labels of two videos."""
    folder = tmp_path_factory.mktemp("labelled")
    for seed in range(2):
        render(folder / "runs" / "videos" / f"{seed}.mp4", seed, num_frames=6, height=96, width=128)
    save_teacher(folder / "runs" / "teacher", scale=0.1)
    label(folder / "runs")
    return folder


def test_every_block_of_python_on_the_page_is_tested() -> None:
    assert blocks().keys() == CHECKS.keys()


@pytest.mark.parametrize("library", CHECKS)
def test_the_page_s_lines_bring_the_labels_over_and_leave_the_set_as_it_is(
    library: str, labelled: Path, tmp_path: Path
) -> None:
    if find_spec(library) is None:
        pytest.skip(f"no {library} here; install it as the page says to run this test")
    shutil.copytree(labelled / "runs", tmp_path / "runs")
    check = "\n".join(line.strip() for line in CHECKS[library].splitlines())
    done = subprocess.run(
        [sys.executable, "-c", f"{blocks()[library]}\n{check}"],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "runs" / "labels") == contents(labelled / "runs" / "labels")
