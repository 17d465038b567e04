"""What the tests of this folder share: an embedded Ray, which takes seconds to start, and an S3 server."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from object_storage import Bucket, Quiet, Server
from werkzeug.serving import make_server

from jobs.command import connect

# Whoever asks the S3 server needs some, Ray's workers too.
os.environ.update(AWS_ACCESS_KEY_ID="-", AWS_SECRET_ACCESS_KEY="-", AWS_EC2_METADATA_DISABLED="true")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[Server, int]]:
    application = Server()
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield application, server.server_port
    server.shutdown()


@pytest.fixture
def bucket(s3_server: tuple[Server, int], tmp_path: Path) -> Bucket:
    server, port = s3_server
    server.refused_share = server.cut_share = 0.0
    server.refused = server.cut = 0
    name = "".join(each for each in tmp_path.name.lower() if each.isalnum())
    return Bucket(name, server, port)
