"""What the ledger keeps of sweeps: which are to be done, how far each has come, and what it found.

    request ─▶ open ──────▶ complete        A sweep that stops, however it does, stays open: the next one
                │  ▲                        who holds the sweeper's lease goes on behind its cursor.
                └──┘ advance, put_off
                └────────▶ dropped          its rule is no more

One sweep runs at a time, however many processes there are: whoever runs it holds the lease `SWEEPER`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from webhook.compiled import insert_or
from webhook.ledger import Ledger
from webhook.tables import LEASES, RULES, SWEEPS

OPEN, COMPLETE, DROPPED = "open", "complete", "dropped"
SWEEPER, PRUNER = "sweeper", "pruner"
KEPT_FOR_EACH_RULE = 50
COUNTS = ("compared", "compared_bytes", "missing", "different", "unproven", "extra", "kept", "put")
_ROW = SWEEPS.c


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One walk over both listings of a rule. Times in seconds since 1970."""

    id: int
    rule: str
    prefix: str
    """Only source keys that begin with this; "" for all, and only such a sweep proves anything."""
    cause: str
    state: str
    cursor: str
    """The last source key that was compared."""
    on_disk: str
    """The sides, by comma, whose listings had to be sorted on disk."""
    asked_at: float
    due_at: float
    started_at: float | None
    proves_at: float | None
    """What was at the source before this time, by its own clock, has been seen."""
    ended_at: float | None
    worker: str | None
    error: str | None
    compared: int
    """Keys seen, at either side."""
    compared_bytes: int
    missing: int
    different: int
    unproven: int
    extra: int
    kept: int
    put: int
    """How many keys the workers were asked to look at."""


_FIELDS = [field.name for field in fields(Sweep)]
_COLUMNS = [_ROW[name] for name in _FIELDS]


class NotOpen(Exception):
    """The sweep is over: its rule says something else now, or is no more."""


