"""This service at scale, on this machine: a ledger of 1,000,000 rows, a fleet, a killed worker, the pages.

It starts the servers it needs. Rounds alternate what is compared, so that a machine that gets slower
meanwhile does not decide; figures are medians of the rounds (least–most). All is printed; with --write it
goes to docs/BENCHMARKS.md too, where sections that were not measured stay as they are.
Takes some fourteen minutes and 5 GB in the temporary folder (TMPDIR); --quick two minutes, for trying it out.

Exit status: 0 measured, 1 something failed, whatever was reached.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from scripts.bench_page import FAILURES, GOAL_MS, Answered, measure_pages
from scripts.bench_report import Section, judged, run, show, spread
from scripts.bench_scale_crew import BATCH
from scripts.bench_scale_fleet import (
    BUSY_MOST,
    DELAYS_MS,
    KNOWN,
    LEASE_S,
    THREADS,
    UNKNOWN,
    Fleets,
    measure_fleets,
    measure_takeovers,
)
from scripts.bench_scale_ledger import MANY, ONE, SETTLE, WORK, Measured, Phase, Sizes, measure_ledgers

CASES = ("ledger", "fleet", "takeover", "page")
FULL = Sizes(rows=(10_000, 1_000_000), worked=8_000, processes=(1, 2, 4, 8), rounds=3, seconds=1.5)
QUICK = Sizes(rows=(1_000, 20_000), worked=800, processes=(1, 4), rounds=1, seconds=0.2)
WORKERS, FLEET_S, QUICK_FLEET_S = (1, 2, 4), 5.0, 1.0
SIZE_GOAL, SETTLE_GOAL, SETTLE_GOAL_PROCESSES, FLEET_GOAL = 0.8, 20_000, 4, 3.2
KNOWN_GOAL_S, UNKNOWN_GOAL_S = 5.0, LEASE_S + 1.0
DAY_S, KIB, GB = 86_400, 1024, 1e9
ON_RECORD = (10**6, 10**8)


PAGE_ROUNDS = 10


# ── the ledger alone ─────────────────────────────────────────────────────────────────────────────────


def ledger_section(engine: str, measured: Measured, sizes: Sizes) -> Section:
    """One engine."""
    small, large = sizes.rows
    has_server = engine == "PostgreSQL"
    costs = f"at {large:,}: CPU µs per entry, processes" + (" / PostgreSQL; WAL KiB" if has_server else "")
    at = [f"a second, at {rows:,} rows" for rows in sizes.rows]
    section = Section(
        f"{engine}'s ledger by 1 to {max(sizes.processes)} processes, at {small:,} and {large:,} rows",
        f"{engine} {measured.version}. {sizes.worked:,} entries, spread over the table, are put as new, "
        f"claimed and settled, again and again; medians of {sizes.rounds} rounds (least–most). On disk with "
        f"its indexes, one entry of {large:,} takes {measured.bytes_filled:,} bytes when the table has just "
        f"been filled, {measured.bytes_worked:,} after all rounds.{_refused(measured)}",
        ("what", "processes", *at, "second ÷ first", costs, "reached"),
    )
    for work in WORK:
        for count in sizes.processes:
            section.rows.append(_ledger_row(measured, sizes, work, count, has_server=has_server))
    return section


def _ledger_row(
    measured: Measured, sizes: Sizes, work: str, count: int, *, has_server: bool
) -> Sequence[str]:
    small, large = (measured.rates(work, count, rows) for rows in sizes.rows)
    ratios = [second / first for first, second in zip(small, large, strict=True)]
    total = measured.total(work, count, sizes.rows[1])
    reached = [judged("ratio", statistics.median(ratios), least=SIZE_GOAL)]
    if has_server and (work, count) == (SETTLE, SETTLE_GOAL_PROCESSES):
        reached.append(judged("a second", statistics.median(large), least=SETTLE_GOAL))
    costs = f"{total.cpu_s / total.entries * 1e6:,.0f}"
    if has_server:
        costs += f" / {_server_us(total):,.0f}; {total.wal_bytes / total.entries / KIB:.1f}"
    return (work, str(count), _rates(small), _rates(large), spread(ratios), costs, ", ".join(reached))


def _server_us(phase: Phase) -> float:
    return phase.server_cpu_s / phase.entries * 1e6


def _rates(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def _refused(measured: Measured) -> str:
    refused = sum(phase.refused for phases in measured.phases.values() for phase in phases)
    return f" {refused:,} calls found the ledger busy for too long and were made again." if refused else ""


def paper_section(measured: Measured, sizes: Sizes) -> Section:
    """What follows from one PostgreSQL's figures."""
    rows = max(sizes.rows)
    section = Section(
        "On paper: what one PostgreSQL carries",
        f"Computed from the figures above at {rows:,} rows, by as many processes as were fastest; "
        "the server shares this machine's cores and its disk with them.",
        ("what", "how much", "from"),
    )
    for what, work in (
        ("events accepted, one in a call", ONE),
        (f"events accepted, {BATCH} in a call", MANY),
        ("entries claimed and settled", SETTLE),
    ):
        count, per_s = measured.best(work, rows)
        a_day = f"{per_s * DAY_S / 1e6:,.0f} million a day"
        section.rows.append((what, f"{per_s:,.0f} a second, {a_day}", f"measured, by {count}"))
    life = [measured.total(work, measured.best(work, rows)[0], rows) for work in (ONE, SETTLE)]
    spent_us = sum(_server_us(phase) for phase in life)
    wal_kib = sum(phase.wal_bytes / phase.entries for phase in life) / KIB
    each_core = f"{spent_us:,.0f} µs, so {1e6 / spent_us:,.0f} entries a second for each core of its own"
    section.rows.append(("its processor time, from the event to settled", each_core, "computed"))
    section.rows.append(("its write-ahead log, from the event to settled", f"{wal_kib:,.1f} KiB", "measured"))
    for number in ON_RECORD:
        size_gb = number * max(measured.bytes_filled, measured.bytes_worked) / GB
        how = "measured" if number == rows else f"computed from {rows:,}"
        section.rows.append((f"{number:,} objects on record", f"{size_gb:,.1f} GB on disk", how))
    return section


