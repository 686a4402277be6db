"""What is made of what others found out about a target, and of the ledger's text for it."""

from __future__ import annotations

import pytest

from tests.unit.test_conditions import NEW, PLACE, Store, unknown
from webhook.conditions import IF_MATCH, IF_NEW
from webhook.errors import StoreRefused, TargetChanged
from webhook.findings import HELD_MAX, TRAIT_MAX_CHARS, Findings, read
from webhook.holdings import Holdings
from webhook.objects import ObjectInfo, Properties

TEXT = Properties(content_type="text/plain", cache_control="no-store")


def shown(properties: Properties) -> ObjectInfo:
    return ObjectInfo(size=1, etag="e", version_id="", properties=properties, tag_count=0)


# ── conditions ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_condition_that_was_found_to_be_heeded_is_not_tried() -> None:
    conditions, store = unknown(), Store()
    conditions.expect(IF_MATCH, heeds=True)
    conditions.expect(IF_NEW, heeds=True)
    conditions.send("e", store.write)
    conditions.try_only_new(lambda: pytest.fail("there is nothing to find out"))
    assert store.sent == [{IF_MATCH: '"e"'}]
    assert (conditions.match, conditions.only_new) == (True, True)


def test_a_condition_that_was_found_to_be_ignored_is_not_tried_but_sent_all_the_same() -> None:
    conditions, store = unknown(), Store(heeds=False)
    conditions.expect(IF_MATCH, heeds=False)
    conditions.expect(IF_NEW, heeds=False)
    conditions.send("e", store.write)
    conditions.send("", store.write)
    conditions.try_only_new(lambda: pytest.fail("there is nothing to find out"))
    assert store.sent == [{IF_MATCH: '"e"'}, NEW]


def test_a_condition_that_was_ignored_once_and_is_heeded_by_now_is_known_to_be() -> None:
    conditions, store = unknown(), Store(etag="another")
    conditions.expect(IF_MATCH, heeds=False)
    with pytest.raises(TargetChanged):
        conditions.send("e", store.write)
    assert conditions.match is True
    assert conditions.learned == {IF_MATCH: True}


def test_a_condition_that_is_refused_by_now_is_left_out_from_then_on() -> None:
    conditions, store = unknown(), Store(minds=StoreRefused("no", PLACE, status=501))
    conditions.expect(IF_MATCH, heeds=True)
    assert conditions.send("e", store.write) == "written"
    store.sent.clear()
    conditions.send("e", store.write)
    assert store.sent == [{}]
    assert conditions.learned == {IF_MATCH: False}


def test_a_finding_counts_more_than_what_is_known_of_the_maker() -> None:
    conditions = unknown(only_new=True, match=False)
    conditions.expect(IF_NEW, heeds=False)
    conditions.expect(IF_MATCH, heeds=True)
    assert (conditions.only_new, conditions.match) == (None, True)
    assert conditions.learned == {}, "this process has seen nothing itself"


# ── traits ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trait_that_others_saw_held_need_not_be_looked_for() -> None:
    holdings = Holdings()
    assert not holdings.knows(TEXT)
    holdings.expect(["content-type: text/plain", "cache-control"])
    assert holdings.knows(TEXT)
    assert holdings.held == frozenset(), "only what this process has seen is told to others"


def test_what_others_saw_held_is_looked_for_once_there_is_doubt() -> None:
    holdings = Holdings()
    holdings.expect(["content-type: text/plain", "cache-control"])
    holdings.doubt(TEXT)
    assert not holdings.knows(TEXT)
    assert holdings.learn(TEXT, shown(Properties(content_type="text/plain"))) == ("cache-control",)
    assert holdings.lost(TEXT) == ("cache-control",)
    assert holdings.held == {"content-type: text/plain"}


def test_what_this_process_saw_held_is_not_doubted() -> None:
    holdings = Holdings()
    holdings.learn(TEXT, shown(TEXT))
    holdings.doubt(TEXT)
    assert holdings.knows(TEXT)


# ── the ledger's text ────────────────────────────────────────────────────────────────────────────────────


def test_findings_are_read_as_they_were_written() -> None:
    findings = Findings(
        conditions={"PutObject if-match": True, "PutObject if-none-match": False},
        held=frozenset({"expires", "metadata"}),
        wants_digests=True,
        report={"odd keys": ["+"]},
    )
    assert read(findings.as_json()) == findings


@pytest.mark.parametrize(
    "text", ["", "[]", "no JSON", '{"conditions": [1], "held": {"a": 1}, "wants_digests": 1, "report": 7}']
)
def test_what_cannot_be_understood_is_left_out(text: str) -> None:
    assert read(text) == Findings()


def test_only_so_many_traits_are_kept_and_none_that_is_too_long() -> None:
    many = frozenset(f"content-type: x/{number:04}" for number in range(HELD_MAX + 50))
    kept = read(Findings(held=many | {"x" * (TRAIT_MAX_CHARS + 1)}).as_json()).held
    assert len(kept) == HELD_MAX
    assert kept < many