class Sweeps:
    """Thread-safe. Every method raises LedgerUnavailable, those that change a sweep NotOpen."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def register(self, shapes: Mapping[str, str]) -> dict[str, float]:
        """Notes the rules in force, name → shape; gives since when each has been in force like this.

        What was found out about a rule that now says something else proves nothing any more.
        """
        now = self._ledger.clock()
        rows = [
            {"name": name, "shape": shape, "first_seen_at": now, "counted_from": 0.0}
            for name, shape in sorted(shapes.items())
        ]
        known = self._known_shapes()
        changed = [name for name, shape in shapes.items() if known.get(name, (shape,))[0] != shape]
        if len(known.keys() & shapes.keys()) < len(shapes) or changed:
            insert = insert_or(self._ledger.dialect, RULES)
            new = {"shape": insert.excluded.shape, "first_seen_at": insert.excluded.first_seen_at}
            differs = RULES.c.shape != insert.excluded.shape
            put = insert.on_conflict_do_update(index_elements=[RULES.c.name], set_=new, where=differs)
            void = [sa.update(SWEEPS).where(_ROW.rule == name).values(state=DROPPED) for name in changed]
            self._ledger.run(*void, put.values(rows))
            known = self._known_shapes()
        return {name: known[name][1] for name in shapes}

    def known(self) -> list[str]:
        """The names of all rules that were ever registered."""
        return sorted(self._known_shapes())

    def _known_shapes(self) -> dict[str, tuple[str, float]]:
        with self._ledger.reading() as connection:
            found = connection.execute(sa.select(RULES.c.name, RULES.c.shape, RULES.c.first_seen_at))
            return {name: (shape, at) for name, shape, at in found}

    def request(self, rule: str, *, prefix: str = "", cause: str) -> Sweep:
        """Asks for a sweep, and gives it; where one is open for the same keys, that one."""
        now = self._ledger.clock()
        row: dict[str, Any] = {"rule": rule, "prefix": prefix, "cause": cause, "state": OPEN}
        row |= {
            "cursor": "",
            "on_disk": self._last_on_disk(rule),
            "asked_at": now,
            "due_at": now,
            **dict.fromkeys(COUNTS, 0),
        }
        insert = insert_or(self._ledger.dialect, SWEEPS).values(row)
        is_open = _ROW.state == sa.literal_column(f"'{OPEN}'")
        asked = insert.on_conflict_do_update(
            index_elements=[_ROW.rule, _ROW.prefix],
            index_where=is_open,
            set_={"due_at": insert.excluded.due_at},
        )
        return _only(self._ledger.run(asked.returning(*_COLUMNS)))

    def _last_on_disk(self, rule: str) -> str:
        """What the last sweep found out about the order of its listings."""
        last = self.last_asked(rule)
        return last.on_disk if last else ""

    def next_due(self) -> Sweep | None:
        """The open sweep that has been due longest, of rules at work; what was begun comes first."""
        paused = sa.select(RULES.c.name).where(RULES.c.paused_at.is_not(None))
        wanted = sa.select(SWEEPS).where(_ROW.state == OPEN, _ROW.due_at <= self._ledger.clock())
        wanted = wanted.where(_ROW.rule.not_in(paused))
        order = wanted.order_by(_ROW.started_at.is_(None), _ROW.due_at).limit(1)
        with self._ledger.reading() as connection:
            row = connection.execute(order).mappings().first()
        return Sweep(**row) if row else None

    def begin(self, sweep: Sweep, *, worker: str) -> Sweep:
        """Notes who works on it, and since when."""
        started = sa.func.coalesce(_ROW.started_at, self._ledger.clock())
        return self._change(sweep, started_at=started, worker=worker, error=None)

    def prove_from(self, sweep: Sweep, at: float) -> Sweep:
        """Notes the source's time of the first page; what a sweep that goes on has noted, stays."""
        return self._change(sweep, proves_at=sa.func.coalesce(_ROW.proves_at, at))

    def sort_on_disk(self, sweep: Sweep, sides: str) -> Sweep:
        """Notes the sides whose listings are sorted on disk. What was concluded before counts no more:
        keys may have been passed by.
        """
        return self._change(sweep, on_disk=sides, cursor="", **dict.fromkeys(COUNTS, 0))

    def advance(self, sweep: Sweep, cursor: str, counts: Mapping[str, int]) -> Sweep:
        """All keys up to the cursor have been compared, and what was found is put; `counts` are added."""
        grown = {name: _ROW[name] + number for name, number in counts.items()}
        return self._change(sweep, cursor=cursor, **grown)

    def put_off(self, sweep: Sweep, *, by_s: float, error: str) -> Sweep:
        """It met an error; it goes on later."""
        return self._change(sweep, due_at=self._ledger.clock() + by_s, error=error)

    def end(self, sweep: Sweep, state: str = COMPLETE) -> Sweep:
        """It is over; older ones of the rule are forgotten, but for the latest."""
        ended = self._change(sweep, state=state, ended_at=self._ledger.clock())
        latest = sa.select(_ROW.id).where(_ROW.rule == sweep.rule).order_by(_ROW.id.desc())
        older = latest.offset(KEPT_FOR_EACH_RULE).limit(1).scalar_subquery()
        self._ledger.run(
            sa.delete(SWEEPS).where(
                *(_ROW.rule == sweep.rule, _ROW.state != OPEN, _ROW.id <= older),
                _ROW.id.not_in(_last_proofs()),
            )
        )
        return ended

    def get(self, number: int) -> Sweep | None:
        """The sweep of that id."""
        return next(iter(self._some(_ROW.id == number)), None)

    def latest(self, *, rule: str | None = None, limit: int = 100) -> list[Sweep]:
        """The newest first."""
        return self._some(*([_ROW.rule == rule] if rule is not None else []), limit=limit)

    def unfinished(self) -> list[Sweep]:
        """All that are open, those over all keys last."""
        with self._ledger.reading() as connection:
            wanted = sa.select(SWEEPS).where(_ROW.state == OPEN).order_by(_ROW.prefix.desc(), _ROW.id)
            return [Sweep(**row) for row in connection.execute(wanted).mappings()]

    def last_asked(self, rule: str) -> Sweep | None:
        """The newest sweep over all keys of a rule as it is now."""
        return next(
            iter(self._some(_ROW.rule == rule, _ROW.prefix == "", _ROW.state != DROPPED, limit=1)), None
        )

    def last_proofs(self, shapes: Mapping[str, str]) -> dict[str, Sweep]:
        """rule → its last complete sweep over all its keys, of rules that still have the shape given."""
        known = self._known_shapes()
        newest = _last_proofs()
        with self._ledger.reading() as connection:
            found = connection.execute(sa.select(SWEEPS).where(_ROW.id.in_(newest))).mappings().all()
        proofs = {row["rule"]: Sweep(**row) for row in found}
        return {
            name: proofs[name]
            for name, shape in shapes.items()
            if name in proofs and known.get(name, ("",))[0] == shape
        }

    def last_ended(self) -> dict[str, float]:
        """rule → when its last complete sweep over all keys ended, in seconds since 1970."""
        ended = sa.select(_ROW.rule, sa.func.max(_ROW.ended_at))
        wanted = ended.where(_ROW.state == COMPLETE, _ROW.prefix == "").group_by(_ROW.rule)
        with self._ledger.reading() as connection:
            return {rule: float(at) for rule, at in connection.execute(wanted)}

    def _change(self, sweep: Sweep, **values: Any) -> Sweep:
        """Raises: NotOpen."""
        changed = sa.update(SWEEPS).where(_ROW.id == sweep.id, _ROW.state == OPEN).values(**values)
        return _only(self._ledger.run(changed.returning(*_COLUMNS), durable=False))

    def _some(self, *conditions: sa.ColumnElement[bool], limit: int = 100) -> list[Sweep]:
        wanted = sa.select(SWEEPS).where(*conditions).order_by(_ROW.id.desc()).limit(limit)
        with self._ledger.reading() as connection:
            return [Sweep(**row) for row in connection.execute(wanted).mappings()]

    # ── one at a time ────────────────────────────────────────────────────────────────────────────────

    def take_lease(
        self, *, worker: str, lease_s: float, is_dead: Callable[[str], bool], name: str = SWEEPER
    ) -> bool:
        """Whether this worker may sweep (or prune), for `lease_s` from now: nobody else may, then."""
        now = self._ledger.clock()
        with self._ledger.reading() as connection:
            holder = connection.execute(sa.select(LEASES.c.worker).where(LEASES.c.name == name)).scalar()
        insert = insert_or(self._ledger.dialect, LEASES)
        insert = insert.values(name=name, worker=worker, until=now + lease_s)
        free = [LEASES.c.until <= now, LEASES.c.worker == worker]
        if holder and is_dead(holder):
            free.append(LEASES.c.worker == holder)
        taken = insert.on_conflict_do_update(
            index_elements=[LEASES.c.name],
            set_={"worker": insert.excluded.worker, "until": insert.excluded.until},
            where=sa.or_(*free),
        )
        return len(self._ledger.run(taken.returning(LEASES.c.worker), durable=False)) > 0

    def give_up_lease(self, *, worker: str) -> None:
        """Somebody else may sweep at once."""
        held = sa.delete(LEASES).where(LEASES.c.name == SWEEPER, LEASES.c.worker == worker)
        self._ledger.run(held, durable=False)


def _only(rows: Sequence[Sequence[Any]]) -> Sweep:
    if not rows:
        raise NotOpen
    return Sweep(**dict(zip(_FIELDS, rows[0], strict=True)))


def _last_proofs() -> sa.Select[Any]:
    proving = sa.select(sa.func.max(_ROW.id)).where(_ROW.state == COMPLETE, _ROW.prefix == "")
    return proving.group_by(_ROW.rule)
