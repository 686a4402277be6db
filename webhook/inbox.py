"""What was claimed and is not begun: live work first, and only so much of the backfill beside it."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

COST_WEIGHT = 0.1
"""Of the latest piece in the mean of what a piece of backfill costs."""

LIVE_IN_A_ROW_MAX = 19
"""Then it is the backfill's turn, where there is some: it always moves, however much live work there is."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """How much of the backfill may be done."""

    at_once: int
    cpu_share: float | None = None
    """Of one core, for the threads that the inbox serves; None: all there is."""


class Inbox(Generic[Item]):
    """Hands work to threads. Thread-safe."""

    def __init__(self, *, threads: int) -> None:
        self._changed = threading.Condition()
        self._live: deque[Item] = deque()
        self._backfill: deque[Item] = deque()
        self._threads = threads
        self._running = {True: 0, False: 0}  # is it backfill → how many
        self._allowance = Allowance(at_once=threads)
        self._cost_s = 0.0
        self._next_at = 0.0
        self._live_in_a_row = 0
        self._is_open = True

    def put(self, item: Item, *, is_backfill: bool) -> None:
        """Leaves work for whoever is free next."""
        with self._changed:
            (self._backfill if is_backfill else self._live).append(item)
            self._changed.notify()

    def take(self) -> tuple[Item, bool] | None:
        """Waits for work; gives it, and whether it is backfill: call `done` with that after it.

        None: the inbox is closed.
        """
        with self._changed:
            while self._is_open:
                if self._live and not (self._backfill and self._is_backfills_turn()):
                    return self._begun(self._live, is_backfill=False)
                if self._live:
                    return self._begun(self._backfill, is_backfill=True)
                wait_s = self._backfill_wait_s()
                if wait_s == 0.0:
                    return self._begun(self._backfill, is_backfill=True)
                self._changed.wait(wait_s)
            return None

    def _backfill_wait_s(self) -> float | None:
        """How long until a piece of the backfill may begin, 0.0: now; None: not before something changes."""
        if not self._backfill or self._running[True] >= self._allowance.at_once:
            return None
        if self._allowance.cpu_share is None:
            return 0.0
        return max(0.0, self._next_at - time.monotonic())

    def _begun(self, items: deque[Item], *, is_backfill: bool) -> tuple[Item, bool]:
        self._running[is_backfill] += 1
        self._live_in_a_row = 0 if is_backfill else self._live_in_a_row + 1
        if is_backfill and self._allowance.cpu_share:
            self._next_at = time.monotonic() + self._cost_s / self._allowance.cpu_share
        return items.popleft(), is_backfill

    def done(self, *, is_backfill: bool, cpu_s: float) -> None:
        """A piece of work has ended, and took this much of the processor's time."""
        with self._changed:
            self._running[is_backfill] -= 1
            if is_backfill:
                self._cost_s += (cpu_s - self._cost_s) * COST_WEIGHT
            if self._backfill:
                self._changed.notify()

    def allow_backfill(self, allowance: Allowance) -> None:
        """From now on so much of it may be begun."""
        with self._changed:
            is_more = allowance != self._allowance
            self._allowance = allowance
            if is_more:
                self._changed.notify_all()

    def room(self) -> int:
        """How many threads will be free once all live work that is here has begun."""
        return self._threads - self._running[True] - self._running[False] - len(self._live)

    def backfill_room(self) -> int:
        """How much more of the backfill may run at once, less what is here of it."""
        return min(self._allowance.at_once - self._running[True], self.room()) - len(self._backfill)

    def owed_backfill(self) -> int:
        """How much of it must be claimed even where live work would fill all threads."""
        return int(self._is_backfills_turn() and not self._backfill)

    def _is_backfills_turn(self) -> bool:
        return self._live_in_a_row >= LIVE_IN_A_ROW_MAX and self._running[True] == 0

    def empty(self) -> list[Item]:
        """All that was not begun; it is not here any more."""
        with self._changed:
            items = [*self._live, *self._backfill]
            self._live.clear()
            self._backfill.clear()
            return items

    def close(self) -> None:
        """Whoever waits for work is sent home."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
