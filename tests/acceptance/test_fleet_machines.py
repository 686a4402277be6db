"""Workers on several machines: neither their clocks nor their process ids are the others'."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from scripts.local_servers import PostgreSQL, SeaweedFS
from scripts.local_service import LoneWorker
from tests.acceptance.conftest import content, until
from tests.acceptance.evidence import CLOCK_ERROR_S, assert_attempts_never_overlap, log_lines, unexpected
from tests.acceptance.faults import Hold
from tests.acceptance.fleet import LEASE_S, Fleet
from tests.acceptance.machines import Elsewhere, Machine, cannot_be_had, need_own_process_ids
from tests.proxy import Proxy, answering

MINUTES_5 = 300.0
DEAD_CHECK_S = 5.0
"""How often a worker looks for dead ones of its own machine, at least."""
LOADED_S = 3.0
"""What a machine under load may be late by."""


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two machines on networks of their own."""
    need_own_process_ids()
    with ExitStack() as made:
        try:
            found = [made.enter_context(Machine(number)) for number in range(2)]
        except (OSError, subprocess.CalledProcessError) as error:
            cannot_be_had("networks of their own", error)
        yield found


@pytest.fixture
def gates(seaweed: SeaweedFS) -> Iterator[list[Proxy]]:
    """Two proxies before the target, one for each machine."""
    with ExitStack() as listening:
        yield [listening.enter_context(Proxy(seaweed.endpoint)) for _ in range(2)]


def put(running: Fleet, name: str, count: int) -> list[str]:
    """Puts some keys, and waits until their events have arrived."""
    keys = [f"{name}/{number}" for number in range(count)]
    running.put_many(keys, content, clients=4)
    until(lambda: len(running.rows(*keys)) == count, bound_s=60, what="the events have arrived")
    return keys


def taken_over(running: Fleet, keys: list[str], *, killed: LoneWorker) -> list[tuple[float, float]]:
    """Kills a worker that holds these keys; gives for each how long its lease still was, and how long after
    its end it was claimed anew, by the ledger's clock.
    """
    killed.kill()
    killed_at = running.ledger_time()
    leases = {row["key"]: row["due_at"] for row in running.rows(*keys)}
    until(
        lambda: {row["state"] for row in running.rows(*keys)} == {"settled"},
        bound_s=120,
        what="what the killed worker held is settled",
    )
    rows = running.rows(*keys)
    assert all(len(row["history"]) == 1 for row in rows), "an attempt of the killed worker is on record"
    return [
        (leases[row["key"]] - killed_at, row["history"][0]["claimed_at"] - leases[row["key"]]) for row in rows
    ]


def test_leases_hold_between_machines_whose_clocks_are_minutes_apart(
    fleet: Callable[..., Fleet], machines: list[Machine], gates: list[Proxy], postgresql: PostgreSQL
) -> None:
    running = fleet()
    with ExitStack() as ways:
        right, ahead = (
            on_machine(running, machine, gate, postgresql, ways)
            for machine, gate in zip(machines, gates, strict=True)
        )
        ahead.ahead_s = MINUTES_5
        start_webs(running)

        right.start()
        with Hold(gates[0]) as held:
            first = put(running, "held by the right one", 4)
            held.wait_for(4)
            ahead.start()
            put(running, "for the one ahead", 20)
            until(lambda: len(settled(running)) >= 20, bound_s=60, what="the one ahead has copied")
            found = {(row["state"], row["claim_number"], row["worker"]) for row in running.rows(*first)}
            assert found == {("running", 1, name_of(right))}, "leases that are kept were not heeded"
        until(lambda: len(settled(running)) == 24, bound_s=60, what="all are settled")

        with Hold(gates[0]) as held, Hold(gates[1]) as held_ahead:
            put(running, "held by both", 16)
            held.wait_for(4)
            held_ahead.wait_for(4)
            mine = [row["key"] for row in running.rows() if row["worker"] == name_of(ahead)]
            assert len(mine) >= 4
            held.open()
            late = taken_over(running, mine, killed=ahead)
        assert all(0 < left_s <= LEASE_S + CLOCK_ERROR_S for left_s, _ in late), late
        assert all(-CLOCK_ERROR_S <= after_s <= LOADED_S for _, after_s in late), late

        ahead.start()
        until(
            lambda: len(running.service.get("/v1/status").json()["workers"]) == 2,
            bound_s=30,
            what="both show",
        )
        for gate in gates:
            gate.plan("PutObject", answering(503, "SlowDown"))
        (again,) = put(running, "refused once", 1)
        until(
            lambda: running.row(again)["state"] == "settled", bound_s=60, what="it is copied the second time"
        )
        assert_backed_off_in_time(running, again)
        lags_ms = [line["lag_ms"] for each in (right, ahead) for line in log_lines(each) if "lag_ms" in line]
        assert min(lags_ms) >= -1000
        assert max(lags_ms) <= MINUTES_5 * 1000 / 2
        rows = running.rows()
        assert assert_attempts_never_overlap(rows) >= len(rows)
        running.assert_target_is_equal()
        assert unexpected(running.processes) == []


