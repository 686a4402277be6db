"""Web and worker processes on one PostgreSQL: their load, their faults, and what their records prove."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import requests
from psycopg.rows import dict_row

from scripts.local_servers import Gateway, SeaweedFS
from scripts.local_service import WEBHOOK_AUTH_TOKEN, LoneWorker, Replicator
from tests.acceptance.conftest import BUCKET, Stack, notify, until
from tests.proxy import Proxy

MIB = 1024 * 1024
LEASE_S = 5
FAULT_EVERY_S = 2.0
STOPPED_MAX = 2
CLOCK_ERROR_S = 0.1
"""What two processes may take the ledger's time to be, apart."""
WRITES = ("PutObject", "UploadPart", "CompleteMultipartUpload")


# ── the processes ────────────────────────────────────────────────────────────────────────────────────


class Fleet(Stack):
    """A stack of several processes, two web processes first; `service` is the first of them."""

    def __init__(
        self,
        *,
        source: Gateway,
        target: SeaweedFS,
        target_bucket: str,
        keys: dict[str, str],
        folder: Path,
        settings: dict[str, str],
    ) -> None:
        self.source, self.target, self.target_bucket = source, target, target_bucket
        self._keys = keys
        self.folder = folder
        self.settings = settings
        """What all processes run with."""
        self.webs: list[Replicator] = []
        self.workers: list[LoneWorker] = []
        for name in ("web-1", "web-2"):
            environ = {**settings, "WORKER_EMBEDDED": "false"}
            self.webs.append(Replicator(folder / name, **self._ends(), environ=environ))
        self.service = self.webs[0]

    @property
    def processes(self) -> list[Replicator]:
        """All of them."""
        return [*self.webs, *self.workers]

    def add_worker(
        self,
        name: str,
        *,
        kind: Callable[..., LoneWorker] = LoneWorker,
        through: Proxy | None = None,
        **settings: str,
    ) -> LoneWorker:
        """One more worker process, which is not started; it reaches the target `through` a proxy."""
        at = {"FILEBASE_ENDPOINT": through.endpoint} if through else {}
        worker = kind(self.folder / name, **self._ends(), environ={**self.settings, **at, **settings})
        self.workers.append(worker)
        return worker

    def start(self) -> None:
        """Starts all processes, and has MinIO tell the first web process directly, and the second one by way
        of a queue that keeps what it could not deliver.
        """
        with ThreadPoolExecutor(len(self.processes)) as pool:
            list(pool.map(lambda process: process.start(), self.processes))
        self.notify(now=self.webs[0].events_url, queue=self.webs[1].events_url)

    def stop(self) -> None:
        """Ends all at once, also what is stopped, and the source."""
        for process in self.processes:
            process.kill()
        self.source.stop()

    def _ends(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "source_bucket": BUCKET,
            "target": self.target,
            "target_bucket": self.target_bucket,
            "keys": self._keys,
        }

    def notify(self, *, now: str, queue: str) -> None:
        """Has MinIO tell one URL directly, and keep for another what it could not deliver."""
        notify(self.source, now, queue, queue_dir=self.folder / "queue")

    def rows(self, *keys: str) -> list[dict[str, Any]]:
        """The ledger's entries in key order, `history` read; of all keys where none are named."""
        with psycopg.connect(self.settings["DATABASE_URL"], row_factory=dict_row) as connection:
            found = connection.execute('SELECT * FROM entries ORDER BY key COLLATE "C"').fetchall()
        rows = [{**row, "history": json.loads(row["history"])} for row in found]
        return [row for row in rows if not keys or row["key"] in keys]

    def row(self, key: str) -> dict[str, Any]:
        """One of them."""
        (found,) = self.rows(key)
        return found

    def ledger_time(self) -> float:
        """The ledger's own clock, in seconds since 1970."""
        with psycopg.connect(self.settings["DATABASE_URL"]) as connection:
            found = connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
        assert found
        return float(found[0])

    def wait_until_delivered(self, *, bound_s: float) -> None:
        """Until MinIO's queue is empty."""
        queued = (self.folder / "queue").rglob
        until(lambda: not any(queued("*.event")), bound_s=bound_s, what="MinIO's queue is empty")

    def wait_until_all_settled(self, entries: int, *, bound_s: float) -> None:
        """Until MinIO has delivered all, that many entries are settled, and none is anything else."""
        self.wait_until_delivered(bound_s=bound_s)

        def quiet() -> bool:
            return [row["state"] for row in self.rows()] == ["settled"] * entries

        until(quiet, bound_s=bound_s, what=f"{entries} entries settled and none anything else")

    def assert_target_is_equal(self) -> None:
        """Every byte of both sides is the same."""
        verdict = self.compare()
        assert verdict.ok, f"source and target differ: {verdict.differences[:20]}"


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Version:
    """What a client puts at one key; the versions of a key count from 1."""

    key: str
    number: int
    size: int

    def body(self) -> bytes:
        """Bytes of no other version, which begin with its number where there is room."""
        filler = random.Random(f"{self.key} {self.number}").randbytes(self.size)
        return (f"{self.number:08}".encode() + filler)[: self.size]


