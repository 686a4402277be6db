"""The benchmark's fourth part: whether a ledger drains as fast at its end as at its begin.

By the ledger's own methods, on each engine, from one thread: all entries are put, then claimed and settled.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from scripts.bench_peers import BenchError
from scripts.local_servers import PostgreSQL
from webhook.entries import Request, Settled
from webhook.ledger import Ledger

BATCH, TENTHS, LEASE_S = 32, 10, 60.0


def measure_draining(folder: Path, *, entries: int) -> dict[str, list[float]]:
    """Engine → entries settled per second, in each tenth of them."""
    rates = {"SQLite": _rates(f"sqlite:///{folder}/draining.db", entries)}
    with PostgreSQL(folder / "draining") as server:
        rates["PostgreSQL"] = _rates(server.create_database("draining"), entries)
    return rates


def _rates(database_url: str, entries: int) -> list[float]:
    with closing(Ledger.open(database_url)) as ledger:
        for first in range(0, entries, BATCH):
            numbers = range(first, min(first + BATCH, entries))
            ledger.put([Request(rule="default", key=f"{n:08x}", event_id=f"{n:016x}") for n in numbers])
        rates = [_settle(ledger, entries // TENTHS) for _ in range(TENTHS)]
        if sum(ledger.counts()["settled"].values()) != entries // TENTHS * TENTHS:
            raise BenchError(f"not all of {entries} entries are settled: {ledger.counts()}")
    return rates


def _settle(ledger: Ledger, entries: int) -> float:
    """Claims and settles that many; gives how many per second."""
    begun, left, etag = time.monotonic(), entries, "0" * 32
    while left:
        claims = ledger.claim(min(BATCH, left), worker="bench", lease_s=LEASE_S)
        if not claims:
            raise BenchError(f"nothing is due, though {left} entries are not settled")
        ledger.finish(
            [
                Settled(claim=claim, outcome="replicated", size=1, source_etag=etag, target_etag=etag)
                for claim in claims
            ]
        )
        left -= len(claims)
    return entries / (time.monotonic() - begun)
