"""A target's limits: of several processes on one ledger, and before a server that has too much to do."""

from __future__ import annotations

import io
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scripts.local_servers import Gateway, S3Server, SeaweedFS
from scripts.local_service import Replicator
from tests.acceptance.conftest import until
from tests.integration.conftest import Permit, Scene
from tests.integration.test_stores import BODY, NOTHING, md5
from tests.proxy import Exchange, Proxy, answering
from webhook import connections, pace
from webhook.errors import LeaseLost, LedgerUnavailable, StoreUnavailable
from webhook.ledger import Ledger
from webhook.pace import BURST_S, MB, LedgerSlots, LocalSlots, Slots
from webhook.tables import SLOTS
from webhook.target import Target

ROOT = Path(__file__).parents[2]
BOUND_S = 30.0
RPS, EACH, PROCESSES = 100, 60, 2


@dataclass
class Place:
    """A bucket behind a proxy, and the way to targets that know nothing yet."""

    server: SeaweedFS
    wire: Proxy
    bucket: str
    make: Callable[..., Target]

    def target(self, slots: Slots | None = None, **limits: int) -> Target:
        return self.make(self.server, slots=slots, endpoint_url=self.wire.endpoint, **limits)

    def put(self, target: Target, key: str = "key", *, permit: Permit | None = None) -> None:
        target.put(self.bucket, key, memoryview(BODY), md5(BODY), NOTHING, permit=permit or Permit())


@pytest.fixture
def place(
    seaweed: SeaweedFS, new_bucket: Callable[[SeaweedFS], str], target_at: Callable[..., Target]
) -> Iterator[Place]:
    with Proxy(seaweed.endpoint) as wire:
        yield Place(seaweed, wire, new_bucket(seaweed), target_at)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as made:
        yield made


@dataclass
class Gate:
    """A fault that holds requests back until it is opened, and counts those it holds."""

    is_open: threading.Event = field(default_factory=threading.Event)
    held: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, exchange: Exchange) -> None:
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        assert self.is_open.wait(BOUND_S)
        with self.lock:
            self.held -= 1


@contextmanager
def held(place: Place, operation: str, *, times: int = 99) -> Iterator[Gate]:
    """Holds back the next requests of this kind."""
    gate = Gate()
    place.wire.plan(operation, gate, times=times)
    try:
        yield gate
    finally:
        gate.is_open.set()


# ── the sum of all processes ─────────────────────────────────────────────────────────────────────────────

PROCESS = """
import sys, threading
from webhook.errors import Place
from webhook.ledger import Ledger
from webhook.pace import LedgerSlots, Pace
url, rps, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ledger = Ledger.open(url)
paced = Pace("filebase", max_rps=rps, slots=LedgerSlots(ledger))
place = Place(side="target", operation="PutObject", bucket="b", key="k")
lock = threading.Lock()
def send(number):
    for _ in range(number):
        paced.turn(place).end()
        with lock:
            print(ledger.clock(), flush=True)
print("ready", flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=send, args=(count // 4,)) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
"""


def test_a_limit_holds_for_all_processes_on_a_ledger_together(database_url: str) -> None:
    Ledger.open(database_url).close()
    command = [sys.executable, "-c", PROCESS, database_url, str(RPS), str(EACH)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(PROCESSES)
        ]
        for each in running:
            assert each.stdout and each.stdout.readline() == "ready\n"
        for each in running:
            assert each.stdin
            each.stdin.write("\n")
            each.stdin.flush()
        sent = sorted(
            float(line) for each in running for line in each.communicate(timeout=BOUND_S)[0].split()
        )
    assert len(sent) == PROCESSES * EACH
    tolerance = 0.05  # between a request's moment and its note of the time
    burst = 2 * RPS * BURST_S + 4 * PROCESSES  # at first, and of what was reserved and is sent or noted late
    for first, last in itertools.combinations(range(len(sent)), 2):
        assert last - first + 1 <= RPS * (sent[last] - sent[first] + tolerance) + burst


