"""How much object data a process holds at once, and where it is kept."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import deque
from collections.abc import Iterator

MIB = 1024 * 1024
MAPPED_MIN_BYTES = 2 * MIB
"""Smaller bodies are the allocator's; of large ones it would keep some for each thread."""
ROUNDED_MAX_BYTES = 16 * MIB


class MemoryBudget:
    """Bytes of object data a process may hold. First come, first served, so that large takers get through.

    Memory that is large goes from one body to the next, since to get it from the system anew costs more than
    to fill it; all of it goes back to the system once nobody holds a body.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._lent = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()
        self._idle: list[mmap.mmap] = []

    @contextlib.contextmanager
    def body(self, size: int) -> Iterator[memoryview]:
        """Room for `size` bytes, at most the whole budget, for the time of the block. Waits for it."""
        body = self.borrow(size)
        try:
            yield body
        finally:
            self.give_back(body)

    def borrow(self, size: int) -> memoryview:
        """Room for `size` bytes, at most the whole budget; waits for it. To be given back."""
        room, ticket = self._room(size), object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._lent + room <= self._total)
            self._queue.popleft()
            self._lent += room
            self._changed.notify_all()
            if room < MAPPED_MIN_BYTES:
                return memoryview(bytearray(room))[:size]
            return memoryview(self._take_idle(room) or mmap.mmap(-1, room))[:size]

    def give_back(self, body: memoryview) -> None:
        """Ends the use of a body: whoever still looks at it gets a ValueError."""
        kept = body.obj
        body.release()
        with self._changed:
            self._lent -= len(kept)  # type: ignore[arg-type] # a bytearray or an mmap
            if isinstance(kept, mmap.mmap):
                self._idle.append(kept)
            if not self._lent:
                self._idle.clear()
            self._changed.notify_all()

    def _room(self, size: int) -> int:
        """What is taken for a body of this size: the next power of two, that bodies may follow each other."""
        if size < MAPPED_MIN_BYTES:
            return size
        if size <= ROUNDED_MAX_BYTES:
            return 1 << (size - 1).bit_length()
        return min(-(-size // MIB) * MIB, max(size, self._total))

    def _take_idle(self, room: int) -> mmap.mmap | None:
        """An idle piece of that very size; others make way where there would be too much with them."""
        fitting = next((piece for piece in self._idle if len(piece) == room), None)
        if fitting is not None:
            self._idle.remove(fitting)
        while self._idle and self._lent + sum(map(len, self._idle)) > self._total:
            self._idle.pop(0)
        return fitting
