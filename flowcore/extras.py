"""How is what this project can do without installed? By the project's metadata, which a wheel has as well."""

from importlib.metadata import PackageNotFoundError, metadata, requires
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "distillflow-ray"
"""This project, as it is installed. It is on no package index."""


def extras() -> list[str]:
    """Their names; PackageNotFoundError where this project isn't installed."""
    return metadata(PACKAGE).get_all("Provides-Extra") or []


def requirements(extra: str = "") -> "list[Requirement]":
    """What this project needs on this machine, or what one of its extras adds to that; PackageNotFoundError
    where it isn't installed."""
    lines = requires(PACKAGE) or []
    # Ray and MLflow bring it.
    from packaging.requirements import Requirement

    def is_needed(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    named = [Requirement(line) for line in lines]
    always = [each for each in named if is_needed(each, "")]
    return [each for each in named if each not in always and is_needed(each, extra)] if extra else always


def installing(needed: "list[Requirement]") -> str:
    """The line to type for these packages."""
    return "pip install " + " ".join(f"'{each.name}{each.specifier}'" for each in needed)


def install_line(extra: str) -> str:
    """The line to type for the packages of an extra."""
    try:
        return installing(requirements(extra))
    except PackageNotFoundError:
        # Then the code is a checkout's.
        return f"pip install -e '.[{extra}]'"


def extra_of(module: str) -> str | None:
    """The extra that brings a module, such as `server` for psycopg2; None where no extra does."""
    try:
        names = extras()
    except PackageNotFoundError:
        return None
    wanted = module.partition(".")[0].replace("_", "-")
    for extra in names:
        # PostgreSQL's driver comes as psycopg2 and, with the libraries that it needs, as psycopg2-binary.
        if wanted in {each.name.removesuffix("-binary") for each in requirements(extra)}:
            return extra
    return None