@pytest.mark.parametrize("ahead_s", [3600.0, 86_400.0])
def test_a_clock_that_was_set_back_holds_nothing_up(ledger: Ledger, ahead_s: float) -> None:
    slots = LedgerSlots(ledger)
    slots.reserve("filebase requests", 0.1)
    ledger.run(SLOTS.update().values(given_until=ledger.clock() + ahead_s))
    assert slots.reserve("filebase requests", 0.1) == 0
    assert 0 < slots.reserve("filebase requests", 0.1) <= 0.1


def test_spans_follow_each_other_and_names_do_not_share(ledger: Ledger) -> None:
    for slots in (LedgerSlots(ledger), LocalSlots()):
        first = slots.reserve("a", 10)
        assert first == pytest.approx(-BURST_S, abs=0.02)
        second = slots.reserve("a", 5)
        assert second == pytest.approx(first + 10, abs=5)
        assert slots.reserve("a", 1) == pytest.approx(second + 5, abs=4)
        assert slots.reserve("b", 1) == pytest.approx(-BURST_S, abs=0.02)


def test_without_the_ledger_a_request_waits_and_is_given_up_and_goes_on_when_it_is_back(
    place: Place, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "LEDGER_WAIT_S", 0.3)
    monkeypatch.setattr(pace, "LEDGER_RETRY_S", 0.05)
    target = place.target(LedgerSlots(ledger), max_rps=100)

    def away(*_: object, **__: object) -> None:
        raise LedgerUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "run", away)
        with pytest.raises(LedgerUnavailable):
            place.put(target)
    assert not place.wire.counted
    place.put(target)
    assert place.wire.counted == {"PutObject": 1}


# ── all requests to the target, and those alone ──────────────────────────────────────────────────────────


def test_every_request_to_a_target_is_paced(place: Place) -> None:
    target, rps = place.target(max_rps=20), 20
    upload, _ = target.create_upload(place.bucket, "parts", NOTHING, permit=Permit())
    part = target.put_part(place.bucket, "parts", upload, 1, memoryview(BODY), md5(BODY), permit=Permit())
    calls: list[Callable[[], object]] = [
        lambda: target.head(place.bucket, "key"),
        lambda: target.tags(place.bucket, "key"),
        lambda: target.page(place.bucket, ""),
        lambda: target.check(place.bucket),
        lambda: target.uploaded_parts(place.bucket, "parts", upload),
        lambda: target.open(place.bucket, "key").close(),
        lambda: place.put(target),
        lambda: target.complete_upload(place.bucket, "parts", upload, [part.etag], permit=Permit()),
        lambda: target.abort_upload(place.bucket, "parts", "no such upload"),
        lambda: target.delete(place.bucket, "key", permit=Permit()),
    ]
    place.put(target)
    began = time.monotonic()
    for _ in range(2):
        for call in calls[:6]:
            call()
    for call in calls[6:]:
        call()
    assert time.monotonic() - began >= (12 + 4 - 1) / rps - BURST_S
    assert sum(place.wire.counted.values()) == 3 + 12 + 4


def test_object_data_is_paced_by_its_length(place: Place) -> None:
    target, body = place.target(max_mbps=4), bytearray(MB)
    began = time.monotonic()
    for number in range(3):
        target.put(place.bucket, f"{number}", memoryview(body), md5(body), NOTHING, permit=Permit())
    assert time.monotonic() - began >= 3 / 4 - BURST_S - pace.BATCH_S


def test_reads_from_the_source_are_not_limited(scene: Scene) -> None:
    scene.put()
    scene.source_wire.plan("HeadObject", answering(503, "SlowDown", Retry_After="60"))
    with pytest.raises(StoreUnavailable):
        scene.source.head(scene.rule.source_bucket, "key")
    assert scene.source.head(scene.rule.source_bucket, "key").size == len(b"content")
    assert scene.copier().limit is None


