"""A server process of this machine: started on ports of its own, stopped, killed, and never left behind.

It sees nothing of the caller's environment, and on Linux the kernel ends it with the process that started
it, even when that one is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Self

import minio.error
import psycopg
import urllib3.exceptions

LOOPBACK = "127.0.0.1"
PORTS = range(10_000, 30_000)  # below the range from which clients are given theirs
PORT_CHOICES_MAX = 500
STARTS_MAX = 3
START_PAUSE_S = 0.5
READY_BOUND_S = 60.0
READY_POLL_S = 0.05
PROBE_TIMEOUT_S = 5
STOP_BOUND_S = 15.0
PREPARE_BOUND_S = 60.0
LOG_TAIL_LINES = 40

NOT_READY = (OSError, urllib3.exceptions.HTTPError, minio.error.MinioException, psycopg.Error)

_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)

# A child is killed when the *thread* that forked it ends (prctl(2)), so all are forked by this one.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-servers")
_claimed_ports: dict[int, int] = {}  # port → file descriptor that holds its name


class ServerError(RuntimeError):
    """A server or its program can not be had; the message ends with what it last printed."""


def free_port() -> int:
    """A loopback port nobody listens on, never given twice, not even to two processes at once.

    On Linux a choice is announced under an abstract socket name, which the kernel withdraws when this
    process ends; so no other test run takes the port before our server binds it, or while it restarts.
    """
    for _ in range(PORT_CHOICES_MAX):
        port = random.choice(PORTS)
        if port not in _claimed_ports and _claim(port):
            return port
    raise ServerError(f"no free port in {PORTS} after {PORT_CHOICES_MAX} choices")


def _claim(port: int) -> bool:
    with socket.socket() as probe, socket.socket(socket.AF_UNIX) as name:
        try:
            probe.bind((LOOPBACK, port))
            if _LINUX:
                name.bind(f"\0local-servers-port-{port}")
        except OSError:
            return False
        _claimed_ports[port] = name.detach()
    return True


def find_binary(name: str) -> str:
    """The path of a program: beside this Python, else on PATH. Raises: ServerError if there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ServerError(f"{name} is not installed; requirements-dev.txt brings what is needed")
    return found


class Server:
    """One server process with its folder; starts, stops, dies and comes back with the same data.

    Ports are chosen at the first start and kept. `start`, `stop` and `kill` are safe to repeat. One server
    is not thread-safe; different ones may be started by different threads. As a context it starts and stops.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.log_path = self.folder / "server.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started_before = False

    def start(self) -> Self:
        """Returns when the server answers a real, signed request; STARTS_MAX tries if it ends meanwhile.

        Raises: ServerError when it keeps ending, or is not ready after READY_BOUND_S.
        """
        if self.alive:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(STARTS_MAX):
            if not self._started_before:
                self._choose_ports()
                self._prepare()
            self._spawn()
            if self._wait_until_ready():
                self._started_before = True
                return self
            self.kill()
            time.sleep(START_PAUSE_S)
        raise ServerError(f"{self.name} ended while starting:\n{self.log_tail()}")

    def stop(self) -> None:
        """Ends the server in its own orderly way, or by SIGKILL after STOP_BOUND_S."""
        if self._process is not None and self.alive:
            self._process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_BOUND_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the process, its group and its children at once; what it wrote stays."""
        if self._process is None:
            return
        pid = self._process.pid
        children = _children(pid)  # PostgreSQL's lead groups of their own
        for send, receiver in [(os.killpg, pid), *((os.kill, child) for child in children)]:
            with contextlib.suppress(ProcessLookupError):
                send(receiver, signal.SIGKILL)
        self._process.wait(STOP_BOUND_S)
        self._process = None
        atexit.unregister(self.kill)

    def restart(self) -> None:
        """Stops if need be and starts again, on the same ports and data."""
        self.stop()
        self.start()

    @property
    def alive(self) -> bool:
        """Whether the process exists; it may not answer yet."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of a process that has ended by itself; None while it runs, or where it was stopped."""
        return self._process.poll() if self._process is not None else None

    @property
    def pid(self) -> int:
        """The server's process id. Raises: ServerError when it was not started."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    def log_tail(self) -> str:
        """The last LOG_TAIL_LINES lines the server wrote."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _choose_ports(self) -> None:
        self.port = free_port()

    def _prepare(self) -> None:
        """Writes what must be there before the first start; may run again, with other ports."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _probe(self) -> None:
        """A request that only a ready server answers. Raises: one of NOT_READY while it does not."""
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        """All a server sees. HOME and TMPDIR keep what it leaves behind inside its folder."""
        home = str(self.folder)
        return {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}

    def _run(self, command: list[str]) -> None:
        """A short command, to its end. Raises: ServerError with what it printed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment(), timeout=PREPARE_BOUND_S, capture_output=True
        )
        if done.returncode != 0:
            printed = (done.stdout + done.stderr).decode(errors="replace")
            raise ServerError(f"{self.name}: {command} exited with {done.returncode}:\n{printed}")

    def _spawn(self) -> None:
        self._process = _SPAWNER.submit(self._fork, self._command()).result()
        atexit.register(self.kill)

    def _fork(self, command: list[str]) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the kernel was asked
                os._exit(1)

        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent if _LINUX else None,
            )

    def _wait_until_ready(self) -> bool:
        """False when the process ended. Raises: ServerError when the bound is reached."""
        deadline = time.monotonic() + READY_BOUND_S
        while self.alive:
            try:
                self._probe()
            except NOT_READY as error:
                if time.monotonic() > deadline:
                    self.kill()
                    late = f"{self.name} is not ready after {READY_BOUND_S:.0f} s"
                    raise ServerError(f"{late}:\n{self.log_tail()}") from error
            else:
                return self.alive
            time.sleep(READY_POLL_S)
        return False


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
