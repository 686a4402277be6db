"""LISTEN and NOTIFY: processes that share a PostgreSQL tell each other that something may be due.

Only a word, never the work itself: who hears nothing finds what is due by looking, a little later. So it does
not matter where words cannot be had (SQLite, a pooler that gives each transaction another session).
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog

from webhook.database import reading, translated_errors
from webhook.errors import LedgerUnavailable

CHANNEL = "replicator"
TELL_PAUSE_S = 0.02
"""Words of one process are at least this far apart: each wakes every idle worker, and PostgreSQL lets only
one transaction with a word commit at a time."""
HEAR_S = 5.0
"""A listener looks up this often; a word to itself must be heard within this time."""
RECONNECT_MAX_S = 30.0
CLOSE_S = 2.0

log = structlog.get_logger("webhook.wakeups")


class Wakeups:
    """Thread-safe. Create it after the fork; it starts a thread for each direction when first used."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._own = secrets.token_hex(8)
        self._is_wanted = threading.Event()
        self._is_closed = threading.Event()
        self._starting = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self.are_heard = False
        """Whether words of others arrive: a listener may then sleep longer between looks of its own."""

    def listen(self, on_word: Callable[[], None]) -> None:
        """Calls `on_word` in a thread of its own whenever another process may have put something."""
        self._start("listener", self._listen_loop, on_word)

    def tell(self) -> None:
        """Tells all others, soon; what was put before must be committed. Never waits."""
        if "teller" not in self._threads:
            self._start("teller", self._tell_loop)
        self._is_wanted.set()

    def close(self) -> None:
        """Ends the threads. Safe to repeat."""
        self._is_closed.set()
        self._is_wanted.set()
        if self.are_heard:
            with contextlib.suppress(LedgerUnavailable), reading(self._engine) as cursor:
                _notify(cursor, self._own)  # the listener looks up
        for thread in self._threads.values():
            thread.join(CLOSE_S)

    def _start(self, name: str, loop: Callable[..., None], *given: object) -> None:
        with self._starting:
            if name not in self._threads:
                self._threads[name] = threading.Thread(target=loop, args=given, name=name, daemon=True)
                self._threads[name].start()

    def _tell_loop(self) -> None:
        while self._is_wanted.wait() and not self._is_closed.is_set():
            self._is_wanted.clear()
            try:
                with reading(self._engine) as cursor:
                    _notify(cursor, self._own)
            except LedgerUnavailable:
                self._is_closed.wait(HEAR_S)  # others find what is due by looking
            self._is_closed.wait(TELL_PAUSE_S)

    def _listen_loop(self, on_word: Callable[[], None]) -> None:
        pause_s = TELL_PAUSE_S
        while not self._is_closed.wait(pause_s):
            try:
                with translated_errors():
                    if not self._listen(on_word):
                        return
            except LedgerUnavailable as error:
                pause_s = min(RECONNECT_MAX_S, pause_s * 2)
                if self.are_heard:
                    log.warning("cannot listen", error=error.message)
                    pause_s = TELL_PAUSE_S
                self.are_heard = False

    def _listen(self, on_word: Callable[[], None]) -> bool:
        """Until the connection breaks, which raises; False: no words can be had, or none are wanted."""
        ours = self._engine.raw_connection()
        connection: Any = ours.driver_connection
        hears_none = ours.info["is_pooled"]
        ours.detach()
        with connection:
            if hears_none:
                log.info("words of other processes do not pass the database's pooler: looking instead")
                return False
            connection.autocommit = True
            connection.execute(f"LISTEN {CHANNEL}")
            _notify(connection, f"{self._own} test")
            on_word()  # what was told while nobody listened
            while not self._is_closed.is_set():
                for word in connection.notifies(timeout=HEAR_S, stop_after=1):
                    self._hear(word.payload, on_word)
                connection.execute("SELECT 1")  # a dead connection is silent, too
            return False

    def _hear(self, word: str, on_word: Callable[[], None]) -> None:
        if not word.startswith(self._own):
            on_word()
        elif not self.are_heard:
            self.are_heard = True


def _notify(cursor: Any, word: str) -> None:
    cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, word))
