"""How fast a target is asked: what it can take, for all processes together; and less while it is busy.

Two kinds of limits, and every request to a target passes both:

    Rate     so many requests, or bytes of object data, a second, as the settings say; all processes that
             share a ledger share it: each reserves a span of time ahead and spends it by itself
    AtOnce   so many requests at the same time, of this process; there is none until the target says that it
             has too much to do, or says nothing at all

A request that waits looks at its permit all the while, so that a copy whose lease has ended waits no more.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import sqlalchemy as sa
import structlog

from webhook.compiled import insert_or
from webhook.errors import LedgerUnavailable, Place, StoreError, StoreUnavailable
from webhook.ledger import Ledger
from webhook.tables import SLOTS

MB = 1_000_000
BATCH_S = 0.2
"""Reserved at once, at most: so a process costs the ledger a few statements a second."""
BURST_S = 0.1
"""What was not used stays good for this long: it makes up for a late reservation."""
AHEAD_MAX_S = 60.0
"""Further ahead than this, no number of processes can have reserved: the clock was set back."""
SLICE_S = 0.2
"""A request that waits looks this often whether it is still wanted."""
PAUSE_MAX_S = 5.0
"""A longer Retry-After is not waited for here: the entry is tried again after it, and its thread is free."""
QUEUE_MAX_S = 60.0
"""How long a request waits for others of this process to end."""
LEDGER_WAIT_S, LEDGER_RETRY_S = 10.0, 0.5
"""Without the ledger nobody knows how much the others send, and nothing that is copied can be settled: so a
request waits for it, and is given up where it does not come back."""
_NOTHING_S = 1e-9

log = structlog.get_logger("webhook.pace")


class Right(Protocol):
    """The right to send a request, which may end while it waits."""

    def check(self) -> None:
        """Raises LeaseLost unless it may still be sent."""


class Slots(Protocol):
    """Gives away time: each second of a name once."""

    def reserve(self, name: str, length_s: float) -> float:
        """Reserves the next span of this length; gives in how many seconds it begins, negative where it has
        begun, by BURST_S at most. Raises: LedgerUnavailable.
        """


class LocalSlots:
    """Slots of one process alone. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given_until: dict[str, float] = {}

    def reserve(self, name: str, length_s: float) -> float:
        """As Slots has it; raises nothing."""
        with self._lock:
            now = time.monotonic()
            begin = max(self._given_until.get(name, -math.inf), now - BURST_S)
            self._given_until[name] = begin + length_s
        return begin - now


class LedgerSlots:
    """Slots that all processes on a ledger share, by its clock. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def reserve(self, name: str, length_s: float) -> float:
        """As Slots has it."""
        now = self._ledger.clock()
        given, earliest = SLOTS.c.given_until, now - BURST_S
        begin = sa.case((given < earliest, earliest), (given > now + AHEAD_MAX_S, now), else_=given)
        first = insert_or(self._ledger.dialect, SLOTS).values(name=name, given_until=earliest + length_s)
        taken = first.on_conflict_do_update(
            index_elements=[SLOTS.c.name], set_={"given_until": begin + length_s}
        )
        rows = self._ledger.run(taken.returning(given), durable=False)
        return float(rows[0][0]) - length_s - now


class _Patience:
    """How one request waits."""

    def __init__(self, right: Right | None) -> None:
        self._right = right

    def check(self) -> None:
        """Raises LeaseLost where nobody wants the request any more."""
        if self._right:
            self._right.check()

    def until(self, moment: float) -> None:
        """Sleeps until then, a monotonic time. Raises as `check` does."""
        while (left_s := moment - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left_s, SLICE_S))

    @contextlib.contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Waits for a lock, and holds it. Raises as `check` does."""
        while not lock.acquire(timeout=SLICE_S):
            self.check()
        try:
            yield
        finally:
            lock.release()


class Rate:
    """So much of something a second. Thread-safe: requests go one after the other."""

    def __init__(self, name: str, per_s: float, slots: Slots) -> None:
        self._name = name
        self._per_s = per_s
        self._slots = slots
        self._turn = threading.Lock()
        self._waiting = threading.Lock()
        self._wanted_s = 0.0
        self._next_at = self._end_at = 0.0
        """The time that is reserved and not spent, monotonic."""
        self._reserved_s = 0.0

    def wait(self, amount: float, patience: _Patience) -> None:
        """Returns when so much may be sent. Raises: LeaseLost, LedgerUnavailable."""
        due_s = amount / self._per_s
        with self._wanting(due_s), patience.holding(self._turn):
            while due_s > _NOTHING_S:
                if self._left_s() <= _NOTHING_S:
                    self._reserve(due_s, patience)
                patience.until(self._next_at)
                spent_s = min(due_s, self._end_at - self._next_at)
                self._next_at += spent_s
                due_s -= spent_s

    @contextlib.contextmanager
    def _wanting(self, due_s: float) -> Iterator[None]:
        with self._waiting:
            self._wanted_s += due_s
        try:
            yield
        finally:
            with self._waiting:
                self._wanted_s -= due_s

    def _left_s(self) -> float:
        """What is left; time that has passed unused is lost."""
        passed = time.monotonic() - BURST_S
        if self._next_at < passed:
            self._next_at = min(passed, self._end_at)
            self._reserved_s = 0.0
        return self._end_at - self._next_at

    def _reserve(self, due_s: float, patience: _Patience) -> None:
        """As much as is waited for; twice the last time's, where that was used up."""
        length_s = min(BATCH_S, max(due_s, self._wanted_s, 2 * self._reserved_s))
        until = time.monotonic() + LEDGER_WAIT_S
        while True:
            now = time.monotonic()
            try:
                begins_in_s = self._slots.reserve(self._name, length_s)
                break
            except LedgerUnavailable:
                if now >= until:
                    raise
                patience.until(now + LEDGER_RETRY_S)
        self._next_at = now + begins_in_s
        self._end_at = self._next_at + length_s
        self._reserved_s = length_s


