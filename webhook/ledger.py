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

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from webhook.database import BUSY_TIMEOUT_S, ENTRIES, QUARANTINE, connect, translated_errors
from webhook.errors import LedgerUnavailable

WAITING, RUNNING, SETTLED, FAILED = "waiting", "running", "settled", "failed"
LIVE, BACKFILL = "live", "backfill"
EVENTS_REMEMBERED = 16
"""Events of one entry whose second delivery is recognised; beyond them it costs a look at the stores."""
EVENT_ID_CHARS = 16
ATTEMPTS_REMEMBERED = 20
FAILURES_PAGE_MAX = 1000
ROW = ENTRIES.c
_CLAIM_COLUMNS = (
    *("rule", "key", "generation", "lane", "attempts", "backoff_s", "event_at"),
    *("source_etag", "target_etag", "upload", "history"),
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Somebody asks for the target to be made equal to the source at one key."""

    rule: str
    key: str
    event_id: str = ""
    """16 characters that tell a repeated event; "" for a request that is not an event."""
    event_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A record of a notification that nobody can act on."""

    record_id: str
    reason: str
    raw: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's right to work on one entry until its lease runs out, and what was known of it then."""

    rule: str
    key: str
    generation: int
    number: int
    worker: str
    lane: str
    attempts: int
    """Including this one."""
    backoff_s: float
    event_at: float
    claimed_at: float
    source_etag: str | None
    target_etag: str | None
    upload: str | None
    history: str


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The end of a claim: the target now is what it should be."""

    claim: Claim
    outcome: str
    size: int | None = None
    source_etag: str | None = None
    source_version: str | None = None
    target_etag: str | None = None
    cid: str | None = None
    lost: tuple[str, ...] = ()
    bytes_copied: int = 0


@dataclass(frozen=True, kw_only=True)
class Retried:
    """The end of a claim: again, in `after_s` seconds."""

    claim: Claim
    after_s: float
    backoff_s: float
    counts: bool
    error_code: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Buried:
    """The end of a claim: into the failed ones."""

    claim: Claim
    error_code: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Released:
    """The end of a claim that was not worked on: handed back, due at once."""

    claim: Claim


Ending = Settled | Retried | Buried | Released


class Ledger:
    """See the module's text. `clock` gives seconds since 1970."""

    def __init__(self, engine: sa.Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._reader = engine.execution_options(only_reads=True)
        self._clock = clock
        self._one_writer = threading.Lock() if engine.dialect.name == "sqlite" else None
        self._listeners: list[Callable[[], None]] = []
        self._put = _put_statement(engine.dialect.name, hurry=False)
        self._put_now = _put_statement(engine.dialect.name, hurry=True)
        self._keep = _quarantine_statement(engine.dialect.name)

    @classmethod
    def open(cls, database_url: str) -> Ledger:
        """The ledger behind a `DATABASE_URL`. Raises as `webhook.database.connect` does."""
        return cls(connect(database_url))

    def close(self) -> None:
        """Gives up the connections."""
        self._engine.dispose()

    def on_put(self, listener: Callable[[], None]) -> None:
        """Calls `listener` in this process whenever something new may be due."""
        self._listeners.append(listener)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────

    def put(self, requests: Sequence[Request], misfits: Sequence[Misfit] = (), *, lane: str = LIVE) -> None:
        """Records all of it on disk, in one transaction, before it returns.

        A request with an event id that the entry has already seen changes nothing. An entry in back-off
        keeps its due time: what keeps failing and keeps changing does not run hot. Safe to repeat.
        """
        now = self._clock()
        rows = [self._new_row(request, lane, now) for request in requests]
        kept = [
            {
                "record_id": each.record_id,
                "reason": each.reason,
                "raw": each.raw,
                "times_seen": 1,
                "first_seen_at": now,
                "last_seen_at": now,
            }
            for each in misfits
        ]
        with self._writing() as connection:
            if rows:
                rows.sort(key=lambda row: (row["rule"], row["key"]))  # one order for all: no deadlocks
                connection.execute(self._put, rows)
            if kept:
                connection.execute(self._keep, kept)
        self._tell_listeners()

    def put_now(self, request: Request) -> int:
        """Records one request that does not wait for a back-off to end; gives the entry's generation."""
        row = self._new_row(request, LIVE, self._clock())
        with self._writing() as connection:
            generation = connection.execute(self._put_now.returning(ROW.generation), row).scalar_one()
        return int(generation)

    def revive(self, *, rule: str | None = None, prefix: str = "", error_code: str | None = None) -> int:
        """Makes failed entries waiting again, from their first attempt on; gives how many."""
        statement = (
            sa.update(ENTRIES)
            .where(*_failed(rule, prefix, error_code))
            .values(
                state=WAITING, due_at=self._clock(), attempts=0, backoff_s=0.0, generation=ROW.generation + 1
            )
        )
        with self._writing() as connection:
            count = connection.execute(statement).rowcount
        self._tell_listeners()
        return count

    # ── working ──────────────────────────────────────────────────────────────────────────────────────

    def claim(self, limit: int, *, worker: str, lease_s: float) -> list[Claim]:
        """Up to `limit` entries that are due, live lane first, also those whose lease ran out."""
        if not self._anything_due():
            return []
        claims: list[Claim] = []
        with self._writing() as connection:
            now = self._clock()
            for lane in (LIVE, BACKFILL):
                if len(claims) < limit:
                    due = _due(lane, now, limit - len(claims))
                    claims += _take(connection, due, worker=worker, now=now, lease_s=lease_s)
        return claims

    def claim_one(self, rule: str, key: str, *, worker: str, lease_s: float) -> Claim | None:
        """This entry, if it is waiting (due or not) or its lease ran out; None otherwise."""
        with self._writing() as connection:
            now = self._clock()
            free = sa.or_(ROW.state == WAITING, sa.and_(ROW.state == RUNNING, ROW.due_at <= now))
            entry = sa.select(ROW.rule, ROW.key).where(ROW.rule == rule, ROW.key == key, free)
            found = _take(
                connection, entry.with_for_update(skip_locked=True), worker=worker, now=now, lease_s=lease_s
            )
        return found[0] if found else None

    def extend(self, claims: Sequence[Claim], *, lease_s: float) -> list[Claim]:
        """Prolongs the leases that are still held, and gives the claims that are not."""
        gone = []
        with self._writing() as connection:
            until = self._clock() + lease_s
            for claim in sorted(claims, key=lambda each: (each.rule, each.key)):
                statement = sa.update(ENTRIES).where(*_held(claim)).values(due_at=until)
                if connection.execute(statement).rowcount == 0:
                    gone.append(claim)
        return gone

    def note_upload(self, claim: Claim, note: str | None) -> None:
        """Keeps a note of an unfinished multipart upload with the entry."""
        with self._writing() as connection:
            connection.execute(sa.update(ENTRIES).where(*_held(claim)).values(upload=note))

    def finish(self, endings: Sequence[Ending]) -> int:
        """Ends claims, all in one transaction; gives how many of them were still held."""
        now = self._clock()
        groups: dict[type, list[dict[str, Any]]] = {}
        for ending in sorted(endings, key=lambda each: (each.claim.rule, each.claim.key)):
            groups.setdefault(type(ending), []).append(_finish_values(ending, now))
        with self._writing() as connection:
            held = sum(connection.execute(_FINISH[kind], rows).rowcount for kind, rows in groups.items())
        if held:
            self._tell_listeners()
        return held

    def release_of(self, is_dead: Callable[[str], bool]) -> int:
        """Makes the running entries of workers that are known to be dead due at once; gives how many."""
        with self._reading() as connection:
            running = sa.select(ROW.worker).distinct().where(ROW.due_at.is_not(None), ROW.worker.is_not(None))
            workers = [str(worker) for worker in connection.execute(running).scalars()]
        dead = [worker for worker in workers if is_dead(worker)]
        if not dead:
            return 0
        theirs = sa.update(ENTRIES).where(ROW.due_at.is_not(None), ROW.worker.in_(dead))
        with self._writing() as connection:
            return connection.execute(theirs.values(due_at=self._clock())).rowcount

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────

    def entry(self, rule: str, key: str) -> Mapping[str, Any] | None:
        """Everything known about one key: the row, its JSON columns read."""
        with self._reading() as connection:
            row = connection.execute(sa.select(ENTRIES).where(ROW.rule == rule, ROW.key == key)).first()
        return _readable(row) if row else None

    def ending_of(self, rule: str, key: str, *, generation: int) -> Ending | None:
        """How the claim ended that served this generation or a later one; None: none has yet."""
        row = ENTRIES.select().where(ROW.rule == rule, ROW.key == key, ROW.state != RUNNING)
        with self._reading() as connection:
            found = connection.execute(row).mappings().first()
        attempts = json.loads(found["history"]) if found else []
        if found is None or not attempts or attempts[-1]["generation"] < generation:
            return None
        return _past_ending(found, attempts[-1])

    def counts(self) -> dict[str, dict[str, int]]:
        """state → lane → number of entries; all states and lanes are there."""
        counts = {state: {LIVE: 0, BACKFILL: 0} for state in (WAITING, RUNNING, SETTLED, FAILED)}
        statement = sa.select(ROW.state, ROW.lane, sa.func.count()).group_by(ROW.state, ROW.lane)
        with self._reading() as connection:
            for state, lane, number in connection.execute(statement):
                counts[state][lane] = number
        return counts

    def quarantined(self) -> int:
        """How many different records are in quarantine."""
        with self._reading() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(QUARANTINE)).scalar_one()

    def failures(
        self, *, rule: str | None = None, prefix: str = "", error_code: str | None = None, limit: int = 100
    ) -> list[Mapping[str, Any]]:
        """Failed entries in key order, at most FAILURES_PAGE_MAX."""
        statement = sa.select(ENTRIES).where(*_failed(rule, prefix, error_code)).order_by(ROW.rule, ROW.key)
        with self._reading() as connection:
            rows = connection.execute(statement.limit(min(limit, FAILURES_PAGE_MAX)))
            return [_readable(row) for row in rows]

    def check(self) -> None:
        """Raises LedgerUnavailable unless the ledger can be written."""
        with self._writing() as connection:
            connection.execute(sa.delete(QUARANTINE).where(QUARANTINE.c.record_id == ""))

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────

    def _new_row(self, request: Request, lane: str, now: float) -> dict[str, Any]:
        return {
            "rule": request.rule,
            "key": request.key,
            "state": WAITING,
            "lane": lane,
            "due_at": now,
            "generation": 1,
            "claimed_generation": 0,
            "claim_number": 0,
            "attempts": 0,
            "backoff_s": 0.0,
            "recent_events": f"{request.event_id} " if request.event_id else "",
            "first_seen_at": now,
            "event_at": request.event_at or now,
            "lost": "[]",
            "history": "[]",
        }

    def _anything_due(self) -> bool:
        """A read that takes no lock: idle workers ask many times a second."""
        due = sa.select(sa.literal(1)).where(ROW.lane.in_((LIVE, BACKFILL)), ROW.due_at <= self._clock())
        with self._reading() as connection:
            return connection.execute(due.limit(1)).first() is not None

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with translated_errors(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction. Threads queue for SQLite's one write lock here: its own waiting sleeps longer."""
        if self._one_writer and not self._one_writer.acquire(timeout=BUSY_TIMEOUT_S):
            raise LedgerUnavailable(
                f"the ledger was busy for {BUSY_TIMEOUT_S:.0f} s",
                hint="Check its disk, and whether another program holds the file.",
            )
        try:
            with translated_errors(), self._engine.begin() as connection:
                yield connection
        finally:
            if self._one_writer:
                self._one_writer.release()


def _insert(dialect: str, table: sa.Table) -> Any:
    """INSERT … ON CONFLICT, which both dialects spell alike and SQLAlchemy keeps apart."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def _put_statement(dialect: str, *, hurry: bool) -> Any:
    insert = _insert(dialect, ENTRIES)
    new = insert.excluded
    repeated = sa.and_(new.recent_events != "", ROW.recent_events.contains(new.recent_events))
    idle = ROW.due_at.is_(None)  # settled or failed
    starts = sa.and_(~repeated, idle)
    moves_due = sa.and_(~repeated, sa.or_(idle, ROW.state == WAITING)) if hurry else starts
    remembered = EVENTS_REMEMBERED * (EVENT_ID_CHARS + 1)
    return insert.on_conflict_do_update(
        index_elements=[ROW.rule, ROW.key],
        set_={
            "generation": sa.case((repeated, ROW.generation), else_=ROW.generation + 1),
            "state": sa.case((starts, WAITING), else_=ROW.state),
            "lane": sa.case((starts, new.lane), (sa.and_(~repeated, new.lane == LIVE), LIVE), else_=ROW.lane),
            "due_at": sa.case((moves_due, new.due_at), else_=ROW.due_at),
            "attempts": sa.case((starts, 0), else_=ROW.attempts),
            "backoff_s": sa.case((starts, 0.0), else_=ROW.backoff_s),
            "event_at": sa.case((repeated, ROW.event_at), else_=new.event_at),
            "recent_events": sa.case(
                (repeated, ROW.recent_events),
                else_=sa.func.substr(new.recent_events + ROW.recent_events, 1, remembered),
            ),
        },
    )


def _quarantine_statement(dialect: str) -> Any:
    insert = _insert(dialect, QUARANTINE)
    return insert.on_conflict_do_update(
        index_elements=[QUARANTINE.c.record_id],
        set_={
            "times_seen": QUARANTINE.c.times_seen + 1,
            "last_seen_at": insert.excluded.last_seen_at,
        },
    )


def _due(lane: str, now: float, limit: int) -> sa.Select[Any]:
    due = sa.select(ROW.rule, ROW.key).where(ROW.lane == lane, ROW.due_at <= now)
    return due.order_by(ROW.due_at).limit(limit).with_for_update(skip_locked=True)


def _take(
    connection: sa.Connection, entries: sa.Select[Any], *, worker: str, now: float, lease_s: float
) -> list[Claim]:
    statement = (
        sa.update(ENTRIES)
        .where(sa.tuple_(ROW.rule, ROW.key).in_(entries))
        .values(
            state=RUNNING,
            due_at=now + lease_s,
            claimed_generation=ROW.generation,
            claim_number=ROW.claim_number + 1,
            attempts=ROW.attempts + 1,
            worker=worker,
        )
        .returning(*(ROW[name] for name in _CLAIM_COLUMNS), ROW.claim_number.label("number"), ROW.worker)
    )
    rows = connection.execute(statement).mappings().all()
    return [Claim(**row, claimed_at=now) for row in rows]


def _held(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        ROW.rule == claim.rule,
        ROW.key == claim.key,
        ROW.claim_number == claim.number,
        ROW.state == RUNNING,
    )


def _failed(rule: str | None, prefix: str, error_code: str | None) -> Iterable[sa.ColumnElement[bool]]:
    yield ROW.state == sa.literal_column(f"'{FAILED}'")
    if rule is not None:
        yield ROW.rule == rule
    if prefix:
        yield ROW.key.startswith(prefix, autoescape=True)
    if error_code is not None:
        yield ROW.error_code == error_code


def _finish_statements() -> dict[type, Any]:
    """One UPDATE for each kind of ending, for many rows at once; see `_finish_values` for the names."""
    bind = sa.bindparam
    moved = ROW.generation > ROW.claimed_generation
    held = sa.update(ENTRIES).where(
        ROW.rule == bind("_rule"),
        ROW.key == bind("_key"),
        ROW.claim_number == bind("_number"),
        ROW.state == RUNNING,
    )
    again = sa.case((moved, bind("_now", type_=sa.Double)), else_=sa.null())
    result = ("outcome", "size", "source_etag", "source_version", "target_etag", "cid", "lost", "history")
    return {
        Settled: held.values(
            state=sa.case((moved, WAITING), else_=SETTLED),
            due_at=again,
            attempts=0,
            backoff_s=0.0,
            worker=None,
            settled_at=bind("_now", type_=sa.Double),
            error_code=None,
            error=None,
            upload=None,
            **{name: bind(f"_{name}") for name in result},
        ),
        Retried: held.values(
            state=WAITING,
            due_at=bind("_due_at"),
            attempts=ROW.attempts - bind("_uncounted", type_=sa.Integer),
            backoff_s=bind("_backoff_s"),
            worker=None,
            error_code=bind("_error_code"),
            error=bind("_error"),
            history=bind("_history"),
        ),
        Buried: held.values(
            state=sa.case((moved, WAITING), else_=FAILED),
            due_at=again,
            attempts=sa.case((moved, 0), else_=ROW.attempts),
            backoff_s=0.0,
            worker=None,
            error_code=bind("_error_code"),
            error=bind("_error"),
            history=bind("_history"),
        ),
        Released: held.values(
            state=WAITING, due_at=bind("_now", type_=sa.Double), attempts=ROW.attempts - 1, worker=None
        ),
    }


_FINISH = _finish_statements()


def _finish_values(ending: Ending, now: float) -> dict[str, Any]:
    claim = ending.claim
    values: dict[str, Any] = {"_rule": claim.rule, "_key": claim.key, "_number": claim.number, "_now": now}
    match ending:
        case Settled():
            values |= {
                "_outcome": ending.outcome,
                "_size": ending.size,
                "_source_etag": ending.source_etag,
                "_source_version": ending.source_version,
                "_target_etag": ending.target_etag,
                "_cid": ending.cid,
                "_lost": json.dumps(ending.lost),
                "_history": _history(claim, now, result=ending.outcome, bytes_copied=ending.bytes_copied),
            }
        case Retried():
            values |= {
                "_due_at": now + ending.after_s,
                "_uncounted": 0 if ending.counts else 1,
                "_backoff_s": ending.backoff_s,
            }
        case _:
            pass
    if isinstance(ending, Retried | Buried):
        values["_error_code"] = ending.error_code
        values["_error"] = ending.error
        values["_history"] = _history(claim, now, result="error", error=ending.error)
    if isinstance(ending, Buried | Released | Settled):
        return values
    values.pop("_now")
    return values


def _history(claim: Claim, now: float, **what: Any) -> str:
    attempt = {
        "worker": claim.worker,
        "generation": claim.generation,
        "claimed_at": claim.claimed_at,
        "ended_at": now,
        **what,
    }
    return json.dumps([*json.loads(claim.history), attempt][-ATTEMPTS_REMEMBERED:])


def _past_ending(row: Mapping[str, Any], attempt: Mapping[str, Any]) -> Ending:
    """The ending that left this row and this last attempt behind."""
    claim = Claim(
        number=row["claim_number"],
        worker=attempt["worker"],
        claimed_at=attempt["claimed_at"],
        **{name: row[name] for name in _CLAIM_COLUMNS},
    )
    if attempt["result"] != "error":
        result = ("outcome", "size", "source_etag", "source_version", "target_etag", "cid")
        return Settled(
            claim=claim,
            bytes_copied=attempt["bytes_copied"],
            lost=tuple(json.loads(row["lost"])),
            **{name: row[name] for name in result},
        )
    if row["state"] == FAILED:
        return Buried(claim=claim, error_code=row["error_code"], error=row["error"])
    return Retried(
        claim=claim,
        after_s=max(0.0, (row["due_at"] or 0.0) - attempt["ended_at"]),
        backoff_s=row["backoff_s"],
        counts=True,
        error_code=row["error_code"],
        error=row["error"],
    )


def _readable(row: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = dict(row)
    for name in ("lost", "history"):
        entry[name] = json.loads(entry[name])
    entry.pop("recent_events")
    entry["attempts_made"] = entry.pop("history")
    return entry
