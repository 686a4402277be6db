"""Who gets which work, and when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from webhook import inbox
from webhook.inbox import Allowance, Inbox

BOUND_S = 10.0
MINUTE_S = 60.0


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that inboxes see."""
    made = Clock()
    monkeypatch.setattr(inbox.time, "monotonic", made.monotonic)
    return made


def filled(*, threads: int = 4, live: str = "", backfill: str = "") -> Inbox[str]:
    """An inbox with a piece of work for each letter."""
    made: Inbox[str] = Inbox(threads=threads)
    for letter in backfill:
        made.put(letter, is_backfill=True)
    for letter in live:
        made.put(letter, is_backfill=False)
    return made


def taken_within(box: Inbox[str], do: Callable[[], object]) -> tuple[str, bool] | None:
    """What a thread gets that waits already when `do` is done."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(box.take)
        with pytest.raises(TimeoutError):
            future.result(0.05)
        do()
        return future.result(BOUND_S)


def test_live_work_comes_first_and_each_lane_in_its_order() -> None:
    box = filled(live="ab", backfill="xy")
    assert [box.take() for _ in "abxy"] == [("a", False), ("b", False), ("x", True), ("y", True)]


def test_however_much_live_work_there_is_the_backfill_moves() -> None:
    box = filled(live="a" * 100, backfill="xyz")
    taken = [box.take() for _ in range(60)]
    assert [each for each in taken if each and each[1]] == [("x", True)]
    assert taken[inbox.LIVE_IN_A_ROW_MAX] == ("x", True), "and no more of it while that one runs"
    box.done(is_backfill=True, cpu_s=MINUTE_S)
    box.allow_backfill(Allowance(at_once=1, cpu_share=0.1))
    assert box.take() == ("y", True), "its turn comes whatever its share of the processor"
    assert box.take() == ("a", False)


def test_it_tells_when_backfill_must_be_claimed_past_live_work() -> None:
    box = filled(live="a" * 40)
    assert box.owed_backfill() == 0
    for _ in range(inbox.LIVE_IN_A_ROW_MAX):
        box.take()
    assert box.owed_backfill() == 1
    box.put("x", is_backfill=True)
    assert box.owed_backfill() == 0
    assert box.take() == ("x", True)
    assert box.take() == ("a", False)


def test_no_more_of_the_backfill_runs_at_once_than_is_allowed() -> None:
    box = filled(backfill="xyz")
    box.allow_backfill(Allowance(at_once=1))
    assert box.take() == ("x", True)
    assert taken_within(box, lambda: box.done(is_backfill=True, cpu_s=0.0)) == ("y", True)
    assert taken_within(box, lambda: box.allow_backfill(Allowance(at_once=2))) == ("z", True)


def test_live_work_does_not_wait_for_the_backfill_s_turn() -> None:
    box = filled(backfill="xy")
    box.allow_backfill(Allowance(at_once=1))
    assert box.take() == ("x", True)
    assert taken_within(box, lambda: box.put("a", is_backfill=False)) == ("a", False)


def test_pieces_of_the_backfill_begin_so_far_apart_that_they_keep_to_their_share(clock: Clock) -> None:
    box = filled(backfill="x" * 400)
    box.allow_backfill(Allowance(at_once=4, cpu_share=0.1))
    began_at, cost_s = clock.now, 0.01
    for _ in range(200):
        while box._backfill_wait_s() != 0.0:
            clock.now += 0.001
        assert box.take() == ("x", True)
        box.done(is_backfill=True, cpu_s=cost_s)
    share = 200 * cost_s / (clock.now - began_at)
    assert 0.08 <= share <= 0.12


def test_without_a_share_the_backfill_does_not_wait(clock: Clock) -> None:
    box = filled(backfill="xyz")
    for _ in "xyz":
        assert box.take() is not None
        box.done(is_backfill=True, cpu_s=MINUTE_S)
    assert box.backfill_room() == 4


def test_a_share_that_is_lifted_sets_the_backfill_free_at_once(clock: Clock) -> None:
    box = filled(backfill="xy")
    box.allow_backfill(Allowance(at_once=4, cpu_share=0.1))
    box.take()
    box.done(is_backfill=True, cpu_s=MINUTE_S)
    box.put("z", is_backfill=True)
    assert box.take() == ("y", True)  # what a piece costs was not known when the first one began
    assert taken_within(box, lambda: box.allow_backfill(Allowance(at_once=4))) == ("z", True)


def test_it_tells_how_much_room_there_is() -> None:
    box = filled(threads=3, live="a", backfill="x")
    assert (box.room(), box.backfill_room()) == (2, 1)
    box.take()
    box.take()
    assert (box.room(), box.backfill_room()) == (1, 1)
    box.allow_backfill(Allowance(at_once=1))
    assert box.backfill_room() == 0
    box.done(is_backfill=False, cpu_s=0.0)
    assert box.room() == 2


def test_what_was_not_begun_can_be_taken_back() -> None:
    box = filled(live="a", backfill="x")
    assert (box.empty(), box.empty()) == (["a", "x"], [])


def test_whoever_waits_is_sent_home_when_it_closes() -> None:
    box = filled()
    assert taken_within(box, box.close) is None
    assert box.take() is None


def test_every_piece_is_given_to_one_thread() -> None:
    box = filled(threads=8)
    given: list[str] = []

    def work() -> None:
        while (taken := box.take()) is not None:
            given.append(taken[0])
            box.done(is_backfill=taken[1], cpu_s=0.0)
            if len(given) == 2000:
                box.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        box.put(str(number), is_backfill=number % 2 == 0)
    for thread in threads:
        thread.join(BOUND_S)
        assert not thread.is_alive()
    assert sorted(given, key=int) == [str(number) for number in range(2000)]
