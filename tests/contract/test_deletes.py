"""What every engine must do for deletes: whose copy it is, how long it stays, how many go, who decides."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tests.contract.steps import LEASE_S, RULE, Clock, ask, bring_to, removal, retried, row, settled, take
from webhook.copier import Copier
from webhook.database import connect
from webhook.deletes import NOT_OURS, SMALL_RULE_KEYS, UNDECIDED_S, WINDOW_S, Breaker, Deletes
from webhook.entries import Claim, Deferred, Ending, Held, Settled
from webhook.errors import LeaseLost, Place, StoreDenied
from webhook.ledger import Ledger
from webhook.objects import ObjectInfo, Properties
from webhook.rules import Rule
from webhook.settings import DeleteSettings
from webhook.sweeps import Sweeps

GRACE_S = 60.0
MAX = 5
BOUND_S = 60.0
DEFAULT = Rule(name=RULE, source_bucket="here", target_bucket="there", deletes=True)
OTHER = Rule(name="other", source_bucket="here", target_bucket="elsewhere", deletes=True)


class Permit:
    """A lease that holds until it is over."""

    is_over = False

    def check(self) -> None:
        if self.is_over:
            raise LeaseLost("the lease is over")

    def note_upload(self, note: str | None) -> None:
        raise AssertionError("a delete has no upload")


@dataclass
class Stores:
    """Both sides, as a delete sees them: what the target has, and which keys the source has again."""

    target: dict[str, str] = field(default_factory=dict)
    """Key → ETag."""
    back: set[str] = field(default_factory=set)
    removed: list[str] = field(default_factory=list)
    before_check: Callable[[], object] = lambda: None
    error: Exception | None = None

    def present(self, rule: Rule, key: str) -> ObjectInfo | None:
        if self.error:
            raise self.error
        if key not in self.target:
            return None
        return ObjectInfo(size=1, etag=self.target[key], version_id="", properties=Properties(), tag_count=0)

    def remove_copy(self, rule: Rule, key: str, *, permit: Any, etag: str) -> bool:
        assert etag == self.target[key]
        if key in self.back:
            return False
        self.before_check()
        permit.check()
        self.removed.append(key)
        del self.target[key]
        return True


@dataclass
class Bench:
    """A ledger, both stores, and what stands between them."""

    ledger: Ledger
    clock: Clock
    stores: Stores
    deletes: Deletes
    permit: Permit = field(default_factory=Permit)
    events: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def claim(self, key: str, rule: str = RULE) -> Claim:
        """The key, due or not."""
        claim = self.ledger.claim_one(rule, key, worker="w", lease_s=LEASE_S)
        assert claim is not None
        return claim

    def copied(self, *keys: str, rule: str = RULE, etag: str = "t") -> None:
        """These keys were copied by this service."""
        self.ledger.put([ask(key, rule=rule) for key in keys])
        claims = [self.claim(key, rule) for key in keys]
        self.ledger.finish([settled(claim, source_etag="s", target_etag=etag) for claim in claims])
        self.stores.target |= dict.fromkeys(keys, etag)

    def end(self, claim: Claim, rule: Rule = DEFAULT) -> Ending:
        """The source has no such key: what follows is noted."""
        ending = self.deletes.ending(claim, rule, cast(Copier, self.stores), self.permit)
        assert self.ledger.finish([ending]) == 1
        return ending

    def look(self, key: str = "k", rule: Rule = DEFAULT) -> Ending:
        """One attempt at the key, due or not."""
        return self.end(self.claim(key, rule.name), rule)

    def gone(self, *keys: str, rule: Rule = DEFAULT) -> None:
        """Removals are told, looked at once, and pending from now on."""
        self.ledger.put([removal(key, next(self.events), rule=rule.name) for key in keys])
        endings = [self.look(key, rule) for key in keys]
        assert [type(ending) for ending in endings] == [Deferred] * len(keys)

    def look_at_all(self) -> list[type[Ending]]:
        """One attempt at all that is due, one after the other."""
        claims = sorted(take(self.ledger, 10_000), key=lambda claim: claim.key)
        return [type(self.end(claim)) for claim in claims]


@pytest.fixture
def bench_of(ledger: Ledger, clock: Clock) -> Callable[..., Bench]:
    """A bench with settings of its own; both rules are in force."""
    Sweeps(ledger).register({RULE: "1", "other": "1"})
    clock.now += 1

    def make(*, grace_s: float = GRACE_S, breaker_max: int = MAX, breaker_share: float = 1.0) -> Bench:
        settings = DeleteSettings(grace_s=grace_s, breaker_max=breaker_max, breaker_share=breaker_share)
        return Bench(ledger, clock, Stores(), Deletes(ledger, settings))

    return make


@pytest.fixture
def bench(bench_of: Callable[..., Bench]) -> Bench:
    """Up to MAX keys may go within an hour, whatever their share."""
    return bench_of()


def keys(count: int, start: int = 0) -> list[str]:
    return [f"k{number:04d}" for number in range(start, start + count)]


# ── whose copy it is ─────────────────────────────────────────────────────────────────────────────────────


def test_what_the_target_does_not_have_is_gone_at_once(bench: Bench) -> None:
    bench.copied("k")
    bench.stores.target.clear()
    bench.ledger.put([removal()])
    assert isinstance(ending := bench.look(), Settled)
    assert (ending.outcome, ending.lost, bench.stores.removed) == ("gone", (), [])
    entry = row(bench.ledger)
    assert (entry["state"], entry["outcome"], entry["gone_at"]) == ("settled", "gone", None)
    assert (entry["asked_at"], entry["removal_told"]) == (None, 0)


def test_a_copy_that_the_target_denied_for_a_while_goes_once_it_is_seen_again(bench: Bench) -> None:
    bench.copied("k")
    bench.ledger.put([removal("k")])
    hidden = bench.stores.target.copy()
    bench.stores.target.clear()
    assert isinstance(bench.look(), Settled)
    bench.stores.target |= hidden
    bench.ledger.put([ask("k")])
    assert isinstance(bench.look(), Deferred)
    bench.clock.now += GRACE_S
    assert isinstance(bench.look(), Settled)
    assert bench.stores.removed == ["k"]


@pytest.mark.parametrize("is_told", [False, True])
def test_the_copy_on_record_is_this_service_s(bench: Bench, is_told: bool) -> None:
    bench.copied("k")
    bench.ledger.put([removal() if is_told else ask()])
    assert isinstance(bench.look(), Deferred)


@pytest.mark.parametrize("is_told", [False, True])
def test_what_somebody_else_wrote_over_the_copy_stays_however_often_its_removal_is_told(
    bench: Bench, is_told: bool
) -> None:
    bench.copied("k")
    bench.stores.target["k"] = "somebody else's"
    for event in range(1, 4):
        bench.ledger.put([removal(event=event) if is_told else ask()])
        assert isinstance(ending := bench.look(), Settled)
        assert (ending.outcome, ending.lost) == ("gone", (NOT_OURS,))
        bench.clock.now += GRACE_S
    assert bench.stores.removed == []
    assert row(bench.ledger)["lost"] == [NOT_OURS]


def test_a_copy_nothing_is_known_of_goes_where_an_event_told_of_the_removal(bench: Bench) -> None:
    bench.stores.target["k"] = "from before"
    bench.ledger.put([removal()])
    assert isinstance(bench.look(), Deferred)
    bench.clock.now += GRACE_S
    assert isinstance(bench.look(), Settled)
    assert bench.stores.removed == ["k"]


def test_a_copy_nothing_is_known_of_stays_where_no_event_told_of_a_removal(bench: Bench) -> None:
    bench.stores.target["k"] = "from before"
    bench.ledger.put([ask()])
    assert isinstance(ending := bench.look(), Settled)
    assert (ending.lost, bench.stores.removed) == ((NOT_OURS,), [])


@pytest.mark.parametrize("was_copied_before", [False, True])
@pytest.mark.parametrize("is_told", [False, True])
def test_a_copy_whose_write_was_never_answered_is_known_by_what_the_source_was_told_to_have(
    bench: Bench, was_copied_before: bool, is_told: bool
) -> None:
    if was_copied_before:
        bench.copied("k")
    bench.ledger.put([ask(event=1, etag="first"), ask(event=2, etag="second")])
    assert bench.ledger.finish([retried(bench.claim("k"))]) == 1
    bench.stores.target["k"] = "first"
    if is_told:
        bench.ledger.put([removal()])
    assert isinstance(bench.look(), Deferred)
    bench.clock.now += GRACE_S
    assert isinstance(bench.look(), Settled)
    assert bench.stores.removed == ["k"]


def test_what_the_source_never_had_stays_whatever_was_told(bench: Bench) -> None:
    bench.copied("k")
    bench.ledger.put([ask(event=1, etag="first"), removal()])
    bench.stores.target["k"] = "somebody else's"
    assert isinstance(ending := bench.look(), Settled)
    assert (ending.lost, bench.stores.removed) == ((NOT_OURS,), [])


# ── how long it stays ────────────────────────────────────────────────────────────────────────────────────


def test_a_copy_goes_when_its_grace_period_is_over_and_not_before(bench: Bench) -> None:
    bench.copied("k")
    bench.ledger.put([removal()])
    gone_at = bench.clock.now
    assert cast(Deferred, bench.look()).after_s == GRACE_S
    entry = row(bench.ledger)
    assert (entry["state"], entry["gone_at"], entry["due_at"]) == ("waiting", gone_at, gone_at + GRACE_S)
    bench.clock.now += GRACE_S - 20
    assert take(bench.ledger) == []
    assert cast(Deferred, bench.look()).after_s == 20
    assert row(bench.ledger)["gone_at"] == gone_at
    bench.clock.now += 20
    assert bench.look_at_all() == [Settled]
    assert bench.stores.removed == ["k"]
    entry = row(bench.ledger)
    assert (entry["state"], entry["outcome"], entry["due_at"]) == ("settled", "deleted", None)
    assert (entry["gone_at"], entry["target_etag"], entry["asked_at"]) == (gone_at, None, None)


def test_without_a_grace_period_the_source_is_still_looked_at_twice(bench_of: Callable[..., Bench]) -> None:
    bench = bench_of(grace_s=0.0)
    bench.copied("k")
    bench.ledger.put([removal()])
    assert cast(Deferred, bench.look()).after_s == 0
    assert bench.stores.removed == []
    assert bench.look_at_all() == [Settled]
    assert bench.stores.removed == ["k"]


def test_a_removal_that_is_told_again_neither_hastens_nor_delays_it(bench: Bench) -> None:
    bench.copied("k")
    bench.gone("k")
    before = row(bench.ledger)
    bench.clock.now += 20
    bench.ledger.put([removal(event=2)])
    after = row(bench.ledger)
    assert [after[name] for name in ("due_at", "gone_at")] == [before[name] for name in ("due_at", "gone_at")]
    bench.clock.now += GRACE_S - 20
    assert bench.look_at_all() == [Settled]
    assert bench.stores.removed == ["k"]


def test_a_key_that_is_told_to_be_back_has_its_whole_grace_period_before_it_when_it_goes_again(
    bench: Bench,
) -> None:
    bench.copied("k")
    bench.gone("k")
    bench.clock.now += GRACE_S - 1
    bench.ledger.put([ask(event=2)])
    assert row(bench.ledger)["gone_at"] is None
    assert cast(Deferred, bench.end(take(bench.ledger)[0])).after_s == GRACE_S
    bench.clock.now += GRACE_S - 1
    assert isinstance(bench.look(), Deferred)
    assert bench.stores.removed == []


def test_a_key_that_the_source_has_again_after_all_is_copied_and_no_longer_pending(bench: Bench) -> None:
    bench.copied("k")
    bench.gone("k")
    bench.clock.now += GRACE_S
    bench.stores.back.add("k")
    assert cast(Deferred, bench.look()).is_back
    entry = row(bench.ledger)
    assert (entry["state"], entry["gone_at"], entry["due_at"]) == ("waiting", None, bench.clock.now)
    assert (bench.stores.removed, bench.stores.target) == ([], {"k": "t"})
    bench.stores.back.clear()
    assert cast(Deferred, bench.end(take(bench.ledger)[0])).after_s == GRACE_S


@pytest.mark.parametrize("kind", [StoreDenied, LeaseLost])
def test_an_error_of_a_store_is_no_answer_and_changes_nothing(bench: Bench, kind: type[Exception]) -> None:
    bench.copied("k")
    bench.gone("k")
    bench.clock.now += GRACE_S
    place = Place(side="target", operation="HeadObject", bucket="there", key="k")
    bench.stores.error = StoreDenied("no", place) if kind is StoreDenied else LeaseLost("gone")
    claim = bench.claim("k")
    before = row(bench.ledger)
    with pytest.raises(kind):
        bench.end(claim)
    assert row(bench.ledger) == before


def test_nothing_is_deleted_under_a_lease_that_is_over(bench: Bench) -> None:
    bench.copied("k")
    bench.gone("k")
    bench.clock.now += GRACE_S
    bench.permit.is_over = True
    with pytest.raises(LeaseLost):
        bench.look()
    assert bench.stores.removed == []


# ── how many may go ──────────────────────────────────────────────────────────────────────────────────────


def test_as_many_as_the_number_may_go_and_one_more_stops_all_that_are_left(bench: Bench) -> None:
    bench.copied(*keys(MAX + 1))
    bench.gone(*keys(MAX))
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Settled] * MAX
    bench.gone(keys(MAX + 1)[-1])
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Held]
    assert bench.stores.removed == keys(MAX)
    entry = row(bench.ledger, keys(MAX + 1)[-1])
    assert (entry["state"], entry["due_at"], entry["attempts"]) == ("held", None, 0)
    assert entry["gone_at"] == bench.clock.now - GRACE_S
    assert entry["asked_at"] is not None
    assert bench.deletes.breakers()[RULE] == Breaker(
        tripped_at=bench.clock.now,
        reason=f"more than {MAX} keys would go within an hour",
        held=1,
        pending=0,
    )


def test_where_too_many_are_pending_none_goes(bench: Bench) -> None:
    bench.copied(*keys(MAX + 1))
    bench.gone(*keys(MAX + 1))
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Held] * (MAX + 1)
    assert bench.stores.removed == []


def test_where_nothing_may_go_nothing_does(bench_of: Callable[..., Bench]) -> None:
    bench = bench_of(breaker_max=0)
    bench.copied("k")
    bench.gone("k")
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Held]


@pytest.mark.parametrize(
    ("count", "going", "share", "trips"),
    [
        (SMALL_RULE_KEYS, SMALL_RULE_KEYS, 0.1, False),
        (SMALL_RULE_KEYS, 1, 0.0, False),
        (SMALL_RULE_KEYS + 1, 10, 0.1, False),
        (SMALL_RULE_KEYS + 1, 11, 0.1, True),
        (110, 11, 0.1, False),
        (110, 12, 0.1, True),
        (SMALL_RULE_KEYS + 1, 1, 0.0, True),
        (SMALL_RULE_KEYS + 1, SMALL_RULE_KEYS + 1, 1.0, False),
    ],
)
def test_the_share_counts_above_a_hundred_keys_and_only_more_than_it_trips(
    bench_of: Callable[..., Bench], count: int, going: int, share: float, trips: bool
) -> None:
    bench = bench_of(breaker_max=1000, breaker_share=share)
    bench.copied(*keys(count))
    bench.gone(*keys(going))
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Held if trips else Settled] * going
    assert len(bench.stores.removed) == (0 if trips else going)
    if trips:
        reason = f"{going} keys would go within an hour, more than {share:.0%} of its {count} keys"
        assert bench.deletes.breakers()[RULE].reason == reason


def test_keys_that_went_already_count_with_those_the_rule_has(bench_of: Callable[..., Bench]) -> None:
    """Else the share would grow by the deletes alone."""
    bench = bench_of(breaker_max=1000, breaker_share=0.1)
    bench.copied(*keys(110))
    for key in keys(11):
        bench.gone(key)
        bench.clock.now += GRACE_S
        assert bench.look_at_all() == [Settled]
    bench.gone(keys(12)[-1])
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Held]


def test_of_a_rule_with_very_many_keys_the_number_alone_counts(bench_of: Callable[..., Bench]) -> None:
    bench = bench_of(breaker_max=MAX, breaker_share=0.5)
    bench.copied(*keys(300))
    bench.gone(*keys(MAX))
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Settled] * MAX


def test_what_went_more_than_an_hour_ago_counts_no_more(bench: Bench) -> None:
    bench.copied(*keys(2 * MAX))
    bench.gone(*keys(MAX))
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Settled] * MAX
    bench.clock.now += WINDOW_S - GRACE_S
    bench.gone(*keys(MAX, MAX))
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Settled] * MAX


def test_one_more_within_the_hour_trips_it(bench: Bench) -> None:
    bench.copied(*keys(MAX + 1))
    each_s = (WINDOW_S - GRACE_S - 1) / MAX
    for key in keys(MAX):
        bench.gone(key)
        bench.clock.now += each_s
        assert bench.look_at_all() == [Settled]
    bench.gone(keys(MAX + 1)[-1])
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Held]


@pytest.mark.parametrize("grace_s", [WINDOW_S, 86_400.0])
def test_a_long_grace_period_does_not_blind_the_breaker(
    bench_of: Callable[..., Bench], grace_s: float
) -> None:
    bench = bench_of(grace_s=grace_s)
    bench.copied(*keys(MAX * 3))
    bench.gone(*keys(MAX * 3))
    bench.clock.now += grace_s
    assert bench.look_at_all() == [Held] * (MAX * 3)
    assert bench.stores.removed == []


def test_the_breaker_of_one_rule_is_not_another_s(bench: Bench) -> None:
    bench.copied(*keys(MAX + 1))
    bench.copied(*keys(MAX), rule="other")
    bench.gone(*keys(MAX + 1))
    bench.gone(*keys(MAX), rule=OTHER)
    bench.clock.now += GRACE_S
    endings = {(claim.rule, type(bench.end(claim))) for claim in take(bench.ledger)}
    assert endings == {(RULE, Held), ("other", Settled)}
    breakers = bench.deletes.breakers()
    assert (breakers[RULE].tripped_at, breakers["other"].tripped_at) == (bench.clock.now, None)


def test_a_rule_that_is_not_known_yet_deletes_nothing_until_it_is(ledger: Ledger, clock: Clock) -> None:
    settings = DeleteSettings(grace_s=GRACE_S, breaker_max=MAX, breaker_share=1.0)
    bench = Bench(ledger, clock, Stores(), Deletes(ledger, settings))
    bench.copied("k")
    bench.gone("k")
    clock.now += GRACE_S
    assert cast(Deferred, bench.look()).after_s == UNDECIDED_S
    assert (bench.stores.removed, bench.deletes.breakers()) == ([], {})
    Sweeps(ledger).register({RULE: "1"})
    clock.now += UNDECIDED_S
    assert bench.look_at_all() == [Settled]


def test_a_tripped_breaker_is_told_of_once(bench: Bench) -> None:
    bench.copied(*keys(MAX + 3))
    bench.gone(*keys(MAX + 3))
    bench.clock.now += GRACE_S
    with capture_logs() as logs:
        bench.look_at_all()
        bench.clock.now += 5
        bench.deletes.trip(RULE, "another reason")
    assert [each["event"] for each in logs if each["log_level"] == "error"] == ["delete breaker tripped"]
    breaker = bench.deletes.breakers()[RULE]
    assert (breaker.tripped_at, breaker.reason) == (
        bench.clock.now - 5,
        f"more than {MAX} keys would go within an hour",
    )


# ── who decides ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tripped(bench: Bench) -> Bench:
    """MAX + 1 deletes are held back, one is in its grace period, and time has passed since."""
    bench.copied(*keys(MAX + 1), "pending", "kept")
    bench.gone(*keys(MAX + 1))
    bench.clock.now += GRACE_S
    assert bench.look_at_all() == [Held] * (MAX + 1)
    bench.gone("pending")
    bench.clock.now += 10
    breaker = bench.deletes.breakers()[RULE]
    assert (breaker.held, breaker.pending) == (MAX + 1, 1)
    return bench


def test_what_is_approved_goes_after_a_fresh_look(tripped: Bench) -> None:
    heard: list[None] = []
    tripped.ledger.on_put(lambda: heard.append(None))
    before = row(tripped.ledger, "k0000")
    pending = row(tripped.ledger, "pending")
    assert tripped.deletes.approve(RULE) == MAX + 1
    assert heard
    entry = row(tripped.ledger, "k0000")
    assert (entry["state"], entry["due_at"]) == ("waiting", tripped.clock.now)
    assert (entry["generation"], entry["gone_at"]) == (before["generation"] + 1, before["gone_at"])
    assert row(tripped.ledger, "pending") == pending
    assert tripped.deletes.breakers()[RULE] == Breaker(tripped_at=None, reason="", held=0, pending=MAX + 2)
    tripped.stores.back.add("k0003")
    assert tripped.look_at_all() == [*[Settled] * 3, Deferred, *[Settled] * (MAX - 3)]
    assert tripped.stores.removed == [key for key in keys(MAX + 1) if key != "k0003"]


def test_what_was_approved_counts_no_more_and_what_goes_afterwards_does(tripped: Bench) -> None:
    tripped.deletes.approve(RULE)
    tripped.clock.now += GRACE_S
    assert set(tripped.look_at_all()) == {Settled}, "the one that was in its grace period too"
    tripped.copied(*keys(MAX + 1, 100))
    tripped.gone(*keys(MAX, 100))
    tripped.clock.now += GRACE_S
    assert tripped.look_at_all() == [Settled] * MAX
    tripped.gone(keys(MAX + 1, 100)[-1])
    tripped.clock.now += GRACE_S
    assert tripped.look_at_all() == [Held]


@pytest.mark.parametrize("decide", [Deletes.approve, Deletes.discard])
def test_a_claim_from_before_a_decision_deletes_nothing(
    tripped: Bench, decide: Callable[[Deletes, str], int]
) -> None:
    tripped.clock.now += GRACE_S
    claim = tripped.claim("pending")
    tripped.clock.now += 1
    decide(tripped.deletes, RULE)
    assert isinstance(tripped.end(claim), Deferred)
    assert tripped.stores.removed == []


def test_a_decision_at_the_last_moment_still_counts(bench: Bench) -> None:
    bench.copied("k")
    bench.gone("k")
    bench.clock.now += GRACE_S

    def discard() -> None:
        bench.clock.now += 1
        bench.deletes.discard(RULE)

    bench.stores.before_check = discard
    with pytest.raises(LeaseLost):
        bench.look()
    assert bench.stores.removed == []


def test_a_breaker_that_trips_at_the_last_moment_still_holds_it_back(bench: Bench) -> None:
    bench.copied("k")
    bench.gone("k")
    bench.clock.now += GRACE_S
    bench.stores.before_check = lambda: bench.deletes.trip(RULE, "the source lists no object at all")
    with pytest.raises(LeaseLost):
        bench.look()
    assert bench.stores.removed == []


def test_what_is_discarded_stays_for_good_also_what_was_in_its_grace_period(tripped: Bench) -> None:
    heard: list[None] = []
    tripped.ledger.on_put(lambda: heard.append(None))
    kept = row(tripped.ledger, "kept")
    assert tripped.deletes.discard(RULE) == MAX + 2
    assert heard
    for key in (*keys(MAX + 1), "pending"):
        entry = row(tripped.ledger, key)
        assert (entry["state"], entry["outcome"], entry["settled_at"]) == (
            "settled",
            "gone",
            tripped.clock.now,
        )
        nothing = ("due_at", "source_etag", "target_etag", "gone_at", "asked_at")
        assert {entry[name] for name in nothing} == {None}
        assert entry["removal_told"] == 0
    assert row(tripped.ledger, "kept") == kept
    assert tripped.deletes.breakers()[RULE] == Breaker(tripped_at=None, reason="", held=0, pending=0)
    tripped.clock.now += GRACE_S
    assert take(tripped.ledger) == []
    for event in (2, 3):
        tripped.ledger.put([removal(key, event) for key in (*keys(MAX + 1), "pending")])
        assert tripped.look_at_all() == [Settled] * (MAX + 2)
        tripped.clock.now += GRACE_S
    assert tripped.stores.removed == []


def test_what_is_discarded_stays_also_where_the_source_was_told_to_have_had_it(bench: Bench) -> None:
    bench.ledger.put([ask(event=1, etag="a")])
    bench.stores.target["k"] = "a"
    bench.gone("k")
    bench.deletes.discard(RULE)
    bench.ledger.put([ask(event=1, etag="a"), removal(event=3)])  # the first one comes twice
    assert isinstance(ending := bench.look(), Settled)
    assert (ending.lost, bench.stores.removed) == ((NOT_OURS,), [])
    bench.ledger.put([ask(event=4, etag="a"), removal(event=5)])
    assert isinstance(bench.look(), Deferred)


def test_what_was_discarded_is_this_service_s_again_once_it_was_copied_again(tripped: Bench) -> None:
    tripped.deletes.discard(RULE)
    tripped.copied("pending", etag="new")
    tripped.gone("pending")
    tripped.clock.now += GRACE_S
    assert tripped.look_at_all() == [Settled]
    assert tripped.stores.removed == ["pending"]


def test_what_runs_while_it_is_discarded_is_this_service_s_no_more(tripped: Bench) -> None:
    tripped.clock.now += GRACE_S
    claim = tripped.claim("pending")
    tripped.clock.now += 1
    tripped.deletes.discard(RULE)
    entry = row(tripped.ledger, "pending")
    assert (entry["state"], entry["target_etag"], entry["gone_at"]) == ("running", None, None)
    tripped.end(claim)
    tripped.clock.now += 2 * GRACE_S
    assert tripped.look_at_all() == [Settled]
    tripped.clock.now += 2 * GRACE_S
    assert (take(tripped.ledger), tripped.stores.removed) == ([], [])


@pytest.mark.parametrize("decide", [Deletes.approve, Deletes.discard])
def test_a_decision_about_one_rule_is_none_about_another_nor_about_what_is_to_be_copied(
    tripped: Bench, decide: Callable[[Deletes, str], int]
) -> None:
    for state in ("waiting", "running", "failed"):
        bring_to(tripped.ledger, state, ask(state))
    tripped.copied("k", rule="other")
    tripped.gone("k", rule=OTHER)
    tripped.deletes.trip("other", "reason")
    others = [(RULE, "waiting"), (RULE, "running"), (RULE, "failed"), (RULE, "kept"), ("other", "k")]
    before = [row(tripped.ledger, key, rule) for rule, key in others]
    decide(tripped.deletes, RULE)
    assert [row(tripped.ledger, key, rule) for rule, key in others] == before
    assert tripped.deletes.breakers()["other"].reason == "reason"


@pytest.mark.parametrize("decide", [Deletes.approve, Deletes.discard])
def test_a_decision_about_nothing_is_none(bench: Bench, decide: Callable[[Deletes, str], int]) -> None:
    bench.copied("k")
    before = row(bench.ledger)
    assert decide(bench.deletes, RULE) == decide(bench.deletes, "nobody's") == 0
    assert row(bench.ledger) == before


def test_what_is_held_back_is_looked_at_again_and_held_back_again(tripped: Bench) -> None:
    before = row(tripped.ledger, "k0000")
    assert tripped.deletes.look_again("other") == 0
    assert tripped.deletes.look_again(RULE) == MAX + 1
    assert row(tripped.ledger, "k0000")["gone_at"] == before["gone_at"]
    assert tripped.look_at_all() == [Held] * (MAX + 1)
    assert tripped.deletes.breakers()[RULE].held == MAX + 1
    assert tripped.stores.removed == []


def test_a_held_key_that_is_told_to_be_back_waits_for_nobody(tripped: Bench) -> None:
    tripped.ledger.put([ask("k0000", 9)])
    entry = row(tripped.ledger, "k0000")
    assert (entry["state"], entry["gone_at"], entry["due_at"]) == ("waiting", None, tripped.clock.now)
    assert tripped.deletes.breakers()[RULE].held == MAX


def test_deletes_that_count_no_more_are_forgotten_and_no_others(bench: Bench) -> None:
    bench.copied(*keys(MAX + 1), "old", "pending")
    bench.gone("old", "pending")
    long_ago = bench.clock.now
    bench.clock.now += GRACE_S
    assert isinstance(bench.look("old"), Settled)
    bench.clock.now += 2 * WINDOW_S + GRACE_S
    bench.deletes.forget()
    assert row(bench.ledger, "old")["gone_at"] == long_ago
    bench.clock.now += 1
    bench.gone("k0000")
    bench.deletes.forget()
    assert row(bench.ledger, "old")["gone_at"] is None
    assert row(bench.ledger, "pending")["gone_at"] == long_ago
    assert row(bench.ledger, "k0000")["gone_at"] == bench.clock.now


def test_what_is_held_for_long_is_not_forgotten(tripped: Bench) -> None:
    before = row(tripped.ledger, "k0000")
    tripped.clock.now += 48 * WINDOW_S
    tripped.deletes.forget()
    assert row(tripped.ledger, "k0000") == before


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def second(bench: Bench, database_url: str, clock: Clock) -> Iterator[Bench]:
    """The same, as another process sees it."""
    with closing(Ledger(connect(database_url), clock=clock)) as ledger:
        settings = DeleteSettings(grace_s=GRACE_S, breaker_max=MAX, breaker_share=1.0)
        yield Bench(ledger, clock, bench.stores, Deletes(ledger, settings))


@pytest.mark.parametrize("count", [MAX, MAX + 1, 4 * MAX])
def test_threads_that_ask_at_once_let_no_more_through_than_may_go(
    bench: Bench, second: Bench, count: int
) -> None:
    bench.copied(*keys(count))
    bench.gone(*keys(count))
    bench.clock.now += GRACE_S
    claims = take(bench.ledger, count)
    start = threading.Barrier(count)

    def end(number: int) -> type[Ending]:
        start.wait(BOUND_S)
        return type((bench, second)[number % 2].end(claims[number]))

    with capture_logs() as logs, ThreadPoolExecutor(count) as pool:
        endings = list(pool.map(end, range(count)))
    expected = Settled if count <= MAX else Held
    assert endings == [expected] * count
    assert len(bench.stores.removed) == (count if count <= MAX else 0)
    told = [each for each in logs if each["event"] == "delete breaker tripped"]
    assert len(told) == (0 if count <= MAX else 1)


def test_a_decision_while_others_delete_leaves_every_key_either_gone_or_kept(
    bench: Bench, second: Bench
) -> None:
    bench.copied(*keys(MAX))
    bench.gone(*keys(MAX))
    bench.clock.now += GRACE_S
    claims = take(bench.ledger, MAX)
    start = threading.Barrier(MAX + 1)

    def end(number: int) -> None:
        start.wait(BOUND_S)
        try:
            second.end(claims[number])
        except LeaseLost:
            pass  # the worker hands it back

    def discard() -> None:
        start.wait(BOUND_S)
        bench.clock.now += 1
        bench.deletes.discard(RULE)

    with ThreadPoolExecutor(MAX + 1) as pool:
        for each in [*(pool.submit(end, number) for number in range(MAX)), pool.submit(discard)]:
            each.result(BOUND_S)
    removed = set(bench.stores.removed)
    assert removed | set(bench.stores.target) == set(keys(MAX))
    assert not removed & set(bench.stores.target)
    for key in keys(MAX):
        entry = row(bench.ledger, key)
        assert (entry["outcome"] == "deleted") == (key in removed)
    for _ in range(3):
        bench.clock.now += LEASE_S + GRACE_S
        bench.look_at_all()
    assert set(bench.stores.removed) == removed
    assert sum(bench.ledger.counts()["settled"].values()) == MAX
