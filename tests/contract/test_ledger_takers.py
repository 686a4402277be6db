"""A worker that takes what is due in the very transaction in which it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.steps import LEASE_S, Clock, ask, settled, take
from webhook.database import connect
from webhook.entries import BACKFILL, Claim
from webhook.errors import LedgerUnavailable
from webhook.ledger import Ledger

BOUND_S = 30.0


class Hands:
    """Takes as many claims as it has room for, and keeps them."""

    name = "hands"
    lease_s = LEASE_S

    def __init__(self, room: int) -> None:
        self._room = room
        self.taken: list[Claim] = []
        self.asked_at: list[float] = []

    def room(self) -> int:
        return self._room - len(self.taken)

    def take(self, claims: Sequence[Claim], asked_at: float) -> None:
        self.taken += claims
        self.asked_at.append(asked_at)


@pytest.fixture
def told(ledger: Ledger) -> list[None]:
    """Grows when the ledger says that something may be due."""
    heard: list[None] = []
    ledger.on_put(lambda: heard.append(None))
    return heard


def keys(claims: Sequence[Claim]) -> list[str]:
    return sorted(claim.key for claim in claims)


def test_a_put_hands_over_its_claims_and_nobody_else_gets_them(ledger: Ledger, told: list[None]) -> None:
    hands = Hands(room=3)
    ledger.claim_with_puts(hands)
    ledger.put([ask("a"), ask("b")])
    assert (keys(hands.taken), told, take(ledger)) == (["a", "b"], [], [])
    assert {claim.worker for claim in hands.taken} == {"hands"}
    assert ledger.extend(hands.taken, lease_s=LEASE_S) == []
    assert ledger.finish([settled(claim) for claim in hands.taken]) == 2
    assert ledger.counts()["settled"]["live"] == 2


def test_what_there_is_no_room_for_waits_and_is_told_of(ledger: Ledger, told: list[None]) -> None:
    hands = Hands(room=1)
    ledger.claim_with_puts(hands)
    ledger.put([ask("a"), ask("b"), ask("c")])
    ledger.put([ask("d")])
    assert len(hands.taken) == 1
    assert len(told) == 2
    assert keys(hands.taken + take(ledger)) == ["a", "b", "c", "d"]


def test_what_runs_already_is_not_taken_again_and_its_newer_request_not_lost(ledger: Ledger) -> None:
    hands = Hands(room=9)
    ledger.claim_with_puts(hands)
    ledger.put([ask("a", 1)])
    ledger.put([ask("a", 1)])
    ledger.put([ask("a", 2)])
    assert keys(hands.taken) == ["a"]
    ledger.finish([settled(hands.taken[0])])
    assert keys(take(ledger)) == ["a"]


@pytest.mark.parametrize("takes_with_puts", [True, False])
def test_an_event_of_what_has_waited_long_in_the_backfill_is_taken_at_once(
    ledger: Ledger, clock: Clock, takes_with_puts: bool
) -> None:
    ledger.put([ask("a"), ask("b")], lane=BACKFILL)
    assert len(take(ledger, 1)) == 1  # by a worker that dies
    clock.now += 600
    ledger.put([ask("c")])
    assert keys(take(ledger, 1)) == ["c"]
    hands = Hands(room=2 if takes_with_puts else 0)
    ledger.claim_with_puts(hands)
    ledger.put([ask("a", 1), ask("b", 1)])
    assert keys(hands.taken + take(ledger)) == ["a", "b"]
    assert len(hands.taken) == 2 * takes_with_puts


def test_nothing_is_taken_in_a_transaction_that_fails(database_url: str, clock: Clock) -> None:
    engine = connect(database_url)
    ledger, hands = Ledger(engine, clock=clock), Hands(room=9)
    ledger.claim_with_puts(hands)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE entries RENAME TO hidden")
    with pytest.raises(LedgerUnavailable):
        ledger.put([ask("a")])
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO entries")
    assert (hands.taken, take(ledger)) == ([], [])
    ledger.close()


def test_puts_and_claims_at_once_hand_every_entry_to_exactly_one(ledger: Ledger) -> None:
    hands, claimed = Hands(room=150), []
    ledger.claim_with_puts(hands)
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait(BOUND_S)
        for number in range(50):
            ledger.put([ask(f"{thread}-{number}")])
            claimed.extend(take(ledger, 2))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    claimed.extend(take(ledger, 1000))
    everything = keys(hands.taken + claimed)
    assert everything == sorted(f"{thread}-{number}" for thread in range(8) for number in range(50))
