"""Looking at what happened, and operating it: the part of /v1 that copies nothing by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, jsonify, request

from webhook.callers import NotFound, configured, json_object, let_in, only_strings, refuse_query, service
from webhook.entries import FAILED, STATES
from webhook.errors import BadRequest, StoreError
from webhook.events import key_problem
from webhook.paging import after_of, cursor_of, limit_of, moment_after
from webhook.quarantine import Quarantine
from webhook.reconcile import shape
from webhook.records import Page
from webhook.rules import Rule
from webhook.status import as_time, facts, known_rules, reason_facts, sweep_facts
from webhook.sweeps import Sweeps

QUARANTINE_LIMIT_MAX = 100
"""A record may be as large as a notification may be."""
QUERIES: Mapping[str, tuple[str, ...]] = {
    "entries": ("rule", "prefix", "contains", "state", "key", "limit", "cursor"),
    "failures": ("rule", "prefix", "reason", "limit", "cursor"),
    "failure_reasons": ("rule", "prefix"),
    "list_sweeps": ("rule",),
    "quarantine": ("limit", "cursor"),
}
"""View → the query parameters that it takes; the others take none."""

operating = Blueprint("operating", __name__, url_prefix="/v1")


@operating.before_request
def _authorize() -> None:
    let_in(lambda web: web.api_token, name="API_TOKEN")
    refuse_query(QUERIES.get((request.endpoint or "").rpartition(".")[2], ()))


# ── entries ──────────────────────────────────────────────────────────────────────────────────────────


@operating.get("/entries/<rule>/<key:key>")
def entry(rule: str, key: str) -> Response:
    """Everything known about one key, with its latest attempts."""
    found = None if key_problem(key) or key_problem(rule) else service().ledger.entry(rule, key)
    if found is None:
        raise NotFound("nobody has asked for that key yet", hint="POST /v1/replicate copies it now.")
    return jsonify(found)


@operating.get("/entries")
def entries() -> Response:
    """Entries by rule and key, narrowed by `rule`, `prefix`, `contains` and `state`, a page at a time; or all
    rules' entries of exactly one `key`, of which no client changes a dot or a slash.
    """
    asked = _narrowed("rule", "prefix", "contains", "state", "key")
    if "key" in asked:
        return jsonify(entries=_of_key(asked), next=None)
    if (state := asked.get("state")) not in (None, *STATES):
        raise BadRequest(f"there is no state {state!r}", hint=f"The states are: {', '.join(STATES)}.")
    page = service().records.entries(
        rule=asked.get("rule"),
        prefix=asked.get("prefix", ""),
        part=asked.get("contains", ""),
        state=state,
        after=after_of(request.args),
        limit=limit_of(request.args),
    )
    return _page("entries", page)


def _of_key(asked: dict[str, str]) -> list[Mapping[str, Any]]:
    if others := set(request.args) - {"key", "rule"}:
        hint = "Leave it out: one key is no more than one entry of each rule."
        raise BadRequest(f"key does not go with {min(others)!r}", hint=hint)
    found = service().records.of_key(asked["key"])
    return [each for each in found if asked.get("rule") in (None, each["rule"])]


def _narrowed(*names: str) -> dict[str, str]:
    return only_strings({name: request.args[name] for name in names if name in request.args}, names)


def _page(
    name: str, page: Page, shown: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda item: item
) -> Response:
    return jsonify({name: [shown(each) for each in page.items], "next": cursor_of(page.after)})


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────


@operating.get("/failures")
def failures() -> Response:
    """Failed entries by rule and key, narrowed by `rule`, `prefix` and `reason`, a page at a time."""
    asked = _narrowed("rule", "prefix", "reason")
    page = service().records.entries(
        rule=asked.get("rule"),
        prefix=asked.get("prefix", ""),
        state=FAILED,
        reason=asked.get("reason"),
        after=after_of(request.args),
        limit=limit_of(request.args),
    )
    return _page("failures", page)


@operating.get("/failures/reasons")
def failure_reasons() -> Response:
    """How many entries failed by what, the most first; `rule` and `prefix` narrow."""
    asked = _narrowed("rule", "prefix")
    found = service().records.reasons(rule=asked.get("rule"), prefix=asked.get("prefix", ""))
    return jsonify(reasons=[reason_facts(each) for each in found])


@operating.post("/failures/retry")
def retry_failures() -> Response:
    """Makes failed entries waiting again; the JSON body narrows as in GET /v1/failures, or by exact `key`."""
    asked = only_strings(json_object(may_be_empty=True), ("rule", "prefix", "reason", "key"))
    count = service().ledger.revive(
        rule=asked.get("rule"),
        prefix=asked.get("prefix", ""),
        key=asked.get("key"),
        error_code=asked.get("reason"),
    )
    return jsonify(retried=count)


# ── pauses ───────────────────────────────────────────────────────────────────────────────────────────


@operating.post("/pause")
def pause() -> Response:
    """Copies, deletes and sweeps nothing for a rule from now on, or for all rules there are; what is asked
    for meanwhile is kept.
    """
    asked = only_strings(json_object(may_be_empty=True), ("rule",))
    rules = [_rule(asked["rule"])] if "rule" in asked else _all_rules()
    Sweeps(service().ledger).register({rule.name: shape(rule) for rule in rules})
    return _paused([rule.name for rule in rules if service().pauses.pause(rule.name)])


@operating.post("/resume")
def resume() -> Response:
    """Ends the pause of a rule, or of all that are paused, also of those that are no more."""
    asked = only_strings(json_object(may_be_empty=True), ("rule",))
    names = list(service().pauses.paused())
    if "rule" in asked:
        names = [asked["rule"] if asked["rule"] in names else _rule(asked["rule"]).name]
    return _paused([name for name in names if service().pauses.resume(name)])


def _paused(changed: list[str]) -> Response:
    paused = {name: as_time(at) for name, at in sorted(service().pauses.paused().items())}
    return jsonify(changed=changed, paused=paused)


def _all_rules() -> list[Rule]:
    """Those of all buckets at the source; where it does not answer, of those that were seen."""
    seen = list(Sweeps(service().ledger).known())
    rules = {rule.name: rule for rule in known_rules(service(), seen)}
    try:
        rules |= {rule.name: rule for rule in service().sides.concrete()}
    except StoreError:
        pass  # to pause is wanted most where a store is in trouble
    return list(rules.values())


# ── quarantine ───────────────────────────────────────────────────────────────────────────────────────


@operating.get("/quarantine")
def quarantine() -> Response:
    """Records of notifications that nobody can act on, the latest first, a page at a time."""
    limit = limit_of(request.args, most=QUARANTINE_LIMIT_MAX)
    page = service().records.quarantine(after=moment_after(request.args), limit=limit)
    return _page("records", page, _record)


def _record(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**found, **{name: as_time(found[name]) for name in ("first_seen_at", "last_seen_at")}}


@operating.post("/quarantine/discard")
def discard_quarantine() -> Response:
    """Drops one record, or all: a person has looked."""
    return jsonify(discarded=Quarantine(service().ledger).discard(_record_id()))


@operating.post("/quarantine/retry")
def retry_quarantine() -> Response:
    """Reads one record again, or all, as if it came now: with a newer release, or other rules."""
    return jsonify(asdict(Quarantine(service().ledger).retry(service().sides.rules, _record_id())))


def _record_id() -> str | None:
    """Which record is meant; None: all. Raises: BadRequest."""
    asked = json_object(may_be_empty=True)
    if asked.get("all") is True and len(asked) == 1:
        return None
    record_id = only_strings(asked, ("record_id",)).get("record_id")
    if record_id is None:
        hint = 'Send {"record_id": "…"} with one of GET /v1/quarantine, or {"all": true}.'
        raise BadRequest("which record is meant is missing", hint=hint)
    return record_id


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
    asked = _narrowed("rule")
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
