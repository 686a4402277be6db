"""Looking at what happened, and operating it: the part of /v1 that copies nothing by itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, jsonify, request, url_for

from webhook.callers import NotFound, as_time, configured, json_object, let_in, only_strings, service
from webhook.deletes import Breaker
from webhook.entries import LANES, STATES
from webhook.errors import BadRequest
from webhook.events import key_problem
from webhook.fleet import Fleet
from webhook.progress import LastHour, Progress, Recovery
from webhook.reconcile import shape
from webhook.rules import Rule
from webhook.sweeps import COUNTS, Sweep, Sweeps
from webhook.version import VERSION

FAILURES_MAX = 1000

operating = Blueprint("operating", __name__, url_prefix="/v1")


@operating.before_request
def _authorize() -> None:
    let_in(lambda web: web.api_token, name="API_TOKEN")


@operating.get("/entries/<rule>/<key:key>")
def entry(rule: str, key: str) -> Response:
    """Everything known about one key, with its latest attempts."""
    found = None if key_problem(key) or key_problem(rule) else service().ledger.entry(rule, key)
    if found is None:
        raise NotFound("nobody has asked for that key yet", hint="POST /v1/replicate copies it now.")
    return jsonify(found)


@operating.get("/failures")
def failures() -> Response:
    """Failed entries in key order, narrowed by `rule`, `prefix` and `reason`; at most 1,000."""
    return jsonify(failures=service().ledger.failures(**_failed(request.args), limit=FAILURES_MAX))


@operating.post("/failures/retry")
def retry_failures() -> Response:
    """Makes failed entries waiting again; the JSON body narrows as in GET /v1/failures."""
    return jsonify(retried=service().ledger.revive(**_failed(json_object(may_be_empty=True))))


def _failed(asked: Any) -> dict[str, Any]:
    narrowed = only_strings(dict(asked.items()), ("rule", "prefix", "reason"))
    return {
        "rule": narrowed.get("rule"),
        "prefix": narrowed.get("prefix", ""),
        "error_code": narrowed.get("reason"),
    }


# ── status ───────────────────────────────────────────────────────────────────────────────────────────


@operating.get("/status")
def status() -> Response:
    """How far the target is complete, what is to be done, and who does it."""
    ledger = service().ledger
    counts = ledger.counts_by_rule()
    none = {state: dict.fromkeys(LANES, 0) for state in STATES}
    return jsonify(
        version=VERSION,
        entries=counts.get(None, none),
        quarantined=ledger.quarantined(),
        workers=[
            {
                **asdict(each),
                "host": each.host,
                "pid": each.pid,
                "started_at": as_time(each.started_at),
                "seen_at": as_time(each.seen_at),
            }
            for each in Fleet(ledger).members()
        ],
        rules=_rules_status(counts, none),
    )


def _rules_status(counts: dict[Any, Any], none: dict[str, Any]) -> dict[str, Any]:
    """Of the rules in force whose buckets are named outright, and of those that were seen at work."""
    ledger = service().ledger
    sweeps, progress = Sweeps(ledger), Progress(ledger)
    breakers = service().deletes.breakers()
    rules = _known_rules(list(breakers))
    # before the entries: what a sweep put is seen, then
    proofs = sweeps.last_proofs({rule.name: shape(rule) for rule in rules})
    recovery = progress.recovery([rule.name for rule in rules], proofs)
    hours, missed = progress.last_hour(), progress.events_missed()
    open_sweeps = {sweep.rule: sweep for sweep in sweeps.unfinished()}
    return {
        rule.name: {
            **_where(rule),
            **_recovery(recovery[rule.name], proofs.get(rule.name)),
            "last_hour": _hour(hours.get(rule.name, LastHour())),
            "entries": counts.get(rule.name, none),
            "events_missed": missed.get(rule.name, 0),
            "sweep": sweep_facts(open_sweeps.get(rule.name) or proofs.get(rule.name)),
            "deletes": _deletes(rule, breakers.get(rule.name)),
        }
        for rule in rules
    }


def _known_rules(seen: list[str]) -> list[Rule]:
    rules = service().sides.rules
    named = rules.of_buckets(rules.literal_buckets)
    others = [rule for name in seen if (rule := rules.named(name))]
    return list({rule.name: rule for rule in (*named, *others)}.values())


def _where(rule: Rule) -> dict[str, str]:
    return {
        "source": f"{rule.source_bucket}/{rule.prefix}",
        "target": f"{rule.target}:{rule.target_bucket}/{rule.target_prefix}",
    }


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


# ── sweeps ───────────────────────────────────────────────────────────────────────────────────────────


@operating.post("/sweeps")
def ask_for_sweeps() -> tuple[Response, int]:
    """Asks for sweeps now; the JSON body narrows by `rule` and `prefix`, an empty one means all."""
    asked = only_strings(json_object(may_be_empty=True), ("rule", "prefix"))
    sides, sweeps = service().sides, Sweeps(service().ledger)
    rules = sides.concrete() if "rule" not in asked else [_rule(asked["rule"])]
    sweeps.register({rule.name: shape(rule) for rule in rules})
    wanted = [sweeps.request(rule.name, prefix=asked.get("prefix", ""), cause="request") for rule in rules]
    return jsonify(sweeps=[sweep_facts(each) for each in wanted]), 202


@operating.get("/sweeps")
def list_sweeps() -> Response:
    """The latest sweeps, newest first; `rule` narrows."""
    asked = only_strings(dict(request.args.items()), ("rule",))
    found = Sweeps(service().ledger).latest(rule=asked.get("rule"))
    return jsonify(sweeps=[sweep_facts(each) for each in found])


@operating.get("/sweeps/<int(max=2147483647):number>")
def one_sweep(number: int) -> Response:
    """One sweep: how far it has come, and what it found."""
    found = Sweeps(service().ledger).get(number)
    if found is None:
        raise NotFound("there is no such sweep, or it is long over", hint="GET /v1/sweeps lists them.")
    return jsonify(sweep_facts(found))


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
    return facts | {"error": sweep.error, "link": url_for("operating.one_sweep", number=sweep.id)}


def _rule(name: str) -> Rule:
    found = service().sides.rules.named(name)
    if found is None:
        names = ", ".join(rule.name for rule in configured().rules)
        raise BadRequest(
            f"there is no rule {name!r}",
            hint=f"The rules are: {names}. One with several buckets is named rule.bucket.",
        )
    return found


# ── deletes ──────────────────────────────────────────────────────────────────────────────────────────


@operating.post("/deletes/approve")
def approve_deletes() -> Response:
    """Lets deletes that were held back go, each after a fresh look at the source; `rule` narrows."""
    return jsonify(approved={name: service().deletes.approve(name) for name in _asked_rules()})


@operating.post("/deletes/discard")
def discard_deletes() -> Response:
    """Keeps the copies whose deletes were held back; `rule` narrows."""
    return jsonify(discarded={name: service().deletes.discard(name) for name in _asked_rules()})


def _asked_rules() -> list[str]:
    asked = only_strings(json_object(may_be_empty=True), ("rule",))
    breakers = service().deletes.breakers()
    if "rule" in asked:
        return [_rule(asked["rule"]).name]
    return [name for name, breaker in breakers.items() if breaker.tripped_at or breaker.held]
