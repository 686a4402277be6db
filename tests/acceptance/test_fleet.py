"""All that is promised for one process holds for several web and worker processes on one PostgreSQL."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
import requests

from scripts.local_servers import SeaweedFS
from scripts.local_service import Replicator
from tests.acceptance.conftest import ARNS, tell, until
from tests.acceptance.evidence import (
    Recorder,
    assert_attempts_never_overlap,
    assert_only_stopped_copies_overlap,
    assert_versions_never_go_back,
    log_lines,
    unexpected,
)
from tests.acceptance.faults import Faults
from tests.acceptance.fleet import Fleet, Load, Version, deliver, mixed
from tests.acceptance.machines import Balancer

FULL = os.environ.get("FLEET_TEST") == "full"
"""The full size takes some ten minutes."""
MINIO_PAUSE_S = 3.0
RESTART_PAUSE_S = MINIO_PAUSE_S + 1


@pytest.fixture
def recorders(seaweed: SeaweedFS) -> Iterator[list[Recorder]]:
    """Three notes of what is written to the target, one for each worker."""
    with ExitStack() as listening:
        names = [f"worker-{number}" for number in range(3)]
        yield [listening.enter_context(Recorder(seaweed.endpoint, by=name)) for name in names]


def both_are_told(fleet: Fleet) -> None:
    """Each web process alone is enough for an event to arrive."""
    for number, arn in enumerate(ARNS):
        tell(fleet.source, arn)
        key = f"told to {number} alone"
        fleet.put(key, b"x")
        until(partial(fleet.target_etag, key), bound_s=60, what=f"{key!r} is at the target")
    tell(fleet.source, *ARNS)


def test_no_object_is_lost_or_copied_by_two_at_once_while_processes_are_killed_and_stopped(
    fleet: Callable[..., Fleet], recorders: list[Recorder]
) -> None:
    running = fleet()
    for recorder in recorders:
        running.add_worker(recorder.by, through=recorder)
    running.start()
    both_are_told(running)
    count, over_s, stop_s = (5_000, 240.0, 20.0) if FULL else (1_500, 60.0, 8.0)
    wanted = mixed(count, large=count // 250, overwritten=count // 10)
    faults = Faults(running.processes, stop_s=stop_s)
    with Load(running, wanted, clients=8, over_s=over_s) as load:
        faults.run(lambda: load.is_over)
    running.wait_until_all_settled(count + len(ARNS), bound_s=300)
    assert faults.kills >= 5
    assert len(faults.stops) >= 3, "nobody was stopped: nothing was put to the test"
    running.assert_target_is_equal()
    rows = running.rows()
    assert assert_attempts_never_overlap(rows) >= count
    assert_only_stopped_copies_overlap(running, faults, recorders)
    assert assert_versions_never_go_back(recorders) >= count
    assert {row["error"] for row in rows} == {None}
    assert unexpected(running.processes) == []


def test_a_rolling_restart_under_load_loses_nothing_and_copies_nothing_twice(
    fleet: Callable[..., Fleet], recorders: list[Recorder]
) -> None:
    running = fleet()
    for recorder in recorders:
        running.add_worker(recorder.by, through=recorder)
    running.start()
    keys = [f"rolling/{number:03}" for number in range(400)]
    with Balancer([web.port for web in running.webs]) as balancer:
        running.notify(now=running.webs[0].events_url, queue=f"{balancer.url}/minio/events")
        sender = Sender(f"{balancer.url}/minio/events")
        load = Load(running, [[Version(key, 1, 20_000)] for key in keys], clients=4, over_s=20)
        with load, sender:
            for process in running.processes:
                process.restart()
                time.sleep(RESTART_PAUSE_S)  # the rhythm of the restarts
        running.wait_until_delivered(bound_s=60)
    sent = sender.sent
    running.wait_until_all_settled(len(keys) + len(sent), bound_s=120)
    running.assert_target_is_equal()
    assert max(sent.values()) <= 2, "a delivery was refused again after MinIO's pause"
    for row in running.rows(*keys):
        results = [attempt["result"] for attempt in row["history"]]
        assert (row["generation"], results) == (1, ["replicated"]), row
    writes = assert_versions_never_go_back(recorders)
    assert writes <= len(keys) + 2 * len(recorders), "more was written than each worker's trial"
    left = [
        line["left_running"] for each in running.workers for line in log_lines(each) if "left_running" in line
    ]
    assert left, "no worker stopped in its orderly way"
    assert set(left) == {0}
    assert unexpected(running.processes) == []


class Sender:
    """Delivers an event about an own key again and again, as MinIO does: after a pause if it is refused."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent: dict[str, int] = {}
        """key → how often its event had to be delivered."""
        self._ends = threading.Event()

    def __enter__(self) -> Sender:
        self._pool = ThreadPoolExecutor(1)
        self._sending = self._pool.submit(self._send_all)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._sending.result()
        self._pool.shutdown()

    def _send_all(self) -> None:
        while not self._ends.wait(0.1):
            key = f"sent/{len(self.sent):05}"
            self.sent[key] = 1
            while not self._is_accepted(key):
                self.sent[key] += 1
                time.sleep(MINIO_PAUSE_S)  # MinIO's own

    def _is_accepted(self, key: str) -> bool:
        try:
            return deliver(self.url, key, 1).status_code == 200
        except requests.ConnectionError:
            return False


def test_an_event_that_two_web_processes_hear_of_at_the_same_moment_counts_once(
    fleet: Callable[..., Fleet],
) -> None:
    running = fleet()
    running.start()
    events = [(f"heard/{number % 500:03}", number // 500) for number in range(2_000)]
    meet = [threading.Barrier(2) for _ in range(4)]

    def pairs(number: int, web: Replicator, share: list[tuple[str, int]]) -> list[int]:
        statuses = []
        for key, event in share:
            meet[number].wait(60)
            statuses.append(deliver(web.events_url, key, event).status_code)
        return statuses

    with ThreadPoolExecutor(8) as pool:
        sending = [
            pool.submit(pairs, number, web, events[number::4]) for number in range(4) for web in running.webs
        ]
        answers = [status for each in sending for status in each.result()]
    assert answers == [200] * 4_000
    assert {(row["generation"], row["state"]) for row in running.rows()} == {(4, "waiting")}
    assert len(running.rows()) == 500
    worker = running.add_worker("worker")
    with worker:
        running.wait_until_all_settled(500, bound_s=60)
        rows = running.rows()
    assert {(row["generation"], row["outcome"], len(row["history"])) for row in rows} == {(4, "gone", 1)}
