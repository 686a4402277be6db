"""The scale benchmark's second part: several worker processes on one ledger on PostgreSQL.

Throughput: workers stand ready and have copied something each; then requests for all objects go into the
ledger in one transaction, and the time counts from that to the last one settled, both by the ledger's clock.
The target answers slowly, so that waiting for it takes the time, as it does far away, and not the processor.

Takeover: a worker is killed while the target has not yet answered any of its copies; the time counts until
another has settled all of them.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from scripts.bench_backfill import fill
from scripts.bench_peers import RULE, BenchError, usage
from scripts.bench_scale_slow import SlowWay
from scripts.local_servers import PostgreSQL, S3Server, SeaweedFS
from scripts.local_service import LoneWorker
from tests.proxy import Drop, Exchange, Proxy
from webhook.entries import LIVE, Request
from webhook.ledger import Ledger
from webhook.tables import ENTRIES

THREADS = 16
DELAYS_MS = (50, 100, 200, 400)
BUSY_MOST = 0.7
"""Of the cores: above it they, and not the target, decide how fast it goes."""
WAVES_LEAST, WAVES_MAX = 15, 25
"""How many objects one after the other each thread copies: of few, one more is much."""
WARM_OBJECTS = 2 * THREADS
SETTLED_BOUND_S, LOOK_S = 300.0, 0.05
LEASE_S = 10
OLD = "old"

Say = Callable[[str], object]


class Workers(LoneWorker):
    """`python -m webhook.worker --processes N --threads THREADS`."""

    processes = 1

    def _command(self) -> list[str]:
        return [*super()._command(), "--processes", str(self.processes), "--threads", str(THREADS)]

    def _probe(self) -> None:
        if self.log_path.read_text(errors="replace").count("worker starts") < self.processes:
            raise ConnectionError("not yet")


class Elsewhere(LoneWorker):
    """A worker whose process ids mean nothing to others: nobody can know that it is dead."""

    @staticmethod
    def can_be_had() -> bool:
        """Whether this user may start one."""
        return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("unshare") is not None

    def _command(self) -> list[str]:
        return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *super()._command()]


@dataclass(frozen=True)
class Stage:
    """The servers of all runs; numbers make names that were not used before."""

    source: S3Server
    target: S3Server
    ledgers: PostgreSQL
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def ledger(self) -> Iterator[tuple[Ledger, dict[str, str]]]:
        """An empty ledger, and a worker's settings for it."""
        url = self.ledgers.create_database(f"fleet_{next(self.numbers)}")
        with closing(Ledger.open(url)) as ledger:
            yield ledger, {"DATABASE_URL": url, "RECONCILE_INTERVAL_S": "0"}

    def target_bucket(self) -> str:
        """An empty one."""
        name = f"copy-{next(self.numbers)}"
        self.target.client().make_bucket(bucket_name=name)
        return name

    def worker(self, kind: type[LoneWorker], bucket: str, environ: Mapping[str, str]) -> Any:
        """One that is not started."""
        return kind(
            self.folder / f"worker-{next(self.numbers)}",
            source=self.source,
            source_bucket=OLD,
            target=self.target,
            target_bucket=bucket,
            environ=environ,
        )


@contextmanager
def staged(folder: Path, *, objects: int) -> Iterator[Stage]:
    """The servers, and as many objects at the source."""
    with ExitStack() as running:
        source = running.enter_context(SeaweedFS(folder / "source"))
        target = running.enter_context(SeaweedFS(folder / "target"))
        ledgers = running.enter_context(PostgreSQL(folder / "postgresql"))
        source.client().make_bucket(bucket_name=OLD)
        fill(source, OLD, objects)
        yield Stage(source, target, ledgers, folder)


def _keys(numbers: range) -> list[str]:
    return [f"folder-{number % 100:02}/{number:07}.bin" for number in numbers]


def _ask(ledger: Ledger, keys: Sequence[str]) -> float:
    """Puts all in one transaction; gives when, by the ledger's clock."""
    now = ledger.clock()
    ledger.put(
        [Request(rule=RULE, key=key, event_id=f"{n:016x}", event_at=now) for n, key in enumerate(keys)]
    )
    return now


