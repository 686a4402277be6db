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
from tests.acceptance.conftest import ARNS, BUCKET, Stack, content, tell, until
from tests.proxy import Answer, Exchange, Fault, Proxy, after, answering, drop

NOTIFICATION = "Notification"
ALWAYS = 10_000


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

    KEYS = 40

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
            while not self._stopping.is_set():
                self._change(f"written/{self._chance.randrange(self.KEYS):02}")
                self._stopping.wait(self._chance.random() * 0.04)
        except Exception as error:  # noqa: BLE001 - the test asks for it
            self.error = error

    def _change(self, key: str) -> None:
        body = (
            None if self._chance.random() < 0.15 else self._chance.randbytes(1 + self._chance.randrange(9000))
        )
        etag = body and hashlib.md5(body, usedforsecurity=False).hexdigest()
        change = Change(began_at=time.time(), etag=etag)
        self.log[key].append(change)
        if body is None:
            self._running.remove(key)
        else:
            assert self._running.put(key, body) == etag
        change.ended_at = time.time()

    def wrong(self, claim: float, at_target: dict[str, str]) -> list[str]:
        """The keys that the target does not have as they were at the time of the claim, or newer.

        `at_target` was listed after the claim was made, and before this is called.
        """
        found = []
        for key, changes in list(self.log.items()):
            before = [change for change in list(changes) if change.ended_at < claim]
            if not before or before[-1].etag is None:
                continue  # it was not there
            fine = {change.etag for change in changes[len(before) - 1 :]}
            if at_target.get(key) not in fine and None not in fine:
                found.append(f"{key}: {at_target.get(key)} instead of one of {fine}")
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
        claims, looks, sweeps = [], 0, 0
        chance = random.Random(3)
        began = time.time()
        with Writer(running) as writer:
            while time.time() - began < 20 and not writer.error:
                if chance.random() < 0.1:
                    running.ask_for_sweep()
                    sweeps += 1
                claim = recovery_point(running)
                at_source = running.client().list_objects(bucket_name=BUCKET, recursive=True)
                listed = {each.object_name: each for each in at_source}
                at_target = running.target_keys()
                assert writer.wrong(claim, at_target) == []
                for key, found in listed.items():
                    assert found.last_modified
                    assert key in writer.log
                    if found.last_modified.timestamp() < claim and len(writer.log[key]) == 1:
                        assert at_target[key] == found.etag
                looks += 1
                claims.append(claim)
        assert writer.error is None
        assert sweeps > 3
        assert looks > 30
        assert len(set(claims)) > 3, "it hardly ever advanced"
        assert relay.lost
        relay.share = 0.0
        ended = time.time()
        until(
            lambda: relay.counted[NOTIFICATION] > 0 and running.service.unsettled() == 0, bound_s=60, what="x"
        )
        sweep_that_proves(running, ended)
        all_settled(running)
        assert recovery_point(running) >= ended
        assert writer.wrong(ended, running.target_keys()) == []
        verdict = running.compare()
        assert verdict.ok, verdict.differences
