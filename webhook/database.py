"""The engine that the ledger lives in: SQLite in a file, or PostgreSQL; how it is opened and asked.

Hardly anything above this module knows which of the two it is.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine.interfaces import DBAPICursor

from webhook import postgresql as pg
from webhook.clocks import ServerClock
from webhook.errors import LedgerUnavailable, LedgerVersionError, SettingsError
from webhook.ledgerfile import Identity, LedgerFile, identity

BUSY_TIMEOUT_S = 5.0
"""How long a statement waits for another process's lock on the ledger."""
POOL_MAX = 32
TANGLES_MAX = 3
"""How often a transaction is begun anew after a deadlock."""
MIGRATIONS = Path(__file__).parent / "migrations"
HALF_MOVED = " (half moved)"
"""Behind the version of a ledger that scripts/move_ledger.py has not finished: no release starts on it."""

P = ParamSpec("P")
T = TypeVar("T")

_PREPARED: dict[str, tuple[Identity | None, pg.Traits]] = {}
"""URL → the file that was prepared (None: a server) and what was found out about it."""


def prepare(database_url: str) -> None:
    """Creates or upgrades the tables once for this process and those it forks; keeps no connection.

    So a web process that is started anew while the database is away comes up all the same.
    Raises: as `connect`.
    """
    engine = connect(database_url)
    engine.dispose()
    _PREPARED[database_url] = _file(parse_url(database_url)), traits(engine)


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
            file, known = _PREPARED.get(database_url, (None, None))
            found = known if known and file == _file(url) else _prepare(engine)
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
    if "@" in (url.host or ""):  # the end of a password, which errors would name as the host
        raise SettingsError(["DATABASE_URL must have %40 in place of each @ in its password"])
    if backend == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
        if (url.host or "").lower().startswith("%2f"):
            return url.set(host=None).update_query_dict({"host": unquote(url.host or "")})
        return url
    raise SettingsError(
        ["DATABASE_URL must name an SQLite file (sqlite:///…) or PostgreSQL (postgresql://…)"]
    )


def _file(url: sa.URL) -> Identity | None:
    is_sqlite = url.get_backend_name() == "sqlite"
    return identity(Path(url.database or "")) if is_sqlite else None


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns what a database driver raises into LedgerUnavailable, without values from the statement."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, sqlite3.Error, psycopg.Error, OSError) as error:
        cause = getattr(error, "orig", None) or error
        first_line = (str(cause).splitlines() or [""])[0]
        hint = (
            "Check that its disk has room, that no other program locks the file, "
            "or that PostgreSQL runs and DATABASE_URL is right."
        )
        if isinstance(cause, psycopg.errors.UndefinedTable):
            hint = (
                "Its tables are gone. Restore a backup if there is one, then start the service anew: it "
                "makes what is missing, and a sweep finds what is to be copied."
            )
        raise LedgerUnavailable(
            f"the ledger cannot be used now: {type(cause).__name__}: {first_line}", hint=hint
        ) from error


def untangled(method: Callable[P, T]) -> Callable[P, T]:
    """A method of one transaction, done once more where PostgreSQL ended it because it and another one waited
    for each other: nothing of it was done.
    """

    @wraps(method)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(TANGLES_MAX):
            try:
                return method(*args, **kwargs)
            except LedgerUnavailable as error:
                cause = getattr(error.__cause__, "orig", None) or error.__cause__
                if not isinstance(cause, psycopg.errors.DeadlockDetected):
                    raise
        return method(*args, **kwargs)

    return tried


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
        if file := connection.info.get("file"):
            file.check()  # else nobody will read what was committed


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


def _begin_sqlite(connection: sa.PoolProxiedConnection, cursor: DBAPICursor, synchronous: str) -> None:
    if connection.info.get("synchronous") != synchronous:
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        connection.info["synchronous"] = synchronous
    # A write that begins as a read fails at once where it meets another writer, instead of waiting.
    cursor.execute("BEGIN IMMEDIATE")


def _sqlite(url: sa.URL) -> sa.Engine:
    path = Path(url.database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = LedgerFile(path)
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S},
        paramstyle="named",
        pool_size=POOL_MAX,
        pool_timeout=BUSY_TIMEOUT_S,
        pool_use_lifo=True,  # the connection used last has the pages that the next one needs
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "do_connect")
    def _look_first(*_: object) -> None:
        file.check()  # SQLite would make an empty file
        file.check_writable()

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where the listener below says
        connection.execute("PRAGMA journal_mode=WAL")
        file.note()
        record.info["file"] = file

    @sa.event.listens_for(engine, "checkout")
    def _look(*_: object) -> None:
        file.check()

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
