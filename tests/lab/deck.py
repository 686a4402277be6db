"""The faults, as cards: what begins one, what ends it, and what it occupies while it is on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg

from scripts.local_processes import ServerError
from scripts.local_servers import Server
from scripts.local_service import Replicator
from tests.acceptance.conftest import until
from tests.lab.machine import Clock
from tests.lab.proxy import Fault, Kind
from tests.lab.stage import LEDGER_DISK_MIB, NAMES, Stage, each_of, tree

LEDGER_DELETED = "ledger: file deleted"
CLOCK_STEPS = {"+1 h": 3600, "-1 h": -3600, "+10 min": 600, "-10 min": -600}
"""S3 refuses signatures that are 15 minutes wrong; within that, leases and delays are put to the test."""
REFUSED_S = 0.3
STOP_BOUND_S = 30.0
"""DRAIN_S and gunicorn's ten seconds, and some for a busy machine."""
START_BOUND_S = 120.0
BYTES = frozenset({"GetObject", "PutObject", "UploadPart", "CompleteMultipartUpload", "GET bucket"})
"""Operations whose bodies are held against a checksum, or are only hints of what to look at. Tags and headers
have none in S3: TLS is what protects those."""
ON_SOURCE = tuple(kind for kind in Kind if kind not in (Kind.COMPLETE_FAILS_IN_200, Kind.FLIP_REQUEST))
"""Requests to the source have no body, and complete nothing."""
ON_EVENTS = (
    *(Kind.DELAY, Kind.DRIP, Kind.RESET_BEFORE, Kind.RESET_DURING, Kind.RESET_AFTER, Kind.CUT_SHORT),
    *(Kind.ANSWER_LOST, Kind.ERROR_500, Kind.SLOW_DOWN_RETRY_AFTER, Kind.HALF_OPEN, Kind.REFUSED),
    Kind.FLIP_REQUEST,
)


class NotNow(Exception):
    """What the fault would strike is down, or just starting."""


@dataclass(frozen=True)
class Card:
    """One fault. `doing` is a context: it begins the fault, and ends it; NotNow where it cannot begin."""

    name: str
    occupies: frozenset[str]
    """No two cards with one of these in common are played at once."""
    doing: Callable[[], AbstractContextManager[None]]


def deck(stage: Stage, chance: random.Random) -> list[Card]:
    """All faults there are on this stage, each once."""
    cards = [*_on_wires(stage, chance), *_on_services(stage), *_on_servers(stage), *_on_the_machine(stage)]
    return cards + (_on_postgresql(stage) if stage.database else _on_sqlite(stage))


# ── the wires ────────────────────────────────────────────────────────────────────────────────────────


def _on_wires(stage: Stage, chance: random.Random) -> list[Card]:
    cards = []
    for name in stage.wires:
        kinds = {"source": ON_SOURCE, "target": tuple(Kind)}.get(name, ON_EVENTS)
        for kind in kinds:
            flips = kind in (Kind.FLIP_REQUEST, Kind.FLIP_ANSWER) and not name.startswith("events")
            more = {"operations": BYTES} if flips else {}
            share = chance.choice([0.3, 0.7, 1.0])
            if kind is Kind.NOT_FOUND:
                share = 1.0  # a bucket that is away is so for all
            fault = Fault(kind, share=share, **more)
            cards.append(
                Card(f"{name} wire: {kind}", frozenset({f"{name} wire"}), partial(_wire, stage, name, fault))
            )
    return cards


@contextmanager
def _wire(stage: Stage, name: str, fault: Fault) -> Iterator[None]:
    stage.wires[name].begin(fault)
    try:
        yield
    finally:
        stage.wires[name].end(fault)


# ── the service's processes ──────────────────────────────────────────────────────────────────────────


