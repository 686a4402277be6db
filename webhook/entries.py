"""What passes through the ledger: requests, claims, and the ways a claim ends.

The words: an entry is the ledger's row for one (rule, key). Its `generation` says how many times it was
asked for; a claim is a worker's right to work on it; an ending is what came of that.
"""

from __future__ import annotations

from dataclasses import dataclass

WAITING, RUNNING, SETTLED, FAILED, HELD = "waiting", "running", "settled", "failed", "held"
STATES = (WAITING, RUNNING, SETTLED, FAILED, HELD)
LIVE, BACKFILL = "live", "backfill"
LANES = (LIVE, BACKFILL)
EVENT_ID_CHARS = 16
ETAG_MAX_CHARS = 64
"""Longer ones are not remembered: 32 hex digits, "-" and a count of parts are what S3 gives."""
PARKED_AT = 1e11
"""When an entry of a paused rule is due: in the year 5138, or when the rule is resumed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Somebody asks for the target to be made equal to the source at one key."""

    rule: str
    key: str
    event_id: str = ""
    """16 characters that tell a repeated event; "" for a request that is not an event."""
    event_at: float = 0.0
    """When the source changed, as far as is known; 0.0: it is not known."""
    is_removal: bool = False
    """Whether an event tells that the source's object was removed."""
    etag: str = ""
    """The source's ETag, as an event or a listing tells it; "": it is not known."""
    asked_at: float | None = None
    """Since when the target may lag behind at this key; None: since `event_at`, or now."""
    missed_at: float | None = None
    """When a sweep found what no event had told of; None: it is no such request."""
    trace: str | None = None
    """W3C traceparent of the trace it belongs to; None: to none."""


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A record of a notification that nobody can act on."""

    record_id: str
    reason: str
    raw: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's right to work on one entry until its lease runs out, and what was known of it then."""

    rule: str
    key: str
    generation: int
    number: int
    worker: str
    lane: str
    attempts: int
    """Including this one."""
    backoff_s: float
    event_at: float
    claimed_at: float
    source_etag: str | None
    target_etag: str | None
    upload: str | None
    lost: str
    """JSON list, as `history`."""
    history: str
    gone_at: float | None = None
    """When the source was found to have no such key any more, where a delete is pending."""
    removal_told: int = 0
    """1: an event told that the source's object was removed."""
    told_etags: str = ""
    """The latest ETags that the source was told to have, each followed by a space."""
    settled_at: float | None = None
    """When a claim of this entry was last settled; None: none ever was."""
    trace: str | None = None
    """W3C traceparent of the request that the claim serves; None: it belongs to no trace."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The end of a claim: the target now is what it should be."""

    claim: Claim
    outcome: str
    size: int | None = None
    source_etag: str | None = None
    source_version: str | None = None
    target_etag: str | None = None
    cid: str | None = None
    lost: tuple[str, ...] = ()
    bytes_copied: int = 0
    gone_at: float | None = None
    """For a delete that was carried out: when the source was found to have no such key."""


@dataclass(frozen=True, kw_only=True)
class Retried:
    """The end of a claim: again, in `after_s` seconds."""

    claim: Claim
    after_s: float
    backoff_s: float
    counts: bool
    error_code: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Buried:
    """The end of a claim: into the failed ones."""

    claim: Claim
    error_code: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Released:
    """The end of a claim that was not worked on: handed back, due at once."""

    claim: Claim


@dataclass(frozen=True, kw_only=True)
class Deferred:
    """The end of a claim that found the source without the key: looked at again before a delete."""

    claim: Claim
    after_s: float
    is_back: bool = False
    """Whether the source has the key again, so that no delete is pending any more."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """The end of a claim whose delete waits for a person."""

    claim: Claim


@dataclass(frozen=True, kw_only=True)
class Parked:
    """The end of a claim whose rule is paused: due again when the rule is resumed."""

    claim: Claim


Ending = Settled | Retried | Buried | Released | Deferred | Held | Parked


def is_own(etag: str, target_etag: str | None, told_etags: str) -> bool:
    """Whether the target's object with this ETag is a copy on record, or holds what the source was told to
    have: its copy may have been written and the answer lost. The last of `told_etags` may be cut off.
    """
    return etag != "" and (etag == target_etag or etag in told_etags.split(" ")[:-1])
