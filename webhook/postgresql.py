"""What is PostgreSQL's own: its sessions, its transactions and its clock.

Directly, or through a pooler such as pgbouncer that gives each transaction another session: what a session
would keep (settings, prepared statements, LISTEN) is done without there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.sql import visitors

CONNECT_TIMEOUT_S = 5
POOL_KEPT, POOL_MAX = 4, 16
"""Connections of one process: kept open, and at once. A server has 100 by default, for all processes."""
STATEMENT_TIMEOUT_S = 30
"""No statement of this service takes long; one that does holds up others."""
IDLE_IN_TRANSACTION_S = 10
"""A process that was stopped in a transaction must not hold its locks."""
TRANSACTION_S = 60
"""Nor one that fell silent in the middle of what it sends, where no idle time is counted. From PostgreSQL 17
on; before, TCP has to find out."""
PING_AFTER_S = 1.0
"""A connection unused for this long may have been closed by the other side, and is asked first."""
SILENT_S = 15
"""A connection that says nothing for this long is asked by TCP whether it still stands, by both sides."""
TRANSACTION_TIMEOUT = "transaction_timeout"
UPGRADE_LOCK = 7_361_420
"""Any number, as long as it stays the same: the advisory lock around an upgrade of the tables."""
ROWS = "_rows"
"""The parameter that holds many rows of parameters, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a server that speaks PostgreSQL's protocol can do."""

    is_postgresql: bool = True
    """Whether it is PostgreSQL itself: a row's place (`ctid`) finds it again within a transaction, and its
    planner takes advice."""


def traits(connection: sa.Connection) -> Traits:
    """CockroachDB and YugabyteDB tell their names; Citus spreads a table's rows over servers."""
    version = str(connection.exec_driver_sql("SELECT version()").scalar_one())
    is_other = any(name in version for name in ("CockroachDB", "-YB-", "YugabyteDB"))
    has_citus = "SELECT count(*) FROM pg_catalog.pg_extension WHERE extname = 'citus'"
    return Traits(is_postgresql=not is_other and not connection.exec_driver_sql(has_citus).scalar_one())


def lock_for_upgrade(connection: sa.Connection) -> None:
    """Waits until this transaction alone may change the tables, for as long as it takes."""
    lift(connection, "lock_timeout", "statement_timeout", TRANSACTION_TIMEOUT)
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))


def lift(connection: sa.Connection, *timeouts: str) -> None:
    """Ends what bounds this transaction, of what the server knows."""
    wanted = sa.text("SELECT set_config(name, '0', true) FROM pg_settings WHERE name = ANY(:names)")
    connection.execute(wanted, {"names": list(timeouts)})


