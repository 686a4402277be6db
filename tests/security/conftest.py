"""The service behind gunicorn, asked byte by byte; clients of it; and a store that does as it pleases."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from flask.testing import FlaskClient

from scripts.local_processes import LOOPBACK
from scripts.local_service import Replicator
from tests.integration.test_wire import Listener, listening
from tests.unit.conftest import MakeClient, _logging_as_it_was, environ, make_client

__all__ = ["_logging_as_it_was", "environ", "listening", "make_client"]

BOUND_S = 30.0
NOBODY = cast(Any, SimpleNamespace(endpoint=f"http://{LOOPBACK}:9", access_key="key", secret_key="s3cr3t"))
"""A store at a port where nobody answers."""
HOOK_TOKEN, API_TOKEN = "hook-s3cr3t-0123456789", "api-s3cr3t-0123456789"
HOOK, API = ({"Authorization": f"Bearer {token}"} for token in (HOOK_TOKEN, API_TOKEN))
TOKENS = {"WEBHOOK_AUTH_TOKEN": HOOK_TOKEN, "API_TOKEN": API_TOKEN}
EVENTS = "/minio/events"
ENVIRON = {
    f"{side}_{name}": value
    for side, scheme in (("MINIO", "http"), ("FILEBASE", "https"))
    for name, value in {
        "ENDPOINT": f"{scheme}://{LOOPBACK}:9",
        "ACCESS_KEY": "key-s3cr3t",
        "SECRET_KEY": "secret-s3cr3t",
        "BUCKET": f"{side.lower()}-bucket",
    }.items()
} | {"MINIO_BUCKET": "source-bucket"}
"""What must be set, and no more."""
Listen = Callable[[Callable[[socket.socket, int], None]], Listener]


class OnLoopback(Replicator):
    """The service behind gunicorn as a deployment runs it, but on IPv4's loopback, so that callers come from
    an address that gunicorn trusts like a proxy's.
    """

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"GUNICORN_CMD_ARGS": f"--bind {LOOPBACK}:{self.port}"}


@contextmanager
def serving(folder: Path, kind: type[OnLoopback] = OnLoopback, **more: str) -> Iterator[Replicator]:
    """It runs, its stores away."""
    away = {"FILEBASE_ENDPOINT": f"https://{LOOPBACK}:9"}
    places = {"source": NOBODY, "source_bucket": "source", "target": NOBODY, "target_bucket": "target"}
    made = kind(folder, **places, environ=away | more)
    made.start()
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicator]:
    """It runs, with both tokens set."""
    with serving(tmp_path_factory.mktemp("served"), **TOKENS) as running:
        yield running


@pytest.fixture
def client(make_client: MakeClient) -> FlaskClient:
    """A client on the service's own machine, where no token is set."""
    return make_client()


@pytest.fixture(scope="session")
def open_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicator]:
    """It runs without a token: open to its own machine alone."""
    with serving(tmp_path_factory.mktemp("open"), LOG_FORMAT="json", **dict.fromkeys(TOKENS, "")) as running:
        yield running


def status_of(answer: bytes) -> int:
    """The status of an answer as it came."""
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert found, answer[:200]
    return int(found[1])


def ask(server: Replicator, head: str, body: bytes = b"", *, is_whole: bool = True) -> bytes:
    """The whole answer to a request, sent as it is; `head` without Host, Connection and the blank line."""
    with socket.create_connection((LOOPBACK, server.port), timeout=BOUND_S) as connection:
        lines = [*head.splitlines(), f"Host: localhost:{server.port}", "Connection: close", "", ""]
        with suppress(OSError):  # it may answer, and hang up, before it has heard all
            connection.sendall("\r\n".join(lines).encode("latin-1") + body)
            if is_whole:
                connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer
