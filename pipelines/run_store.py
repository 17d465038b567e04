"""Where are runs recorded?"""

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flowcore.extras import install_line
from pipelines.disclosure import require_one_password, without_secrets
from pipelines.installation import PROJECT_FOLDER, home_of, is_shipped_copy
from pipelines.storage import PARTIAL

_DATABASES = ("postgresql", "mysql", "mssql")
"""How the URIs of databases begin that MLflow takes, beside SQLite."""
_TIMED_DRIVERS = ("psycopg2", "psycopg", "pymysql", "mysqldb")
"""Drivers that are told how long they may wait for a connection."""


def tracking_uri(project_folder: Path = PROJECT_FOLDER) -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, or a SQLite file in the checkout, or in the current
    folder where the code is installed.

    ValueError for what would be another place in another process: a relative file, or that folder where it is
    the copy that Ray made for a job. ValueError as `disclosure.require_one_password`.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    require_one_password(uri, "MLFLOW_TRACKING_URI")
    if not uri:
        home = home_of(project_folder)
        if is_shipped_copy(home):
            raise ValueError(
                f"MLFLOW_TRACKING_URI is not set, and in {home}, Ray's copy of the working folder "
                "for this job, the runs would be lost; name a server: ray job submit --runtime-env-json "
                '\'{"env_vars": {"MLFLOW_TRACKING_URI": "http://host:5000"}}\' ...'
            )
        return f"sqlite:///{home.resolve() / 'mlflow.db'}"
    if uri.startswith("file:") or (":/" not in uri and uri != "databricks"):
        raise ValueError(
            f"MLFLOW_TRACKING_URI {uri!r} is a folder of files, which MLflow no longer writes; "
            "use sqlite:////absolute/path/mlflow.db or the http:// address of a server"
        )
    if uri.startswith("sqlite:") and sqlite_file(uri) is None:
        raise ValueError(
            f"MLFLOW_TRACKING_URI {uri!r} depends on the folder of each process; make it absolute, such as "
            f"sqlite:///{Path.cwd() / 'mlflow.db'}"
        )
    return uri


def ui_command(project_folder: Path = PROJECT_FOLDER) -> str:
    """The line to type to look at the runs; for a server, its address. Without a password in either."""
    return viewer(tracking_uri(project_folder))


def viewer(uri: str) -> str:
    """As `ui_command`, of the runs that are recorded there."""
    if uri.startswith("http"):
        return without_secrets(uri)
    program = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).parent / "mlflow")
    shown = shlex.quote(uri) if without_secrets(uri) == uri else '"$MLFLOW_TRACKING_URI"'
    return f"{shlex.join([program, 'ui', '--backend-store-uri'])} {shown}"


def client_of(uri: str) -> MlflowClient:
    """Speaks to the store; a SQLite file's tables are made by the first one who opens it, while others
    wait. Raises as `_require_database`."""
    if without_secrets(uri) != uri:
        # MLflow itself prints the address of each run that ends.
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    file = sqlite_file(uri)
    if file is None:
        if uri.startswith(_DATABASES):
            _require_database(uri)
        return MlflowClient(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f"{file.name}.lock")):
        if not file.exists():
            # Whoever is killed while the tables are made leaves a file that MLflow can't open.
            with TemporaryDirectory(prefix=".", suffix=PARTIAL, dir=file.parent) as folder:
                made = Path(folder) / file.name
                MlflowClient(f"sqlite:///{made}")
                made.replace(file)
        return MlflowClient(uri)


def _require_database(uri: str) -> None:
    """ConnectionError within seconds where a database doesn't take this connection, which MLflow would try
    ten times, for minutes. RuntimeError where its driver isn't installed."""
    address = sqlalchemy.make_url(uri)
    limits = {"connect_timeout": 5} if address.get_dialect().driver in _TIMED_DRIVERS else {}
    try:
        database = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, connect_args=limits)
    except ModuleNotFoundError as error:
        # Which driver PostgreSQL has without a name depends on SQLAlchemy's version.
        raise RuntimeError(
            f"MLFLOW_TRACKING_URI {without_secrets(uri)} takes a driver that is missing ({error}); for "
            f"PostgreSQL write postgresql+psycopg2://... and type: {install_line('server')}"
        ) from error
    try:
        database.connect().close()
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = without_secrets(" ".join(str(getattr(error, "orig", None) or error).split()))
        raise ConnectionError(
            f"the database at {without_secrets(uri)} doesn't take MLflow's connection ({reason}); start it, "
            "correct MLFLOW_TRACKING_URI, or unset it to record in a local file"
        ) from error


def sqlite_file(uri: str) -> Path | None:
    """The file of an absolute SQLite URI."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///(/[^?]+)(?:\?.*)?", uri)
    return Path(match[1]) if match else None


def unreachable(uri: str, error: MlflowException) -> ConnectionError:
    return ConnectionError(
        f"MLflow at {without_secrets(uri)} doesn't answer as MLflow ({without_secrets(str(error))}); "
        "start `mlflow server` there, correct MLFLOW_TRACKING_URI, or unset it to record in a local file"
    )


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Requests fail after one try of 5 s, not eight of 2 minutes; MLflow reads this at each request."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
