"""Faults of the machine a process runs on: a clock that is set, and host names that stop resolving.

    clock, names = Clock(folder / "clock"), Names(folder / "hosts")
    names.set({"target.lab": "127.0.0.1"})
    subprocess.Popen(command, env=os.environ | environ_for(clock.file, names.file))
    clock.step(3600)  # an hour ahead, and
    clock.step(0)  # right again
    names.set({})  # target.lab is no name any more

machine.c, which every process with that environment and its children load, answers in the C library's stead.
So it is as real for PostgreSQL as for Python; a program that does without the C library, as those written in
Go do, notices nothing. Clocks that nobody can set, such as CLOCK_MONOTONIC and CLOCK_BOOTTIME, go on.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("machine.c")
LIBRARY = SOURCE.parents[2] / ".tools" / "lib" / "lab_machine.so"
COMPILE_BOUND_S = 60.0
NAMES_MAX_BYTES = 4_096


class NoLibraryError(Exception):
    """The faults cannot be had on this machine; the message says why."""


class Clock:
    """How far the wall clock is ahead of the machine's, in a file that is made unless it is there.

    It must be there when a process starts.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.step(0)

    def step(self, ahead_s: int) -> None:
        """Negative is behind, 0 is right. Running processes see it with their next look at the clock."""
        file = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(file, struct.pack("=q", ahead_s), 0)  # in place: they have the file mapped
        finally:
            os.close(file)


class Names:
    """The host names that end with `.lab`, in a file; until something is set, there are none."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()

    def set(self, addresses: Mapping[str, str]) -> None:
        """These are all names there are from now on, and their numeric addresses.

        Raises: ValueError for one that does not end with `.lab`, which would be looked up elsewhere, or
        when all of them are too long.
        """
        lines = "".join(f"{address} {name}\n" for name, address in addresses.items())
        if not all(name.endswith(".lab") for name in addresses) or len(lines) > NAMES_MAX_BYTES:
            raise ValueError(f"names end with .lab, and take {NAMES_MAX_BYTES} bytes at most: {lines}")
        written = self.file.with_name(f"{self.file.name}.new")
        written.write_text(lines)
        written.replace(self.file)


def environ_for(clock_file: Path, names_file: Path) -> dict[str, str]:
    """What a process's environment needs in addition, so that these files govern it.

    Raises: NoLibraryError.
    """
    return {
        "LD_PRELOAD": str(_library()),
        "LAB_CLOCK": str(clock_file.absolute()),
        "LAB_NAMES": str(names_file.absolute()),
    }


def _library() -> Path:
    """Compiled when it is not there or is older than its source. Safe to do twice at once."""
    if sys.platform != "linux" or set(" :") & set(str(LIBRARY)):
        raise NoLibraryError(
            f"clocks and names are faked on Linux only, from a folder without spaces: {LIBRARY}"
        )
    if LIBRARY.exists() and LIBRARY.stat().st_mtime > SOURCE.stat().st_mtime:
        return LIBRARY
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoLibraryError("clocks and names are faked by a C library; install a C compiler (cc)")
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LIBRARY.parent) as folder:
        _compile(compiler, Path(folder) / LIBRARY.name)
    return LIBRARY


def _compile(compiler: str, to: Path) -> None:
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(to), str(SOURCE), "-ldl"]
    done = subprocess.run(command, timeout=COMPILE_BOUND_S, capture_output=True, text=True)
    if done.returncode != 0:
        raise NoLibraryError(f"{SOURCE.name} does not compile here: {done.stderr}")
    to.replace(LIBRARY)
