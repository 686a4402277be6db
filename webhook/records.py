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

from webhook.entries import FAILED, HELD, LANES
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
            if rule is None and prefix:  # by the index on rule and key, not through all of it
                among.append(_ROW.rule.in_(self.rules()))
            if reason is not None:
                among.append(sa.false())
        if after is not None:
            among.append(sa.tuple_(_ROW.rule, _ROW.key) > sa.tuple_(*map(sa.literal, after)))
        wanted = [] if state in (None, FAILED) else [_ROW.state == state]
        if part:
            position = sa.func.instr if self._ledger.dialect == "sqlite" else sa.func.strpos
            wanted.append(sa.false() if "\0" in part else position(_ROW.key, part) > 0)
        return self._page(among, wanted, limit=min(limit, PAGE_MAX))

    def rules(self) -> list[str]:
        """The names of all rules that have an entry, also of those that are no more."""
        names: list[str] = []
        with self._ledger.reading() as connection:
            while True:  # from name to name by the index: there may be a million entries of each
                behind = _ROW.rule > names[-1] if names else sa.true()
                found = connection.execute(sa.select(sa.func.min(_ROW.rule)).where(behind)).scalar()
                if found is None:
                    return names
                names.append(found)

    def of_key(self, key: str) -> list[Mapping[str, Any]]:
        """The entries of exactly this key, in the order of their rules."""
        wanted = sa.select(ENTRIES).where(_ROW.rule.in_(self.rules()), _ROW.key == key).order_by(_ROW.rule)
        with self._ledger.reading() as connection:
            return [readable(row) for row in connection.execute(wanted).mappings()]

    def held(self, rule: str, *, limit: int) -> list[Mapping[str, Any]]:
        """Some of the rule's entries whose delete waits for a person, found by their index."""
        waiting = (_ROW.rule == rule, _ROW.state == HELD, _ROW.gone_at.is_not(None))
        with self._ledger.reading() as connection:
            some = connection.execute(sa.select(ENTRIES).where(*waiting).limit(limit)).mappings().all()
        return sorted(map(readable, some), key=lambda each: str(each["key"]))

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
        facts = (sa.func.count().label("number"), sa.func.min(_ROW.asked_at).label("since"))
        among = [*failed(rule, prefix, None)]
        found = sa.select(_ROW.rule, _ROW.error_code.label("reason"), *facts).where(*among).group_by(*columns)
        group = found.subquery()
        theirs = (_ROW.rule == group.c.rule, _ROW.error_code == group.c.reason)
        example = sa.select(_ROW.error).where(*among, *theirs).limit(1).correlate(group).scalar_subquery()
        wanted = sa.select(group, example.label("example"))
        order = (group.c.number.desc(), group.c.rule, group.c.reason)
        with self._ledger.reading() as connection:
            return [dict(row) for row in connection.execute(wanted.order_by(*order)).mappings()]

    def oldest_waiting(self, rule: str) -> Mapping[str, Any] | None:
        """Of what is asked for and has not failed, the entry that has been so longest, but for deletes that
        are pending: `key`, `state`, `since` (0.0: it cannot be told), `due_at`, `error_code`, `error`.
        """
        columns = (_ROW.key, _ROW.state, _ROW.asked_at.label("since"))
        wanted = sa.select(*columns, _ROW.due_at, _ROW.error_code, _ROW.error)
        unsettled = (_ROW.rule == rule, _ROW.asked_at.is_not(None), _ROW.gone_at.is_(None))
        first = wanted.where(*unsettled, _ROW.state != FAILED).order_by(_ROW.asked_at).limit(1)
        with self._ledger.reading() as connection:
            looks = [
                first.where(_ROW.lane == lane) for lane in reversed(LANES)
            ]  # it may move to the live one
            rows = [row for look in looks if (row := connection.execute(look).mappings().first())]
        return min(map(dict, rows), key=lambda row: row["since"], default=None)

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
        if time.monotonic() >= self._counts_again_at and not self._counting.locked():
            self.count_beside()
        return known

    def count_beside(self) -> None:
        """Counts in a thread, so that who asks next need not wait."""
        threading.Thread(target=self._count_again, name="counter", daemon=True).start()

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
