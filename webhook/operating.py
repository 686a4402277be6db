"""Looking at what happened, and operating it: the part of /v1 that copies nothing by itself."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from webhook.callers import NotFound, configured, json_object, let_in, only_strings, service
from webhook.errors import BadRequest
from webhook.events import key_problem
from webhook.reconcile import shape
from webhook.rules import Rule
from webhook.status import facts, sweep_facts
from webhook.sweeps import Sweeps

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
    return jsonify(facts(service()))


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
