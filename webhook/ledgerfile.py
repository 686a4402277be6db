"""Whether the file of a ledger on SQLite is still the one that was opened.

A file that is deleted or replaced lives on for those who have it open: what they commit to it is gone when
they end, and an event that was answered 200 with it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from webhook.errors import LedgerLost

Identity = tuple[int, int]
"""A file's device and inode (POSIX, stat)."""


def identity(path: Path) -> Identity | None:
    """Which file is at the path; None: there is none. Raises: OSError."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class LedgerFile:
    """One path, and the file that the first connection found there. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: Identity | None = None

    def note(self) -> None:
        """A connection has the file open: from now on no other file will do. Raises: as `check`."""
        self.check()
        self._opened = identity(self._path)

    def check_writable(self) -> None:
        """Raises: OSError where the file, or its folder, can only be read.

        SQLite would open it all the same, and as long as one such connection is open in a process, all that
        come later can only read, too.
        """
        for path in (self._path, self._path.parent):
            if path.exists() and not os.access(path, os.W_OK):
                raise OSError(errno.EROFS, f"{str(path)!r} can only be read")

    def check(self) -> None:
        """Raises: LedgerLost where the path leads to another file by now, or to none; OSError."""
        if self._opened is not None and identity(self._path) != self._opened:
            raise LedgerLost(
                f"the ledger's file {str(self._path)!r} was deleted or replaced while it was in use",
                hint="This process ends. Started anew, it goes on with the file that is there, or makes an "
                "empty ledger; a sweep then finds what is to be copied.",
            )