def _wait(until: Callable[[], bool], workers: Sequence[LoneWorker], what: str) -> None:
    deadline = time.monotonic() + SETTLED_BOUND_S
    while not until():
        ended = [each for each in workers if not each.alive]
        if ended or time.monotonic() > deadline:
            raise BenchError(f"not so: {what}\n{(ended or list(workers))[0].log_tail()}")
        time.sleep(LOOK_S)


def _rows(ledger: Ledger, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Of these keys, `history` read."""
    wanted = ENTRIES.select().where(ENTRIES.c.rule == RULE, ENTRIES.c.key.in_(keys))
    with ledger.reading() as connection:
        rows = connection.execute(wanted).mappings().all()
    return [{**row, "history": json.loads(row["history"])} for row in rows]


# ── throughput ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Flow:
    """One run of some workers."""

    objects: int
    seconds: float
    busy: float
    """Share of all cores' time in which they worked, for whomever."""
    cpu_s: Mapping[str, float]
    """Of the workers, the stores, PostgreSQL and the slow way."""

    @property
    def per_s(self) -> float:
        """Objects a second."""
        return self.objects / self.seconds


@dataclass
class Fleets:
    """All runs."""

    delay_ms: int
    tried: dict[int, Flow] = field(default_factory=dict)
    """Delay in ms → the largest fleet's run with it, of those at which the cores were too busy."""
    flows: dict[int, list[Flow]] = field(default_factory=dict)
    """Number of workers → one run for each round."""


def measure_fleets(
    folder: Path, *, workers: Sequence[int], rounds: int, seconds: float, delays_ms: Sequence[int], say: Say
) -> Fleets:
    """The largest fleet finds a delay at which the cores are not busy; then all take turns with that."""
    most = max(workers) * THREADS * WAVES_MAX
    with staged(folder, objects=most + max(workers) * WARM_OBJECTS) as stage:
        measured = Fleets(delays_ms[-1])
        for delay_ms in delays_ms if len(delays_ms) > 1 else ():
            flow = _run(stage, max(workers), delay_ms, seconds, say)
            if flow.busy <= BUSY_MOST:
                measured.delay_ms = delay_ms
                break
            measured.tried[delay_ms] = flow
        for number in range(rounds):
            for count in workers if number % 2 == 0 else reversed(workers):
                flow = _run(stage, count, measured.delay_ms, seconds, say)
                measured.flows.setdefault(count, []).append(flow)
    return measured


def _run(stage: Stage, count: int, delay_ms: int, seconds: float, say: Say) -> Flow:
    waves = min(WAVES_MAX, max(WAVES_LEAST, round(seconds * 1000 / delay_ms)))
    objects = count * THREADS * waves
    keys, warm = _keys(range(objects)), _keys(range(objects, objects + count * WARM_OBJECTS))
    slow = SlowWay(stage.folder / f"slow-{next(stage.numbers)}", server=stage.target, delay_ms=delay_ms)
    with slow, stage.ledger() as (ledger, environ):
        bucket = stage.target_bucket()
        fleet = stage.worker(Workers, bucket, environ | {"FILEBASE_ENDPOINT": slow.endpoint})
        fleet.processes = count
        with fleet:
            _ask(ledger, warm)
            _wait(lambda: ledger.backlog(LIVE, limit=1) == 0, [fleet], "the first objects are settled")
            flow = _watched(stage, ledger, fleet, slow, keys)
    figures = (
        f"{flow.objects} objects in {flow.seconds:.2f} s, {flow.per_s:.0f}/s, cores {flow.busy:.0%} busy"
    )
    say(f"{count} workers, {delay_ms} ms: {figures}")
    return flow


def _watched(stage: Stage, ledger: Ledger, fleet: Workers, slow: SlowWay, keys: Sequence[str]) -> Flow:
    pids = {
        "workers": [fleet.pid],
        "stores": [stage.source.pid, stage.target.pid],
        "PostgreSQL": [stage.ledgers.pid],
        "slow way": [slow.pid],
    }

    def used() -> dict[str, float]:
        return {name: sum(usage(pid)[0] for pid in each) for name, each in pids.items()}

    before, cores_before = used(), _cores()
    asked_at = _ask(ledger, keys)
    _wait(lambda: ledger.backlog(LIVE, limit=1) == 0, [fleet], f"{len(keys)} objects are settled")
    busy, after = _busy(cores_before, _cores()), used()
    rows = _rows(ledger, keys)
    ends = {(row["state"], row["outcome"]) for row in rows}
    took_part = {attempt["worker"] for row in rows for attempt in row["history"]}
    if ends != {("settled", "replicated")} or len(took_part) != fleet.processes:
        raise BenchError(f"{len(took_part)} of {fleet.processes} workers took part; ended with {ends}")
    cpu_s = {name: after[name] - before[name] for name in pids}
    return Flow(len(keys), max(row["settled_at"] for row in rows) - asked_at, busy, cpu_s)


def _cores() -> tuple[float, float]:
    """Seconds that all cores were idle, and all seconds."""
    times: Any = psutil.cpu_times(percpu=False)
    return times.idle + getattr(times, "iowait", 0.0), sum(times)


def _busy(before: tuple[float, float], after: tuple[float, float]) -> float:
    return 1 - (after[0] - before[0]) / (after[1] - before[1])


# ── takeover ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Takeovers:
    """Seconds from SIGKILL, one for each round."""

    taken_s: list[float] = field(default_factory=list)
    """Until the last entry of the killed worker was claimed by another."""
    settled_s: list[float] = field(default_factory=list)
    """Until the last one was settled."""


KNOWN, UNKNOWN = "known to be dead: same machine", "not known: another PID namespace"


def measure_takeovers(folder: Path, *, rounds: int, say: Say) -> dict[str, Takeovers]:
    """Of both kinds; only of one where this user may make no PID namespace."""
    kinds: dict[str, type[LoneWorker]] = {KNOWN: LoneWorker}
    if Elsewhere.can_be_had():
        kinds[UNKNOWN] = Elsewhere
    measured = {name: Takeovers() for name in kinds}
    with staged(folder, objects=THREADS + 1) as stage:
        for number in range(rounds):
            for name, kind in kinds.items():
                taken_s, settled_s = _take_over(stage, kind, phase=number / rounds)
                measured[name].taken_s.append(taken_s)
                measured[name].settled_s.append(settled_s)
                say(f"{name}: claimed again after {taken_s:.2f} s, settled after {settled_s:.2f} s")
    return measured


def _take_over(stage: Stage, kind: type[LoneWorker], *, phase: float) -> tuple[float, float]:
    """`phase`, 0 to 1: when in the keepers' rhythm the worker is killed."""
    keys, bucket, is_over = _keys(range(THREADS)), stage.target_bucket(), threading.Event()

    def hang(_: Exchange) -> None:
        is_over.wait(SETTLED_BOUND_S)
        raise Drop

    with Proxy(stage.target.endpoint) as way, stage.ledger() as (ledger, environ):
        environ |= {"LEASE_S": str(LEASE_S), "WORKER_THREADS": str(THREADS)}
        first = stage.worker(kind, bucket, environ | {"FILEBASE_ENDPOINT": way.endpoint})
        second = stage.worker(LoneWorker, bucket, environ)
        try:
            first.start()
            _ask(ledger, _keys(range(THREADS, THREADS + 1)))
            _wait(lambda: ledger.backlog(LIVE, limit=1) == 0, [first], "the first object is settled")
            way.forget()
            way.plan("PutObject", hang, times=len(keys))
            _ask(ledger, keys)
            _wait(lambda: way.counted["PutObject"] == len(keys), [first], "all copies are under way")
            second.start()
            time.sleep(LEASE_S / 4 * (1 + phase))  # the keepers' rhythm; the second one has looked once
            killed_at = time.time()
            first.kill()
            _wait(lambda: ledger.backlog(LIVE, limit=1) == 0, [second], "all is settled by the other")
        finally:
            is_over.set()
            first.kill()
            second.stop()
        return _delays(_rows(ledger, keys), killed_at)


def _delays(rows: Sequence[Mapping[str, Any]], killed_at: float) -> tuple[float, float]:
    last = [row["history"][-1] for row in rows]
    if min(attempt["claimed_at"] for attempt in last) < killed_at:
        raise BenchError("something was claimed again before the worker was killed")
    return (
        max(attempt["claimed_at"] for attempt in last) - killed_at,
        max(row["settled_at"] for row in rows) - killed_at,
    )
