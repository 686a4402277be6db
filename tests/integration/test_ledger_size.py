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
from webhook.entries import BACKFILL
from webhook.ledger import Ledger
from webhook.progress import Progress
from webhook.records import Records

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


def _counting(folder: Path, clock: Clock) -> tuple[Ledger, list[int]]:
    """A ledger on the engine that can count its steps, and that count, in tens."""
    engine = connect(f"sqlite:///{folder}/ledger.db")
    engine.dispose()
    steps = [0]

    def count() -> None:
        steps[0] += 1

    @sa.event.listens_for(engine, "connect")
    def _count(connection: Any, _record: object) -> None:
        connection.set_progress_handler(count, 10)

    return Ledger(engine, clock=clock), steps


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


def test_how_far_the_target_is_and_what_waits_longest_take_no_more_work_where_much_waits(
    tmp_path: Path, clock: Clock
) -> None:
    ledger, steps = _counting(tmp_path, clock)
    progress, records = Progress(ledger), Records(ledger)
    work = []
    for waiting_rows in (BATCH, ROWS):
        since = clock.now
        ledger.put([ask(f"sweep-{number}") for number in range(waiting_rows)], lane=BACKFILL)
        clock.now += 1
        _fill(ledger, settled_rows=0, waiting_rows=1)  # behind all of that
        clock.now += 1
        steps[0] = 0
        found = progress.recovery([RULE], {})[RULE]
        assert (found.by_events, found.lag_s) == (since, 1.0)
        assert records.oldest_waiting(RULE) is not None
        work.append(steps[0])
        ledger.finish([settled(claim) for claim in take(ledger, 2 * ROWS)])
    ledger.close()
    assert work[1] < work[0] * 1.5, work


def test_a_batch_is_as_much_work_at_the_end_as_at_the_start(tmp_path: Path, clock: Clock) -> None:
    ledger, steps = _counting(tmp_path, clock)
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
