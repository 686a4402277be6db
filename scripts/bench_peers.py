"""The contenders of the benchmark: this service, rclone and mc, each a process watched from outside.

Processor time is the kernel's account of a process and its children. Peak memory is the kernel's own mark
(VmHWM), summed over a process and its children, so pages they share count once for each.

Peers are timed from exec to exit. This service runs on until it is told to stop: it is timed from the log
line that its worker starts to the moment when its ledger holds nothing that is due.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from scripts.local_processes import Server, find_binary
from scripts.local_servers import REGION, Gateway, S3Server
from scripts.local_service import LoneWorker
from scripts.local_tools import find_mc
from webhook.entries import Request
from webhook.ledger import Ledger

SETTLED_BOUND_S = 1200.0
SAMPLE_S = 0.02
PUT_BATCH = 500
RULE = "default"
ANSWER_BOUND_S = 30.0


class BenchError(Exception):
    """A contender did not do what it was to do; the message says what."""


@dataclass(frozen=True)
class Job:
    """One bucket that one contender is to copy."""

    source: S3Server
    source_bucket: str
    target: S3Server
    target_bucket: str
    keys: Sequence[str]
    folder: Path
    """Empty, for the contender's own files."""


@dataclass(frozen=True)
class Run:
    """What one contender took."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def usage(pid: int) -> tuple[float, int]:
    """Processor seconds so far and peak bytes of a living process and its children."""
    cpu_s, peak_bytes = 0.0, 0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            cpu_s += sum(process.cpu_times()[:4])  # user, system, and both of children that have ended
            peak_bytes += _peak_bytes(process.pid)
    return cpu_s, peak_bytes


def _peak_bytes(pid: int) -> int:
    """0 where the process is gone. Not `ru_maxrss`, which begins with that of whoever forked it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


# ── this service ─────────────────────────────────────────────────────────────────────────────────────


class _Worker(LoneWorker):
    """A worker whose start is found however much it has logged since."""

    def started_at(self) -> float | None:
        """When it said that it starts, in seconds since 1970; None: not yet."""
        with self.log_path.open(errors="replace") as lines:
            told = next((line for line in lines if "worker starts" in line), None)
        return datetime.fromisoformat(told.split()[0]).timestamp() if told else None

    def _probe(self) -> None:
        if self.started_at() is None:
            raise ConnectionError("not yet")


def run_ours(job: Job) -> Run:
    """Requests for all keys are in the ledger; the worker starts, copies, verifies, settles."""
    worker = _Worker(
        job.folder,
        source=job.source,
        source_bucket=job.source_bucket,
        target=job.target,
        target_bucket=job.target_bucket,
    )
    path = job.folder / "data" / "replicator.db"
    worker.environ |= {"DATABASE_URL": f"sqlite:///{path}", "RECONCILE_INTERVAL_S": "0"}
    _fill(worker.environ["DATABASE_URL"], job.keys)
    with worker, reading(path) as ledger:
        wait_until_settled(ledger, alive=lambda: worker.alive)
        ended_at = time.time()
        cpu_s, peak_bytes = usage(worker.pid)
        ends = dict(ledger.execute("SELECT state || ' ' || outcome, count(*) FROM entries GROUP BY 1"))
        if ends != ({"settled replicated": len(job.keys)} if job.keys else {}):
            raise BenchError(f"the service ended with {ends}:\n{worker.log_tail()}")
        return Run(ended_at - (worker.started_at() or 0.0), cpu_s, peak_bytes)


def _fill(url: str, keys: Sequence[str]) -> None:
    ledger = Ledger.open(url)
    with closing(ledger):
        for first in range(0, len(keys), PUT_BATCH):
            batch = enumerate(keys[first : first + PUT_BATCH], first)
            now = time.time()
            ledger.put([Request(rule=RULE, key=k, event_id=f"{n:016x}", event_at=now) for n, k in batch])


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A ledger's file, for looking only, from outside the service."""
    uri = f"{path.as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=ANSWER_BOUND_S)) as connection:
        yield connection


