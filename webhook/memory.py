"""How much object data a process holds at once."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class MemoryBudget:
    """Bytes of object data a process may hold. First come, first served, so that large takers get through."""

    def __init__(self, total_bytes: int) -> None:
        self._free = total_bytes
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Waits until `size` bytes, at most the whole budget, are free."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._free >= size)
            self._queue.popleft()
            self._free -= size
            self._changed.notify_all()

    def give_back(self, size: int) -> None:
        """Returns what was taken."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Takes `size` bytes for the time of the block."""
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)