def _on_services(stage: Stage) -> list[Card]:
    ways = {"SIGKILL": _killed_service, "SIGTERM": _ended_service, "SIGSTOP": _stopped_service}
    return [
        Card(f"{service.folder.name}: {name}", frozenset({service.folder.name}), partial(way, stage, service))
        for service in stage.services
        for name, way in ways.items()
    ]


@contextmanager
def _held(stage: Stage, service: Replicator) -> Iterator[None]:
    """The process is ours, and not started anew. Raises: NotNow."""
    assert stage.keeper
    with stage.keeper.hands_off(service) as is_running:
        if not is_running:
            raise NotNow
        stage.keeper.held.add(service)
    try:
        yield
    finally:
        stage.keeper.held.discard(service)


@contextmanager
def _killed_service(stage: Stage, service: Replicator) -> Iterator[None]:
    with _held(stage, service):
        service.kill()
        yield


@contextmanager
def _ended_service(stage: Stage, service: Replicator) -> Iterator[None]:
    with _held(stage, service):
        os.kill(service.pid, signal.SIGTERM)
        until(
            lambda: not service.alive, bound_s=STOP_BOUND_S, what=f"{service.folder.name} ends after SIGTERM"
        )
        code = service.exit_code
        service.kill()
        assert code == 0, f"{service.folder.name} ended with {code} after SIGTERM"
        yield


@contextmanager
def _stopped_service(stage: Stage, service: Replicator) -> Iterator[None]:
    with _held(stage, service), _stopped(service):
        yield


@contextmanager
def _stopped(server: Server) -> Iterator[None]:
    processes = tree(server)
    each_of(processes, lambda each: each.suspend())
    try:
        yield
    finally:
        each_of(processes, lambda each: each.resume())


# ── the servers ──────────────────────────────────────────────────────────────────────────────────────


def _on_servers(stage: Stage) -> list[Card]:
    webs = {web.folder.name for web in stage.webs} | {
        name for name in stage.wires if name.startswith("events")
    }
    wires = {f"{name} wire" for name in stage.wires if name.startswith("events")}
    # the source asks at its start whether the webhook answers, which is to be healthy then
    source = frozenset({"source wire", "names", "ledger", "postgresql", *webs, *wires})
    cards = [
        Card("source: SIGKILL", source, partial(_down, stage.source, Server.kill, stage.restart_source)),
        Card("source: SIGTERM", source, partial(_down, stage.source, Server.stop, stage.restart_source)),
        Card("source: SIGSTOP", frozenset({"source wire"}), partial(_stopped, stage.source)),
    ]
    others: dict[str, tuple[Server, str]] = {"target": (stage.target, "target wire")}
    if stage.database:
        others["postgresql"] = (stage.database, "postgresql")
    for name, (server, what) in others.items():
        start = partial(_start, server)
        occupied = frozenset({what})
        cards += [
            Card(f"{name}: SIGKILL", occupied, partial(_down, server, Server.kill, start)),
            Card(f"{name}: SIGTERM", occupied, partial(_down, server, _asked_to_stop, start)),
            Card(f"{name}: SIGSTOP", occupied, partial(_stopped, server)),
        ]
    return cards


def _asked_to_stop(server: Server) -> None:
    os.kill(server.pid, signal.SIGTERM)
    with contextlib.suppress(AssertionError):  # it may wait for its clients
        until(lambda: not server.alive, bound_s=5, what=f"{server.name} ends")
    server.kill()


@contextmanager
def _down(server: Server, end: Callable[[Server], None], start: Callable[[], object]) -> Iterator[None]:
    end(server)
    try:
        yield
    finally:
        start()


def _start(server: Server) -> None:
    deadline = time.monotonic() + START_BOUND_S
    while True:
        try:
            server.start()
        except ServerError:
            if time.monotonic() > deadline:
                raise
        else:
            return


# ── clocks and names ─────────────────────────────────────────────────────────────────────────────────


