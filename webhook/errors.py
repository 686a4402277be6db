"""Every error this service raises on purpose.

    ReplicatorError
    ├── SettingsError          what is wrong with the environment, all of it at once
    ├── BadRequest             a caller sent something unusable
    ├── LedgerUnavailable      the ledger cannot commit now
    │   └── LedgerLost         its file was deleted or replaced: this process cannot go on with it
    ├── LedgerVersionError     the ledger's tables are from another version of this program
    ├── EventsUnavailable      events cannot be fetched now
    ├── LeaseLost              another worker may own the entry by now
    ├── StoreError             one of the two stores did not do what was asked
    │   ├── StoreUnavailable   no answer, or "slow down"
    │   ├── StoreFailed        an answer, but a fault on the store's side
    │   ├── StoreDenied        credentials, permissions or the bucket are wrong
    │   ├── StoreRefused       the store will never take this request
    │   ├── NoSuchKey          the bucket answers, the key is not in it
    │   ├── TargetChanged      the target has another object than the one that was to be replaced
    │   └── SourceChanged      the object was replaced while it was read
    └── IntegrityError         what arrived is not what was sent

Each class says by `advice` what a worker should do about it; `webhook.retry` turns that into a delay.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Advice(enum.Enum):
    """What an error means for the work that met it."""

    WAIT = "wait"  # not the object's fault: try again for as long as it takes
    RETRY = "retry"  # may pass: try again, up to the allowed number of attempts
    GIVE_UP = "give up"  # will not pass: keep the reason, wait for a person


class ReplicatorError(Exception):
    """Base of all; carries what a person needs to act.

    `code` is a stable word for programs, `hint` says what to do about it.
    """

    code = "unexpected"
    advice = Advice.RETRY

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(ReplicatorError):
    """The environment cannot be used; `problems` holds one sentence for each fault found."""

    code = "settings"
    advice = Advice.GIVE_UP

    def __init__(self, problems: Sequence[str]) -> None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(
            f"{len(problems)} setting(s) need attention:\n{lines}",
            hint="Copy .env.example to .env and fill it in, or set the variables in the environment.",
        )
        self.problems = tuple(problems)


class BadRequest(ReplicatorError):
    """A caller sent something that cannot be used."""

    code = "bad_request"
    advice = Advice.GIVE_UP


class LedgerUnavailable(ReplicatorError):
    """The ledger cannot be read or cannot commit at the moment; nothing was changed."""

    code = "ledger_unavailable"
    advice = Advice.WAIT


class LedgerLost(LedgerUnavailable):
    """The ledger that this process has open is not the one at its place any more; what it commits is lost."""

    code = "ledger_lost"


class LedgerVersionError(ReplicatorError):
    """The ledger's tables were written by a version of this program that this one does not know."""

    code = "ledger_version"
    advice = Advice.GIVE_UP


class EventsUnavailable(ReplicatorError):
    """NATS does not answer, does not let us in, or has no events for us to fetch."""

    code = "events_unavailable"
    advice = Advice.WAIT


class LeaseLost(ReplicatorError):
    """The worker's claim has run out or was taken over: it must not write to the target any more."""

    code = "lease_lost"
    advice = Advice.WAIT


@dataclass(frozen=True, kw_only=True)
class Place:
    """What was asked of which store: `side` is "source" or "target", `key` is "" for a whole bucket."""

    side: str
    operation: str
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        where = f"{self.bucket}/{self.key}" if self.key else self.bucket
        return f"{self.side} {self.operation} {where!r}"


class StoreError(ReplicatorError):
    """A store failed one operation.

    `store_code` is the store's own error code ("" where it gave none), `status` its HTTP status (None
    without an answer), `retry_after_s` what it asked for (None: nothing).
    """

    code = "store"

    def __init__(
        self,
        message: str,
        place: Place,
        *,
        store_code: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(f"{place}: {message}", hint=hint)
        self.place = place
        self.store_code = store_code
        self.status = status
        self.retry_after_s = retry_after_s


class StoreUnavailable(StoreError):
    """No answer, or the answer was to come back later (429, 503). `timed_out`: it was waited for in vain."""

    code = "store_unavailable"
    advice = Advice.WAIT

    def __init__(self, message: str, place: Place, *, timed_out: bool = False, **more: Any) -> None:
        super().__init__(message, place, **more)
        self.timed_out = timed_out

    @property
    def is_busy(self) -> bool:
        """Whether the store may have too much to do; a connection that is refused says nothing of that."""
        return self.timed_out or self.status is not None


class StoreFailed(StoreError):
    """The store answered with a fault of its own (5xx), or broke off in the middle."""

    code = "store_failed"


class StoreDenied(StoreError):
    """Credentials, permissions or the bucket are wrong. A person can mend it, so it is tried again."""

    code = "store_denied"


class StoreRefused(StoreError):
    """The store understood and will never accept this request."""

    code = "store_refused"
    advice = Advice.GIVE_UP


class NoSuchKey(StoreError):
    """The bucket answered that it has no such key."""

    code = "no_such_key"


class TargetChanged(StoreError):
    """The target does not have what was to be replaced, or has something where nothing was: look anew."""

    code = "changed"


class SourceChanged(StoreError):
    """The object was replaced while it was read: start over with the new one."""

    code = "source_changed"


class IntegrityError(ReplicatorError):
    """Bytes that were read or written are not the ones announced."""

    code = "integrity"
