"""The bound on object data in memory: first come, first served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import mmap

import psutil
import pytest

from webhook.memory import MAPPED_MIN_BYTES, MemoryBudget, body_of

BOUND_S = 10.0


def becomes(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within the bound."""
    until = time.monotonic() + BOUND_S
    while not condition() and time.monotonic() < until:
        threading.Event().wait(0.002)
    return condition()


def waiting(budget: MemoryBudget) -> int:
    """How many stand in line."""
    return len(budget._queue)


def test_what_is_free_is_taken_at_once() -> None:
    budget = MemoryBudget(10)
    budget.take(4)
    budget.take(6)
    budget.take(0)
    budget.give_back(10)
    budget.take(10)


def test_takers_come_in_order_so_that_a_large_one_is_not_starved() -> None:
    budget, order = MemoryBudget(10), []
    budget.take(6)
    with ThreadPoolExecutor(3) as threads:

        def taker(name: str, size: int) -> None:
            budget.take(size)
            order.append(name)

        try:
            futures: list[Future[None]] = []
            for number, (name, size) in enumerate([("large", 10), ("small", 1), ("smaller", 0)]):
                futures.append(threads.submit(taker, name, size))
                assert becomes(lambda: waiting(budget) == number + 1)  # noqa: B023 - asked at once
            assert order == [], "though 4 are free"
            budget.give_back(6)
            futures[0].result(BOUND_S)
            assert order == ["large"]
            budget.give_back(10)
            for future in futures:
                future.result(BOUND_S)
        finally:
            budget.give_back(100)  # nobody stays in line, whatever went wrong
    assert order[0] == "large"
    assert sorted(order[1:]) == ["small", "smaller"]


def test_memory_comes_back_when_the_block_fails() -> None:
    budget = MemoryBudget(10)
    with pytest.raises(KeyError), budget.taken(10):
        raise KeyError
    with budget.taken(10):
        pass


def test_many_takers_never_hold_more_than_the_budget_and_all_get_through() -> None:
    budget, lock, held, most = MemoryBudget(100), threading.Lock(), 0, 0

    def work(size: int) -> None:
        nonlocal held, most
        with budget.taken(size):
            with lock:
                held += size
                most = max(most, held)
            with lock:
                held -= size

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(work, size) for size in [1, 100, 33, 67, 0, 50] * 50]:
            future.result(BOUND_S)
    assert (held, most <= 100) == (0, True)


def test_who_waits_no_longer_leaves_the_line_and_takes_nothing() -> None:
    budget = MemoryBudget(10)
    assert budget.take(6, wait_s=0)
    for _ in range(3):
        assert not budget.take(5, wait_s=0.001)
    assert waiting(budget) == 0
    assert budget.take(4, wait_s=0)
    budget.give_back(10)
    assert budget.take(10, wait_s=0), "nothing was lost on the way"


def test_who_leaves_the_line_lets_those_behind_move_up() -> None:
    budget = MemoryBudget(10)
    budget.take(6)
    with ThreadPoolExecutor(2) as threads:
        try:
            impatient = threads.submit(budget.take, 10, wait_s=0.2)
            assert becomes(lambda: waiting(budget) == 1)
            behind = threads.submit(budget.take, 4)
            assert not impatient.result(BOUND_S)
            assert behind.result(BOUND_S)
        finally:
            budget.give_back(100)  # nobody stays in line, whatever went wrong


def test_who_waits_with_a_bound_is_served_within_it() -> None:
    budget = MemoryBudget(10)
    budget.take(10)
    with ThreadPoolExecutor(1) as threads:
        taking = threads.submit(budget.take, 3, wait_s=BOUND_S)
        assert becomes(lambda: waiting(budget) == 1)
        budget.give_back(3)
        assert taking.result(BOUND_S)
    assert not budget.take(1, wait_s=0)


@pytest.mark.parametrize("size", [0, 1, MAPPED_MIN_BYTES - 1, MAPPED_MIN_BYTES, MAPPED_MIN_BYTES + 1])
def test_a_body_has_exactly_the_size_asked_for_holds_zeros_and_can_be_written(size: int) -> None:
    body = body_of(size)
    assert (len(body), bytes(body)) == (size, b"\0" * size)
    assert isinstance(body, mmap) == (size >= MAPPED_MIN_BYTES)
    body[: size // 2] = b"x" * (size // 2)
    assert memoryview(body).nbytes == size
    assert bytes(body[: size // 2]) == b"x" * (size // 2)


def test_a_large_body_goes_back_to_the_system_as_soon_as_nobody_holds_it() -> None:
    process, size = psutil.Process(), 64 * MAPPED_MIN_BYTES
    body = body_of(size)
    body[:] = b"x" * size
    full = process.memory_info().rss
    del body
    assert full - process.memory_info().rss > size / 2
