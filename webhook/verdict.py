"""How it stands, in a sentence for each rule and one for all: is the target complete, and if not, why not.

Pure: from the facts of GET /v1/status. A rule is ok where its target is proved complete, up to a few minutes
ago at least, and nothing waits for a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypedDict

PATIENCE_S = 30.0
"""An error that is over sooner than this is no matter for a person."""
BEHIND_S = 300.0
"""A target that is no further behind than this counts as complete."""
REASONS_TOLD = 3
ACTIONS = ("work", "resume", "retry", "decide", "doctor", "sweep", "quarantine")
"""What helps: start a process that replicates, resume the rule, retry what failed, decide about deletes that
are held back, look at the stores (scripts/doctor.py), ask for a sweep, look at the quarantine."""

Facts = Mapping[str, Any]


class Verdict(TypedDict):
    """Of one rule, or of all where `rule` is None."""

    rule: str | None
    ok: bool
    text: str
    """Moments in it are written "2026-11-24 23:59:59 UTC"."""
    action: str | None
    """One of ACTIONS; None: nothing needs to be done by hand."""


class _Problem(NamedTuple):
    text: str
    action: str | None


def verdicts(facts: Facts, now: float) -> list[Verdict]:
    """That of all first, then each rule's, in the order of the facts; `now` in seconds since 1970."""
    has_workers = bool(facts["workers"])
    rules = [_of_rule(name, rule, has_workers, now) for name, rule in facts["rules"].items()]
    return [_of_all(facts, rules), *rules]


# ── one rule ─────────────────────────────────────────────────────────────────────────────────────────


def _of_rule(name: str, rule: Facts, has_workers: bool, now: float) -> Verdict:
    problems = [] if has_workers else [_Problem("no process replicates", "work")]
    problems += [*_stopped(rule), *_failed(rule), *_held(rule), *_unable(rule, now)]
    problems += _unproved(rule) or ([] if problems else _late(rule, now))
    if not problems:
        return Verdict(rule=name, ok=True, text=_complete(rule), action=None)
    text = f"{_behind(rule)}: {'; '.join(each.text for each in problems)}."
    action = next((each.action for each in problems if each.action), None)
    return Verdict(rule=name, ok=False, text=text, action=action)


def _stopped(rule: Facts) -> list[_Problem]:
    since = rule["paused_since"]
    return [_Problem(f"paused since {moment(since)}", "resume")] if since else []


def _failed(rule: Facts) -> list[_Problem]:
    reasons = rule["failures"]
    if not reasons:
        return []
    told = [f"{each['reason']} {each['number']:,}" for each in reasons[:REASONS_TOLD]]
    more = [f"{len(reasons) - REASONS_TOLD} more reasons"] if len(reasons) > REASONS_TOLD else []
    number = _count(sum(each["number"] for each in reasons), "object")
    return [_Problem(f"{number} failed ({', '.join(told + more)})", "retry")]


def _held(rule: Facts) -> list[_Problem]:
    breaker, held = rule["deletes"]["breaker"], rule["deletes"]["held"]
    if not breaker and not held:
        return []
    waiting = f"{_count(held, 'delete')} held back for a decision"
    if not breaker:
        return [_Problem(waiting, "decide")]
    since = moment(breaker["tripped_at"])
    return [_Problem(f"delete breaker open since {since} ({breaker['reason']}), {waiting}", "decide")]


def _unable(rule: Facts, now: float) -> list[_Problem]:
    """What is being tried again, and what keeps it from being done."""
    found = []
    oldest, sweep = rule["oldest"], rule["sweep"]
    if oldest and oldest["error"] and now - _seconds(oldest["since"]) > PATIENCE_S:
        found.append(_Problem(f"tried again and again: {oldest['error'].rstrip('.')}", "doctor"))
    if sweep and sweep["state"] == "open" and sweep["error"]:
        found.append(_Problem(f"the sweep cannot go on: {sweep['error'].rstrip('.')}", "doctor"))
    return found


