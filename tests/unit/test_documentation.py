"""The pages' commands and links, compared with what there is."""

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.make import walk
from jobs.commands import COMMANDS, options_of_job

REPOSITORY = Path(__file__).resolve().parents[2]
OF_CODE_HOST = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
"""Pages that aren't part of the site, whose links Sphinx doesn't follow."""
CARDS = sorted((REPOSITORY / "pipelines" / "shipped").glob("*/README.md"))
PAGES = [*OF_CODE_HOST[:2], *sorted((REPOSITORY / "docs").rglob("*.md")), *CARDS]
JOBS = [
    path.stem
    for path in (REPOSITORY / "jobs").glob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text()
]


def blocks(page: Path) -> str:
    """The lines of a page's blocks of code, continued ones joined."""
    found = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return "".join(found).replace("\\\n", " ")


def job_commands() -> Iterator[tuple[str, str, list[str]]]:
    """(page, job, its words) of every command that runs a job."""
    for page in PAGES:
        name = str(page.relative_to(REPOSITORY))
        for job, words in re.findall(r"python jobs/(\w+)\.py(.*)", blocks(page)):
            yield name, job, shlex.split(words, comments=True)
        for command, words in re.findall(r"^distillflow ([a-z][a-z-]*)(.*)", blocks(page), re.MULTILINE):
            yield name, COMMANDS[command], shlex.split(words, comments=True)


@pytest.mark.parametrize("page", OF_CODE_HOST, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_command_in_the_pages_has_options_that_its_job_has() -> None:
    unknown = []
    for page, job, words in job_commands():
        by_recipe = options_of_job(job)
        recipe = "" if "" in by_recipe else next(iter(words), "demo")
        # The tutorial's variable.
        known = by_recipe["smoke" if recipe == "$RECIPE" else recipe]
        names = {option.name for option in known} | {"--help", "--help-all"}
        unknown += [(page, job, word) for word in words if word.startswith("--") and word not in names]
    assert unknown == []


class _Parser(Exception):  # noqa: N818 - it carries a parser out of a script that would go on to measure
    pass


def parser_of(script: str, patch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a script makes of its own before it does anything else."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Parser(parser)

    main = importlib.import_module(script).main
    with patch.context() as here:
        here.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(_Parser) as stopped:
            main()
    parser = stopped.value.args[0]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def script_commands() -> dict[str, list[tuple[str, list[str]]]]:
    """(page, its words) of every command that runs a script of ours, by script."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for page in PAGES:
        inline = re.findall(r"`(python -m [^`]+)`", page.read_text())
        for command in (*blocks(page).splitlines(), *inline):
            for script, words in re.findall(
                r"python -m ((?:benchmarks|docs\.make)\.[\w.]+)([^\n]*)", command
            ):
                found.setdefault(script, []).append(
                    (str(page.relative_to(REPOSITORY)), shlex.split(words, comments=True))
                )
    return found


@pytest.mark.parametrize("script", script_commands())
def test_every_script_takes_the_words_that_the_pages_give_it(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    parser = parser_of(script, monkeypatch)
    for page, words in script_commands()[script]:
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"{page}: {shlex.join(words)}: {capsys.readouterr().err}")


def test_no_two_commands_of_the_pages_write_into_one_place() -> None:
    # What each job writes; the others only read --labels.
    written = dict.fromkeys(("predict", "submit", "export_labels", "export_model"), "--output")
    written |= {"gallery": "--output", "pseudolabel": "--labels", "import_labels": "--labels"}
    writers: dict[str, set[str]] = {}
    for _, job, words in job_commands():
        if written.get(job) in words and "--status" not in words:
            place = words[words.index(written[job]) + 1]
            writers.setdefault(place, set()).add(shlex.join([job, *words]))
    assert {place: commands for place, commands in writers.items() if len(commands) > 1} == {}


def test_every_option_that_a_sentence_names_is_one_of_some_job() -> None:
    # Those of a part, such as --training.steps: other programs have none with a dot.
    known = {option.name for job in JOBS for each in options_of_job(job).values() for option in each}
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"(?<!-)--[a-z][a-z0-9-]*(?:\.[a-z0-9-]+)+", page.read_text())
    }
    assert {(page, name) for page, name in named if name not in known} == set()


def test_every_job_is_a_command() -> None:
    assert sorted(COMMANDS.values()) == sorted(JOBS)


def test_every_job_has_a_page_in_the_reference() -> None:
    assert {path.stem for path in (REPOSITORY / "docs" / "reference" / "jobs").glob("*.md")} == {
        *JOBS,
        "index",
    }


def test_every_target_that_the_pages_make_is_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = {target for page in PAGES for target in re.findall(r"^make (\w+)", blocks(page), re.MULTILINE)}
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()


def test_the_architecture_names_every_module_and_no_other() -> None:
    page = (REPOSITORY / "docs" / "explanation" / "architecture.md").read_text()
    named = set()
    for cell in re.findall(r"^\| (`(?:flowcore|pipelines|jobs)/.*?) \|", page, re.MULTILINE):
        first, *others = re.findall(r"`([\w./]+\.py)`", cell)
        named |= {first, *(f"{first.rpartition('/')[0]}/{other}" for other in others)}
    modules = {
        str(path.relative_to(REPOSITORY))
        for folder in ("flowcore", "pipelines", "jobs")
        for path in (REPOSITORY / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert named == modules


def test_the_walk_of_a_new_user_shows_every_step_as_it_is_typed_today() -> None:
    page = (REPOSITORY / "docs" / "how-to" / "walk.md").read_text()
    shown = re.findall(r"^```text\n\$ (.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for block, step in zip(shown, walk.STEPS, strict=True):
        assert block.startswith(f"{step.typed}\n")
        assert step.says in page


def test_the_pages_name_the_locked_torch() -> None:
    (locked,) = re.findall(r"^torch==([\d.]+)\+cpu", (REPOSITORY / "torch-cpu.txt").read_text(), re.MULTILINE)
    named = {version for page in PAGES for version in re.findall(r"torch==([\d.]+)\+cpu", page.read_text())}
    assert named == {locked}