# ── a target that has too much to do ─────────────────────────────────────────────────────────────────────


def start(threads: ThreadPoolExecutor, place: Place, target: Target, count: int) -> list[Future[object]]:
    return [threads.submit(target.head, place.bucket, "key") for _ in range(count)]


def halve(threads: ThreadPoolExecutor, place: Place, target: Target, *, from_: int) -> None:
    """So many requests under way at once, one of which meets a busy target."""
    with held(place, "HeadObject", times=from_ - 1) as gate:
        heads = start(threads, place, target, from_ - 1)
        until(lambda: gate.held == from_ - 1, bound_s=BOUND_S, what="all are under way")
        place.wire.plan("PutObject", answering(503, "SlowDown"))
        with pytest.raises(StoreUnavailable):
            place.put(target)
        assert target.limit == from_ // 2
    for head in heads:
        head.result(BOUND_S)


def limit_to_one(threads: ThreadPoolExecutor, place: Place, target: Target) -> None:
    """One request at a time, until one has gone well."""
    halve(threads, place, target, from_=2)
    place.wire.plan("PutObject", answering(503, "SlowDown"))
    with pytest.raises(StoreUnavailable):
        place.put(target)
    assert target.limit == 1


def test_a_busy_target_gets_half_as_many_requests_at_once_and_all_of_them_once_it_takes_them(
    place: Place, threads: ThreadPoolExecutor
) -> None:
    target = place.target()
    halve(threads, place, target, from_=8)
    limit = target.limit
    assert limit is not None
    with held(place, "HeadObject") as gate:
        heads = start(threads, place, target, 12)
        until(lambda: gate.held == limit, bound_s=BOUND_S, what="as many as are allowed")
        gate.is_open.wait(0.3)
        assert gate.most == limit
    for head in heads:
        head.result(BOUND_S)
    for _ in range(100):
        target.head(place.bucket, "key")
    assert target.limit is None
    with held(place, "HeadObject") as gate:
        heads = start(threads, place, target, 12)
        until(lambda: gate.held == 12, bound_s=BOUND_S, what="all at once")


@pytest.mark.parametrize("call", ["head", "uploaded_parts"])
def test_a_target_that_does_not_answer_is_asked_less_too(
    place: Place, target_at: Callable[..., Target], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "READ_TIMEOUT_S", 0.5)
    more = ("id",) if call == "uploaded_parts" else ()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        target = target_at(place.server, endpoint_url=endpoint)
        with pytest.raises(StoreUnavailable):
            getattr(target, call)(place.bucket, "key", *more)
    assert target.limit == 1


@pytest.mark.parametrize("call", ["head", "uploaded_parts"])
def test_a_target_that_nobody_listens_for_is_not_busy(
    place: Place, target_at: Callable[..., Target], call: str
) -> None:
    target = target_at(place.server, endpoint_url="http://127.0.0.1:1")
    more = ("id",) if call == "uploaded_parts" else ()
    with pytest.raises(StoreUnavailable):
        getattr(target, call)(place.bucket, "key", *more)
    assert target.limit is None


def test_a_request_is_under_way_until_its_answer_was_read(place: Place, threads: ThreadPoolExecutor) -> None:
    target = place.target()
    place.put(target)
    limit_to_one(threads, place, target)
    reading = target.open(place.bucket, "key")
    place.wire.forget()
    (head,) = start(threads, place, target, 1)
    time.sleep(0.3)
    assert not place.wire.counted
    reading.close()
    assert head.result(BOUND_S)


