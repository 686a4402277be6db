"""What every engine must do for sweeps: which is next, how far it has come, who may do it, what it proves."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
import sqlalchemy as sa

from tests.contract.steps import LEASE_S, RULE, Clock
from webhook.compare import Kind
from webhook.database import connect
from webhook.errors import LedgerUnavailable
from webhook.ledger import Ledger
from webhook.sweeps import COMPLETE, COUNTS, DROPPED, KEPT_FOR_EACH_RULE, OPEN, NotOpen, Sweep, Sweeps
from webhook.tables import RULES

SPAWN = multiprocessing.get_context("spawn")
BOUND_S = 60.0
PROCESSES = 3


@pytest.fixture
def sweeps(ledger: Ledger) -> Sweeps:
    """Nothing was swept yet."""
    return Sweeps(ledger)


@pytest.fixture
def other(database_url: str, clock: Clock) -> Iterator[Sweeps]:
    """The same ledger, as another process sees it."""
    with closing(Ledger(connect(database_url), clock=clock)) as ledger:
        yield Sweeps(ledger)


def proofs(sweeps: Sweeps, **shapes: str) -> dict[str, Sweep]:
    """Those of rules that say "1", where nothing else is given."""
    return sweeps.last_proofs(shapes or dict.fromkeys([RULE, "other", "dropped"], "1"))


def ids(found: list[Sweep]) -> list[int]:
    return [sweep.id for sweep in found]


def proved(sweeps: Sweeps, rule: str = RULE, *, prefix: str = "") -> Sweep:
    """A sweep that was done."""
    return sweeps.end(sweeps.begin(sweeps.request(rule, prefix=prefix, cause="request"), worker="w"))


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_that_is_asked_for_is_open_and_due_and_has_done_nothing(sweeps: Sweeps, clock: Clock) -> None:
    sweep = sweeps.request(RULE, prefix="a/", cause="start")
    assert (sweep.rule, sweep.prefix, sweep.cause, sweep.state) == (RULE, "a/", "start", OPEN)
    assert (sweep.asked_at, sweep.due_at, sweep.cursor, sweep.on_disk) == (clock.now, clock.now, "", "")
    assert {getattr(sweep, name) for name in COUNTS} == {0}
    empty = ("started_at", "proves_at", "ended_at", "worker", "error")
    assert {getattr(sweep, name) for name in empty} == {None}
    assert (sweeps.get(sweep.id), sweeps.next_due()) == (sweep, sweep)


def test_while_one_is_open_for_the_same_keys_that_one_is_given(sweeps: Sweeps, clock: Clock) -> None:
    first = sweeps.request(RULE, cause="start")
    begun = sweeps.advance(sweeps.begin(first, worker="w"), "m", {"compared": 7})
    clock.now += 5
    again = sweeps.request(RULE, cause="request")
    assert (again.id, again.cause, again.asked_at) == (first.id, "start", first.asked_at)
    assert (again.cursor, again.compared, again.started_at) == ("m", 7, begun.started_at)
    sweeps.end(again)
    assert sweeps.request(RULE, cause="request").id != first.id


def test_another_prefix_or_rule_is_another_sweep(sweeps: Sweeps) -> None:
    asked = [("a", ""), ("a", "x"), ("a", "x/"), ("a", "X"), ("b", ""), ("a.b", ""), ("a", "é")]
    made = [sweeps.request(rule, prefix=prefix, cause="request").id for rule, prefix in asked]
    assert len(set(made)) == len(asked)
    assert [sweeps.request(rule, prefix=prefix, cause="request").id for rule, prefix in asked] == made


def test_one_that_was_put_off_is_due_at_once_where_it_is_asked_for(sweeps: Sweeps, clock: Clock) -> None:
    sweep = sweeps.put_off(sweeps.request(RULE, cause="start"), by_s=300.0, error="it failed")
    clock.now += 10
    assert sweeps.next_due() is None
    again = sweeps.request(RULE, cause="request")
    assert (again.id, again.due_at, again.error) == (sweep.id, clock.now, "it failed")
    assert sweeps.next_due() == again


def test_a_sweep_that_ends_while_it_is_asked_for_is_no_trouble(
    sweeps: Sweeps, ledger: Ledger, other: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweeps.request(RULE, cause="start")
    run = ledger.run

    def run_and_see_it_end(*statements: Any, **more: Any) -> Any:
        done = run(*statements, **more)
        other.end(first)
        return done

    monkeypatch.setattr(ledger, "run", run_and_see_it_end)
    assert sweeps.request(RULE, cause="request").rule == RULE


# ── what is next ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_has_been_due_longest_is_next(sweeps: Sweeps, clock: Clock) -> None:
    made = []
    for rule in "cab":
        made.append(sweeps.request(rule, cause="start"))
        clock.now += 1
    for sweep in made:
        assert sweeps.next_due() == sweep
        sweeps.end(sweep)
    assert sweeps.next_due() is None


def test_what_was_begun_comes_before_what_was_not(sweeps: Sweeps, clock: Clock) -> None:
    first = sweeps.request("a", cause="start")
    clock.now += 1
    begun = sweeps.begin(sweeps.request("b", cause="start"), worker="w")
    assert sweeps.next_due() == begun
    sweeps.put_off(begun, by_s=30.0, error="it failed")
    assert sweeps.next_due() == first
    clock.now += 30
    assert (due := sweeps.next_due()) and due.id == begun.id


def test_nothing_is_next_before_its_time_nor_after_its_end(sweeps: Sweeps, clock: Clock) -> None:
    assert sweeps.next_due() is None
    put_off = sweeps.put_off(sweeps.request("a", cause="start"), by_s=5.0, error="it failed")
    sweeps.end(sweeps.request("b", cause="start"))
    sweeps.end(sweeps.request("c", cause="start"), DROPPED)
    assert sweeps.next_due() is None
    clock.now += 5
    assert sweeps.next_due() == put_off


# ── how far it has come ──────────────────────────────────────────────────────────────────────────────────


def test_who_works_on_it_is_noted_and_since_when_it_was_first_worked_on(sweeps: Sweeps, clock: Clock) -> None:
    sweep = sweeps.put_off(sweeps.request(RULE, cause="start"), by_s=0.0, error="it failed")
    begun_at = clock.now
    begun = sweeps.begin(sweep, worker="first")
    assert (begun.worker, begun.started_at, begun.error) == ("first", begun_at, None)
    clock.now += 9
    again = sweeps.begin(begun, worker="second")
    assert (again.worker, again.started_at) == ("second", begun_at)


def test_what_it_proves_is_noted_once_and_stays(sweeps: Sweeps) -> None:
    sweep = sweeps.prove_from(sweeps.request(RULE, cause="start"), 100.0)
    assert sweeps.prove_from(sweep, 200.0).proves_at == 100.0


def test_the_cursor_is_kept_and_what_was_found_is_added_up(sweeps: Sweeps, other: Sweeps) -> None:
    sweep = sweeps.request(RULE, cause="start")
    found: Counter[str] = Counter({Kind.MISSING: 2, Kind.KEPT: 1})
    found["compared"], found["compared_bytes"], found["put"] = 10, 6 * 1024**4, 2
    sweep = sweeps.advance(sweep, "a/é\x01", found)
    sweep = other.advance(sweep, "b", {"compared": 5, "different": 1, "unproven": 1, "extra": 3})
    assert {name: getattr(sweep, name) for name in COUNTS} == {
        "compared": 15,
        "compared_bytes": 6 * 1024**4,
        "missing": 2,
        "different": 1,
        "unproven": 1,
        "extra": 3,
        "kept": 1,
        "put": 2,
    }
    assert (sweep.cursor, sweep.state) == ("b", OPEN)
    assert (
        sweeps.next_due()
        == sweep
        == sweeps.put_off(sweep, by_s=0.0, error="it failed").__class__(
            **{**sweeps.get(sweep.id).__dict__, "error": None}  # type: ignore[union-attr]
        )
    )


def test_one_that_is_put_off_keeps_its_cursor_and_tells_why(sweeps: Sweeps, clock: Clock) -> None:
    sweep = sweeps.advance(sweeps.request(RULE, cause="start"), "m", {"compared": 3})
    off = sweeps.put_off(sweep, by_s=7.0, error="answered 503. Wait.")
    assert (off.cursor, off.compared, off.state) == ("m", 3, OPEN)
    assert (off.error, off.due_at) == ("answered 503. Wait.", clock.now + 7)


def test_where_an_order_shows_all_is_begun_anew_but_for_what_it_proves(sweeps: Sweeps) -> None:
    sweep = sweeps.prove_from(sweeps.request(RULE, cause="start"), 100.0)
    sweep = sweeps.advance(sweep, "m", dict.fromkeys(COUNTS, 7))
    sweep = sweeps.sort_on_disk(sweep, "source,target")
    assert (sweep.on_disk, sweep.cursor, sweep.state) == ("source,target", "", OPEN)
    assert {getattr(sweep, name) for name in COUNTS} == {0}
    assert sweep.proves_at == 100.0


def test_the_next_sweep_of_a_rule_knows_the_order_of_its_listings(sweeps: Sweeps) -> None:
    sweeps.end(sweeps.sort_on_disk(sweeps.request(RULE, cause="start"), "target"))
    asked = [sweeps.request(RULE, prefix=prefix, cause="request").on_disk for prefix in ("", "a/")]
    assert asked == ["target", "target"]
    assert sweeps.request("other", cause="start").on_disk == ""


def changes(sweeps: Sweeps, sweep: Sweep) -> list[Callable[[], object]]:
    """Every way to change a sweep."""
    return [
        *(lambda: sweeps.begin(sweep, worker="w"), lambda: sweeps.prove_from(sweep, 1.0)),
        *(lambda: sweeps.sort_on_disk(sweep, "source"), lambda: sweeps.advance(sweep, "a", {"put": 1})),
        *(lambda: sweeps.put_off(sweep, by_s=1.0, error=""), lambda: sweeps.end(sweep)),
        lambda: sweeps.end(sweep, DROPPED),
    ]


@pytest.mark.parametrize("state", [COMPLETE, DROPPED])
def test_one_that_is_over_is_over(sweeps: Sweeps, clock: Clock, state: str) -> None:
    sweep = sweeps.request(RULE, cause="start")
    clock.now += 3
    ended = sweeps.end(sweep, state)
    assert (ended.state, ended.ended_at) == (state, clock.now)
    for call in changes(sweeps, sweep):
        with pytest.raises(NotOpen):
            call()
    assert (sweeps.next_due(), sweeps.unfinished(), sweeps.get(sweep.id)) == (None, [], ended)


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_latest_are_listed_newest_first_and_narrowed_by_rule(sweeps: Sweeps) -> None:
    made = [proved(sweeps, rule).id for rule in ("a", "b", "a", "b", "a")]
    assert ids(sweeps.latest()) == made[::-1]
    assert ids(sweeps.latest(limit=2)) == made[:2:-1]
    assert ids(sweeps.latest(rule="a")) == made[::-2]
    assert ids(sweeps.latest(rule="nobody's")) == []
    assert sweeps.get(max(made) + 1) is None


def test_all_that_are_open_are_listed_those_over_all_keys_last(sweeps: Sweeps) -> None:
    over_all = sweeps.request("a", cause="start")
    below = [sweeps.request("a", prefix=prefix, cause="request") for prefix in ("x/", "y/")]
    sweeps.end(sweeps.request("b", cause="start"))
    found = sweeps.unfinished()
    assert found[-1] == over_all
    assert sorted(ids(found)) == sorted(ids([over_all, *below]))


def test_the_last_one_asked_for_is_the_newest_over_all_keys_that_was_not_dropped(sweeps: Sweeps) -> None:
    assert sweeps.last_asked(RULE) is None
    first = proved(sweeps)
    proved(sweeps, prefix="a/")
    proved(sweeps, "other")
    assert sweeps.last_asked(RULE) == first
    second = sweeps.request(RULE, cause="interval")
    assert sweeps.last_asked(RULE) == second
    sweeps.end(second, DROPPED)
    assert sweeps.last_asked(RULE) == first


def test_only_complete_sweeps_over_all_keys_prove_anything(sweeps: Sweeps) -> None:
    sweeps.register(dict.fromkeys([RULE, "other", "dropped"], "1"))
    assert proofs(sweeps) == {}
    sweeps.request(RULE, cause="start")
    proved(sweeps, prefix="a/")
    proved(sweeps, "other", prefix="a/")
    sweeps.end(sweeps.request("dropped", cause="start"), DROPPED)
    assert proofs(sweeps) == {}
    first = proved(sweeps)
    newest, others = proved(sweeps), proved(sweeps, "other")
    sweeps.request(RULE, cause="interval")
    proved(sweeps, prefix="b/")
    assert newest.id > first.id
    assert proofs(sweeps) == {RULE: newest, "other": others}


def test_it_is_known_when_the_last_sweep_over_all_keys_ended(sweeps: Sweeps, clock: Clock) -> None:
    sweeps.register(dict.fromkeys([RULE, "other"], "1"))
    assert sweeps.last_ended() == {}
    proved(sweeps)
    clock.now += 60
    proved(sweeps)
    ended_at = clock.now
    clock.now += 60
    proved(sweeps, prefix="a/")
    proved(sweeps, "other", prefix="a/")
    sweeps.request(RULE, cause="interval")
    assert sweeps.last_ended() == {RULE: ended_at}
    sweeps.register({RULE: "2"})
    assert sweeps.last_ended() == {}, "of a rule that says something else now"


def test_nothing_is_proved_of_a_rule_that_was_not_registered_as_it_is(sweeps: Sweeps) -> None:
    sweeps.register({RULE: "1"})
    proof, _ = proved(sweeps), proved(sweeps, "never registered")
    assert sweeps.last_proofs({RULE: "1", "never registered": "1", "never swept": "1"}) == {RULE: proof}
    assert sweeps.last_proofs({RULE: "2"}) == {}
    assert sweeps.last_proofs({}) == {}


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────


def test_old_sweeps_are_forgotten_but_for_the_last_proof_and_those_still_open(sweeps: Sweeps) -> None:
    sweeps.register({RULE: "1", "other": "1"})
    others = proved(sweeps, "other")
    older_proof, proof = proved(sweeps), proved(sweeps)
    still_open = sweeps.request(RULE, prefix="open", cause="request")
    made = [proved(sweeps, prefix="a/") for _ in range(KEPT_FOR_EACH_RULE + 10)]
    assert sweeps.get(older_proof.id) is None
    kept = sweeps.latest(rule=RULE, limit=1000)
    assert kept == [*made[: -KEPT_FOR_EACH_RULE - 1 : -1], still_open, proof]
    assert proofs(sweeps) == {RULE: proof, "other": others}
    assert sweeps.next_due() == still_open


def test_few_sweeps_are_all_kept(sweeps: Sweeps) -> None:
    made = [proved(sweeps) for _ in range(KEPT_FOR_EACH_RULE)]
    assert ids(sweeps.latest(rule=RULE, limit=1000)) == ids(made)[::-1]


# ── rules, and what they say ─────────────────────────────────────────────────────────────────────────────


def test_a_rule_is_in_force_since_it_was_first_seen(sweeps: Sweeps, other: Sweeps, clock: Clock) -> None:
    began_at = clock.now
    assert sweeps.register({"a": "1", "b": "1"}) == {"a": began_at, "b": began_at}
    clock.now += 60
    assert other.register({"a": "1"}) == {"a": began_at}
    assert other.register({"b": "1", "c": "1"}) == {"b": began_at, "c": clock.now}
    assert sweeps.register({}) == {}


def test_a_rule_that_says_something_else_is_in_force_since_then_and_proves_nothing(
    sweeps: Sweeps, clock: Clock
) -> None:
    sweeps.register({"a": "1", "b": "1"})
    for rule in ("a", "b"):
        proved(sweeps, rule)
        sweeps.advance(sweeps.request(rule, cause="interval"), "m", {})
        sweeps.advance(sweeps.request(rule, prefix="x/", cause="request"), "x/m", {})
    kept = [sweep for sweep in sweeps.latest() if sweep.rule == "b"]
    began_at, clock.now = clock.now, clock.now + 60
    assert sweeps.register({"a": "2", "b": "1"}) == {"a": clock.now, "b": began_at}
    assert {sweep.state for sweep in sweeps.latest(rule="a")} == {DROPPED}
    assert [sweep for sweep in sweeps.latest() if sweep.rule == "b"] == kept
    assert set(proofs(sweeps, a="2", b="1")) == {"b"}
    assert sweeps.last_asked("a") is None
    assert sweeps.request("a", cause="start").cursor == ""


def test_what_was_proved_of_a_rule_does_not_come_back_with_its_words(sweeps: Sweeps, clock: Clock) -> None:
    sweeps.register({RULE: "1"})
    proved(sweeps)
    for shape in ("2", "1"):
        clock.now += 60
        assert sweeps.register({RULE: shape}) == {RULE: clock.now}
    assert sweeps.last_proofs({RULE: "1"}) == {}


def test_a_sweep_of_what_the_rule_said_before_never_proves_what_it_says_now(
    sweeps: Sweeps, other: Sweeps
) -> None:
    sweeps.register({RULE: "1"})
    under_way = sweeps.begin(sweeps.request(RULE, cause="start"), worker="w")
    other.register({RULE: "2"})
    for call in changes(sweeps, under_way):
        with pytest.raises(NotOpen):
            call()
    assert [(each.state, each.cursor) for each in sweeps.latest()] == [(DROPPED, "")]
    assert sweeps.last_proofs({RULE: "2"}) == {}


def test_a_tripped_breaker_stays_so_whatever_the_rule_says(sweeps: Sweeps, ledger: Ledger) -> None:
    sweeps.register({RULE: "1"})
    ledger.run(sa.update(RULES).values(tripped_at=5.0, trip_reason="too many", counted_from=3.0))
    sweeps.register({RULE: "2"})
    with ledger.reading() as connection:
        row = connection.execute(sa.select(RULES)).mappings().one()
    assert (row["tripped_at"], row["trip_reason"], row["counted_from"]) == (5.0, "too many", 3.0)


# ── one at a time ────────────────────────────────────────────────────────────────────────────────────────


def lease(sweeps: Sweeps, worker: str, *, dead: str = "", lease_s: float = LEASE_S) -> bool:
    return sweeps.take_lease(worker=worker, lease_s=lease_s, is_dead=lambda name: name == dead)


def test_one_worker_holds_the_lease_and_may_prolong_it(sweeps: Sweeps, other: Sweeps, clock: Clock) -> None:
    assert lease(sweeps, "a")
    assert not lease(other, "b")
    clock.now += LEASE_S - 1
    assert lease(sweeps, "a")
    clock.now += LEASE_S - 1
    assert not lease(other, "b")


def test_a_lease_that_ran_out_is_anybody_s(sweeps: Sweeps, other: Sweeps, clock: Clock) -> None:
    lease(sweeps, "a")
    clock.now += LEASE_S
    assert lease(other, "b")
    assert not lease(sweeps, "a")


def test_the_lease_of_a_dead_worker_is_taken_at_once(sweeps: Sweeps, other: Sweeps) -> None:
    lease(sweeps, "a")
    assert not lease(other, "b", dead="c")
    assert lease(other, "b", dead="a")
    assert not lease(sweeps, "c", dead="a")


def test_a_lease_that_was_given_up_is_anybody_s_at_once(sweeps: Sweeps, other: Sweeps) -> None:
    lease(sweeps, "a")
    sweeps.give_up_lease(worker="a")
    assert lease(other, "b")


def test_nobody_gives_up_the_lease_of_somebody_else(sweeps: Sweeps, other: Sweeps) -> None:
    lease(sweeps, "a")
    other.give_up_lease(worker="b")
    assert not lease(other, "b")
    assert lease(sweeps, "a")


def test_a_dead_worker_s_lease_that_somebody_took_meanwhile_is_not_taken_from_him(
    sweeps: Sweeps, other: Sweeps
) -> None:
    lease(sweeps, "dead")

    def is_dead(name: str) -> bool:
        assert name == "dead"
        return lease(other, "quicker", dead="dead")

    assert not sweeps.take_lease(worker="slower", lease_s=LEASE_S, is_dead=is_dead)
    assert lease(other, "quicker")


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────


def in_threads(job: Callable[[int], Any], count: int) -> list[Any]:
    """All begin at the same moment."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait(BOUND_S)
        return job(number)

    with ThreadPoolExecutor(count) as pool:
        return [each.result(BOUND_S) for each in [pool.submit(run, number) for number in range(count)]]


