"""Several processes under one, as real processes: how they start, die and stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

BOUND_S = 30.0

CHILD = """
import os, signal, sys, threading
from pathlib import Path
from webhook.supervisor import call_when_parent_is_gone

folder, code = Path(sys.argv[1]), int(sys.argv[2])
ended = threading.Event()
def end(reason):
    (folder / f"{os.getpid()}.ended").write_text(reason)
    ended.set()
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: end("asked"))
call_when_parent_is_gone(lambda: end("parent is gone"))
(folder / f"{os.getpid()}.started").touch()
ended.wait()
sys.stdout.flush()
os._exit(code)
"""

PARENT = """
import sys
from webhook import supervisor
supervisor.RESTART_FIRST_S = 0.1
sys.exit(supervisor.Supervisor(command=[sys.executable, *sys.argv[2:]], count=int(sys.argv[1])).run())
"""


class Family:
    """A supervisor and its processes, and what they left in a folder."""

    def __init__(self, folder: Path, *, count: int, code: int = 0, stubborn: bool = False) -> None:
        self.folder, self.count = folder, count
        scripts = {"child.py": CHILD, "parent.py": PARENT}
        for name, text in scripts.items():
            (folder / name).write_text(textwrap.dedent(text))
        child = [str(folder / "child.py"), str(folder), str(code), *(["stubborn"] if stubborn else [])]
        self.parent = subprocess.Popen(
            [sys.executable, str(folder / "parent.py"), str(count), *child],
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )
        self.children = self.wait_for_children(set())

    def pids(self) -> set[int]:
        return {int(path.stem) for path in self.folder.glob("*.started") if _is_alive(int(path.stem))}

    def wait_for_children(self, other_than: set[int]) -> set[int]:
        until(lambda: len(self.pids()) == self.count and not self.pids() & other_than)
        return self.pids()

    def reasons(self) -> list[str]:
        return [path.read_text() for path in self.folder.glob("*.ended")]

    def end(self) -> None:
        for pid in (self.parent.pid, *self.pids()):
            if _is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.parent.wait(BOUND_S)


def until(condition: Callable[[], object]) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Callable[..., Family]]:
    """Starts a supervisor whose processes all run."""
    made: list[Family] = []

    def start(**options: int) -> Family:
        made.append(Family(tmp_path, **options))
        return made[-1]

    yield start
    for each in made:
        each.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_are_asked_to_stop_and_waited_for(
    family: Callable[..., Family], number: signal.Signals
) -> None:
    ours = family(count=3)
    ours.parent.send_signal(number)
    assert ours.parent.wait(BOUND_S) == 0
    assert ours.reasons() == ["asked"] * 3
    assert not ours.pids()


def test_one_that_dies_is_started_anew_and_the_others_left_alone(family: Callable[..., Family]) -> None:
    ours = family(count=3)
    victim = min(ours.children)
    os.kill(victim, signal.SIGKILL)
    now = None

    def replaced() -> bool:
        nonlocal now
        now = ours.pids()
        return len(now) == 3 and victim not in now

    until(replaced)
    assert now is not None
    assert len(now & ours.children) == 2


def test_processes_stop_when_the_one_above_them_is_killed(family: Callable[..., Family]) -> None:
    ours = family(count=2)
    ours.parent.kill()
    until(lambda: not ours.pids())
    assert ours.reasons() == ["parent is gone"] * 2


def test_a_second_signal_ends_all_at_once(family: Callable[..., Family]) -> None:
    ours = family(count=2, stubborn=True)
    ours.parent.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # the first one is on its way: nothing shows that it has been taken
    assert ours.parent.poll() is None
    ours.parent.send_signal(signal.SIGTERM)
    assert ours.parent.wait(BOUND_S) == 128 + signal.SIGTERM
    until(lambda: not ours.pids())
    assert ours.reasons() in ([], ["parent is gone"], ["parent is gone"] * 2)


def test_an_ending_that_went_wrong_shows_in_the_exit_code(family: Callable[..., Family]) -> None:
    ours = family(count=2, code=3)
    ours.parent.send_signal(signal.SIGTERM)
    assert ours.parent.wait(BOUND_S) == 1


@pytest.mark.parametrize(
    "arguments", [["--processes", "0"], ["--processes", "x"], ["--threads", "257"], ["--threads", "-1"]]
)
def test_numbers_that_make_no_sense_are_refused(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "webhook.worker", *arguments], capture_output=True, text=True, timeout=BOUND_S
    )
    assert done.returncode == 2
    assert "must be between" in done.stderr


def test_settings_that_are_missing_are_said_once_whatever_the_number(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "webhook.worker", "--processes", "3"],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 2
    assert done.stderr.count("MINIO_ENDPOINT is missing") == 1