def _unproved(rule: Facts) -> list[_Problem]:
    """What is missing before anything can be said of the target."""
    sweep, yet = rule["sweep"], "nothing is proved yet"
    if rule["recovery_point"]:
        return []
    if rule["proved_by"]:
        return [_Problem(f"{yet}, what the first sweep found is being copied: {_waiting(rule)}", None)]
    if not sweep:
        return [_Problem(f"{yet}, no sweep has been asked for", "sweep")]
    if not sweep["started_at"]:
        return [_Problem(f"{yet}, the first sweep is about to begin", None)]
    return [_Problem(f"{yet}, the first sweep has compared {_count(sweep['compared'], 'object')}", None)]


def _late(rule: Facts, now: float) -> list[_Problem]:
    """Nothing is wrong, but there is much to do."""
    if now - _seconds(rule["recovery_point_by_events"]) <= BEHIND_S:
        return []
    return [_Problem(f"being caught up with, {_waiting(rule)}", None)]


def _waiting(rule: Facts) -> str:
    states = (rule["entries"]["waiting"], rule["entries"]["running"])
    return f"{_count(sum(sum(lanes.values()) for lanes in states), 'object')} to go"


def _behind(rule: Facts) -> str:
    """Since when the target is behind, or up to when it is complete."""
    at = rule["recovery_point_by_events"]
    if not rule["recovery_point"]:
        return "Not proved complete"
    return f"{'Behind since' if _is_behind(rule) else 'Target complete up to'} {moment(at)}"


def _is_behind(rule: Facts) -> bool:
    return bool(rule["oldest"] or rule["failures"])


def _complete(rule: Facts) -> str:
    proved, lag = moment(rule["recovery_point"]), f"Lag {duration(rule['lag_s'])}."
    if missed := rule["events_missed"]:
        told = f"{_count(missed, 'change')} came without an event"
        return f"Target complete up to {proved}, proved by sweep; {told}. {lag}"
    up_to = moment(rule["recovery_point_by_events"])
    return f"Target complete up to {up_to} (proved by sweep up to {proved}, events since). {lag}"


# ── all ──────────────────────────────────────────────────────────────────────────────────────────────


def _of_all(facts: Facts, rules: Sequence[Verdict]) -> Verdict:
    text, action = _together(facts, rules)
    is_ok = bool(rules) and all(each["ok"] for each in rules)
    if facts["quarantined"]:
        text += f" {_count(facts['quarantined'], 'event')} in quarantine: nobody could act on them."
        return Verdict(rule=None, ok=False, text=text, action=action or "quarantine")
    return Verdict(rule=None, ok=is_ok, text=text, action=action)


def _together(facts: Facts, rules: Sequence[Verdict]) -> tuple[str, str | None]:
    if not rules:
        text = "No bucket is known yet that a rule copies: the source has none, or was not looked at."
        return text, "doctor" if facts["workers"] else "work"
    if len(rules) == 1:
        return rules[0]["text"], rules[0]["action"]
    wrong = [each for each in rules if not each["ok"]]
    if not wrong:
        return _all_complete(list(facts["rules"].values())), None
    first = next((each for each in wrong if each["action"]), wrong[0])
    number = f"{len(wrong)} of {len(rules)} rules need attention"
    return f"{number}. {first['rule']}: {first['text']}", first["action"]


def _all_complete(rules: Sequence[Facts]) -> str:
    by_events = [
        rule["recovery_point" if rule["events_missed"] else "recovery_point_by_events"] for rule in rules
    ]
    proved = moment(min(rule["recovery_point"] for rule in rules))
    return (
        f"Target complete up to {moment(min(by_events))} in all {len(rules)} rules (proved by sweep up to "
        f"{proved}, events since). Lag {duration(max(rule['lag_s'] for rule in rules))}."
    )


# ── words ────────────────────────────────────────────────────────────────────────────────────────────


def moment(at: str) -> str:
    """A time of the status as it stands in a sentence: "2026-11-24 23:59:59 UTC"."""
    return datetime.fromtimestamp(_seconds(at), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """For people: "0.4 s", "12 s", "14 min", "3 h", "5 days"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _seconds(at: str | None) -> float:
    return datetime.fromisoformat(at).timestamp() if at else 0.0


def _count(number: int, one: str) -> str:
    return f"{number:,} {one if number == 1 else one + 's'}"
