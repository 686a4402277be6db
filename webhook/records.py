"""What the ledger has on record, for people to look at: pages of entries, failures, quarantine, and numbers.

A page costs a bounded number of rows, however large the ledger is and however few of them are wanted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog

from webhook.entries import FAILED
from webhook.errors import LedgerUnavailable
from webhook.ledger import Ledger
from webhook.statements import failed, readable, within
from webhook.tables import ENTRIES, QUARANTINE

PAGE_MAX = 1000
SCAN_KEYS = 20_000
"""Entries that one page looks at, where few of them may be wanted."""
EXACT_S = 0.05
"""A count that takes no longer than this is made anew each time."""
COUNT_SHARE = 0.05
"""Of its time, a process may spend counting."""
_ROW = ENTRIES.c
Counts = Mapping[str | None, Mapping[str, Mapping[str, int]]]
"""rule → state → lane → number of entries, and under None those of all rules."""

log = structlog.get_logger("webhook.records")


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of many, in order."""

    items: list[Mapping[str, Any]]
    after: tuple[str, ...] | None
    """Where the next page begins; None: this was the last. A page with few items, or none, may not be the
    last one."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many entries there are, and when that was so, in seconds since 1970."""

    counts: Counts
    at: float


class Records:
    """Thread-safe, and one for each process. Every method raises LedgerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._counting = threading.Lock()
        self._counted: Counted | None = None
        self._took_s = 0.0
        self._counts_again_at = 0.0

    def entries(
        self,
        *,
        rule: str | None = None,
        prefix: str = "",
        part: str = "",
        state: str | None = None,
        reason: str | None = None,
        after: tuple[str, ...] | None = None,
        limit: int = 100,
    ) -> Page:
        """Entries by rule and key, from behind `after` on; each as `Ledger.entry` gives it.

        `part`: what the key must have in it, as it is written; `reason`: the code of what it failed by.
        """
        if state == FAILED:
            among = [*failed(rule, prefix, reason)]
        else:
            among = [*within(rule, prefix)]
            if reason is not None:
                among.append(sa.false())
        if after is not None:
            among.append(sa.tuple_(_ROW.rule, _ROW.key) > sa.tuple_(*map(sa.literal, after)))
        wanted = [] if state in (None, FAILED) else [_ROW.state == state]
        if part:
            position = sa.func.instr if self._ledger.dialect == "sqlite" else sa.func.strpos
            wanted.append(sa.false() if "\0" in part else position(_ROW.key, part) > 0)
        return self._page(among, wanted, limit=min(limit, PAGE_MAX))

    def _page(
        self, among: list[sa.ColumnElement[bool]], wanted: list[sa.ColumnElement[bool]], *, limit: int
    ) -> Page:
        order = (_ROW.rule, _ROW.key)
        seen_to = None
        with self._ledger.reading() as connection:
            if wanted:
                last = sa.select(*order).where(*among).order_by(*order).offset(SCAN_KEYS - 1).limit(1)
                if found := connection.execute(last).first():
                    seen_to = tuple(found)
                    wanted = [sa.tuple_(*order) <= sa.tuple_(*map(sa.literal, seen_to)), *wanted]
            page = sa.select(ENTRIES).where(*among, *wanted).order_by(*order).limit(limit + 1)
            rows = list(connection.execute(page).mappings())
        if len(rows) > limit:
            rows, seen_to = rows[:limit], (rows[limit - 1]["rule"], rows[limit - 1]["key"])
        return Page(items=[readable(row) for row in rows], after=seen_to)

    def reasons(self, *, rule: str | None = None, prefix: str = "") -> list[Mapping[str, Any]]:
        """Failed entries by rule and reason, the most first: `rule`, `reason`, `number`, `since` when the
        target is behind with the oldest of them, and one of their errors as `example`.
        """
        columns = (_ROW.rule, _ROW.error_code)
        facts = (
            sa.func.count().label("number"),
            sa.func.min(_ROW.asked_at).label("since"),
            sa.func.min(_ROW.error).label("example"),
        )
        wanted = sa.select(_ROW.rule, _ROW.error_code.label("reason"), *facts)
        grouped = wanted.where(*failed(rule, prefix, None)).group_by(*columns)
        with self._ledger.reading() as connection:
            rows = connection.execute(grouped.order_by(sa.desc("number"), *columns)).mappings().all()
        return [dict(row) for row in rows]

    def quarantine(self, *, after: tuple[str, ...] | None = None, limit: int = 100) -> Page:
        """Records of notifications that nobody can act on, the latest first."""
        columns = QUARANTINE.c
        limit = min(limit, PAGE_MAX)
        wanted = sa.select(QUARANTINE).order_by(columns.last_seen_at.desc(), columns.record_id)
        if after is not None:
            seen_at, record_id = float(after[0]), after[1]
            same = sa.and_(columns.last_seen_at == seen_at, columns.record_id > record_id)
            wanted = wanted.where(sa.or_(columns.last_seen_at < seen_at, same))
        with self._ledger.reading() as connection:
            rows = connection.execute(wanted.limit(limit + 1)).mappings().all()
        items: list[Mapping[str, Any]] = [dict(row) for row in rows[:limit]]
        more = (repr(items[-1]["last_seen_at"]), items[-1]["record_id"]) if len(rows) > limit else None
        return Page(items=items, after=more)

    # ── numbers ──────────────────────────────────────────────────────────────────────────────────────

    def counted(self) -> Counted:
        """How many entries there are. Of a large ledger, the number of some time ago: to count a million
        takes the better part of a second. Waits only where nobody has counted yet.
        """
        known = self._counted
        if known is None or self._took_s <= EXACT_S:
            return self._count()
        if time.monotonic() >= self._counts_again_at and self._counting.acquire(blocking=False):
            self._counting.release()
            threading.Thread(target=self._count_again, name="counter", daemon=True).start()
        return known

    def _count_again(self) -> None:
        try:
            self._count(only_where_old=True)
        except LedgerUnavailable as error:
            log.warning("cannot count", error=error.message)

    def _count(self, *, only_where_old: bool = False) -> Counted:
        asked_at = time.monotonic()
        with self._counting:
            known = self._counted
            if only_where_old and known and time.monotonic() < self._counts_again_at:
                return known
            began_at, at = time.monotonic(), self._ledger.clock()
            counted = Counted(counts=self._ledger.counts_by_rule(), at=at)
            self._took_s = time.monotonic() - began_at
            self._counts_again_at = time.monotonic() + self._took_s / COUNT_SHARE
            self._counted = counted
        log.debug("entries counted", seconds=round(time.monotonic() - asked_at, 3))
        return counted
