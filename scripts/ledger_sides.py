"""The two ledgers of a move: how each is opened, read and held still, and when services may start on it.

While a move is not finished, the new ledger bears a version that no release knows, so none starts on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from scripts.command_line import Failure, WrongUse, count
from webhook import postgresql as pg
from webhook.database import BUSY_TIMEOUT_S, HALF_MOVED, connect, parse_url, translated_errors
from webhook.entries import RUNNING, WAITING
from webhook.errors import LedgerUnavailable, LedgerVersionError
from webhook.fleet import ALIVE_S, Fleet
from webhook.ledger import Ledger
from webhook.tables import (
    COUNTS,
    ENTRIES,
    FINDINGS,
    LEASES,
    MINUTES,
    QUARANTINE,
    RULES,
    SLOTS,
    SWEEPS,
    WORKERS,
)

Row = tuple[Any, ...]

MOVED = (RULES, WORKERS, QUARANTINE, SWEEPS, MINUTES, COUNTS, FINDINGS, ENTRIES)
NOT_MOVED = (LEASES, SLOTS)
"""Who sweeps just now, and which moments of a target's limits are given away: these are of running processes,
and none runs."""
_IS_RUNNING = ENTRIES.c.state == RUNNING
BECOMES: Mapping[sa.Column[Any], sa.ColumnElement[Any]] = {
    # Nobody works on it any more: due at once, by a time that is the same whenever this runs.
    ENTRIES.c.due_at: sa.case((_IS_RUNNING, ENTRIES.c.first_seen_at), else_=ENTRIES.c.due_at),
    ENTRIES.c.worker: sa.case((_IS_RUNNING, sa.null()), else_=ENTRIES.c.worker),
    # A delete under way may have been carried out, and those that only wait do not count for the recovery
    # point: it is left as one whose lease has run out.
    ENTRIES.c.state: sa.case(
        (sa.and_(_IS_RUNNING, ENTRIES.c.gone_at.is_(None)), WAITING), else_=ENTRIES.c.state
    ),
    # As of processes that have stopped. When the last one was there tells how long all were down.
    WORKERS.c.threads: sa.literal(0),
}
"""What some of the old ledger's columns are in the new one; all others stay as they are."""

_VERSION = sa.table("alembic_version", sa.column("version_num"))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two ledgers."""

    word: str
    """ "old ledger" or "new ledger"."""
    place: str
    """Its URL without user, password and options."""
    engine: sa.Engine
    becomes: Mapping[sa.Column[Any], sa.ColumnElement[Any]] = field(default_factory=dict)
    """What is read in the place of some columns."""

    @classmethod
    def at(cls, address: str, word: str, stack: contextlib.ExitStack) -> Side:
        """Without the look at its version that `connect` takes, which refuses what is half moved."""
        url = parse_url(address)
        if url.get_backend_name() == "sqlite":
            place = f"sqlite:///{url.database}"
            try:
                engine = sa.create_engine(url, hide_parameters=True)
            except ValueError:
                raise WrongUse(f"{word}, {place}: an option in its URL has a wrong value.") from None
        else:
            server = f"{url.host or url.query.get('host', '')}{f':{url.port}' if url.port else ''}"
            place = f"postgresql://{server}/{url.database or ''}"
            engine = pg.engine(url, lock_timeout_s=BUSY_TIMEOUT_S)
        stack.callback(engine.dispose)
        return cls(word=word, place=place, engine=engine.execution_options(traits=pg.Traits()))

    @property
    def is_file(self) -> bool:
        """Whether it is SQLite's."""
        return self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Turns a database's errors into those of scripts."""
        try:
            with translated_errors():
                yield
        except (LedgerUnavailable, LedgerVersionError) as error:
            kind = WrongUse if isinstance(error, LedgerVersionError) else Failure
            raise kind(f"{self.word}, {self.place}: {error.message}. {error.hint}") from None

    def version(self) -> str | None:
        """Of its tables; None: it has none. Makes no file."""
        if self.is_file and not Path(self.engine.url.database or "").exists():
            return None
        with self.asked(), self.engine.connect() as connection:
            if not sa.inspect(connection).has_table(_VERSION.name):
                return None
            return connection.execute(sa.select(_VERSION)).scalar()

    def read(self, table: sa.Table, *, after: Row | None, upto: Row | None = None, limit: int) -> list[Row]:
        """Rows whose keys are behind `after`, but not behind `upto`, in the order of their keys' bytes."""
        columns = [self.becomes.get(column, column).label(column.name) for column in table.columns]
        wanted = sa.select(*columns).where(*self.within(table, after, upto)).order_by(*self._key(table))
        with self.asked(), self.engine.connect() as connection:
            if self.is_file:  # bytes that are no UTF-8 must not be an error before it is known whose they are
                driver: Any = connection.connection.driver_connection
                driver.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
            return [tuple(row) for row in connection.execute(wanted.limit(limit))]

    def within(self, table: sa.Table, after: Row | None, upto: Row | None) -> list[sa.ColumnElement[bool]]:
        """True on keys behind `after`, but not behind `upto`; None: no such bound."""
        key = sa.tuple_(*self._key(table))
        lower = [key > _values(after)] if after else []
        return lower + ([key <= _values(upto)] if upto else [])

    def _key(self, table: sa.Table) -> list[sa.ColumnElement[Any]]:
        """In an order that is the same in every database."""
        has_orders = not self.is_file
        return [
            column.collate("C") if has_orders and isinstance(column.type, sa.Text) else column
            for column in table.primary_key
        ]


