"""The ledger's tables, and the engine they live in: SQLite in a file, or PostgreSQL.

Nothing above this module knows which of the two it is.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPICursor

from webhook import postgresql as pg
from webhook.clocks import ServerClock
from webhook.errors import LedgerUnavailable, LedgerVersionError, SettingsError

BUSY_TIMEOUT_S = 5.0
"""How long a statement waits for another process's lock on the ledger."""
POOL_MAX = 32
MIGRATIONS = Path(__file__).parent / "migrations"
HALF_MOVED = " (half moved)"
"""Behind the version of a ledger that scripts/move_ledger.py has not finished: no release starts on it."""

METADATA = sa.MetaData()

ENTRIES = sa.Table(
    "entries",
    METADATA,
    sa.Column("rule", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("state", sa.Text),
    sa.Column("lane", sa.Text),
    # waiting: not before this moment; running: when the lease runs out; NULL: nothing is to be done
    sa.Column("due_at", sa.Double),
    # how many times the entry was asked for, and that number when it was last claimed
    sa.Column("generation", sa.BigInteger),
    sa.Column("claimed_generation", sa.BigInteger),
    # counts claims; the number of a claim is its fencing token
    sa.Column("claim_number", sa.BigInteger),
    sa.Column("worker", sa.Text),
    sa.Column("attempts", sa.Integer),
    sa.Column("backoff_s", sa.Double),
    # ids of the latest events accepted, each followed by a space
    sa.Column("recent_events", sa.Text),
    sa.Column("first_seen_at", sa.Double),
    sa.Column("event_at", sa.Double),
    sa.Column("outcome", sa.Text),
    sa.Column("settled_at", sa.Double),
    sa.Column("size", sa.BigInteger),
    sa.Column("source_etag", sa.Text),
    sa.Column("source_version", sa.Text),
    sa.Column("target_etag", sa.Text),
    sa.Column("cid", sa.Text),
    # JSON list of what the target could not hold
    sa.Column("lost", sa.Text),
    sa.Column("error_code", sa.Text),
    sa.Column("error", sa.Text),
    # JSON note of an unfinished multipart upload
    sa.Column("upload", sa.Text),
    # JSON list of the latest attempts, oldest first
    sa.Column("history", sa.Text),
    # since when something is asked for that has not been settled; NULL: nothing is
    sa.Column("asked_at", sa.Double),
    # 1: an event told that the source's object was removed
    sa.Column("removal_told", sa.Integer),
    # when the source was found to have no such key any more, while a delete is pending, held or just done
    sa.Column("gone_at", sa.Double),
    # when a sweep found a change that no event had told of
    sa.Column("missed_at", sa.Double),
)

QUARANTINE = sa.Table(
    "quarantine",
    METADATA,
    sa.Column("record_id", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text),
    sa.Column("raw", sa.Text),
    sa.Column("times_seen", sa.BigInteger),
    sa.Column("first_seen_at", sa.Double),
    sa.Column("last_seen_at", sa.Double),
)

RULES = sa.Table(
    "rules",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    # what it says of where objects come from and go to, and since when it says so
    sa.Column("shape", sa.Text),
    sa.Column("first_seen_at", sa.Double),
    # when and why the delete breaker tripped; NULL: it has not
    sa.Column("tripped_at", sa.Double),
    sa.Column("trip_reason", sa.Text),
    # deletes before this time do not count for the breaker: a person has decided about them
    sa.Column("counted_from", sa.Double),
)

SWEEPS = sa.Table(
    "sweeps",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rule", sa.Text),
    sa.Column("prefix", sa.Text),
    # who wanted it: "start", "interval", "request", "command"
    sa.Column("cause", sa.Text),
    # "open": to be done or under way; "complete"; "dropped": its rule is no more
    sa.Column("state", sa.Text),
    # the last source key that was compared
    sa.Column("cursor", sa.Text),
    # the sides whose listing had to be sorted on disk
    sa.Column("on_disk", sa.Text),
    sa.Column("asked_at", sa.Double),
    sa.Column("due_at", sa.Double),
    sa.Column("started_at", sa.Double),
    # by the source's clock: what was there before this time has been seen
    sa.Column("proves_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("worker", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("compared", sa.BigInteger),
    sa.Column("compared_bytes", sa.BigInteger),
    sa.Column("missing", sa.BigInteger),
    sa.Column("different", sa.BigInteger),
    sa.Column("unproven", sa.BigInteger),
    sa.Column("extra", sa.BigInteger),
    sa.Column("kept", sa.BigInteger),
    # how many it asked the workers to look at
    sa.Column("put", sa.BigInteger),
)

LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("worker", sa.Text),
    sa.Column("until", sa.Double),
)

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text),
    sa.Column("threads", sa.Integer),
    sa.Column("started_at", sa.Double),
    sa.Column("seen_at", sa.Double),
    # JSON: target → its limit of requests at once; see webhook.pace
    sa.Column("limits", sa.Text),
)

