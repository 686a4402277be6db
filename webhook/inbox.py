"""What was claimed and is not begun: live work first, and only so much of the backfill at once."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """Hands work to threads. Thread-safe."""

    def __init__(self, *, threads: int) -> None:
        self._changed = threading.Condition()
        self._live: deque[Item] = deque()
        self._backfill: deque[Item] = deque()
        self._threads = threads
        self._running = {True: 0, False: 0}  # is it backfill → how many
        self._backfill_max = threads
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
                if self._live:
                    return self._begun(self._live, is_backfill=False)
                if self._backfill and self._running[True] < self._backfill_max:
                    return self._begun(self._backfill, is_backfill=True)
                self._changed.wait()
            return None

    def _begun(self, items: deque[Item], *, is_backfill: bool) -> tuple[Item, bool]:
        self._running[is_backfill] += 1
        return items.popleft(), is_backfill

    def done(self, *, is_backfill: bool) -> None:
        """A piece of work has ended."""
        with self._changed:
            self._running[is_backfill] -= 1
            if self._backfill:
                self._changed.notify()

    def limit_backfill(self, at_once: int) -> None:
        """From now on no more than this is begun while as much of it runs."""
        with self._changed:
            more = at_once - self._backfill_max
            self._backfill_max = at_once
            if more > 0:
                self._changed.notify(more)

    def room(self) -> int:
        """How many threads will be free once all live work that is here has begun."""
        return self._threads - self._running[True] - self._running[False] - len(self._live)

    def backfill_room(self) -> int:
        """How much more of the backfill may run at once, less what is here of it."""
        return min(self._backfill_max - self._running[True], self.room()) - len(self._backfill)

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
