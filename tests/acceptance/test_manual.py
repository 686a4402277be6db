"""POST /v1/replicate, as a person with curl meets it."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.local_service import API_TOKEN
from tests.acceptance.conftest import Stack


def curl(running: Stack, body: str, *, token: str = API_TOKEN) -> tuple[int, dict[str, Any]]:
    """The sample of the README, with the real curl."""
    done = subprocess.run(
        [
            *("curl", "--silent", "--write-out", "\n%{http_code}", "-X", "POST"),
            f"{running.service.url}/v1/replicate",
            *("-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {token}", "-d", body),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answer, status = done.stdout.rsplit("\n", 1)
    return int(status), json.loads(answer)


def test_curl_copies_once_and_hears_that_it_exists_the_second_time(stack: Callable[..., Stack]) -> None:
    running = stack(WORKER_EMBEDDED="false")
    etag = running.put("hello.txt", b"hello")
    status, answer = curl(running, '{"s3_key": "hello.txt"}')
    assert (status, answer["status"], answer["target_etag"]) == (200, "replicated", etag)
    assert running.target_body("hello.txt") == b"hello"
    status, answer = curl(running, '{"s3_key": "hello.txt"}')
    assert (status, answer["status"]) == (409, "exists")
    entry = running.service.get(answer["entry"]).json()
    assert [attempt["result"] for attempt in entry["attempts_made"]] == ["replicated", "unchanged"]


def test_every_refusal_says_what_to_do(stack: Callable[..., Stack]) -> None:
    running = stack()
    cases = [
        ('{"s3_key": "no such key"}', API_TOKEN, 404, "not_found"),
        ("{s3_key", API_TOKEN, 400, "bad_request"),
        ('{"key": "a"}', API_TOKEN, 400, "bad_request"),
        ('{"s3_key": "a", "bucket": "other"}', API_TOKEN, 400, "bad_request"),
        ('{"s3_key": "a"}', "wrong", 401, "unauthorized"),
    ]
    for body, token, status, code in cases:
        found_status, answer = curl(running, body, token=token)
        assert (found_status, answer["error"]["code"]) == (status, code)
        assert answer["error"]["message"]
        assert answer["error"]["hint"]


def test_a_target_that_is_down_is_named_in_a_502(stack: Callable[..., Stack]) -> None:
    running = stack(WORKER_EMBEDDED="false")
    running.put("a", b"a")
    running.target.stop()
    try:
        status, answer = curl(running, '{"s3_key": "a"}')
        ready = running.service.get("/readyz")
    finally:
        running.target.start()
    assert (status, answer["error"]["code"]) == (502, "target_store_unavailable")
    assert (ready.status_code, ready.json()["checks"]["target"]) == (503, "store_unavailable")
    assert curl(running, '{"s3_key": "a"}')[0] == 200


def test_manual_requests_and_events_for_one_key_never_copy_side_by_side(stack: Callable[..., Stack]) -> None:
    running = stack()
    for number in range(5):
        running.put("same", f"{number}".encode() * 1000)
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda _: curl(running, '{"s3_key": "same"}')[0], range(8)))
        assert set(statuses) <= {200, 409}
    copies = sorted(
        (line["began_at"], line["began_at"] + line["ms"] / 1000)
        for line in running.log_lines()
        if line["event"] == "settled"
    )
    for (_, ended), (began, _) in itertools.pairwise(copies):
        assert ended <= began
    assert running.target_body("same") == b"4" * 1000


def test_without_waiting_the_answer_is_a_link_to_the_entry(stack: Callable[..., Stack]) -> None:
    running = stack()
    running.put("later", b"later")
    answer = running.service.post("/v1/replicate", json={"s3_key": "later", "wait": False})
    assert answer.status_code == 202
    running.wait_until_settled(entries=1, bound_s=30)
    entry = running.service.get(answer.json()["entry"]).json()
    assert entry["attempts_made"][0]["result"] == "replicated"  # more where the event came first
    assert running.target_body("later") == b"later"
