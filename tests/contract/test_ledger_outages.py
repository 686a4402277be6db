"""What every engine must do for the ledger when its database is away, or from another time."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from scripts.local_servers import PostgreSQL
from tests.contract.steps import LEASE_S, RULE, ask, buried, row, settled, take
from webhook.database import connect
from webhook.entries import Claim, Misfit
from webhook.errors import LedgerUnavailable, LedgerVersionError
from webhook.ledger import Ledger
from webhook.tables import ENTRIES

Outage = Callable[[], AbstractContextManager[None]]


@contextmanager
def _file_locked(path: Path) -> Iterator[None]:
    """Another program has the file: for itself where nobody has it open, else for writing."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0.1)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            other.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            other.execute("PRAGMA locking_mode=NORMAL")
            other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def _server_stopped(server: PostgreSQL) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@pytest.fixture
def sqlite_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Outage]:
    """A file, and how it goes away."""
    monkeypatch.setattr("webhook.database.BUSY_TIMEOUT_S", 0.1)
    return f"sqlite:///{tmp_path}/ledger.db", lambda: _file_locked(tmp_path / "ledger.db")


@pytest.fixture
def postgresql_outage(tmp_path: Path) -> Iterator[tuple[str, Outage]]:
    """A server of its own, and how it goes away."""
    with PostgreSQL(tmp_path / "postgresql") as server:
        yield server.create_database("ledger"), lambda: _server_stopped(server)


@pytest.fixture(params=["sqlite_outage", "postgresql_outage"])
def mortal(request: pytest.FixtureRequest) -> Iterator[tuple[Ledger, Outage]]:
    """A ledger, and how its database goes away."""
    url, outage = request.getfixturevalue(request.param)
    ledger = Ledger.open(url)
    yield ledger, outage
    ledger.close()


def _calls(ledger: Ledger, claim: Claim) -> dict[str, Callable[[], object]]:
    """Every way to use a ledger."""
    return {
        "put": lambda: ledger.put([ask("new")], [Misfit(record_id="1" * 64, reason="", raw="")]),
        "put_now": lambda: ledger.put_now(ask("new")),
        "revive": ledger.revive,
        "claim": lambda: take(ledger),
        "claim_one": lambda: ledger.claim_one(RULE, "waiting", worker="w", lease_s=LEASE_S),
        "extend": lambda: ledger.extend([claim], lease_s=LEASE_S),
        "note_upload": lambda: ledger.note_upload(claim, "note"),
        "finish": lambda: ledger.finish([settled(claim), buried(claim)]),
        "release_of": lambda: ledger.release_of(lambda worker: True),
        "entry": lambda: ledger.entry(RULE, "running"),
        "ending_of": lambda: ledger.ending_of(RULE, "running", generation=1),
        "counts": ledger.counts,
        "quarantined": ledger.quarantined,
        "failures": ledger.failures,
        "check": ledger.check,
    }


def test_while_its_database_is_away_the_ledger_says_so_and_changes_nothing(
    mortal: tuple[Ledger, Outage],
) -> None:
    ledger, outage = mortal
    ledger.put([ask("running")])
    claim = take(ledger)[0]
    ledger.put([ask("waiting")])
    before = [row(ledger, "running"), row(ledger, "waiting")]
    ledger.close()  # its connections: it opens new ones when it is used
    with outage():
        for name, call in _calls(ledger, claim).items():
            with pytest.raises(LedgerUnavailable) as caught:
                call()
            assert caught.value.hint, name
    assert [row(ledger, "running"), row(ledger, "waiting")] == before
    assert (ledger.entry(RULE, "new"), ledger.quarantined()) == (None, 0)
    ledger.check()
    assert ledger.finish([settled(claim)]) == 1


def test_an_outage_is_survived_by_connections_that_were_open(mortal: tuple[Ledger, Outage]) -> None:
    ledger, outage = mortal
    ledger.put([ask("a")])
    ledger.counts()
    with outage(), pytest.raises(LedgerUnavailable):
        ledger.put([ask("b")])
    ledger.put([ask("c")])
    assert {claim.key for claim in take(ledger)} == {"a", "c"}


