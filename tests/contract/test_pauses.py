"""What every engine must do for paused rules: what is asked for is kept, and not worked on."""

from __future__ import annotations

import pytest

from tests.contract.steps import RULE, Clock, ask, row, settled, take, take_one
from webhook import pauses
from webhook.entries import BACKFILL, LIVE, PARKED_AT, Parked
from webhook.ledger import Ledger
from webhook.pauses import Pauses
from webhook.sweeps import Sweeps

OTHER = "other"


@pytest.fixture
def paused(ledger: Ledger) -> Pauses:
    """A rule that is paused, beside one that is not."""
    Sweeps(ledger).register({RULE: "shape", OTHER: "shape"})
    found = Pauses(ledger)
    assert found.pause(RULE)
    return found


def park(ledger: Ledger, pauses: Pauses) -> int:
    """What a worker does with what is due; gives how many entries it parked."""
    claims = take(ledger)
    is_paused = [pauses.is_paused(claim.rule) for claim in claims]
    ends = [
        Parked(claim=claim) if parks else settled(claim)
        for claim, parks in zip(claims, is_paused, strict=True)
    ]
    ledger.finish(ends)
    return sum(is_paused)


def test_what_is_asked_for_during_a_pause_is_done_after_it(ledger: Ledger, paused: Pauses) -> None:
    ledger.put([ask(), ask("b", rule=OTHER)])
    ledger.put([ask("c")], lane=BACKFILL)
    assert park(ledger, paused) == 2
    assert row(ledger, "b", OTHER)["state"] == "settled"
    for key in ("k", "c"):
        kept = row(ledger, key)
        assert (kept["state"], kept["due_at"], kept["attempts"]) == ("waiting", PARKED_AT, 0)
        assert kept["asked_at"] is not None, "the target is known to be behind"
    assert take(ledger) == []
    assert paused.resume(RULE)
    assert {(claim.key, claim.attempts) for claim in take(ledger)} == {("k", 1), ("c", 1)}


def test_a_request_for_what_is_parked_leaves_it_parked_and_is_not_lost(
    ledger: Ledger, paused: Pauses
) -> None:
    ledger.put([ask(event=1)])
    assert park(ledger, paused) == 1
    ledger.put([ask(event=2)])
    assert take(ledger) == []
    paused.resume(RULE)
    (claim,) = take(ledger)
    assert claim.generation == 2


def test_what_is_asked_for_while_it_is_being_parked_is_parked_too(ledger: Ledger, paused: Pauses) -> None:
    ledger.put([ask(event=1)])
    (claim,) = take(ledger)
    ledger.put([ask(event=2)])
    ledger.finish([Parked(claim=claim)])
    assert row(ledger)["due_at"] == PARKED_AT
    paused.resume(RULE)
    assert [each.generation for each in take(ledger)] == [2]


def test_what_is_parked_fills_no_lane(ledger: Ledger, paused: Pauses) -> None:
    ledger.put([ask(f"{number:02}") for number in range(20)], lane=BACKFILL)
    ledger.put([ask("b", rule=OTHER)], lane=BACKFILL)
    assert park(ledger, paused) == 20
    ledger.put([ask("b", rule=OTHER)], lane=BACKFILL)
    assert ledger.backlog(BACKFILL, limit=100) == 1
    assert ledger.backlog(LIVE, limit=100) == 0


def test_a_pause_and_its_end_are_said_once(ledger: Ledger, paused: Pauses, clock: Clock) -> None:
    assert paused.paused() == {RULE: clock.now}
    clock.now += 5
    assert not paused.pause(RULE)
    assert paused.paused() == {RULE: clock.now - 5}
    assert not paused.resume(OTHER)
    assert paused.resume(RULE)
    assert not paused.resume(RULE)
    assert paused.paused() == {}
    assert not paused.pause("nobody's")


def test_another_process_hears_of_it(ledger: Ledger, paused: Pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "LOOK_S", 0.0)
    other = Pauses(ledger)
    assert other.is_paused(RULE)
    assert not other.is_paused(OTHER)
    paused.resume(RULE)
    assert not other.is_paused(RULE)


def test_what_was_parked_by_who_heard_too_late_is_found(ledger: Ledger, paused: Pauses) -> None:
    paused.keep()
    ledger.put([ask("late"), ask("later")])
    late, later = take(ledger)
    paused.resume(RULE)
    ledger.finish([Parked(claim=late)])
    assert take(ledger) == []
    paused.keep()
    assert [claim.key for claim in take(ledger)] == ["late"]
    ledger.finish([Parked(claim=later)])
    Pauses(ledger).keep()  # a process that has just started
    assert [claim.key for claim in take(ledger)] == ["later"]


def test_many_are_made_due_bit_by_bit(
    ledger: Ledger, paused: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "UNPARK_KEYS", 7)
    ledger.put([ask(f"{number:02}") for number in range(50)])
    assert park(ledger, paused) == 50
    paused.resume(RULE)
    assert len(take(ledger)) == 50


def test_a_person_s_request_for_a_paused_rule_is_kept(ledger: Ledger, paused: Pauses) -> None:
    ledger.put_now(ask())
    claim = take_one(ledger)
    assert claim is not None
    ledger.finish([Parked(claim=claim)])
    assert row(ledger)["due_at"] == PARKED_AT


def test_paused_rules_are_not_swept(ledger: Ledger, paused: Pauses) -> None:
    sweeps = Sweeps(ledger)
    sweeps.request(RULE, cause="request")
    assert sweeps.next_due() is None
    asked = sweeps.request(OTHER, cause="request")
    found = sweeps.next_due()
    assert found is not None
    assert found.id == asked.id
    paused.resume(RULE)
    found = sweeps.next_due()
    assert found is not None
    assert found.rule == RULE
