"""The ledger's SQL: each statement once, for both engines.

Which row may change under which condition is decided here, inside the database, so that no two processes
can decide differently.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import sqlalchemy as sa

from webhook.compiled import Compiled, ForEachRow, InsertRows, insert_or
from webhook.entries import (
    BACKFILL,
    ETAG_MAX_CHARS,
    EVENT_ID_CHARS,
    FAILED,
    HELD,
    LANES,
    LIVE,
    PARKED_AT,
    RUNNING,
    SETTLED,
    WAITING,
    Buried,
    Claim,
    Deferred,
    Ending,
    Held,
    Misfit,
    Parked,
    Released,
    Request,
    Retried,
    Settled,
)
from webhook.tables import COUNTS, ENTRIES, MINUTES, QUARANTINE

EVENTS_REMEMBERED = 16
"""Events of one entry whose second delivery is recognised; beyond them it costs a look at the stores."""
ETAGS_REMEMBERED_CHARS = 8 * (32 + 1)
"""Eight of objects in one part."""
ATTEMPTS_REMEMBERED = 20
AFTER_EVERY_KEY = "\U0010ffff"
"""The last code point there is, and no character: prefix + this sorts behind all keys with the prefix."""
ROW = ENTRIES.c
bind = sa.bindparam
_CLAIM_COLUMNS = (
    *("rule", "key", "generation", "lane", "attempts", "backoff_s", "event_at"),
    *("source_etag", "target_etag", "upload", "lost", "history", "gone_at", "removal_told", "settled_at"),
    *("trace", "told_etags"),
)


_TYPES = {
    **dict.fromkeys(("_number", "_size"), sa.BigInteger),
    **dict.fromkeys(("_now", "_due_at", "_claimed_at", "_gone_at", "_backoff_s"), sa.Double),
    **dict.fromkeys(("_uncounted", "_is_back"), sa.Integer),
}
"""Of parameters that are no texts."""


def new_row(request: Request, *, lane: str, now: float) -> dict[str, Any]:
    """The row of an entry that nobody asked for before."""
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
        "asked_at": (request.event_at or now) if request.asked_at is None else request.asked_at,
        "removal_told": int(request.is_removal),
        "missed_at": request.missed_at,
        "trace": request.trace,
        "told_etags": f"{request.etag} " if 0 < len(request.etag) <= ETAG_MAX_CHARS else "",
    }


def misfit_row(misfit: Misfit, *, now: float) -> dict[str, Any]:
    """The row of a record that was not seen before."""
    return {**asdict(misfit), "times_seen": 1, "first_seen_at": now, "last_seen_at": now}


def put_entries(insert: Any, *, hurry: bool) -> Any:
    """An INSERT of rows that asks once more for those that are there; `hurry` ends a back-off.

    What failed is left to a person where a sweep asks for it. A delete that is pending is forgotten where
    anything but another removal is told: the key may be there again.
    """
    new = insert.excluded
    is_event = new.recent_events != ""
    repeated = sa.and_(is_event, ROW.recent_events.contains(new.recent_events))
    is_sweep = sa.and_(~is_event, new.lane == BACKFILL)
    counts = sa.and_(~repeated, ~sa.and_(is_sweep, ROW.state == FAILED))
    starts = sa.and_(counts, ROW.due_at.is_(None))  # settled, failed or held
    returns = sa.and_(counts, ROW.gone_at.is_not(None), new.removal_told == 0)
    hurries = sa.or_(starts, sa.and_(ROW.state == WAITING, counts if hurry else returns))
    # claims look at a lane from what was due first the last time: what comes in there is due from now on
    changes_lanes = sa.and_(counts, new.lane == LIVE, ROW.lane != LIVE, ROW.due_at < new.due_at)
    remembered = EVENTS_REMEMBERED * (EVENT_ID_CHARS + 1)
    # unless an event has told of it since the sweep looked
    was_missed = sa.and_(new.missed_at.is_not(None), ROW.state == SETTLED, new.event_at > ROW.event_at)
    told_late = sa.and_(is_event, ~repeated, new.event_at <= ROW.missed_at)
    return insert.on_conflict_do_update(
        index_elements=[ROW.rule, ROW.key],
        set_={
            "generation": sa.case((counts, ROW.generation + 1), else_=ROW.generation),
            "state": sa.case((starts, WAITING), else_=ROW.state),
            "lane": sa.case((starts, new.lane), (sa.and_(counts, new.lane == LIVE), LIVE), else_=ROW.lane),
            "due_at": sa.case((sa.or_(hurries, changes_lanes), new.due_at), else_=ROW.due_at),
            "attempts": sa.case((starts, 0), else_=ROW.attempts),
            "backoff_s": sa.case((starts, 0.0), else_=ROW.backoff_s),
            "event_at": sa.case((counts, new.event_at), else_=ROW.event_at),
            "recent_events": sa.case(
                (repeated, ROW.recent_events),
                else_=sa.func.substr(new.recent_events + ROW.recent_events, 1, remembered),
            ),
            "asked_at": sa.case(
                (sa.or_(repeated, ROW.asked_at < new.asked_at), ROW.asked_at), else_=new.asked_at
            ),
            "removal_told": sa.case(
                (sa.and_(counts, new.removal_told == 1), 1), (starts, 0), else_=ROW.removal_told
            ),
            "gone_at": sa.case((returns, sa.null()), else_=ROW.gone_at),
            "missed_at": sa.case(
                (was_missed, new.missed_at),
                (told_late, sa.null()),
                else_=ROW.missed_at,
            ),
            "trace": sa.case((counts, new.trace), else_=ROW.trace),
            "told_etags": sa.case(
                (sa.or_(repeated, ROW.told_etags.contains(new.told_etags)), ROW.told_etags),
                else_=sa.func.substr(new.told_etags + ROW.told_etags, 1, ETAGS_REMEMBERED_CHARS),
            ),
        },
    )


def keep_misfits(insert: Any) -> Any:
    """An INSERT of misfits that counts those that are there."""
    return insert.on_conflict_do_update(
        index_elements=[QUARANTINE.c.record_id],
        set_={
            "times_seen": QUARANTINE.c.times_seen + 1,
            "last_seen_at": insert.excluded.last_seen_at,
        },
    )


def update_in_order(*conditions: sa.ColumnElement[bool]) -> sa.Update:
    """UPDATE of all rows that fulfil the conditions, locked in key order as every other call locks them."""
    entries = sa.select(ROW.rule, ROW.key).where(*conditions).order_by(ROW.rule, ROW.key).with_for_update()
    return sa.update(ENTRIES).where(sa.tuple_(ROW.rule, ROW.key).in_(entries))


def count_minutes(insert: Any) -> Any:
    """An INSERT of what was settled in a minute that adds to the counts that are there."""
    counts = MINUTES.c
    return insert.on_conflict_do_update(
        index_elements=[counts.minute, counts.rule, counts.lane, counts.bucket, counts.share],
        set_={
            "objects": counts.objects + insert.excluded.objects,
            "bytes": counts.bytes + insert.excluded.bytes,
        },
    )


def add_counts(insert: Any) -> Any:
    """An INSERT of counts that adds to those that are there."""
    counts = COUNTS.c
    return insert.on_conflict_do_update(
        index_elements=[counts.name, counts.labels, counts.minute],
        set_={"value": counts.value + insert.excluded.value},
    )


def _due(dialect: str, *, by_place: bool) -> sa.ColumnElement[bool]:
    """True on entries of a lane that may be claimed now, longest due first, but on those others just take.

    By their places in the table where it has them: joined by their keys, PostgreSQL may read the whole table
    for a few.
    """
    is_due = (ROW.lane == bind("_lane"), ROW.due_at >= bind("_since"), ROW.due_at <= bind("_now"))
    most = bind("_limit", type_=sa.Integer)
    if not by_place:
        some = sa.select(ROW.rule, ROW.key).where(*is_due).order_by(ROW.due_at).limit(most)
        return sa.tuple_(ROW.rule, ROW.key).in_(some.with_for_update(skip_locked=True))
    place: sa.ColumnElement[Any] = sa.literal_column("ctid" if dialect == "postgresql" else "rowid")
    in_order = sa.select(place).select_from(ENTRIES).where(*is_due).order_by(ROW.due_at).limit(most)
    if dialect == "postgresql":
        return place == sa.any_(sa.func.array(in_order.with_for_update(skip_locked=True).scalar_subquery()))
    return place.in_(in_order)


def _next_due() -> sa.Select[Any]:
    """Who works on the first live entry, and when the first entry of each lane is due, NULL where nobody does
    or none is: the ends of an index, on any planner; of each lane, from `since(lane)` on.
    """
    live = (ROW.lane == LIVE, ROW.due_at >= bind(since(LIVE)))
    first_live = sa.select(ROW.worker).where(*live).order_by(ROW.due_at).limit(1)
    return sa.select(
        first_live.scalar_subquery(),
        *(
            sa.select(sa.func.min(ROW.due_at))
            .where(ROW.lane == lane, ROW.due_at >= bind(since(lane)))
            .scalar_subquery()
            .label(lane)
            for lane in LANES
        ),
    )


def since(lane: str) -> str:
    """The parameter that says from when on a lane is looked at."""
    return f"_since_{lane}"


def _leased() -> tuple[sa.ColumnElement[bool], ...]:
    """True on running entries whose lease has not run out; what is due is passed by, on the index."""
    lanes: list[sa.ColumnElement[str]] = [sa.literal_column(f"'{lane}'") for lane in LANES]
    return ROW.lane.in_(lanes), ROW.due_at > bind("_now"), ROW.worker.is_not(None)


def _free() -> sa.ColumnElement[bool]:
    """True on one entry, if it is waiting (due or not) or its lease ran out, unless others just take it."""
    free = sa.or_(ROW.state == WAITING, sa.and_(ROW.state == RUNNING, ROW.due_at <= bind("_now")))
    entry = sa.select(ROW.rule, ROW.key).where(ROW.rule == bind("_rule"), ROW.key == bind("_key"), free)
    return sa.tuple_(ROW.rule, ROW.key).in_(entry.with_for_update(skip_locked=True))


def _claim(which: sa.ColumnElement[bool]) -> Any:
    """Claims the entries; see `claims` for what it gives."""
    taken = sa.update(ENTRIES).where(which)
    return taken.values(
        state=RUNNING,
        due_at=bind("_until"),
        claimed_generation=ROW.generation,
        claim_number=ROW.claim_number + 1,
        attempts=ROW.attempts + 1,
        worker=bind("_worker"),
    ).returning(*(ROW[name] for name in _CLAIM_COLUMNS), ROW.claim_number, ROW.worker)


def claims(rows: Iterable[Sequence[Any]], now: float) -> list[Claim]:
    """The claims that `_claim` gave."""
    names = (*_CLAIM_COLUMNS, "number", "worker")
    return [Claim(**dict(zip(names, row, strict=True)), claimed_at=now) for row in rows]


def _held() -> sa.Update:
    """UPDATE of the row of a claim that still holds."""
    return sa.update(ENTRIES).where(
        ROW.rule == bind("_rule"),
        ROW.key == bind("_key"),
        ROW.claim_number == bind("_number"),
        ROW.state == RUNNING,
    )


def _overtaken() -> sa.Select[Any]:
    """A row if the entry of a claim has a later one."""
    entry = sa.select(sa.literal(1)).where(ROW.rule == bind("_rule"), ROW.key == bind("_key"))
    return entry.where(ROW.claim_number > bind("_number", type_=sa.BigInteger))


def held_row(claim: Claim) -> dict[str, Any]:
    """The values that name a claim in statements made of `_held`."""
    return {"_rule": claim.rule, "_key": claim.key, "_number": claim.number}


def failed(rule: str | None, prefix: str, error_code: str | None) -> Iterable[sa.ColumnElement[bool]]:
    """True on the failed entries asked for; the first term is spelled as the index's."""
    yield ROW.state == sa.literal_column(f"'{FAILED}'")
    yield from within(rule, prefix)
    if error_code is not None:
        yield ROW.error_code == error_code if "\0" not in error_code else sa.false()


