"""What the doctor finds, of what a test can make."""

import sys
from itertools import takewhile
from pathlib import Path

import pytest

from pipelines.diagnosis import Finding, findings


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
