"""What is PostgreSQL's own, on a real server: sessions, poolers, words between processes, its clock."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from scripts.local_servers import PostgreSQL
from webhook import database, postgresql, statements
from webhook.database import connect, writing
from webhook.deletes import Deletes
from webhook.entries import LIVE, Deferred, Misfit, Request, Settled
from webhook.errors import LedgerUnavailable
from webhook.ledger import LOOK_ALONE_S, LOOK_S, Ledger
from webhook.settings import DeleteSettings

BOUND_S = 20.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgreSQL]:
    """A server that a test may stop."""
    with PostgreSQL(tmp_path / "postgresql") as made:
        yield made


@pytest.fixture
def url(postgresql: PostgreSQL, tmp_path: Path) -> str:
    """An empty database."""
    return postgresql.create_database(f"of_{abs(hash(tmp_path))}")


@pytest.fixture
def behind_a_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is taken for one whose transactions may each have another session."""
    monkeypatch.setattr("webhook.postgresql.is_pooled", lambda connection: True)


def until(condition: Callable[[], object]) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def setting(engine: sa.Engine, name: str, *, durable: bool = True) -> str:
    """What holds in a transaction of the ledger's."""
    with writing(engine, durable=durable) as cursor:
        cursor.execute(f"SHOW {name}")
        return str(cursor.fetchall()[0][0])


def use(ledger: Ledger, keys: int = 20) -> None:
    """Puts, claims and settles often enough that statements are prepared where they are."""
    for number in range(keys):
        ledger.put([Request(rule="default", key=f"{number}", event_id=f"{number:016x}")])
    claims = [claim for _ in range(keys) for claim in ledger.claim(1, worker="w", lease_s=60)]
    assert sorted(claim.key for claim in claims) == sorted(str(number) for number in range(keys))
    assert ledger.extend(claims, lease_s=60) == []
    for claim in claims:
        assert ledger.finish([Settled(claim=claim, outcome="replicated")]) == 1
    assert ledger.counts()["settled"]["live"] == keys


# ── sessions and transactions ────────────────────────────────────────────────────────────────────────


def test_a_direct_connection_is_told_from_a_pooler_s(url: str) -> None:
    with psycopg.connect(url) as connection:
        assert postgresql.is_pooled(connection) is False


BOUNDS = ["lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"]


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("pooler", [False, True])
def test_transactions_have_bounds(url: str, name: str, pooler: bool, request: pytest.FixtureRequest) -> None:
    if pooler:
        request.getfixturevalue("behind_a_pooler")
    if name == "transaction_timeout":
        need_transaction_timeout(url)
    engine = connect(url)
    assert setting(engine, name) not in ("0", "")
    engine.dispose()


def need_transaction_timeout(url: str) -> None:
    """Skips the test where the server has none."""
    with psycopg.connect(url) as connection:
        if connection.info.server_version < 170_000:
            pytest.skip("from PostgreSQL 17 on")


def test_a_server_of_a_release_without_one_of_the_bounds_has_the_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "TRANSACTION_TIMEOUT", "of_a_later_release")
    for pooler in (False, True):
        monkeypatch.setattr(postgresql, "is_pooled", lambda connection, pooler=pooler: pooler)
        engine = connect(url)
        assert setting(engine, "lock_timeout") == "5s"
        engine.dispose()


def test_the_server_asks_a_silent_connection_whether_it_stands(url: str) -> None:
    engine = connect(url)
    assert setting(engine, "tcp_keepalives_idle") == str(postgresql.SILENT_S)
    assert setting(engine, "tcp_keepalives_count") == "3"
    engine.dispose()


def test_only_what_must_be_on_disk_waits_for_it(url: str) -> None:
    engine = connect(url)
    assert setting(engine, "synchronous_commit", durable=True) == "on"
    assert setting(engine, "synchronous_commit", durable=False) == "off"
    assert setting(engine, "synchronous_commit", durable=True) == "on"
    engine.dispose()