def within(rule: str | None, prefix: str) -> Iterable[sa.ColumnElement[bool]]:
    """True on the entries of a rule, or all, whose keys begin with the prefix."""
    if "\0" in f"{rule}{prefix}":  # no entry has one, and PostgreSQL will not hear of it
        yield sa.false()
        return
    if rule is not None:
        yield ROW.rule == rule
    if prefix:  # a range, which the key's index serves; LIKE would ignore case on SQLite
        yield ROW.key >= prefix
        yield ROW.key < prefix + AFTER_EVERY_KEY


def _finish_statements() -> dict[type, Any]:
    """One UPDATE for each kind of ending, for many rows at once; see `ending_row` for the names."""
    now = bind("_now", type_=sa.Double)
    kinds = {
        Settled: _settle(now),
        Retried: _retry(),
        Buried: _bury(now),
        Released: {"state": WAITING, "due_at": now, "attempts": ROW.attempts - 1},
        Parked: {
            "state": WAITING,
            "due_at": sa.cast(sa.literal(PARKED_AT), sa.Double),
            "attempts": ROW.attempts - 1,
        },
        Deferred: _defer(now),
        Held: _hold(now),
    }
    return {kind: _held().values(worker=None, **values) for kind, values in kinds.items()}


_MOVED = ROW.generation > ROW.claimed_generation
"""True where it was asked for again since the claim."""
_AFRESH: Mapping[str, Any] = {"attempts": 0, "backoff_s": 0.0}