def wait_until_settled(ledger: sqlite3.Connection, *, alive: Callable[[], bool]) -> None:
    """Until nothing is due any more. Raises: BenchError at the bound, or when the process has ended."""
    deadline = time.monotonic() + SETTLED_BOUND_S
    while ledger.execute("SELECT 1 FROM entries WHERE due_at IS NOT NULL LIMIT 1").fetchone():
        if time.monotonic() > deadline or not alive():
            raise BenchError("the service did not settle everything")
        time.sleep(SAMPLE_S)


# ── its peers ────────────────────────────────────────────────────────────────────────────────────────


def run_rclone(job: Job) -> Run:
    """`rclone copy --transfers 32`, all else as it comes."""
    environ = _rclone_remote("SOURCE", job.source) | _rclone_remote("TARGET", job.target)
    buckets = (f"source:{job.source_bucket}", f"target:{job.target_bucket}")
    return _run_to_end([find_binary("rclone"), "copy", "--config=", "--transfers=32", *buckets], environ, job)


def run_mc(job: Job) -> Run:
    """`mc mirror`. Its uploads in parts are refused by SeaweedFS as damaged, so it has to do without."""
    command = _mc("mirror", "--quiet", "--disable-multipart")
    return _run_to_end([*command, *_mc_buckets(job)], _mc_hosts(job), job)


CONTENDERS: Mapping[str, Callable[[Job], Run]] = {"ours": run_ours, "rclone": run_rclone, "mc": run_mc}


class McWatch(Server):
    """`mc mirror --watch`; it does not say when it listens."""

    name = "mc mirror --watch"

    def __init__(self, job: Job) -> None:
        super().__init__(job.folder)
        self._job = job

    def _command(self) -> list[str]:
        return [*_mc("mirror", "--watch", "--quiet"), *_mc_buckets(self._job)]

    def _environment(self) -> dict[str, str]:
        return super()._environment() | _mc_hosts(self._job)

    def _probe(self) -> None:
        """Nothing can be asked of it."""


def _rclone_remote(name: str, server: S3Server) -> dict[str, str]:
    provider = "Minio" if isinstance(server, Gateway) else "SeaweedFS"
    settings = {"TYPE": "s3", "PROVIDER": provider, "ENDPOINT": server.endpoint, "REGION": REGION}
    settings |= {"ACCESS_KEY_ID": server.access_key, "SECRET_ACCESS_KEY": server.secret_key}
    return {f"RCLONE_CONFIG_{name}_{key}": value for key, value in settings.items()}


def _mc(*words: str) -> list[str]:
    found = find_mc()
    if found is None:
        raise BenchError("MinIO's client is not here; scripts/get_mc.sh says why")
    return [str(found), *words]


def _mc_buckets(job: Job) -> list[str]:
    return [f"source/{job.source_bucket}", f"target/{job.target_bucket}"]


def _mc_hosts(job: Job) -> dict[str, str]:
    hosts = {"MC_CONFIG_DIR": str(job.folder / "mc")}
    for name, server in (("source", job.source), ("target", job.target)):
        keys = f"://{server.access_key}:{server.secret_key}@"
        hosts[f"MC_HOST_{name}"] = server.endpoint.replace("://", keys)
    return hosts


def _run_to_end(command: Sequence[str], environ: Mapping[str, str], job: Job) -> Run:
    """Raises: BenchError with what it printed, when it fails."""
    log = job.folder / "output.log"
    private = {"PATH": os.defpath, "HOME": str(job.folder), "TMPDIR": str(job.folder), **environ}
    peaks, ended = [0], threading.Event()
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=private, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )

    def look() -> None:
        while not ended.wait(SAMPLE_S):
            peaks.append(_peak_bytes(process.pid))

    sampler = threading.Thread(target=look, daemon=True)
    sampler.start()
    try:
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        process.kill()
        raise
    finally:
        ended.set()
        sampler.join()
    if process.returncode != 0:
        raise BenchError(f"{command[:2]} exited with {process.returncode}:\n{log.read_text()[-2000:]}")
    return Run(seconds, used.ru_utime + used.ru_stime, max(peaks))
