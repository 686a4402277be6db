"""Where small differences would pass every larger test: what counts, and exactly how far."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.contract.steps import (
    LEASE_S,
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
    row,
    settled,
    take,
    take_one,
)
from webhook.entries import BACKFILL, LIVE, PARKED_AT, Claim, Ending, Parked, Request, Retried, Settled
from webhook.errors import LedgerUnavailable
from webhook.ledger import EVERYWHERE_S, LATE_S, LOOK_ALONE_S, Ledger
from webhook.statements import since


def test_a_ledger_that_hears_nobody_looks_again_soon(ledger: Ledger) -> None:
    assert ledger.idle_s() == LOOK_ALONE_S
    ledger.put([ask()])
    take(ledger)
    assert ledger.idle_s() == LOOK_ALONE_S


@pytest.mark.parametrize("rule", [RULE, "other"])
def test_how_it_ended_is_told_of_one_rule_s_key(ledger: Ledger, rule: str) -> None:
    ledger.put([ask(), ask(rule="other")])
    claim = ledger.claim_one(rule, "k", worker="w", lease_s=LEASE_S)
    assert claim is not None
    ledger.finish([settled(claim)])
    assert isinstance(ledger.ending_of(rule, "k", generation=1), Settled)
    assert ledger.ending_of("other" if rule == RULE else RULE, "k", generation=1) is None


def test_the_backlog_is_what_waits_or_runs_in_a_lane_but_nothing_parked(ledger: Ledger) -> None:
    ledger.put([ask("a"), ask("b"), ask("c", rule="other")])
    ledger.put([ask("d")], lane=BACKFILL)
    assert take_one(ledger, "a")
    assert (ledger.backlog(LIVE, limit=9), ledger.backlog(BACKFILL, limit=9)) == (3, 1)
    assert (ledger.backlog(LIVE, limit=2), ledger.backlog(LIVE, limit=9, rules=["other"])) == (2, 1)
    assert ledger.backlog(LIVE, limit=9, rules=[]) == 0
    parked = take_one(ledger, "b")
    assert parked
    ledger.finish([Parked(claim=parked)])
    assert ledger.backlog(LIVE, limit=9) == 2


def test_an_upload_is_left_over_once_its_entry_failed_before_that_time(ledger: Ledger, clock: Clock) -> None:
    claim = bring_to(ledger, "running", ask())
    assert claim
    ledger.note_upload(claim, "note")
    ledger.finish([buried(claim)])
    assert ledger.failed_with_upload(before=clock.now) == []
    assert len(ledger.failed_with_upload(before=clock.now + 0.5)) == 1


def test_what_a_sweep_finds_was_missed_where_no_event_told_of_it_by_then(ledger: Ledger) -> None:
    def missed_at(*, event_at: float, state: str = "settled") -> float | None:
        key = f"{state} {event_at}"
        bring_to(ledger, state, ask(key, 1, event_at=10.0))
        ledger.put([missed(key, at=50.0, event_at=event_at)], lane=BACKFILL)
        found: float | None = row(ledger, key)["missed_at"]
        return found

    assert (missed_at(event_at=10.0), missed_at(event_at=10.5)) == (None, 50.0)
    assert missed_at(event_at=10.5, state="running") is None


def test_an_event_that_comes_late_takes_back_what_was_missed_until_then(ledger: Ledger) -> None:
    bring_to(ledger, "settled", ask(event=1, event_at=10.0))
    ledger.put([missed(at=50.0, event_at=40.0)], lane=BACKFILL)
    for no_news in (ask(event=1, event_at=10.0), ask(event_at=40.0), ask(event=2, event_at=50.5)):
        ledger.put([no_news])
        assert row(ledger)["missed_at"] == 50.0
    ledger.put([ask(event=3, event_at=50.0)])
    assert row(ledger)["missed_at"] is None


def test_an_entry_is_one_rule_s(ledger: Ledger) -> None:
    bring_to(ledger, "settled", ask())
    ledger.put([ask(rule="other")])
    assert [row(ledger, rule=rule)["state"] for rule in (RULE, "other")] == ["settled", "waiting"]
    assert ledger.entry("third", "k") is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_ledger_that_another_thread_writes_for_long_says_so(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhook.ledger.BUSY_TIMEOUT_S", 0.05)
    with ledger.writing(), pytest.raises(LedgerUnavailable, match=r"^the ledger was busy for 0 s$") as caught:
        ledger.check()
    assert caught.value.hint == "Check its disk, and whether another program holds the file."
    ledger.check()


# ── what a row says ──────────────────────────────────────────────────────────────────────────────────


def test_a_claim_serves_the_trace_of_the_latest_request_that_counted(ledger: Ledger) -> None:
    ledger.put([replace(ask(event=1), trace="first")])
    ledger.put([replace(ask(event=1), trace="repeated")])
    claim = take(ledger)[0]
    ledger.put([replace(ask(event=2), trace="second")])
    ledger.finish([settled(claim)])
    again = take(ledger)[0]
    ledger.finish([settled(again)])
    ledger.put([ask()])
    assert [claim.trace, again.trace, take(ledger)[0].trace] == ["first", "second", None]


def test_a_claim_says_all_that_is_known_of_its_entry(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask()])
    ledger.finish([retried(take(ledger)[0], 0)])
    ledger.finish([settled(take(ledger)[0], source_etag="s", target_etag="t", lost=("tags",))])
    settled_at, clock.now = clock.now, clock.now + 5
    ledger.put([removal(event_at=9.0)], lane=BACKFILL)
    (claim,) = take(ledger, worker="w2")
    assert (claim.rule, claim.key, claim.lane, claim.worker) == (RULE, "k", BACKFILL, "w2")
    assert (claim.number, claim.generation, claim.attempts, claim.backoff_s) == (3, 2, 1, 0.0)
    assert (claim.event_at, claim.claimed_at, claim.settled_at) == (9.0, clock.now, settled_at)
    assert (claim.source_etag, claim.target_etag, claim.upload) == ("s", "t", None)
    assert (claim.gone_at, claim.removal_told) == (None, 1)
    assert (json.loads(claim.lost), len(json.loads(claim.history))) == (["tags"], 2)


def test_the_target_lags_since_the_earliest_request_that_nobody_has_served(
    ledger: Ledger, clock: Clock
) -> None:
    def asked_at(*requests: Request) -> float | None:
        ledger.put(requests)
        found: float | None = row(ledger)["asked_at"]
        return found

    assert asked_at(ask(event=1, event_at=20.0)) == 20.0
    assert asked_at(ask(event_at=10.0)) == 10.0
    assert asked_at(ask(event_at=30.0), ask(event=1, event_at=5.0)) == 10.0, "later, and repeated"
    assert asked_at(replace(ask(), asked_at=7.0)) == 7.0
    ledger.finish([settled(take(ledger)[0])])
    assert row(ledger)["asked_at"] is None
    assert asked_at(ask()) == clock.now


@pytest.mark.parametrize("ahead_s", [-5.0, 5.0])
def test_what_was_asked_for_while_it_ran_lags_since_then_at_most(
    ledger: Ledger, clock: Clock, ahead_s: float
) -> None:
    ledger.put([ask(event_at=10.0)])
    claim = take(ledger)[0]
    clock.now += 60
    ledger.put([ask(event_at=claim.claimed_at + ahead_s)])
    ledger.finish([settled(claim)])
    assert row(ledger)["asked_at"] == claim.claimed_at + min(ahead_s, 0.0)


@pytest.mark.parametrize("end", [settled, buried])
def test_what_was_asked_for_while_it_ran_begins_without_a_back_off(
    ledger: Ledger, clock: Clock, end: Callable[[Claim], Ending]
) -> None:
    ledger.put([ask()])
    ledger.finish([retried(take(ledger)[0], 30)])
    clock.now += 30
    claim = take(ledger)[0]
    ledger.put([ask()])
    ledger.finish([end(claim)])
    assert (row(ledger)["attempts"], row(ledger)["backoff_s"], row(ledger)["due_at"]) == (0, 0.0, clock.now)


def test_what_ends_well_leaves_no_error_and_what_waits_for_its_delete_no_upload(ledger: Ledger) -> None:
    ledger.put([ask("a"), ask("b")])
    a, b = (take_one(ledger, key) for key in "ab")
    assert a and b
    ledger.note_upload(b, "note")
    ledger.finish([retried(a, 0), deferred(b)])
    assert (row(ledger, "a")["error_code"], row(ledger, "a")["error"]) == ("target_store_failed", "500")
    assert (row(ledger, "b")["upload"], row(ledger, "b")["attempts"]) == (None, 0)
    again = take_one(ledger, "a")
    assert again
    ledger.finish([settled(again)])
    assert (row(ledger, "a")["error_code"], row(ledger, "a")["error"]) == (None, None)


def test_a_parked_entry_waits_uncounted(ledger: Ledger) -> None:
    claim = bring_to(ledger, "running", ask())
    assert claim
    ledger.finish([Parked(claim=claim)])
    entry = row(ledger)
    assert (entry["state"], entry["due_at"], entry["attempts"]) == ("waiting", PARKED_AT, 0)
    assert (take(ledger), entry["worker"]) == ([], None)


def test_a_delete_that_waits_for_a_person_is_looked_at_anew_where_the_key_was_asked_for_meanwhile(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.put([ask("held"), ask("asked for")])
    for claim in take(ledger):
        ledger.finish([deferred(claim, 0.0)])
    claims = take(ledger)
    ledger.put([ask("asked for")])
    clock.now += 1
    ledger.finish([held(claim) for claim in claims])
    waiting = row(ledger, "asked for")
    assert (waiting["state"], waiting["due_at"], waiting["attempts"]) == ("waiting", clock.now, 0)
    assert (row(ledger, "held")["state"], row(ledger, "held")["due_at"]) == ("held", None)
    assert [claim.key for claim in take(ledger)] == ["asked for"]


def test_how_it_ended_names_the_claim_and_all_of_the_ending(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask()])
    first = take(ledger, worker="w1")[0]
    clock.now += 2
    ledger.finish([retried(first, 30)])
    found = ledger.ending_of(RULE, "k", generation=1)
    assert isinstance(found, Retried)
    assert (found.claim.number, found.claim.worker, found.claim.claimed_at) == (1, "w1", first.claimed_at)
    assert (found.claim.rule, found.claim.key) == (RULE, "k")
    assert (found.after_s, found.backoff_s, found.counts) == (30.0, 30.0, True)
    clock.now += 30
    ledger.finish([settled(take(ledger)[0], "unchanged", source_version="v")])
    found = ledger.ending_of(RULE, "k", generation=1)
    assert isinstance(found, Settled)
    assert (found.outcome, found.source_version, found.bytes_copied) == ("unchanged", "v", 0)


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_look_begins_near_what_was_due_first_the_last_time_and_sometimes_everywhere(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = ledger._sql.next_due.run
    monkeypatch.setattr(
        ledger._sql.next_due,
        "run",
        lambda cursor, where: looks.append(where[since(LIVE)]) or look(cursor, where),
    )
    monotonic = time.monotonic()
    monkeypatch.setattr("webhook.ledger.time.monotonic", lambda: monotonic)
    ledger.put([ask()])
    for elapsed_s in (0.0, EVERYWHERE_S - 0.5, 0.0, 0.5):
        monotonic += elapsed_s
        take(ledger)
    assert looks == [0.0, clock.now - LATE_S, clock.now - LATE_S, 0.0]
