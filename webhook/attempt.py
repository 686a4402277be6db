"""One attempt at one entry: claim → copy → ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from webhook import retry
from webhook.clocks import elapsed_s
from webhook.copier import Copier, Known, Outcome, OutcomeKind
from webhook.deletes import Deletes
from webhook.entries import LIVE, Buried, Claim, Deferred, Ending, Held, Parked, Released, Retried, Settled
from webhook.errors import LeaseLost, ReplicatorError, StoreError
from webhook.ledger import Ledger
from webhook.meter import Meter
from webhook.pauses import Pauses
from webhook.rules import Rule, Rules

log = structlog.get_logger("webhook.attempt")


class Lease:
    """A claim's right to write, as seen by the copy that runs under it. Thread-safe."""

    def __init__(self, claim: Claim, ledger: Ledger, *, taken_at: float, lease_s: float) -> None:
        self._claim = claim
        self._ledger = ledger
        self._lease_s = lease_s
        self._ends_at = taken_at + lease_s
        self._is_over = False

    def check(self) -> None:
        """Raises LeaseLost unless the copy may still write."""
        if self._is_over or elapsed_s() >= self._ends_at:
            raise LeaseLost(f"the lease on {self._claim.key!r} is over")

    def note_upload(self, note: str | None) -> None:
        """Keeps a note of the upload under way with the entry."""
        self._ledger.note_upload(self._claim, note)

    def prolong(self, asked_at: float) -> None:
        """The ledger prolonged the lease; `asked_at` is the elapsed time before it was asked to."""
        self._ends_at = asked_at + self._lease_s

    def end(self) -> None:
        """No write may begin from now on."""
        self._is_over = True


@dataclass(kw_only=True)
class Task:
    """A claim in the hands of this process, and when its copy ran, in seconds since 1970."""

    claim: Claim
    lease: Lease
    began_at: float = 0.0
    ended_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Means:
    """What attempts of one process are made with; `copiers` by the name of their target."""

    rules: Rules
    copiers: Mapping[str, Copier]
    deletes: Deletes
    pauses: Pauses
    attempts_max: int
    clock: Callable[[], float]
    """The ledger's."""


def attempt(task: Task, means: Means) -> Ending:
    """Copies one claimed entry. Never raises: whatever a copy meets is the entry's, not the thread's."""
    task.began_at = means.clock()
    ending = _attempt(task, means)
    task.ended_at = means.clock()
    return ending


def _attempt(task: Task, means: Means) -> Ending:
    claim = task.claim
    if claim.attempts > means.attempts_max:
        text = f"{claim.attempts - 1} workers died or hung on this entry"
        return Buried(claim=claim, error_code="worker_lost", error=text)
    try:
        if means.pauses.is_paused(claim.rule):
            return Parked(claim=claim)
        task.lease.check()  # it may have waited for its turn for long
        rule = _rule(means.rules, claim)
        copier = means.copiers[rule.target]
        outcome = copier.copy_object(rule, claim.key, permit=task.lease, known=_known(claim))
        if outcome.kind is OutcomeKind.GONE and rule.deletes:
            return means.deletes.ending(claim, rule, copier, task.lease)
        return _settled(claim, outcome)
    except LeaseLost:
        # Ended because the process stops: it is handed back. Lost to another worker: the ledger ignores it.
        return Released(claim=claim)
    except Exception as error:  # noqa: BLE001
        return _after(claim, error, attempts_max=means.attempts_max)


def _rule(rules: Rules, claim: Claim) -> Rule:
    rule = rules.named(claim.rule)
    if rule is None:
        raise ReplicatorError(
            f"there is no rule {claim.rule!r} any more", hint="Bring the rule back, or drop its entries."
        )
    return rule


def _after(claim: Claim, error: Exception, *, attempts_max: int) -> Ending:
    if not isinstance(error, ReplicatorError):
        log.error("unexpected error", key=claim.key, exc_info=error)
    code, text = _describe(error)
    decision = retry.decide(
        error, attempts=claim.attempts, attempts_max=attempts_max, backoff_s=claim.backoff_s
    )
    if isinstance(decision, retry.Bury):
        return Buried(claim=claim, error_code=code, error=text)
    return Retried(
        claim=claim,
        after_s=decision.after_s,
        backoff_s=decision.backoff_s,
        counts=decision.counts,
        error_code=code,
        error=text,
    )


