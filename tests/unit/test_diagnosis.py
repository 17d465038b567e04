"""What the doctor finds, of what a test can make."""

import sys
import tomllib
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

from flowcore import extras
from flowcore.extras import PACKAGE
from pipelines.diagnosis import Finding, findings

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def first_of(part: str) -> Finding:
    # What comes after it isn't asked for.
    return next(dropwhile(lambda finding: finding.part != part, findings()))


def of_python() -> list[Finding]:
    return list(takewhile(lambda finding: finding.part == "Python", findings()))


@pytest.mark.parametrize(("never_written", "states"), [(True, ["ok", "note"]), (False, ["ok"])])
def test_packages_that_each_process_would_compile_anew_are_a_note_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, never_written: bool, states: list[str]
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", never_written)
    found = of_python()
    assert [each.state for each in found] == states
    assert all("compileall" in each.remedy for each in found if each.state == "note")


def test_the_doctor_knows_each_extra_that_a_user_may_install() -> None:
    named = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"].keys()
    found = first_of("extras").found
    assert {*found.replace("no ", "").replace(",", " ").split()} >= named - {"dev", "docs"}


def test_nothing_is_installed_by_a_name_that_nobody_owns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PACKAGE not in first_of("extras").found
    monkeypatch.setattr(extras, "PACKAGE", "distillflow-of-nobody")
    absent = first_of("packages")
    assert absent.state == "broken"
    assert "the file of its wheel" in absent.remedy
    assert "distillflow" not in absent.remedy