def test_a_machine_that_is_cut_off_loses_its_claims_and_comes_back_by_itself(
    fleet: Callable[..., Fleet], machines: list[Machine], gates: list[Proxy], postgresql: PostgreSQL
) -> None:
    running = fleet()
    with ExitStack() as ways:
        there, here = (
            on_machine(running, machine, gate, postgresql, ways)
            for machine, gate in zip(machines, gates, strict=True)
        )
        start_webs(running)
        there.start()
        put(running, "before", 1)
        until(lambda: len(settled(running)) == 1, bound_s=60, what="it works")
        with Hold(gates[0]) as held:
            keys = put(running, "held there", 4)
            held.wait_for(4)
            here.start()
            machines[0].unplug()
            until(lambda: set(settled(running)) >= set(keys), bound_s=60, what="the others have taken over")
            assert {row["history"][0]["worker"] for row in running.rows(*keys)} == {name_of(here)}
            for key in keys:
                running.put(key, content(f"{key}, the second time"))
            until(
                lambda: all(running.target_body(key) == content(f"{key}, the second time") for key in keys),
                bound_s=60,
                what="newer content is at the target",
            )
        machines[0].plug()
        here.kill()
        more = put(running, "after it came back", 8)
        until(lambda: set(more) <= set(settled(running)), bound_s=120, what="it works again")
        running.assert_target_is_equal()
        assert_attempts_never_overlap(running.rows())


def start_webs(running: Fleet) -> None:
    """Both, and MinIO tells them."""
    for web in running.webs:
        web.start()
    running.notify(now=running.webs[0].events_url, queue=running.webs[1].events_url)


def on_machine(
    running: Fleet, machine: Machine, gate: Proxy, database: PostgreSQL, ways: ExitStack
) -> Elsewhere:
    """A worker on a machine that reaches the stores and the ledger by its cable alone."""
    ports = (running.source.port, urlsplit(gate.endpoint).port or 0, database.port)
    source, target, ledger = (ways.enter_context(machine.way_to(port)).url for port in ports)
    url = running.settings["DATABASE_URL"].replace(f"127.0.0.1:{database.port}", urlsplit(ledger).netloc)
    worker = running.add_worker(
        f"worker on {machine.name}",
        kind=Elsewhere,
        MINIO_ENDPOINT=source,
        FILEBASE_ENDPOINT=target,
        DATABASE_URL=url,
    )
    assert isinstance(worker, Elsewhere)
    worker.machine = machine
    return worker


def settled(running: Fleet) -> list[str]:
    """The keys that are settled."""
    return [row["key"] for row in running.rows() if row["state"] == "settled"]


def name_of(worker: LoneWorker) -> str:
    """What it calls itself, since it was started last."""
    return [str(line["worker"]) for line in log_lines(worker) if line["event"] == "worker starts"][-1]


def assert_backed_off_in_time(running: Fleet, key: str) -> None:
    """Between its attempts, by whichever worker, no more and no less than was decided passed."""
    lines = [line for each in running.workers for line in log_lines(each) if line.get("key") == key]
    decided = sorted((line["claim"], line["after_s"]) for line in lines if line["event"] == "will retry")
    attempts = itertools.pairwise(running.row(key)["history"])
    for (_, after_s), (earlier, later) in zip(decided, attempts, strict=True):
        passed_s = later["claimed_at"] - earlier["ended_at"]
        assert after_s - CLOCK_ERROR_S <= passed_s <= after_s + LOADED_S
    assert decided, "it was not refused: nothing was put to the test"


# ── a worker that is killed ──────────────────────────────────────────────────────────────────────────


def test_what_a_killed_worker_held_is_claimed_elsewhere_once_its_lease_is_over(
    fleet: Callable[..., Fleet], gates: list[Proxy]
) -> None:
    need_own_process_ids()
    late = killed_while_another_waits(fleet(), gates[0], kind=Elsewhere)
    assert all(0 < left_s <= LEASE_S + CLOCK_ERROR_S for left_s, _ in late), late
    assert all(-CLOCK_ERROR_S <= after_s <= LOADED_S for _, after_s in late), late


def test_what_a_killed_worker_held_is_claimed_at_once_on_the_same_machine(
    fleet: Callable[..., Fleet], gates: list[Proxy]
) -> None:
    late = killed_while_another_waits(fleet(LEASE_S="60"), gates[0], kind=LoneWorker)
    assert all(0 < left_s + after_s <= DEAD_CHECK_S + LOADED_S for left_s, after_s in late), late


def killed_while_another_waits(
    running: Fleet, gate: Proxy, *, kind: Callable[..., LoneWorker]
) -> list[tuple[float, float]]:
    """As `taken_over`, of four copies that are under way."""
    killed = running.add_worker("killed", kind=kind, through=gate)
    start_webs(running)
    killed.start()
    with Hold(gate) as held:
        keys = put(running, "held", 4)
        held.wait_for(4)
        running.add_worker("waiting").start()
        running.put("for the one that waits", b"x")
        until(lambda: len(settled(running)) == 1, bound_s=60, what="the one that waits is at work")
        late = taken_over(running, keys, killed=killed)
    running.assert_target_is_equal()
    return late
