"""Which processes replicate, and when one last gave a sign of life."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from webhook.compiled import insert_or
from webhook.ledger import Ledger
from webhook.processes import is_dead
from webhook.tables import WORKERS
from webhook.version import VERSION

ALIVE_S = 20.0
"""Without a sign of life for this long, a process counts as gone."""
FORGOTTEN_S = 86_400.0
_ROW = WORKERS.c


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process. Times in seconds since 1970."""

    name: str
    version: str
    threads: int
    started_at: float
    seen_at: float
    limits: Mapping[str, int | None]
    """target → how many requests it sends at once at most now; None: no limit was met."""

    @property
    def host(self) -> str:
        """The machine's name."""
        return self.name.rsplit(":", 3)[0]

    @property
    def pid(self) -> int:
        """Its number on that machine."""
        return int(self.name.rsplit(":", 3)[1])


class Fleet:
    """Thread-safe. Every method raises LedgerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def last_seen_at(self) -> float | None:
        """When any process last gave a sign of life; None: there never was one."""
        with self._ledger.reading() as connection:
            return connection.execute(sa.select(sa.func.max(_ROW.seen_at))).scalar()

    def sign(self, name: str, *, threads: int, limits: Mapping[str, int | None] | None = None) -> None:
        """A sign of life of this process."""
        now, told = self._ledger.clock(), json.dumps(limits or {})
        insert = insert_or(self._ledger.dialect, WORKERS).values(
            name=name, version=VERSION, threads=threads, started_at=now, seen_at=now, limits=told
        )
        news = {"seen_at": now, "threads": threads, "limits": told}
        seen = insert.on_conflict_do_update(index_elements=[_ROW.name], set_=news)
        self._ledger.run(sa.delete(WORKERS).where(_ROW.seen_at < now - FORGOTTEN_S), seen, durable=False)

    def leave(self, name: str) -> None:
        """This process has stopped; that it was there stays known."""
        left = sa.update(WORKERS).where(_ROW.name == name)
        self._ledger.run(left.values(threads=0), durable=False)

    def members(self) -> list[Member]:
        """The processes that replicate now, longest first."""
        wanted = sa.select(WORKERS).where(_ROW.seen_at >= self._ledger.clock() - ALIVE_S, _ROW.threads > 0)
        with self._ledger.reading() as connection:
            rows = connection.execute(wanted.order_by(_ROW.started_at)).mappings().all()
        return [
            Member(**{**row, "limits": json.loads(row["limits"])}) for row in rows if not is_dead(row["name"])
        ]
