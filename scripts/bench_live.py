"""The benchmark's live part: how soon one object is there, and how a burst of them fares.

This service and `mc mirror --watch` stand ready at the same time, each with a source and a target bucket of
its own, and objects are written to one or the other. When a copy is there is found in the same way for both:
by asking the target. The service hears by a direct notification, without `queue_dir`.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import minio
import urllib3
from minio.notificationconfig import NotificationConfig, QueueConfig

from scripts.bench_peers import BenchError, Job, McWatch, reading, usage, wait_until_settled
from scripts.local_servers import Gateway, S3Server, SeaweedFS
from scripts.local_service import WEBHOOK_AUTH_TOKEN, Replicator

OBJECT_BYTES = 4096
IDLE_PAUSE_S, LOOK_S = 0.1, 0.001
BURST_CLIENTS, LIST_ABOVE = 16, 50
ARRIVAL_BOUND_S, SETUP_BOUND_S, ANSWER_BOUND_S = 60.0, 60.0, 30.0
ARN = "arn:minio:sqs::BENCH:webhook"
OURS, MC = "ours", "mc"


@dataclass(frozen=True)
class Side:
    """One contender that follows a bucket live."""

    source: minio.Minio
    source_bucket: str
    target: minio.Minio
    target_bucket: str
    pid: int


@dataclass
class Live:
    """What was measured; one item for each object or round, in order."""

    latency_ms: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], MC: []})
    settled_ms: list[float] = field(default_factory=list)
    burst_s: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], MC: []})
    behind_s: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], MC: []})
    burst_settled_s: list[float] = field(default_factory=list)
    burst_cpu_s: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], MC: []})
    peak_bytes: dict[str, int] = field(default_factory=dict)


def measure_live(
    source: Gateway, target: SeaweedFS, folder: Path, *, samples: int, burst: int, rounds: int
) -> Live:
    """Both contenders, taking turns. `samples` or `burst` 0: not that one."""
    measured = Live()
    with _both(source, target, folder) as (sides, ledger_path):
        for number in range(-2, samples):  # the first of each wakes it up
            for name, side in sides.items():
                lag_ms = _time_one(side, f"one/{number}", ledger_path if name == OURS else None)
                if number >= 0:
                    measured.latency_ms[name].append(lag_ms[0])
                    measured.settled_ms += lag_ms[1:]
        for number in range(rounds if burst else 0):
            order = list(sides.items())
            for name, side in order if number % 2 == 0 else reversed(order):
                _time_burst(
                    name, side, measured, [f"burst-{number}/{n:05}" for n in range(burst)], ledger_path
                )
        measured.peak_bytes = {name: usage(side.pid)[1] for name, side in sides.items()}
    return measured


@contextmanager
def _both(source: Gateway, target: SeaweedFS, folder: Path) -> Iterator[tuple[Mapping[str, Side], Path]]:
    """Both contenders up and proven to follow their bucket."""
    for name in (OURS, MC):
        source.client().make_bucket(bucket_name=f"live-{name}")
        target.client().make_bucket(bucket_name=f"live-{name}-copy")
    ours, watched = f"live-{OURS}", f"live-{MC}"
    (folder / MC).mkdir(parents=True)
    service = Replicator(
        folder / OURS, source=source, source_bucket=ours, target=target, target_bucket=f"{ours}-copy"
    )
    watch = McWatch(Job(source, watched, target, f"{watched}-copy", (), folder / MC))
    with ExitStack() as stack:
        stack.enter_context(service)
        notify(source, ours, service.events_url)
        stack.enter_context(watch)
        sides = {
            name: _side(source, target, f"live-{name}", server.pid)
            for name, server in ((OURS, service), (MC, watch))
        }
        for name, side in sides.items():
            _wait_until_following(name, side)
        yield sides, service.folder / "data" / "replicator.db"


def _side(source: S3Server, target: S3Server, bucket: str, pid: int) -> Side:
    pools = [urllib3.PoolManager(timeout=ANSWER_BOUND_S, retries=False, maxsize=BURST_CLIENTS) for _ in "st"]
    return Side(source.client(pools[0]), bucket, target.client(pools[1]), f"{bucket}-copy", pid)


def notify(source: Gateway, bucket: str, url: str) -> None:
    """Has the source tell of each object that is created in the bucket, at once and once."""
    environ = {"ENABLE": "on", "ENDPOINT": url, "AUTH_TOKEN": WEBHOOK_AUTH_TOKEN}
    source.restart(environ={f"MINIO_NOTIFY_WEBHOOK_{name}_BENCH": value for name, value in environ.items()})
    wanted = NotificationConfig(queue_config_list=[QueueConfig(queue=ARN, events=["s3:ObjectCreated:*"])])
    deadline = time.monotonic() + SETUP_BOUND_S
    while True:
        try:
            source.client().set_bucket_notification(bucket_name=bucket, config=wanted)
        except minio.S3Error:  # the API answers a moment before its notifications are live
            if time.monotonic() > deadline:
                raise
            time.sleep(IDLE_PAUSE_S)
        else:
            return


def _wait_until_following(name: str, side: Side) -> None:
    deadline = time.monotonic() + SETUP_BOUND_S
    for number in range(1000):
        _put(side, f"wake/{number}")
        time.sleep(0.5)
        if f"wake/{number}" in _listed(side, "wake/"):
            return
        if time.monotonic() > deadline:
            break
    raise BenchError(f"{name} does not follow its bucket")


def _put(side: Side, key: str) -> float:
    """Gives the time when the PUT returned, in seconds since 1970."""
    body = io.BytesIO(os.urandom(OBJECT_BYTES))
    side.source.put_object(bucket_name=side.source_bucket, object_name=key, data=body, length=OBJECT_BYTES)
    return time.time()


def _listed(side: Side, prefix: str) -> set[str]:
    found = side.target.list_objects(bucket_name=side.target_bucket, prefix=prefix, recursive=True)
    return {each.object_name or "" for each in found}


# ── one object ───────────────────────────────────────────────────────────────────────────────────────


def _time_one(side: Side, key: str, ledger_path: Path | None) -> list[float]:
    """Milliseconds from the PUT's return until the target has it, then until the ledger says settled."""
    look = _Looker(side)
    url = look.url(key)
    time.sleep(IDLE_PAUSE_S)
    returned_at = _put(side, key)
    deadline = returned_at + ARRIVAL_BOUND_S
    while not look.is_there(url):
        if time.time() > deadline:
            raise BenchError(f"{key} did not arrive")
        time.sleep(LOOK_S)
    lags_ms = [(time.time() - returned_at) * 1000]
    if ledger_path:
        lags_ms.append((_settled_at(ledger_path, key) - returned_at) * 1000)
    return lags_ms


