"""The benchmark's fifth part: what was there before. Live objects beside a backfill, and a sweep over equals.

The live part takes the same bucket and the same service twice, first idle, then while a sweep has all old
objects copied. The other part walks listings that hold nothing to copy, beside `rclone check --size-only`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import minio
import urllib3

from scripts.bench_live import notify
from scripts.bench_peers import BenchError, usage
from scripts.local_processes import find_binary
from scripts.local_servers import Gateway, S3Server, SeaweedFS
from scripts.local_service import ROOT, Replicator
from scripts.local_tools import rclone_remotes
from tests.proxy import Proxy

OBJECT_BYTES, PAUSE_S, LOOK_S = 4096, 0.1, 0.001
FILLERS, FILL_THREADS = 2, 16
ARRIVAL_BOUND_S, SWEEP_BOUND_S = 60.0, 1200.0
OLD, NEW = "old", "new"


@dataclass
class Beside:
    """Milliseconds from a PUT's return to its settled entry, and how the backfill went."""

    idle_ms: list[float] = field(default_factory=list)
    busy_ms: list[float] = field(default_factory=list)
    backfill_s: float = 0.0
    objects: int = 0


def measure_beside(source: Gateway, target: SeaweedFS, folder: Path, *, objects: int, samples: int) -> Beside:
    """`samples` single PUTs while nothing else is done, then as many as a backfill of `objects` lasts for."""
    measured = Beside(objects=objects)
    for server, bucket in ((source, OLD), (target, f"{OLD}-copy")):
        server.client().make_bucket(bucket_name=bucket)
    fill(source, OLD, objects)
    service = Replicator(
        folder / "service",
        source=source,
        source_bucket=OLD,
        target=target,
        target_bucket=f"{OLD}-copy",
        environ={"RECONCILE_INTERVAL_S": "0"},
    )
    with service, _reading(service) as ledger:
        notify(source, OLD, service.events_url)
        client = source.client(urllib3.PoolManager(timeout=ARRIVAL_BOUND_S, retries=False))
        for number in range(samples + 5):
            lag_ms = _time_one(client, f"idle/{number}", ledger)
            if number >= 5:  # the first ones wake all up
                measured.idle_ms.append(lag_ms)
        began_at = time.monotonic()
        service.post("/v1/sweeps").raise_for_status()
        number = 0
        while _copied(ledger) < objects:
            measured.busy_ms.append(_time_one(client, f"busy/{number}", ledger))
            number += 1
            if time.monotonic() - began_at > SWEEP_BOUND_S:
                raise BenchError("the backfill does not end")
        measured.backfill_s = time.monotonic() - began_at
    return measured


def _time_one(client: minio.Minio, key: str, ledger: sqlite3.Connection) -> float:
    time.sleep(PAUSE_S)
    body = io.BytesIO(os.urandom(OBJECT_BYTES))
    client.put_object(bucket_name=OLD, object_name=f"{NEW}/{key}", data=body, length=OBJECT_BYTES)
    returned_at = time.time()
    settled = "SELECT settled_at FROM entries WHERE rule = 'default' AND key = ? AND state = 'settled'"
    while not (found := ledger.execute(settled, (f"{NEW}/{key}",)).fetchone()):
        if time.time() - returned_at > ARRIVAL_BOUND_S:
            raise BenchError(f"{key} did not arrive")
        time.sleep(LOOK_S)
    return (float(found[0]) - returned_at) * 1000


def _copied(ledger: sqlite3.Connection) -> int:
    """Old objects that are settled, from the counts of each minute."""
    found = ledger.execute("SELECT sum(objects) FROM minutes WHERE lane = 'backfill'").fetchone()
    return int(found[0] or 0)


@contextlib.contextmanager
def _reading(service: Replicator) -> Iterator[sqlite3.Connection]:
    uri = f"file:{service.folder}/data/replicator.db?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as ledger:
        yield ledger


