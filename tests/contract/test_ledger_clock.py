"""What the ledger's clock being set does to what waits."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing

import pytest
import sqlalchemy as sa

from tests.contract.steps import RULE, Clock, ask, deferred, retried, row, settled, take, take_one
from webhook.database import connect
from webhook.entries import PARKED_AT, Parked
from webhook.ledger import NOTICED_S, REACH_S, Ledger
from webhook.sweeps import Sweeps

HOUR_S = 3600.0


@pytest.fixture
def before(ledger: Ledger, clock: Clock) -> Ledger:
    """An hour ahead of the time that is then told: a retry, a lease, a delete in its grace period, a parked
    entry, one that is settled, and one that was put.
    """
    clock.now += HOUR_S
    keys = ("retry", "lease", "delete", "parked", "settled")
    ledger.put([ask(key) for key in keys])
    retry, lease, delete, parked, done = (take_one(ledger, key) for key in keys)
    assert retry and lease and delete and parked and done
    ledger.finish([retried(retry, 30), deferred(delete, 60), Parked(claim=parked), settled(done)])
    ledger.put([ask("put")])
    assert ledger.heed_clock() == 0.0
    clock.now -= HOUR_S
    return ledger


def test_what_was_put_off_by_a_clock_set_back_is_due_when_it_would_have_been(
    before: Ledger, clock: Clock
) -> None:
    assert take(before) == []
    assert before.heed_clock() == HOUR_S
    assert before.heed_clock() == 0.0
    assert [claim.key for claim in take(before)] == ["put"]
    clock.now += 29
    assert take(before) == []
    clock.now += 1
    assert {claim.key for claim in take(before)} == {"retry"}
    clock.now += 30
    assert {claim.key for claim in take(before, lease_s=1.0)} >= {"delete"}
    assert row(before, "delete")["gone_at"] == clock.now - 60


def test_a_lease_that_nobody_prolongs_ends_in_its_time(before: Ledger, clock: Clock) -> None:
    before.heed_clock()
    clock.now += 61
    assert "lease" in {claim.key for claim in take(before, worker="another")}


def test_what_is_parked_or_settled_stays_so(before: Ledger) -> None:
    before.heed_clock()
    assert row(before, "parked")["due_at"] == PARKED_AT
    assert (row(before, "settled")["state"], row(before, "settled")["due_at"]) == ("settled", None)


def test_a_sweep_and_its_lease_are_brought_forward_too(ledger: Ledger, clock: Clock) -> None:
    sweeps = Sweeps(ledger)
    clock.now += HOUR_S
    sweep = sweeps.request(RULE, cause="request")
    assert sweeps.take_lease(worker="dead", lease_s=60, is_dead=lambda _: False)
    ledger.heed_clock()
    clock.now -= HOUR_S
    assert sweeps.next_due() is None
    ledger.heed_clock()
    found = sweeps.next_due()
    assert found
    assert found.id == sweep.id
    assert not sweeps.take_lease(worker="other", lease_s=60, is_dead=lambda _: False)
    clock.now += 61
    assert sweeps.take_lease(worker="other", lease_s=60, is_dead=lambda _: False)


def test_whoever_looks_first_brings_it_forward_and_it_is_done_once(
    before: Ledger, clock: Clock, database_url: str
) -> None:
    with closing(Ledger(connect(database_url), clock=clock)) as another:
        clock.now += 25
        assert another.heed_clock() == HOUR_S - 25, "also one that was not there when the clock was wrong"
        assert before.heed_clock() == 0.0
        assert [claim.key for claim in take(before)] == ["put"]


def test_a_retry_that_is_due_soon_is_not_hastened_nor_a_lease_ended(before: Ledger, clock: Clock) -> None:
    before.put([ask("soon"), ask("held")])
    soon, held = take_one(before, "soon"), take_one(before, "held")
    assert soon
    assert held
    before.finish([retried(soon, 300)])
    before.heed_clock()
    assert {claim.key for claim in take(before, worker="another")} == {"put"}


@pytest.mark.parametrize("is_noted", [False, True])
def test_what_a_process_puts_off_that_has_not_noticed_yet_is_brought_forward_too(
    before: Ledger, clock: Clock, is_noted: bool
) -> None:
    """Its clock is still ahead; others know better, and it may die before it does."""
    assert before.heed_clock() == HOUR_S
    clock.now += HOUR_S + 5
    before.put([ask("late")])
    if is_noted:
        assert before.heed_clock() == 0.0
    clock.now -= HOUR_S
    before.heed_clock()
    clock.now += 5  # since the latest time that was noted
    assert "late" in {claim.key for claim in take(before)}


def test_once_all_have_noticed_it_is_over(before: Ledger, clock: Clock) -> None:
    before.heed_clock()
    clock.now += NOTICED_S - 1
    before.heed_clock()
    assert before.heed_clock() == 0.0, "it is looked for still"
    clock.now += 1
    before.heed_clock()
    before.put([ask("delete later")])
    claim = take_one(before, "delete later")
    assert claim
    before.finish([deferred(claim, HOUR_S)])
    before.heed_clock()
    assert row(before, "delete later")["due_at"] == clock.now + HOUR_S


def test_while_it_is_looked_for_what_is_due_much_later_stays_so(before: Ledger, clock: Clock) -> None:
    before.heed_clock()
    before.put([ask("much later")])
    claim = take_one(before, "much later")
    assert claim
    before.finish([deferred(claim, HOUR_S + REACH_S)])
    before.heed_clock()
    assert row(before, "much later")["due_at"] == clock.now + HOUR_S + REACH_S


@pytest.mark.parametrize("passed_s", [60.0, -60.0, -299.0])
def test_time_that_passes_and_a_small_step_back_bring_nothing_forward(
    ledger: Ledger, clock: Clock, passed_s: float
) -> None:
    ledger.heed_clock()
    clock.now += passed_s
    assert ledger.heed_clock() == 0.0
    clock.now += HOUR_S
    assert ledger.heed_clock() == 0.0


def test_a_look_that_takes_long_is_no_setback(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Ledger(connect(database_url), clock=clock) for _ in range(2))
    with closing(first), closing(second):
        first.heed_clock()
        look = first.reading

        def late() -> AbstractContextManager[sa.Connection]:
            clock.now += HOUR_S
            second.heed_clock()
            return look()

        monkeypatch.setattr(first, "reading", late)
        assert first.heed_clock() == 0.0
