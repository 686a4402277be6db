"""Times that processes agree on, on however many machines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from webhook.errors import LedgerUnavailable

GOOD_FOR_S = 60.0
"""The server is asked for its time this often."""
TRIED_AGAIN_S = 5.0
"""And while it does not answer."""
DRIFT = 1e-4
"""What two clocks may run apart, of the time that passes: ten times what machines' quartzes do."""
GOOD_ENOUGH_S = 0.05
"""An answer this exact is taken whatever was known before: the server's own clock may have been set."""
TRIES_MAX = 5

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed_s() -> float:
    """Seconds since some moment; goes on while the process is stopped and, on Linux, the machine asleep.

    Nobody can set it. Only differences mean anything.
    """
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


@dataclass(frozen=True)
class _Measured:
    """What the server's clock is ahead of `elapsed_s`; at a moment of the latter, to within `error_s`."""

    ahead_s: float
    error_s: float
    at: float

    def error_now_s(self) -> float:
        """Grows with time."""
        return self.error_s + (elapsed_s() - self.at) * DRIFT


class ServerClock:
    """Seconds since 1970 by a server's clock, without asking it each time. Thread-safe.

    `ask` gives the server's time. Calling the clock raises what `ask` does while it has never answered.
    """

    def __init__(self, ask: Callable[[], float]) -> None:
        self._ask = ask
        self._one_asks = threading.Lock()
        self._measured: _Measured | None = None
        self._asks_again_at = 0.0

    def __call__(self) -> float:
        """The server's time, to within half of a short round trip. Raises: LedgerUnavailable."""
        if self._measured is None:
            with self._one_asks:
                self._measured = self._measured or self._first()
        elif elapsed_s() >= self._asks_again_at and self._one_asks.acquire(blocking=False):
            try:
                self._measure_again(self._measured)
            finally:
                self._one_asks.release()
        return elapsed_s() + self._measured.ahead_s

    def _first(self) -> _Measured:
        self._asks_again_at = elapsed_s() + GOOD_FOR_S
        best = self._measure()
        for _ in range(TRIES_MAX - 1):
            if best.error_s > GOOD_ENOUGH_S:
                best = min(best, self._measure(), key=lambda each: each.error_s)
        return best

    def _measure_again(self, before: _Measured) -> None:
        self._asks_again_at = elapsed_s() + TRIED_AGAIN_S
        try:
            found = self._measure()
        except LedgerUnavailable:
            return
        if found.error_s <= max(GOOD_ENOUGH_S, before.error_now_s()):
            self._measured = found
            self._asks_again_at = elapsed_s() + GOOD_FOR_S

    def _measure(self) -> _Measured:
        asked_at = elapsed_s()
        told = self._ask()
        answered_at = elapsed_s()
        middle = (asked_at + answered_at) / 2
        return _Measured(ahead_s=told - middle, error_s=(answered_at - asked_at) / 2, at=middle)
