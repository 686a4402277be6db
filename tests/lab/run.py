"""One run: a workload under faults, then quiet, then the verdict."""

from __future__ import annotations

import contextlib
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.acceptance.conftest import BUCKET, until
from tests.lab.checker import Sample, Side, Verdict, check, rows, story
from tests.lab.deck import LEDGER_DELETED, deck
from tests.lab.proxy import Kind
from tests.lab.schedule import Played, Schedule
from tests.lab.stage import MEMORY_BUDGET_MIB, TARGET_BUCKET, Stage, tree
from tests.lab.workload import Workload

CLIENTS = 4
OPERATIONS_PER_S = 8.0
SAMPLE_EVERY_S = 8.0
QUIET_BOUND_S = 420.0
"""Back-off grows to five minutes."""
SWEEP_BOUND_S = 120.0
UPLOADS_BOUND_S = 90.0
"""They are ended when they are UPLOAD_KEEP_S old by a clock that may have been wrong for a minute."""
HEARD_AGAIN_S = 5.0
"""A source that answers tells of changes a moment later."""
WARM_UP_KEYS = 24
FAULT_LONGEST_S = 12.0
MEMORY_MARGIN_MIB = 150
"""What a process takes without any object: Python, boto3, a page of a listing."""
THREADS_MARGIN = 24
"""gunicorn and the pools of connections start theirs as they are needed."""
FILES_MARGIN = 64
HISTORY_LINES = 400


@dataclass
class Report:
    """What a run did and found; `verdict.wrong` empty: all promises were kept."""

    seed: int
    engine: str
    faults_s: float
    quiet_s: float = 0.0
    operations: int = 0
    unknown: int = 0
    bytes_put: int = 0
    events: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    """How often each was on."""
    struck: dict[str, int] = field(default_factory=dict)
    """Requests that met each kind of fault on a wire."""
    exits: dict[str, int] = field(default_factory=dict)
    """How processes of the service ended that nobody had ended."""
    peak_mib: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)
    story: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """As JSON, without the story."""
        found = asdict(self)
        del found["story"], found["verdict"]["keys"]
        return found


def run(
    folder: Path,
    *,
    engine: str,
    seed: int,
    minutes: float,
    longest_s: float = FAULT_LONGEST_S,
    say: Callable[[str], object] = lambda _: None,
) -> Report:
    """A run in an empty folder, of at least that many minutes under faults."""
    report = Report(seed, engine, minutes * 60)
    with Stage(folder, engine=engine, seed=seed) as stage:
        _warm_up(stage)
        before = Resources.of(stage)
        load = Workload(stage.source.client, BUCKET, seed=seed, clients=CLIENTS, per_s=OPERATIONS_PER_S)
        cards = deck(stage, random.Random(f"{seed} shares"))
        schedule = Schedule(cards, seed, longest_s)
        say(f"seed {seed}, {engine}: {len(cards)} faults to play, for {minutes:g} min")
        with _sampling(stage) as samples, load, schedule:
            time.sleep(minutes * 60)  # what a run is
        began = time.monotonic()
        for wire in stage.wires.values():
            wire.end()
        report.verdict.wrong += schedule.troubles
        say(f"{len(schedule.played)} faults played, {len(load.history)} operations; waiting for quiet")
        try:
            _wait_for_quiet(stage)
        except AssertionError as error:
            report.verdict.wrong.append(str(error))
        report.quiet_s = time.monotonic() - began
        say(f"quiet after {report.quiet_s:.0f} s; comparing")
        deleted = [each.ended_at for each in schedule.played if each.name == LEDGER_DELETED]
        found = check(
            stage,
            load.history,
            samples,
            ledger_lost_at=max(deleted, default=0.0),
            unheard=[
                (each.began_at, each.ended_at + HEARD_AGAIN_S) for each in schedule.played if _deafens(each)
            ],
        )
        found.wrong = [*report.verdict.wrong, *found.wrong, *before.compared_to(Resources.of(stage))]
        _fill(report, stage, schedule, load, found)
        if found.wrong:
            on = [
                f"{each.began_at:.3f} fault {each.name} until {each.ended_at:.3f}" for each in schedule.played
            ]
            report.story = sorted([*on, *story(stage, found.keys, load.history)])
    return report


def _deafens(played: Played) -> bool:
    """Whether events may be lost by it: of a source that starts, or by a bit that makes it another key's."""
    return played.name in ("source: SIGKILL", "source: SIGTERM") or (
        played.name.startswith("events") and played.name.endswith(Kind.FLIP_REQUEST)
    )


def _fill(report: Report, stage: Stage, schedule: Schedule, load: Workload, verdict: Verdict) -> None:
    report.verdict = verdict
    report.operations, report.unknown, report.bytes_put = len(load.history), load.unknown, load.bytes_put
    report.faults = dict(Counter(each.name for each in schedule.played))
    for name, wire in stage.wires.items():
        side = name.split()[0]
        for kind, count in wire.struck.items():
            report.struck[f"{side}: {kind}"] = report.struck.get(f"{side}: {kind}", 0) + count
        if side == "events":
            report.events += wire.requests
    if stage.keeper:
        report.exits = {f"{name}, exit {code}": count for (name, code), count in stage.keeper.exits.items()}
    report.peak_mib = Resources.of(stage).peak_mib


