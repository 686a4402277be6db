"""What every engine must do for signs of life: who replicates, and when anybody last did."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import closing

import pytest
import sqlalchemy as sa

from tests.contract.steps import Clock
from webhook.database import connect
from webhook.errors import LedgerUnavailable
from webhook.fleet import ALIVE_S, FORGOTTEN_S, Fleet, Member
from webhook.ledger import Ledger
from webhook.processes import own_name
from webhook.tables import WORKERS
from webhook.version import VERSION

BOUND_S = 60.0
ELSEWHERE = "another-host:17:4711:other-boot/4026531836"


@pytest.fixture
def fleet(ledger: Ledger) -> Fleet:
    """Nobody was there yet."""
    return Fleet(ledger)


@pytest.fixture
def other(database_url: str, clock: Clock) -> Iterator[Fleet]:
    """The same ledger, as another process sees it."""
    with closing(Ledger(connect(database_url), clock=clock)) as ledger:
        yield Fleet(ledger)


def names(fleet: Fleet) -> list[str]:
    return [member.name for member in fleet.members()]


def test_where_nobody_was_there_is_no_last_sign(fleet: Fleet) -> None:
    assert (fleet.last_seen_at(), fleet.members()) == (None, [])


def test_who_gives_a_sign_is_a_member(fleet: Fleet, other: Fleet, clock: Clock) -> None:
    began_at = clock.now
    fleet.sign(own_name(), threads=16)
    clock.now += 5
    fleet.sign(own_name(), threads=16, limits={"filebase": 8, "aws": None})
    assert other.members() == [
        Member(
            name=own_name(),
            version=VERSION,
            threads=16,
            started_at=began_at,
            seen_at=clock.now,
            limits={"filebase": 8, "aws": None},
        )
    ]
    assert other.last_seen_at() == clock.now


def test_members_are_told_in_the_order_in_which_they_came(fleet: Fleet, clock: Clock) -> None:
    for name in "cab":
        fleet.sign(f"{ELSEWHERE}{name}", threads=1)
        clock.now += 1
    fleet.sign(f"{ELSEWHERE}c", threads=1)
    assert [name[-1] for name in names(fleet)] == ["c", "a", "b"]


def test_who_was_silent_for_too_long_is_no_member_until_the_next_sign(fleet: Fleet, clock: Clock) -> None:
    fleet.sign(ELSEWHERE, threads=1)
    clock.now += ALIVE_S
    assert names(fleet) == [ELSEWHERE]
    clock.now += 0.5
    assert names(fleet) == []
    fleet.sign(ELSEWHERE, threads=1)
    assert names(fleet) == [ELSEWHERE]


def test_who_leaves_is_no_member_but_was_there(fleet: Fleet, clock: Clock) -> None:
    fleet.sign(ELSEWHERE, threads=4)
    fleet.sign(own_name(), threads=4)
    seen_at, clock.now = clock.now, clock.now + 1
    fleet.leave(ELSEWHERE)
    fleet.leave("nobody")
    assert names(fleet) == [own_name()]
    fleet.leave(own_name())
    assert (fleet.members(), fleet.last_seen_at()) == ([], seen_at)


def test_a_process_of_this_machine_that_is_dead_is_no_member(fleet: Fleet) -> None:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    name = own_name().split(":")
    name[1] = str(process.pid)
    process.join(BOUND_S)
    assert process.exitcode == 0
    dead = ":".join(name)
    for each in (dead, own_name(), ELSEWHERE):
        fleet.sign(each, threads=1)
    assert sorted(names(fleet)) == sorted([own_name(), ELSEWHERE])
    assert fleet.last_seen_at() is not None


def test_one_with_this_process_s_number_from_before_the_last_start_is_no_member(fleet: Fleet) -> None:
    host, pid, _, place = own_name().split(":")
    fleet.sign(f"{host}:{pid}:1:{place}", threads=1)
    assert names(fleet) == []


def test_who_was_silent_for_a_day_is_forgotten_with_the_next_sign_of_anybody(
    fleet: Fleet, ledger: Ledger, clock: Clock
) -> None:
    fleet.sign("long ago", threads=1)
    clock.now += 1
    fleet.sign("not so long ago", threads=1)
    clock.now += FORGOTTEN_S
    assert fleet.last_seen_at() == clock.now - FORGOTTEN_S, "a downtime of more than a day is seen as such"
    fleet.sign(own_name(), threads=1)
    with ledger.reading() as connection:
        kept = set(connection.execute(sa.select(WORKERS.c.name)).scalars())
    assert kept == {"not so long ago", own_name()}


def test_every_method_says_that_the_ledger_cannot_be_used(fleet: Fleet, ledger: Ledger) -> None:
    ledger.run(sa.text("ALTER TABLE workers RENAME TO hidden"))
    for call in (
        fleet.last_seen_at,
        fleet.members,
        lambda: fleet.sign("w", threads=1),
        lambda: fleet.leave("w"),
    ):
        with pytest.raises(LedgerUnavailable) as caught:
            call()
        assert caught.value.hint
        del caught