SLOTS = sa.Table(
    "slots",
    METADATA,
    # a target, and what is limited: "filebase requests"
    sa.Column("name", sa.Text, primary_key=True),
    # up to when all moments of it are given away, by the ledger's clock
    sa.Column("given_until", sa.Double),
)

MINUTES = sa.Table(
    "minutes",
    METADATA,
    sa.Column("minute", sa.BigInteger, primary_key=True),
    sa.Column("rule", sa.Text, primary_key=True),
    sa.Column("lane", sa.Text, primary_key=True),
    # of the time from the change to its settling: see webhook.progress
    sa.Column("bucket", sa.Integer, primary_key=True),
    # a number that few processes have in common, so that they seldom wait for each other
    sa.Column("share", sa.Integer, primary_key=True),
    sa.Column("objects", sa.BigInteger),
    sa.Column("bytes", sa.BigInteger),
)


_PREPARED: dict[str, pg.Traits] = {}


def prepare(database_url: str) -> None:
    """Creates or upgrades the tables once for this process and those it forks; keeps no connection.

    So a web process that is started anew while the database is away comes up all the same.
    Raises: as `connect`.
    """
    engine = connect(database_url)
    engine.dispose()
    _PREPARED[database_url] = traits(engine)


def connect(database_url: str) -> sa.Engine:
    """An engine for a `DATABASE_URL`, its folder made, its tables there and of this version.

    Call it after the fork: connections do not survive one.
    Raises: SettingsError, LedgerUnavailable, LedgerVersionError.
    """
    url = parse_url(database_url)
    with translated_errors():
        is_sqlite = url.get_backend_name() == "sqlite"
        engine = _sqlite(url) if is_sqlite else pg.engine(url, lock_timeout_s=BUSY_TIMEOUT_S)
        try:
            found = _PREPARED.get(database_url) or _prepare(engine)
        except BaseException:
            engine.dispose()
            raise
    return engine.execution_options(traits=found)


def traits(engine: sa.Engine) -> pg.Traits:
    """What the server behind an engine of `connect` can do."""
    found: pg.Traits = engine.get_execution_options()["traits"]
    return found


def clock(engine: sa.Engine) -> Callable[[], float]:
    """The time that all users of the database agree on, in seconds since 1970: the server's, where there is
    one.
    """
    if engine.dialect.name == "sqlite":
        return time.time

    def ask() -> float:
        with reading(engine) as cursor:
            return pg.seconds(cursor)

    return ServerClock(ask)


