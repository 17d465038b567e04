"""A real MLflow server whose runs are in PostgreSQL and whose models are on S3."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ports import first_answer, free_ports


def postgresql() -> Path | None:
    """The folder of its programs, which Debian leaves off the PATH; None where it isn't installed."""
    on_path = shutil.which("initdb")
    places = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].resolve().parent if places else None


@contextlib.contextmanager
def database(programs: Path) -> Iterator[str]:
    """A PostgreSQL of its own; the URI of its database."""
    # Not in a folder of pytest's, which only this user may enter: PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    user = "nobody" if os.getuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    data, (port,) = folder / "data", free_ports(1)

    def call(program: str, *words: object) -> None:
        subprocess.run(
            [programs / program, "--pgdata", data, *map(str, words)],
            cwd=folder,
            user=user,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    call(
        "initdb", "--username", "mlflow", "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--no-locale"
    )
    options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
    call("pg_ctl", "--options", options, "--log", folder / "log", "--wait", "start")
    try:
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "--mode", "immediate", "stop")
        shutil.rmtree(folder)


@contextlib.contextmanager
def tracking_server(store: str, models: str, s3: str, log: Path) -> Iterator[str]:
    """MLflow's server over a database and a folder of the S3 server at the address `s3`; its address."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as words:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--workers", "1", "--backend-store-uri", store, "--artifacts-destination", models),
            ],
            env={
                **os.environ,
                "MLFLOW_S3_ENDPOINT_URL": s3,
                "AWS_DEFAULT_REGION": "us-east-1",
                # Each of its workers would import MLflow anew.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
    try:
        assert first_answer(f"{address}/health", server, log) == b"OK"
        yield address
    finally:
        # Its workers and those that wait for its jobs, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
