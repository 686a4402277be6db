"""A complete environment, clients of the service in it, and logging left as it was found."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from flask.testing import FlaskClient

from webhook import settings
from webhook.app import create_app

MakeClient = Callable[..., FlaskClient]


@pytest.fixture
def environ() -> dict[str, str]:
    """What must be set, and nothing more. Every secret in these tests holds the word "s3cr3t"."""
    return {
        "MINIO_ENDPOINT": "http://127.0.0.1:9",
        "MINIO_ACCESS_KEY": "minio-key-s3cr3t",
        "MINIO_SECRET_KEY": "minio-secret-s3cr3t",
        "MINIO_BUCKET": "source-bucket",
        "FILEBASE_ENDPOINT": "https://127.0.0.1:9",
        "FILEBASE_ACCESS_KEY": "filebase-key-s3cr3t",
        "FILEBASE_SECRET_KEY": "filebase-secret-s3cr3t",
        "FILEBASE_BUCKET": "target-bucket",
    }


@contextmanager
def opened(environ: dict[str, str], folder: Path) -> Iterator[MakeClient]:
    """Makes clients of applications whose environment is extended by keywords; closes what they hold."""
    made = []

    def make(**variables: str) -> FlaskClient:
        more = {"DATABASE_URL": f"sqlite:///{folder}/ledger.db", **variables}
        app = create_app(settings.from_environ(environ | more, folder))
        made.append(app)
        return app.test_client()

    yield make
    for app in made:
        app.extensions["service"].close()


@pytest.fixture
def make_client(environ: dict[str, str], tmp_path: Path) -> Iterator[MakeClient]:
    """Makes a client of an application whose environment is extended by keywords."""
    with opened(environ, tmp_path) as make:
        yield make


@pytest.fixture
def client(make_client: MakeClient) -> FlaskClient:
    """A client on the service's own machine, where no token is set."""
    return make_client()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    for name, module in list(sys.modules.items()):  # each has a logger that keeps its first configuration
        if name.startswith("webhook.") and hasattr(module, "log"):
            vars(module.log).pop("bind", None)
