"""The sentences of how it stands: each cause is named, with what helps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from webhook.entries import LANES, STATES
from webhook.verdict import ACTIONS, duration, moment, verdicts

NOW = 1_800_000_000.0
AT = "2027-01-15T07:59:{:02}.000Z"
"""Some seconds of the minute before NOW."""
SWEEP = {"state": "complete", "started_at": AT.format(0), "error": None, "compared": 9}
WORKER = {"name": "host:1:2:"}


def rule(**more: Any) -> dict[str, Any]:
    """What the status says of a rule whose target is complete, but for what is given."""
    return {
        "paused_since": None,
        "recovery_point": AT.format(10),
        "proved_by": "sweep",
        "recovery_point_by_events": AT.format(50),
        "lag_s": 0.4,
        "entries": {state: dict.fromkeys(LANES, 0) for state in STATES},
        "events_missed": 0,
        "failures": [],
        "oldest": None,
        "sweep": SWEEP,
        "deletes": {"propagated": True, "pending": 0, "held": 0, "breaker": None},
        **more,
    }


def facts(*rules: dict[str, Any], workers: bool = True, quarantined: int = 0) -> dict[str, Any]:
    """A status with these rules, named "a", "b" and so on."""
    named = dict(zip("abcdef", rules, strict=False))
    return {"workers": [WORKER] if workers else [], "quarantined": quarantined, "rules": named}


def failing(*numbers: int) -> list[dict[str, Any]]:
    """Failures by several reasons."""
    return [{"rule": "a", "reason": f"reason_{at}", "number": number} for at, number in enumerate(numbers)]


def oldest(since: str | None, error: str | None = "target: no answer.") -> dict[str, Any]:
    """What has been unsettled longest."""
    return {"key": "k", "state": "waiting", "since": since, "due_at": None, "error": error}


def test_a_complete_target_says_up_to_when_and_how_that_is_known() -> None:
    of_all, of_rule = verdicts(facts(rule()), NOW)
    assert of_rule["text"] == (
        "Target complete up to 2027-01-15 07:59:50 UTC (proved by sweep up to 2027-01-15 07:59:10 UTC, "
        "events since). Lag 0.4 s."
    )
    assert (of_rule["rule"], of_rule["ok"], of_rule["action"]) == ("a", True, None)
    assert of_all == {**of_rule, "rule": None}


def test_where_events_were_missed_only_the_sweep_s_time_is_claimed() -> None:
    of_all, _ = verdicts(facts(rule(events_missed=3)), NOW)
    assert of_all["ok"]
    assert "complete up to 2027-01-15 07:59:10 UTC, proved by sweep; 3 changes came without" in of_all["text"]
    assert "07:59:50" not in of_all["text"]


UNPROVED = {"recovery_point": None, "proved_by": None}
COPYING = {state: dict.fromkeys(LANES, 2) for state in STATES}
TRIPPED = {"held": 2, "breaker": {"tripped_at": AT.format(5), "reason": "too many"}}
CAUSES: list[tuple[dict[str, Any], str, str | None]] = [
    ({"paused_since": AT.format(1)}, "complete up to .*50 UTC: paused since 2027-01-15 07:59:01", "resume"),
    ({"failures": failing(1)}, r"^Behind since .*50 UTC: 1 object failed \(reason_0 1\)\.$", "retry"),
    (
        {"failures": failing(4000, 3, 2, 1, 1)},
        r"4,007 objects failed \(.*reason_2 2, 2 more reasons",
        "retry",
    ),
    ({"deletes": TRIPPED}, r"breaker open since .*05 UTC \(too many\), 2 deletes held back", "decide"),
    ({"deletes": {"held": 1, "breaker": None}}, "1 delete held back for a decision", "decide"),
    (
        {"oldest": oldest(AT.format(20))},
        r"^Behind since .*tried again and again: target: no answer\.$",
        "doctor",
    ),
    ({"oldest": oldest(None)}, "tried again and again", "doctor"),
    (
        {"sweep": {**SWEEP, "state": "open", "error": "source: no."}},
        r"the sweep cannot go on: source: no\.$",
        "doctor",
    ),
    ({**UNPROVED, "sweep": None}, "^Not proved complete: .*no sweep has been asked for", "sweep"),
    ({**UNPROVED, "sweep": {**SWEEP, "state": "open", "started_at": None}}, "is about to begin", None),
    ({**UNPROVED, "sweep": {**SWEEP, "state": "open"}}, "the first sweep has compared 9 objects", None),
    ({"recovery_point": None, "entries": COPYING}, "what the first sweep found .* 8 objects to go", None),
    (
        {"recovery_point_by_events": "2027-01-15T07:00:00Z", "oldest": oldest(AT.format(0), None)},
        r"^Behind since 2027-01-15 07:00:00 UTC: being caught up with, 0 objects to go\.$",
        None,
    ),
]


@pytest.mark.parametrize(("what", "words", "action"), CAUSES)
def test_each_cause_has_its_words_and_what_helps(
    what: dict[str, Any], words: str, action: str | None
) -> None:
    of_all, of_rule = verdicts(facts(rule(**what)), NOW)
    assert re.search(words, of_rule["text"]), of_rule["text"]
    assert (of_rule["ok"], of_rule["action"]) == (False, action)
    assert of_all == {**of_rule, "rule": None}
    assert action in (None, *ACTIONS)


@pytest.mark.parametrize(
    "what",
    [{"oldest": oldest("2027-01-15T07:59:45Z")}, {"oldest": oldest(AT.format(0), None)}, {"lag_s": 200.0}],
)
def test_what_passes_by_itself_is_no_alarm(what: dict[str, Any]) -> None:
    assert all(each["ok"] for each in verdicts(facts(rule(**what)), NOW))


def test_all_causes_are_told_and_the_first_decides_what_helps() -> None:
    both = rule(paused_since=AT.format(1), failures=failing(1))
    of_all, _ = verdicts(facts(both, workers=False), NOW)
    assert "no process replicates; paused since" in of_all["text"]
    assert "1 object failed" in of_all["text"]
    assert of_all["action"] == "work"


def test_of_several_rules_the_least_complete_decides() -> None:
    later = rule(recovery_point=AT.format(30), recovery_point_by_events=AT.format(59), lag_s=0.0)
    of_all, *_ = verdicts(facts(rule(), later), NOW)
    assert of_all["ok"]
    assert of_all["text"] == (
        "Target complete up to 2027-01-15 07:59:50 UTC in all 2 rules (proved by sweep up to "
        "2027-01-15 07:59:10 UTC, events since). Lag 0.4 s."
    )
    of_all, *each = verdicts(facts(rule(), rule(**UNPROVED), rule(failures=failing(1))), NOW)
    assert [one["ok"] for one in each] == [True, False, False]
    assert of_all["text"].startswith("2 of 3 rules need attention. c: Behind since"), (
        "a person can help there"
    )
    assert of_all["action"] == "retry"


def test_without_any_rule_nothing_is_fine() -> None:
    for workers, action in ((True, "doctor"), (False, "work")):
        (of_all,) = verdicts(facts(workers=workers), NOW)
        assert (of_all["ok"], of_all["action"]) == (False, action)


def test_what_is_in_quarantine_waits_for_a_person() -> None:
    of_all, of_rule = verdicts(facts(rule(), quarantined=2), NOW)
    assert (of_all["ok"], of_all["action"], of_rule["ok"]) == (False, "quarantine", True)
    assert "2 events in quarantine" in of_all["text"]
    of_all, _ = verdicts(facts(rule(failures=failing(1)), quarantined=2), NOW)
    assert of_all["action"] == "retry"


def test_times_are_written_for_people() -> None:
    assert moment("2027-01-15T07:59:59.999Z") == "2027-01-15 07:59:59 UTC"
    told = [duration(seconds) for seconds in (0.04, 9.94, 12.4, 119, 840, 10_800, 432_000)]
    assert told == ["0.0 s", "9.9 s", "12 s", "119 s", "14 min", "3 h", "5 days"]
