"""Which process is which, whether one that held claims is surely gone, and how one is asked to stop."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path


def own_name() -> str:
    """`host:pid:start:place`: names this process and no other, before or after.

    `start` is the process's start in clock ticks since boot, `place` the boot and the PID namespace that
    the pid means something in ("" where the system does not tell).
    """
    return f"{platform.node()}:{os.getpid()}:{_started(str(os.getpid()))}:{_place()}"


def is_dead(name: str) -> bool:
    """Whether the process of that name surely is no more; False where that cannot be known from here."""
    try:
        _, pid, started, place = name.rsplit(":", 3)
    except ValueError:
        return False
    return place != "" and place == _place() and _started(pid) != started


def stop_on_signals(begin: Callable[[], None]) -> None:
    """SIGTERM and SIGINT call `begin`, which must return at once; a second one ends the process."""

    def handle(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + number))
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + number))
        begin()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def end_own() -> None:
    """Asks this process to stop, as a person would."""
    os.kill(os.getpid(), signal.SIGTERM)


def _started(pid: str) -> str:
    """proc(5), /proc/pid/stat, field 22. A zombie counts as gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    except OSError:
        return ""
    return f"{boot}/{namespace}"
