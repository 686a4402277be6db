"""Machines of their own on one machine: another network, other process ids, another clock."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from scripts.local_processes import LOOPBACK
from scripts.local_service import LoneWorker

WRONG_CLOCK = '''
"""Shifts this process's wall clock; what measures how time passes stays right."""
import os
import time

_ahead_s = float(os.environ["CLOCK_AHEAD_S"])
_time, _time_ns, _gmtime, _localtime = time.time, time.time_ns, time.gmtime, time.localtime
time.time = lambda: _time() + _ahead_s
time.time_ns = lambda: _time_ns() + int(_ahead_s * 1e9)
time.gmtime = lambda at=None: _gmtime(time.time() if at is None else at)
time.localtime = lambda at=None: _localtime(time.time() if at is None else at)
'''

OWN_IDS = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


class Balancer:
    """Passes each TCP connection on to one of several loopback ports, the next in turn that answers.

    As a context it listens at `host`.
    """

    def __init__(self, ports: Sequence[int], *, host: str = LOOPBACK) -> None:
        self._turns = itertools.cycle(range(len(ports)))
        self._ports = [*ports, *ports]
        handler: Any = self._pass_on
        self._listener = socketserver.ThreadingTCPServer((host, 0), handler)
        self._listener.daemon_threads = True
        self.url = f"http://{host}:{self._listener.server_address[1]}"

    def __enter__(self) -> Balancer:
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()

    def _pass_on(self, client: socket.socket, _address: object, _server: object) -> None:
        first = next(self._turns)
        for port in self._ports[first : first + len(self._ports) // 2]:
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port)) as server:
                threading.Thread(target=_pump, args=(client, server), daemon=True).start()
                _pump(server, client)
                return


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65_536):
            other.sendall(data)
    with contextlib.suppress(OSError):  # also where the one was reset
        other.shutdown(socket.SHUT_WR)


class Machine:
    """A network of its own, joined to this machine's by a cable. As a context it is there.

    Raises: subprocess.CalledProcessError where the system does not allow it.
    """

    def __init__(self, number: int) -> None:
        self.name = f"fleet-{os.getpid()}-{number}"
        self._cable = f"f{os.getpid() % 1_000_000}n{number}"
        network = f"198.18.{os.getpid() % 256}"  # RFC 2544: for tests of networks
        self.host, self._address = f"{network}.{4 * number + 1}", f"{network}.{4 * number + 2}"

    def __enter__(self) -> Machine:
        _ip(f"netns add {self.name}")
        try:
            here, there = f"{self._cable}a", f"{self._cable}b"
            _ip(f"link add {here} type veth peer {there} netns {self.name}")
            _ip(f"address add {self.host}/30 dev {here}")
            _ip(f"link set {here} up")
            _ip(f"-netns {self.name} address add {self._address}/30 dev {there}")
            _ip(f"-netns {self.name} link set {there} up")
            _ip(f"-netns {self.name} link set lo up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip(f"link delete {self._cable}a")
        _ip(f"netns delete {self.name}")

    def unplug(self) -> None:
        """Nothing gets through any more, in either direction, and nobody is told."""
        _ip(f"link set {self._cable}a down")

    def plug(self) -> None:
        """Undoes `unplug`."""
        _ip(f"link set {self._cable}a up")

    def way_to(self, port: int) -> Balancer:
        """What passes this machine's connections on to a loopback port of ours."""
        return Balancer([port], host=self.host)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


def cannot_be_had(wanted: str, why: object) -> NoReturn:
    """Skips the test; fails it in CI, where root may have all of this on Linux."""
    is_privileged = sys.platform == "linux" and os.geteuid() == 0
    if os.environ.get("CI") == "true" and is_privileged:
        pytest.fail(f"{wanted} cannot be had: {why}")
    pytest.skip(f"{wanted} need Linux, root, iproute2 and util-linux: {why}")


def need_own_process_ids() -> None:
    """Skips the test where there can be none."""
    try:
        subprocess.run([*OWN_IDS, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        cannot_be_had("process ids of its own", error)


class Elsewhere(LoneWorker):
    """A worker whose process ids mean nothing to others: as far as they can tell, it is on another machine.

    `machine` and a clock that is `ahead_s` may be set before it is started.
    """

    machine: Machine | None = None
    ahead_s = 0.0

    def _command(self) -> list[str]:
        network = ["ip", "netns", "exec", self.machine.name] if self.machine else []
        return [*network, *OWN_IDS, *super()._command()]

    def _environment(self) -> dict[str, str]:
        shift = {"PYTHONPATH": str(self.folder / "clock"), "CLOCK_AHEAD_S": str(self.ahead_s)}
        return super()._environment() | (shift if self.ahead_s else {})

    def _prepare(self) -> None:
        super()._prepare()
        (self.folder / "clock").mkdir(exist_ok=True)
        (self.folder / "clock" / "sitecustomize.py").write_text(WRONG_CLOCK)
