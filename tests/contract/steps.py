"""Short words for what the ledger's contract is spoken in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from webhook.entries import Buried, Claim, Deferred, Held, Released, Request, Retried, Settled
from webhook.ledger import Ledger

RULE = "default"
LEASE_S = 60.0


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def ask(key: str = "k", event: int | None = None, *, rule: str = RULE, **more: Any) -> Request:
    """A request; `event` numbers the event it comes from."""
    event_id = "" if event is None else f"{event:016x}"
    return Request(rule=rule, key=key, event_id=event_id, **more)


def take(ledger: Ledger, limit: int = 100, *, worker: str = "w", lease_s: float = LEASE_S) -> list[Claim]:
    """Claims what is due."""
    return ledger.claim(limit, worker=worker, lease_s=lease_s)


def take_one(ledger: Ledger, key: str = "k", *, worker: str = "w") -> Claim | None:
    """Claims one entry, due or not."""
    return ledger.claim_one(RULE, key, worker=worker, lease_s=LEASE_S)


def settled(claim: Claim, outcome: str = "replicated", **more: Any) -> Settled:
    """A good end."""
    return Settled(claim=claim, outcome=outcome, **more)


def retried(claim: Claim, after_s: float = 30.0, *, counts: bool = True) -> Retried:
    """A failed attempt that is followed by another."""
    return Retried(
        claim=claim,
        after_s=after_s,
        backoff_s=after_s,
        counts=counts,
        error_code="target_store_failed",
        error="500",
    )


def buried(claim: Claim, error_code: str = "target_store_refused") -> Buried:
    """A bad end."""
    return Buried(claim=claim, error_code=error_code, error="it said no")


def released(claim: Claim) -> Released:
    """No end at all."""
    return Released(claim=claim)


def deferred(claim: Claim, after_s: float = 60.0) -> Deferred:
    """The source has no such key: looked at again before a delete."""
    return Deferred(claim=claim, after_s=after_s)


def held(claim: Claim) -> Held:
    """Its delete waits for a person."""
    return Held(claim=claim)


def bring_to(ledger: Ledger, state: str, request: Request) -> Claim | None:
    """Puts a request and takes its entry to a state."""
    ledger.put([request])
    if state == "waiting":
        return None
    claim = ledger.claim_one(request.rule, request.key, worker="w", lease_s=LEASE_S)
    assert claim is not None
    if state == "settled":
        ledger.finish([settled(claim)])
    if state == "failed":
        ledger.finish([buried(claim)])
    if state == "held":
        ledger.finish([deferred(claim, 0.0)])
        claim = ledger.claim_one(request.rule, request.key, worker="w", lease_s=LEASE_S)
        assert claim is not None
        ledger.finish([held(claim)])
    return claim


def row(ledger: Ledger, key: str = "k", rule: str = RULE) -> dict[str, Any]:
    """An entry that must be there."""
    found = ledger.entry(rule, key)
    assert found is not None
    return dict(found)


def removal(key: str = "k", event: int = 1, *, rule: str = RULE, event_at: float = 0.0) -> Request:
    """An event that tells of the removal of the source's object."""
    return replace(ask(key, event, rule=rule, event_at=event_at), is_removal=True)


def missed(key: str = "k", *, at: float, rule: str = RULE, event_at: float = 0.0) -> Request:
    """What a sweep found and no event had told of."""
    return replace(ask(key, rule=rule, event_at=event_at), missed_at=at)
