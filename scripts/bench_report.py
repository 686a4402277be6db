"""What the benchmark found, for people: on the terminal and as the page docs/BENCHMARKS.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from scripts.bench_peers import BenchError
from scripts.local_processes import ServerError, find_binary
from scripts.local_service import ROOT
from scripts.local_tools import find_mc
from webhook import __version__
from webhook.errors import LedgerUnavailable

PACKAGES = ("Flask", "gunicorn", "minio", "boto3", "SQLAlchemy")
PREFACE = """# Benchmarks

Written by `make bench` and `make bench-scale`, but the last section; each section by the run that it names.
What is measured, and how, is in `scripts/bench*.py`.

All servers and clients share one machine, so no rate is that of a real deployment; the ratios compare like
with like. A ratio is the median of those of each round (least–most): in the tables of copying more is better,
above 1 this service is the faster one; under “Live” less is better. rclone runs as `rclone copy --transfers
32`, mc as `mc mirror --disable-multipart` (this SeaweedFS refuses mc's uploads in parts) and `mc mirror
--watch`. This service runs with its default settings; everything it copies is verified, and settled in its
ledger on disk."""


REPORT = ROOT / "docs" / "BENCHMARKS.md"
WIDTH_COLUMNS = 150
PER_SECTION = ("command", "date", "load before")
BY_HAND = "\n## Where the rest goes\n"


@dataclass(frozen=True)
class Section:
    """One table, with what is to be known of it."""

    title: str
    notes: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


def run(options: argparse.Namespace, measure: Callable[[Path, Console], list[Section]]) -> int:
    """Measures in a folder of its own, and writes the page if `options.write`; gives the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH_COLUMNS)
    try:
        told = facts(options.command, os.getloadavg())
        for name, value in told:
            console.print(f"{name:12} {value}")
        with tempfile.TemporaryDirectory(prefix="replicator-bench-", ignore_cleanup_errors=True) as folder:
            sections = measure(Path(folder), console)
    except (BenchError, ServerError, LedgerUnavailable, OSError) as error:
        console.print(f"{type(error).__name__}: {error}", style="red")
        return 1
    if options.write:
        before = REPORT.read_text() if REPORT.exists() else ""
        REPORT.write_text(markdown(told, sections, before=before))
        console.print(f"Written to {REPORT.relative_to(ROOT)}.")
    return 0


def facts(command: str, load_before: Sequence[float]) -> list[tuple[str, str]]:
    """What was measured, on what, and how to repeat it."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or "unknown",
    )
    packages = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    mc = str(find_mc() or "minio-client")
    servers = [_version("juicefs", "--version"), f"SeaweedFS {_version('weed', 'version')}"]
    return [
        ("command", command),
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("machine", f"{os.cpu_count()} cores ({cpu}), {psutil.virtual_memory().total / 2**30:.0f} GiB, "
                    f"{platform.system()} {platform.release()}"),
        ("load before", " ".join(f"{each:.2f}" for each in load_before) + " (1, 5, 15 minutes)"),
        ("ours", f"{__version__}, Python {platform.python_version()}, {', '.join(packages)}"),
        ("peers", f"{_version('rclone', 'version')}, mc: {_version(mc, '--version')}"),
        ("servers", ", ".join(servers)),
    ]  # fmt: skip


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(program: str, word: str) -> str:
    done = subprocess.run([find_binary(program), word], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].strip()


def show(console: Console, section: Section) -> None:
    """On the terminal."""
    console.print(f"\n{section.title}", style="bold")
    console.print(section.notes)
    table = Table(*section.header, box=box.SIMPLE_HEAD)
    for row in section.rows:
        table.add_row(*row)
    console.print(table)


def markdown(told: Sequence[tuple[str, str]], sections: Sequence[Section], *, before: str) -> str:
    """The page docs/BENCHMARKS.md; of `before`, the page there was, all stays that was not measured anew."""
    _, *parts = before.partition(BY_HAND)[0].split("\n## ")
    kept = {_kind(part): f"\n## {part.rstrip()}\n" for part in parts}
    facts = dict(told)
    measured = f"Measured {facts['date']}, load before {facts['load before']}: `{facts['command']}`."
    for section in sections:
        lines = ["", f"## {section.title}", "", section.notes, "", measured, ""]
        lines += [f"| {' | '.join(row)} |" for row in (section.header, ["---"] * len(section.header))]
        lines += [f"| {' | '.join(row)} |" for row in section.rows]
        kept[_kind(section.title)] = "\n".join(lines) + "\n"
    page = [*PREFACE.splitlines(), "", "| | |", "|---|---|"]
    page += [f"| {name} | {value} |" for name, value in told if name not in PER_SECTION]
    return "\n".join(page) + "\n" + "".join(kept.values()) + "".join(before.partition(BY_HAND)[1:])


def spread(values: Sequence[float]) -> str:
    """The median, the least and the most of some ratios."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def judged(what: str, value: float, *, least: float = float("-inf"), most: float = float("inf")) -> str:
    """Whether a goal was reached."""
    goal = f"≥ {least:,g}" if most == float("inf") else f"≤ {most:,g}"
    return f"{what} {goal} {'✔' if least <= value <= most else '✘'}"


def _kind(title: str) -> str:
    """What of a section's title does not change with numbers."""
    return "".join(char for char in title.splitlines()[0] if not char.isdigit() and char != ",")
