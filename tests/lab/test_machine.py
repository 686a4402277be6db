"""Clocks are set and names go away under running processes of other makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from scripts.local_servers import PostgreSQL
from tests.lab.machine import Clock, Names, NoLibraryError, environ_for

HOUR_S = 3600
NEAR_S = 60.0
"""Apart by less is the same time, on a busy machine too."""
CHILD = """
import datetime, json, os, socket, subprocess, sys, threading, time

def address(name):
    try:
        return socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror as error:
        return error.errno

for line in sys.stdin:
    began = time.monotonic()
    time.sleep(0.01)
    threading.Event().wait(0.01)
    print(json.dumps({
        "wall": [time.time(), datetime.datetime.now(datetime.UTC).timestamp(),
                 time.clock_gettime(time.CLOCK_REALTIME), float(subprocess.check_output(["date", "+%s"]))],
        "steady": [time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)],
        "waited": time.monotonic() - began,
        "addresses": {name: address(name) for name in json.loads(line)},
    }), flush=True)
"""
STRESS = """
import random, socket, sys, threading, time
from pathlib import Path
from tests.lab.machine import Names

names, until, seen = Names(Path(sys.argv[1])), time.monotonic() + 1, set()
def ask():
    while time.monotonic() < until:
        try:
            seen.add(socket.getaddrinfo("a.lab", 80)[0][4][0])
        except socket.gaierror as error:
            seen.add(error.errno == socket.EAI_NONAME)
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
while time.monotonic() < until:
    names.set({"a.lab": "127.0.0.1", "b.lab": "127.0.0.2"})
    names.set({"b.lab": "127.0.0.2"})
for thread in threads:
    thread.join()
assert seen == {"127.0.0.1", True}, seen
"""


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """Right."""
    return Clock(tmp_path / "clock")


@pytest.fixture
def names(tmp_path: Path) -> Names:
    """None."""
    return Names(tmp_path / "hosts")


@pytest.fixture
def environ(clock: Clock, names: Names) -> dict[str, str]:
    """Puts a process under both. Skipped where that cannot be had, but failed where nobody would notice."""
    try:
        return environ_for(clock.file, names.file)
    except NoLibraryError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


class Child:
    """A Python process that says what it sees, each time it is asked."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=os.environ | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def look(self, *names: str) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(names) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@pytest.fixture
def child(environ: dict[str, str]) -> Iterator[Child]:
    """It runs from before the first fault to after the last."""
    running = Child(environ)
    with running.process:
        yield running
        assert running.process.stdin
        running.process.stdin.close()
        assert running.process.wait(NEAR_S) == 0


def ahead_s(seen: float) -> int:
    """Of this process's clock, in hours: everything else is slowness."""
    return round((seen - time.time()) / HOUR_S) * HOUR_S


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_running_process_sees_its_clock_set_and_set_right_again(
    clock: Clock, child: Child, step_s: int
) -> None:
    for step in (0, step_s, 0):
        clock.step(step)
        assert {ahead_s(seen) for seen in child.look()["wall"]} == {step}


def test_clocks_that_nobody_can_set_go_on_and_waiting_takes_its_time(clock: Clock, child: Child) -> None:
    steady = [child.look()["steady"]]
    for step_s in (HOUR_S, -HOUR_S):
        clock.step(step_s)
        seen = child.look()
        steady.append(seen["steady"])
        assert 0.02 <= seen["waited"] < NEAR_S
    now = [time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)]
    for earlier, later in zip(steady, [*steady[1:], now], strict=True):
        assert all(0 < after - before < NEAR_S for before, after in zip(earlier, later, strict=True))


def test_postgresql_sees_its_clock_set(clock: Clock, environ: dict[str, str], tmp_path: Path) -> None:
    with (
        PostgreSQL(tmp_path / "postgresql", environ=environ) as server,
        psycopg.connect(server.url, autocommit=True) as connection,
    ):
        for step_s in (0, HOUR_S, -HOUR_S, 0):
            clock.step(step_s)
            row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float").fetchone()
            assert row is not None
            assert ahead_s(row[0]) == step_s


def test_a_name_stops_resolving_and_comes_back_under_a_running_process(names: Names, child: Child) -> None:
    both = {"source.lab": "127.0.0.1", "target.lab": "127.0.0.2"}
    unknown = -2  # EAI_NONAME
    assert child.look(*both)["addresses"] == dict.fromkeys(both, unknown)
    for known in (both, {"source.lab": "127.0.0.1"}, {}, both | {"target.lab": "127.0.0.3"}):
        names.set(known)
        assert child.look(*both)["addresses"] == {name: known.get(name, unknown) for name in both}
    assert child.look("localhost")["addresses"]["localhost"] in ("127.0.0.1", "::1")


def test_many_threads_may_ask_for_a_name_that_comes_and_goes(names: Names, environ: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, "-c", STRESS, names.file], env=os.environ | environ, check=True, timeout=60
    )


def test_names_that_would_be_looked_up_elsewhere_are_refused(names: Names) -> None:
    with pytest.raises(ValueError, match=r"end with \.lab"):
        names.set({"localhost": "127.0.0.1"})
