"""All there is in a run of the lab: source, service, target and ledger as processes, with a proxy of
faults on each way between them.

                        ┌── events ──┐
    clients ──▶ source ─┘            ▼
                  ▲           web and worker processes ── ledger (SQLite, or PostgreSQL)
                  └──── source.lab ──┘  └── target.lab ──▶ target
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

from scripts.local_processes import ServerError
from scripts.local_servers import Gateway, PostgreSQL, SeaweedFS, Server
from scripts.local_service import LoneWorker, Replicator
from tests.acceptance.conftest import BUCKET, least_keys, notify, until
from tests.lab.machine import Clock, Names, NoLibraryError, environ_for
from tests.lab.proxy import LabProxy

TARGET_BUCKET = "replica"
MEMORY_BUDGET_MIB = 64
LEDGER_DISK_MIB = 96
POSTGRESQL_DISK_MIB = 512
LOOK_S = 0.5
GRACE_S = 2
UPLOAD_KEEP_S = 10
NAMES = {"source.lab": "127.0.0.1", "target.lab": "127.0.0.1"}


class Stage:
    """Made of a seed and an engine ("sqlite" or "postgresql") in an empty folder; as a context, all runs."""

    def __init__(self, folder: Path, *, engine: str, seed: int) -> None:
        self.folder, self.engine = folder, engine
        self.mounts: list[Path] = []
        self.source = Gateway(folder / "source")
        self.target = SeaweedFS(folder / "target")
        self.ledger = folder / "ledger" / "replicator.db"
        self.names, self.clock = Names(folder / "hosts"), Clock(folder / "clock")
        self.database_clock = Clock(folder / "database clock")
        self.has_machine = _has_machine()
        """Whether clocks can be set, and names taken away."""
        environ = environ_for(self.database_clock.file, self.names.file) if self.has_machine else {}
        is_server = engine == "postgresql"
        self.database = PostgreSQL(folder / "postgresql", environ=environ) if is_server else None
        self.wires: dict[str, LabProxy] = {}
        self.services: list[Replicator] = []
        self.keeper: Keeper | None = None
        self._chance = random.Random(f"{seed} wires")
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as running:
            running.callback(self._unmount)
            self._start(running)
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def _start(self, running: contextlib.ExitStack) -> None:
        self.small_disk(self.ledger.parent, LEDGER_DISK_MIB)
        for server in (self.source, self.target):
            running.enter_context(server)
        if self.database:
            self.small_disk(self.database.folder, POSTGRESQL_DISK_MIB)
            running.enter_context(self.database)
        self.source.client().make_bucket(bucket_name=BUCKET)
        self.target.client().make_bucket(bucket_name=TARGET_BUCKET)
        for name, server in (("source", self.source), ("target", self.target)):
            self.wires[name] = running.enter_context(
                LabProxy(server.endpoint, chance=self._chance, name=name)
            )
        self.names.set(NAMES)
        self._make_services()
        for service in self.services:
            running.callback(service.kill)
            service.start()
        self.keeper = running.enter_context(Keeper(self.services))
        for web in self.webs:
            wire = LabProxy(web.url, chance=self._chance, name="events")
            self.wires[f"events {web.folder.name}"] = running.enter_context(wire)
        notify(self.source, *self.events_urls, queue_dir=self.folder / "queue")

    @property
    def events_urls(self) -> list[str]:
        """Where MinIO sends events: at once, and by way of its queue."""
        urls = [f"{wire.endpoint}/minio/events" for name, wire in self.wires.items() if "events" in name]
        return [urls[0], urls[-1]]

    @property
    def webs(self) -> list[Replicator]:
        """The processes that events are sent to."""
        return [each for each in self.services if not isinstance(each, LoneWorker)]

    def _make_services(self) -> None:
        embedded = "false" if self.database else "true"
        kinds: list[tuple[str, type[Replicator], dict[str, str]]] = [
            ("web-1", Replicator, {"WORKER_EMBEDDED": embedded}),
            ("worker-1", LoneWorker, {}),
        ]
        if self.database:
            kinds += [("web-2", Replicator, {"WORKER_EMBEDDED": "false"}), ("worker-2", LoneWorker, {})]
        settings, keys = self._settings(), least_keys(self.source, self.target, TARGET_BUCKET)
        ends = {
            "source_bucket": BUCKET,
            "target_bucket": TARGET_BUCKET,
            "source": self.source,
            "target": self.target,
        }
        self.services = [
            kind(self.folder / name, **ends, keys=keys, environ=settings | more)
            for name, kind, more in kinds  # type: ignore[arg-type]
        ]

    def _settings(self) -> dict[str, str]:
        url = self.database.create_database("ledger") if self.database else f"sqlite:///{self.ledger}"
        ports = {name: wire.endpoint.rpartition(":")[2] for name, wire in self.wires.items()}
        hosts = list(NAMES if self.has_machine else NAMES.values())
        machine = environ_for(self.clock.file, self.names.file) if self.has_machine else {}
        return {
            "DATABASE_URL": url,
            "MINIO_ENDPOINT": f"http://{hosts[0]}:{ports['source']}",
            "FILEBASE_ENDPOINT": f"http://{hosts[1]}:{ports['target']}",
            "REPLICATE_DELETES": "true",
            "DELETE_GRACE_S": str(GRACE_S),
            "DELETE_BREAKER_MAX": "1000000",
            "DELETE_BREAKER_SHARE": "100",
            "RECONCILE_INTERVAL_S": "45",
            "MEMORY_BUDGET_MIB": str(MEMORY_BUDGET_MIB),
            "UPLOAD_KEEP_S": str(UPLOAD_KEEP_S),
            "LEASE_S": "5",
            "DRAIN_S": "5",
            "WORKER_THREADS": "6",
            "LOG_FORMAT": "json",
            **machine,
        }

    # ── disks ────────────────────────────────────────────────────────────────────────────────────────

    def small_disk(self, folder: Path, size_mib: int) -> None:
        """Makes the folder, on a file system of its own where this user may mount one."""
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            return
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode == 0:
            self.mounts.append(folder)

    def _unmount(self) -> None:
        for folder in self.mounts:
            subprocess.run(["umount", "--lazy", folder], check=False)

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────

    def get(self, path: str) -> requests.Response | None:
        """From any web process that answers."""
        for web in self.webs:
            with contextlib.suppress(requests.RequestException):
                answer = web.get(path)
                if answer.ok:
                    return answer
        return None

    def restart_source(self) -> None:
        """The source asks at its start whether the webhook answers, and gives its events up if not."""
        for web in self.webs:
            until(lambda web=web: _answers(web), bound_s=120, what=f"{web.folder.name} answers")
        self.source.start()


def _has_machine() -> bool:
    try:
        environ_for(Path("clock"), Path("hosts"))
    except NoLibraryError:
        if os.environ.get("CI"):
            raise
        return False
    return True


def _answers(web: Replicator) -> bool:
    try:
        return requests.get(f"{web.url}/healthz", timeout=2).ok
    except requests.RequestException:
        return False


class Keeper:
    """Stands for the platform: starts anew, by and by, whatever of the service is not running.

    `held` are those that a fault keeps down; `exits` counts how processes ended that nobody had ended.
    """

    def __init__(self, services: list[Replicator]) -> None:
        self._services = services
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._look_after, args=(each,)) for each in services]
        self.held: set[Replicator] = set()
        self.locks = {each: threading.Lock() for each in services}
        self.exits: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> Keeper:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _look_after(self, service: Replicator) -> None:
        while not self._is_over.wait(LOOK_S):
            with self.locks[service]:
                if service in self.held or service.alive:
                    continue
                if service.exit_code is not None:
                    self.exits[service.name, service.exit_code] += 1
                with contextlib.suppress(ServerError):
                    service.start()

    @contextlib.contextmanager
    def hands_off(self, service: Replicator) -> Iterator[bool]:
        """Gives whether the process is running now, and is not being started meanwhile."""
        if not self.locks[service].acquire(timeout=0.1):
            yield False
            return
        try:
            yield service.alive
        finally:
            self.locks[service].release()


def tree(server: Server) -> list[psutil.Process]:
    """The process and all that came of it, PostgreSQL's among them, which lead groups of their own."""
    try:
        process = psutil.Process(server.pid)
        return [process, *process.children(recursive=True)]
    except (psutil.NoSuchProcess, ServerError):
        return []


def each_of(processes: list[psutil.Process], action: Callable[[psutil.Process], Any]) -> None:
    """Those that have ended meanwhile are passed over."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            action(process)