# ── fleets ───────────────────────────────────────────────────────────────────────────────────────────


def fleet_section(fleets: Fleets, rounds: int) -> Section:
    """Throughput by workers."""
    workers = sorted(fleets.flows)
    most_per_s = THREADS * 1000 / fleets.delay_ms
    names = ", ".join(fleets.flows[workers[0]][0].cpu_s)
    section = Section(
        f"A fleet of 1 to {max(workers)} workers on one PostgreSQL, 4 KiB objects",
        f"SeaweedFS → SeaweedFS, {THREADS} threads a worker, {fleets.delay_ms} ms added to each request to "
        f"the target: no worker can do more than {most_per_s:,.0f} objects a second. All objects are asked "
        f"for in one transaction; medians of {rounds} rounds. {_tried(fleets, max(workers))}“Cores busy” "
        "counts whatever runs on this machine.",
        ("workers", "objects/s", "÷ 1 worker", "cores busy", f"CPU ms per object: {names}", "reached"),
    )
    for count in workers:
        flows = fleets.flows[count]
        ratios = [flow.per_s / one.per_s for flow, one in zip(flows, fleets.flows[workers[0]], strict=True)]
        goal = judged("ratio", statistics.median(ratios), least=FLEET_GOAL) if count == WORKERS[-1] else ""
        busy = statistics.median(flow.busy for flow in flows)
        objects = sum(flow.objects for flow in flows)
        cpu_s = [sum(flow.cpu_s[name] for flow in flows) for name in flows[0].cpu_s]
        each = " / ".join(f"{spent_s / objects * 1000:.2f}" for spent_s in cpu_s)
        rates = _rates([flow.per_s for flow in flows])
        section.rows.append((str(count), rates, spread(ratios), f"{busy:.0%}", each, goal))
    return section


def _tried(fleets: Fleets, workers: int) -> str:
    """Why it is this delay, and whether it was enough."""
    less = "; ".join(
        f"{delay_ms} ms: {flow.per_s:,.0f} objects/s, cores {flow.busy:.0%} busy"
        for delay_ms, flow in fleets.tried.items()
        if delay_ms != fleets.delay_ms
    )
    told = f"With less, {workers} workers met the cores' limit ({less}). " if less else ""
    busy = statistics.median(flow.busy for flow in fleets.flows[workers])
    limit = f"With {fleets.delay_ms} ms the cores still are the limit: more than {BUSY_MOST:.0%} busy. "
    return told + (limit if busy > BUSY_MOST else "")


