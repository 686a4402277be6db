"""What every engine must do for the columns that sweeps, deletes and the recovery point are told from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from tests.contract.steps import (
    LEASE_S,
    RULE,
    Clock,
    ask,
    bring_to,
    buried,
    deferred,
    held,
    missed,
    removal,
    retried,
    row,
    settled,
    take,
    take_one,
)
from webhook.database import MIGRATIONS, connect, parse_url
from webhook.deletes import Deletes
from webhook.entries import BACKFILL, LANES, LIVE, STATES, Claim, Ending, is_own
from webhook.ledger import Ledger
from webhook.progress import Progress
from webhook.settings import DeleteSettings
from webhook.sweeps import Sweeps
from webhook.tables import ENTRIES

LONG_AGO = 1_600_000_000.0


def claim_of(ledger: Ledger, key: str = "k") -> Claim:
    claim = take_one(ledger, key)
    assert claim is not None
    return claim


def sweep_puts(ledger: Ledger, *requests: Any) -> None:
    ledger.put(requests, lane=BACKFILL)


def facts(ledger: Ledger, *names: str, key: str = "k") -> tuple[Any, ...]:
    entry = row(ledger, key)
    return tuple(entry[name] for name in names)


def pending(ledger: Ledger, key: str = "k", after_s: float = 60.0) -> None:
    """The removal was told, looked at, and its grace period runs."""
    ledger.put([removal(key)])
    ledger.finish([deferred(claim_of(ledger, key), after_s)])


# ── asked_at: since when something is asked for ──────────────────────────────────────────────────────────


def test_something_is_asked_for_since_it_changed_or_if_that_is_not_known_since_now(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.put([ask("a", event_at=LONG_AGO), ask("b")])
    assert (facts(ledger, "asked_at", key="a"), facts(ledger, "asked_at", key="b")) == (
        (LONG_AGO,),
        (clock.now,),
    )


@pytest.mark.parametrize("state", ["waiting", "running", "failed", "held"])
@pytest.mark.parametrize("event", [None, 2])
@pytest.mark.parametrize("lane", [LIVE, BACKFILL])
def test_a_request_makes_it_older_but_never_younger(
    ledger: Ledger, clock: Clock, state: str, event: int | None, lane: str
) -> None:
    bring_to(ledger, state, ask(event=1, event_at=LONG_AGO))
    ledger.put([ask(event=event, event_at=LONG_AGO + 1)], lane=lane)
    assert facts(ledger, "asked_at") == (LONG_AGO,)
    ledger.put([ask(event=event and event + 1, event_at=LONG_AGO - 1)], lane=lane)
    assert facts(ledger, "asked_at") == (LONG_AGO - 1,)


def test_what_is_settled_is_asked_for_no_more_until_it_is_again(ledger: Ledger, clock: Clock) -> None:
    bring_to(ledger, "settled", ask(event_at=LONG_AGO))
    assert facts(ledger, "asked_at") == (None,)
    clock.now += 5
    ledger.put([ask(event_at=clock.now - 1)])
    assert facts(ledger, "asked_at") == (clock.now - 1,)


@pytest.mark.parametrize("end", [retried, buried, deferred, held])
def test_what_did_not_end_well_is_asked_for_since_as_long(
    ledger: Ledger, clock: Clock, end: Callable[[Claim], Ending]
) -> None:
    ledger.put([ask(event_at=LONG_AGO)])
    clock.now += 5
    ledger.finish([end(claim_of(ledger))])
    assert facts(ledger, "asked_at") == (LONG_AGO,)
    if row(ledger)["state"] == "failed":
        ledger.revive()
        assert facts(ledger, "asked_at") == (LONG_AGO,)


@pytest.mark.parametrize(("changed_s", "asked_s"), [(-3, -3), (0, 0), (2, 0)])
def test_what_was_asked_for_again_while_it_ran_is_so_since_the_change_or_the_claim(
    ledger: Ledger, clock: Clock, changed_s: float, asked_s: float
) -> None:
    """The copy has seen all that was there when it was claimed."""
    ledger.put([ask(event=1, event_at=LONG_AGO)])
    claim = claim_of(ledger)
    claimed_at, clock.now = clock.now, clock.now + 5
    ledger.put([ask(event=2, event_at=claimed_at + changed_s)])
    ledger.finish([settled(claim)])
    assert facts(ledger, "state", "asked_at", "due_at") == ("waiting", claimed_at + asked_s, clock.now)


def test_a_sweep_leaves_what_failed_to_a_person_but_notes_how_old_it_is(ledger: Ledger, clock: Clock) -> None:
    bring_to(ledger, "failed", ask(event=1))
    before = row(ledger)
    sweep_puts(ledger, ask(event_at=LONG_AGO))
    assert row(ledger) == before | {"asked_at": LONG_AGO}
    assert take(ledger) == []


@pytest.mark.parametrize("lane", [LIVE, BACKFILL])
@pytest.mark.parametrize("state", STATES)
def test_a_repeated_event_changes_none_of_it(ledger: Ledger, clock: Clock, state: str, lane: str) -> None:
    sweep_puts(ledger, missed(at=clock.now))
    bring_to(ledger, state, removal(event=1))
    before = row(ledger)
    clock.now += 5
    for event in (removal(event=1, event_at=LONG_AGO), ask(event=1, event_at=LONG_AGO)):
        ledger.put([event], lane=lane)
        assert row(ledger) == before


# ── removal_told: an event told of a removal ─────────────────────────────────────────────────────────────


def test_that_a_removal_was_told_is_known_until_it_is_settled(ledger: Ledger) -> None:
    ledger.put([removal()])
    claim = claim_of(ledger)
    assert claim.removal_told == 1
    ledger.finish([retried(claim)])
    again = claim_of(ledger)
    assert again.removal_told == 1
    ledger.finish([settled(again)])
    assert facts(ledger, "state", "removal_told") == ("settled", 0)


def test_that_a_removal_was_told_while_it_ran_is_known_to_the_next_claim(ledger: Ledger) -> None:
    ledger.put([ask(event=5)])
    claim = claim_of(ledger)
    ledger.put([removal()])
    ledger.finish([settled(claim)])
    assert claim_of(ledger).removal_told == 1


@pytest.mark.parametrize("state", ["settled", "failed", "held"])
def test_what_is_asked_for_anew_begins_without_it(ledger: Ledger, state: str) -> None:
    bring_to(ledger, state, removal())
    ledger.put([ask(event=2)])
    assert facts(ledger, "removal_told") == (0,)


def test_whether_it_was_ever_settled_is_told_with_the_claim(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask()])
    assert claim_of(ledger).settled_at is None
    clock.now += LEASE_S
    ledger.finish([settled(claim_of(ledger))])
    settled_at, clock.now = clock.now, clock.now + 9
    ledger.put([removal()])
    assert claim_of(ledger).settled_at == settled_at


# ── told_etags: what the source was told to have ─────────────────────────────────────────────────────────


def told_of(ledger: Ledger) -> str:
    return str(ledger.known(RULE, ["k"])["k"]["told_etags"])


def etags(number: int) -> list[str]:
    return [f"{each:032x}" for each in range(number)]


@pytest.mark.parametrize("lane", LANES)
def test_the_latest_etags_told_of_are_known_newest_first_each_once(ledger: Ledger, lane: str) -> None:
    for event, etag in enumerate(("a", "", "b-2", "a", "b-2", "c")):
        ledger.put([ask(event=event, etag=etag)], lane=lane)
    assert claim_of(ledger).told_etags == "c b-2 a "


def test_where_no_etag_was_told_there_is_none(ledger: Ledger) -> None:
    ledger.put([ask(event=1)])
    ledger.put([ask(event=2), removal(event=3)])
    assert told_of(ledger) == ""


def test_a_repeated_event_and_a_request_for_now_change_nothing_of_them(ledger: Ledger) -> None:
    ledger.put([ask(event=1, etag="a")])
    ledger.put([ask(event=1, etag="a")])
    ledger.put_now(ask())
    assert claim_of(ledger).told_etags == "a "


def test_only_the_latest_of_them_are_kept_and_what_was_cut_off_is_none_of_them(ledger: Ledger) -> None:
    for event, etag in enumerate(etags(7)):
        ledger.put([ask(event=event, etag=etag)])
    ledger.put([ask(event=7, etag="short"), ask(event=8, etag="x" * 65)])
    told = told_of(ledger)
    assert len(told) == 7 * 33 + 6 and told.startswith(f"short {etags(7)[-1]} ")
    ledger.put([ask(event=9, etag="an-etag-that-is-longer-than-those-of-single-parts")])
    told = told_of(ledger)
    assert len(told) == 8 * 33
    (cut,) = [each for each in etags(7)[:2] if f" {each[:5]}" in told and f"{each} " not in told][-1:]
    assert not is_own(cut[: len(told) - told.rindex(" ") - 1], None, told)
    assert all(is_own(each, None, told) for each in (etags(7)[-1], "short"))


def test_they_outlive_every_end_of_a_claim(ledger: Ledger) -> None:
    ledger.put([ask(event=1, etag="a")])
    ledger.finish([retried(claim_of(ledger))])
    ledger.put([ask(event=2, etag="b")])
    ledger.finish([settled(claim_of(ledger), source_etag="b", target_etag="b")])
    assert told_of(ledger) == "b a "


def test_an_etag_is_ours_as_it_was_written_or_as_it_was_told() -> None:
    assert is_own("t", "t", "") and is_own("a", "t", "b a ") and is_own("b", None, "b a ")
    assert not is_own("a", None, "b a") and not is_own("", "", " ") and not is_own("x", "t", "b a ")


# ── gone_at: a delete is pending ─────────────────────────────────────────────────────────────────────────


def test_a_deferred_entry_waits_and_remembers_when_it_was_first_found_gone(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.put([removal()])
    claim = claim_of(ledger)
    ledger.note_upload(claim, "unfinished")
    gone_at = clock.now
    ledger.finish([deferred(claim, 60)])
    assert facts(ledger, "state", "gone_at", "due_at") == ("waiting", gone_at, gone_at + 60)
    assert facts(ledger, "attempts", "backoff_s", "worker", "upload") == (0, 0.0, None, None)
    clock.now += 10
    again = claim_of(ledger)
    assert (again.gone_at, again.attempts) == (gone_at, 1)
    ledger.finish([deferred(again, 50)])
    assert facts(ledger, "gone_at", "due_at") == (gone_at, clock.now + 50)
    assert take(ledger) == []


def test_a_deferred_entry_whose_key_is_back_is_no_longer_pending(ledger: Ledger, clock: Clock) -> None:
    pending(ledger)
    ledger.finish([replace(deferred(claim_of(ledger), 0.0), is_back=True)])
    assert facts(ledger, "state", "gone_at", "due_at") == ("waiting", None, clock.now)


def test_a_held_entry_waits_for_nobody_but_a_person(ledger: Ledger, clock: Clock) -> None:
    pending(ledger)
    gone_at, clock.now = clock.now, clock.now + 60
    ledger.finish([held(claim_of(ledger))])
    assert facts(ledger, "state", "gone_at", "due_at", "worker") == ("held", gone_at, None, None)
    assert take(ledger) == []
    assert take_one(ledger) is None
    assert ledger.backlog(LIVE, limit=10) == 0
    assert ledger.counts()["held"][LIVE] == 1
    assert ledger.revive() == 0


def test_a_delete_that_was_discarded_while_it_ran_is_held_no_more_but_looked_at_anew(
    ledger: Ledger, clock: Clock
) -> None:
    pending(ledger)
    claim = claim_of(ledger)
    deletes = Deletes(ledger, DeleteSettings(grace_s=0, breaker_max=1, breaker_share=1.0))
    deletes.discard(RULE)
    ledger.finish([held(claim)])
    assert facts(ledger, "state", "gone_at", "due_at") == ("waiting", None, clock.now)
    assert len(take(ledger)) == 1


@pytest.mark.parametrize("end", [deferred, held])
def test_what_was_asked_for_while_it_ran_is_looked_at_again_at_once(
    ledger: Ledger, clock: Clock, end: Callable[[Claim], Ending]
) -> None:
    pending(ledger)
    claim = claim_of(ledger)
    ledger.put([ask(event=2)])
    ledger.finish([end(claim)])
    assert facts(ledger, "state", "gone_at", "due_at") == ("waiting", None, clock.now)
    assert len(take(ledger)) == 1


def test_a_removal_that_was_told_while_it_ran_leaves_the_delete_pending(ledger: Ledger, clock: Clock) -> None:
    pending(ledger)
    gone_at, clock.now = clock.now, clock.now + 5
    claim = claim_of(ledger)
    ledger.put([removal(event=2)])
    ledger.finish([deferred(claim, 55)])
    assert facts(ledger, "state", "gone_at") == ("waiting", gone_at)


@pytest.mark.parametrize("end", [deferred, held])
def test_an_end_of_a_claim_that_was_lost_changes_nothing(
    ledger: Ledger, clock: Clock, end: Callable[[Claim], Ending]
) -> None:
    ledger.put([removal()])
    lost = claim_of(ledger)
    clock.now += LEASE_S
    claim_of(ledger)
    before = row(ledger)
    assert ledger.finish([end(lost)]) == 0
    assert row(ledger) == before


@pytest.mark.parametrize("lane", [LIVE, BACKFILL])
@pytest.mark.parametrize("event", [None, 2])
@pytest.mark.parametrize("is_held", [False, True])
def test_any_request_but_another_removal_forgets_a_pending_delete_and_is_due_at_once(
    ledger: Ledger, clock: Clock, is_held: bool, event: int | None, lane: str
) -> None:
    pending(ledger, after_s=600)
    if is_held:
        ledger.finish([held(claim_of(ledger))])
    clock.now += 5
    ledger.put([ask(event=event)], lane=lane)
    assert facts(ledger, "state", "gone_at", "due_at") == ("waiting", None, clock.now)
    assert len(take(ledger)) == 1


def test_asking_for_it_now_forgets_a_pending_delete_too(ledger: Ledger, clock: Clock) -> None:
    pending(ledger, after_s=600)
    ledger.put_now(ask())
    assert facts(ledger, "state", "gone_at", "due_at") == ("waiting", None, clock.now)


def test_another_removal_leaves_a_pending_delete_as_it_is(ledger: Ledger, clock: Clock) -> None:
    pending(ledger, after_s=600)
    before = facts(ledger, "state", "gone_at", "due_at")
    clock.now += 5
    ledger.put([removal(event=2)])
    assert facts(ledger, "state", "gone_at", "due_at") == before
    assert take(ledger) == []


def test_another_removal_has_a_held_delete_looked_at_again(ledger: Ledger, clock: Clock) -> None:
    pending(ledger)
    gone_at = clock.now
    ledger.finish([held(claim_of(ledger))])
    clock.now += 5
    ledger.put([removal(event=2)])
    assert facts(ledger, "state", "gone_at", "due_at") == ("waiting", gone_at, clock.now)


def test_a_back_off_is_kept_where_no_delete_is_pending(ledger: Ledger, clock: Clock) -> None:
    ledger.put([ask()])
    ledger.finish([retried(claim_of(ledger), 30)])
    ledger.put([ask(event=2)])
    assert facts(ledger, "due_at") == (clock.now + 30,)


def test_a_delete_that_was_done_is_remembered_and_one_that_was_not_is_not(
    ledger: Ledger, clock: Clock
) -> None:
    for key in ("deleted", "copied"):
        pending(ledger, key)
    gone_at, clock.now = clock.now, clock.now + 60
    ledger.finish([settled(claim_of(ledger, "deleted"), "deleted", gone_at=gone_at)])
    ledger.finish([settled(claim_of(ledger, "copied"))])
    assert facts(ledger, "gone_at", key="deleted") == (gone_at,)
    assert facts(ledger, "gone_at", key="copied") == (None,)


@pytest.mark.parametrize("event", [None, 2])
def test_a_delete_during_which_something_was_asked_for_leaves_nothing_pending(
    ledger: Ledger, clock: Clock, event: int | None
) -> None:
    pending(ledger)
    clock.now += 60
    claim = claim_of(ledger)
    ledger.put([ask(event=event)])
    ledger.finish([settled(claim, "deleted", gone_at=claim.gone_at)])
    assert facts(ledger, "state", "gone_at", "due_at") == ("waiting", None, clock.now)


def test_what_a_sweep_wants_to_know_is_told_of_the_keys_on_record(ledger: Ledger) -> None:
    ledger.put([ask("a", etag="s"), ask("b", rule="other")])
    ledger.finish([settled(claim_of(ledger, "a"), source_etag="s", target_etag="t")])
    pending(ledger, "c")
    found = ledger.known(RULE, ["a", "b", "c", "d", "é\x01%_"])
    assert set(found) == {"a", "c"}
    told = ("state", "outcome", "source_etag", "target_etag", "told_etags")
    assert [found["a"][name] for name in told] == ["settled", "replicated", "s", "t", "s "]
    assert (found["c"]["state"], found["c"]["gone_at"] is None) == ("waiting", False)
    assert ledger.known(RULE, []) == {}


# ── missed_at: no event had told of it ───────────────────────────────────────────────────────────────────


def test_what_a_sweep_finds_and_nobody_told_of_is_noted(ledger: Ledger, clock: Clock) -> None:
    bring_to(ledger, "settled", ask("settled", event_at=LONG_AGO))
    sweep_puts(ledger, *(missed(key, at=clock.now, event_at=clock.now - 9) for key in ("new", "settled")))
    sweep_puts(ledger, ask("told"))
    noted = {key: facts(ledger, "missed_at", key=key)[0] for key in ("new", "settled", "told")}
    assert noted == {"new": clock.now, "settled": clock.now, "told": None}


@pytest.mark.parametrize("state", ["waiting", "running", "failed"])
def test_what_an_event_told_of_since_the_sweep_looked_was_not_missed(
    ledger: Ledger, clock: Clock, state: str
) -> None:
    bring_to(ledger, state, ask(event=1, event_at=clock.now))
    sweep_puts(ledger, missed(at=clock.now, event_at=clock.now))
    assert facts(ledger, "missed_at") == (None,)


def test_what_was_told_of_and_settled_since_the_sweep_looked_was_not_missed(
    ledger: Ledger, clock: Clock
) -> None:
    changed_at = clock.now
    bring_to(ledger, "settled", ask(event=1, event_at=changed_at))
    clock.now += 5
    sweep_puts(ledger, missed(at=clock.now, event_at=changed_at))
    assert facts(ledger, "missed_at") == (None,)


@pytest.mark.parametrize(("told_s", "is_missed"), [(-5, False), (0, False), (1, True)])
def test_an_event_that_comes_late_takes_it_back_and_one_of_a_later_change_does_not(
    ledger: Ledger, clock: Clock, told_s: float, is_missed: bool
) -> None:
    found_at = clock.now
    sweep_puts(ledger, missed(at=found_at, event_at=found_at - 60))
    ledger.finish([settled(claim_of(ledger))])
    clock.now += 30
    ledger.put([ask(event=1, event_at=found_at + told_s)])
    assert facts(ledger, "missed_at") == (found_at if is_missed else None,)
    ledger.finish([settled(claim_of(ledger))])
    assert facts(ledger, "missed_at") == (found_at if is_missed else None,)


@pytest.mark.parametrize("lane", [LIVE, BACKFILL])
def test_a_request_that_is_no_event_takes_nothing_back(ledger: Ledger, clock: Clock, lane: str) -> None:
    found_at = clock.now
    sweep_puts(ledger, missed(at=found_at))
    ledger.put([ask(event_at=LONG_AGO)], lane=lane)
    ledger.put_now(ask(event_at=LONG_AGO))
    assert facts(ledger, "missed_at") == (found_at,)


# ── a transaction that fails ─────────────────────────────────────────────────────────────────────────────


def test_a_transaction_that_fails_leaves_no_lock_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhook.database.BUSY_TIMEOUT_S", 0.1)
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    with pytest.raises(UnicodeEncodeError):
        ledger.put([ask("not UTF-8: \udc80")])
    ledger.put([ask()])
    assert row(ledger)["state"] == "waiting"
    ledger.close()


# ── from a ledger of the release before ──────────────────────────────────────────────────────────────────

COLUMNS = {
    "rule": RULE,
    "lane": LIVE,
    "generation": 3,
    "claimed_generation": 2,
    "claim_number": 2,
    "attempts": 1,
    "backoff_s": 0.0,
    "recent_events": "",
    "first_seen_at": LONG_AGO,
    "lost": "[]",
    "history": "[]",
}
OLD = {
    "waiting": {"due_at": LONG_AGO, "event_at": LONG_AGO + 1},
    "running": {"due_at": LONG_AGO, "event_at": LONG_AGO + 2, "worker": "w"},
    "failed": {"due_at": None, "event_at": LONG_AGO + 3, "error_code": "target_store_refused", "error": "no"},
    "settled": {
        "due_at": None,
        "event_at": LONG_AGO + 4,
        "settled_at": LONG_AGO + 5,
        "outcome": "replicated",
        "source_etag": "s",
        "target_etag": "t",
        "size": 7,
    },
}


@pytest.fixture
def old_ledger(database_url: str) -> Iterator[str]:
    """A ledger as the first release left it, with an entry in each of its states; its URL."""
    engine = sa.create_engine(parse_url(database_url))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    with engine.begin() as connection:
        columns = {column["name"] for column in sa.inspect(connection).get_columns("entries")}
        assert columns.isdisjoint({"asked_at", "removal_told", "gone_at", "missed_at"})
        for state, values in OLD.items():
            connection.execute(ENTRIES.insert().values(**COLUMNS, key=state, state=state, **values))
    engine.dispose()
    yield database_url


@pytest.fixture
def upgraded(old_ledger: str, clock: Clock) -> Iterator[Ledger]:
    """The same, opened by this release."""
    with closing(Ledger(connect(old_ledger), clock=clock)) as ledger:
        yield ledger


def test_an_upgrade_keeps_every_entry_as_it_was(upgraded: Ledger) -> None:
    for state, values in OLD.items():
        entry = row(upgraded, state)
        assert {name: entry[name] for name in values} == values
        assert (entry["state"], entry["generation"], entry["first_seen_at"]) == (state, 3, LONG_AGO)
        assert (entry["removal_told"], entry["gone_at"], entry["missed_at"]) == (0, None, None)


def test_an_upgrade_asks_for_what_is_not_settled_since_it_changed(upgraded: Ledger, clock: Clock) -> None:
    asked = {state: row(upgraded, state)["asked_at"] for state in OLD}
    assert asked == {
        "waiting": LONG_AGO + 1,
        "running": LONG_AGO + 2,
        "failed": LONG_AGO + 3,
        "settled": None,
    }
    assert Progress(upgraded).recovery([RULE], {})[RULE].by_events == LONG_AGO + 1


def test_an_upgraded_ledger_does_all_that_a_new_one_does(upgraded: Ledger, clock: Clock) -> None:
    claims = {claim.key: claim for claim in take(upgraded)}
    assert set(claims) == {"waiting", "running"}
    assert {claim.settled_at for claim in claims.values()} == {None}
    upgraded.finish([settled(claim) for claim in claims.values()])
    assert upgraded.revive() == 1
    pending(upgraded, "settled")
    sweep_puts(upgraded, missed("new", at=clock.now))
    assert Progress(upgraded).events_missed() == {RULE: 1}
    sweeps = Sweeps(upgraded)
    assert sweeps.register({RULE: "1"}) == {RULE: clock.now}
    sweeps.end(sweeps.request(RULE, cause="start"))
    assert set(sweeps.last_proofs({RULE: "1"})) == {RULE}
    deletes = Deletes(upgraded, DeleteSettings(grace_s=60.0, breaker_max=1, breaker_share=1.0))
    assert deletes.breakers()[RULE].pending == 1


def test_an_upgrade_that_fails_leaves_the_old_ledger(
    old_ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_table", fail)
        with pytest.raises(RuntimeError):
            connect(old_ledger)
    engine = sa.create_engine(parse_url(old_ledger))
    columns = {column["name"] for column in sa.inspect(engine).get_columns("entries")}
    engine.dispose()
    assert "asked_at" not in columns
    with closing(Ledger(connect(old_ledger))) as ledger:
        assert row(ledger, "waiting")["asked_at"] == LONG_AGO + 1


def test_both_engines_sort_rules_and_keys_alike(upgraded: Ledger, database_url: str) -> None:
    """By their bytes: a listing is compared with them, and two processes lock them, in one order."""
    keys = ["a-b", "a/b", "B", "b", "é", "z", "\U00010000", "\uffff"]
    upgraded.put([ask(key) for key in keys])
    with upgraded.reading() as connection:
        found = connection.execute(sa.select(ENTRIES.c.key).order_by(ENTRIES.c.key)).scalars().all()
    assert [key for key in found if key in keys] == sorted(keys, key=str.encode)
