"""Real servers for all tests, started once and shared; each test takes buckets and databases of its own."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from scripts.local_servers import Gateway, Nats, PostgreSQL, S3Server, SeaweedFS
from webhook.ledger import Ledger

_numbers = itertools.count(1)
settings.register_profile("usual", deadline=None)
settings.register_profile("long", max_examples=10_000, deadline=None)  # but where a test says how many
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))
# Run in the background of a shell, this process ignores SIGINT, and so would the programs whose end by Ctrl-C
# is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A MinIO-API source without notifications; tests of events start one of their own."""
    with Gateway(tmp_path_factory.mktemp("gateway")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """An independent S3 server."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """A PostgreSQL server."""
    with PostgreSQL(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Nats]:
    """A NATS server with JetStream and without a stream."""
    with Nats(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def new_bucket() -> Callable[[S3Server], str]:
    """Makes a bucket that no other test knows, and gives its name."""

    def make(server: S3Server) -> str:
        name = f"bucket-{next(_numbers)}"
        server.client().make_bucket(bucket_name=name)
        return name

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail(f"cannot mount a small file system: {mounted.stderr.decode()}")
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.create_database(f"ledger_{next(_numbers)}")


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    """An empty ledger on each engine in turn."""
    opened = Ledger.open(database_url)
    yield opened
    opened.close()