def _at_once(now: Any) -> sa.ColumnElement[Any]:
    """When it is due that was asked for again; NULL: it was not."""
    return sa.case((_MOVED, now), else_=sa.null())


def _error() -> dict[str, Any]:
    return {name: bind(f"_{name}") for name in ("error_code", "error", "history")}


def _settle(now: Any) -> dict[str, Any]:
    claimed_at = bind("_claimed_at", type_=sa.Double)
    asked_since = sa.case((ROW.event_at < claimed_at, ROW.event_at), else_=claimed_at)
    result = ("outcome", "size", "source_etag", "source_version", "target_etag", "cid", "lost", "history")
    return {
        "state": sa.case((_MOVED, WAITING), else_=SETTLED),
        "due_at": _at_once(now),
        **_AFRESH,
        "settled_at": now,
        **dict.fromkeys(("error_code", "error", "upload")),
        "asked_at": sa.case((_MOVED, asked_since), else_=sa.null()),
        "removal_told": sa.case((_MOVED, ROW.removal_told), else_=0),
        "gone_at": sa.case((~_MOVED, sa.cast(bind("_gone_at"), sa.Double)), else_=sa.null()),
        **{name: bind(f"_{name}") for name in result},
    }


def _retry() -> dict[str, Any]:
    return {
        "state": WAITING,
        "due_at": bind("_due_at"),
        "attempts": ROW.attempts - bind("_uncounted", type_=sa.Integer),
        "backoff_s": bind("_backoff_s"),
        **_error(),
    }