def _values(row: Row) -> sa.Tuple:
    return sa.tuple_(*map(sa.literal, row))


def open_old(address: str, stack: contextlib.ExitStack) -> Side:
    """The old ledger, its tables of this release. Raises: WrongUse, Failure."""
    old = Side.at(address, "old ledger", stack)
    version = old.version()
    if version is None:
        raise Failure(f"There is no ledger at {old.place}. Give its URL with --from.")
    if version.endswith(HALF_MOVED):
        raise Failure(f"The old ledger, {old.place}, is half moved itself. End that move first.")
    with old.asked():
        connect(address).dispose()
    return replace(old, becomes=BECOMES)


def open_new(address: str, release: str, stack: contextlib.ExitStack) -> Side:
    """The new ledger, empty or as an earlier run left it, and marked as half moved.

    Raises: WrongUse, Failure.
    """
    new = Side.at(address, "new ledger", stack)
    version = new.version() or ""
    goes_on = version == release + HALF_MOVED
    if version.endswith(HALF_MOVED) and not goes_on:
        raise Failure(f"Another release began to move a ledger to {new.place}. Name an empty database.")
    if not goes_on:
        with new.asked():
            connect(address).dispose()
    refuse_running(new)
    if not goes_on:
        _begin(new, release)
    return new


def _begin(new: Side, release: str) -> None:
    """Marks an empty ledger. Raises: Failure where it is not empty."""
    with new.asked(), new.engine.begin() as connection:
        turn(connection, release, release + HALF_MOVED)
        for table in MOVED:
            if rows := connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one():
                is_there = f"{new.place} has {count(rows, 'row')} of {table.name}"
                raise Failure(
                    f"The new ledger is in use, or was moved before: {is_there}. Name an empty one."
                )


def hold_still(side: Side, stack: contextlib.ExitStack) -> sa.Connection:
    """Lets nobody write to it until the stack is left.

    A web process that still runs answers 503, and MinIO keeps the event.
    """
    with side.asked():
        connection = stack.enter_context(side.engine.connect())
        if side.is_file:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            pg.lift(connection, "idle_in_transaction_session_timeout", pg.TRANSACTION_TIMEOUT)
            names = ", ".join(table.name for table in MOVED)
            connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE MODE")
    return connection


def refuse_running(side: Side) -> None:
    """Raises Failure where processes replicate by this ledger."""
    with side.asked():
        members = Fleet(Ledger(side.engine)).members()
    if members:
        names = ", ".join(f"process {each.pid} on {each.host}" for each in members)
        killed = f"One that was killed counts as running for up to {ALIVE_S:.0f} s."
        raise Failure(f"The service runs on the {side.word}: {names}. Stop it, then run this again. {killed}")


def turn(connection: sa.Connection, before: str, after: str) -> None:
    """Changes the version. Until the transaction ends, no other run of this can. Raises: Failure."""
    version = _VERSION.c.version_num
    changed = connection.execute(sa.update(_VERSION).where(version == before).values(version_num=after))
    if changed.rowcount != 1:
        raise Failure("Another run of this moves a ledger there, or has ended. Look what it says.")


def finish(new: Side, release: str) -> None:
    """From now on, services start on it."""
    with new.asked(), new.engine.begin() as connection:
        turn(connection, release + HALF_MOVED, release)
        if not new.is_file:
            last = sa.select(sa.func.max(SWEEPS.c.id)).scalar_subquery()
            ids = sa.func.pg_get_serial_sequence(SWEEPS.name, SWEEPS.c.id.name)
            connection.execute(sa.select(sa.func.setval(ids, last)))  # does nothing where there is no sweep
            connection.exec_driver_sql(f"ANALYZE {ENTRIES.name}")  # else it plans as for an empty table