def test_of_threads_that_race_for_the_lease_one_gets_it(sweeps: Sweeps, other: Sweeps, clock: Clock) -> None:
    for holder in ("nobody", "dead", "expired"):
        clock.now += LEASE_S
        if holder != "nobody":
            assert lease(sweeps, holder)
            clock.now += LEASE_S if holder == "expired" else 0
        got = in_threads(lambda n: lease((sweeps, other)[n % 2], f"{n}", dead="dead"), 8)
        assert got.count(True) == 1
        winner = f"{got.index(True)}"
        assert lease(sweeps, winner)
        sweeps.give_up_lease(worker=winner)


def test_threads_that_ask_at_once_get_one_sweep(sweeps: Sweeps, other: Sweeps) -> None:
    for rule in "abc":
        asked = in_threads(lambda n: (sweeps, other)[n % 2].request(rule, cause="request").id, 8)  # noqa: B023
        assert len(set(asked)) == 1
        assert len(sweeps.latest(rule=rule)) == 1


def test_threads_that_register_a_rule_at_once_agree_since_when(sweeps: Sweeps, other: Sweeps) -> None:
    for shape in ("1", "2"):
        found = in_threads(lambda n: (sweeps, other)[n % 2].register({RULE: shape}), 6)  # noqa: B023
        assert len({each[RULE] for each in found}) == 1


