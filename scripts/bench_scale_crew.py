"""The scale benchmark's processes that use a ledger, one thread each, as web and worker processes do."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

from scripts.bench_peers import RULE, BenchError
from webhook.entries import Request, Settled
from webhook.errors import LedgerUnavailable
from webhook.ledger import Ledger
from webhook.processes import own_name

BATCH, LEASE_S = 32, 60.0
TOGETHER_S = 0.05
"""All processes of a run begin this long after they were told to."""
ANSWER_BOUND_S = 120.0
SIZE_BYTES = 4096


@dataclass(frozen=True)
class Order:
    """What one process is to do."""

    url: str
    starts_at: float
    """Monotonic time, which all processes of a machine share."""
    keys: Sequence[str] | None = None
    """To put; None: claim and settle until nothing is due."""
    batch: int = BATCH
    seconds: float = ANSWER_BOUND_S


@dataclass(frozen=True)
class Done:
    """What one process did."""

    entries: int
    began_at: float
    ended_at: float
    cpu_s: float
    refused: int


class Crew:
    """Processes that do as they are told; as a context they run."""

    def __init__(self, count: int) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._count = count

    def __enter__(self) -> Self:
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(self._count):
            ours, theirs = self._spawn.Pipe()
            process = self._spawn.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()  # which ends its process
        for process in self._processes:
            process.join(ANSWER_BOUND_S)

    def put(self, url: str, shares: Sequence[Sequence[str]], *, batch: int, seconds: float) -> list[Done]:
        """One process for each share of the keys."""
        at = time.monotonic() + TOGETHER_S
        return self._do([Order(url, at, keys=share, batch=batch, seconds=seconds) for share in shares])

    def settle(self, url: str, processes: int) -> list[Done]:
        """Until nothing is due."""
        return self._do([Order(url, time.monotonic() + TOGETHER_S)] * processes)

    def _do(self, orders: Sequence[Order]) -> list[Done]:
        pipes = self._pipes[: len(orders)]
        for pipe, order in zip(pipes, orders, strict=True):
            pipe.send(order)
        return [self._answer(pipe) for pipe in pipes]

    def _answer(self, pipe: Connection) -> Done:
        with suppress(EOFError, OSError):
            if pipe.poll(ANSWER_BOUND_S) and isinstance(answer := pipe.recv(), Done):
                return answer
        raise BenchError("a process that works on the ledger has ended or does not answer")


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started it closes the pipe
    ledgers: dict[str, Ledger] = {}
    with suppress(EOFError):
        while True:
            order = pipe.recv()
            if order.url not in ledgers:
                ledgers[order.url] = Ledger.open(order.url)
            time.sleep(max(0.0, order.starts_at - time.monotonic()))
            pipe.send(do(order, ledgers[order.url]))


def do(order: Order, ledger: Ledger) -> Done:
    """Does it at once, in this process."""
    began_at, cpu_before_s = time.monotonic(), time.process_time()
    steps = _settling(ledger) if order.keys is None else _putting(ledger, order.keys, order.batch)
    entries = refused = 0
    while time.monotonic() < began_at + order.seconds:
        number = next(steps, None)
        if number is None:
            break
        entries += number
        refused += number == 0
    return Done(entries, began_at, time.monotonic(), time.process_time() - cpu_before_s, refused)


def _putting(ledger: Ledger, keys: Sequence[str], batch: int) -> Iterator[int]:
    """Gives how many each call put; 0: it was refused."""
    for first in range(0, len(keys), batch):
        now, some = time.time(), keys[first : first + batch]
        told = [(key, digest(key)) for key in some]
        requests = [
            Request(rule=RULE, key=key, event_id=etag[:16], event_at=now, etag=etag) for key, etag in told
        ]
        yield from _until_done(lambda given=requests: ledger.put(given))  # type: ignore[misc]
        yield len(some)


def _settling(ledger: Ledger) -> Iterator[int]:
    """Gives how many were settled by each pair of calls; 0: one was refused."""
    name = own_name()
    while True:
        try:
            claims = ledger.claim(BATCH, worker=name, lease_s=LEASE_S)
        except LedgerUnavailable:
            yield 0
            continue
        if not claims:
            return
        endings = [
            Settled(
                claim=claim,
                outcome="replicated",
                size=SIZE_BYTES,
                source_etag=(etag := digest(claim.key)),
                target_etag=etag,
                bytes_copied=SIZE_BYTES,
            )
            for claim in claims
        ]
        yield from _until_done(lambda given=endings: ledger.finish(given))  # type: ignore[misc]
        yield len(claims)


def _until_done(call: Callable[[], object]) -> Iterator[int]:
    """Gives 0 each time when the call was refused; ends when it was not."""
    while True:
        try:
            call()
        except LedgerUnavailable:
            yield 0
        else:
            return


def digest(key: str) -> str:
    """32 characters that look like an ETag."""
    return hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
