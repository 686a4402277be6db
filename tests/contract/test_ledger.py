"""What every engine must do for the ledger: asking, claiming, ending."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.steps import (
    LEASE_S,
    RULE,
    Clock,
    ask,
    bring_to,
    buried,
    released,
    retried,
    row,
    settled,
    take,
    take_one,
)
from webhook.entries import BACKFILL, LIVE, STATES, Claim, Ending
from webhook.ledger import Ledger
from webhook.statements import ATTEMPTS_REMEMBERED, EVENTS_REMEMBERED

# ── asking ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_request_waits_and_is_due_at_once(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask("a/b", 7, event_at=12.5)])
    entry = row(ledger, "a/b")
    assert (entry["state"], entry["generation"], entry["lane"]) == ("waiting", 1, LIVE)
    assert (entry["first_seen_at"], entry["event_at"], entry["attempts"]) == (clock.now, 12.5, 0)
    assert [claim.key for claim in take(ledger)] == ["a/b"]


@pytest.mark.parametrize("state", STATES)
def test_a_repeated_event_changes_nothing(ledger: Ledger, clock: Clock, state: str) -> None:
    bring_to(ledger, state, ask(event=1, event_at=5.0))
    before = row(ledger)
    clock.now += 1
    ledger.put([ask(event=1, event_at=6.0)], lane=BACKFILL)
    assert row(ledger) == before
    ledger.put_now(ask(event=1, event_at=7.0))
    assert row(ledger) == before


@pytest.mark.parametrize("event", [None, 2])
@pytest.mark.parametrize("state", STATES)
def test_a_new_request_asks_once_more(ledger: Ledger, state: str, event: int | None) -> None:
    bring_to(ledger, state, ask(event=1))
    ledger.put([ask(event=event, event_at=9.0)])
    entry = row(ledger)
    assert (entry["generation"], entry["event_at"]) == (2, 9.0)
    assert entry["state"] == ("running" if state == "running" else "waiting")
    assert len(take(ledger)) == (0 if state == "running" else 1)


def test_events_older_than_the_remembered_ones_are_looked_at_again(ledger: Ledger) -> None:
    count = EVENTS_REMEMBERED + 1
    for event in range(count):
        ledger.put([ask(event=event)])
    ledger.put([ask(event=event) for event in range(1, count)])
    assert row(ledger)["generation"] == count
    ledger.put([ask(event=0)])
    assert row(ledger)["generation"] == count + 1


def test_an_event_of_one_key_is_not_mistaken_for_that_of_another(ledger: Ledger) -> None:
    ledger.put([ask("a", 1), ask("b", 1), ask("a", 1, rule="other")])
    assert [row(ledger, "b")["generation"], row(ledger, "a", "other")["generation"]] == [1, 1]


def test_one_put_may_name_a_key_several_times(ledger: Ledger) -> None:
    ledger.put([ask(event=1), ask("z"), ask(event=2), ask(event=1)])
    assert row(ledger)["generation"] == 2
    assert len(take(ledger)) == 2


def test_putting_nothing_is_allowed(ledger: Ledger) -> None:
    ledger.put([])
    assert take(ledger) == []


def test_listeners_hear_of_new_work(ledger: Ledger) -> None:
    heard: list[int] = []
    ledger.on_put(lambda: heard.append(len(ledger.failures()) + sum(ledger.counts()["waiting"].values())))
    ledger.put([ask()])
    assert heard == [1], "called once, and only when the request can be seen"


# ── claiming ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_claim_says_what_is_known_of_the_entry(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask(event_at=3.0)])
    first = take(ledger, worker="w1")[0]
    assert (first.rule, first.key, first.worker, first.lane) == (RULE, "k", "w1", LIVE)
    assert (first.generation, first.number, first.attempts, first.event_at) == (1, 1, 1, 3.0)
    assert first.claimed_at == clock.now
    ledger.finish([settled(first, source_etag="s", target_etag="t")])
    ledger.put([ask()])
    second = take(ledger)[0]
    assert (second.number, second.source_etag, second.target_etag) == (2, "s", "t")


def test_claims_come_longest_due_first_and_no_more_than_asked_for(ledger: Ledger, clock: Clock) -> None:
    for key in "cab":
        ledger.put([ask(key)])
        clock.now += 1
    assert [take(ledger, 1)[0].key for _ in range(3)] == ["c", "a", "b"]
    assert take(ledger) == []


def test_the_live_lane_goes_first(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask("old"), ask("promoted")], lane=BACKFILL)
    clock.now += 1
    ledger.put([ask("new"), ask("promoted")])
    ledger.put([ask("new")], lane=BACKFILL)
    first = take(ledger, 2)
    assert {claim.key for claim in first} == {"new", "promoted"}
    assert {claim.lane for claim in first} == {LIVE}
    assert [claim.key for claim in take(ledger, 2)] == ["old"]


def test_backfill_that_is_owed_is_claimed_before_live_work_and_costs_it_nothing_where_there_is_none(
    ledger: Ledger, clock: Clock
) -> None:
    def owing(limit: int) -> list[str]:
        claims = ledger.claim(limit, backfill_max=0, backfill_owed=1, worker="w", lease_s=LEASE_S)
        return [claim.lane for claim in claims]

    ledger.put([ask(f"live {number}") for number in range(6)])
    assert owing(2) == [LIVE, LIVE], "nothing of the backfill is due"
    ledger.put([ask("old"), ask("older")], lane=BACKFILL)
    assert owing(1) == [BACKFILL]
    assert owing(3) == [LIVE, LIVE, BACKFILL]
    assert owing(0) == []
    assert owing(2) == [LIVE, LIVE]


def test_a_finished_entry_takes_the_lane_of_its_next_request(ledger: Ledger) -> None:
    bring_to(ledger, "settled", ask())
    ledger.put([ask()], lane=BACKFILL)
    assert row(ledger)["lane"] == BACKFILL


@pytest.mark.parametrize(("state", "free"), [("waiting", 1), ("running", 0), ("settled", 0), ("failed", 0)])
def test_one_entry_can_be_claimed_while_it_waits(ledger: Ledger, state: str, free: int) -> None:
    bring_to(ledger, state, ask())
    assert (take_one(ledger) is not None) == bool(free)
    assert take_one(ledger, "nobody asked for this") is None


def test_a_lease_keeps_others_away_until_it_runs_out(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask()])
    claim = take(ledger)[0]
    clock.now += LEASE_S - 1
    assert (take(ledger), take_one(ledger)) == ([], None)
    assert ledger.extend([claim], lease_s=LEASE_S) == []
    clock.now += LEASE_S - 1
    assert (take(ledger), take_one(ledger)) == ([], None)
    clock.now += 1
    again = take(ledger, worker="w2")[0]
    assert (again.number, again.attempts, again.worker) == (2, 2, "w2")


def test_one_entry_can_be_claimed_when_its_lease_ran_out(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask()])
    take(ledger)
    clock.now += LEASE_S
    claim = take_one(ledger, worker="w2")
    assert claim is not None
    assert claim.number == 2


@pytest.mark.parametrize("end", [settled, retried, buried, released])
@pytest.mark.parametrize("then", ["taken over", "taken over by the same worker", "settled", "waiting"])
def test_a_claim_that_was_lost_changes_nothing(
    ledger: Ledger, clock: Clock, end: Callable[[Claim], Ending], then: str
) -> None:
    ledger.put([ask()])
    old = take(ledger, worker="w")[0]
    clock.now += LEASE_S
    new = take(ledger, worker="w" if "same" in then else "w2")[0]
    ledger.note_upload(new, "new")
    if then in ("settled", "waiting"):
        ledger.finish([settled(new) if then == "settled" else retried(new)])
    before = row(ledger)
    assert ledger.finish([end(old)]) == 0
    ledger.note_upload(old, "old")
    assert ledger.extend([old], lease_s=999) == [old]
    assert row(ledger) == before


def test_extending_tells_which_claims_are_gone(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask("a"), ask("b"), ask("c")])
    claims = sorted(take(ledger), key=lambda claim: claim.key)
    ledger.finish([settled(claims[1])])
    clock.now += 50
    assert ledger.extend(claims, lease_s=LEASE_S) == [claims[1]]
    clock.now += 50
    assert take(ledger) == []


def test_the_entries_of_dead_workers_are_due_at_once(ledger: Ledger) -> None:
    ledger.put([ask("a"), ask("b"), ask("c")])
    theirs = [take(ledger, 1, worker=worker)[0] for worker in ("dead", "alive")]
    assert ledger.release_of(lambda worker: worker == "dead") == 1
    assert ledger.release_of(lambda worker: False) == 0
    keys = {claim.key for claim in take(ledger)}
    assert keys == {theirs[0].key, "c"}
    assert ledger.finish([settled(theirs[0])]) == 0


# ── ending ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_settled_is_on_record(ledger: Ledger, clock: Clock) -> None:
    result: dict[str, Any] = {
        "size": 6 * 1024**4,
        "source_etag": "s",
        "source_version": "v",
        "target_etag": "t",
        "cid": "c",
    }
    ledger.put([ask()])
    claim = take(ledger)[0]
    ledger.note_upload(claim, "unfinished")
    clock.now += 2
    assert ledger.finish([settled(claim, **result, lost=("tag: a",), bytes_copied=7)]) == 1
    entry = row(ledger)
    assert {name: entry[name] for name in result} == result
    assert (entry["state"], entry["outcome"], entry["settled_at"]) == ("settled", "replicated", clock.now)
    assert (entry["lost"], entry["upload"], entry["worker"], entry["error"]) == (["tag: a"], None, None, None)
    attempt = entry["attempts_made"][0]
    assert (attempt["worker"], attempt["result"], attempt["bytes_copied"]) == ("w", "replicated", 7)
    assert attempt["ended_at"] - attempt["claimed_at"] == 2
    assert take(ledger) == []


@pytest.mark.parametrize("end", [settled, buried])
def test_a_request_made_while_it_ran_brings_the_entry_back(
    ledger: Ledger, end: Callable[[Claim], Ending]
) -> None:
    ledger.put([ask()])
    claim = take(ledger)[0]
    ledger.put([ask()])
    ledger.put_now(ask())
    assert (take(ledger), take_one(ledger)) == ([], None), "never beside the older one"
    assert ledger.finish([end(claim)]) == 1
    assert row(ledger)["state"] == "waiting"
    again = take(ledger)[0]
    assert (again.generation, again.attempts) == (3, 1)
    ledger.finish([settled(again)])
    assert row(ledger)["state"] == "settled"


@pytest.mark.parametrize("asked_while", ["waiting", "running"])
def test_new_requests_do_not_end_a_back_off(ledger: Ledger, clock: Clock, asked_while: str) -> None:
    ledger.put([ask()])
    claim = take(ledger)[0]
    if asked_while == "running":
        ledger.put([ask()])
    ledger.finish([retried(claim, after_s=30)])
    if asked_while == "waiting":
        ledger.put([ask()])
    clock.now += 29
    assert take(ledger) == []
    clock.now += 1
    again = take(ledger)[0]
    assert (again.generation, again.attempts, again.backoff_s) == (2, 2, 30)


def test_an_urgent_request_ends_a_back_off(ledger: Ledger) -> None:
    ledger.put([ask()])
    ledger.finish([retried(take(ledger)[0], after_s=999)])
    assert ledger.put_now(ask()) == 2
    assert take(ledger)[0].generation == 2


def test_only_attempts_that_count_are_counted(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask()])
    seen = []
    for end in (
        lambda claim: retried(claim, 0, counts=True),
        lambda claim: retried(claim, 0, counts=False),
        released,
        lambda claim: retried(claim, 0, counts=True),
        buried,
    ):
        claim = take(ledger)[0]
        seen.append(claim.attempts)
        ledger.finish([end(claim)])
    assert seen == [1, 2, 2, 2, 3]
    assert row(ledger)["attempts"] == 3
    ledger.put([ask()])
    assert take(ledger)[0].attempts == 1


def test_what_is_handed_back_is_due_at_once(ledger: Ledger) -> None:
    ledger.put([ask()])
    claim = take(ledger)[0]
    ledger.note_upload(claim, "left over")
    assert ledger.finish([released(claim)]) == 1
    again = take(ledger)[0]
    assert (again.number, again.attempts, again.upload) == (2, 1, "left over")


def test_it_tells_whose_entries_were_claimed_by_somebody_else_since(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask(key) for key in "abc"])
    claims = sorted(take(ledger, lease_s=10), key=lambda claim: claim.key)
    assert ledger.overtaken(claims) == []
    ledger.finish([settled(claims[0])])
    clock.now += 11
    theirs = take(ledger, 1, worker="other")[0]
    assert ledger.overtaken(claims) == [claim for claim in claims if claim.key == theirs.key]
    assert ledger.overtaken([theirs]) == []
    assert ledger.overtaken([]) == []


def test_finishing_many_tells_how_many_were_still_held(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask(key) for key in "abcdefgh"])
    claims = sorted(take(ledger), key=lambda claim: claim.key)
    ends = [settled, retried, buried, released] * 2
    ledger.finish([settled(claims[0]), retried(claims[5])])
    assert ledger.finish([end(claim) for end, claim in zip(ends, claims, strict=True)]) == 6
    assert ledger.finish([]) == 0
    states = [row(ledger, key)["state"] for key in "abcdefgh"]
    assert states == ["settled", "waiting", "failed", "waiting"] * 2


def test_the_latest_attempts_are_remembered(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask()])
    for _ in range(ATTEMPTS_REMEMBERED + 3):
        clock.now += 1
        ledger.finish([retried(take(ledger)[0], 0)])
    made = row(ledger)["attempts_made"]
    assert [attempt["ended_at"] for attempt in made] == [
        clock.now - ago for ago in reversed(range(ATTEMPTS_REMEMBERED))
    ]