def version_of(body: bytes) -> int:
    """The number of the version that a body belongs to; of an empty one, 1."""
    return int(body[:8]) if len(body) >= 8 else 1


def mixed(count: int, *, large: int, overwritten: int) -> list[list[Version]]:
    """`count` keys: `large` of 20 to 40 MiB, some of 0 B, the others of 8 B to 64 KiB; some of the latter
    and the first large one have three versions. Each key's versions are in order.
    """
    chance = random.Random(count)
    keys = [f"mixed/{number % 13}/{number:05}" for number in range(count)]
    sizes = [chance.randrange(20 * MIB, 40 * MIB) for _ in range(large)]
    sizes += [0 if number % 40 == 0 else 8 + chance.randrange(65_536) for number in range(count - large)]
    many = {0, *(number for number in range(large, large + overwritten) if sizes[number])}
    return [
        [Version(key, version, sizes[index]) for version in range(1, 4 if index in many else 2)]
        for index, key in enumerate(keys)
    ]


def deliver(url: str, key: str, number: int) -> requests.Response:
    """The `number`th event about a key; the same each time."""
    s3 = {
        "bucket": {"name": BUCKET},
        "object": {"key": key.replace("/", "%2F"), "sequencer": f"{number:016X}"},
    }
    record: dict[str, Any] = {"eventName": "s3:ObjectCreated:Put", "s3": s3}
    headers = {"Authorization": f"Bearer {WEBHOOK_AUTH_TOKEN}"}
    return requests.post(url, json={"Records": [record]}, headers=headers, timeout=30)


class Load:
    """Puts all versions by several clients, over at least `over_s`; as a context, at its end all are put."""

    def __init__(
        self, stack: Stack, wanted: Iterable[Sequence[Version]], *, clients: int, over_s: float
    ) -> None:
        self._stack = stack
        self._over_s = over_s
        self._began = time.monotonic()
        self._shares: list[list[Version]] = [[] for _ in range(clients)]
        for number, versions in enumerate(wanted):
            self._shares[number % clients].extend(versions)
        for share in self._shares:  # versions of one key far apart, and in order
            random.Random(len(share)).shuffle(share)
            places = defaultdict(list)
            for place, version in enumerate(share):
                places[version.key].append(place)
            for placed in places.values():
                ordered = sorted((share[place] for place in placed), key=lambda version: version.number)
                for place, version in zip(placed, ordered, strict=True):
                    share[place] = version
        self._pool = ThreadPoolExecutor(clients)

    def __enter__(self) -> Load:
        self._clients = [self._pool.submit(self._put, share) for share in self._shares]
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.result()
        self._pool.shutdown()

    @property
    def is_over(self) -> bool:
        """Whether all are put."""
        return all(client.done() for client in self._clients)

    def _put(self, share: Sequence[Version]) -> None:
        for number, version in enumerate(share):
            due = self._began + self._over_s * number / len(share)
            time.sleep(max(0.0, due - time.monotonic()))  # the load's rhythm
            self._stack.put(version.key, version.body())