def _bury(now: Any) -> dict[str, Any]:
    return {
        "state": sa.case((_MOVED, WAITING), else_=FAILED),
        "due_at": _at_once(now),
        "attempts": sa.case((_MOVED, 0), else_=ROW.attempts),
        "backoff_s": 0.0,
        **_error(),
    }


def _defer(now: Any) -> dict[str, Any]:
    is_back = bind("_is_back", type_=sa.Integer) == 1
    return {
        "state": WAITING,
        "due_at": sa.case((_MOVED, now), else_=bind("_due_at", type_=sa.Double)),
        **_AFRESH,
        "gone_at": sa.case(
            (is_back, sa.null()), (_MOVED, ROW.gone_at), else_=sa.func.coalesce(ROW.gone_at, now)
        ),
        "upload": None,
    }


def _hold(now: Any) -> dict[str, Any]:
    """One that a person has discarded since the claim is looked at anew: nobody would decide on it again."""
    is_open = sa.and_(~_MOVED, ROW.gone_at.is_not(None))
    return {
        "state": sa.case((is_open, HELD), else_=WAITING),
        "due_at": sa.case((is_open, sa.null()), else_=now),
        **_AFRESH,
    }


class Statements:
    """What runs often, made into one engine's SQL. Parameters begin with an underscore, but columns'."""

    def __init__(self, engine: sa.Engine, *, by_place: bool = True) -> None:
        dialect = engine.dialect.name
        row = list(new_row(Request(rule="", key=""), lane="", now=0.0))
        self.put = InsertRows(ENTRIES, row, engine, partial(put_entries, hurry=False))
        put_now = put_entries(insert_or(dialect, ENTRIES), hurry=True).returning(ROW.generation)
        self.put_now = Compiled(put_now, engine, columns=row)
        misfit = list(misfit_row(Misfit(record_id="", reason="", raw=""), now=0.0))
        self.keep = InsertRows(QUARANTINE, misfit, engine, keep_misfits)
        self.next_due = Compiled(_next_due(), engine)
        self.claim = Compiled(_claim(_due(dialect, by_place=by_place)), engine)
        self.claim_one = Compiled(_claim(_free()), engine)
        self.workers = Compiled(sa.select(ROW.worker).distinct().where(*_leased()), engine)
        theirs = update_in_order(*_leased(), ROW.worker == bind("_worker"))
        self.release_of = Compiled(theirs.values(due_at=bind("_now")), engine)
        self.extend = Compiled(_held().values(due_at=bind("_until")), engine)
        self.is_overtaken = Compiled(_overtaken(), engine)
        self.note_upload = Compiled(_held().values(upload=bind("_upload")), engine)
        ends = _finish_statements().items()
        self.finish = {kind: ForEachRow(each, engine, types=_TYPES) for kind, each in ends}
        self.count_minutes = InsertRows(MINUTES, list(MINUTES.columns.keys()), engine, count_minutes)
        self.add_counts = InsertRows(COUNTS, list(COUNTS.columns.keys()), engine, add_counts)


