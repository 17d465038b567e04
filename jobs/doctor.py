"""Checks what the commands need on this machine, with a remedy for whatever doesn't work.

    python jobs/doctor.py

It looks at Python and its packages, GPUs, the formats of videos, OpenCV, the sandbox that videos are decoded
in, MLflow, Ray, disk and memory. The exit status is 1 if something is broken that the commands need.
"""

import textwrap
from dataclasses import dataclass

from jobs.command import run
from jobs.manual import WIDTH
from pipelines.diagnosis import Finding, findings
from pipelines.disclosure import tell


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Options of doctor."""


def main(stage: Doctor) -> None:
    broken = []
    for finding in findings():
        tell(_told(finding))
        if finding.state == "broken":
            broken.append(finding.part)
    if broken:
        raise RuntimeError(f"the commands need what is broken here: {', '.join(dict.fromkeys(broken))}")


def _told(finding: Finding) -> str:
    """A finding in lines of the width of a help text."""
    begin = f"{finding.state:<7} {finding.part:<9} "
    margin = " " * len(begin)
    lines = [finding.found, *([f"-> {finding.remedy}"] if finding.remedy else [])]
    filled = [
        textwrap.fill(
            line,
            WIDTH,
            initial_indent=begin if at == 0 else margin,
            subsequent_indent=margin,
            break_on_hyphens=False,
            break_long_words=False,
        )
        for at, line in enumerate(lines)
    ]
    return "\n".join(filled)


if __name__ == "__main__":
    run(main, Doctor)
