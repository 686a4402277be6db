"""The bound on object data in memory: first come, first served."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import psutil
import pytest

from webhook.memory import MAPPED_MIN_BYTES, MIB, MemoryBudget

BOUND_S = 10.0


def becomes(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within the bound."""
    until = time.monotonic() + BOUND_S
    while not condition() and time.monotonic() < until:
        threading.Event().wait(0.002)
    return condition()


def test_what_is_free_is_lent_at_once() -> None:
    budget = MemoryBudget(10)
    bodies = [budget.borrow(4), budget.borrow(6), budget.borrow(0)]
    for body in bodies:
        budget.give_back(body)
    assert len(budget.borrow(10)) == 10


def test_takers_come_in_order_so_that_a_large_one_is_not_starved() -> None:
    budget, order = MemoryBudget(10), []
    first = budget.borrow(6)
    with ThreadPoolExecutor(3) as threads:

        def taker(name: str, size: int) -> memoryview:
            body = budget.borrow(size)
            order.append(name)
            return body

        try:
            futures: list[Future[memoryview]] = []
            for number, (name, size) in enumerate([("large", 10), ("small", 1), ("smaller", 0)]):
                futures.append(threads.submit(taker, name, size))
                assert becomes(lambda: len(budget._queue) == number + 1)  # noqa: B023 - asked at once
            assert order == [], "though 4 are free"
            budget.give_back(first)
            large = futures[0].result(BOUND_S)
            assert order == ["large"]
            budget.give_back(large)
            for future in futures:
                future.result(BOUND_S)
        finally:
            with budget._changed:  # nobody stays in line, whatever went wrong
                budget._lent = -100
                budget._changed.notify_all()
    assert order[0] == "large"
    assert sorted(order[1:]) == ["small", "smaller"]


def test_memory_comes_back_when_the_block_fails() -> None:
    budget = MemoryBudget(10)
    with pytest.raises(KeyError), budget.body(10):
        raise KeyError
    with budget.body(10):
        pass


def test_many_takers_never_hold_more_than_the_budget_and_all_get_through() -> None:
    budget, lock, held, most = MemoryBudget(100), threading.Lock(), 0, 0

    def work(size: int) -> None:
        nonlocal held, most
        with budget.body(size):
            with lock:
                held += size
                most = max(most, held)
            with lock:
                held -= size

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(work, size) for size in [1, 100, 33, 67, 0, 50] * 50]:
            future.result(BOUND_S)
    assert (held, most <= 100) == (0, True)


@pytest.mark.parametrize(
    "size",
    [0, 1, MAPPED_MIN_BYTES - 1, MAPPED_MIN_BYTES, MAPPED_MIN_BYTES + 1, 16 * MIB, 17 * MIB, 32 * MIB - 1],
)
def test_a_body_has_exactly_the_size_asked_for_and_can_be_written(size: int) -> None:
    budget = MemoryBudget(32 * MIB)
    with budget.body(size) as body:
        assert len(body) == size
        body[:] = b"x" * size
        assert bytes(body) == b"x" * size
        assert isinstance(body.obj, mmap.mmap) == (size >= MAPPED_MIN_BYTES)
        assert size <= budget._lent <= 32 * MIB
    assert budget._lent == 0


def test_who_keeps_a_body_too_long_is_told_and_sees_nobody_else_s() -> None:
    budget = MemoryBudget(32 * MIB)
    for size in (10, 4 * MIB):
        body = budget.borrow(size)
        budget.give_back(body)
        with pytest.raises(ValueError, match="released"):
            body[0]


def test_large_bodies_follow_each_other_in_the_same_memory() -> None:
    budget = MemoryBudget(32 * MIB)
    other, first = budget.borrow(1), budget.borrow(5 * MIB)
    memory = first.obj
    budget.give_back(first)
    assert budget.borrow(8 * MIB).obj is memory
    assert budget.borrow(8 * MIB).obj is not memory
    assert other.obj is not memory


@pytest.mark.parametrize("sizes", [[16, 8, 4, 2], [2, 4, 8, 16], [30, 2, 30, 8]])
def test_what_is_kept_for_others_is_within_the_budget_too(sizes: list[int]) -> None:
    budget = MemoryBudget(32 * MIB)
    with budget.body(1):
        for size in sizes * 3:
            budget.give_back(budget.borrow(size * MIB))
            assert budget._lent + sum(map(len, budget._idle)) <= 32 * MIB + 1


def test_memory_goes_back_to_the_system_once_nobody_holds_a_body() -> None:
    process, budget, size = psutil.Process(), MemoryBudget(128 * MIB), 128 * MIB
    body = budget.borrow(size)
    body[:] = b"x" * size
    full = process.memory_info().rss
    budget.give_back(body)
    del body
    assert full - process.memory_info().rss > size / 2