def _warm_up(stage: Stage) -> None:
    client = stage.source.client()
    for number in range(WARM_UP_KEYS):
        body = io.BytesIO(b"warm up")
        client.put_object(bucket_name=BUCKET, object_name=f"warm/{number}", data=body, length=7)
    until(lambda: _settled(stage) >= WARM_UP_KEYS, bound_s=120, what="the first objects are copied")


def _settled(stage: Stage) -> int:
    return sum(row["state"] == "settled" for row in rows(stage))


# ── quiet ────────────────────────────────────────────────────────────────────────────────────────────


def _wait_for_quiet(stage: Stage) -> None:
    """All is delivered and worked off; then a sweep finds what no event told of, and a second one nothing."""
    queued = (stage.folder / "queue").rglob
    until(lambda: not any(queued("*.event")), bound_s=QUIET_BOUND_S, what="the source's queue is empty")
    _wait_until_worked_off(stage)
    _sweep(stage)
    _wait_until_worked_off(stage)
    with contextlib.suppress(AssertionError):  # the checker judges what is left
        until(
            lambda: _no_upload_is_left(stage), bound_s=UPLOADS_BOUND_S, what="sweeps have ended old uploads"
        )
    found = _sweep(stage)
    _wait_until_worked_off(stage)
    odd = {name: found[name] for name in ("missing", "different") if found[name]}
    assert not odd, f"a second sweep found something still: {odd}"


def _no_upload_is_left(stage: Stage) -> bool:
    """Asks for another sweep where one is left: it may not have been old enough for the last one."""
    if Side(stage.target, TARGET_BUCKET).uploads():
        _sweep(stage)
        return False
    return True


def _wait_until_worked_off(stage: Stage) -> None:
    def unfinished() -> list[dict[str, Any]]:
        return [row for row in rows(stage) if row["state"] in ("waiting", "running")]

    try:
        until(lambda: not unfinished(), bound_s=QUIET_BOUND_S, what="nothing is waiting or running")
    except AssertionError as error:
        facts = [{name: row[name] for name in ("key", "state", "due_at", "error")} for row in unfinished()]
        raise AssertionError(f"{error}; {len(facts)} entries: {facts[:5]}") from None


def _sweep(stage: Stage) -> dict[str, Any]:
    def asked() -> dict[str, Any] | None:
        try:
            answer = stage.webs[0].post("/v1/sweeps")
        except requests.RequestException:
            return None
        return dict(answer.json()["sweeps"][0]) if answer.ok else None

    sweep = until(asked, bound_s=60, what="a sweep is taken")

    def over() -> dict[str, Any] | None:
        answer = stage.get(sweep["link"])
        found = dict(answer.json()) if answer else {}
        return found if found.get("state") == "complete" else None

    return dict(until(over, bound_s=SWEEP_BOUND_S, what=f"sweep {sweep} is complete"))


# ── in the middle ────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _sampling(stage: Stage) -> Iterator[list[Sample]]:
    samples: list[Sample] = []
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(SAMPLE_EVERY_S):
            try:
                found = Sample.of(stage)
            except Exception:  # noqa: BLE001, S112 - whoever was asked was struck by a fault
                continue
            if found:
                samples.append(found)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


@dataclass
class Resources:
    """What each process of the service has: threads, descriptors, and its peak of memory."""

    threads: dict[str, int]
    files: dict[str, int]
    peaks_mib: dict[str, float]

    @classmethod
    def of(cls, stage: Stage) -> Resources:
        """Of each service, that of its processes which has the most."""
        threads, files, peaks = {}, {}, {}
        for service in stage.services:
            found = [facts for process in tree(service) if (facts := _taken(process))]
            name = service.folder.name
            threads[name], files[name], peaks[name] = (max(column) for column in zip(*found, strict=True))
        return cls(threads, files, peaks)

    @property
    def peak_mib(self) -> float:
        """The largest."""
        return max(self.peaks_mib.values())

    def compared_to(self, after: Resources) -> list[str]:
        """What grew more than it may."""
        wrong = []
        for name in self.threads:
            for what, margin in (("threads", THREADS_MARGIN), ("files", FILES_MARGIN)):
                first, last = getattr(self, what)[name], getattr(after, what)[name]
                if last > first + margin:
                    wrong.append(f"{name} has {last} {what}, {first} at first")
            if after.peaks_mib[name] > MEMORY_MARGIN_MIB + MEMORY_BUDGET_MIB:
                wrong.append(
                    f"{name} took {after.peaks_mib[name]:.0f} MiB, with a budget of {MEMORY_BUDGET_MIB}"
                )
        return wrong


def _taken(process: psutil.Process) -> tuple[int, int, float] | None:
    """Threads, descriptors, MiB at most; None: it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        return process.num_threads(), process.num_fds(), peak
    except (psutil.NoSuchProcess, FileNotFoundError, StopIteration):
        return None


def text(report: Report) -> str:
    """For a person; with the history where something is wrong."""
    facts = report.facts()
    wrong = facts["verdict"].pop("wrong")
    lines = [f"  {name}: {value}" for name, value in facts.items() if name not in ("faults", "struck")]
    lines += [f"  faults: {json.dumps(dict(sorted(report.faults.items())))}"]
    lines += [f"  requests struck: {json.dumps(dict(sorted(report.struck.items())))}"]
    if wrong:
        lines += ["WRONG:", *(f"  - {each}" for each in wrong), "what led there:"]
        lines += [f"  {each}" for each in report.story[-HISTORY_LINES:]]
    return "\n".join(lines)
