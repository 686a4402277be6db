"""What every engine must do for the ledger when many use it at once, and when one of them is killed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest

from tests.contract.steps import LEASE_S, Clock, ask, buried, released, retried, row, settled, take
from webhook.database import connect
from webhook.entries import LIVE
from webhook.ledger import Ledger

SPAWN = multiprocessing.get_context("spawn")
PROCESSES = 4
BOUND_S = 120.0


def _drain(ledger: Ledger, worker: str) -> list[tuple[str, int]]:
    """Claims and settles until nothing is due; gives what was claimed."""
    mine: list[tuple[str, int]] = []
    while claims := take(ledger, 16, worker=worker):
        mine += [(claim.key, claim.number) for claim in claims]
        assert ledger.finish([settled(claim) for claim in claims]) == len(claims)
    return mine


def _drain_in_a_process(url: str, number: int, start: Barrier, result: Connection) -> None:
    ledger = Ledger.open(url)
    start.wait(BOUND_S)
    first = take(ledger, 16, worker=f"process-{number}")
    start.wait(BOUND_S)  # so that all of them take part, however fast one of them is
    ledger.finish([settled(claim) for claim in first])
    result.send([(claim.key, claim.number) for claim in first] + _drain(ledger, f"process-{number}"))


def _open_in_a_process(url: str, number: int, start: Barrier, result: Connection) -> None:
    start.wait(BOUND_S)
    ledger = Ledger.open(url)
    ledger.put([ask(f"from {number}")])
    result.send(number)


def _put_in_a_process(url: str, number: int, start: Barrier, result: Connection) -> None:
    ledger = Ledger.open(url)
    start.wait(BOUND_S)
    for index in range(1_000_000):
        ledger.put([ask(f"{index}", 2 * index), ask(f"{index}+", 2 * index + 1)])
        result.send(index)


Job = Callable[[str, int, Barrier, Connection], None]


def _start(job: Job, url: str, count: int) -> list[tuple[Any, Connection, Barrier]]:
    """Processes that begin at the same moment, the pipes they answer through, the barrier they need."""
    start = SPAWN.Barrier(count)
    started = []
    for number in range(count):
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=job, args=(url, number, start, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours, start))
    return started


def _answers(job: Job, url: str, count: int) -> list[Any]:
    answers = []
    for process, ours, _ in _start(job, url, count):
        assert ours.poll(BOUND_S), "the process does not answer"
        answers.append(ours.recv())
        process.join(BOUND_S)
        assert process.exitcode == 0
    return answers


def test_no_two_processes_get_the_same_claim(ledger: Ledger, clock: Clock, database_url: str) -> None:
    keys = [f"k{number}" for number in range(2_000)]
    ledger.put([ask(key) for key in keys])
    claimed = _answers(_drain_in_a_process, database_url, PROCESSES)
    assert all(claimed), "each of them had some"
    assert Counter(claim for each in claimed for claim in each) == Counter((key, 1) for key in keys)
    assert ledger.counts()["settled"][LIVE] == len(keys)


def test_no_two_threads_get_the_same_claim(ledger: Ledger, clock: Clock, database_url: str) -> None:
    keys = [f"k{number}" for number in range(500)]
    ledger.put([ask(key) for key in keys])
    other = Ledger(connect(database_url), clock=clock)
    with ThreadPoolExecutor(4) as threads:
        work = [threads.submit(_drain, each, f"w{n}") for n, each in enumerate([ledger, other] * 2)]
        claimed = [claim for each in work for claim in each.result(BOUND_S)]
    other.close()
    assert Counter(claimed) == Counter((key, 1) for key in keys)


def test_requests_made_while_others_work_are_not_lost(
    ledger: Ledger, clock: Clock, database_url: str
) -> None:
    keys, rounds = [f"k{number}" for number in range(12)], 25
    other = Ledger(connect(database_url), clock=clock)
    running: Counter[str] = Counter()
    served: dict[str, int] = {}
    lock, putting_is_over = threading.Lock(), threading.Event()

    def ask_often(mine: Ledger, number: int) -> None:
        for index in range(rounds):
            mine.put([ask(key, 2 * index + number) for key in (keys if number else reversed(keys))])

    def work(mine: Ledger, number: int) -> None:
        while (claims := take(mine, 5, worker=f"w{number}")) or not putting_is_over.is_set():
            with lock:
                running.update(claim.key for claim in claims)
                assert all(running[claim.key] == 1 for claim in claims), "one copy of a key at a time"
            with lock:
                running.subtract(claim.key for claim in claims)
                served.update((claim.key, claim.generation) for claim in claims)
            assert mine.finish([settled(claim) for claim in claims]) == len(claims)

    with ThreadPoolExecutor(4) as threads:
        workers = [threads.submit(work, each, n) for n, each in enumerate((ledger, other))]
        putters = [threads.submit(ask_often, each, n) for n, each in enumerate((ledger, other))]
        try:
            for each in putters:
                each.result(BOUND_S)
        finally:
            putting_is_over.set()
        for each in workers:
            each.result(BOUND_S)
    other.close()
    assert served == dict.fromkeys(keys, 2 * rounds), "the last claim of each saw every request"
    assert {row(ledger, key)["state"] for key in keys} == {"settled"}


def test_calls_that_change_many_entries_do_not_block_each_other(database_url: str) -> None:
    keys = [f"k{number}" for number in range(12)]
    ends = itertools.cycle([settled, buried, released, lambda claim: retried(claim, 0)])
    until = time.monotonic() + 3

    def finish(ledger: Ledger) -> None:
        claims = take(ledger, 8, worker="alive")
        ledger.extend(claims[:4], lease_s=LEASE_S)
        ledger.finish([next(ends)(claim) for claim in claims])

    def repeat(call: Callable[[Ledger], object]) -> None:
        with closing(Ledger.open(database_url)) as ledger:
            while time.monotonic() < until:
                call(ledger)

    calls: list[Callable[[Ledger], object]] = [
        lambda ledger: ledger.put([ask(key) for key in keys]),
        lambda ledger: ledger.put([ask(key) for key in keys[3:9]]),
        lambda ledger: ledger.revive(),
        lambda ledger: take(ledger, 4, worker="dead"),
        lambda ledger: ledger.release_of(lambda worker: worker == "dead"),
        finish,
    ]
    with ThreadPoolExecutor(len(calls)) as threads:
        for each in [threads.submit(repeat, call) for call in calls]:
            each.result(BOUND_S)


def test_what_was_put_outlives_a_killed_process(database_url: str) -> None:
    process, ours, _kept = _start(_put_in_a_process, database_url, 1)[0]
    last = -1
    while last < 20:
        assert ours.poll(BOUND_S)
        last = ours.recv()
    os.kill(process.pid, signal.SIGKILL)
    process.join(BOUND_S)
    assert process.exitcode == -signal.SIGKILL
    try:
        while ours.poll(0):
            last = ours.recv()
    except EOFError:
        pass
    ledger = Ledger.open(database_url)
    keys = {claim.key for claim in take(ledger, 1_000_000)}
    ledger.close()
    assert keys >= {f"{index}{end}" for index in range(last + 1) for end in ("", "+")}
    assert len(keys) % 2 == 0, "the put that was under way is there whole or not at all"


def test_processes_that_start_together_share_an_empty_database(database_url: str) -> None:
    assert _answers(_open_in_a_process, database_url, PROCESSES) == list(range(PROCESSES))
    ledger = Ledger.open(database_url)
    assert ledger.counts()["waiting"][LIVE] == PROCESSES
    ledger.close()


def test_what_came_to_be_on_record_late_is_found_all_the_same(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhook.ledger.EVERYWHERE_S", 0.2)
    ours, slow = Ledger(connect(database_url), clock=clock), Ledger(connect(database_url), clock=Clock())
    ours.put([ask("a")])
    assert [claim.key for claim in take(ours)] == ["a"]
    clock.now += 600
    assert take(ours, worker="other")[0].key == "a"
    slow.put([ask("b")])  # due ten minutes ago
    deadline = time.monotonic() + BOUND_S
    while not (found := take(ours)):
        assert time.monotonic() < deadline
    assert [claim.key for claim in found] == ["b"]
    ours.close()
    slow.close()


def test_puts_that_come_at_once_share_transactions_and_lose_nothing(ledger: Ledger) -> None:
    told: list[None] = []
    ledger.on_put(lambda: told.append(None))
    start = threading.Barrier(16)

    def put_many(thread: int) -> None:
        start.wait(BOUND_S)
        for event in range(20):
            ledger.put([ask("shared", 100 * thread + event), ask(f"own-{thread}", event)])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put_many, range(16)))
    assert row(ledger, "shared")["generation"] == 16 * 20
    assert [row(ledger, f"own-{thread}")["generation"] for thread in range(16)] == [20] * 16
    assert len(told) < 16 * 20, "some shared a transaction"
