"""Which process is which, and whether one that held claims is surely gone."""

from __future__ import annotations

import os
import platform
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
