"""What there is to see: how it stands, objects, failures, quarantine, and deletes that wait for a person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Response, request, url_for

from webhook.callers import NotFound, configured, service
from webhook.entries import FAILED, LANES, PARKED_AT, STATES
from webhook.errors import BadRequest
from webhook.events import key_problem
from webhook.pages import charts
from webhook.pages.gate import page, pages
from webhook.paging import after_of, cursor_of, moment_after
from webhook.records import Page
from webhook.status import facts
from webhook.sweeps import Sweep, Sweeps

PAGE_ITEMS, PAGE_RULES, PAGE_RECORDS, SWEEPS_SHOWN, HELD_SHOWN = 50, 50, 10, 10, 20
NARROWING = ("q", "rule", "how", "state", "prefix", "reason")
HOWS = ("contains", "begins", "is")


# ── how it stands ────────────────────────────────────────────────────────────────────────────────────


@pages.get("/")
def status() -> Response:
    """The first page."""
    found = facts(service())
    of_all, *of_rules = found["summary"]
    first = _from(request.args.get("from", "0"))
    in_order = sorted(of_rules, key=lambda each: bool(each["ok"]))  # what needs a person comes first
    shown = in_order[first : first + PAGE_RULES]
    return page(
        "status.html",
        facts=found,
        verdict=of_all,
        subject=next((each["rule"] for each in of_rules if each["action"] == of_all["action"]), None),
        states=STATES,
        lanes=LANES,
        rules=[(each, found["rules"][each["rule"]]) for each in shown],
        rules_from=first,
        rules_number=len(of_rules),
        rules_page=PAGE_RULES,
        hour=charts.hour(service().ledger),
        sweeps=_sweeps(),
        targets=_targets(found["workers"]),
    )


def _from(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0


def _sweeps() -> list[tuple[Sweep, int]]:
    """Open sweeps and the latest, each with how many keys its rule's last whole one compared; 0: unknown."""
    sweeps = Sweeps(service().ledger)
    latest = sweeps.latest(limit=100)
    sizes: dict[str, int] = {}
    for each in latest:
        if each.state == "complete" and not each.prefix:
            sizes.setdefault(each.rule, each.compared)
    open_ones = sweeps.unfinished()
    known = {each.id for each in open_ones}
    over = [each for each in latest if each.id not in known]
    shown = [*open_ones[:SWEEPS_SHOWN], *over[: max(0, SWEEPS_SHOWN - len(open_ones))]]
    return [(each, 0 if each.prefix else sizes.get(each.rule, 0)) for each in shown]


@dataclass(frozen=True, kw_only=True)
class TargetNow:
    """How fast a target is asked at present, and what the settings say. 0: no limit."""

    name: str
    at_once: int | None
    """Requests, of the processes that it slowed down, together; None: it slowed down none."""
    processes: int
    max_rps: int
    max_mbps: int


def _targets(workers: Iterable[Mapping[str, Any]]) -> list[TargetNow]:
    limits: dict[str, list[int]] = defaultdict(list)
    for each in workers:
        for target, limit in each["limits"].items():
            limits[target] += [] if limit is None else [limit]
    return [
        TargetNow(
            name=name,
            at_once=sum(limits[name]) if limits[name] else None,
            processes=len(limits[name]),
            max_rps=store.max_rps,
            max_mbps=store.max_mbps,
        )
        for name, store in sorted(configured().targets.items())
    ]


# ── objects ──────────────────────────────────────────────────────────────────────────────────────────


@pages.get("/objects")
def objects() -> Response:
    """Finds objects by their key, or a part of it."""
    text, rule, how = (
        request.args.get("q", ""),
        request.args.get("rule", ""),
        request.args.get("how", HOWS[0]),
    )
    state = request.args.get("state", "")
    how, state = how if how in HOWS else HOWS[0], state if state in STATES else ""
    found = _find(text, rule, how, state) if text or rule or state else None
    is_first = found is not None and text and how == HOWS[0] and "cursor" not in request.args
    return page(
        "objects.html",
        q=text,
        rule=rule,
        how=how,
        state=state,
        states=STATES,
        found=found,
        exact=_exact(text, rule, state) if is_first else [],
        next=_next("pages.objects", found),
        rules=service().records.rules(),
    )


