"""What scripts/doctor.py looks at in the ledger: that it opens and lasts, and how the work stands."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from scripts.command_line import count, in_units
from scripts.doctor_report import Report
from scripts.ledger_sides import Side
from scripts.operate_views import help_for
from webhook import disks
from webhook import postgresql as pg
from webhook.clocks import ServerClock
from webhook.database import HALF_MOVED, MIGRATIONS, parse_url
from webhook.entries import RUNNING
from webhook.ledger import Ledger
from webhook.settings import Settings
from webhook.tables import ENTRIES
from webhook.verdict import verdicts

SKEW_NOTED_S, SKEW_WRONG_S = 5.0, 300.0
"""Clocks that differ by more than this."""
POSTGRESQL_MIN = 130_000
"""Version 13: older ones get no more repairs."""
START_IT = "make run      # the service makes its ledger when it starts"


# ── can it be used? ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Which ledger the settings name, and the version of its tables."""

    place: str
    """Its URL without user, password and options."""
    exists: bool
    found: str | None
    """None: there are no tables."""
    wanted: str | None
    """This release's."""

    @property
    def are_usable(self) -> bool:
        """Whether this release opens them without changing them."""
        return self.exists and self.found == self.wanted


def tables_of(configured: Settings) -> Tables:
    """Looks without making or changing anything. Raises: Failure, WrongUse where it cannot be looked at."""
    with contextlib.ExitStack() as stack:
        side = Side.at(configured.database_url, "the ledger", stack)
        exists = not side.is_file or Path(side.engine.url.database or "").exists()
        return Tables(place=side.place, exists=exists, found=side.version(), wanted=_wanted_version())


def say_tables(tables: Tables, report: Report) -> None:
    """Whether the ledger is there, and of this release."""
    place, found = tables.place, tables.found
    if tables.are_usable:
        report.fine(f"{place} opens; its tables are of this release ({found})", version=found)
    elif not tables.exists:
        mend = f"{START_IT}\nOr go to the folder it runs in, or set DATABASE_URL to its ledger."
        report.wrong(f"there is no ledger at {place}, seen from {Path.cwd()}", mend)
    elif found is None:
        report.wrong(f"{place} is empty", START_IT)
    elif found.endswith(HALF_MOVED):
        report.wrong(f"{place} was not moved to its end", "python scripts/move_ledger.py")
    else:
        mend = "Start the newest release of the service once: it brings its tables up to date by itself."
        report.wrong(f"{place} has version {found}, this release has {tables.wanted}", mend, version=found)


def _wanted_version() -> str | None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config).get_current_head()


def check_write(ledger: Ledger, report: Report) -> None:
    """Begins a write, which changes nothing."""
    began = time.monotonic()
    ledger.check()
    report.fine(f"can be written ({(time.monotonic() - began) * 1000:.0f} ms)")


def check_place(configured: Settings, report: Report) -> None:
    """Whether SQLite's file survives a restart."""
    url = parse_url(configured.database_url)
    if url.get_backend_name() != "sqlite":
        return
    path = Path(url.database or "")
    found = disks.worries(path, platform=configured.platform)
    for worry in found:
        report.note(worry.text, worry.hint)
    if not found:
        size = in_units(path.stat().st_size)
        report.fine(f"is on a disk that lasts, as far as the system tells; it is {size}")


def check_server(ledger: Ledger, report: Report) -> None:
    """What PostgreSQL says of itself."""
    if ledger.dialect == "sqlite":
        return
    names = ("server_version", "server_version_num", "synchronous_commit", "fsync", "full_page_writes")
    with ledger.reading() as connection:
        said = {name: str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in names}
        pooled = pg.is_pooled(connection.connection.driver_connection)
    report.fine(f"PostgreSQL {said['server_version']}", **said)
    if int(said["server_version_num"]) < POSTGRESQL_MIN:
        report.note("that version gets no more repairs", "Move to a newer PostgreSQL when you can.")
    if pooled:
        text = "a pooler is in between: idle workers look every 50 ms instead of being told of work"
        report.note(text, "Use the direct address in DATABASE_URL, unless there are too many processes.")
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        if said[name] == "off":
            text = f"{name} is {said[name]}: after a crash, events that were answered 200 may be gone"
            report.wrong(text, f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();")


def check_clock(ledger: Ledger, report: Report) -> None:
    """This machine's clock beside the ledger's."""
    if isinstance(ledger.clock, ServerClock):
        say_skew(report, "the ledger's clock", ledger.clock() - time.time())


def say_skew(report: Report, whose: str, ahead_s: float, *, exact_s: float = 0.0) -> None:
    """How far another clock is from this machine's, and whether that matters. It is known to `exact_s`."""
    off_s = max(0.0, abs(ahead_s) - exact_s)
    side = "ahead of" if ahead_s > 0 else "behind"
    text = f"{whose} is {off_s:.0f} s {side} this machine's"
    mend = "Set both clocks by NTP: timedatectl set-ntp true"
    facts = {"skew_s": round(ahead_s, 1)}
    if off_s >= SKEW_WRONG_S:
        report.wrong(text + ": signed requests are refused from 15 minutes on", mend, **facts)
    elif off_s >= SKEW_NOTED_S:
        report.note(text + ": times and lags are off by that", mend, **facts)
    else:
        report.fine(f"{whose} agrees with this machine's", **facts)


# ── how does the work stand? ─────────────────────────────────────────────────────────────────────────────


def check_work(facts: Mapping[str, Any], report: Report) -> None:
    """Workers, sweeps, failures, quarantine and breakers: in a line for each rule."""
    workers = facts["workers"]
    if workers:
        hosts = len({worker["host"] for worker in workers})
        threads = sum(worker["threads"] for worker in workers)
        text = f"{count(len(workers), 'process', 'processes')} at work: {count(threads, 'thread')}"
        report.fine(f"{text} on {count(hosts, 'machine')}")
        for worker in workers:
            for target, limit in worker["limits"].items():
                if limit is not None:
                    report.note(f"target {target} is busy: worker {worker['name']} sends {limit} at once")
    for verdict in verdicts(facts, datetime.now(UTC).timestamp()):
        if verdict["rule"] is not None:
            _say(verdict, report)
    if number := facts["quarantined"]:
        report.note(
            f"{number:,} records of notifications that nobody could act on",
            help_for({"rule": None, "action": "quarantine"}),
        )


def _say(verdict: Mapping[str, Any], report: Report) -> None:
    rule, action = verdict["rule"], verdict["action"]
    text = f"rule {rule}: {verdict['text']}"
    mend = "See above what is wrong with the stores." if action == "doctor" else help_for(verdict)
    if verdict["ok"]:
        report.fine(text, rule=rule)
    elif action:
        report.wrong(text, mend, rule=rule)
    else:
        report.note(text, rule=rule)


def forget(ledger: Ledger, part_of_key: str) -> int:
    """Drops the entries of the doctor's own objects that nobody works on now; gives how many."""
    position = sa.func.instr if ledger.dialect == "sqlite" else sa.func.strpos
    own = (position(ENTRIES.c.key, part_of_key) > 0, ENTRIES.c.state != RUNNING)
    return int(ledger.run(sa.delete(ENTRIES).where(*own)))
