"""What there is to press. Each answer leads to a page that says what was done.

Rules and keys stand in the address: in a field of a form, browsers change line ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, request, url_for

from webhook.callers import NotFound, service
from webhook.entries import Request
from webhook.errors import BadRequest
from webhook.events import key_problem
from webhook.pages.gate import done, pages
from webhook.quarantine import Quarantine
from webhook.reconcile import shape
from webhook.rules import Rule
from webhook.sweeps import Sweeps


@pages.post("/pause")
def pause() -> Response:
    """Pauses a rule."""
    rule = _rule()
    _register(rule)
    changed = service().pauses.pause(rule.name)
    return _status(f"{rule.name} is paused." if changed else f"{rule.name} was paused already.")


@pages.post("/resume")
def resume() -> Response:
    """Resumes a rule, also one that is no more."""
    name = _asked("rule")["rule"]
    changed = service().pauses.resume(name)
    return _status(f"{name} is at work again." if changed else f"{name} was not paused.")


@pages.post("/sweep")
def sweep() -> Response:
    """Asks for a comparison of both sides, of one rule or all."""
    rules = [_rule()] if "rule" in request.args else list(service().sides.concrete())
    _register(*rules)
    for rule in rules:
        Sweeps(service().ledger).request(rule.name, cause="request")
    return _status(f"Both sides of {_count(len(rules), 'rule')} are being compared: see below how far it is.")


@pages.post("/object/copy")
def copy() -> Response:
    """Has one object copied now, as live work."""
    rule, key = _rule(), _asked("key")["key"]
    if not rule.wants(key):
        raise BadRequest(
            "the rule does not want that key", hint="See its prefix, suffix, include and exclude."
        )
    service().ledger.put_now(Request(rule=rule.name, key=key))
    service().ledger.tell_listeners()
    return done("It is looked at and copied now.", url_for("pages.entry", rule=rule.name, key=key))


@pages.post("/failures/retry")
def retry() -> Response:
    """Makes failed objects waiting again: one by `key`, those that are narrowed down, or all."""
    asked = _asked(*(name for name in ("rule", "prefix", "reason", "key") if name in request.args))
    count = service().ledger.revive(
        rule=asked.get("rule"),
        prefix=asked.get("prefix", ""),
        key=asked.get("key"),
        error_code=asked.get("reason"),
    )
    back = request.args.get("back") == "object" and "key" in asked and "rule" in asked
    path = url_for("pages.entry", **asked) if back else url_for("pages.failures")
    verb = "is" if count == 1 else "are"
    return done(
        f"{_count(count, 'object')} {verb} tried again." if count else "Nothing of that is failed.", path
    )


@pages.post("/quarantine/retry")
def retry_record() -> Response:
    """Reads one record again, or all."""
    tried = Quarantine(service().ledger).retry(service().sides.rules, _record())
    text = f"{_count(tried.accepted, 'change')} accepted, {tried.ignored:,} that no rule wants, "
    return done(f"{text}{_count(tried.kept, 'record')} still cannot be used.", url_for("pages.quarantine"))


@pages.post("/quarantine/discard")
def discard_record() -> Response:
    """Drops one record, or all: a person has looked."""
    record = _record()
    if record is None:
        _confirmed()
    count = Quarantine(service().ledger).discard(record)
    return done(f"{_count(count, 'record')} dropped.", url_for("pages.quarantine"))


@pages.post("/deletes/approve")
def approve() -> Response:
    """Lets deletes that were held back go."""
    name = _decided()
    count = service().deletes.approve(name)
    return _status(f"{name}: {_count(count, 'delete')} approved, each after a fresh look at the source.")


@pages.post("/deletes/discard")
def discard() -> Response:
    """Keeps the copies whose deletes were held back."""
    name = _decided()
    count = service().deletes.discard(name)
    return _status(f"{name}: {_count(count, 'delete')} discarded, the copies stay.")


# ── what was asked ───────────────────────────────────────────────────────────────────────────────────


def _asked(*names: str) -> Mapping[str, Any]:
    """These, of the address, each text that the ledger could hold. Raises: BadRequest."""
    found = {name: request.args.get(name, "") for name in names}
    for name, text in found.items():
        if problem := key_problem(text):
            raise BadRequest(f"{name} cannot be used: {problem}", hint="Go back, and press the button again.")
    return found


def _record() -> str | None:
    """The record that is meant; None: all. Raises: BadRequest."""
    return _asked("record")["record"] if "record" in request.args else None


def _rule() -> Rule:
    """The rule in force that is meant. Raises: BadRequest, NotFound."""
    name = _asked("rule")["rule"]
    found = service().sides.rules.named(name)
    if found is None:
        raise NotFound(f"no rule {name!r} is in force", hint="The status page lists those that are.")
    return found


def _decided() -> str:
    """The rule about whose deletes a person has decided. Raises: BadRequest, NotFound."""
    name: str = _asked("rule")["rule"]
    _confirmed()
    if name not in service().deletes.breakers():
        raise NotFound("there is no rule of that name", hint="The status page lists the rules.")
    return name


def _confirmed() -> None:
    if request.form.get("sure") != "yes":
        hint = "Go back, tick the box below what it does, and press the button again."
        raise BadRequest("the box that confirms it was not ticked, so nothing was done", hint=hint)


def _register(*rules: Rule) -> None:
    """What is noted of a rule needs a row of the ledger's."""
    Sweeps(service().ledger).register({rule.name: shape(rule) for rule in rules})


def _status(text: str) -> Response:
    return done(text, url_for("pages.status"))


def _count(number: int, one: str) -> str:
    return f"{number:,} {one if number == 1 else one + 's'}"
