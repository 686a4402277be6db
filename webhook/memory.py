"""How much object data a process holds at once, and where."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import deque
from collections.abc import Iterator

MAPPED_MIN_BYTES = 1024 * 1024
Body = bytearray | mmap.mmap
"""Bytes of an object or a part."""


def body_of(size: int) -> Body:
    """Room for `size` bytes. What is large goes back to the system as soon as nobody holds it: the
    allocator would keep some of it for each thread.
    """
    return bytearray(size) if size < MAPPED_MIN_BYTES else mmap.mmap(-1, size)


class MemoryBudget:
    """Bytes of object data a process may hold. First come, first served, so that large takers get through."""

    def __init__(self, total_bytes: int) -> None:
        self._free = total_bytes
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def take(self, size: int, *, wait_s: float | None = None) -> bool:
        """Waits until `size` bytes, at most the whole budget, are free; False: not within `wait_s`."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            taken = self._changed.wait_for(
                lambda: self._queue[0] is ticket and self._free >= size, timeout=wait_s
            )
            self._queue.remove(ticket)
            if taken:
                self._free -= size
            self._changed.notify_all()
        return taken

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
