"""The scale benchmark's page: how fast the status page and the API answer with a large ledger.

One web process, as the Procfile starts it, which does not replicate meanwhile; one client that signed in and
keeps its connection open. The clock runs from the request to the whole answer.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa

from scripts.bench_peers import RULE, BenchError
from scripts.bench_scale_ledger import fill
from scripts.local_servers import PostgreSQL, S3Server, SeaweedFS
from scripts.local_service import API_TOKEN, Replicator
from webhook.database import connect
from webhook.entries import FAILED
from webhook.pages.sessions import TOKEN_FIELD
from webhook.tables import ENTRIES

FAILURES = 10_000
REASONS = ("target_store_refused", "target_store_denied", "integrity")
GOAL_MS = 200.0
FAIL_BATCH = 500


@dataclass(frozen=True)
class Answered:
    """How long one address took, in milliseconds."""

    first_ms: float
    """Right after the start."""
    median_ms: float
    slowest_ms: float
    bytes: int


def measure_pages(
    folder: Path, rows: int, rounds: int, say: Callable[[str], object]
) -> dict[str, dict[str, Answered]]:
    """Engine → what was asked for → how long it took."""
    found = {}
    with SeaweedFS(folder / "seaweed") as store, PostgreSQL(folder / "postgresql") as server:
        urls = {
            "SQLite": f"sqlite:///{folder}/pages.db",
            "PostgreSQL": server.create_database("pages"),
        }
        for engine, url in urls.items():
            say(f"{engine}: filling {rows:,} rows")
            keys = fill(url, rows, FAILURES + 1)
            _fail(url, keys[1:])
            with _service(folder / engine, store, url) as service:
                found[engine] = _ask_all(service, _addresses(keys), rounds, say)
    return found


def _fail(url: str, keys: Sequence[str]) -> None:
    engine = connect(url)
    values: dict[str, Any] = {"state": FAILED, "asked_at": ENTRIES.c.event_at, "error": "it said no"}
    for first in range(0, len(keys), FAIL_BATCH):
        some = ENTRIES.c.key.in_(keys[first : first + FAIL_BATCH])
        reason = REASONS[first // FAIL_BATCH % len(REASONS)]
        with engine.begin() as connection:
            row = sa.update(ENTRIES).where(ENTRIES.c.rule == RULE, some)
            connection.execute(row.values(**values, error_code=reason))
    engine.dispose()


def _addresses(keys: Sequence[str]) -> Mapping[str, tuple[str, dict[str, str]]]:
    """What is asked for → path and query; `keys`: one that is settled, and those that failed."""
    part, folder = keys[0].rpartition("/")[2], keys[0].rpartition("/")[0]
    return {
        "status page": ("/", {}),
        "an object, by its key": ("/objects", {"q": keys[0]}),
        "objects that begin with": ("/objects", {"q": folder, "how": "begins"}),
        "no object begins with": ("/objects", {"q": "zz-nothing", "how": "begins"}),
        "objects that contain (20,000 keys searched)": ("/objects", {"q": part}),
        "the story of one object": ("/object", {"rule": RULE, "key": keys[0]}),
        f"{FAILURES:,} failures, by reason": ("/failures", {}),
        "those of one reason": ("/failures", {"reason": REASONS[-1]}),
        "quarantine": ("/quarantine", {}),
        "GET /v1/status": ("/v1/status", {}),
        "GET /metrics": ("/metrics", {}),
    }


@contextmanager
def _service(folder: Path, store: S3Server, url: str) -> Iterator[Replicator]:
    environ = {"WORKER_EMBEDDED": "false", "DATABASE_URL": url, "RECONCILE_INTERVAL_S": "0"}
    stores: dict[str, Any] = {"source": store, "source_bucket": "absent"}
    stores |= {"target": store, "target_bucket": "absent-copy"}
    with Replicator(folder, environ=environ, **stores) as service:
        yield service


def _ask_all(
    service: Replicator,
    addresses: Mapping[str, tuple[str, dict[str, str]]],
    rounds: int,
    say: Callable[[str], object],
) -> dict[str, Answered]:
    with requests.Session() as session:
        _sign_in(session, service.url)
        session.headers["Authorization"] = f"Bearer {API_TOKEN}"
        first = {what: _ask(session, service.url, *where) for what, where in addresses.items()}
        times: dict[str, list[float]] = {what: [] for what in addresses}
        for _ in range(rounds):
            for what, where in addresses.items():
                times[what].append(_ask(session, service.url, *where)[0])
    found = {
        what: Answered(first[what][0], statistics.median(times[what]), max(times[what]), first[what][1])
        for what in addresses
    }
    for what, each in found.items():
        say(f"{what}: {each.median_ms:.0f} ms, at most {each.slowest_ms:.0f}, first {each.first_ms:.0f}")
    return found


def _sign_in(session: requests.Session, url: str) -> None:
    page = session.get(f"{url}/sign-in", timeout=60)
    token = re.search(f'name="{TOKEN_FIELD}" value="([0-9a-f]+)"', page.text)
    fields = {TOKEN_FIELD: token[1] if token else "", "token": API_TOKEN}
    if not session.post(f"{url}/sign-in", data=fields, timeout=60).ok:
        raise BenchError("could not sign in")


def _ask(session: requests.Session, url: str, path: str, query: dict[str, str]) -> tuple[float, int]:
    began_at = time.perf_counter()
    answer = session.get(url + path, params=query, timeout=60, allow_redirects=False)
    took_ms = (time.perf_counter() - began_at) * 1000
    if answer.status_code != 200:
        raise BenchError(f"{path} answered {answer.status_code}")
    return took_ms, len(answer.content)