class AtOnce:
    """How many requests of this process are under way at the same time. Thread-safe.

    Where the target has too much to do, half of what is under way; then one more for each time that all of
    those went well, until there were never as many at once.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._changed = threading.Condition()
        self._under_way = 0
        self._most = 0
        self._went_well = 0
        self._halved_at = self._silent_until = -math.inf
        self.limit: int | None = None
        """None: as many as there are."""

    def enter(self, place: Place, patience: _Patience) -> None:
        """Returns when one more may begin; `leave` ends it. Raises: StoreUnavailable, LeaseLost."""
        until = time.monotonic() + QUEUE_MAX_S
        while not self._has_entered():
            patience.check()
            if time.monotonic() >= until:
                raise StoreUnavailable(
                    f"is busy: at most {self.limit} at once are sent now, and this one waited "
                    f"{QUEUE_MAX_S:.0f} s for its turn",
                    place,
                )

    def keep_silence(self, place: Place, patience: _Patience) -> bool:
        """Waits until the target may be asked again; gives whether that was so at once. Raises as `enter`."""
        left_s = self._silent_until - time.monotonic()
        if left_s > PAUSE_MAX_S:
            raise StoreUnavailable(
                f"asked not to be asked for another {left_s:.0f} s", place, retry_after_s=left_s
            )
        patience.until(self._silent_until)
        return left_s <= 0

    def leave(self, *, began_at: float | None, error: BaseException | None) -> None:
        """One has ended, in this error if any. `began_at`: a monotonic time, None where it was not sent."""
        with self._changed:
            if began_at is not None and isinstance(error, StoreUnavailable):
                self._silent_until = max(self._silent_until, time.monotonic() + (error.retry_after_s or 0.0))
                if error.is_busy and began_at > self._halved_at:
                    self._halve(error)
            elif began_at is not None and (error is None or isinstance(error, StoreError)):
                self._grow()
            self._under_way -= 1
            self._changed.notify_all()

    def _has_entered(self) -> bool:
        """Waits a slice at most."""
        with self._changed:
            if not self._changed.wait_for(self._has_room, SLICE_S):
                return False
            self._under_way += 1
            self._most = max(self._most, self._under_way)
            return True

    def _has_room(self) -> bool:
        return self.limit is None or self._under_way < self.limit

    def _halve(self, error: StoreUnavailable) -> None:
        self._halved_at, self._went_well = time.monotonic(), 0
        lower = max(1, min(self._under_way, self.limit or self._under_way) // 2)
        if lower != self.limit:
            self.limit = lower
            log.warning("target is busy", target=self._target, at_once=lower, error=error.message)

    def _grow(self) -> None:
        if self.limit is None:
            return
        self._went_well += 1
        if self._went_well < self.limit:
            return
        self._went_well = 0
        self.limit = self.limit + 1 if self.limit < self._most else None
        if self.limit is None:
            log.info("target is busy no more", target=self._target)


class Turn:
    """One request's place among those under way. End it."""

    def __init__(self, at_once: AtOnce | None = None) -> None:
        """`at_once`: None where nothing is limited."""
        self._at_once = at_once
        self._began_at = time.monotonic()

    def end(self, error: BaseException | None = None) -> None:
        """The request has ended, in this error if any. Safe to repeat."""
        at_once, self._at_once = self._at_once, None
        if at_once:
            at_once.leave(began_at=self._began_at, error=error)


class Pace:
    """All limits of one target in this process. Thread-safe."""

    def __init__(
        self, target: str, *, max_rps: float = 0, max_mbps: float = 0, slots: Slots | None = None
    ) -> None:
        """`max_rps`: requests a second; `max_mbps`: megabytes (10^6 bytes) of object data sent a second; 0:
        no limit. They hold for all that share `slots`; None: for this process.
        """
        slots = slots or LocalSlots()
        self._at_once = AtOnce(target)
        self._requests = Rate(f"{target} requests", max_rps, slots) if max_rps else None
        self._bytes = Rate(f"{target} bytes", max_mbps * MB, slots) if max_mbps else None

    @property
    def limit(self) -> int | None:
        """How many requests this process sends at once at most now; None: no limit is in force."""
        return self._at_once.limit

    def turn(self, place: Place, right: Right | None = None, *, length: int = 0) -> Turn:
        """Returns when a request with so much object data may be sent; end the turn with it.

        Raises: LeaseLost where `right` ends meanwhile, StoreUnavailable where it is better tried again later,
        LedgerUnavailable.
        """
        patience = _Patience(right)
        self._at_once.enter(place, patience)
        try:
            self._at_once.keep_silence(place, patience)
            if self._bytes and length:
                self._bytes.wait(length, patience)
            while True:
                if self._requests:
                    self._requests.wait(1, patience)
                if self._at_once.keep_silence(place, patience):
                    return Turn(self._at_once)
        except BaseException as error:
            self._at_once.leave(began_at=None, error=error)
            raise

    @contextlib.contextmanager
    def request(self, place: Place, right: Right | None = None) -> Iterator[None]:
        """The block is one request without object data. Raises as `turn` does."""
        turn = self.turn(place, right)
        try:
            yield
        except BaseException as error:
            turn.end(error)
            raise
        turn.end()
