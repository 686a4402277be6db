"""What every engine must do for the recovery point, the last hour, and the events that never came."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from tests.contract.steps import (
    RULE,
    Clock,
    ask,
    bring_to,
    buried,
    deferred,
    held,
    missed,
    removal,
    retried,
    settled,
    take,
    take_one,
)
from webhook.entries import BACKFILL, LIVE, Claim
from webhook.lags import bucket_of, upper_s
from webhook.ledger import Ledger
from webhook.progress import HOUR_MINUTES, KEPT_MINUTES, LastHour, Minute, Progress, Recovery
from webhook.sweeps import Sweep, Sweeps
from webhook.tables import MINUTES

DAY_S = 86_400.0
MINUTE_S = 60.0


@pytest.fixture
def progress(ledger: Ledger) -> Progress:
    """Nothing was asked for yet."""
    return Progress(ledger)


def claim_of(ledger: Ledger, key: str = "k") -> Claim:
    claim = take_one(ledger, key)
    assert claim is not None
    return claim


# ── the recovery point ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def proof(ledger: Ledger, clock: Clock) -> Sweep:
    """A complete sweep, which saw all that was there an hour ago."""
    sweeps = Sweeps(ledger)
    sweep = sweeps.prove_from(sweeps.request(RULE, cause="start"), clock.now - 3600)
    return sweeps.end(sweep)


def recovery(progress: Progress, proof: Sweep | None = None) -> Recovery:
    return progress.recovery([RULE], {RULE: proof} if proof else {})[RULE]


def test_without_a_sweep_nothing_is_proved(progress: Progress, ledger: Ledger, clock: Clock) -> None:
    assert recovery(progress) == Recovery(by_sweep=None, by_events=clock.now, lag_s=0.0)
    ledger.put([ask(event_at=clock.now - 5)])
    assert recovery(progress) == Recovery(by_sweep=None, by_events=clock.now - 5, lag_s=5.0)


def test_a_sweep_that_began_without_the_source_s_time_proves_nothing(
    progress: Progress, proof: Sweep
) -> None:
    assert recovery(progress, replace(proof, proves_at=None)).by_sweep is None


def test_where_all_is_settled_it_is_what_the_last_sweep_saw_and_now(
    progress: Progress, ledger: Ledger, clock: Clock, proof: Sweep
) -> None:
    bring_to(ledger, "settled", ask(event_at=clock.now - DAY_S))
    assert recovery(progress, proof) == Recovery(by_sweep=clock.now - 3600, by_events=clock.now, lag_s=0.0)


@pytest.mark.parametrize("state", ["waiting", "running", "failed"])
def test_the_oldest_thing_that_is_not_settled_holds_it_back(
    progress: Progress, ledger: Ledger, clock: Clock, proof: Sweep, state: str
) -> None:
    for key, ago_s in (("old", DAY_S), ("older", 2 * DAY_S), ("new", 5.0)):
        bring_to(ledger, state, ask(key, event_at=clock.now - ago_s))
    oldest = clock.now - 2 * DAY_S
    assert recovery(progress, proof) == Recovery(by_sweep=oldest, by_events=oldest, lag_s=2 * DAY_S)


def test_what_was_asked_for_since_the_sweep_does_not_hold_back_what_it_proved(
    progress: Progress, ledger: Ledger, clock: Clock, proof: Sweep
) -> None:
    ledger.put([ask(event_at=clock.now - 5)])
    assert recovery(progress, proof) == Recovery(
        by_sweep=clock.now - 3600, by_events=clock.now - 5, lag_s=5.0
    )


def test_what_a_sweep_asks_for_is_as_old_as_the_object(
    progress: Progress, ledger: Ledger, clock: Clock, proof: Sweep
) -> None:
    bring_to(ledger, "failed", ask(event_at=clock.now - 5))
    ledger.put([ask(event_at=clock.now - DAY_S)], lane=BACKFILL)
    assert recovery(progress, proof).by_sweep == clock.now - DAY_S


def test_what_waits_in_the_backfill_holds_it_back_but_is_no_lag(
    progress: Progress, ledger: Ledger, clock: Clock, proof: Sweep
) -> None:
    ledger.put([ask("old", event_at=clock.now - DAY_S)], lane=BACKFILL)
    ledger.put([ask("live", event_at=clock.now - 2)])
    oldest = clock.now - DAY_S
    assert recovery(progress, proof) == Recovery(by_sweep=oldest, by_events=oldest, lag_s=2.0)


def test_where_it_cannot_be_told_since_when_the_target_is_behind_nothing_is_proved(
    progress: Progress, ledger: Ledger, clock: Clock, proof: Sweep
) -> None:
    ledger.put([replace(ask(event_at=clock.now - 9), asked_at=0.0)], lane=BACKFILL)
    assert recovery(progress, proof) == Recovery(by_sweep=None, by_events=None, lag_s=0.0)
    ledger.finish([settled(claim_of(ledger))])
    assert recovery(progress, proof).by_sweep == proof.proves_at


@pytest.mark.parametrize("state", ["waiting", "failed"])
def test_live_work_of_which_that_cannot_be_told_lags_since_its_event(
    progress: Progress, ledger: Ledger, clock: Clock, state: str
) -> None:
    bring_to(ledger, state, ask(event_at=clock.now - 9))
    ledger.put([replace(ask(event_at=clock.now - 9), asked_at=0.0)], lane=BACKFILL)
    found = recovery(progress)
    assert (found.by_events, found.lag_s) == (None, 9.0)


def test_a_retry_holds_it_back_for_as_long_as_the_first_request_waits(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    ledger.put([ask(event=1, event_at=clock.now - 5)])
    ledger.finish([retried(claim_of(ledger))])
    clock.now += 100
    ledger.put([ask(event=2, event_at=clock.now)])
    assert recovery(progress).lag_s == 105
    ledger.finish([settled(claim_of(ledger))])
    assert recovery(progress).lag_s == 0


def test_a_change_in_the_future_of_this_clock_is_no_lag(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    ledger.put([ask(event_at=clock.now + 30)])
    assert recovery(progress) == Recovery(by_sweep=None, by_events=clock.now, lag_s=0.0)


@pytest.mark.parametrize("end", [deferred, held])
def test_pending_deletes_do_not_hold_it_back(
    progress: Progress, ledger: Ledger, clock: Clock, proof: Sweep, end: Any
) -> None:
    ledger.put([removal(event_at=clock.now - DAY_S)])
    ledger.finish([deferred(claim_of(ledger))])
    ledger.finish([end(claim_of(ledger))])
    assert recovery(progress, proof) == Recovery(by_sweep=clock.now - 3600, by_events=clock.now, lag_s=0.0)


def test_a_removal_that_was_not_looked_at_yet_holds_it_back(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    ledger.put([removal(event_at=clock.now - 7)])
    assert recovery(progress).lag_s == 7
    take(ledger)
    assert recovery(progress).lag_s == 7


def test_a_delete_that_is_being_carried_out_holds_it_back(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    """It may find the key there again, and copy it."""
    ledger.put([removal(event_at=clock.now - 7)])
    ledger.finish([deferred(claim_of(ledger))])
    claim = claim_of(ledger)
    assert recovery(progress).lag_s == 7
    ledger.finish([settled(claim, "deleted", gone_at=claim.gone_at)])
    assert recovery(progress).lag_s == 0


def test_a_key_that_is_back_while_its_delete_was_pending_holds_it_back(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    ledger.put([removal(event_at=clock.now - 7)])
    ledger.finish([deferred(claim_of(ledger))])
    ledger.finish([replace(deferred(claim_of(ledger)), is_back=True)])
    assert recovery(progress).lag_s == 7


@pytest.mark.parametrize("end", [retried, buried])
def test_a_key_that_came_back_and_cannot_be_copied_holds_it_back(
    progress: Progress, ledger: Ledger, clock: Clock, end: Any
) -> None:
    ledger.put([removal(event_at=clock.now - 7)])
    ledger.finish([deferred(claim_of(ledger))])
    ledger.finish([end(claim_of(ledger))])
    assert recovery(progress).lag_s == 7


def test_a_request_that_came_while_a_delete_was_carried_out_holds_it_back(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    ledger.put([removal(event_at=clock.now - 7)])
    ledger.finish([deferred(claim_of(ledger))])
    claim = claim_of(ledger)
    ledger.put([ask(event=2, event_at=clock.now - 3)])
    ledger.finish([settled(claim, "deleted", gone_at=claim.gone_at)])
    assert recovery(progress).lag_s == 3


def test_rules_are_told_apart(progress: Progress, ledger: Ledger, clock: Clock, proof: Sweep) -> None:
    ledger.put([ask(rule="other", event_at=clock.now - 9), ask(rule=f"{RULE}.b", event_at=clock.now - 8)])
    found = progress.recovery([RULE, "other", f"{RULE}.b", "unknown"], {RULE: proof})
    assert {name: each.lag_s for name, each in found.items()} == {
        RULE: 0.0,
        "other": 9.0,
        f"{RULE}.b": 8.0,
        "unknown": 0.0,
    }
    assert {name: each.by_sweep for name, each in found.items() if each.by_sweep} == {RULE: proof.proves_at}


# ── the last hour ────────────────────────────────────────────────────────────────────────────────────────


def settle(
    ledger: Ledger, clock: Clock, lag_s: float, *, size: int = 0, lane: str = LIVE, rule: str = RULE
) -> None:
    """One more object is settled, so long after it changed."""
    key = f"{clock.now}-{lag_s}-{lane}"
    ledger.put([ask(key, rule=rule, event_at=clock.now - lag_s)], lane=lane)
    claim = ledger.claim_one(rule, key, worker="w", lease_s=60)
    assert claim is not None
    ledger.finish([settled(claim, bytes_copied=size)])


def test_nothing_settled_is_nothing_told(progress: Progress, ledger: Ledger) -> None:
    bring_to(ledger, "failed", ask("failed"))
    ledger.put([ask()])
    ledger.finish([retried(claim_of(ledger))])
    assert progress.last_hour() == {}


def test_what_was_settled_is_summed_and_its_lags_told(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    for lag_s in range(1, 101):
        settle(ledger, clock, float(lag_s), size=1024**3)
        clock.now += 1
    found = progress.last_hour()[RULE]
    assert (found.objects, found.bytes) == (100, 100 * 1024**3)
    for told, exact in ((found.p50_s, 50.0), (found.p95_s, 95.0), (found.p99_s, 99.0)):
        assert told == upper_s(bucket_of(exact))
        assert exact <= told <= exact * 1.2


def test_the_backfill_counts_as_work_but_not_as_lag(progress: Progress, ledger: Ledger, clock: Clock) -> None:
    settle(ledger, clock, DAY_S, size=7, lane=BACKFILL)
    assert progress.last_hour() == {RULE: LastHour(objects=1, bytes=7)}
    settle(ledger, clock, 0.5, size=5)
    lag_s = upper_s(bucket_of(0.5))
    assert progress.last_hour() == {
        RULE: LastHour(objects=2, bytes=12, p50_s=lag_s, p95_s=lag_s, p99_s=lag_s)
    }


def test_several_that_are_settled_together_all_count(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    ledger.put([ask(key, event_at=clock.now - 2) for key in "abc"])
    ledger.put([ask("a", rule="other", event_at=clock.now - 2)])
    ledger.finish([settled(claim, bytes_copied=10) for claim in take(ledger)])
    found = progress.last_hour()
    assert {rule: (each.objects, each.bytes) for rule, each in found.items()} == {
        RULE: (3, 30),
        "other": (1, 10),
    }


@pytest.mark.parametrize("ago_minutes", [HOUR_MINUTES - 1, HOUR_MINUTES])
def test_what_is_older_than_an_hour_is_left_out(
    progress: Progress, ledger: Ledger, clock: Clock, ago_minutes: int
) -> None:
    settle(ledger, clock, 1.0)
    clock.now += ago_minutes * MINUTE_S
    assert (RULE in progress.last_hour()) == (ago_minutes < HOUR_MINUTES)


def test_the_last_hour_comes_minute_by_minute_of_all_rules(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    first = int(clock.now // 60)
    settle(ledger, clock, 0.5, size=5)
    settle(ledger, clock, DAY_S, size=7, lane=BACKFILL)
    clock.now += (HOUR_MINUTES - 1) * MINUTE_S
    settle(ledger, clock, 2.0, size=3)
    found = progress.by_minute()
    assert [each.minute for each in found] == list(range(first, first + HOUR_MINUTES))
    lag_s, later_s = upper_s(bucket_of(0.5)), upper_s(bucket_of(2.0))
    assert found[0] == Minute(
        minute=first, objects={LIVE: 1, BACKFILL: 1}, bytes=12, p50_s=lag_s, p99_s=lag_s
    )
    nothing = {LIVE: 0, BACKFILL: 0}
    assert found[1] == Minute(minute=first + 1, objects=nothing, bytes=0, p50_s=None, p99_s=None)
    assert (found[-1].objects[LIVE], found[-1].p99_s) == (1, later_s)
    clock.now += MINUTE_S
    assert progress.by_minute()[0].objects == nothing


def test_what_a_claim_that_was_lost_did_is_counted_once(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    ledger.put([ask()])
    lost = claim_of(ledger)
    clock.now += DAY_S
    kept = claim_of(ledger)
    assert ledger.finish([settled(kept)]) == 1
    assert ledger.finish([settled(lost)]) == 0
    assert progress.last_hour()[RULE].objects == 1


def test_what_some_rules_settled_in_a_lane_since_a_minute_is_told(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    minute = int(clock.now // 60)
    for rule, lane in ((RULE, LIVE), (RULE, BACKFILL), ("other", BACKFILL), ("third", BACKFILL)):
        settle(ledger, clock, 1.0, size=10, lane=lane, rule=rule)
    clock.now += 10 * MINUTE_S
    settle(ledger, clock, 1.0, size=100, lane=BACKFILL)
    both = [RULE, "other"]
    assert progress.settled(both, lane=BACKFILL, since_minute=minute) == (3, 120)
    assert progress.settled(both, lane=LIVE, since_minute=minute) == (1, 10)
    assert progress.settled(both, lane=BACKFILL, since_minute=minute + 10) == (1, 100)
    assert progress.settled(both, lane=BACKFILL, since_minute=minute + 11) == (0, 0)
    assert progress.settled([], lane=BACKFILL, since_minute=0) == (0, 0)


def test_minutes_nobody_asks_for_any_more_are_dropped(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    settle(ledger, clock, 1.0)
    first = int(clock.now // 60)
    clock.now += KEPT_MINUTES * MINUTE_S
    settle(ledger, clock, 1.0)
    progress.forget()
    assert minutes(ledger) == {first, first + KEPT_MINUTES}
    clock.now += MINUTE_S
    progress.forget()
    assert minutes(ledger) == {first + KEPT_MINUTES}


def minutes(ledger: Ledger) -> set[int]:
    with ledger.reading() as connection:
        return set(connection.execute(sa.select(MINUTES.c.minute)).scalars())


# ── events that never came ───────────────────────────────────────────────────────────────────────────────


def test_keys_whose_change_no_event_told_of_are_counted_by_rule(
    progress: Progress, ledger: Ledger, clock: Clock
) -> None:
    assert progress.events_missed() == {}
    ledger.put([missed(key, at=clock.now) for key in "ab"], lane=BACKFILL)
    ledger.put([missed("a", at=clock.now, rule="other"), ask("c")], lane=BACKFILL)
    ledger.finish([settled(claim) for claim in take(ledger)])
    assert progress.events_missed() == {RULE: 2, "other": 1}
    ledger.put([ask("a", 1, event_at=clock.now - 1)])
    assert progress.events_missed() == {RULE: 1, "other": 1}