def _on_the_machine(stage: Stage) -> list[Card]:
    clocks = {"service": (stage.clock, "clock")}
    if stage.database:
        clocks["postgresql"] = (stage.database_clock, "database clock")
    cards = [
        Card(f"{name}: clock {step}", frozenset({occupies}), partial(_clock, clock, step_s))
        for name, (clock, occupies) in clocks.items()
        for step, step_s in CLOCK_STEPS.items()
    ]
    for name in NAMES:
        wire = name.partition(".")[0]
        occupied = frozenset({"names", f"{wire} wire"})
        cards.append(Card(f"{name} does not resolve", occupied, partial(_nameless, stage, name, wire)))
    return cards if stage.has_machine else []


@contextmanager
def _clock(clock: Clock, step_s: int) -> Iterator[None]:
    clock.step(step_s)
    try:
        yield
    finally:
        clock.step(0)


@contextmanager
def _nameless(stage: Stage, name: str, wire: str) -> Iterator[None]:
    stage.names.set({other: address for other, address in NAMES.items() if other != name})
    with _wire(stage, wire, Fault(Kind.REFUSED)):  # connections that are open would go on without a name
        time.sleep(REFUSED_S)
    try:
        yield
    finally:
        stage.names.set(NAMES)


# ── the ledger ───────────────────────────────────────────────────────────────────────────────────────


def _on_sqlite(stage: Stage) -> list[Card]:
    services = {service.folder.name for service in stage.services}
    cards = [Card(LEDGER_DELETED, frozenset({"ledger"}), partial(_deleted, stage))]
    if stage.ledger.parent in stage.mounts:
        cards += [
            Card("ledger: disk full", frozenset({"ledger"}), partial(_full, stage.ledger.parent)),
            Card("ledger: read-only", frozenset({"ledger", *services}), partial(_read_only_disk, stage)),
        ]
    return cards


def _remount(folder: str, options: str) -> bool:
    """False: a process that was killed still has files open there."""
    return subprocess.run(["mount", "-o", f"remount,{options}", folder], capture_output=True).returncode == 0


def _on_postgresql(stage: Stage) -> list[Card]:
    assert stage.database
    cards = [Card("ledger: read-only", frozenset({"postgresql"}), partial(_read_only_database, stage))]
    if stage.database.folder in stage.mounts:
        cards.append(Card("ledger: disk full", frozenset({"postgresql"}), partial(_full_postgresql, stage)))
    return cards


@contextmanager
def _full(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65_536)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def _full_postgresql(stage: Stage) -> Iterator[None]:
    assert stage.database
    try:
        with _full(stage.database.folder):
            yield
    finally:
        _start(stage.database)  # a write-ahead log without room ends it


@contextmanager
def _deleted(stage: Stage) -> Iterator[None]:
    for end in ("", "-wal", "-shm"):
        stage.ledger.with_name(stage.ledger.name + end).unlink(missing_ok=True)
    yield


@contextmanager
def _read_only_disk(stage: Stage) -> Iterator[None]:
    """A disk that went read-only is found so by processes that start: those that hold files open keep it
    from being made so here.
    """
    folder = str(stage.ledger.parent)
    with contextlib.ExitStack() as held:
        for service in stage.services:
            held.enter_context(_held(stage, service))
        for service in stage.services:
            service.kill()
        until(lambda: _remount(folder, "ro"), bound_s=STOP_BOUND_S, what="nobody has the ledger open")
        held.close()  # the platform starts them
        try:
            yield
        finally:
            assert _remount(folder, f"rw,size={LEDGER_DISK_MIB}m")


@contextmanager
def _read_only_database(stage: Stage) -> Iterator[None]:
    """As after a failover to a standby: new transactions may not write."""
    _ask(stage, "ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        yield
    finally:
        _ask(stage, "ALTER SYSTEM RESET default_transaction_read_only")


def _ask(stage: Stage, statement: str) -> None:
    assert stage.database
    with psycopg.connect(stage.database.url, autocommit=True, connect_timeout=5) as connection:
        connection.execute(statement)
        connection.execute("SELECT pg_reload_conf()")