class _Looker:
    """Asks the target for single keys, at as little cost as can be."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._pool = urllib3.PoolManager(timeout=ANSWER_BOUND_S, retries=False)

    def url(self, key: str) -> str:
        bucket, hour = self._side.target_bucket, timedelta(hours=1)
        return self._side.target.get_presigned_url(
            method="HEAD", bucket_name=bucket, object_name=key, expires=hour
        )

    def is_there(self, url: str) -> bool:
        status = self._pool.request("HEAD", url).status
        if status not in (200, 404):
            raise BenchError(f"the target answered HEAD with {status}")
        return status == 200


def _settled_at(path: Path, prefix: str) -> float:
    """When the last entry below a prefix was settled; waits until nothing is due."""
    with reading(path) as ledger:
        wait_until_settled(ledger, alive=lambda: True)
        latest = "SELECT max(settled_at) FROM entries WHERE substr(key, 1, ?) = ?"
        return float(ledger.execute(latest, (len(prefix), prefix)).fetchone()[0])


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────


def _time_burst(name: str, side: Side, measured: Live, keys: Sequence[str], ledger_path: Path) -> None:
    cpu_before_s, _ = usage(side.pid)
    began_at = time.time()
    with ThreadPoolExecutor(BURST_CLIENTS) as pool:
        returned_at = max(pool.map(lambda key: _put(side, key), keys))
    arrived_at = _wait_for_all(side, keys)
    measured.burst_s[name].append(arrived_at - began_at)
    measured.behind_s[name].append(arrived_at - returned_at)
    if name == OURS:
        settled_at = _settled_at(ledger_path, keys[0].partition("/")[0] + "/")
        measured.burst_settled_s.append(settled_at - began_at)
    measured.burst_cpu_s[name].append(usage(side.pid)[0] - cpu_before_s)


def _wait_for_all(side: Side, keys: Sequence[str]) -> float:
    """By listing while many are missing, then one by one; gives when the last was seen."""
    look, missing = _Looker(side), set(keys)
    prefix = keys[0].partition("/")[0] + "/"
    deadline = time.monotonic() + ARRIVAL_BOUND_S
    while missing:
        if time.monotonic() > deadline:
            raise BenchError(f"{len(missing)} of {len(keys)} did not arrive, {min(missing)} among them")
        if len(missing) > LIST_ABOVE:
            missing -= _listed(side, prefix)
        else:
            missing = {key for key in missing if not look.is_there(look.url(key))}
    return time.time()
