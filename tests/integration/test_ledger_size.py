"""How each engine finds what is due in a large ledger, by its own account: without a look at the rest."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from scripts.local_servers import PostgreSQL
from tests.contract.steps import LEASE_S, RULE, Clock, ask, settled, take
from webhook.compiled import Compiled
from webhook.database import connect, reading
from webhook.ledger import Ledger

ROWS = 4000
BATCH = 500
WHOLE_TABLE = ("SCAN entries", "Seq Scan on entries")


def _fill(ledger: Ledger, *, settled_rows: int, waiting_rows: int) -> None:
    for first in range(0, settled_rows, BATCH):
        ledger.put([ask(f"settled-{number}") for number in range(first, first + BATCH)])
        ledger.finish([settled(claim) for claim in take(ledger, BATCH)])
    for first in range(0, waiting_rows, BATCH):
        ledger.put([ask(f"waiting-{number}") for number in range(first, first + BATCH)])


def _plan(engine: sa.Engine, statement: Compiled, **values: object) -> str:
    asked = copy.copy(statement)
    asked.sql = f"EXPLAIN {'QUERY PLAN ' if engine.dialect.name == 'sqlite' else ''}{statement.sql}"
    with reading(engine) as cursor:
        return "\n".join(str(line) for line in asked.run(cursor, values).fetchall())


@pytest.mark.parametrize(("settled_rows", "waiting_rows"), [(ROWS, BATCH), (BATCH, ROWS)])
def test_what_is_due_and_whose_it_is_are_found_by_an_index(
    database_url: str, clock: Clock, settled_rows: int, waiting_rows: int
) -> None:
    engine = connect(database_url)
    ledger = Ledger(engine, clock=clock)
    _fill(ledger, settled_rows=settled_rows, waiting_rows=waiting_rows)
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")  # as a server does by itself
    now = {"_now": clock.now, "_until": clock.now + LEASE_S, "_worker": "w"}
    sql = ledger._sql
    plans = [
        _plan(engine, sql.next_due, _since_live=0.0, _since_backfill=0.0),
        _plan(engine, sql.workers, _now=clock.now),
        _plan(engine, sql.claim, _lane="live", _limit=32, _since=0.0, **now),
        _plan(engine, sql.claim_one, _rule=RULE, _key="waiting-1", **now),
    ]
    ledger.close()
    for plan in plans[:3]:
        assert "entries_due" in plan
    for plan in plans:
        assert not any(whole in plan for whole in WHOLE_TABLE), plan


@pytest.fixture
def clock() -> Clock:
    """The time the ledger sees."""
    return Clock()


def test_postgresql_does_not_walk_over_what_was_done_since_its_last_vacuum(
    postgresql: PostgreSQL, clock: Clock
) -> None:
    engine = connect(postgresql.create_database("dead_rows"))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE entries SET (autovacuum_enabled = off)")
    ledger = Ledger(engine, clock=clock)
    pages = []
    for _ in range(2):
        for _ in range(10):
            clock.now += 1
            _fill(ledger, settled_rows=BATCH, waiting_rows=0)
        ledger.put([ask("waiting")])
        assert ledger.claim(0, worker="w", lease_s=LEASE_S) == []  # a look, and no more
        asked = copy.copy(ledger._sql.next_due)
        asked.sql = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {asked.sql}"
        since = {f"_since_{lane}": at for lane, at in ledger._since.items()}
        with reading(engine) as cursor:
            ((found,),) = asked.run(cursor, since).fetchall()
        pages.append(found[0]["Plan"]["Shared Hit Blocks"])
        ledger.finish([settled(claim) for claim in take(ledger)])
    ledger.close()
    assert max(pages) <= 60, pages
    assert pages[1] <= pages[0] + 10, "twice as much was done by then"


def test_a_batch_is_as_much_work_at_the_end_as_at_the_start(tmp_path: Path, clock: Clock) -> None:
    engine = connect(f"sqlite:///{tmp_path}/ledger.db")  # the engine that can count its steps
    engine.dispose()
    steps = [0]

    def count() -> None:
        steps[0] += 1

    @sa.event.listens_for(engine, "connect")
    def _count(connection: Any, _record: object) -> None:
        connection.set_progress_handler(count, 10)

    ledger = Ledger(engine, clock=clock)
    _fill(ledger, settled_rows=0, waiting_rows=ROWS)
    work = []
    steps[0] = 0
    while claims := take(ledger, BATCH):
        ledger.release_of(lambda worker: False)
        ledger.finish([settled(claim) for claim in claims])
        work.append(steps[0])
        steps[0] = 0
    ledger.close()
    assert len(work) == ROWS // BATCH
    assert max(work) < 1.2 * min(work), work