def _known(claim: Claim) -> Known:
    return Known(
        source_etag=claim.source_etag or "",
        target_etag=claim.target_etag or "",
        lost=frozenset(json.loads(claim.lost)),
        upload=claim.upload or "",
        is_first=claim.attempts == 1 and claim.history == "[]",
        is_retry=claim.attempts > 1,
    )


def _settled(claim: Claim, outcome: Outcome) -> Settled:
    if outcome.kind is OutcomeKind.GONE:  # what was copied before is at the target still, and this service's
        return Settled(
            claim=claim,
            outcome=str(outcome.kind),
            source_etag=claim.source_etag,
            target_etag=claim.target_etag,
        )
    return Settled(
        claim=claim,
        outcome=str(outcome.kind),
        size=outcome.size,
        source_etag=outcome.source_etag,
        source_version=outcome.source_version,
        target_etag=outcome.target_etag,
        cid=outcome.cid,
        lost=outcome.lost,
        bytes_copied=outcome.bytes_copied,
    )


def _describe(error: Exception) -> tuple[str, str]:
    """(code, text) for the ledger: what a person needs, no value that could be a secret."""
    if isinstance(error, ReplicatorError):
        hint = f" {error.hint}" if error.hint else ""
        side = f"{error.place.side}_" if isinstance(error, StoreError) else ""
        return f"{side}{error.code}", f"{error.message}.{hint}"
    return "unexpected", f"{type(error).__name__}, see the log"


def log_ending(task: Task, ending: Ending, *, settled_at: float, is_lost: bool = False) -> None:
    """The one line of log for an attempt whose ending is on record, since when; `is_lost`: it is not, because
    somebody else had claimed the entry meanwhile.
    """
    claim = task.claim
    facts: dict[str, Any] = {
        "key": claim.key,
        "rule": claim.rule,
        "began_at": round(task.began_at, 4),
        "ms": round((task.ended_at - task.began_at) * 1000, 1),
        "attempts": claim.attempts,
        "claim": claim.number,
    }
    if is_lost:
        log.warning("claim lost", ending=type(ending).__name__.lower(), **facts)
        return
    match ending:
        case Settled():
            lag_ms = round((settled_at - claim.event_at) * 1000, 1)
            log.info("settled", outcome=ending.outcome, bytes=ending.bytes_copied, lag_ms=lag_ms, **facts)
        case Retried():
            log.warning("will retry", error=ending.error, after_s=round(ending.after_s, 2), **facts)
        case Buried():
            log.error("failed", error=ending.error, **facts)
        case Released():
            log.info("handed back", **facts)
        case Deferred():
            log.info("gone at the source", looks_again_s=round(ending.after_s, 2), **facts)
        case Held():
            log.warning("delete held back", **facts)
        case Parked():
            log.info("rule is paused", **facts)


def count_ending(meter: Meter, task: Task, ending: Ending, *, settled_at: float) -> None:
    """Counts what came of an attempt whose ending is on record, since when."""
    rule = ending.claim.rule
    match ending:
        case Settled():
            meter.count("copies", rule=rule, outcome=ending.outcome)
            meter.observe("copy_duration_seconds", task.ended_at - task.began_at, rule=rule)
            if ending.bytes_copied:
                meter.count("copied_bytes", ending.bytes_copied, rule=rule)
            if ending.claim.lane == LIVE:
                meter.observe("replication_seconds", settled_at - ending.claim.event_at, rule=rule)
            for trait in ending.lost:  # without its value, of which there may be any number
                meter.count("lost_attributes", rule=rule, attribute=trait.partition(":")[0])
        case Retried():
            meter.count("retries", rule=rule, reason=ending.error_code)
        case Buried():
            meter.count("failures", rule=rule, reason=ending.error_code)
        case _:
            pass