def fill(server: S3Server, bucket: str, objects: int) -> None:
    """Writes that many objects, in 100 folders, from several processes."""
    address = (server.endpoint, server.access_key, server.secret_key)
    shares = [range(first, objects, FILLERS) for first in range(FILLERS)]
    with ProcessPoolExecutor(FILLERS) as pool:
        list(pool.map(_fill, [address] * FILLERS, [bucket] * FILLERS, shares))


def _fill(address: tuple[str, str, str], bucket: str, numbers: range) -> None:
    endpoint, access_key, secret_key = address
    client = minio.Minio(
        endpoint=endpoint.removeprefix("http://"),
        access_key=access_key,
        secret_key=secret_key,
        secure=False,
        region="us-east-1",
        http_client=urllib3.PoolManager(timeout=ARRIVAL_BOUND_S, retries=3, maxsize=FILL_THREADS),
    )

    def put(number: int) -> None:
        body = number.to_bytes(8, "big") * (OBJECT_BYTES // 8)
        key = f"folder-{number % 100:02}/{number:07}.bin"
        client.put_object(bucket_name=bucket, object_name=key, data=io.BytesIO(body), length=len(body))

    with ThreadPoolExecutor(FILL_THREADS) as pool:
        list(pool.map(put, numbers))


# ── a sweep over equals ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Walked:
    """One walk over both listings."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    grown_bytes: int | None = None
    """By how much the peak is above that before the walk; None: not known."""
    requests: Mapping[str, int] = field(default_factory=dict)
    """By operation, at both sides."""


def measure_sweeps(source: S3Server, target: SeaweedFS, folder: Path, *, keys: int) -> dict[str, Walked]:
    """A sweep, and `rclone check --size-only`, over the same two equal buckets."""
    bucket = "equal"
    for server in (source, target):
        server.client().make_bucket(bucket_name=bucket)
        fill(server, bucket, keys)
    with Proxy(source.endpoint) as here, Proxy(target.endpoint) as there:
        service = Replicator(
            folder / "sweeper",
            source=source,
            source_bucket=bucket,
            target=target,
            target_bucket=bucket,
            environ={
                "RECONCILE_INTERVAL_S": "0",
                "MINIO_ENDPOINT": here.endpoint,
                "FILEBASE_ENDPOINT": there.endpoint,
            },
        )
        with service:
            ours = _swept(service, keys)
        requests = here.counted + there.counted
    return {"ours": replace(ours, requests=requests), "rclone": _rclone(source, target, bucket, folder)}


def _swept(service: Replicator, keys: int) -> Walked:
    service.get("/readyz")
    before_s, before_bytes = usage(service.pid)
    began_at = time.monotonic()
    number = service.post("/v1/sweeps").json()["sweeps"][0]["id"]
    while (sweep := service.get(f"/v1/sweeps/{number}").json())["state"] == "open":
        if time.monotonic() - began_at > SWEEP_BOUND_S:
            raise BenchError(f"the sweep does not end: {sweep}")
        time.sleep(PAUSE_S)
    if (sweep["compared"], sweep["put"]) != (keys, 0):
        raise BenchError(f"not a sweep over {keys} equal keys: {sweep}")
    seconds, (cpu_s, peak_bytes) = time.monotonic() - began_at, usage(service.pid)
    return Walked(seconds, cpu_s - before_s, peak_bytes, peak_bytes - before_bytes)


def _rclone(source: S3Server, target: S3Server, bucket: str, folder: Path) -> Walked:
    command = [find_binary("rclone"), "check", "--config=", "--size-only", "--retries=1"]
    environ = {"PATH": os.defpath, "HOME": str(folder)} | rclone_remotes(source, target)
    began_at = time.monotonic()
    with (folder / "rclone.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"source:{bucket}", f"target:{bucket}"], env=environ, stderr=log, cwd=ROOT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchError(f"rclone check ended with {process.returncode}; see {folder}/rclone.log")
    return Walked(time.monotonic() - began_at, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
