"""A fleet whose ledger goes away, and workers that wake up in the middle of a write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from scripts.local_servers import PostgreSQL, SeaweedFS
from scripts.local_service import LoneWorker
from tests.acceptance.conftest import until
from tests.acceptance.evidence import assert_attempts_never_overlap, copies, unexpected
from tests.acceptance.faults import Hold, pause, resume
from tests.acceptance.fleet import MIB, Fleet, Load, Version, deliver, mixed
from tests.proxy import Proxy

AWAY_S = 10.0


@pytest.fixture
def own_postgresql(tmp_path: Path) -> Iterator[PostgreSQL]:
    """A PostgreSQL that no other test needs."""
    with PostgreSQL(tmp_path / "postgresql") as server:
        yield server


@pytest.fixture
def gate(seaweed: SeaweedFS) -> Iterator[Proxy]:
    """Between a worker and the target."""
    with Proxy(seaweed.endpoint) as listening:
        yield listening


def assert_answered_later(answer: requests.Response) -> None:
    """It says that it cannot take the event now, and when to come again."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
    assert 0 < int(answer.headers["Retry-After"]) <= 60


def test_nothing_is_lost_while_postgresql_is_restarted_killed_and_away(
    fleet: Callable[..., Fleet], own_postgresql: PostgreSQL
) -> None:
    running = fleet(database=own_postgresql)
    for name in ("worker-1", "worker-2"):
        running.add_worker(name)
    running.start()
    wanted = mixed(400, large=2, overwritten=40)
    pause_s = 3.0
    with Load(running, wanted, clients=4, over_s=30):
        time.sleep(pause_s)  # the rhythm of the faults
        own_postgresql.restart()
        time.sleep(pause_s)
        own_postgresql.kill()
        own_postgresql.start()
        time.sleep(pause_s)
        own_postgresql.stop()
        away_since = time.monotonic()
        for web in running.webs:
            assert requests.get(f"{web.url}/healthz", timeout=30).status_code == 200
            assert_answered_later(deliver(web.events_url, "nobody hears", 1))
        time.sleep(max(0.0, away_since + AWAY_S - time.monotonic()))
        own_postgresql.start()
    running.wait_until_all_settled(len(wanted), bound_s=180)
    running.assert_target_is_equal()
    rows = running.rows()
    assert_attempts_never_overlap(rows)
    assert [row["key"] for row in rows if row["error"]] == []
    assert unexpected(running.processes) == []
    done_by = {copy.process for of_key in copies(running.workers).values() for copy in of_key}
    assert done_by == set(running.workers), "a worker did nothing"


# ── a worker that wakes up in the middle of a write ──────────────────────────────────────────────────


def stopped_in(running: Fleet, gate: Proxy, before: list[int], *, size: int) -> tuple[LoneWorker, Version]:
    """A worker that knows the target, and what is to be put next at a key that has these versions there."""
    stopped = running.add_worker("stopped", through=gate, WHOLE_OBJECT_MAX_MIB="5")
    running.start()
    for number in (1, 2):  # a new object and one that replaces another
        running.put("known", Version("known", number, 1_000).body())
        until(lambda: all_are(running, "settled"), bound_s=60, what="the worker knows the target")
    for number in before:
        running.put("late", Version("late", number, size).body())
        until(lambda: all_are(running, "settled"), bound_s=60, what="an older version is there")
    return stopped, Version("late", len(before) + 1, size)


def all_are(running: Fleet, state: str) -> bool:
    """Whether all keys of the source are on record, and in that state."""
    found = running.client().list_objects(bucket_name="source", recursive=True)
    keys = {str(each.object_name) for each in found}
    return {row["key"] for row in running.rows() if row["state"] == state} >= keys


def told_of(worker: LoneWorker, version: Version) -> list[str]:
    """What its log says became of the claim under which it copied a version."""
    found = copies([worker]).get(version.key, [])
    return [copy.event for copy in found if copy.claim == version.number]


@pytest.mark.parametrize(
    ("operation", "before", "size"),
    [
        pytest.param("PutObject", [], 100_000, id="a new object"),
        pytest.param("PutObject", [1], 100_000, id="an object that replaces another"),
        pytest.param("UploadPart", [], 6 * MIB, id="a part of a new object"),
        pytest.param("CompleteMultipartUpload", [], 6 * MIB, id="the last request of a new object"),
        pytest.param("CompleteMultipartUpload", [1], 6 * MIB, id="the last request of one that replaces"),
    ],
)
def test_a_worker_that_was_stopped_in_the_middle_of_a_write_replaces_nothing_newer(
    fleet: Callable[..., Fleet], gate: Proxy, operation: str, before: list[int], size: int
) -> None:
    running = fleet()
    stopped, older = stopped_in(running, gate, before, size=size)
    newer = Version("late", older.number + 1, size)
    with Hold(gate, operation=operation) as held:
        running.put(older.key, older.body())
        held.wait_for(1)
        pause(stopped)
        other = running.add_worker("other", WHOLE_OBJECT_MAX_MIB="5")
        other.start()
        running.put(newer.key, newer.body())
        until(lambda: running.row("late")["state"] == "settled", bound_s=60, what="another has taken over")
        assert running.target_body("late") == newer.body()
        held.open()
        until(lambda: held.answers, bound_s=60, what="the request that was held is answered")
        assert running.target_body("late") == newer.body(), (
            f"an older version replaced a newer one: {operation} was answered {held.answers}"
        )
        resume(stopped)
        until(lambda: told_of(stopped, older), bound_s=60, what="the one that was stopped has noticed")
    until(lambda: running.row("late")["state"] == "settled", bound_s=60, what="all is settled")
    assert running.target_body("late") == newer.body()
    running.assert_target_is_equal()
    assert told_of(stopped, older) != ["settled"], "its log says that it settled what it had lost"
    assert_attempts_never_overlap(running.rows())


def test_a_worker_that_was_stopped_in_the_middle_of_a_delete_deletes_nothing_newer(
    fleet: Callable[..., Fleet], gate: Proxy
) -> None:
    running = fleet(REPLICATE_DELETES="true", DELETE_GRACE_S="0")
    stopped, newer = stopped_in(running, gate, [1], size=100_000)
    with Hold(gate, operation="DeleteObject") as held:
        running.remove("late")
        held.wait_for(1)
        pause(stopped)
        running.add_worker("other").start()
        running.put(newer.key, newer.body())
        until(lambda: running.row("late")["state"] == "settled", bound_s=60, what="another has taken over")
        assert running.target_body("late") == newer.body()
        held.open()
        until(lambda: held.answers, bound_s=60, what="the request that was held is answered")
        resume(stopped)
    until(
        lambda: running.target_etag("late") and running.target_body("late") == newer.body(),
        bound_s=60,
        what=f"the newer object is there; the delete was answered {held.answers}",
    )
    until(lambda: all_are(running, "settled"), bound_s=60, what="all is settled")
    running.assert_target_is_equal()
