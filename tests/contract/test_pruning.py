"""What every engine must do when settled entries are dropped."""

from __future__ import annotations

import pytest

from tests.contract.steps import RULE, Clock, ask, bring_to, missed, row, settled, take_one
from webhook import pruning
from webhook.ledger import Ledger
from webhook.pruning import Pruner

KEEP_S = 1000.0


def keys(ledger: Ledger, rule: str = RULE) -> set[str]:
    """Which of the keys used here are on record."""
    names = [*(f"{number:03}" for number in range(30)), "old", "new", "waiting", "running", "failed", "held"]
    return {name for name in names if ledger.entry(rule, name)}


@pytest.fixture
def pruner(ledger: Ledger) -> Pruner:
    """Keeps for KEEP_S."""
    return Pruner(ledger, keep_s=KEEP_S)


def test_only_what_was_settled_long_ago_goes(ledger: Ledger, clock: Clock, pruner: Pruner) -> None:
    for state, key in (("settled", "old"), *((state, state) for state in ("running", "failed", "held"))):
        bring_to(ledger, state, ask(key))
    ledger.put([ask("waiting")])
    clock.now += KEEP_S + 1
    bring_to(ledger, "settled", ask("new"))
    assert pruner.round([RULE]) == 1
    assert keys(ledger) == {"new", "waiting", "running", "failed", "held"}


def test_other_rules_are_left_alone(ledger: Ledger, clock: Clock, pruner: Pruner) -> None:
    for rule in (RULE, "mirror"):
        bring_to(ledger, "settled", ask("old", rule=rule))
    clock.now += KEEP_S + 1
    assert pruner.round([]) == 0
    assert pruner.round([RULE]) == 1
    assert (keys(ledger), keys(ledger, "mirror")) == (set(), {"old"})


def test_what_a_sweep_found_that_no_event_told_of_stays_counted(
    ledger: Ledger, clock: Clock, pruner: Pruner
) -> None:
    bring_to(ledger, "settled", ask("old"))
    ledger.put([missed("old", at=clock.now, event_at=clock.now + 1)], lane="backfill")
    claim = take_one(ledger, "old")
    assert claim is not None
    ledger.finish([settled(claim)])
    clock.now += KEEP_S + 1
    assert row(ledger, "old")["missed_at"] is not None
    assert pruner.round([RULE]) == 0


def test_without_a_time_all_is_kept(ledger: Ledger, clock: Clock) -> None:
    bring_to(ledger, "settled", ask("old"))
    clock.now += 1e9
    assert Pruner(ledger, keep_s=0).round([RULE]) == 0
    assert keys(ledger) == {"old"}


def test_it_walks_the_whole_ledger_some_of_it_at_a_time_and_begins_anew(
    ledger: Ledger, clock: Clock, pruner: Pruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "STRETCH", 4)
    monkeypatch.setattr(pruning, "STRETCHES_MAX", 2)
    for number in range(30):
        bring_to(ledger, "settled" if number % 2 else "failed", ask(f"{number:03}"))
    clock.now += KEEP_S + 1
    dropped = [pruner.round([RULE]) for _ in range(5)]
    assert (dropped[0], sum(dropped)) == (4, 15)
    assert keys(ledger) == {f"{number:03}" for number in range(0, 30, 2)}
    bring_to(ledger, "settled", ask("001"))
    clock.now += KEEP_S + 1
    assert sum(pruner.round([RULE]) for _ in range(5)) == 1


def test_a_key_that_was_dropped_is_new_when_it_is_asked_for_again(
    ledger: Ledger, clock: Clock, pruner: Pruner
) -> None:
    bring_to(ledger, "settled", ask("old", 1))
    clock.now += KEEP_S + 1
    pruner.round([RULE])
    ledger.put([ask("old", 2)])
    assert (row(ledger, "old")["state"], row(ledger, "old")["generation"]) == ("waiting", 1)