def test_behind_a_pooler_nothing_is_left_in_a_session(url: str, behind_a_pooler: None) -> None:
    with closing(Ledger.open(url)) as ledger:
        use(ledger)
        with database.reading(ledger._engine) as cursor:
            cursor.execute("SELECT count(*) FROM pg_prepared_statements")
            assert cursor.fetchall() == [(0,)]
            cursor.execute("SHOW lock_timeout")
            assert cursor.fetchall() == [("0",)], "settings are each transaction's own"


def test_directly_what_runs_often_is_prepared_once(url: str) -> None:
    with closing(Ledger.open(url)) as ledger:
        use(ledger)
        with database.reading(ledger._engine) as cursor:
            cursor.execute("SELECT count(*) FROM pg_prepared_statements")
            ((count,),) = cursor.fetchall()
    assert count > 2


@pytest.mark.parametrize("pooler", [False, True])
def test_a_put_that_is_one_statement_is_one_round_trip_where_it_can_be(
    url: str, pooler: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pooler:
        request.getfixturevalue("behind_a_pooler")
    begun: list[bool] = []
    begin = postgresql.begin
    monkeypatch.setattr(
        postgresql, "begin", lambda *args, **more: begun.append(more["durable"]) or begin(*args, **more)
    )
    with closing(Ledger.open(url)) as ledger, closing(Ledger.open(url)) as other:
        ledger.put([Request(rule="default", key="a"), Request(rule="default", key="b")])
        assert begun == [True] * pooler
        begun.clear()
        ledger.put([Request(rule="default", key="a")], [Misfit(record_id="1" * 64, reason="", raw="")])
        ledger.put([Request(rule="default", key="a"), Request(rule="default", key="a")])
        assert begun == [True, True]
        found = other.entry("default", "a")
        assert found is not None
        assert (found["generation"], other.quarantined()) == (4, 1)


def test_a_process_that_is_stopped_in_a_transaction_does_not_keep_its_locks(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "IDLE_IN_TRANSACTION_S", 1)
    minute = {"minute": 1, "rule": "r", "lane": LIVE, "share": 0, "objects": 1, "bytes": 1}
    minutes = [{**minute, "bucket": bucket} for bucket in range(3)]
    misfits = [
        statements.misfit_row(Misfit(record_id=f"{number:064}", reason="", raw=""), now=0.0)
        for number in range(3)
    ]
    with closing(Ledger.open(url)) as ledger, closing(Ledger.open(url)) as other:
        ledger.put([Request(rule="default", key="k")])
        with pytest.raises(LedgerUnavailable), ledger.writing() as cursor:
            cursor.execute("UPDATE entries SET lane = lane")
            ledger._sql.count_minutes.run(cursor, *minutes)
            ledger._sql.keep.run(cursor, *misfits)
            other.put([Request(rule="default", key="k")])  # waits for the lock, and gets it
            cursor.execute("SELECT 1")
        found = other.entry("default", "k")
        assert found is not None
        assert found["generation"] == 2


def test_a_process_that_is_stopped_in_what_it_sends_does_not_keep_its_locks(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_transaction_timeout(url)
    monkeypatch.setattr(postgresql, "TRANSACTION_S", 1)
    with closing(Ledger.open(url)) as ledger, closing(Ledger.open(url)) as other:
        ledger.put([Request(rule="default", key="k")])
        with pytest.raises(LedgerUnavailable), ledger.writing() as cursor:
            cursor.execute("UPDATE entries SET lane = lane")
            wire: Any = cursor.connection.pgconn  # type: ignore[attr-defined]
            wire.enter_pipeline_mode()
            wire.send_query_params(b"SELECT 1", None)  # and no end of it
            wire.send_flush_request()
            wire.flush()
            other.put([Request(rule="default", key="k")])  # waits for the lock, and gets it
            wire.exit_pipeline_mode()


# ── servers that are not quite PostgreSQL ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("version", "is_postgresql"),
    [
        ("PostgreSQL 16.4 on x86_64-pc-linux-gnu, compiled by gcc", True),
        ("CockroachDB CCL v25.4.0 (x86_64-pc-linux-gnu, built 2026/01/01)", False),
        ("PostgreSQL 15.12-YB-2025.2.0.0-b0 on x86_64-pc-linux-gnu", False),
    ],
)
def test_servers_of_other_makes_are_told_by_their_version(
    url: str, version: str, is_postgresql: bool
) -> None:
    engine = connect(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA theirs")
        connection.exec_driver_sql(
            f"CREATE FUNCTION theirs.version() RETURNS text LANGUAGE sql AS $$ SELECT '{version}' $$"
        )
        connection.exec_driver_sql("SET LOCAL search_path = theirs, pg_catalog, public")
        assert postgresql.traits(connection).is_postgresql is is_postgresql
    engine.dispose()


def test_claims_go_by_key_where_rows_have_no_place(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "webhook.postgresql.traits", lambda connection: postgresql.Traits(is_postgresql=False)
    )
    with closing(Ledger.open(url)) as ledger:
        assert "ctid" not in ledger._sql.claim.sql
        use(ledger)


def test_an_entry_that_another_transaction_just_takes_is_passed_by_and_not_waited_for(url: str) -> None:
    lock = "SELECT FROM entries WHERE key = 'a' FOR UPDATE"
    with closing(Ledger(connect(url))) as ledger, psycopg.connect(url) as other:
        ledger.put([Request(rule="default", key=key) for key in "ab"])
        other.execute(lock)
        assert ledger.claim_one("default", "a", worker="w", lease_s=60) is None
        assert [claim.key for claim in ledger.claim(2, worker="w", lease_s=60)] == ["b"]
        other.rollback()
        assert ledger.claim_one("default", "a", worker="w", lease_s=60)


def test_a_change_of_many_entries_locks_them_in_the_order_of_their_keys(url: str) -> None:
    settings = DeleteSettings(grace_s=0, breaker_max=0, breaker_share=1.0)
    with closing(Ledger(connect(url))) as ledger, psycopg.connect(url) as other:
        for key in "zyxa":  # as they lie in the table
            ledger.put([Request(rule="default", key=key)])
            claim = ledger.claim_one("default", key, worker="w", lease_s=60)
            assert claim
            ledger.finish([Deferred(claim=claim, after_s=60)])
        other.execute("SELECT FROM entries WHERE key = 'y' FOR UPDATE")
        deciding = threading.Thread(target=Deletes(ledger, settings).discard, args=("default",))
        deciding.start()
        with psycopg.connect(url, autocommit=True) as third:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            until(lambda: third.execute(waiting).fetchall() == [(1,)])
            free = third.execute("SELECT key FROM entries FOR UPDATE SKIP LOCKED").fetchall()
        other.rollback()
        deciding.join()
        assert free == [("z",)], "those before it are locked, those behind it are not"
        assert ledger.counts()["settled"]["live"] == 4


def test_many_endings_change_their_rows_in_the_order_of_their_keys_by_the_index(url: str) -> None:
    """Whatever the planner believes of a small table: two transactions never wait for each other."""
    with closing(Ledger.open(url)) as ledger:
        ledger.put([Request(rule="default", key=f"{number:03}") for number in range(64)])
        claims = ledger.claim(64, worker="w", lease_s=60)
        rows = [statements.ending_row(Settled(claim=claim, outcome="unchanged"), 0.0) for claim in claims]
        asked = ledger._sql.finish[Settled]
        with ledger.writing(durable=False, by_index=True) as cursor:
            cursor.execute("ANALYZE entries")
            values = {**asked._constants, postgresql.ROWS: json.dumps(rows)}
            cursor.execute(f"EXPLAIN (COSTS OFF) {asked.sql}", values)
            plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Nested Loop" in plan
    assert "Index Scan using entries_pkey" in plan
    assert plan.index("Function Scan") < plan.index("Index Scan")


# ── words between processes ──────────────────────────────────────────────────────────────────────────


def hearing(ledger: Ledger) -> list[float]:
    """The ledger hears others from now on; gives the times at which it was told something."""
    told: list[float] = []
    ledger.on_put(lambda: told.append(time.monotonic()))
    ledger.hear_others()
    until(lambda: ledger.idle_s() > LOOK_ALONE_S)
    return told


def test_what_one_process_puts_another_is_told_of(url: str) -> None:
    with closing(Ledger.open(url)) as ledger, closing(Ledger.open(url)) as other:
        told = hearing(ledger)
        before = len(told)
        other.put([Request(rule="default", key="k")])
        until(lambda: len(told) > before)
        assert ledger.claim(1, worker="w", lease_s=60)[0].key == "k", "it was committed before the word"


def test_a_process_does_not_wake_itself_and_many_puts_are_few_words(url: str) -> None:
    with closing(Ledger.open(url)) as ledger, closing(Ledger.open(url)) as other:
        told, theirs = hearing(ledger), hearing(other)
        told.clear()
        theirs.clear()
        for number in range(200):
            other.put([Request(rule="default", key=f"{number}")])
        until(lambda: told)
        assert len(theirs) == 200, "its own listeners are called directly, and not once more"
        assert len(told) < 200


def test_an_idle_worker_sleeps_until_something_is_due(url: str) -> None:
    with closing(Ledger.open(url)) as ledger:
        hearing(ledger)
        assert ledger.claim(1, worker="w", lease_s=60) == []
        assert ledger.idle_s() == LOOK_S
        ledger.put([Request(rule="default", key="k")])
        (claim,) = ledger.claim(1, worker="w", lease_s=0.5)
        assert ledger.claim(1, worker="w", lease_s=60) == []
        assert ledger.idle_s() <= 0.5, "when the lease ends"
        assert ledger.finish([Settled(claim=claim, outcome="replicated")]) == 1


def test_without_words_it_looks_often(url: str, behind_a_pooler: None) -> None:
    with closing(Ledger.open(url)) as ledger:
        ledger.hear_others()
        threads = {thread.name: thread for thread in threading.enumerate()}
        if listener := threads.get("listener"):
            listener.join(BOUND_S)
        assert ledger.idle_s() == LOOK_ALONE_S


def test_words_are_heard_again_after_the_server_was_away(server: PostgreSQL) -> None:
    url = server.create_database("ledger")
    with closing(Ledger.open(url)) as ledger, closing(Ledger.open(url)) as other:
        told = hearing(ledger)
        server.stop()
        until(lambda: ledger.idle_s() == LOOK_ALONE_S)
        server.start()
        until(lambda: ledger.idle_s() > LOOK_ALONE_S)
        told.clear()
        until(lambda: _put(other))
        until(lambda: told)


def _put(ledger: Ledger) -> bool:
    try:
        ledger.put([Request(rule="default", key="k")])
    except LedgerUnavailable:
        return False
    return True


def test_its_threads_end_with_the_ledger(url: str) -> None:
    ledger = Ledger.open(url)
    hearing(ledger)
    ledger.put([Request(rule="default", key="k")])
    until(lambda: {"listener", "teller"} <= {thread.name for thread in threading.enumerate()})
    ledger.close()
    assert not {"listener", "teller"} & {thread.name for thread in threading.enumerate()}


# ── its clock ────────────────────────────────────────────────────────────────────────────────────────


def test_all_go_by_the_server_s_clock_whatever_their_own_says(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    actual = time.time
    with closing(Ledger.open(url)) as ledger:
        monkeypatch.setattr(time, "time", lambda: actual() + 300)
        with closing(Ledger.open(url)) as ahead:
            assert ahead.clock() == pytest.approx(ledger.clock(), abs=0.5)
            assert ahead.clock() == pytest.approx(actual(), abs=0.5)
