"""This service beside rclone and mc mirror, on this machine, against real servers on the loopback address.

It starts the servers, loads objects, and lets each contender copy them into a new bucket, in turn, for some
rounds; then it measures how soon one object and a burst of them are at the target, how many notifications are
accepted, how fast a ledger drains, how live objects fare beside a backfill, and what a sweep costs that finds
nothing. Ratios are taken within a round, where all met the same machine; their
median counts. All is printed; when nothing was left out, or with --write, it goes to docs/BENCHMARKS.md too,
where sections that were not measured stay as they are.
Takes half an hour and 12 GB in the temporary folder (TMPDIR); --quick two minutes.

Exit status: 0 measured, 1 something failed, whatever was reached.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from scripts.bench_accept import measure_accepting
from scripts.bench_backfill import measure_beside, measure_sweeps
from scripts.bench_copy import CASES, MIB, Case, Copying, median_run
from scripts.bench_ledger import BATCH, measure_draining
from scripts.bench_live import MC, OURS, Live, measure_live
from scripts.bench_peers import CONTENDERS, Run
from scripts.bench_report import Section, judged, run, show, spread
from scripts.local_servers import Gateway, S3Server, SeaweedFS

MB = 1_000_000
LIVE_CASES = ("latency", "burst", "notifications", "ledger", "backfill", "sweep")
SOURCES: Mapping[str, type[S3Server]] = {"gateway": Gateway, "seaweedfs": SeaweedFS}
MEMORY_GOAL_MIB = 150 + 128  # and the default of MEMORY_BUDGET_MIB
LIVE_GOAL, ACCEPT_GOAL, DRAIN_GOAL, BESIDE_GOAL = 1.2, 0.6, 0.8, 2.0
ROUNDS, SAMPLES, BURST, ACCEPT_S, ENTRIES = 3, 60, 1000, 5.0, 100_000
BACKFILL_OBJECTS, EQUAL_KEYS = 20_000, 200_000


# ── copying ──────────────────────────────────────────────────────────────────────────────────────────


def copy_section(options: argparse.Namespace, name: str, folder: Path, console: Console) -> Section:
    """Every case from one kind of source."""
    with SOURCES[name](folder / name) as source, SeaweedFS(folder / f"{name}-target") as target:
        say = lambda text: console.print(f"  {name}: {text}", style="dim")  # noqa: E731
        copying = Copying(source, target, folder / f"{name}-runs", say)
        starts = copying.starts(options.rounds)
        notes = ", ".join(f"{who} {run.seconds:.2f} s and {run.cpu_s:.2f} s" for who, run in starts.items())
        header = ("case", "unit", *CONTENDERS, *(f"ours ÷ {who}" for who in ("rclone", "mc")))
        per_each = f": {', '.join(CONTENDERS)}"
        section = Section(
            f"{name} → seaweedfs",
            f"Left out: the time and processor time to start and copy nothing ({notes}).",
            (*header, f"CPU ms per object{per_each}", f"peak MiB{per_each}", "reached"),
        )
        for case in options.copy_cases:
            section.rows.append(copy_row(case, copying.rounds(case, options.rounds), starts))
    return section


def copy_row(case: Case, runs: Mapping[str, Sequence[Run]], starts: Mapping[str, Run]) -> Sequence[str]:
    """`starts` is taken off each run; from ours only the processor time, it is timed from its start on."""
    net = {who: [_without(starts[who], run, timed=who == OURS) for run in each] for who, each in runs.items()}
    medians = {who: median_run(list(each)) for who, each in net.items()}
    amount, unit = (
        (case.objects, "objects/s") if case.size <= MIB else (case.objects * case.size / MB, "MB/s")
    )
    ratios = {
        who: [peer.seconds / ours.seconds for ours, peer in zip(net[OURS], net[who], strict=True)]
        for who in ("rclone", "mc")
    }
    digits = 2 if case.size <= MIB else 0
    peak_mib = medians[OURS].peak_bytes / MIB
    reached = [judged(who, statistics.median(ratios[who]), least=goal) for who, goal in case.goals.items()]
    return (
        f"{case.objects:,} × {case.name}",
        unit,
        *(f"{amount / medians[who].seconds:,.0f}" for who in CONTENDERS),
        *(spread(each) for each in ratios.values()),
        " / ".join(f"{medians[who].cpu_s / case.objects * 1000:,.{digits}f}" for who in CONTENDERS),
        " / ".join(f"{medians[who].peak_bytes / MIB:,.0f}" for who in CONTENDERS),
        ", ".join([*reached, judged("MiB", peak_mib, most=MEMORY_GOAL_MIB)]),
    )


def _without(start: Run, run: Run, *, timed: bool) -> Run:
    seconds = run.seconds if timed else max(run.seconds - start.seconds, 0.001)
    return Run(seconds, max(run.cpu_s - start.cpu_s, 0.0), run.peak_bytes)


# ── live ─────────────────────────────────────────────────────────────────────────────────────────────


def live_section(options: argparse.Namespace, folder: Path) -> Section:
    """One object, and many at once."""
    samples = options.samples if "latency" in options.cases else 0
    burst = options.burst if "burst" in options.cases else 0
    with Gateway(folder / "live-source") as source, SeaweedFS(folder / "live-target") as target:
        live = measure_live(
            source, target, folder / "live", samples=samples, burst=burst, rounds=options.rounds
        )
    section = Section(
        "Live: gateway → seaweedfs, 4 KiB objects",
        f"{samples} single PUTs to each in turn, 0.1 s apart; bursts of {burst:,} PUTs by 16 clients. "
        "From the PUT's return, or for a whole burst from its begin, until HEAD finds the copy there; "
        "“settled” until the ledger says that the copy is verified, against mc's copy being there.",
        ("what", "unit", "ours", "mc mirror --watch", "ours ÷ mc", "reached"),
    )
    section.rows.extend(_latency_rows(live) if samples else [])
    section.rows.extend(_burst_rows(live, burst) if burst else [])
    peaks = [f"{live.peak_bytes[who] / MIB:,.0f}" for who in (OURS, MC)]
    memory = judged("MiB", live.peak_bytes[OURS] / MIB, most=MEMORY_GOAL_MIB)
    section.rows.append(("peak memory, web process and worker", "MiB", *peaks, "", memory))
    return section


def _latency_rows(live: Live) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    mc_ms = live.latency_ms[MC]
    for what, ours_ms, goal in (
        ("PUT → copy there", live.latency_ms[OURS], LIVE_GOAL),
        ("PUT → settled", live.settled_ms, LIVE_GOAL),
    ):
        for name, figure, limit in (("median", statistics.median, goal), ("p95", _p95, None)):
            ours, mc = figure(ours_ms), figure(mc_ms)
            verdict = judged("mc", ours / mc, most=limit) if limit else ""
            rows.append((f"{what}, {name}", "ms", f"{ours:.1f}", f"{mc:.1f}", f"{ours / mc:.2f}", verdict))
    return rows


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


def _burst_rows(live: Live, objects: int) -> list[Sequence[str]]:
    def row(what: str, unit: str, ours: Sequence[float], mc: Sequence[float], scale: float = 1) -> list[str]:
        ratios = [one / other for one, other in zip(ours, mc, strict=True)]
        figures = [f"{statistics.median(each) * scale:.2f}" for each in (ours, mc)]
        return [what, unit, *figures, spread(ratios), str(statistics.median(ratios))]

    rows = [
        row("burst → all there", "s", live.burst_s[OURS], live.burst_s[MC]),
        row("burst → all settled", "s", live.burst_settled_s, live.burst_s[MC]),
        row("burst's last PUT → all there", "s", live.behind_s[OURS], live.behind_s[MC]),
        row("CPU per object of a burst", "ms", live.burst_cpu_s[OURS], live.burst_cpu_s[MC], 1000 / objects),
    ]
    for each in rows:
        ratio = float(each.pop())
        each.append(judged("mc", ratio, most=LIVE_GOAL) if each[0].startswith("burst →") else "")
    return list(rows)


def accept_section(options: argparse.Namespace, folder: Path) -> Section:
    """Notifications."""
    with SeaweedFS(folder / "accept-store") as store:
        rates = measure_accepting(store, store, folder, seconds=options.accept_s, rounds=options.rounds)
    ratios = [ours / parsing for ours, parsing in zip(rates["ours"], rates["parsing"], strict=True)]
    section = Section(
        "Notifications",
        "One gunicorn process, 16 connections kept open by 4 client processes; ours commits each to disk "
        "before it answers, the other route parses the JSON and answers.",
        ("what", "unit", "ours", "parsing only", "ours ÷ parsing", "reached"),
    )
    medians = [f"{statistics.median(each):,.0f}" for each in rates.values()]
    verdict = judged("ratio", statistics.median(ratios), least=ACCEPT_GOAL)
    section.rows.append(("accepted", "per second", *medians, spread(ratios), verdict))
    return section


def ledger_section(options: argparse.Namespace, folder: Path) -> Section:
    """The ledger alone."""
    section = Section(
        f"Ledger: {options.entries:,} entries claimed and settled",
        f"In batches of {BATCH}, by one thread, nothing copied; entries per second in each tenth of them.",
        ("engine", "unit", "tenths, first to last", "last ÷ first", "reached"),
    )
    for engine, rates in measure_draining(folder, entries=options.entries).items():
        ratio = rates[-1] / rates[0]
        tenths = " ".join(f"{rate:,.0f}" for rate in rates)
        verdict = judged("ratio", ratio, least=DRAIN_GOAL)
        section.rows.append((engine, "entries/s", tenths, f"{ratio:.2f}", verdict))
    return section


def backfill_section(options: argparse.Namespace, folder: Path) -> Section:
    """Live objects beside a backfill."""
    with Gateway(folder / "old-source") as source, SeaweedFS(folder / "old-target") as target:
        live = measure_beside(
            source, target, folder / "old", objects=options.backfill, samples=options.samples
        )
    section = Section(
        f"Live objects beside a backfill of {live.objects:,}: gateway → seaweedfs, 4 KiB objects",
        f"PUT's return → settled, 0.1 s apart: {len(live.idle_ms)} with nothing else to do, then "
        f"{len(live.busy_ms)} while a sweep has the old objects copied, which took {live.backfill_s:.0f} s "
        f"({live.objects / live.backfill_s:,.0f} objects/s).",
        ("what", "unit", "idle", "beside the backfill", "beside ÷ idle", "reached"),
    )
    for name, figure, goal in (("median", statistics.median, None), ("p95", _p95, BESIDE_GOAL)):
        idle, busy = figure(live.idle_ms), figure(live.busy_ms)
        verdict = judged("ratio", busy / idle, most=goal) if goal else ""
        section.rows.append((name, "ms", f"{idle:.1f}", f"{busy:.1f}", f"{busy / idle:.2f}", verdict))
    return section


def sweep_section(options: argparse.Namespace, folder: Path) -> Section:
    """A sweep over equal listings."""
    with Gateway(folder / "equal-source") as source, SeaweedFS(folder / "equal-target") as target:
        walked = measure_sweeps(source, target, folder, keys=options.equal_keys)
    section = Section(
        f"A sweep over {options.equal_keys:,} equal keys: gateway → seaweedfs",
        "By sizes and ETags, from the listings alone. rclone check --size-only on the same buckets. "
        "Memory: of ours the whole service's.",
        ("what", "unit", "ours", "rclone check", "ours ÷ rclone"),
    )
    ours, rclone = walked["ours"], walked["rclone"]
    for name, unit, one, other in (
        ("time", "s", ours.seconds, rclone.seconds),
        ("processor time", "s", ours.cpu_s, rclone.cpu_s),
        ("peak memory", "MiB", ours.peak_bytes / MIB, rclone.peak_bytes / MIB),
    ):
        section.rows.append((name, unit, f"{one:,.1f}", f"{other:,.1f}", f"{one / other:.2f}"))
    grown = f"{(ours.grown_bytes or 0) / MIB:,.1f}"
    section.rows.append(("of which by the sweep", "MiB", grown, "", ""))
    requests = ", ".join(f"{number:,} {name}" for name, number in sorted(ours.requests.items()))
    section.rows.append(("requests", "", requests, "", ""))
    return section


# ── the command ──────────────────────────────────────────────────────────────────────────────────────


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, `--quick` worked in."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m scripts.bench", description=__doc__, formatter_class=shape)
    names = [*(case.name for case in CASES), *LIVE_CASES]
    listed = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--cases", type=listed, default=names, help=f"of {','.join(names)}")
    parser.add_argument("--sources", type=listed, default=list(SOURCES), help=f"of {','.join(SOURCES)}")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="a tenth of the objects")
    parser.add_argument("--write", action="store_true", help="write docs/BENCHMARKS.md in any case")
    options = parser.parse_args(arguments)
    for given, known in ((options.cases, names), (options.sources, list(SOURCES))):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(known)}")
    options.copy_cases = [case for case in CASES if case.name in options.cases]
    options.samples, options.burst, options.accept_s = SAMPLES, BURST, ACCEPT_S
    options.entries, options.backfill, options.equal_keys = ENTRIES, BACKFILL_OBJECTS, EQUAL_KEYS
    is_all = set(options.cases) == set(names) and set(options.sources) == set(SOURCES)
    options.write |= is_all and not options.quick
    options.command = "make bench" + (f" ARGS={shlex.quote(shlex.join(arguments))}" if arguments else "")
    options.rounds = max(1, options.rounds or (1 if options.quick else ROUNDS))
    if options.quick:
        options.samples, options.burst, options.accept_s, options.entries = 10, 200, 1.0, ENTRIES // 10
        options.backfill, options.equal_keys = BACKFILL_OBJECTS // 10, EQUAL_KEYS // 10
        options.copy_cases = [
            replace(case, objects=max(1, case.objects // 10)) for case in options.copy_cases
        ]
    return options


def measure(options: argparse.Namespace, folder: Path, console: Console) -> list[Section]:
    """All that was asked for, shown as it comes."""
    sections: list[Section] = []

    def add(section: Section) -> None:
        show(console, section)
        sections.append(section)

    for name in options.sources if options.copy_cases else ():
        add(copy_section(options, name, folder, console))
    if {"latency", "burst"} & set(options.cases):
        add(live_section(options, folder))
    if "notifications" in options.cases:
        add(accept_section(options, folder))
    if "ledger" in options.cases:
        add(ledger_section(options, folder))
    if "backfill" in options.cases:
        add(backfill_section(options, folder))
    if "sweep" in options.cases:
        add(sweep_section(options, folder))
    return sections


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    options = read_arguments(arguments)
    return run(options, partial(measure, options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