def _race_in_a_process(url: str, number: int, start: Barrier, result: Connection) -> None:
    """Asks, and sweeps whatever is due while it has the lease, one key after the other."""
    ledger = Ledger.open(url)
    sweeps, mine = Sweeps(ledger), []
    start.wait(BOUND_S)
    asked = sweeps.request(RULE, cause="request").id
    until = time.monotonic() + BOUND_S / 2
    while len(mine) < 5 and time.monotonic() < until:
        if sweeps.take_lease(worker=f"{number}", lease_s=BOUND_S, is_dead=lambda _: False):
            if sweep := sweeps.next_due():
                found = sweeps.begin(sweep, worker=f"{number}")
                mine.append(sweeps.advance(found, found.cursor + "x", {"put": 1}).put)
            sweeps.give_up_lease(worker=f"{number}")
    ledger.close()
    result.send((asked, mine))


def test_of_processes_that_race_one_sweeps_at_a_time_and_all_got_the_same_sweep(
    sweeps: Sweeps, database_url: str, clock: Clock
) -> None:
    start, started = SPAWN.Barrier(PROCESSES), []
    for number in range(PROCESSES):
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(
            target=_race_in_a_process, args=(database_url, number, start, theirs), daemon=True
        )
        process.start()
        theirs.close()
        started.append((process, ours))
    answers = []
    for process, ours in started:
        assert ours.poll(BOUND_S), "the process does not answer"
        answers.append(ours.recv())
        process.join(BOUND_S)
        assert process.exitcode == 0
    assert len({asked for asked, _ in answers}) == 1
    steps = sorted(put for _, mine in answers for put in mine)
    assert steps == list(range(1, 5 * PROCESSES + 1)), "no step was made beside another"
    swept = sweeps.latest()
    assert [(each.put, len(each.cursor)) for each in swept] == [(len(steps), len(steps))]


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_method_says_that_the_ledger_cannot_be_used(sweeps: Sweeps, ledger: Ledger) -> None:
    sweep = sweeps.request(RULE, cause="start")
    for table in ("sweeps", "rules", "leases"):
        ledger.run(sa.text(f"DROP TABLE {table}"))
    calls: list[Callable[[], object]] = [
        *(lambda: sweeps.register({RULE: "1"}), lambda: sweeps.request(RULE, cause="start")),
        *(sweeps.next_due, *changes(sweeps, sweep)),
        *(lambda: sweeps.get(sweep.id), sweeps.latest, sweeps.unfinished),
        lambda: sweeps.last_proofs({}),
        *(lambda: sweeps.last_asked(RULE), lambda: lease(sweeps, "a")),
        lambda: sweeps.give_up_lease(worker="a"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(LedgerUnavailable) as caught:
            call()
        assert caught.value.hint, number
