"""Calls that share a run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from webhook.together import Together

BOUND_S = 10.0


class Runs:
    """Keeps what each run was given; the first waits until it is let go."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.given: list[list[int]] = []
        self.begun, self.may_end = threading.Event(), threading.Event()
        self._then = then

    def __call__(self, items: list[int]) -> None:
        self.given.append(items)
        if len(self.given) == 1:
            self.begun.set()
            assert self.may_end.wait(BOUND_S)
            return
        self._then()


def _with_company(runs: Runs, others: int) -> tuple[Future[None], list[Future[None]]]:
    """One call whose run is let go when `others` calls wait for it."""
    call = Together(runs)
    with ThreadPoolExecutor(others + 1) as pool:
        first = pool.submit(call, 0)
        assert runs.begun.wait(BOUND_S)
        late = [pool.submit(call, number) for number in range(1, others + 1)]
        while call._open is None or len(call._open[0]) < others:
            assert not any(each.done() for each in late)
        runs.may_end.set()
    return first, late


def test_who_comes_alone_is_served_at_once() -> None:
    runs = Runs()
    runs.may_end.set()
    call = Together(runs)
    call(1)
    call(2)
    assert runs.given == [[1], [2]]


def test_those_who_come_during_a_run_share_the_next() -> None:
    runs = Runs()
    _with_company(runs, 7)
    assert [sorted(items) for items in runs.given] == [[0], [1, 2, 3, 4, 5, 6, 7]]


def test_what_a_run_raises_is_told_to_all_in_it_and_to_nobody_else() -> None:
    def fail() -> None:
        raise OSError("no room")

    runs = Runs(fail)
    first, late = _with_company(runs, 3)
    assert first.exception() is None
    assert [str(each.exception()) for each in late] == ["no room"] * 3


def test_after_a_failure_the_next_call_is_served() -> None:
    def run(items: list[int]) -> None:
        if items == [1]:
            raise OSError

    call = Together(run)
    with pytest.raises(OSError):
        call(1)
    call(2)
