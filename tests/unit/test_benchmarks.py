"""Scripts that measure or make pages: each says how it is run, and what names one names it rightly."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from benchmarks import report
from docs.make import results

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for folder in ("benchmarks", "docs/make")
    for path in (REPOSITORY / folder).rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)

PAGES = [path for path in results.PAGES if "<!-- benchmarks" in path.read_text()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_how_it_is_run(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert f"    python -m {script}" in capsys.readouterr().out


def test_every_script_that_a_page_or_a_docstring_names_exists() -> None:
    folders = ("flowcore", "pipelines", "jobs", "tests", "benchmarks", "docs")
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.*")]
    texts = [path.read_text() for path in (*paths, *REPOSITORY.glob("*.md")) if path.suffix in (".md", ".py")]
    modules = {name for text in texts for name in re.findall(r"-m ((?:benchmarks|docs\.make)\.[\w.]+)", text)}
    assert modules <= set(SCRIPTS)
    files = {name for text in texts for name in re.findall(r"\b(?:benchmarks|docs/make)/[\w/]+\.py\b", text)}
    assert {name for name in files if not (REPOSITORY / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_the_tables_of_a_page_are_those_of_the_records_beside_it(page: Path) -> None:
    text = page.read_text()
    emptied = re.sub(r"(<!-- benchmarks\S+ -->\n\n).*?(\n\n<!-- end)", r"\1\2", text, flags=re.DOTALL)
    assert len(emptied) < len(text)
    assert results.filled(emptied) == text


def test_kendalls_tau_is_the_share_of_the_pairs_in_order_less_that_of_the_others() -> None:
    assert report.tau([1, 2, 3], [10, 20, 30]) == 1
    assert report.tau([3, 2, 1], [10, 20, 30]) == -1
    # Of six pairs five are in order.
    assert report.tau([1, 2, 4, 3], [10, 20, 30, 40]) == pytest.approx(4 / 6)
    # An equal one is neither.
    assert report.tau([1, 1, 2], [10, 20, 30]) == pytest.approx(2 / 3)
