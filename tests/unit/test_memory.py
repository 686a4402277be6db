"""The bound on object data in memory: first come, first served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from webhook.memory import MemoryBudget

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
