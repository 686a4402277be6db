"""Which ending comes of what a copy meets."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from webhook import errors
from webhook.attempt import Lease, Means, Task, attempt
from webhook.clocks import elapsed_s
from webhook.copier import Copier, Known, Outcome, OutcomeKind
from webhook.deletes import Deletes
from webhook.entries import LIVE, Buried, Claim, Parked, Released, Retried, Settled
from webhook.errors import IntegrityError, LeaseLost, LedgerUnavailable, Place, StoreError
from webhook.ledger import Ledger
from webhook.pauses import Pauses
from webhook.rules import Rule, Rules, Template

RULES = Rules(templates=(Template(name="default", sources=("s",), target_bucket="t"),))
RULE = RULES.matching(bucket="s", key="k")[0]
ATTEMPTS_MAX = 3


class StubCopier:
    """Does what it is told instead of copying."""

    def __init__(self, result: Outcome | BaseException) -> None:
        self.result = result
        self.asked: dict[str, Any] = {}

    def copy_object(self, rule: Rule, key: str, **asked: Any) -> Outcome:
        self.asked = {"rule": rule, "key": key, **asked}
        if isinstance(self.result, Outcome):
            return self.result
        raise self.result


def task(**known: Any) -> Task:
    """A claim just taken."""
    facts: dict[str, Any] = {
        "rule": "default",
        "key": "k",
        "generation": 1,
        "number": 1,
        "worker": "w",
        "lane": LIVE,
        "attempts": 1,
        "backoff_s": 0.0,
        "event_at": 0.0,
        "claimed_at": 0.0,
        "history": "[]",
        "source_etag": None,
        "target_etag": None,
        "upload": None,
        "lost": "[]",
    }
    claim = Claim(**(facts | known))
    lease = Lease(claim, cast(Ledger, None), taken_at=elapsed_s(), lease_s=60.0)
    return Task(claim=claim, lease=lease)


class StubPauses:
    """Some rules are paused."""

    def __init__(self, *rules: str) -> None:
        self.rules = rules

    def is_paused(self, rule: str) -> bool:
        return rule in self.rules


def means(copier: StubCopier, attempts_max: int = ATTEMPTS_MAX, *, paused: str = "") -> Means:
    """One rule, one copier, and no rule that asks for deletes."""
    copiers = {"filebase": cast(Copier, copier)}
    return Means(
        rules=RULES,
        copiers=copiers,
        deletes=cast(Deletes, None),
        pauses=cast(Pauses, StubPauses(paused)),
        attempts_max=attempts_max,
        clock=time.time,
    )


def ending(result: Outcome | BaseException, **known: Any) -> Any:
    """What comes of it."""
    return attempt(task(**known), means(StubCopier(result)))


def store_error(name: str, **facts: Any) -> StoreError:
    """An error of that class."""
    place = Place(side="target", operation="PutObject", bucket="t", key="k")
    error: StoreError = getattr(errors, name)("said no", place, **facts)
    return error


@pytest.mark.parametrize("kind", [OutcomeKind.REPLICATED, OutcomeKind.UNCHANGED])
def test_a_copy_that_succeeds_is_settled_with_all_it_found(kind: OutcomeKind) -> None:
    facts: dict[str, Any] = {
        "size": 3,
        "bytes_copied": 2,
        "source_etag": "a",
        "source_version": "v",
        "target_etag": "b",
        "cid": "c",
        "lost": ("tag: x",),
    }
    found = ending(Outcome(kind=kind, **facts))
    assert isinstance(found, Settled)
    assert type(found.outcome) is str
    assert found.outcome == kind.value
    assert {name: getattr(found, name) for name in facts} == facts


def test_what_is_gone_at_the_source_and_stays_at_the_target_keeps_what_is_known_of_it() -> None:
    found = ending(Outcome(kind=OutcomeKind.GONE), source_etag="a", target_etag="b")
    assert (found.outcome, found.source_etag, found.target_etag) == ("gone", "a", "b")


def test_the_copy_is_told_what_the_last_one_left_on_record() -> None:
    stub, given = (
        StubCopier(Outcome(kind=OutcomeKind.GONE)),
        task(source_etag="a", upload="{}", lost='["tags"]', attempts=2),
    )
    attempt(given, means(stub, attempts_max=2))
    known = Known(source_etag="a", target_etag="", upload="{}", lost=frozenset({"tags"}), is_retry=True)
    assert stub.asked == {"rule": RULE, "key": "k", "permit": given.lease, "known": known}


@pytest.mark.parametrize(
    ("known", "is_first"),
    [({}, True), ({"attempts": 2}, False), ({"history": '[{"result": "gone"}]'}, False)],
)
def test_the_copy_is_told_whether_it_is_the_key_s_first(known: dict[str, Any], is_first: bool) -> None:
    stub, given = StubCopier(Outcome(kind=OutcomeKind.GONE)), task(**known)
    attempt(given, means(stub, attempts_max=2))
    assert stub.asked["known"].is_first is is_first


@pytest.mark.parametrize(
    ("error", "code", "counts"),
    [
        (store_error("StoreUnavailable"), "target_store_unavailable", False),
        (store_error("StoreFailed"), "target_store_failed", True),
        (store_error("StoreDenied"), "target_store_denied", True),
        (store_error("NoSuchKey"), "target_no_such_key", True),
        (store_error("SourceChanged"), "target_source_changed", False),
        (store_error("TargetChanged"), "target_changed", False),
        (IntegrityError("damaged"), "integrity", True),
        (LedgerUnavailable("away"), "ledger_unavailable", False),
        (ZeroDivisionError("s3cr3t"), "unexpected", True),
    ],
    ids=repr,
)
def test_an_error_that_may_pass_is_tried_again(error: Exception, code: str, counts: bool) -> None:
    found = ending(error)
    assert isinstance(found, Retried)
    assert (found.error_code, found.counts) == (code, counts)
    last = ending(error, attempts=ATTEMPTS_MAX)
    assert type(last) is (Buried if counts else Retried)
    assert (last.error_code, last.error) == (code, found.error)
    assert "s3cr3t" not in found.error


@pytest.mark.parametrize("attempts", [1, ATTEMPTS_MAX])
def test_an_error_that_will_not_pass_is_buried_at_once(attempts: int) -> None:
    found = ending(store_error("StoreRefused", hint="Do this."), attempts=attempts)
    assert isinstance(found, Buried)
    assert found.error_code == "target_store_refused"
    assert "PutObject" in found.error
    assert found.error.endswith("Do this.")


def test_a_store_s_wish_and_the_last_delay_are_respected() -> None:
    found = ending(store_error("StoreUnavailable", retry_after_s=4_000.0), backoff_s=8.0)
    assert (found.after_s, found.backoff_s) == (4_000.0, 16.0)


@pytest.mark.parametrize("attempts", [1, ATTEMPTS_MAX])
def test_a_lost_lease_is_handed_back(attempts: int) -> None:
    assert isinstance(ending(LeaseLost("over"), attempts=attempts), Released)


def test_an_entry_that_takes_its_workers_with_it_is_buried() -> None:
    found = ending(Outcome(kind=OutcomeKind.REPLICATED), attempts=ATTEMPTS_MAX + 1)
    assert isinstance(found, Buried)
    assert found.error_code == "worker_lost"


def test_an_entry_whose_rule_is_gone_is_tried_again_and_says_so() -> None:
    found = ending(Outcome(kind=OutcomeKind.REPLICATED), rule="older")
    assert isinstance(found, Retried)
    assert "older" in found.error


def test_what_ends_the_process_is_not_held_up() -> None:
    with pytest.raises(KeyboardInterrupt):
        ending(KeyboardInterrupt())


def test_a_lease_ends_with_its_time_or_when_told_and_is_prolonged() -> None:
    given = task()
    lease = given.lease
    lease.check()
    for asked_s_ago, is_over in ((61.0, True), (0.0, False), (59.0, False), (60.0, True)):
        lease.prolong(time.monotonic() - asked_s_ago)
        if is_over:
            with pytest.raises(LeaseLost):
                lease.check()
        else:
            lease.check()
    lease.end()
    lease.prolong(time.monotonic())
    with pytest.raises(LeaseLost, match="'k'"):
        lease.check()


def test_nothing_is_copied_for_a_paused_rule() -> None:
    copier = StubCopier(Outcome(kind=OutcomeKind.UNCHANGED))
    ended = attempt(task(), means(copier, paused="default"))
    assert isinstance(ended, Parked)
    assert copier.asked == {}
    assert isinstance(attempt(task(), means(copier, paused="other")), Settled)
