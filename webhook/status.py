"""How far the target is complete, what is to be done and who does it: the facts of GET /v1/status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from webhook.deletes import Breaker
from webhook.entries import LANES, PARKED_AT, STATES
from webhook.fleet import Fleet, Member
from webhook.progress import LastHour, Progress, Recovery
from webhook.reconcile import shape
from webhook.records import Counted, Counts
from webhook.rules import Rule
from webhook.service import Service
from webhook.sweeps import COUNTS, Sweep, Sweeps
from webhook.verdict import verdicts
from webhook.version import VERSION

_NONE = {state: dict.fromkeys(LANES, 0) for state in STATES}


def facts(service: Service) -> dict[str, Any]:
    """What GET /v1/status answers. Raises: LedgerUnavailable."""
    counted = service.records.counted()
    found = _facts(service, counted)
    return {"summary": verdicts(found, service.ledger.clock()), **found}


def _facts(service: Service, counted: Counted) -> dict[str, Any]:
    return {
        "version": VERSION,
        "entries": counted.counts.get(None, _NONE),
        "entries_counted_at": as_time(counted.at),
        "quarantined": service.ledger.quarantined(),
        "workers": [_worker(each) for each in Fleet(service.ledger).members()],
        "rules": _rules(service, counted.counts),
    }


def _worker(member: Member) -> dict[str, Any]:
    times = {"started_at": as_time(member.started_at), "seen_at": as_time(member.seen_at)}
    return {**asdict(member), "host": member.host, "pid": member.pid, **times}


def _rules(service: Service, counts: Counts) -> dict[str, Any]:
    """Of the rules in force whose buckets are named outright, and of those that were seen at work."""
    ledger, pauses = service.ledger, service.pauses.paused()
    sweeps, progress = Sweeps(ledger), Progress(ledger)
    breakers = service.deletes.breakers()
    rules = known_rules(service, list(breakers))
    # before the entries: what a sweep put is seen, then
    proofs = sweeps.last_proofs({rule.name: shape(rule) for rule in rules})
    recovery = progress.recovery([rule.name for rule in rules], proofs)
    hours, missed = progress.last_hour(), progress.events_missed()
    open_sweeps = {sweep.rule: sweep for sweep in sweeps.unfinished()}
    failures = _failures(service)
    return {
        rule.name: {
            **_where(rule),
            "paused_since": as_time(pauses.get(rule.name)),
            **_recovery(recovery[rule.name], proofs.get(rule.name)),
            "last_hour": _hour(hours.get(rule.name, LastHour())),
            "entries": counts.get(rule.name, _NONE),
            "events_missed": missed.get(rule.name, 0),
            "failures": failures.get(rule.name, []),
            "oldest": _oldest(service.records.oldest_waiting(rule.name)),
            "sweep": sweep_facts(open_sweeps.get(rule.name) or proofs.get(rule.name)),
            "deletes": _deletes(rule, breakers.get(rule.name)),
        }
        for rule in rules
    }


def known_rules(service: Service, seen: Sequence[str]) -> list[Rule]:
    """The rules in force whose buckets are named outright, and those of these names."""
    rules = service.sides.rules
    named = rules.of_buckets(rules.literal_buckets)
    others = [rule for name in seen if (rule := rules.named(name))]
    return list({rule.name: rule for rule in (*named, *others)}.values())


def _where(rule: Rule) -> dict[str, str]:
    return {
        "source": f"{rule.source_bucket}/{rule.prefix}",
        "target": f"{rule.target}:{rule.target_bucket}/{rule.target_prefix}",
    }


def _failures(service: Service) -> dict[str, list[dict[str, Any]]]:
    """rule → what its entries failed by, the most first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in service.records.reasons():
        found.setdefault(each["rule"], []).append(reason_facts(each))
    return found


def reason_facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Failed entries of one rule and reason, as the API tells of them."""
    return {**found, "since": as_time(found["since"] or None)}


def _oldest(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    due_at = None if found["due_at"] == PARKED_AT else found["due_at"]
    return {**found, "since": as_time(found["since"] or None), "due_at": as_time(due_at)}


def _recovery(found: Recovery, proof: Sweep | None) -> dict[str, Any]:
    return {
        "recovery_point": as_time(found.by_sweep),
        "proved_by": "sweep" if proof else None,
        "recovery_point_by_events": as_time(found.by_events),
        "lag_s": round(found.lag_s, 3),
    }


def _hour(found: LastHour) -> dict[str, Any]:
    lag = {name: getattr(found, f"{name}_s") for name in ("p50", "p95", "p99")}
    return {
        "objects": found.objects,
        "bytes": found.bytes,
        "lag_s": {name: None if value is None else round(value, 4) for name, value in lag.items()},
    }


def _deletes(rule: Rule, breaker: Breaker | None) -> dict[str, Any]:
    if breaker is None:
        return {"propagated": rule.deletes, "pending": 0, "held": 0, "breaker": None}
    tripped = {"tripped_at": as_time(breaker.tripped_at), "reason": breaker.reason}
    return {
        "propagated": rule.deletes,
        "pending": breaker.pending,
        "held": breaker.held,
        "breaker": tripped if breaker.tripped_at else None,
    }


def sweep_facts(sweep: Sweep | None) -> dict[str, Any] | None:
    """A sweep as the API tells of it."""
    if sweep is None:
        return None
    facts: dict[str, Any] = {
        name: getattr(sweep, name) for name in ("id", "rule", "prefix", "cause", "state", "cursor")
    }
    times = ("asked_at", "due_at", "started_at", "proves_at", "ended_at")
    facts |= {name: as_time(getattr(sweep, name)) for name in times}
    facts |= {name: getattr(sweep, name) for name in COUNTS}
    return facts | {"error": sweep.error, "link": f"/v1/sweeps/{sweep.id}"}


def as_time(at: float | None) -> str | None:
    """Seconds since 1970 as people and programs read it: "2026-11-24T23:59:59.123Z"."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
