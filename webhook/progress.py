"""How far the target is complete, and how fast changes get there.

The recovery point of a rule is a time. All that was at the source then is at the target, as it was or newer:

* by sweep: the last complete sweep has seen all that was there before it began, and what it put into the
  ledger has been settled since, or the recovery point is that of the oldest thing that has not. True whether
  or not any event was lost.
* by events: nothing that was asked for before is unsettled. True if MinIO has told of every change.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from webhook.entries import BACKFILL, FAILED, LANES, LIVE, RUNNING
from webhook.lags import percentile_s
from webhook.ledger import Ledger
from webhook.sweeps import Sweep
from webhook.tables import COUNTS, ENTRIES, MINUTES

HOUR_MINUTES = 60
KEPT_MINUTES = 25 * HOUR_MINUTES
_ROW, _MINUTE = ENTRIES.c, MINUTES.c
_DOUBTFUL = sa.and_(
    _ROW.gone_at.is_not(None),
    sa.or_(
        *(_ROW.state == sa.literal_column(f"'{state}'") for state in (RUNNING, FAILED)),
        _ROW.error_code.is_not(None),
    ),
)
"""Of pending deletes; spelled as the index's condition."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Of one rule. Times in seconds since 1970; None where nothing is proved."""

    by_sweep: float | None
    by_events: float | None
    lag_s: float
    """How long the oldest live work has been waiting; 0.0: none waits."""


@dataclass(frozen=True, kw_only=True)
class LastHour:
    """What was settled in the last 60 minutes. Percentiles: change → verified copy, of live entries."""

    objects: int = 0
    bytes: int = 0
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Minute:
    """What was settled in one minute. Percentiles as in LastHour."""

    minute: int
    """Since 1970."""
    objects: Mapping[str, int]
    """lane → how many."""
    bytes: int
    p50_s: float | None
    p99_s: float | None


