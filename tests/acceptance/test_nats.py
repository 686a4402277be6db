"""From a PUT at the source to a verified copy, with the events on their way through NATS JetStream.

The gateway has MinIO's notifications, but not its NATS target: a relay publishes what the webhook target
sends, which is the same JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.local_servers import Gateway, Nats, PostgreSQL, SeaweedFS
from scripts.local_service import LoneIngest, Replicator
from tests.acceptance.conftest import ARNS, BUCKET, Stack, content, notify, tell, until
from tests.jetstream import JetStream, Relay


@dataclass
class NatsStack(Stack):
    """A stack whose web process gets no events itself."""

    nats: Nats
    jetstream: JetStream
    relay: Relay
    ingests: list[LoneIngest]
    database: PostgreSQL

    def wait_until_settled(self, *, entries: int, bound_s: float) -> None:
        """And until all messages are acknowledged."""
        super().wait_until_settled(entries=entries, bound_s=bound_s)
        until(lambda: self.jetstream.left() == 0, bound_s=bound_s, what="every message is acknowledged")

    def told(self, event: str) -> int:
        """How often the ingest processes wrote this."""
        return sum(each.log_path.read_text().count(f'"event": "{event}"') for each in self.ingests)


@pytest.fixture
def by_nats(
    tmp_path: Path, nats: Nats, seaweed: SeaweedFS, new_bucket: Callable[[SeaweedFS], str]
) -> Iterator[Callable[..., NatsStack]]:
    """Starts a stack with so many ingest processes, on a PostgreSQL of its own."""
    with ExitStack() as running:

        def start(*, ingests: int = 1) -> NatsStack:
            source = running.enter_context(Gateway(tmp_path / "source"))
            database = running.enter_context(PostgreSQL(tmp_path / "postgresql"))
            environ = {
                "LOG_FORMAT": "json",
                "RECONCILE_INTERVAL_S": "0",
                "DATABASE_URL": database.create_database("ledger"),
                "EVENTS_FROM": nats.url,
            }
            bucket = new_bucket(seaweed)
            sides = {"source": source, "source_bucket": BUCKET, "target": seaweed, "target_bucket": bucket}
            service = running.enter_context(Replicator(tmp_path / "service", environ=environ, **sides))
            processes = [
                running.enter_context(LoneIngest(tmp_path / f"ingest-{number}", environ=environ, **sides))
                for number in range(ingests)
            ]
            jetstream = running.enter_context(JetStream(nats.url))
            relay = running.enter_context(Relay(jetstream))
            source.client().make_bucket(bucket_name=BUCKET)
            notify(source, relay.url, queue_dir=tmp_path / "queue")
            return NatsStack(
                source=source,
                target=seaweed,
                target_bucket=bucket,
                service=service,
                nats=nats,
                jetstream=jetstream,
                relay=relay,
                ingests=processes,
                database=database,
            )

        yield start


def test_an_object_put_at_the_source_arrives(by_nats: Callable[..., NatsStack]) -> None:
    running = by_nats()
    etag = running.put("a b+c%20é.txt", b"hello")
    running.wait_until_settled(entries=1, bound_s=60)
    assert running.target_etag("a b+c%20é.txt") == etag
    entry = running.entry("a b+c%20é.txt".replace("%", "%25"))
    assert (entry["generation"], len(entry["attempts_made"])) == (1, 1), "MinIO delivers it twice"


def test_nothing_is_lost_when_ingest_is_killed_in_the_middle(by_nats: Callable[..., NatsStack]) -> None:
    running = by_nats(ingests=2)
    keys = [f"killed/{number:04}" for number in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        uploads = [pool.submit(running.put, key, content(key)) for key in keys]
        for share in (0.2, 0.4, 0.6, 0.8):
            until(
                lambda: sum(upload.done() for upload in uploads) >= share * len(keys),  # noqa: B023
                bound_s=180,
                what="so many are written",
            )
            for ingest in running.ingests:
                ingest.kill()
                ingest.start()
        for upload in uploads:
            upload.result()
    running.wait_until_settled(entries=2000, bound_s=180)
    verdict = running.compare()
    assert verdict.ok, verdict.differences


def test_nothing_is_lost_when_nats_is_restarted_in_the_middle(by_nats: Callable[..., NatsStack]) -> None:
    running = by_nats()
    keys = [f"restarted/{number:03}" for number in range(300)]
    pid = running.ingests[0].pid
    with ThreadPoolExecutor(4) as pool:
        uploads = [pool.submit(running.put, key, content(key)) for key in keys]
        for number, end in enumerate((running.nats.stop, running.nats.kill), start=1):
            until(
                lambda: sum(upload.done() for upload in uploads) >= 100 * number,  # noqa: B023
                bound_s=120,
                what="so many are written",
            )
            before = running.told("waiting for NATS")
            end()
            until(lambda: running.told("waiting for NATS") > before, bound_s=60, what="it says so")  # noqa: B023
            running.nats.start()
            until(
                lambda: running.told("consuming events") > number,  # noqa: B023
                bound_s=60,
                what="it goes on",
            )
        for upload in uploads:
            upload.result()
    running.wait_until_settled(entries=300, bound_s=180)
    assert running.compare().ok
    assert running.ingests[0].pid == pid, "the same process goes on"


def test_events_wait_while_the_ledger_is_away(by_nats: Callable[..., NatsStack]) -> None:
    running = by_nats()
    running.put("before", b"1")
    running.wait_until_settled(entries=1, bound_s=60)
    running.database.stop()
    keys = [f"meanwhile/{number}" for number in range(20)]
    running.put_many(keys, content, clients=4)
    until(lambda: running.told("waiting for the ledger") >= 3, bound_s=60, what="it says so, and tries again")
    assert running.jetstream.left() >= 20, "nothing is acknowledged"
    running.database.start()
    running.wait_until_settled(entries=21, bound_s=120)
    assert running.compare().ok


def test_junk_in_the_stream_is_kept_for_a_person_and_holds_up_nothing(
    by_nats: Callable[..., NatsStack],
) -> None:
    running = by_nats()
    elsewhere = {
        "s3": {"bucket": {"name": "elsewhere"}, "object": {"key": "k"}},
        "eventName": "s3:ObjectCreated:Put",
    }
    nobody_wants = json.dumps({"Records": [elsewhere]}).encode()
    running.jetstream.publish(b"no json", b"\x00\xff", b"[]", b'{"Key": "k"}', nobody_wants)
    running.put("good", b"1")
    running.wait_until_settled(entries=1, bound_s=60)
    assert running.target_body("good") == b"1"
    assert running.service.get("/v1/status").json()["quarantined"] == 4
    assert running.told("event quarantined") == 4


def test_an_event_that_comes_both_ways_is_worked_on_once(
    by_nats: Callable[..., NatsStack], tmp_path: Path
) -> None:
    running = by_nats()
    endpoint = {"MINIO_NOTIFY_WEBHOOK_ENDPOINT_NOW": running.service.events_url}
    running.source.restart(environ=endpoint)  # the other one goes on to the relay
    tell(running.source, *ARNS)
    keys = [f"twice/{number}" for number in range(20)]
    running.put_many(keys, content, clients=4)
    running.wait_until_settled(entries=20, bound_s=60)
    until(lambda: not any((tmp_path / "queue").rglob("*.event")), bound_s=30, what="the queue is empty")
    running.wait_until_settled(entries=20, bound_s=60)
    for ingest in running.ingests:
        ingest.stop()
    assert '"messages": 20' in running.ingests[0].log_of_this_run()
    for key in keys:
        entry = running.entry(key)
        assert (entry["generation"], len(entry["attempts_made"])) == (1, 1)
