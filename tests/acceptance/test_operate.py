"""scripts/operate.py against the running service: find what failed and why, mend it, try it again."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import tty
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


@pytest.mark.parametrize("pressed", [b"q", b"\x03"])
def test_the_live_view_ends_by_a_key_and_leaves_the_terminal_as_it_was(
    stack: Callable[..., Stack], pressed: bytes
) -> None:
    running = stack()
    running.put("k", b"x")
    running.wait_until_settled(entries=1, bound_s=BOUND_S)
    running.sweep()
    parent, child = pty.openpty()
    tty.setcbreak(child)  # no Enter is needed here, whatever the script does
    termios.tcsetwinsize(child, (24, 80))
    before = termios.tcgetattr(child)
    command = [sys.executable, str(ROOT / "scripts/operate.py"), "watch", "--url", running.service.url]
    environ = {"API_TOKEN": API_TOKEN, "PATH": "/usr/bin:/bin", "TERM": "xterm"}
    shown = b""
    with subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env=environ, preexec_fn=_own_terminal
    ) as watching:
        try:
            while b"Target complete up to" not in shown or b"process" not in shown:
                assert select.select([parent], [], [], BOUND_S)[0], shown
                shown += os.read(parent, 65536)
            os.write(parent, pressed)
            until(lambda: _read(parent) and watching.poll() is not None, bound_s=BOUND_S, what="it has ended")
        finally:
            watching.kill()
    assert watching.returncode == 0
    assert b"Traceback" not in shown
    assert termios.tcgetattr(child) == before
    os.close(parent)
    os.close(child)


def _own_terminal() -> None:
    """In the child: the terminal's Ctrl-C is for it."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(terminal: int) -> bool:
    """Takes what is written meanwhile, so that nobody waits to write more."""
    while select.select([terminal], [], [], 0)[0]:
        os.read(terminal, 65536)
    return True


def test_without_a_terminal_the_live_view_is_a_line_each_time(stack: Callable[..., Stack]) -> None:
    running = stack()
    command = [sys.executable, str(ROOT / "scripts/operate.py"), "watch", "--url", running.service.url]
    environ = {"API_TOKEN": API_TOKEN, "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as watching:
        assert watching.stdout
        lines = [watching.stdout.readline() for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=BOUND_S)
    assert (watching.returncode, errors) == (0, "")
    assert all("nothing is proved yet" in line for line in lines)


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
