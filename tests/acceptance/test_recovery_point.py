"""The recovery point is never wrong, whatever is lost on the way, and it advances."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from scripts.local_servers import SeaweedFS
from tests import proxy
from tests.acceptance.conftest import ARNS, BUCKET, Stack, add_writer, content, tell, until
from tests.proxy import Answer, Exchange, Fault, Proxy, after, answering
from webhook.lags import GROWTH

NOTIFICATION = "Notification"
ALWAYS = 10_000
CHAOS_S = 15.0


@dataclass
class Relay(Proxy):
    """Between MinIO and the service: takes some notifications, and tells nobody."""

    share: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(20261125))
    lost: list[str] = field(default_factory=list)
    """The keys whose notifications were lost."""

    def fault_for(self, operation: str) -> Fault:
        """Counts one request; a notification may be lost, and nothing else happens."""
        super().fault_for(operation)
        return self._maybe_lose if operation == NOTIFICATION else lambda exchange: None

    def _maybe_lose(self, exchange: Exchange) -> None:
        if exchange.body and self.chance.random() < self.share:
            key = json.loads(exchange.body)["Key"]
            self.lost.append(key.removeprefix(f"{BUCKET}/"))
            exchange.answer = Answer(200, {}, b"")  # so that it is not sent again


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """A relay that loses nothing yet."""
    monkeypatch.setitem(proxy.OBJECT, "POST", NOTIFICATION)
    with Relay("") as listening:
        yield listening


@pytest.fixture
def before_target(seaweed: SeaweedFS) -> Iterator[Proxy]:
    """A proxy before the target."""
    with Proxy(seaweed.endpoint) as listening:
        yield listening


def put_between(relay: Relay, running: Stack) -> None:
    """From now on notifications go through the relay, each once."""
    relay.server = running.service.url
    running.source.restart(
        environ={
            "MINIO_NOTIFY_WEBHOOK_ENDPOINT_NOW": f"{relay.endpoint}/minio/events",
            "MINIO_NOTIFY_WEBHOOK_ENABLE_QUEUE": "off",
        }
    )
    tell(running.source, ARNS[0])


def seconds(at: str | None) -> float:
    """A time of the API in seconds since 1970; 0.0 for none."""
    return datetime.fromisoformat(at).timestamp() if at else 0.0


def recovery_point(running: Stack) -> float:
    """The claim, in seconds since 1970; 0.0: there is none."""
    return seconds(running.rule()["recovery_point"])


def all_settled(running: Stack) -> None:
    """Waits until nothing is to be done."""
    until(lambda: running.service.unsettled() == 0, bound_s=60, what="all is settled")


def sweep_that_proves(running: Stack, at: float) -> dict[str, Any]:
    """A sweep that has seen all that was there at that time; the source tells its time in whole seconds."""
    while True:
        found = running.sweep()
        if seconds(found["proves_at"]) >= at:
            return found


# ── lost notifications ───────────────────────────────────────────────────────────────────────────────


def test_of_notifications_that_are_lost_a_sweep_misses_none_and_counts_each(
    stack: Callable[..., Stack], relay: Relay
) -> None:
    running = stack()
    put_between(relay, running)
    relay.share = 0.1
    keys = [f"lossy/{number % 7}/{number:03}" for number in range(400)]
    running.put_many(keys, content, clients=6)
    until(
        lambda: running.service.settled() == 400 - len(set(relay.lost)), bound_s=60, what="the rest arrives"
    )
    all_settled(running)
    assert len(relay.lost) == len(set(relay.lost)) > 20
    found = sweep_that_proves(running, time.time())
    all_settled(running)
    assert (found["compared"], found["extra"], found["kept"]) == (400, 0, 0)
    verdict = running.compare()
    assert verdict.ok, verdict.differences
    assert running.rule()["events_missed"] == len(relay.lost)
    assert recovery_point(running) == seconds(found["proves_at"])


# ── claims ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Change:
    """What the writer did to a key. Times in seconds since 1970."""

    began_at: float
    etag: str | None
    """None: removed."""
    ended_at: float = float("inf")


class Writer:
    """Writes, overwrites and removes in a thread, and keeps a log of it. As a context it runs."""

    HOT_KEYS = 30
    HOT_SHARE = 0.4
    """Of all changes; the others write keys that nobody touches again."""

    def __init__(self, running: Stack) -> None:
        self._running = running
        self._chance = random.Random(5)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.log: dict[str, list[Change]] = defaultdict(list)
        self.error: Exception | None = None

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _write(self) -> None:
        try:
            while not self._stopping.wait(self._chance.random() * 0.05):
                is_hot = self._chance.random() < self.HOT_SHARE
                number = self._chance.randrange(self.HOT_KEYS) if is_hot else len(self.log)
                self._change(f"hot/{number:02}" if is_hot else f"once/{number:04}")
        except Exception as error:  # noqa: BLE001 - the test asks for it
            self.error = error

    def _change(self, key: str) -> None:
        is_removal = bool(self.log[key]) and self._chance.random() < 0.2
        body = self._chance.randbytes(1 + self._chance.randrange(9000))
        etag = None if is_removal else hashlib.md5(body, usedforsecurity=False).hexdigest()
        change = Change(began_at=time.time(), etag=etag)
        self.log[key].append(change)
        if is_removal:
            self._running.remove(key)
        else:
            assert self._running.put(key, body) == etag
        change.ended_at = time.time()

    def claimed(self, claim: float) -> dict[str, set[str | None]]:
        """key → the ETags that the target may have, of what was at the source at the time of the claim."""
        found = {}
        for key, changes in list(self.log.items()):
            before = [change for change in list(changes) if change.ended_at < claim]
            if before and before[-1].etag:
                found[key] = {change.etag for change in changes[len(before) - 1 :]}
        return found


class Trouble(Proxy):
    """Before the target: slow at times, and refuses at times."""

    chance = random.Random(9)

    def fault_for(self, operation: str) -> Fault:
        """As chance has it, for what changes an object."""
        super().fault_for(operation)
        if operation not in ("PutObject", "DeleteObject"):
            return lambda exchange: None
        dice = self.chance.random()
        if dice < 0.05:
            return answering(500, "InternalError")
        return after(lambda: time.sleep(dice * 0.3))  # what a target takes for it, not a wait


def test_while_all_changes_and_notifications_are_lost_no_claim_is_wrong(
    stack: Callable[..., Stack], seaweed: SeaweedFS, relay: Relay
) -> None:
    with Trouble(seaweed.endpoint) as trouble:
        running = stack(
            REPLICATE_DELETES="true",
            DELETE_GRACE_S="1",
            DELETE_BREAKER_MAX="100000",
            DELETE_BREAKER_SHARE="100",
            FILEBASE_ENDPOINT=trouble.endpoint,
        )
        put_between(relay, running)
        relay.share = 0.2
        chance = random.Random(3)
        points, sweeps, proved = [], 0, 0
        began = time.time()
        with Writer(running) as writer:
            while time.time() - began < CHAOS_S and not writer.error:
                if chance.random() < 0.1:
                    running.ask_for_sweep()
                    sweeps += 1
                points.append(recovery_point(running))
                at_target = running.target_keys()  # after the claim was read
                for key, etags in writer.claimed(points[-1]).items():
                    if None not in etags:  # else it was removed since
                        assert at_target.get(key) in etags, f"{key} is not there as of {points[-1]}"
                        proved += 1
        assert writer.error is None
        assert min(sweeps, len(set(points))) > 3, "it hardly ever advanced"
        assert proved > 1000
        assert relay.lost
        ended = time.time()
        sweep_that_proves(running, ended)
        all_settled(running)
        assert recovery_point(running) >= ended
        at_source = running.client().list_objects(bucket_name=BUCKET, recursive=True)
        assert running.target_keys() == {each.object_name: each.etag for each in at_source}
        verdict = running.compare()
        assert verdict.ok, verdict.differences


def test_a_key_that_comes_back_while_its_delete_is_on_its_way_is_not_claimed_before_it_is_copied_again(
    stack: Callable[..., Stack], before_target: Proxy
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="0", FILEBASE_ENDPOINT=before_target.endpoint)
    running.put("back", b"the same")
    running.wait_until_settled(entries=1, bound_s=60)
    arrived, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        assert goes_on.wait(60)

    before_target.plan("DeleteObject", after(hold))
    before_target.plan("PutObject", answering(503, "SlowDown"), times=ALWAYS)
    running.remove("back")
    assert arrived.wait(30), "nothing is deleted"
    tell(running.source)
    running.put("back", b"the same")
    back_at = time.time()
    sweep_that_proves(running, back_at)  # and sees both sides alike
    assert recovery_point(running) < back_at
    goes_on.set()
    until(lambda: running.entry("back")["error"], bound_s=30, what="copying it again is tried")
    assert running.target_etag("back") is None
    assert recovery_point(running) < back_at
    before_target.forget()
    all_settled(running)
    assert running.target_body("back") == b"the same"
    assert recovery_point(running) >= back_at


def test_a_failed_object_holds_the_recovery_point_until_it_is_mended_or_removed(
    stack: Callable[..., Stack], before_target: Proxy
) -> None:
    running = stack(FILEBASE_ENDPOINT=before_target.endpoint)
    running.put("fine", b"x")
    running.wait_until_settled(entries=1, bound_s=60)
    proved_at = time.time()
    sweep_that_proves(running, proved_at)
    for key in ("mended", "removed"):
        before_target.plan("PutObject", answering(400, "InvalidRequest"), times=ALWAYS)
        running.put(key, b"refused")
        ended = time.time()
        until(lambda key=key: running.entry(key).get("state") == "failed", bound_s=30, what="it is refused")
        before_target.forget()
        running.put(f"after {key}", b"taken")
        until(lambda key=key: running.target_etag(f"after {key}"), bound_s=30, what="the next one is copied")
        proof = sweep_that_proves(running, time.time())
        assert running.entry(key)["state"] == "failed"  # left to a person
        asked_at = time.time()
        rule = running.rule()
        assert proved_at <= seconds(rule["recovery_point"]) <= ended
        # the sweep cannot tell whether an earlier version was there since the one that proved the target
        assert proved_at <= seconds(rule["recovery_point_by_events"]) <= ended
        assert asked_at - ended - 0.01 <= rule["lag_s"] <= time.time() - proved_at + 0.01
        if key == "mended":
            assert running.service.post("/v1/failures/retry").json() == {"retried": 1}
        else:
            running.remove(key)
        all_settled(running)
        rule = running.rule()
        assert seconds(rule["recovery_point"]) == seconds(proof["proves_at"]) > ended
        assert seconds(rule["recovery_point_by_events"]) > ended
        assert rule["lag_s"] == 0.0
        proved_at = seconds(proof["proves_at"])
    assert running.compare().ok


def test_the_recovery_point_survives_a_restart_but_not_another_target_bucket(
    stack: Callable[..., Stack], seaweed: SeaweedFS, new_bucket: Callable[[SeaweedFS], str]
) -> None:
    running = stack()
    assert running.rule()["recovery_point"] is None
    keys = [f"moved/{number}" for number in range(20)]
    running.put_many(keys, content, clients=4)
    running.wait_until_settled(entries=20, bound_s=60)
    assert running.rule()["recovery_point"] is None
    found = sweep_that_proves(running, time.time())
    all_settled(running)
    running.service.kill()
    running.service.start()
    rule = running.rule()
    assert (rule["recovery_point"], rule["proved_by"]) == (found["proves_at"], "sweep")
    running.service.stop()
    running.target_bucket = running.service.environ["FILEBASE_BUCKET"] = new_bucket(seaweed)
    running.service.environ |= add_writer(seaweed, running.target_bucket).variables("FILEBASE")
    running.service.start()
    rule = running.rule()
    assert (rule["recovery_point"], rule["proved_by"]) == (None, None)
    assert running.target_keys() == {}
    found = running.sweep()
    assert found["missing"] == 20
    all_settled(running)
    assert running.compare().ok
    assert running.rule()["recovery_point"] == found["proves_at"]
    assert running.rule()["events_missed"] == 0


# ── lag ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_lag_of_the_last_hour_is_told_and_is_nothing_when_nothing_waits(
    stack: Callable[..., Stack],
) -> None:
    running = stack()
    idle = running.rule()
    assert idle["last_hour"] == {"objects": 0, "bytes": 0, "lag_s": {"p50": None, "p95": None, "p99": None}}
    assert idle["lag_s"] == 0.0
    keys = [f"live/{number:03}" for number in range(100)]
    began = time.time()
    running.put_many(keys, content, clients=4)
    running.wait_until_settled(entries=100, bound_s=60)
    passed_s = time.time() - began
    rule = running.rule()
    lag = rule["last_hour"]["lag_s"]
    assert 0 < lag["p50"] <= lag["p95"] <= lag["p99"] <= passed_s * GROWTH
    assert rule["last_hour"]["objects"] == 100
    assert rule["last_hour"]["bytes"] == sum(len(content(key)) for key in keys)
    assert rule["lag_s"] == 0.0
    assert time.time() - seconds(rule["recovery_point_by_events"]) < 5