def parse_url(database_url: str) -> sa.URL:
    """Reads the URL as providers hand it out: `postgres://`, `postgresql://`, `sqlite:///`.

    A Unix socket may be the host, percent-encoded, as libpq allows. Raises: SettingsError.
    """
    try:
        url = sa.make_url(database_url)
    except (sa.exc.ArgumentError, ValueError):
        raise SettingsError(["DATABASE_URL is no database URL; like sqlite:///data/replicator.db"]) from None
    backend = {"postgres": "postgresql"}.get(url.get_backend_name(), url.get_backend_name())
    if backend == "sqlite" and url.database and url.database != ":memory:" and not url.query:
        return url.set(drivername="sqlite")
    if backend == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
        if (url.host or "").lower().startswith("%2f"):
            return url.set(host=None).update_query_dict({"host": unquote(url.host or "")})
        return url
    raise SettingsError(
        ["DATABASE_URL must name an SQLite file (sqlite:///…) or PostgreSQL (postgresql://…)"]
    )


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns what a database driver raises into LedgerUnavailable, without values from the statement."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, sqlite3.Error, psycopg.Error, OSError) as error:
        cause = getattr(error, "orig", None) or error
        first_line = (str(cause).splitlines() or [""])[0]
        raise LedgerUnavailable(
            f"the ledger cannot be used now: {type(cause).__name__}: {first_line}",
            hint="Check that its disk has room, that no other program locks the file, "
            "or that PostgreSQL runs and DATABASE_URL is right.",
        ) from error


class Compiled:
    """A statement that is made into SQL once, for the driver's own cursor.

    For a small statement, SQLAlchemy's work on each execution costs several times the database's. Its
    parameters are the ones without a value of their own.
    """

    def __init__(self, statement: Any, engine: sa.Engine, *, columns: Sequence[str] | None = None) -> None:
        """`columns`: of an INSERT, what each row has."""
        compiled = statement.compile(engine, column_keys=columns)
        self.sql = str(compiled)
        self._constants = {
            name: bind.value for bind, name in compiled.bind_names.items() if not bind.required
        }

    def run(self, cursor: DBAPICursor, *rows: Mapping[str, Any]) -> DBAPICursor:
        """Executes it for each row, one after the other, also where two rows are of one key."""
        if len(rows) > 1:
            cursor.executemany(self.sql, [{**self._constants, **row} for row in rows])
        else:
            cursor.execute(self.sql, {**self._constants, **(rows[0] if rows else {})})
        return cursor


class ForEachRow(Compiled):
    """An UPDATE that is made of many rows of parameters, all of different entries.

    Where the engine can, in one statement: PostgreSQL's work for each one, and the driver's, is several times
    that for each row of one.
    """

    def __init__(self, statement: Any, engine: sa.Engine, *, types: Mapping[str, Any]) -> None:
        """`types`: of the parameters that are no texts, by name."""
        self._takes_all = engine.dialect.name == "postgresql"
        if self._takes_all:
            statement = pg.update_from_rows(statement, types=types)
        super().__init__(statement, engine)

    def run(self, cursor: DBAPICursor, *rows: Mapping[str, Any]) -> DBAPICursor:
        """Executes it; the cursor's `rowcount` tells how many rows it changed in all."""
        if not self._takes_all:
            return super().run(cursor, *rows)
        return super().run(cursor, {pg.ROWS: json.dumps(rows)})