class Progress:
    """Thread-safe. Every method raises LedgerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def recovery(self, rules: Sequence[str], proofs: Mapping[str, Sweep]) -> dict[str, Recovery]:
        """rule → how far its target is complete; `proofs` are its last complete sweeps, read before."""
        now = self._ledger.clock()
        found = {}
        for rule in rules:
            oldest, oldest_live = self._oldest_unsettled(rule)
            proof = proofs.get(rule)
            seen = proof.proves_at if proof else None
            found[rule] = Recovery(
                by_sweep=None if seen is None else min(seen, oldest) or None,
                by_events=min(now, oldest) or None,
                lag_s=max(0.0, now - oldest_live),
            )
        return found

    def _oldest_unsettled(self, rule: str) -> tuple[float, float]:
        """Since when the target may be behind, and since when live work waits: infinity where nothing does,
        0.0 where the first cannot be told.

        Pending deletes are left out, but for those that are just being carried out, or met an error.
        """
        oldest = sa.select(sa.func.min(_ROW.asked_at)).where(_ROW.rule == rule, _ROW.asked_at.is_not(None))
        live, backfill = (
            oldest.where(_ROW.gone_at.is_(None), _ROW.lane == lane) for lane in (LIVE, BACKFILL)
        )
        untold = live.with_only_columns(sa.func.min(_ROW.event_at)).where(_ROW.asked_at == 0.0)
        # each is the begin of an index; in one statement, so that none moves from one to the other meanwhile
        looks = (oldest.where(_DOUBTFUL), backfill, live, live.where(_ROW.asked_at > 0.0), untold)
        with self._ledger.reading() as connection:
            found = connection.execute(sa.select(*(look.scalar_subquery() for look in looks))).one()
        first, *plain, told, untold_since = (math.inf if at is None else float(at) for at in found)
        return min(first, *plain), min(first, told, untold_since)

    def last_hour(self) -> dict[str, LastHour]:
        """rule → what was settled in the last hour, where something was."""
        since = int(self._ledger.clock() // 60) - HOUR_MINUTES
        columns = (_MINUTE.rule, _MINUTE.lane, _MINUTE.bucket)
        sums = (sa.func.sum(_MINUTE.objects), sa.func.sum(_MINUTE.bytes))
        wanted = sa.select(*columns, *sums).where(_MINUTE.minute > since).group_by(*columns)
        lags: dict[str, dict[int, int]] = defaultdict(dict)
        objects: dict[str, int] = defaultdict(int)
        sizes: dict[str, int] = defaultdict(int)
        with self._ledger.reading() as connection:
            for rule, lane, bucket, count, size in connection.execute(wanted):
                objects[rule] += int(count)
                sizes[rule] += int(size)
                if lane == LIVE:
                    lags[rule][bucket] = int(count)
        return {rule: _last_hour(objects[rule], sizes[rule], lags[rule]) for rule in objects}

    def by_minute(self) -> list[Minute]:
        """The last hour of all rules, minute by minute, the oldest first; the last one is not over yet."""
        last = int(self._ledger.clock() // 60)
        columns = (_MINUTE.minute, _MINUTE.lane, _MINUTE.bucket)
        sums = (sa.func.sum(_MINUTE.objects), sa.func.sum(_MINUTE.bytes))
        wanted = sa.select(*columns, *sums).where(_MINUTE.minute > last - HOUR_MINUTES).group_by(*columns)
        found: dict[int, list[tuple[str, int, int, int]]] = defaultdict(list)
        with self._ledger.reading() as connection:
            for minute, lane, bucket, count, size in connection.execute(wanted):
                found[minute].append((lane, bucket, int(count), int(size)))
        return [_minute(each, found[each]) for each in range(last - HOUR_MINUTES + 1, last + 1)]

    def settled(self, rules: Sequence[str], *, lane: str, since_minute: int) -> tuple[int, int]:
        """How many objects and bytes these rules settled in a lane from that minute since 1970 on."""
        sums = (sa.func.sum(_MINUTE.objects), sa.func.sum(_MINUTE.bytes))
        theirs = (_MINUTE.minute >= since_minute, _MINUTE.lane == lane, _MINUTE.rule.in_(rules))
        with self._ledger.reading() as connection:
            objects, size = connection.execute(sa.select(*sums).where(*theirs)).one()
        return int(objects or 0), int(size or 0)

    def events_missed(self) -> dict[str, int]:
        """rule → how many keys had a change that a sweep found and no event had told of."""
        missed = sa.select(_ROW.rule, sa.func.count()).where(_ROW.missed_at.is_not(None))
        with self._ledger.reading() as connection:
            found = connection.execute(missed.group_by(_ROW.rule))
            return {rule: int(count) for rule, count in found}

    def forget(self) -> None:
        """Drops minutes that nobody asks for any more."""
        oldest = int(self._ledger.clock() // 60) - KEPT_MINUTES
        counts = COUNTS.c
        old_counts = sa.delete(COUNTS).where(counts.minute > 0, counts.minute < oldest)
        self._ledger.run(sa.delete(MINUTES).where(_MINUTE.minute < oldest), old_counts, durable=False)


def _minute(minute: int, rows: Sequence[tuple[str, int, int, int]]) -> Minute:
    objects = dict.fromkeys(LANES, 0)
    lags: dict[int, int] = {}
    for lane, bucket, count, _ in rows:
        objects[lane] += count
        if lane == LIVE:
            lags[bucket] = count
    p50_s, p99_s = (percentile_s(lags, share) for share in (0.5, 0.99))
    size = sum(each[3] for each in rows)
    return Minute(minute=minute, objects=objects, bytes=size, p50_s=p50_s, p99_s=p99_s)


def _last_hour(objects: int, size: int, lags: Mapping[int, int]) -> LastHour:
    p50_s, p95_s, p99_s = (percentile_s(lags, share) for share in (0.5, 0.95, 0.99))
    return LastHour(objects=objects, bytes=size, p50_s=p50_s, p95_s=p95_s, p99_s=p99_s)
