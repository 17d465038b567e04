"""Where does the code that runs lie? In a checkout, in Ray's copy of one, or installed as a package.

A checkout keeps what is recorded and made beside its code. Installed code has no such place: there, as with
MLflow itself, it is the folder in which a command is typed.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flowcore.extras import PACKAGE

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
"""The repository's root, Ray's copy of it, or the folder that the packages are installed in."""


def is_shipped_copy(folder: Path = PROJECT_FOLDER) -> bool:
    """True where `folder` is, or lies in, the copy of a working folder that Ray 2.60 unpacks for a job."""
    return "working_dir_files" in folder.parts


def is_installed(folder: Path = PROJECT_FOLDER) -> bool:
    """True where a wheel was installed into `folder`: its metadata lies beside the packages."""
    return any(folder.glob(f"{PACKAGE.replace('-', '_')}-*.dist-info"))


def home_of(folder: Path = PROJECT_FOLDER) -> Path:
    """Where runs are recorded and results are made unless somebody says otherwise: the checkout, or the
    current folder of code that is installed."""
    return Path.cwd() if is_installed(folder) else folder


def installed_version() -> str:
    """The version of this project that is installed; `unknown` where none is."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"
