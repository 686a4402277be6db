"""ETags from bytes: over parts of a size, and over parts that are read side by side.

The ETag of an object in parts: MD5 over the parts' binary MD5s, "-", the number of parts, as Amazon S3
computes it.
"""

from __future__ import annotations

import hashlib
import threading


def parts_etag(digests: list[bytes]) -> str:
    """The ETag of an object whose parts have these MD5 digests."""
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


class PartsDigest:
    """The ETag that an object would have in parts of one size, from its bytes in order."""

    def __init__(self, part_size: int) -> None:
        self._part_size = part_size
        self._digests: list[bytes] = []
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._filled = 0

    def add(self, body: memoryview) -> None:
        """Adds the next bytes."""
        rest = memoryview(body)
        while rest:
            piece = rest[: self._part_size - self._filled]
            self._md5.update(piece)
            self._filled += len(piece)
            rest = rest[len(piece) :]
            if self._filled == self._part_size:
                self._end_part()

    def etag(self) -> str:
        """The ETag, once all bytes are in."""
        if self._filled or not self._digests:
            self._end_part()
        return parts_etag(self._digests)

    def _end_part(self) -> None:
        self._digests.append(self._md5.digest())
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._filled = 0


class WholeDigest:
    """MD5 over parts that are read side by side: each waits for its turn."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._next = 1
        self._turn = threading.Condition()
        self._is_over = False

    def add(self, number: int, body: memoryview) -> None:
        """Adds part `number` once all before it are in. Parts start in order, so this always ends."""
        with self._turn:
            self._turn.wait_for(lambda: self._next == number or self._is_over)
            if self._next == number:
                self._md5.update(body)
                self._next += 1
            self._turn.notify_all()

    def give_up(self) -> None:
        """Lets all waiting parts go: an earlier one has failed."""
        with self._turn:
            self._is_over = True
            self._turn.notify_all()

    def hexdigest(self) -> str:
        """The MD5 of all parts added."""
        return self._md5.hexdigest()
