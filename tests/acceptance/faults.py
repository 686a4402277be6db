"""What happens to a fleet: processes are killed or stopped, requests are held up."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from scripts.local_service import Replicator
from tests.acceptance.conftest import until
from tests.proxy import Exchange, Proxy

EVERY_S = 2.0
STOPPED_MAX = 2
HOLD_MAX_S = 120.0


def pause(process: Replicator) -> None:
    """SIGSTOP to the process and its children."""
    os.killpg(process.pid, signal.SIGSTOP)


def resume(process: Replicator) -> None:
    """SIGCONT to the process and its children."""
    os.killpg(process.pid, signal.SIGCONT)


@dataclass
class Faults:
    """Kills and stops one process after the other, at random; those that are killed are started anew."""

    processes: Sequence[Replicator]
    stop_s: float
    kills: int = 0
    stops: list[tuple[Replicator, float, float]] = field(default_factory=list)
    """Who was stopped, from when to when by this machine's clock."""
    _stopped: dict[int, float] = field(default_factory=dict)
    _starting: dict[int, Future[Any]] = field(default_factory=dict)
    _chance: random.Random = field(default_factory=lambda: random.Random(20261125))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Until `is_over`; all processes run when this returns."""
        with ThreadPoolExecutor(len(self.processes)) as pool:
            while not is_over():
                self._resume_those(lambda began: time.time() - began >= self.stop_s)
                self._do_one(pool)
                time.sleep(EVERY_S)  # the rhythm of the faults
            until(self._resume_last, bound_s=self.stop_s + 60, what="all stopped processes go on")
            for starting in self._starting.values():
                starting.result()

    def _do_one(self, pool: ThreadPoolExecutor) -> None:
        running = [
            index
            for index in range(len(self.processes))
            if index not in self._stopped and (index not in self._starting or self._starting[index].done())
        ]
        if not running:
            return
        chosen = self._chance.choice(running)
        if len(self._stopped) < STOPPED_MAX and self._chance.random() < 0.5:
            self._stopped[chosen] = time.time()
            pause(self.processes[chosen])
        else:
            self.kills += 1
            self.processes[chosen].kill()
            self._starting[chosen] = pool.submit(self.processes[chosen].start)

    def _resume_last(self) -> bool:
        self._resume_those(lambda began: time.time() - began >= self.stop_s)
        return not self._stopped

    def _resume_those(self, wanted: Callable[[float], bool]) -> None:
        for index, began in [*self._stopped.items()]:
            if wanted(began):
                resume(self.processes[index])
                self.stops.append((self.processes[index], began, time.time()))
                del self._stopped[index]


class Hold:
    """Keeps requests of one operation from the server; as a context, lets them go at its end."""

    def __init__(self, gate: Proxy, *, operation: str = "PutObject") -> None:
        self._gate = gate
        self._operation = operation
        self._before = gate.counted[operation]
        self._opened = threading.Event()
        self.answers: list[int] = []
        """The server's status for each that was let go."""
        gate.plan(operation, self._hold, times=1_000)

    def _hold(self, exchange: Exchange) -> None:
        self._opened.wait(HOLD_MAX_S)
        self.answers.append(exchange.forward().status)

    def wait_for(self, count: int) -> None:
        """Until it holds that many."""
        until(
            lambda: self._gate.counted[self._operation] - self._before >= count,
            bound_s=60,
            what=f"{count} of {self._operation} are under way",
        )

    def open(self) -> None:
        """Lets all go that are held, and those that come."""
        self._opened.set()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._gate.forget()
