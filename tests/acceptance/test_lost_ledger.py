"""The ledger is lost: deleted under the running service, or between its end and its next start. Nothing that
was acknowledged to MinIO stays uncopied, and what is at the target already is not copied again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest

from scripts.local_servers import PostgreSQL, SeaweedFS
from scripts.local_service import LoneWorker
from tests.acceptance.conftest import BUCKET, Stack, content, until
from tests.proxy import Exchange, Proxy

MIB = 1024 * 1024
BOUND_S = 120.0
LARGE = "large.bin"
DOCUMENT = "with metadata.txt"
KEYS = [f"small/{number:02}" for number in range(12)]
WRITES = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
REQUESTS_MAX = 10_000
ENGINES = ("sqlite", "postgresql")


class Watched:
    """The target, by way of a proxy that notes what is written."""

    def __init__(self, proxy: Proxy) -> None:
        self.endpoint = proxy.endpoint
        self.written: Counter[str] = Counter()
        """Writes that the target has done, by key."""
        self.refused: Counter[str] = Counter()
        """Those that it refused, because it had an object where the service took the key for new."""
        for name in WRITES:
            proxy.plan(name, self._note, times=REQUESTS_MAX)

    def forget(self) -> None:
        """Counts anew from now on."""
        self.written.clear()
        self.refused.clear()

    def _note(self, exchange: Exchange) -> None:
        key = unquote(urlsplit(exchange.path).path).split("/", 2)[2]
        (self.written if exchange.forward().status < 300 else self.refused)[key] += 1


@pytest.fixture
def target(seaweed: SeaweedFS) -> Iterator[Watched]:
    """What the service takes for the target."""
    with Proxy(seaweed.endpoint) as proxy:
        yield Watched(proxy)


@pytest.fixture
def running(
    request: pytest.FixtureRequest, stack: Callable[..., Stack], target: Watched, tmp_path: Path
) -> Stack:
    """A stack on the engine that is the test's parameter; some objects were copied."""
    environ = {"FILEBASE_ENDPOINT": target.endpoint, "WHOLE_OBJECT_MAX_MIB": "5", "RECONCILE_INTERVAL_S": "0"}
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        environ["DATABASE_URL"] = server.create_database(f"lost_{tmp_path.name.replace('-', '_').lower()}")
    made = stack(**environ)
    _fill(made, tmp_path)
    return made


