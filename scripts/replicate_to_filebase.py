"""Copies everything that is at the source and not, or not the same, at the target.

It sweeps the buckets of all rules, or of one: both sides are listed and compared, and what differs is copied
by way of the same ledger and the same copy as the service's. Where the service runs on the same ledger
(DATABASE_URL), it does the work and this shows its progress; else this does it. Interrupted or killed, run it
again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sqlalchemy as sa
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from scripts.command_line import (
    Code,
    Failure,
    Interrupted,
    Parser,
    Screen,
    WrongUse,
    all_settings,
    count,
    in_units,
    say,
    start,
)
from scripts.compare_sides import TO_COPY, Comparing, Sum
from webhook import logs
from webhook.entries import HELD, LANES
from webhook.errors import LedgerUnavailable, LedgerVersionError, ReplicatorError, SettingsError
from webhook.fleet import Fleet
from webhook.ledger import Ledger
from webhook.listing import walk
from webhook.progress import Progress
from webhook.reconcile import Sides, shape
from webhook.rules import Rule
from webhook.service import Service, assemble, open_stores
from webhook.settings import Settings
from webhook.sweeps import DROPPED, OPEN, Sweep, Sweeps
from webhook.tables import ENTRIES

LOOK_S = 0.25
LINE_S = 10.0
"""Between two lines of progress where there is no terminal, and two looks for trouble."""
DRAIN_MAX_S = 5.0
"""After Ctrl-C, for copies under way: people wait."""
COUNTED_MAX = 1_000_000
FAILURES_SHOWN = 10
EXAMPLES = """
  python scripts/replicate_to_filebase.py                       everything
  python scripts/replicate_to_filebase.py --bucket photos --prefix 2026/
  python scripts/replicate_to_filebase.py --dry-run             what would be copied, and why
  python scripts/replicate_to_filebase.py --check               is the target complete?
  python scripts/replicate_to_filebase.py --check --deep        the same, byte by byte
