"""Durable, keyed state of every object: the queue and the record are one table.

One row for each (rule, key). Its states:

                    put                    claim
    (no row) ─────────────▶ waiting ─────────────────▶ running
                              ▲ ▲ ▲                     │ │ │
        put, revive           │ │ └──── retry, release ─┘ │ └─ settle ─▶ settled ─┐
      ┌───────────────────────┘ │                         └─── bury ──▶ failed ──┤
      │                         └── put while it ran, or the lease ran out       │
      └──────────────────────────────────────────────────────────────────────────┘

Every request raises the row's `generation`; a claim remembers the one it saw. If the two differ when the
claim ends, the row goes back to waiting: the newer request is neither lost nor worked on beside the older
one. Each claim has a number, larger than any before it on that row; ending or extending a claim changes
the row only while that number is still the latest.

Thread-safe; safe to use from several processes and, on PostgreSQL, several machines. Times are seconds
since 1970. Every method raises LedgerUnavailable when the database cannot answer or commit, and has then
changed nothing.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPICursor

from webhook import meter, statements
from webhook.clocks import elapsed_s
from webhook.compiled import Compiled, insert_or
from webhook.database import (
    BUSY_TIMEOUT_S,
    connect,
    reader,
    reading,
    traits,
    translated_errors,
    untangled,
    writing,
)
from webhook.database import clock as database_clock
from webhook.entries import (
    BACKFILL,
    FAILED,
    LANES,
    LIVE,
    PARKED_AT,
    RUNNING,
    STATES,
    WAITING,
    Claim,
    Ending,
    Misfit,
    Request,
    Settled,
)
from webhook.errors import LedgerUnavailable
from webhook.lags import bucket_of
from webhook.tables import ENTRIES, LEASES, QUARANTINE, SWEEPS
from webhook.together import Together
from webhook.wakeups import Wakeups

Row = dict[str, Any]
FAILURES_PAGE_MAX = 1000
LOOK_ALONE_S = 0.05
"""How soon an idle worker notices what another process put, by looking."""
LOOK_S = 1.0
"""The same, where others tell of what they put."""
LATE_S = 2.0
"""What becomes due is on record by then, as a rule; what took longer is found by looking everywhere."""
EVERYWHERE_S = 5.0
"""That is looked this often."""
SETBACK_LEAST_S = 300.0
"""A clock that is set back by less puts nothing off for longer than a retry may be."""
NOTICED_S = 120.0
"""All processes have noticed within this that it was: `webhook.clocks.GOOD_FOR_S`, and some."""
REACH_S = 600.0
"""What those that have not noticed yet write is due by then, as they count: retries and leases."""
CLOCK = "clock"
"""The lease whose end is the latest time that any process has seen, and whose holder is the time at which
that was noticed to be too late; "": it was not.
"""
SHARES = 256
"""Of the counts of a minute: each process adds to one of so many rows."""
ROW = ENTRIES.c


class Taker(Protocol):
    """A worker that takes what is due as soon as it is asked for."""

    name: str
    lease_s: float

    def room(self) -> int:
        """How many claims of live work it can begin at once now."""

    def take(self, claims: Sequence[Claim], asked_at: float) -> None:
        """Its new claims; `asked_at` is the elapsed time before they were made."""


class Ledger:
    """See the module's text. `clock` gives seconds since 1970; None: the database's own."""

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], float] | None = None) -> None:
        self._engine = engine
        self._reader = reader(engine)
        self.clock = clock or database_clock(engine)
        has_server = engine.dialect.name != "sqlite"
        self._one_writer = None if has_server else threading.Lock()
        self._wakeups = Wakeups(engine) if has_server else None
        self._share = random.randrange(SHARES)
        self._first_due_at = math.inf
        self._since = dict.fromkeys(LANES, 0.0)
        self._looks_everywhere_at = -math.inf
        self._listeners: list[Callable[[], None]] = []
        self._sql = statements.Statements(engine, by_place=traits(engine).is_postgresql)
        self._put_together = Together(self._put_all)
        self._taker: Taker | None = None
        self.meter = meter.Meter(self.clock)
        """What this process counts, until `keep_counts`."""
        self.live_seen_at = -math.inf
        """Monotonic time of the last look that found live work, of whichever process."""

    @classmethod
    def open(cls, database_url: str) -> Ledger:
        """The ledger behind a `DATABASE_URL`. Raises as `webhook.database.connect` does."""
        return cls(connect(database_url))

    def close(self) -> None:
        """Gives up the connections."""
        if self._wakeups:
            self._wakeups.close()
        self._engine.dispose()

    def on_put(self, listener: Callable[[], None]) -> None:
        """Calls `listener` in this process whenever something new may be due."""
        self._listeners.append(listener)

    def hear_others(self) -> None:
        """Listeners are called for what other processes put, too, where the database passes it on."""
        if self._wakeups:
            self._wakeups.listen(self._tell_here)

    def idle_s(self) -> float:
        """How long a worker that found nothing due may wait for a listener's call before it looks again."""
        longest = LOOK_S if self._wakeups and self._wakeups.are_heard else LOOK_ALONE_S
        return min(longest, max(LOOK_ALONE_S, self._first_due_at - self.clock()))

    def claim_with_puts(self, taker: Taker) -> None:
        """From now on, `put` claims in its own transaction what live work `taker` has room for: that is one
        transaction and one change of threads less between a request and its copy.
        """
        self._taker = taker

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────

    def put(self, requests: Sequence[Request], misfits: Sequence[Misfit] = (), *, lane: str = LIVE) -> None:
        """Records all of it on disk, in one transaction, before it returns.

        Calls that come while another's transaction is on its way share the next one. A request with an
        event id that the entry has already seen changes nothing. An entry in back-off keeps its due time:
        what keeps failing and keeps changing does not run hot. Safe to repeat.
        """
        now = self.clock()
        rows = [statements.new_row(request, lane=lane, now=now) for request in requests]
        kept = [statements.misfit_row(misfit, now=now) for misfit in misfits]
        self._put_together((rows, kept))

    @untangled
    def _put_all(self, calls: Sequence[tuple[list[Row], list[Row]]]) -> None:
        rows = [row for of_call, _ in calls for row in of_call]
        kept = [row for _, of_call in calls for row in of_call]
        taker, limit, asked_at, claims = self._taker, 0, elapsed_s(), []
        is_single = not kept and not taker and len({(row["rule"], row["key"]) for row in rows}) == len(rows)
        with self.writing(is_single=is_single) as cursor:
            if rows:
                rows.sort(key=lambda row: (row["rule"], row["key"]))  # one order for all: no deadlocks
                self._sql.put.run(cursor, *rows)
            if kept:
                kept.sort(key=lambda row: row["record_id"])
                self._sql.keep.run(cursor, *kept)
            is_live = any(row["lane"] == LIVE for row in rows)
            if is_live and taker and (limit := taker.room()) > 0:
                taken = self._taken(worker=taker.name, lease_s=taker.lease_s)
                claims = self._claim(cursor, taken, {LIVE: limit}, limit)
        if is_live:
            self.live_seen_at = time.monotonic()
        if taker and claims:
            taker.take(claims, asked_at)
        if len(rows) > len(claims):  # else nothing of it is left that is due
            self.tell_listeners()
        elif len(claims) >= limit:
            self._tell_here()

    @untangled
    def put_now(self, request: Request) -> int:
        """Records one request that does not wait for a back-off to end; gives the entry's generation.

        Its listeners are not called: who asks in this way claims the entry itself.
        """
        row = statements.new_row(request, lane=LIVE, now=self.clock())
        with self.writing() as cursor:
            asked = self._sql.put_now.run(cursor, row).fetchall()
        return int(asked[0][0])

    def revive(
        self,
        *,
        rule: str | None = None,
        prefix: str = "",
        key: str | None = None,
        error_code: str | None = None,
    ) -> int:
        """Makes failed entries waiting again, from their first attempt on; gives how many."""
        wanted = [*statements.failed(rule, prefix, error_code), *([] if key is None else [ROW.key == key])]
        statement = statements.update_in_order(*wanted).values(
            state=WAITING, due_at=self.clock(), attempts=0, backoff_s=0.0, generation=ROW.generation + 1
        )
        count = int(self.run(statement))
        self.tell_listeners()
        return count

    # ── working ──────────────────────────────────────────────────────────────────────────────────────

    @untangled
    def claim(
        self,
        limit: int,
        *,
        backfill_max: int | None = None,
        backfill_owed: int = 0,
        worker: str,
        lease_s: float,
    ) -> list[Claim]:
        """Up to `limit` entries that are due, live lane first, also those whose lease ran out; of the
        backfill no more than `backfill_max`, and `backfill_owed` before anything else, if so much is due.
        """
        lanes = self._lanes_due()
        most = dict.fromkeys(lanes, limit)
        if BACKFILL in lanes:
            most[BACKFILL] = max(backfill_owed, limit if backfill_max is None else backfill_max)
            limit = max(limit, backfill_owed)
            if LIVE in lanes:
                most[LIVE] = limit - backfill_owed
        wanted = {lane: room for lane, room in most.items() if room > 0}
        if not wanted:
            return []
        with self._claiming(is_single=len(wanted) == 1) as cursor:
            return self._claim(cursor, self._taken(worker=worker, lease_s=lease_s), wanted, limit)

    def _taken(self, *, worker: str, lease_s: float) -> Row:
        return {"_worker": worker, "_now": (now := self.clock()), "_until": now + lease_s}

    def _claim(self, cursor: DBAPICursor, taken: Row, limits: Mapping[str, int], limit: int) -> list[Claim]:
        claims: list[Claim] = []
        for lane, most in limits.items():
            room = min(most, limit - len(claims))
            if room > 0:
                due = {"_lane": lane, "_limit": room, "_since": self._since[lane]}
                found = self._sql.claim.run(cursor, taken | due).fetchall()
                claims += statements.claims(found, taken["_now"])
        return claims

    @untangled
    def claim_one(self, rule: str, key: str, *, worker: str, lease_s: float) -> Claim | None:
        """This entry, if it is waiting (due or not) or its lease ran out; None otherwise."""
        with self._claiming() as cursor:
            taken = self._taken(worker=worker, lease_s=lease_s)
            found = self._sql.claim_one.run(cursor, {**taken, "_rule": rule, "_key": key})
            claims = statements.claims(found.fetchall(), taken["_now"])
        return claims[0] if claims else None

    @untangled
    def extend(self, claims: Sequence[Claim], *, lease_s: float) -> list[Claim]:
        """Prolongs the leases that are still held, and gives the claims that are not."""
        in_order = sorted(claims, key=lambda each: (each.rule, each.key))
        with self._claiming() as cursor:
            until = {"_until": self.clock() + lease_s}
            rows = [(claim, statements.held_row(claim) | until) for claim in in_order]
            return [claim for claim, row in rows if self._sql.extend.run(cursor, row).rowcount == 0]

    @untangled
    def note_upload(self, claim: Claim, note: str | None) -> None:
        """Keeps a note of an unfinished multipart upload with the entry."""
        with self.writing() as cursor:
            self._sql.note_upload.run(cursor, statements.held_row(claim) | {"_upload": note})

    @untangled
    def finish(self, endings: Sequence[Ending]) -> int:
        """Ends claims, all in one transaction; gives how many of them were still held."""
        now = self.clock()
        in_order = sorted(endings, key=lambda each: (each.claim.rule, each.claim.key))
        with self.writing(durable=False, by_index=True) as cursor:
            held = 0
            for kind, group in itertools.groupby(in_order, key=type):
                rows = [statements.ending_row(ending, now) for ending in group]
                held += self._sql.finish[kind].run(cursor, *rows).rowcount
            # of claims that were lost meanwhile, somebody else's ending counts
            if held == len(endings) and (minutes := _minutes(endings, now, self._share)):
                self._sql.count_minutes.run(cursor, *minutes)
        if held:
            self._tell_here()
        return held

    def overtaken(self, claims: Sequence[Claim]) -> list[Claim]:
        """Those whose entries somebody else has claimed since."""
        with reading(self._engine) as cursor:
            rows = [(claim, statements.held_row(claim)) for claim in claims]
            return [claim for claim, row in rows if self._sql.is_overtaken.run(cursor, row).fetchall()]

    def keep_counts(self) -> None:
        """Adds what this process has counted to what all have."""
        taken = self.meter.take()
        if not taken:
            return
        try:
            with self.writing(durable=False, is_single=True) as cursor:
                self._sql.add_counts.run(cursor, *meter.rows(taken))
        except BaseException:
            self.meter.give_back(taken)
            raise

    def heed_clock(self) -> float:
        """Notes the time. Where a later one was noted before, the clock was set back: what has been put
        off by that is brought forward, and what processes that have not noticed yet still put off. Gives by
        how many seconds, when that is seen first; 0.0: by none, or by so few that it puts nothing off for
        longer than an error does.

        Some retries may come too early by it, which does no harm. To be called every few seconds.
        """
        with self.reading() as connection:
            note = connection.execute(sa.select(LEASES).where(LEASES.c.name == CLOCK)).mappings().first()
        now = self.clock()  # after the look, which may take long: nobody has noted a later time rightly
        latest = note["until"] if note else now
        by_s = latest - now
        if not note or by_s < SETBACK_LEAST_S:
            later = insert_or(self.dialect, LEASES).values(name=CLOCK, worker="", until=now)
            later = later.on_conflict_do_update(
                index_elements=[LEASES.c.name],
                set_={"until": later.excluded.until, "worker": ""},
                where=LEASES.c.until < later.excluded.until,
            )
            self.run(later, durable=False)
            return 0.0
        is_new = note["worker"] == ""
        held: dict[str, Any] = {}
        if is_new:
            held = {"worker": str(now)}
        elif not 0.0 <= now - float(note["worker"]) < NOTICED_S:
            held = {"worker": "", "until": now}
        same = sa.update(LEASES).where(LEASES.c.name == CLOCK, LEASES.c.until == latest)
        until = math.inf if is_new else latest + REACH_S
        self.run(*_brought_forward(now, by_s, until), *([same.values(**held)] if held else ()), durable=False)
        return by_s if is_new else 0.0

    @untangled
    def release_of(self, is_dead: Callable[[str], bool]) -> int:
        """Makes the running entries of workers that are known to be dead due at once; gives how many."""
        now = {"_now": self.clock()}
        with reading(self._engine) as cursor:
            workers = [str(worker) for (worker,) in self._sql.workers.run(cursor, now).fetchall()]
        dead = [worker for worker in workers if is_dead(worker)]
        if not dead:
            return 0
        with self.writing(durable=False) as cursor:
            return sum(self._sql.release_of.run(cursor, now | {"_worker": each}).rowcount for each in dead)

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────

    def entry(self, rule: str, key: str) -> Mapping[str, Any] | None:
        """Everything known about one key: the row, its JSON columns read."""
        if "\0" in rule + key:  # no entry has one, and PostgreSQL will not hear of it
            return None
        with self.reading() as connection:
            wanted = ENTRIES.select().where(ROW.rule == rule, ROW.key == key)
            row = connection.execute(wanted).mappings().first()
        return statements.readable(row) if row else None

    def ending_of(self, rule: str, key: str, *, generation: int) -> Ending | None:
        """How the claim ended that served this generation or a later one; None: none has yet."""
        row = ENTRIES.select().where(ROW.rule == rule, ROW.key == key, ROW.state != RUNNING)
        with self.reading() as connection:
            found = connection.execute(row).mappings().first()
        attempts = json.loads(found["history"]) if found else []
        if found is None or not attempts or attempts[-1]["generation"] < generation:
            return None
        return statements.past_ending(found, attempts[-1])

    def counts(self) -> dict[str, dict[str, int]]:
        """state → lane → number of entries; all states and lanes are there."""
        return self.counts_by_rule().get(None, _no_counts())

    def counts_by_rule(self) -> dict[str | None, dict[str, dict[str, int]]]:
        """rule → state → lane → number of entries, and under None those of all rules."""
        counts: dict[str | None, dict[str, dict[str, int]]] = {}
        columns = (ROW.rule, ROW.state, ROW.lane)
        with self.reading() as connection:
            found = connection.execute(sa.select(*columns, sa.func.count()).group_by(*columns))
            for rule, state, lane, number in found:
                for name in (rule, None):
                    counts.setdefault(name, _no_counts())[state][lane] += number
        return counts

    def backlog(self, lane: str, *, limit: int, rules: Sequence[str] | None = None) -> int:
        """How many entries of a lane are waiting or running, but for those of paused rules, counted up to a
        limit; `rules` narrows.
        """
        some = sa.select(sa.literal(1)).where(ROW.lane == lane, ROW.due_at < PARKED_AT).limit(limit)
        if rules is not None:
            some = some.where(ROW.rule.in_(rules))
        with self.reading() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(some.subquery())).scalar_one()

    def known(self, rule: str, keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """What a sweep wants to know of these keys: key → state, outcome and ETags, of those on record."""
        names = ("key", "state", "outcome", "source_etag", "target_etag", "gone_at", "told_etags")
        wanted = sa.select(*(ROW[name] for name in names)).where(ROW.rule == rule, ROW.key.in_(keys))
        with self.reading() as connection:
            return {row["key"]: dict(row) for row in connection.execute(wanted).mappings()}

    def quarantined(self) -> int:
        """How many different records are in quarantine."""
        with self.reading() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(QUARANTINE)).scalar_one()

    def failures(
        self, *, rule: str | None = None, prefix: str = "", error_code: str | None = None, limit: int = 100
    ) -> list[Mapping[str, Any]]:
        """Failed entries in key order, at most FAILURES_PAGE_MAX."""
        wanted = ENTRIES.select().where(*statements.failed(rule, prefix, error_code))
        page = wanted.order_by(ROW.rule, ROW.key).limit(min(limit, FAILURES_PAGE_MAX))
        with self.reading() as connection:
            return [statements.readable(row) for row in connection.execute(page).mappings()]

    def failed_with_upload(self, *, before: float) -> list[Claim]:
        """The last claims of entries that failed before that time and left an upload, some at a time."""
        wanted = ENTRIES.select().where(*statements.failed(None, "", None), ROW.upload.is_not(None))
        with self.reading() as connection:
            rows = connection.execute(wanted.limit(FAILURES_PAGE_MAX)).mappings().all()
        return [claim for claim, ended_at in map(statements.last_claim, rows) if ended_at < before]

    def drop_upload(self, claim: Claim) -> None:
        """Forgets the upload of an entry that has failed, unless somebody asked for it meanwhile."""
        last = (ROW.rule == claim.rule, ROW.key == claim.key, ROW.claim_number == claim.number)
        self.run(sa.update(ENTRIES).where(*last, ROW.state == FAILED).values(upload=None))

    def check(self) -> None:
        """Raises LedgerUnavailable unless a write can begin."""
        self.run(sa.delete(QUARANTINE).where(QUARANTINE.c.record_id == ""))

    # ── the database ───────────────────────────────────────────────────────────────────────────────────────

    def _lanes_due(self) -> list[str]:
        """Where something is due. A read that takes no lock: idle workers ask many times a second.

        It looks behind what was due first the last time: before that lie dead rows, in PostgreSQL many.
        """
        if time.monotonic() >= self._looks_everywhere_at:
            self._looks_everywhere_at = time.monotonic() + EVERYWHERE_S
            self._since = dict.fromkeys(LANES, 0.0)
        where = {statements.since(lane): since for lane, since in self._since.items()}
        with reading(self._engine) as cursor:
            live_worker, *found = self._sql.next_due.run(cursor, where).fetchall()[0]
        now = self.clock()
        first = {lane: math.inf if at is None else at for lane, at in zip(LANES, found, strict=True)}
        self._since = {lane: min(at, now) - LATE_S for lane, at in first.items()}
        self._first_due_at = min(first.values())
        due = [lane for lane, at in first.items() if at <= now]
        if live_worker or LIVE in due:
            self.live_seen_at = time.monotonic()
        return due

    def tell_listeners(self) -> None:
        """Something may be due, for whichever process."""
        self._tell_here()
        if self._wakeups:
            self._wakeups.tell()

    def _tell_here(self) -> None:
        for listener in self._listeners:
            listener()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection for what changes nothing; for the modules that keep more in the same database."""
        with translated_errors(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(
        self, *, durable: bool = True, by_index: bool = False, is_single: bool = False
    ) -> Iterator[DBAPICursor]:
        """A transaction. `durable`: it survives a power cut, as an answered event must; who works on what
        would be found out anew. `by_index`: it changes few entries, named by their keys; `is_single`: it is
        one statement.

        Threads queue for SQLite's one write lock here: its own waiting sleeps longer.
        """
        if self._one_writer and not self._one_writer.acquire(timeout=BUSY_TIMEOUT_S):
            raise LedgerUnavailable(
                f"the ledger was busy for {BUSY_TIMEOUT_S:.0f} s",
                hint="Check its disk, and whether another program holds the file.",
            )
        try:
            with writing(self._engine, durable=durable, by_index=by_index, is_single=is_single) as cursor:
                yield cursor
        finally:
            if self._one_writer:
                self._one_writer.release()

    def _claiming(self, *, is_single: bool = False) -> AbstractContextManager[DBAPICursor]:
        """A transaction that must be known for as long as its claims' holder lives: of a database that has a
        machine of its own, that is longer than the database does.
        """
        return self.writing(durable=self._wakeups is not None, is_single=is_single)

    @untangled
    def run(self, *all_of: Any, durable: bool = True) -> Any:
        """Statements in one transaction; gives the last one's rows where it returns some, else how many
        rows it changed.
        """
        with self.writing(durable=durable) as cursor:
            for statement in all_of:
                done = Compiled(statement, self._engine).run(cursor)
            return done.fetchall() if done.description else done.rowcount

    @property
    def dialect(self) -> str:
        """ "sqlite" or "postgresql", for statements that the two spell differently."""
        return self._engine.dialect.name


def _brought_forward(now: float, by_s: float, until: float) -> list[sa.Update]:
    """What is due later by what a clock was set back is due so much sooner, but what is due after `until`."""
    since = now + by_s - NOTICED_S
    others = [
        sa.update(column.table).where(column > since, column < until, *more).values({column: column - by_s})
        for column, *more in ((LEASES.c.until, LEASES.c.name != CLOCK), (SWEEPS.c.due_at,))
    ]
    in_a_lane = sa.or_(*(ROW.lane == lane for lane in LANES))
    is_due = (in_a_lane, ROW.due_at > since, ROW.due_at < min(until, PARKED_AT))
    return [
        *others,
        statements.update_in_order(ROW.gone_at > now).values(gone_at=ROW.gone_at - by_s),
        statements.update_in_order(*is_due).values(due_at=ROW.due_at - by_s),
    ]


def _no_counts() -> dict[str, dict[str, int]]:
    return {state: dict.fromkeys(LANES, 0) for state in STATES}


def _minutes(endings: Sequence[Ending], now: float, share: int) -> list[Row]:
    """What a minute's counts grow by: one row for each rule, lane and bucket of lag, in key order."""
    objects: Counter[tuple[str, str, int]] = Counter()
    sizes: Counter[tuple[str, str, int]] = Counter()
    for each in endings:
        if isinstance(each, Settled):
            group = (each.claim.rule, each.claim.lane, bucket_of(now - each.claim.event_at))
            objects[group] += 1
            sizes[group] += each.bytes_copied
    names = ("minute", "rule", "lane", "bucket", "share", "objects", "bytes")
    minute = int(now // 60)
    return [
        dict(zip(names, (minute, *group, share, objects[group], sizes[group]), strict=True))
        for group in sorted(objects)
    ]
