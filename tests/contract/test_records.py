"""What every engine must do for people who look: pages of entries, reasons, quarantine, counts."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.contract.steps import RULE, Clock, ask, bring_to, buried, deferred, retried, row, take_one
from webhook import records
from webhook.entries import BACKFILL, Misfit
from webhook.ledger import Ledger
from webhook.records import Records

KEYS = ("A", "a/%", "a/1", "a/2", "a/Img_1.jpg", "a_b", "b/é", "c")


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    """Entries of two rules in several states."""
    for key in KEYS:
        bring_to(ledger, "settled" if key < "b" else "waiting", ask(key))
    bring_to(ledger, "failed", ask("d/failed"))
    bring_to(ledger, "failed", ask("a/1", rule="other"))
    claim = bring_to(ledger, "running", ask("d/denied"))
    assert claim is not None
    ledger.finish([buried(claim, "target_store_denied")])
    return ledger


def found(ledger: Ledger, **asked: Any) -> list[tuple[str, str]]:
    """All pages of some entries: (rule, key)."""
    seen: list[tuple[str, str]] = []
    after = None
    for _ in range(1000):
        page = Records(ledger).entries(after=after, **asked)
        seen += [(each["rule"], each["key"]) for each in page.items]
        after = page.after
        if after is None:
            return seen
    raise AssertionError("the pages do not end")


ASKED: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({}, [(RULE, key) for key in (*KEYS, "d/denied", "d/failed")] + [("other", "a/1")]),
    ({"rule": "other"}, [("other", "a/1")]),
    ({"prefix": "a/"}, [*((RULE, key) for key in KEYS if key.startswith("a/")), ("other", "a/1")]),
    ({"part": "/1"}, [(RULE, "a/1"), ("other", "a/1")]),
    ({"part": "img"}, []),
    ({"part": "_1.j"}, [(RULE, "a/Img_1.jpg")]),
    ({"part": "%"}, [(RULE, "a/%")]),
    ({"part": "é"}, [(RULE, "b/é")]),
    ({"part": "\0"}, []),
    ({"prefix": "\0"}, []),
    ({"state": "failed"}, [(RULE, "d/denied"), (RULE, "d/failed"), ("other", "a/1")]),
    ({"state": "failed", "reason": "target_store_denied"}, [(RULE, "d/denied")]),
    ({"state": "failed", "part": "denied", "rule": RULE}, [(RULE, "d/denied")]),
    ({"state": "settled", "reason": "target_store_denied"}, []),
    ({"state": "waiting"}, [(RULE, "b/é"), (RULE, "c")]),
    ({"state": "waiting", "part": "c"}, [(RULE, "c")]),
]


@pytest.mark.parametrize(("asked", "expected"), ASKED)
@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("scan", [1, 2, 20_000])
def test_pages_together_are_all_that_was_asked_for(
    filled: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    expected: list[tuple[str, str]],
    limit: int,
    scan: int,
) -> None:
    monkeypatch.setattr(records, "SCAN_KEYS", scan)
    assert found(filled, limit=limit, **asked) == expected


def test_an_entry_of_a_page_is_as_when_it_is_asked_for_alone(filled: Ledger) -> None:
    (item,) = Records(filled).entries(prefix="d/denied").items
    assert dict(item) == row(filled, "d/denied")


def test_reasons_say_how_many_failed_by_each(filled: Ledger, clock: Clock) -> None:
    reasons = [dict(each) for each in Records(filled).reasons()]
    since = {"since": clock.now, "example": "it said no", "number": 1}
    assert reasons == [
        {"rule": RULE, "reason": "target_store_denied", **since},
        {"rule": RULE, "reason": "target_store_refused", **since},
        {"rule": "other", "reason": "target_store_refused", **since},
    ]
    assert [each["reason"] for each in Records(filled).reasons(rule="other")] == ["target_store_refused"]


def test_the_rules_on_record_are_named_and_all_entries_of_one_key_found(filled: Ledger) -> None:
    assert Records(filled).rules() == [RULE, "other"]
    assert [each["rule"] for each in Records(filled).of_key("a/1")] == [RULE, "other"]
    assert Records(filled).of_key("a/1")[0] == row(filled, "a/1")
    assert Records(filled).of_key("a/") == []


def test_what_has_been_unsettled_longest_is_found(ledger: Ledger, clock: Clock) -> None:
    records = Records(ledger)
    assert records.oldest_waiting(RULE) is None
    for key, state in (
        ("failed", "failed"),
        ("first", "waiting"),
        ("second", "running"),
        ("done", "settled"),
    ):
        bring_to(ledger, state, ask(key))
        clock.now += 10
    ledger.put([ask("swept", event_at=clock.now)], lane=BACKFILL)
    oldest = records.oldest_waiting(RULE)
    assert oldest is not None
    assert (oldest["key"], oldest["state"], oldest["since"]) == ("first", "waiting", clock.now - 30)
    assert (oldest["error_code"], oldest["error"]) == (None, None)
    first = take_one(ledger, "first")
    assert first is not None
    ledger.finish([retried(first, after_s=5.0)])
    oldest = records.oldest_waiting(RULE)
    assert oldest is not None
    assert (oldest["key"], oldest["due_at"]) == ("first", clock.now + 5)
    assert (oldest["error_code"], oldest["error"]) == ("target_store_failed", "500")
    assert records.oldest_waiting("other") is None


def test_a_delete_that_is_pending_is_not_what_waits(ledger: Ledger) -> None:
    claim = bring_to(ledger, "running", ask("going"))
    assert claim is not None
    ledger.finish([deferred(claim)])
    assert Records(ledger).oldest_waiting(RULE) is None


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_quarantine_is_listed_latest_first(ledger: Ledger, clock: Clock, limit: int) -> None:
    for number in range(6):
        if number % 2 == 0:
            clock.now += 1.1
        ledger.put([], [Misfit(record_id=f"id-{number}", reason="no key", raw='{"a": 1}')])
    seen: list[str] = []
    after = None
    while True:
        page = Records(ledger).quarantine(after=after, limit=limit)
        seen += [each["record_id"] for each in page.items]
        if (after := page.after) is None:
            break
    assert seen == ["id-4", "id-5", "id-2", "id-3", "id-0", "id-1"]


def test_a_small_ledger_is_counted_each_time(filled: Ledger, clock: Clock) -> None:
    counting = Records(filled)
    assert counting.counted().counts == filled.counts_by_rule()
    filled.put([ask("new")])
    clock.now += 1
    counted = counting.counted()
    assert counted.counts == filled.counts_by_rule()
    assert counted.at == clock.now


def test_a_large_ledger_is_counted_beside_and_seldom(filled: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "EXACT_S", -1.0)
    monkeypatch.setattr(records, "COUNT_SHARE", 1e-9)
    counting = Records(filled)
    before = counting.counted()
    filled.put([ask("new")])
    assert counting.counted() is before, "it is not time yet"
    monkeypatch.setattr(records, "COUNT_SHARE", 1e9)
    counting._counts_again_at = 0.0
    assert counting.counted() is before, "nobody waits for the count"
    for thread in threading.enumerate():
        if thread.name == "counter":
            thread.join(10)
    assert counting.counted().counts == filled.counts_by_rule()
    for thread in threading.enumerate():
        if thread.name == "counter":
            thread.join(10)