"""
SETTINGS = "those of the service: .env.example lists them"
DONE = "all is at the target; with --check: nothing differs; with --dry-run: looked"
FAILED = "some objects failed, or are held back; with --check: something differs"


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Exits with 2 where they cannot be used."""
    what = (__doc__ or "").strip()
    parser = Parser(
        "replicate_to_filebase", what, examples=EXAMPLES, settings=SETTINGS, done=DONE, failed=FAILED
    )
    parser.add_argument("--bucket", help="only this source bucket")
    parser.add_argument("--prefix", default="", help="only keys that begin with this")
    for name, text in (
        ("--dry-run", "list what would be copied and why; change nothing"),
        ("--check", "compare only: list what is missing, different or extra"),
        ("--deep", "with --check: compare every byte, not ETags"),
        ("--json", "results as JSON, one object a line"),
        ("--verbose", "log lines of the work, to stderr"),
    ):
        parser.add_argument(name, action="store_true", help=text)
    options = parser.parse_args(arguments)
    if options.deep and not options.check:
        parser.error("--deep goes with --check")
    if options.check and options.dry_run:
        parser.error("--check and --dry-run are two things: one compares, one tells what would be copied")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Gives the exit code."""
    options = read_options(arguments)
    screen = Screen(as_json=options.json)
    configured = all_settings()
    worker = replace(configured.worker, drain_s=min(configured.worker.drain_s, DRAIN_MAX_S))
    configured = replace(configured, worker=worker, reconcile_interval_s=0)
    logs.configure(configured.log_format, least=logging.INFO if options.verbose else logging.CRITICAL)
    try:
        if options.check or options.dry_run:
            return compare(options, screen, configured)
        return replicate(options, screen, configured)
    except SettingsError:
        raise
    except LedgerVersionError as error:
        raise WrongUse(f"{error.message}. {error.hint}") from None
    except ReplicatorError as error:
        raise Failure(f"{error.message}. {error.hint}".rstrip()) from None


def chosen(sides: Sides, options: argparse.Namespace) -> tuple[Rule, ...]:
    """The rules to look at, whose buckets are there. Raises: WrongUse, Failure, StoreError."""
    rules = sides.concrete() if not options.bucket else sides.rules.of_buckets([options.bucket])
    if not rules:
        if options.bucket:
            raise WrongUse(f"no rule copies the bucket {options.bucket!r}. See MINIO_BUCKET, or RULES_FILE.")
        raise Failure("no bucket at the source is one that a rule copies. See MINIO_BUCKET, or RULES_FILE.")
    for bucket in sorted({rule.source_bucket for rule in rules}):
        sides.source.check(bucket)
    for target, bucket in sorted({(rule.target, rule.target_bucket) for rule in rules}):
        sides.targets[target].check(bucket)
    return rules


# ── compare ──────────────────────────────────────────────────────────────────────────────────────────


def compare(options: argparse.Namespace, screen: Screen, configured: Settings) -> int:
    """Lists what differs; changes nothing at either side, nor in the ledger."""
    ledger = Ledger.open(configured.database_url) if _has_ledger(configured) else None
    fails = False
    with contextlib.closing(open_stores(configured)) as sides, screen.progress("{task.description}") as bar:
        task = bar.add_task("comparing …")

        def seen(_size: int) -> None:
            bar.update(task, description=f"compared {_amount(comparing.sum)}", refresh=False)

        comparing = Comparing(sides, ledger, deep=options.deep, threads=configured.worker.threads, seen=seen)
        with _interruptible(lambda: f"{_amount(comparing.sum)} were compared; nothing was changed."):
            for rule in chosen(sides, options):
                for finding in comparing.findings(rule, options.prefix):
                    if not options.dry_run or finding.kind in TO_COPY:
                        screen.result(finding.line(), finding.facts())
                    fails |= finding.is_fault
    _sum_up(comparing.sum, screen, dry_run=options.dry_run)
    return Code.FAILED if fails and options.check else Code.DONE


def _sum_up(found: Sum, screen: Screen, *, dry_run: bool) -> None:
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in found.kinds.items())
    if screen.as_json:
        screen.result("", {"compared": found.compared, "bytes": found.size, "found": dict(found.kinds)})
    elif dry_run:
        screen.line(f"{_amount(found)} compared; {count(found.to_copy, 'object')} would be copied.")
    else:
        screen.line(f"{_amount(found)} compared: {kinds or 'all the same'}.")
        if found.kinds["extra"]:
            screen.line("What only the target has counts as a difference where the rule propagates deletes.")


def _amount(found: Sum) -> str:
    return f"{count(found.compared, 'object')}, {in_units(found.size)}"


def _has_ledger(configured: Settings) -> bool:
    """Whether there is a ledger to look into; a comparison makes none."""
    url = configured.database_url
    return not url.startswith("sqlite:///") or Path(url.removeprefix("sqlite:///")).exists()


@contextlib.contextmanager
def _interruptible(done: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(done()) from None


# ── replicate ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class State:
    """How far all of it is."""

    open_sweeps: int
    compared: int
    waiting: int
    settled: int
    """How many times an object was copied, deleted, or looked at and found equal."""
    copied_bytes: int
    failed: int
    held: int
    kept: int
    errors: tuple[str, ...]
    """Of sweeps that were put off."""
    dropped: tuple[str, ...]
    """The rules whose sweeps were not done."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return not self.open_sweeps and not self.waiting

    @property
    def done(self) -> int:
        """Keys that are surely equal by now, or have failed."""
        return max(0, self.compared - self.waiting)


