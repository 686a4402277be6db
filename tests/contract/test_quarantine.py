"""What every engine must do for records that nobody could act on: dropped, or tried again without a loss."""

from __future__ import annotations

import json

import pytest

from tests.contract.steps import RULE, row
from webhook import quarantine
from webhook.entries import Misfit
from webhook.errors import LedgerUnavailable
from webhook.ledger import Ledger
from webhook.quarantine import Quarantine, Tried
from webhook.rules import Rules, Template

RULES = Rules(templates=(Template(name=RULE, sources=("photos",), target_bucket="copies"),))


def record(key: str, bucket: str = "photos") -> dict[str, object]:
    """One of MinIO's, less what nobody reads."""
    s3 = {"bucket": {"name": bucket}, "object": {"key": key}}
    return {"eventName": "s3:ObjectCreated:Put", "s3": s3}


def keep(ledger: Ledger, **raw: object) -> None:
    """Leaves records in quarantine, by id."""
    misfits = [Misfit(record_id=each, reason="odd", raw=json.dumps(raw[each])) for each in raw]
    ledger.put([], misfits)


@pytest.mark.parametrize("page", [1, 2, 100])
def test_each_record_is_tried_once_whatever_its_form(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(quarantine, "PAGE_RECORDS", page)
    keep(
        ledger,
        a=record("one"),
        b={"Records": [record("two"), record("three")]},
        c=json.dumps({"Records": [record("four")]}),
        d=record("elsewhere", "nobody's"),
        e={"s3": {}},
        f="no JSON at all",
        g={"Records": [record("five"), 7]},
    )
    found = Quarantine(ledger).retry(RULES)
    assert found == Tried(accepted=4, ignored=1, kept=3)
    assert {row(ledger, key)["state"] for key in ("one", "two", "three", "four")} == {"waiting"}
    assert ledger.entry(RULE, "five") is None, "what can only be used in part stays whole"
    assert ledger.quarantined() == 3
    assert Quarantine(ledger).retry(RULES) == Tried(accepted=0, ignored=0, kept=3)


def test_only_the_record_that_is_meant_is_tried_or_dropped(ledger: Ledger) -> None:
    keep(ledger, a=record("one"), b=record("two"), c=record("three"))
    kept = Quarantine(ledger)
    assert kept.retry(RULES, "a") == Tried(accepted=1)
    assert ledger.entry(RULE, "two") is None
    assert [kept.discard(each) for each in ("a", "b", "b")] == [0, 1, 0]
    assert ledger.quarantined() == 1
    assert kept.discard() == 1
    assert ledger.entry(RULE, "three") is None


@pytest.mark.parametrize("step", ["put", "run"])
def test_a_retry_that_is_interrupted_loses_nothing_and_asks_for_nothing_twice(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    keep(ledger, a=record("one"))

    def die(*_: object) -> None:
        raise LedgerUnavailable("killed")

    with monkeypatch.context() as patch, pytest.raises(LedgerUnavailable):
        patch.setattr(ledger, step, die)
        Quarantine(ledger).retry(RULES)
    assert ledger.quarantined() == 1
    assert Quarantine(ledger).retry(RULES) == Tried(accepted=1)
    assert row(ledger, "one")["generation"] == 1, "the event is known by its id"
    assert ledger.quarantined() == 0
