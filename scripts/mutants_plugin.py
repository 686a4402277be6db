"""For pytest under mutmut, which runs it many times in forks of one process."""

from __future__ import annotations

import atexit
import itertools
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import tests.conftest
from scripts.local_servers import Gateway, PostgreSQL, S3Server, SeaweedFS

SERVERS = {"gateway": Gateway, "seaweed": SeaweedFS, "postgresql": PostgreSQL}
_started: dict[str, S3Server | PostgreSQL] = {}
_stack = ExitStack()
_owner = os.getpid()

settings.register_profile("mutants", deadline=None, derandomize=True, database=None)
settings.load_profile("mutants")  # no property depends on speed or chance
SeaweedFS.VOLUMES_PER_BUCKET, SeaweedFS.VOLUMES_MAX = 1, 1_000_000  # of far more buckets than one run makes


def pytest_sessionstart() -> None:
    """No run makes a bucket or database that another one has made."""
    tests.conftest._numbers = itertools.count(time.time_ns())


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Any:
    """Servers are started once, before the first fork, and end with the process that started them."""
    if fixturedef.argname not in SERVERS or fixturedef.scope != "session":
        return None
    server = _server(fixturedef.argname)
    fixturedef.cached_result = (server, fixturedef.cache_key(request), None)
    return server


def _server(name: str) -> S3Server | PostgreSQL:
    if name not in _started:
        folder = Path(_stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-")))
        _started[name] = _stack.enter_context(SERVERS[name](folder))
        atexit.unregister(_started[name].kill)
    return _started[name]


@atexit.register
def _end() -> None:
    if os.getpid() == _owner:
        _stack.close()


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Generator[None, object, object]:
    """Plain ids: a test whose id no command line takes could not be run, which would count as noticed."""
    found = yield
    return [_renamed(item, n) for n, item in enumerate(found)] if isinstance(found, list) else found


def _renamed(item: pytest.Function, number: int) -> pytest.Function:
    if item.name.translate(str.maketrans("", "", "[]-")).isidentifier():
        return item
    callspec = replace(item.callspec, _idlist=[*_engine(item.callspec.id), str(number)])
    return pytest.Function.from_parent(
        item.parent,
        name=f"{item.originalname}[{callspec.id}]",
        originalname=item.originalname,
        callspec=callspec,
        fixtureinfo=item._fixtureinfo,
        keywords={callspec.id: True},
    )


def _engine(name: str) -> list[str]:
    """What `-k` asks for."""
    return [engine for engine in ("sqlite", "postgresql") if engine in name]