def test_every_put_in_a_transaction_that_fails_is_told_so(mortal: tuple[Ledger, Outage]) -> None:
    ledger, outage = mortal
    ledger.close()
    with outage(), ThreadPoolExecutor(8) as pool:
        puts = [pool.submit(ledger.put, [ask(f"{number}")]) for number in range(8)]
        errors = [put.exception() for put in puts]
    assert [type(error) for error in errors] == [LedgerUnavailable] * 8
    assert not sum(ledger.counts()["waiting"].values())
    ledger.put([ask("0")])


def test_a_lock_that_is_not_given_up_is_reported_in_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhook.database.BUSY_TIMEOUT_S", 0.1)
    ledger, other = Ledger.open(database_url), connect(database_url)
    ledger.put([ask("a")])
    with other.begin() as connection:
        connection.execute(sa.update(ENTRIES).values(lane="live"))
        with pytest.raises(LedgerUnavailable):
            ledger.put([ask("a"), ask("b")])
    assert (row(ledger, "a")["generation"], ledger.entry(RULE, "b")) == (1, None)
    ledger.close()
    other.dispose()


def test_a_ledger_cannot_be_opened_while_its_database_is_away(
    request: pytest.FixtureRequest, mortal: tuple[Ledger, Outage]
) -> None:
    url, outage = request.getfixturevalue(request.node.callspec.params["mortal"])
    mortal[0].close()
    with outage(), pytest.raises(LedgerUnavailable):
        Ledger.open(url)
    Ledger.open(url).close()


def test_an_error_says_nothing_of_the_values_in_the_statement(ledger: Ledger, database_url: str) -> None:
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE entries RENAME TO elsewhere"))
    engine.dispose()
    with pytest.raises(LedgerUnavailable) as caught:
        ledger.put([ask("a-private-key")])
    error: BaseException | None = caught.value
    while error:
        assert "a-private-key" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def test_a_ledger_from_the_future_is_refused(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.put([ask()])
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    make, made = sa.create_engine, []
    monkeypatch.setattr(
        sa, "create_engine", lambda *args, **more: made.append(make(*args, **more)) or made[0]
    )
    with pytest.raises(LedgerVersionError, match="9999") as caught:
        Ledger.open(database_url)
    assert caught.value.hint
    assert row(ledger)["state"] == "waiting"
    left_open = made[0].pool.checkedin()
    made[0].dispose()
    assert left_open == 0, "what is refused leaves no connection behind"


def test_a_ledger_is_found_as_it_was_left(ledger: Ledger, database_url: str) -> None:
    ledger.put([ask("a"), ask("b")])
    ledger.close()
    for _ in range(2):
        again = Ledger.open(database_url)
        assert sum(again.counts()["waiting"].values()) == 2
        again.close()


def test_what_is_ended_by_a_deadlock_is_done_once_more(postgresql: PostgreSQL) -> None:
    url = postgresql.create_database("tangled")
    with closing(Ledger.open(url)) as ledger, psycopg.connect(url) as other, ThreadPoolExecutor(1) as thread:
        ledger.put([ask("first"), ask("second")])
        change = "UPDATE entries SET lane = lane WHERE key = %s"
        other.execute("SET deadlock_timeout = '60s'")  # so that it is the ledger's that PostgreSQL ends
        other.execute(change, ["second"])
        putting = thread.submit(ledger.put, [ask("first"), ask("second")])
        with psycopg.connect(url, autocommit=True) as third:
            waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'tangled'"
            while not third.execute(waits).fetchone():
                assert not putting.done(), "the ledger waits for the other"
        other.execute(change, ["first"])  # waits for the ledger, which waits for it
        other.commit()
        putting.result(30)
        assert row(ledger, "first")["generation"] == row(ledger, "second")["generation"] == 2