class InsertRows(Compiled):
    """An INSERT … ON CONFLICT of many rows, whose conflicts may also be with each other.

    On PostgreSQL in one statement for all rows of different keys, one after the other for those of the same.
    """

    def __init__(
        self, table: sa.Table, columns: Sequence[str], engine: sa.Engine, complete: Callable[[Any], Any]
    ) -> None:
        """`complete` makes the whole statement of its INSERT."""
        self._takes_all = engine.dialect.name == "postgresql"
        self._key = [column.name for column in table.primary_key]
        insert = insert_or(engine.dialect.name, table)
        if self._takes_all:
            super().__init__(complete(pg.insert_from_rows(insert, table, columns)), engine)
        else:
            super().__init__(complete(insert), engine, columns=columns)

    def run(self, cursor: DBAPICursor, *rows: Mapping[str, Any]) -> DBAPICursor:
        """Executes it; each row finds what those before it have left."""
        if not self._takes_all:
            return super().run(cursor, *rows)
        for group in self._of_different_keys(rows):
            super().run(cursor, {pg.ROWS: json.dumps(group)})
        return cursor

    def _of_different_keys(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
        groups: list[list[Mapping[str, Any]]] = []
        seen: Counter[tuple[Any, ...]] = Counter()
        for row in rows:
            key = tuple(row[name] for name in self._key)
            if seen[key] == len(groups):
                groups.append([])
            groups[seen[key]].append(row)
            seen[key] += 1
        return groups


def reader(engine: sa.Engine) -> sa.Engine:
    """The engine for statements that change nothing and need not be of one moment."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(only_reads=True)
    # a ROLLBACK would have psycopg forget all statements that it has prepared
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[DBAPICursor]:
    """A cursor for single statements outside of a transaction. Raises: LedgerUnavailable."""
    with _connection(engine) as connection:
        yield connection.cursor()


@contextmanager
def writing(
    engine: sa.Engine, *, durable: bool, by_index: bool = False, is_single: bool = False
) -> Iterator[DBAPICursor]:
    """A cursor in a transaction: all of it, or nothing. `durable`: it survives a power cut; `by_index`: it
    changes few rows, named by their keys; `is_single`: it is one statement.

    Raises: LedgerUnavailable.
    """
    with _connection(engine) as connection:
        cursor = connection.cursor()
        if engine.dialect.name == "sqlite":
            _begin_sqlite(connection, cursor, "FULL" if durable else "NORMAL")
        elif not (is_single and durable and pg.needs_no_begin(connection)):
            pg.begin(connection, cursor, traits(engine), durable=durable, by_index=by_index)
        yield cursor
        connection.commit()


@contextmanager
def _connection(engine: sa.Engine) -> Iterator[sa.PoolProxiedConnection]:
    """The driver's own connection. One that met an error is not used again."""
    with translated_errors(), closing(engine.raw_connection()) as connection:
        try:
            if engine.dialect.name == "sqlite":
                yield connection
            else:
                with pg.single_statements(connection):
                    yield connection
        except BaseException as error:
            with suppress(Exception):  # closing alone may leave SQLite's lock with a cursor that still lives
                connection.rollback()
            connection.invalidate(error)
            raise


def insert_or(engine_name: str, table: sa.Table) -> Any:
    """INSERT … ON CONFLICT, which both dialects spell alike and SQLAlchemy keeps apart."""
    return (postgresql if engine_name == "postgresql" else sqlite).insert(table)


def _begin_sqlite(connection: sa.PoolProxiedConnection, cursor: DBAPICursor, synchronous: str) -> None:
    if connection.info.get("synchronous") != synchronous:
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        connection.info["synchronous"] = synchronous
    # A write that begins as a read fails at once where it meets another writer, instead of waiting.
    cursor.execute("BEGIN IMMEDIATE")


def _sqlite(url: sa.URL) -> sa.Engine:
    Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S},
        paramstyle="named",
        pool_size=POOL_MAX,
        pool_timeout=BUSY_TIMEOUT_S,
        pool_use_lifo=True,  # the connection used last has the pages that the next one needs
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where the listener below says
        connection.execute("PRAGMA journal_mode=WAL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        reads = connection.get_execution_options().get("only_reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _prepare(engine: sa.Engine) -> pg.Traits:
    """Creates or upgrades the tables; processes that start together take turns."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    wanted = ScriptDirectory.from_config(config).get_current_head()
    with engine.begin() as connection:
        found = pg.Traits()
        if engine.dialect.name == "postgresql":
            found = pg.traits(connection)
            pg.lock_for_upgrade(connection)
        if _version(connection) == wanted:
            return found
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise _unknown_version(_version(connection) or "", wanted or "") from error
    return found


def _unknown_version(found: str, wanted: str) -> LedgerVersionError:
    hint = "Start the newer release that wrote it, or name another ledger in DATABASE_URL."
    if found.endswith(HALF_MOVED):
        hint = "Run scripts/move_ledger.py again: it goes on, and ends the move."
    return LedgerVersionError(f"the ledger has version {found}, this program knows up to {wanted}", hint=hint)


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
