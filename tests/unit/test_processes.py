"""Real processes: whose name is whose, and who is surely gone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from webhook.processes import is_dead, own_name

SAY_NAME = "from webhook.processes import own_name; print(own_name(), flush=True); input()"
pytestmark = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="only proc(5) tells")


@pytest.fixture
def child() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running process, and its name."""
    with subprocess.Popen(
        [sys.executable, "-c", SAY_NAME],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_process_keeps_its_name_and_is_alive() -> None:
    assert own_name() == own_name()
    assert f":{os.getpid()}:" in own_name()
    assert not is_dead(own_name())


def test_a_process_is_dead_once_it_was_killed(child: tuple[subprocess.Popen[str], str]) -> None:
    process, name = child
    assert name != own_name()
    assert not is_dead(name)
    process.kill()
    process.wait(10)
    assert is_dead(name)


def test_a_process_whose_end_nobody_has_noticed_is_dead(child: tuple[subprocess.Popen[str], str]) -> None:
    process, name = child
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert Path(f"/proc/{process.pid}").exists()
    assert is_dead(name)


def test_a_process_that_ended_by_itself_is_dead(child: tuple[subprocess.Popen[str], str]) -> None:
    process, name = child
    with contextlib.suppress(BrokenPipeError):
        process.communicate("\n", timeout=10)
    assert is_dead(name)


def test_another_process_with_the_same_number_is_another_process() -> None:
    host, pid, started, place = own_name().rsplit(":", 3)
    assert is_dead(f"{host}:{pid}:{int(started) - 1}:{place}")
    assert not is_dead(f"another-host:{pid}:{started}:{place}")


@pytest.mark.parametrize("place", ["", "other-boot/4026531836"])
def test_nothing_is_known_of_processes_elsewhere(place: str) -> None:
    host, pid, started, here = own_name().rsplit(":", 3)
    boot, namespace = here.split("/")
    for elsewhere in (place, f"{boot}/1", f"other-boot/{namespace}"):
        assert not is_dead(f"{host}:{pid}:{started}:{elsewhere}")
        assert not is_dead(f"{host}:{2**22}:1:{elsewhere}")


def test_a_host_may_have_any_name() -> None:
    assert not is_dead(f"fe80::1:{own_name()}")