def takeover_section(options: argparse.Namespace, folder: Path, say: Callable[[str], object]) -> Section:
    """A killed worker."""
    rounds = options.rounds
    section = Section(
        f"A killed worker's entries, LEASE_S={LEASE_S}",
        f"SIGKILL to a worker whose {THREADS} copies the target has not answered yet, while another stands "
        f"by; from then on, medians of {rounds} rounds (least–most), at different moments of the keepers' "
        "rhythm; the goal is that of the longest.",
        ("the killed worker is", "unit", "all claimed again", "all settled by the other", "reached"),
    )
    for name, measured in measure_takeovers(folder / "takeover", rounds=rounds, say=say).items():
        goal_s = {KNOWN: KNOWN_GOAL_S, UNKNOWN: UNKNOWN_GOAL_S}[name]
        verdict = judged("s", max(measured.settled_s), most=goal_s)
        section.rows.append((name, "s", spread(measured.taken_s), spread(measured.settled_s), verdict))
    return section


# ── the command ──────────────────────────────────────────────────────────────────────────────────────


# ── the status page ──────────────────────────────────────────────────────────────────────────────────


def page_section(options: argparse.Namespace, folder: Path, say: Callable[[str], object]) -> Section:
    """How long each address took, on each engine."""
    rows = options.sizes.rows[-1]
    found = measure_pages(folder, rows, PAGE_ROUNDS, say)
    notes = (
        f"One web process, one client; {rows:,} entries, {FAILURES:,} of them failed. Milliseconds from the "
        f"request to the whole answer, median of {PAGE_ROUNDS} (the slowest; the first after the start)."
    )
    table: list[Sequence[str]] = [
        [
            what,
            *(_answered(engine[what]) for engine in found.values()),
            f"{next(iter(found.values()))[what].bytes / KIB:.0f}",
            judged("ms", max(engine[what].median_ms for engine in found.values()), most=GOAL_MS),
        ]
        for what in next(iter(found.values()))
    ]
    header = ("what", *(f"{engine}, ms" for engine in found), "KiB", "reached")
    return Section(f"The status page and the API with {rows:,} entries", notes, header, table)


def _answered(found: Answered) -> str:
    return f"{found.median_ms:.0f} ({found.slowest_ms:.0f}; {found.first_ms:.0f})"


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, `--quick` worked in."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m scripts.bench_scale", description=__doc__, formatter_class=shape
    )
    listed = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--cases", type=listed, default=list(CASES), help=f"of {','.join(CASES)}")
    parser.add_argument("--rounds", type=int, help=f"{FULL.rounds}, with --quick {QUICK.rounds}")
    parser.add_argument("--quick", action="store_true", help="a small version; never written")
    parser.add_argument("--write", action="store_true", help="write docs/BENCHMARKS.md")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(CASES)}")
    if options.quick and options.write:
        parser.error("--quick is for trying it out: its figures are not written")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    sizes = QUICK if options.quick else FULL
    options.rounds = options.rounds or sizes.rounds
    options.sizes = replace(sizes, rounds=options.rounds)
    options.delays_ms = DELAYS_MS[2:3] if options.quick else DELAYS_MS
    options.fleet_s = QUICK_FLEET_S if options.quick else FLEET_S
    options.command = "make bench-scale" + (
        f" ARGS={shlex.quote(shlex.join(arguments))}" if arguments else ""
    )
    return options


def measure(options: argparse.Namespace, folder: Path, console: Console) -> list[Section]:
    """All that was asked for, shown as it comes."""
    sections: list[Section] = []
    say = lambda text: console.print(f"  {text}", style="dim")  # noqa: E731

    def add(section: Section) -> None:
        show(console, section)
        sections.append(section)

    if "ledger" in options.cases:
        engines = measure_ledgers(folder, options.sizes, say)
        for engine, measured in engines.items():
            add(ledger_section(engine, measured, options.sizes))
        add(paper_section(engines["PostgreSQL"], options.sizes))
    if "fleet" in options.cases:
        fleets = measure_fleets(
            folder / "fleet",
            workers=WORKERS,
            rounds=options.rounds,
            seconds=options.fleet_s,
            delays_ms=options.delays_ms,
            say=say,
        )
        add(fleet_section(fleets, options.rounds))
    if "takeover" in options.cases:
        add(takeover_section(options, folder, say))
    if "page" in options.cases:
        add(page_section(options, folder, say))
    return sections


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    options = read_arguments(arguments)
    return run(options, partial(measure, options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
