"""Any calls in any order, by several workers through several connections, beside a model of the contract.

`HYPOTHESIS_PROFILE=long` tries many more programs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.contract.steps import (
    LEASE_S,
    Clock,
    ask,
    buried,
    deferred,
    held,
    released,
    removal,
    retried,
    settled,
)
from webhook.database import connect
from webhook.deletes import Deletes
from webhook.entries import BACKFILL, LANES, LIVE, PARKED_AT, Claim, Ending, Parked, Request
from webhook.ledger import Ledger
from webhook.pauses import Pauses
from webhook.settings import DeleteSettings
from webhook.sweeps import Sweeps
from webhook.tables import ENTRIES, MINUTES, RULES

Place = tuple[str, str]
"""Rule and key."""
RULES_THERE = ("r", "s")
KEYS = ("a", "a/é\n")
WORKERS = ("w0", "w1", "w2")
"""The first and the last share a Ledger."""
AFTER_S = 30.0
WAITS_S = (0.5, AFTER_S, LEASE_S, 10 * LEASE_S)
ENDS: dict[str, Callable[[Claim], Ending]] = {
    "settle": settled,
    "retry": lambda claim: retried(claim, AFTER_S),
    "bury": buried,
    "release": released,
    "park": lambda claim: Parked(claim=claim),
    "defer": lambda claim: deferred(claim, AFTER_S),
    "hold": held,
}


# ── the contract ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Entry:
    """What the contract says of one entry; `due_at` None: nobody has to do anything."""

    lane: str
    due_at: float | None
    state: str = "waiting"
    generation: int = 1
    claimed_generation: int = 0
    claim_number: int = 0
    worker: str | None = None
    gone_at: float | None = None


class Model:
    """What the ledger promises, for one call after the other."""

    def __init__(self) -> None:
        self.entries: dict[Place, Entry] = {}
        self.events: dict[Place, set[str]] = defaultdict(set)

    def put(self, request: Request, lane: str, now: float, *, hurries: bool = False) -> None:
        place, is_event = (request.rule, request.key), request.event_id != ""
        is_repeated = request.event_id in self.events[place]
        self.events[place] |= {request.event_id} if is_event else set()
        entry = self.entries.get(place)
        if entry is None:
            self.entries[place] = Entry(lane=lane, due_at=now)
            return
        if is_repeated or (entry.state == "failed" and lane == BACKFILL and not is_event):
            return
        entry.generation += 1
        if entry.due_at is None:
            entry.state, entry.due_at, entry.lane = "waiting", now, lane
        if lane == LIVE and entry.lane != LIVE:
            entry.lane, entry.due_at = LIVE, max(entry.due_at, now)
        if entry.state == "waiting" and (hurries or (entry.gone_at and not request.is_removal)):
            entry.due_at = now
        if not request.is_removal:
            entry.gone_at = None

    def due(self, lane: str, now: float) -> list[float]:
        """When they were due that may be claimed now."""
        every = self.entries.values()
        return sorted(e.due_at for e in every if e.lane == lane and e.due_at is not None and e.due_at <= now)

    def is_free(self, place: Place, now: float) -> bool:
        entry = self.entries.get(place)
        return entry is not None and (
            entry.state == "waiting" or (entry.state == "running" and (entry.due_at or 0) <= now)
        )

    def claim(self, claim: Claim, now: float) -> None:
        entry = self.entries[claim.rule, claim.key]
        entry.state, entry.due_at, entry.worker = "running", now + LEASE_S, claim.worker
        entry.claimed_generation, entry.claim_number = entry.generation, entry.claim_number + 1

    def is_held(self, claim: Claim) -> bool:
        entry = self.entries[claim.rule, claim.key]
        return entry.state == "running" and entry.claim_number == claim.number

    def end(self, name: str, claim: Claim, now: float) -> None:
        entry = self.entries[claim.rule, claim.key]
        is_newer = entry.generation > entry.claimed_generation
        entry.state, entry.worker = "waiting", None
        match name:
            case "release":
                entry.due_at = now
            case "park":
                entry.due_at = PARKED_AT
            case "retry":
                entry.due_at = now + AFTER_S
            case "defer":
                entry.due_at = now if is_newer else now + AFTER_S
                entry.gone_at = entry.gone_at if is_newer else entry.gone_at or now
            case _ if is_newer or (name == "hold" and entry.gone_at is None):  # a person has discarded it
                entry.due_at = now
            case _:
                entry.state = {"settle": "settled", "bury": "failed", "hold": "held"}[name]
                entry.due_at = None
        if name == "settle":
            entry.gone_at = None


# ── the ledger beside it ─────────────────────────────────────────────────────────────────────────────


class Hands:
    """Takes at once, of what is put through one Ledger, as much as `free` says."""

    name = WORKERS[0]
    lease_s = LEASE_S

    def __init__(self) -> None:
        self.free = 0
        self.taken: list[Claim] = []

    def room(self) -> int:
        return self.free

    def take(self, claims: Sequence[Claim], asked_at: float) -> None:
        self.taken += claims


places = st.tuples(st.sampled_from(RULES_THERE), st.sampled_from(KEYS))
requests = st.builds(
    lambda place, event, goes: (removal if goes and event else ask)(place[1], event, rule=place[0]),
    places,
    st.none() | st.integers(1, 4),
    st.booleans(),
)
picks = st.integers(0, 3)
"""Which of the claims that are remembered: the latest first, those that were lost behind all others."""
workers = st.integers(0, len(WORKERS) - 1)
ends = st.sampled_from([*ENDS, "settle", "settle", "bury"])


class LedgerMachine(RuleBasedStateMachine):
    """Each step is done on the ledger and on the model; after each, both must say the same."""

    def __init__(self, database_url: str) -> None:
        super().__init__()
        self.database_url = database_url
        self.clock, self.hands, self.model = Clock(), Hands(), Model()
        self.ledgers = [self._opened(number) for number in range(2)]
        self.ledger.run(*(sa.delete(table) for table in (ENTRIES, MINUTES, RULES)))
        Sweeps(self.ledger).register(dict.fromkeys(RULES_THERE, ""))
        self.claims: list[Claim] = []
        self.paused: set[str] = set()
        self.before: dict[Place, Any] = {}
        self.kept_for_good: dict[Place, int] = {}  # whose delete was discarded → at which generation

    def _opened(self, number: int) -> Ledger:
        ledger = Ledger(connect(self.database_url), clock=self.clock)
        if number == 0:
            ledger.claim_with_puts(self.hands)
        return ledger

    @property
    def ledger(self) -> Ledger:
        return self.ledgers[-1]

    @property
    def deletes(self) -> Deletes:
        return Deletes(self.ledger, DeleteSettings(grace_s=AFTER_S, breaker_max=1, breaker_share=1.0))

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────

    @rule(
        asked=st.lists(requests, min_size=1, max_size=4),
        lane=st.sampled_from(LANES),
        through=st.integers(0, 1),
        free=st.integers(0, 2),
    )
    def put(self, asked: list[Request], lane: str, through: int, free: int) -> None:
        self.hands.free = free
        self.ledgers[through].put(asked, lane=lane)
        for each in asked:
            self.model.put(each, lane, self.clock.now)
        if through == 0 and lane == LIVE:
            self._took(self.hands.taken, {LIVE: min(free, len(self.model.due(LIVE, self.clock.now)))})
        else:
            assert self.hands.taken == []
        self.hands.taken = []

    @rule(asked=requests)
    def put_now(self, asked: Request) -> None:
        generation = self.ledger.put_now(asked)
        self.model.put(asked, LIVE, self.clock.now, hurries=True)
        assert generation == self.model.entries[asked.rule, asked.key].generation

    # ── working ──────────────────────────────────────────────────────────────────────────────────────

    @rule(
        number=workers,
        limit=st.integers(1, 4),
        backfill_max=st.none() | st.integers(0, 2),
        backfill_owed=st.integers(0, 1),
    )
    def claim(self, number: int, limit: int, backfill_max: int | None, backfill_owed: int) -> None:
        live, backfill = (len(self.model.due(lane, self.clock.now)) for lane in (LIVE, BACKFILL))
        lived = min(live, limit - min(backfill_owed, backfill))
        most = limit if backfill_max is None else max(backfill_owed, backfill_max)
        found = self.ledgers[number % 2].claim(
            limit,
            backfill_max=backfill_max,
            backfill_owed=backfill_owed,
            worker=WORKERS[number],
            lease_s=LEASE_S,
        )
        self._took(found, {LIVE: lived, BACKFILL: min(backfill, most, limit - lived)})

    @rule(number=workers, place=places)
    def claim_one(self, number: int, place: Place) -> None:
        is_free = self.model.is_free(place, self.clock.now)
        found = self.ledgers[number % 2].claim_one(*place, worker=WORKERS[number], lease_s=LEASE_S)
        assert (found is not None) == is_free
        if found:
            self._hold(found)

    def _took(self, found: Sequence[Claim], expected: dict[str, int]) -> None:
        """The longest due of each lane, as many as there was room for."""
        due = [
            each for lane, most in expected.items() for each in self.model.due(lane, self.clock.now)[:most]
        ]
        since = [self.model.entries[claim.rule, claim.key].due_at for claim in found]
        assert sorted(due) == sorted(each for each in since if each is not None)
        for claim in found:
            self._hold(claim)

    def _hold(self, claim: Claim) -> None:
        assert self.model.is_free((claim.rule, claim.key), self.clock.now), "somebody else holds this entry"
        self.model.claim(claim, self.clock.now)
        entry = self.model.entries[claim.rule, claim.key]
        assert (claim.generation, claim.number) == (entry.generation, entry.claim_number)
        assert (claim.lane, claim.worker, claim.gone_at) == (entry.lane, entry.worker, entry.gone_at)
        self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(chosen=st.lists(picks, min_size=1, max_size=3), through=st.integers(0, 1))
    def extend(self, chosen: list[int], through: int) -> None:
        some = self._picked(chosen)
        lost = self.ledgers[through].extend(some, lease_s=LEASE_S)
        assert {id(claim) for claim in lost} == {id(each) for each in some if not self.model.is_held(each)}
        for claim in some:
            if claim not in lost:
                self.model.entries[claim.rule, claim.key].due_at = self.clock.now + LEASE_S

    @precondition(lambda self: self.claims)
    @rule(
        chosen=st.lists(st.tuples(picks, ends), min_size=1, max_size=3),
        through=st.integers(0, 1),
    )
    def finish(self, chosen: list[tuple[int, str]], through: int) -> None:
        self._finish({self._picked([pick])[0]: name for pick, name in chosen}, through)

    @rule(number=workers, names=st.lists(ends, min_size=1, max_size=3))
    def work(self, number: int, names: list[str]) -> None:
        """What a worker does where nothing comes between."""
        count = len(self.claims)
        self.claim(number, len(names), None, 0)
        self._finish(dict(zip(self.claims[count:], names, strict=False)), number % 2)

    def _picked(self, chosen: Sequence[int]) -> list[Claim]:
        in_order = sorted(self.claims, key=self.model.is_held)
        return list(dict.fromkeys(in_order[-1 - pick % len(in_order)] for pick in chosen))

    def _finish(self, names: dict[Claim, str], through: int) -> None:
        ledger = self.ledgers[through]
        nothing_to_hold = [claim for claim, name in names.items() if name == "hold" and claim.gone_at is None]
        names = names | dict.fromkeys(nothing_to_hold, "retry")
        count = ledger.finish([ENDS[name](claim) for claim, name in names.items()])
        kept = {claim: name for claim, name in names.items() if self.model.is_held(claim)}
        assert count == len(kept), "those that were lost change nothing"
        for claim, name in kept.items():
            self.model.end(name, claim, self.clock.now)
            if name in ("settle", "retry", "bury"):
                served = claim.generation
                assert ledger.ending_of(claim.rule, claim.key, generation=served) is not None
                assert ledger.ending_of(claim.rule, claim.key, generation=served + 1) is None

    @rule(number=workers, place=places)
    def find_gone(self, number: int, place: Place) -> None:
        """How a delete comes to its grace period, in one step, because it is rare otherwise."""
        self.put([removal(place[1], 4, rule=place[0])], LIVE, 1, 0)
        self.claim_one(number, place)
        if self.claims:
            self._finish({self.claims[-1]: "defer"}, number % 2)

    # ── what happens to workers ──────────────────────────────────────────────────────────────────────

    @rule(seconds=st.sampled_from(WAITS_S))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(number=workers, how=st.sampled_from(["crashes", "shuts down", "is found dead"]))
    def worker_ends(self, number: int, how: str) -> None:
        if how == "crashes":
            self._crash(number % 2)
        elif how == "shuts down":  # it hands back all that it has claimed
            mine = [claim for claim in self.claims if claim.worker == WORKERS[number]]
            self._finish(dict.fromkeys(mine, "release"), number % 2)
        else:
            self._found_dead(WORKERS[number])

    def _crash(self, number: int) -> None:
        """Its workers know nothing any more; a new process opens the same database."""
        self.ledgers[number].close()
        self.ledgers[number] = self._opened(number)
        dead = {name for index, name in enumerate(WORKERS) if index % 2 == number}
        self.claims = [claim for claim in self.claims if claim.worker not in dead]

    def _found_dead(self, name: str) -> None:
        theirs = [entry for entry in self.model.entries.values() if entry.worker == name]
        leased = [entry for entry in theirs if (entry.due_at or 0) > self.clock.now]
        assert self.ledger.release_of(lambda worker: worker == name) == len(leased)
        for entry in leased:
            entry.due_at = self.clock.now

    # ── what people do ───────────────────────────────────────────────────────────────────────────────

    @rule(
        what=st.sampled_from(["pause", "resume", "approve", "discard", "revive"]),
        of=st.sampled_from(RULES_THERE),
        prefix=st.sampled_from(["", "a", "a/"]),
    )
    def a_person_acts(self, what: str, of: str, prefix: str) -> None:
        match what:
            case "pause":
                assert Pauses(self.ledger).pause(of) == (of not in self.paused)
                self.paused.add(of)
            case "resume":
                self._resume(of)
            case "approve":
                self._approve(of)
            case "discard":
                self._discard(of)
            case _:
                self._revive(of, prefix)

    def _revive(self, of: str | None, prefix: str) -> None:
        failed = [
            entry
            for (name, key), entry in self.model.entries.items()
            if entry.state == "failed" and of in (None, name) and key.startswith(prefix)
        ]
        assert self.ledger.revive(rule=of, prefix=prefix) == len(failed)
        for entry in failed:
            entry.state, entry.due_at, entry.generation = "waiting", self.clock.now, entry.generation + 1

    def _resume(self, of: str) -> None:
        assert Pauses(self.ledger).resume(of) == (of in self.paused)
        self.paused.discard(of)
        for (name, _), entry in self.model.entries.items():
            if name not in self.paused and entry.due_at == PARKED_AT:
                entry.due_at = self.clock.now

    def _approve(self, of: str) -> None:
        kept = [
            entry for place, entry in self.model.entries.items() if (place[0], entry.state) == (of, "held")
        ]
        assert self.deletes.approve(of) == len(kept)
        for entry in kept:
            entry.state, entry.due_at, entry.generation = "waiting", self.clock.now, entry.generation + 1

    def _discard(self, of: str) -> None:
        open_still = ("waiting", "running", "held")
        pending = [
            (place, entry)
            for place, entry in self.model.entries.items()
            if place[0] == of and entry.gone_at and entry.state in open_still
        ]
        decided = [place for place, entry in pending if entry.state != "running"]
        assert self.deletes.discard(of) == len(decided)
        for place, entry in pending:
            entry.gone_at = None
            if place in decided:
                entry.state, entry.due_at = "settled", None
                self.kept_for_good[place] = entry.generation

    # ── what always holds ────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_ledger_is_as_the_model_says(self) -> None:
        with self.ledger.reading() as connection:
            found = connection.execute(sa.select(ENTRIES)).mappings().all()
        rows = {(row["rule"], row["key"]): row for row in found}
        names = Entry.__dataclass_fields__
        seen = {place: Entry(**{name: row[name] for name in names}) for place, row in rows.items()}
        assert seen == self.model.entries
        for place, row in rows.items():
            self._check_row(place, row, self.before.get(place, row))
        self.before = rows

    def _check_row(self, place: Place, row: Any, before: Any) -> None:
        """What holds whatever the model says."""
        assert row["generation"] >= max(before["generation"], row["claimed_generation"])
        assert row["claim_number"] >= before["claim_number"]
        assert (row["due_at"] is None) == (row["state"] in ("settled", "failed", "held"))
        assert (row["worker"] is None) == (row["state"] != "running")
        assert (row["asked_at"] is None) == (row["state"] == "settled"), "the recovery point counts it"
        if row["state"] == "settled" and row["generation"] != self.kept_for_good.get(place):
            assert row["claimed_generation"] == row["generation"], "a request was lost"

    @invariant()
    def who_was_overtaken_is_told(self) -> None:
        some = self.claims[-2:]
        newer = [each for each in some if self.model.entries[each.rule, each.key].claim_number > each.number]
        assert self.ledger.overtaken(some) == newer

    def teardown(self) -> None:
        with closing(self.ledgers[0]), closing(self.ledgers[1]):
            self._drain()

    def _drain(self) -> None:
        """In the end, one claim and one ending of each settles all that was ever asked for."""
        for name in RULES_THERE:
            self._resume(name)
            self._approve(name)
        self._revive(None, "")
        self.wait(WAITS_S[-1])
        open_still = [entry for entry in self.model.entries.values() if entry.due_at is not None]
        self.claim(1, 100, None, 0)
        self._finish(dict.fromkeys(self.claims[len(self.claims) - len(open_still) :], "settle"), 1)
        self.the_ledger_is_as_the_model_says()
        assert {entry.state for entry in self.model.entries.values()} <= {"settled"}
        self.claim(0, 100, None, 0)


def test_whatever_happens_the_ledger_is_as_its_contract_says(database_url: str) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: LedgerMachine(database_url),
        settings=settings(
            max_examples=max(1, settings.default.max_examples // 6),  # each is a long one
            derandomize=False,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