def ending_row(ending: Ending, now: float) -> dict[str, Any]:
    """The values that FINISH's statement for this kind of ending takes."""
    claim = ending.claim
    values = held_row(claim) | {"_now": now}
    match ending:
        case Settled():
            values |= {
                "_outcome": ending.outcome,
                "_size": ending.size,
                "_source_etag": ending.source_etag,
                "_source_version": ending.source_version,
                "_target_etag": ending.target_etag,
                "_cid": ending.cid,
                "_lost": json.dumps(ending.lost) if ending.lost else "[]",
                "_history": _history(claim, now, result=ending.outcome, bytes_copied=ending.bytes_copied),
                "_claimed_at": claim.claimed_at,
                "_gone_at": ending.gone_at,
            }
        case Deferred():
            values |= {"_due_at": now + ending.after_s, "_is_back": int(ending.is_back)}
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
    if isinstance(ending, Retried):
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
    earlier = json.loads(claim.history) if claim.history != "[]" else ()
    return json.dumps([*earlier, attempt][-ATTEMPTS_REMEMBERED:])


def last_claim(row: sa.RowMapping) -> tuple[Claim, float]:
    """An entry's last claim that came to an end, and when it did."""
    attempt = json.loads(row["history"])[-1]
    claim = Claim(
        number=row["claim_number"],
        worker=attempt["worker"],
        claimed_at=attempt["claimed_at"],
        **{name: row[name] for name in _CLAIM_COLUMNS},
    )
    return claim, attempt["ended_at"]


def past_ending(row: sa.RowMapping, attempt: Mapping[str, Any]) -> Ending:
    """The ending that left this row and this last attempt behind."""
    claim, ended_at = last_claim(row)
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
        after_s=max(0.0, (row["due_at"] or 0.0) - ended_at),
        backoff_s=row["backoff_s"],
        counts=True,
        error_code=row["error_code"],
        error=row["error"],
    )


def readable(row: sa.RowMapping) -> Mapping[str, Any]:
    """An entry as a person may see it: JSON columns read, bookkeeping left out."""
    entry = dict(row)
    for name in ("lost", "history"):
        entry[name] = json.loads(entry[name])
    entry.pop("recent_events")
    entry.pop("told_etags")
    entry["attempts_made"] = entry.pop("history")
    return entry
