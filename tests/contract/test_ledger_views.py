"""What every engine must do for the ledger: looking, failures and their revival, odd keys, quarantine."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.contract.steps import RULE, Clock, ask, bring_to, buried, retried, row, settled, take, take_one
from webhook.database import connect
from webhook.entries import BACKFILL, STATES, Buried, Misfit, Retried, Settled
from webhook.errors import LedgerUnavailable
from webhook.events import KEY_MAX_BYTES
from webhook.ledger import Ledger
from webhook.tables import QUARANTINE

ODD_KEYS = (
    *("%", "_", "100%_sure", "back\\slash", "it's", 'say "hi"', "a/b//c/", "/lead", ".", "..", " ", "a b+c"),
    *("new\nline", "tab\t\x01\x1b[31m", "null", "🪣/🧊", "é", "e\u0301", "İıſK", "\u2028", "\ufeff", "?#&="),
    *("'; DROP TABLE entries; --", "x" * KEY_MAX_BYTES, "é" * (KEY_MAX_BYTES // 2)),
)
FAILED_KEYS = ("A/1", "a/1", "a/2", "a_1", "a%1", "a\\1", "b/1", "é/1")


@pytest.fixture
def failed(ledger: Ledger) -> Ledger:
    """A ledger with failed entries, one of them of another rule and one for another reason."""
    for key in FAILED_KEYS:
        bring_to(ledger, "failed", ask(key))
    bring_to(ledger, "failed", ask("a/1", rule="other"))
    claim = bring_to(ledger, "running", ask("a/denied"))
    assert claim is not None
    ledger.finish([buried(claim, "target_store_denied")])
    bring_to(ledger, "settled", ask("a/settled"))
    return ledger


NARROWED = [
    ({}, [(RULE, key) for key in (*FAILED_KEYS, "a/denied")] + [("other", "a/1")]),
    ({"rule": "other"}, [("other", "a/1")]),
    ({"rule": "nobody's"}, []),
    ({"rule": RULE, "prefix": "a/"}, [(RULE, "a/1"), (RULE, "a/2"), (RULE, "a/denied")]),
    ({"prefix": "A"}, [(RULE, "A/1")]),
    ({"prefix": "a_"}, [(RULE, "a_1")]),
    ({"prefix": "a%"}, [(RULE, "a%1")]),
    ({"prefix": "a\\"}, [(RULE, "a\\1")]),
    ({"prefix": "%"}, []),
    ({"prefix": "é"}, [(RULE, "é/1")]),
    ({"error_code": "target_store_denied"}, [(RULE, "a/denied")]),
    ({"error_code": "target_store_denied", "prefix": "b"}, []),
]


@pytest.mark.parametrize(("narrowed", "expected"), NARROWED)
def test_failures_are_listed_in_key_order(
    failed: Ledger, narrowed: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    found = [(entry["rule"], entry["key"]) for entry in failed.failures(**narrowed)]
    assert found == sorted(expected)
    assert failed.failures(**narrowed, limit=1) == failed.failures(**narrowed)[:1]


@pytest.mark.parametrize(("narrowed", "expected"), NARROWED)
def test_the_failures_asked_for_are_revived_and_no_others(
    failed: Ledger, narrowed: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    assert failed.revive(**narrowed) == len(expected)
    claims = take(failed)
    assert sorted((claim.rule, claim.key) for claim in claims) == sorted(expected)
    assert {(claim.attempts, claim.generation) for claim in claims} <= {(1, 2)}
    assert failed.revive(**narrowed) == 0


def test_one_key_is_revived_and_not_those_that_begin_with_it(failed: Ledger) -> None:
    bring_to(failed, "failed", ask("a/1/more"))
    assert failed.revive(key="a/1", rule=RULE, error_code="target_store_denied") == 0
    assert failed.revive(key="a/1") == 2
    assert sorted((claim.rule, claim.key) for claim in take(failed)) == [(RULE, "a/1"), ("other", "a/1")]


@pytest.mark.parametrize("text", ["\0", "a\0b", "x" * 100_000, "%" * 60_000])
def test_looking_for_what_cannot_be_there_finds_nothing(failed: Ledger, text: str) -> None:
    assert failed.failures(prefix=text) == []
    assert failed.failures(rule=text) == []
    assert failed.failures(error_code=text) == []
    assert failed.entry(RULE, text) is None


@pytest.mark.parametrize("key", ODD_KEYS, ids=ascii)
def test_any_key_that_s3_allows_goes_through_unchanged(ledger: Ledger, key: str) -> None:
    ledger.put([ask(key, 1), ask(f"{key[:-1]}~", 1)])
    claim = take_one(ledger, key)
    assert claim is not None
    assert claim.key == key
    ledger.finish([buried(claim)])
    assert [entry["key"] for entry in ledger.failures(prefix=key)] == [key]
    assert (row(ledger, key)["state"], row(ledger, f"{key[:-1]}~")["state"]) == ("failed", "waiting")


def test_keys_that_look_alike_are_different_entries(ledger: Ledger) -> None:
    alike = ["é", "e\u0301", "É", "a", "A", "a ", "a/", "/a", "ı", "i", "I"]
    ledger.put([ask(key) for key in alike])
    assert sorted(claim.key for claim in take(ledger)) == sorted(alike)


# ── how it ended ─────────────────────────────────────────────────────────────────────────────────────


def test_nobody_knows_how_it_ends_before_it_has(ledger: Ledger) -> None:
    assert ledger.ending_of(RULE, "k", generation=1) is None
    generation = ledger.put_now(ask())
    assert ledger.ending_of(RULE, "k", generation=generation) is None
    claim = take(ledger)[0]
    assert ledger.ending_of(RULE, "k", generation=generation) is None
    ledger.put_now(ask())
    ledger.finish([settled(claim)])
    assert isinstance(ledger.ending_of(RULE, "k", generation=1), Settled)
    assert ledger.ending_of(RULE, "k", generation=2) is None


def test_how_it_ended_can_be_asked_afterwards(ledger: Ledger, clock: Clock) -> None:
    generation = ledger.put_now(ask())
    ledger.finish([retried(take(ledger)[0], 30)])
    found = ledger.ending_of(RULE, "k", generation=generation)
    assert isinstance(found, Retried)
    assert (found.after_s, found.error_code, found.error) == (30, "target_store_failed", "500")
    clock.now += 30
    ledger.finish([buried(take(ledger)[0])])
    found = ledger.ending_of(RULE, "k", generation=generation)
    assert isinstance(found, Buried)
    assert (found.error_code, found.error) == ("target_store_refused", "it said no")
    result = {
        "size": 3,
        "source_etag": "s",
        "target_etag": "t",
        "cid": "c",
        "lost": ("x",),
        "bytes_copied": 3,
    }
    later = ledger.put_now(ask())
    ledger.finish([settled(take(ledger)[0], **result)])
    for asked in (generation, later):
        found = ledger.ending_of(RULE, "k", generation=asked)
        assert isinstance(found, Settled)
        assert {name: getattr(found, name) for name in result} == result


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────


def test_entries_are_counted_by_state_and_lane(ledger: Ledger) -> None:
    assert ledger.counts() == {state: {"live": 0, "backfill": 0} for state in STATES}
    for number, state in enumerate(STATES):
        for index in range(number + 1):
            bring_to(ledger, state, ask(f"{state}{index}"))
    ledger.put([ask("b1"), ask("b2")], lane=BACKFILL)
    assert ledger.counts() == {
        "waiting": {"live": 1, "backfill": 2},
        "running": {"live": 2, "backfill": 0},
        "settled": {"live": 3, "backfill": 0},
        "failed": {"live": 4, "backfill": 0},
        "held": {"live": 5, "backfill": 0},
    }


def test_quarantine_keeps_a_record_once_and_counts_its_repeats(
    ledger: Ledger, clock: Clock, database_url: str
) -> None:
    misfit = Misfit(record_id="1" * 64, reason="no key", raw='{"a": "\\u0000"}')
    ledger.put([ask()], [misfit, misfit])
    clock.now += 1
    ledger.put([], [misfit, Misfit(record_id="2" * 64, reason="no key", raw="{}")])
    assert ledger.quarantined() == 2
    engine = connect(database_url)
    with engine.connect() as connection:
        kept = connection.execute(QUARANTINE.select().order_by(QUARANTINE.c.record_id)).mappings().all()
    engine.dispose()
    assert [each["times_seen"] for each in kept] == [3, 1]
    assert (kept[0]["raw"], kept[0]["reason"]) == (misfit.raw, misfit.reason)
    assert kept[0]["last_seen_at"] - kept[0]["first_seen_at"] == 1
    ledger.check()
    assert ledger.quarantined() == 2, "checking removes nothing"


def test_a_put_is_recorded_whole_or_not_at_all(ledger: Ledger, database_url: str) -> None:
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE quarantine RENAME TO elsewhere"))
    with pytest.raises(LedgerUnavailable):
        ledger.put([ask()], [Misfit(record_id="1" * 64, reason="", raw="")])
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO quarantine"))
    engine.dispose()
    assert ledger.entry(RULE, "k") is None


def test_the_upload_of_an_entry_that_failed_long_ago_is_found_and_forgotten(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.put([ask("old", 1), ask("young", 1), ask("without", 1), ask("running", 1)])
    for claim in take(ledger):
        if claim.key != "without":
            ledger.note_upload(claim, "note")
        if claim.key in ("old", "without"):
            ledger.finish([buried(claim)])
        elif claim.key == "young":
            clock.now += 100
            ledger.finish([buried(claim)])
    (found,) = ledger.failed_with_upload(before=clock.now - 50)
    assert (found.key, found.upload) == ("old", "note")
    ledger.revive(prefix="old")
    ledger.drop_upload(found)
    assert row(ledger, "old")["upload"] == "note", "somebody asked for it meanwhile"
    again = take_one(ledger, "old")
    assert again is not None
    ledger.finish([buried(again)])
    ledger.drop_upload(found)
    assert row(ledger, "old")["upload"] == "note", "another claim has ended since"
    ledger.drop_upload(again)
    assert row(ledger, "old")["upload"] is None
