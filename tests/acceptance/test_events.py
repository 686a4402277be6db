"""From a PUT at the source to a verified copy at the target, by MinIO's own events."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from scripts.local_service import LoneWorker, Replicator
from tests.acceptance.conftest import BUCKET, Stack, content, notify, until


def test_an_object_put_at_the_source_arrives_with_all_it_has(stack: Callable[..., Stack]) -> None:
    running = stack()
    etag = running.put("a b+c%20é.txt", b"hello", content_type="text/plain", metadata={"Color": "blue"})
    running.wait_until_settled(entries=1, bound_s=30)
    found = running.target.client().stat_object(
        bucket_name=running.target_bucket, object_name="a b+c%20é.txt"
    )
    assert (found.etag, found.size, found.content_type) == (etag, 5, "text/plain")
    assert found.metadata is not None
    assert found.metadata["x-amz-meta-color"] == "blue"


def test_an_event_delivered_by_both_targets_is_worked_on_once(
    stack: Callable[..., Stack], tmp_path: Path
) -> None:
    running = stack()
    keys = [f"twice/{number}" for number in range(20)]
    running.put_many(keys, content, clients=4)
    running.wait_until_settled(entries=20, bound_s=30)
    until(lambda: not any((tmp_path / "queue").rglob("*.event")), bound_s=30, what="the queue is empty")
    for key in keys:
        entry = running.service.get(f"/v1/entries/default/{key}").json()
        assert (entry["generation"], len(entry["attempts_made"])) == (1, 1)


def test_nothing_is_lost_when_the_service_is_killed_again_and_again(stack: Callable[..., Stack]) -> None:
    running = stack()
    keys = [f"killed/{number:04}" for number in range(2000)]
    done = [0]

    def put(key: str) -> bytes:
        done[0] += 1
        return content(key)

    with ThreadPoolExecutor(8) as pool:
        uploads = [pool.submit(running.put, key, put(key)) for key in keys]
        kills = 0
        while not all(upload.done() for upload in uploads) or kills < 3:
            time.sleep(3)  # the rhythm of the faults, not a wait for something
            running.service.kill()
            kills += 1
            running.service.start()
        for upload in uploads:
            upload.result()
    running.wait_until_settled(entries=2000, bound_s=180)
    verdict = running.compare()
    assert verdict.ok, verdict.differences
    assert running.service.unsettled() == 0


def test_one_key_overwritten_fast_is_never_copied_twice_at_once_and_ends_with_the_last_content(
    stack: Callable[..., Stack], tmp_path: Path
) -> None:
    running = stack()
    other = LoneWorker(
        tmp_path / "other",
        source=running.source,
        source_bucket=BUCKET,
        target=running.target,
        target_bucket=running.target_bucket,
        environ={
            "LOG_FORMAT": "json",
            "DATABASE_URL": f"sqlite:///{running.service.folder}/data/replicator.db",
        },
    )
    with other:
        for number in range(200):
            running.put("hot", f"version {number}".encode() * 500)
        running.wait_until_settled(entries=1, bound_s=60)
    assert running.target_body("hot") == b"version 199" * 500
    copies = sorted(
        (line["began_at"], line["began_at"] + line["ms"] / 1000)
        for line in [*running.log_lines(), *running.log_lines(other.log_path)]
        if line.get("key") == "hot" and line["event"] == "settled"
    )
    assert len(copies) >= 2
    for (_, ended), (began, _) in itertools.pairwise(copies):
        assert ended <= began


def test_events_of_the_time_the_webhook_was_away_are_delivered_afterwards(
    stack: Callable[..., Stack],
) -> None:
    running = stack()
    running.service.stop()
    began = time.monotonic()
    for number in range(50):
        running.put(f"away/{number}", content(str(number)))
    time.sleep(max(0.0, 10 - (time.monotonic() - began)))  # the length of the outage
    running.service.start()
    running.wait_until_settled(entries=50, bound_s=60)
    assert running.compare().ok


def test_a_target_that_is_down_holds_up_entries_but_not_the_webhook(stack: Callable[..., Stack]) -> None:
    running = stack(MAX_ATTEMPTS="2")
    running.target.stop()
    try:
        began = time.monotonic()
        number = 0
        while time.monotonic() - began < 20:
            running.put(f"down/{number}", content(str(number)))
            answer = requests.get(running.service.events_url, timeout=5)
            assert answer.status_code == 200
            number += 1
            time.sleep(0.5)
        counts = running.service.get("/v1/status").json()["entries"]
        assert counts["failed"]["live"] == 0
        assert counts["waiting"]["live"] + counts["running"]["live"] == number
    finally:
        running.target.start()
    running.wait_until_settled(entries=number, bound_s=120)
    assert running.compare().ok
    assert not any(line["level"] == "error" for line in running.log_lines())


JUNK = [
    ({"Records": [{"s3": {"bucket": {"name": BUCKET}, "object": {}}}]}, "quarantined"),
    ({"Records": [{"s3": {"bucket": {"name": BUCKET}, "object": {"key": "k" * 5000}}}]}, "quarantined"),
    ({"Records": [{"eventName": "s3:ObjectCreated:Put",
                   "s3": {"bucket": {"name": "unknown"}, "object": {"key": "a"}}}]}, "ignored"),
    ({"Records": "no list"}, "quarantined"),
]  # fmt: skip


def test_a_record_nobody_can_use_does_not_stop_the_next_event(stack: Callable[..., Stack]) -> None:
    running = stack()
    for junk, ends_as in JUNK:
        token = running.service.settings()["WEBHOOK_AUTH_TOKEN"]
        answer = running.service.post(
            "/minio/events", json=junk, headers={"Authorization": f"Bearer {token}"}
        )
        assert (answer.status_code, answer.json()[ends_as]) == (200, 1)
    running.put("after junk", b"x")
    running.wait_until_settled(entries=1, bound_s=30)
    assert running.service.get("/v1/status").json()["quarantined"] == 3


def test_a_locked_ledger_is_answered_503_and_all_goes_on_once_it_is_free(
    stack: Callable[..., Stack],
) -> None:
    running = stack()
    other = sqlite3.connect(running.service.folder / "data" / "replicator.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    running.put("while locked", b"x")
    event = {"Records": [{"eventName": "s3:ObjectCreated:Put",
                          "s3": {"bucket": {"name": BUCKET}, "object": {"key": "by+hand"}}}]}  # fmt: skip
    token = running.service.settings()["WEBHOOK_AUTH_TOKEN"]
    answer = running.service.post("/minio/events", json=event, headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    other.execute("ROLLBACK")
    other.close()
    running.wait_until_settled(entries=1, bound_s=60)
    assert running.target_body("while locked") == b"x"


def test_an_object_uploaded_in_parts_keeps_its_etag(stack: Callable[..., Stack]) -> None:
    running = stack()
    body = hashlib.sha256(b"parts").digest() * (21 * 1024 * 1024 // 32)
    etag = running.put("in parts", body, part_size=8 * 1024 * 1024)
    assert etag.endswith("-3")
    running.wait_until_settled(entries=1, bound_s=60)
    assert running.target_etag("in parts") == etag


def test_sigterm_finishes_what_runs_and_hands_back_the_rest(stack: Callable[..., Stack]) -> None:
    running = stack(WORKER_THREADS="2")
    keys = [f"term/{number:03}" for number in range(300)]
    running.put_many(keys, content, clients=8)
    running.service.stop()
    assert not running.service.alive
    lines = running.log_lines()
    assert [line["left_running"] for line in lines if line["event"] == "worker stopped"] == [0]
    running.service.start()
    running.wait_until_settled(entries=300, bound_s=60)
    entries = [running.service.get(f"/v1/entries/default/{key}").json() for key in keys]
    assert {entry["outcome"] for entry in entries} == {"replicated"}
    assert all(len(entry["attempts_made"]) == 1 for entry in entries)


@pytest.mark.parametrize("processes", ["3"])
def test_several_gunicorn_processes_share_one_ledger(stack: Callable[..., Stack], processes: str) -> None:
    running = stack(WEB_CONCURRENCY=processes)
    keys = [f"shared/{number:03}" for number in range(200)]
    running.put_many(keys, content, clients=8)
    running.wait_until_settled(entries=200, bound_s=60)
    assert running.compare().ok
    for key in keys[:20]:
        entry = running.service.get(f"/v1/entries/default/{key}").json()
        assert [attempt["result"] for attempt in entry["attempts_made"]] == ["replicated"]


def test_notifications_can_be_moved_to_another_instance(stack: Callable[..., Stack], tmp_path: Path) -> None:
    running = stack()
    second = Replicator(
        tmp_path / "second",
        source=running.source,
        source_bucket=BUCKET,
        target=running.target,
        target_bucket=running.target_bucket,
        environ={"DATABASE_URL": f"sqlite:///{running.service.folder}/data/replicator.db"},
    )
    with second:
        notify(running.source, second.events_url, queue_dir=tmp_path / "queue")
        running.put("via the second", b"x")
        running.wait_until_settled(entries=1, bound_s=30)