class Run:
    """One run: its sweeps, and who does the work."""

    def __init__(self, service: Service, rules: Sequence[Rule], prefix: str) -> None:
        self._service = service
        self._ledger = service.ledger
        self._sweeps, self._progress = Sweeps(service.ledger), Progress(service.ledger)
        self.rules = rules
        self._names = [rule.name for rule in rules]
        self._prefix = prefix
        self._since_minute = int(time.time() // 60)
        self._before = self._settled()
        self._asked: list[Sweep] = []
        self.works_here = False
        self.total = 0
        """Objects at the source, as far as they were counted."""
        self.is_counted = False

    def ask(self) -> None:
        """Asks for the sweeps, and for another try of what failed."""
        self._sweeps.register({rule.name: shape(rule) for rule in self.rules})
        for rule in self.rules:
            self._ledger.revive(rule=rule.name, prefix=self._prefix)
            self._asked.append(self._sweeps.request(rule.name, prefix=self._prefix, cause="command"))
        threading.Thread(target=self._count, daemon=True).start()

    def see_to_it(self) -> None:
        """Starts to work here where nobody else does."""
        if not self.works_here and not Fleet(self._ledger).members():
            self.works_here = True
            self._service.start()

    def stop(self) -> None:
        """Finishes or hands back what runs here. Safe to repeat."""
        if self.works_here:
            self.works_here = False
            self._service.stop()

    def state(self) -> State:
        """Read from the ledger, whoever does the work."""
        sweeps = [self._sweeps.get(each.id) or each for each in self._asked]
        # after the sweeps, so that what one has put last is seen, and before what became of it; in both
        # lanes: an event may have put it before
        waiting = sum(self._ledger.backlog(lane, limit=COUNTED_MAX, rules=self._names) for lane in LANES)
        settled, size = self._settled()
        held = self._service.deletes.breakers()
        return State(
            open_sweeps=sum(sweep.state == OPEN for sweep in sweeps),
            compared=sum(sweep.compared for sweep in sweeps),
            waiting=waiting,
            settled=settled - self._before[0],
            copied_bytes=size - self._before[1],
            failed=sum(len(self.failures(rule, limit=1000)) for rule in self._names),
            held=sum(held[name].held for name in self._names if name in held),
            kept=sum(sweep.kept for sweep in sweeps),
            errors=tuple(sweep.error for sweep in sweeps if sweep.error and sweep.state == OPEN),
            dropped=tuple(sweep.rule for sweep in sweeps if sweep.state == DROPPED),
        )

    def failures(self, rule: str, *, limit: int) -> list[Any]:
        """What was put aside."""
        return self._ledger.failures(rule=rule, prefix=self._prefix, limit=limit)

    def trouble(self) -> str:
        """Why one of the objects that are tried again was not copied; "" where all went well."""
        row = ENTRIES.c
        is_open = (row.lane.in_(LANES), row.due_at.is_not(None), row.rule.in_(self._names))
        with self._ledger.reading() as connection:
            failed_once = sa.select(row.error).where(*is_open, row.error.is_not(None))
            return connection.scalar(failed_once.limit(1)) or ""

    def _settled(self) -> tuple[int, int]:
        since = self._since_minute
        lanes = [self._progress.settled(self._names, lane=lane, since_minute=since) for lane in LANES]
        return sum(objects for objects, _ in lanes), sum(size for _, size in lanes)

    def _count(self) -> None:
        """Counts the source's objects beside all else, so that time left can be told."""
        source = self._service.sides.source
        # RuntimeError: the program ends meanwhile, and no thread may begin anything
        with contextlib.suppress(ReplicatorError, RuntimeError), ThreadPoolExecutor(1) as reader:
            for rule in self.rules:
                prefix = max(rule.prefix, self._prefix, key=len)
                ask = partial(source.page, rule.source_bucket, prefix)
                for page in walk(lambda token, ask=ask: ask(token=token), reader):  # type: ignore[misc]
                    keys = (each.key for each in page.objects)
                    self.total += sum(rule.wants(key) and key.startswith(self._prefix) for key in keys)
            self.is_counted = True


def replicate(options: argparse.Namespace, screen: Screen, configured: Settings) -> int:
    """Sweeps and copies, here or by the service that runs, and shows how far it is."""
    service = assemble(configured)
    rules = chosen(service.sides, options)
    run = Run(service, rules, options.prefix)
    began = time.monotonic()
    try:
        run.ask()
        run.see_to_it()
        if not run.works_here:
            screen.note("The service is running: it does the work. Ctrl-C ends only this view of it.")
        state = watch(run, screen)
    except KeyboardInterrupt:
        if not run.works_here:
            raise Interrupted("The service goes on without this view.") from None
        say("stopping: copies under way are finished or handed back …")
        raise Interrupted("What is done is done; run this again to go on.") from None
    finally:
        run.stop()
    return report(run, state, screen, time.monotonic() - began)


def watch(run: Run, screen: Screen) -> State:
    """Until all is over."""
    view = View(run, screen)
    with screen.progress(BarColumn(bar_width=24), TextColumn("{task.description}")) as bar:
        task = bar.add_task("asking …", total=None)
        while True:
            with contextlib.suppress(LedgerUnavailable):
                state = run.state()
                view.show(state, bar, task)
                if state.is_over:
                    return state
                run.see_to_it()
            time.sleep(LOOK_S)


class View:
    """What is shown while it goes on."""

    def __init__(self, run: Run, screen: Screen) -> None:
        self._run = run
        self._screen = screen
        self._began = time.monotonic()
        self._done_before: int | None = None
        self._line_at = self._began
        self._said: set[str] = set()

    def show(self, state: State, bar: Bar, task: TaskID) -> None:
        """A bar on a terminal, a line now and then elsewhere."""
        text = self._text(state)
        total = self._total(state) if self._run.is_counted else None
        bar.update(task, description=text, total=total, completed=state.done)
        if time.monotonic() - self._line_at > LINE_S:
            self._line_at = time.monotonic()
            if bar.disable:
                self._screen.note(text)
            self._say_once("an object", self._run.trouble())
        for error in state.errors:
            self._say_once("a listing", error)

    def _say_once(self, what: str, error: str) -> None:
        if error and error not in self._said:
            self._said.add(error)
            self._screen.note(f"{what} failed and is tried again: {error}")

    def _text(self, state: State) -> str:
        if self._done_before is None:
            self._done_before = state.done
        passed_s = max(0.001, time.monotonic() - self._began)
        rate = (state.done - self._done_before) / passed_s
        total = f"/{self._total(state):,}" if self._run.is_counted else ""
        parts = [f"{state.done:,}{total} objects", f"{in_units(state.copied_bytes)} copied"]
        parts.append(f"{state.settled / passed_s:,.0f}/s, {in_units(state.copied_bytes / passed_s)}/s")
        if self._run.is_counted and rate > 0:
            parts.append(f"{_duration((self._total(state) - state.done) / rate)} left")
        if state.failed:
            parts.append(f"{state.failed:,} failed")
        return " · ".join(parts)

    def _total(self, state: State) -> int:
        """At least what is done: keys that only the target has are compared too."""
        return max(self._run.total, state.done)


def report(run: Run, state: State, screen: Screen, seconds: float) -> int:
    """What came of it."""
    size = state.copied_bytes
    facts: dict[str, Any] = {"compared": state.compared, "settled": state.settled, "bytes": size}
    facts |= {"failed": state.failed, "held": state.held, "kept": state.kept, "seconds": round(seconds, 1)}
    text = f"{count(state.compared, 'object')} compared, {state.settled:,} settled ({in_units(size)} copied)"
    screen.result(f"{text} in {_duration(seconds)}; {state.failed:,} failed.", facts)
    for name in [rule.name for rule in run.rules] if state.failed else ():
        for entry in run.failures(name, limit=FAILURES_SHOWN):
            screen.note(f"  failed: {name}/{entry['key']}: {entry['error']}")
    if state.failed > FAILURES_SHOWN:
        screen.note("GET /v1/failures lists all of them. Mend the causes, and run this again.")
    if state.held:
        screen.note(f"{count(state.held, 'delete')} {HELD} back: approve or discard them, see the README.")
    if state.kept:
        screen.note(f"{count(state.kept, 'key')} that differ were left alone; --check lists what is why.")
    for name in state.dropped:
        screen.note(f"The service does not copy by rule {name}: start it anew with these settings.")
    return Code.FAILED if state.failed or state.held or state.dropped else Code.DONE


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
    )


if __name__ == "__main__":
    start(main)