def _find(text: str, rule: str, how: str, state: str) -> Page:
    if text and (problem := key_problem(text)):
        raise BadRequest(f"that cannot be part of a key: {problem}", hint="Type the key, or a part of it.")
    if how == "is":
        return Page(items=_exact(text, rule, state), after=None)
    return service().records.entries(
        rule=rule or None,
        part=text if how == "contains" else "",
        prefix=text if how == "begins" else "",
        state=state or None,
        after=after_of(request.args),
        limit=PAGE_ITEMS,
    )


def _exact(text: str, rule: str, state: str) -> list[Mapping[str, Any]]:
    """Entries of exactly this key: found at once, where those that contain it take a walk."""
    found = service().records.of_key(text)
    return [each for each in found if rule in ("", each["rule"]) and state in ("", each["state"])]


def _next(endpoint: str, found: Page | None) -> str | None:
    """Where the next page is."""
    if found is None or found.after is None:
        return None
    asked: dict[str, Any] = {name: request.args[name] for name in NARROWING if name in request.args}
    return url_for(endpoint, **asked, cursor=cursor_of(found.after))


@pages.get("/object")
def entry() -> Response:
    """The whole story of one object."""
    rule, key = request.args.get("rule", ""), request.args.get("key", "")
    if key_problem(rule) or key_problem(key):
        raise NotFound("there is no such object on record", hint="Find it by its key, or a part of it.")
    found = service().ledger.entry(rule, key)
    in_force = service().sides.rules.named(rule)
    return page(
        "object.html",
        status=200 if found else 404,
        rule=rule,
        key=key,
        entry=found,
        in_force=in_force,
        can_copy=bool(in_force and in_force.wants(key)),
        now=service().ledger.clock(),
        parked_at=PARKED_AT,
        others=[each["rule"] for each in service().records.of_key(key) if each["rule"] != rule],
    )


# ── what waits for a person ──────────────────────────────────────────────────────────────────────────


@pages.get("/failures")
def failures() -> Response:
    """What failed by what, and the objects of one reason, or all."""
    asked: dict[str, Any] = {name: request.args.get(name, "") for name in ("rule", "prefix", "reason")}
    reasons = service().records.reasons()
    found = service().records.entries(
        rule=asked["rule"] or None,
        prefix=asked["prefix"],
        state=FAILED,
        reason=asked["reason"] or None,
        after=after_of(request.args),
        limit=PAGE_ITEMS,
    )
    return page(
        "failures.html",
        reasons=reasons,
        found=found,
        number=sum(each["number"] for each in _chosen(reasons, asked)),
        next=_next("pages.failures", found),
        rules=sorted({each["rule"] for each in reasons}),
        codes=sorted({each["reason"] for each in reasons}),
        narrowed={name: value for name, value in asked.items() if value},
        **asked,
    )


def _chosen(reasons: Sequence[Mapping[str, Any]], asked: Mapping[str, str]) -> list[Mapping[str, Any]]:
    if asked["prefix"]:
        rule, prefix = asked["rule"] or None, asked["prefix"]
        reasons = service().records.reasons(rule=rule, prefix=prefix)
    return [
        each
        for each in reasons
        if asked["rule"] in ("", each["rule"]) and asked["reason"] in ("", each["reason"])
    ]


@pages.get("/quarantine")
def quarantine() -> Response:
    """Events that nobody could act on, as they came."""
    found = service().records.quarantine(after=moment_after(request.args), limit=PAGE_RECORDS)
    return page(
        "quarantine.html",
        found=found,
        next=_next("pages.quarantine", found),
        number=service().ledger.quarantined(),
    )


@pages.get("/deletes")
def deletes() -> Response:
    """What the delete breaker of a rule holds back, and what a decision would do."""
    rule = request.args.get("rule", "")
    breaker = service().deletes.breakers().get(rule)
    if breaker is None:
        raise NotFound("there is no rule of that name", hint="The status page lists the rules.")
    held = service().records.held(rule, limit=HELD_SHOWN)
    return page("deletes.html", rule=rule, breaker=breaker, held=held)