@pytest.mark.parametrize("operation", ["put", "complete_upload"])
def test_a_lease_that_ends_in_the_queue_ends_the_wait_and_nothing_is_written(
    place: Place, threads: ThreadPoolExecutor, operation: str
) -> None:
    target, permit = place.target(), Permit()
    limit_to_one(threads, place, target)
    place.wire.forget()
    with held(place, "HeadObject") as gate:
        start(threads, place, target, 1)
        until(lambda: gate.held == 1, bound_s=BOUND_S, what="one is under way")
        writing: Future[object]
        if operation == "put":
            writing = threads.submit(place.put, target, permit=permit)
        else:
            completing = partial(target.complete_upload, place.bucket, "k", "id", ["1"])
            writing = threads.submit(completing, permit=permit)
        until(lambda: permit.checks > 0, bound_s=BOUND_S, what="it waits, and looks")
        permit.lost_at = 1
        with pytest.raises(LeaseLost):
            writing.result(BOUND_S)
    assert place.wire.counted == {"HeadObject": 1}


def test_a_lease_is_checked_after_the_last_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    target, permit = place.target(), Permit()
    waited = pace.Pace.turn

    def turn(self: pace.Pace, *args: object, **more: object) -> pace.Turn:
        made = waited(self, *args, **more)  # type: ignore[arg-type]
        permit.lost_at = 1
        return made

    monkeypatch.setattr(pace.Pace, "turn", turn)
    calls: list[Callable[[], object]] = [
        lambda: place.put(target, permit=permit),
        lambda: target.create_upload(place.bucket, "key", NOTHING, permit=permit),
        lambda: target.put_part(place.bucket, "key", "id", 1, memoryview(BODY), md5(BODY), permit=permit),
        lambda: target.complete_upload(place.bucket, "key", "id", ["1"], permit=permit),
        lambda: target.abort_upload(place.bucket, "key", "id", permit=permit),
        lambda: target.delete(place.bucket, "key", permit=permit),
    ]
    for call in calls:
        permit.lost_at = 0
        with pytest.raises(LeaseLost):
            call()
    assert not place.wire.counted


# ── Retry-After ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_target_is_not_asked_before_it_wants_to_be(place: Place) -> None:
    target = place.target()
    place.wire.plan("PutObject", answering(503, "SlowDown", Retry_After="1"))
    with pytest.raises(StoreUnavailable):
        place.put(target)
    told = time.monotonic()
    assert target.head(place.bucket, "key") is None
    assert time.monotonic() - told >= 0.95


def test_a_long_wait_is_an_error_at_once_that_no_request_was_sent_for(place: Place) -> None:
    target = place.target()
    place.wire.plan("PutObject", answering(429, "TooManyRequests", Retry_After="600"))
    with pytest.raises(StoreUnavailable):
        place.put(target)
    place.wire.forget()
    calls: list[Callable[[], object]] = [
        lambda: place.put(target),
        lambda: target.uploaded_parts(place.bucket, "key", "id"),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable) as raised:
            call()
        assert raised.value.retry_after_s is not None
        assert 500 < raised.value.retry_after_s <= 600
    assert not place.wire.counted


def test_the_status_tells_what_a_busy_target_gets(
    place: Place, gateway: Gateway, new_bucket: Callable[[S3Server], str], tmp_path: Path
) -> None:
    environ = {"FILEBASE_ENDPOINT": place.wire.endpoint, "RECONCILE_INTERVAL_S": "0", "LEASE_S": "2"}
    stores: dict[str, Any] = {"source": gateway, "source_bucket": new_bucket(gateway)}
    stores |= {"target": place.server, "target_bucket": place.bucket}

    def limits() -> list[dict[str, int | None]]:
        return [worker["limits"] for worker in service.get("/v1/status").json()["workers"]]

    with Replicator(tmp_path, **stores, environ=environ) as service:
        until(lambda: limits() == [{"filebase": None}], bound_s=BOUND_S, what="it signs")
        gateway.client().put_object(
            bucket_name=stores["source_bucket"], object_name="key", data=io.BytesIO(b"x"), length=1
        )
        place.wire.plan("HeadObject", answering(503, "SlowDown"), times=50)
        assert service.post("/v1/replicate", json={"s3_key": "key"}).status_code == 502
        until(lambda: limits() == [{"filebase": 1}], bound_s=BOUND_S, what="it tells")
