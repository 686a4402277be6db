"""scripts/operate.py against the running service: find what failed and why, mend it, try it again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from scripts.local_servers import SeaweedFS
from scripts.local_service import API_TOKEN, ROOT, WEBHOOK_AUTH_TOKEN
from tests.acceptance.conftest import Stack, until
from tests.proxy import Proxy, answering

BOUND_S = 60.0
DENIED = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>"


@pytest.fixture
def gate(seaweed: SeaweedFS) -> Iterator[Proxy]:
    """Between the service and the target."""
    with Proxy(seaweed.endpoint) as listening:
        yield listening


def operate(running: Stack, *arguments: str) -> tuple[int, str]:
    """Exit status, and what it printed."""
    command = [sys.executable, str(ROOT / "scripts/operate.py"), *arguments, "--url", running.service.url]
    environ = {"API_TOKEN": API_TOKEN, "PATH": "/usr/bin:/bin", "COLUMNS": "120"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=running.service.folder,
        env=environ,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert API_TOKEN not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def test_what_failed_is_found_explained_mended_and_tried_again(
    stack: Callable[..., Stack], gate: Proxy
) -> None:
    running = stack(FILEBASE_ENDPOINT=gate.endpoint, MAX_ATTEMPTS="1")
    running.put("fine", b"1")
    running.wait_until_settled(entries=1, bound_s=BOUND_S)
    running.sweep()
    code, told = operate(running, "status")
    assert code == 0, told
    assert "Target complete up to" in told

    gate.plan("PutObject", answering(403, DENIED), times=10**6)
    running.put("refused/a b.txt", b"2")
    until(
        lambda: running.entry("refused/a b.txt").get("state") == "failed", bound_s=BOUND_S, what="it failed"
    )
    code, told = operate(running, "status")
    assert code == 1
    assert "1 object failed" in told
    assert "operate.py retry" in told
    code, told = operate(running, "failures")
    assert code == 0
    assert "refused/a b.txt" in told
    assert "target_store_denied" in told
    code, told = operate(running, "explain", "refused/a b.txt")
    assert code == 0
    assert "denied" in told
    assert "retry" in told
    code, told = operate(running, "explain", "nobody asked")
    assert code == 1

    gate.forget()
    code, told = operate(running, "retry", "--key", "refused/a b.txt")
    assert (code, told) == (0, "1 failed object is tried again.\n")
    running.wait_until_settled(entries=2, bound_s=BOUND_S)
    assert running.target_body("refused/a b.txt") == b"2"
    code, told = operate(running, "status", "--json")
    assert code == 0, told
    assert json.loads(told)["summary"][0]["ok"] is True


def test_a_pause_keeps_what_is_written_and_its_end_copies_it(stack: Callable[..., Stack]) -> None:
    running = stack()
    assert operate(running, "pause", "--rule", "default")[0] == 0
    for number in range(20):
        running.put(f"k{number}", b"x")
    until(
        lambda: sum(running.rule()["entries"]["waiting"].values()) == 20,
        bound_s=BOUND_S,
        what="all are on record",
    )
    code, told = operate(running, "status")
    assert code == 1
    assert "paused since" in told
    assert running.target_keys() == {}
    assert operate(running, "resume", "--all")[0] == 0
    running.wait_until_settled(entries=20, bound_s=BOUND_S)
    assert running.compare().ok


def test_what_is_in_quarantine_is_shown_and_dropped(stack: Callable[..., Stack]) -> None:
    running = stack()
    hook = {"Authorization": f"Bearer {WEBHOOK_AUTH_TOKEN}"}
    assert running.service.post("/minio/events", data=b'{"odd": 1}', headers=hook).ok
    code, told = operate(running, "quarantine")
    assert code == 0
    assert "odd" in told
    assert operate(running, "quarantine", "discard", "--all") == (0, "1 record dropped.\n")
    assert operate(running, "quarantine") == (0, "Nothing is in quarantine.\n")


def test_a_sweep_is_asked_for_and_waited_for(stack: Callable[..., Stack]) -> None:
    running = stack()
    code, told = operate(running, "sweep", "--wait")
    assert code == 0, told
    assert "complete" in told