def _fill(running: Stack, tmp_path: Path) -> None:
    running.put_many(KEYS, content, clients=4)
    running.put(DOCUMENT, b"some words", metadata={"colour": "blue"})
    running.put(
        LARGE, bytes(range(256)) * (6 * MIB // 256), part_size=16 * MIB
    )  # in parts at the target only
    running.wait_until_settled(entries=len(KEYS) + 2, bound_s=BOUND_S)
    _wait_until_delivered(tmp_path)


def _wait_until_delivered(tmp_path: Path) -> None:
    """What MinIO's queue delivers later is new to an empty ledger."""
    queued = (tmp_path / "queue").rglob
    until(lambda: not any(queued("*.event")), bound_s=BOUND_S, what="MinIO's queue is empty")


def _lose(running: Stack) -> None:
    if url := running.service.environ.get("DATABASE_URL"):
        with psycopg.connect(url) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    else:
        for file in _ledger(running).parent.glob("replicator.db*"):
            file.unlink()


def _ledger(running: Stack) -> Path:
    return running.service.folder / "data" / "replicator.db"


def _lone_worker(running: Stack, folder: Path) -> LoneWorker:
    """One beside the service, on its file."""
    return LoneWorker(
        folder,
        source=running.source,
        source_bucket=BUCKET,
        target=running.target,
        target_bucket=running.target_bucket,
        environ={**running.service.environ, "DATABASE_URL": f"sqlite:///{_ledger(running)}"},
    )


def _accept_only(running: Stack) -> None:
    """From now on the service takes events, and copies nothing."""
    running.service.environ["WORKER_EMBEDDED"] = "false"
    running.service.restart()


def _start_whole(running: Stack) -> None:
    running.service.environ.pop("WORKER_EMBEDDED", None)
    running.service.start()


def _wait_for_workers(running: Stack) -> None:
    until(lambda: running.service.unsettled() == 0, bound_s=BOUND_S, what="nothing waits")


def _is_settled(running: Stack, key: str) -> bool:
    """Also while the service is started anew, and answers 503 or not at all."""
    try:
        return bool(running.entry(key).get("state") == "settled")
    except OSError:
        return False


@pytest.mark.parametrize("running", ENGINES, indirect=True)
def test_what_was_accepted_and_not_copied_is_found_by_a_sweep_and_nothing_else_is_copied_again(
    running: Stack, target: Watched, tmp_path: Path
) -> None:
    _accept_only(running)
    running.put_many(["new/1", "new/2"], content, clients=1)
    running.put(KEYS[0], content(KEYS[0])[::-1])
    until(lambda: running.service.unsettled() == 3, bound_s=BOUND_S, what="all is accepted")
    _wait_until_delivered(tmp_path)
    running.service.kill()
    _lose(running)
    target.forget()

    _start_whole(running)
    assert running.service.settled() + running.service.unsettled() == 0, "the ledger is empty"
    found = running.sweep()
    _wait_for_workers(running)

    assert (found["missing"], found["different"], found["unproven"]) == (2, 0, 2)
    assert target.written == {"new/1": 1, "new/2": 1, KEYS[0]: 1}
    assert target.refused.keys() <= target.written.keys(), "no other body was sent"
    assert running.compare().ok
    assert running.entry(LARGE)["outcome"] == "unchanged", "its ETags differ: it was looked at"
    again = running.sweep()
    assert (again["missing"], again["different"], again["unproven"]) == (0, 0, 0)


def test_a_file_that_is_deleted_under_the_running_service_is_made_anew_and_no_event_is_lost(
    stack: Callable[..., Stack], target: Watched, tmp_path: Path
) -> None:
    running = stack(FILEBASE_ENDPOINT=target.endpoint, RECONCILE_INTERVAL_S="3600", WEB_CONCURRENCY="2")
    _fill(running, tmp_path)
    until(lambda: running.rule()["recovery_point"], bound_s=BOUND_S, what="the first sweep is complete")
    target.forget()
    alone = _lone_worker(running, tmp_path / "alone")

    with alone:
        _lose(running)
        until(lambda: alone.exit_code == 1, bound_s=BOUND_S, what="a worker ends, and says that it failed")
    running.put("after", content("after"))

    until(lambda: _is_settled(running, "after"), bound_s=BOUND_S, what="the event is on record")
    until(lambda: running.rule()["recovery_point"], bound_s=BOUND_S, what="a first sweep is complete again")
    running.service.kill()
    running.service.start()
    # the sweep, or the event's second delivery, may have looked at it once more
    assert running.entry("after")["outcome"] in ("replicated", "unchanged"), (
        "the record is on disk, at its place"
    )
    assert target.written == {"after": 1}
    assert running.compare().ok
    told = [line for line in running.log_lines() if line["event"] == "the ledger is lost"]
    assert 1 <= len(told) <= 2, "each process says so once"
    assert _ledger(running).name in told[0]["error"]


@pytest.mark.parametrize("running", ["postgresql"], indirect=True)
def test_while_its_tables_are_gone_the_service_takes_no_event_and_says_what_to_do(
    running: Stack, target: Watched
) -> None:
    target.forget()
    _lose(running)
    running.put("after", content("after"))

    ready = running.service.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["ledger"]) == (503, "ledger_unavailable")
    assert any("start the service anew" in line.get("hint", "") for line in running.log_lines())
    assert running.service.post("/v1/replicate", json={"s3_key": "after"}).status_code == 503

    running.service.restart()
    running.sweep()
    until(lambda: _is_settled(running, "after"), bound_s=BOUND_S, what="it is copied")
    _wait_for_workers(running)
    assert target.written == {"after": 1}
    assert running.compare().ok


@pytest.mark.parametrize("running", ENGINES, indirect=True)
def test_with_the_ledger_lost_only_what_minio_tells_of_is_deleted(running: Stack, tmp_path: Path) -> None:
    running.put_at_target("strange", b"not ours")
    running.service.environ |= {"REPLICATE_DELETES": "true", "DELETE_GRACE_S": "0"}
    _accept_only(running)
    running.remove(KEYS[0])
    until(lambda: running.service.unsettled() == 1, bound_s=BOUND_S, what="the removal is accepted")
    _wait_until_delivered(tmp_path)
    running.service.kill()
    _lose(running)

    _start_whole(running)
    found = running.sweep()
    _wait_for_workers(running)
    assert found["extra"] == 2, "what was removed, and what never was ours"
    assert {KEYS[0], "strange"} <= running.target_keys().keys(), (
        "a sweep deletes nothing that is not on record"
    )

    running.remove(KEYS[1])
    until(lambda: KEYS[1] not in running.target_keys(), bound_s=BOUND_S, what="a removal is propagated")
    assert {KEYS[0], KEYS[2], "strange"} <= running.target_keys().keys()
