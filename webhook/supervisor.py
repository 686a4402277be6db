"""Several worker processes under one: started, started anew when they die, stopped together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

POLL_S = 0.2
RESTART_FIRST_S, RESTART_MAX_S = 1.0, 30.0
"""Before a process that died is started anew; longer each time it dies young."""
YOUNG_S = 60.0

log = structlog.get_logger("webhook.supervisor")


@dataclass(kw_only=True)
class _Child:
    """One place for a process, and who has it now."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    starts_at: float = 0.0
    pause_s: float = RESTART_FIRST_S


@dataclass(kw_only=True)
class Supervisor:
    """Keeps `count` processes of one command alive until it is asked to stop.

    Each gets a pipe as its standard input that ends when this process does, however that happens.
    """

    command: Sequence[str]
    count: int
    _is_stopping: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Has all processes drain; `run` returns when they have. Safe in a signal handler."""
        self._is_stopping.set()

    def run(self) -> int:
        """Until `stop`. Gives the exit code: 0 where all processes ended well."""
        children = [_Child(number=number) for number in range(self.count)]
        _on_signals(self.stop, children)
        while not self._is_stopping.wait(POLL_S):
            for child in children:
                self._look_after(child)
        return self._drain([child.process for child in children if child.process])

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.starts_at:
                child.process, child.started_at = self._start(), now
        elif (code := child.process.poll()) is not None:
            lived_s = now - child.started_at
            pause_s = RESTART_FIRST_S if lived_s > YOUNG_S else child.pause_s
            child.starts_at, child.process = now + pause_s, None
            child.pause_s = min(RESTART_MAX_S, pause_s * 2)
            log.warning("worker process died", place=child.number, code=code, starts_again_s=pause_s)

    def _start(self) -> subprocess.Popen[bytes]:
        """In a session of its own: Ctrl-C is for this process, which passes it on once."""
        return subprocess.Popen(  # noqa: S603 - the command is this program
            self.command, stdin=subprocess.PIPE, start_new_session=True
        )

    def _drain(self, processes: Sequence[subprocess.Popen[bytes]]) -> int:
        for process in processes:
            process.terminate()
        codes = [process.wait() for process in processes]
        log.info("worker processes stopped", codes=codes)
        return 0 if not any(codes) else 1


def _on_signals(stop: Callable[[], None], children: Sequence[_Child]) -> None:
    """SIGTERM and SIGINT begin to stop; a second one ends all processes at once."""
    given: list[int] = []

    def handle(number: int, _frame: object) -> None:
        given.append(number)
        if len(given) > 1:
            for child in children:
                if child.process:
                    with contextlib.suppress(ProcessLookupError):
                        child.process.kill()
            os._exit(128 + number)
        stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def call_when_parent_is_gone(call: Callable[[], None]) -> None:
    """For a process that a Supervisor started: `call` runs in a thread when its standard input ends."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 1):
                pass
        call()

    threading.Thread(target=wait, name="parent", daemon=True).start()