def engine(url: sa.URL, *, lock_timeout_s: float) -> sa.Engine:
    """Connections to a PostgreSQL, kept open and known to be alive when they are given out."""
    timeouts = {
        "lock_timeout": f"{lock_timeout_s * 1000:.0f}ms",
        "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
        "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_S}s",
        TRANSACTION_TIMEOUT: f"{TRANSACTION_S}s",
    }
    keepalives = {"idle": SILENT_S, "interval": SILENT_S // 3, "count": 3}
    to_us = {f"tcp_keepalives_{name}": f"{value}" for name, value in keepalives.items()}
    to_us["tcp_user_timeout"] = f"{2 * SILENT_S}s"
    made = sa.create_engine(
        url,
        connect_args={
            "application_name": "replicator",
            "connect_timeout": CONNECT_TIMEOUT_S,
            **{f"keepalives_{name}": value for name, value in keepalives.items()},
            "tcp_user_timeout": 2 * SILENT_S * 1000,
        },
        pool_size=POOL_KEPT,
        max_overflow=POOL_MAX - POOL_KEPT,
        pool_timeout=lock_timeout_s,
        pool_use_lifo=True,  # the connection used last has prepared what the next one needs
        hide_parameters=True,
    )

    @sa.event.listens_for(made, "connect")
    def _configure(connection: Any, record: Any) -> None:
        found = connection.execute("SELECT name FROM pg_settings WHERE name = ANY(%s)", [[*timeouts, *to_us]])
        known = {name for (name,) in found.fetchall()}
        record.info["is_pooled"] = is_pooled(connection)
        if record.info["is_pooled"]:
            connection.prepare_threshold = None
            ours = [f"SET LOCAL {name} = '{value}'" for name, value in timeouts.items() if name in known]
            record.info["begin"] = "; ".join(["BEGIN", *ours])
        else:
            record.info["begin"] = "BEGIN"
            for name, value in {**timeouts, **to_us}.items():
                if name in known:
                    connection.execute(f"SET {name} = '{value}'")
        connection.commit()
        record.info["used_at"] = time.monotonic()

    @sa.event.listens_for(made, "checkin")
    def _note(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @sa.event.listens_for(made, "checkout")
    def _ping(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("used_at", 0.0) > PING_AFTER_S:
            try:
                made.dialect.do_ping(connection)
            except made.dialect.loaded_dbapi.Error as error:
                raise sa.exc.DisconnectionError from error  # the pool opens another

    return made


def is_pooled(connection: Any) -> bool:
    """Whether something stands between this client and its server session.

    A server tells its session's number when a connection begins (libpq's PQbackendPID); poolers tell one of
    their own.
    """
    (session,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    return bool(session != connection.info.backend_pid)


@contextmanager
def single_statements(connection: sa.PoolProxiedConnection) -> Iterator[None]:
    """Within, a statement is a transaction of its own, in one round trip, unless `begin` was called."""
    driver: Any = connection.driver_connection
    driver.autocommit = True
    yield
    driver.autocommit = False


def needs_no_begin(connection: sa.PoolProxiedConnection) -> bool:
    """Whether a single statement has all that `begin` sets by itself, and is one round trip, not three."""
    return not connection.info["is_pooled"]


def begin(
    connection: sa.PoolProxiedConnection, cursor: Any, traits: Traits, *, durable: bool, by_index: bool
) -> None:
    """Begins a transaction in one round trip.

    Not `durable`: its commit does not wait for the disk. `by_index`: rows are found by the table's indexes,
    in the order in which they are named, however few the table is thought to have.
    """
    parts = [connection.info["begin"]]
    if traits.is_postgresql and not durable:
        parts.append("SET LOCAL synchronous_commit = off")
    if traits.is_postgresql and by_index:
        parts += [f"SET LOCAL enable_{way} = off" for way in ("seqscan", "hashjoin", "mergejoin")]
    cursor.execute("; ".join(parts), prepare=False)


def update_from_rows(statement: Any, *, types: Mapping[str, Any]) -> Any:
    """The UPDATE for all rows of a JSON text, the parameter ROWS, instead of for one row's parameters."""
    names = [name for name, each in statement.compile().binds.items() if each.required]
    given = _rows([sa.column(name, types.get(name, sa.Text)) for name in names])

    def column_for(element: Any, **_: Any) -> Any:
        if isinstance(element, sa.BindParameter) and element.key in names:
            return given.c[element.key]
        return None

    return visitors.replacement_traverse(statement, {}, column_for)


def insert_from_rows(insert: Any, table: sa.Table, names: Sequence[str]) -> Any:
    """The INSERT of all rows of a JSON text, the parameter ROWS."""
    given = _rows([sa.column(name, table.c[name].type) for name in names])
    return insert.from_select(names, sa.select(*given.c))


def _rows(columns: Sequence[sa.ColumnClause[Any]]) -> Any:
    text = sa.cast(sa.bindparam(ROWS, type_=sa.Text), postgresql.JSON)
    return (
        sa.func.json_to_recordset(text).table_valued(*columns).render_derived(name="given", with_types=True)
    )


def seconds(cursor: DBAPICursor) -> float:
    """The server's time, in seconds since 1970."""
    cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
    ((now,),) = cursor.fetchall()
    return float(now)
